//! What an answer looks like: a `GenerateContentResponse`, of which a stream has many and a whole body is one.
//!
//! Source: <https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse>. Each field may be missing or null,
//! and unknown ones are skipped. Texts stay raw until they are wanted, so that reading a chunk allocates nothing.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::arguments::Piece;
use crate::error::ErrorKind;
use crate::event::{FinishReason, Usage};
use crate::wire::json::{Few, Fill, FirstObject, Object, Objects, skip};

#[derive(Default)]
pub(super) struct Chunk<'a> {
    /// We never ask for more than one.
    pub candidate: Candidate<'a>,
    pub prompt_feedback: Option<&'a RawValue>,
    pub usage_metadata: Tokens,
    pub model_version: Option<&'a RawValue>,
    pub response_id: Option<&'a RawValue>,
    pub error: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Chunk<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let raw = match name {
            "candidates" => return map.next_value_seed(FirstObject(&mut self.candidate)),
            "usageMetadata" => {
                return map.next_value_seed(Object::or_null(&mut self.usage_metadata));
            }
            "promptFeedback" => &mut self.prompt_feedback,
            "modelVersion" => &mut self.model_version,
            "responseId" => &mut self.response_id,
            "error" => &mut self.error,
            _ => return skip(map),
        };
        *raw = map.next_value()?;
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PromptFeedback<'a> {
    #[serde(borrow)]
    pub block_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    pub block_reason_message: Option<&'a RawValue>,
}

#[derive(Default)]
pub(super) struct Candidate<'a> {
    /// Whether there is one.
    pub there: bool,
    pub content: Content<'a>,
    pub finish_reason: Option<&'a RawValue>,
    pub finish_message: Option<&'a RawValue>,
    pub citation_metadata: Option<&'a RawValue>,
    pub grounding_metadata: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Candidate<'de> {
    fn begin(&mut self) {
        self.there = true;
    }

    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let raw = match name {
            "content" => return map.next_value_seed(Object::or_null(&mut self.content)),
            "finishReason" => &mut self.finish_reason,
            "finishMessage" => &mut self.finish_message,
            "citationMetadata" => &mut self.citation_metadata,
            "groundingMetadata" => &mut self.grounding_metadata,
            _ => return skip(map),
        };
        *raw = map.next_value()?;
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Content<'a> {
    pub parts: Few<Part<'a>>,
}

impl<'de> Fill<'de> for Content<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "parts" => map.next_value_seed(Objects(&mut self.parts)),
            _ => skip(map),
        }
    }
}

#[derive(Default)]
pub(super) struct Part<'a> {
    pub text: Option<&'a RawValue>,
    /// The text is a thought.
    pub thought: Option<bool>,
    pub thought_signature: Option<&'a RawValue>,
    pub function_call: Option<FunctionCall<'a>>,
    pub executable_code: Option<ExecutableCode<'a>>,
    pub code_execution_result: Option<ExecutionResult<'a>>,
}

impl<'de> Fill<'de> for Part<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "text" => self.text = map.next_value()?,
            "thought" => self.thought = map.next_value()?,
            "thoughtSignature" => self.thought_signature = map.next_value()?,
            "functionCall" => self.function_call = map.next_value()?,
            "executableCode" => self.executable_code = map.next_value()?,
            "codeExecutionResult" => self.code_execution_result = map.next_value()?,
            _ => return skip(map),
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FunctionCall<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    #[serde(borrow)]
    pub args: Option<&'a RawValue>,
    #[serde(borrow)]
    pub partial_args: Option<Few<Piece<'a>>>,
    /// More of this call follows.
    pub will_continue: Option<bool>,
}

/// Code that the model ran on Google's side.
#[derive(Deserialize)]
pub(super) struct ExecutableCode<'a> {
    #[serde(borrow)]
    pub language: Option<&'a RawValue>,
    #[serde(borrow)]
    pub code: Option<&'a RawValue>,
}

/// What came of it.
#[derive(Deserialize)]
pub(super) struct ExecutionResult<'a> {
    #[serde(borrow)]
    pub output: Option<&'a RawValue>,
}

/// `citationSources` is AI Studio's name, `citations` Vertex's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CitationMetadata<'a> {
    #[serde(borrow, alias = "citations")]
    pub citation_sources: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroundingMetadata<'a> {
    #[serde(borrow)]
    pub grounding_chunks: Option<&'a RawValue>,
}

/// A chunk is one of these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroundingChunk<'a> {
    #[serde(borrow)]
    pub web: Option<Source<'a>>,
    #[serde(borrow)]
    pub retrieved_context: Option<Source<'a>>,
    #[serde(borrow)]
    pub maps: Option<Source<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Source<'a> {
    #[serde(borrow)]
    pub uri: Option<&'a RawValue>,
    #[serde(borrow)]
    pub title: Option<&'a RawValue>,
    /// Of a retrieved document.
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
}

/// The tokens so far. In a stream every chunk has them, some of them only at its end.
#[derive(Default)]
pub(super) struct Tokens {
    prompt_token_count: Option<Count>,
    /// Without thoughts.
    candidates_token_count: Option<Count>,
    /// A part of the prompt.
    cached_content_token_count: Option<Count>,
    thoughts_token_count: Option<Count>,
    /// What tools on Google's side gave the model to read, beside the prompt.
    tool_use_prompt_token_count: Option<Count>,
    total_token_count: Option<Count>,
}

impl<'de> Fill<'de> for Tokens {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let count = match name {
            "promptTokenCount" => &mut self.prompt_token_count,
            "candidatesTokenCount" => &mut self.candidates_token_count,
            "cachedContentTokenCount" => &mut self.cached_content_token_count,
            "thoughtsTokenCount" => &mut self.thoughts_token_count,
            "toolUsePromptTokenCount" => &mut self.tool_use_prompt_token_count,
            "totalTokenCount" => &mut self.total_token_count,
            _ => return skip(map),
        };
        *count = map.next_value()?;
        Ok(())
    }
}

impl Tokens {
    /// Takes over what `later` knows.
    pub(super) fn update(&mut self, later: &Self) {
        for (mine, theirs) in [
            (&mut self.prompt_token_count, later.prompt_token_count),
            (
                &mut self.candidates_token_count,
                later.candidates_token_count,
            ),
            (
                &mut self.cached_content_token_count,
                later.cached_content_token_count,
            ),
            (&mut self.thoughts_token_count, later.thoughts_token_count),
            (
                &mut self.tool_use_prompt_token_count,
                later.tool_use_prompt_token_count,
            ),
            (&mut self.total_token_count, later.total_token_count),
        ] {
            *mine = theirs.or(*mine);
        }
    }

    /// The same in our terms, where anything was counted.
    pub(super) fn usage(&self) -> Option<Usage> {
        let count = |count: Option<Count>| count.map_or(0, |count| count.0);
        if self.prompt_token_count.is_none() && self.candidates_token_count.is_none() {
            return None;
        }
        let thoughts = count(self.thoughts_token_count);
        let input =
            count(self.prompt_token_count).saturating_add(count(self.tool_use_prompt_token_count));
        let mut output = count(self.candidates_token_count);
        // Should candidates ever hold the thoughts, the total tells.
        let within = self
            .total_token_count
            .is_some_and(|total| total.0 == input.saturating_add(output));
        if !within {
            output = output.saturating_add(thoughts);
        }
        Some(Usage {
            input_tokens: input,
            output_tokens: output,
            cached_input_tokens: count(self.cached_content_token_count),
            cache_write_tokens: 0,
            reasoning_tokens: thoughts,
        })
    }
}

/// A number, which [proto JSON](https://protobuf.dev/programming-guides/json/) may also write as a text.
#[derive(Clone, Copy)]
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Count, E> {
                Ok(Count(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Count, E> {
                text.parse().map(Count).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// What a finish reason means.
pub(super) enum Ending {
    /// The answer is complete.
    Complete(FinishReason),
    /// There is no answer that could be used.
    Failed(ErrorKind, &'static str),
}

/// The meaning of `finishReason`.
/// Source: <https://ai.google.dev/api/generate-content#FinishReason>,
/// <https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1/GenerateContentResponse#FinishReason>.
pub(super) fn ending(reason: &str) -> Ending {
    Ending::Complete(match reason {
        "STOP" => FinishReason::Stop,
        "MAX_TOKENS" | "CONTINUATION" => FinishReason::Length,
        "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "ESCALATION"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => FinishReason::ContentFilter,
        // By chance: the same request may well succeed.
        "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" => {
            let what = "the model called a tool in a way that cannot be understood";
            return Ending::Failed(ErrorKind::ProviderInternal, what);
        }
        "MALFORMED_RESPONSE" => {
            let what = "the model wrote something that cannot be understood";
            return Ending::Failed(ErrorKind::ProviderInternal, what);
        }
        "MISSING_THOUGHT_SIGNATURE" => {
            let what = "a tool call of an earlier turn has lost the signature of its thought";
            return Ending::Failed(ErrorKind::InvalidRequest, what);
        }
        "PUP_LIMITED_DISABLED" => {
            let what = "the account is limited for breaking the use policy";
            return Ending::Failed(ErrorKind::Permission, what);
        }
        // OTHER, TOO_MANY_TOOL_CALLS, IMAGE_OTHER, NO_IMAGE, and those to come.
        _ => FinishReason::Unknown,
    })
}
