//! Anthropic's messages read the slow and plain way, and compared with what our decoder makes of the same.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use lapce_ai_providers::{ChatResponse, Content, FinishReason, ProviderError, Source, Usage};
use serde_json::{Value, json};

use crate::support::decoding_of;

/// What our decoder makes of an answer that comes in pieces of `chunk` bytes.
pub fn read(stream: bool, body: &[u8], chunk: usize) -> Result<ChatResponse, ProviderError> {
    let media_type = if stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    let mut decoding = decoding_of("anthropic", media_type, 1 << 20);
    let mut response = ChatResponse::default();
    let mut chunks = body.chunks(chunk);
    loop {
        while let Some(event) = decoding.next() {
            response.add(event?);
        }
        match chunks.next() {
            Some(chunk) => decoding.push(chunk),
            None if decoding.is_ended() => return Ok(response),
            None => decoding.finish(),
        }
    }
}

/// Events as a stream, each under its name.
pub fn sse(events: &[Value]) -> String {
    let one = |event: &Value| {
        let name = event["type"].as_str().unwrap();
        format!("event: {name}\ndata: {event}\n\n")
    };
    events.iter().map(one).collect()
}

/// The message that the events of a stream make up.
pub fn accumulate(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let mut inputs = Vec::new();
    for event in events {
        let at = usize::try_from(event["index"].as_u64().unwrap_or(0)).unwrap();
        let delta = &event["delta"];
        let append = |place: &mut Value, more: &Value| {
            *place = json!(place.as_str().unwrap_or("").to_owned() + more.as_str().unwrap());
        };
        match event["type"].as_str().unwrap() {
            "message_start" if message.is_null() => message = event["message"].clone(),
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(content.len(), at);
                content.push(event["content_block"].clone());
                inputs.push(String::new());
            }
            "content_block_delta" => {
                let block = &mut message["content"][at];
                match delta["type"].as_str().unwrap() {
                    "text_delta" => append(&mut block["text"], &delta["text"]),
                    "thinking_delta" => append(&mut block["thinking"], &delta["thinking"]),
                    "signature_delta" => block["signature"] = delta["signature"].clone(),
                    "input_json_delta" => inputs[at] += delta["partial_json"].as_str().unwrap(),
                    "citations_delta" => {
                        if block["citations"].is_null() {
                            block["citations"] = json!([]);
                        }
                        let citations = block["citations"].as_array_mut().unwrap();
                        citations.push(delta["citation"].clone());
                    }
                    _ => {}
                }
            }
            "content_block_stop" if !inputs[at].is_empty() => {
                message["content"][at]["input"] = serde_json::from_str(&inputs[at]).unwrap();
            }
            "message_delta" => {
                for place in ["stop_reason", "stop_details"] {
                    message[place] = delta[place].clone();
                }
                for (name, count) in event["usage"].as_object().unwrap() {
                    if !count.is_null() {
                        message["usage"][name] = count.clone();
                    }
                }
            }
            _ => {}
        }
    }
    message
}

/// Whether `got` says what `message` does; if not, where it differs.
pub fn differs(got: &ChatResponse, message: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut expected = ChatResponse {
        id: text(&message["id"]),
        model: text(&message["model"]),
        ..ChatResponse::default()
    };
    let mut inputs = Vec::new();
    for block in message["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => {
                expected.text += block["text"].as_str().unwrap();
                for cited in block["citations"].as_array().into_iter().flatten() {
                    let source = Source {
                        url: text(&cited["url"]).or(text(&cited["source"])),
                        title: text(&cited["title"]).or(text(&cited["document_title"])),
                        quote: text(&cited["cited_text"]),
                    };
                    // Kinds that are yet to come say nothing.
                    if source != Source::default() {
                        expected.citations.push(source);
                    }
                }
            }
            "thinking" => expected.thoughts.push(Content::Reasoning {
                text: text(&block["thinking"]).unwrap(),
                signature: text(&block["signature"]).filter(|signature| !signature.is_empty()),
            }),
            "redacted_thinking" => {
                let data = text(&block["data"]).unwrap();
                expected.thoughts.push(Content::RedactedReasoning(data));
            }
            "tool_use" => {
                expected.tool_calls.push(lapce_ai_providers::ToolCall {
                    id: text(&block["id"]).unwrap(),
                    name: text(&block["name"]).unwrap(),
                    ..lapce_ai_providers::ToolCall::default()
                });
                inputs.push(&block["input"]);
            }
            _ => {}
        }
    }
    if message["stop_reason"] == "refusal" && expected.text.is_empty() {
        expected.text = text(&message["stop_details"]["explanation"]).unwrap_or_default();
    }
    let usage = &message["usage"];
    let count = |place: &str| usage.pointer(place).and_then(Value::as_u64).unwrap_or(0);
    let (written, cached) = (
        count("/cache_creation_input_tokens"),
        count("/cache_read_input_tokens"),
    );
    if usage.get("output_tokens").is_some_and(Value::is_u64) {
        expected.usage = Some(Usage {
            input_tokens: count("/input_tokens") + written + cached,
            output_tokens: count("/output_tokens"),
            cached_input_tokens: cached,
            cache_write_tokens: written,
            reasoning_tokens: count("/output_tokens_details/thinking_tokens"),
        });
    }
    expected.finish = Some(match message["stop_reason"].as_str() {
        Some("end_turn" | "stop_sequence") => FinishReason::Stop,
        Some("max_tokens" | "model_context_window_exceeded") => FinishReason::Length,
        Some("tool_use") => FinishReason::ToolCalls,
        Some("refusal") => FinishReason::Refusal,
        None if !inputs.is_empty() => FinishReason::ToolCalls,
        _ => FinishReason::Unknown,
    });
    // The text of arguments may differ in its spaces.
    let mut got = got.clone();
    for (call, input) in got.tool_calls.iter_mut().zip(inputs) {
        let arguments = std::mem::take(&mut call.arguments);
        if serde_json::from_str::<Value>(&arguments).ok().as_ref() != Some(input) {
            return Some(format!("the arguments are {arguments}, not {input}"));
        }
    }
    (got != expected).then(|| format!("got {got:#?}\nnot {expected:#?}"))
}
