//! Reads answers: streams of chunks, and whole bodies.
//!
//! A signature of a thought may stand on any part. On a function call it becomes the call's, on a thought the thought's.
//! On a text it becomes a [`RedactedReasoning`](Event::RedactedReasoning) before the text: Google calls it an encrypted
//! thought, and the request puts it back on the text that follows.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;

use super::answer::{
    Candidate, Chunk, CitationMetadata, Ending, FunctionCall, GroundingChunk, GroundingMetadata,
    Part, PromptFeedback, Source, Tokens, ending,
};
use super::arguments::Arguments;
use super::error::from_json;
use super::made_id;
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta};
use crate::wire::body::{Answer, MAX_TOOL_CALLS};
use crate::wire::error::{cut, malformed, not_understood};
use crate::wire::json::{cow, fill, for_each, string};

/// The most sources that are remembered in order not to name them twice.
const MAX_SOURCES: usize = 1024;

/// What is known of an answer so far.
///
/// A stream has no end mark. A finish reason makes an answer complete, but what comes with the chunks after it still
/// counts, so `Usage` and `Finish` wait for the end of the body. Where no reason came, the stream was cut.
#[derive(Default)]
pub(super) struct Generation {
    started: bool,
    answered: bool,
    finish: Option<FinishReason>,
    tokens: Tokens,
    /// The answer's id, for the ids of calls that have none.
    id: String,
    calls: usize,
    /// The first call has its signature.
    signed: bool,
    /// The last call's arguments still come.
    open: Option<Arguments>,
    /// Hashes of the sources that were named.
    sources: Vec<u64>,
    complete: bool,
    scratch: String,
}

impl Answer for Generation {
    fn event(
        &mut self,
        _name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        match data.trim() {
            // The second is no word of Google's, but some proxies end every stream so.
            "" | "[DONE]" => Ok(()),
            data => self.documents(data, events),
        }
    }

    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        self.documents(document, events)?;
        if !self.answered {
            return Err(malformed("the answer has no candidates"));
        }
        if self.finish.is_none() && document.trim_start().starts_with('[') {
            return Err(cut());
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

impl Generation {
    /// Takes a document, or an array of them: so Google streams where it is not asked for server-sent events.
    fn documents(&mut self, text: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        if !text.trim_start().starts_with('[') {
            return self.document(text, events);
        }
        let list: &RawValue = serde_json::from_str(text).map_err(not_understood)?;
        let mut outcome = Ok(());
        for_each(list, |document: &RawValue| {
            if outcome.is_ok() {
                outcome = self.document(document.get(), events);
            }
        })
        .map_err(not_understood)?;
        outcome
    }

    fn document(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError> {
        let mut chunk = Chunk::default();
        fill(document, &mut chunk).map_err(not_understood)?;
        if chunk.error.is_some() {
            let document = serde_json::from_str(document).map_err(not_understood)?;
            return Err(from_json(&document, None));
        }
        let candidate = &chunk.candidate;
        if !self.started && (candidate.there || chunk.response_id.is_some()) {
            self.started = true;
            let id = chunk.response_id.and_then(cow).filter(|id| !id.is_empty());
            let model = chunk.model_version.and_then(cow);
            let model = model.filter(|model| !model.is_empty());
            events.push(Event::Start {
                id: id.as_deref(),
                model: model.as_deref(),
            });
            self.id = id.map(Into::into).unwrap_or_default();
        }
        self.tokens.update(&chunk.usage_metadata);
        if let Some(feedback) = chunk.prompt_feedback
            && let Some(error) = blocked(feedback)
        {
            return Err(error);
        }
        if candidate.there {
            self.candidate(candidate, events)?;
        }
        Ok(())
    }

    fn candidate(
        &mut self,
        candidate: &Candidate<'_>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        self.answered = true;
        for part in &candidate.content.parts {
            self.part(part, events)?;
        }
        if let Some(metadata) = candidate.citation_metadata {
            self.citations(metadata, events);
        }
        if let Some(metadata) = candidate.grounding_metadata {
            self.grounding(metadata, events);
        }
        let reason = candidate
            .finish_reason
            .and_then(|reason| string(reason, &mut self.scratch))
            .filter(|reason| !reason.is_empty() && *reason != "FINISH_REASON_UNSPECIFIED");
        let Some(reason) = reason else {
            return Ok(());
        };
        match ending(reason) {
            Ending::Complete(finish) => self.finish = Some(finish),
            Ending::Failed(kind, what) => {
                let more = candidate.finish_message.and_then(cow).unwrap_or_default();
                let message = match &*more {
                    "" => format!("{what} ({reason})"),
                    more => format!("{what} ({reason}): {more}"),
                };
                let mut error = ProviderError::new(kind, message);
                error.code = Some(reason.into());
                return Err(error);
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &Part<'_>, events: &mut EventQueue) -> Result<(), ProviderError> {
        let signature = part.thought_signature.and_then(cow);
        let signature = signature.as_deref().filter(|text| !text.is_empty());
        if let Some(call) = &part.function_call {
            return self.call(call, signature, events);
        }
        if let Some(code) = &part.executable_code {
            let language = code.language.and_then(cow).unwrap_or_default();
            let code = code.code.and_then(cow).unwrap_or_default();
            show(&code, &language.to_lowercase(), events);
        }
        if let Some(result) = &part.code_execution_result {
            let output = result.output.and_then(cow).unwrap_or_default();
            show(&output, "", events);
        }
        let text = part.text.and_then(|raw| string(raw, &mut self.scratch));
        let Some(text) = text else {
            return Ok(());
        };
        if part.thought == Some(true) {
            if !text.is_empty() || signature.is_some() {
                events.push(Event::Reasoning { text, signature });
            }
            return Ok(());
        }
        match signature {
            // It came late: the thought was the call's.
            Some(_) if text.is_empty() && self.calls > 0 && !self.signed => {
                self.signed = true;
                events.push(Event::ToolCall(ToolCallDelta {
                    index: 0,
                    id: None,
                    name: None,
                    arguments: "",
                    signature,
                }));
            }
            Some(signature) => events.push(Event::RedactedReasoning(signature)),
            None => {}
        }
        if !text.is_empty() {
            events.push(Event::Text(text));
        }
        Ok(())
    }

    /// Takes a call, or a piece of the last one: `{"name","willContinue"}`, `{"partialArgs","willContinue"}` as often as
    /// needed, `{}`.
    fn call(
        &mut self,
        call: &FunctionCall<'_>,
        signature: Option<&str>,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError> {
        let name = call.name.and_then(cow).filter(|name| !name.is_empty());
        let more = call.will_continue == Some(true);
        if let Some(name) = &name {
            self.end_call(events);
            if self.calls == MAX_TOOL_CALLS {
                return Err(malformed(format!(
                    "the answer has more than {MAX_TOOL_CALLS} tool calls"
                )));
            }
            let given = call.id.and_then(cow).filter(|id| !id.is_empty());
            let id = given.unwrap_or_else(|| made_id(&self.id, self.calls).into());
            let arguments = match call.args {
                Some(args) => args.get(),
                None => {
                    self.open = Some(Arguments::default());
                    ""
                }
            };
            self.calls += 1;
            events.push(Event::ToolCall(ToolCallDelta {
                index: self.last(),
                id: Some(&id),
                name: Some(name),
                arguments,
                signature,
            }));
        } else if signature.is_some() && self.calls > 0 {
            events.push(Event::ToolCall(ToolCallDelta {
                index: self.last(),
                id: None,
                name: None,
                arguments: "",
                signature,
            }));
        }
        self.signed |= self.calls == 1 && signature.is_some();
        if let Some(pieces) = &call.partial_args
            && let Some(open) = &mut self.open
        {
            self.scratch.clear();
            for piece in pieces.first.iter().chain(&pieces.rest) {
                open.write(piece, &mut self.scratch)?;
            }
            self.push_arguments(events);
        }
        if !more {
            self.end_call(events);
        }
        Ok(())
    }

    /// The last call's arguments have come, if they came in pieces.
    fn end_call(&mut self, events: &mut EventQueue) {
        if let Some(open) = self.open.take() {
            self.scratch.clear();
            open.end(&mut self.scratch);
            self.push_arguments(events);
        }
    }

    fn push_arguments(&self, events: &mut EventQueue) {
        if !self.scratch.is_empty() {
            events.push(Event::ToolCall(ToolCallDelta {
                index: self.last(),
                id: None,
                name: None,
                arguments: &self.scratch,
                signature: None,
            }));
        }
    }

    /// The last call's index.
    fn last(&self) -> u32 {
        u32::try_from(self.calls.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Sources of what was quoted at length. Those of unknown forms are left out, not held against the answer.
    fn citations(&mut self, metadata: &RawValue, events: &mut EventQueue) {
        if let Ok(CitationMetadata {
            citation_sources: Some(list),
        }) = serde_json::from_str(metadata.get())
        {
            let _ = for_each(list, |source: Source<'_>| self.cite(&source, events));
        }
    }

    /// Sources that were searched. Which words of the answer rest on which is not passed on.
    fn grounding(&mut self, metadata: &RawValue, events: &mut EventQueue) {
        if let Ok(GroundingMetadata {
            grounding_chunks: Some(list),
        }) = serde_json::from_str(metadata.get())
        {
            let _ = for_each(list, |chunk: GroundingChunk<'_>| {
                if let Some(source) = chunk.web.or(chunk.retrieved_context).or(chunk.maps) {
                    self.cite(&source, events);
                }
            });
        }
    }

    fn cite(&mut self, source: &Source<'_>, events: &mut EventQueue) {
        let text = |raw: Option<&RawValue>| {
            let text = raw.and_then(cow).filter(|text| !text.is_empty());
            text.map(String::from)
        };
        let (url, title, quote) = (text(source.uri), text(source.title), text(source.text));
        if url.is_none() && title.is_none() && quote.is_none() {
            return;
        }
        // Chunks may repeat what earlier ones had.
        let mut hasher = DefaultHasher::new();
        (&url, &title, &quote).hash(&mut hasher);
        let hash = hasher.finish();
        if self.sources.contains(&hash) {
            return;
        }
        if self.sources.len() < MAX_SOURCES {
            self.sources.push(hash);
        }
        events.push(Event::Citation(Citation {
            url: url.as_deref(),
            title: title.as_deref(),
            quote: quote.as_deref(),
        }));
    }

    fn complete(&mut self, events: &mut EventQueue) {
        self.complete = true;
        self.end_call(events);
        if let Some(usage) = self.tokens.usage() {
            events.push(Event::Usage(usage));
        }
        // An answer that calls tools ends in STOP like any other.
        let reason = match self.finish {
            None | Some(FinishReason::Stop) if self.calls > 0 => FinishReason::ToolCalls,
            reason => reason.unwrap_or(FinishReason::Unknown),
        };
        events.push(Event::Finish(reason));
    }
}

/// Code that ran on Google's side, or its output. It is how the model came to its answer, not the answer.
fn show(text: &str, language: &str, events: &mut EventQueue) {
    if !text.is_empty() {
        let line_feed = if text.ends_with('\n') { "" } else { "\n" };
        events.push(Event::Reasoning {
            text: &format!("```{language}\n{text}{line_feed}```\n"),
            signature: None,
        });
    }
}

/// The error of a prompt that was refused.
fn blocked(feedback: &RawValue) -> Option<ProviderError> {
    let feedback: PromptFeedback<'_> = serde_json::from_str(feedback.get()).ok()?;
    let reason = feedback.block_reason.and_then(cow)?;
    if reason.is_empty() || reason == "BLOCK_REASON_UNSPECIFIED" {
        return None;
    }
    let message = feedback.block_reason_message.and_then(cow);
    let message = message.filter(|message| !message.is_empty());
    let message = message.unwrap_or_else(|| format!("the prompt was blocked: {reason}").into());
    let mut error = ProviderError::new(ErrorKind::ContentFiltered, message);
    error.code = Some(reason.into());
    Some(error)
}
