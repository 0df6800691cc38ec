//! What was spent: one entry for each answer, and sums of them by day, client, provider and model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::day::Day;
use super::money::NanoUsd;
use crate::event::Usage;

/// So many sums are kept apart by model; clients may name any. About a megabyte.
const APART: usize = 4096;
/// What stands for further models, and beyond twice as many sums for further providers.
const OTHERS: &str = "(others)";

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it ended.
    pub at: SystemTime,
    /// The uid of whoever asked.
    pub client: u32,
    /// The provider.
    pub provider: Arc<str>,
    /// The model that was asked.
    pub model: Arc<str>,
    /// Its tokens. Of an answer from the cache: none.
    pub tokens: Usage,
    /// What it cost; `None`: the model's price is not known.
    pub cost: Option<NanoUsd>,
    /// Whether the tokens were not told but estimated: the answer broke off, or was given up.
    pub estimated: bool,
    /// Whether it came from the cache, or from a request under way that was the same.
    pub cached: bool,
}

/// What a sum is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The day on which the answers ended.
    pub day: Day,
    /// The uid of whoever asked.
    pub client: u32,
    /// The provider.
    pub provider: Arc<str>,
    /// The model.
    pub model: Arc<str>,
}

/// A sum of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many.
    pub requests: u64,
    /// Those of them that came from the cache.
    pub cached: u64,
    /// Those whose price is not known, and not in `cost`.
    pub unpriced: u64,
    /// Those whose tokens were estimated.
    pub estimated: u64,
    /// Their tokens.
    pub tokens: Usage,
    /// What they cost.
    pub cost: NanoUsd,
}

/// Sums by day, client, provider and model.
#[derive(Clone, Debug, Default)]
pub struct Book {
    sums: HashMap<Key, Totals>,
}

impl Entry {
    /// Where it is counted.
    pub fn key(&self) -> Key {
        Key {
            day: Day::of(self.at),
            client: self.client,
            provider: Arc::clone(&self.provider),
            model: Arc::clone(&self.model),
        }
    }
}

impl From<&Entry> for Totals {
    fn from(entry: &Entry) -> Self {
        Self {
            requests: 1,
            cached: entry.cached.into(),
            unpriced: entry.cost.is_none().into(),
            estimated: entry.estimated.into(),
            tokens: entry.tokens,
            cost: entry.cost.unwrap_or_default(),
        }
    }
}

impl Totals {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.requests, other.requests);
        add(&mut self.cached, other.cached);
        add(&mut self.unpriced, other.unpriced);
        add(&mut self.estimated, other.estimated);
        let (tokens, more) = (&mut self.tokens, &other.tokens);
        add(&mut tokens.input_tokens, more.input_tokens);
        add(&mut tokens.output_tokens, more.output_tokens);
        add(&mut tokens.cached_input_tokens, more.cached_input_tokens);
        add(&mut tokens.cache_write_tokens, more.cache_write_tokens);
        add(&mut tokens.reasoning_tokens, more.reasoning_tokens);
        self.cost = self.cost + other.cost;
    }

    /// What is in this sum and not in `other`, which is a part of it.
    pub fn minus(&self, other: &Self) -> Self {
        let (tokens, less) = (&self.tokens, &other.tokens);
        Self {
            requests: self.requests.saturating_sub(other.requests),
            cached: self.cached.saturating_sub(other.cached),
            unpriced: self.unpriced.saturating_sub(other.unpriced),
            estimated: self.estimated.saturating_sub(other.estimated),
            tokens: Usage {
                input_tokens: tokens.input_tokens.saturating_sub(less.input_tokens),
                output_tokens: tokens.output_tokens.saturating_sub(less.output_tokens),
                cached_input_tokens: tokens
                    .cached_input_tokens
                    .saturating_sub(less.cached_input_tokens),
                cache_write_tokens: tokens
                    .cache_write_tokens
                    .saturating_sub(less.cache_write_tokens),
                reasoning_tokens: tokens
                    .reasoning_tokens
                    .saturating_sub(less.reasoning_tokens),
            },
            cost: self.cost.minus(other.cost),
        }
    }
}

impl Book {
    /// Adds a sum. Where there are too many others it goes to one for all further models.
    pub fn add(&mut self, mut key: Key, totals: &Totals) {
        if self.sums.len() >= APART && !self.sums.contains_key(&key) {
            key.model = OTHERS.into();
            if self.sums.len() >= 2 * APART && !self.sums.contains_key(&key) {
                key.provider = OTHERS.into();
            }
        }
        self.sums.entry(key).or_default().add(totals);
    }

    /// All sums, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Totals)> {
        self.sums.iter()
    }

    /// How many sums there are.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Forgets the days before `day`.
    pub(super) fn forget_before(&mut self, day: Day) {
        self.sums.retain(|key, _| key.day >= day);
    }
}

impl IntoIterator for Book {
    type Item = (Key, Totals);
    type IntoIter = std::collections::hash_map::IntoIter<Key, Totals>;

    fn into_iter(self) -> Self::IntoIter {
        self.sums.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_stays_small_and_loses_nothing() {
        let mut book = Book::default();
        let one = Totals {
            requests: 1,
            cost: NanoUsd::new(7),
            ..Totals::default()
        };
        for provider in ["a", "b", "c"] {
            for model in 0..5000 {
                let key = Key {
                    day: Day::new(1),
                    client: 1000,
                    provider: provider.into(),
                    model: format!("m{model}").into(),
                };
                book.add(key, &one);
            }
        }
        assert!(book.len() <= APART + 3, "{}", book.len());
        let mut all = Totals::default();
        for (_, totals) in book.iter() {
            all.add(totals);
        }
        assert_eq!((all.requests, all.cost.get()), (15_000, 105_000));
        book.forget_before(Day::new(2));
        assert!(book.is_empty());
    }
}
