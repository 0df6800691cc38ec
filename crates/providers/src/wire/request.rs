//! What the requests of several formats have in common.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::chat::{ChatRequest, Content, Image, ImageDetail, ImageSource, Message, Role, Tool};
use crate::error::{ErrorKind, ProviderError};

/// What every provider would answer with a puzzling error.
///
/// # Errors
///
/// [`InvalidRequest`](ErrorKind::InvalidRequest).
pub(crate) fn check(request: &ChatRequest) -> Result<(), ProviderError> {
    if request.model.is_empty() {
        return Err(invalid("no model is named"));
    }
    if request.messages.is_empty() && request.system.is_none() {
        return Err(invalid("there are no messages"));
    }
    for number in [request.temperature, request.top_p].into_iter().flatten() {
        if !number.is_finite() {
            return Err(invalid("temperature and top_p must be finite numbers"));
        }
    }
    let lost = |message: &Message| message.role == Role::Tool && message.tool_call_id.is_none();
    if request.messages.iter().any(lost) {
        return Err(invalid(
            "a tool's result does not say which call it belongs to (tool_call_id)",
        ));
    }
    Ok(())
}

/// A request that makes no sense.
pub(crate) fn invalid(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidRequest, message)
}

/// A request that the format cannot say.
pub(crate) fn cannot_say(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::Unsupported, message)
}

/// The body of a request.
pub(crate) fn to_json(body: &impl Serialize) -> Result<Vec<u8>, ProviderError> {
    serde_json::to_vec(body).map_err(|error| invalid(error.to_string()))
}

/// The texts of a message.
pub(crate) fn texts(message: &Message) -> impl Iterator<Item = &str> {
    message.content.iter().filter_map(|content| match content {
        Content::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

/// The thoughts of a message that can be read.
pub(crate) fn thoughts(message: &Message) -> String {
    let thoughts = message.content.iter().filter_map(|content| match content {
        Content::Reasoning { text, .. } => Some(text.as_str()),
        _ => None,
    });
    thoughts.collect()
}

/// A picture by its address, which may hold its bytes.
#[derive(Serialize)]
pub(crate) struct ImageUrl<'a> {
    url: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

impl<'a> From<&'a Image> for ImageUrl<'a> {
    fn from(image: &'a Image) -> Self {
        Self {
            url: image_url(&image.source),
            detail: image.detail.map(detail_name),
        }
    }
}

/// A picture's address, or the picture itself as one.
pub(crate) fn image_url(source: &ImageSource) -> Cow<'_, str> {
    match source {
        ImageSource::Url(url) => url.into(),
        ImageSource::Base64 { media_type, data } => {
            format!("data:{media_type};base64,{data}").into()
        }
    }
}

/// The word for how closely to look at a picture.
pub(crate) fn detail_name(detail: ImageDetail) -> &'static str {
    match detail {
        ImageDetail::Auto => "auto",
        ImageDetail::Low => "low",
        ImageDetail::High => "high",
    }
}

/// A tool's definition where its parameters must be said: one without any takes an empty object.
#[derive(Serialize)]
pub(crate) struct FunctionTool<'a> {
    r#type: &'static str,
    function: Definition<'a>,
}

#[derive(Serialize)]
struct Definition<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: Parameters<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Parameters<'a> {
    Schema(&'a RawValue),
    None {
        r#type: &'static str,
        properties: Empty,
    },
}

#[derive(Serialize)]
struct Empty {}

impl<'a> From<&'a Tool> for FunctionTool<'a> {
    fn from(tool: &'a Tool) -> Self {
        let none = Parameters::None {
            r#type: "object",
            properties: Empty {},
        };
        Self {
            r#type: "function",
            function: Definition {
                name: &tool.name,
                description: tool.description.as_deref(),
                parameters: tool.parameters.as_deref().map_or(none, Parameters::Schema),
            },
        }
    }
}
