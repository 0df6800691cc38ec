//! The body of a Responses request.
//!
//! Source: <https://platform.openai.com/docs/api-reference/responses/create>. Nothing is kept at the provider
//! (`store` is false), so the whole conversation goes with each request. Texts that end an answer and a seed for the
//! sampling are unknown here and left out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::Dialect;
use super::answer::Reasoning;
use crate::chat::{
    ChatRequest, Content, Image, Message, ReasoningEffort, ResponseFormat, Role, Tool, ToolChoice,
};
use crate::error::ProviderError;
use crate::wire::openai::request::effort_name;
use crate::wire::request::{cannot_say, check as check_any, detail_name, image_url, to_json};

/// Writes the body of `request` in `dialect`.
pub(super) fn body(request: &ChatRequest, dialect: &Dialect) -> Result<Vec<u8>, ProviderError> {
    check(request)?;
    let effort = request.effort();
    let thinking = effort.is_some_and(|effort| effort != ReasoningEffort::None);
    let encrypted = thinking || dialect.always_encrypted;
    to_json(&Body {
        prompt: Prompt::new(request, dialect),
        temperature: request.temperature,
        top_p: request.top_p,
        max_output_tokens: request.max_tokens,
        metadata: Some(&request.metadata).filter(|map| dialect.metadata && !map.is_empty()),
        safety_identifier: user(request, dialect, "safety_identifier"),
        user: user(request, dialect, "user"),
        store: false,
        include: encrypted.then_some(["reasoning.encrypted_content"]),
        stream: request.stream.then_some(true),
    })
}

/// Writes the body of a request that has the tokens of `request` counted.
///
/// Source: <https://platform.openai.com/docs/api-reference/responses/input-tokens>.
pub(super) fn count_body(
    request: &ChatRequest,
    dialect: &Dialect,
) -> Result<Vec<u8>, ProviderError> {
    check(request)?;
    to_json(&Prompt::new(request, dialect))
}

fn check(request: &ChatRequest) -> Result<(), ProviderError> {
    check_any(request)?;
    let image = |content: &Content| matches!(content, Content::Image(_));
    let shows = |message: &Message| message.content.iter().any(image);
    if request
        .messages
        .iter()
        .any(|message| message.role == Role::Assistant && shows(message))
    {
        return Err(cannot_say(
            "the Responses API takes no images in the assistant's messages",
        ));
    }
    Ok(())
}

fn user<'a>(request: &'a ChatRequest, dialect: &Dialect, name: &str) -> Option<&'a str> {
    request.user.as_deref().filter(|_| dialect.user == name)
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    prompt: Prompt<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    safety_identifier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    store: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    include: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
}

/// What the model reads and how it is to answer: all that counts as tokens.
#[derive(Serialize)]
struct Prompt<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<&'a str>,
    input: Input<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Function<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<HowHard>,
}

impl<'a> Prompt<'a> {
    fn new(request: &'a ChatRequest, dialect: &Dialect) -> Self {
        // Servers refuse the choice where there are no tools.
        let tools = !request.tools.is_empty();
        Self {
            model: &request.model,
            instructions: request.system.as_deref(),
            input: Input {
                messages: &request.messages,
                plain_thoughts: dialect.plain_thoughts,
            },
            tools: request.tools.iter().map(Function::new).collect(),
            tool_choice: request.tool_choice.as_ref().filter(|_| tools).map(choice),
            parallel_tool_calls: request.parallel_tool_calls.filter(|_| tools),
            text: request.response_format.as_ref().map(|format| Text {
                format: Format::new(format),
            }),
            reasoning: request.effort().map(|effort| HowHard {
                effort: effort_name(effort),
                summary: (dialect.summary && effort != ReasoningEffort::None).then_some("auto"),
            }),
        }
    }
}

#[derive(Serialize)]
struct HowHard {
    effort: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'static str>,
}

#[derive(Serialize)]
struct Text<'a> {
    format: Format<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Format<'a> {
    JsonObject,
    JsonSchema {
        name: &'a str,
        schema: &'a RawValue,
        #[serde(skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
}

impl<'a> Format<'a> {
    fn new(format: &'a ResponseFormat) -> Self {
        match format {
            ResponseFormat::JsonObject => Self::JsonObject,
            ResponseFormat::JsonSchema {
                name,
                schema,
                strict,
            } => Self::JsonSchema {
                name,
                schema,
                strict: *strict,
            },
        }
    }
}

#[derive(Serialize)]
struct Function<'a> {
    r#type: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: Parameters<'a>,
    /// Always said: where it is left out, this API takes it for true, unlike chat completions.
    strict: bool,
}

impl<'a> Function<'a> {
    fn new(tool: &'a Tool) -> Self {
        Self {
            r#type: "function",
            name: &tool.name,
            description: tool.description.as_deref(),
            parameters: Parameters(tool.parameters.as_deref()),
            strict: tool.strict.unwrap_or(false),
        }
    }
}

/// The field is required; a tool without arguments has an empty object.
struct Parameters<'a>(Option<&'a RawValue>);

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Properties {}
        #[derive(Serialize)]
        struct Nothing {
            r#type: &'static str,
            properties: Properties,
        }
        match self.0 {
            Some(schema) => schema.serialize(serializer),
            None => Nothing {
                r#type: "object",
                properties: Properties {},
            }
            .serialize(serializer),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Choice<'a> {
    Word(&'static str),
    Function { r#type: &'static str, name: &'a str },
}

fn choice(choice: &ToolChoice) -> Choice<'_> {
    match choice {
        ToolChoice::Auto => Choice::Word("auto"),
        ToolChoice::None => Choice::Word("none"),
        ToolChoice::Required => Choice::Word("required"),
        ToolChoice::Tool(name) => Choice::Function {
            r#type: "function",
            name,
        },
    }
}

/// The conversation as a list of items: a message may become several.
struct Input<'a> {
    messages: &'a [Message],
    plain_thoughts: bool,
}

impl Serialize for Input<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for message in self.messages {
            let said = |role| Item::Message {
                role,
                content: spoken(&message.content),
            };
            match message.role {
                Role::System => seq.serialize_element(&said("system"))?,
                Role::User => seq.serialize_element(&said("user"))?,
                Role::Tool => seq.serialize_element(&Item::FunctionCallOutput {
                    call_id: message.tool_call_id.as_deref().unwrap_or(""),
                    output: spoken(&message.content),
                })?,
                Role::Assistant => {
                    for content in &message.content {
                        if let Some(item) = self.thought_or_said(content) {
                            seq.serialize_element(&item)?;
                        }
                    }
                }
            }
            for call in &message.tool_calls {
                seq.serialize_element(&Item::FunctionCall {
                    call_id: &call.id,
                    name: &call.name,
                    // A model that needs no arguments may write none; sent back, they must be JSON.
                    arguments: if call.arguments.is_empty() {
                        "{}"
                    } else {
                        &call.arguments
                    },
                })?;
            }
        }
        seq.end()
    }
}

impl Input<'_> {
    /// A part of an assistant's message: its thought goes back as the item that it came as.
    fn thought_or_said<'a>(&self, content: &'a Content) -> Option<Item<'a>> {
        match content {
            Content::Text(text) if text.is_empty() => None,
            Content::Text(text) => Some(Item::Message {
                role: "assistant",
                content: Spoken::Plain(text),
            }),
            Content::Reasoning {
                signature: Some(item),
                ..
            }
            | Content::RedactedReasoning(item) => own(item),
            Content::Reasoning {
                text,
                signature: None,
            } if self.plain_thoughts && !text.is_empty() => Some(Item::Reasoning {
                summary: [],
                content: [Part::ReasoningText { text }],
            }),
            _ => None,
        }
    }
}

/// A thought as this API gave it. Those of other formats would be refused.
fn own(item: &str) -> Option<Item<'_>> {
    let reasoning: Reasoning<'_> = serde_json::from_str(item).ok()?;
    reasoning.is_signed().then_some(())?;
    serde_json::from_str(item).ok().map(Item::AsItCame)
}

fn spoken(content: &[Content]) -> Spoken<'_> {
    let mut parts: Vec<_> = content.iter().filter_map(Part::of).collect();
    match (parts.pop(), parts.is_empty()) {
        (None, _) => Spoken::Plain(""),
        (Some(Part::InputText { text }), true) => Spoken::Plain(text),
        (Some(last), _) => {
            parts.push(last);
            Spoken::Parts(parts)
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Spoken<'a> {
    /// Plain text goes as a string, which every server understands.
    Plain(&'a str),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Item<'a> {
    Message {
        role: &'static str,
        content: Spoken<'a>,
    },
    FunctionCall {
        call_id: &'a str,
        name: &'a str,
        arguments: &'a str,
    },
    FunctionCallOutput {
        call_id: &'a str,
        output: Spoken<'a>,
    },
    Reasoning {
        summary: [(); 0],
        content: [Part<'a>; 1],
    },
    #[serde(untagged)]
    AsItCame(&'a RawValue),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    InputText {
        text: &'a str,
    },
    InputImage {
        image_url: Cow<'a, str>,
        detail: &'static str,
    },
    ReasoningText {
        text: &'a str,
    },
}

impl<'a> Part<'a> {
    fn of(content: &'a Content) -> Option<Self> {
        match content {
            Content::Text(text) => Some(Self::InputText { text }),
            Content::Image(Image { source, detail }) => Some(Self::InputImage {
                image_url: image_url(source),
                detail: detail.map_or("auto", detail_name),
            }),
            _ => None,
        }
    }
}
