//! Streams that providers really sent, checked against a plain walk over the same JSON.
//!
//! They lie beside the workspace, not in it; where they are absent the tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "recorded/anthropic.rs"]
mod anthropic;
#[path = "support/anthropic.rs"]
mod anthropic_support;
#[path = "recorded/bedrock.rs"]
mod bedrock;
#[path = "recorded/cohere.rs"]
mod cohere;
#[path = "recorded/gemini.rs"]
mod gemini;
#[path = "recorded/responses.rs"]
mod responses;
mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lapce_ai_providers::{ChatResponse, Decoding, Event, FinishReason, Source};
use serde_json::Value;
use support::{decoding, sse};

fn recorded(extension: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/recorded");
    if !root.is_dir() {
        // Past the capture of the test harness, so that it is seen.
        let mut stderr = std::io::stderr();
        stderr
            .write_all(b"skipped: ../shared/recorded is absent\n")
            .unwrap();
        return Vec::new();
    }
    let mut files = Vec::new();
    for provider in fs::read_dir(root).unwrap() {
        let provider = provider.unwrap().path();
        if provider.is_dir() {
            files.extend(
                fs::read_dir(provider)
                    .unwrap()
                    .map(|file| file.unwrap().path()),
            );
        }
    }
    files.retain(|file| file.to_string_lossy().ends_with(extension));
    files.sort();
    files
}

fn collect(mut decoding: Decoding, bytes: &[u8], chunk: usize) -> ChatResponse {
    let mut response = ChatResponse::default();
    for chunk in bytes.chunks(chunk) {
        decoding.push(chunk);
        while let Some(event) = decoding.next() {
            response.add(event.unwrap());
        }
    }
    decoding.finish();
    while let Some(event) = decoding.next() {
        response.add(event.unwrap());
    }
    response
}

/// What the documents say, read the slow and plain way.
fn walk(documents: &[Value], message: &str) -> (ChatResponse, Option<String>) {
    let mut expected = ChatResponse::default();
    let mut finish = None;
    let text = |value: &Value| -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect(),
            _ => String::new(),
        }
    };
    for document in documents {
        let message = &document["choices"][0][message];
        expected.text += &text(&message["content"]);
        for name in ["reasoning_content", "reasoning"] {
            think(&mut expected, &text(&message[name]));
        }
        for part in message["content"].as_array().into_iter().flatten() {
            think(&mut expected, &text(&part["thinking"]));
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if call["id"].as_str().is_some_and(|id| !id.is_empty()) {
                expected.tool_calls.push(lapce_ai_providers::ToolCall {
                    id: text(&call["id"]),
                    name: text(&call["function"]["name"]),
                    ..lapce_ai_providers::ToolCall::default()
                });
            }
            expected.tool_calls.last_mut().unwrap().arguments +=
                &text(&call["function"]["arguments"]);
        }
        let sources = document["search_results"].as_array();
        if let Some(sources) = sources.or(document["citations"].as_array()) {
            // Each chunk has all of them once more.
            expected.citations = sources.iter().map(source).collect();
        }
        for annotation in message["annotations"].as_array().into_iter().flatten() {
            expected.citations.push(source(&annotation["url_citation"]));
        }
        if let Some(reason) = document["choices"][0]["finish_reason"].as_str() {
            finish = Some(reason.to_owned());
        }
        let usage = &document["usage"];
        if let Some(input) = usage["prompt_tokens"].as_u64() {
            let output = usage["completion_tokens"].as_u64().unwrap();
            let reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64();
            let reasoning = reasoning
                .or(usage["reasoning_tokens"].as_u64())
                .unwrap_or(0);
            let beside = usage["total_tokens"].as_u64() == Some(input + output + reasoning);
            expected.usage = Some(lapce_ai_providers::Usage {
                input_tokens: input,
                output_tokens: if beside { output + reasoning } else { output },
                cached_input_tokens: usage["prompt_tokens_details"]["cached_tokens"]
                    .as_u64()
                    .unwrap_or(0),
                cache_write_tokens: 0,
                reasoning_tokens: reasoning,
            });
        }
    }
    (expected, finish)
}

/// An address, alone or with its title.
fn source(value: &Value) -> Source {
    let url = value.as_str().or(value["url"].as_str());
    Source {
        url: url.map(Into::into),
        title: value["title"].as_str().map(Into::into),
        quote: None,
    }
}

fn think(expected: &mut ChatResponse, text: &str) {
    if !text.is_empty() {
        let signature = None;
        expected.add(Event::Reasoning { text, signature });
    }
}

fn compare(file: &Path, got: &ChatResponse, expected: &ChatResponse, finish: Option<&str>) {
    let name = file.display();
    assert_eq!(got.text, expected.text, "{name}");
    assert_eq!(got.reasoning(), expected.reasoning(), "{name}");
    assert_eq!(got.tool_calls, expected.tool_calls, "{name}");
    assert_eq!(got.citations, expected.citations, "{name}");
    assert_eq!(got.usage, expected.usage, "{name}");
    let reason = match finish {
        Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some("tool_calls") => FinishReason::ToolCalls,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(got.finish, Some(reason), "{name}");
    assert!(got.id.is_some() && got.model.is_some(), "{name}");
    for call in &got.tool_calls {
        assert!(
            serde_json::from_str::<Value>(&call.arguments).is_ok(),
            "{name}: {call:?}"
        );
    }
}

#[test]
fn streams() {
    let mut checked = 0;
    for file in recorded(".chunks.txt") {
        let text = fs::read_to_string(&file).unwrap();
        if !text.contains("\"chat.completion.chunk\"") {
            continue;
        }
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let documents: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (expected, finish) = walk(&documents, "delta");
        let body = sse(&lines);
        for chunk in [1, 17, 4096, body.len()] {
            let got = collect(
                decoding("text/event-stream", 1 << 20),
                body.as_bytes(),
                chunk,
            );
            compare(&file, &got, &expected, finish.as_deref());
        }
        checked += 1;
    }
    println!("{checked} streams");
    assert!(checked == 0 || checked >= 19, "{checked}");
}

#[test]
fn bodies() {
    let mut checked = 0;
    for file in recorded(".json") {
        let text = fs::read_to_string(&file).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        if document["object"] != "chat.completion" {
            continue;
        }
        let (expected, finish) = walk(std::slice::from_ref(&document), "message");
        let got = collect(decoding("application/json", 1 << 20), text.as_bytes(), 1000);
        compare(&file, &got, &expected, finish.as_deref());
        checked += 1;
    }
    println!("{checked} bodies");
    assert!(checked == 0 || checked >= 18, "{checked}");
}
