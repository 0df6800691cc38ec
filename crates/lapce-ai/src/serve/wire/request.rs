//! What is asked: from JSON to a chat request of the providers' terms.

use lapce_ai_proto::ai::{self, AIRequest, Content, Effort, Part, Role};
use lapce_ai_proto::{ErrorBody, ErrorCode};
use lapce_ai_providers as domain;
use lapce_ai_providers::ChatRequest;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// Reads a request's body.
pub(in crate::serve) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorBody> {
    serde_json::from_slice(body).map_err(|error| {
        // serde's own text ends with the same place, and may repeat a value of the request.
        invalid(format!(
            "the request's JSON is wrong at line {}, column {}: {error}",
            error.line(),
            error.column()
        ))
    })
}

pub(super) fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidRequest, message)
}

/// A chat request for `model`, by the name that the provider uses.
pub(in crate::serve) fn chat_request(
    request: AIRequest,
    model: String,
) -> Result<ChatRequest, ErrorBody> {
    if request.messages.is_empty() {
        return Err(invalid("messages is empty: a request needs at least one"));
    }
    let stream = request.wants_stream();
    let messages = request.messages.into_iter().enumerate();
    let tools = request.tools.unwrap_or_default().into_iter();
    let reasoning = request.reasoning.unwrap_or_default();
    let cache = request.cache_control.unwrap_or_default();
    Ok(ChatRequest {
        model,
        system: request.system_prompt,
        messages: messages
            .map(|(at, message)| self::message(at, message))
            .collect::<Result<_, _>>()?,
        tools: tools.map(tool).collect::<Result<_, _>>()?,
        tool_choice: request.tool_choice.map(tool_choice),
        parallel_tool_calls: request.parallel_tool_calls,
        response_format: match request.response_format {
            None => None,
            Some(format) => response_format(format)?,
        },
        temperature: request.temperature,
        top_p: request.top_p,
        max_tokens: request.max_tokens,
        stop: request.stop.unwrap_or_default(),
        seed: request.seed,
        reasoning: reasoning.effort.map(effort),
        reasoning_budget: reasoning.budget_tokens,
        cache_system: cache.system_prompt.unwrap_or(false),
        cache_tools: cache.tools.unwrap_or(false),
        user: request.user,
        metadata: request.metadata.unwrap_or_default(),
        stream,
    })
}

fn message(at: usize, message: ai::Message) -> Result<domain::Message, ErrorBody> {
    let role = match message.role {
        Role::System => domain::Role::System,
        Role::User => domain::Role::User,
        Role::Assistant => domain::Role::Assistant,
        Role::Tool => domain::Role::Tool,
    };
    if role == domain::Role::Tool && message.tool_call_id.is_none() {
        return Err(invalid(format!(
            "messages[{at}] has role \"tool\" and no toolCallId"
        )));
    }
    let mut content = Vec::new();
    match message.content {
        Content::Text(text) if text.is_empty() => {}
        Content::Text(text) => content.push(domain::Content::Text(text)),
        Content::Parts(parts) => {
            for part in parts {
                let (part, marked) = self::part(at, role, part)?;
                content.push(part);
                if marked {
                    content.push(domain::Content::CachePoint);
                }
            }
        }
    }
    let calls = message.tool_calls.unwrap_or_default().into_iter();
    Ok(domain::Message {
        role,
        content,
        tool_calls: calls.map(call).collect(),
        tool_call_id: message.tool_call_id,
    })
}

/// A part, and whether the provider may cache the conversation up to its end.
fn part(at: usize, role: domain::Role, part: Part) -> Result<(domain::Content, bool), ErrorBody> {
    let thought = matches!(
        part,
        Part::Reasoning { .. } | Part::RedactedReasoning { .. }
    );
    if thought && role != domain::Role::Assistant {
        return Err(invalid(format!(
            "messages[{at}]: only the assistant has thoughts"
        )));
    }
    Ok(match part {
        Part::Text {
            text,
            cache_control,
        } => (domain::Content::Text(text), cache_control.unwrap_or(false)),
        Part::Image {
            media_type,
            data,
            url,
            detail,
            cache_control,
        } => {
            let source = match (media_type, data, url) {
                (Some(media_type), Some(data), None) => {
                    domain::ImageSource::Base64 { media_type, data }
                }
                (_, None, Some(url)) => domain::ImageSource::Url(url),
                _ => {
                    return Err(invalid(format!(
                        "messages[{at}]: an image has either mediaType and data, or url"
                    )));
                }
            };
            let image = domain::Image {
                source,
                detail: detail.map(image_detail),
            };
            (
                domain::Content::Image(image),
                cache_control.unwrap_or(false),
            )
        }
        Part::Reasoning { text, signature } => {
            (domain::Content::Reasoning { text, signature }, false)
        }
        Part::RedactedReasoning { data } => (domain::Content::RedactedReasoning(data), false),
    })
}

fn image_detail(detail: ai::ImageDetail) -> domain::ImageDetail {
    match detail {
        ai::ImageDetail::Auto => domain::ImageDetail::Auto,
        ai::ImageDetail::Low => domain::ImageDetail::Low,
        ai::ImageDetail::High => domain::ImageDetail::High,
    }
}

fn call(call: ai::ToolCall) -> domain::ToolCall {
    domain::ToolCall {
        id: call.id,
        name: call.name,
        arguments: match call.parameters {
            // What a model wrote and was no JSON, see `response`.
            Value::String(text) => text,
            parameters => parameters.to_string(),
        },
        signature: call.signature,
    }
}

fn tool(tool: ai::Tool) -> Result<domain::Tool, ErrorBody> {
    Ok(domain::Tool {
        name: tool.name,
        description: tool.description,
        parameters: Some(raw(&tool.parameters)?),
        strict: tool.strict,
    })
}

fn tool_choice(choice: ai::ToolChoice) -> domain::ToolChoice {
    match choice {
        ai::ToolChoice::Auto => domain::ToolChoice::Auto,
        ai::ToolChoice::None => domain::ToolChoice::None,
        ai::ToolChoice::Required => domain::ToolChoice::Required,
        ai::ToolChoice::Named { name } => domain::ToolChoice::Tool(name),
    }
}

fn response_format(
    format: ai::ResponseFormat,
) -> Result<Option<domain::ResponseFormat>, ErrorBody> {
    Ok(match format {
        ai::ResponseFormat::Text => None,
        ai::ResponseFormat::JsonObject => Some(domain::ResponseFormat::JsonObject),
        ai::ResponseFormat::JsonSchema {
            name,
            schema,
            strict,
        } => Some(domain::ResponseFormat::JsonSchema {
            name,
            schema: raw(&schema)?,
            strict,
        }),
    })
}

fn raw(value: &Value) -> Result<Box<RawValue>, ErrorBody> {
    to_raw_value(value).map_err(|error| invalid(error.to_string()))
}

fn effort(effort: Effort) -> domain::ReasoningEffort {
    match effort {
        Effort::None => domain::ReasoningEffort::None,
        Effort::Minimal => domain::ReasoningEffort::Minimal,
        Effort::Low => domain::ReasoningEffort::Low,
        Effort::Medium => domain::ReasoningEffort::Medium,
        Effort::High => domain::ReasoningEffort::High,
        Effort::ExtraHigh => domain::ReasoningEffort::ExtraHigh,
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_providers::ReasoningEffort;
    use serde_json::json;

    use super::*;

    fn request(json: &Value) -> Result<ChatRequest, ErrorBody> {
        chat_request(
            serde_json::from_value(json.clone()).unwrap(),
            "m".to_owned(),
        )
    }

    #[test]
    fn a_request_arrives_whole() {
        let chat = request(&json!({
            "model": "p/m", "systemPrompt": "s", "temperature": 0.5, "maxTokens": 9, "topP": 0.9, "stop": ["x"],
            "seed": -3, "stream": false, "metadata": {"a": "b"}, "toolChoice": {"name": "add"}, "user": "u",
            "reasoning": {"effort": "xhigh", "budgetTokens": 77}, "parallelToolCalls": false,
            "cacheControl": {"systemPrompt": true, "tools": true},
            "responseFormat": {"type": "jsonSchema", "name": "n", "schema": {"z": 1, "a": 2}, "strict": true},
            "tools": [{"name": "add", "description": "d", "parameters": {"type": "object", "a": 1}, "strict": true}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "see", "cacheControl": true},
                    {"type": "image", "url": "https://x/y", "detail": "low"},
                    {"type": "image", "mediaType": "image/png", "data": "AA==", "cacheControl": true}]},
                {"role": "assistant", "content": [{"type": "reasoning", "text": "hm", "signature": "sig"},
                    {"type": "redactedReasoning", "data": "enc"}], "toolCalls": [
                    {"id": "1", "name": "add", "parameters": {"z": 1, "a": 2}, "signature": "proof"},
                    {"id": "2", "name": "add", "parameters": "{bad"}]},
                {"role": "tool", "content": "4", "toolCallId": "1"},
                {"role": "assistant", "content": ""},
            ],
        }))
        .unwrap();
        assert_eq!(
            (chat.model.as_str(), chat.system.as_deref(), chat.stream),
            ("m", Some("s"), false)
        );
        assert_eq!(
            (chat.temperature, chat.top_p, chat.max_tokens, chat.seed),
            (Some(0.5), Some(0.9), Some(9), Some(-3))
        );
        assert_eq!(
            (chat.cache_system, chat.cache_tools, chat.user.as_deref()),
            (true, true, Some("u"))
        );
        assert_eq!(
            (chat.stop.len(), chat.parallel_tool_calls),
            (1, Some(false))
        );
        assert_eq!(
            chat.tool_choice,
            Some(domain::ToolChoice::Tool("add".into()))
        );
        assert_eq!(
            (chat.reasoning, chat.reasoning_budget),
            (Some(ReasoningEffort::ExtraHigh), Some(77))
        );
        assert_eq!(chat.metadata["a"], "b");
        let tool = &chat.tools[0];
        assert_eq!(
            (tool.parameters.as_ref().unwrap().get(), tool.strict),
            (r#"{"type":"object","a":1}"#, Some(true))
        );
        let Some(domain::ResponseFormat::JsonSchema {
            schema,
            strict: Some(true),
            ..
        }) = &chat.response_format
        else {
            panic!()
        };
        assert_eq!(schema.get(), r#"{"z":1,"a":2}"#, "in the caller's order");
        let image = |source, detail| domain::Content::Image(domain::Image { source, detail });
        assert_eq!(
            chat.messages[0].content,
            [
                domain::Content::Text("see".into()),
                domain::Content::CachePoint,
                image(
                    domain::ImageSource::Url("https://x/y".into()),
                    Some(domain::ImageDetail::Low)
                ),
                image(
                    domain::ImageSource::Base64 {
                        media_type: "image/png".into(),
                        data: "AA==".into()
                    },
                    None
                ),
                domain::Content::CachePoint,
            ]
        );
        assert_eq!(
            chat.messages[1].content,
            [
                domain::Content::Reasoning {
                    text: "hm".into(),
                    signature: Some("sig".into())
                },
                domain::Content::RedactedReasoning("enc".into()),
            ]
        );
        let calls = &chat.messages[1].tool_calls;
        assert_eq!(calls[0].arguments, r#"{"z":1,"a":2}"#);
        assert_eq!(calls[0].signature.as_deref(), Some("proof"));
        assert_eq!(calls[1].arguments, "{bad");
        assert_eq!(chat.messages[2].tool_call_id.as_deref(), Some("1"));
        assert!(chat.messages[3].content.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let user =
            |part: Value| json!({"model": "", "messages": [{"role": "user", "content": [part]}]});
        let both = json!({"type": "image", "url": "u", "mediaType": "image/png", "data": ""});
        for (json, part) in [
            (json!({"model": "", "messages": []}), "messages is empty"),
            (
                json!({"model": "", "messages": [{"role": "tool", "content": "x"}]}),
                "messages[0] has role \"tool\"",
            ),
            (user(json!({"type": "image"})), "an image has either"),
            (user(both), "an image has either"),
            (
                user(json!({"type": "reasoning", "text": "x"})),
                "only the assistant has thoughts",
            ),
        ] {
            let error = request(&json).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(part), "{error}");
        }
        let error = parse::<AIRequest>(b"{\"messages\": [],\n \"model\": 5}").unwrap_err();
        assert!(error.message.contains("line 2, column 11"), "{error}");
    }
}
