//! The body of a request.
//!
//! Source: <https://platform.claude.com/docs/en/api/messages/create> and
//! <https://platform.claude.com/docs/en/api/messages/count_tokens>.

use serde::Serialize;
use serde_json::value::RawValue;

use super::conversation::{Block, CacheControl, Conversation, MOST_CACHE_MARKS, Turn};
use super::model::Model;
use super::thinking::{BINDING_BETA, Plan, Thinking, plan};
use crate::chat::{ChatRequest, ResponseFormat, Tool, ToolChoice};
use crate::error::{ErrorKind, ProviderError};

/// A body, with the beta that it needs.
pub(super) struct Written {
    pub json: Vec<u8>,
    pub beta: Option<&'static str>,
}

/// Writes a request for an answer.
pub(super) fn message(request: &ChatRequest) -> Result<Written, ProviderError> {
    write(request, true)
}

/// Writes a request for the number of tokens.
pub(super) fn count(request: &ChatRequest) -> Result<Written, ProviderError> {
    write(request, false)
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Defined<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<Output<'a>>,
    #[serde(flatten)]
    answer: Option<Answer<'a>>,
}

/// What only an answer needs; whoever counts refuses it.
#[derive(Serialize)]
struct Answer<'a> {
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
}

#[derive(Serialize)]
struct Metadata<'a> {
    user_id: &'a str,
}

#[derive(Serialize)]
struct Defined<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    input_schema: Schema<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

/// A tool without parameters has an empty schema, not none.
#[derive(Serialize)]
#[serde(untagged)]
enum Schema<'a> {
    Given(&'a RawValue),
    Empty { r#type: &'static str },
}

#[derive(Serialize)]
struct Choice<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_parallel_tool_use: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    schema: &'a RawValue,
}

fn write(request: &ChatRequest, for_answer: bool) -> Result<Written, ProviderError> {
    let refuse = |message: &str| Err(ProviderError::new(ErrorKind::InvalidRequest, message));
    if request.model.is_empty() {
        return refuse("no model is named");
    }
    for number in [request.temperature, request.top_p].into_iter().flatten() {
        if !number.is_finite() {
            return refuse("temperature and top_p must be finite numbers");
        }
    }
    let model = Model::of(&request.model);
    let mut conversation = Conversation::of(request, model)?;
    if conversation.turns.is_empty() {
        return refuse("there are no messages, and instructions alone are not enough");
    }
    let cache_tools = request.cache_tools && !request.tools.is_empty();
    conversation.mark(
        request.cache_system,
        MOST_CACHE_MARKS - usize::from(cache_tools),
    );
    let tool_choice = choice(request);
    let forced = tool_choice
        .as_ref()
        .is_some_and(|choice| matches!(choice.r#type, "any" | "tool"));
    let Plan {
        max_tokens,
        thinking,
        effort,
    } = plan(model, request, forced, conversation.thoughts);
    let format = format(request)?;
    let output = (effort.is_some() || format.is_some()).then_some(Output { effort, format });
    let beta = thinking.as_ref().is_some_and(Thinking::binds);
    let answer = for_answer.then(|| {
        // Sampling and thinking exclude each other, and several models take only one of the two.
        let sampling = model.takes_sampling() && thinking.is_none();
        let top_p = request.top_p.filter(|_| request.temperature.is_none());
        Answer {
            max_tokens,
            temperature: request.temperature.filter(|_| sampling),
            top_p: top_p.filter(|_| sampling),
            stop_sequences: stop(request),
            metadata: request.user.as_deref().map(|user_id| Metadata { user_id }),
            stream: request.stream,
        }
    });
    let body = Body {
        model: &request.model,
        system: conversation.system,
        messages: conversation.turns,
        tools: tools(request, model, cache_tools),
        tool_choice,
        thinking,
        output_config: output,
        answer,
    };
    let json = serde_json::to_vec(&body)
        .map_err(|error| ProviderError::new(ErrorKind::InvalidRequest, error.to_string()))?;
    Ok(Written {
        json,
        beta: beta.then_some(BINDING_BETA),
    })
}

/// A mark at the last tool covers all of them.
fn tools(request: &ChatRequest, model: Model, cache: bool) -> Vec<Defined<'_>> {
    let mut tools: Vec<_> = request
        .tools
        .iter()
        .map(|tool| define(tool, model))
        .collect();
    if let Some(last) = tools.last_mut().filter(|_| cache) {
        last.cache_control = Some(CacheControl::EPHEMERAL);
    }
    tools
}

fn define(tool: &Tool, model: Model) -> Defined<'_> {
    let empty = Schema::Empty { r#type: "object" };
    Defined {
        name: &tool.name,
        description: tool.description.as_deref(),
        input_schema: tool.parameters.as_deref().map_or(empty, Schema::Given),
        strict: tool.strict == Some(true) && model.takes_strict_tools(),
        cache_control: None,
    }
}

/// A choice without tools is refused.
fn choice(request: &ChatRequest) -> Option<Choice<'_>> {
    let one_at_a_time = request.parallel_tool_calls == Some(false);
    let chosen = match &request.tool_choice {
        _ if request.tools.is_empty() => return None,
        None if one_at_a_time => &ToolChoice::Auto,
        None => return None,
        Some(chosen) => chosen,
    };
    let (r#type, name) = match chosen {
        ToolChoice::Auto => ("auto", None),
        ToolChoice::None => ("none", None),
        ToolChoice::Required => ("any", None),
        ToolChoice::Tool(name) => ("tool", Some(name.as_str())),
    };
    Some(Choice {
        r#type,
        name,
        disable_parallel_tool_use: one_at_a_time && r#type != "none",
    })
}

/// Blank ones are refused.
fn stop(request: &ChatRequest) -> Vec<&str> {
    let stop = request.stop.iter().map(String::as_str);
    stop.filter(|text| !text.trim().is_empty()).collect()
}

fn format(request: &ChatRequest) -> Result<Option<Format<'_>>, ProviderError> {
    match &request.response_format {
        None => Ok(None),
        Some(ResponseFormat::JsonObject) => Err(ProviderError::new(
            ErrorKind::Unsupported,
            "Anthropic has no JSON without a schema; ask for jsonSchema",
        )),
        Some(ResponseFormat::JsonSchema { schema, .. }) => Ok(Some(Format {
            r#type: "json_schema",
            schema,
        })),
    }
}

#[cfg(test)]
mod tests;
