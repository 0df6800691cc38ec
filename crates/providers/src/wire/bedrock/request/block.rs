//! The blocks that a message's content is made of.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{refused, unsupported};
use crate::chat::{Content, Image, ImageSource, Message, Role, ToolCall};
use crate::error::ProviderError;

/// One block, in the form of a Smithy union: an object with one field.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Block<'a> {
    Text(&'a str),
    Image(ImageBlock<'a>),
    CachePoint(CachePoint),
    ReasoningContent(Thought<'a>),
    ToolUse(ToolUse<'a>),
    ToolResult(ToolResult<'a>),
}

/// Everything before it is worth caching.
#[derive(Clone, Copy, Serialize)]
pub(super) struct CachePoint {
    r#type: &'static str,
}

impl CachePoint {
    pub(super) const DEFAULT: Self = Self { r#type: "default" };
}

#[derive(Serialize)]
pub(super) struct ImageBlock<'a> {
    format: &'static str,
    source: Bytes<'a>,
}

#[derive(Serialize)]
struct Bytes<'a> {
    /// In base64.
    bytes: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Thought<'a> {
    ReasoningText { text: &'a str, signature: &'a str },
    RedactedContent(&'a str),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolUse<'a> {
    tool_use_id: &'a str,
    name: &'a str,
    input: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolResult<'a> {
    tool_use_id: &'a str,
    content: Vec<Block<'a>>,
}

impl<'a> Block<'a> {
    /// A text; blank ones are refused by Bedrock and say nothing.
    pub(super) fn text(text: &'a str) -> Option<Self> {
        (!text.trim().is_empty()).then_some(Self::Text(text))
    }
}

/// The blocks of a message.
pub(super) fn of(message: &Message) -> Result<Vec<Block<'_>>, ProviderError> {
    let mut blocks = Vec::new();
    for content in &message.content {
        match content {
            Content::Text(text) => blocks.extend(Block::text(text)),
            Content::Image(_) if !matches!(message.role, Role::User | Role::Tool) => {
                return Err(unsupported(
                    "Bedrock takes images in what the user says and in results of tools only",
                ));
            }
            Content::Image(image) => blocks.push(Block::Image(ImageBlock::of(image)?)),
            // A thought without its proof is refused by those who want thoughts back.
            Content::Reasoning { text, signature } => {
                blocks.extend(signature.as_deref().map(|signature| {
                    Block::ReasoningContent(Thought::ReasoningText { text, signature })
                }));
            }
            Content::RedactedReasoning(data) => {
                blocks.push(Block::ReasoningContent(Thought::RedactedContent(data)));
            }
            Content::CachePoint => blocks.push(Block::CachePoint(CachePoint::DEFAULT)),
        }
    }
    for call in &message.tool_calls {
        blocks.push(Block::ToolUse(ToolUse::of(call)?));
    }
    if message.role != Role::Tool {
        return Ok(blocks);
    }
    let id = message.tool_call_id.as_deref().ok_or_else(|| {
        refused("a tool's result does not say which call it belongs to (tool_call_id)")
    })?;
    // A mark stands beside a result, not in it.
    let mark = |block: &Block<'_>| matches!(block, Block::CachePoint(_));
    let (marks, content) = blocks.into_iter().partition(mark);
    let result = Block::ToolResult(ToolResult {
        tool_use_id: id,
        content,
    });
    let marks: Vec<Block<'_>> = marks;
    Ok(std::iter::once(result).chain(marks).collect())
}

impl<'a> ImageBlock<'a> {
    fn of(image: &'a Image) -> Result<Self, ProviderError> {
        let ImageSource::Base64 { media_type, data } = &image.source else {
            return Err(unsupported(
                "Bedrock fetches no images: give the bytes of the image, not its address",
            ));
        };
        let format = match media_type.to_ascii_lowercase().as_str() {
            "image/png" => "png",
            "image/jpeg" | "image/jpg" => "jpeg",
            "image/gif" => "gif",
            "image/webp" => "webp",
            _ => {
                return Err(unsupported(
                    "Bedrock takes images as PNG, JPEG, GIF or WebP only",
                ));
            }
        };
        Ok(Self {
            format,
            source: Bytes { bytes: data },
        })
    }
}

impl<'a> ToolUse<'a> {
    fn of(call: &'a ToolCall) -> Result<Self, ProviderError> {
        // A model that needs no arguments may write none.
        let arguments = Some(call.arguments.trim()).filter(|text| !text.is_empty());
        let input = serde_json::from_str(arguments.unwrap_or("{}")).map_err(|error| {
            let name = &call.name;
            refused(format!(
                "the arguments of a call of the tool `{name}` are no JSON: {error}"
            ))
        })?;
        Ok(Self {
            tool_use_id: &call.id,
            name: &call.name,
            input,
        })
    }
}
