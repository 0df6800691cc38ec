//! The HTTP provider against a server on loopback.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use lapce_ai_providers::{
    ChatRequest, Discovered, EmbeddingRequest, ErrorKind, Event, Fault, FinishReason, HttpClient,
    HttpConfig, HttpProvider, LoopbackServer, Phase, Profile, Provider, ProviderError, Timeouts,
    probe,
};
use serde_json::{Value, json};
use support::{FINISH, KEY, USAGE, Upstream, client, request, sse, text_chunk, wire, wire_of};

/// Long enough for a server in the same process, short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

async fn chat(provider: &HttpProvider) -> Result<lapce_ai_providers::ChatResponse, ProviderError> {
    provider.chat(&request()).await?.collect().await
}

#[tokio::test]
async fn a_stream_in_pieces_and_the_connection_used_again() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let serve = async {
        let mut exchange = upstream.accept().await;
        for _ in 0..2 {
            assert!(
                exchange
                    .head
                    .starts_with("post /v1/chat/completions http/1.1\r\n"),
                "{}",
                exchange.head
            );
            assert!(
                exchange
                    .head
                    .contains(&format!("authorization: bearer {KEY}\r\n"))
            );
            assert!(exchange.head.contains("accept-encoding: identity\r\n"));
            let body: Value = serde_json::from_str(&exchange.body).unwrap();
            assert_eq!(
                (&body["model"], &body["stream"]),
                (&"gpt-x".into(), &true.into())
            );
            exchange.begin_stream().await;
            let usage = USAGE.replace('\n', "");
            let stream = sse(&[&text_chunk("Grü"), &text_chunk("ße"), FINISH, &usage]);
            for piece in stream.as_bytes().chunks(3) {
                exchange.chunk(piece).await;
            }
            exchange.end().await;
            if body["messages"][0]["content"] == "Hi" {
                exchange.read_request().await;
            }
        }
    };
    let ask = async {
        let first = chat(&provider).await.unwrap();
        assert_eq!(
            (first.text.as_str(), first.finish),
            ("Grüße", Some(FinishReason::Stop))
        );
        assert_eq!(first.usage.unwrap().cached_input_tokens, 3);
        let second = ChatRequest::new("gpt-x").with(lapce_ai_providers::Message::user("again"));
        // The server takes no second connection.
        assert_eq!(
            provider
                .chat(&second)
                .await
                .unwrap()
                .collect()
                .await
                .unwrap(),
            first
        );
    };
    tokio::join!(
        async {
            tokio::select! { () = serve => {} }
        },
        ask
    );
}

#[tokio::test]
async fn an_answer_in_one_piece() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let asked = ChatRequest {
        stream: false,
        ..request()
    };
    let ask = async { provider.chat(&asked).await?.collect().await };
    let serve = async {
        let mut exchange = upstream.accept().await;
        assert!(exchange.head.contains("accept: application/json\r\n"));
        let body = r#"{"id":"c","model":"m","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}"#;
        exchange
            .answer("200 OK", "content-type: application/json\r\n", body)
            .await;
    };
    assert_eq!(tokio::join!(ask, serve).0.unwrap().text, "Hi");
}

#[tokio::test]
async fn error_answers() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let echo = format!(
        r#"{{"error":{{"message":"Incorrect API key provided: {KEY}","code":"invalid_api_key"}}}}"#
    );
    for (status, headers, body, kind) in [
        (
            "401 Unauthorized",
            "",
            echo.as_str(),
            ErrorKind::Authentication,
        ),
        (
            "429 Too Many",
            "retry-after: 7\r\n",
            "",
            ErrorKind::RateLimited,
        ),
        (
            "502 Bad Gateway",
            "content-type: text/html\r\n",
            "<title>Bad</title>",
            ErrorKind::ProviderInternal,
        ),
        (
            "200 OK",
            "content-type: text/html\r\n",
            "<h1>Log in</h1>",
            ErrorKind::MalformedResponse,
        ),
        (
            "302 Found",
            "location: http://elsewhere/\r\n",
            "",
            ErrorKind::Configuration,
        ),
        (
            "500 Oh",
            "",
            &"x".repeat(100_000),
            ErrorKind::ProviderInternal,
        ),
    ] {
        let serve = async { upstream.accept().await.answer(status, headers, body).await };
        let (answer, ()) = tokio::join!(chat(&provider), serve);
        let error = answer.unwrap_err();
        assert_eq!((error.kind, &*error.provider), (kind, "tested"), "{status}");
        assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
        if status.starts_with("429") {
            assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
            assert!(error.is_retryable());
        }
    }
}

#[tokio::test]
async fn nobody_there() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    drop(upstream);
    let error = chat(&provider).await.unwrap_err();
    assert_eq!(
        (error.kind, error.fault()),
        (ErrorKind::ConnectionFailed, Fault::Network)
    );
    assert!(error.is_retryable() && std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn connecting_has_its_time_out_and_that_covers_tls() {
    let upstream = Upstream::start().await;
    // The system accepts the connection, and nobody answers the TLS greeting.
    let base_url = upstream.base_url().replace("http://", "https://");
    let client = HttpClient::new(&HttpConfig {
        connect_timeout: SHORT,
        ..HttpConfig::default()
    })
    .unwrap();
    let provider = HttpProvider::new("tested", wire(&base_url), client);
    assert_eq!(
        chat(&provider).await.unwrap_err().kind,
        ErrorKind::TimedOut(Phase::Connect)
    );
}

#[tokio::test]
async fn the_first_token_has_its_time_out() {
    let upstream = Upstream::start().await;
    let timeouts = Timeouts {
        first_token: SHORT,
        ..Timeouts::default()
    };
    let provider = upstream.provider().with_timeouts(timeouts);
    let expected = ErrorKind::TimedOut(Phase::FirstToken);
    // No answer at all.
    let (answer, exchange) = tokio::join!(chat(&provider), upstream.accept());
    assert_eq!(answer.unwrap_err().kind, expected);
    exchange.closed().await;
    // An answer that begins, and pings forever.
    let serve = async {
        let mut exchange = upstream.accept().await;
        exchange.begin_stream().await;
        exchange
            .chunk(format!("data: {}\n\n", text_chunk("")))
            .await;
        loop {
            exchange.chunk(": ping\n\n").await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = chat(&provider) => assert_eq!(answer.unwrap_err().kind, expected),
        () = serve => {}
    }
}

#[tokio::test]
async fn so_has_the_next() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider().with_timeouts(Timeouts {
        between_tokens: SHORT,
        ..Timeouts::default()
    });
    let serve = async {
        let mut exchange = upstream.accept().await;
        exchange.begin_stream().await;
        exchange
            .chunk(format!("data: {}\n\n", text_chunk("a")))
            .await;
        exchange
    };
    let (stream, exchange) =
        tokio::join!(async { provider.chat(&request()).await.unwrap() }, serve);
    let mut stream = stream;
    let mut texts = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(event) => texts += usize::from(matches!(event, Event::Text("a"))),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (texts, error.kind),
        (1, ErrorKind::TimedOut(Phase::NextToken))
    );
    assert!(stream.next().await.is_none());
    exchange.closed().await;
}

#[tokio::test]
async fn a_lost_connection_cuts_the_answer_unless_it_was_complete() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    for complete in [false, true] {
        let serve = async {
            let mut exchange = upstream.accept().await;
            exchange.begin_stream().await;
            exchange
                .chunk(format!("data: {}\n\n", text_chunk("a")))
                .await;
            if complete {
                exchange.chunk(format!("data: {FINISH}\n\n")).await;
            }
        };
        let (answer, ()) = tokio::join!(chat(&provider), serve);
        match answer {
            Ok(response) => assert_eq!(
                (complete, response.finish),
                (true, Some(FinishReason::Stop))
            ),
            Err(error) => assert_eq!(
                (complete, error.kind),
                (false, ErrorKind::StreamCut),
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn a_body_that_never_ends_does_not_hold_up_a_complete_answer() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let serve = async {
        let mut exchange = upstream.accept().await;
        exchange.begin_stream().await;
        exchange.chunk(sse(&[&text_chunk("a"), FINISH])).await;
        exchange
    };
    let (answer, exchange) = tokio::join!(chat(&provider), serve);
    assert_eq!(answer.unwrap().finish, Some(FinishReason::Stop));
    exchange.closed().await;
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let serve = async {
        let mut exchange = upstream.accept().await;
        exchange.begin_stream().await;
        exchange
            .chunk(format!("data: {}\n\n", text_chunk("a")))
            .await;
        exchange
    };
    let (stream, exchange) =
        tokio::join!(async { provider.chat(&request()).await.unwrap() }, serve);
    let mut stream = stream;
    while !matches!(stream.next().await.unwrap().unwrap(), Event::Text("a")) {}
    drop(stream);
    exchange.closed().await;
}

#[tokio::test]
async fn dropping_the_request_before_its_answer_closes_the_connection() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let asked = request();
    let exchange = tokio::select! {
        _ = provider.chat(&asked) => panic!("nobody answers"),
        exchange = upstream.accept() => exchange,
    };
    exchange.closed().await;
}

#[tokio::test]
async fn the_list_of_geminis_models_in_pages() {
    let upstream = Upstream::start().await;
    for (profile, path, list) in [
        ("gemini", "/v1/models?pagesize=1000", "models"),
        (
            "vertex",
            "/v1/publishers/google/models?pagesize=100",
            "publisherModels",
        ),
    ] {
        let wire = wire_of(profile, &upstream.base_url());
        let provider = HttpProvider::new("tested", wire, client());
        let page = |name: &str, next: &str| {
            let entry = json!({"name": format!("models/{name}")});
            json!({list: [entry], "nextPageToken": next}).to_string()
        };
        let serve = async {
            let mut exchange = upstream.accept().await;
            for (page, mark) in [
                (page("a", "x/1+="), ""),
                (page("b", "2"), "&pagetoken=x%2f1%2b%3d"),
                (page("c", ""), "&pagetoken=2"),
            ] {
                let expected = format!("get {path}{mark} http/1.1\r\n");
                assert!(exchange.head.starts_with(&expected), "{}", exchange.head);
                exchange.answer("200 OK", "", &page).await;
                if mark != "&pagetoken=2" {
                    exchange.read_request().await;
                }
            }
        };
        let (models, ()) = tokio::join!(provider.models(), serve);
        let ids: Vec<_> = models.unwrap().into_iter().map(|model| model.id).collect();
        assert_eq!(ids, ["a", "b", "c"], "{profile}");
    }
}

#[tokio::test]
async fn the_list_of_models() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let serve = async {
        let mut exchange = upstream.accept().await;
        assert!(exchange.head.starts_with("get /v1/models http/1.1\r\n"));
        exchange
            .answer("200 OK", "", r#"{"object":"list","data":[{"id":"gpt-x"}]}"#)
            .await;
    };
    let (models, ()) = tokio::join!(provider.models(), serve);
    assert_eq!(models.unwrap()[0].id, "gpt-x");
    let serve = async {
        upstream
            .accept()
            .await
            .answer("403 Forbidden", "", "")
            .await;
    };
    let (models, ()) = tokio::join!(provider.models(), serve);
    assert_eq!(models.unwrap_err().kind, ErrorKind::Permission);
}

#[tokio::test]
async fn a_list_of_models_in_pages() {
    let upstream = Upstream::start().await;
    let wire = wire_of("cohere", &upstream.origin());
    let provider = HttpProvider::new("cohere", wire, client());
    let serve = async {
        let mut exchange = upstream.accept().await;
        for (path, page) in [
            (
                "/v1/models?page_size=1000",
                r#"{"models":[{"name":"a"}],"next_page_token":"t/1+"}"#,
            ),
            (
                "/v1/models?page_size=1000&page_token=t%2f1%2b",
                r#"{"models":[{"name":"b"}]}"#,
            ),
        ] {
            let line = format!("get {path} http/1.1\r\n");
            assert!(exchange.head.starts_with(&line), "{}", exchange.head);
            exchange.answer("200 OK", "", page).await;
            if path.ends_with("1000") {
                exchange.read_request().await;
            }
        }
    };
    let (models, ()) = tokio::join!(provider.models(), serve);
    let models = models.unwrap();
    let ids: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn a_list_of_models_without_end_is_read_for_a_while() {
    let upstream = Upstream::start().await;
    let wire = wire_of("cohere", &upstream.origin());
    let provider = HttpProvider::new("cohere", wire, client());
    let serve = async {
        let mut exchange = upstream.accept().await;
        loop {
            let page = r#"{"models":[{"name":"a"}],"next_page_token":"t"}"#;
            exchange.answer("200 OK", "", page).await;
            exchange.read_request().await;
        }
    };
    let models = tokio::select! {
        models = provider.models() => models.unwrap(),
        () = serve => unreachable!("it serves for ever"),
    };
    assert_eq!(models.len(), 100);
}

#[tokio::test]
async fn a_probe_speaks_to_ollama_in_its_own_format() {
    let upstream = Upstream::start().await;
    let address = upstream.origin();
    let candidates: Vec<_> = LoopbackServer::usual(|_| Some(address.clone()))
        .into_iter()
        .filter(|server| server.name == "ollama")
        .collect();
    let serve = async {
        let mut exchange = upstream.accept().await;
        assert!(
            exchange.head.starts_with("get /api/tags http/1.1\r\n"),
            "{}",
            exchange.head
        );
        let tags = r#"{"models":[{"name":"qwen3:8b","model":"qwen3:8b"}]}"#;
        exchange.answer("200 OK", "", tags).await;
    };
    let client = client();
    let (found, ()) = tokio::join!(probe(&client, &candidates, 4 * SHORT), serve);
    assert_eq!((found.len(), found[0].profile.name), (1, "ollama"));
    assert_eq!(found[0].models[0].id, "qwen3:8b");
}

#[tokio::test]
async fn a_probe_finds_servers_and_nothing_else() {
    let [good, other, refuses, silent, far] = [(); 5].map(|()| Upstream::start());
    let (good, other, refuses, silent, far) = tokio::join!(good, other, refuses, silent, far);
    let server = |name: &str, base_url: String| LoopbackServer {
        name: name.into(),
        profile: Profile::named("compatible").unwrap(),
        base_url,
    };
    let candidates = [
        server("silent", silent.base_url()),
        server("good", good.base_url()),
        server("other", other.base_url()),
        server("refuses", refuses.base_url()),
        // It leads to loopback, but a name may lead anywhere.
        server("far", far.base_url().replace("127.0.0.1", "localhost")),
        server("gone", "http://127.0.0.1:1/v1".into()),
    ];
    let list = r#"{"object":"list","data":[{"id":"llama"}]}"#;
    let serve = async {
        let mut exchange = good.accept().await;
        assert!(!exchange.head.contains("authorization"));
        exchange.answer("200 OK", "", list).await;
        other.accept().await.answer("200 OK", "", "It works!").await;
        refuses
            .accept()
            .await
            .answer("404 Not Found", "", list)
            .await;
        silent.accept().await
    };
    let client = client();
    let (found, _silent) = tokio::join!(probe(&client, &candidates, 4 * SHORT), serve);
    let names: Vec<_> = found
        .iter()
        .map(|Discovered { name, models, .. }| (name.as_str(), models.len()))
        .collect();
    assert_eq!(names, [("good", 1)]);
    tokio::select! {
        biased;
        _ = far.accept() => panic!("the probe went to a name"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test]
async fn texts_go_in_batches_that_the_provider_takes() {
    let upstream = Upstream::start().await;
    let wire = wire_of("mistral", &upstream.base_url());
    let provider = HttpProvider::new("tested", wire, client());
    let long = ["a".repeat(10_000), "b".repeat(5_000), "c".repeat(20_000)];
    let short = std::iter::repeat_n("x".to_owned(), 300);
    let request = EmbeddingRequest {
        model: "mistral-embed".into(),
        input: long.into_iter().chain(short).collect(),
        ..EmbeddingRequest::default()
    };
    let serve = async {
        let mut batches = Vec::new();
        let mut exchange = upstream.accept().await;
        loop {
            let body: Value = serde_json::from_str(&exchange.body).unwrap();
            let texts = body["input"].as_array().unwrap().len();
            batches.push(texts);
            let first: usize = batches.iter().sum::<usize>() - texts;
            let data: Vec<_> = (0..texts)
                .map(|at| serde_json::json!({"index": at, "embedding": [first + at]}))
                .collect();
            let answer =
                serde_json::json!({"data": data, "model": "m", "usage": {"prompt_tokens": texts}});
            exchange
                .answer(
                    "200 OK",
                    "content-type: application/json\r\n",
                    &answer.to_string(),
                )
                .await;
            if batches.iter().sum::<usize>() == 303 {
                return batches;
            }
            exchange.read_request().await;
        }
    };
    let (vectors, batches) = tokio::join!(provider.embed(&request), serve);
    // By bytes, one that is too long alone, and by number.
    assert_eq!(batches, [2, 1, 256, 44]);
    let vectors = vectors.unwrap();
    assert_eq!(vectors.input_tokens, Some(303));
    let numbers: Vec<f32> = vectors.vectors.concat();
    assert_eq!(numbers, (0..303u16).map(f32::from).collect::<Vec<_>>());
}
