//! The client for programs without a runtime. It has no thread of its own: of those who wait for answers one pumps, and
//! the others sleep until their answer is there or it is their turn to pump.

mod typed;
mod wait;

use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};
use std::task::{Poll, Waker};
use std::time::Instant;

use lapce_ai_proto::{MessageType, Welcome};

pub use self::typed::ChatItems;
use self::wait::{park, passed, with_waker};
use crate::link::{Lent, Link, Outgoing, Stream, Tx};
use crate::plan::Plan;
use crate::session::{Session, Step, Wait};
use crate::{
    Body, ClientError, ConnectError, Event, Health, Options, ReconnectCounters, RequestOptions,
    State,
};

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
        let connected = session.connect(None);
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
    pub fn call<'a>(
        &'a self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
    ) -> Result<Vec<u8>, ClientError> {
        self.call_with(ty, body, &RequestOptions::default())
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_with<'a>(
        &'a self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
    ) -> Result<Vec<u8>, ClientError> {
        self.request(ty, body.into(), options, true)?.wait()
    }

    /// [`call`](Self::call) into memory that is used again: what `answer` held is gone, and its memory may be another
    /// afterwards. Allocates nothing once the memory is large enough.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call_into<'a>(
        &'a self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        answer: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        self.plain_request(ty, body.into(), true)?.wait_into(answer)
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
        body: impl Into<Body<'a>>,
    ) -> Result<Pending<'a>, ClientError> {
        self.plain_request(ty, body.into(), false)
    }

    /// [`submit`](Self::submit) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn submit_with<'a>(
        &'a self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
    ) -> Result<Pending<'a>, ClientError> {
        self.request(ty, body.into(), options, false)
    }

    /// Begins a request without options. `lent`: its answer is waited for at once, by this thread.
    #[inline]
    fn plain_request<'a>(
        &'a self,
        ty: MessageType,
        body: Body<'a>,
        lent: bool,
    ) -> Result<Pending<'a>, ClientError> {
        // The way that nearly every request goes: a link, room, nothing to remember beside the stream.
        if let Some(link) = self.session.open_link()
            && let Some(index) = link.begin_plain(ty, &body)
        {
            return Ok(Pending {
                client: self,
                plan: None,
                ty,
                body,
                lent: false,
                stream: Stream::new(link, index),
            });
        }
        self.request(ty, body, &RequestOptions::default(), lent)
    }

    fn request<'a>(
        &'a self,
        ty: MessageType,
        body: Body<'a>,
        options: &RequestOptions,
        lent: bool,
    ) -> Result<Pending<'a>, ClientError> {
        let mut plan = self.session.plan(ty, options, true);
        let how = How {
            may_lag: true,
            lent,
        };
        let stream = self.begin(&mut plan, &body, how)?;
        Ok(Pending {
            client: self,
            plan: (!plan.is_plain()).then(|| Box::new(plan)),
            ty,
            body,
            lent,
            stream,
        })
    }

    /// Sends a request whose answer is a sequence of items.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn stream<'a>(
        &self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
    ) -> Result<Items<'_>, ClientError> {
        // It is kept while it may have to be sent again, and sent from there.
        let body = body.into().into_owned();
        let mut plan = self.session.plan(ty, options, false);
        let stream = self.begin(&mut plan, &body, How::default())?;
        Ok(Items {
            client: self,
            plan,
            body,
            stream: Some(stream),
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

    /// How the connection does, as far as the last call saw.
    pub fn health(&self) -> Health {
        self.session.health()
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
        self.link(None, false).map(drop)
    }

    /// Closes the connection; what is under way is cancelled.
    pub fn close(self) {
        drop(self);
    }

    /// The present link; see [`Session::poll_link`]. Without one, one of those who ask connects and the others wait.
    fn link(&self, deadline: Option<Instant>, at_once: bool) -> Result<Arc<Link>, ClientError> {
        let mut wait = Wait::default();
        loop {
            let polled = with_waker(|waker| self.session.poll_link(&mut wait, at_once, waker));
            if let Poll::Ready(link) = polled {
                // Others may sleep in the belief that we connect.
                if link.is_err() {
                    self.session.hand_over();
                }
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
            match with_waker(|waker| self.session.step(waker)) {
                Step::Connect => match self.session.connect(deadline) {
                    // Our own time was over first, which says nothing of the daemon. So no attempt has failed, and whoever still
                    // waits, or asks next, makes one at once.
                    Err(ConnectError::TimedOut { timeout, .. })
                        if timeout < self.session.options.connect_timeout => {}
                    // Why it failed stands in the state, which is looked at next.
                    connected => {
                        let _ = self.session.connected(connected);
                    }
                },
                Step::WaitUntil(until) => {
                    park(Some(deadline.map_or(until, |deadline| deadline.min(until))));
                }
                Step::Rest | Step::Closed => {}
            }
            drop(connecting);
        }
    }

    fn begin(&self, plan: &mut Plan, body: &Body<'_>, how: How) -> Result<Stream, ClientError> {
        self.try_to_begin(plan, body, how)
            .map_err(|error| plan.not_sent(error))
    }

    fn try_to_begin(
        &self,
        plan: &mut Plan,
        body: &Body<'_>,
        how: How,
    ) -> Result<Stream, ClientError> {
        loop {
            let link = self.link(plan.deadline(), plan.needs_its_daemon())?;
            plan.prepare(link.daemon())?;
            let request = Outgoing {
                lent: how.lent,
                may_lag: how.may_lag,
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
}

/// How a request is sent beside what is planned: see [`Outgoing`].
#[derive(Debug, Clone, Copy, Default)]
struct How {
    lent: bool,
    may_lag: bool,
}

/// A request under way, whose answer is one item. Dropping it cancels it.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending<'a> {
    client: &'a BlockingClient,
    /// What its options ask for, if they ask for anything.
    plan: Option<Box<Plan>>,
    ty: MessageType,
    body: Body<'a>,
    /// What of the body goes in pieces is sent while it waits.
    lent: bool,
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
    pub fn wait_into(self, answer: &mut Vec<u8>) -> Result<(), ClientError> {
        // With many requests in flight, one pump brings the answers of several.
        if self.stream.link.take_ready(self.stream.index, answer) {
            self.stream.taken();
            return Ok(());
        }
        self.wait_long(answer)
    }

    #[inline(never)]
    fn wait_long(mut self, answer: &mut Vec<u8>) -> Result<(), ClientError> {
        let last_moment = self.plan.as_ref().and_then(|plan| plan.last_moment());
        loop {
            let stream = &self.stream;
            let take = |tx: &mut Tx, waker: Option<&Waker>, _: &mut Vec<Waker>| {
                tx.take_answer(stream.index, answer, waker)
            };
            let lent = self.lent.then_some(Lent {
                index: stream.index,
                body: &self.body,
            });
            let waited = self
                .client
                .wait_further(&stream.link, last_moment, lent, take);
            let outcome = match waited.ok_or(ClientError::DeadlineExceeded)? {
                Ok(()) => {
                    self.stream.taken();
                    return Ok(());
                }
                Err(outcome) => outcome,
            };
            self.client.session.note(&stream.link);
            let plan = self.plan.get_or_insert_with(|| {
                let options = RequestOptions::default();
                Box::new(self.client.session.plan(self.ty, &options, true))
            });
            plan.after(outcome, self.stream.link.daemon())?;
            let how = How {
                lent: self.lent,
                may_lag: false,
            };
            self.stream = self.client.begin(plan, &self.body, how)?;
        }
    }
}

/// A response of many items, as an iterator. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct Items<'a> {
    client: &'a BlockingClient,
    plan: Plan,
    /// The request, while it may have to be sent again.
    body: Body<'static>,
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
                        self.body = Body::Lent(&[]);
                    }
                    if taken {
                        self.plan.handed_out();
                    }
                    return Ok(taken);
                }
                Err(outcome) => {
                    self.client.session.note(&stream.link);
                    self.plan.after(outcome, stream.link.daemon())?;
                    let begun = self
                        .client
                        .begin(&mut self.plan, &self.body, How::default());
                    self.stream = Some(begun?);
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
