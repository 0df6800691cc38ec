//! The writing half of a connection, shared by the reactor and the tasks that answer its requests.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use lapce_ai_proto::{
    ErrorBody, ErrorCode, FIN, Fault, ITEM_PREFIX_LEN, Kind, MORE, OpenPrefix, PREFIX, ServerState,
};
use lapce_ai_transport::{Buffer, PIECE, Peer, TransportError, Writer};
use tokio::task::AbortHandle;

use crate::handler::Gone;
use crate::server::Shared;

/// One connection, as everybody but the reactor sees it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) since: Instant,
    /// Requests taken.
    pub(crate) requests: AtomicU64,
    /// Requests under way, as of the last turn.
    pub(crate) live: AtomicU64,
    /// Whether the reactor has been asked to look after this connection.
    pub(crate) attention: AtomicBool,
    /// The reactor's token of this connection.
    pub(crate) token: u64,
    tx: Mutex<Tx>,
}

/// What is behind the lock. The lock covers copies into the ring, never an await.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(crate) state: ServerState,
    pub(crate) writer: Writer,
    max_frame: usize,
    streams: HashMap<u64, Stream>,
    replies: VecDeque<PendingReply>,
    /// Streams whose tasks wait for room in the ring.
    room_waiters: Vec<u64>,
    /// Bytes held for this connection outside the budget: they bound how far it is read.
    pub(crate) parked: usize,
    /// When the client stopped taking what is written, if it has.
    pub(crate) blocked_since: Option<Instant>,
    closed: bool,
    /// What a sync handler's answer ran into; the reactor takes it after the handler.
    pub(crate) fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct Stream {
    abort: Option<AbortHandle>,
    waker: Option<Waker>,
}

/// A sync handler's answer that could not be written at once.
#[derive(Debug)]
struct PendingReply {
    id: u64,
    bytes: ReplyBytes,
    offset: usize,
    last_progress: Instant,
}

#[derive(Debug)]
pub(crate) enum ReplyBytes {
    /// Within the budget.
    Buffer(Buffer),
    /// Beside it: counted in [`Tx::parked`].
    Parked(Vec<u8>),
}

impl ReplyBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer,
            Self::Parked(bytes) => bytes,
        }
    }
}

/// How a piece of an item was written.
enum Written {
    /// So many bytes; the item goes on.
    Some(usize),
    /// The item is complete.
    All,
    NoCredit,
    NoRoom,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        token: u64,
        peer: Peer,
        state: ServerState,
        writer: Writer,
        max_frame: usize,
    ) -> Self {
        let tx = Tx {
            state,
            writer,
            max_frame,
            streams: HashMap::new(),
            replies: VecDeque::new(),
            room_waiters: Vec::new(),
            parked: 0,
            blocked_since: None,
            closed: false,
            fault: None,
        };
        Self {
            id,
            peer,
            since: Instant::now(),
            requests: AtomicU64::new(0),
            live: AtomicU64::new(0),
            attention: AtomicBool::new(false),
            token,
            tx: Mutex::new(tx),
        }
    }

    /// A handler that panics does so outside of the copies, so what the lock guards stays whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tx> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how many requests are under way, for those who look without the lock.
    pub(crate) fn note_live(&self, tx: &Tx) {
        self.live.store(tx.state.live() as u64, Ordering::Relaxed);
    }

    /// Makes what a task wrote visible. A connection that broke is left to the reactor, which sees it too.
    fn settle(&self, tx: &mut Tx, shared: &Shared) {
        let result = tx.pump();
        self.note_live(tx);
        if result.is_err() || tx.blocked_since.is_some() || tx.writer.wants_writable() {
            shared.call_reactor(self);
        }
    }

    /// Sends an item, or with `last` the response's last item, from `offset` on.
    pub(crate) fn poll_send(
        &self,
        shared: &Shared,
        id: u64,
        item: &[u8],
        offset: &mut usize,
        last: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Gone>> {
        let mut tx = self.lock();
        let outcome = loop {
            if tx.closed {
                return Poll::Ready(Err(Gone));
            }
            match tx.write_piece(id, item, *offset, last) {
                Ok(Some(Written::All)) => break Poll::Ready(Ok(())),
                Ok(Some(Written::Some(bytes))) => *offset += bytes,
                Ok(Some(Written::NoCredit)) => {
                    tx.wait(id, context);
                    break Poll::Pending;
                }
                Ok(Some(Written::NoRoom)) => {
                    tx.wait_for_room(id, context);
                    break Poll::Pending;
                }
                Ok(None) => return Poll::Ready(Err(Gone)),
                Err(_) => {
                    shared.call_reactor(self);
                    return Poll::Ready(Err(Gone));
                }
            }
        };
        if last && outcome.is_ready() {
            tx.streams.remove(&id);
        }
        self.settle(&mut tx, shared);
        outcome
    }

    /// Ends a response without a further item.
    pub(crate) fn poll_end(
        &self,
        shared: &Shared,
        id: u64,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Gone>> {
        let mut tx = self.lock();
        if tx.closed || tx.state.credit(id).is_none() {
            return Poll::Ready(Err(Gone));
        }
        let Ok(written) = tx.writer.frame(Kind::End, 0, 0, id, &[], &[]) else {
            shared.call_reactor(self);
            return Poll::Ready(Err(Gone));
        };
        if written {
            tx.state.ended(id);
            tx.streams.remove(&id);
        } else {
            tx.wait_for_room(id, context);
        }
        self.settle(&mut tx, shared);
        if written {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Ends a stream with an error, from a task.
    pub(crate) fn fail(&self, shared: &Shared, id: u64, body: ErrorBody) {
        let mut tx = self.lock();
        if tx.closed || tx.state.credit(id).is_none() {
            return;
        }
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        tx.state.fail(id, body);
        tx.streams.remove(&id);
        self.settle(&mut tx, shared);
    }
}

impl Tx {
    /// Writes what a stream may send of an item now; `None`: the stream has ended.
    fn write_piece(
        &mut self,
        id: u64,
        item: &[u8],
        offset: usize,
        last: bool,
    ) -> Result<Option<Written>, TransportError> {
        let Some(credit) = self.state.credit(id) else {
            return Ok(None);
        };
        let rest = &item[offset..];
        let first = offset == 0;
        let mut most = self.max_frame.min(credit as usize);
        let whole = rest.len() <= most;
        if !whole {
            most = most.min(PIECE);
        }
        if first && !whole {
            most = most.min(self.max_frame - ITEM_PREFIX_LEN);
        }
        let piece = &rest[..rest.len().min(most)];
        let all = piece.len() == rest.len();
        if piece.is_empty() && !all {
            return Ok(Some(Written::NoCredit));
        }
        let (kind, flags) = match (all, last) {
            (true, true) => (Kind::End, FIN),
            (true, false) => (Kind::Data, 0),
            (false, _) if first => (Kind::Data, MORE | PREFIX),
            (false, _) => (Kind::Data, MORE),
        };
        let length = (item.len() as u64).to_le_bytes();
        let prefix: &[u8] = if first && !all { &length } else { &[] };
        if !self.writer.frame(kind, flags, 0, id, prefix, piece)? {
            return Ok(Some(Written::NoRoom));
        }
        if !all {
            // The client copies it out while we copy the next one in.
            self.writer.flush()?;
        }
        // The client reads, however slowly.
        self.blocked_since = None;
        if kind == Kind::End {
            self.state.ended(id);
        } else {
            self.state.sent(id, piece.len() as u32);
        }
        Ok(Some(if all {
            Written::All
        } else {
            Written::Some(piece.len())
        }))
    }

    fn wait_for_room(&mut self, id: u64, context: &mut Context<'_>) {
        self.wait(id, context);
        if !self.room_waiters.contains(&id) {
            self.room_waiters.push(id);
        }
    }

    fn wait(&mut self, id: u64, context: &mut Context<'_>) {
        let stream = self.streams.entry(id).or_default();
        match &mut stream.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => stream.waker = Some(context.waker().clone()),
        }
    }

    /// Answers a request that is not tracked yet, at once if that is possible.
    #[inline]
    pub(crate) fn answer_now(
        &mut self,
        id: u64,
        window: u32,
        bytes: &[u8],
    ) -> Result<bool, TransportError> {
        if bytes.len() > self.max_frame || bytes.len() > window as usize {
            return Ok(false);
        }
        self.writer.frame(Kind::End, FIN, 0, id, &[], bytes)
    }

    /// Keeps a sync handler's answer until it can be written.
    pub(crate) fn queue_reply(&mut self, id: u64, bytes: ReplyBytes) {
        if let ReplyBytes::Parked(bytes) = &bytes {
            self.parked += bytes.len();
        }
        self.replies.push_back(PendingReply {
            id,
            bytes,
            offset: 0,
            last_progress: Instant::now(),
        });
    }

    /// Whether answers of sync handlers wait for credit or room.
    pub(crate) fn owes_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Those of them that have waited since a time that is too `late`.
    pub(crate) fn unread_replies(&self, late: impl Fn(Instant) -> bool) -> Vec<u64> {
        self.replies
            .iter()
            .filter(|reply| late(reply.last_progress))
            .map(|reply| reply.id)
            .collect()
    }

    /// Records a request that a task answers.
    pub(crate) fn track(
        &mut self,
        id: u64,
        prefix: &OpenPrefix,
        inline: usize,
    ) -> Result<(), Fault> {
        self.state.track(id, prefix, inline)
    }

    /// Notes how to end the task behind a stream.
    pub(crate) fn running(&mut self, id: u64, abort: AbortHandle) {
        self.streams.entry(id).or_default().abort = Some(abort);
    }

    /// Ends a stream with an error and the task behind it.
    pub(crate) fn cut(&mut self, id: u64, body: ErrorBody) {
        if let Some(Stream {
            abort: Some(abort), ..
        }) = self.streams.remove(&id)
        {
            abort.abort();
        }
        self.state.fail(id, body);
    }

    /// The client gave credit, so the task behind the stream may go on.
    pub(crate) fn wake(&mut self, id: u64) {
        if let Some(Stream {
            waker: Some(waker), ..
        }) = self.streams.get_mut(&id)
        {
            waker.wake_by_ref();
        }
    }

    /// Whether what is blocked could go on.
    pub(crate) fn has_room(&mut self) -> Result<bool, TransportError> {
        self.writer.has_room(self.max_frame + ITEM_PREFIX_LEN)
    }

    /// Writes what waits to be written: control frames first, then the sync handlers' answers in turn. Makes it all
    /// visible, and asks for a bell if there was no room for the rest.
    pub(crate) fn pump(&mut self) -> Result<(), TransportError> {
        loop {
            let stuck = !self.write_control()? || !self.write_replies()?;
            self.writer.flush()?;
            if !stuck && self.room_waiters.is_empty() {
                self.blocked_since = None;
                return Ok(());
            }
            if self
                .writer
                .wait_for_room(self.max_frame + ITEM_PREFIX_LEN)?
            {
                self.blocked_since.get_or_insert_with(Instant::now);
                return Ok(());
            }
            // There is room. Tasks come back by themselves; what is ours is tried again.
            self.blocked_since = None;
            let mut waiters = std::mem::take(&mut self.room_waiters);
            for id in waiters.drain(..) {
                self.wake(id);
            }
            self.room_waiters = waiters;
            if !stuck {
                return Ok(());
            }
        }
    }

    /// False: there was no room for all of it.
    fn write_control(&mut self) -> Result<bool, TransportError> {
        while self.state.has_control() {
            let Some(control) = self.state.next_control() else {
                break;
            };
            if !self.writer.control(control)? {
                return Ok(false);
            }
            self.state.control_sent();
        }
        Ok(true)
    }

    /// False: there was no room for all of it. Answers that wait for credit do not count.
    fn write_replies(&mut self) -> Result<bool, TransportError> {
        let mut without_credit = 0;
        while without_credit < self.replies.len() {
            let Some(mut reply) = self.replies.pop_front() else {
                break;
            };
            match self.write_piece(reply.id, reply.bytes.as_slice(), reply.offset, true)? {
                Some(Written::Some(bytes)) => {
                    without_credit = 0;
                    reply.offset += bytes;
                    reply.last_progress = Instant::now();
                    self.replies.push_back(reply);
                }
                Some(Written::NoCredit) => {
                    without_credit += 1;
                    self.replies.push_back(reply);
                }
                Some(Written::NoRoom) => {
                    self.replies.push_front(reply);
                    return Ok(false);
                }
                // Complete, or the stream has ended otherwise.
                Some(Written::All) | None => {
                    if let ReplyBytes::Parked(bytes) = &reply.bytes {
                        self.parked -= bytes.len();
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether anything waits to be written or to be answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.state.live() == 0 && !self.state.has_control() && !self.writer.wants_writable()
    }

    /// Ends everything: tasks are aborted, buffers freed, the peer hung up on.
    pub(crate) fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        for (_, stream) in self.streams.drain() {
            if let Some(abort) = stream.abort {
                abort.abort();
            }
        }
        self.replies.clear();
        self.room_waiters.clear();
        self.parked = 0;
        self.writer.hang_up();
    }

    /// Ends every stream, as the server stops.
    pub(crate) fn cut_all(&mut self, code: ErrorCode, message: &str) {
        for id in self.state.ids() {
            self.cut(id, ErrorBody::new(code, message));
        }
    }
}
