//! Cohere's recordings.

use std::fs;
use std::path::{Path, PathBuf};

use lapce_ai_providers::{ChatResponse, FinishReason, Source, ToolCall, Usage};
use serde_json::Value;

use crate::support::{decoding_of, wire_of};
use crate::{collect, recorded, think};

/// No chat: results of a reranker, which we do not offer.
const NO_CHAT: &[&str] = &["reranking--cohere-reranking.1.json"];

fn of_cohere(extension: &str) -> Vec<PathBuf> {
    let mut files = recorded(extension);
    files.retain(|file| file.parent().unwrap().ends_with("cohere"));
    files
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// One or a list of them.
fn each(value: &Value) -> Vec<&Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    }
}

/// Adds what a whole body or the `delta` of an event says.
fn walk(expected: &mut ChatResponse, body: &Value) {
    let message = &body["message"];
    for part in each(&message["content"]) {
        think(expected, text(&part["thinking"]));
        expected.text += text(&part["text"]);
    }
    think(expected, text(&message["tool_plan"]));
    for call in each(&message["tool_calls"]) {
        if let Some(id) = call["id"].as_str() {
            expected.tool_calls.push(ToolCall {
                id: id.into(),
                name: text(&call["function"]["name"]).into(),
                ..ToolCall::default()
            });
        }
        let last = expected.tool_calls.last_mut().unwrap();
        last.arguments += text(&call["function"]["arguments"]);
    }
    for citation in each(&message["citations"]) {
        for source in each(&citation["sources"]) {
            let document = &source["document"];
            let title = document["title"].as_str().or(source["id"].as_str());
            expected.citations.push(Source {
                url: document["url"].as_str().map(Into::into),
                title: title.map(Into::into),
                quote: citation["text"].as_str().map(Into::into),
            });
        }
    }
    expected.finish = match body["finish_reason"].as_str() {
        None => expected.finish,
        Some("COMPLETE" | "STOP_SEQUENCE") => Some(FinishReason::Stop),
        Some("MAX_TOKENS") => Some(FinishReason::Length),
        Some("TOOL_CALL") => Some(FinishReason::ToolCalls),
        Some(other) => panic!("{other}"),
    };
    let usage = &body["usage"];
    if usage.is_object() {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        expected.usage = Some(Usage {
            input_tokens: number(&usage["tokens"]["input_tokens"]),
            output_tokens: number(&usage["tokens"]["output_tokens"]),
            cached_input_tokens: number(&usage["cached_tokens"]),
            ..Usage::default()
        });
    }
}

fn compare(file: &Path, got: ChatResponse, expected: &ChatResponse) {
    let name = file.display();
    assert!(got.finish.is_some(), "{name}");
    assert!(got.id.is_some(), "{name}");
    // Whole, but for the id, which the walk above leaves to the line above.
    assert_eq!(ChatResponse { id: None, ..got }, *expected, "{name}");
}

#[test]
fn streams() {
    let files = of_cohere(".chunks.txt");
    for file in &files {
        let recording = fs::read_to_string(file).unwrap();
        let lines = recording.lines().filter(|line| !line.trim().is_empty());
        let mut expected = ChatResponse::default();
        let mut body = String::new();
        for line in lines {
            let event: Value = serde_json::from_str(line).unwrap();
            walk(&mut expected, &event["delta"]);
            let name = text(&event["type"]);
            body.push_str(&format!("event: {name}\ndata: {line}\n\n"));
        }
        for chunk in [1, 17, 4096, body.len()] {
            let decoding = decoding_of("cohere", "text/event-stream", 1 << 20);
            compare(file, collect(decoding, body.as_bytes(), chunk), &expected);
        }
    }
    println!("{} streams of Cohere", files.len());
    assert!(files.is_empty() || files.len() >= 4, "{files:?}");
}

#[test]
fn bodies() {
    let files = of_cohere(".json");
    let (mut chats, mut vectors) = (0, 0);
    for file in &files {
        if NO_CHAT.contains(&file.file_name().unwrap().to_str().unwrap()) {
            continue;
        }
        let recording = fs::read_to_string(file).unwrap();
        let document: Value = serde_json::from_str(&recording).unwrap();
        if document["embeddings"].is_object() {
            let wire = wire_of("cohere", "http://127.0.0.1");
            let got = wire.decode_embeddings(recording.as_bytes()).unwrap();
            let expected: Vec<Vec<f32>> =
                serde_json::from_value(document["embeddings"]["float"].clone()).unwrap();
            assert_eq!(got.vectors, expected);
            let billed = &document["meta"]["billed_units"]["input_tokens"];
            assert_eq!(got.input_tokens, billed.as_u64());
            vectors += 1;
            continue;
        }
        let mut expected = ChatResponse::default();
        walk(&mut expected, &document);
        let decoding = decoding_of("cohere", "application/json", 1 << 20);
        compare(
            file,
            collect(decoding, recording.as_bytes(), 1000),
            &expected,
        );
        chats += 1;
    }
    println!("{chats} bodies of Cohere, {vectors} with vectors");
    assert!(files.is_empty() || (chats >= 6 && vectors >= 1));
}
