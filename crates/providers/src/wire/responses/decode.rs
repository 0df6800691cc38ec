//! Reads answers: streams of events and whole responses.

use serde_json::value::RawValue;

use super::answer::{
    Annotation, Item, Part, Reasoning, Response, StreamEvent, incomplete_reason, usage,
};
use super::error::failed;
use crate::error::ProviderError;
use crate::event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{cow, for_each, string};

/// More items than this in one answer are an attack or a defect.
const MAX_ITEMS: usize = 4 * MAX_TOOL_CALLS;

/// What is known of an answer so far.
///
/// Everything comes several times: in pieces, whole at the end of its part and of its item, and once more with the
/// response's end. The pieces are what is taken. What comes later counts only where no piece did, since not every
/// server sends them. A stream is complete when its response has ended, and not before.
#[derive(Default)]
pub(super) struct Output {
    started: bool,
    refused: bool,
    items: Vec<Seen>,
    calls: u32,
    complete: bool,
    scratch: String,
}

/// What was taken of one item.
struct Seen {
    index: Option<u64>,
    said: bool,
    cited: bool,
    thought: Option<Thought>,
    call: Option<u32>,
    done: bool,
}

/// How a thought is told. Some servers send both, which say the same.
#[derive(Clone, Copy, PartialEq)]
enum Thought {
    Summary,
    Text,
}

impl Answer for Output {
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let data = data.trim();
        // Some servers add chat completions' end mark.
        if data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let event: StreamEvent<'_> = serde_json::from_str(data).map_err(not_understood)?;
        let r#type = event.r#type.and_then(cow);
        match r#type.as_deref().unwrap_or(name) {
            "response.output_text.delta" => self.text(&event, events)?,
            "response.reasoning_summary_text.delta" => {
                self.thought(Thought::Summary, &event, events)?;
            }
            // The second is the name in the open specification.
            "response.reasoning_text.delta" | "response.reasoning.delta" => {
                self.thought(Thought::Text, &event, events)?;
            }
            "response.function_call_arguments.delta" => self.arguments(&event, events)?,
            "response.refusal.delta" => {
                self.refused = true;
                self.text(&event, events)?;
            }
            "response.reasoning_summary_part.added" => {
                self.start(None, events);
                let at = self.seen(event.output_index())?;
                if self.items[at].thought == Some(Thought::Summary) {
                    // The parts of a summary are paragraphs.
                    think("\n\n", events);
                }
            }
            "response.output_text.annotation.added" => {
                self.start(None, events);
                let at = self.seen(event.output_index())?;
                self.items[at].cited = true;
                if let Some(annotation) = event.annotation {
                    cite(annotation, events);
                }
            }
            "response.output_item.added" => {
                if let Some(raw) = event.item {
                    let item = item(raw)?;
                    self.start(None, events);
                    let at = self.push(event.output_index())?;
                    // Without its name it begins when that is known.
                    if item.name.is_some() {
                        self.call(at, &item, events)?;
                    }
                }
            }
            "response.output_item.done" => {
                if let Some(raw) = event.item {
                    let at = self.seen(event.output_index())?;
                    self.item(at, raw, events)?;
                }
            }
            "response.created" | "response.queued" | "response.in_progress" => {
                if let Some(raw) = event.response {
                    let response = serde_json::from_str(raw.get()).map_err(not_understood)?;
                    self.start(Some(&response), events);
                }
            }
            "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "response.cancelled" => {
                let raw = event
                    .response
                    .ok_or_else(|| malformed("the stream ends without its response"))?;
                self.response(raw.get(), events)?;
            }
            "error" | "response.error" => return Err(failed(data)),
            // Proxies say it in the words of chat completions.
            _ if r#type.is_none() && event.error.is_some() => return Err(failed(data)),
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        self.response(document, events)
    }

    fn end(&mut self, _events: &mut EventQueue) -> Result<(), ProviderError> {
        Err(cut())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Output {
    fn start(&mut self, response: Option<&Response<'_>>, events: &mut EventQueue) {
        if self.started {
            return;
        }
        self.started = true;
        let text = |raw: Option<_>| raw.and_then(cow).filter(|text| !text.is_empty());
        let id = text(response.and_then(|response| response.id));
        let model = text(response.and_then(|response| response.model));
        events.push(Event::Start {
            id: id.as_deref(),
            model: model.as_deref(),
        });
    }

    /// What was taken of the item at `index`, which is new where the server never said that it begins.
    fn seen(&mut self, index: Option<u64>) -> Result<usize, ProviderError> {
        match self.items.iter().rposition(|seen| seen.index == index) {
            Some(at) => Ok(at),
            None => self.push(index),
        }
    }

    fn push(&mut self, index: Option<u64>) -> Result<usize, ProviderError> {
        if self.items.len() == MAX_ITEMS {
            return Err(malformed(format!(
                "the answer has more than {MAX_ITEMS} items"
            )));
        }
        self.items.push(Seen {
            index,
            said: false,
            cited: false,
            thought: None,
            call: None,
            done: false,
        });
        Ok(self.items.len() - 1)
    }

    fn text(
        &mut self,
        event: &StreamEvent<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        self.start(None, events);
        let at = self.seen(event.output_index())?;
        if let Some(text) = event.delta.and_then(|raw| string(raw, &mut self.scratch))
            && !text.is_empty()
        {
            self.items[at].said = true;
            events.push(Event::Text(text));
        }
        Ok(())
    }

    fn thought(
        &mut self,
        how: Thought,
        event: &StreamEvent<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        self.start(None, events);
        let at = self.seen(event.output_index())?;
        if let Some(text) = event.delta.and_then(|raw| string(raw, &mut self.scratch))
            && !text.is_empty()
            && *self.items[at].thought.get_or_insert(how) == how
        {
            think(text, events);
        }
        Ok(())
    }

    fn arguments(
        &mut self,
        event: &StreamEvent<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let at = self.seen(event.output_index())?;
        // Arguments of a call that was never announced come once more when it is done.
        if let Some(index) = self.items[at].call
            && let Some(arguments) = event.delta.and_then(|raw| string(raw, &mut self.scratch))
            && !arguments.is_empty()
        {
            self.items[at].said = true;
            events.push(Event::ToolCall(ToolCallDelta {
                index,
                arguments,
                id: None,
                name: None,
                signature: None,
            }));
        }
        Ok(())
    }

    /// The beginning of a tool call, if the item is one and has not begun.
    fn call(
        &mut self,
        at: usize,
        item: &Item<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        if item.r#type.and_then(cow).as_deref() != Some("function_call")
            || self.items[at].call.is_some()
        {
            return Ok(());
        }
        let index = self.calls;
        if index as usize == MAX_TOOL_CALLS {
            return Err(malformed(format!(
                "the answer has more than {MAX_TOOL_CALLS} tool calls"
            )));
        }
        self.calls += 1;
        self.items[at].call = Some(index);
        // Where the server gives no id, the result needs one all the same.
        let id = item.call_id.and_then(cow).filter(|id| !id.is_empty());
        let id = id.unwrap_or_else(|| format!("call_{index}").into());
        events.push(Event::ToolCall(ToolCallDelta {
            index,
            id: Some(&id),
            name: item.name.and_then(cow).as_deref(),
            arguments: "",
            signature: None,
        }));
        Ok(())
    }

    /// A whole item, of which pieces may have been taken.
    fn item(
        &mut self,
        at: usize,
        raw: &RawValue,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let item = item(raw)?;
        if std::mem::replace(&mut self.items[at].done, true) {
            return Ok(());
        }
        self.start(None, events);
        match item.r#type.and_then(cow).as_deref() {
            Some("message") => self.message(at, &item, events),
            Some("function_call") => {
                self.call(at, &item, events)?;
                if let Some(index) = self.items[at].call.filter(|_| !self.items[at].said)
                    && let Some(raw) = item.arguments
                {
                    // A string with JSON in it; some servers send the JSON itself.
                    let arguments = string(raw, &mut self.scratch).unwrap_or(raw.get());
                    if !arguments.is_empty() {
                        events.push(Event::ToolCall(ToolCallDelta {
                            index,
                            arguments,
                            id: None,
                            name: None,
                            signature: None,
                        }));
                    }
                }
            }
            Some("reasoning") => self.reasoning(at, &item, raw, events),
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, at: usize, item: &Item<'_>, events: &mut EventQueue) {
        let Some(content) = item.content else { return };
        let (said, cited) = (self.items[at].said, self.items[at].cited);
        let (refused, scratch) = (&mut self.refused, &mut self.scratch);
        // Parts of unknown forms are left out, not held against the answer.
        let _ = for_each(content, |part: Part<'_>| {
            *refused |= part.refusal.is_some();
            if let Some(text) = part.text.or(part.refusal)
                && !said
                && let Some(text) = string(text, scratch)
                && !text.is_empty()
            {
                events.push(Event::Text(text));
            }
            if let Some(annotations) = part.annotations.filter(|_| !cited) {
                let _ = for_each(annotations, |annotation| cite(annotation, events));
            }
        });
    }

    /// The end of a thought. It is handed back as the whole item, which is therefore its signature.
    fn reasoning(&mut self, at: usize, item: &Item<'_>, raw: &RawValue, events: &mut EventQueue) {
        let mut readable = self.items[at].thought.is_some();
        if !readable {
            let scratch = &mut self.scratch;
            for list in [item.summary, item.content].into_iter().flatten() {
                let before = readable;
                let _ = for_each(list, |part: Part<'_>| {
                    if let Some(text) = part.text.and_then(|raw| string(raw, scratch))
                        && !text.is_empty()
                        && !before
                    {
                        if readable {
                            think("\n\n", events);
                        }
                        readable = true;
                        think(text, events);
                    }
                });
            }
        }
        let signed = serde_json::from_str(raw.get());
        if signed.is_ok_and(|thought: Reasoning<'_>| thought.is_signed()) {
            events.push(if readable {
                Event::Reasoning {
                    text: "",
                    signature: Some(raw.get()),
                }
            } else {
                Event::RedactedReasoning(raw.get())
            });
        }
    }

    /// A response that has ended.
    fn response(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let response: Response<'_> = serde_json::from_str(document).map_err(not_understood)?;
        let status = response.status.and_then(cow);
        let status = status.as_deref();
        if response.error.is_some() || matches!(status, Some("failed" | "cancelled")) {
            return Err(failed(document));
        }
        let output = response
            .output
            .ok_or_else(|| malformed("the answer has no output"))?;
        self.start(Some(&response), events);
        if self.items.is_empty() {
            let mut outcome = Ok(());
            for_each(output, |raw: &RawValue| {
                if outcome.is_ok() {
                    outcome = self.push(None).and_then(|at| self.item(at, raw, events));
                }
            })
            .map_err(not_understood)?;
            outcome?;
        }
        self.complete = true;
        if let Some(usage) = response.usage.and_then(usage) {
            events.push(Event::Usage(usage));
        }
        events.push(Event::Finish(match status {
            Some("incomplete") => incomplete_reason(response.incomplete_details),
            Some("completed") if self.refused => FinishReason::Refusal,
            Some("completed") if self.calls > 0 => FinishReason::ToolCalls,
            Some("completed") => FinishReason::Stop,
            _ => FinishReason::Unknown,
        }));
        Ok(())
    }
}

fn item(raw: &RawValue) -> Result<Item<'_>, ProviderError> {
    serde_json::from_str(raw.get()).map_err(not_understood)
}

fn think(text: &str, events: &mut EventQueue) {
    events.push(Event::Reasoning {
        text,
        signature: None,
    });
}

fn cite(annotation: &RawValue, events: &mut EventQueue) {
    let Ok(source) = serde_json::from_str::<Annotation<'_>>(annotation.get()) else {
        return;
    };
    let text = |raw: Option<_>| raw.and_then(cow).filter(|text| !text.is_empty());
    if let Some(url) = text(source.url) {
        events.push(Event::Citation(Citation {
            url: Some(&url),
            title: text(source.title).as_deref(),
            quote: None,
        }));
    }
}
