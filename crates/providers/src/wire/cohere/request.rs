//! The body of a chat request.
//!
//! Source: <https://docs.cohere.com/v2/reference/chat>.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::chat::{
    ChatRequest, Content, Message, ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};
use crate::error::ProviderError;
use crate::wire::request::{
    FunctionTool, ImageUrl, cannot_say, check, invalid, texts, thoughts, to_json,
};

#[derive(Serialize)]
struct Body<'a> {
    stream: bool,
    model: &'a str,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<FunctionTool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict_tools: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Format<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_schema: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Thinking {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_budget: Option<u32>,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Said<'a>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    tool_plan: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Said<'a> {
    Text(String),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: &'a str },
    Thinking { thinking: &'a str },
    ImageUrl { image_url: ImageUrl<'a> },
    Document { document: Document<'a> },
}

#[derive(Serialize)]
struct Document<'a> {
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Called<'a>,
}

#[derive(Serialize)]
struct Called<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// Writes the body of `request`.
pub(super) fn body(request: &ChatRequest) -> Result<Vec<u8>, ProviderError> {
    check(request)?;
    let (tools, tool_choice) = choose(request)?;
    if request.response_format.is_some() && !tools.is_empty() {
        return Err(cannot_say(
            "Cohere holds an answer to JSON only where there are no tools; leave one of the two out",
        ));
    }
    let strict = |tool: &&Tool| tool.strict == Some(true);
    to_json(&Body {
        stream: request.stream,
        model: &request.model,
        messages: turns(request)?,
        // It is for all tools or for none.
        strict_tools: (!tools.is_empty() && tools.iter().all(strict)).then_some(true),
        tools: tools.into_iter().map(Into::into).collect(),
        tool_choice,
        response_format: request.response_format.as_ref().map(|format| Format {
            r#type: "json_object",
            json_schema: match format {
                ResponseFormat::JsonObject => None,
                ResponseFormat::JsonSchema { schema, .. } => Some(schema),
            },
        }),
        max_tokens: request.max_tokens,
        stop_sequences: &request.stop,
        temperature: request.temperature,
        // More and less are refused; 1, for all tokens, is what other providers take.
        p: request.top_p.map(|p| p.clamp(0.01, 0.99)),
        seed: request.seed,
        thinking: request.budget().map(|tokens| Thinking {
            r#type: if tokens == 0 { "disabled" } else { "enabled" },
            token_budget: (tokens > 0).then_some(tokens),
        }),
    })
}

/// The tools to offer, and whether one must be called. A certain one is forced by offering no other.
fn choose(request: &ChatRequest) -> Result<(Vec<&Tool>, Option<&'static str>), ProviderError> {
    let all: Vec<_> = request.tools.iter().collect();
    if all.is_empty() {
        return Ok((all, None));
    }
    Ok(match &request.tool_choice {
        None | Some(ToolChoice::Auto) => (all, None),
        Some(ToolChoice::None) => (all, Some("NONE")),
        Some(ToolChoice::Required) => (all, Some("REQUIRED")),
        Some(ToolChoice::Tool(name)) => {
            let only: Vec<_> = all.into_iter().filter(|tool| tool.name == *name).collect();
            if only.is_empty() {
                return Err(invalid(format!(
                    "`{name}` must be called, and is no tool of the request"
                )));
            }
            (only, Some("REQUIRED"))
        }
    })
}

fn turns(request: &ChatRequest) -> Result<Vec<Turn<'_>>, ProviderError> {
    let mut turns = Vec::new();
    // "system turn must be the first in the list": what is said later goes there, too.
    let later = request
        .messages
        .iter()
        .filter(|message| message.role == Role::System);
    let system: Vec<&str> = request
        .system
        .iter()
        .map(String::as_str)
        .chain(later.flat_map(texts))
        .collect();
    if !system.is_empty() {
        turns.push(Turn::new("system", Some(Said::Text(system.join("\n\n")))));
    }
    for message in &request.messages {
        let image = |content: &Content| matches!(content, Content::Image(_));
        if message.role != Role::User && message.content.iter().any(image) {
            return Err(cannot_say("Cohere takes images in user messages only"));
        }
        match message.role {
            Role::System => {}
            Role::User => turns.push(Turn::new("user", Some(said(message, false)))),
            Role::Assistant => turns.push(assistant(message)),
            Role::Tool => turns.push(Turn {
                tool_call_id: message.tool_call_id.as_deref(),
                ..Turn::new("tool", Some(results(message)))
            }),
        }
    }
    Ok(turns)
}

impl<'a> Turn<'a> {
    fn new(role: &'static str, content: Option<Said<'a>>) -> Self {
        Self {
            role,
            content,
            tool_plan: String::new(),
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// What was thought before calls goes back as their plan: the models' template has one place for both, and models that
/// do not reason know only the plan.
fn assistant(message: &Message) -> Turn<'_> {
    let calls = !message.tool_calls.is_empty();
    let silent = calls && texts(message).all(str::is_empty);
    let content = (!silent).then(|| said(message, !calls));
    Turn {
        tool_plan: if calls {
            thoughts(message)
        } else {
            String::new()
        },
        tool_calls: message.tool_calls.iter().map(call).collect(),
        ..Turn::new("assistant", content)
    }
}

/// A lone text as a string, else the parts.
fn said(message: &Message, thinking: bool) -> Said<'_> {
    let parts = message.content.iter().filter_map(|content| match content {
        Content::Text(text) => Some(Part::Text { text }),
        Content::Image(image) => Some(Part::ImageUrl {
            image_url: image.into(),
        }),
        Content::Reasoning { text, .. } if thinking && !text.is_empty() => {
            Some(Part::Thinking { thinking: text })
        }
        _ => None,
    });
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [] => Said::Text(String::new()),
        [Part::Text { text }] => Said::Text((*text).to_owned()),
        _ => Said::Parts(parts),
    }
}

/// Results that are JSON objects are documents, which the answer can cite.
fn results(message: &Message) -> Said<'_> {
    let mut parts: Vec<_> = texts(message)
        .map(|text| match serde_json::from_str::<&RawValue>(text) {
            Ok(data) if data.get().starts_with('{') => Part::Document {
                document: Document { data },
            },
            _ => Part::Text { text },
        })
        .collect();
    if parts.is_empty() {
        parts.push(Part::Text { text: "" });
    }
    Said::Parts(parts)
}

fn call(call: &ToolCall) -> Call<'_> {
    // For no arguments the models write nothing or `null`; back they must be an object.
    let arguments = match call.arguments.trim() {
        "" | "null" => "{}",
        arguments => arguments,
    };
    Call {
        id: &call.id,
        r#type: "function",
        function: Called {
            name: &call.name,
            arguments,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::chat::{Image, ImageSource};
    use crate::error::ErrorKind;

    #[test]
    fn what_the_fixtures_do_not_ask() {
        let request = ChatRequest::new("m").with(Message::user("x"));
        let written = |top_p| {
            let request = ChatRequest {
                top_p: Some(top_p),
                ..request.clone()
            };
            let body: Value = serde_json::from_slice(&body(&request).unwrap()).unwrap();
            body["p"].as_f64().unwrap()
        };
        assert_eq!((written(1.0), written(0.0)), (0.99, 0.01));

        let tool = Tool {
            name: "a".into(),
            description: None,
            parameters: None,
            strict: None,
        };
        let other = ChatRequest {
            tools: vec![tool],
            tool_choice: Some(ToolChoice::Tool("b".into())),
            ..request.clone()
        };
        let error = body(&other).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(error.message.contains("`b`"), "{error}");

        let image = Content::Image(Image {
            source: ImageSource::Url("https://x".into()),
            detail: None,
        });
        let shown = request.with(Message {
            content: vec![image],
            ..Message::assistant("")
        });
        assert_eq!(body(&shown).unwrap_err().kind, ErrorKind::Unsupported);
    }
}
