//! What servers of the Responses API really sent, and that no recording of OpenAI's relatives is overlooked.

use std::fs;
use std::path::Path;

use lapce_ai_providers::{ChatResponse, Content, ErrorKind, FinishReason, Source, ToolCall, Usage};
use serde_json::Value;

use crate::support::{decoding_of, sse, wire_of};
use crate::{collect, recorded};

const PROFILE: &str = "openai-responses";

/// Where recordings in one of OpenAI's formats are.
const RELATIVES: &[&str] = &[
    "azure",
    "deepseek",
    "groq",
    "mistral",
    "open-responses",
    "openai",
    "openai-compatible",
    "perplexity",
    "togetherai",
    "xai",
];

/// What is no chat, and why.
const NO_CHAT: &[(&str, &str)] = &[
    (
        "openai/completion--",
        "text completions, the API before chat",
    ),
    ("openai/skills--", "an upload"),
    ("togetherai/reranking--", "a ranking of documents"),
];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What whole items say.
#[derive(Default)]
struct Said {
    text: String,
    thoughts: String,
    /// The thoughts that can be handed back.
    signed: Vec<Value>,
    calls: Vec<ToolCall>,
    sources: Vec<Source>,
}

impl Said {
    fn of<'a>(items: impl Iterator<Item = &'a Value>) -> Self {
        let mut said = Self::default();
        for item in items {
            match text(&item["type"]) {
                "message" => {
                    for part in list(&item["content"]) {
                        said.text += text(&part["text"]);
                        said.text += text(&part["refusal"]);
                        list(&part["annotations"]).for_each(|source| said.cite(source));
                    }
                }
                "reasoning" => {
                    let parts = |field: &str| -> Vec<&str> {
                        list(&item[field]).map(|part| text(&part["text"])).collect()
                    };
                    let summary = parts("summary").join("\n\n");
                    said.thoughts += if summary.is_empty() {
                        parts("content").first().copied().unwrap_or_default()
                    } else {
                        &summary
                    };
                    if !text(&item["encrypted_content"]).is_empty() {
                        said.signed.push(item.clone());
                    }
                }
                "function_call" => said.calls.push(ToolCall {
                    id: text(&item["call_id"]).into(),
                    name: text(&item["name"]).into(),
                    arguments: text(&item["arguments"]).into(),
                    signature: None,
                }),
                _ => {}
            }
        }
        said
    }

    fn cite(&mut self, annotation: &Value) {
        if let Some(url) = annotation["url"].as_str() {
            self.sources.push(Source {
                url: Some(url.into()),
                title: annotation["title"].as_str().map(Into::into),
                quote: None,
            });
        }
    }
}

fn compare(file: &Path, got: &ChatResponse, said: &Said, end: &Value) {
    let name = file.display();
    assert_eq!(got.text, said.text, "{name}");
    assert_eq!(got.reasoning(), said.thoughts, "{name}");
    assert_eq!(got.tool_calls, said.calls, "{name}");
    assert_eq!(got.citations, said.sources, "{name}");
    let proofs = got.thoughts.iter().filter_map(|thought| match thought {
        Content::Reasoning { signature, .. } => signature.as_deref(),
        Content::RedactedReasoning(item) => Some(item.as_str()),
        _ => None,
    });
    let proofs: Vec<Value> = proofs
        .map(|item| serde_json::from_str(item).unwrap())
        .collect();
    assert_eq!(proofs, said.signed, "{name}");
    let usage = &end["usage"];
    let count = |place: &str| usage.pointer(place).and_then(Value::as_u64).unwrap_or(0);
    let expected = usage.is_object().then(|| Usage {
        input_tokens: count("/input_tokens"),
        output_tokens: count("/output_tokens"),
        cached_input_tokens: count("/input_tokens_details/cached_tokens"),
        cache_write_tokens: count("/input_tokens_details/cache_write_tokens"),
        reasoning_tokens: count("/output_tokens_details/reasoning_tokens"),
    });
    assert_eq!(got.usage, expected, "{name}");
    assert_eq!(end["status"], "completed", "{name}");
    let finish = if said.calls.is_empty() {
        FinishReason::Stop
    } else {
        FinishReason::ToolCalls
    };
    assert_eq!(got.finish, Some(finish), "{name}");
    assert!(got.id.is_some() && got.model.is_some(), "{name}");
}

/// The streams of a recording, which may hold several turns.
fn turns(file: &Path, recording: &str) -> Vec<Vec<String>> {
    let mut turns: Vec<Vec<String>> = Vec::new();
    for line in recording.lines().filter(|line| !line.trim().is_empty()) {
        let mut line = line.to_owned();
        // Two lines of one recording were written without their last brace.
        if file.ends_with("responses--parallel-tool-call-wrapper.1.chunks.txt")
            && serde_json::from_str::<Value>(&line).is_err()
        {
            line.push('}');
        }
        let document: Value = serde_json::from_str(&line).unwrap();
        if turns.is_empty() || document["type"] == "response.created" {
            turns.push(Vec::new());
        }
        turns.last_mut().unwrap().push(line);
    }
    turns
}

#[test]
fn streams() {
    let (mut checked, mut whole, mut failed) = (0, 0, 0);
    for file in recorded(".chunks.txt") {
        let recording = fs::read_to_string(&file).unwrap();
        if !recording.contains("\"response.created\"") {
            continue;
        }
        for lines in turns(&file, &recording) {
            let parse = |line: &String| -> Value { serde_json::from_str(line).unwrap() };
            let documents: Vec<Value> = lines.iter().map(parse).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let body = sse(&lines);
            checked += 1;
            if documents.iter().any(|event| event["type"] == "error") {
                let mut decoding = decoding_of(PROFILE, "text/event-stream", 1 << 20);
                decoding.push(body.as_bytes());
                let mut last = None;
                while let Some(event) = decoding.next() {
                    last = event.err();
                }
                assert_eq!(last.unwrap().kind, ErrorKind::QuotaExhausted);
                failed += 1;
                continue;
            }
            let of = |kind: &'static str| {
                let events = documents.iter();
                events.filter(move |event| event["type"] == kind)
            };
            let mut said = Said::of(of("response.output_item.done").map(|event| &event["item"]));
            let pieces = of("response.output_text.delta").map(|event| text(&event["delta"]));
            let pieces: String = pieces.collect();
            // Whoever recorded left pieces out of some; then the pieces count.
            if pieces == said.text {
                whole += 1;
            } else {
                said.text = pieces;
            }
            said.sources.clear();
            let cited = of("response.output_text.annotation.added");
            cited.for_each(|event| said.cite(&event["annotation"]));
            let end = &documents.last().unwrap()["response"];
            for chunk in [1, 17, 4096, body.len()] {
                let decoding = decoding_of(PROFILE, "text/event-stream", 1 << 20);
                let got = collect(decoding, body.as_bytes(), chunk);
                compare(&file, &got, &said, end);
            }
        }
    }
    println!("{checked} streams, {whole} of them without gaps, {failed} failed");
    assert!(checked == 0 || checked >= 40, "{checked}");
    assert!(checked == 0 || whole >= 30, "{whole}");
}

#[test]
fn bodies() {
    let mut checked = 0;
    for file in recorded(".json") {
        let body = fs::read_to_string(&file).unwrap();
        let document: Value = serde_json::from_str(&body).unwrap();
        if document["object"] != "response" {
            continue;
        }
        let said = Said::of(list(&document["output"]));
        let got = collect(
            decoding_of(PROFILE, "application/json", 1 << 20),
            body.as_bytes(),
            1000,
        );
        compare(&file, &got, &said, &document);
        checked += 1;
    }
    println!("{checked} bodies");
    assert!(checked == 0 || checked >= 36, "{checked}");
}

#[test]
fn errors() {
    let mut checked = 0;
    for file in recorded("error.json")
        .into_iter()
        .chain(recorded("error.1.json"))
    {
        let body = fs::read(&file).unwrap();
        let document: Value = serde_json::from_slice(&body).unwrap();
        let quota = document["error"]["code"] == "insufficient_quota";
        if document["error"]["type"] != "invalid_request_error" && !quota {
            continue;
        }
        let (status, kind) = if quota {
            (429, ErrorKind::QuotaExhausted)
        } else {
            (400, ErrorKind::InvalidRequest)
        };
        let head = http::Response::builder().status(status).body(()).unwrap();
        for profile in ["openai", PROFILE] {
            let wire = wire_of(profile, "http://127.0.0.1");
            let error = wire.decode_error(
                &head.clone().into_parts().0,
                &body,
                std::time::SystemTime::UNIX_EPOCH,
            );
            assert_eq!(error.kind, kind, "{}", file.display());
            assert_eq!(&*error.message, text(&document["error"]["message"]));
        }
        checked += 1;
    }
    assert!(checked == 0 || checked >= 3, "{checked}");
}

#[test]
fn vectors() {
    let mut checked = 0;
    for file in recorded("embedding.json") {
        let body = fs::read(&file).unwrap();
        let document: Value = serde_json::from_slice(&body).unwrap();
        if document["object"] != "list" {
            continue;
        }
        let wire = wire_of("openai", "http://127.0.0.1");
        let got = wire.decode_embeddings(&body).unwrap();
        let numbers = |entry: &Value| -> Vec<f32> {
            let numbers = list(&entry["embedding"]);
            numbers.map(|n| n.to_string().parse().unwrap()).collect()
        };
        let expected: Vec<Vec<f32>> = list(&document["data"]).map(numbers).collect();
        assert_eq!(got.vectors, expected, "{}", file.display());
        assert_eq!(got.model.as_deref(), document["model"].as_str());
        assert_eq!(
            got.input_tokens,
            document["usage"]["prompt_tokens"].as_u64()
        );
        checked += 1;
    }
    let there = !recorded("").is_empty();
    assert!(!there || checked >= 1, "{checked}");
}

/// Every recording is checked by one of these tests or by those of chat completions, or is listed as no chat.
#[test]
fn none_is_overlooked() {
    let mut found = std::collections::BTreeMap::new();
    for file in recorded("").into_iter().filter(|file| file.is_file()) {
        let folder = file
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_string_lossy();
        let name = format!("{folder}/{}", file.file_name().unwrap().to_string_lossy());
        if !RELATIVES.contains(&&*folder)
            || NO_CHAT.iter().any(|(start, _)| name.starts_with(start))
        {
            continue;
        }
        let body = fs::read_to_string(&file).unwrap();
        let kind = if name.ends_with(".chunks.txt") {
            let has = |sign: &str| body.contains(sign);
            match (
                has("\"response.created\""),
                has("\"chat.completion.chunk\""),
            ) {
                (true, false) => "response stream",
                (false, true) => "chat stream",
                _ => panic!("{name} is in no known format"),
            }
        } else {
            let document: Value = serde_json::from_str(&body).unwrap();
            match text(&document["object"]) {
                "response" => "response",
                "chat.completion" => "chat",
                "list" if document["data"][0]["embedding"].is_array() => "vectors",
                "" if document["error"].is_object() => "error",
                other => panic!("{name} is in no known format: {other}"),
            }
        };
        *found.entry(kind).or_insert(0) += 1;
    }
    println!("{found:?}");
}
