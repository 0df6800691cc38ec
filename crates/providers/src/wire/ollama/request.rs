//! The body of a chat request.
//!
//! Source: <https://docs.ollama.com/api/chat>.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::chat::{
    ChatRequest, Content, ImageSource, Message, ReasoningEffort, ResponseFormat, Role, ToolCall,
    ToolChoice,
};
use crate::error::ProviderError;
use crate::wire::request::{FunctionTool, cannot_say, check, invalid, texts, thoughts, to_json};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Turn<'a>>,
    /// True where it is left out.
    stream: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<FunctionTool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<Think>,
    #[serde(skip_serializing_if = "Options::is_empty")]
    options: Options<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Format<'a> {
    Word(&'static str),
    Schema(&'a RawValue),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Think {
    Switch(bool),
    Level(&'static str),
}

#[derive(Serialize)]
struct Options<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    num_predict: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
}

impl Options<'_> {
    fn is_empty(&self) -> bool {
        let Self {
            num_predict,
            temperature,
            top_p,
            stop,
            seed,
        } = self;
        num_predict.is_none()
            && temperature.is_none()
            && top_p.is_none()
            && stop.is_empty()
            && seed.is_none()
    }
}

#[derive(Serialize)]
struct Turn<'a> {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
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
    arguments: &'a RawValue,
}

/// Writes the body of `request`.
pub(super) fn body(request: &ChatRequest) -> Result<Vec<u8>, ProviderError> {
    check(request)?;
    let tools = match &request.tool_choice {
        // Whoever has no tools calls none.
        Some(ToolChoice::None) => Vec::new(),
        Some(ToolChoice::Required | ToolChoice::Tool(_)) if !request.tools.is_empty() => {
            return Err(cannot_say("Ollama cannot force the call of a tool"));
        }
        _ => request.tools.iter().map(Into::into).collect(),
    };
    to_json(&Body {
        model: &request.model,
        messages: turns(request)?,
        stream: request.stream,
        tools,
        format: request.response_format.as_ref().map(|format| match format {
            ResponseFormat::JsonObject => Format::Word("json"),
            ResponseFormat::JsonSchema { schema, .. } => Format::Schema(schema),
        }),
        think: request.effort().map(think),
        options: Options {
            num_predict: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            stop: &request.stop,
            seed: request.seed,
        },
    })
}

/// Models that know no levels take each of them for yes.
fn think(effort: ReasoningEffort) -> Think {
    match effort {
        ReasoningEffort::None => Think::Switch(false),
        ReasoningEffort::Minimal | ReasoningEffort::Low => Think::Level("low"),
        ReasoningEffort::Medium => Think::Level("medium"),
        ReasoningEffort::High | ReasoningEffort::ExtraHigh => Think::Level("high"),
    }
}

fn turns(request: &ChatRequest) -> Result<Vec<Turn<'_>>, ProviderError> {
    let mut turns = Vec::new();
    if let Some(system) = &request.system {
        turns.push(Turn {
            role: "system",
            content: system.clone(),
            thinking: String::new(),
            images: Vec::new(),
            tool_calls: Vec::new(),
            tool_name: None,
            tool_call_id: None,
        });
    }
    for (at, message) in request.messages.iter().enumerate() {
        let id = message.tool_call_id.as_deref();
        let calls = message.tool_calls.iter().map(call);
        turns.push(Turn {
            role: match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Tool => "tool",
            },
            // As the server itself joins neighbouring messages of one role.
            content: texts(message).collect::<Vec<_>>().join("\n\n"),
            thinking: thoughts(message),
            images: images(message)?,
            tool_calls: calls.collect::<Result<_, _>>()?,
            tool_name: id.and_then(|id| called(&request.messages[..at], id)),
            tool_call_id: id,
        });
    }
    Ok(turns)
}

fn images(message: &Message) -> Result<Vec<&str>, ProviderError> {
    let images = message.content.iter().filter_map(|content| match content {
        Content::Image(image) => Some(&image.source),
        _ => None,
    });
    let data = images.map(|source| match source {
        ImageSource::Base64 { data, .. } => Ok(data.as_str()),
        ImageSource::Url(_) => Err(cannot_say(
            "Ollama fetches no pictures; send the picture itself in base64",
        )),
    });
    data.collect()
}

/// The tool of the last call with this id: the ids that are made here begin anew in each answer.
fn called<'a>(before: &'a [Message], id: &str) -> Option<&'a str> {
    let mut calls = before.iter().rev().flat_map(|message| &message.tool_calls);
    let call = calls.find(|call| call.id == id)?;
    Some(&call.name)
}

fn call(call: &ToolCall) -> Result<Call<'_>, ProviderError> {
    let text = match call.arguments.trim() {
        "" | "null" => "{}",
        text => text,
    };
    let arguments = serde_json::from_str::<&RawValue>(text).ok();
    let arguments = arguments.filter(|arguments| arguments.get().starts_with('{'));
    let arguments = arguments.ok_or_else(|| {
        invalid(format!(
            "the arguments of the call `{}` of `{}` are no JSON object, and Ollama takes nothing else",
            call.id, call.name
        ))
    })?;
    Ok(Call {
        id: &call.id,
        r#type: "function",
        function: Called {
            name: &call.name,
            arguments,
        },
    })
}
