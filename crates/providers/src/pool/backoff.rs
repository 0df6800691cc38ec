//! When to try again, and whether at all.
//!
//! Our own few lines rather than a crate such as `backon`: that drives a whole loop by itself, while here a Retry-After,
//! the deadline and the budget have their say between two attempts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How requests are tried again that failed everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryConfig {
    /// How often a target is asked for one request, the first time included. 3 by default.
    pub attempts: u32,
    /// The longest wait before the first retry; each further one doubles it. 500 ms by default.
    pub base: Duration,
    /// The longest wait before any retry. If a provider asks for more, the request fails instead. 20 s by default.
    pub max: Duration,
    /// How many retries each request allows in the long run, from 0 to 1. 0.2 by default.
    pub budget: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Duration::from_millis(500),
            max: Duration::from_secs(20),
            budget: 0.2,
        }
    }
}

impl RetryConfig {
    /// How long to wait before retry number `retry`, from 0: anything up to a bound that doubles ("full jitter"), so
    /// that those who failed together do not come back together. `chance` is from 0 to 1.
    pub(super) fn wait(&self, retry: u32, chance: f64) -> Duration {
        let bound = self.base.saturating_mul(1 << retry.min(16)).min(self.max);
        bound.mul_f64(chance.clamp(0.0, 1.0))
    }
}

/// A number from 0 to 1, below 1.
pub(super) fn chance() -> f64 {
    // Each `RandomState` has keys of its own, from the system's randomness.
    let bits = RandomState::new().build_hasher().finish() >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let chance = bits as f64 / (1u64 << 53) as f64;
    chance
}

/// Retries, or hedges, that are left: requests earn a part of one each, so that in an outage they stay that part of the
/// load.
#[derive(Debug)]
pub(super) struct RetryBudget {
    each: f64,
    left: f64,
}

impl RetryBudget {
    /// What a quiet daemon may spend at once, and the most that is saved up.
    const MOST: f64 = 10.0;

    pub(super) fn new(each: f64) -> Self {
        Self {
            each,
            left: if each > 0.0 { Self::MOST } else { 0.0 },
        }
    }

    /// A request came.
    pub(super) fn earn(&mut self) {
        self.left = (self.left + self.each).min(Self::MOST);
    }

    pub(super) fn has_some(&self) -> bool {
        self.left >= 1.0
    }

    pub(super) fn spend(&mut self) {
        self.left -= 1.0;
    }

    /// What was spent was not needed.
    pub(super) fn give_back(&mut self) {
        self.left = (self.left + 1.0).min(Self::MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_chance_decides_below_it() {
        let config = RetryConfig {
            base: Duration::from_secs(1),
            max: Duration::from_secs(5),
            ..RetryConfig::default()
        };
        let waits = [0, 1, 2, 3, 40].map(|retry| config.wait(retry, 1.0).as_secs());
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        assert_eq!(config.wait(1, 0.25), Duration::from_millis(500));
        assert_eq!(config.wait(9, 0.0), Duration::ZERO);
        let chances: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance < 0.5));
        assert!(chances.iter().any(|chance| *chance >= 0.5));
    }

    #[test]
    fn in_an_outage_retries_stay_a_part_of_the_requests() {
        let mut budget = RetryBudget::new(0.2);
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            // Everybody would retry twice.
            for _ in 0..2 {
                if budget.has_some() {
                    budget.spend();
                    retries += 1;
                }
            }
        }
        assert!((200..=210).contains(&retries), "{retries}");
        let mut none = RetryBudget::new(0.0);
        none.earn();
        assert!(!none.has_some());
    }
}
