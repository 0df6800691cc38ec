//! How answers are framed: server-sent events, lines of JSON, or one document.
//!
//! A format says what one event means by implementing [`Answer`]; the framings here feed it.

use http::header::CONTENT_TYPE;
use http::response::Parts;
use memchr::memchr;
use serde_json::value::RawValue;

use super::Decoder;
use super::error::{malformed, not_understood};
use crate::error::{ErrorKind, ProviderError};
use crate::event::EventQueue;
use crate::sse::{SseError, SseParser};

/// More tool calls than this in one answer are an attack or a defect.
pub(crate) const MAX_TOOL_CALLS: usize = 1024;

/// What is known of one answer so far, however it is framed.
///
/// It keeps the promise of [`Event`](crate::Event)'s order: whatever makes it complete leaves `Usage`, where known,
/// and `Finish` in the queue.
pub(crate) trait Answer: Send {
    /// Takes an event of a stream. `name` is its type where the framing has one, `message` for server-sent events
    /// without, and empty for lines.
    fn event(
        &mut self,
        name: &str,
        data: &str,
        events: &mut EventQueue,
    ) -> Result<(), ProviderError>;

    /// Takes a whole answer, which is JSON; it is complete then.
    fn whole(&mut self, document: &str, events: &mut EventQueue) -> Result<(), ProviderError>;

    /// The stream is at its end and the answer is not complete yet. It may be all the same, else it was
    /// [cut](super::error::cut).
    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError>;

    /// Whether the answer is complete.
    fn is_complete(&self) -> bool;
}

/// The decoder that an answer's head asks for.
///
/// # Errors
///
/// [`MalformedResponse`](ErrorKind::MalformedResponse) for other types, such as a proxy's web page.
pub(crate) fn decoder<A: Answer + Default + 'static>(
    head: &Parts,
    limit: usize,
) -> Result<Box<dyn Decoder>, ProviderError> {
    decoder_of(A::default(), head, limit)
}

/// The same for an answer of which something is known already.
pub(crate) fn decoder_of<A: Answer + 'static>(
    answer: A,
    head: &Parts,
    limit: usize,
) -> Result<Box<dyn Decoder>, ProviderError> {
    match media_type(head).as_str() {
        // Some small servers name no type, or the wrong one, for their streams.
        "text/event-stream" | "text/plain" | "application/octet-stream" | "" => {
            Ok(Box::new(Events::new(answer, limit)))
        }
        "application/x-ndjson" | "application/jsonl" | "application/json-lines" => {
            Ok(Box::new(Lines::new(answer, limit)))
        }
        json if json == "application/json" || json.ends_with("+json") => {
            Ok(Box::new(Document::new(answer, limit)))
        }
        other => Err(malformed(format!(
            "the answer is of type `{other}`; is the base URL right?"
        ))),
    }
}

/// The type of a body without its parameters, in lower case; empty where the head names none.
pub(crate) fn media_type(head: &Parts) -> String {
    let value = head.headers.get(CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    text.split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase()
}

/// A stream of server-sent events.
struct Events<A> {
    sse: SseParser,
    answer: A,
}

impl<A: Answer> Events<A> {
    fn new(answer: A, limit: usize) -> Self {
        Self {
            sse: SseParser::new(limit),
            answer,
        }
    }
}

impl<A: Answer> Decoder for Events<A> {
    fn chunk(&mut self, mut chunk: &[u8], events: &mut EventQueue) -> Result<(), ProviderError> {
        while !self.answer.is_complete() {
            let event = self
                .sse
                .next(&mut chunk)
                .map_err(|error: SseError| malformed(error.to_string()))?;
            let Some(event) = event else { return Ok(()) };
            self.answer.event(event.event, event.data, events)?;
        }
        Ok(())
    }

    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.answer.is_complete() {
            return Ok(());
        }
        self.answer.end(events)
    }

    fn is_complete(&self) -> bool {
        self.answer.is_complete()
    }
}

/// A stream of JSON documents, one a line.
struct Lines<A> {
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    limit: usize,
    answer: A,
}

impl<A: Answer> Lines<A> {
    fn new(answer: A, limit: usize) -> Self {
        Self {
            line: Vec::new(),
            limit,
            answer,
        }
    }
}

impl<A: Answer> Decoder for Lines<A> {
    fn chunk(&mut self, mut chunk: &[u8], events: &mut EventQueue) -> Result<(), ProviderError> {
        while !self.answer.is_complete() && !chunk.is_empty() {
            let end = memchr(b'\n', chunk);
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            if self.line.len() + piece.len() > self.limit {
                return Err(malformed(format!(
                    "a line of the stream is longer than {} bytes",
                    self.limit
                )));
            }
            let Some(end) = end else {
                self.line.extend_from_slice(piece);
                return Ok(());
            };
            chunk = &chunk[end + 1..];
            if self.line.is_empty() {
                take_line(piece, &mut self.answer, events)?;
            } else {
                self.line.extend_from_slice(piece);
                take_line(&self.line, &mut self.answer, events)?;
                self.line.clear();
            }
        }
        Ok(())
    }

    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.answer.is_complete() {
            return Ok(());
        }
        // The last line may lack its line feed. Half a line is no document, and then the stream was cut.
        let whole = serde_json::from_slice::<&RawValue>(&self.line).is_ok();
        if whole {
            take_line(&self.line, &mut self.answer, events)?;
        }
        if self.answer.is_complete() {
            return Ok(());
        }
        self.answer.end(events)
    }

    fn is_complete(&self) -> bool {
        self.answer.is_complete()
    }
}

fn take_line(
    line: &[u8],
    answer: &mut impl Answer,
    events: &mut EventQueue,
) -> Result<(), ProviderError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let line = str::from_utf8(line).map_err(|error| malformed(error.to_string()))?;
    answer.event("", line, events)
}

/// One JSON document.
struct Document<A> {
    body: Vec<u8>,
    limit: usize,
    answer: A,
}

impl<A: Answer> Document<A> {
    fn new(answer: A, limit: usize) -> Self {
        Self {
            body: Vec::new(),
            limit,
            answer,
        }
    }
}

impl<A: Answer> Decoder for Document<A> {
    fn chunk(&mut self, chunk: &[u8], _events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.body.len() + chunk.len() > self.limit {
            return Err(malformed(format!(
                "the answer is longer than {} bytes",
                self.limit
            )));
        }
        self.body.extend_from_slice(chunk);
        Ok(())
    }

    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError> {
        let document = serde_json::from_slice::<&RawValue>(&self.body).map_err(|error| {
            if error.is_eof() {
                ProviderError::new(
                    ErrorKind::StreamCut,
                    format!("the answer ended too early: {error}"),
                )
            } else {
                not_understood(error)
            }
        })?;
        self.answer.whole(document.get(), events)
    }

    fn is_complete(&self) -> bool {
        self.answer.is_complete()
    }
}
