//! What botocore, the core of AWS's own SDK, says of our Bedrock: signatures, messages of the event stream, requests
//! and answers.
//!
//! `./test` sets up the Python that it needs and says where it is; without that the tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
#[allow(dead_code, reason = "only a part is used")]
mod fixture;
#[path = "support/sdk.rs"]
mod sdk;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ask::{Ask, ask};
use lapce_ai_providers::{
    AwsCredentials, ChatRequest, ChatResponse, Decoding, ErrorKind, EventStreamParser, HeaderValue,
    Profile, ProviderError, Settings, Wire,
};
use sdk::Sdk;
use serde_json::{Value, json};
use support::aws::{finish_reason, framed, header, message, prelude, stream, walk, walk_body};

/// Wed, 21 Oct 2026 07:28:00 GMT.
const NOW: u64 = 1_792_567_680;
/// The canonical requests of chats.
const CHATS: &[&str] = &[
    "chat",
    "stream",
    "system",
    "system_later",
    "limits",
    "tools",
    "tools_required",
    "tools_named",
    "tools_none",
    "tools_one_at_a_time",
    "tool_results",
    "image",
    "image_url",
    "reasoning",
    "reasoning_none",
    "reasoning_budget",
    "reasoning_back",
    "json_schema",
    "json_object",
    "cache",
];
const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn wire(settings: Settings) -> Arc<dyn Wire> {
    let region = settings.region.or(Some("us-east-1".into()));
    let bedrock = Profile::named("bedrock").unwrap();
    bedrock.wire(&Settings { region, ..settings }).unwrap()
}

fn with_key() -> Arc<dyn Wire> {
    wire(Settings {
        key: Some(support::KEY.into()),
        ..Settings::default()
    })
}

#[test]
fn signatures_are_the_same() {
    let Some(mut botocore) = Sdk::start("check_bedrock.py") else {
        return;
    };
    let mut checked = 0;
    for (id, secret, token) in [
        (
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            None,
        ),
        (
            "ASIAEXAMPLE",
            "another/secret+with=signs",
            Some("AQoDYXdzEJr//////////wEa+token=="),
        ),
    ] {
        for (region, base_url) in [
            ("us-east-1", None),
            ("eu-central-1", Some("http://127.0.0.1:8080/behind/a proxy")),
            (
                "us-gov-west-1",
                Some("https://vpce-1.bedrock-runtime.us-gov-west-1.vpce.amazonaws.com:443"),
            ),
        ] {
            let account = AwsCredentials::fixed(id.into(), secret.into(), token.map(Into::into));
            let wire = wire(Settings {
                base_url: base_url.map(|url| url.replace(' ', "%20")),
                region: Some(region.into()),
                aws: Some(account),
                ..Settings::default()
            });
            for model in [
                "anthropic.claude-3-5-sonnet-20240620-v1:0",
                "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3",
                "a model/with ~every-kind_of.sign:?#[]@!$&'()*+,;=%41ÜÄ/../x//y",
                "..",
            ] {
                let request = ChatRequest {
                    stream: checked % 2 == 0,
                    ..ChatRequest::new(model)
                }
                .with(lapce_ai_providers::Message::user("Grüße 🙂\n"));
                let signed = [
                    wire.chat_request(&request, now()).unwrap(),
                    wire.count_request(&request, now()).unwrap(),
                    wire.models_request(now()).unwrap(),
                ];
                for signed in signed {
                    same_signature(&mut botocore, &signed, (id, secret, token), region);
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 72);
}

fn same_signature(
    botocore: &mut Sdk,
    signed: &http::Request<bytes::Bytes>,
    (id, secret, token): (&str, &str, Option<&str>),
    region: &str,
) {
    let header = |name: &str| {
        signed
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    let types = header("content-type").map(|value| ("content-type", value));
    let answer = botocore.ask(&json!({
        "ask": "sign",
        "method": signed.method().as_str(),
        "url": signed.uri().to_string(),
        "headers": types.into_iter().collect::<BTreeMap<_, _>>(),
        "body": base64(signed.body()),
        "keys": {"id": id, "secret": secret, "token": token},
        "region": region,
        "now": NOW,
    }));
    for name in ["x-amz-date", "x-amz-security-token", "authorization"] {
        assert_eq!(
            header(name),
            answer[name].as_str(),
            "{name} of {}",
            signed.uri()
        );
    }
    assert!(
        header("authorization")
            .unwrap()
            .starts_with("AWS4-HMAC-SHA256 Credential=")
    );
    let shown = format!("{signed:?}");
    assert!(
        !shown.contains("Signature=") && !shown.contains("AQoDYXdz"),
        "{shown}"
    );
}

/// The messages that we read, in botocore's words, and whether what follows them is refused.
fn ours(bytes: &[u8]) -> (Value, bool) {
    let mut parser = EventStreamParser::new(24 << 20);
    let (mut messages, mut rest) = (Vec::new(), bytes);
    loop {
        match parser.next(&mut rest) {
            Ok(None) => return (messages.into(), false),
            Err(_) => return (messages.into(), true),
            Ok(Some(message)) => {
                let headers: serde_json::Map<_, _> = message
                    .headers()
                    .map(|(name, value)| (name.to_owned(), plain(value)))
                    .collect();
                messages.push(json!([headers, base64(message.payload)]));
            }
        }
    }
}

fn plain(value: HeaderValue<'_>) -> Value {
    match value {
        HeaderValue::Bool(value) => value.into(),
        HeaderValue::Byte(value) => value.into(),
        HeaderValue::Short(value) => value.into(),
        HeaderValue::Int(value) => value.into(),
        HeaderValue::Long(value) | HeaderValue::Timestamp(value) => value.into(),
        HeaderValue::String(value) => value.into(),
        HeaderValue::Bytes(value) => json!({"bytes": base64(value)}),
        HeaderValue::Uuid(value) => json!({"bytes": base64(&value)}),
    }
}

/// Every type of header, and texts beyond ASCII.
fn every_header() -> Vec<u8> {
    let text = "Grüße 🙂".repeat(30);
    message(
        &[
            ("true", HeaderValue::Bool(true)),
            ("false", HeaderValue::Bool(false)),
            ("byte", HeaderValue::Byte(-7)),
            ("short", HeaderValue::Short(i16::MIN)),
            ("int", HeaderValue::Int(i32::MAX)),
            ("long", HeaderValue::Long(i64::MIN)),
            ("bytes", HeaderValue::Bytes(&[0, 255, 13, 10])),
            ("no bytes", HeaderValue::Bytes(&[])),
            (":text", HeaderValue::String(&text)),
            ("Ümlaut", HeaderValue::String("")),
            ("when", HeaderValue::Timestamp(1_792_567_680_123)),
            ("uuid", HeaderValue::Uuid(*b"0123456789abcdef")),
        ],
        br#"{"a": 1}"#,
    )
}

#[test]
fn messages_are_read_alike_and_damaged_ones_refused() {
    let Some(mut botocore) = Sdk::start("check_bedrock.py") else {
        return;
    };
    let mut ask = |bytes: &[u8]| {
        let answer = botocore.ask(&json!({"ask": "frames", "bytes": base64(bytes)}));
        (answer["messages"].clone(), !answer["refused"].is_null())
    };
    let plain = message(&[(":event-type", HeaderValue::String("x"))], b"{}");
    let whole = [
        every_header(),
        plain.clone(),
        message(&[], b""),
        every_header(),
    ]
    .concat();
    assert_eq!(ask(&whole), ours(&whole));
    assert_eq!(ours(&whole).0.as_array().unwrap().len(), 4);

    // Any bit that flips, and any place at which the stream ends.
    let pair = [plain.clone(), every_header()].concat();
    for at in 0..pair.len() {
        assert_eq!(ask(&pair[..at]), ours(&pair[..at]), "cut at {at}");
        let mut damaged = pair.clone();
        damaged[at] ^= 1 << (at % 8);
        let (messages, refused) = ours(&damaged);
        assert!(refused, "flipped at {at}");
        assert_eq!(ask(&damaged), (messages, refused), "flipped at {at}");
    }

    // Right sums, and still wrong.
    let x = header("x", HeaderValue::Bool(true));
    for (what, bytes) in [
        ("a name twice", framed(&[&x[..], &x].concat(), b"")),
        ("an unknown type", framed(b"\x01x\x0a", b"")),
        ("a name that is cut", framed(b"\x05x", b"")),
        ("no type", framed(b"\x01x", b"")),
        ("a number that is cut", framed(b"\x01x\x05\0\0\0", b"")),
        ("a name that is no UTF-8", framed(b"\x01\xff\0", b"")),
        (
            "a text that is no UTF-8",
            framed(b"\x01x\x07\0\x01\xff", b""),
        ),
        (
            "headers longer than allowed",
            prelude(300_000, 200_000, b"", b""),
        ),
    ] {
        let (messages, refused) = ask(&bytes);
        assert!(refused, "botocore takes {what}");
        assert_eq!(ours(&bytes), (messages, refused), "{what}");
    }
    // botocore reads less, or waits for ever; what we refuse is no message in any reading of the rules.
    for (what, bytes) in [
        ("a text that is cut", framed(b"\x01x\x07\0\x09abc", b"")),
        ("an empty name", framed(b"\0\0", b"")),
        ("shorter than itself", prelude(15, 0, b"", b"")),
        ("shorter than its headers", prelude(20, 8, b"", b"....")),
    ] {
        assert!(ours(&bytes).1, "{what}");
    }
}

/// Every canonical request that Bedrock can be asked, whatever the model.
#[test]
fn requests_are_valid_and_what_botocore_would_send() {
    let Some(mut botocore) = Sdk::start("check_bedrock.py") else {
        return;
    };
    let wire = with_key();
    let mut checked = 0;
    for name in CHATS {
        for model in [
            "anthropic.claude-sonnet-4-5-20250929-v1:0",
            "us.anthropic.claude-opus-4-7",
            "us.amazon.nova-2-lite-v1:0",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.x",
        ] {
            for options in [&["stream=true"][..], &["stream=false"], &["count=yes"]] {
                let options = options.iter().map(|option| option.split_once('=').unwrap());
                let mut options: BTreeMap<String, String> = options
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect();
                options.insert("model".into(), model.into());
                let asked = ask(name, &mut options).unwrap();
                let (operation, request) = match &asked {
                    Ask::Chat(request) if request.stream => {
                        ("ConverseStream", wire.chat_request(request, now()))
                    }
                    Ask::Chat(request) => ("Converse", wire.chat_request(request, now())),
                    Ask::Count(request) => ("CountTokens", wire.count_request(request, now())),
                    Ask::Embed(_) | Ask::Models => continue,
                };
                let request = match request {
                    Ok(request) => request,
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Unsupported, "{name}: {error}");
                        assert!(["image_url", "json_object"].contains(name), "{name}");
                        continue;
                    }
                };
                same_request(&mut botocore, operation, model, &request);
                checked += 1;
            }
        }
    }
    println!("{checked} requests");
    assert!(checked > 200, "{checked}");
    for model in ["amazon.titan-embed-text-v2:0", "cohere.embed-english-v3"] {
        let mut options = [
            ("model".to_owned(), model.to_owned()),
            ("texts".into(), "1".into()),
        ]
        .into();
        let Some(Ask::Embed(asked)) = ask("embeddings", &mut options) else {
            panic!()
        };
        let request = wire.embeddings_request(&asked, now()).unwrap();
        same_request(&mut botocore, "InvokeModel", model, &request);
    }
    for (page, operation) in [
        (None, "ListFoundationModels"),
        (Some(r#"{"modelSummaries": []}"#), "ListInferenceProfiles"),
        (
            Some(r#"{"inferenceProfileSummaries": [], "nextToken": "a+b/c=="}"#),
            "ListInferenceProfiles",
        ),
    ] {
        let request = match page {
            None => wire.models_request(now()).unwrap(),
            Some(page) => wire
                .next_models_request(page.as_bytes(), now())
                .unwrap()
                .unwrap(),
        };
        let query = request.uri().query().unwrap_or("");
        let parameters: BTreeMap<_, Value> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| match name {
                "maxResults" => (name, json!(value.parse::<u32>().unwrap())),
                _ => (
                    name,
                    json!(
                        value
                            .replace("%2B", "+")
                            .replace("%2F", "/")
                            .replace("%3D", "=")
                    ),
                ),
            })
            .collect();
        let answer = botocore.ask(
            &json!({"ask": "request", "service": "bedrock", "operation": operation,
            "parameters": parameters, "body": {}}),
        );
        assert_eq!(answer["wrong"], "", "{operation}");
        assert_eq!(answer["method"], request.method().as_str());
        assert_eq!(answer["path"], request.uri().path());
        assert_eq!(answer["query"].as_object().unwrap().len(), parameters.len());
        assert_eq!(
            request.uri().host(),
            Some("bedrock.us-east-1.amazonaws.com")
        );
    }
}

fn same_request(
    botocore: &mut Sdk,
    operation: &str,
    model: &str,
    request: &http::Request<bytes::Bytes>,
) {
    // The canonical secret thought is no base64, which real ones are.
    let body = String::from_utf8(request.body().to_vec())
        .unwrap()
        .replace("ENCRYPTED", "RU5D");
    let body: Value = serde_json::from_str(&body).unwrap();
    let answer = botocore.ask(&json!({
        "ask": "request", "service": "bedrock-runtime", "operation": operation,
        "parameters": {"modelId": model}, "body": body,
    }));
    assert_eq!(answer["wrong"], "", "{body}");
    assert_eq!(answer["method"], request.method().as_str());
    assert_eq!(answer["path"], request.uri().path());
    assert_eq!(answer["body"], body);
}

#[test]
fn answers_say_the_same_to_botocore() {
    let Some(mut botocore) = Sdk::start("check_bedrock.py") else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let wire = with_key();
    let (mut answers, mut errors) = (0, 0);
    for file in std::fs::read_dir(root.join("bedrock")).unwrap() {
        let file = file.unwrap().path();
        let path = format!("bedrock/{}", file.file_stem().unwrap().to_str().unwrap());
        for mut exchange in fixture::read(&root, &path).unwrap() {
            let asked = ask(&exchange.ask, &mut exchange.options).unwrap();
            let Some(answer) = &exchange.answer else {
                continue;
            };
            let place = format!("{path}:{}", exchange.line);
            let mut body = match answer.media_type.as_str() {
                EVENT_STREAM => stream(&answer.body),
                _ => answer.body.clone().into_bytes(),
            };
            if answer.cut {
                body.pop();
            }
            let (service, operation) = match &asked {
                Ask::Chat(request) if request.stream => ("bedrock-runtime", "ConverseStream"),
                Ask::Chat(_) => ("bedrock-runtime", "Converse"),
                Ask::Count(_) => ("bedrock-runtime", "CountTokens"),
                Ask::Models if answer.body.contains("inferenceProfileSummaries") => {
                    ("bedrock", "ListInferenceProfiles")
                }
                Ask::Models => ("bedrock", "ListFoundationModels"),
                // What these models say is in no service's model.
                Ask::Embed(_) => continue,
            };
            let mut head = http::Response::builder().status(answer.status);
            head = head.header("content-type", &answer.media_type);
            for (name, value) in &answer.headers {
                head = head.header(name, value);
            }
            let (head, ()) = head.body(()).unwrap().into_parts();
            let json = serde_json::from_slice::<Value>(&body).is_ok();
            if answer.media_type != EVENT_STREAM && !json {
                // A web page, or half an answer: botocore raises what it likes.
                continue;
            }
            let theirs = botocore.ask(&json!({
                "ask": "answer", "service": service, "operation": operation, "status": answer.status,
                "headers": answer.headers.iter().cloned().collect::<BTreeMap<_, _>>(), "body": base64(&body),
            }));
            if answer.status >= 300 {
                let ours = wire.decode_error(&head, &body, now());
                same_error(&place, &ours, &theirs["Error"]);
                errors += 1;
                continue;
            }
            match &asked {
                Ask::Count(_) => {
                    assert_eq!(
                        json!(wire.decode_count(&body).unwrap()),
                        theirs["inputTokens"],
                        "{place}"
                    );
                }
                Ask::Models => {
                    let ours = wire.decode_models(&body).unwrap();
                    let ours: Vec<_> = ours.iter().map(|model| model.id.as_str()).collect();
                    assert_eq!(ours, names(&theirs), "{place}");
                }
                _ => same_answer(&place, &collect(&wire, &head, &body), &theirs),
            }
            answers += 1;
        }
    }
    println!("{answers} answers, {errors} errors");
    assert!(answers > 30 && errors > 20, "{answers} {errors}");
}

/// The names by which the models of a page can be asked.
fn names(page: &Value) -> Vec<&str> {
    let list = |name: &str| page[name].as_array().into_iter().flatten();
    let models = list("modelSummaries").filter(|model| {
        let types = model["inferenceTypesSupported"].as_array();
        types.is_none_or(|types| types.contains(&json!("ON_DEMAND")))
    });
    let models = models.map(|model| &model["modelId"]);
    let profiles =
        list("inferenceProfileSummaries").map(|profile| match profile["type"].as_str() {
            Some("APPLICATION") => &profile["inferenceProfileArn"],
            _ => &profile["inferenceProfileId"],
        });
    models
        .chain(profiles)
        .map(|name| name.as_str().unwrap())
        .collect()
}

fn collect(
    wire: &Arc<dyn Wire>,
    head: &http::response::Parts,
    body: &[u8],
) -> (ChatResponse, Option<ProviderError>) {
    let mut response = ChatResponse::default();
    let mut decoding = Decoding::new(wire.decoder(head, 1 << 20).unwrap());
    decoding.push(body);
    decoding.finish();
    while let Some(event) = decoding.next() {
        match event {
            Ok(event) => response.add(event),
            Err(error) => return (response, Some(error)),
        }
    }
    (response, None)
}

fn same_error(place: &str, ours: &ProviderError, theirs: &Value) {
    let code = theirs["Code"].as_str().unwrap_or("");
    if code.is_empty() {
        // Of exceptions that it does not know botocore tells nothing.
        assert_eq!(
            ours.code.as_deref(),
            Some("SomethingNewException"),
            "{place}"
        );
        return;
    }
    match ours.code.as_deref() {
        // In a stream botocore leaves the first letter small.
        Some(ours) => assert_eq!(ours.to_lowercase(), code.to_lowercase(), "{place}"),
        // Without a name botocore takes the status.
        None => assert_eq!(code, ours.status.unwrap().to_string(), "{place}"),
    }
    assert_eq!(
        &*ours.message,
        theirs["Message"].as_str().unwrap_or(""),
        "{place}"
    );
}

fn same_answer(place: &str, (ours, error): &(ChatResponse, Option<ProviderError>), theirs: &Value) {
    let (expected, reason) = match theirs["events"].as_array() {
        Some(events) => walk(events),
        None => walk_body(theirs),
    };
    assert_eq!(ours.text, expected.text, "{place}");
    assert_eq!(ours.thoughts, expected.thoughts, "{place}");
    assert_eq!(ours.tool_calls, expected.tool_calls, "{place}");
    assert_eq!(ours.citations, expected.citations, "{place}");
    if let Some(error) = error {
        match (error.kind, error.code.as_deref()) {
            // botocore says nothing of streams that are cut, or of endings.
            (ErrorKind::StreamCut, _) => assert_eq!(reason, None, "{place}"),
            (ErrorKind::ProviderInternal, Some(code)) if code.starts_with("malformed_") => {
                assert_eq!(Some(code), reason.as_deref(), "{place}");
            }
            (ErrorKind::MalformedResponse, _) => {
                assert!(
                    !theirs["error"].is_null() || reason.is_none(),
                    "{place}: {theirs}"
                );
            }
            _ => same_error(place, error, &theirs["error"]),
        }
        return;
    }
    assert_eq!(ours.usage, expected.usage, "{place}");
    let finish = finish_reason(reason.as_deref().unwrap());
    assert_eq!(ours.finish, Some(finish), "{place}");
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let triples = bytes.chunks(3).flat_map(|bytes| {
        let bits = bytes
            .iter()
            .fold(0, |bits: u32, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - bytes.len()));
        (0..4).map(move |at| match at <= bytes.len() {
            true => char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]),
            false => '=',
        })
    });
    triples.collect()
}
