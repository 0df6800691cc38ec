//! Buffers for payload bytes that outlive their frame, under one budget.

use lapce_ai_proto::status::{PoolStatus, TierStatus};
use lapce_ai_shm::append;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::Rest;

/// Tiers and budget of a [`BufferPool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Payload bytes that may be held in buffers at once.
    pub budget: u64,
    /// How many buffers of 4 KiB, 64 KiB and 1 MiB are kept for reuse. Together with the held ones they never
    /// take more than the budget.
    pub keep: [usize; 3],
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            budget: 64 << 20,
            keep: [100, 50, 10],
        }
    }
}

/// What a [`BufferPool`] holds and did, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Payload bytes that may be held at once.
    pub budget: u64,
    /// Payload bytes held in buffers now.
    pub held: u64,
    /// The most that were ever held.
    pub peak: u64,
    /// Reservations refused because the budget was spent; each was tried again later or ended in an error.
    pub refused: u64,
    /// Bytes kept free for reuse.
    pub kept: u64,
    /// Requests that wait for the budget now.
    pub waiting: u64,
    /// Requests that had to wait for the budget since the start, those that wait now included.
    pub waits: u64,
    /// How long all of those waited that wait no longer.
    pub waited: Duration,
    /// How long the one of them waited that waited longest.
    pub longest_wait: Duration,
    /// Buffers of each size, and last of those that are larger.
    pub tiers: [TierStats; 4],
}

/// What a [`BufferPool`] holds and did of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierStats {
    /// Bytes of each buffer. `None`: what is over the largest size, each as large as it has to be.
    pub size: Option<usize>,
    /// Buffers that hold payload now.
    pub in_use: u64,
    /// Buffers kept free for reuse.
    pub kept: u64,
    /// How many are kept at most; the budget may allow less.
    pub cap: u64,
    /// Reservations served from a kept buffer.
    pub hits: u64,
    /// Reservations that needed new memory.
    pub misses: u64,
}

impl From<PoolStats> for PoolStatus {
    fn from(stats: PoolStats) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let tier = |tier: TierStats| TierStatus {
            size: tier.size.map(|size| size as u64),
            in_use: tier.in_use,
            kept: tier.kept,
            cap: tier.cap,
            hits: tier.hits,
            misses: tier.misses,
        };
        Self {
            budget: stats.budget,
            held: stats.held,
            peak: stats.peak,
            kept: stats.kept,
            waiting: stats.waiting,
            waits: stats.waits,
            waited_micros: micros(stats.waited),
            longest_wait_micros: micros(stats.longest_wait),
            tiers: stats.tiers.map(tier).to_vec(),
        }
    }
}

const TIERS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
/// The index of what is over the largest size.
const LARGER: usize = TIERS.len();

/// Whose size such a buffer has.
fn tier_of(len: usize) -> usize {
    TIERS.iter().position(|size| len <= *size).unwrap_or(LARGER)
}

/// Where payload bytes are kept. A buffer reserves its whole length of the budget or nothing; whoever gets nothing
/// waits, in order, and is told by the [hook](Self::on_release) when bytes come back.
///
/// ```
/// use lapce_ai_transport::{BufferPool, PoolOptions};
/// let pool = BufferPool::new(PoolOptions { budget: 10_000, ..PoolOptions::default() });
/// let mut first = pool.reserve(6_000).unwrap();
/// first.extend(b"payload");
/// assert!(pool.reserve(6_000).is_none());
/// drop(first);
/// assert!(pool.reserve(6_000).is_some());
/// ```
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    options: PoolOptions,
    /// One short lock for all of it: what is held, what is kept and who is to be told can then not disagree, whichever
    /// threads reserve and release.
    state: Mutex<State>,
    on_release: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    free: [Vec<Vec<u8>>; LARGER],
    held: u64,
    /// Memory for them: a buffer has the size of its tier, so that it can be used again, as long as all together fit the budget,
    /// and otherwise no more than was reserved. So it is twice the budget at most, however the lengths are chosen.
    taken: u64,
    peak: u64,
    kept: u64,
    refused: u64,
    tiers: [Tier; LARGER + 1],
    waits: Waits,
    /// Somebody was refused since the hook was last called.
    wanted: bool,
}

#[derive(Default)]
struct Tier {
    in_use: u64,
    hits: u64,
    misses: u64,
}

#[derive(Default)]
struct Waits {
    began: u64,
    ended: u64,
    time: Duration,
    longest: Duration,
}

impl BufferPool {
    /// An empty pool.
    pub fn new(options: PoolOptions) -> Self {
        let shared = Shared {
            options,
            state: Mutex::default(),
            on_release: OnceLock::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The whole budget in bytes.
    pub fn budget(&self) -> u64 {
        self.shared.options.budget
    }

    /// Calls `hook` when bytes come back to the budget after a reservation was refused: once, until the next is. It runs
    /// in whatever thread gave the bytes back, and may reserve. Only the first hook counts.
    pub fn on_release(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_release.set(Box::new(hook));
    }

    /// An empty buffer that may take `len` bytes, or `None` while the budget does not allow it. It has memory from here if
    /// some is kept, and otherwise [gets it](Buffer::allocate) from the system later.
    pub fn reserve(&self, len: usize) -> Option<Buffer> {
        let shared = &self.shared;
        let tier = tier_of(len);
        let (bytes, size, surplus) = {
            let mut state = shared.lock();
            let fits = |sum: &u64| *sum <= shared.options.budget;
            let Some(held) = state.held.checked_add(len as u64).filter(fits) else {
                state.refused += 1;
                state.wanted = true;
                return None;
            };
            state.held = held;
            state.peak = state.peak.max(held);
            let bytes = state.take(tier);
            let size = match TIERS.get(tier) {
                Some(size) if bytes.is_some() || fits(&(state.taken + *size as u64)) => *size,
                _ => len,
            };
            state.taken += size as u64;
            (bytes, size, state.make_way(shared.options.budget))
        };
        // Memory comes from the system, and goes there, without the lock.
        drop(surplus);
        Some(Buffer {
            bytes: bytes.unwrap_or_default(),
            reserved: len,
            size,
            shared: Arc::clone(shared),
        })
    }

    /// Gives up what is kept for reuse: for moments of quiet. Buffers that are in use stay.
    pub fn release_kept(&self) {
        let kept = {
            let mut state = self.shared.lock();
            state.kept = 0;
            std::mem::take(&mut state.free)
        };
        // Without the lock.
        drop(kept);
    }

    /// Whoever keeps the line notes that so many more requests wait from now on.
    pub fn note_waiting(&self, requests: u64) {
        self.shared.lock().waits.began += requests;
    }

    /// One of them waits no longer, served or given up: it waited so long.
    pub fn note_waited(&self, time: Duration) {
        let waits = &mut self.shared.lock().waits;
        waits.ended += 1;
        waits.time += time;
        waits.longest = waits.longest.max(time);
    }

    /// Figures for metrics and for whoever looks at the daemon.
    pub fn stats(&self) -> PoolStats {
        let options = &self.shared.options;
        let state = self.shared.lock();
        let tier = |at: usize| {
            let Tier {
                in_use,
                hits,
                misses,
            } = state.tiers[at];
            TierStats {
                size: TIERS.get(at).copied(),
                in_use,
                kept: state.free.get(at).map_or(0, |free| free.len() as u64),
                cap: options.keep.get(at).map_or(0, |cap| *cap as u64),
                hits,
                misses,
            }
        };
        PoolStats {
            budget: options.budget,
            held: state.held,
            peak: state.peak,
            refused: state.refused,
            kept: state.kept,
            waiting: state.waits.began - state.waits.ended,
            waits: state.waits.began,
            waited: state.waits.time,
            longest_wait: state.waits.longest,
            tiers: std::array::from_fn(tier),
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("options", &self.shared.options)
            .field("stats", &self.stats())
            .finish()
    }
}

impl State {
    /// A kept buffer of this tier, if there is one.
    fn take(&mut self, tier: usize) -> Option<Vec<u8>> {
        let bytes = self.free.get_mut(tier).and_then(Vec::pop);
        let counters = &mut self.tiers[tier];
        counters.in_use += 1;
        if bytes.is_some() {
            counters.hits += 1;
            self.kept -= TIERS[tier] as u64;
        } else {
            counters.misses += 1;
        }
        bytes
    }

    /// Takes kept buffers out, large ones first, until the rest fits the budget beside those in use.
    fn make_way(&mut self, budget: u64) -> Vec<Vec<u8>> {
        let mut surplus = Vec::new();
        for (tier, size) in TIERS.iter().enumerate().rev() {
            while self.kept + self.taken > budget
                && let Some(bytes) = self.free[tier].pop()
            {
                self.kept -= *size as u64;
                surplus.push(bytes);
            }
        }
        surplus
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, mut bytes: Vec<u8>, reserved: usize, size: usize) {
        bytes.clear();
        let tier = tier_of(reserved);
        let (surplus, wanted) = {
            let mut state = self.lock();
            state.held -= reserved as u64;
            state.taken -= size as u64;
            state.tiers[tier].in_use -= 1;
            let keeps = tier < LARGER && bytes.capacity() >= TIERS[tier] && {
                let kept = state.kept + TIERS[tier] as u64;
                state.free[tier].len() < self.options.keep[tier]
                    && kept + state.taken <= self.options.budget
            };
            let surplus = if keeps {
                state.kept += TIERS[tier] as u64;
                state.free[tier].push(bytes);
                None
            } else {
                Some(bytes)
            };
            (surplus, std::mem::take(&mut state.wanted))
        };
        drop(surplus);
        if wanted && let Some(hook) = self.on_release.get() {
            hook();
        }
    }
}

/// The system has no memory for a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system has no memory for {bytes} bytes")]
pub struct NoMemory {
    /// How many were reserved.
    pub bytes: usize,
}

/// Payload bytes. Goes back to its [`BufferPool`] when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    reserved: usize,
    /// Bytes of memory that it has, or will have.
    size: usize,
    shared: Arc<Shared>,
}

impl Buffer {
    /// Gets the memory for all that was reserved. Without this the first bytes do, and where the system has none for them the
    /// process ends.
    ///
    /// # Errors
    /// The system has none. The share of the budget stays until the buffer is dropped.
    pub fn allocate(&mut self) -> Result<(), NoMemory> {
        let got = self.bytes.try_reserve_exact(self.missing());
        got.map_err(|_| NoMemory {
            bytes: self.reserved,
        })
    }

    /// Bytes of memory that it has not got yet.
    fn missing(&self) -> usize {
        if self.bytes.capacity() >= self.reserved {
            return 0;
        }
        self.size - self.bytes.len()
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// If that is more than was reserved: callers check lengths first.
    pub fn extend(&mut self, bytes: &[u8]) {
        assert!(
            self.bytes.len() + bytes.len() <= self.reserved,
            "more bytes than were reserved"
        );
        self.bytes.reserve_exact(self.missing());
        append(&mut self.bytes, bytes);
    }

    /// Appends the rest of a long frame, straight from the ring.
    ///
    /// # Panics
    /// As [`extend`](Self::extend).
    pub fn extend_from_ring(&mut self, rest: Rest<'_>) {
        assert!(
            self.bytes.len() + rest.len() <= self.reserved,
            "more bytes than were reserved"
        );
        self.bytes.reserve_exact(self.missing());
        rest.append_to(&mut self.bytes);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.shared.give_back(bytes, self.reserved, self.size);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.bytes.len(), self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A buffer that has its memory.
    fn filled(pool: &BufferPool, len: usize) -> Buffer {
        let mut buffer = pool.reserve(len).unwrap();
        buffer.allocate().unwrap();
        buffer
    }

    #[test]
    fn what_the_system_has_not_got_is_an_error_and_leaves_the_budget() {
        let pool = BufferPool::new(PoolOptions {
            budget: u64::MAX,
            ..PoolOptions::default()
        });
        let bytes = usize::MAX;
        let mut buffer = pool.reserve(bytes).unwrap();
        assert_eq!(buffer.allocate(), Err(NoMemory { bytes }));
        drop(buffer);
        assert_eq!(pool.stats().held, 0);
        // What never got memory is not kept for reuse.
        drop(pool.reserve(10).unwrap());
        assert_eq!(pool.stats().kept, 0);
        let mut small = filled(&pool, 10);
        let room = small.bytes.capacity();
        small.extend(b"0123456789");
        assert_eq!((small.bytes.capacity(), &small[..2]), (room, &b"01"[..]));
    }

    #[test]
    fn memory_is_reused_and_the_budget_holds() {
        let pool = BufferPool::new(PoolOptions {
            budget: 3 << 20,
            keep: [1, 1, 1],
        });
        let (a, b) = (filled(&pool, 100), filled(&pool, 100));
        drop((a, b));
        assert_eq!(pool.stats().kept, 4096, "one is kept, the other freed");
        let _again = pool.reserve(4096).unwrap();
        let large = pool.reserve(2 << 20).unwrap();
        assert!(pool.reserve(1 << 20).is_none());
        assert!(pool.reserve(usize::MAX).is_none());
        let stats = pool.stats();
        assert_eq!((stats.refused, stats.budget), (2, 3 << 20));
        let tier = |size, in_use, cap, hits, misses| TierStats {
            size,
            in_use,
            kept: 0,
            cap,
            hits,
            misses,
        };
        let of_tiers = [
            tier(Some(4 << 10), 1, 1, 1, 2),
            tier(Some(64 << 10), 0, 1, 0, 0),
            tier(Some(1 << 20), 0, 1, 0, 0),
            tier(None, 1, 0, 0, 1),
        ];
        assert_eq!(stats.tiers, of_tiers);
        drop(large);
        let larger = pool.stats().tiers[LARGER];
        assert_eq!(
            (larger.in_use, larger.kept),
            (0, 0),
            "what is larger is freed"
        );
        drop(filled(&pool, 64 << 10));
        assert_eq!(pool.stats().tiers[1].kept, 1);
    }

    #[test]
    fn waits_are_counted_and_timed() {
        let pool = BufferPool::new(PoolOptions::default());
        pool.note_waiting(3);
        pool.note_waited(Duration::from_millis(2));
        pool.note_waited(Duration::from_millis(5));
        let stats = pool.stats();
        assert_eq!((stats.waits, stats.waiting), (3, 1));
        assert_eq!(stats.waited, Duration::from_millis(7));
        assert_eq!(stats.longest_wait, Duration::from_millis(5));
    }

    #[test]
    fn kept_memory_counts_against_the_budget() {
        let pool = BufferPool::new(PoolOptions {
            budget: 1 << 20,
            keep: [100, 50, 10],
        });
        drop(filled(&pool, 1 << 20));
        assert_eq!(pool.stats().kept, 1 << 20);
        drop(filled(&pool, 10));
        assert_eq!(
            pool.stats().kept,
            4096,
            "the large one made way: together they would go over the budget"
        );
    }

    #[test]
    fn lengths_just_over_a_tier_take_twice_the_budget_at_most() {
        let budget = 4 << 20;
        let pool = BufferPool::new(PoolOptions {
            budget,
            ..PoolOptions::default()
        });
        let capacity = |buffers: &[Buffer]| -> u64 {
            let capacities = buffers.iter().map(|buffer| buffer.bytes.capacity() as u64);
            capacities.sum()
        };
        for len in [(4 << 10) + 1, (64 << 10) + 1] {
            let mut buffers = Vec::new();
            while let Some(mut buffer) = pool.reserve(len) {
                buffer.allocate().unwrap();
                buffers.push(buffer);
            }
            assert_eq!(buffers.len() as u64, budget / len as u64);
            let taken = capacity(&buffers);
            assert!(taken <= 2 * budget, "{taken}");
            drop(buffers);
            assert_eq!(pool.shared.lock().taken, 0);
            // Where there is room for it, one has its tier's size, and is kept.
            pool.release_kept();
            drop(filled(&pool, len));
            assert_eq!(pool.stats().kept, TIERS[tier_of(len)] as u64);
        }
    }

    #[test]
    fn kept_memory_is_given_up_and_used_memory_is_not() {
        let pool = BufferPool::new(PoolOptions::default());
        drop((filled(&pool, 1), filled(&pool, 64 << 10)));
        let used = filled(&pool, 1 << 20);
        assert_eq!(pool.stats().kept, (4 << 10) + (64 << 10));
        pool.release_kept();
        let stats = pool.stats();
        assert_eq!((stats.kept, stats.held), (0, 1 << 20));
        assert!(stats.tiers.iter().all(|tier| tier.kept == 0));
        drop(used);
        assert_eq!(pool.stats().kept, 1 << 20, "it keeps again");
    }

    #[test]
    fn kept_memory_makes_way_for_held_memory() {
        let pool = BufferPool::new(PoolOptions {
            budget: 2 << 20,
            keep: [100, 50, 10],
        });
        drop((filled(&pool, 1 << 20), filled(&pool, 1 << 20)));
        assert_eq!(pool.stats().kept, 2 << 20);
        let _large = pool.reserve((1 << 20) + 1).unwrap();
        let stats = pool.stats();
        assert!(stats.kept + stats.held <= pool.budget(), "{stats:?}");
    }

    #[test]
    fn the_first_release_after_a_refusal_is_told() {
        let pool = BufferPool::new(PoolOptions {
            budget: 10,
            ..PoolOptions::default()
        });
        let told = Arc::new(AtomicUsize::new(0));
        // A hook that held the pool would keep it for ever.
        let (counter, again) = (Arc::clone(&told), Arc::downgrade(&pool.shared));
        pool.on_release(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            // The hook may reserve: the bytes are back by then.
            let again = again.upgrade().map(|shared| BufferPool { shared });
            drop(again.and_then(|again| again.reserve(10)));
        });
        let told = || told.load(Ordering::Relaxed);
        drop(pool.reserve(1));
        assert_eq!(told(), 0, "nobody wanted it");
        let (small, large) = (pool.reserve(2), pool.reserve(8));
        assert!(pool.reserve(1).is_none());
        drop(large);
        assert_eq!(told(), 1);
        drop(small);
        assert_eq!(told(), 2, "since the hook itself was refused");
        drop(pool.reserve(10));
        assert_eq!(told(), 2);
        assert_eq!(pool.stats().held, 0);
    }
}
