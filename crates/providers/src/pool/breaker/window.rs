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

    pub(super) fn add(&mut self, now: Instant, failed: bool, slow: bool) {
        let slice = self.slice(now);
        let (counted, counts) = &mut self.buckets[(slice % BUCKETS as u64) as usize];
        if *counted != slice {
            (*counted, *counts) = (slice, Counts::default());
        }
        counts.calls = counts.calls.saturating_add(1);
        counts.failed = counts.failed.saturating_add(failed.into());
        counts.slow = counts.slow.saturating_add(slow.into());
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
