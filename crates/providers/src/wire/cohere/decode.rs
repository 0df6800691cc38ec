//! Reads answers: streams of events and whole bodies.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer::{Body, Call, Cited, Known, Message, Piece, Source, Tokens, finish_reason};
use super::error::from_json;
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{Few, cow, fill, string};

/// The events that a stream is known to have. Of any other nothing is expected.
const EVENTS: &[&str] = &[
    "message-start",
    "content-start",
    "content-delta",
    "content-end",
    "tool-plan-delta",
    "tool-call-start",
    "tool-call-delta",
    "tool-call-end",
    "citation-start",
    "citation-end",
    "message-end",
];

/// What is known of an answer so far. Its finish reason ends it.
#[derive(Default)]
pub(super) struct Reply {
    started: bool,
    /// The stream's indexes of the tool calls; a whole answer has none.
    calls: Vec<Option<u64>>,
    complete: bool,
    scratch: String,
}

impl Answer for Reply {
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let data = data.trim();
        if data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        if name == "error" {
            let document = serde_json::from_str(data);
            return Err(from_json(
                &document.unwrap_or(Value::String(data.into())),
                None,
            ));
        }
        match self.piece(data, events) {
            // An event of a later day may have any shape.
            Err(error) if error.kind == ErrorKind::MalformedResponse && !is_known(data) => Ok(()),
            taken => taken,
        }
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let mut body = Body::default();
        fill(document, &mut body).map_err(not_understood)?;
        if !body.message.there && body.finish_reason.is_none() {
            return Err(malformed("the answer has no message"));
        }
        self.start(body.id, events);
        self.body(&body, None, events)?;
        if !self.complete {
            self.complete = true;
            events.push(Event::Finish(FinishReason::Unknown));
        }
        Ok(())
    }

    fn end(&mut self, _events: &mut EventQueue) -> Result<(), ProviderError> {
        Err(cut())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Reply {
    fn piece(&mut self, data: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let mut piece = Piece::default();
        fill(data, &mut piece).map_err(not_understood)?;
        if piece.message.is_some() {
            let document = serde_json::from_str(data).map_err(not_understood)?;
            return Err(from_json(&document, None));
        }
        self.start(piece.id, events);
        self.body(&piece.delta, piece.index, events)
    }

    fn start(&mut self, id: Option<&RawValue>, events: &mut EventQueue) {
        if !self.started {
            self.started = true;
            let id = id.and_then(cow).filter(|id| !id.is_empty());
            events.push(Event::Start {
                id: id.as_deref(),
                model: None,
            });
        }
    }

    fn body(
        &mut self,
        body: &Body<'_>,
        index: Option<u64>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        self.message(&body.message, index, events)?;
        let Some(name) = body.finish_reason.and_then(cow) else {
            return Ok(());
        };
        let reason = finish_reason(&name).map_err(|kind| {
            let told = body.error.and_then(cow).filter(|told| !told.is_empty());
            let ours = || format!("the provider ended the answer with `{name}`").into();
            ProviderError::new(kind, told.unwrap_or_else(ours))
        })?;
        // What cannot be read must not have ended the answer: the error may be forgiven.
        let tokens: Option<Tokens> = body.usage.map(read).transpose()?;
        self.complete = true;
        if let Some(usage) = tokens.as_ref().and_then(Tokens::usage) {
            events.push(Event::Usage(usage));
        }
        events.push(Event::Finish(reason));
        Ok(())
    }

    fn message(
        &mut self,
        message: &Message<'_>,
        index: Option<u64>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        for part in message.content.iter().flatten() {
            self.think(part.thinking, events);
            if let Some(text) = text(part.text, &mut self.scratch) {
                events.push(Event::Text(text));
            }
        }
        // The plan is what the model thinks where it calls tools: its template has one place for both.
        self.think(message.tool_plan, events);
        for call in message.tool_calls.iter().flatten() {
            self.tool_call(call, index, events)?;
        }
        if let Some(citations) = message.citations {
            for cited in &read::<Few<_>>(citations)? {
                cite(cited, events);
            }
        }
        Ok(())
    }

    fn think(&mut self, thought: Option<&RawValue>, events: &mut EventQueue) {
        if let Some(text) = text(thought, &mut self.scratch) {
            events.push(Event::Reasoning {
                text,
                signature: None,
            });
        }
    }

    fn tool_call(
        &mut self,
        call: &Call<'_>,
        index: Option<u64>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let known = self.calls.iter().position(|known| *known == index);
        let known = known.filter(|_| index.is_some());
        let at = known.unwrap_or(self.calls.len());
        if known.is_none() {
            if at == MAX_TOOL_CALLS {
                return Err(malformed(format!(
                    "the answer has more than {MAX_TOOL_CALLS} tool calls"
                )));
            }
            self.calls.push(index);
        }
        let function = call.function.as_ref();
        let name = function.and_then(|function| function.name).and_then(cow);
        let id = call.id.and_then(cow);
        let arguments = function.and_then(|function| function.arguments);
        let arguments = text(arguments, &mut self.scratch).unwrap_or("");
        if known.is_none() || !arguments.is_empty() {
            events.push(Event::ToolCall(ToolCallDelta {
                index: u32::try_from(at).unwrap_or(u32::MAX),
                id: id.as_deref(),
                name: name.as_deref(),
                arguments,
                signature: None,
            }));
        }
        Ok(())
    }
}

fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, ProviderError> {
    serde_json::from_str(raw.get()).map_err(not_understood)
}

/// The text, unless it is empty.
fn text<'a>(raw: Option<&'a RawValue>, scratch: &'a mut String) -> Option<&'a str> {
    string(raw?, scratch).filter(|text| !text.is_empty())
}

/// One event a source: the answer's words are what the model took from it.
fn cite(cited: &Cited<'_>, events: &mut EventQueue) {
    let words = cited.text.and_then(cow);
    let mut any = false;
    for source in cited.sources.iter().flatten() {
        any = true;
        let known = known(source);
        let url = known.as_ref().and_then(|known| known.url).and_then(cow);
        let title = known.as_ref().and_then(|known| known.title).and_then(cow);
        let title = title.or_else(|| source.id.and_then(cow));
        events.push(Event::Citation(Citation {
            url: url.as_deref(),
            title: title.as_deref(),
            quote: words.as_deref(),
        }));
    }
    if let (false, Some(words)) = (any, &words) {
        events.push(Event::Citation(Citation {
            quote: Some(words),
            ..Citation::default()
        }));
    }
}

fn known<'a>(source: &Source<'a>) -> Option<Known<'a>> {
    let content = source.document.or(source.tool_output)?;
    serde_json::from_str(content.get()).ok()
}

fn is_known(data: &str) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(borrow)]
        r#type: Option<&'a RawValue>,
    }
    match serde_json::from_str(data) {
        Ok(Typed { r#type }) => {
            let name = r#type.and_then(cow);
            name.is_none_or(|name| EVENTS.contains(&&*name))
        }
        Err(_) => true,
    }
}
