//! The limits of one provider, and what is left of them: its requests under way, and what was used in the last minute. No
//! clock: `now` is passed in.
//!
//! A call that is let through takes a [`Charge`], and hands it back at its end: [`Gate::close`], or [`Gate::undo`] if it was
//! never sent.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Limit, LimitStatus, Limits, Measure, ModelLimits, Scope};
use super::rate::{Busy, Cost, Learned, Meter};
use crate::rate_limit::RateWindow;

/// Models whose limits are learned for one key; those that are over make room.
const MODELS: usize = 64;
/// How much a new call moves the mean time of calls.
const NEWEST: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    in_flight: u32,
    meter: Meter,
    models: HashMap<Box<str>, ModelGate>,
    keys: Vec<KeyGate>,
    /// The mean time that a call takes to its end, in seconds.
    takes: Option<f64>,
}

#[derive(Debug)]
struct ModelGate {
    limits: ModelLimits,
    in_flight: u32,
    meter: Meter,
}

#[derive(Debug)]
struct KeyGate {
    meter: Meter,
    learned: Vec<(Box<str>, Learned)>,
}

/// What a call took.
#[derive(Debug)]
#[must_use = "a permit that is never handed back is lost"]
pub(super) struct Charge {
    key: usize,
    cost: Cost,
    begun: Instant,
    /// The limits of the provider's that are learned count it, and no header has told of it yet.
    unheard: bool,
}

impl Charge {
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }
}

impl Gate {
    pub(super) fn new(limits: Limits, keys: usize, now: Instant) -> Self {
        let models = limits.models.iter().map(|(name, limits)| {
            let gate = ModelGate {
                limits: *limits,
                in_flight: 0,
                meter: Meter::new(Scope::Model, limits.rate, now),
            };
            (name.clone(), gate)
        });
        let key = |_| KeyGate {
            meter: Meter::new(Scope::Key, limits.key_rate, now),
            learned: Vec::new(),
        };
        Self {
            in_flight: 0,
            meter: Meter::new(Scope::Provider, limits.rate, now),
            models: models.collect(),
            keys: (0..keys.max(1)).map(key).collect(),
            takes: None,
            limits,
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What of the provider or the model keeps a call waiting; what is not known to end comes before what does.
    pub(super) fn busy(&self, model: &str, cost: Cost, now: Instant) -> Option<Busy> {
        let full = |scope, in_flight: u32, most: Option<u32>| {
            most.is_some_and(|most| in_flight >= most).then_some(Busy {
                limit: Limit {
                    scope,
                    measure: Measure::InFlight,
                },
                until: None,
            })
        };
        full(Scope::Provider, self.in_flight, self.limits.max_in_flight)
            .or_else(|| self.meter.busy(cost, now))
            .or_else(|| {
                let model = self.models.get(model)?;
                full(Scope::Model, model.in_flight, model.limits.max_in_flight)
                    .or_else(|| model.meter.busy(cost, now))
            })
    }

    /// What keeps a call with this key waiting.
    pub(super) fn key_busy(
        &self,
        key: usize,
        model: &str,
        cost: Cost,
        now: Instant,
    ) -> Option<Busy> {
        let key = &self.keys[key];
        let learned = key.learned.iter().find(|(known, _)| **known == *model);
        let learned = learned.and_then(|(_, learned)| learned.busy(cost, now));
        let own = key.meter.busy(cost, now);
        [own, learned]
            .into_iter()
            .flatten()
            .max_by_key(|busy| busy.until)
    }

    /// Lets a call through.
    pub(super) fn take(&mut self, key: usize, model: &str, cost: Cost, now: Instant) -> Charge {
        self.in_flight += 1;
        self.meter.take(cost, now);
        if let Some(model) = self.models.get_mut(model) {
            model.in_flight += 1;
            model.meter.take(cost, now);
        }
        let of_key = &mut self.keys[key];
        of_key.meter.take(cost, now);
        let learned = of_key.learned(model);
        let unheard = learned.is_some();
        if let Some(learned) = learned {
            learned.take(cost);
        }
        Charge {
            key,
            cost,
            begun: now,
            unheard,
        }
    }

    /// The call was never sent: as if it had not been.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a charge is handed back once"
    )]
    pub(super) fn undo(&mut self, charge: Charge, model: &str, now: Instant) {
        let Charge {
            key, cost, unheard, ..
        } = charge;
        self.leave(model);
        self.meter.undo(cost, now);
        if let Some(model) = self.models.get_mut(model) {
            model.meter.undo(cost, now);
        }
        let key = &mut self.keys[key];
        key.meter.undo(cost, now);
        if let (true, Some(learned)) = (unheard, key.learned(model)) {
            learned.undo(cost);
        }
    }

    /// The head of the call's answer came, and told this of the provider's own limits.
    pub(super) fn heard(
        &mut self,
        charge: &mut Charge,
        model: &str,
        told: &[RateWindow],
        now: Instant,
    ) {
        let key = &mut self.keys[charge.key];
        if let (true, Some(learned)) = (charge.unheard, key.learned(model)) {
            learned.answered(charge.cost);
        }
        charge.unheard = false;
        if told.is_empty() || !self.limits.learn {
            return;
        }
        if key.learned(model).is_none() {
            if key.learned.len() >= MODELS {
                key.learned.retain(|(_, learned)| !learned.is_over(now));
            }
            if key.learned.len() >= MODELS {
                return;
            }
            key.learned.push((model.into(), Learned::default()));
        }
        if let Some(learned) = key.learned(model) {
            learned.heard(told, now);
        }
    }

    /// The call is over, and cost `actual`. A whole answer tells how long calls take.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a charge is handed back once"
    )]
    pub(super) fn close(
        &mut self,
        charge: Charge,
        model: &str,
        actual: Cost,
        whole: bool,
        now: Instant,
    ) {
        let Charge {
            key,
            cost: taken,
            begun,
            unheard,
        } = charge;
        self.leave(model);
        self.meter.correct(taken, actual, now);
        if let Some(model) = self.models.get_mut(model) {
            model.meter.correct(taken, actual, now);
        }
        let key = &mut self.keys[key];
        key.meter.correct(taken, actual, now);
        if let (true, Some(learned)) = (unheard, key.learned(model)) {
            learned.answered(taken);
        }
        if whole {
            let took = now.saturating_duration_since(begun).as_secs_f64();
            let mean = self.takes.unwrap_or(took);
            self.takes = Some(mean + NEWEST * (took - mean));
        }
    }

    /// How long one will probably wait that has so many before it, where it is requests under way that are too many.
    pub(super) fn expected_wait(&self, before: usize, model: &str) -> Option<Duration> {
        let of_model = self.models.get(model);
        let of_model = of_model.and_then(|model| model.limits.max_in_flight);
        let lanes = [self.limits.max_in_flight, of_model];
        let lanes = lanes.into_iter().flatten().min()?;
        let ahead = u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1);
        let seconds = self.takes? * f64::from(ahead) / f64::from(lanes.max(1));
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// What is left of every limit.
    pub(super) fn status(&self, now: Instant) -> Vec<LimitStatus> {
        let in_flight = |scope, in_flight: u32, most: Option<u32>| {
            most.map(|most| LimitStatus {
                limit: Limit {
                    scope,
                    measure: Measure::InFlight,
                },
                model: None,
                key: None,
                most: Some(most.into()),
                left: most.saturating_sub(in_flight).into(),
                reset: None,
                learned: false,
            })
        };
        let own = in_flight(Scope::Provider, self.in_flight, self.limits.max_in_flight);
        let mut all: Vec<LimitStatus> = own.into_iter().chain(self.meter.status(now)).collect();
        // In the order of the configuration.
        for (name, limits) in &self.limits.models {
            let Some(gate) = self.models.get(name) else {
                continue;
            };
            let own = in_flight(Scope::Model, gate.in_flight, limits.max_in_flight);
            let of_model = own.into_iter().chain(gate.meter.status(now));
            all.extend(of_model.map(|status| LimitStatus {
                model: Some(name.clone()),
                ..status
            }));
        }
        for (at, key) in self.keys.iter().enumerate() {
            let number = (self.keys.len() > 1).then_some(at + 1);
            let learned = key.learned.iter().flat_map(|(model, learned)| {
                learned.status(now).map(|status| LimitStatus {
                    model: Some(model.clone()),
                    ..status
                })
            });
            let of_key = key.meter.status(now).chain(learned);
            all.extend(of_key.map(|status| LimitStatus {
                key: number,
                ..status
            }));
        }
        all
    }

    fn leave(&mut self, model: &str) {
        self.in_flight -= 1;
        if let Some(model) = self.models.get_mut(model) {
            model.in_flight -= 1;
        }
    }
}

impl KeyGate {
    fn learned(&mut self, model: &str) -> Option<&mut Learned> {
        let mut known = self.learned.iter_mut();
        known
            .find(|(known, _)| **known == *model)
            .map(|(_, learned)| learned)
    }
}
