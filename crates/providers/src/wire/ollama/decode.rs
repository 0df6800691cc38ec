//! Reads answers: lines of a stream, and whole bodies, which look like the only line of one.

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use super::error::from_json;
use crate::error::ProviderError;
use crate::event::{Event, EventQueue, FinishReason, ToolCallDelta, Usage};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{Few, Fill, Object, cow, fill, skip, string};

/// Each field may be missing or null, and unknown ones are skipped. Texts stay raw until they are wanted, so that
/// reading a line allocates nothing.
#[derive(Default)]
struct Line<'a> {
    model: Option<&'a RawValue>,
    message: Message<'a>,
    done: Option<bool>,
    done_reason: Option<&'a RawValue>,
    /// Tokens of the prompt. Older servers leave it out where the prompt was in their cache.
    prompt_eval_count: Option<u64>,
    /// Tokens generated, thinking included.
    eval_count: Option<u64>,
    error: Option<&'a RawValue>,
}

impl<'de> Fill<'de> for Line<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "message" => return map.next_value_seed(Object::or_null(&mut self.message)),
            "model" => self.model = map.next_value()?,
            "done" => self.done = map.next_value()?,
            "done_reason" => self.done_reason = map.next_value()?,
            "prompt_eval_count" => self.prompt_eval_count = map.next_value()?,
            "eval_count" => self.eval_count = map.next_value()?,
            "error" => self.error = map.next_value()?,
            _ => return skip(map),
        }
        Ok(())
    }
}

#[derive(Default)]
struct Message<'a> {
    /// Whether there is one.
    there: bool,
    content: Option<&'a RawValue>,
    thinking: Option<&'a RawValue>,
    tool_calls: Option<Few<Call<'a>>>,
}

impl<'de> Fill<'de> for Message<'de> {
    fn begin(&mut self) {
        self.there = true;
    }

    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "content" => self.content = map.next_value()?,
            "thinking" => self.thinking = map.next_value()?,
            "tool_calls" => self.tool_calls = map.next_value()?,
            _ => return skip(map),
        }
        Ok(())
    }
}

/// Each call comes whole.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    /// An object, not a text with one.
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

/// What is known of an answer so far. `done` ends it.
#[derive(Default)]
pub(super) struct Reply {
    started: bool,
    calls: u32,
    complete: bool,
    scratch: String,
}

impl Answer for Reply {
    fn event(
        &mut self,
        _name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let mut line = Line::default();
        fill(data, &mut line).map_err(not_understood)?;
        if line.error.is_some() {
            let document = serde_json::from_str(data).map_err(not_understood)?;
            return Err(from_json(&document, None));
        }
        if !line.message.there && line.done.is_none() {
            return Err(malformed("a line of the answer has no message"));
        }
        if !self.started {
            self.started = true;
            let model = line.model.and_then(cow).filter(|model| !model.is_empty());
            events.push(Event::Start {
                id: None,
                model: model.as_deref(),
            });
        }
        self.message(&line.message, events)?;
        if line.done == Some(true) {
            self.finish(&line, events);
        }
        Ok(())
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        self.event("", document, events)?;
        if self.complete { Ok(()) } else { Err(cut()) }
    }

    fn end(&mut self, _events: &mut EventQueue) -> Result<(), ProviderError> {
        Err(cut())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Reply {
    fn message(
        &mut self,
        message: &Message<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let scratch = &mut self.scratch;
        if let Some(text) = message.thinking.and_then(|raw| string(raw, scratch))
            && !text.is_empty()
        {
            events.push(Event::Reasoning {
                text,
                signature: None,
            });
        }
        if let Some(text) = message.content.and_then(|raw| string(raw, scratch))
            && !text.is_empty()
        {
            events.push(Event::Text(text));
        }
        for call in message.tool_calls.iter().flatten() {
            self.tool_call(call, events)?;
        }
        Ok(())
    }

    fn tool_call(&mut self, call: &Call<'_>, events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.calls as usize == MAX_TOOL_CALLS {
            return Err(malformed(format!(
                "the answer has more than {MAX_TOOL_CALLS} tool calls"
            )));
        }
        let id = call.id.and_then(cow).filter(|id| !id.is_empty());
        // Older servers give none, and the result needs one all the same.
        let id = id.unwrap_or_else(|| format!("call_{}", self.calls).into());
        let function = call.function.as_ref();
        let name = function.and_then(|function| function.name).and_then(cow);
        let arguments = function.and_then(|function| function.arguments);
        events.push(Event::ToolCall(ToolCallDelta {
            index: self.calls,
            id: Some(&id),
            name: name.as_deref(),
            arguments: arguments.map_or("", RawValue::get),
            signature: None,
        }));
        self.calls += 1;
        Ok(())
    }

    fn finish(&mut self, line: &Line<'_>, events: &mut EventQueue) {
        self.complete = true;
        if line.prompt_eval_count.is_some() || line.eval_count.is_some() {
            events.push(Event::Usage(Usage {
                input_tokens: line.prompt_eval_count.unwrap_or(0),
                output_tokens: line.eval_count.unwrap_or(0),
                ..Usage::default()
            }));
        }
        let reason = line.done_reason.and_then(cow);
        events.push(Event::Finish(match reason.as_deref() {
            Some("length") => FinishReason::Length,
            // There is no word of its own for calls.
            _ if self.calls > 0 => FinishReason::ToolCalls,
            Some("stop") => FinishReason::Stop,
            // `load`, `unload`; none, of old servers and where the runner lost its way.
            _ => FinishReason::Unknown,
        }));
    }
}
