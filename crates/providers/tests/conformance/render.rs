//! Answers in the words of the fixtures.

use std::fmt::Write;

use lapce_ai_providers::{
    Content, Embeddings, Event, FinishReason, ModelInfo, ProviderError, ToolCall, Usage,
};

/// Events as they come, with neighbouring pieces joined.
#[derive(Default)]
pub(crate) struct Rendering {
    items: Vec<Item>,
}

enum Item {
    Text(String),
    Thought(Content),
    Call(u32, ToolCall),
    Line(String),
}

impl Rendering {
    pub(crate) fn add(&mut self, event: &Result<Event<'_>, ProviderError>) {
        match event {
            Ok(event) => self.event(event),
            Err(error) => self.items.push(Item::Line(render_error(error))),
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        let line = match *event {
            Event::Text(more) => {
                if let Some(Item::Text(text)) = self.items.last_mut() {
                    text.push_str(more);
                } else {
                    self.items.push(Item::Text(more.into()));
                }
                return;
            }
            Event::Reasoning {
                text: more,
                signature: proof,
            } => {
                if let Some(Item::Thought(Content::Reasoning {
                    text,
                    signature: signature @ None,
                })) = self.items.last_mut()
                {
                    text.push_str(more);
                    *signature = proof.map(Into::into);
                } else {
                    self.items.push(Item::Thought(Content::Reasoning {
                        text: more.into(),
                        signature: proof.map(Into::into),
                    }));
                }
                return;
            }
            Event::ToolCall(delta) => {
                let known = self
                    .items
                    .iter()
                    .position(|item| matches!(item, Item::Call(index, _) if *index == delta.index));
                let at = known.unwrap_or_else(|| {
                    self.items
                        .push(Item::Call(delta.index, ToolCall::default()));
                    self.items.len() - 1
                });
                if let Item::Call(_, call) = &mut self.items[at] {
                    if let Some(id) = delta.id {
                        call.id = id.into();
                    }
                    if let Some(name) = delta.name {
                        call.name = name.into();
                    }
                    call.arguments.push_str(delta.arguments);
                    if let Some(signature) = delta.signature {
                        call.signature = Some(signature.into());
                    }
                }
                return;
            }
            Event::Start { id, model } => Line::new("start").some("id", id).some("model", model),
            Event::RedactedReasoning(data) => Line::new("redacted").string(data),
            Event::Continued { .. } => unreachable!("a decoder knows of no other: {event:?}"),
            Event::Citation(citation) => Line::new("cite")
                .some("url", citation.url)
                .some("title", citation.title)
                .some("quote", citation.quote),
            Event::Usage(usage) => render_usage(usage),
            Event::Finish(reason) => Line::new("finish").word(match reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::ToolCalls => "tool_calls",
                FinishReason::ContentFilter => "content_filter",
                FinishReason::Refusal => "refusal",
                FinishReason::Unknown => "unknown",
            }),
        };
        self.items.push(Item::Line(line.0));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.items.iter().map(|item| match item {
            Item::Text(text) => Line::new("text").string(text).0,
            Item::Thought(Content::Reasoning { text, signature }) => {
                Line::new("reasoning")
                    .string(text)
                    .some("signature", signature.as_deref())
                    .0
            }
            Item::Thought(other) => panic!("{other:?} is no thought"),
            Item::Call(index, call) => {
                Line::new("tool")
                    .word(&index.to_string())
                    .some("id", Some(&call.id))
                    .some("name", Some(&call.name))
                    .some("arguments", Some(&call.arguments))
                    .some("signature", call.signature.as_deref())
                    .0
            }
            Item::Line(line) => line.clone(),
        });
        lines.collect()
    }
}

fn render_usage(usage: Usage) -> Line {
    Line::new("usage")
        .word(&format!("input={}", usage.input_tokens))
        .word(&format!("output={}", usage.output_tokens))
        .number("cached", usage.cached_input_tokens)
        .number("written", usage.cache_write_tokens)
        .number("reasoning", usage.reasoning_tokens)
}

pub(crate) fn render_error(error: &ProviderError) -> String {
    let line = Line::new("error").word(error.kind.name());
    let line = line.number("status", error.status.unwrap_or(0).into());
    let mut line = line.some("code", error.code.as_deref());
    if let Some(wait) = error.retry_after {
        line = line.word(&format!("retry_after={}", wait.as_secs_f64()));
    }
    line.some("request_id", error.request_id.as_deref())
        .some("message", Some(&error.message))
        .0
}

pub(crate) fn render_model(model: &ModelInfo) -> String {
    Line::new("model")
        .some("id", Some(&model.id))
        .some("name", model.display_name.as_deref())
        .some("owner", model.owner.as_deref())
        .number("context", model.context_length.unwrap_or(0))
        .number("output", model.max_output_tokens.unwrap_or(0))
        .0
}

pub(crate) fn render_embeddings(embeddings: &Embeddings) -> String {
    let vectors = serde_json::to_string(&embeddings.vectors).unwrap();
    Line::new("vectors")
        .word(&vectors)
        .some("model", embeddings.model.as_deref())
        .number("tokens", embeddings.input_tokens.unwrap_or(0))
        .0
}

struct Line(String);

impl Line {
    fn new(word: &str) -> Self {
        Self(word.into())
    }

    fn word(mut self, word: &str) -> Self {
        write!(self.0, " {word}").unwrap();
        self
    }

    fn string(self, text: &str) -> Self {
        let json = serde_json::to_string(text).unwrap();
        self.word(&json)
    }

    /// Left out where it is absent.
    fn some(self, name: &str, text: Option<&str>) -> Self {
        match text {
            Some(text) => {
                let json = serde_json::to_string(text).unwrap();
                self.word(&format!("{name}={json}"))
            }
            None => self,
        }
    }

    /// Left out where it is 0.
    fn number(self, name: &str, number: u64) -> Self {
        match number {
            0 => self,
            _ => self.word(&format!("{name}={number}")),
        }
    }
}
