//! What answers look like: the events of a stream, the items in them, and whole responses.
//!
//! Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
//! reading an event allocates nothing.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{FinishReason, Usage};
use crate::wire::json::{Skip, cow};

/// Any event of a stream.
#[derive(Deserialize)]
pub(super) struct StreamEvent<'a> {
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
    /// Which item of the output it belongs to. Ids will not do for that: some servers change them from event to event.
    #[serde(borrow)]
    output_index: Option<&'a RawValue>,
    #[serde(borrow)]
    pub delta: Option<&'a RawValue>,
    #[serde(borrow)]
    pub item: Option<&'a RawValue>,
    #[serde(borrow)]
    pub annotation: Option<&'a RawValue>,
    #[serde(borrow)]
    pub response: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
    /// Named here only to be skipped without serde's nesting stack.
    #[allow(dead_code, reason = "read to be skipped")]
    logprobs: Option<Skip>,
}

impl StreamEvent<'_> {
    pub(super) fn output_index(&self) -> Option<u64> {
        self.output_index?.get().parse().ok()
    }
}

/// A whole response, or what is known of it when the stream begins.
#[derive(Deserialize)]
pub(super) struct Response<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub model: Option<&'a RawValue>,
    #[serde(borrow)]
    pub status: Option<&'a RawValue>,
    #[serde(borrow)]
    pub output: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
    #[serde(borrow)]
    pub incomplete_details: Option<&'a RawValue>,
    #[serde(borrow)]
    pub usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Incomplete<'a> {
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
}

/// An item of the output. Those of hosted tools, which we never ask for, have other types and are passed over.
#[derive(Deserialize)]
pub(super) struct Item<'a> {
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
    /// A message's parts, or the text of a thought (open models).
    #[serde(borrow)]
    pub content: Option<&'a RawValue>,
    /// The summary of a thought.
    #[serde(borrow)]
    pub summary: Option<&'a RawValue>,
    #[serde(borrow)]
    pub call_id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub arguments: Option<&'a RawValue>,
}

/// What tells a thought that can be handed back.
#[derive(Deserialize)]
pub(super) struct Reasoning<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    encrypted_content: Option<&'a RawValue>,
}

impl Reasoning<'_> {
    /// Nothing is kept at the provider, so what is not encrypted in the item cannot be known there.
    pub(super) fn is_signed(&self) -> bool {
        let full = |text: &RawValue| cow(text).is_some_and(|text| !text.is_empty());
        self.r#type.and_then(cow).as_deref() == Some("reasoning")
            && self.encrypted_content.is_some_and(full)
    }
}

/// A part of a message, of a thought or of its summary.
#[derive(Deserialize)]
pub(super) struct Part<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    pub annotations: Option<&'a RawValue>,
}

/// `{"type":"url_citation","url":..,"title":..}`; those that name a file have no address.
#[derive(Deserialize)]
pub(super) struct Annotation<'a> {
    #[serde(borrow)]
    pub url: Option<&'a RawValue>,
    #[serde(borrow)]
    pub title: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<InputDetails>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Deserialize)]
struct InputDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct OutputDetails {
    reasoning_tokens: Option<u64>,
}

/// Reads a usage object. Counts in an unknown form are not worth losing an answer for: then there are none.
pub(super) fn usage(raw: &RawValue) -> Option<Usage> {
    let wire: Option<WireUsage> = serde_json::from_str(raw.get()).ok()?;
    let wire = wire?;
    let input = wire.input_tokens_details.as_ref();
    Some(Usage {
        input_tokens: wire.input_tokens.unwrap_or(0),
        output_tokens: wire.output_tokens.unwrap_or(0),
        cached_input_tokens: input.and_then(|details| details.cached_tokens).unwrap_or(0),
        cache_write_tokens: input
            .and_then(|details| details.cache_write_tokens)
            .unwrap_or(0),
        reasoning_tokens: wire
            .output_tokens_details
            .and_then(|details| details.reasoning_tokens)
            .unwrap_or(0),
    })
}

/// Why an incomplete answer is so: `{"reason":..}`.
pub(super) fn incomplete_reason(details: Option<&RawValue>) -> FinishReason {
    let details = details.and_then(|raw| serde_json::from_str::<Incomplete<'_>>(raw.get()).ok());
    let reason = details.and_then(|details| details.reason.and_then(cow));
    match reason.as_deref() {
        Some("max_output_tokens" | "max_tokens") => FinishReason::Length,
        Some("content_filter") => FinishReason::ContentFilter,
        _ => FinishReason::Unknown,
    }
}
