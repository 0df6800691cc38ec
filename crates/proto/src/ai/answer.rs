//! What an answer is made of, whole or event by event.

use serde::{Deserialize, Serialize};

use super::{Part, ToolCall};
use crate::Attempt;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AIResponse {
    /// The provider's id of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The model that answered.
    pub model: String,
    /// The provider that answered.
    pub provider: String,
    /// The answer.
    pub content: String,
    /// The model's thinking that can be read, joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The model's thinking as parts of a message, with what must be handed back in the next turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thoughts: Option<Vec<Part>>,
    /// What the model called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// What the answer rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citations: Option<Vec<Citation>>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Who was asked, in order. Empty where the first one answered at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// What the answer cost, in billionths of a US dollar. Absent where the model's price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
    /// Whether it came from the daemon's cache, or from a request under way that was the same.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cached: bool,
    /// What there is to say about it: soft budgets that are exceeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A source of an answer. At least one of its fields is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Citation {
    /// Where; a document that came with the request has no address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The words of the source that are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
}

/// Tokens that an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// In the request, cached ones included.
    pub input_tokens: u64,
    /// In the answer, thinking included.
    pub output_tokens: u64,
    /// Of the input, those read from the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_tokens: Option<u64>,
    /// Of the input, those written to the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<u64>,
    /// Of the output, those spent thinking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FinishReason {
    /// It was complete.
    #[default]
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
    /// The provider held the rest back.
    ContentFilter,
    /// The model refused, in the words that came.
    Refusal,
    /// For a reason of the provider's own, and any that this version does not know.
    #[serde(other)]
    Other,
}

/// One item of a streamed response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum StreamEvent {
    /// First, once.
    Start {
        /// The provider that answers.
        provider: String,
        /// The model that answers.
        model: String,
        /// The provider's id of the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// A piece of the answer.
    Text {
        /// The piece.
        text: String,
    },
    /// A piece of the model's thinking.
    Reasoning {
        /// The piece; empty where only the signature comes.
        text: String,
        /// The provider's proof of the thought that ends here, to be handed back with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// A thought that the provider has encrypted, whole, to be handed back as it is.
    RedactedReasoning {
        /// The thought.
        data: String,
    },
    /// A piece of a call.
    ToolCall {
        /// Which call of this answer.
        index: u32,
        /// The call's id, once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Which tool, once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// A piece of the arguments' JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arguments: Option<String>,
        /// The provider's proof of the thought behind the call, to be handed back with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// A source.
    Citation(Citation),
    /// The answer broke off, and another goes on with it from here: what follows belongs right behind what came so far.
    #[serde(rename_all = "camelCase")]
    Continued {
        /// The provider that goes on.
        provider: String,
        /// The model that goes on.
        model: String,
        /// That provider's id of its part.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// The bytes of text, in UTF-8, that came before.
        text_bytes: u64,
    },
    /// What it took so far.
    Usage(Usage),
    /// Last, once.
    #[serde(rename_all = "camelCase")]
    Finish {
        /// Why.
        reason: FinishReason,
        /// Who was asked, in order. Empty where the first one answered at once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attempts: Vec<Attempt>,
        /// What the answer cost, in billionths of a US dollar. Absent where the model's price is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost_nano_usd: Option<u64>,
        /// Whether it came from the daemon's cache, or from a request under way that was the same.
        #[serde(default, skip_serializing_if = "is_false")]
        cached: bool,
        /// What there is to say about it: soft budgets that are exceeded.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    /// An event that this version does not know.
    #[serde(other)]
    Unknown,
}
