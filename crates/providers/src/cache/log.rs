//! The events of an answer, kept so that several readers can take each of them, or a later one all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::ProviderError;
use crate::event::{Event, EventQueue};
use crate::provider::EventStream;

/// Events of one segment: what is forgotten is forgotten by whole segments.
const SEGMENT: usize = 64;

/// Events by their number, from 0. Those before some number may be forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// The number of the first event that is kept: a multiple of `SEGMENT`.
    begin: usize,
    end: usize,
    segments: VecDeque<EventQueue>,
    /// The size of all segments but the last.
    closed: usize,
}

impl Log {
    pub(super) fn push(&mut self, event: Event<'_>) {
        match self.segments.back_mut() {
            Some(last) if last.len() < SEGMENT => last.push(event),
            last => {
                self.closed += last.map_or(0, |last| last.size());
                let mut segment = EventQueue::default();
                segment.push(event);
                self.segments.push_back(segment);
            }
        }
        self.end += 1;
    }

    /// The number that the next event will have.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The event of this number; `None` if it is forgotten or has not come.
    pub(super) fn get(&self, number: usize) -> Option<Event<'_>> {
        let at = number.checked_sub(self.begin)?;
        self.segments.get(at / SEGMENT)?.get(at % SEGMENT)
    }

    /// Forgets what nobody needs who has read up to `number`.
    pub(super) fn forget_before(&mut self, number: usize) {
        while self.segments.len() > 1 && self.begin + SEGMENT <= number {
            if let Some(first) = self.segments.pop_front() {
                self.closed -= first.size();
                self.begin += SEGMENT;
            }
        }
    }

    /// Whether no event is forgotten.
    pub(super) fn is_whole(&self) -> bool {
        self.begin == 0
    }

    /// The memory that it takes, in bytes and about.
    pub(super) fn size(&self) -> usize {
        self.closed + self.segments.back().map_or(0, EventQueue::size)
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) provider: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) log: Log,
}

impl Recording {
    /// The memory that it takes, in bytes and about.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.log.size()
    }
}

/// A recording being played: everything is there already.
pub(super) struct Replay {
    recording: Arc<Recording>,
    next: usize,
}

impl Replay {
    pub(super) fn new(recording: Arc<Recording>) -> Self {
        Self { recording, next: 0 }
    }
}

impl EventStream for Replay {
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        self.next += 1;
        self.recording.log.get(self.next - 1).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is forgotten meanwhile: the events that are left are those that were written, and the size is theirs.
        #[test]
        fn a_log_gives_what_was_written(steps in proptest::collection::vec((0..40usize, 0..400usize), 1..40)) {
            let mut log = Log::default();
            let mut written: Vec<String> = Vec::new();
            let mut forgotten = 0;
            for (more, forget) in steps {
                for _ in 0..more {
                    let text = format!("t{}", written.len());
                    log.push(Event::Text(&text));
                    written.push(text);
                }
                let forget = forget.min(log.end());
                forgotten = forgotten.max(forget);
                log.forget_before(forget);
                prop_assert_eq!(log.end(), written.len());
                for (at, text) in written.iter().enumerate() {
                    match log.get(at) {
                        Some(event) => prop_assert_eq!(event, Event::Text(text)),
                        None => prop_assert!(at < forgotten),
                    }
                }
                let size: usize = log.segments.iter().map(EventQueue::size).sum();
                prop_assert_eq!(log.size(), size);
                prop_assert!(log.segments.len() <= (log.end() - forgotten) / SEGMENT + 2);
            }
        }
    }
}
