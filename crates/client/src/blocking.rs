//! The client for programs without a runtime. It has no thread of its own: of those who wait for answers one pumps, and
//! the others sleep until their answer is there or it is their turn to pump.

use std::cell::OnceCell;
use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use lapce_ai_proto::ai::{
    AIRequest, AIResponse, AutocompleteRequest, EmbeddingsRequest, EmbeddingsResponse,
    FileAnalysisRequest, ModelList, StreamEvent, TokenCount,
};
use lapce_ai_proto::status::Status;
use lapce_ai_proto::{MessageType, Welcome};
use lapce_ai_transport::Spin;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{models_body, shutdown_body, single};
use crate::link::{Link, Outgoing, Rx, Stream, Tx};
use crate::session::{Plan, Session, Step, Wait};
use crate::{ClientError, Event, Options, ReconnectCounters, RequestOptions, State};

/// A client of the daemon for programs without a runtime. Any number of threads may use it at once, over one connection.
///
/// Nothing happens between calls: a connection that was lost is made again by the next call.
pub struct BlockingClient {
    session: Session,
    /// Who holds it connects; the others wait.
    connecting: Mutex<()>,
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingClient")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Drop for BlockingClient {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl BlockingClient {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if the first attempt fails; only lost connections are made again.
    pub fn connect(options: Options) -> Result<Self, ClientError> {
        let session = Session::new(options, false)?;
        let connected = session.connect();
        session.connected(connected)?;
        Ok(Self {
            session,
            connecting: Mutex::new(()),
        })
    }

    /// Sends a request whose answer is one item, and waits for it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call(&self, ty: MessageType, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.call_with(ty, body, &RequestOptions::default())
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_with(
        &self,
        ty: MessageType,
        body: &[u8],
        options: &RequestOptions,
    ) -> Result<Vec<u8>, ClientError> {
        let mut answer = Vec::new();
        self.submit_with(ty, body, options)?
            .wait_into(&mut answer)?;
        Ok(answer)
    }

    /// [`call`](Self::call) into memory that is used again: what `answer` held is gone, and its memory may be another
    /// afterwards. Allocates nothing once the memory is large enough.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_into(
        &self,
        ty: MessageType,
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        self.submit(ty, body)?.wait_into(answer)
    }

    /// Sends a request whose answer is one item, and does not wait for it: so one thread keeps many in flight. Waits
    /// only where the daemon takes no more. A few requests that are submitted beside others may be sent together, at the
    /// latest when any of them is waited for.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn submit<'a>(
        &'a self,
        ty: MessageType,
        body: &'a [u8],
    ) -> Result<Pending<'a>, ClientError> {
        self.submit_with(ty, body, &RequestOptions::default())
    }

    /// [`submit`](Self::submit) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn submit_with<'a>(
        &'a self,
        ty: MessageType,
        body: &'a [u8],
        options: &RequestOptions,
    ) -> Result<Pending<'a>, ClientError> {
        let plan = self.session.plan(ty, options, true);
        let stream = self.begin(&plan, body, true)?;
        Ok(Pending {
            client: self,
            plan,
            body,
            stream,
        })
    }

    /// Sends a request whose answer is a sequence of items.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn stream(
        &self,
        ty: MessageType,
        body: &[u8],
        options: &RequestOptions,
    ) -> Result<Items<'_>, ClientError> {
        let plan = self.session.plan(ty, options, false);
        let stream = self.begin(&plan, body, false)?;
        Ok(Items {
            client: self,
            plan,
            body: body.to_vec(),
            stream: Some(stream),
        })
    }

    /// Asks for the next turn of a conversation, as events.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn chat(&self, request: &AIRequest) -> Result<ChatItems<'_>, ClientError> {
        self.chat_with(request, &RequestOptions::default())
    }

    /// [`chat`](Self::chat) with options.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn chat_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = AIRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(MessageType::CHAT, &request, options)
    }

    /// Asks for the next turn of a conversation, whole.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn complete(&self, request: &AIRequest) -> Result<AIResponse, ClientError> {
        self.complete_with(request, &RequestOptions::default())
    }

    /// [`complete`](Self::complete) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn complete_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<AIResponse, ClientError> {
        let request = AIRequest {
            stream: Some(false),
            ..request.clone()
        };
        let body = serde_json::to_vec(&request)?;
        single(self.stream(MessageType::CHAT, &body, options)?.next())
    }

    /// Asks for code at the cursor.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn autocomplete(
        &self,
        request: &AutocompleteRequest,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = AutocompleteRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::AUTOCOMPLETE,
            &request,
            &RequestOptions::default(),
        )
    }

    /// Asks a question about a file.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn analyze_file(
        &self,
        request: &FileAnalysisRequest,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = FileAnalysisRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::FILE_ANALYSIS,
            &request,
            &RequestOptions::default(),
        )
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn embeddings(
        &self,
        request: &EmbeddingsRequest,
    ) -> Result<EmbeddingsResponse, ClientError> {
        self.ask(MessageType::EMBEDDINGS, &serde_json::to_vec(request)?)
    }

    /// Counts a request's tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn token_count(&self, request: &AIRequest) -> Result<TokenCount, ClientError> {
        self.ask(MessageType::TOKEN_COUNT, &serde_json::to_vec(request)?)
    }

    /// The models that can be asked, of all providers or of one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn models(&self, provider: Option<&str>) -> Result<ModelList, ClientError> {
        self.ask(MessageType::MODELS, &models_body(provider)?)
    }

    /// The daemon at a glance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.ask(MessageType::STATUS, &[])
    }

    /// Lets the daemon drain, for at most `drain` or what it is configured for, and stop.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn shutdown(&self, drain: Option<Duration>) -> Result<(), ClientError> {
        self.call(MessageType::SHUTDOWN, &shutdown_body(drain))
            .map(drop)
    }

    fn ask<T: DeserializeOwned>(&self, ty: MessageType, body: &[u8]) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.call(ty, body)?)?)
    }

    fn events(
        &self,
        ty: MessageType,
        request: &impl Serialize,
        options: &RequestOptions,
    ) -> Result<ChatItems<'_>, ClientError> {
        let body = serde_json::to_vec(request)?;
        Ok(ChatItems {
            items: self.stream(ty, &body, options)?,
            item: Vec::new(),
        })
    }

    /// What the daemon said when the latest connection was made.
    pub fn welcome(&self) -> Option<Welcome> {
        self.session.welcome()
    }

    /// Where the connection stands, as far as the last call saw.
    pub fn state(&self) -> State {
        self.session.state()
    }

    /// The latest events of the connection, oldest first.
    pub fn history(&self) -> Vec<Event> {
        self.session.history()
    }

    /// How often what happened to the connection.
    pub fn counters(&self) -> ReconnectCounters {
        self.session.counters()
    }

    /// Waits until there is a connection.
    ///
    /// # Errors
    /// There will be none: [`ClientError::Unreachable`] or [`ClientError::Closed`].
    pub fn wait_connected(&self) -> Result<(), ClientError> {
        self.link(None).map(drop)
    }

    /// Closes the connection.
    pub fn close(self) {
        drop(self);
    }

    /// The present link. Without one, one of those who ask connects and the others wait.
    fn link(&self, deadline: Option<Instant>) -> Result<Arc<Link>, ClientError> {
        let mut wait = Wait::default();
        loop {
            if let Poll::Ready(link) = with_waker(|waker| self.session.poll_link(&mut wait, waker))
            {
                return link;
            }
            if passed(deadline) {
                // Others may sleep in the belief that we connect.
                self.session.hand_over();
                return Err(ClientError::DeadlineExceeded);
            }
            let connecting = match self.connecting.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            let Some(connecting) = connecting else {
                park(deadline);
                continue;
            };
            match self.session.step() {
                Step::Connect => {
                    // Why it failed stands in the state, which is looked at next.
                    let _ = self.session.connected(self.session.connect());
                }
                Step::WaitUntil(until) => {
                    park(Some(deadline.map_or(until, |deadline| deadline.min(until))));
                }
                Step::Rest | Step::Closed => {}
            }
            drop(connecting);
        }
    }

    fn begin(&self, plan: &Plan, body: &[u8], may_lag: bool) -> Result<Stream, ClientError> {
        loop {
            let link = self.link(plan.deadline())?;
            let request = Outgoing {
                may_lag,
                ..plan.outgoing(body)
            };
            let mut ticket = None;
            let mut begun = with_waker(|waker| link.begin(&request, &mut ticket, waker));
            if begun.is_pending() {
                let waited = self.wait(&link, plan.deadline(), |tx, waker, wakes| match waker {
                    Some(waker) => link.begin_locked(tx, &request, &mut ticket, waker, wakes),
                    None => with_waker(|waker| {
                        link.begin_locked(tx, &request, &mut ticket, waker, wakes)
                    }),
                });
                link.leave_queue(&mut ticket);
                begun = Poll::Ready(waited.ok_or(ClientError::DeadlineExceeded)?);
            }
            match begun {
                Poll::Ready(Ok(index)) => return Ok(Stream::new(link, index)),
                Poll::Ready(Err(refused)) => match refused.into() {
                    Some(error) => return Err(error),
                    None => self.session.note(&link),
                },
                Poll::Pending => {}
            }
        }
    }

    /// Waits on a link until `look` has what it looks for, pumping if nobody else does. `None`: the time is over.
    fn wait<T>(
        &self,
        link: &Link,
        until: Option<Instant>,
        mut look: impl FnMut(&mut Tx, Option<&Waker>, &mut Vec<Waker>) -> Poll<T>,
    ) -> Option<T> {
        // With many requests in flight, one pump brings the answers of several.
        if let Poll::Ready(found) = link.look(|tx, wakes| look(tx, None, wakes)) {
            return Some(found);
        }
        loop {
            if let Some(mut rx) = link.try_rx() {
                let found = self.lead(link, &mut rx, until, &mut look);
                drop(rx);
                link.promote();
                return found;
            }
            let turn = with_waker(|waker| {
                let mut wakes = Vec::new();
                let mut tx = link.tx();
                let found = look(&mut tx, Some(waker), &mut wakes);
                let writable = tx.wants_writable();
                if found.is_pending() {
                    link.follow(&mut tx, waker);
                }
                drop(tx);
                wakes.into_iter().for_each(Waker::wake);
                if let Poll::Ready(found) = found {
                    return Turn::Found(found);
                }
                // The leader may have left before we joined those whom it would have woken.
                let free = link.try_rx().is_some();
                if !free {
                    if writable {
                        // A poll does not notice that our answer came, so it is a short one.
                        let soon = Instant::now() + WRITABLE_SLICE;
                        let until = until.map_or(soon, |until| until.min(soon));
                        sleep(link, PollFlags::OUT, Some(until));
                        link.write_more();
                    } else {
                        park(until);
                    }
                }
                link.unfollow(&mut link.tx(), waker);
                Turn::Again
            });
            match turn {
                Turn::Found(found) => {
                    // We may have been woken to lead, and leave instead.
                    link.promote();
                    return Some(found);
                }
                Turn::Again if passed(until) => {
                    link.promote();
                    return None;
                }
                Turn::Again => {}
            }
        }
    }

    #[inline]
    fn lead<T>(
        &self,
        link: &Link,
        rx: &mut Rx,
        until: Option<Instant>,
        look: &mut impl FnMut(&mut Tx, Option<&Waker>, &mut Vec<Waker>) -> Poll<T>,
    ) -> Option<T> {
        let mut wakes = Vec::new();
        loop {
            // The answer cannot be there at once: a look at the ring costs less than a pump for nothing.
            let ready = rx.has_data() || self.spin(link, rx);
            let (frames, found) = link.pump(rx, |tx| look(tx, None, &mut wakes));
            wakes.drain(..).for_each(Waker::wake);
            if let Poll::Ready(found) = found {
                return Some(found);
            }
            if passed(until) {
                return None;
            }
            if frames > 0 || ready {
                continue;
            }
            if let Some(writable) = link.prepare_to_sleep(rx) {
                let flags = if writable {
                    PollFlags::IN | PollFlags::OUT
                } else {
                    PollFlags::IN
                };
                sleep(link, flags, until);
                link.woken(rx);
                if writable {
                    link.write_more();
                }
            }
        }
    }

    /// Looks again and again for a while. True: there is something.
    #[inline]
    fn spin(&self, link: &Link, rx: &mut Rx) -> bool {
        if !link.shares_memory() {
            return false;
        }
        let mut spin = Spin::new(self.session.options.spin);
        // A request that found no room in the ring waits for that too.
        let blocked = link.is_blocked();
        while spin.turn() {
            if rx.has_data() || (blocked && link.has_room()) {
                return true;
            }
        }
        false
    }
}

/// Longest sleep of a thread that waits for its answer and for a full socket at once.
const WRITABLE_SLICE: Duration = Duration::from_millis(10);

enum Turn<T> {
    Found(T),
    Again,
}

/// A request under way, whose answer is one item. Dropping it cancels it.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending<'a> {
    client: &'a BlockingClient,
    plan: Plan,
    body: &'a [u8],
    stream: Stream,
}

impl Pending<'_> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn wait(self) -> Result<Vec<u8>, ClientError> {
        let mut answer = Vec::new();
        self.wait_into(&mut answer)?;
        Ok(answer)
    }

    /// Waits for the answer, into memory that is used again; it may be another afterwards.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[inline]
    pub fn wait_into(mut self, answer: &mut Vec<u8>) -> Result<(), ClientError> {
        loop {
            let stream = &self.stream;
            let waited = self
                .client
                .wait(&stream.link, self.plan.last_moment(), |tx, waker, _| {
                    tx.take_answer(stream.index, answer, waker)
                });
            match waited.ok_or(ClientError::DeadlineExceeded)? {
                Ok(()) => {
                    self.stream.taken();
                    return Ok(());
                }
                Err(outcome) => {
                    self.client.session.note(&stream.link);
                    self.plan.after(outcome)?;
                    self.stream = self.client.begin(&self.plan, self.body, true)?;
                }
            }
        }
    }
}

/// A response of many items, as an iterator. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct Items<'a> {
    client: &'a BlockingClient,
    plan: Plan,
    /// The request, while it may have to be sent again.
    body: Vec<u8>,
    stream: Option<Stream>,
}

impl Items<'_> {
    /// The next item, into memory that is used again. False at the end.
    ///
    /// # Errors
    /// See [`ClientError`]; the response has then ended.
    pub fn next_into(&mut self, item: &mut Vec<u8>) -> Result<bool, ClientError> {
        let result = self.advance(item);
        if !matches!(result, Ok(true)) {
            self.stream = None;
        }
        result
    }

    fn advance(&mut self, item: &mut Vec<u8>) -> Result<bool, ClientError> {
        loop {
            let Some(stream) = &self.stream else {
                return Ok(false);
            };
            let waited = self
                .client
                .wait(&stream.link, self.plan.last_moment(), |tx, waker, _| {
                    let taken = tx.take_item(stream.index, item, waker);
                    taken.map(|taken| (taken, tx.may_repeat(stream.index)))
                });
            let (next, may_repeat) = waited.ok_or(ClientError::DeadlineExceeded)?;
            match next {
                Ok(taken) => {
                    if !may_repeat {
                        self.body = Vec::new();
                    }
                    return Ok(taken);
                }
                Err(outcome) => {
                    self.client.session.note(&stream.link);
                    self.plan.after(outcome)?;
                    self.stream = Some(self.client.begin(&self.plan, &self.body, false)?);
                }
            }
        }
    }
}

impl Iterator for Items<'_> {
    type Item = Result<Vec<u8>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut item = Vec::new();
        match self.next_into(&mut item) {
            Ok(true) => Some(Ok(item)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// A response of events, as an iterator. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct ChatItems<'a> {
    items: Items<'a>,
    item: Vec<u8>,
}

impl Iterator for ChatItems<'_> {
    type Item = Result<StreamEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.items.next_into(&mut self.item) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
            match serde_json::from_slice(&self.item) {
                Ok(StreamEvent::Unknown) => {}
                Ok(event) => return Some(Ok(event)),
                Err(error) => {
                    self.items.stream = None;
                    return Some(Err(error.into()));
                }
            }
        }
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Calls `f` with this thread's waker, which is made once.
fn with_waker<T>(f: impl FnOnce(&Waker) -> T) -> T {
    thread_local! {
        static WAKER: OnceCell<Waker> = const { OnceCell::new() };
    }
    let made = || Waker::from(Arc::new(Unpark(thread::current())));
    let mut f = Some(f);
    let kept = WAKER.try_with(|kept| f.take().map(|f| f(kept.get_or_init(made))));
    match (kept, f) {
        (Ok(Some(result)), _) => result,
        // While the thread ends there is none to keep.
        (_, Some(f)) => f(&made()),
        (_, None) => unreachable!("the closure is taken only where it is called"),
    }
}

fn passed(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= Instant::now())
}

fn park(until: Option<Instant>) {
    match until {
        None => thread::park(),
        Some(until) => thread::park_timeout(until.saturating_duration_since(Instant::now())),
    }
}

/// Sleeps on the link's socket. Waking without a cause does no harm, so errors are left to the next pump.
fn sleep(link: &Link, flags: PollFlags, until: Option<Instant>) {
    let left = until
        .map(|until| until.saturating_duration_since(Instant::now()))
        .and_then(|left| Timespec::try_from(left).ok());
    let socket = link.socket();
    let _ = poll(
        &mut [PollFd::new(&socket, flags | PollFlags::RDHUP)],
        left.as_ref(),
    );
}
