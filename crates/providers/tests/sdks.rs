//! The providers' own SDKs agree with us: what they send is what we send, and what they make of an answer is what our
//! events say. They talk to a server on loopback that replays the fixtures of the conformance tests; see `ci/sdks`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "another test uses the rest")]
#[path = "conformance/ask.rs"]
mod ask;
#[allow(dead_code, reason = "another test uses the rest")]
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "support/sdk.rs"]
mod sdk;
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ask::{Ask, ask};
use fixture::{Answer, Exchange};
use lapce_ai_providers::{
    ChatResponse, Decoding, Feature, FinishReason, Profile, ProviderError, Wire,
};
use sdk::Sdk;
use serde_json::{Value, json};
use support::wire_of;

/// What was compared.
#[derive(Debug, Default, PartialEq)]
struct Checked {
    requests: usize,
    answers: usize,
    errors: usize,
    /// Answers that the SDK takes for none.
    unreadable: usize,
}

/// Lets the SDK have every exchange of a profile's fixtures. Of our requests it may leave out the fields `unknown` to
/// it. `same` compares what it read with what we did.
fn check(
    sdk: &mut Sdk,
    profile: &str,
    unknown: &[&str],
    same: impl Fn(&Value, &ChatResponse) -> Result<(), String>,
) -> Checked {
    let mut checked = Checked::default();
    let known = Profile::named(profile).unwrap();
    let wire = wire_of(profile, "http://127.0.0.1:1");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for feature in Feature::ALL.iter().filter(|one| known.features.has(**one)) {
        let path = format!("{profile}/{}", feature.name());
        for exchange in fixture::read(&root, &path).unwrap() {
            let place = format!("{path}:{}", exchange.line);
            one(sdk, &wire, &exchange, unknown, &same, &mut checked)
                .unwrap_or_else(|why| panic!("{place}: {why}"));
        }
    }
    checked
}

fn one(
    sdk: &mut Sdk,
    wire: &Arc<dyn Wire>,
    exchange: &Exchange,
    unknown: &[&str],
    same: &impl Fn(&Value, &ChatResponse) -> Result<(), String>,
    checked: &mut Checked,
) -> Result<(), String> {
    let mut options = exchange.options.clone();
    let ask = ask(&exchange.ask, &mut options).unwrap();
    let now = SystemTime::UNIX_EPOCH;
    let (kind, request) = match &ask {
        Ask::Chat(request) => ("chat", wire.chat_request(request, now)),
        Ask::Embed(request) => ("embeddings", wire.embeddings_request(request, now)),
        Ask::Models => ("models", wire.models_request(now)),
        Ask::Count(_) => return Ok(()),
    };
    // Refused before it is sent.
    let Ok(request) = request else { return Ok(()) };
    let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
    let expected = exchange
        .answer
        .as_ref()
        .and_then(|answer| read(wire, &ask, answer));
    let answer = exchange.answer.as_ref().filter(|_| expected.is_some());
    let reply = sdk.ask(&json!({
        "kind": kind,
        "body": body,
        "answer": answer.map(|answer| json!({
            "status": answer.status, "media_type": answer.media_type, "body": plain(answer),
        })),
    }));

    let path = request.uri().path_and_query().unwrap().as_str();
    if reply["sent"]["path"] != path || reply["sent"]["method"] != request.method().as_str() {
        return Err(format!("we ask for {path}, it sent {}", reply["sent"]));
    }
    if reply["differs"] != json!([]) {
        return Err(format!("the requests differ: {}", reply["differs"]));
    }
    for dropped in reply["drops"].as_array().unwrap() {
        let field = dropped.as_str().unwrap().rsplit('.').next().unwrap();
        if !unknown.contains(&field) {
            return Err(format!("the SDK does not know {dropped}"));
        }
    }
    checked.requests += 1;

    let got = &reply["got"];
    if got["unreadable"].is_string() {
        checked.unreadable += 1;
        return Ok(());
    }
    let fail = |what: &str| Err(format!("{what} here, there {got}"));
    match expected {
        None => return Ok(()),
        Some(Expected::Chat(response)) => same(got, &response)?,
        Some(Expected::Json(name, value)) => {
            if got[name] != value {
                return fail(&value.to_string());
            }
        }
        Some(Expected::Error(error)) => {
            if got["status"] != json!(error.status) || got["message"] != json!(&*error.message) {
                return fail(&error.to_string());
            }
            checked.errors += 1;
            return Ok(());
        }
    }
    checked.answers += 1;
    Ok(())
}

/// Lines of JSON without empty ones, and without what comes after the end: no SDK reads those.
fn plain(answer: &Answer) -> String {
    if answer.media_type != "application/x-ndjson" {
        return answer.body.clone();
    }
    let mut done = false;
    let lines = answer.body.lines().filter(|line| !line.is_empty());
    let lines =
        lines.take_while(|line| !std::mem::replace(&mut done, line.contains("\"done\":true")));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What we make of an answer.
enum Expected {
    Chat(Box<ChatResponse>),
    Json(&'static str, Value),
    Error(ProviderError),
}

/// `None` where the SDKs have no say: errors in a stream, answers that are none of the provider's.
fn read(wire: &Arc<dyn Wire>, ask: &Ask, answer: &Answer) -> Option<Expected> {
    let head = http::Response::builder()
        .status(answer.status)
        .header("content-type", &answer.media_type);
    let head = head.body(()).unwrap().into_parts().0;
    let body = answer.body.as_bytes();
    if answer.status != 200 {
        let error = wire.decode_error(&head, body, SystemTime::UNIX_EPOCH);
        let of_its_own = answer.media_type == "application/json" && !error.message.is_empty();
        return of_its_own.then_some(Expected::Error(error));
    }
    Some(match ask {
        Ask::Chat(_) => {
            let mut decoding = Decoding::new(wire.decoder(&head, 1 << 20).ok()?);
            decoding.push(body);
            decoding.finish();
            let mut response = ChatResponse::default();
            while let Some(event) = decoding.next() {
                response.add(event.ok()?);
            }
            Expected::Chat(Box::new(response))
        }
        Ask::Embed(_) => {
            Expected::Json("vectors", json!(wire.decode_embeddings(body).ok()?.vectors))
        }
        Ask::Models => {
            let models = wire.decode_models(body).ok()?;
            let ids: Vec<_> = models.into_iter().map(|model| model.id).collect();
            Expected::Json("models", json!(ids))
        }
        Ask::Count(_) => return None,
    })
}

fn word(finish: Option<FinishReason>) -> Value {
    match finish {
        Some(FinishReason::Stop) => json!("stop"),
        Some(FinishReason::Length) => json!("length"),
        Some(FinishReason::ToolCalls) => json!("tool_calls"),
        _ => Value::Null,
    }
}

/// Compares field by field.
fn equal(got: &Value, fields: &[(&str, Value)]) -> Result<(), String> {
    for (name, ours) in fields {
        if got[name] != *ours {
            return Err(format!("{name}: {ours} here, {} there", got[name]));
        }
    }
    Ok(())
}

#[test]
fn cohere() {
    let Some(mut sdk) = Sdk::start("check_cohere.py") else {
        return;
    };
    let checked = check(&mut sdk, "cohere", &["stream"], |got, ours| {
        let calls = ours.tool_calls.iter();
        let calls: Vec<_> = calls
            .map(|call| json!([call.id, call.name, call.arguments]))
            .collect();
        let sources = ours.citations.iter();
        let sources: Vec<_> = sources
            .map(|source| json!([source.url, source.title, source.quote]))
            .collect();
        let usage = ours.usage.map(|usage| {
            json!([
                usage.input_tokens,
                usage.output_tokens,
                usage.cached_input_tokens
            ])
        });
        let mut fields = vec![
            ("text", json!(ours.text)),
            ("reasoning", json!(ours.reasoning())),
            ("calls", json!(calls)),
            ("citations", json!(sources)),
            ("usage", json!(usage)),
        ];
        // Words that it does not know are no words of ours either.
        if word(ours.finish) != Value::Null {
            fields.push(("finish", word(ours.finish)));
        }
        equal(got, &fields)
    });
    println!("{checked:?}");
    let enough = checked.requests >= 60 && checked.answers >= 18 && checked.errors >= 15;
    assert!(enough && checked.unreadable == 0, "{checked:?}");
}

#[test]
fn ollama() {
    let Some(mut sdk) = Sdk::start("check_ollama.py") else {
        return;
    };
    // Its types are those of an older server, and know the usual parts of a schema only.
    let unknown = ["id", "type", "tool_call_id", "additionalProperties"];
    let checked = check(&mut sdk, "ollama", &unknown, |got, ours| {
        let calls = ours.tool_calls.iter().map(|call| {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            json!([call.name, arguments])
        });
        let calls: Vec<_> = calls.collect();
        let usage = ours
            .usage
            .map(|usage| json!([usage.input_tokens, usage.output_tokens]));
        let mut fields = vec![
            ("text", json!(ours.text)),
            ("reasoning", json!(ours.reasoning())),
            ("calls", json!(calls)),
            ("usage", json!(usage)),
        ];
        match ours.finish {
            // It has no word of its own for calls.
            Some(FinishReason::ToolCalls) => fields.push(("finish", json!("stop"))),
            finish if word(finish) != Value::Null => fields.push(("finish", word(finish))),
            _ => {}
        }
        equal(got, &fields)
    });
    println!("{checked:?}");
    let enough = checked.requests >= 50 && checked.answers >= 13 && checked.errors >= 11;
    // Of old servers: no message, no arguments, no list.
    assert!(enough && checked.unreadable == 3, "{checked:?}");
}
