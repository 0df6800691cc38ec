//! Notices sync handlers that hold everybody up: rule 16 of the design.
//!
//! Two looks at the exact clock for every batch would cost a small message a tenth of its time, so this reads the
//! kernel's coarse one (`CLOCK_MONOTONIC_COARSE`), which is a load from memory. It moves once a tick, 1 to 10 ms as
//! the kernel was built, so that is how exact the figures are; limits below two ticks are raised to that, or a tick in the
//! middle of a quick batch would count as an overrun.

use std::time::{Duration, Instant};

use lapce_ai_proto::MessageType;
use rustix::time::{ClockId, clock_getres, clock_gettime};

/// The least time between two lines in the log.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Watches for batches that take longer than they may.
#[derive(Debug)]
pub(super) struct Overruns {
    limit: Duration,
    told: Option<Instant>,
    untold: u64,
}

/// When a batch began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began(Duration);

impl Overruns {
    pub(super) fn new(limit: Duration) -> Self {
        let tick = clock_getres(ClockId::MonotonicCoarse);
        let tick = Duration::try_from(tick).unwrap_or_default();
        Self {
            limit: limit.max(2 * tick),
            told: None,
            untold: 0,
        }
    }

    #[inline]
    pub(super) fn begin() -> Began {
        Began(now())
    }

    /// Whether the batch that began then took too long. Tells of it in the log, but not more often than once a second.
    #[inline]
    pub(super) fn end(
        &mut self,
        began: Began,
        connection: u64,
        latest: Option<MessageType>,
    ) -> bool {
        let took = now().saturating_sub(began.0);
        if took < self.limit {
            return false;
        }
        self.tell(took, connection, latest);
        true
    }

    #[cold]
    fn tell(&mut self, took: Duration, connection: u64, latest: Option<MessageType>) {
        let now = Instant::now();
        if self
            .told
            .is_some_and(|told| now.duration_since(told) < TELL_EVERY)
        {
            self.untold += 1;
            return;
        }
        self.told = Some(now);
        let latest = latest.map(tracing::field::display);
        tracing::warn!(
            connection,
            latest,
            milliseconds = took.as_millis(),
            others_since_the_last_line = std::mem::take(&mut self.untold),
            "sync handlers of one batch of requests held every connection up"
        );
    }
}

#[inline]
fn now() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    // A monotonic clock is never negative.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_batch_counts_and_a_short_one_does_not() {
        let mut overruns = Overruns::new(Duration::from_millis(1));
        let (tick, began) = (overruns.limit / 2, Overruns::begin());
        assert!(!tick.is_zero());
        let long_ago = Began(began.0.saturating_sub(3 * tick));
        assert!(overruns.end(long_ago, 1, Some(MessageType::ECHO)));
        assert!(overruns.told.is_some());
        // The second in a second is only counted.
        assert!(overruns.end(long_ago, 1, None));
        assert_eq!(overruns.untold, 1);
        // A clock that stands still, as it mostly does, is no overrun, and one tick is not enough for one.
        let mut patient = Overruns::new(Duration::from_secs(3600));
        assert!(!patient.end(began, 1, None));
        assert_eq!(patient.limit, Duration::from_secs(3600));
    }
}
