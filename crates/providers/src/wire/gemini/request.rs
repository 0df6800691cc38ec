//! The body of a request: who said what, and what is asked for.
//!
//! Source: <https://ai.google.dev/api/generate-content#method:-models.generatecontent>.

use serde::Serialize;

use super::GeminiService;
use super::generation::{GenerationConfig, ToolConfig, Tools, takes_levels};
use super::parts::{Part, Payload, picture, result, spoken};
use crate::chat::{ChatRequest, Content, Message, Role};
use crate::error::{ErrorKind, ProviderError};

/// Writes the body of `request`.
pub(super) fn body(
    request: &ChatRequest,
    service: GeminiService,
) -> Result<Vec<u8>, ProviderError> {
    write(&Body::new(request, service)?)
}

/// Writes the body of a request that has the tokens of `request` counted. `resource` is the model's full name.
///
/// AI Studio counts a whole request, and without it nothing but the conversation; Vertex wants the parts that it counts.
pub(super) fn count_body(
    request: &ChatRequest,
    service: GeminiService,
    resource: &str,
) -> Result<Vec<u8>, ProviderError> {
    let body = Body::new(request, service)?;
    match service {
        GeminiService::AiStudio => write(&Count {
            generate_content_request: Named {
                model: resource,
                body,
            },
        }),
        GeminiService::Vertex => write(&Body {
            tool_config: None,
            generation_config: None,
            ..body
        }),
    }
}

fn write(body: &impl Serialize) -> Result<Vec<u8>, ProviderError> {
    serde_json::to_vec(body).map_err(|error| refused(error.to_string()))
}

fn refused(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidRequest, message)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Count<'a> {
    generate_content_request: Named<'a>,
}

#[derive(Serialize)]
struct Named<'a> {
    model: &'a str,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    system_instruction: Option<Instruction<'a>>,
    contents: Vec<Turn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<[Tools<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_config: Option<ToolConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_config: Option<GenerationConfig<'a>>,
}

#[derive(Serialize)]
struct Instruction<'a> {
    parts: Vec<Part<'a>>,
}

#[derive(Serialize)]
struct Turn<'a> {
    role: &'static str,
    parts: Vec<Part<'a>>,
}

impl<'a> Body<'a> {
    fn new(request: &'a ChatRequest, service: GeminiService) -> Result<Self, ProviderError> {
        for number in [request.temperature, request.top_p].into_iter().flatten() {
            if !number.is_finite() {
                return Err(refused("temperature and top_p must be finite numbers"));
            }
        }
        let contents = turns(request, service)?;
        if contents.is_empty() {
            return Err(refused(
                "there are no messages; Gemini wants at least one beside the system prompt",
            ));
        }
        let some = !request.tools.is_empty();
        Ok(Self {
            system_instruction: instruction(request, service)?,
            contents,
            tools: some.then(|| [Tools::new(&request.tools)]),
            tool_config: request
                .tool_choice
                .as_ref()
                .filter(|_| some)
                .map(ToolConfig::new),
            generation_config: GenerationConfig::new(request),
        })
    }
}

/// All instructions. Those in the middle of a conversation have no other place.
fn instruction(
    request: &ChatRequest,
    service: GeminiService,
) -> Result<Option<Instruction<'_>>, ProviderError> {
    let first = request.system.as_deref().filter(|text| !text.is_empty());
    let mut parts: Vec<_> = first
        .map(|text| Part::new(Payload::Text(text)))
        .into_iter()
        .collect();
    for message in &request.messages {
        if message.role != Role::System {
            continue;
        }
        if message
            .content
            .iter()
            .any(|it| matches!(it, Content::Image(_)))
        {
            let message = "Gemini takes no images in instructions";
            return Err(ProviderError::new(ErrorKind::Unsupported, message));
        }
        parts.extend(said(message, service)?);
    }
    Ok(Some(Instruction { parts }).filter(|it| !it.parts.is_empty()))
}

/// The conversation. The results of calls that were made at once must stand in one turn.
fn turns(request: &ChatRequest, service: GeminiService) -> Result<Vec<Turn<'_>>, ProviderError> {
    let strict = takes_levels(&request.model);
    let mut turns: Vec<Turn<'_>> = Vec::new();
    let mut in_results = false;
    for (at, message) in request.messages.iter().enumerate() {
        let (role, parts) = match message.role {
            Role::Assistant => ("model", spoken(message, service, strict)?),
            Role::User => ("user", said(message, service)?),
            Role::System => continue,
            Role::Tool => {
                let name = called(message, &request.messages[..at])?;
                ("user", vec![result(message, name, service)?])
            }
        };
        // A turn without parts is refused.
        if parts.is_empty() {
            continue;
        }
        let is_result = message.role == Role::Tool;
        match turns.last_mut() {
            Some(last) if is_result && in_results => last.parts.extend(parts),
            _ => turns.push(Turn { role, parts }),
        }
        in_results = is_result;
    }
    Ok(turns)
}

/// What the person or the application said.
fn said(message: &Message, service: GeminiService) -> Result<Vec<Part<'_>>, ProviderError> {
    let mut parts = Vec::new();
    for content in &message.content {
        match content {
            Content::Text(text) if text.is_empty() => {}
            Content::Text(text) => parts.push(Part::new(Payload::Text(text))),
            Content::Image(image) => parts.push(Part::new(picture(image, service)?)),
            Content::Reasoning { .. } | Content::RedactedReasoning(_) | Content::CachePoint => {}
        }
    }
    Ok(parts)
}

/// The name of the tool whose result `message` is: Gemini knows calls by name, ids are an addition.
fn called<'a>(message: &Message, before: &'a [Message]) -> Result<&'a str, ProviderError> {
    let Some(id) = &message.tool_call_id else {
        return Err(refused(
            "a tool's result does not say which call it belongs to (tool_call_id)",
        ));
    };
    let mut calls = before.iter().rev().flat_map(|message| &message.tool_calls);
    let call = calls.find(|call| call.id == *id);
    call.map(|call| call.name.as_str()).ok_or_else(|| {
        refused(format!(
            "a tool's result belongs to the call `{id}`, which no message before it has"
        ))
    })
}
