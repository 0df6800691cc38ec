//! What an answer looks like, for streams (`choices[].delta`) and whole bodies (`choices[].message`) alike.
//!
//! Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
//! reading a chunk allocates nothing.

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use crate::event::{FinishReason, Usage};
use crate::wire::json::{Few, Fill, FirstObject, Object, skip};

#[derive(Default)]
pub(super) struct Chunk<'a> {
    pub id: Option<&'a RawValue>,
    pub model: Option<&'a RawValue>,
    pub object: Option<&'a RawValue>,
    pub choice: Choice<'a>,
    pub usage: Option<&'a RawValue>,
    pub error: Option<&'a RawValue>,
    /// Perplexity: addresses, and the same with titles.
    pub citations: Option<&'a RawValue>,
    pub search_results: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Chunk<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let raw = match name {
            "choices" => return map.next_value_seed(FirstObject(&mut self.choice)),
            "id" => &mut self.id,
            "model" => &mut self.model,
            "object" => &mut self.object,
            "usage" => &mut self.usage,
            "error" => &mut self.error,
            "citations" => &mut self.citations,
            "search_results" => &mut self.search_results,
            _ => return skip(map),
        };
        *raw = map.next_value()?;
        Ok(())
    }
}

/// The first one: we never ask for more.
#[derive(Default)]
pub(super) struct Choice<'a> {
    /// Whether there is one.
    pub there: bool,
    /// `delta` or `message`.
    pub message: Message<'a>,
    pub finish_reason: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Choice<'de> {
    fn begin(&mut self) {
        self.there = true;
    }

    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "delta" | "message" => map.next_value_seed(Object::or_null(&mut self.message)),
            "finish_reason" => {
                self.finish_reason = map.next_value()?;
                Ok(())
            }
            _ => skip(map),
        }
    }
}

#[derive(Default)]
pub(super) struct Message<'a> {
    /// A string, or parts (Mistral).
    pub content: Option<&'a RawValue>,
    /// DeepSeek, xAI, llama.cpp, vLLM.
    pub reasoning_content: Option<&'a RawValue>,
    /// Groq, OpenRouter, Ollama, Together.
    pub reasoning: Option<&'a RawValue>,
    /// OpenRouter: the same thoughts as in `reasoning`, with signatures.
    pub reasoning_details: Option<&'a RawValue>,
    pub refusal: Option<&'a RawValue>,
    pub tool_calls: Option<Few<ToolCallPiece<'a>>>,
    pub annotations: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Message<'de> {
    /// Of `delta` and `message` the last one counts, should there be both.
    fn begin(&mut self) {
        *self = Self::default();
    }

    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let raw = match name {
            "tool_calls" => {
                self.tool_calls = map.next_value()?;
                return Ok(());
            }
            "content" => &mut self.content,
            "reasoning_content" => &mut self.reasoning_content,
            "reasoning" => &mut self.reasoning,
            "reasoning_details" => &mut self.reasoning_details,
            "refusal" => &mut self.refusal,
            "annotations" => &mut self.annotations,
            _ => return skip(map),
        };
        *raw = map.next_value()?;
        Ok(())
    }
}

#[derive(Deserialize)]
pub(super) struct ToolCallPiece<'a> {
    pub index: Option<u64>,
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub function: Option<FunctionPiece<'a>>,
}

#[derive(Deserialize)]
pub(super) struct FunctionPiece<'a> {
    #[serde(borrow)]
    pub name: Option<&'a RawValue>,
    /// A string with JSON in it; some servers send the JSON itself.
    #[serde(borrow)]
    pub arguments: Option<&'a RawValue>,
}

/// An entry of OpenRouter's `reasoning_details`: `reasoning.text`, `reasoning.summary` or `reasoning.encrypted`.
#[derive(Deserialize)]
pub(super) struct Detail<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub summary: Option<&'a RawValue>,
    #[serde(borrow)]
    pub signature: Option<&'a RawValue>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
}

/// A part of Mistral's content: `{"type":"text","text":..}` or `{"type":"thinking","thinking":[..text parts..]}`.
#[derive(Deserialize)]
pub(super) struct Part<'a> {
    #[serde(borrow)]
    pub text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub thinking: Option<&'a RawValue>,
}

/// `{"type":"url_citation","url_citation":{"url":..,"title":..}}`; Perplexity's search results are the inner object.
#[derive(Deserialize)]
pub(super) struct Annotation<'a> {
    #[serde(borrow)]
    pub url_citation: Option<Source<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Source<'a> {
    #[serde(borrow)]
    pub url: Option<&'a RawValue>,
    #[serde(borrow)]
    pub title: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// Flat in some servers.
    reasoning_tokens: Option<u64>,
    /// DeepSeek's.
    prompt_cache_hit_tokens: Option<u64>,
    /// Fireworks and Together, beside `prompt_tokens_details` or instead of it.
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    /// OpenRouter's.
    cache_write_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

/// Reads a usage object. Counts in an unknown form are not worth losing an answer for: then there are none.
pub(super) fn usage(raw: &RawValue) -> Option<Usage> {
    let wire: WireUsage = serde_json::from_str(raw.get()).ok()?;
    let input = wire.prompt_tokens.unwrap_or(0);
    let mut output = wire.completion_tokens.unwrap_or(0);
    let details = wire
        .completion_tokens_details
        .and_then(|details| details.reasoning_tokens);
    let reasoning = details.or(wire.reasoning_tokens).unwrap_or(0);
    // xAI counts reasoning beside the completion, everyone else within it; the total tells.
    let beside = input
        .checked_add(output)
        .and_then(|sum| sum.checked_add(reasoning));
    if reasoning > 0 && wire.total_tokens.is_some() && wire.total_tokens == beside {
        output += reasoning;
    }
    let prompt = wire.prompt_tokens_details.as_ref();
    Some(Usage {
        input_tokens: input,
        output_tokens: output,
        cached_input_tokens: prompt
            .and_then(|details| details.cached_tokens)
            .or(wire.prompt_cache_hit_tokens)
            .or(wire.cached_tokens)
            .unwrap_or(0),
        cache_write_tokens: prompt
            .and_then(|details| details.cache_write_tokens)
            .unwrap_or(0),
        reasoning_tokens: reasoning,
    })
}

/// The reason of an ending; `None` where the provider says that it failed.
pub(super) fn finish_reason(name: &str) -> Option<FinishReason> {
    Some(match name {
        "stop" | "eos" | "end_turn" => FinishReason::Stop,
        // `model_length` is Mistral's word for a full context.
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        // OpenRouter and Mistral; DeepSeek when its machines are full.
        "error" | "insufficient_system_resource" => return None,
        _ => FinishReason::Unknown,
    })
}
