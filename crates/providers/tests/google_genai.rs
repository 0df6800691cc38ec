//! Google's own SDK for Python, which sends what we send and reads what we read: each fixture of `gemini` and `vertex`.
//!
//! `./test` sets it up; without, the test says so and passes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "support/sdk.rs"]
mod sdk;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use ask::{Ask, ask};
use fixture::{Answer, Exchange};
use lapce_ai_providers::{
    ChatResponse, Content, Decoding, EmbeddingPurpose, ErrorKind, Feature, FinishReason, Profile,
    Settings, Usage, Wire,
};
use sdk::Sdk;
use serde_json::{Value, json};
use support::KEY;

/// A key of ours that the SDK's server sees is one of the script's.
const SDK_KEY: &str = "a-key-of-the-tests";

#[test]
fn googles_own_sdk_agrees() {
    let Some(mut sdk) = Sdk::start("check_gemini.py") else {
        return;
    };
    let mut checked = BTreeMap::new();
    let mut wrong = Vec::new();
    for name in ["gemini", "vertex"] {
        let profile = Profile::named(name).unwrap();
        let settings = Settings {
            key: Some(KEY.into()),
            region: Some("us-east-1".into()),
            project: Some("p1".into()),
            ..Settings::default()
        };
        let wire = profile.wire(&settings).unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for feature in Feature::ALL.iter().filter(|it| profile.features.has(**it)) {
            let path = format!("{name}/{}", feature.name());
            for exchange in fixture::read(&fixtures, &path).unwrap() {
                let at = format!("{path}:{}", exchange.line);
                match check(&mut sdk, name, &*wire, &exchange) {
                    Ok(what) => *checked.entry(what).or_insert(0) += 1,
                    Err(why) => wrong.push(format!("{at}: {}: {why}", exchange.ask)),
                }
            }
        }
    }
    println!("{checked:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    for (what, least) in [
        ("chat", 100),
        ("blocked", 4),
        ("error", 35),
        ("embed", 5),
        ("count", 1),
        ("models", 3),
    ] {
        let many = checked.get(what).copied().unwrap_or(0);
        assert!(many >= least, "{what}: {checked:?}");
    }
}

/// Sends one exchange through the SDK. `Ok` is what was compared.
fn check(
    sdk: &mut Sdk,
    service: &str,
    wire: &dyn Wire,
    exchange: &Exchange,
) -> Result<&'static str, String> {
    let ask = ask(&exchange.ask, &mut exchange.options.clone()).unwrap();
    let now = SystemTime::UNIX_EPOCH;
    let (mut job, request) = match &ask {
        Ask::Chat(chat) => (
            json!({"does": "chat", "stream": chat.stream, "model": chat.model}),
            wire.chat_request(chat, now),
        ),
        // AI Studio's SDK cannot have instructions and tools counted.
        Ask::Count(_) if service == "gemini" => return Ok("left out"),
        Ask::Count(chat) => (
            json!({"does": "count", "model": chat.model}),
            wire.count_request(chat, now),
        ),
        Ask::Embed(embed) => (
            json!({"does": "embed", "model": embed.model, "texts": embed.input, "dimensions": embed.dimensions,
                "task": if embed.purpose == EmbeddingPurpose::Query { "RETRIEVAL_QUERY" } else { "RETRIEVAL_DOCUMENT" }}),
            wire.embeddings_request(embed, now),
        ),
        Ask::Models => (json!({"does": "models"}), wire.models_request(now)),
    };
    let request = request.map_err(|error| error.to_string())?;
    // The signatures of the canonical request are no base64.
    let body = String::from_utf8(request.body().to_vec()).unwrap();
    let body = body
        .replace("\"CALL-SIGNATURE\"", "\"Y2FsbA==\"")
        .replace("\"SIGNATURE\"", "\"dGhvdWdodA==\"")
        .replace("\"ENCRYPTED\"", "\"dGV4dA==\"");
    let body: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
    let plain = Answer {
        status: 200,
        media_type: "application/json".into(),
        body: r#"{"candidates":[{"content":{"parts":[{"text":"x"}],"role":"model"},"finishReason":"STOP"}]}"#.into(),
        ..Answer::default()
    };
    let answer = exchange.answer.as_ref().unwrap_or(&plain);
    job["service"] = service.into();
    job["body"] = body.clone();
    job["answer"] =
        json!({"status": answer.status, "type": answer.media_type, "body": answer.body});
    let result = sdk.ask(&job);
    // What it sent.
    let sent = &result["sent"];
    if sent["method"].is_null() {
        return Err(format!("the SDK did not send it: {}", result["fault"]));
    }
    let path = request.uri().path_and_query().unwrap().as_str();
    let same_path = match &ask {
        // The size of a page is everybody's own choice, and the script asks for one version of the API in all.
        Ask::Models => {
            let list = |path: &str| {
                let path = path.split('?').next().unwrap().to_owned();
                path.replace("/v1beta1/", "/v1/")
            };
            list(sent["path"].as_str().unwrap()) == list(path)
        }
        _ => sent["path"] == path,
    };
    let key = if service == "gemini" {
        SDK_KEY.into()
    } else {
        format!("Bearer {SDK_KEY}")
    };
    if sent["method"] != request.method().as_str() || !same_path || sent["key"] != key {
        return Err(format!("the SDK sent {sent}, not {path}"));
    }
    if form(&sent["body"]) != form(&body) {
        return Err(format!("the SDK sent\n{}\nnot\n{body}", sent["body"]));
    }
    if exchange.answer.is_none() {
        return Ok("chat");
    }
    compare(&ask, wire, answer, &result)
}

/// `body` without what makes no difference: the SDK writes some names in the other style, which proto JSON takes too, and
/// settings where nothing is set.
fn form(body: &Value) -> Value {
    match body {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (camel(name), form(value)));
            let set =
                |(name, value): &(String, Value)| name != "generationConfig" || *value != json!({});
            Value::Object(fields.filter(set).collect())
        }
        Value::Array(list) => list.iter().map(form).collect(),
        other => other.clone(),
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&(first.to_uppercase() + rest));
    }
    camel
}

/// What it made of the answer.
fn compare(
    ask: &Ask,
    wire: &dyn Wire,
    answer: &Answer,
    result: &Value,
) -> Result<&'static str, String> {
    let same = |what: &str, ours: Value, theirs: &Value| {
        if ours == *theirs {
            Ok(())
        } else {
            Err(format!("{what}: ours {ours}, the SDK's {theirs}"))
        }
    };
    let head = http::Response::builder()
        .status(answer.status)
        .header("content-type", &answer.media_type);
    let head = head.body(()).unwrap().into_parts().0;
    let got = &result["got"];
    let bytes = answer.body.as_bytes();
    if answer.status != 200 {
        let error = wire.decode_error(&head, bytes, SystemTime::UNIX_EPOCH);
        same("status", error.status.into(), &result["error"]["code"])?;
        if answer.media_type == "application/json" && !answer.body.contains("fieldViolations") {
            same(
                "message",
                (*error.message).into(),
                &result["error"]["message"],
            )?;
        }
        return Ok("error");
    }
    match ask {
        Ask::Chat(_) => {}
        Ask::Count(_) => {
            same(
                "tokens",
                wire.decode_count(bytes).unwrap().into(),
                &got["tokens"],
            )?;
            return Ok("count");
        }
        Ask::Embed(_) => {
            let Ok(vectors) = wire.decode_embeddings(bytes) else {
                return Ok("left out");
            };
            same("vectors", json!(vectors.vectors), &got["vectors"])?;
            return Ok("embed");
        }
        Ask::Models => {
            let Ok(models) = wire.decode_models(bytes) else {
                return Ok("left out");
            };
            let theirs = got["models"].as_array().unwrap();
            for model in models {
                assert!(theirs.contains(&model.id.clone().into()), "{}", model.id);
            }
            return Ok("models");
        }
    }
    let mut decoding = Decoding::new(wire.decoder(&head, 1 << 20).unwrap());
    decoding.push(bytes);
    decoding.finish();
    let mut ours = ChatResponse::default();
    while let Some(event) = decoding.next() {
        match event {
            Ok(event) => ours.add(event),
            Err(error) if error.kind == ErrorKind::ContentFiltered => {
                same("block reason", json!(error.code), &got["blocked"])?;
                return Ok("blocked");
            }
            // The SDK has no eye for what is cut or has failed.
            Err(_) => return Ok("left out"),
        }
    }
    // Three things that the SDK stumbles over: a proxy's end mark, an array for a stream, lists that are none.
    let odd = ["[DONE]", "\n,\n", "\"groundingChunks\": {"];
    if odd.iter().any(|sign| answer.body.contains(sign)) {
        assert!(result["fault"].is_string(), "it reads {}", answer.body);
        return Ok("left out");
    }
    if let Some(fault) = result["fault"].as_str() {
        return Err(format!("the SDK cannot read it: {fault}"));
    }
    same("text", json!(ours.text), &got["text"])?;
    // Code that ran is no thought there.
    if !answer.body.contains("executableCode") {
        same("thoughts", json!(ours.reasoning()), &got["thoughts"])?;
    }
    let mut signatures: Vec<_> = ours.thoughts.iter().filter_map(signature).collect();
    let calls = ours.tool_calls.iter();
    signatures.extend(calls.filter_map(|call| call.signature.as_deref()));
    signatures.sort_unstable();
    // Its base64 is the one for URLs.
    let theirs = list(&got["signatures"]).map(|text| text.replace('-', "+").replace('_', "/"));
    let mut theirs: Vec<_> = theirs.collect();
    theirs.sort_unstable();
    same("signatures", json!(signatures), &json!(theirs))?;
    let whole = !answer.body.contains("partialArgs");
    let calls = ours.tool_calls.iter().map(|call| {
        // Pieces of arguments are not put together there.
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
        let arguments = if whole { arguments } else { json!({}) };
        let id = (!call.id.starts_with("gemini_")).then_some(&call.id);
        json!({"id": id, "name": call.name, "args": arguments})
    });
    same("calls", calls.collect(), &got["calls"])?;
    let sources: BTreeSet<_> = ours
        .citations
        .iter()
        .filter_map(|it| it.url.as_deref())
        .collect();
    let theirs: BTreeSet<_> = list(&got["sources"]).collect();
    same("sources", json!(sources), &json!(theirs))?;
    let count = |name: &str| got["usage"][name].as_u64().unwrap_or(0);
    let thoughts = count("thoughts_token_count");
    let usage = got["usage"].get("prompt_token_count").map(|_| Usage {
        input_tokens: count("prompt_token_count") + count("tool_use_prompt_token_count"),
        output_tokens: count("candidates_token_count") + thoughts,
        cached_input_tokens: count("cached_content_token_count"),
        cache_write_tokens: 0,
        reasoning_tokens: thoughts,
    });
    if ours.usage != usage {
        return Err(format!("usage: ours {:?}, the SDK's {usage:?}", ours.usage));
    }
    let finish = ours.finish.unwrap();
    let finish = match got["finish"].as_str().unwrap() {
        "STOP" => matches!(finish, FinishReason::Stop | FinishReason::ToolCalls),
        "MAX_TOKENS" => finish == FinishReason::Length,
        _ => matches!(finish, FinishReason::ContentFilter | FinishReason::Unknown),
    };
    if !finish {
        return Err(format!(
            "finish: ours {:?}, the SDK's {}",
            ours.finish, got["finish"]
        ));
    }
    Ok("chat")
}

fn list(texts: &Value) -> impl Iterator<Item = &str> {
    texts
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn signature(thought: &Content) -> Option<&str> {
    match thought {
        Content::Reasoning { signature, .. } => signature.as_deref(),
        Content::RedactedReasoning(signature) => Some(signature),
        _ => None,
    }
}
