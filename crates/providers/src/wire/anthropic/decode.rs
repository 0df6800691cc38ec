//! Reads answers: streams of events and whole messages.

use serde_json::value::RawValue;

use super::answer::{
    Block, Delta, Message, StopDetails, StreamEvent, Tokens, cite, finish_reason, plain,
};
use super::error::from_json;
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Event, EventQueue, FinishReason, ToolCallDelta};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{cow, for_each, string};

/// More blocks than this that have begun and not ended are an attack or a defect. The API has one at a time.
const MAX_OPEN_BLOCKS: usize = 64;

/// What is known of an answer so far.
///
/// `message_stop` makes it complete. Where that was lost, the reason of the ending does, which comes after everything
/// that was said; where neither came, the stream was cut.
#[derive(Default)]
pub(super) struct Reply {
    id: Option<String>,
    started: bool,
    spoke: bool,
    calls: usize,
    open: Vec<Open>,
    tokens: Tokens,
    finish: Option<FinishReason>,
    complete: bool,
    scratch: String,
}

/// A content block that has not ended.
struct Open {
    index: Option<u64>,
    /// A tool call of ours; the provider's own tools are none.
    call: Option<OpenCall>,
}

struct OpenCall {
    number: usize,
    /// The arguments that came with the beginning; they count unless pieces follow. `None`: pieces did.
    arguments: Option<String>,
}

impl Open {
    fn close(self, events: &mut EventQueue) {
        if let Some(call) = self.call
            && let Some(whole) = call.arguments
        {
            events.push(Event::ToolCall(arguments(call.number, &whole)));
        }
    }
}

impl Answer for Reply {
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let data = data.trim();
        // The end mark of another format, which some proxies add.
        if data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let event: StreamEvent<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(_) if name == "error" => {
                return Err(ProviderError::new(ErrorKind::ProviderInternal, data));
            }
            // Events that are yet to come may have other fields under the same names.
            Err(_) if !is_known(data, name) => return Ok(()),
            Err(error) => return Err(not_understood(error)),
        };
        let kind = event.r#type.and_then(plain).unwrap_or(name);
        match kind {
            "content_block_delta" => {
                if let Some(delta) = &event.delta {
                    self.start(None, None, events);
                    self.delta(event.index, delta, events);
                }
            }
            "content_block_start" => {
                if let Some(block) = event.content_block {
                    self.start(None, None, events);
                    self.begin(event.index, block, events)?;
                }
            }
            "content_block_stop" => self.stop(event.index, events),
            "message_start" => {
                if let Some(message) = event.message {
                    let message = serde_json::from_str(message.get()).map_err(not_understood)?;
                    self.message(&message, events)?;
                }
            }
            "message_delta" => {
                if let Some(usage) = event.usage {
                    self.tokens.update(usage);
                }
                if let Some(delta) = &event.delta {
                    self.start(None, None, events);
                    self.end_with(delta.stop_reason, delta.stop_details, events);
                }
            }
            "message_stop" => {
                if !self.started {
                    return Err(malformed("the stream has no message"));
                }
                self.complete(events);
            }
            "error" => return Err(error_in(data)),
            _ if event.error.is_some() => return Err(error_in(data)),
            // Pings, and what is yet to come.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let message: Message<'_> = serde_json::from_str(document).map_err(not_understood)?;
        let is_error = message.r#type.and_then(plain) == Some("error");
        if is_error || (message.error.is_some() && message.content.is_none()) {
            return Err(error_in(document));
        }
        if message.content.is_none() {
            return Err(malformed("the answer has no content"));
        }
        self.message(&message, events)?;
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

impl Reply {
    fn start(&mut self, id: Option<&str>, model: Option<&str>, events: &mut EventQueue) {
        if !self.started {
            self.started = true;
            events.push(Event::Start { id, model });
        }
    }

    /// A whole message, or the beginning of one. Where the model goes on with calls that it has planned as a program,
    /// the beginning is all there is.
    fn message(
        &mut self,
        message: &Message<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let id = message.id.and_then(cow).filter(|id| !id.is_empty());
        if self.started {
            // Proxies that try again have spliced two answers into one stream.
            return match id {
                Some(id) if self.id.as_deref() != Some(&*id) => Err(malformed(
                    "another message began before the first was complete",
                )),
                _ => Ok(()),
            };
        }
        let model = message
            .model
            .and_then(cow)
            .filter(|model| !model.is_empty());
        self.start(id.as_deref(), model.as_deref(), events);
        self.id = id.map(Into::into);
        if let Some(usage) = message.usage {
            self.tokens.update(usage);
        }
        if let Some(content) = message.content {
            let mut outcome = Ok(());
            for_each(content, |block: &RawValue| {
                if outcome.is_ok() {
                    outcome = self.begin(None, block, events);
                    self.stop(None, events);
                }
            })
            .map_err(not_understood)?;
            outcome?;
        }
        self.end_with(message.stop_reason, message.stop_details, events);
        Ok(())
    }

    /// A block begins, or is there in one piece.
    fn begin(
        &mut self,
        index: Option<u64>,
        raw: &RawValue,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let block: Block<'_> = serde_json::from_str(raw.get()).map_err(not_understood)?;
        if self.open.len() == MAX_OPEN_BLOCKS {
            return Err(malformed(format!(
                "more than {MAX_OPEN_BLOCKS} blocks of the answer are open at once"
            )));
        }
        let mut call = None;
        match block.r#type.and_then(plain).unwrap_or_default() {
            "text" => {
                self.text(block.text, events);
                if let Some(citations) = block.citations {
                    // Citations of unknown forms are left out, not held against the answer.
                    let _ = for_each(citations, |citation| cite(citation, events));
                }
            }
            "thinking" => self.thought(block.thinking, block.signature, events),
            "redacted_thinking" => {
                if let Some(data) = block.data.and_then(|raw| string(raw, &mut self.scratch)) {
                    events.push(Event::RedactedReasoning(data));
                }
            }
            "tool_use" => call = Some(self.call(&block, events)?),
            // What the provider's own tools did, where it fell back to another model, what it summed up.
            _ => {}
        }
        self.open.push(Open { index, call });
        Ok(())
    }

    fn call(
        &mut self,
        block: &Block<'_>,
        events: &mut EventQueue,
    ) -> Result<OpenCall, ProviderError> {
        if self.calls == MAX_TOOL_CALLS {
            return Err(malformed(format!(
                "the answer has more than {MAX_TOOL_CALLS} tool calls"
            )));
        }
        let number = self.calls;
        self.calls += 1;
        let id = block.id.and_then(cow);
        let name = block.name.and_then(cow);
        events.push(Event::ToolCall(ToolCallDelta {
            id: Some(id.as_deref().unwrap_or_default()),
            name: Some(name.as_deref().unwrap_or_default()),
            ..arguments(number, "")
        }));
        let whole = block.input.map(RawValue::get);
        Ok(OpenCall {
            number,
            arguments: Some(whole.unwrap_or("{}").to_owned()),
        })
    }

    fn delta(&mut self, index: Option<u64>, delta: &Delta<'_>, events: &mut EventQueue) {
        self.text(delta.text, events);
        self.thought(delta.thinking, delta.signature, events);
        if let Some(citation) = delta.citation {
            cite(citation, events);
        }
        if let Some(piece) = delta
            .partial_json
            .and_then(|raw| string(raw, &mut self.scratch))
            && !piece.is_empty()
            && let Some(at) = position(&self.open, index)
            && let Some(call) = &mut self.open[at].call
        {
            call.arguments = None;
            events.push(Event::ToolCall(arguments(call.number, piece)));
        }
    }

    fn text(&mut self, raw: Option<&RawValue>, events: &mut EventQueue) {
        if let Some(text) = raw.and_then(|raw| string(raw, &mut self.scratch))
            && !text.is_empty()
        {
            self.spoke = true;
            events.push(Event::Text(text));
        }
    }

    fn thought(
        &mut self,
        text: Option<&RawValue>,
        signature: Option<&RawValue>,
        events: &mut EventQueue,
    ) {
        let text = text.and_then(|raw| string(raw, &mut self.scratch));
        let text = text.unwrap_or_default();
        // Blocks begin with an empty one.
        let signature = signature
            .and_then(cow)
            .filter(|signature| !signature.is_empty());
        if !text.is_empty() || signature.is_some() {
            events.push(Event::Reasoning {
                text,
                signature: signature.as_deref(),
            });
        }
    }

    fn stop(&mut self, index: Option<u64>, events: &mut EventQueue) {
        if let Some(at) = position(&self.open, index) {
            self.open.remove(at).close(events);
        }
    }

    fn end_with(
        &mut self,
        reason: Option<&RawValue>,
        details: Option<&RawValue>,
        events: &mut EventQueue,
    ) {
        let Some(reason) = reason.and_then(plain) else {
            return;
        };
        let reason = finish_reason(reason);
        self.finish = Some(reason);
        if reason != FinishReason::Refusal || self.spoke {
            return;
        }
        // Who refuses before the first word gives the reason here, or none.
        let details =
            details.and_then(|raw| serde_json::from_str::<StopDetails<'_>>(raw.get()).ok());
        self.text(details.and_then(|details| details.explanation), events);
    }

    fn complete(&mut self, events: &mut EventQueue) {
        self.complete = true;
        // A block whose end was lost is whole all the same.
        for block in self.open.drain(..) {
            block.close(events);
        }
        if let Some(usage) = self.tokens.usage() {
            events.push(Event::Usage(usage));
        }
        let reason = match self.finish {
            Some(reason) => reason,
            None if self.calls > 0 => FinishReason::ToolCalls,
            None => FinishReason::Unknown,
        };
        events.push(Event::Finish(reason));
    }
}

/// The open block of this index; without one, the last that was opened.
fn position(open: &[Open], index: Option<u64>) -> Option<usize> {
    match index {
        Some(_) => open.iter().rposition(|block| block.index == index),
        None => open.len().checked_sub(1),
    }
}

fn arguments(number: usize, arguments: &str) -> ToolCallDelta<'_> {
    ToolCallDelta {
        index: u32::try_from(number).unwrap_or(u32::MAX),
        id: None,
        name: None,
        arguments,
        signature: None,
    }
}

/// Whether the event is of a type that has a meaning here, or is no event at all.
fn is_known(data: &str, name: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed {
        r#type: Option<String>,
    }
    let Ok(typed) = serde_json::from_str::<Typed>(data) else {
        return true;
    };
    let kind = typed.r#type.as_deref().unwrap_or(name);
    ["content_block_", "message", "error"]
        .iter()
        .any(|start| kind.starts_with(start))
}

fn error_in(document: &str) -> ProviderError {
    match serde_json::from_str(document) {
        Ok(document) => from_json(&document, None),
        Err(error) => not_understood(error),
    }
}
