//! A token bucket. No clock: `now` is passed in.
//!
//! Our own few lines rather than the crate `governor`: what a request costs is an estimate that its answer corrects, up or
//! down, so a bucket must take things back and go into debt; the algorithm of `governor` (GCRA) keeps one instant and has
//! no way back, asks a clock instead of being told the time, and refuses for ever what is larger than the bucket.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: f64 = 60.0;
/// For so many minutes at most what an answer is counted for puts a bucket into debt. An honest one seldom costs so much more
/// than its limit allows, and a provider that says nonsense must not shut its users out until the daemon starts anew.
const MOST_OWED: f64 = 10.0;

/// So much in a minute, filled bit by bit. What was not used is saved up for a minute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    most: f64,
    /// What was left at `at`; less than nothing is debt.
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let most = f64::from(per_minute).max(1.0);
        Self {
            most,
            left: most,
            at: now,
        }
    }

    /// When there is room for `cost`; `None`: now. What costs more than all there is needs a full bucket.
    pub(super) fn free_at(&self, cost: f64, now: Instant) -> Option<Instant> {
        let missing = cost.min(self.most) - self.left(now);
        // What rounding leaves is not worth a wait.
        (missing > 1e-6).then(|| now + self.time_for(missing))
    }

    /// Takes `cost`, whether it is there or not; less than nothing gives back.
    pub(super) fn take(&mut self, cost: f64, now: Instant) {
        self.left = (self.left(now) - cost).min(self.most);
        self.at = self.at.max(now);
    }

    /// What was `taken` was an estimate: it cost `actual`. An estimate may make any debt, since all of it is given back here;
    /// what was counted makes a debt up to a bound.
    pub(super) fn correct(&mut self, taken: f64, actual: f64, now: Instant) {
        let without = self.left(now) + taken;
        self.take(actual - taken, now);
        self.left = self.left.max(without.min(-MOST_OWED * self.most));
    }

    pub(super) fn left(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + passed * self.most / MINUTE).min(self.most)
    }

    pub(super) fn most(&self) -> f64 {
        self.most
    }

    /// How long until it is full.
    pub(super) fn full_in(&self, now: Instant) -> Duration {
        self.time_for(self.most - self.left(now))
    }

    fn time_for(&self, amount: f64) -> Duration {
        // A debt of years is a slip.
        let seconds = (amount * MINUTE / self.most).clamp(0.0, 1e9);
        // Up to a whole microsecond, so that what was waited for is there then.
        Duration::from_micros((seconds * 1e6).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_fills_bit_by_bit_and_saves_up_a_minute() {
        let now = Instant::now();
        let mut bucket = Bucket::new(60, now);
        for _ in 0..60 {
            assert_eq!(bucket.free_at(1.0, now), None);
            bucket.take(1.0, now);
        }
        assert_eq!(bucket.free_at(1.0, now), Some(now + SECOND));
        assert_eq!(bucket.free_at(1.0, now + SECOND), None);
        assert_eq!(bucket.full_in(now), 60 * SECOND);
        let later = now + 3600 * SECOND;
        assert!((bucket.left(later) - 60.0).abs() < 1e-6);
    }

    #[test]
    fn an_answer_corrects_the_estimate_up_and_down() {
        let now = Instant::now();
        let mut bucket = Bucket::new(600, now);
        bucket.take(500.0, now);
        bucket.take(-450.0, now);
        assert_eq!(bucket.free_at(550.0, now), None);
        bucket.take(1150.0, now);
        assert_eq!(
            bucket.free_at(1.0, now),
            Some(now + 60 * SECOND + SECOND / 10)
        );
        bucket.take(-1e9, now);
        assert!(
            (bucket.left(now) - 600.0).abs() < 1e-6,
            "never more than full"
        );
    }

    #[test]
    fn an_absurd_count_is_waited_for_minutes_and_not_for_ever() {
        let now = Instant::now();
        let mut bucket = Bucket::new(600, now);
        for _ in 0..3 {
            bucket.take(500.0, now);
            bucket.correct(500.0, 1e19, now);
        }
        assert_eq!(bucket.free_at(600.0, now), Some(now + 11 * 60 * SECOND));
        // An estimate that is too large is given back to the last token.
        let mut bucket = Bucket::new(600, now);
        bucket.take(100_000.0, now);
        bucket.correct(100_000.0, 50.0, now);
        assert!((bucket.left(now) - 550.0).abs() < 1e-6);
        // So is another's, which does not hide what the first one cost.
        bucket.take(500.0, now);
        bucket.take(500.0, now);
        bucket.correct(500.0, 1e19, now);
        bucket.correct(500.0, 0.0, now);
        assert!((bucket.left(now) + 5500.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_larger_than_the_bucket_needs_a_full_one() {
        let now = Instant::now();
        let mut bucket = Bucket::new(100, now);
        assert_eq!(bucket.free_at(1000.0, now), None);
        bucket.take(1.0, now);
        assert!(bucket.free_at(1000.0, now).is_some());
        let full = bucket.free_at(1000.0, now).unwrap();
        assert_eq!(bucket.free_at(1000.0, full), None);
        bucket.take(1000.0, full);
        assert!(bucket.left(full) < -899.0, "the rest is debt");
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_and_one_minutes_worth(
            per_minute in 1..10_000u32,
            steps in prop::collection::vec((0..5_000u64, 1..2_000u32), 1..200),
        ) {
            let begun = Instant::now();
            let mut now = begun;
            let mut bucket = Bucket::new(per_minute, now);
            let mut taken = 0.0;
            for (millis, cost) in steps {
                now += Duration::from_millis(millis);
                let cost = f64::from(cost.min(per_minute));
                match bucket.free_at(cost, now) {
                    None => {
                        bucket.take(cost, now);
                        taken += cost;
                    }
                    Some(at) => {
                        prop_assert!(at > now);
                        prop_assert_eq!(bucket.free_at(cost, at), None, "it is there when it was promised");
                    }
                }
                let rate = f64::from(per_minute);
                let allowed = rate + rate / 60.0 * (now - begun).as_secs_f64();
                prop_assert!(taken <= allowed + 1e-3, "{} of {}", taken, allowed);
            }
        }
    }
}
