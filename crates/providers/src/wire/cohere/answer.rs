//! What an answer looks like: whole ones, and the events of a stream, whose `delta` has the same fields with one
//! element in place of each list.
//!
//! Source: <https://docs.cohere.com/v2/reference/chat-stream>. Each field may be missing or null, and unknown ones are
//! skipped. Texts stay raw until they are wanted, so that reading a token allocates nothing; and so do the rare things,
//! which would make every event larger to move.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ErrorKind, Phase};
use crate::event::{FinishReason, Usage};
use crate::wire::json::Few;

/// An event of a stream.
#[derive(Deserialize)]
pub(super) struct Piece<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    /// Which tool call, or which part of the content.
    pub index: Option<u64>,
    #[serde(borrow)]
    pub delta: Option<Body<'a>>,
    /// No event has it: where it is, an error came in place of one.
    #[serde(borrow)]
    pub message: Option<&'a RawValue>,
}

/// The `delta` of an event, or a whole answer.
#[derive(Deserialize)]
pub(super) struct Body<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub message: Option<Message<'a>>,
    #[serde(borrow)]
    pub finish_reason: Option<&'a RawValue>,
    /// [`Tokens`].
    #[serde(borrow)]
    pub usage: Option<&'a RawValue>,
    /// Beside the reason `ERROR`.
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub content: Option<Few<Part<'a>>>,
    /// What the model thinks before it calls tools.
    #[serde(borrow)]
    pub tool_plan: Option<&'a RawValue>,
    #[serde(borrow)]
    pub tool_calls: Option<Few<Call<'a>>>,
    /// A few [`Cited`].
    #[serde(borrow)]
    pub citations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Part<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub thinking: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Call<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub function: Option<Function<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub arguments: Option<&'a RawValue>,
}

/// Words of the answer, and what they rest on.
#[derive(Deserialize)]
pub(super) struct Cited<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub sources: Option<Few<Source<'a>>>,
}

/// A document of the request, or the output of a tool.
#[derive(Deserialize)]
pub(super) struct Source<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    /// Whatever the caller put in it.
    #[serde(borrow)]
    pub document: Option<&'a RawValue>,
    #[serde(borrow)]
    pub tool_output: Option<&'a RawValue>,
}

/// What people put into documents under names that Cohere's guides use.
#[derive(Deserialize)]
pub(super) struct Known<'a> {
    #[serde(borrow)]
    pub url: Option<&'a RawValue>,
    #[serde(borrow)]
    pub title: Option<&'a RawValue>,
}

/// All numbers are JSON numbers that may have a fraction of zero.
#[derive(Deserialize)]
pub(super) struct Tokens {
    /// What the model read and wrote.
    tokens: Option<Count>,
    /// What is paid for: without the template around the messages.
    billed_units: Option<Count>,
    cached_tokens: Option<f64>,
}

#[derive(Deserialize)]
struct Count {
    input_tokens: Option<f64>,
    output_tokens: Option<f64>,
}

impl Tokens {
    pub(super) fn usage(&self) -> Option<Usage> {
        let count = self.tokens.as_ref().or(self.billed_units.as_ref())?;
        // Casts of floats saturate.
        let number = |number: Option<f64>| number.unwrap_or(0.0) as u64;
        Some(Usage {
            input_tokens: number(count.input_tokens),
            output_tokens: number(count.output_tokens),
            cached_input_tokens: number(self.cached_tokens),
            ..Usage::default()
        })
    }
}

/// The reason of an ending, or what failed.
pub(super) fn finish_reason(name: &str) -> Result<FinishReason, ErrorKind> {
    Ok(match name {
        "COMPLETE" | "STOP_SEQUENCE" => FinishReason::Stop,
        "MAX_TOKENS" => FinishReason::Length,
        "TOOL_CALL" => FinishReason::ToolCalls,
        "ERROR_TOXIC" => FinishReason::ContentFilter,
        "ERROR" => return Err(ErrorKind::ProviderInternal),
        "TIMEOUT" => return Err(ErrorKind::TimedOut(Phase::Upstream)),
        _ => FinishReason::Unknown,
    })
}
