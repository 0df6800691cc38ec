//! Buffers for payload bytes that outlive their frame, under one budget.

use lapce_ai_shm::append;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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

/// What a [`BufferPool`] holds and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Payload bytes held in buffers now.
    pub held: u64,
    /// The most that were ever held.
    pub peak: u64,
    /// Reservations served from a kept buffer.
    pub hits: u64,
    /// Reservations that needed new memory.
    pub misses: u64,
    /// Reservations refused because the budget was spent; each was tried again later or ended in an error.
    pub refused: u64,
    /// Bytes kept free for reuse.
    pub kept: u64,
}

const TIERS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

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
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
    on_release: OnceLock<Box<dyn Fn() + Send + Sync>>,
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
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
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

    /// Figures for metrics.
    pub fn stats(&self) -> PoolStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolStats {
            held: load(&self.shared.held),
            peak: load(&self.shared.peak),
            hits: load(&self.shared.hits),
            misses: load(&self.shared.misses),
            refused: load(&self.shared.refused),
            kept: load(&self.shared.kept),
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
        let Some(tier) = TIERS.iter().position(|size| len <= *size) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return Vec::with_capacity(len);
        };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        match free[tier].pop() {
            Some(bytes) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                // Under the lock, as every change of it.
                self.kept.fetch_sub(TIERS[tier] as u64, Ordering::Relaxed);
                bytes
            }
            None => {
                drop(free);
                self.misses.fetch_add(1, Ordering::Relaxed);
                Vec::with_capacity(TIERS[tier])
            }
        }
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
        if let Some(tier) = TIERS.iter().position(|size| bytes.capacity() == *size) {
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
        assert_eq!((pool.stats().hits, pool.stats().misses), (1, 2));
        let _large = pool.reserve(2 << 20).unwrap();
        assert!(pool.reserve(1 << 20).is_none());
        assert!(pool.reserve(usize::MAX).is_none());
        assert_eq!(pool.stats().refused, 2);
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
