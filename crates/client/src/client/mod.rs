//! The client for asynchronous programs, on tokio.

mod drive;
mod typed;

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapce_ai_proto::{MessageType, Welcome};
use lapce_ai_transport::Spin;

use self::drive::{attempt, drive, supervise};
pub use self::typed::ChatStream;
use crate::link::{Link, Outgoing, Refused, Stream, Tx};
use crate::plan::Plan;
use crate::session::{Session, Wait};
use crate::{Body, ClientError, Event, Health, Options, ReconnectCounters, RequestOptions, State};

/// A client of the daemon. Cheap to clone; all clones share one connection, which is made again when it is lost.
///
/// Dropping the last clone, and the last stream, closes the connection. Dropping a call's future or a stream before its
/// end cancels it at the daemon.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

struct Shared {
    session: Arc<Session>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl Client {
    /// Connects. Must be called on a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if the first attempt fails; only lost connections are made again by themselves.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let session = Arc::new(Session::new(options, true)?);
        let link = attempt(&session).await?;
        tokio::spawn(drive(Arc::clone(&session), link));
        tokio::spawn(supervise(Arc::clone(&session)));
        Ok(Self {
            shared: Arc::new(Shared { session }),
        })
    }

    fn session(&self) -> &Arc<Session> {
        &self.shared.session
    }

    /// Sends a request whose answer is one item, and waits for it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<'a>(
        &self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
    ) -> Result<Vec<u8>, ClientError> {
        self.call_with(ty, body, &RequestOptions::default()).await
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call_with<'a>(
        &self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
    ) -> Result<Vec<u8>, ClientError> {
        let mut answer = Vec::new();
        self.call_into(ty, body, options, &mut answer).await?;
        Ok(answer)
    }

    /// [`call_with`](Self::call_with) into memory that is used again: what `answer` held is gone, and its memory may be
    /// another afterwards.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call_into<'a>(
        &self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
        answer: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        let body = body.into();
        let mut plan = self.session().plan(ty, options, true);
        loop {
            let stream = begin(self.session(), &mut plan, &body).await?;
            let answered = poll_fn(|cx| {
                poll_stream(&stream, cx, self.session().options.spin, |tx, waker| {
                    tx.take_answer(stream.index, answer, waker)
                })
            });
            let outcome = match by(plan.last_moment(), answered).await? {
                Ok(()) => {
                    stream.taken();
                    return Ok(());
                }
                Err(outcome) => outcome,
            };
            self.session().note(&stream.link);
            plan.after(outcome, stream.link.daemon())?;
        }
    }

    /// Sends a request whose answer is a sequence of items.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn stream<'a>(
        &self,
        ty: MessageType,
        body: impl Into<Body<'a>>,
        options: &RequestOptions,
    ) -> Result<ItemStream, ClientError> {
        // It is kept while it may have to be sent again, and sent from there.
        let body = body.into().into_owned();
        let mut plan = self.session().plan(ty, options, false);
        let stream = begin(self.session(), &mut plan, &body).await?;
        Ok(ItemStream {
            shared: Arc::clone(&self.shared),
            plan,
            body,
            stream: Some(stream),
        })
    }

    /// What the daemon said when the latest connection was made.
    pub fn welcome(&self) -> Option<Welcome> {
        self.session().welcome()
    }

    /// Where the connection stands.
    pub fn state(&self) -> State {
        self.session().state()
    }

    /// How the connection does.
    pub fn health(&self) -> Health {
        self.session().health()
    }

    /// The latest events of the connection, oldest first.
    pub fn history(&self) -> Vec<Event> {
        self.session().history()
    }

    /// How often what happened to the connection.
    pub fn counters(&self) -> ReconnectCounters {
        self.session().counters()
    }

    /// Waits until there is a connection.
    ///
    /// # Errors
    /// There will be none: [`ClientError::Unreachable`] or [`ClientError::Closed`].
    pub async fn wait_connected(&self) -> Result<(), ClientError> {
        link(self.session(), false).await.map(drop)
    }

    /// Closes the connection, for all clones; what is under way is cancelled, and ends with [`ClientError::Closed`].
    pub async fn close(self) {
        self.session().close();
    }
}

/// A response of many items. Dropping it before its end cancels it.
pub struct ItemStream {
    shared: Arc<Shared>,
    plan: Plan,
    /// The request, while it may have to be sent again.
    body: Body<'static>,
    stream: Option<Stream>,
}

impl fmt::Debug for ItemStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemStream")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl ItemStream {
    /// The next item; `None` at the end, and after an error. Safe to be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, ClientError>> {
        let mut item = Vec::new();
        match self.next_into(&mut item).await {
            Ok(true) => Some(Ok(item)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// [`next`](Self::next) into memory that is used again. False at the end.
    ///
    /// # Errors
    /// See [`ClientError`]; the stream has then ended.
    pub async fn next_into(&mut self, item: &mut Vec<u8>) -> Result<bool, ClientError> {
        let result = self.advance(item).await;
        if !matches!(result, Ok(true)) {
            self.stream = None;
        }
        result
    }

    async fn advance(&mut self, item: &mut Vec<u8>) -> Result<bool, ClientError> {
        loop {
            let Some(stream) = &self.stream else {
                return Ok(false);
            };
            let next = poll_fn(|cx| {
                poll_stream(stream, cx, Duration::ZERO, |tx, waker| {
                    let taken = tx.take_item(stream.index, item, waker);
                    taken.map(|taken| (taken, tx.may_repeat(stream.index)))
                })
            });
            let (next, may_repeat) = by(self.plan.last_moment(), next).await?;
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
                    let session = &self.shared.session;
                    session.note(&stream.link);
                    // Cancel-safe: until the new one is there, the old one says the same again.
                    let mut plan = self.plan.clone();
                    plan.after(outcome, stream.link.daemon())?;
                    self.stream = Some(begin(session, &mut plan, &self.body).await?);
                    self.plan = plan;
                }
            }
        }
    }
}

/// Waits for `future`, at most until `deadline`.
async fn by<T>(
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Result<T, ClientError> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future)
            .await
            .map_err(|_| ClientError::DeadlineExceeded),
    }
}

/// The present link, when there is one; see [`Session::poll_link`].
async fn link(session: &Session, at_once: bool) -> Result<Arc<Link>, ClientError> {
    let mut wait = Wait::default();
    poll_fn(|cx| session.poll_link(&mut wait, at_once, cx.waker())).await
}

/// A place in a link's queue, given up when dropped.
struct Place<'a> {
    link: &'a Link,
    ticket: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.link.leave_queue(&mut self.ticket);
    }
}

/// Sends the request on the present link, once there is one and it takes it.
async fn begin(session: &Session, plan: &mut Plan, body: &Body<'_>) -> Result<Stream, ClientError> {
    let deadline = plan.deadline();
    let begun = async {
        loop {
            let link = link(session, plan.needs_its_daemon()).await?;
            plan.prepare(link.daemon())?;
            let request = plan.outgoing(body);
            match begin_on(&link, &request).await {
                Ok(index) => return Ok(Stream::new(link, index)),
                Err(refused) => match refused.into() {
                    Some(error) => return Err(error),
                    None => session.note(&link),
                },
            }
        }
    };
    let begun = by(deadline, begun).await.and_then(|begun| begun);
    begun.map_err(|error| plan.not_sent(error))
}

async fn begin_on(link: &Link, request: &Outgoing<'_>) -> Result<u32, Refused> {
    let mut place = Place { link, ticket: None };
    poll_fn(|cx| link.begin(request, &mut place.ticket, cx.waker())).await
}

/// Asks for what has come; pumps if nobody else does; and leaves the waker if it must be waited for.
fn poll_stream<T>(
    stream: &Stream,
    cx: &Context<'_>,
    spin: Duration,
    mut take: impl FnMut(&mut Tx, Option<&Waker>) -> Poll<T>,
) -> Poll<T> {
    let link = &*stream.link;
    let mut more = false;
    if let Some(mut rx) = link.try_rx() {
        let (_, mut taken) = link.pump(&mut rx, |tx| take(tx, None));
        if taken.is_pending() && !spin.is_zero() && link.shares_memory() {
            let mut spin = Spin::new(spin);
            while taken.is_pending() && spin.turn() {
                if rx.has_data() {
                    taken = link.pump(&mut rx, |tx| take(tx, None)).1;
                }
            }
        }
        // What came over a plain socket and lies in the reader now raises no event any more: the driver would sleep on.
        more = !link.shares_memory() && rx.has_data();
        if taken.is_ready() {
            drop(rx);
            link.tell_driver(more);
            return taken;
        }
    }
    let taken = link.look(|tx, _| take(tx, Some(cx.waker())));
    link.tell_driver(more);
    taken
}
