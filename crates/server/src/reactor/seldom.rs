//! Lines in the log that others can cause as often as they like.

use std::time::{Duration, Instant};

/// The least time between two lines.
const EVERY: Duration = Duration::from_secs(1);

/// Lets one line a second through, and counts the others.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// Whether a line may be written now: then how many were not since the last one.
    pub(super) fn turn(&mut self, now: Instant) -> Option<u64> {
        let early = |told: Instant| now.duration_since(told) < EVERY;
        if self.told.is_some_and(early) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_others_are_counted() {
        let (mut seldom, began) = (Seldom::default(), Instant::now());
        let mut turn = |millis| seldom.turn(began + Duration::from_millis(millis));
        assert_eq!([0, 1, 500, 999].map(&mut turn), [Some(0), None, None, None]);
        assert_eq!([1000, 1001, 5000].map(turn), [Some(3), None, Some(1)]);
    }
}
