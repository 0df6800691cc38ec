//! The client for asynchronous programs, on tokio.

use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lapce_ai_proto::ai::{
    AIRequest, AIResponse, AutocompleteRequest, EmbeddingsRequest, EmbeddingsResponse,
    FileAnalysisRequest, ModelList, ModelsRequest, StreamEvent, TokenCount,
};
use lapce_ai_proto::status::Status;
use lapce_ai_proto::{MessageType, Welcome};
use lapce_ai_transport::{ConnectError, Spin};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::link::{End, Link, Outgoing, Phase, Refused, Stream};
use crate::session::{Plan, Session, Step, Wait};
use crate::{ClientError, Event, Options, ReconnectCounters, RequestOptions, State};

/// Batches that one turn of the driving task takes before it lets others run.
const BATCHES: usize = 32;

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
    pub async fn call(&self, ty: MessageType, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.call_with(ty, body, &RequestOptions::default()).await
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call_with(
        &self,
        ty: MessageType,
        body: &[u8],
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
    pub async fn call_into(
        &self,
        ty: MessageType,
        body: &[u8],
        options: &RequestOptions,
        answer: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        let mut plan = self.session().plan(ty, options, true);
        loop {
            let stream = begin(self.session(), &plan, body).await?;
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
            plan.after(outcome)?;
        }
    }

    /// Sends a request whose answer is a sequence of items.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn stream(
        &self,
        ty: MessageType,
        body: &[u8],
        options: &RequestOptions,
    ) -> Result<ItemStream, ClientError> {
        let plan = self.session().plan(ty, options, false);
        let stream = begin(self.session(), &plan, body).await?;
        let body = body.to_vec();
        Ok(ItemStream {
            shared: Arc::clone(&self.shared),
            plan,
            body,
            stream: Some(stream),
        })
    }

    /// Asks for the next turn of a conversation, as a stream of events.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn chat(&self, request: &AIRequest) -> Result<ChatStream, ClientError> {
        self.chat_with(request, &RequestOptions::default()).await
    }

    /// [`chat`](Self::chat) with options.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn chat_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<ChatStream, ClientError> {
        let request = AIRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(MessageType::CHAT, &request, options).await
    }

    /// Asks for the next turn of a conversation, whole.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn complete(&self, request: &AIRequest) -> Result<AIResponse, ClientError> {
        self.complete_with(request, &RequestOptions::default())
            .await
    }

    /// [`complete`](Self::complete) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn complete_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<AIResponse, ClientError> {
        let request = AIRequest {
            stream: Some(false),
            ..request.clone()
        };
        let body = serde_json::to_vec(&request)?;
        // Its answer takes a while: the prefix has the key that recognises a repetition.
        let mut items = self.stream(MessageType::CHAT, &body, options).await?;
        single(items.next().await)
    }

    /// Asks for code at the cursor.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn autocomplete(
        &self,
        request: &AutocompleteRequest,
    ) -> Result<ChatStream, ClientError> {
        let request = AutocompleteRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::AUTOCOMPLETE,
            &request,
            &RequestOptions::default(),
        )
        .await
    }

    /// Asks a question about a file.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn analyze_file(
        &self,
        request: &FileAnalysisRequest,
    ) -> Result<ChatStream, ClientError> {
        let request = FileAnalysisRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::FILE_ANALYSIS,
            &request,
            &RequestOptions::default(),
        )
        .await
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn embeddings(
        &self,
        request: &EmbeddingsRequest,
    ) -> Result<EmbeddingsResponse, ClientError> {
        self.ask(MessageType::EMBEDDINGS, &serde_json::to_vec(request)?)
            .await
    }

    /// Counts a request's tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn token_count(&self, request: &AIRequest) -> Result<TokenCount, ClientError> {
        self.ask(MessageType::TOKEN_COUNT, &serde_json::to_vec(request)?)
            .await
    }

    /// The models that can be asked, of all providers or of one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn models(&self, provider: Option<&str>) -> Result<ModelList, ClientError> {
        self.ask(MessageType::MODELS, &models_body(provider)?).await
    }

    /// The daemon at a glance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(MessageType::STATUS, &[]).await
    }

    /// Lets the daemon drain, for at most `drain` or what it is configured for, and stop.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shutdown(&self, drain: Option<Duration>) -> Result<(), ClientError> {
        self.call(MessageType::SHUTDOWN, &shutdown_body(drain))
            .await
            .map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        ty: MessageType,
        body: &[u8],
    ) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.call(ty, body).await?)?)
    }

    async fn events(
        &self,
        ty: MessageType,
        request: &impl Serialize,
        options: &RequestOptions,
    ) -> Result<ChatStream, ClientError> {
        let body = serde_json::to_vec(request)?;
        let items = self.stream(ty, &body, options).await?;
        Ok(ChatStream {
            items,
            item: Vec::new(),
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
        link(self.session()).await.map(drop)
    }

    /// Closes the connection, for all clones; what is under way ends with [`ClientError::Closed`].
    pub async fn close(self) {
        self.session().close();
    }
}

/// A response of many items. Dropping it before its end cancels it.
pub struct ItemStream {
    shared: Arc<Shared>,
    plan: Plan,
    /// The request, while it may have to be sent again.
    body: Vec<u8>,
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
                        self.body = Vec::new();
                    }
                    return Ok(taken);
                }
                Err(outcome) => {
                    self.shared.session.note(&stream.link);
                    self.plan.after(outcome)?;
                    // Cancel-safe: until the new one is there, the old one says the same again.
                    self.stream = Some(begin(&self.shared.session, &self.plan, &self.body).await?);
                }
            }
        }
    }
}

/// A response of events. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct ChatStream {
    items: ItemStream,
    item: Vec<u8>,
}

impl ChatStream {
    /// The next event; `None` at the end, and after an error. Events of unknown types are left out.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ClientError>> {
        loop {
            match self.items.next_into(&mut self.item).await {
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

pub(crate) fn models_body(provider: Option<&str>) -> Result<Vec<u8>, ClientError> {
    Ok(match provider {
        None => Vec::new(),
        Some(provider) => serde_json::to_vec(&ModelsRequest {
            provider: Some(provider.to_owned()),
        })?,
    })
}

pub(crate) fn shutdown_body(drain: Option<Duration>) -> Vec<u8> {
    drain.map_or_else(Vec::new, |drain| {
        format!(r#"{{"drainMs":{}}}"#, drain.as_millis()).into_bytes()
    })
}

/// The one item of a stream.
pub(crate) fn single<T: DeserializeOwned>(
    item: Option<Result<Vec<u8>, ClientError>>,
) -> Result<T, ClientError> {
    Ok(serde_json::from_slice(&item.unwrap_or(Ok(Vec::new()))?)?)
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

/// The present link, when there is one.
async fn link(session: &Session) -> Result<Arc<Link>, ClientError> {
    let mut wait = Wait::default();
    poll_fn(|cx| session.poll_link(&mut wait, cx.waker())).await
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
async fn begin(session: &Session, plan: &Plan, body: &[u8]) -> Result<Stream, ClientError> {
    let begun = async {
        loop {
            let link = link(session).await?;
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
    by(plan.deadline(), begun).await?
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
    mut take: impl FnMut(&mut crate::link::Tx, Option<&std::task::Waker>) -> Poll<T>,
) -> Poll<T> {
    let link = &*stream.link;
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
        if taken.is_ready() {
            drop(rx);
            link.tell_driver();
            return taken;
        }
    }
    let taken = take(&mut link.tx(), Some(cx.waker()));
    link.tell_driver();
    taken
}

async fn attempt(session: &Arc<Session>) -> Result<Arc<Link>, ConnectError> {
    let connecting = Arc::clone(session);
    let connected = match tokio::task::spawn_blocking(move || connecting.connect()).await {
        Ok(connected) => connected,
        // Only a runtime that shuts down drops the attempt.
        Err(error) => Err(ConnectError::Io {
            path: session.options.socket.clone(),
            source: std::io::Error::other(error),
        }),
    };
    session.connected(connected)
}

/// Makes the connection again whenever it is wanted.
async fn supervise(session: Arc<Session>) {
    loop {
        match session.step() {
            Step::Connect => {
                if let Ok(link) = attempt(&session).await {
                    tokio::spawn(drive(Arc::clone(&session), link));
                }
            }
            Step::WaitUntil(until) => {
                // Ending earlier is as well: the step is looked up again.
                let _ = tokio::time::timeout_at(until.into(), session.kick.notified()).await;
            }
            Step::Rest => session.kick.notified().await,
            Step::Closed => return,
        }
    }
}

/// Pumps a link until it ends.
async fn drive(session: Arc<Session>, link: Arc<Link>) {
    // Over shared memory every bell that the daemon takes would make the socket writable anew.
    let interest = match link.shares_memory() {
        true => Interest::READABLE,
        false => Interest::READABLE | Interest::WRITABLE,
    };
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; an Arc<OwnedFd> keeps its one open"
    )]
    let registered = AsyncFd::with_interest(link.shared_socket(), interest);
    match registered {
        Ok(socket) => {
            let mut driven = pin!(poll_fn(|cx| poll_drive(&session, &link, &socket, cx)));
            driven.as_mut().await;
        }
        Err(source) => {
            let call = "epoll_ctl";
            link.close(lapce_ai_transport::TransportError::System { call, source }.into());
        }
    }
    session.note(&link);
}

/// The runtime shuts down, and nobody will be woken by the socket any more.
fn closed(link: &Link) -> Poll<()> {
    link.close(End::Closed);
    Poll::Ready(())
}

fn poll_drive(
    session: &Session,
    link: &Arc<Link>,
    socket: &AsyncFd<Arc<OwnedFd>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    link.set_driver(cx.waker());
    for _ in 0..BATCHES {
        let sleep = {
            let mut rx = link.rx();
            let (frames, ()) = link.pump(&mut rx, |_| ());
            if frames > 0 {
                None
            } else {
                Some(link.prepare_to_sleep(&mut rx))
            }
        };
        match link.phase() {
            Phase::Ended => return Poll::Ready(()),
            Phase::GoingAway => {
                session.note(link);
                if link.close_if_drained() {
                    return Poll::Ready(());
                }
            }
            Phase::Open => {}
        }
        let Some(Some(writable)) = sleep else {
            continue;
        };
        match socket.poll_read_ready(cx) {
            Poll::Ready(Ok(mut ready)) => {
                link.woken(&mut link.rx());
                ready.clear_ready();
                continue;
            }
            Poll::Ready(Err(_)) => return closed(link),
            Poll::Pending => {}
        }
        if writable {
            match socket.poll_write_ready(cx) {
                Poll::Ready(Ok(mut ready)) => {
                    if !link.write_more() {
                        ready.clear_ready();
                    }
                    continue;
                }
                Poll::Ready(Err(_)) => return closed(link),
                Poll::Pending => {}
            }
        }
        return Poll::Pending;
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
