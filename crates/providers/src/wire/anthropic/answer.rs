//! What an answer looks like, as the events of a stream and as one message.
//!
//! Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
//! reading a piece of text allocates nothing.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{Citation, Event, EventQueue, FinishReason, Usage};
use crate::wire::json::cow;

/// An event of a stream, told apart by `type`.
#[derive(Deserialize)]
pub(super) struct StreamEvent<'a> {
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    pub message: Option<&'a RawValue>,
    pub index: Option<u64>,
    #[serde(borrow)]
    pub content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    pub delta: Option<Delta<'a>>,
    #[serde(borrow)]
    pub usage: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
}

/// What is new: of a content block, or of the whole message.
#[derive(Deserialize)]
pub(super) struct Delta<'a> {
    /// `text_delta`
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    /// `thinking_delta`
    #[serde(borrow)]
    pub thinking: Option<&'a RawValue>,
    /// `signature_delta`
    #[serde(borrow)]
    pub signature: Option<&'a RawValue>,
    /// `input_json_delta`
    #[serde(borrow)]
    pub partial_json: Option<&'a RawValue>,
    /// `citations_delta`
    #[serde(borrow)]
    pub citation: Option<&'a RawValue>,
    #[serde(borrow)]
    pub stop_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    pub stop_details: Option<&'a RawValue>,
}

/// A whole answer, or the beginning of a streamed one.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub model: Option<&'a RawValue>,
    #[serde(borrow)]
    pub content: Option<&'a RawValue>,
    #[serde(borrow)]
    pub stop_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    pub stop_details: Option<&'a RawValue>,
    #[serde(borrow)]
    pub usage: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
}

/// A content block. Those of the provider's own tools have other fields, which are of no interest here.
#[derive(Deserialize)]
pub(super) struct Block<'a> {
    #[serde(borrow)]
    pub r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub citations: Option<&'a RawValue>,
    #[serde(borrow)]
    pub thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    pub signature: Option<&'a RawValue>,
    /// Of `redacted_thinking`.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub input: Option<&'a RawValue>,
}

/// A source, in a search result, on the web, or in a document that came with the request.
#[derive(Deserialize)]
struct Cited<'a> {
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    /// Where a search result comes from: usually an address.
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    document_title: Option<&'a RawValue>,
    #[serde(borrow)]
    cited_text: Option<&'a RawValue>,
}

/// Adds a citation, unless it is of a form that is yet to come.
pub(super) fn cite(raw: &RawValue, events: &mut EventQueue) {
    let Ok(cited) = serde_json::from_str::<Cited<'_>>(raw.get()) else {
        return;
    };
    let url = cited.url.or(cited.source).and_then(cow);
    let title = cited.title.or(cited.document_title).and_then(cow);
    let quote = cited.cited_text.and_then(cow);
    if url.is_some() || title.is_some() || quote.is_some() {
        events.push(Event::Citation(Citation {
            url: url.as_deref(),
            title: title.as_deref(),
            quote: quote.as_deref(),
        }));
    }
}

/// A word that needs no escapes, such as a type.
pub(super) fn plain(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"')
}

/// Why the model stopped, in more words.
#[derive(Deserialize)]
pub(super) struct StopDetails<'a> {
    #[serde(borrow)]
    pub explanation: Option<&'a RawValue>,
}

/// Tokens so far. Each number is a total, never an addition, and one that is left out stands as it was.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Tokens {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct OutputDetails {
    thinking_tokens: Option<u64>,
}

impl Tokens {
    /// Takes newer numbers. Those in an unknown form are not worth losing an answer for.
    pub(super) fn update(&mut self, raw: &RawValue) {
        let Ok(newer) = serde_json::from_str::<Self>(raw.get()) else {
            return;
        };
        *self = Self {
            input_tokens: newer.input_tokens.or(self.input_tokens),
            cache_creation_input_tokens: newer
                .cache_creation_input_tokens
                .or(self.cache_creation_input_tokens),
            cache_read_input_tokens: newer
                .cache_read_input_tokens
                .or(self.cache_read_input_tokens),
            output_tokens: newer.output_tokens.or(self.output_tokens),
            output_tokens_details: newer.output_tokens_details.or(self.output_tokens_details),
        };
    }

    /// The numbers in our terms; `None` if none came. Anthropic's `input_tokens` are only those that neither came
    /// from the cache nor went into it.
    pub(super) fn usage(self) -> Option<Usage> {
        if self.input_tokens.is_none() && self.output_tokens.is_none() {
            return None;
        }
        let written = self.cache_creation_input_tokens.unwrap_or(0);
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let details = self.output_tokens_details;
        Some(Usage {
            input_tokens: self
                .input_tokens
                .unwrap_or(0)
                .saturating_add(written)
                .saturating_add(cached),
            output_tokens: self.output_tokens.unwrap_or(0),
            cached_input_tokens: cached,
            cache_write_tokens: written,
            reasoning_tokens: details
                .and_then(|details| details.thinking_tokens)
                .unwrap_or(0),
        })
    }
}

/// The reason of an ending. `pause_turn` (a tool of the provider's own is not done) has no word of ours: we ask for no
/// such tools.
pub(super) fn finish_reason(name: &str) -> FinishReason {
    match name {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::Refusal,
        _ => FinishReason::Unknown,
    }
}
