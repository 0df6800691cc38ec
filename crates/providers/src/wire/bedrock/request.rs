//! The bodies of Converse, `ConverseStream` and `CountTokens`.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html> and
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_CountTokens.html>.

mod block;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::model::{Fields, Model, Thinking};
use crate::chat::{ChatRequest, Message, ResponseFormat, Role, Tool, ToolChoice};
use crate::error::{ErrorKind, ProviderError};
use block::{Block, CachePoint};

/// Writes the body of a chat.
pub(super) fn converse(request: &ChatRequest) -> Result<Vec<u8>, ProviderError> {
    let model = Model::of(&request.model);
    let thinking = model.thinking(request);
    let sampling = model.sampling(request, &thinking);
    let effort = thinking.effort;
    write(&Body {
        prompt: Prompt::of(request, model, thinking)?,
        inference_config: InferenceConfig::of(request, sampling),
        output_config: OutputConfig::of(request, effort)?,
        request_metadata: &request.metadata,
    })
}

/// Writes the body that has the tokens of a chat counted.
pub(super) fn count(request: &ChatRequest) -> Result<Vec<u8>, ProviderError> {
    let model = Model::of(&request.model);
    let converse = Prompt::of(request, model, model.thinking(request))?;
    write(&Count {
        input: Input { converse },
    })
}

fn write(body: &impl Serialize) -> Result<Vec<u8>, ProviderError> {
    serde_json::to_vec(body).map_err(|error| refused(error.to_string()))
}

fn refused(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidRequest, message)
}

fn unsupported(message: &str) -> ProviderError {
    ProviderError::new(ErrorKind::Unsupported, message)
}

#[derive(Serialize)]
struct Count<'a> {
    input: Input<'a>,
}

#[derive(Serialize)]
struct Input<'a> {
    converse: Prompt<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(flatten)]
    prompt: Prompt<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_config: Option<InferenceConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    request_metadata: &'a BTreeMap<String, String>,
}

/// What costs tokens, and is therefore counted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Prompt<'a> {
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_config: Option<ToolConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_model_request_fields: Option<Fields>,
}

impl<'a> Prompt<'a> {
    fn of(
        request: &'a ChatRequest,
        model: Model,
        thinking: Thinking,
    ) -> Result<Self, ProviderError> {
        if request.model.is_empty() {
            return Err(refused("no model is named"));
        }
        let numbers = [request.temperature, request.top_p];
        if !numbers.into_iter().flatten().all(f64::is_finite) {
            return Err(refused("temperature and top_p must be finite numbers"));
        }
        let (system, messages) = conversation(request)?;
        if messages.is_empty() {
            return Err(refused("there are no messages, or nothing is said in them"));
        }
        Ok(Self {
            messages,
            system,
            tool_config: ToolConfig::of(request, model)?,
            additional_model_request_fields: thinking.fields,
        })
    }
}

/// One turn. User and assistant must take turns, so what follows each other from one of them is one turn; results of
/// tools are the user's.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

/// The system's blocks and the turns. Instructions from the middle of the conversation go to the system's: few models
/// take them where they stand.
fn conversation(request: &ChatRequest) -> Result<(Vec<Block<'_>>, Vec<Turn<'_>>), ProviderError> {
    let mut system = Vec::new();
    system.extend(request.system.as_deref().and_then(Block::text));
    if request.cache_system && !system.is_empty() {
        system.push(Block::CachePoint(CachePoint::DEFAULT));
    }
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for message in &request.messages {
        let blocks = block::of(message)?;
        let role = match message.role {
            Role::System => {
                system.extend(blocks);
                continue;
            }
            Role::User | Role::Tool => "user",
            Role::Assistant => "assistant",
        };
        match turns.last_mut() {
            // Nothing is said: no turn.
            _ if blocks.is_empty() => {}
            Some(turn) if turn.role == role => turn.content.extend(blocks),
            _ => turns.push(Turn {
                role,
                content: blocks,
            }),
        }
    }
    Ok((system, turns))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InferenceConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop_sequences: &'a [String],
}

impl<'a> InferenceConfig<'a> {
    fn of(
        request: &'a ChatRequest,
        (temperature, top_p): (Option<f64>, Option<f64>),
    ) -> Option<Self> {
        let config = Self {
            max_tokens: request.max_tokens,
            temperature,
            top_p,
            stop_sequences: &request.stop,
        };
        let numbers = config.temperature.or(config.top_p).is_some();
        let any = config.max_tokens.is_some() || numbers || !config.stop_sequences.is_empty();
        any.then_some(config)
    }
}

#[derive(Serialize)]
struct ToolConfig<'a> {
    tools: Vec<OneTool<'a>>,
    #[serde(rename = "toolChoice", skip_serializing_if = "Option::is_none")]
    choice: Option<Choice<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum OneTool<'a> {
    ToolSpec(ToolSpec<'a>),
    CachePoint(CachePoint),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToolSpec<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: InputSchema<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

#[derive(Serialize)]
struct InputSchema<'a> {
    json: Schema<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Schema<'a> {
    Given(&'a RawValue),
    /// A schema there must be.
    Any {
        r#type: &'static str,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Choice<'a> {
    Auto {},
    Any {},
    Tool { name: &'a str },
}

impl<'a> ToolConfig<'a> {
    fn of(request: &'a ChatRequest, model: Model) -> Result<Option<Self>, ProviderError> {
        if request.tools.is_empty() {
            return Ok(None);
        }
        let choice = match &request.tool_choice {
            None => None,
            Some(ToolChoice::Auto) => Some(Choice::Auto {}),
            Some(ToolChoice::Required) => Some(Choice::Any {}),
            Some(ToolChoice::Tool(name)) => Some(Choice::Tool { name }),
            // There is no such choice, but who is told of no tools calls none.
            Some(ToolChoice::None) if !request.messages.iter().any(uses_tools) => return Ok(None),
            Some(ToolChoice::None) => {
                return Err(unsupported(
                    "Bedrock cannot forbid tools in a conversation that has used them",
                ));
            }
        };
        let strict = model.takes_strict_tools();
        let tools = request.tools.iter().map(|tool| OneTool::of(tool, strict));
        let mut tools: Vec<_> = tools.collect();
        if request.cache_tools {
            tools.push(OneTool::CachePoint(CachePoint::DEFAULT));
        }
        Ok(Some(Self { tools, choice }))
    }
}

fn uses_tools(message: &Message) -> bool {
    message.role == Role::Tool || !message.tool_calls.is_empty()
}

impl<'a> OneTool<'a> {
    fn of(tool: &'a Tool, strict: bool) -> Self {
        let schema = match tool.parameters.as_deref() {
            Some(schema) => Schema::Given(schema),
            None => Schema::Any { r#type: "object" },
        };
        Self::ToolSpec(ToolSpec {
            name: &tool.name,
            description: tool.description.as_deref().filter(|text| !text.is_empty()),
            input_schema: InputSchema { json: schema },
            strict: tool.strict.filter(|_| strict),
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text_format: Option<TextFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
}

#[derive(Serialize)]
struct TextFormat<'a> {
    r#type: &'static str,
    structure: Structure<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Structure<'a> {
    JsonSchema {
        /// The schema as a text with JSON in it.
        schema: &'a str,
        name: &'a str,
    },
}

impl<'a> OutputConfig<'a> {
    fn of(
        request: &'a ChatRequest,
        effort: Option<&'static str>,
    ) -> Result<Option<Self>, ProviderError> {
        let text_format = match &request.response_format {
            None => None,
            Some(ResponseFormat::JsonSchema { name, schema, .. }) => Some(TextFormat {
                r#type: "json_schema",
                structure: Structure::JsonSchema {
                    schema: schema.get(),
                    name,
                },
            }),
            Some(ResponseFormat::JsonObject) => {
                return Err(unsupported(
                    "Bedrock can hold an answer to a JSON schema, not to JSON without one",
                ));
            }
        };
        let any = text_format.is_some() || effort.is_some();
        Ok(any.then_some(Self {
            text_format,
            effort,
        }))
    }
}
