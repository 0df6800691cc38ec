//! Bedrock beyond its fixtures: hostile answers, odd requests, lists in pages, signatures over a real connection.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapce_ai_providers::{
    AwsCredentials, ChatRequest, Content, Decoding, ErrorKind, HeaderValue, Image, ImageSource,
    Message, Profile, Provider, ProviderError, Role, Settings, ToolCall, ToolChoice, Wire,
};
use serde_json::{Value, json};
use support::aws::{event, framed, message};
use support::{KEY, Upstream, client, drain};

const MODEL: &str = "anthropic.claude-sonnet-4-5-20250929-v1:0";

fn settings() -> Settings {
    Settings {
        key: Some(KEY.into()),
        region: Some("us-east-1".into()),
        ..Settings::default()
    }
}

fn wire(settings: &Settings) -> Result<Arc<dyn Wire>, ProviderError> {
    Profile::named("bedrock").unwrap().wire(settings)
}

fn decoding(limit: usize) -> Decoding {
    let head = http::Response::builder()
        .header(
            "content-type",
            "application/vnd.amazon.eventstream; charset=x",
        )
        .body(())
        .unwrap();
    let wire = wire(&settings()).unwrap();
    Decoding::new(wire.decoder(&head.into_parts().0, limit).unwrap())
}

fn read(limit: usize, bytes: &[u8]) -> Vec<String> {
    let (mut decoding, mut events) = (decoding(limit), Vec::new());
    decoding.push(bytes);
    decoding.finish();
    drain(&mut decoding, &mut events);
    events
}

#[test]
fn hostile_streams_end_in_an_error() {
    let delta = r#"{"contentBlockIndex":0,"delta":{"text":"x"}}"#;
    let text = event("contentBlockDelta", delta);
    let mut damaged = text.clone();
    damaged[40] ^= 1;
    let call = r#"{"contentBlockIndex":7,"start":{"toolUse":{"toolUseId":"a","name":"b"}}}"#;
    let calls = event("contentBlockStart", call).repeat(1025);
    for (what, bytes, sign) in [
        ("damaged", damaged, "checksum is wrong"),
        (
            "no event stream",
            b"data: {\"a\": 1}\n\n".to_vec(),
            "lengths of a message",
        ),
        (
            "too long",
            event("contentBlockDelta", &delta.repeat(100)),
            "longer than 1000 bytes",
        ),
        ("no UTF-8", event_of_bytes(b"\xff"), "utf-8"),
        (
            "no JSON",
            event("contentBlockDelta", "{"),
            "documented form",
        ),
        (
            "another shape",
            event("contentBlockDelta", "[]"),
            "documented form",
        ),
        (
            "an index below 0",
            event("contentBlockDelta", r#"{"contentBlockIndex":-1}"#),
            "documented form",
        ),
        ("too many calls", calls, "more than 1024 tool calls"),
        ("wrong headers", framed(b"\x01x\x0a", b""), "no known type"),
    ] {
        let events = read(1000, &bytes);
        let last = events.last().unwrap();
        assert!(
            last.starts_with("MalformedResponse") && last.contains(sign),
            "{what}: {last}"
        );
    }
}

fn event_of_bytes(payload: &[u8]) -> Vec<u8> {
    let name = HeaderValue::String("contentBlockDelta");
    message(
        &[
            (":event-type", name),
            (":message-type", HeaderValue::String("event")),
        ],
        payload,
    )
}

#[test]
fn a_long_message_takes_no_more_memory_than_has_come() {
    // It claims 900,000 bytes, of which 12 come.
    let claimed = support::aws::prelude(900_000, 0, b"", b"");
    let mut decoding = decoding(1 << 20);
    let counted = allocation_counter::measure(|| decoding.push(&claimed[..12]));
    assert!(counted.bytes_max < 1000, "{counted:?}");
}

#[test]
fn errors_that_are_no_exceptions_and_messages_of_unknown_kinds() {
    let of_kind = |kind: &str, more: &[(&str, HeaderValue<'_>)]| {
        let kind = (":message-type", HeaderValue::String(kind));
        message(&[&[kind], more].concat(), b"")
    };
    let code = (":error-code", HeaderValue::String("InternalFailure"));
    let text = (":error-message", HeaderValue::String("An error occurred"));
    assert_eq!(
        read(1000, &of_kind("error", &[code, text])),
        ["ProviderInternal: An error occurred"]
    );
    assert_eq!(read(1000, &of_kind("error", &[])), ["ProviderInternal: "]);
    // Kinds and headers that do not exist yet, and headers of other types.
    let stop = event("messageStop", r#"{"stopReason":"end_turn"}"#);
    let odd = [
        of_kind("something-new", &[]),
        message(&[], b"x"),
        message(
            &[
                (":message-type", HeaderValue::Int(7)),
                (":event-type", HeaderValue::Bool(true)),
            ],
            b"",
        ),
        stop,
    ];
    assert_eq!(
        read(1000, &odd.concat()),
        ["Start { id: None, model: None }", "Finish(Stop)"]
    );
}

fn body(request: &ChatRequest) -> Result<Value, ProviderError> {
    let wire = wire(&settings()).unwrap();
    let request = wire.chat_request(request, SystemTime::UNIX_EPOCH)?;
    Ok(serde_json::from_slice(request.body()).unwrap())
}

#[test]
fn neighbours_are_one_turn_and_what_says_nothing_is_left_out() {
    let call = ToolCall {
        id: "c".into(),
        name: "n".into(),
        arguments: " ".into(),
        signature: None,
    };
    let unsigned = Content::Reasoning {
        text: "hm".into(),
        signature: None,
    };
    let request = ChatRequest::new(MODEL)
        .with(Message::text(Role::System, " "))
        .with(Message::user("a"))
        .with(Message::user(" \n"))
        .with(Message::user("b"))
        .with(Message {
            content: vec![unsigned, Content::Text(String::new())],
            ..Message::assistant("")
        })
        .with(Message::user("c"))
        .with(Message {
            content: Vec::new(),
            tool_calls: vec![call],
            ..Message::assistant("")
        })
        .with(Message {
            content: vec![Content::Text(" ".into()), Content::CachePoint],
            ..Message::tool_result("c", "")
        })
        .with(Message::user("d"));
    let text = |text: &str| json!({"text": text});
    assert_eq!(
        body(&request).unwrap(),
        json!({"messages": [
            {"role": "user", "content": [text("a"), text("b"), text("c")]},
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "c", "name": "n", "input": {}}}]},
            {"role": "user", "content": [
                {"toolResult": {"toolUseId": "c", "content": []}}, {"cachePoint": {"type": "default"}}, text("d")]},
        ]})
    );
}

#[test]
fn nonsense_is_refused_before_it_is_sent() {
    let kind = |request: &ChatRequest| body(request).unwrap_err().kind;
    let hello = || ChatRequest::new(MODEL).with(Message::user("x"));
    let invalid = ErrorKind::InvalidRequest;
    assert_eq!(
        kind(&ChatRequest::new("").with(Message::user("x"))),
        invalid
    );
    assert_eq!(kind(&ChatRequest::new(MODEL)), invalid);
    assert_eq!(
        kind(&ChatRequest::new(MODEL).with(Message::user(" "))),
        invalid
    );
    assert_eq!(kind(&hello().with(Message::text(Role::Tool, "x"))), invalid);
    let mut number = hello();
    number.temperature = Some(f64::NAN);
    assert_eq!(kind(&number), invalid);
    let call = |arguments: &str| Message {
        tool_calls: vec![ToolCall {
            id: "c".into(),
            name: "n".into(),
            arguments: arguments.into(),
            signature: None,
        }],
        ..Message::assistant("")
    };
    assert_eq!(kind(&hello().with(call("{\"half"))), invalid);
    let image = |media_type: &str| {
        Content::Image(Image {
            source: ImageSource::Base64 {
                media_type: media_type.into(),
                data: "AAAA".into(),
            },
            detail: None,
        })
    };
    for (role, media_type) in [
        (Role::Assistant, "image/png"),
        (Role::System, "image/png"),
        (Role::User, "image/tiff"),
    ] {
        let painted = Message {
            content: vec![image(media_type)],
            ..Message::text(role, "")
        };
        assert_eq!(kind(&hello().with(painted)), ErrorKind::Unsupported);
    }
    // Tools cannot be forbidden where they were used.
    let mut used = hello().with(call("{}"));
    used.tools = vec![lapce_ai_providers::Tool {
        name: "n".into(),
        description: None,
        parameters: None,
        strict: None,
    }];
    used.tool_choice = Some(ToolChoice::None);
    assert_eq!(kind(&used), ErrorKind::Unsupported);
}

#[test]
fn settings_that_lack_something_say_what() {
    let message = |settings: Settings| wire(&settings).unwrap_err();
    let account = AwsCredentials::fixed("AK".into(), "s".into(), None);
    for (settings, sign) in [
        (
            Settings {
                region: None,
                ..settings()
            },
            "region is missing",
        ),
        (
            Settings {
                key: None,
                ..settings()
            },
            "AWS_BEARER_TOKEN_BEDROCK",
        ),
        (
            Settings {
                key: Some(" ".into()),
                ..settings()
            },
            "AWS_BEARER_TOKEN_BEDROCK",
        ),
        (
            Settings {
                key: None,
                region: None,
                aws: Some(account.clone()),
                base_url: Some("https://proxy.example".into()),
                ..settings()
            },
            "AWS_REGION",
        ),
        (
            Settings {
                key: None,
                region: Some("us east 1".into()),
                aws: Some(account),
                base_url: Some("https://proxy.example".into()),
                ..settings()
            },
            "plain name",
        ),
    ] {
        let error = message(settings);
        assert_eq!(error.kind, ErrorKind::Configuration);
        assert!(error.message.contains(sign), "{sign}: {error}");
    }
    // With a key and an address no region is needed.
    let settings = Settings {
        region: None,
        base_url: Some("https://proxy.example".into()),
        ..settings()
    };
    assert!(wire(&settings).is_ok());
}

#[tokio::test]
async fn every_page_of_the_models_is_read_and_signed() {
    let upstream = Upstream::start().await;
    let settings = Settings {
        base_url: Some(upstream.base_url()),
        region: Some("eu-west-1".into()),
        aws: Some(AwsCredentials::fixed("AKID".into(), "s".into(), None)),
        ..Settings::default()
    };
    let bedrock = Profile::named("bedrock").unwrap();
    let provider = bedrock.connect("tested", &settings, client()).unwrap();
    let serve = async {
        let mut exchange = upstream.accept().await;
        for (path, page) in [
            (
                "/v1/foundation-models",
                r#"{"modelSummaries": [{"modelId": "a.b"}]}"#,
            ),
            (
                "/v1/inference-profiles?maxresults=1000",
                r#"{"inferenceProfileSummaries": [{"inferenceProfileId": "us.a.b"}], "nextToken": "a/b="}"#,
            ),
            (
                "/v1/inference-profiles?maxresults=1000&nexttoken=a%2fb%3d",
                r#"{"inferenceProfileSummaries": [{"inferenceProfileId": "us.c.d"}]}"#,
            ),
        ] {
            if !exchange
                .head
                .starts_with(&format!("get {path} http/1.1\r\n"))
            {
                exchange.read_request().await;
            }
            let head = &exchange.head;
            assert!(
                head.starts_with(&format!("get {path} http/1.1\r\n")),
                "{head}"
            );
            assert!(
                head.contains("\r\nauthorization: aws4-hmac-sha256 credential=akid/"),
                "{head}"
            );
            assert!(
                head.contains("/eu-west-1/bedrock/aws4_request, signedheaders=host;x-amz-date,"),
                "{head}"
            );
            exchange
                .answer("200 OK", "content-type: application/json\r\n", page)
                .await;
        }
    };
    let both = async { tokio::join!(provider.models(), serve) };
    let (models, ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap();
    let names: Vec<_> = models.unwrap().into_iter().map(|model| model.id).collect();
    assert_eq!(names, ["a.b", "us.a.b", "us.c.d"]);
}

#[tokio::test]
async fn aws_repeats_no_secret_to_us_that_goes_further() {
    let upstream = Upstream::start().await;
    let (secret, token) = ("secret-key-of-the-tests", "secret-token-of-the-tests");
    let settings = Settings {
        base_url: Some(upstream.base_url()),
        region: Some("eu-west-1".into()),
        aws: Some(AwsCredentials::fixed(
            "AKIASECRET".into(),
            secret.into(),
            Some(token.into()),
        )),
        ..Settings::default()
    };
    let bedrock = Profile::named("bedrock").unwrap();
    let provider = bedrock.connect("tested", &settings, client()).unwrap();
    let serve = async {
        let mut exchange = upstream.accept().await;
        let length = exchange.body.len();
        assert!(
            length > 0
                && exchange
                    .head
                    .contains(&format!("content-length: {length}\r\n"))
        );
        let body = format!(
            r#"{{"message": "The canonical string was x-amz-security-token:{token} {secret} AKIASECRET"}}"#
        );
        let headers = "x-amzn-errortype: InvalidSignatureException\r\n";
        exchange.answer("403 Forbidden", headers, &body).await;
    };
    let request = ChatRequest::new(MODEL).with(Message::user("x"));
    let (answer, ()) = tokio::join!(provider.chat(&request), serve);
    let error = answer.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication);
    let shown = format!("{error} {error:?}");
    assert!(
        !shown.contains("of-the-tests") && !shown.contains("AKIASECRET"),
        "{shown}"
    );
}
