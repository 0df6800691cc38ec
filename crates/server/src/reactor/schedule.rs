//! Whose turn it is: rule 11 of the design, as arithmetic. No I/O, no clock.
//!
//! A *turn* is one look at one hot connection and, if it has something, one batch of its frames. Within a class
//! connections take turns by deficit round robin, so that they share by bytes and not by frames
//! ([Shreedhar and Varghese, 1996](https://doi.org/10.1109/90.502236)). Between the classes:
//!
//! - Interactive connections are looked at first, and so again after every batch of others.
//! - Anyone may claim to be interactive, so that class has a quota: while others have something, it gets three bytes to
//!   their one. Of what is left, normal ones get three bytes to two of bulk. So bulk keeps at least a tenth.
//! - While an interactive connection is hot, the batches of others are short.
//!
//! A connection's class is that of its latest request.

use lapce_ai_proto::Class;

/// The most bytes of one batch, unless a single frame is longer.
pub(super) const BATCH: usize = 4 << 10;
/// The same for others while an interactive connection is hot. That one waits for such a batch at most; in small
/// frames it takes a microsecond or two.
pub(super) const SHORT_BATCH: usize = 1 << 10;

/// The most bytes that the favoured side of a [`Split`] may take in a row, having saved them up.
const MOST_SAVED: i64 = 64 << 10;

const CLASSES: usize = 3;
const INTERACTIVE: usize = 0;
const NORMAL: usize = 1;
const BULK: usize = 2;

/// Hot connections by class.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    queues: [Queue; CLASSES],
    /// Interactive against the others.
    interactive: Split<3, 1>,
    /// Normal against bulk.
    normal: Split<3, 2>,
}

/// Whose turn it is. Ends with [`took`](Schedule::took), [`had_nothing`](Schedule::had_nothing) or
/// [`remove`](Schedule::remove).
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// The connection.
    pub(super) index: u32,
    /// The bytes that it may take, or one frame.
    pub(super) most: usize,
    queue: usize,
}

/// The connections of one class, in a ring.
#[derive(Debug, Default)]
struct Queue {
    entries: Vec<Entry>,
    /// Whose turn is next.
    cursor: usize,
    /// How many in a row had nothing.
    empty: usize,
}

#[derive(Debug)]
struct Entry {
    index: u32,
    /// Bytes that it has had beyond its turns.
    debt: usize,
}

/// Two sides that share by bytes where both have something: the favoured one gets `FAVOURED` for `OTHER` of the other's.
#[derive(Debug)]
struct Split<const FAVOURED: i64, const OTHER: i64> {
    /// `OTHER` times the bytes that the favoured side may still take before it is the other's turn.
    credit: i64,
}

impl<const FAVOURED: i64, const OTHER: i64> Default for Split<FAVOURED, OTHER> {
    fn default() -> Self {
        Self { credit: Self::MOST }
    }
}

impl<const FAVOURED: i64, const OTHER: i64> Split<FAVOURED, OTHER> {
    const MOST: i64 = MOST_SAVED * OTHER;

    fn favours(&self) -> bool {
        self.credit > 0
    }

    fn favoured_took(&mut self, bytes: usize) {
        self.credit -= OTHER * bytes as i64;
    }

    fn other_took(&mut self, bytes: usize) {
        self.credit = (self.credit + FAVOURED * bytes as i64).min(Self::MOST);
    }

    /// The other side had nothing when it was its turn, so it is owed nothing.
    fn other_had_nothing(&mut self) {
        self.credit = Self::MOST;
    }
}

impl Queue {
    /// Whether its connections have all been found with nothing since one of them had something.
    fn is_done(&self) -> bool {
        self.empty >= self.entries.len()
    }

    /// The next connection that is not in debt; who is pays off a turn's worth.
    fn next(&mut self, most: usize) -> Option<u32> {
        while !self.is_done() {
            if self.cursor >= self.entries.len() {
                self.cursor = 0;
            }
            let entry = &mut self.entries[self.cursor];
            if entry.debt < most {
                return Some(entry.index);
            }
            entry.debt -= most;
            self.cursor += 1;
        }
        None
    }

    /// The entry whose turn it is.
    fn current(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries
            .get_mut(self.cursor)
            .filter(|entry| entry.index == index)
    }

    fn remove(&mut self, at: usize) -> Entry {
        // The last takes the place: its turn comes sooner or later by less than a round.
        self.entries.swap_remove(at)
    }
}

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.entries.is_empty())
    }

    /// Adds a connection that became hot.
    pub(super) fn add(&mut self, index: u32, class: Class) {
        self.queues[queue_of(class)]
            .entries
            .push(Entry { index, debt: 0 });
        self.begin_round();
    }

    /// Takes a connection off, wherever it is. Costs time in the number of hot ones.
    pub(super) fn remove(&mut self, index: u32) {
        for queue in &mut self.queues {
            if let Some(at) = queue.entries.iter().position(|entry| entry.index == index) {
                queue.remove(at);
                return;
            }
        }
    }

    /// Keeps those of which `keep` says so.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        for queue in &mut self.queues {
            queue.entries.retain(|entry| keep(entry.index));
        }
    }

    /// Whose turn it is. `None` once in a round of looks in which nobody had anything; the next call begins anew.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Turn> {
        let short = !self.queues[INTERACTIVE].entries.is_empty();
        let order = self.order();
        for (place, queue) in order.into_iter().enumerate() {
            let most = if short && queue != INTERACTIVE {
                SHORT_BATCH
            } else {
                BATCH
            };
            if let Some(index) = self.queues[queue].next(most) {
                return Some(Turn { index, most, queue });
            }
            if queue == BULK {
                self.normal.other_had_nothing();
            }
            if place == 1 && order[2] == INTERACTIVE {
                self.interactive.other_had_nothing();
            }
        }
        self.begin_round();
        None
    }

    /// The classes in the order in which they are looked at now.
    fn order(&self) -> [usize; CLASSES] {
        match (self.interactive.favours(), self.normal.favours()) {
            (true, true) => [INTERACTIVE, NORMAL, BULK],
            (true, false) => [INTERACTIVE, BULK, NORMAL],
            (false, true) => [NORMAL, BULK, INTERACTIVE],
            (false, false) => [BULK, NORMAL, INTERACTIVE],
        }
    }

    /// The connection took so many bytes, and is of this class now.
    #[inline]
    pub(super) fn took(&mut self, turn: Turn, bytes: usize, class: Class) {
        match turn.queue {
            INTERACTIVE => self.interactive.favoured_took(bytes),
            NORMAL => {
                self.interactive.other_took(bytes);
                self.normal.favoured_took(bytes);
            }
            _ => {
                self.interactive.other_took(bytes);
                self.normal.other_took(bytes);
            }
        }
        let queue = &mut self.queues[turn.queue];
        if let Some(entry) = queue.current(turn.index) {
            entry.debt = (entry.debt + bytes).saturating_sub(turn.most);
            let target = queue_of(class);
            if target == turn.queue {
                queue.cursor += 1;
            } else {
                let entry = queue.remove(queue.cursor);
                self.queues[target].entries.push(entry);
            }
        }
        self.begin_round();
    }

    /// The connection had nothing. Who has nothing is owed and owes nothing.
    #[inline]
    pub(super) fn had_nothing(&mut self, turn: Turn) {
        let queue = &mut self.queues[turn.queue];
        if let Some(entry) = queue.current(turn.index) {
            entry.debt = 0;
            queue.cursor += 1;
        }
        queue.empty += 1;
    }

    /// The connection went to sleep in its turn.
    pub(super) fn slept(&mut self, turn: Turn) {
        let queue = &mut self.queues[turn.queue];
        if queue.current(turn.index).is_some() {
            queue.remove(queue.cursor);
        }
    }

    fn begin_round(&mut self) {
        for queue in &mut self.queues {
            queue.empty = 0;
        }
    }
}

fn queue_of(class: Class) -> usize {
    match class {
        Class::Interactive => INTERACTIVE,
        Class::Bulk => BULK,
        Class::Normal | Class::ByType => NORMAL,
    }
}

#[cfg(test)]
mod tests;
