//! A streamed answer: messages of AWS's binary event stream.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html>; what the headers
//! mean: <https://smithy.io/2.0/aws/amazon-eventstream.html>.

use super::decode::Converse;
use super::error::{from_exception, from_stream_error};
use crate::error::ProviderError;
use crate::event::EventQueue;
use crate::event_stream::{EventStreamMessage, EventStreamParser};
use crate::wire::Decoder;
use crate::wire::body::Answer;
use crate::wire::error::malformed;

/// Reads the messages of one answer.
pub(super) struct Messages {
    parser: EventStreamParser,
    answer: Converse,
}

impl Messages {
    pub(super) fn new(answer: Converse, limit: usize) -> Self {
        Self {
            parser: EventStreamParser::new(limit),
            answer,
        }
    }
}

impl Messages {
    fn read(&mut self, mut chunk: &[u8], events: &mut EventQueue) -> Result<(), ProviderError> {
        while !self.answer.is_complete() {
            let message = self.parser.next(&mut chunk);
            let message = message.map_err(|error| malformed(error.to_string()))?;
            let Some(message) = message else {
                return Ok(());
            };
            take(&message, &mut self.answer, events)?;
        }
        Ok(())
    }

    fn with_id(&self, mut error: ProviderError) -> ProviderError {
        error.request_id = self.answer.id().map(Into::into);
        error
    }
}

impl Decoder for Messages {
    fn chunk(&mut self, chunk: &[u8], events: &mut EventQueue) -> Result<(), ProviderError> {
        let read = self.read(chunk, events);
        read.map_err(|error| self.with_id(error))
    }

    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError> {
        if self.answer.is_complete() {
            return Ok(());
        }
        let end = self.answer.end(events);
        end.map_err(|error| self.with_id(error))
    }

    fn is_complete(&self) -> bool {
        self.answer.is_complete()
    }
}

fn take(
    message: &EventStreamMessage<'_>,
    answer: &mut Converse,
    events: &mut EventQueue,
) -> Result<(), ProviderError> {
    let text = |name| message.text(name).unwrap_or("");
    let payload = str::from_utf8(message.payload).map_err(|error| malformed(error.to_string()))?;
    match text(":message-type") {
        "exception" => Err(from_exception(text(":exception-type"), payload)),
        "error" => Err(from_stream_error(
            text(":error-code"),
            text(":error-message"),
        )),
        // Of other kinds of messages we know nothing, so their events have no names that we know.
        _ => answer.event(text(":event-type"), payload, events),
    }
}
