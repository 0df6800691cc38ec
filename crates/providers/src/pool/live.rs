//! What is known of a provider from its traffic: how many, how well, how fast. No clock: `now` is passed in.

use std::time::Duration;

use tokio::time::Instant;

use super::recent::Recent;

/// What was measured so long ago counts for a third.
const MEMORY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) counts: Counts,
    /// The last times to the first token.
    recent: Recent,
    /// The moving average of the same, in seconds, which jumps to peaks, and when it was last moved.
    average: Option<(f64, Instant)>,
}

/// Requests to one provider since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Under way now.
    pub in_flight: u64,
    /// Asked.
    pub asked: u64,
    /// Ended with a whole answer.
    pub answered: u64,
    /// Failed.
    pub failed: u64,
    /// Given up by whoever asked: cancelled, gone, or over its own deadline.
    pub cancelled: u64,
    /// Had to wait for the limits.
    pub queued: u64,
    /// Ended without being asked for, since the limits had no room in time.
    pub shed: u64,
}

impl Live {
    pub(super) fn first_token(&mut self, took: Duration, now: Instant) {
        self.recent.add(took);
        let sample = took.as_secs_f64();
        let average = match self.average {
            // Worse is believed at once, better bit by bit.
            Some((average, at)) if sample < average => {
                let old = weight(now.saturating_duration_since(at));
                average * old + sample * (1.0 - old)
            }
            _ => sample,
        };
        self.average = Some((average, now));
    }

    /// How long the next one will take, as a figure to compare by: the average, which fades while nothing is asked so
    /// that a target that was slow once is tried again, times those that are under way.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let Some((average, at)) = self.average else {
            return 0.0;
        };
        let faded = average * weight(now.saturating_duration_since(at));
        #[expect(clippy::cast_precision_loss, reason = "not so many are under way")]
        let load = self.counts.in_flight as f64 + 1.0;
        faded * load
    }

    /// The time to the first token that can be expected, if any was ever seen.
    pub(super) fn expected(&self) -> Option<Duration> {
        self.percentile(50)
    }

    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        self.recent.percentile(percent)
    }
}

fn weight(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_believed_at_once_and_fade() {
        let now = Instant::now();
        let mut live = Live::default();
        assert!(live.cost(now) == 0.0, "unknown: to be tried");
        live.first_token(Duration::from_secs(1), now);
        live.first_token(Duration::from_secs(9), now);
        assert!(live.cost(now) >= 9.0);
        live.first_token(Duration::from_secs(1), now + MEMORY);
        let cost = live.cost(now + MEMORY);
        assert!((3.0..5.0).contains(&cost), "{cost}");
        live.counts.in_flight = 3;
        assert!(live.cost(now + MEMORY) > 3.9 * cost);
        assert!(live.cost(now + 10 * MEMORY) < 0.01);
    }
}
