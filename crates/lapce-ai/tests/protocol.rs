//! The daemon as an editor sees it: each request type, over a connection of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use lapce_ai_client::{Client, ClientError, ErrorCode, MessageType, Options, ai};
use support::Home;

async fn client(home: &Home) -> Client {
    Client::connect(Options::new(home.socket())).await.unwrap()
}

fn code(error: &ClientError) -> Option<ErrorCode> {
    error.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_type_of_request_has_its_answer() {
    let home = Home::new("");
    let _daemon = home.serve(&[]);
    let client = client(&home).await;

    for size in [0, 1, 100_000] {
        let body = vec![7; size];
        assert_eq!(client.call(MessageType::ECHO, &body).await.unwrap(), body);
    }
    let chat = ai::AIRequest::new("", vec![ai::Message::user("12345678")]);
    let answer = client.complete(&chat).await.unwrap();
    assert!(
        answer.content.contains("You said: \"12345678\""),
        "{}",
        answer.content
    );
    let count = client.token_count(&chat).await.unwrap();
    assert_eq!((count.tokens, count.exact), (6, false));

    let request = ai::AutocompleteRequest {
        prefix: "fn main() {".into(),
        ..Default::default()
    };
    let mut stream = client.autocomplete(&request).await.unwrap();
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event.unwrap());
    }
    assert_eq!(
        last,
        Some(ai::StreamEvent::Finish {
            reason: ai::FinishReason::Stop,
            attempts: Vec::new(),
            cost_nano_usd: Some(0),
            cached: false,
            warnings: Vec::new(),
        })
    );

    let request = ai::FileAnalysisRequest {
        path: "a.rs".into(),
        content: "fn main() {}".into(),
        question: "What is it?".into(),
        ..Default::default()
    };
    let mut stream = client.analyze_file(&request).await.unwrap();
    let mut text = String::new();
    while let Some(event) = stream.next().await {
        if let ai::StreamEvent::Text { text: piece } = event.unwrap() {
            text.push_str(&piece);
        }
    }
    assert!(text.contains("The file a.rs"), "{text}");

    let request = ai::EmbeddingsRequest {
        model: "local".into(),
        input: vec!["x".into()],
        ..Default::default()
    };
    assert_eq!(
        code(&client.embeddings(&request).await.unwrap_err()),
        Some(ErrorCode::Unsupported)
    );
    let unknown = client.call(MessageType::FIRST_FREE, b"").await.unwrap_err();
    assert_eq!(code(&unknown), Some(ErrorCode::UnknownType));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wrong_request_is_told_where() {
    let home = Home::new("");
    let _daemon = home.serve(&[]);
    let client = client(&home).await;
    let ai_types = [
        MessageType::CHAT,
        MessageType::AUTOCOMPLETE,
        MessageType::FILE_ANALYSIS,
        MessageType::EMBEDDINGS,
        MessageType::MODELS,
        MessageType::TOKEN_COUNT,
        MessageType::SHUTDOWN,
    ];
    for ty in ai_types {
        let error = client
            .call(ty, b"{\n  \"messages\": nonsense")
            .await
            .unwrap_err();
        assert_eq!(
            code(&error),
            Some(ErrorCode::InvalidRequest),
            "{ty}: {error}"
        );
        assert!(error.to_string().contains("line "), "{ty}: {error}");
    }
    let empty = client
        .complete(&ai::AIRequest::new("", Vec::new()))
        .await
        .unwrap_err();
    assert_eq!(code(&empty), Some(ErrorCode::InvalidRequest));
    assert!(empty.to_string().contains("messages is empty"), "{empty}");
    // The connection lives on.
    client.status().await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_come_from_the_configuration() {
    let home = Home::new(
        "[ipc]\nmax_message_size = '64KiB'\nring_size = '8KiB'\nmax_frame_payload = 1024\ninline_window = 4096\nmax_connections = 2\n",
    );
    let _daemon = home.serve(&["--set", "ipc.max_streams=5"]);
    let first = client(&home).await;
    let welcome = first.welcome().unwrap();
    assert_eq!(
        (
            welcome.limits.max_message_size,
            welcome.limits.max_frame_payload
        ),
        (64 << 10, 1024)
    );
    assert_eq!(
        (welcome.limits.max_streams, welcome.request_capacity),
        (5, 8192)
    );
    let body = vec![1; 60_000];
    assert_eq!(first.call(MessageType::ECHO, &body).await.unwrap(), body);
    let too_large = first
        .call(MessageType::ECHO, &vec![1; 70_000])
        .await
        .unwrap_err();
    assert_eq!(code(&too_large), Some(ErrorCode::MessageTooLarge));
    let second = client(&home).await;
    let third = Client::connect(Options::new(home.socket()))
        .await
        .unwrap_err();
    assert_eq!(code(&third), Some(ErrorCode::TooManyConnections), "{third}");
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dropped_stream_is_cancelled() {
    let home = Home::new("[providers.local]\nfail = 'hang'\nfail_after_tokens = 1\n");
    let _daemon = home.serve(&[]);
    let client = client(&home).await;
    let request = ai::AIRequest::new("", vec![ai::Message::user("x")]);
    let mut stream = client.chat(&request).await.unwrap();
    assert!(matches!(
        stream.next().await,
        Some(Ok(ai::StreamEvent::Start { .. }))
    ));
    let running: u64 = client
        .status()
        .await
        .unwrap()
        .connections
        .iter()
        .map(|connection| connection.in_flight)
        .sum();
    assert!(running >= 1, "{running}");
    drop(stream);
    while client.status().await.unwrap().counters.cancelled == 0 {
        tokio::task::yield_now().await;
    }
    client.close().await;
}
