//! What each client may ask for. Clients are told apart by their user: an instance is as new as its process wants to be.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{Busy, Cost, Meter};
use crate::pool::limits::{Rate, Scope};

/// Clients whose rates are kept at once. Who has a full measure is forgotten first.
const MOST: usize = 1024;

/// The rates of all clients.
#[derive(Debug)]
pub(in crate::pool) struct Clients {
    usual: Rate,
    special: Vec<(u32, Rate)>,
    meters: Mutex<HashMap<u32, Meter>>,
}

impl Clients {
    pub(in crate::pool) fn new(usual: Rate, special: Vec<(u32, Rate)>) -> Arc<Self> {
        Arc::new(Self {
            usual,
            special,
            meters: Mutex::default(),
        })
    }

    /// Takes an estimate of what a request costs, to be corrected by what its calls add to the bill. `None`: this client
    /// has no limits.
    pub(in crate::pool) fn charge(
        self: &Arc<Self>,
        uid: u32,
        cost: Cost,
        now: Instant,
    ) -> Result<Option<Arc<Bill>>, Busy> {
        let own = self.special.iter().find(|(known, _)| *known == uid);
        let rate = own.map_or(self.usual, |(_, rate)| *rate);
        if rate == Rate::default() {
            return Ok(None);
        }
        let mut meters = self.lock();
        if !meters.contains_key(&uid) && meters.len() >= MOST {
            meters.retain(|_, meter| !meter.is_full(now));
        }
        let meter = meters
            .entry(uid)
            .or_insert_with(|| Meter::new(Scope::Client, rate, now));
        if let Some(busy) = meter.busy(cost, now) {
            return Err(busy);
        }
        meter.take(cost, now);
        Ok(Some(Arc::new(Bill {
            clients: Arc::clone(self),
            uid,
            estimate: cost,
            input: AtomicU64::new(0),
            output: AtomicU64::new(0),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Meter>> {
        // Nothing in here panics halfway.
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client's request has cost so far, by all providers that were asked for it. When the last of them is done, the
/// client's measure is put right.
#[derive(Debug)]
pub(in crate::pool) struct Bill {
    clients: Arc<Clients>,
    uid: u32,
    estimate: Cost,
    input: AtomicU64,
    output: AtomicU64,
}

impl Bill {
    pub(in crate::pool) fn add(&self, cost: Cost) {
        // The numbers are a provider's: their sum may not fit.
        let add = |to: &AtomicU64, tokens: u64| {
            to.update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
                sum.saturating_add(tokens)
            });
        };
        add(&self.input, cost.input);
        add(&self.output, cost.output);
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        let actual = Cost {
            input: *self.input.get_mut(),
            output: *self.output.get_mut(),
        };
        let now = Instant::now();
        if let Some(meter) = self.clients.lock().get_mut(&self.uid) {
            meter.correct(self.estimate, actual, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_are_limited_each_by_itself_and_by_what_they_really_used() {
        let now = Instant::now();
        let usual = Rate {
            requests_per_minute: None,
            tokens_per_minute: Some(1000),
        };
        let clients = Clients::new(usual, vec![(7, Rate::default())]);
        let cost = Cost {
            input: 100,
            output: 800,
        };
        let bill = clients.charge(1, cost, now).unwrap().unwrap();
        let busy = clients.charge(1, cost, now).unwrap_err();
        assert_eq!(busy.limit.to_string(), "client_tokens");
        assert!(busy.until.unwrap() > now);
        assert!(clients.charge(2, cost, now).is_ok(), "another client");
        assert!(clients.charge(7, cost, now).unwrap().is_none());
        bill.add(Cost {
            input: 50,
            output: 10,
        });
        let other = Arc::clone(&bill);
        drop(bill);
        assert!(clients.charge(1, cost, now).is_err(), "one is under way");
        drop(other);
        assert!(clients.charge(1, cost, now).is_ok());
    }

    #[test]
    fn absurd_counts_of_one_request_do_not_add_up_to_nothing() {
        let now = Instant::now();
        let usual = Rate {
            requests_per_minute: None,
            tokens_per_minute: Some(1000),
        };
        let clients = Clients::new(usual, Vec::new());
        let input = |input| Cost { input, output: 0 };
        let bill = clients.charge(1, input(100), now).unwrap().unwrap();
        bill.add(input(u64::MAX));
        bill.add(input(1));
        drop(bill);
        let until = clients.charge(1, input(100), now).unwrap_err().until;
        let minute = Duration::from_secs(60);
        assert!((now + 10 * minute..now + 11 * minute).contains(&until.unwrap()));
    }

    #[test]
    fn clients_take_bounded_room() {
        let mut now = Instant::now();
        let usual = Rate {
            requests_per_minute: Some(60),
            tokens_per_minute: None,
        };
        let clients = Clients::new(usual, Vec::new());
        for uid in 0..5000 {
            now += Duration::from_millis(1);
            assert!(clients.charge(uid, Cost::default(), now).is_ok());
        }
        assert!(clients.lock().len() <= 2 * MOST, "{}", clients.lock().len());
    }
}
