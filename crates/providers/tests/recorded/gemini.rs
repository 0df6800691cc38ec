//! What Gemini really sent, from AI Studio and from Vertex AI.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lapce_ai_providers::{ChatResponse, Content, ErrorKind, FinishReason, ToolCall, Usage};
use serde_json::{Map, Value, json};

use super::support::{decoding_of, wire_of};
use super::{collect, recorded};

/// What the documents say, read the slow and plain way.
fn walk(documents: &[Value]) -> ChatResponse {
    let mut expected = ChatResponse::default();
    let mut arguments: Vec<Value> = Vec::new();
    let mut usage = Map::new();
    let mut stopped = false;
    for document in documents {
        expected.id = document["responseId"].as_str().map(Into::into);
        expected.model = document["modelVersion"].as_str().map(Into::into);
        if let Some(counts) = document["usageMetadata"].as_object() {
            usage.extend(counts.clone());
        }
        let candidate = &document["candidates"][0];
        stopped |= candidate["finishReason"] == "STOP";
        for part in candidate["content"]["parts"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = part["text"].as_str().unwrap_or_default();
            let signature = part["thoughtSignature"].as_str().map(String::from);
            if part["thought"] == true {
                expected.thoughts.push(Content::Reasoning {
                    text: text.into(),
                    signature,
                });
            } else if let Some(call) = part.get("functionCall") {
                if let Some(name) = call["name"].as_str() {
                    expected.tool_calls.push(ToolCall {
                        name: name.into(),
                        signature,
                        ..ToolCall::default()
                    });
                    arguments.push(call.get("args").cloned().unwrap_or(json!({})));
                }
                for piece in call["partialArgs"].as_array().into_iter().flatten() {
                    put(arguments.last_mut().unwrap(), piece);
                }
            } else {
                expected.text += text;
                if let Some(signature) = signature {
                    let thought = Content::RedactedReasoning(signature);
                    expected.thoughts.push(thought);
                }
            }
        }
    }
    for (call, arguments) in expected.tool_calls.iter_mut().zip(arguments) {
        call.arguments = arguments.to_string();
    }
    let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    expected.usage = Some(Usage {
        input_tokens: count("promptTokenCount"),
        output_tokens: count("candidatesTokenCount") + count("thoughtsTokenCount"),
        reasoning_tokens: count("thoughtsTokenCount"),
        ..Usage::default()
    });
    assert_eq!(
        count("totalTokenCount"),
        count("promptTokenCount") + count("candidatesTokenCount") + count("thoughtsTokenCount")
    );
    assert!(stopped);
    expected.finish = Some(if expected.tool_calls.is_empty() {
        FinishReason::Stop
    } else {
        FinishReason::ToolCalls
    });
    expected
}

/// Puts a piece of arguments in its place, by way of a JSON pointer.
fn put(arguments: &mut Value, piece: &Value) {
    let path = piece["jsonPath"].as_str().unwrap();
    let pointer = path.replace("$.", ".").replace('[', ".").replace(']', "");
    let mut place = arguments;
    for step in pointer.split('.').skip(1) {
        place = match step.parse::<usize>() {
            Ok(index) => {
                if place.is_null() {
                    *place = json!([]);
                }
                let list = place.as_array_mut().unwrap();
                if list.len() == index {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            Err(_) => {
                if place.is_null() {
                    *place = json!({});
                }
                &mut place[step]
            }
        };
    }
    if let Some(more) = piece["stringValue"].as_str() {
        let text = place.as_str().unwrap_or_default().to_owned() + more;
        *place = text.into();
    } else if let Some(number) = piece.get("numberValue") {
        *place = number.clone();
    } else {
        panic!("{piece}");
    }
}

/// As [`collect`], with each call's arguments in one form and without the ids that were made for them.
fn read(content_type: &str, body: &str, chunk: usize) -> ChatResponse {
    let decoding = decoding_of("gemini", content_type, 1 << 20);
    let mut got = collect(decoding, body.as_bytes(), chunk);
    for (at, call) in got.tool_calls.iter_mut().enumerate() {
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
        call.arguments = arguments.to_string();
        let id = std::mem::take(&mut call.id);
        assert_eq!(id, format!("gemini_{}_{at}", got.id.as_deref().unwrap()));
    }
    got
}

fn ours(extension: &str) -> Vec<std::path::PathBuf> {
    let mut files = recorded(extension);
    files.retain(|file| {
        let folder = file.parent().and_then(Path::file_name).unwrap();
        folder == "google" || folder == "google-vertex"
    });
    files
}

#[test]
fn streams_of_gemini() {
    let files = ours(".chunks.txt");
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let documents: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let expected = walk(&documents);
        let events: String = lines
            .iter()
            .map(|line| format!("data: {line}\r\n\r\n"))
            .collect();
        for chunk in [1, 17, 4096, events.len()] {
            let got = read("text/event-stream", &events, chunk);
            assert_eq!(got, expected, "{}", file.display());
        }
        // The other form of a stream.
        let array = format!("[{}\n]", lines.join("\n,\r\n"));
        let got = read("application/json; charset=UTF-8", &array, 100);
        assert_eq!(got, expected, "{}", file.display());
    }
    println!("{} streams", files.len());
    assert!(files.is_empty() || files.len() >= 9, "{}", files.len());
}

#[test]
fn bodies_of_gemini() {
    let (mut chats, mut others) = (0, Vec::new());
    for file in ours(".json") {
        let text = fs::read_to_string(&file).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        if document.get("candidates").is_none() {
            others.push(file.file_name().unwrap().to_string_lossy().into_owned());
            continue;
        }
        let got = read("application/json", &text, 1000);
        assert_eq!(got, walk(&[document]), "{}", file.display());
        chats += 1;
    }
    println!("{chats} bodies");
    others.sort();
    // An error, and vectors: see the tests below.
    let known = ["google-429-retry-info.json", "google-vertex-embedding.json"];
    assert!(
        chats == 0 || (chats >= 5 && others == known),
        "{chats} {others:?}"
    );
}

#[test]
fn the_error_of_gemini() {
    for file in ours("google-429-retry-info.json") {
        let body = fs::read(file).unwrap();
        let head = http::Response::builder().status(429).body(()).unwrap();
        let wire = wire_of("gemini", "http://127.0.0.1");
        let error = wire.decode_error(&head.into_parts().0, &body, SystemTime::now());
        // Its message speaks of a quota, but the quota is one of a minute.
        assert_eq!(error.kind, ErrorKind::RateLimited);
        assert_eq!(error.retry_after, Some(Duration::from_millis(34_400)));
        assert_eq!(error.code.as_deref(), Some("RESOURCE_EXHAUSTED"));
    }
}

#[test]
fn the_vectors_of_vertex() {
    for file in ours("google-vertex-embedding.json") {
        let body = fs::read(file).unwrap();
        let document: Value = serde_json::from_slice(&body).unwrap();
        let got = wire_of("vertex", "http://127.0.0.1")
            .decode_embeddings(&body)
            .unwrap();
        let predictions = document["predictions"].as_array().unwrap();
        for (vector, expected) in got.vectors.iter().zip(predictions) {
            let expected: Vec<f32> =
                serde_json::from_value(expected["embeddings"]["values"].clone()).unwrap();
            assert_eq!(*vector, expected);
        }
        assert_eq!((got.vectors.len(), got.input_tokens), (2, Some(11)));
    }
}
