//! A provider's own limits for one key and one model, as its headers tell them. No clock: `now` is passed in.
//!
//! What a header says is true of the moment in which the provider wrote it. From there on we count for ourselves: what was
//! sent meanwhile may not be in it yet, so it is taken off; the next header puts that right. When a window's reset has come it
//! is forgotten, until a header tells of it again.

use std::time::Duration;

use tokio::time::Instant;

use super::{Busy, Cost, float};
use crate::pool::breaker::LONGEST_ASKED;
use crate::pool::limits::{Limit, LimitStatus, Measure, Scope};
use crate::rate_limit::{Counted, RateWindow};

/// Whether a window fills bit by bit or all at once is not told. One that is full again within so long is waited for: that
/// loses nothing in the mean. One that takes longer, a day's window, is taken to fill bit by bit, or a single spent request
/// would cost a day; where that was wrong, the provider says so with a 429.
const WAITED_FOR: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(in crate::pool) struct Learned {
    windows: Vec<Window>,
    /// What was sent since these are kept, and may not be in any header yet.
    unheard: Unheard,
}

#[derive(Debug, Default)]
struct Unheard {
    requests: u64,
    cost: Cost,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    measure: Measure,
    limit: Option<u64>,
    left: f64,
    /// What was left when the provider said so.
    told: f64,
    heard: Instant,
    reset: Instant,
}

impl Learned {
    /// What keeps a request of this cost waiting for longest.
    pub(in crate::pool) fn busy(&self, cost: Cost, now: Instant) -> Option<Busy> {
        let waits = self.windows.iter().filter_map(|window| {
            let until = window.free_at(cost)?;
            (now < until).then_some((until, window.measure))
        });
        let longest = waits.max_by_key(|(until, _)| *until);
        longest.map(|(until, measure)| Busy {
            limit: Limit {
                scope: Scope::Key,
                measure,
            },
            until: Some(until),
        })
    }

    /// A request is sent.
    pub(in crate::pool) fn take(&mut self, cost: Cost) {
        self.unheard.requests += 1;
        self.unheard.cost.input += cost.input;
        self.unheard.cost.output += cost.output;
        for window in &mut self.windows {
            window.left -= cost.of_measure(window.measure);
        }
    }

    /// It was not sent after all.
    pub(in crate::pool) fn undo(&mut self, cost: Cost) {
        self.answered(cost);
        for window in &mut self.windows {
            window.left += cost.of_measure(window.measure);
        }
    }

    /// Its answer came: the provider knows of it.
    pub(in crate::pool) fn answered(&mut self, cost: Cost) {
        let Unheard {
            requests,
            cost: all,
        } = &mut self.unheard;
        *requests = requests.saturating_sub(1);
        all.input = all.input.saturating_sub(cost.input);
        all.output = all.output.saturating_sub(cost.output);
    }

    /// What the headers of an answer tell.
    pub(in crate::pool) fn heard(&mut self, told: &[RateWindow], now: Instant) {
        self.windows.retain(|window| now < window.reset);
        for told in told {
            let measure = match told.counts {
                Counted::Requests => Measure::Requests,
                Counted::Tokens => Measure::Tokens,
                Counted::InputTokens => Measure::InputTokens,
                Counted::OutputTokens => Measure::OutputTokens,
            };
            let reset = now + told.reset.min(24 * LONGEST_ASKED);
            // One limit may have windows of a minute and of a day; their sizes tell them apart.
            let same = |window: &Window| window.measure == measure && window.limit == told.limit;
            self.windows.retain(|window| !same(window));
            if reset <= now {
                continue;
            }
            let unheard = match measure {
                Measure::Requests => float(self.unheard.requests),
                measure => self.unheard.cost.of_measure(measure),
            };
            self.windows.push(Window {
                measure,
                limit: told.limit,
                left: float(told.remaining) - unheard,
                told: float(told.remaining),
                heard: now,
                reset,
            });
        }
    }

    /// Whether nothing would be lost with it.
    pub(in crate::pool) fn is_over(&self, now: Instant) -> bool {
        self.unheard.requests == 0 && self.windows.iter().all(|window| window.reset <= now)
    }

    /// What is left.
    pub(in crate::pool) fn status(&self, now: Instant) -> impl Iterator<Item = LimitStatus> {
        let windows = self.windows.iter().filter(move |window| now < window.reset);
        windows.map(move |window| LimitStatus {
            limit: Limit {
                scope: Scope::Key,
                measure: window.measure,
            },
            model: None,
            key: None,
            most: window.limit,
            left: window.left.max(0.0) as u64,
            reset: Some(window.reset - now),
            learned: true,
        })
    }
}

impl Window {
    /// When there is room for `cost`, if there was none.
    fn free_at(&self, cost: Cost) -> Option<Instant> {
        let cost = cost.of_measure(self.measure);
        // What is larger than the limit is the provider's to refuse.
        let limit = self.limit.map(float);
        let missing = cost.min(limit.unwrap_or(f64::MAX)) - self.left;
        if missing <= 0.0 {
            return None;
        }
        let span = self.reset - self.heard;
        let bit_by_bit = limit.filter(|_| span > WAITED_FOR).map(|limit| {
            // The reset is when all of what was used then is there again.
            let used = (limit - self.told).max(1.0);
            span.mul_f64((missing / used).clamp(0.0, 1.0))
        });
        Some(self.heard + bit_by_bit.unwrap_or(span).min(LONGEST_ASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn window(counts: Counted, limit: Option<u64>, remaining: u64, reset: Duration) -> RateWindow {
        RateWindow {
            counts,
            limit,
            remaining,
            reset,
        }
    }

    fn cost(input: u64, output: u64) -> Cost {
        Cost { input, output }
    }

    #[test]
    fn a_key_with_nothing_left_rests_until_its_reset() {
        let now = Instant::now();
        let mut learned = Learned::default();
        let none = window(Counted::Requests, Some(60), 0, 20 * SECOND);
        let some = window(Counted::Tokens, Some(10_000), 900, 30 * SECOND);
        learned.heard(&[none, some], now);
        let busy = learned.busy(cost(1, 1), now).unwrap();
        assert_eq!(busy.limit.to_string(), "key_requests");
        assert_eq!(busy.until, Some(now + 20 * SECOND));
        // With the tokens that are left the small one goes first.
        let later = now + 20 * SECOND;
        assert_eq!(learned.busy(cost(800, 100), later), None);
        let large = learned.busy(cost(800, 101), later).unwrap();
        assert_eq!(large.limit.measure, Measure::Tokens);
        assert_eq!(large.until, Some(now + 30 * SECOND));
        // Larger than the limit: when the window is whole again.
        assert_eq!(learned.busy(cost(0, 99_999), now + 30 * SECOND), None);
        assert!(learned.is_over(now + 30 * SECOND));
    }

    #[test]
    fn what_is_under_way_is_counted_until_a_header_knows_of_it() {
        let now = Instant::now();
        let mut learned = Learned::default();
        let told = |remaining| [window(Counted::Requests, Some(60), remaining, 60 * SECOND)];
        learned.heard(&told(3), now);
        (0..3).for_each(|_| learned.take(cost(1, 1)));
        assert!(learned.busy(cost(1, 1), now).is_some());
        // The answer to the first was written before the others came.
        learned.answered(cost(1, 1));
        learned.heard(&told(2), now);
        assert!(learned.busy(cost(1, 1), now).is_some());
        learned.answered(cost(1, 1));
        learned.heard(&told(2), now);
        assert_eq!(learned.busy(cost(1, 1), now), None);
        learned.take(cost(1, 1));
        learned.undo(cost(1, 1));
        assert_eq!(learned.busy(cost(1, 1), now), None);
    }

    #[test]
    fn a_days_window_is_not_waited_for_to_its_end() {
        let now = Instant::now();
        let mut learned = Learned::default();
        let day = window(Counted::Requests, Some(1440), 0, 86_400 * SECOND);
        learned.heard(&[day], now);
        let busy = learned.busy(cost(1, 1), now).unwrap();
        assert_eq!(busy.until, Some(now + 60 * SECOND));
        let unknown = window(Counted::Requests, None, 0, 86_400 * SECOND);
        learned.heard(&[unknown], now);
        let busy = learned.busy(cost(1, 1), now).unwrap();
        assert_eq!(
            busy.until,
            Some(now + LONGEST_ASKED),
            "but no longer than an hour"
        );
    }

    #[test]
    fn the_newest_word_counts() {
        let now = Instant::now();
        let mut learned = Learned::default();
        let told = |remaining| {
            [window(
                Counted::OutputTokens,
                Some(60),
                remaining,
                60 * SECOND,
            )]
        };
        learned.heard(&told(0), now);
        assert!(learned.busy(cost(0, 1), now).is_some());
        learned.heard(&told(50), now);
        assert_eq!(learned.busy(cost(1000, 50), now), None);
        assert_eq!(learned.status(now).next().unwrap().left, 50);
        // A reset that has come already is no window.
        learned.heard(
            &[window(Counted::OutputTokens, Some(60), 0, Duration::ZERO)],
            now,
        );
        assert_eq!(learned.busy(cost(0, 1), now), None);
    }
}
