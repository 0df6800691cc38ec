//! Anthropic's Messages API beyond single exchanges: lists in pages, and its official Python SDK as the judge of what
//! we send and of how we read.
//!
//! `./test` sets the SDK up and says where it is; without that its tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/anthropic.rs"]
mod anthropic_support;
#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "support/sdk.rs"]
mod sdk;
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anthropic_support::{differs, read, sse};
use ask::{Ask, ask};
use fixture::Exchange;
use lapce_ai_providers::{Event, Feature, Profile, Provider};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Upstream, client, decoding_of, wire_of};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_list_of_models_goes_on_until_there_is_no_more() {
    let upstream = Upstream::start().await;
    let wire = wire_of("anthropic", &upstream.origin());
    let provider = lapce_ai_providers::HttpProvider::new("tested", wire, client());
    let serve = async {
        let mut exchange = upstream.accept().await;
        for (path, page) in [
            (
                "/v1/models?limit=1000 ",
                r#"{"data":[{"id":"claude-b"},{"id":"claude-a"}],"has_more":true,"last_id":"claude-a"}"#,
            ),
            (
                "/v1/models?limit=1000&after_id=claude-a ",
                r#"{"data":[{"id":"c/d"}],"has_more":true,"last_id":"c/d"}"#,
            ),
            (
                "/v1/models?limit=1000&after_id=c%2fd ",
                r#"{"data":[],"has_more":false,"last_id":null}"#,
            ),
        ] {
            assert!(exchange.head.contains(path), "{}", exchange.head);
            let headers = "content-type: application/json\r\n";
            exchange.answer("200 OK", headers, page).await;
            if page.contains("true") {
                exchange.read_request().await;
            }
        }
    };
    let (models, ()) = tokio::join!(provider.models(), serve);
    let ids: Vec<String> = models.unwrap().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["claude-b", "claude-a", "c/d"]);
}

/// The SDK's verdicts on `cases`; `None` where it is not set up.
fn judge(cases: &[Value]) -> Option<Vec<Value>> {
    let python = sdk::python()?;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for case in cases {
        writeln!(file, "{case}").unwrap();
    }
    let output = Command::new(python)
        .arg(sdk::script("check_anthropic.py"))
        .arg(file.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let verdicts = str::from_utf8(&output.stdout).unwrap().lines();
    let verdicts: Vec<Value> = verdicts
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(verdicts.len(), cases.len(), "{said}");
    Some(verdicts)
}

/// Every exchange of the fixtures, with where it stands.
fn exchanges() -> Vec<(String, Exchange)> {
    let features = Profile::named("anthropic").unwrap().features;
    let mut all = Vec::new();
    for feature in Feature::ALL {
        if features.has(*feature) {
            let path = format!("anthropic/{}", feature.name());
            let read = fixture::read(&root().join("tests/fixtures"), &path).unwrap();
            all.extend(
                read.into_iter()
                    .map(|exchange| (format!("{path}:{}", exchange.line), exchange)),
            );
        }
    }
    all
}

#[test]
fn its_own_sdk_would_send_the_same_requests() {
    let wire = wire_of("anthropic", "https://api.anthropic.com");
    let now = SystemTime::UNIX_EPOCH;
    let (mut places, mut cases) = (Vec::new(), Vec::new());
    for (place, exchange) in exchanges() {
        let request = match ask(&exchange.ask, &mut exchange.options.clone()).unwrap() {
            Ask::Chat(request) => wire.chat_request(&request, now),
            Ask::Count(request) => wire.count_request(&request, now),
            Ask::Models => wire.models_request(now),
            Ask::Embed(request) => wire.embeddings_request(&request, now),
        };
        // Some things are refused before they are sent.
        let Ok(request) = request else { continue };
        let headers = request.headers().iter();
        let headers: Value = headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let path = request.uri().path_and_query().unwrap().as_str();
        cases.push(json!({"request": {"path": path, "headers": headers, "body": body}}));
        places.push(place);
    }
    let Some(verdicts) = judge(&cases) else {
        return;
    };
    let wrong: Vec<String> = (places.iter().zip(&cases).zip(&verdicts))
        .filter(|(_, verdict)| verdict["agrees"] != true)
        .map(|((place, case), verdict)| format!("{place}: {verdict}\nof {case}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    println!("{} requests", cases.len());
    assert!(cases.len() > 80, "{}", cases.len());
}

/// A case for [`judge`].
fn answer(status: u16, media_type: &str, headers: &[(String, String)], body: &str) -> Value {
    let mut all = json!({"content-type": media_type});
    for (name, value) in headers {
        all[name] = value.as_str().into();
    }
    let stream = media_type == "text/event-stream";
    json!({"answer": {"status": status, "headers": all, "stream": stream, "body": body}})
}

fn answers_of_fixtures() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (place, exchange) in exchanges() {
        let is_chat = exchange.ask != "models" && !exchange.options.contains_key("count");
        let Some(given) = exchange.answer.filter(|_| is_chat) else {
            continue;
        };
        let stream = given.media_type.starts_with("text/event-stream");
        let last = exchange.gives.last().map_or("", String::as_str);
        // What the SDK does not do, or trusts its provider never to do: it reads named events only, needs a
        // beginning and numbers in `usage`, and takes half a stream, a web page and an error of status 200 for an answer.
        let begins = |name: &str| given.body.starts_with(&format!("event: {name}"));
        let unnamed = stream && !begins("message_start") && !begins("error");
        let uncounted = last.starts_with("finish")
            && !exchange.gives.iter().any(|line| line.starts_with("usage"));
        let wrong = last.contains("malformed_response")
            || last.contains("stream_cut")
            || (last.starts_with("error") && given.status == 200 && !stream);
        if !unnamed && !uncounted && !wrong {
            let media_type = given.media_type.trim_end_matches(';');
            let case = answer(given.status, media_type, &given.headers, &given.body);
            all.push((place, case));
        }
    }
    all
}

fn recorded_answers() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let folder = root().join("../../../shared/recorded/anthropic");
    for file in fs::read_dir(folder).into_iter().flatten() {
        let path = file.unwrap().path();
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        if name.ends_with(".json") {
            if text.contains("\"stop_reason\"") {
                all.push((name, answer(200, "application/json", &[], &text)));
            }
            continue;
        }
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for events in events.split_inclusive(|event| event["type"] == "message_stop") {
            let case = answer(200, "text/event-stream", &[], &sse(events));
            all.push((name.clone(), case));
        }
    }
    all
}

#[test]
fn its_own_sdk_reads_the_same_answers() {
    let (fixtures, recorded) = (answers_of_fixtures(), recorded_answers());
    println!(
        "{} answers of fixtures, {} recorded",
        fixtures.len(),
        recorded.len()
    );
    assert!(fixtures.len() > 45, "{}", fixtures.len());
    let (places, cases): (Vec<_>, Vec<_>) = fixtures.into_iter().chain(recorded).unzip();
    let Some(verdicts) = judge(&cases) else {
        return;
    };
    let mut wrong = Vec::new();
    for ((place, case), verdict) in places.iter().zip(&cases).zip(&verdicts) {
        if let Some(why) = disagrees(&case["answer"], verdict) {
            wrong.push(format!("{place}: {why}"));
        }
    }
    // Of two answers in one stream the SDK makes one; we say that something is wrong.
    wrong.retain(|why| !why.contains("another message began"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn disagrees(answer: &Value, verdict: &Value) -> Option<String> {
    let body = answer["body"].as_str().unwrap().as_bytes();
    let status = u16::try_from(answer["status"].as_u64().unwrap()).unwrap();
    let ours = if status == 200 {
        read(answer["stream"] == true, body, body.len().max(1))
    } else {
        let mut head = http::Response::builder().status(status);
        for (name, value) in answer["headers"].as_object().unwrap() {
            head = head.header(name, value.as_str().unwrap());
        }
        let head = head.body(()).unwrap().into_parts().0;
        let wire = wire_of("anthropic", "https://api.anthropic.com");
        Err(wire.decode_error(&head, body, SystemTime::UNIX_EPOCH))
    };
    let message = &verdict["message"];
    match ours {
        Ok(got) if message.is_object() => differs(&got, message),
        Err(error) if verdict["error"].is_object() => {
            let theirs = &verdict["error"];
            let text = |name: &str| theirs[name].as_str();
            let same = error.status.is_none_or(|status| theirs["status"] == status)
                && text("message").is_none_or(|message| message == &*error.message)
                && text("request_id").is_none_or(|id| error.request_id.as_deref() == Some(id))
                && text("type").is_none_or(|kind| {
                    let code = error.code.as_deref().unwrap_or_default();
                    code == kind || code.ends_with("_spend_limit_reached")
                });
            (!same).then(|| format!("{error:?}\nnot {theirs}"))
        }
        ours => Some(format!("{ours:?}\nbut {verdict}")),
    }
}

/// The streams of the fixtures.
fn streams() -> Vec<String> {
    let answers = exchanges()
        .into_iter()
        .filter_map(|(_, exchange)| exchange.answer);
    answers
        .filter(|answer| answer.media_type.starts_with("text/event-stream"))
        .map(|answer| answer.body)
        .collect()
}

proptest! {
    /// Streams that were damaged on their way, or written by somebody hostile.
    #[test]
    fn a_damaged_stream_ends_once_and_in_order(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..12),
        chunk in 1..200usize,
    ) {
        let streams = streams();
        let mut body = which.get(&streams).clone().into_bytes();
        for (at, byte, how) in damage {
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => {
                    // A whole line twice is likelier to do harm than a byte.
                    let end = body[at..].iter().position(|byte| *byte == b'\n');
                    let line = body[at..at + end.unwrap_or(0)].to_vec();
                    body.splice(at..at, line);
                }
            }
        }
        let mut decoding = decoding_of("anthropic", "text/event-stream", 1 << 16);
        let (mut started, mut ended) = (0, 0);
        let mut pieces = body.chunks(chunk);
        while !decoding.is_ended() || decoding.is_ready() {
            if let Some(event) = decoding.next() {
                prop_assert_eq!(ended, 0);
                started += usize::from(matches!(event, Ok(Event::Start { .. })));
                prop_assert!(started == 1 || event.is_err());
                ended += usize::from(matches!(event, Err(_) | Ok(Event::Finish(_))));
            } else if let Some(piece) = pieces.next() {
                decoding.push(piece);
            } else {
                decoding.finish();
            }
        }
        prop_assert_eq!(ended, 1);
    }
}
