//! The writing half of a connection, shared by the reactor and the tasks that answer its requests.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapce_ai_proto::{
    ErrorBody, ErrorCode, FIN, Fault, ITEM_PREFIX_LEN, Kind, MORE, OpenPrefix, PREFIX, ServerState,
};
use lapce_ai_transport::{Buffer, PIECE, Peer, TransportError, Writer};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::mailbox::{Mailbox, Past};
use crate::options::Options;
use crate::pace::Pace;
use crate::repeats::{Left, Running, Whose};
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
    /// The reactor that serves it, and its token there.
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) token: u64,
    tx: Mutex<Tx>,
}

/// What is behind the lock. The lock covers copies into the ring, never an await.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(crate) state: ServerState,
    pub(crate) writer: Writer,
    max_frame: usize,
    stall_bytes: usize,
    streams: HashMap<u64, Stream>,
    replies: VecDeque<PendingReply>,
    /// Streams whose tasks wait for room in the ring.
    room_waiters: Vec<u64>,
    /// Bytes held for this connection outside the budget: they bound how far it is read.
    pub(crate) parked: usize,
    /// When the client stopped taking what is written, if it has.
    pub(crate) blocked_since: Option<Instant>,
    pub(crate) closed: bool,
    /// What came again and was run here: the id of each, and the one that it had at first. Few, and mostly none.
    repeats: Vec<(u64, u64)>,
    /// Once the connection is closed: requests that run on without it.
    adrift: HashMap<u64, Adrift>,
    /// What a sync handler's answer ran into; the reactor takes it after the handler.
    pub(crate) fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct Stream {
    abort: Option<AbortHandle>,
    waker: Option<Waker>,
}

/// A request that runs on though its connection was lost.
#[derive(Debug)]
enum Adrift {
    /// Whoever has its answer waits for the client to fetch it.
    Waiting {
        /// The id that it had at first.
        first: u64,
        /// Items that were sent whole.
        items: u32,
        abort: AbortHandle,
        waker: Option<Waker>,
    },
    /// It failed meanwhile.
    Failed { first: u64, body: ErrorBody },
    /// It goes on there.
    Moved(Arc<Session>, u64),
}

/// Why an answer does not go on here.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It is not wanted any more.
    Gone,
    /// It goes on in another session, with another id. An item that was not sent whole is sent there from its start.
    Moved(Arc<Session>, u64),
}

/// What became of a request that a client wants to fetch.
pub(crate) enum Fetched {
    /// It goes on here: how to end its task.
    GoesOn(AbortHandle),
    Failed(ErrorBody),
    /// The client does not stand where the answer does, or it is over.
    Lost,
}

/// A sync handler's answer that could not be written at once.
#[derive(Debug)]
struct PendingReply {
    id: u64,
    bytes: ReplyBytes,
    offset: usize,
    pace: Pace,
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
        mailbox: Arc<Mailbox>,
        peer: Peer,
        state: ServerState,
        writer: Writer,
        options: &Options,
    ) -> Self {
        let tx = Tx {
            state,
            writer,
            max_frame: options.limits.max_frame_payload as usize,
            stall_bytes: options.stall_bytes,
            streams: HashMap::new(),
            replies: VecDeque::new(),
            room_waiters: Vec::new(),
            parked: 0,
            blocked_since: None,
            closed: false,
            repeats: Vec::new(),
            adrift: HashMap::new(),
            fault: None,
        };
        Self {
            id,
            peer,
            since: Instant::now(),
            requests: AtomicU64::new(0),
            live: AtomicU64::new(0),
            attention: AtomicBool::new(false),
            mailbox,
            token,
            tx: Mutex::new(tx),
        }
    }

    /// The same of a connection that was served elsewhere before.
    pub(crate) fn after(self, past: &Past) -> Self {
        Self {
            since: past.since,
            requests: AtomicU64::new(past.requests),
            ..self
        }
    }

    /// What another session can be made of.
    pub(crate) fn into_parts(self) -> (ServerState, Writer) {
        let tx = self.tx.into_inner().unwrap_or_else(PoisonError::into_inner);
        (tx.state, tx.writer)
    }

    /// A handler that panics does so outside of the copies, so what the lock guards stays whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tx> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the connection's reactor to look after it: to watch for room, or to notice that it broke.
    pub(crate) fn call_reactor(&self) {
        if !self.attention.swap(true, Ordering::AcqRel) {
            self.mailbox
                .post(|letters| letters.attention.push(self.token));
        }
    }

    /// Notes how many requests are under way, for those who look without the lock.
    pub(crate) fn note_live(&self, tx: &Tx) {
        self.live.store(tx.state.live() as u64, Ordering::Relaxed);
    }

    /// Makes what a task wrote visible. A connection that broke is left to the reactor, which sees it too.
    fn settle(&self, tx: &mut Tx) {
        let result = tx.pump();
        self.note_live(tx);
        if result.is_err() || tx.blocked_since.is_some() || tx.writer.wants_writable() {
            self.call_reactor();
        }
    }

    /// Sends an item, or with `last` the response's last item, from `offset` on.
    pub(crate) fn poll_send(
        &self,
        id: u64,
        item: &[u8],
        offset: &mut usize,
        last: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        let mut tx = self.lock();
        if tx.closed {
            return tx.poll_adrift(id, context);
        }
        let outcome = loop {
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
                Ok(None) => return Poll::Ready(Err(Stopped::Gone)),
                Err(error) => return self.broken(&mut tx, id, &error, context),
            }
        };
        if last && outcome.is_ready() {
            tx.streams.remove(&id);
        }
        self.settle(&mut tx);
        outcome
    }

    /// The connection broke. Its reactor is told, and closes it.
    fn broken(
        &self,
        tx: &mut Tx,
        id: u64,
        error: &TransportError,
        context: &Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        self.call_reactor();
        if error.fault().is_some() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        // The client is gone. It may come again and fetch the answer: that is known once it is closed.
        tx.wait(id, context);
        Poll::Pending
    }

    /// Ends a response without a further item.
    pub(crate) fn poll_end(&self, id: u64, context: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let mut tx = self.lock();
        if tx.closed {
            return tx.poll_adrift(id, context);
        }
        if tx.state.credit(id).is_none() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        let written = match tx.writer.frame(Kind::End, 0, 0, id, &[], &[]) {
            Ok(written) => written,
            Err(error) => return self.broken(&mut tx, id, &error, context),
        };
        if written {
            tx.state.ended(id);
            tx.streams.remove(&id);
        } else {
            tx.wait_for_room(id, context);
        }
        self.settle(&mut tx);
        if written {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Ends a stream with an error, from a task.
    pub(crate) fn fail(&self, shared: &Shared, id: u64, body: ErrorBody) {
        let mut tx = self.lock();
        if tx.closed {
            if let Some((session, id)) = tx.fail_adrift(id, &body) {
                drop(tx);
                session.fail(shared, id, body);
            }
            return;
        }
        if tx.state.credit(id).is_none() {
            return;
        }
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        tx.state.fail(id, body);
        tx.streams.remove(&id);
        self.settle(&mut tx);
    }
}

impl Session {
    /// Whose requests they are.
    pub(crate) fn whose(&self) -> Whose {
        Whose {
            uid: self.peer.credentials.uid,
            instance: self.peer.instance,
        }
    }

    /// Ends everything: buffers are freed, the peer is hung up on, and tasks are aborted but for those that the client may
    /// still fetch. What may be asked of the connection later is remembered. Returns how many requests ended with it.
    pub(crate) fn close(
        self: &Arc<Self>,
        tx: &mut Tx,
        shared: &Arc<Shared>,
        runtime: &Handle,
    ) -> usize {
        if tx.closed {
            return 0;
        }
        tx.closed = true;
        let mut left = Left {
            through: tx.state.last_taken(),
            ..Left::default()
        };
        let live = tx.state.live();
        for id in tx.state.ids() {
            let begun = tx.streams.contains_key(&id)
                || tx.state.credit(id).is_none()
                || tx.replies.iter().any(|reply| reply.id == id);
            if !begun {
                left.spared.push(tx.first_id(id));
            }
        }
        for (id, stream) in std::mem::take(&mut tx.streams) {
            let Some(abort) = stream.abort else {
                continue;
            };
            if tx.state.credit(id).is_none() || !shared.repeats.hold() {
                abort.abort();
                continue;
            }
            if let Some(waker) = stream.waker {
                // It waits for what does not come any more.
                waker.wake();
            }
            let first = tx.first_id(id);
            left.running.push((first, (Arc::clone(self), id)));
            let adrift = Adrift::Waiting {
                first,
                items: tx.state.items(id),
                abort,
                waker: None,
            };
            tx.adrift.insert(id, adrift);
        }
        tx.replies.clear();
        tx.room_waiters.clear();
        tx.parked = 0;
        tx.writer.hang_up();
        let running = left.running.len();
        shared.repeats.lost(self.whose(), left, Instant::now());
        if running > 0 {
            let (session, shared) = (Arc::clone(self), Arc::clone(shared));
            runtime.spawn(async move {
                tokio::time::sleep(shared.repeats.grace()).await;
                session.give_up(&shared);
            });
        }
        live - running
    }

    /// Nobody fetches the requests that run on.
    fn give_up(&self, shared: &Shared) {
        let mut tx = self.lock();
        let mut over = Vec::new();
        tx.adrift.retain(|_, adrift| match adrift {
            Adrift::Waiting { first, abort, .. } => {
                abort.abort();
                over.push(*first);
                false
            }
            Adrift::Failed { first, .. } => {
                over.push(*first);
                false
            }
            Adrift::Moved(..) => true,
        });
        drop(tx);
        let cancelled = &shared.counters.cancelled;
        cancelled.fetch_add(over.len() as u64, Ordering::Relaxed);
        for first in over {
            shared.repeats.unfetched(self.whose(), first);
            shared.repeats.release();
        }
    }

    /// The client wants a request of this session, which it lost, to go on as `id` of another one. It has so many items of the answer.
    pub(crate) fn fetch(
        running: &Running,
        to: &Arc<Self>,
        id: u64,
        received: u32,
        shared: &Shared,
    ) -> Fetched {
        let (session, old) = running;
        let mut tx = session.lock();
        let fetched = match tx.adrift.remove(old) {
            Some(Adrift::Waiting {
                items,
                abort,
                waker,
                ..
            }) if items == received => {
                tx.adrift.insert(*old, Adrift::Moved(Arc::clone(to), id));
                if let Some(waker) = waker {
                    waker.wake();
                }
                Fetched::GoesOn(abort)
            }
            Some(Adrift::Waiting { abort, .. }) => {
                abort.abort();
                Fetched::Lost
            }
            Some(Adrift::Failed { body, .. }) => Fetched::Failed(body),
            Some(moved @ Adrift::Moved(..)) => {
                tx.adrift.insert(*old, moved);
                return Fetched::Lost;
            }
            None => return Fetched::Lost,
        };
        drop(tx);
        shared.repeats.release();
        fetched
    }
}

impl Tx {
    /// Where an answer goes on whose connection was lost.
    fn poll_adrift(&mut self, id: u64, context: &Context<'_>) -> Poll<Result<(), Stopped>> {
        match self.adrift.get_mut(&id) {
            Some(Adrift::Waiting { waker, .. }) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(Adrift::Moved(session, id)) => {
                Poll::Ready(Err(Stopped::Moved(Arc::clone(session), *id)))
            }
            Some(Adrift::Failed { .. }) | None => Poll::Ready(Err(Stopped::Gone)),
        }
    }

    /// A request that runs on has failed. If it goes on elsewhere, where.
    fn fail_adrift(&mut self, id: u64, body: &ErrorBody) -> Option<Running> {
        let adrift = self.adrift.get_mut(&id)?;
        match adrift {
            Adrift::Waiting { first, .. } => {
                *adrift = Adrift::Failed {
                    first: *first,
                    body: body.clone(),
                };
                None
            }
            Adrift::Failed { .. } => None,
            Adrift::Moved(session, id) => Some((Arc::clone(session), *id)),
        }
    }

    /// A request that came again is run here.
    pub(crate) fn note_repeat(&mut self, id: u64, first: u64) {
        if self.repeats.len() >= self.state.live().max(16) * 2 {
            let state = &self.state;
            self.repeats.retain(|(id, _)| state.credit(*id).is_some());
        }
        self.repeats.push((id, first));
    }

    /// The id that a request had at first.
    fn first_id(&self, id: u64) -> u64 {
        let repeat = self.repeats.iter().find(|(here, _)| *here == id);
        repeat.map_or(id, |(_, first)| *first)
    }

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
        } else if all {
            self.state.sent_item(id, piece.len() as u32);
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

    fn wait(&mut self, id: u64, context: &Context<'_>) {
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
            pace: Pace::new(Instant::now()),
        });
    }

    /// Whether answers of sync handlers wait for credit or room.
    pub(crate) fn owes_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Those of them of which too little was read in the last `limit`.
    pub(crate) fn unread_replies(&self, now: Instant, limit: Duration) -> Vec<u64> {
        self.replies
            .iter()
            .filter(|reply| reply.pace.is_late(now, limit))
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

    /// [`pump_awake`](Self::pump_awake), and asks for a bell if there was no room for the rest.
    pub(crate) fn pump(&mut self) -> Result<(), TransportError> {
        loop {
            self.pump_awake()?;
            if self.blocked_since.is_none()
                || self
                    .writer
                    .wait_for_room(self.max_frame + ITEM_PREFIX_LEN)?
            {
                return Ok(());
            }
        }
    }

    /// Writes what waits to be written: control frames first, then the sync handlers' answers in turn. Makes it all
    /// visible. If there is no room for the rest, the caller looks for it again, or sees to it that somebody asks for a
    /// bell.
    pub(crate) fn pump_awake(&mut self) -> Result<(), TransportError> {
        loop {
            let stuck = !self.write_control()? || !self.write_replies()?;
            self.writer.flush()?;
            if !stuck && self.room_waiters.is_empty() {
                self.blocked_since = None;
                return Ok(());
            }
            if !self.has_room()? {
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
            let written =
                match self.write_piece(reply.id, reply.bytes.as_slice(), reply.offset, true) {
                    Ok(written) => written,
                    Err(error) => {
                        // Its request was run: that must be known when the connection is closed.
                        self.replies.push_front(reply);
                        return Err(error);
                    }
                };
            match written {
                Some(Written::Some(bytes)) => {
                    without_credit = 0;
                    reply.offset += bytes;
                    reply.pace.moved(bytes, self.stall_bytes, Instant::now);
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

    /// Whether nothing runs, waits or is held: nothing is known here but ids.
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.closed
            && self.state.is_at_rest()
            && self.replies.is_empty()
            && self.parked == 0
            && self.blocked_since.is_none()
            && self.fault.is_none()
    }

    /// Ends every stream for good, as the server stops or as it cuts the client: none is found when the client comes again.
    pub(crate) fn cut_all(&mut self, code: ErrorCode, message: &str) {
        for id in self.state.ids() {
            self.cut(id, ErrorBody::new(code, message));
        }
    }
}
