//! What handlers get, and how they answer.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lapce_ai_proto::{Class, ErrorBody, ErrorCode, Fault, MessageType, OpenPrefix};
use lapce_ai_transport::{Buffer, Peer};

use crate::server::Shared;
use crate::session::{ReplyBytes, Session, Stopped, Tx};

pub(crate) type SyncHandler = Box<dyn Fn(Request<'_>, Reply<'_>) + Send + Sync>;
pub(crate) type AsyncHandler =
    Arc<dyn Fn(OwnedRequest, Responder) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How requests of one type are answered.
pub(crate) enum Handler {
    Sync(SyncHandler),
    Async(AsyncHandler),
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync(_) => "Sync",
            Self::Async(_) => "Async",
        })
    }
}

/// The bytes of a request: in the reactor's own memory for the length of the call, or in a pooled buffer.
#[derive(Debug)]
pub enum Body<'a> {
    /// A request that came in one frame.
    Inline(&'a [u8]),
    /// A request that came in several frames.
    Buffer(Buffer),
}

impl std::ops::Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Body::Inline(bytes) => bytes,
            Body::Buffer(buffer) => buffer,
        }
    }
}

/// A request to a sync handler.
#[derive(Debug)]
pub struct Request<'a> {
    pub(crate) ty: MessageType,
    pub(crate) prefix: OpenPrefix,
    pub(crate) body: Body<'a>,
    pub(crate) session: &'a Session,
}

impl<'a> Request<'a> {
    /// What is asked.
    pub fn message_type(&self) -> MessageType {
        self.ty
    }

    /// What the request says about itself.
    pub fn prefix(&self) -> &OpenPrefix {
        &self.prefix
    }

    /// Who asks.
    pub fn peer(&self) -> &Peer {
        &self.session.peer
    }

    /// The request's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The request's bytes, to keep or to [send back](Reply::send_body).
    pub fn into_body(self) -> Body<'a> {
        self.body
    }
}

/// Answers a request of a sync handler, once. Dropping it unused answers with `internal`.
#[derive(Debug)]
pub struct Reply<'a> {
    pub(crate) tx: &'a mut Tx,
    pub(crate) shared: &'a Shared,
    pub(crate) id: u64,
    pub(crate) prefix: OpenPrefix,
    /// Length of the body if the request came in one frame and the stream is not recorded.
    pub(crate) untracked: Option<usize>,
    pub(crate) answered: bool,
}

impl Reply<'_> {
    /// Answers with these bytes, one item. They go straight into the ring if it has room and are kept otherwise. More than
    /// `max_message_size` of them are the error `message_too_large`.
    #[inline]
    pub fn send(mut self, bytes: &[u8]) {
        self.answered = true;
        if self.send_now(bytes) {
            return;
        }
        if let Some(body) = too_large(bytes.len(), self.shared) {
            self.fail_with(body);
            return;
        }
        // Requests that wait for memory go first.
        let bytes = match self.shared.at_once(bytes.len()) {
            Some(mut buffer) => {
                buffer.extend(bytes);
                ReplyBytes::Buffer(buffer)
            }
            None => ReplyBytes::Parked(bytes.to_vec()),
        };
        self.queue(bytes);
    }

    /// Answers with a request's body, without a copy if it lies in a buffer.
    #[inline]
    pub fn send_body(mut self, body: Body<'_>) {
        match body {
            Body::Inline(bytes) => self.send(bytes),
            Body::Buffer(buffer) => {
                self.answered = true;
                self.queue(ReplyBytes::Buffer(buffer));
            }
        }
    }

    /// Answers with an error.
    pub fn fail(mut self, body: ErrorBody) {
        self.answered = true;
        self.fail_with(body);
    }

    fn send_now(&mut self, bytes: &[u8]) -> bool {
        if self.untracked.is_none() {
            return false;
        }
        let window = self.tx.state.window(&self.prefix);
        // A broken ring is found again, and reported, by the reactor's next look at it.
        match self.tx.answer_now(self.id, window, bytes) {
            Ok(sent) => sent,
            Err(error) => {
                self.tx.fault = error.fault();
                true
            }
        }
    }

    fn queue(&mut self, bytes: ReplyBytes) {
        if self.track() {
            self.tx.queue_reply(self.id, bytes);
        }
    }

    fn fail_with(&mut self, body: ErrorBody) {
        self.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        if self.track() {
            self.tx.state.fail(self.id, body);
        }
    }

    fn track(&mut self) -> bool {
        if let Some(inline) = self.untracked.take()
            && let Err(fault) = self.tx.track(self.id, &self.prefix, inline)
        {
            self.tx.fault = Some(fault);
            return false;
        }
        true
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.fail_with(unanswered());
        }
    }
}

/// Why an item cannot be sent that is longer than a message may be: its client would take it for a fault, and hang up.
fn too_large(bytes: usize, shared: &Shared) -> Option<ErrorBody> {
    let most = shared.options.limits.max_message_size;
    (bytes as u64 > most).then(|| {
        let message = format!("the answer has {bytes} bytes, and a message at most {most}");
        ErrorBody::new(ErrorCode::MessageTooLarge, message)
    })
}

fn unanswered() -> ErrorBody {
    let why = if std::thread::panicking() {
        "the handler panicked"
    } else {
        "the handler gave no answer"
    };
    ErrorBody::new(ErrorCode::Internal, why)
}

/// A request to an async handler.
#[derive(Debug)]
pub struct OwnedRequest {
    /// What is asked.
    pub ty: MessageType,
    /// The request's bytes. Drop it as soon as it is parsed: it counts against the budget.
    pub body: Buffer,
    /// How urgent it is.
    pub class: Class,
    /// When the answer becomes worthless. The handler is dropped then; this is for passing it on.
    pub deadline: Option<Instant>,
    pub(crate) session: Arc<Session>,
}

impl OwnedRequest {
    /// Who asks.
    pub fn peer(&self) -> &Peer {
        &self.session.peer
    }

    /// The number of the connection it came on.
    pub fn connection(&self) -> u64 {
        self.session.id
    }
}

/// The answer is not wanted any more: cancelled, over its deadline, or the client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not wanted any more")]
pub struct Gone;

/// Answers a request of an async handler: any number of items, then an end. Each call waits until the client has given
/// credit and its ring has room, so a slow reader slows its own answer and nobody else's. Dropping it before an
/// end answers with `internal`.
#[derive(Debug)]
pub struct Responder {
    pub(crate) session: Arc<Session>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
    pub(crate) ended: bool,
}

impl Responder {
    /// Sends one item. One longer than `max_message_size` ends the response with `message_too_large`.
    ///
    /// # Errors
    /// [`Gone`]: stop working on it.
    pub async fn send(&mut self, item: &[u8]) -> Result<(), Gone> {
        self.send_item(item, false).await
    }

    /// Sends one item and ends the response.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn answer(mut self, item: &[u8]) -> Result<(), Gone> {
        let sent = self.send_item(item, true).await;
        self.ended = true;
        sent
    }

    /// Ends the response.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn end(mut self) -> Result<(), Gone> {
        loop {
            let ended = poll_fn(|context| self.session.poll_end(self.id, context)).await;
            match ended {
                Err(Stopped::Moved(session, id)) => (self.session, self.id) = (session, id),
                ended => {
                    self.ended = true;
                    return ended.map_err(|_| Gone);
                }
            }
        }
    }

    /// Ends the response with an error.
    pub fn fail(mut self, body: ErrorBody) {
        self.ended = true;
        self.session.fail(&self.shared, self.id, body);
    }

    async fn send_item(&mut self, item: &[u8], last: bool) -> Result<(), Gone> {
        if let Some(body) = too_large(item.len(), &self.shared) {
            self.session.fail(&self.shared, self.id, body);
            return Err(Gone);
        }
        loop {
            let mut offset = 0;
            let sent = poll_fn(|context| {
                self.session
                    .poll_send(self.id, item, &mut offset, last, context)
            });
            match sent.await {
                Ok(()) => return Ok(()),
                Err(Stopped::Gone) => return Err(Gone),
                Err(Stopped::Moved(session, id)) => (self.session, self.id) = (session, id),
            }
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.ended {
            // An aborted task's stream has ended already, and this does nothing.
            self.session.fail(&self.shared, self.id, unanswered());
        }
    }
}

/// Finds the handler of a type: a table for the assigned numbers, a map for the free ones.
#[derive(Debug, Default)]
pub(crate) struct Router {
    low: Vec<Option<Handler>>,
    high: std::collections::BTreeMap<u16, Handler>,
}

const LOW: u16 = 64;

impl Router {
    pub(crate) fn insert(&mut self, ty: MessageType, handler: Handler) {
        if ty.0 < LOW {
            if self.low.is_empty() {
                self.low.resize_with(usize::from(LOW), || None);
            }
            self.low[usize::from(ty.0)] = Some(handler);
        } else {
            self.high.insert(ty.0, handler);
        }
    }

    #[inline]
    pub(crate) fn get(&self, ty: MessageType) -> Option<&Handler> {
        match self.low.get(usize::from(ty.0)) {
            Some(handler) => handler.as_ref(),
            None => self.high.get(&ty.0),
        }
    }
}

/// A fault that a handler's answer ran into becomes the connection's.
pub(crate) fn take_fault(tx: &mut Tx) -> Result<(), Fault> {
    tx.fault.take().map_or(Ok(()), Err)
}
