//! Whatever happens in whatever order: nothing that was taken is lost, nobody waits for nothing, and nothing stays shut.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::error::Phase;
use crate::event::Event;
use crate::local::Local;
use crate::pool::breaker::BreakerConfig;
use crate::pool::limits::{ModelLimits, Priority, Rate};
use crate::pool::rate::Cost;
use crate::profile::Feature;
use crate::rate_limit::{Counted, RateWindow};

const SECOND: Duration = Duration::from_secs(1);
const MODELS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    Admit(usize, u64, bool),
    Wait(usize, u64, Priority, Option<u64>),
    /// Polls one that waits.
    Look(prop::sample::Index),
    /// One that waits gives up.
    Leave(prop::sample::Index),
    Heard(prop::sample::Index, u64, u64),
    Begin(prop::sample::Index),
    Finish(prop::sample::Index),
    Fail(prop::sample::Index, ErrorKind),
    Drop(prop::sample::Index),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let priority = prop_oneof![
        Just(Priority::Interactive),
        Just(Priority::Normal),
        Just(Priority::Bulk)
    ];
    let kind = prop_oneof![
        Just(ErrorKind::ProviderInternal),
        Just(ErrorKind::ConnectionFailed),
        Just(ErrorKind::RateLimited),
        Just(ErrorKind::InvalidRequest),
        Just(ErrorKind::TimedOut(Phase::Deadline)),
    ];
    let deadline = prop::option::of(0..60_000u64);
    prop_oneof![
        3 => (0..3usize, 0..3000u64, any::<bool>()).prop_map(|(model, tokens, retry)| Step::Admit(model, tokens, retry)),
        4 => (0..3usize, 0..3000u64, priority, deadline)
            .prop_map(|(model, tokens, priority, deadline)| Step::Wait(model, tokens, priority, deadline)),
        5 => index().prop_map(Step::Look),
        1 => index().prop_map(Step::Leave),
        1 => (index(), 0..5u64, 0..90u64).prop_map(|(at, left, reset)| Step::Heard(at, left, reset)),
        2 => index().prop_map(Step::Begin),
        2 => index().prop_map(Step::Finish),
        2 => (index(), kind).prop_map(|(at, kind)| Step::Fail(at, kind)),
        1 => index().prop_map(Step::Drop),
        2 => (0..20_000u64).prop_map(Step::Pass),
    ]
}

fn limits(rates: bool) -> Limits {
    let rate = |requests, tokens| match rates {
        true => Rate {
            requests_per_minute: Some(requests),
            tokens_per_minute: Some(tokens),
        },
        false => Rate::default(),
    };
    Limits {
        max_in_flight: Some(3),
        queue: 4,
        queue_wait: 20 * SECOND,
        rate: rate(60, 6000),
        key_rate: rate(40, 5000),
        models: vec![(
            "a".into(),
            ModelLimits {
                max_in_flight: Some(1),
                rate: rate(30, 4000),
            },
        )],
        learn: true,
    }
}

fn member(rates: bool) -> Arc<Member> {
    let config = PoolConfig {
        breaker: BreakerConfig {
            min_calls: 3,
            ..BreakerConfig::default()
        },
        ..PoolConfig::default()
    };
    let account = || Arc::new(Local::default()) as Arc<dyn Provider>;
    let features = Features::of(Feature::ALL);
    let member = Member::new("p", vec![account(), account()], features, None, config);
    member.limit(limits(rates));
    Arc::new(member)
}

fn demand(tokens: u64) -> Demand {
    Demand {
        cost: Cost {
            input: tokens,
            output: 0,
        },
        ..Demand::default()
    }
}

struct Run {
    member: Arc<Member>,
    calls: Vec<Call>,
    waiting: Vec<Pin<Box<Waiting>>>,
}

impl Run {
    fn look(&mut self, at: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(outcome) = self.waiting[at].as_mut().poll(&mut cx) {
            drop(self.waiting.swap_remove(at));
            self.calls.extend(outcome.ok());
        }
    }

    async fn step(&mut self, step: Step) {
        let now = Instant::now();
        let of_calls =
            |at: prop::sample::Index| (!self.calls.is_empty()).then(|| at.index(self.calls.len()));
        let of_waiting = |at: prop::sample::Index| {
            (!self.waiting.is_empty()).then(|| at.index(self.waiting.len()))
        };
        match step {
            Step::Admit(model, tokens, is_retry) => {
                let admitted =
                    self.member
                        .admit(&MODELS[model].into(), is_retry, &demand(tokens), now);
                self.calls.extend(admitted.ok());
            }
            Step::Wait(model, tokens, priority, deadline) => {
                let demand = Demand {
                    priority,
                    deadline: deadline.map(|millis| now + Duration::from_millis(millis)),
                    ..demand(tokens)
                };
                let waiting =
                    self.member
                        .wait(&MODELS[model].into(), false, &demand, Duration::ZERO, now);
                self.waiting.extend(waiting.ok().map(Box::pin));
            }
            Step::Look(at) => {
                if let Some(at) = of_waiting(at) {
                    self.look(at);
                }
            }
            Step::Leave(at) => {
                if let Some(at) = of_waiting(at) {
                    drop(self.waiting.swap_remove(at));
                }
            }
            Step::Heard(at, remaining, reset) => {
                if let Some(at) = of_calls(at) {
                    self.calls[at].heard(&[RateWindow {
                        counts: Counted::Requests,
                        limit: Some(60),
                        remaining,
                        reset: Duration::from_secs(reset),
                    }]);
                }
            }
            Step::Begin(at) => {
                if let Some(at) = of_calls(at) {
                    self.calls[at].saw(&Event::Text("Hello"));
                    self.calls[at].began(true);
                }
            }
            Step::Finish(at) => {
                if let Some(at) = of_calls(at) {
                    self.calls[at].began(true);
                    self.calls.swap_remove(at).finished();
                }
            }
            Step::Fail(at, kind) => {
                if let Some(at) = of_calls(at) {
                    let error = ProviderError::new(kind, "");
                    self.calls.swap_remove(at).failed(&error);
                }
            }
            Step::Drop(at) => {
                if let Some(at) = of_calls(at) {
                    drop(self.calls.swap_remove(at));
                }
            }
            Step::Pass(millis) => {
                advance(Duration::from_millis(millis)).await;
                // As their timers have them do.
                for at in (0..self.waiting.len()).rev() {
                    self.look(at);
                }
            }
        }
    }

    /// Calls that were let through, those included that do not know it yet.
    fn let_through(&self) -> usize {
        let state = self.member.lock();
        self.calls.len() + state.line.let_through()
    }

    fn check(&self, rates: bool) -> Result<(), TestCaseError> {
        let let_through = self.let_through();
        let status = self.member.status();
        prop_assert_eq!(status.counts.in_flight as usize, let_through);
        prop_assert_eq!(
            status.limits[0].left as usize,
            3 - let_through,
            "of the permits"
        );
        prop_assert!(status.waiting.0 <= 4, "{:?}", status.waiting);
        let of_a = self.calls.iter().filter(|call| call.is_for("a")).count();
        prop_assert!(of_a <= 1);
        let heard = status.limits.iter().any(|limit| limit.learned);
        let state = self.member.lock();
        if !rates && !heard && let_through == 0 {
            prop_assert!(state.line.is_empty(), "there is room for those that wait");
        }
        Ok(())
    }

    /// Whatever happened: when all is given back and a while has passed, everything is open.
    async fn end(mut self) -> Result<(), TestCaseError> {
        self.waiting.clear();
        self.calls.clear();
        advance(2 * 3600 * SECOND).await;
        for model in MODELS {
            for _ in 0..3 {
                let call = self
                    .member
                    .admit(&model.into(), false, &demand(10), Instant::now());
                let mut call =
                    call.map_err(|refused| TestCaseError::fail(format!("{refused:?}")))?;
                call.began(true);
                call.finished();
            }
        }
        let status = self.member.status();
        prop_assert_eq!(status.way.0, BreakerState::Closed);
        prop_assert_eq!(status.models, []);
        prop_assert_eq!((status.counts.in_flight, status.waiting.0), (0, 0));
        prop_assert!(self.member.lock().line.is_settled());
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_permit_is_lost_and_nothing_stays_shut(rates in any::<bool>(), steps in prop::collection::vec(step(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut run = Run {
                member: member(rates),
                calls: Vec::new(),
                waiting: Vec::new(),
            };
            for step in steps {
                run.step(step).await;
                run.check(rates)?;
            }
            run.end().await
        })?;
    }
}
