//! A decoder with its queue: chunks in, events out.

use std::fmt;

use super::Decoder;
use crate::error::ProviderError;
use crate::event::{Event, EventQueue};

/// Reads one answer from the chunks of its body: push chunks in, take events out, [`finish`](Self::finish) at the end.
///
/// In steady state a text token costs no heap allocation, from chunk in to event out.
pub struct Decoding {
    decoder: Box<dyn Decoder>,
    events: EventQueue,
    error: Option<ProviderError>,
    ended: bool,
}

impl Decoding {
    /// Reads with `decoder`.
    pub fn new(decoder: Box<dyn Decoder>) -> Self {
        Self {
            decoder,
            events: EventQueue::default(),
            error: None,
            ended: false,
        }
    }

    /// Takes the next chunk of the body. What comes after the answer's end or an error is ignored.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.ended {
            return;
        }
        if let Err(error) = self.decoder.chunk(chunk, &mut self.events) {
            self.fail(error);
        } else if self.decoder.is_complete() {
            self.ended = true;
        }
    }

    /// The body is at its end, or lost. If the answer was not complete, the last thing to take is an error.
    pub fn finish(&mut self) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Err(error) = self.decoder.end(&mut self.events) {
            self.fail(error);
        }
    }

    /// The rest of the body is lost, for the reason `error`, which counts unless the answer is complete without it.
    pub fn lose(&mut self, error: ProviderError) {
        if self.ended {
            return;
        }
        self.ended = true;
        if self.decoder.end(&mut self.events).is_err() {
            self.error = Some(error);
        }
    }

    fn fail(&mut self, error: ProviderError) {
        self.ended = true;
        self.error.get_or_insert(error);
    }

    /// Whether [`next`](Self::next) has something to give.
    pub fn is_ready(&self) -> bool {
        !self.events.is_empty() || self.error.is_some()
    }

    /// How many events wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing more will come than what is ready.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The next event, or the error that ends the answer, if one is ready.
    #[allow(
        clippy::should_implement_trait,
        reason = "the event borrows from self, which Iterator cannot say"
    )]
    pub fn next(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        if self.events.is_empty() {
            return self.error.take().map(Err);
        }
        self.events.pop().map(Ok)
    }
}

impl fmt::Debug for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoding")
            .field("events", &self.events)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
