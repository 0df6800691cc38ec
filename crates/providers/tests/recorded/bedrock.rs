//! What Bedrock sent. The recordings of streams are the events without their framing, each in an object with its type's
//! name, as SDKs show them.

use std::fs;
use std::path::{Path, PathBuf};

use lapce_ai_providers::{ChatResponse, Content};
use serde_json::Value;

use super::support::aws::{event, finish_reason, walk, walk_body};
use super::support::decoding_of;
use super::{collect, recorded};

const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

fn of_bedrock(extension: &str) -> Vec<PathBuf> {
    let mut files = recorded(extension);
    files.retain(|file| file.parent().unwrap().ends_with("amazon-bedrock"));
    assert!(matches!(files.len(), 0 | 12), "{}", files.len());
    files
}

fn compare(file: &Path, got: &ChatResponse, (expected, reason): &(ChatResponse, Option<String>)) {
    let name = file.display().to_string();
    assert_eq!(got.text, expected.text, "{name}");
    assert_eq!(got.thoughts, expected.thoughts, "{name}");
    assert_eq!(got.tool_calls, expected.tool_calls, "{name}");
    assert_eq!(got.usage, expected.usage, "{name}");
    let reason = finish_reason(reason.as_deref().unwrap());
    assert_eq!(got.finish, Some(reason), "{name}");
    // The walk has found what there is.
    assert!(!got.text.is_empty() || !got.tool_calls.is_empty(), "{name}");
    let signed = matches!(
        &got.thoughts[..],
        [Content::Reasoning {
            signature: Some(_),
            ..
        }]
    );
    assert_eq!(name.contains("reasoning"), signed, "{name}");
}

#[test]
fn streams() {
    for file in of_bedrock(".chunks.txt") {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let framed = events.iter().flat_map(|one| {
            let (name, payload) = one.as_object().unwrap().iter().next().unwrap();
            event(name, &payload.to_string())
        });
        let body: Vec<u8> = framed.collect();
        for chunk in [1, 17, 4096, body.len()] {
            let decoding = decoding_of("bedrock", EVENT_STREAM, 1 << 20);
            compare(&file, &collect(decoding, &body, chunk), &walk(&events));
        }
    }
}

#[test]
fn bodies() {
    for file in of_bedrock(".json") {
        if file.ends_with("reranking--amazon-bedrock-reranking.1.json") {
            // No chat: scores of documents.
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let decoding = decoding_of("bedrock", "application/json", 1 << 20);
        let mut got = collect(decoding, text.as_bytes(), 1000);
        for call in &mut got.tool_calls {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            call.arguments = arguments.to_string();
        }
        compare(
            &file,
            &got,
            &walk_body(&serde_json::from_str(&text).unwrap()),
        );
    }
}
