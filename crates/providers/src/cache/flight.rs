//! Single-flight: one call under way for all who ask the same meanwhile.
//!
//! Nobody leads. Whoever has read all that is there drives the call on, under the flight's lock, and the others are woken; so who goes
//! takes nothing along, and with the last one the call is dropped, which cancels it. Late comers read from the first event on, as long
//! as it is kept: once an answer is larger than may be kept, nobody joins it, what all have read is forgotten, and who is ahead
//! waits for who is behind.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::key::CacheKey;
use super::log::{Log, Recording};
use super::{Opening, Shared};
use crate::error::ProviderError;
use crate::event::{Event, EventQueue, FinishReason};
use crate::pool::NoAnswer;
use crate::provider::{ChatStream, EventStream};
use crate::spend::Receipt;

/// One call under way.
pub(super) struct Flight {
    key: CacheKey,
    shared: Arc<Shared>,
    wakers: Arc<Wakers>,
    state: Mutex<State>,
}

struct State {
    source: Source,
    /// Who answers, or why nobody does.
    head: Option<Result<Head, NoAnswer>>,
    log: Log,
    /// The most that is kept of the answer, in bytes.
    most: usize,
    /// Whether events were forgotten, or will be: then the answer is not kept.
    too_large: bool,
    /// Whether another one went on with it: such an answer is not given again.
    is_of_several: bool,
    finish: Option<FinishReason>,
    /// How it ended, when it has.
    end: Option<Result<(), ProviderError>>,
    /// How far each has read; `None` are free places.
    readers: Vec<Option<usize>>,
}

enum Source {
    Opening(Opening),
    Reading(ChatStream),
    Over,
}

/// Who answers.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) provider: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) receipt: Receipt,
}

/// One who reads. Dropping the last one drops the call.
pub(super) struct Reader {
    flight: Arc<Flight>,
    place: usize,
    /// The event that was taken last: it is lent from here.
    lent: EventQueue,
}

/// Those who wait for the call to go on, by their places.
#[derive(Default)]
struct Wakers(Mutex<Vec<Option<Waker>>>);

impl Wakers {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Waker>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, place: usize, waker: Option<Waker>) {
        let mut all = self.lock();
        if all.len() <= place {
            all.resize(place + 1, None);
        }
        all[place] = waker;
    }

    fn wake_all(&self) {
        let waiting: Vec<Waker> = self.lock().iter_mut().filter_map(Option::take).collect();
        for waker in waiting {
            waker.wake();
        }
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

impl Flight {
    /// A call that nobody reads yet.
    pub(super) fn new(key: CacheKey, shared: Arc<Shared>, opening: Opening) -> Arc<Self> {
        let most = shared.config.max_answer;
        Arc::new(Self {
            key,
            shared,
            wakers: Arc::default(),
            state: Mutex::new(State {
                source: Source::Opening(opening),
                head: None,
                log: Log::default(),
                most,
                too_large: false,
                is_of_several: false,
                finish: None,
                end: None,
                readers: Vec::new(),
            }),
        })
    }

    /// One more reader, from the first event on; `None`: it is too late for that.
    pub(super) fn join(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.lock();
        if state.too_large || state.end.is_some() || matches!(state.head, Some(Err(_))) {
            return None;
        }
        let free = state.readers.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            state.readers.push(None);
            state.readers.len() - 1
        });
        state.readers[place] = Some(0);
        drop(state);
        Some(Reader {
            flight: Arc::clone(self),
            place,
            lent: EventQueue::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        let ours: *const Self = self;
        // Another one may have taken its place.
        if shared
            .flights
            .get(&self.key)
            .is_some_and(|known| Weak::as_ptr(known) == ours)
        {
            shared.flights.remove(&self.key);
        }
    }
}

impl State {
    /// Does one step. Ready: something is new.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.source {
            Source::Opening(opening) => {
                let Poll::Ready(opened) = Pin::as_mut(opening).poll(cx) else {
                    return Poll::Pending;
                };
                match opened {
                    Ok((answer, receipt)) => {
                        self.head = Some(Ok(Head {
                            provider: answer.provider,
                            model: answer.model,
                            receipt,
                        }));
                        self.source = Source::Reading(answer.given);
                    }
                    Err(failed) => {
                        self.head = Some(Err(failed));
                        self.source = Source::Over;
                    }
                }
            }
            Source::Reading(stream) => {
                let Poll::Ready(event) = stream.poll_event(cx) else {
                    return Poll::Pending;
                };
                match event {
                    Some(Ok(event)) => {
                        match event {
                            Event::Finish(reason) => self.finish = Some(reason),
                            Event::Continued { .. } => self.is_of_several = true,
                            _ => {}
                        }
                        self.log.push(event);
                        self.too_large |= self.log.size() > self.most;
                    }
                    Some(Err(error)) => {
                        self.end = Some(Err(error));
                        self.source = Source::Over;
                    }
                    None => {
                        self.end = Some(Ok(()));
                        self.source = Source::Over;
                    }
                }
            }
            Source::Over => {}
        }
        Poll::Ready(())
    }

    /// Forgets what all have read of an answer that is too large to be kept.
    fn forget(&mut self) {
        if self.too_large {
            let behind = self.readers.iter().flatten().min();
            self.log
                .forget_before(behind.copied().unwrap_or(self.log.end()));
        }
    }

    /// Whether as much is kept as may be, for somebody who is behind.
    fn is_full(&self) -> bool {
        let behind = self.readers.iter().flatten().min().copied();
        self.log.size() > self.most && behind.is_some_and(|behind| behind < self.log.end())
    }

    /// The answer, if it has just become complete and may be given again.
    fn recording(&mut self) -> Option<Recording> {
        let finish = self.finish.take()?;
        let again = matches!(
            finish,
            FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls
        ) && !self.is_of_several;
        match &self.head {
            Some(Ok(head)) if again && !self.too_large && self.log.is_whole() => Some(Recording {
                provider: Arc::clone(&head.provider),
                model: Arc::clone(&head.model),
                log: self.log.clone(),
            }),
            _ => None,
        }
    }
}

impl Reader {
    /// Waits until it is known who answers.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, NoAnswer>> {
        self.drive(cx, |state, _| state.head.clone())
    }

    /// Drives the call on until `found` has something. Ready once it has.
    fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        found: impl Fn(&State, usize) -> Option<T>,
    ) -> Poll<T> {
        let flight = &*self.flight;
        let mut state = flight.lock();
        let at = state.readers.get(self.place).copied().flatten();
        let at = at.unwrap_or_default();
        let mut is_new = false;
        let outcome = loop {
            if let Some(found) = found(&state, at) {
                break Poll::Ready(found);
            }
            // Before anything is asked for: whatever happens from now on wakes us.
            flight.wakers.set(self.place, Some(cx.waker().clone()));
            if state.is_full() {
                break Poll::Pending;
            }
            let waker = Waker::from(Arc::clone(&flight.wakers));
            if state.advance(&mut Context::from_waker(&waker)).is_pending() {
                break Poll::Pending;
            }
            is_new = true;
        };
        let recording = state.recording();
        drop(state);
        if outcome.is_ready() {
            flight.wakers.set(self.place, None);
        }
        if is_new {
            flight.wakers.wake_all();
        }
        if let Some(recording) = recording {
            flight.shared.keep(flight.key, recording);
        }
        outcome
    }
}

impl EventStream for Reader {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx, |state, at| {
            (at < state.log.end() || state.end.is_some()).then_some(())
        })
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let mut state = self.flight.lock();
        let at = state.readers.get(self.place).copied().flatten()?;
        let Some(event) = state.log.get(at) else {
            return match state.end.clone()? {
                Ok(()) => None,
                Err(error) => Some(Err(error)),
            };
        };
        self.lent.push(event);
        state.readers[self.place] = Some(at + 1);
        let was_full = state.log.size() > state.most;
        state.forget();
        drop(state);
        if was_full {
            // Who is ahead may go on.
            self.flight.wakers.wake_all();
        }
        self.lent.pop().map(Ok)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.flight.lock();
        if let Some(place) = state.readers.get_mut(self.place) {
            *place = None;
        }
        state.forget();
        drop(state);
        self.flight.wakers.set(self.place, None);
        // Who waited for this one, or for what this one had driven on.
        self.flight.wakers.wake_all();
    }
}
