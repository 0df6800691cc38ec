//! The body of a chat completions request.
//!
//! Source: <https://platform.openai.com/docs/api-reference/chat/create>.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::dialect::{Dialect, Effort, Thoughts};
use crate::chat::{
    ChatRequest, Content, Message, ReasoningEffort, ResponseFormat, Role, Tool, ToolCall,
    ToolChoice,
};
use crate::error::ProviderError;
use crate::wire::request::{ImageUrl, cannot_say, check as check_any, thoughts, to_json};

/// Writes the body of `request` in `dialect`.
pub(super) fn body(request: &ChatRequest, dialect: &Dialect) -> Result<Vec<u8>, ProviderError> {
    check(request, dialect)?;
    to_json(&Body { request, dialect })
}

/// What would only come back as a puzzling error of the provider's.
fn check(request: &ChatRequest, dialect: &Dialect) -> Result<(), ProviderError> {
    check_any(request)?;
    let unsupported = |message: &str| Err(cannot_say(message));
    let calls = |message: &Message| !message.tool_calls.is_empty() || message.role == Role::Tool;
    if !dialect.tools && (!request.tools.is_empty() || request.messages.iter().any(calls)) {
        return unsupported("this provider has no tools");
    }
    let schema = matches!(
        request.response_format,
        Some(ResponseFormat::JsonSchema { .. })
    );
    if schema && !dialect.json_schema {
        return unsupported("this provider cannot hold an answer to a JSON schema, only to JSON");
    }
    for message in &request.messages {
        let image = |content: &Content| matches!(content, Content::Image(_));
        if message.role != Role::User && message.content.iter().any(image) {
            return unsupported("chat completions takes images in user messages only");
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
            map.serialize_entry(dialect.max_tokens, &max_tokens)?;
        }
        if !request.stop.is_empty() && dialect.stop {
            map.serialize_entry("stop", &request.stop)?;
        }
        if let (Some(seed), Some(name)) = (request.seed, dialect.seed) {
            map.serialize_entry(name, &seed)?;
        }
        match (dialect.effort, request.effort(), request.reasoning_budget) {
            (Effort::WordOrOff, Some(ReasoningEffort::None), _) => {
                map.serialize_entry("thinking", &Thinking { r#type: "disabled" })?;
            }
            (Effort::Word | Effort::WordOrOff, Some(effort), _) => {
                map.serialize_entry("reasoning_effort", effort_name(effort))?;
            }
            (Effort::Object, _, Some(max_tokens)) => {
                map.serialize_entry("reasoning", &Budget { max_tokens })?;
            }
            (Effort::Object, Some(effort), None) => {
                let effort = effort_name(effort);
                map.serialize_entry("reasoning", &HowHard { effort })?;
            }
            _ => {}
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
struct Thinking {
    r#type: &'static str,
}

#[derive(Serialize)]
struct Budget {
    max_tokens: u32,
}

#[derive(Serialize)]
struct HowHard {
    effort: &'static str,
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
            let marked = self.0.cache_system && self.1.cache_control;
            let content = if marked {
                SystemContent::Marked([MarkedText::new(system, true)])
            } else {
                SystemContent::Plain(system)
            };
            seq.serialize_element(&System {
                role: "system",
                content,
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
    content: SystemContent<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SystemContent<'a> {
    Plain(&'a str),
    Marked([MarkedText<'a>; 1]),
}

/// A text that may be worth caching, with everything before it.
#[derive(Serialize)]
struct MarkedText<'a> {
    r#type: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Serialize)]
struct CacheControl {
    r#type: &'static str,
}

impl<'a> MarkedText<'a> {
    fn new(text: &'a str, marked: bool) -> Self {
        Self {
            r#type: "text",
            text,
            cache_control: marked.then_some(CacheControl {
                r#type: "ephemeral",
            }),
        }
    }
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
        let marked = self.1.cache_control && message.content.contains(&Content::CachePoint);
        let mut parts = message.content.iter().filter(spoken);
        match (parts.next(), parts.next()) {
            // Plain text goes as a string, which every server understands.
            (Some(Content::Text(text)), None) if !marked => map.serialize_entry("content", text)?,
            (None, _) if message.role == Role::Assistant => map.serialize_entry("content", &())?,
            (None, _) => map.serialize_entry("content", "")?,
            _ => {
                let parts = message.content.iter().enumerate();
                let parts: Vec<_> = parts
                    .filter(|(_, content)| spoken(content))
                    .map(|(at, content)| Part {
                        content,
                        marked: marked && message.content.get(at + 1) == Some(&Content::CachePoint),
                    })
                    .collect();
                map.serialize_entry("content", &parts)?;
            }
        }
        match self.1.thoughts {
            Thoughts::Content => {
                let thoughts = thoughts(message);
                if !thoughts.is_empty() {
                    map.serialize_entry("reasoning_content", &thoughts)?;
                }
            }
            Thoughts::Details => {
                let details: Vec<_> = message.content.iter().filter_map(Detail::of).collect();
                if !details.is_empty() {
                    map.serialize_entry("reasoning_details", &details)?;
                }
            }
            Thoughts::Dropped => {}
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

/// An entry of OpenRouter's `reasoning_details`.
#[derive(Serialize)]
#[serde(untagged)]
enum Detail<'a> {
    Text {
        r#type: &'static str,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        signature: Option<&'a str>,
    },
    /// An entry of another kind, whole, as it came.
    Entry(&'a RawValue),
    Encrypted {
        r#type: &'static str,
        data: &'a str,
    },
}

impl<'a> Detail<'a> {
    fn of(content: &'a Content) -> Option<Self> {
        match content {
            Content::Reasoning { text, signature } => Some(Self::Text {
                r#type: "reasoning.text",
                text,
                signature: signature.as_deref(),
            }),
            Content::RedactedReasoning(data) => Some(match serde_json::from_str(data) {
                Ok(entry) => Self::Entry(entry),
                // Of another provider: whoever gets it will know.
                Err(_) => Self::Encrypted {
                    r#type: "reasoning.encrypted",
                    data,
                },
            }),
            _ => None,
        }
    }
}

/// A text or an image.
struct Part<'a> {
    content: &'a Content,
    marked: bool,
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Content::Text(text) = self.content {
            return MarkedText::new(text, self.marked).serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(2))?;
        match self.content {
            Content::Image(image) => {
                map.serialize_entry("type", "image_url")?;
                map.serialize_entry("image_url", &ImageUrl::from(image))?;
            }
            // Filtered out before.
            Content::Text(_)
            | Content::Reasoning { .. }
            | Content::RedactedReasoning(_)
            | Content::CachePoint => {}
        }
        map.end()
    }
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
    parameters: Option<&'a RawValue>,
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
    schema: &'a RawValue,
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

pub(in crate::wire) fn effort_name(effort: ReasoningEffort) -> &'static str {
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
