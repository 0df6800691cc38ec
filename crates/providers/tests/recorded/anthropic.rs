//! Anthropic's Messages API: streams, some of several answers one after another, and whole messages.

use std::fs;
use std::path::Path;

use lapce_ai_providers::ErrorKind;
use serde_json::Value;

use super::recorded;
use crate::anthropic_support::{accumulate, differs, read, sse};

/// Answers of the Skills API, which is no chat.
const NO_CHAT: [&str; 2] = [
    "skills--anthropic-skill-create.json",
    "skills--anthropic-skill-version-create.json",
];
/// The streams and messages known in November 2026. There may be more, but not fewer.
const STREAMS: usize = 50;
const MESSAGES: usize = 30;

/// Whether it lies in Anthropic's own folder; the format may be found in others, too.
fn is_anthropics(file: &Path) -> bool {
    file.parent()
        .is_some_and(|folder| folder.ends_with("anthropic"))
}

#[test]
fn streams_of_messages() {
    let (mut checked, mut spliced) = (0, 0);
    for file in recorded(".chunks.txt") {
        let name = file.display();
        let text = fs::read_to_string(&file).unwrap();
        if !text.starts_with("{\"type\":\"message_start\"") {
            assert!(
                !is_anthropics(&file),
                "{name} does not begin with message_start"
            );
            continue;
        }
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let events: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for answer in events.split_inclusive(|event| event["type"] == "message_stop") {
            let body = sse(answer);
            let ids = answer
                .iter()
                .filter_map(|event| event["message"]["id"].as_str());
            let mut ids: Vec<&str> = ids.collect();
            ids.dedup();
            for chunk in [1, 17, 4096, body.len()] {
                match read(true, body.as_bytes(), chunk) {
                    Ok(got) => assert_eq!(differs(&got, &accumulate(answer)), None, "{name}"),
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::MalformedResponse, "{name}");
                        assert!(ids.len() > 1, "{name}: {error}");
                    }
                }
            }
            spliced += usize::from(ids.len() > 1);
            checked += 1;
        }
    }
    println!("{checked} streams of messages, {spliced} of them of two at once");
    assert!(checked == 0 || checked >= STREAMS, "{checked}");
}

#[test]
fn whole_messages() {
    let (mut checked, mut other) = (0, Vec::new());
    for file in recorded(".json") {
        let text = fs::read_to_string(&file).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        if document["type"] != "message" {
            if is_anthropics(&file) {
                other.push(file.file_name().unwrap().to_str().unwrap().to_owned());
            }
            continue;
        }
        let got = read(false, text.as_bytes(), 1000).unwrap();
        assert_eq!(differs(&got, &document), None, "{}", file.display());
        checked += 1;
    }
    println!("{checked} whole messages");
    assert!(checked == 0 || checked >= MESSAGES, "{checked}");
    other.retain(|name| !NO_CHAT.contains(&name.as_str()));
    assert!(
        other.is_empty(),
        "neither a message nor known to be none: {other:?}"
    );
}
