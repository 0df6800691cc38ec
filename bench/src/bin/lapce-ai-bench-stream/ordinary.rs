//! Reading an event the ordinary way: serde's derive on owned types, one for each format, as most clients have them.

#![allow(
    dead_code,
    reason = "fields that a client would have, read and not looked at"
)]

use serde::Deserialize;

#[derive(Deserialize)]
struct ChatChunk {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    index: u32,
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
}

pub(super) fn chat_completions(data: &str) -> serde_json::Result<String> {
    if data == "[DONE]" {
        return Ok(String::new());
    }
    let chunk: ChatChunk = serde_json::from_str(data)?;
    let first = chunk.choices.into_iter().next();
    Ok(first
        .and_then(|choice| choice.delta.content)
        .unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum ResponseEvent {
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        sequence_number: u64,
        item_id: String,
        output_index: u32,
        content_index: u32,
        delta: String,
    },
    #[serde(other)]
    Other,
}

pub(super) fn responses(data: &str) -> serde_json::Result<String> {
    Ok(match serde_json::from_str(data)? {
        ResponseEvent::TextDelta { delta, .. } => delta,
        ResponseEvent::Other => String::new(),
    })
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum MessageEvent {
    ContentBlockDelta {
        index: u32,
        delta: BlockDelta,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockDelta {
    TextDelta {
        text: String,
    },
    #[serde(other)]
    Other,
}

pub(super) fn messages(data: &str) -> serde_json::Result<String> {
    Ok(match serde_json::from_str(data)? {
        MessageEvent::ContentBlockDelta {
            delta: BlockDelta::TextDelta { text },
            ..
        } => text,
        _ => String::new(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GeminiChunk {
    candidates: Vec<Candidate>,
    model_version: Option<String>,
    response_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    content: Option<GeminiContent>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct GeminiContent {
    parts: Vec<GeminiPart>,
    role: Option<String>,
}

#[derive(Deserialize)]
struct GeminiPart {
    text: Option<String>,
}

pub(super) fn gemini(data: &str) -> serde_json::Result<String> {
    let chunk: GeminiChunk = serde_json::from_str(data)?;
    let content = chunk
        .candidates
        .into_iter()
        .next()
        .and_then(|first| first.content);
    let part = content.and_then(|content| content.parts.into_iter().next());
    Ok(part.and_then(|part| part.text).unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum CohereEvent {
    ContentDelta {
        index: u32,
        delta: CohereDelta,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct CohereDelta {
    message: CohereMessage,
}

#[derive(Deserialize)]
struct CohereMessage {
    content: CohereContent,
}

#[derive(Deserialize)]
struct CohereContent {
    text: Option<String>,
    thinking: Option<String>,
}

pub(super) fn cohere(data: &str) -> serde_json::Result<String> {
    Ok(match serde_json::from_str(data)? {
        CohereEvent::ContentDelta { delta, .. } => delta.message.content.text.unwrap_or_default(),
        CohereEvent::Other => String::new(),
    })
}

#[derive(Deserialize)]
struct OllamaLine {
    model: String,
    created_at: String,
    message: OllamaMessage,
    done: bool,
    done_reason: Option<String>,
}

#[derive(Deserialize)]
struct OllamaMessage {
    role: String,
    content: String,
    thinking: Option<String>,
}

pub(super) fn ollama(data: &str) -> serde_json::Result<String> {
    let line: OllamaLine = serde_json::from_str(data)?;
    Ok(line.message.content)
}
