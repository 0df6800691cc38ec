//! The parts of a turn.
//!
//! Source: <https://ai.google.dev/api/caching#Part>, <https://ai.google.dev/gemini-api/docs/thought-signatures>.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{GeminiService, MADE};
use crate::chat::{Content, Image, ImageSource, Message, ToolCall};
use crate::error::{ErrorKind, ProviderError};

/// Stands where a call has lost the signature that Gemini 3 insists on: another model made it, or an editor that keeps
/// none. Google's own word for that, see the FAQ of the page on thought signatures.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Part<'a> {
    #[serde(flatten)]
    data: Payload<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    thought: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    thought_signature: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Payload<'a> {
    Text(&'a str),
    InlineData(Blob<'a>),
    FileData(File<'a>),
    FunctionCall(Call<'a>),
    FunctionResponse(Response<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob<'a> {
    mime_type: &'a str,
    data: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mime_type: Option<&'static str>,
    file_uri: &'a str,
}

#[derive(Serialize)]
pub(super) struct Call<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: &'a str,
    args: Object<'a>,
}

#[derive(Serialize)]
pub(super) struct Response<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    name: &'a str,
    response: Object<'a>,
    /// Pictures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Payload<'a>>,
}

/// Arguments and results must be JSON objects.
#[derive(Serialize)]
#[serde(untagged)]
enum Object<'a> {
    Whole(&'a RawValue),
    /// What is none becomes the only field of one.
    Arguments {
        #[serde(skip_serializing_if = "str::is_empty")]
        arguments: &'a str,
    },
    Output {
        output: String,
    },
}

fn object(text: &str) -> Option<&RawValue> {
    let value: &RawValue = serde_json::from_str(text).ok()?;
    value.get().starts_with('{').then_some(value)
}

impl<'a> Part<'a> {
    pub(super) fn new(data: Payload<'a>) -> Self {
        Self {
            data,
            thought: false,
            thought_signature: None,
        }
    }

    fn signed(data: Payload<'a>, signature: Option<&'a str>) -> Self {
        Self {
            thought_signature: signature,
            ..Self::new(data)
        }
    }
}

/// What the model said. Each signature goes back on the part that it came on: see [`super::decode`].
///
/// `strict`: the model refuses calls without.
pub(super) fn spoken<'a>(
    message: &'a Message,
    service: GeminiService,
    strict: bool,
) -> Result<Vec<Part<'a>>, ProviderError> {
    let mut parts = Vec::new();
    // A signature whose part is still to come.
    let mut waiting = None;
    for content in &message.content {
        match content {
            Content::Text(text) if text.is_empty() => {}
            Content::Text(text) => parts.push(Part::signed(Payload::Text(text), waiting.take())),
            Content::Image(image) => {
                parts.push(Part::signed(picture(image, service)?, waiting.take()));
            }
            Content::Reasoning { text, signature } => parts.push(Part {
                thought: true,
                ..Part::signed(Payload::Text(text), signature.as_deref().and_then(encoded))
            }),
            Content::RedactedReasoning(signature) => {
                if let Some(signature) = encoded(signature)
                    && let Some(earlier) = waiting.replace(signature)
                {
                    parts.push(Part::signed(Payload::Text(""), Some(earlier)));
                }
            }
            Content::CachePoint => {}
        }
    }
    let own = |call: &'a ToolCall| call.signature.as_deref().and_then(encoded);
    let first = message.tool_calls.first();
    let unsigned = first.is_some_and(|call| own(call).is_none());
    if !unsigned && let Some(signature) = waiting.take() {
        parts.push(Part::signed(Payload::Text(""), Some(signature)));
    }
    for (at, call) in message.tool_calls.iter().enumerate() {
        // Of calls at once only the first has one.
        let lost = || (at == 0 && strict).then_some(NO_SIGNATURE);
        let signature = own(call).or_else(|| waiting.take()).or_else(lost);
        let args = object(&call.arguments).map_or(
            Object::Arguments {
                arguments: call.arguments.trim(),
            },
            Object::Whole,
        );
        let data = Payload::FunctionCall(Call {
            id: given(&call.id),
            name: &call.name,
            args,
        });
        parts.push(Part::signed(data, signature));
    }
    Ok(parts)
}

/// The result of the call of this `name`.
pub(super) fn result<'a>(
    message: &'a Message,
    name: &'a str,
    service: GeminiService,
) -> Result<Part<'a>, ProviderError> {
    let mut text = String::new();
    let mut only = None;
    let mut parts = Vec::new();
    for content in &message.content {
        match content {
            Content::Text(more) => {
                only = text.is_empty().then_some(more.as_str());
                text.push_str(more);
            }
            Content::Image(image) => parts.push(picture(image, service)?),
            Content::Reasoning { .. } | Content::RedactedReasoning(_) | Content::CachePoint => {}
        }
    }
    let response = match only.and_then(object) {
        Some(whole) => Object::Whole(whole),
        None => Object::Output { output: text },
    };
    Ok(Part::new(Payload::FunctionResponse(Response {
        id: message.tool_call_id.as_deref().and_then(given),
        name,
        response,
        parts,
    })))
}

/// A picture in the request, or at an address that Google fetches.
pub(super) fn picture(image: &Image, service: GeminiService) -> Result<Payload<'_>, ProviderError> {
    let url = match &image.source {
        ImageSource::Base64 { media_type, data } => {
            let mime_type = media_type;
            return Ok(Payload::InlineData(Blob { mime_type, data }));
        }
        ImageSource::Url(url) => url.as_str(),
    };
    if let Some(inside) = url.strip_prefix("data:") {
        let parts = inside.split_once(";base64,");
        let (mime_type, data) = parts.ok_or_else(|| {
            let message = "an image's data: URL must say its type and be in base64";
            ProviderError::new(ErrorKind::InvalidRequest, message)
        })?;
        return Ok(Payload::InlineData(Blob { mime_type, data }));
    }
    let mime_type = type_by_name(url);
    if mime_type.is_none() && service == GeminiService::Vertex {
        let message = "Vertex AI wants to know the type of an image, and this one's URL does not end in one (.png, .jpg, \
            .webp, .gif, .heic, .heif)";
        return Err(ProviderError::new(ErrorKind::Unsupported, message));
    }
    Ok(Payload::FileData(File {
        mime_type,
        file_uri: url,
    }))
}

fn type_by_name(url: &str) -> Option<&'static str> {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let (_, ending) = path.rsplit_once('.')?;
    Some(match ending.to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "heic" => "image/heic",
        "heif" => "image/heif",
        _ => return None,
    })
}

/// The id of a call, if it was not made here.
fn given(id: &str) -> Option<&str> {
    Some(id).filter(|id| !id.is_empty() && !id.starts_with(MADE))
}

/// A signature is base64. What is not cannot be Google's, and would have the whole request refused.
fn encoded(signature: &str) -> Option<&str> {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
    Some(signature).filter(|text| !text.is_empty() && text.bytes().all(base64))
}
