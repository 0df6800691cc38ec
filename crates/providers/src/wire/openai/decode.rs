//! Reads answers: streams of chunks and whole bodies.

use serde_json::value::RawValue;

use super::answer::{
    Annotation, Chunk, Detail, FunctionPiece, Message, Part, Source, ToolCallPiece, finish_reason,
    usage,
};
use super::error::from_json;
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta, Usage};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{cow, fill, for_each, string};

/// What is known of an answer so far.
///
/// `[DONE]` or a finish reason makes an answer complete. Some servers send no `[DONE]`, some proxies lose it, and the
/// text is whole by then; where neither came, the stream was cut. `Usage` and `Finish` wait for `[DONE]` or the end of
/// the body, since usage comes after the finish reason.
#[derive(Default)]
pub(super) struct Completion {
    started: bool,
    answered: bool,
    refused: bool,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    calls: Vec<Call>,
    /// Length of the list of sources last seen, as JSON and in entries: Perplexity repeats it in every chunk.
    sources: (usize, usize),
    complete: bool,
    scratch: String,
}

struct Call {
    /// The provider's index; not every provider counts from 0, or at all.
    index: Option<u64>,
    id: String,
    named: bool,
}

impl Answer for Completion {
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let data = data.trim();
        if data.is_empty() {
            return Ok(());
        }
        if data == "[DONE]" {
            if !self.answered {
                return Err(malformed("the stream has no choices"));
            }
            self.complete(events);
            return Ok(());
        }
        if name == "error" {
            return Err(match serde_json::from_str(data) {
                Ok(document) => from_json(&document, None),
                Err(_) => ProviderError::new(ErrorKind::ProviderInternal, data),
            });
        }
        self.document(data, events)
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        self.document(document, events)?;
        if !self.answered {
            return Err(malformed("the answer has no choices"));
        }
        self.complete(events);
        Ok(())
    }

    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.finish.is_none() {
            return Err(cut());
        }
        self.complete(events);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Completion {
    /// Takes a chunk of a stream or a whole body.
    fn document(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let mut chunk = Chunk::default();
        fill(document, &mut chunk).map_err(not_understood)?;
        if chunk.error.is_some()
            || chunk
                .object
                .is_some_and(|object| object.get() == "\"error\"")
        {
            let document = serde_json::from_str(document).map_err(not_understood)?;
            return Err(from_json(&document, None));
        }
        let choice = &chunk.choice;
        let sources = chunk.search_results.or(chunk.citations);
        if !self.started {
            let id = chunk.id.and_then(cow).filter(|id| !id.is_empty());
            let model = chunk.model.and_then(cow).filter(|model| !model.is_empty());
            // Azure's first chunk has nothing but the verdict on the prompt.
            if id.is_some() || choice.there || sources.is_some() {
                self.started = true;
                events.push(Event::Start {
                    id: id.as_deref(),
                    model: model.as_deref(),
                });
            }
        }
        if let Some(list) = sources {
            self.sources(list, events);
        }
        if choice.there {
            self.answered = true;
            self.message(&choice.message, events)?;
            let reason = choice
                .finish_reason
                .and_then(|reason| string(reason, &mut self.scratch));
            if let Some(name) = reason.filter(|name| !name.is_empty()) {
                let Some(reason) = finish_reason(name) else {
                    let kind = if name == "error" {
                        ErrorKind::ProviderInternal
                    } else {
                        ErrorKind::Overloaded
                    };
                    return Err(ProviderError::new(
                        kind,
                        format!("the provider ended the answer with `{name}`"),
                    ));
                };
                self.finish = Some(reason);
            }
        }
        if let Some(usage) = chunk.usage.and_then(usage) {
            self.usage = Some(usage);
        }
        Ok(())
    }

    fn message(
        &mut self,
        message: &Message<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let scratch = &mut self.scratch;
        let details = message.reasoning_details;
        if details.is_some_and(|list| thoughts(list, events, scratch)) {
            // `reasoning` says the same.
        } else if let Some(text) = message
            .reasoning_content
            .or(message.reasoning)
            .and_then(|raw| string(raw, scratch))
            && !text.is_empty()
        {
            events.push(Event::Reasoning {
                text,
                signature: None,
            });
        }
        if let Some(content) = message.content {
            if content.get().starts_with('[') {
                parts(content, false, events, scratch).map_err(not_understood)?;
            } else if let Some(text) = string(content, scratch)
                && !text.is_empty()
            {
                events.push(Event::Text(text));
            }
        }
        if let Some(text) = message.refusal.and_then(|raw| string(raw, scratch))
            && !text.is_empty()
        {
            self.refused = true;
            events.push(Event::Text(text));
        }
        if let Some(calls) = &message.tool_calls {
            for piece in calls {
                self.tool_call(piece, events)?;
            }
        }
        if let Some(annotations) = message.annotations {
            let each = |annotation: Annotation<'_>| {
                if let Some(source) = annotation.url_citation {
                    cite(&source, events);
                }
            };
            // Annotations of unknown forms are left out, not held against the answer.
            let _ = for_each(annotations, each);
        }
        Ok(())
    }

    fn tool_call(
        &mut self,
        piece: &ToolCallPiece<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let id = piece.id.and_then(cow).unwrap_or_default();
        let function = piece.function.as_ref();
        let name = function
            .and_then(|function| function.name)
            .and_then(cow)
            .unwrap_or_default();
        let same = match piece.index {
            Some(index) => self
                .calls
                .iter()
                .rposition(|call| call.index == Some(index)),
            None => self.calls.len().checked_sub(1),
        };
        // A new id with a name is a new call, even where the server counts no indexes (Mistral) or gives all the
        // same one (Gemini).
        let same = same.filter(|at| id.is_empty() || name.is_empty() || self.calls[*at].id == id);
        let (at, new) = match same {
            Some(at) => (at, false),
            None if self.calls.len() == MAX_TOOL_CALLS => {
                return Err(malformed(format!(
                    "the answer has more than {MAX_TOOL_CALLS} tool calls"
                )));
            }
            None => {
                // Where the server gives no id, the result needs one all the same.
                let at = self.calls.len();
                let id = if id.is_empty() {
                    format!("call_{at}")
                } else {
                    id.into_owned()
                };
                self.calls.push(Call {
                    index: piece.index,
                    id,
                    named: false,
                });
                (at, true)
            }
        };
        let call = &mut self.calls[at];
        let name = Some(&*name).filter(|name| !name.is_empty() && !call.named);
        call.named |= name.is_some();
        let arguments = match function.and_then(|function: &FunctionPiece<'_>| function.arguments) {
            Some(raw) if raw.get().starts_with('"') => {
                string(raw, &mut self.scratch).unwrap_or_default()
            }
            Some(raw) => raw.get(),
            None => "",
        };
        if new || name.is_some() || !arguments.is_empty() {
            events.push(Event::ToolCall(ToolCallDelta {
                index: u32::try_from(at).unwrap_or(u32::MAX),
                id: new.then_some(call.id.as_str()),
                name,
                arguments,
                signature: None,
            }));
        }
        Ok(())
    }

    fn sources(&mut self, list: &RawValue, events: &mut EventQueue) {
        let (length, known) = self.sources;
        if list.get().len() == length {
            return;
        }
        let mut count = 0;
        // As with annotations, an unknown form is left out.
        let _ = for_each(list, |entry: &RawValue| {
            count += 1;
            if count <= known {
                return;
            }
            if entry.get().starts_with('"') {
                cite(
                    &Source {
                        url: Some(entry),
                        title: None,
                    },
                    events,
                );
            } else if let Ok(source) = serde_json::from_str(entry.get()) {
                cite(&source, events);
            }
        });
        self.sources = (list.get().len(), known.max(count));
    }

    fn complete(&mut self, events: &mut EventQueue) {
        self.complete = true;
        if let Some(usage) = self.usage {
            events.push(Event::Usage(usage));
        }
        let reason = match self.finish {
            _ if self.refused => FinishReason::Refusal,
            Some(reason) => reason,
            None if !self.calls.is_empty() => FinishReason::ToolCalls,
            None => FinishReason::Unknown,
        };
        events.push(Event::Finish(reason));
    }
}

/// The texts of content parts.
fn parts(
    list: &RawValue,
    thinking: bool,
    events: &mut EventQueue,
    scratch: &mut String,
) -> Result<(), serde_json::Error> {
    let mut outcome = Ok(());
    for_each(list, |part: Part<'_>| {
        if let Some(text) = part.text.and_then(|raw| string(raw, scratch))
            && !text.is_empty()
        {
            events.push(if thinking {
                Event::Reasoning {
                    text,
                    signature: None,
                }
            } else {
                Event::Text(text)
            });
        }
        // Thoughts hold no thoughts: this ends the recursion for hostile bodies, too.
        if let Some(inner) = part.thinking.filter(|_| !thinking && outcome.is_ok()) {
            outcome = parts(inner, true, events, scratch);
        }
    })?;
    outcome
}

/// The entries of `reasoning_details`; false: there are none, or in an unknown form.
fn thoughts(list: &RawValue, events: &mut EventQueue, scratch: &mut String) -> bool {
    let mut any = false;
    let each = |entry: &RawValue| {
        let Ok(detail) = serde_json::from_str::<Detail<'_>>(entry.get()) else {
            return;
        };
        if detail.data.is_some() {
            any = true;
            // Whole: its id and format must come back, too.
            return events.push(Event::RedactedReasoning(entry.get()));
        }
        let signature = detail.signature.and_then(cow);
        let text = detail.text.or(detail.summary);
        let text = text.and_then(|raw| string(raw, scratch)).unwrap_or("");
        if !text.is_empty() || signature.is_some() {
            any = true;
            events.push(Event::Reasoning {
                text,
                signature: signature.as_deref(),
            });
        }
    };
    let _ = for_each(list, each);
    any
}

fn cite(source: &Source<'_>, events: &mut EventQueue) {
    let url = source.url.and_then(cow).unwrap_or_default();
    if !url.is_empty() {
        let title = source.title.and_then(cow);
        events.push(Event::Citation(Citation {
            url: Some(&url),
            title: title.as_deref(),
            quote: None,
        }));
    }
}
