//! The writing end of a ring.

use std::fmt;

use super::{LAST_POSITION, PositionError, RingFault, Storage, take};
use crate::sync::{Ordering, fence};

/// The writing end of a ring: pushes bytes, publishes them, waits for space.
///
/// It has one owner and cannot be cloned. After a [`RingFault`] the ring is of no further use.
pub struct Producer<S: Storage> {
    storage: S,
    /// Bytes ever pushed, published or not, counting those that jumps skipped.
    tail: u64,
    /// Up to here a push needs no look at the consumer: it neither enters a new page beyond the
    /// first nor reaches unreleased bytes. Never below `tail`.
    limit: u64,
    /// The tail that the consumer may know.
    published: u64,
    /// The consumer's position: the last valid head, or `restart` if that is beyond it.
    head: u64,
    /// The last valid head as its word held it.
    seen_head: u64,
    /// Where the last jump went.
    restart: u64,
    capacity: u64,
    /// End of the part of the ring that may have memory, as an offset: the first page, and what
    /// was pushed since the last trim.
    touched: usize,
}

/// Where a producer has stopped, for one in another process that goes on there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerPosition {
    /// Bytes ever pushed, counting those that jumps skipped.
    pub tail: u64,
    /// The last valid head of the consumer.
    pub seen_head: u64,
    /// Where the last jump went.
    pub restart: u64,
    /// End of the part of the ring that may have memory, in whole pages.
    pub touched: u64,
}

impl<S: Storage> Producer<S> {
    const PAGE: u64 = S::PAGE as u64;

    /// The writing end of a ring that nobody has used yet. There must be only one.
    ///
    /// # Panics
    /// If the capacity is no power of two of at least one page.
    pub fn new(storage: S) -> Self {
        let capacity = storage.capacity();
        assert!(capacity.is_power_of_two() && S::PAGE.is_power_of_two() && S::PAGE <= capacity);
        Self {
            storage,
            tail: 0,
            limit: Self::PAGE,
            published: 0,
            head: 0,
            seen_head: 0,
            restart: 0,
            capacity: capacity as u64,
            touched: S::PAGE,
        }
    }

    /// The writing end of a ring whose producer has stopped at this [`position`](Self::position). There must be only one.
    ///
    /// # Errors
    /// A position that such a ring cannot have.
    ///
    /// # Panics
    /// If the capacity is no power of two of at least one page.
    pub fn resume(storage: S, position: &ProducerPosition) -> Result<Self, PositionError> {
        let fresh = Self::new(storage);
        let &ProducerPosition {
            tail,
            seen_head,
            restart,
            touched,
        } = position;
        let head = seen_head.max(restart);
        let touched = usize::try_from(touched).map_err(|_| PositionError)?;
        let fits = tail <= LAST_POSITION
            && head <= tail
            && tail - head <= fresh.capacity
            && restart.is_multiple_of(fresh.capacity)
            && (S::PAGE..=fresh.capacity()).contains(&touched)
            && touched.is_multiple_of(S::PAGE);
        if !fits {
            return Err(PositionError);
        }
        Ok(Self {
            tail,
            // The next push looks at the consumer.
            limit: tail,
            published: tail,
            head,
            seen_head,
            restart,
            touched,
            ..fresh
        })
    }

    /// Where it stands; `None` while something is pushed and not published.
    pub fn position(&self) -> Option<ProducerPosition> {
        (self.tail == self.published).then_some(ProducerPosition {
            tail: self.tail,
            seen_head: self.seen_head,
            restart: self.restart,
            touched: self.touched as u64,
        })
    }

    /// The capacity of the ring in bytes.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Copies all parts, one after another, into the ring: all of them, or none and false when
    /// there is no room. The consumer sees nothing before [`publish`](Self::publish).
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    ///
    /// # Panics
    /// If the parts together are longer than the ring, which could never succeed.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]]) -> Result<bool, RingFault> {
        let len = parts
            .iter()
            .fold(0_u64, |sum, part| sum.saturating_add(part.len() as u64));
        if len > self.limit - self.tail && !self.make_room(len)? {
            return Ok(false);
        }
        for part in parts {
            self.copy_in(part);
        }
        Ok(true)
    }

    /// Makes what was pushed visible to the consumer. True means that the consumer sleeps and its
    /// bell must now be rung. Costs one fence, or nothing if nothing was pushed.
    #[inline]
    #[must_use = "true means that the consumer sleeps until its bell is rung"]
    pub fn publish(&mut self) -> bool {
        if !self.store_tail() {
            return false;
        }
        fence(Ordering::SeqCst);
        self.take_data_wanted()
    }

    /// Looks at the consumer and returns how many bytes can be pushed now.
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    pub fn free(&mut self) -> Result<usize, RingFault> {
        self.look_at_head()?;
        Ok((self.capacity - (self.tail - self.head)) as usize)
    }

    /// Whether `need` bytes can be pushed now. Looks at the consumer only if the last look left
    /// fewer, so it is cheap to ask before each push.
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    #[inline]
    pub fn has_room(&mut self, need: usize) -> Result<bool, RingFault> {
        let known_free = self.capacity - (self.tail - self.head);
        Ok(known_free >= need as u64 || self.free()? >= need)
    }

    /// Prepares to sleep until `need` bytes are free. True means that there is still no room and
    /// the consumer will ring the bell; false means that there is room now.
    ///
    /// Publish first: the consumer cannot release what it cannot see.
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    ///
    /// # Panics
    /// If `need` is larger than the ring.
    pub fn wait_for_space(&mut self, need: usize) -> Result<bool, RingFault> {
        assert!(
            need <= self.capacity(),
            "waiting for more space than the ring has"
        );
        debug_assert!(
            self.tail == self.published,
            "waiting for space with unpublished bytes"
        );
        let wanted = &self.storage.control().space.wanted;
        // The capacity is at most 1 GiB, so `need` fits. The consumer loads this word with Acquire
        // and then the tail; it shall see the tail that was published before.
        wanted.store(need as u32, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.free()? < need {
            return Ok(true);
        }
        self.storage
            .control()
            .space
            .wanted
            .store(0, Ordering::Relaxed);
        Ok(false)
    }

    /// Whether the consumer has released everything that was pushed.
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    pub fn is_drained(&mut self) -> Result<bool, RingFault> {
        self.look_at_head()?;
        Ok(self.head == self.tail)
    }

    /// Whether a [`trim`](Self::trim) would have nothing to give back. No look at the consumer.
    #[inline]
    pub fn is_trimmed(&self) -> bool {
        self.touched <= S::PAGE
    }

    /// If the ring is empty, goes back to its beginning and gives back the memory of all pages
    /// beyond the first that were used since the last trim. True if there were any. Costs a look
    /// at the consumer only when there is something to give back.
    ///
    /// # Errors
    /// The consumer wrote an impossible head.
    pub fn trim(&mut self) -> Result<bool, RingFault> {
        if self.is_trimmed() || !self.is_drained()? {
            return Ok(false);
        }
        self.jump();
        // Should the system refuse, the pages keep their memory until the next trim.
        let released = self.storage.release_pages(S::PAGE..self.touched).is_ok();
        if released {
            self.touched = S::PAGE;
        }
        Ok(released)
    }

    /// The storage, for tests that play the other side.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Publishes without a fence and without a look at the flag. False if nothing was pushed.
    #[inline]
    pub(super) fn store_tail(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.storage
            .control()
            .producer
            .tail
            .store(self.tail, Ordering::Release);
        self.published = self.tail;
        true
    }

    /// After a fence: whether the consumer wants its bell rung. Its wish is then taken.
    #[inline]
    pub(super) fn take_data_wanted(&mut self) -> bool {
        let word = &self.storage.control().data.wanted;
        let wanted = word.load(Ordering::Relaxed);
        wanted != 0 && take(word, wanted)
    }

    #[inline]
    fn copy_in(&mut self, part: &[u8]) {
        let capacity = self.capacity as usize;
        let offset = (self.tail as usize) & (capacity - 1);
        let until_end = capacity - offset;
        if part.len() <= until_end {
            self.storage.write(offset, part);
        } else {
            let (first, second) = part.split_at(until_end);
            self.storage.write(offset, first);
            self.storage.write(0, second);
        }
        self.tail += part.len() as u64;
    }

    /// The rare part of a push: `len` bytes reach beyond `limit`.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, len: u64) -> Result<bool, RingFault> {
        assert!(len <= self.capacity, "a push longer than the ring");
        self.look_at_head()?;
        // The head is at most the published tail, so equality also says: nothing is unpublished.
        if self.head == self.tail && self.offset() + len > Self::PAGE {
            self.jump();
        }
        let end = self.tail + len;
        let reserved = self.head + self.capacity;
        if end > reserved {
            return Ok(false);
        }
        let page_end = end.next_multiple_of(Self::PAGE);
        let reach = self.offset() + (page_end - self.tail);
        self.touched = self.touched.max(reach.min(self.capacity) as usize);
        // The first page counts as entered already.
        let next_look = if page_end & (self.capacity - 1) == 0 {
            page_end + Self::PAGE
        } else {
            page_end
        };
        self.limit = next_look.min(reserved);
        Ok(true)
    }

    /// Goes to the beginning of the ring, by the restart rule. Only when it is empty.
    fn jump(&mut self) {
        if self.offset() == 0 {
            return;
        }
        let restart = self.tail.next_multiple_of(self.capacity);
        // Ordered before the bytes beyond it by the Release store of the next tail.
        self.storage
            .control()
            .producer
            .restart
            .store(restart, Ordering::Relaxed);
        self.restart = restart;
        self.head = restart;
        self.tail = restart;
        // Nothing is new to the consumer: it learns of the jump with the next bytes.
        self.published = restart;
        self.limit = restart + Self::PAGE;
    }

    fn offset(&self) -> u64 {
        self.tail & (self.capacity - 1)
    }

    /// Reads the consumer's head once, checks it, and keeps it.
    fn look_at_head(&mut self) -> Result<(), RingFault> {
        // Acquire: the consumer's copies out of released bytes are done before they are reused.
        let found = self.storage.control().consumer.head.load(Ordering::Acquire);
        if found == self.seen_head {
            return Ok(());
        }
        if found < self.seen_head {
            return Err(RingFault::HeadWentBack {
                seen: self.seen_head,
                found,
            });
        }
        if found > self.published {
            return Err(RingFault::HeadOverrun {
                published: self.published,
                found,
            });
        }
        if found < self.restart {
            // The jump was made when everything before it was released, so the head can only
            // stand still or be beyond it.
            return Err(RingFault::HeadInGap {
                seen: self.seen_head,
                restart: self.restart,
                found,
            });
        }
        self.seen_head = found;
        self.head = found;
        Ok(())
    }
}

impl<S: Storage> fmt::Debug for Producer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("tail", &self.tail)
            .field("published", &self.published)
            .field("head", &self.head)
            .field("restart", &self.restart)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
