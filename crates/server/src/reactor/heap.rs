//! The heap's free pages go back to the system once the server is quiet, and so do the buffers that the pool keeps for reuse: 100 of
//! 4 KiB, allocated while much was going on, lay in 147 different pages. What glibc caches for each thread goes first: of 1,444 pages
//! that were left after 150,000 AI requests, 1,056 held nothing else, most of it of the runtime's workers.
//!
//! glibc keeps what was freed below anything that is still used, however much it is: after 600 AI requests at once the daemon held 18 MB
//! for nobody, and trimmed it holds 4 (stress level 4). One arena for all threads saves 0.3 MB of that and makes them share
//! a lock. An allocator that gives pages back by itself was measured beside it: jemalloc held 5 to 6 MB, mimalloc 8 to 12, both
//! began with twice as much, and both are large builds in C.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use lapce_ai_transport::{release_thread_cache, trim_heap};

use super::Reactor;
use super::clock::QUIET;

/// How often it is looked whether it is quiet.
const LOOK: Duration = Duration::from_millis(250);
/// How long a worker waits at most for the others to have come, too.
const TOGETHER: Duration = Duration::from_millis(2);

/// When the heap is looked at next, and what had been done by then.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pub(super) next_look: Option<Instant>,
    /// This reactor's requests and connections when it last went to sleep.
    noted: (u64, usize),
    /// What all had done at the last look, and the first look that saw no more than that.
    seen: (u64, u64),
    since: Option<Instant>,
}

impl Reactor {
    /// The reactor is about to sleep: if it has done anything since it last did, the heap is to be looked at.
    pub(super) fn note_heap(&mut self, now: Instant) {
        let requests = self.mailbox.requests.load(Ordering::Relaxed);
        let done = (requests, self.connections.len());
        if done != self.heap.noted {
            self.heap.noted = done;
            self.heap.next_look.get_or_insert(now + LOOK);
        }
    }

    /// Trims the heap if nothing has happened for a while, and nothing runs. Each reactor that worked does it, since
    /// none knows who is the last; when there is nothing to trim it costs little.
    pub(super) fn look_at_heap(&mut self, now: Instant) {
        let done = self.shared.done();
        if done != self.heap.seen || self.shared.is_running() {
            self.heap.seen = done;
            self.heap.since = None;
        }
        let since = *self.heap.since.get_or_insert(now);
        if now.saturating_duration_since(since) < QUIET {
            self.heap.next_look = Some(now + LOOK);
            return;
        }
        self.heap.next_look = None;
        self.heap.since = None;
        // Where something ran until a moment ago it has not been done yet.
        self.trim_quiet(now);
        self.shared.pool.release_kept();
        self.shared.repeats.shrink(now);
        release_thread_cache();
        trim_heap();
        let workers = self.runtime.metrics().num_workers();
        let Some(sweep) = Sweep::begin(&self.shared.sweep, workers) else {
            return;
        };
        for _ in 0..workers {
            let sweep = Arc::clone(&sweep);
            self.runtime.spawn(async move { sweep.join() });
        }
    }
}

/// The runtime's workers empty their caches, and the last one trims the heap. A task cannot choose its worker: each holds the one
/// that it is on until all have come, or for a moment, so that the next takes another.
#[derive(Debug)]
pub(crate) struct Sweep {
    missing: Mutex<usize>,
    complete: Condvar,
    together: Duration,
}

impl Sweep {
    /// Unless one is under way: another reactor has seen the same quiet, and two would hold each other's workers.
    fn begin(under_way: &Mutex<Weak<Self>>, workers: usize) -> Option<Arc<Self>> {
        let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.strong_count() > 0 {
            return None;
        }
        let sweep = Arc::new(Self::of(workers, TOGETHER));
        *under_way = Arc::downgrade(&sweep);
        Some(sweep)
    }

    fn of(workers: usize, together: Duration) -> Self {
        Self {
            missing: Mutex::new(workers),
            complete: Condvar::new(),
            together,
        }
    }

    fn join(&self) {
        release_thread_cache();
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing -= 1;
        if *missing == 0 {
            self.complete.notify_all();
            return;
        }
        // Whether all came makes no difference any more.
        let _ = self
            .complete
            .wait_timeout_while(missing, self.together, |missing| *missing > 0);
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        trim_heap();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Far longer than any machine takes to start a task.
    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn every_worker_takes_part_in_a_sweep() {
        let workers = 3;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .build()
            .unwrap();
        let sweep = Arc::new(Sweep::of(workers, BOUND));
        let (tell, told) = mpsc::channel();
        for _ in 0..workers {
            let (sweep, tell) = (Arc::clone(&sweep), tell.clone());
            runtime.spawn(async move {
                sweep.join();
                tell.send(thread::current().id()).unwrap();
            });
        }
        let mut seen: Vec<_> = (0..workers)
            .map(|_| told.recv_timeout(BOUND).unwrap())
            .collect();
        seen.sort_by_key(|id| format!("{id:?}"));
        seen.dedup();
        assert_eq!(seen.len(), workers, "{seen:?}");
    }

    #[test]
    fn one_sweep_at_a_time() {
        let under_way = Mutex::default();
        let first = Sweep::begin(&under_way, 2).unwrap();
        assert!(Sweep::begin(&under_way, 2).is_none());
        drop(first);
        assert!(Sweep::begin(&under_way, 2).is_some());
    }

    #[test]
    fn a_worker_that_is_alone_goes_on_after_a_moment() {
        let sweep = Sweep::of(2, Duration::from_millis(1));
        sweep.join();
        assert_eq!(*sweep.missing.lock().unwrap(), 1);
    }
}
