//! Answers that are given again: those that are kept, and those under way that another asks for meanwhile.
//!
//! Only what is asked in exactly the same words, of the same models, by the same client is the same ([`CacheKey`]); and only requests
//! that can be expected to have one answer are looked up at all ([`CacheConfig`]).

mod flight;
mod key;
mod log;
mod store;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use crate::chat::{ChatRequest, Role};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::Event;
use crate::pool::{Answer, NoAnswer, Plan, Trail};
use crate::provider::{BoxFuture, ChatStream, EventStream};
use crate::spend::{Bill, NanoUsd, Receipt};
pub use key::CacheKey;

use flight::{Flight, Head};
use log::{Recording, Replay};
use store::Store;

/// Asks for an answer.
pub(crate) type Opening = BoxFuture<'static, Result<(Answer, Receipt), NoAnswer>>;

/// What is kept, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// The most memory that answers take, in bytes.
    pub max_bytes: usize,
    /// The most that one answer may take, in bytes: a larger one is not kept, and nobody joins it any more.
    pub max_answer: usize,
    /// How long an answer is kept.
    pub max_age: Duration,
    /// Which requests are looked up, if they do not say themselves.
    pub requests: CacheRequests,
    /// Whether requests with tools are, too.
    pub tools: bool,
    /// Whether a client may be given what another one asked for.
    pub shared: bool,
}

/// Which requests are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheRequests {
    /// Those with a temperature of 0.
    #[default]
    Deterministic,
    /// All.
    All,
    /// Those that ask for it.
    OptIn,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_answer: 1 << 20,
            max_age: Duration::from_secs(3600),
            requests: CacheRequests::Deterministic,
            tools: false,
            shared: false,
        }
    }
}

/// What the cache did since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CacheStatus {
    /// Answers that are kept.
    pub answers: usize,
    /// The memory that they take, in bytes and about.
    pub bytes: usize,
    /// Requests under way that others may join.
    pub under_way: usize,
    /// Requests that were answered from what is kept.
    pub hits: u64,
    /// Requests that joined one under way.
    pub joined: u64,
    /// Requests that were looked up and not found.
    pub misses: u64,
    /// Answers that had to make room for others.
    pub evicted: u64,
}

/// The answers that are kept, and those under way.
pub struct AnswerCache {
    shared: Arc<Shared>,
}

struct Shared {
    config: CacheConfig,
    state: Mutex<State>,
}

struct State {
    store: Store,
    /// Their owners are those who read them.
    flights: HashMap<CacheKey, Weak<Flight>>,
    hits: u64,
    joined: u64,
    misses: u64,
}

impl Shared {
    /// Never taken while a flight's lock is held; the reverse is allowed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: CacheKey, recording: Recording) {
        let now = Instant::now();
        self.lock().store.insert(key, Arc::new(recording), now);
    }
}

impl std::fmt::Debug for AnswerCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status().fmt(f)
    }
}

impl AnswerCache {
    /// An empty one.
    pub fn new(config: CacheConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                state: Mutex::new(State {
                    store: Store::new(config.max_bytes, config.max_age),
                    flights: HashMap::new(),
                    hits: 0,
                    joined: 0,
                    misses: 0,
                }),
            }),
        }
    }

    /// What it holds and did.
    pub fn status(&self) -> CacheStatus {
        let state = self.shared.lock();
        CacheStatus {
            answers: state.store.len(),
            bytes: state.store.bytes(),
            under_way: state.flights.len(),
            hits: state.hits,
            joined: state.joined,
            misses: state.misses,
            evicted: state.store.evicted(),
        }
    }

    /// The key of a request that is to be looked up. `wish` is what the request itself says about it.
    pub fn key(
        &self,
        client: u32,
        plan: &Plan,
        request: &ChatRequest,
        wish: Option<bool>,
    ) -> Option<CacheKey> {
        let config = &self.shared.config;
        let by_rule = match config.requests {
            CacheRequests::Deterministic => request.temperature == Some(0.0),
            CacheRequests::All => true,
            CacheRequests::OptIn => false,
        };
        let with_tools = || {
            let called = |message: &crate::chat::Message| {
                message.role == Role::Tool || !message.tool_calls.is_empty()
            };
            !request.tools.is_empty() || request.messages.iter().any(called)
        };
        if !wish.unwrap_or(by_rule) || !config.tools && with_tools() {
            return None;
        }
        let client = (!config.shared).then_some(client);
        Some(CacheKey::of(client, plan, request))
    }

    /// The answer of this key: one that is kept, one under way, or else what `open` asks for, on the same `trail`.
    pub(crate) async fn chat(
        &self,
        key: CacheKey,
        deadline: Option<Instant>,
        trail: &Trail,
        open: impl FnOnce() -> Opening,
    ) -> Result<(Answer, Receipt), NoAnswer> {
        let (mut reader, is_first) = {
            // It may be the last to know a flight, whose end takes the lock.
            let stale;
            let mut state = self.shared.lock();
            if let Some(recording) = state.store.get(&key, Instant::now()) {
                state.hits += 1;
                return Ok(replay(recording, trail));
            }
            let known = state.flights.get(&key).and_then(Weak::upgrade);
            let joined = known.as_ref().and_then(Flight::join);
            stale = known;
            let found = match joined {
                Some(reader) => {
                    state.joined += 1;
                    Some((reader, false))
                }
                None => {
                    state.misses += 1;
                    let flight = Flight::new(key, Arc::clone(&self.shared), open());
                    state.flights.insert(key, Arc::downgrade(&flight));
                    flight.join().map(|reader| (reader, true))
                }
            };
            drop(state);
            drop(stale);
            // A new flight can be joined.
            found.ok_or_else(|| no_answer(ErrorKind::Configuration, "nothing was asked", trail))?
        };
        let head = poll_fn(|cx| reader.poll_head(cx));
        let head = match deadline {
            None => head.await,
            Some(at) => match timeout_at(at, head).await {
                Ok(head) => head,
                Err(_) => Err(no_answer(ErrorKind::TimedOut(Phase::Deadline), OVER, trail)),
            },
        };
        let Head {
            provider,
            model,
            receipt,
        } = head?;
        let stream = ChatStream::new(Joined {
            reader: Some(reader),
            timer: deadline.map(|at| Box::pin(sleep_until(at))),
        });
        let answer = Answer {
            given: stream,
            provider,
            model,
            trail: trail.clone(),
        };
        Ok((answer, if is_first { receipt } else { free() }))
    }
}

const OVER: &str = "nobody had answered by then";

fn no_answer(kind: ErrorKind, message: &str, trail: &Trail) -> NoAnswer {
    NoAnswer {
        error: ProviderError::new(kind, message),
        trail: trail.clone(),
    }
}

/// The bill of what was asked for before.
fn free() -> Receipt {
    Receipt::written(Bill {
        cost: Some(NanoUsd::ZERO),
        cached: true,
        ..Bill::default()
    })
}

fn replay(recording: Arc<Recording>, trail: &Trail) -> (Answer, Receipt) {
    let answer = Answer {
        provider: Arc::clone(&recording.provider),
        model: Arc::clone(&recording.model),
        trail: trail.clone(),
        given: ChatStream::new(Replay::new(recording)),
    };
    (answer, free())
}

/// An answer under way for one of those who asked: each has a deadline of its own, which ends nothing for the others.
struct Joined {
    /// `None` when the time is over.
    reader: Option<flight::Reader>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl EventStream for Joined {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.reader = None;
        }
        match &mut self.reader {
            Some(reader) => reader.poll_ready(cx),
            None => Poll::Ready(()),
        }
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let Some(reader) = &mut self.reader else {
            let error = ProviderError::new(
                ErrorKind::TimedOut(Phase::Deadline),
                "the answer was not complete by then",
            );
            return Some(Err(error));
        };
        let event = reader.take();
        if let Some(Ok(Event::Finish(_))) = event {
            // What is left is the end of the provider's answer.
            self.timer = None;
        }
        event
    }
}

#[cfg(test)]
mod tests;
