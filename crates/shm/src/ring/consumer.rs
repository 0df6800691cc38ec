//! The reading end of a ring.

use std::fmt;

use super::{LAST_POSITION, PositionError, RingFault, Storage, take};
use crate::sync::{Ordering, fence};

/// The reading end of a ring: copies bytes out, releases them, waits for more.
///
/// It has one owner and cannot be cloned. After a [`RingFault`] the ring is of no further use.
pub struct Consumer<S: Storage> {
    storage: S,
    /// Bytes consumed, counting those that jumps skipped.
    head: u64,
    /// The last valid tail. Never below `head`, never more than the capacity beyond it.
    tail: u64,
    /// The head that the producer may know.
    released: u64,
    capacity: u64,
}

impl<S: Storage> Consumer<S> {
    /// The reading end of a ring that nobody has used yet. There must be only one.
    ///
    /// # Panics
    /// If the capacity is no power of two.
    pub fn new(storage: S) -> Self {
        let capacity = storage.capacity();
        assert!(capacity.is_power_of_two());
        Self {
            storage,
            head: 0,
            tail: 0,
            released: 0,
            capacity: capacity as u64,
        }
    }

    /// The reading end of a ring whose consumer has stopped at this [`position`](Self::position). There must be only one.
    /// Any position is safe: a wrong one makes a fault of the producer's next bytes.
    ///
    /// # Errors
    /// A position that no ring reaches.
    ///
    /// # Panics
    /// If the capacity is no power of two.
    pub fn resume(storage: S, position: u64) -> Result<Self, PositionError> {
        if position > LAST_POSITION {
            return Err(PositionError);
        }
        Ok(Self {
            head: position,
            tail: position,
            released: position,
            ..Self::new(storage)
        })
    }

    /// Where it stands; `None` while the producer does not know that. What is readable behind it stays so.
    pub fn position(&self) -> Option<u64> {
        (self.head == self.released).then_some(self.head)
    }

    /// The capacity of the ring in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Looks at the producer and returns how many published bytes are not consumed yet. While
    /// nothing is new it touches only the producer's line.
    ///
    /// # Errors
    /// The producer wrote an impossible tail or restart.
    #[inline]
    pub fn readable(&mut self) -> Result<usize, RingFault> {
        // Acquire: the producer's copies into the ring are done before its bytes are read here.
        let found = self.storage.control().producer.tail.load(Ordering::Acquire);
        if found != self.tail {
            self.accept(found)?;
        }
        Ok((self.tail - self.head) as usize)
    }

    /// Copies bytes that the last [`readable`](Self::readable) counted, from `offset` behind the
    /// first unconsumed one, as many as there are and fit `dst`. Returns how many. Consumes none.
    #[inline]
    pub fn peek(&self, offset: usize, dst: &mut [u8]) -> usize {
        let readable = (self.tail - self.head) as usize;
        if offset >= readable {
            return 0;
        }
        let len = dst.len().min(readable - offset);
        let dst = &mut dst[..len];
        let (start, until_end) = self.place(offset);
        if len <= until_end {
            self.storage.read(start, dst);
        } else {
            let (first, second) = dst.split_at_mut(until_end);
            self.storage.read(start, first);
            self.storage.read(0, second);
        }
        len
    }

    /// [`peek`](Self::peek) into memory that has no bytes yet: copies `len` bytes behind those that `dst` holds.
    ///
    /// # Panics
    /// If they are more than the last [`readable`](Self::readable) counted.
    #[inline]
    pub fn append_to(&self, offset: usize, len: usize, dst: &mut Vec<u8>) {
        let readable = (self.tail - self.head) as usize;
        assert!(
            offset <= readable && len <= readable - offset,
            "appending more than is readable"
        );
        let (start, until_end) = self.place(offset);
        if len <= until_end {
            self.storage.append_to(start, len, dst);
        } else {
            self.storage.append_to(start, until_end, dst);
            self.storage.append_to(0, len - until_end, dst);
        }
    }

    /// Where the byte `offset` behind the first unconsumed one lies, and how many there are from it to the ring's end.
    #[inline]
    fn place(&self, offset: usize) -> (usize, usize) {
        let capacity = self.capacity as usize;
        // `offset` is at most the capacity, and the mask hides any carry.
        let start = (self.head as usize).wrapping_add(offset) & (capacity - 1);
        (start, capacity - start)
    }

    /// Moves on by `n` bytes. The producer learns of it with [`release`](Self::release).
    ///
    /// # Panics
    /// If that is more than the last [`readable`](Self::readable) left.
    #[inline]
    pub fn consume(&mut self, n: usize) {
        assert!(
            n as u64 <= self.tail - self.head,
            "consuming more than is readable"
        );
        self.head += n as u64;
    }

    /// Gives the consumed bytes' room to the producer. True means that the producer waits for it
    /// and its bell must now be rung. Costs one fence, or nothing if nothing was consumed.
    #[inline]
    #[must_use = "true means that the producer sleeps until its bell is rung"]
    pub fn release(&mut self) -> bool {
        if !self.store_head() {
            return false;
        }
        fence(Ordering::SeqCst);
        self.take_space_wanted()
    }

    /// Prepares to sleep until the producer publishes more than the last
    /// [`readable`](Self::readable) saw. True means that nothing is new and the producer will ring
    /// the bell; false means that there is something now, which `readable` will count.
    ///
    /// Release first, or a producer that waits for space and this consumer wait for each other.
    ///
    /// # Errors
    /// The producer wrote an impossible tail or restart.
    pub fn wait_for_data(&mut self) -> Result<bool, RingFault> {
        let seen = self.tail;
        self.storage
            .control()
            .data
            .wanted
            .store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.readable()?;
        if self.tail == seen {
            return Ok(true);
        }
        self.awake();
        Ok(false)
    }

    /// Takes back the wish for a bell, after a sleep that something else ended.
    #[inline]
    pub fn awake(&mut self) {
        let wanted = &self.storage.control().data.wanted;
        if wanted.load(Ordering::Relaxed) != 0 {
            wanted.store(0, Ordering::Relaxed);
        }
    }

    /// The storage, for tests that play the other side.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Releases without a fence and without a look at the flag. False if nothing was consumed.
    #[inline]
    pub(super) fn store_head(&mut self) -> bool {
        if self.head == self.released {
            return false;
        }
        // Release: the copies out of these bytes are done before the producer may reuse them.
        self.storage
            .control()
            .consumer
            .head
            .store(self.head, Ordering::Release);
        self.released = self.head;
        true
    }

    /// After a fence: whether the producer waits for space and has it now. Its wish is then taken.
    #[inline]
    pub(super) fn take_space_wanted(&mut self) -> bool {
        // Acquire: see the tail that the producer published before it began to wait.
        let wanted = self.storage.control().space.wanted.load(Ordering::Acquire);
        wanted != 0 && self.take_if_free(wanted)
    }

    #[cold]
    #[inline(never)]
    fn take_if_free(&mut self, wanted: u32) -> bool {
        let control = self.storage.control();
        // The tail serves only to decide about the bell and is used nowhere else, so it is not
        // checked. If it lies beyond a jump that this side has not followed yet, then the producer
        // has seen the present head, and knows its room without a bell.
        let used = control
            .producer
            .tail
            .load(Ordering::Relaxed)
            .wrapping_sub(self.head);
        if used <= self.capacity && self.capacity - used < u64::from(wanted) {
            return false;
        }
        take(&control.space.wanted, wanted)
    }

    /// Checks a tail other than the last one, and follows a jump before it.
    #[inline]
    fn accept(&mut self, tail: u64) -> Result<(), RingFault> {
        if tail < self.tail {
            return Err(RingFault::TailWentBack {
                seen: self.tail,
                found: tail,
            });
        }
        // On the line just read. Relaxed: ordered by the Acquire load of the tail.
        let restart = self
            .storage
            .control()
            .producer
            .restart
            .load(Ordering::Relaxed);
        if restart > self.head {
            return self.follow(tail, restart);
        }
        if tail - self.head > self.capacity {
            return Err(self.overrun(self.head, tail));
        }
        self.tail = tail;
        Ok(())
    }

    /// Follows a jump: the restart is beyond this side's position.
    #[cold]
    fn follow(&mut self, tail: u64, restart: u64) -> Result<(), RingFault> {
        // A jump is made when everything has been released, so this side has nothing unread and
        // nothing unreleased, and it goes to the next multiple of the capacity.
        let valid = self.head == self.tail
            && self.head == self.released
            && restart & (self.capacity - 1) == 0
            && restart - self.head < self.capacity
            && restart <= tail;
        if !valid {
            return Err(RingFault::RestartInvalid {
                position: self.head,
                tail,
                found: restart,
            });
        }
        if tail - restart > self.capacity {
            return Err(self.overrun(restart, tail));
        }
        self.head = restart;
        // The producer counts a head below its restart as the restart: nothing to tell it.
        self.released = restart;
        self.tail = tail;
        Ok(())
    }

    #[cold]
    fn overrun(&self, position: u64, found: u64) -> RingFault {
        RingFault::TailOverrun {
            position,
            found,
            capacity: self.capacity,
        }
    }
}

impl<S: Storage> fmt::Debug for Consumer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("head", &self.head)
            .field("tail", &self.tail)
            .field("released", &self.released)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
