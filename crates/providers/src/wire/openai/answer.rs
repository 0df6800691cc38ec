//! What an answer looks like, for streams (`choices[].delta`) and whole bodies (`choices[].message`) alike.
//!
//! Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
//! reading a chunk allocates nothing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::event::{FinishReason, Usage};

#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    pub model: Option<&'a RawValue>,
    #[serde(borrow)]
    pub object: Option<&'a RawValue>,
    #[serde(borrow)]
    pub choices: Option<First<Choice<'a>>>,
    #[serde(borrow)]
    pub usage: Option<&'a RawValue>,
    #[serde(borrow)]
    pub error: Option<&'a RawValue>,
    /// Perplexity: addresses, and the same with titles.
    #[serde(borrow)]
    pub citations: Option<&'a RawValue>,
    #[serde(borrow)]
    pub search_results: Option<&'a RawValue>,
}

/// We never ask for more than one choice.
#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow)]
    pub delta: Option<Message<'a>>,
    #[serde(borrow)]
    pub message: Option<Message<'a>>,
    #[serde(borrow)]
    pub finish_reason: Option<&'a RawValue>,
    /// Azure, in every chunk. Named here only to be skipped without serde's nesting stack.
    #[allow(dead_code, reason = "read to be skipped")]
    content_filter_results: Option<Skip>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    /// A string, or parts (Mistral).
    #[serde(borrow)]
    pub content: Option<&'a RawValue>,
    /// DeepSeek, xAI, llama.cpp, vLLM.
    #[serde(borrow)]
    pub reasoning_content: Option<&'a RawValue>,
    /// Groq, OpenRouter, Ollama, Together.
    #[serde(borrow)]
    pub reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    pub refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    pub tool_calls: Option<Few<ToolCallPiece<'a>>>,
    #[serde(borrow)]
    pub annotations: Option<&'a RawValue>,
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
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
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
    Some(Usage {
        input_tokens: input,
        output_tokens: output,
        cached_input_tokens: wire
            .prompt_tokens_details
            .and_then(|details| details.cached_tokens)
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

/// The first element of an array; the others are skipped.
pub(super) struct First<T>(pub Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
            type Value = First<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let first = seq.next_element()?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(Visit(PhantomData))
    }
}

/// An array that mostly has one element, which costs no allocation.
pub(super) struct Few<T> {
    pub first: Option<T>,
    pub rest: Vec<T>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut few = Few {
                    first: seq.next_element()?,
                    rest: Vec::new(),
                };
                while let Some(element) = seq.next_element()? {
                    few.rest.push(element);
                }
                Ok(few)
            }
        }
        deserializer.deserialize_seq(Visit(PhantomData))
    }
}

/// Any value, skipped. serde's `IgnoredAny` allocates for objects within objects; this does only for strings with
/// escapes.
struct Skip;

impl<'de> Deserialize<'de> for Skip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Skip)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Calls `each` with every element of the array `raw`, without building it.
pub(super) fn for_each<'de, T: Deserialize<'de>>(
    raw: &'de RawValue,
    each: impl FnMut(T),
) -> Result<(), serde_json::Error> {
    struct Visit<T, F>(F, PhantomData<T>);
    impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Visit<T, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Visit<T, F> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_seq(self)
        }
    }
    Visit(each, PhantomData).deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
}
