//! The body of a chat completions request.
//!
//! Source: <https://platform.openai.com/docs/api-reference/chat/create>.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::dialect::Dialect;
use crate::chat::{
    ChatRequest, Content, Image, ImageDetail, ImageSource, Message, ReasoningEffort,
    ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};
use crate::error::{ErrorKind, ProviderError};

/// Writes the body of `request` in `dialect`.
pub(super) fn body(request: &ChatRequest, dialect: &Dialect) -> Result<Vec<u8>, ProviderError> {
    check(request)?;
    serde_json::to_vec(&Body { request, dialect })
        .map_err(|error| ProviderError::new(ErrorKind::InvalidRequest, error.to_string()))
}

/// What would only come back as a puzzling error of the provider's.
fn check(request: &ChatRequest) -> Result<(), ProviderError> {
    let refuse = |message: &str| Err(ProviderError::new(ErrorKind::InvalidRequest, message));
    if request.model.is_empty() {
        return refuse("no model is named");
    }
    if request.messages.is_empty() && request.system.is_none() {
        return refuse("there are no messages");
    }
    for number in [request.temperature, request.top_p].into_iter().flatten() {
        if !number.is_finite() {
            return refuse("temperature and top_p must be finite numbers");
        }
    }
    for message in &request.messages {
        if message.role == Role::Tool && message.tool_call_id.is_none() {
            return refuse("a tool's result does not say which call it belongs to (tool_call_id)");
        }
        let image = |content: &Content| matches!(content, Content::Image(_));
        if message.role != Role::User && message.content.iter().any(image) {
            let message = "chat completions takes images in user messages only";
            return Err(ProviderError::new(ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

struct Body<'a> {
    request: &'a ChatRequest,
    dialect: &'a Dialect,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (request, dialect) = (self.request, self.dialect);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model", &request.model)?;
        map.serialize_entry("messages", &Messages(request, dialect))?;
        if !request.tools.is_empty() {
            let tools: Vec<_> = request
                .tools
                .iter()
                .map(|tool| function_tool(tool, dialect))
                .collect();
            map.serialize_entry("tools", &tools)?;
            // Servers refuse both of these where there are no tools.
            if let Some(choice) = &request.tool_choice {
                map.serialize_entry("tool_choice", &Choice(choice, dialect))?;
            }
            if let Some(parallel) = request.parallel_tool_calls {
                map.serialize_entry("parallel_tool_calls", &parallel)?;
            }
        }
        if let Some(format) = &request.response_format {
            map.serialize_entry("response_format", &Format(format))?;
        }
        if let Some(temperature) = request.temperature {
            map.serialize_entry("temperature", &temperature)?;
        }
        if let Some(top_p) = request.top_p {
            map.serialize_entry("top_p", &top_p)?;
        }
        if let Some(max_tokens) = request.max_tokens {
            let name = if dialect.max_completion_tokens {
                "max_completion_tokens"
            } else {
                "max_tokens"
            };
            map.serialize_entry(name, &max_tokens)?;
        }
        if !request.stop.is_empty() {
            map.serialize_entry("stop", &request.stop)?;
        }
        if let Some(seed) = request.seed {
            map.serialize_entry(dialect.seed, &seed)?;
        }
        if let (Some(effort), true) = (request.reasoning, dialect.reasoning_effort) {
            map.serialize_entry("reasoning_effort", effort_name(effort))?;
        }
        if let (Some(user), true) = (&request.user, dialect.user) {
            map.serialize_entry("user", user)?;
        }
        if request.stream {
            map.serialize_entry("stream", &true)?;
            if dialect.stream_options {
                map.serialize_entry(
                    "stream_options",
                    &StreamOptions {
                        include_usage: true,
                    },
                )?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

struct Messages<'a>(&'a ChatRequest, &'a Dialect);

impl Serialize for Messages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        if let Some(system) = &self.0.system {
            seq.serialize_element(&System {
                role: "system",
                content: system,
            })?;
        }
        for message in &self.0.messages {
            seq.serialize_element(&OneMessage(message, self.1))?;
        }
        seq.end()
    }
}

#[derive(Serialize)]
struct System<'a> {
    role: &'static str,
    content: &'a str,
}

struct OneMessage<'a>(&'a Message, &'a Dialect);

impl Serialize for OneMessage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let mut map = serializer.serialize_map(None)?;
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        map.serialize_entry("role", role)?;
        let spoken = |content: &&Content| matches!(content, Content::Text(_) | Content::Image(_));
        let mut parts = message.content.iter().filter(spoken);
        match (parts.next(), parts.next()) {
            // Plain text goes as a string, which every server understands.
            (Some(Content::Text(text)), None) => map.serialize_entry("content", text)?,
            (None, _) if message.role == Role::Assistant => map.serialize_entry("content", &())?,
            (None, _) => map.serialize_entry("content", "")?,
            _ => {
                let parts: Vec<_> = message.content.iter().filter(spoken).map(Part).collect();
                map.serialize_entry("content", &parts)?;
            }
        }
        let thoughts = message.content.iter().filter_map(|content| match content {
            Content::Reasoning { text, .. } if self.1.reasoning_content => Some(text.as_str()),
            _ => None,
        });
        let thoughts: String = thoughts.collect();
        if !thoughts.is_empty() {
            map.serialize_entry("reasoning_content", &thoughts)?;
        }
        if !message.tool_calls.is_empty() {
            let calls: Vec<_> = message.tool_calls.iter().map(function_call).collect();
            map.serialize_entry("tool_calls", &calls)?;
        }
        if let Some(id) = &message.tool_call_id {
            map.serialize_entry("tool_call_id", id)?;
        }
        map.end()
    }
}

struct Part<'a>(&'a Content);

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        match self.0 {
            Content::Text(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("text", text)?;
            }
            // Filtered out before.
            Content::Reasoning { .. } | Content::RedactedReasoning(_) | Content::CachePoint => {}
            Content::Image(Image { source, detail }) => {
                map.serialize_entry("type", "image_url")?;
                let detail = detail.map(|detail| match detail {
                    ImageDetail::Auto => "auto",
                    ImageDetail::Low => "low",
                    ImageDetail::High => "high",
                });
                let data;
                let url = match source {
                    ImageSource::Url(url) => url.as_str(),
                    ImageSource::Base64 {
                        media_type,
                        data: base64,
                    } => {
                        data = format!("data:{media_type};base64,{base64}");
                        &data
                    }
                };
                map.serialize_entry("image_url", &ImageUrl { url, detail })?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

#[derive(Serialize)]
struct Function<'a, F> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    r#type: &'static str,
    function: F,
}

#[derive(Serialize)]
struct Called<'a> {
    name: &'a str,
    arguments: &'a str,
}

fn function_call(call: &ToolCall) -> Function<'_, Called<'_>> {
    // A model that needs no arguments may write none; sent back, they must be JSON.
    let arguments = if call.arguments.is_empty() {
        "{}"
    } else {
        &call.arguments
    };
    Function {
        id: Some(&call.id),
        r#type: "function",
        function: Called {
            name: &call.name,
            arguments,
        },
    }
}

#[derive(Serialize)]
struct Defined<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a serde_json::value::RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

fn function_tool<'a>(tool: &'a Tool, dialect: &Dialect) -> Function<'a, Defined<'a>> {
    let function = Defined {
        name: &tool.name,
        description: tool.description.as_deref(),
        parameters: tool.parameters.as_deref(),
        strict: tool.strict.filter(|_| dialect.strict_tools),
    };
    Function {
        id: None,
        r#type: "function",
        function,
    }
}

struct Choice<'a>(&'a ToolChoice, &'a Dialect);

impl Serialize for Choice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ToolChoice::Auto => serializer.serialize_str("auto"),
            ToolChoice::None => serializer.serialize_str("none"),
            ToolChoice::Required => serializer.serialize_str(self.1.required_tool),
            ToolChoice::Tool(name) => {
                let function = Defined {
                    name,
                    description: None,
                    parameters: None,
                    strict: None,
                };
                Function {
                    id: None,
                    r#type: "function",
                    function,
                }
                .serialize(serializer)
            }
        }
    }
}

struct Format<'a>(&'a ResponseFormat);

#[derive(Serialize)]
struct JsonSchema<'a> {
    name: &'a str,
    schema: &'a serde_json::value::RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl Serialize for Format<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            ResponseFormat::JsonObject => map.serialize_entry("type", "json_object")?,
            ResponseFormat::JsonSchema {
                name,
                schema,
                strict,
            } => {
                map.serialize_entry("type", "json_schema")?;
                map.serialize_entry(
                    "json_schema",
                    &JsonSchema {
                        name,
                        schema,
                        strict: *strict,
                    },
                )?;
            }
        }
        map.end()
    }
}

fn effort_name(effort: ReasoningEffort) -> &'static str {
    match effort {
        ReasoningEffort::None => "none",
        ReasoningEffort::Minimal => "minimal",
        ReasoningEffort::Low => "low",
        ReasoningEffort::Medium => "medium",
        ReasoningEffort::High => "high",
        ReasoningEffort::ExtraHigh => "xhigh",
    }
}

#[cfg(test)]
mod tests;
