//! Which of a provider's keys is used next. No clock: `now` is passed in.
//!
//! Providers limit a key for each model by itself, so too many requests for one model say nothing about another;
//! a key that is not accepted, or without credit, is of no use for any.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::LONGEST_ASKED;
use super::rate::Busy;
use crate::error::ErrorKind;

/// The first rest after too many requests, where the provider does not say how long; doubled each time in a row.
const RATE_LIMITED: Duration = Duration::from_secs(1);
const RATE_LIMITED_MOST: Duration = Duration::from_secs(60);
/// The first rest of a key that is not accepted; doubled each time in a row.
const REFUSED: Duration = Duration::from_secs(300);
/// Models whose rests are kept for one key; the one that ends first makes room.
const MODELS: usize = 64;

#[derive(Debug)]
pub(super) struct Keys {
    keys: Vec<Key>,
    next: usize,
}

#[derive(Debug, Default)]
struct Key {
    all: Option<Rest>,
    models: Vec<(Box<str>, Rest)>,
}

/// Until when a key is left alone, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) until: Instant,
    pub(super) why: ErrorKind,
    /// How often in a row.
    times: u32,
}

/// Why none of the keys may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// Each was refused; this is the rest that ends first.
    Resting(Rest),
    /// The first of them is free when this limit has room.
    Busy(Busy),
}

impl NoKey {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Resting(rest) => Some(rest.until),
            Self::Busy(busy) => busy.until,
        }
    }
}

impl Keys {
    pub(super) fn new(count: usize) -> Self {
        Self {
            keys: (0..count.max(1)).map(|_| Key::default()).collect(),
            next: 0,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    /// The next key in turn that may be used for `model`, or what ends first of all that keeps them from it. `busy` tells
    /// of the limits of a key.
    pub(super) fn pick(
        &mut self,
        model: &str,
        now: Instant,
        busy: impl Fn(usize) -> Option<Busy>,
    ) -> Result<usize, NoKey> {
        let mut first: Option<NoKey> = None;
        for step in 0..self.keys.len() {
            let at = (self.next + step) % self.keys.len();
            let rest = self.keys[at].rest(model, now).map(NoKey::Resting);
            match rest.or_else(|| busy(at).map(NoKey::Busy)) {
                None => {
                    self.next = at + 1;
                    return Ok(at);
                }
                Some(why) if first.is_none_or(|first| why.until() < first.until()) => {
                    first = Some(why);
                }
                Some(_) => {}
            }
        }
        // There is at least one key, and none may be used.
        Err(first.unwrap_or(NoKey::Resting(Rest {
            until: now,
            why: ErrorKind::Authentication,
            times: 0,
        })))
    }

    /// When the first key may be used for `model`.
    pub(super) fn free_at(&self, model: &str, now: Instant) -> Instant {
        let ends = self
            .keys
            .iter()
            .map(|key| key.rest(model, now).map_or(now, |rest| rest.until));
        ends.min().unwrap_or(now)
    }

    /// How many keys rest from everything or something, and when the first of them may be used again.
    pub(super) fn resting(&self, now: Instant) -> (usize, Option<Instant>) {
        let ends = self.keys.iter().filter_map(|key| {
            let models = key.models.iter().map(|(_, rest)| *rest);
            let rests = models.chain(key.all).filter(|rest| now < rest.until);
            rests.map(|rest| rest.until).min()
        });
        let ends: Vec<Instant> = ends.collect();
        (ends.len(), ends.iter().min().copied())
    }

    /// The key worked.
    pub(super) fn well(&mut self, at: usize, model: &str) {
        let key = &mut self.keys[at];
        key.all = None;
        key.models.retain(|(known, _)| **known != *model);
    }

    /// The provider refused the key: it rests. A provider's only key does so only after too many requests, since
    /// otherwise nothing is gained by not asking.
    pub(super) fn refused(
        &mut self,
        at: usize,
        model: &str,
        now: Instant,
        why: ErrorKind,
        asked: Option<Duration>,
    ) {
        let only = self.keys.len() == 1;
        let key = &mut self.keys[at];
        let (first, most) = match why {
            ErrorKind::RateLimited => (RATE_LIMITED, RATE_LIMITED_MOST),
            _ if only => return,
            _ => (REFUSED, LONGEST_ASKED),
        };
        let of_model = matches!(why, ErrorKind::RateLimited | ErrorKind::Permission);
        let before = if of_model {
            key.of_model(model)
        } else {
            key.all
        };
        let times = match before {
            // Those that were under way together are told together: that is one time.
            Some(rest) if now < rest.until => rest.times,
            Some(rest) => rest.times.saturating_add(1),
            None => 0,
        };
        let own = first.saturating_mul(1 << times.min(16)).min(most);
        let until = now + asked.map_or(own, |asked| asked.min(LONGEST_ASKED));
        let until = before.map_or(until, |rest| until.max(rest.until));
        let rest = Rest { until, why, times };
        if of_model {
            key.rest_from(model, rest);
        } else {
            key.all = Some(rest);
        }
    }
}

impl Key {
    /// What keeps it from being used for `model`.
    fn rest(&self, model: &str, now: Instant) -> Option<Rest> {
        let rests = self.of_model(model).into_iter().chain(self.all);
        let rests = rests.filter(|rest| now < rest.until);
        rests.max_by_key(|rest| rest.until)
    }

    fn of_model(&self, model: &str) -> Option<Rest> {
        let mut models = self.models.iter();
        models
            .find(|(known, _)| **known == *model)
            .map(|(_, rest)| *rest)
    }

    fn rest_from(&mut self, model: &str, rest: Rest) {
        self.models.retain(|(known, _)| **known != *model);
        if self.models.len() == MODELS {
            let ends = self.models.iter().enumerate();
            if let Some((first, _)) = ends.min_by_key(|(_, (_, rest))| rest.until) {
                self.models.swap_remove(first);
            }
        }
        self.models.push((model.into(), rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::limits::{Limit, Measure, Scope};

    const SECOND: Duration = Duration::from_secs(1);

    fn pick(keys: &mut Keys, model: &str, now: Instant) -> Result<usize, Rest> {
        keys.pick(model, now, |_| None).map_err(|none| match none {
            NoKey::Resting(rest) => rest,
            NoKey::Busy(busy) => panic!("{busy:?}"),
        })
    }

    #[test]
    fn a_key_without_room_is_passed_over() {
        let now = Instant::now();
        let mut keys = Keys::new(2);
        let busy = |until: Instant| Busy {
            limit: Limit {
                scope: Scope::Key,
                measure: Measure::Requests,
            },
            until: Some(until),
        };
        let first = |key| (key == 0).then(|| busy(now + SECOND));
        let picked: Vec<_> = (0..2).map(|_| keys.pick("m", now, first)).collect();
        assert_eq!(picked, [Ok(1), Ok(1)]);
        keys.refused(1, "m", now, ErrorKind::RateLimited, Some(2 * SECOND));
        assert_eq!(
            keys.pick("m", now, first),
            Err(NoKey::Busy(busy(now + SECOND)))
        );
        let later = |_| Some(busy(now + 3 * SECOND));
        let resting = keys.pick("m", now, later).unwrap_err();
        assert!(matches!(resting, NoKey::Resting(rest) if rest.until == now + 2 * SECOND));
    }

    #[test]
    fn keys_take_turns_and_a_resting_one_is_passed_over() {
        let now = Instant::now();
        let mut keys = Keys::new(3);
        let picked: Vec<_> = (0..4).map(|_| pick(&mut keys, "m", now).unwrap()).collect();
        assert_eq!(picked, [0, 1, 2, 0]);
        keys.refused(1, "m", now, ErrorKind::RateLimited, Some(5 * SECOND));
        assert_eq!(pick(&mut keys, "m", now), Ok(2));
        assert_eq!(pick(&mut keys, "m", now), Ok(0));
        assert_eq!(
            pick(&mut keys, "other", now),
            Ok(1),
            "the limit is the model's"
        );
        assert_eq!(keys.resting(now), (1, Some(now + 5 * SECOND)));
        keys.refused(1, "m", now, ErrorKind::Authentication, None);
        assert_eq!(pick(&mut keys, "other", now + 6 * SECOND), Ok(2));
        assert_eq!(pick(&mut keys, "other", now + 6 * SECOND), Ok(0));
        assert_eq!(
            pick(&mut keys, "other", now + 6 * SECOND),
            Ok(2),
            "a long rest"
        );
    }

    #[test]
    fn the_first_end_is_told_where_all_rest() {
        let now = Instant::now();
        let mut keys = Keys::new(2);
        keys.refused(0, "m", now, ErrorKind::RateLimited, Some(9 * SECOND));
        keys.refused(1, "m", now, ErrorKind::RateLimited, Some(4 * SECOND));
        let rest = pick(&mut keys, "m", now).unwrap_err();
        assert_eq!(
            (rest.until, rest.why),
            (now + 4 * SECOND, ErrorKind::RateLimited)
        );
        assert_eq!(pick(&mut keys, "m", now + 4 * SECOND), Ok(1));
    }

    #[test]
    fn rests_grow_with_each_time_in_a_row_and_never_shrink() {
        let mut now = Instant::now();
        let mut keys = Keys::new(1);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            // A crowd that was told together counts once.
            for _ in 0..10 {
                keys.refused(0, "m", now, ErrorKind::RateLimited, None);
            }
            assert_eq!(
                pick(&mut keys, "m", now).unwrap_err().until,
                now + seconds * SECOND
            );
            now += seconds * SECOND;
        }
        keys.refused(0, "m", now, ErrorKind::RateLimited, Some(100 * SECOND));
        keys.refused(0, "m", now, ErrorKind::RateLimited, Some(SECOND));
        assert_eq!(
            pick(&mut keys, "m", now).unwrap_err().until,
            now + 100 * SECOND
        );
        keys.well(0, "m");
        keys.refused(0, "m", now, ErrorKind::RateLimited, None);
        assert_eq!(pick(&mut keys, "m", now).unwrap_err().until, now + SECOND);
    }

    #[test]
    fn an_only_key_is_asked_again_though_it_was_not_accepted() {
        let now = Instant::now();
        let mut keys = Keys::new(1);
        keys.refused(0, "m", now, ErrorKind::Authentication, None);
        assert_eq!(pick(&mut keys, "m", now), Ok(0));
    }

    #[test]
    fn names_of_models_take_bounded_room() {
        let now = Instant::now();
        let mut keys = Keys::new(1);
        for model in 0..1000 {
            keys.refused(0, &model.to_string(), now, ErrorKind::RateLimited, None);
        }
        assert_eq!(keys.keys[0].models.len(), MODELS);
    }
}
