//! A rolling window of calls, in buckets of time.

use std::time::Duration;

use tokio::time::Instant;

/// The window moves by one of so many parts.
const BUCKETS: usize = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
}

#[derive(Debug)]
pub(super) struct Window {
    bucket: Duration,
    begun: Instant,
    /// Each with the number of the time slice that it counts for.
    buckets: [(u64, Counts); BUCKETS],
}

impl Window {
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        Self {
            bucket: (length / 10).max(Duration::from_millis(1)),
            begun: now,
            buckets: [(0, Counts::default()); BUCKETS],
        }
    }

    /// Adds a call that did well, if perhaps slowly.
    pub(super) fn add_success(&mut self, now: Instant, slow: bool) {
        let counts = self.at(now);
        counts.calls = counts.calls.saturating_add(1);
        counts.slow = counts.slow.saturating_add(slow.into());
    }

    /// The counts of this moment's slice.
    fn at(&mut self, now: Instant) -> &mut Counts {
        let slice = self.slice(now);
        let (counted, counts) = &mut self.buckets[(slice % BUCKETS as u64) as usize];
        if *counted != slice {
            (*counted, *counts) = (slice, Counts::default());
        }
        counts
    }

    /// Adds a call that failed. One that is `counted` already was added when it began to do well.
    pub(super) fn add_failure(&mut self, now: Instant, counted: bool) {
        let known = self.counts(now);
        // Where the window has moved on, or was made anew since, it is not in it any more.
        let is_new = !counted || known.failed >= known.calls;
        let counts = self.at(now);
        counts.calls = counts.calls.saturating_add(is_new.into());
        counts.failed = counts.failed.saturating_add(1);
    }

    pub(super) fn counts(&self, now: Instant) -> Counts {
        let oldest = (self.slice(now) + 1).saturating_sub(BUCKETS as u64);
        let mut sum = Counts::default();
        for (slice, counts) in &self.buckets {
            if *slice >= oldest {
                sum.calls = sum.calls.saturating_add(counts.calls);
                sum.failed = sum.failed.saturating_add(counts.failed);
                sum.slow = sum.slow.saturating_add(counts.slow);
            }
        }
        // Of a call that failed later than it was added the failure stays for longer.
        sum.failed = sum.failed.min(sum.calls);
        sum
    }

    pub(super) fn is_empty(&self, now: Instant) -> bool {
        self.counts(now).calls == 0
    }

    fn slice(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.begun).as_nanos();
        u64::try_from(passed / self.bucket.as_nanos()).unwrap_or(u64::MAX)
    }
}
