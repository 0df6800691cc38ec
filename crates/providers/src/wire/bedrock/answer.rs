//! What answers look like, streamed or whole.
//!
//! Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
//! reading a delta allocates nothing.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ErrorKind, ProviderError};
use crate::event::{FinishReason, Usage};
use crate::wire::error::not_understood;

/// `contentBlockStart`.
#[derive(Deserialize)]
pub(super) struct BlockStart<'a> {
    #[serde(rename = "contentBlockIndex", default)]
    pub index: u64,
    #[serde(borrow)]
    pub start: Option<Start<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Start<'a> {
    #[serde(borrow, rename = "toolUse")]
    pub tool_use: Option<ToolUse<'a>>,
}

/// The beginning of a call, or a whole one.
#[derive(Deserialize)]
pub(super) struct ToolUse<'a> {
    #[serde(borrow, rename = "toolUseId")]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    /// The arguments, in a whole call.
    #[serde(borrow)]
    pub input: Option<&'a RawValue>,
    /// There where Bedrock itself runs the tool.
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
}

/// `contentBlockDelta`.
#[derive(Deserialize)]
pub(super) struct BlockDelta<'a> {
    #[serde(rename = "contentBlockIndex", default)]
    pub index: u64,
    #[serde(borrow)]
    pub delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Delta<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub tool_use: Option<Arguments<'a>>,
    #[serde(borrow)]
    pub reasoning_content: Option<Thought<'a>>,
    #[serde(borrow)]
    pub citation: Option<Cited<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Arguments<'a> {
    #[serde(borrow)]
    pub input: Option<&'a RawValue>,
}

/// A thought, or a piece of one. Whole ones have their text and signature one level deeper.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Thought<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub signature: Option<&'a RawValue>,
    #[serde(borrow)]
    pub redacted_content: Option<&'a RawValue>,
    #[serde(borrow)]
    pub reasoning_text: Option<ThoughtText<'a>>,
}

#[derive(Deserialize)]
pub(super) struct ThoughtText<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub signature: Option<&'a RawValue>,
}

/// A source, in a stream and in a whole answer alike.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cited<'a> {
    #[serde(borrow)]
    pub title: Option<&'a RawValue>,
    /// Where a search found it: mostly an address.
    #[serde(borrow)]
    pub source: Option<&'a RawValue>,
    #[serde(borrow)]
    pub source_content: Option<&'a RawValue>,
    #[serde(borrow)]
    pub location: Option<Location<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Location<'a> {
    #[serde(borrow)]
    pub web: Option<Web<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Web<'a> {
    #[serde(borrow)]
    pub url: Option<&'a RawValue>,
}

/// An object of which only its text is wanted.
#[derive(Deserialize)]
pub(super) struct Text<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
}

/// `messageStop`.
#[derive(Deserialize)]
pub(super) struct Stop<'a> {
    #[serde(borrow, rename = "stopReason")]
    pub reason: Option<&'a RawValue>,
}

/// `metadata`.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub usage: Option<TokenUsage>,
}

/// A whole answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Whole<'a> {
    #[serde(borrow)]
    pub output: Option<Output<'a>>,
    #[serde(borrow)]
    pub stop_reason: Option<&'a RawValue>,
    pub usage: Option<TokenUsage>,
}

#[derive(Deserialize)]
pub(super) struct Output<'a> {
    #[serde(borrow)]
    pub message: Option<Message<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub content: Option<&'a RawValue>,
}

/// A block of a whole answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub tool_use: Option<ToolUse<'a>>,
    #[serde(borrow)]
    pub reasoning_content: Option<Thought<'a>>,
    #[serde(borrow)]
    pub citations_content: Option<CitationsContent<'a>>,
}

/// A part of the text with its sources.
#[derive(Deserialize)]
pub(super) struct CitationsContent<'a> {
    #[serde(borrow)]
    pub content: Option<&'a RawValue>,
    #[serde(borrow)]
    pub citations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_write_input_tokens: Option<u64>,
}

impl TokenUsage {
    /// In one set of words: Bedrock counts cached tokens beside the others, not among them
    /// (<https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html>).
    pub(super) fn total(&self) -> Option<Usage> {
        let read = self.cache_read_input_tokens.unwrap_or(0);
        let written = self.cache_write_input_tokens.unwrap_or(0);
        Some(Usage {
            input_tokens: self
                .input_tokens?
                .saturating_add(read)
                .saturating_add(written),
            output_tokens: self.output_tokens.unwrap_or(0),
            cached_input_tokens: read,
            cache_write_tokens: written,
            reasoning_tokens: 0,
        })
    }
}

/// The reason of an ending.
///
/// # Errors
///
/// The model wrote what Bedrock could not read: another try may succeed.
pub(super) fn finish_reason(name: &str) -> Result<FinishReason, ProviderError> {
    Ok(match name {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "tool_use" => FinishReason::ToolCalls,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "guardrail_intervened" | "content_filtered" => FinishReason::ContentFilter,
        "malformed_model_output" | "malformed_tool_use" => {
            let message = format!("the model wrote something that Bedrock could not read ({name})");
            let mut error = ProviderError::new(ErrorKind::ProviderInternal, message);
            error.code = Some(name.into());
            return Err(error);
        }
        _ => FinishReason::Unknown,
    })
}

/// The number in an answer of `CountTokens`.
pub(super) fn count(body: &[u8]) -> Result<u64, ProviderError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Count {
        input_tokens: u64,
    }
    let count: Count = serde_json::from_slice(body).map_err(not_understood)?;
    Ok(count.input_tokens)
}
