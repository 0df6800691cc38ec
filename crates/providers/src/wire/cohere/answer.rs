//! What an answer looks like: whole ones, and the events of a stream, whose `delta` has the same fields with one
//! element in place of each list.
//!
//! Source: <https://docs.cohere.com/v2/reference/chat-stream>. Each field may be missing or null, and unknown ones are
//! skipped. Texts stay raw until they are wanted, so that reading a token allocates nothing.

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use crate::error::{ErrorKind, Phase};
use crate::event::{FinishReason, Usage};
use crate::wire::json::{Few, Fill, Object, skip};

/// An event of a stream.
#[derive(Default)]
pub(super) struct Piece<'a> {
    pub id: Option<&'a RawValue>,
    /// Which tool call, or which part of the content.
    pub index: Option<u64>,
    pub delta: Body<'a>,
    /// No event has it: where it is, an error came in place of one.
    pub message: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Piece<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "delta" => return map.next_value_seed(Object::or_null(&mut self.delta)),
            "index" => self.index = map.next_value()?,
            "id" => self.id = map.next_value()?,
            "message" => self.message = map.next_value()?,
            _ => return skip(map),
        }
        Ok(())
    }
}

/// The `delta` of an event, or a whole answer.
#[derive(Default)]
pub(super) struct Body<'a> {
    pub id: Option<&'a RawValue>,
    pub message: Message<'a>,
    pub finish_reason: Option<&'a RawValue>,
    /// [`Tokens`].
    pub usage: Option<&'a RawValue>,
    /// Beside the reason `ERROR`.
    pub error: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Body<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let raw = match name {
            "message" => return map.next_value_seed(Object::or_null(&mut self.message)),
            "id" => &mut self.id,
            "finish_reason" => &mut self.finish_reason,
            "usage" => &mut self.usage,
            "error" => &mut self.error,
            _ => return skip(map),
        };
        *raw = map.next_value()?;
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Message<'a> {
    /// Whether there is one.
    pub there: bool,
    pub content: Option<Few<Part<'a>>>,
    /// What the model thinks before it calls tools.
    pub tool_plan: Option<&'a RawValue>,
    pub tool_calls: Option<Few<Call<'a>>>,
    /// A few [`Cited`].
    pub citations: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Message<'de> {
    fn begin(&mut self) {
        self.there = true;
    }

    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "content" => self.content = map.next_value()?,
            "tool_plan" => self.tool_plan = map.next_value()?,
            "tool_calls" => self.tool_calls = map.next_value()?,
            "citations" => self.citations = map.next_value()?,
            _ => return skip(map),
        }
        Ok(())
    }
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
