//! Whether what holds memory moves fast enough to keep it: the second half of rule 8.

use std::time::{Duration, Instant};

/// The pace of a request that is being sent, or of an answer that is being read. A byte now and then is no progress: at least
/// so many must move within the time-out, or all that is left. So memory is held for a time that its length bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// When the bytes below began to count.
    since: Instant,
    moved: usize,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            moved: 0,
        }
    }

    /// Bytes moved; with `least` of them the time begins anew. The clock is read only then.
    #[inline]
    pub(crate) fn moved(&mut self, bytes: usize, least: usize, now: impl FnOnce() -> Instant) {
        self.moved += bytes;
        if self.moved >= least {
            *self = Self::new(now());
        }
    }

    /// Whether too little moved for so long.
    pub(crate) fn is_late(&self, now: Instant, limit: Duration) -> bool {
        now.saturating_duration_since(self.since) >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: usize = 64 << 10;
    const LIMIT: Duration = Duration::from_secs(30);

    /// Moves `bytes` every `millis` milliseconds; when the pace is found too slow by a look every 100 ms, if it is.
    fn cut_after(bytes: usize, millis: u64, length: usize) -> Option<Duration> {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut pace = Pace::new(began);
        let (mut left, mut time) = (length, 0);
        loop {
            time += 100;
            if pace.is_late(at(time), LIMIT) {
                return Some(Duration::from_millis(time));
            }
            if time.is_multiple_of(millis) {
                left = left.saturating_sub(bytes);
                if left == 0 {
                    return None;
                }
                pace.moved(bytes, LEAST, || at(time));
            }
        }
    }

    #[test]
    fn a_trickle_is_cut_after_one_time_out() {
        for (bytes, millis) in [(0, 1000), (1, 29_000), (1, 100), (200, 100)] {
            assert_eq!(
                cut_after(bytes, millis, 10 << 20),
                Some(LIMIT),
                "{bytes} every {millis}"
            );
        }
        // Quick at first: what moved before does not help later.
        let began = Instant::now();
        let mut pace = Pace::new(began);
        pace.moved(9 << 20, LEAST, || began + Duration::from_secs(1));
        pace.moved(LEAST - 1, LEAST, || unreachable!());
        assert!(!pace.is_late(began + Duration::from_secs(30), LIMIT));
        assert!(pace.is_late(began + Duration::from_secs(31), LIMIT));
    }

    #[test]
    fn who_moves_enough_is_left_alone_however_slow() {
        // 64 KiB in 29 s, in one piece or many; and a megabyte a second.
        for (bytes, millis) in [(LEAST, 29_000), (300, 100), (1 << 20, 1000)] {
            assert_eq!(
                cut_after(bytes, millis, 10 << 20),
                None,
                "{bytes} every {millis}"
            );
        }
        // The rest of a stream, and a small one, may be less.
        assert_eq!(cut_after(100, 14_000, 200), None);
        assert_eq!(cut_after(LEAST, 20_000, LEAST + 1), None);
    }

    #[test]
    fn memory_is_held_for_a_bounded_time() {
        // The slowest that is allowed needs a time-out for each 64 KiB, and no more.
        let (length, mut time) = (1 << 20, Duration::ZERO);
        let began = Instant::now();
        let mut pace = Pace::new(began);
        for _ in 0..length / LEAST {
            time += LIMIT - Duration::from_millis(1);
            assert!(!pace.is_late(began + time, LIMIT));
            pace.moved(LEAST, LEAST, || began + time);
        }
        assert!(time < LIMIT * (length / LEAST) as u32);
    }
}
