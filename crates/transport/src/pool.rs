//! Buffers for payload bytes that outlive their frame, under one budget.

use lapce_ai_proto::status::{PoolStatus, TierStatus};
use lapce_ai_shm::append;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

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

/// What a [`BufferPool`] holds and did. Read one by one while the pool goes on, so sums may be off by what happened
/// meanwhile.
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
    free: Mutex<[Vec<Vec<u8>>; 3]>,
    held: AtomicU64,
    peak: AtomicU64,
    kept: AtomicU64,
    refused: AtomicU64,
    tiers: [Tier; LARGER + 1],
    waits: Waits,
    on_release: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Tier {
    in_use: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Waits {
    began: AtomicU64,
    ended: AtomicU64,
    nanos: AtomicU64,
    longest_nanos: AtomicU64,
}

impl BufferPool {
    /// An empty pool.
    pub fn new(options: PoolOptions) -> Self {
        let shared = Shared {
            options,
            free: Mutex::default(),
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            tiers: Default::default(),
            waits: Waits::default(),
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

    /// Calls `hook` whenever bytes come back to the budget. Only the first hook counts.
    pub fn on_release(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_release.set(Box::new(hook));
    }

    /// An empty buffer that may take `len` bytes, or `None` while the budget does not allow it.
    pub fn reserve(&self, len: usize) -> Option<Buffer> {
        let shared = &self.shared;
        let taken = shared
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(len as u64)
                    .filter(|sum| *sum <= shared.options.budget)
            });
        let Ok(before) = taken else {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        shared
            .peak
            .fetch_max(before + len as u64, Ordering::Relaxed);
        let bytes = shared.take_memory(len);
        shared.trim();
        Some(Buffer {
            bytes,
            reserved: len,
            shared: Arc::clone(shared),
        })
    }

    /// Whoever keeps the line notes that so many more requests were refused and wait from now on.
    pub fn note_waiting(&self, requests: u64) {
        let began = &self.shared.waits.began;
        began.fetch_add(requests, Ordering::Relaxed);
    }

    /// One of them waits no longer, served or given up: it waited so long.
    pub fn note_waited(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let waits = &self.shared.waits;
        waits.ended.fetch_add(1, Ordering::Relaxed);
        waits.nanos.fetch_add(nanos, Ordering::Relaxed);
        waits.longest_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// Figures for metrics and for whoever looks at the daemon.
    pub fn stats(&self) -> PoolStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        let kept = {
            let free = shared.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.each_ref().map(Vec::len)
        };
        let tier = |at: usize| {
            let counters = &shared.tiers[at];
            TierStats {
                size: TIERS.get(at).copied(),
                in_use: load(&counters.in_use),
                kept: kept.get(at).map_or(0, |kept| *kept as u64),
                cap: shared.options.keep.get(at).map_or(0, |cap| *cap as u64),
                hits: load(&counters.hits),
                misses: load(&counters.misses),
            }
        };
        let ended = load(&shared.waits.ended);
        let waits = load(&shared.waits.began);
        PoolStats {
            budget: shared.options.budget,
            held: load(&shared.held),
            peak: load(&shared.peak),
            refused: load(&shared.refused),
            kept: load(&shared.kept),
            waiting: waits.saturating_sub(ended),
            waits,
            waited: Duration::from_nanos(load(&shared.waits.nanos)),
            longest_wait: Duration::from_nanos(load(&shared.waits.longest_nanos)),
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

impl Shared {
    fn take_memory(&self, len: usize) -> Vec<u8> {
        let tier = tier_of(len);
        let counters = &self.tiers[tier];
        counters.in_use.fetch_add(1, Ordering::Relaxed);
        let size = TIERS.get(tier).copied();
        if let Some(size) = size {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bytes) = free[tier].pop() {
                counters.hits.fetch_add(1, Ordering::Relaxed);
                // Under the lock, as every change of it.
                self.kept.fetch_sub(size as u64, Ordering::Relaxed);
                return bytes;
            }
        }
        counters.misses.fetch_add(1, Ordering::Relaxed);
        Vec::with_capacity(size.unwrap_or(len))
    }

    /// Frees kept buffers, large ones first, until they fit the budget beside the held bytes.
    fn trim(&self) {
        let over = || {
            let (kept, held) = (&self.kept, &self.held);
            kept.load(Ordering::Relaxed) + held.load(Ordering::Relaxed) > self.options.budget
        };
        if self.kept.load(Ordering::Relaxed) == 0 || !over() {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        for (tier, size) in TIERS.iter().enumerate().rev() {
            while over() && free[tier].pop().is_some() {
                self.kept.fetch_sub(*size as u64, Ordering::Relaxed);
            }
        }
    }

    fn give_back(&self, mut bytes: Vec<u8>, reserved: usize) {
        self.held.fetch_sub(reserved as u64, Ordering::Relaxed);
        let tier = tier_of(reserved);
        self.tiers[tier].in_use.fetch_sub(1, Ordering::Relaxed);
        if tier < LARGER {
            let size = TIERS[tier] as u64;
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = self.kept.load(Ordering::Relaxed) + size;
            let fits = kept + self.held.load(Ordering::Relaxed) <= self.options.budget;
            if free[tier].len() < self.options.keep[tier] && fits {
                bytes.clear();
                free[tier].push(bytes);
                self.kept.store(kept, Ordering::Relaxed);
            }
        }
        if let Some(hook) = self.on_release.get() {
            hook();
        }
    }
}

/// Payload bytes. Goes back to its [`BufferPool`] when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    reserved: usize,
    shared: Arc<Shared>,
}

impl Buffer {
    /// Appends bytes.
    ///
    /// # Panics
    /// If that is more than was reserved: callers check lengths first.
    pub fn extend(&mut self, bytes: &[u8]) {
        assert!(
            self.bytes.len() + bytes.len() <= self.reserved,
            "more bytes than were reserved"
        );
        append(&mut self.bytes, bytes);
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
        self.shared
            .give_back(std::mem::take(&mut self.bytes), self.reserved);
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
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn memory_is_reused_and_the_budget_holds() {
        let pool = BufferPool::new(PoolOptions {
            budget: 3 << 20,
            keep: [1, 1, 1],
        });
        let (a, b) = (pool.reserve(100).unwrap(), pool.reserve(100).unwrap());
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
        drop(pool.reserve(64 << 10).unwrap());
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
        drop(pool.reserve(1 << 20).unwrap());
        assert_eq!(pool.stats().kept, 1 << 20);
        drop(pool.reserve(10).unwrap());
        assert_eq!(
            pool.stats().kept,
            4096,
            "the large one made way: together they would go over the budget"
        );
    }

    #[test]
    fn kept_memory_makes_way_for_held_memory() {
        let pool = BufferPool::new(PoolOptions {
            budget: 2 << 20,
            keep: [100, 50, 10],
        });
        let both = (
            pool.reserve(1 << 20).unwrap(),
            pool.reserve(1 << 20).unwrap(),
        );
        drop(both);
        assert_eq!(pool.stats().kept, 2 << 20);
        let _large = pool.reserve((1 << 20) + 1).unwrap();
        let stats = pool.stats();
        assert!(stats.kept + stats.held <= pool.budget(), "{stats:?}");
    }

    #[test]
    fn a_release_is_told() {
        let pool = BufferPool::new(PoolOptions::default());
        let told = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&told);
        pool.on_release(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        drop(pool.reserve(1));
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
