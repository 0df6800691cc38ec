//! AWS's event stream, written for the tests, and what Bedrock's answers say, read the plain way.

use lapce_ai_providers::{
    ChatResponse, Content, Event, FinishReason, HeaderValue, Source, ToolCall, Usage,
};
use serde_json::Value;

/// A message with these headers and payload.
pub fn message(headers: &[(&str, HeaderValue<'_>)], payload: &[u8]) -> Vec<u8> {
    let head: Vec<u8> = headers
        .iter()
        .flat_map(|(name, value)| header(name, *value))
        .collect();
    framed(&head, payload)
}

/// A message with these bytes for its headers: right lengths and sums, whatever the headers are.
pub fn framed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let total = 12 + head.len() + payload.len() + 4;
    prelude(total as u32, head.len() as u32, head, payload)
}

/// A message that claims these lengths, with right sums.
pub fn prelude(total: u32, headers: u32, head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = total.to_be_bytes().to_vec();
    bytes.extend_from_slice(&headers.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

pub fn header(name: &str, value: HeaderValue<'_>) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let (kind, value) = match value {
        HeaderValue::Bool(value) => (u8::from(!value), Vec::new()),
        HeaderValue::Byte(value) => (2, value.to_be_bytes().into()),
        HeaderValue::Short(value) => (3, value.to_be_bytes().into()),
        HeaderValue::Int(value) => (4, value.to_be_bytes().into()),
        HeaderValue::Long(value) => (5, value.to_be_bytes().into()),
        HeaderValue::Bytes(value) => (6, with_length(value)),
        HeaderValue::String(value) => (7, with_length(value.as_bytes())),
        HeaderValue::Timestamp(value) => (8, value.to_be_bytes().into()),
        HeaderValue::Uuid(value) => (9, value.into()),
    };
    bytes.push(kind);
    bytes.extend_from_slice(&value);
    bytes
}

/// An event as Bedrock sends it; `!` before its type makes it an exception.
pub fn event(name: &str, payload: &str) -> Vec<u8> {
    let (kind, of_kind, name) = match name.strip_prefix('!') {
        Some(name) => ("exception", ":exception-type", name),
        None => ("event", ":event-type", name),
    };
    message(
        &[
            (of_kind, HeaderValue::String(name)),
            (":content-type", HeaderValue::String("application/json")),
            (":message-type", HeaderValue::String(kind)),
        ],
        payload.as_bytes(),
    )
}

/// A stream, one event a line: its type and its payload.
pub fn stream(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .flat_map(|line| {
            let (name, payload) = line.split_once(' ').unwrap();
            event(name, payload.trim())
        })
        .collect()
}

/// The events of an answer added up, each in an object with its type's name, and why the answer ended. Tool calls are
/// known by their blocks.
pub fn walk(events: &[Value]) -> (ChatResponse, Option<String>) {
    let (mut response, mut reason, mut blocks) = (ChatResponse::default(), None, Vec::new());
    for event in events {
        let start = &event["contentBlockStart"];
        let used = &start["start"]["toolUse"];
        if used.is_object() && used["type"].is_null() {
            blocks.push(start["contentBlockIndex"].as_u64().unwrap());
            response.tool_calls.push(call(used, String::new()));
        }
        let index = event["contentBlockDelta"]["contentBlockIndex"].as_u64();
        let delta = &event["contentBlockDelta"]["delta"];
        let at = blocks.iter().position(|block| Some(*block) == index);
        if let (Some(at), Some(input)) = (at, delta["toolUse"]["input"].as_str()) {
            response.tool_calls[at].arguments += input;
        }
        response.text += delta["text"].as_str().unwrap_or("");
        think(&mut response, &delta["reasoningContent"]);
        cite(&mut response, &delta["citation"]);
        if let Some(stop) = event["messageStop"]["stopReason"].as_str() {
            reason = Some(stop.to_owned());
        }
        response.usage = usage(&event["metadata"]["usage"]).or(response.usage);
    }
    (response, reason)
}

/// The same of a whole answer. The arguments of tool calls have no white space that says nothing.
pub fn walk_body(body: &Value) -> (ChatResponse, Option<String>) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut response = ChatResponse::default();
    for block in list(&body["output"]["message"]["content"]) {
        response.text += block["text"].as_str().unwrap_or("");
        let used = &block["toolUse"];
        if used.is_object() && used["type"].is_null() {
            response
                .tool_calls
                .push(call(used, used["input"].to_string()));
        }
        think(&mut response, &block["reasoningContent"]["reasoningText"]);
        think(&mut response, &block["reasoningContent"]);
        for piece in list(&block["citationsContent"]["content"]) {
            response.text += piece["text"].as_str().unwrap();
        }
        for cited in list(&block["citationsContent"]["citations"]) {
            cite(&mut response, &cited);
        }
    }
    response.usage = usage(&body["usage"]);
    (response, body["stopReason"].as_str().map(Into::into))
}

pub fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "tool_use" => FinishReason::ToolCalls,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "guardrail_intervened" | "content_filtered" => FinishReason::ContentFilter,
        _ => FinishReason::Unknown,
    }
}

fn call(used: &Value, arguments: String) -> ToolCall {
    ToolCall {
        id: used["toolUseId"].as_str().unwrap().into(),
        name: used["name"].as_str().unwrap().into(),
        arguments,
        signature: None,
    }
}

fn think(response: &mut ChatResponse, thought: &Value) {
    let text = thought["text"].as_str().unwrap_or("");
    let signature = thought["signature"].as_str();
    if !text.is_empty() || signature.is_some() {
        response.add(Event::Reasoning { text, signature });
    }
    // botocore knows it for bytes.
    let data = &thought["redactedContent"];
    if let Some(data) = data["bytes"].as_str().or(data.as_str()) {
        let redacted = Content::RedactedReasoning(data.into());
        response.thoughts.push(redacted);
    }
}

fn cite(response: &mut ChatResponse, cited: &Value) {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let quotes = cited["sourceContent"].as_array().into_iter().flatten();
    let quote: String = quotes.filter_map(|piece| piece["text"].as_str()).collect();
    let source = Source {
        url: text(&cited["location"]["web"]["url"]).or(text(&cited["source"])),
        title: text(&cited["title"]),
        quote: Some(quote).filter(|quote| !quote.is_empty()),
    };
    if source != Source::default() {
        response.citations.push(source);
    }
}

fn usage(usage: &Value) -> Option<Usage> {
    let number = |name: &str| usage[name].as_u64().unwrap_or(0);
    let (read, written) = (
        number("cacheReadInputTokens"),
        number("cacheWriteInputTokens"),
    );
    usage.is_object().then(|| Usage {
        input_tokens: number("totalTokens") - number("outputTokens"),
        output_tokens: number("outputTokens"),
        cached_input_tokens: read,
        cache_write_tokens: written,
        reasoning_tokens: 0,
    })
}
