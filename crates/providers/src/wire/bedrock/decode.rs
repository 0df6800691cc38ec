//! Reads answers: the events of streams, and whole bodies.

use http::response::Parts;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{
    Block, BlockDelta, BlockStart, CitationsContent, Cited, Metadata, Stop, Text, Thought, ToolUse,
    Whole, finish_reason,
};
use crate::error::ProviderError;
use crate::event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta, Usage};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{cow, for_each, string};

/// What is known of an answer so far.
///
/// `messageStop` makes an answer complete. `metadata` with the usage comes after it, and sometimes before; `Usage` and
/// `Finish` wait for both, or for the end of the body.
pub(super) struct Converse {
    /// Bedrock's id of the request, the only one there is.
    id: Option<Box<str>>,
    started: bool,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
    /// The block of each tool call.
    calls: Vec<u64>,
    complete: bool,
    scratch: String,
}

impl Answer for Converse {
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        match name {
            "messageStart" => self.start(events),
            "contentBlockStart" => {
                self.start(events);
                let block: BlockStart<'_> = read(data)?;
                if let Some(call) = block.start.and_then(|start| start.tool_use) {
                    self.call(block.index, &call, events)?;
                }
            }
            "contentBlockDelta" => {
                self.start(events);
                self.delta(&read(data)?, events);
            }
            "messageStop" => {
                self.start(events);
                let stop: Stop<'_> = read(data)?;
                self.stop(stop.reason)?;
                self.complete_with_usage(events);
            }
            "metadata" => {
                self.start(events);
                let metadata: Metadata = read(data)?;
                self.usage = metadata
                    .usage
                    .and_then(|usage| usage.total())
                    .or(self.usage);
                self.complete_with_usage(events);
            }
            // `contentBlockStop`, and whatever is new.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let whole: Whole<'_> = read(document)?;
        let message = whole.output.and_then(|output| output.message);
        let message = message.ok_or_else(|| malformed("the answer has no message"))?;
        self.start(events);
        let mut outcome = Ok(());
        if let Some(content) = message.content {
            let mut index = 0;
            let each = |block: Block<'_>| {
                if outcome.is_ok() {
                    outcome = self.block(index, &block, events);
                }
                index += 1;
            };
            for_each(content, each).map_err(not_understood)?;
        }
        outcome?;
        self.stop(whole.stop_reason)?;
        self.usage = whole.usage.and_then(|usage| usage.total());
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

fn read<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T, ProviderError> {
    serde_json::from_str(data).map_err(not_understood)
}

impl Converse {
    /// An answer with this head.
    pub(super) fn new(head: &Parts) -> Self {
        let id = head.headers.get("x-amzn-requestid");
        Self {
            id: id.and_then(|id| id.to_str().ok()).map(Into::into),
            started: false,
            finish: None,
            usage: None,
            calls: Vec::new(),
            complete: false,
            scratch: String::new(),
        }
    }

    /// Bedrock's id of the request.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn start(&mut self, events: &mut EventQueue) {
        if !std::mem::replace(&mut self.started, true) {
            let id = self.id.as_deref();
            events.push(Event::Start { id, model: None });
        }
    }

    fn delta(&mut self, block: &BlockDelta<'_>, events: &mut EventQueue) {
        let Some(delta) = &block.delta else { return };
        if let Some(text) = delta.text {
            self.text(text, events);
        }
        if let Some(thought) = &delta.reasoning_content {
            self.thought(thought, events);
        }
        if let Some(cited) = &delta.citation {
            cite(cited, events);
        }
        // Of blocks that are no call the arguments are of a tool that Bedrock runs itself.
        let call = self.calls.iter().rposition(|index| *index == block.index);
        let arguments = delta.tool_use.as_ref().and_then(|call| call.input);
        if let (Some(at), Some(arguments)) = (call, arguments)
            && let Some(arguments) = string(arguments, &mut self.scratch)
            && !arguments.is_empty()
        {
            events.push(Event::ToolCall(ToolCallDelta {
                index: u32::try_from(at).unwrap_or(u32::MAX),
                id: None,
                name: None,
                arguments,
                signature: None,
            }));
        }
    }

    /// A block of a whole answer.
    fn block(
        &mut self,
        index: u64,
        block: &Block<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        if let Some(text) = block.text {
            self.text(text, events);
        }
        if let Some(thought) = &block.reasoning_content {
            self.thought(thought, events);
        }
        if let Some(part) = &block.citations_content {
            self.cited_text(part, events);
        }
        match &block.tool_use {
            Some(call) => self.call(index, call, events),
            None => Ok(()),
        }
    }

    fn text(&mut self, text: &RawValue, events: &mut EventQueue) {
        if let Some(text) = string(text, &mut self.scratch).filter(|text| !text.is_empty()) {
            events.push(Event::Text(text));
        }
    }

    fn thought(&mut self, thought: &Thought<'_>, events: &mut EventQueue) {
        let whole = thought.reasoning_text.as_ref();
        let text = thought.text.or(whole.and_then(|whole| whole.text));
        let signature = thought
            .signature
            .or(whole.and_then(|whole| whole.signature));
        let signature = signature.and_then(cow).filter(|text| !text.is_empty());
        let text = text
            .and_then(|text| string(text, &mut self.scratch))
            .unwrap_or("");
        if !text.is_empty() || signature.is_some() {
            events.push(Event::Reasoning {
                text,
                signature: signature.as_deref(),
            });
        }
        if let Some(data) = thought.redacted_content.and_then(cow) {
            events.push(Event::RedactedReasoning(&data));
        }
    }

    /// The beginning of a call, or a whole one.
    fn call(
        &mut self,
        index: u64,
        call: &ToolUse<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        // Bedrock runs the tool itself; nobody here is to answer it.
        if call
            .r#type
            .is_some_and(|r#type| r#type.get() == "\"server_tool_use\"")
        {
            return Ok(());
        }
        if self.calls.len() == MAX_TOOL_CALLS {
            return Err(malformed(format!(
                "the answer has more than {MAX_TOOL_CALLS} tool calls"
            )));
        }
        let at = self.calls.len();
        self.calls.push(index);
        let id = call.id.and_then(cow).unwrap_or_default();
        let name = call.name.and_then(cow).unwrap_or_default();
        events.push(Event::ToolCall(ToolCallDelta {
            index: u32::try_from(at).unwrap_or(u32::MAX),
            id: Some(&id),
            name: Some(&name),
            arguments: call.input.map_or("", RawValue::get),
            signature: None,
        }));
        Ok(())
    }

    fn cited_text(&mut self, part: &CitationsContent<'_>, events: &mut EventQueue) {
        // Forms that are not known are left out, not held against the answer.
        if let Some(content) = part.content {
            let each = |piece: Text<'_>| {
                if let Some(text) = piece.text {
                    self.text(text, events);
                }
            };
            let _ = for_each(content, each);
        }
        if let Some(citations) = part.citations {
            let _ = for_each(citations, |cited: Cited<'_>| cite(&cited, events));
        }
    }

    fn stop(&mut self, reason: Option<&RawValue>) -> Result<(), ProviderError> {
        let reason = reason.and_then(|reason| string(reason, &mut self.scratch));
        self.finish = Some(finish_reason(reason.unwrap_or(""))?);
        Ok(())
    }

    fn complete_with_usage(&mut self, events: &mut EventQueue) {
        if self.finish.is_some() && self.usage.is_some() {
            self.complete(events);
        }
    }

    fn complete(&mut self, events: &mut EventQueue) {
        self.complete = true;
        if let Some(usage) = self.usage {
            events.push(Event::Usage(usage));
        }
        events.push(Event::Finish(self.finish.unwrap_or(FinishReason::Unknown)));
    }
}

fn cite(cited: &Cited<'_>, events: &mut EventQueue) {
    let web = cited
        .location
        .as_ref()
        .and_then(|location| location.web.as_ref());
    let url = web.and_then(|web| web.url).and_then(cow);
    let source = || {
        cited
            .source
            .and_then(cow)
            .filter(|source| source.starts_with("http"))
    };
    let url = url.or_else(source);
    let title = cited.title.and_then(cow);
    let mut quote = String::new();
    if let Some(content) = cited.source_content {
        let each = |piece: Text<'_>| quote.extend(piece.text.and_then(cow));
        let _ = for_each(content, each);
    }
    let some = |text: &str| !text.is_empty();
    let citation = Citation {
        url: url.as_deref().filter(|url| some(url)),
        title: title.as_deref().filter(|title| some(title)),
        quote: Some(quote.as_str()).filter(|quote| some(quote)),
    };
    if citation != Citation::default() {
        events.push(Event::Citation(citation));
    }
}
