//! OpenAI's own SDK (`openai` on `PyPI`) must send what we send and understand what we understand: both of its APIs, vectors,
//! models and errors, OpenAI's own and Azure's. See `ci/sdks/README.md`.
//!
//! `./test` sets up what it needs; without that the test says so and does nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "support/sdk.rs"]
mod sdk;

use std::path::Path;
use std::time::SystemTime;

use ask::{Ask, ask};
use fixture::{Answer, Exchange};
use lapce_ai_providers::{
    ChatResponse, Content, Decoding, Embeddings, ErrorKind, Event, Feature, FinishReason, Profile,
    ProviderError, Settings, Wire,
};
use sdk::Sdk;
use serde_json::{Value, json};

/// Fixtures that are the provider's own example in full, so that each document of the first answer must fit the SDK's types.
const WHOLE: &[&str] = &[
    "openai/whole",
    "openai/stream",
    "openai-responses/whole",
    "openai-responses/stream",
];

#[test]
fn it_sends_and_understands_the_same() {
    let Some(mut sdk) = Sdk::start("check_openai.py") else {
        return;
    };
    let (mut checked, mut wrong) = ([0; 2], Vec::new());
    for name in ["openai", "openai-responses", "azure", "azure-responses"] {
        let profile = Profile::named(name).unwrap();
        for feature in Feature::ALL {
            if !profile.features.has(*feature) {
                continue;
            }
            let path = format!("{name}/{}", feature.name());
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
            let exchanges = fixture::read(&root, &path).unwrap();
            for (number, exchange) in exchanges.iter().enumerate() {
                let whole = number == 0 && WHOLE.contains(&&*path);
                match check(&mut sdk, profile, exchange, whole) {
                    Ok(counts) => {
                        checked[0] += counts[0];
                        checked[1] += counts[1];
                    }
                    Err(why) => wrong.push(format!("{path}:{}: {why}", exchange.line)),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} requests, {} answers", checked[0], checked[1]);
    assert!(checked[0] >= 80 && checked[1] >= 80, "{checked:?}");
}

/// How many requests and answers were compared.
fn check(
    sdk: &mut Sdk,
    profile: &Profile,
    exchange: &Exchange,
    whole: bool,
) -> Result<[usize; 2], String> {
    let mut options = exchange.options.clone();
    let api_version = options.remove("api_version");
    // Azure's own paths are made by the SDK from the address of the resource.
    let base_url = if profile.name.starts_with("azure") {
        "http://sdk.test"
    } else {
        "http://sdk.test/v1"
    };
    let settings = Settings {
        base_url: Some(base_url.into()),
        key: Some("sk-a-key-of-the-tests".into()),
        api_version: api_version.clone(),
        ..Settings::default()
    };
    let wire = profile.wire(&settings).unwrap();
    let ask = ask(&exchange.ask, &mut options).unwrap();
    let now = SystemTime::UNIX_EPOCH;
    let (api, request) = match &ask {
        Ask::Chat(request) if profile.name.ends_with("-responses") => {
            ("responses", wire.chat_request(request, now))
        }
        Ask::Chat(request) => ("chat", wire.chat_request(request, now)),
        Ask::Count(request) => ("count", wire.count_request(request, now)),
        Ask::Embed(request) => ("embeddings", wire.embeddings_request(request, now)),
        Ask::Models => ("models", wire.models_request(now)),
    };
    // Nonsense is refused before it is sent.
    let Ok(request) = request else {
        return Ok([0, 0]);
    };
    let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let path = request.uri().path_and_query().unwrap().as_str();
    // Whatever does not end as it should has no place in the SDK: it takes the end of the connection for the end.
    let answer = exchange.answer.as_ref().filter(|answer| {
        let broken = ["error stream_cut", "error malformed_response"];
        let lines = exchange.gives.iter();
        !answer.cut
            && !lines
                .clone()
                .any(|line| broken.iter().any(|sign| line.starts_with(sign)))
    });
    // Its stream knows an event by the type in its data only.
    let answer = answer.filter(|answer| {
        !answer
            .body
            .starts_with("event: response.completed\ndata: {\"response\"")
    });
    let job = json!({
        "api": api,
        "path": path,
        "body": body,
        "deployments": api_version,
        "whole": whole,
        "answer": answer.map(|answer| json!({
            "status": answer.status,
            "type": answer.media_type,
            "headers": answer.headers.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "text": answer.body,
        })),
    });
    let got = sdk.ask(&job);
    if got["misfits"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
    {
        return Err(format!("does not fit the SDK's types: {}", got["misfits"]));
    }
    let sent = json!({
        "path": path,
        "body": body,
        "auth": if api_version.is_some() { "api-key" } else { "authorization" },
    });
    if got["sent"] != sent {
        return Err(format!(
            "the SDK sends\n  {}\nwe send\n  {sent}",
            got["sent"]
        ));
    }
    let Some(answer) = answer else {
        return Ok([1, 0]);
    };
    let ours = understood(&*wire, &ask, answer);
    match (&ours, got.get("said")) {
        (Ok(ours), Some(theirs)) => agree(ours, theirs)?,
        (Err(ours), None) => agree_on_error(ours, &got["error"])?,
        _ => return Err(format!("the SDK understands {got}, we {ours:?}")),
    }
    Ok([1, 1])
}

/// The answer as we understand it, in the words of the SDK's script.
fn understood(wire: &dyn Wire, ask: &Ask, answer: &Answer) -> Result<Value, ProviderError> {
    let mut head = http::Response::builder().status(answer.status);
    head = head.header("content-type", &answer.media_type);
    for (name, value) in &answer.headers {
        head = head.header(name, value);
    }
    let (head, ()) = head.body(()).unwrap().into_parts();
    let body = answer.body.as_bytes();
    if !head.status.is_success() {
        return Err(wire.decode_error(&head, body, SystemTime::UNIX_EPOCH));
    }
    Ok(match ask {
        Ask::Chat(_) => {
            let mut decoding = Decoding::new(wire.decoder(&head, 1 << 20)?);
            decoding.push(body);
            decoding.finish();
            let mut response = ChatResponse::default();
            while let Some(event) = decoding.next() {
                let event = event?;
                // Thoughts without a proof are not compared.
                if !matches!(
                    event,
                    Event::Reasoning {
                        signature: None,
                        ..
                    }
                ) {
                    response.add(event);
                }
            }
            said(&response)
        }
        Ask::Count(_) => json!({"tokens": wire.decode_count(body)?}),
        Ask::Embed(_) => {
            let Embeddings {
                model,
                vectors,
                input_tokens,
            } = wire.decode_embeddings(body)?;
            json!({"vectors": vectors, "model": model, "tokens": input_tokens})
        }
        Ask::Models => {
            let models = wire.decode_models(body)?;
            json!({"models": models.iter().map(|model| &model.id).collect::<Vec<_>>()})
        }
    })
}

fn said(response: &ChatResponse) -> Value {
    let calls = response.tool_calls.iter();
    let sources = response.citations.iter();
    let thoughts = response.thoughts.iter().map(|thought| {
        let (Content::Reasoning {
            signature: Some(item),
            ..
        }
        | Content::RedactedReasoning(item)) = thought
        else {
            panic!("{thought:?} has no proof")
        };
        let item: Value = serde_json::from_str(item).unwrap();
        json!([item["id"], item["encrypted_content"]])
    });
    json!({
        "id": response.id,
        "model": response.model,
        "text": response.text,
        "calls": calls.map(|call| json!([call.id, call.name, call.arguments])).collect::<Vec<_>>(),
        "sources": sources.map(|source| json!([source.url, source.title])).collect::<Vec<_>>(),
        "thoughts": thoughts.collect::<Vec<_>>(),
        "finish": match response.finish {
            Some(FinishReason::Stop) => "stop",
            Some(FinishReason::Length) => "length",
            Some(FinishReason::ToolCalls) => "tool_calls",
            Some(FinishReason::ContentFilter) => "content_filter",
            Some(FinishReason::Refusal) => "refusal",
            Some(FinishReason::Unknown) | None => "unknown",
        },
        "usage": response.usage.map(|usage| [
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
        ]),
    })
}

fn agree(ours: &Value, theirs: &Value) -> Result<(), String> {
    for (name, their) in theirs.as_object().unwrap() {
        let our = &ours[name];
        let same = match name.as_str() {
            // Where the stream does not begin with them, we begin without.
            // Nor do we take an empty one, as Azure sends it first.
            "id" | "model" => our.is_null() || their == "" || our == their,
            "finish" => match their.as_str().unwrap() {
                "max_output_tokens" => our == "length",
                // Words that do not exist yet.
                "a_new_one" => our == "unknown",
                their => our == their,
            },
            "vectors" => numbers(our) == numbers(their),
            _ => our == their,
        };
        if !same {
            return Err(format!("{name}: the SDK understands {their}, we {our}"));
        }
    }
    Ok(())
}

fn numbers(vectors: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(vectors.clone()).unwrap()
}

fn agree_on_error(ours: &ProviderError, theirs: &Value) -> Result<(), String> {
    let status = theirs["status"].as_u64();
    let fits = |kinds: &[ErrorKind]| kinds.contains(&ours.kind);
    let kind = match theirs["class"].as_str() {
        Some("AuthenticationError") => fits(&[ErrorKind::Authentication, ErrorKind::Permission]),
        Some("PermissionDeniedError") => fits(&[ErrorKind::Permission]),
        Some("NotFoundError") => fits(&[ErrorKind::NotFound, ErrorKind::ModelNotFound]),
        Some("RateLimitError") => fits(&[ErrorKind::RateLimited, ErrorKind::QuotaExhausted]),
        Some("BadRequestError") => !ours.is_retryable(),
        Some("InternalServerError") => ours.is_retryable(),
        // 408, or an error in a stream.
        Some("APIStatusError") | None => true,
        Some(other) => return Err(format!("an SDK's error that is not known here: {other}")),
    };
    let message = theirs["message"].as_str().unwrap_or_default();
    let code = theirs["code"]
        .as_str()
        .filter(|code| code.parse::<u16>().is_err());
    let request_id = theirs["request_id"].as_str();
    let same = kind
        && (status.is_none() || status == ours.status.map(u64::from))
        && ours.message.starts_with(message)
        && (code.is_none() || code == ours.code.as_deref())
        && (request_id.is_none() || request_id == ours.request_id.as_deref());
    if same {
        return Ok(());
    }
    Err(format!("the SDK understands {theirs}, we {ours:?}"))
}
