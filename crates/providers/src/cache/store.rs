//! The answers that are kept: bounded by bytes and by age, the one that was not asked for longest goes first. No clock: `now` is
//! passed in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::key::CacheKey;
use super::log::Recording;

/// What an answer takes besides its events, in bytes and about: its places in both maps.
const OVERHEAD: usize = 256;

#[derive(Debug)]
pub(super) struct Store {
    max_bytes: usize,
    max_age: Duration,
    answers: HashMap<CacheKey, Stored>,
    /// The keys by when they were last used.
    order: BTreeMap<u64, CacheKey>,
    uses: u64,
    bytes: usize,
    evicted: u64,
}

#[derive(Debug)]
struct Stored {
    recording: Arc<Recording>,
    since: Instant,
    used: u64,
}

impl Store {
    pub(super) fn new(max_bytes: usize, max_age: Duration) -> Self {
        Self {
            max_bytes,
            max_age,
            answers: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            evicted: 0,
        }
    }

    /// The answer of this key, if there is one that is not too old.
    pub(super) fn get(&mut self, key: &CacheKey, now: Instant) -> Option<Arc<Recording>> {
        let stored = self.answers.get_mut(key)?;
        if now.saturating_duration_since(stored.since) >= self.max_age {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        self.order.remove(&stored.used);
        stored.used = self.uses;
        self.order.insert(stored.used, *key);
        Some(Arc::clone(&stored.recording))
    }

    /// Keeps an answer, unless it is larger than all that may be kept.
    pub(super) fn insert(&mut self, key: CacheKey, recording: Arc<Recording>, now: Instant) {
        self.remove(&key);
        let size = size(&recording);
        if size > self.max_bytes {
            return;
        }
        while self.bytes + size > self.max_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            self.remove(&oldest);
            self.evicted += 1;
        }
        self.uses += 1;
        self.bytes += size;
        self.order.insert(self.uses, key);
        let stored = Stored {
            recording,
            since: now,
            used: self.uses,
        };
        self.answers.insert(key, stored);
    }

    fn remove(&mut self, key: &CacheKey) {
        if let Some(stored) = self.answers.remove(key) {
            self.order.remove(&stored.used);
            self.bytes -= size(&stored.recording);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn size(recording: &Recording) -> usize {
    recording.size() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::log::Log;
    use super::*;
    use crate::event::Event;

    fn recording(text: &str) -> Arc<Recording> {
        let mut log = Log::default();
        log.push(Event::Text(text));
        Arc::new(Recording {
            provider: "p".into(),
            model: "m".into(),
            log,
        })
    }

    #[test]
    fn the_one_not_asked_for_longest_goes_first() {
        let now = Instant::now();
        let key = CacheKey::numbered;
        let one = size(&recording("0123456789"));
        let mut store = Store::new(3 * one, Duration::from_secs(60));
        for number in 0..3 {
            store.insert(key(number), recording("0123456789"), now);
        }
        assert!(store.get(&key(0), now).is_some());
        store.insert(key(3), recording("0123456789"), now);
        let kept = [0, 1, 2, 3].map(|number| store.get(&key(number), now).is_some());
        assert_eq!(kept, [true, false, true, true]);
        store.insert(key(4), recording(&"x".repeat(4 * one)), now);
        assert_eq!((store.len(), store.evicted()), (3, 1), "it would not fit");
    }

    #[test]
    fn an_answer_grows_old() {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        let mut store = Store::new(1 << 20, minute);
        store.insert(CacheKey::numbered(1), recording("a"), now);
        let just = now + minute - Duration::from_nanos(1);
        assert!(store.get(&CacheKey::numbered(1), just).is_some());
        // Being asked for makes no answer younger.
        assert!(store.get(&CacheKey::numbered(1), now + minute).is_none());
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    proptest! {
        /// Whatever is done: the bytes are those of what is there and never too many, and an answer is the last one given for its key.
        #[test]
        fn the_bounds_hold(
            max in 0..6000usize,
            steps in proptest::collection::vec((0..12u8, any::<bool>(), 0..900usize, 0..20u64), 1..200),
        ) {
            let mut now = Instant::now();
            let max_age = Duration::from_secs(60);
            let mut store = Store::new(max, max_age);
            let mut model: HashMap<u8, (usize, Instant)> = HashMap::new();
            for (number, insert, length, passed) in steps {
                now += Duration::from_secs(passed);
                let key = CacheKey::numbered(number);
                if insert {
                    store.insert(key, recording(&"x".repeat(length)), now);
                    model.insert(number, (length, now));
                } else if let Some(found) = store.get(&key, now) {
                    let (length, since) = model[&number];
                    prop_assert!(now - since < max_age);
                    let text = "x".repeat(length);
                    prop_assert_eq!(found.log.get(0), Some(Event::Text(&text)));
                }
                prop_assert!(store.bytes() <= max);
                prop_assert_eq!(store.len(), store.order.len());
                let bytes: usize = store.answers.values().map(|stored| size(&stored.recording)).sum();
                prop_assert_eq!(store.bytes(), bytes);
                for (used, key) in &store.order {
                    prop_assert_eq!(store.answers[key].used, *used);
                }
            }
        }
    }
}
