//! The last durations of something, and their percentiles.

use std::time::Duration;

/// So many are kept: 1 KiB.
const KEPT: usize = 256;

/// The last 256 durations, in milliseconds, in a ring.
#[derive(Debug, Default)]
pub(super) struct Recent {
    millis: Vec<u32>,
    next: usize,
}

impl Recent {
    pub(super) fn add(&mut self, took: Duration) {
        let millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        if self.millis.len() < KEPT {
            self.millis.push(millis);
        } else {
            self.millis[self.next] = millis;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.millis.len()
    }

    /// What so many of 100 do not exceed.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut millis = self.millis.clone();
        let at = (millis.len() * percent).div_ceil(100).max(1) - 1;
        if at >= millis.len() {
            return None;
        }
        let (_, found, _) = millis.select_nth_unstable(at);
        Some(Duration::from_millis((*found).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_ones() {
        let mut recent = Recent::default();
        assert_eq!(recent.percentile(50), None);
        for millis in (1..=1000).chain(1..=100).map(Duration::from_millis) {
            recent.add(millis);
        }
        assert_eq!(recent.len(), KEPT);
        // 1 to 100, and 845 to 1,000.
        assert_eq!(recent.percentile(50), Some(Duration::from_millis(872)));
        assert_eq!(recent.percentile(99), Some(Duration::from_millis(998)));
        assert_eq!(recent.percentile(1), Some(Duration::from_millis(3)));
    }
}
