//! Requests that wait for a share of the buffers' budget. One line for all reactors.
//!
//! Connections take turns, one request each; a connection's own requests go in the order of their arrival. So a client
//! that asks for much at once fills its own place only, and those that hold memory belong to different clients, whose
//! rings carry them side by side.
//!
//! A request gets its whole length or nothing, and while there is too little for the one whose turn it is, nobody gets any:
//! so a large request is not starved by small ones. It waits for at most one request of each other connection, whenever
//! those came, and then until so much has come back; and what is held comes back, since an upload that does not move is
//! cut and an answer that is not read, too.
//!
//! Whoever gives memory back serves the line ([`Line::advance`]), in whatever thread that is. So nobody depends on a
//! reactor that is held up by a handler.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lapce_ai_proto::{MessageType, OpenPrefix};
use lapce_ai_transport::{Buffer, BufferPool};

/// A request that has no memory yet.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its connection's number, and the reactor and the token that this is known by there.
    pub(crate) connection: u64,
    pub(crate) reactor: usize,
    pub(crate) token: u64,
    pub(crate) id: u64,
    pub(crate) ty: MessageType,
    pub(crate) prefix: OpenPrefix,
    /// What came with OPEN: the whole request, or its first piece.
    pub(crate) first: Vec<u8>,
    /// `first` is the whole request.
    pub(crate) whole: bool,
    pub(crate) deadline: Option<Instant>,
}

/// A request that got its memory.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) waiter: Waiter,
    pub(crate) buffer: Buffer,
}

/// The line. A lock is held while it is served, and during `deliver`, which must not drop a [`Granted`]: giving its
/// memory back would serve the line again.
#[derive(Debug, Default)]
pub(crate) struct Line {
    queues: Mutex<Queues>,
    /// How many wait, for those who look without the lock.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queues {
    /// By connection; none is empty.
    of: HashMap<u64, VecDeque<Place>>,
    /// Each of those connections once, in the order of their turns.
    turns: VecDeque<u64>,
    len: usize,
}

#[derive(Debug)]
struct Place {
    waiter: Waiter,
    since: Instant,
}

impl Line {
    /// Whether nobody waits. A reactor sees its own requests; who has come just now on another may be missed.
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// Memory for a request that has just come, unless others wait or there is too little.
    pub(crate) fn at_once(&self, length: usize, pool: &BufferPool) -> Option<Buffer> {
        // Whoever comes on another reactor in this moment may be overtaken; a connection's own requests are not.
        if self.is_empty() {
            pool.reserve(length)
        } else {
            None
        }
    }

    /// Puts a request in line that did not get its memory [at once](Self::at_once). There may be some by now.
    pub(crate) fn enter(&self, waiter: Waiter, pool: &BufferPool, deliver: impl FnMut(Granted)) {
        let mut queues = self.lock();
        queues.push(Place {
            waiter,
            since: Instant::now(),
        });
        pool.note_waiting(1);
        self.serve(queues, pool, deliver);
    }

    /// Gives what there is to those whose turn it is. To be called when memory came back after a refusal.
    pub(crate) fn advance(&self, pool: &BufferPool, deliver: impl FnMut(Granted)) {
        self.serve(self.lock(), pool, deliver);
    }

    /// Forgets the requests of a connection that is gone, or one request of it. Returns how many bytes they held; those
    /// that have got their memory meanwhile are not among them.
    pub(crate) fn forget(
        &self,
        connection: u64,
        id: Option<u64>,
        pool: &BufferPool,
        deliver: impl FnMut(Granted),
    ) -> usize {
        if self.is_empty() {
            // The connection's own reactor asks, and no other puts its requests in line.
            return 0;
        }
        let mut queues = self.lock();
        let gone = queues.remove(connection, id);
        for place in &gone {
            pool.note_waited(place.since.elapsed());
        }
        // Whoever stood behind them may be served now.
        self.serve(queues, pool, deliver);
        gone.iter().map(|place| place.waiter.first.len()).sum()
    }

    /// Those of a reactor whose deadline has passed, as connection, token and id.
    pub(crate) fn expired(&self, reactor: usize, now: Instant) -> Vec<(u64, u64, u64)> {
        if self.is_empty() {
            return Vec::new();
        }
        let late = |waiter: &Waiter| {
            waiter.reactor == reactor && waiter.deadline.is_some_and(|deadline| deadline <= now)
        };
        self.lock()
            .of
            .values()
            .flatten()
            .filter(|place| late(&place.waiter))
            .map(|Place { waiter, .. }| (waiter.connection, waiter.token, waiter.id))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(
        &self,
        mut queues: MutexGuard<'_, Queues>,
        pool: &BufferPool,
        mut deliver: impl FnMut(Granted),
    ) {
        while let Some(length) = queues.next_length()
            && let Some(buffer) = pool.reserve(length)
            && let Some(place) = queues.pop()
        {
            pool.note_waited(place.since.elapsed());
            deliver(Granted {
                waiter: place.waiter,
                buffer,
            });
        }
        self.len.store(queues.len, Ordering::Relaxed);
    }
}

impl Queues {
    fn push(&mut self, place: Place) {
        let connection = place.waiter.connection;
        let queue = self.of.entry(connection).or_insert_with(|| {
            self.turns.push_back(connection);
            VecDeque::new()
        });
        queue.push_back(place);
        self.len += 1;
    }

    /// Bytes of the request whose turn it is.
    fn next_length(&self) -> Option<usize> {
        let queue = self.of.get(self.turns.front()?)?;
        Some(queue.front()?.waiter.prefix.total_length as usize)
    }

    /// That request; its connection's next turn comes after all others'.
    fn pop(&mut self) -> Option<Place> {
        let connection = self.turns.pop_front()?;
        let queue = self.of.get_mut(&connection)?;
        let place = queue.pop_front()?;
        if queue.is_empty() {
            self.of.remove(&connection);
        } else {
            self.turns.push_back(connection);
        }
        self.len -= 1;
        Some(place)
    }

    fn remove(&mut self, connection: u64, id: Option<u64>) -> VecDeque<Place> {
        let Some(queue) = self.of.get_mut(&connection) else {
            return VecDeque::new();
        };
        let gone = match id {
            None => std::mem::take(queue),
            Some(id) => {
                let at = queue.iter().position(|place| place.waiter.id == id);
                at.and_then(|at| queue.remove(at)).into_iter().collect()
            }
        };
        if queue.is_empty() {
            self.of.remove(&connection);
            self.turns.retain(|turn| *turn != connection);
        }
        self.len -= gone.len();
        gone
    }
}

#[cfg(test)]
mod tests;
