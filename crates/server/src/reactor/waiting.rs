//! Requests that wait for a share of the budget, in the order of their arrival.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lapce_ai_proto::{MessageType, OpenPrefix};
use lapce_ai_transport::Buffer;

use crate::server::Shared;

/// A request that has no memory yet.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) token: u64,
    pub(super) id: u64,
    pub(super) ty: MessageType,
    pub(super) prefix: OpenPrefix,
    /// What came with OPEN: the whole request, or its first piece.
    pub(super) first: Vec<u8>,
    /// `first` is the whole request.
    pub(super) whole: bool,
    pub(super) deadline: Option<Instant>,
    /// When it was refused first, itself or with all that were in line. Until then it does not count as waiting.
    pub(super) refused_at: Option<Instant>,
}

/// A request that got its memory.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: u64,
    pub(super) waiter: Waiter,
    pub(super) buffer: Buffer,
}

/// The queue. All or nothing, first come first served: a large request is not starved by small ones.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<Waiter>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn push(&mut self, waiter: Waiter, shared: &Shared) {
        self.queue.push_back(waiter);
        // Told before the next look at the budget, so that a release in between is not missed.
        shared
            .awaiting_budget
            .store(self.queue.len(), Ordering::SeqCst);
    }

    /// The first in the queue, if there is memory for it.
    pub(super) fn next(&mut self, shared: &Shared) -> Option<Granted> {
        let waiter = self.queue.front()?;
        let Some(buffer) = shared.pool.reserve(waiter.prefix.total_length as usize) else {
            self.note_refused(shared);
            return None;
        };
        let waiter = self.queue.pop_front()?;
        note_end(&waiter, shared);
        shared
            .awaiting_budget
            .store(self.queue.len(), Ordering::SeqCst);
        Some(Granted {
            token: waiter.token,
            waiter,
            buffer,
        })
    }

    /// All in line wait from now on, but for those who do already: they are in front.
    fn note_refused(&mut self, shared: &Shared) {
        let waits = |waiter: &Waiter| waiter.refused_at.is_some();
        if self.queue.back().is_none_or(waits) {
            return;
        }
        let now = Instant::now();
        let mut newcomers = 0;
        let from_behind = self.queue.iter_mut().rev();
        for waiter in from_behind.take_while(|waiter| !waits(waiter)) {
            waiter.refused_at = Some(now);
            newcomers += 1;
        }
        shared.pool.note_waiting(newcomers);
    }

    /// A request's first piece was the whole of it.
    pub(super) fn complete(&mut self, token: u64, id: u64) {
        let mut queue = self.queue.iter_mut();
        if let Some(waiter) = queue.find(|waiter| (waiter.token, waiter.id) == (token, id)) {
            waiter.whole = true;
        }
    }

    /// Those whose deadline has passed, as token and id.
    pub(super) fn expired(&self, now: Instant) -> Vec<(u64, u64)> {
        self.queue
            .iter()
            .filter(|waiter| waiter.deadline.is_some_and(|deadline| deadline <= now))
            .map(|waiter| (waiter.token, waiter.id))
            .collect()
    }

    /// Forgets the requests of a connection that is gone, or one request of it. Returns how many bytes they held.
    pub(super) fn forget(&mut self, token: u64, id: Option<u64>, shared: &Shared) -> usize {
        let mut held = 0;
        self.queue.retain(|waiter| {
            let keep = waiter.token != token || id.is_some_and(|id| waiter.id != id);
            if !keep {
                held += waiter.first.len();
                note_end(waiter, shared);
            }
            keep
        });
        shared
            .awaiting_budget
            .store(self.queue.len(), Ordering::SeqCst);
        held
    }
}

/// A request waits no longer.
fn note_end(waiter: &Waiter, shared: &Shared) {
    if let Some(since) = waiter.refused_at {
        shared.pool.note_waited(since.elapsed());
    }
}
