//! What is behind a session's lock: its streams, and how what they say gets into the ring.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use lapce_ai_proto::{
    ErrorBody, ErrorCode, FIN, Fault, ITEM_PREFIX_LEN, Kind, MORE, OpenPrefix, PREFIX, ServerState,
};
use lapce_ai_transport::{Buffer, PIECE, TransportError, Writer};
use tokio::task::AbortHandle;

use super::adrift::Adrift;
use crate::options::Options;
use crate::pace::Pace;

/// What is behind the lock. The lock covers copies into the ring, never an await.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(crate) state: ServerState,
    pub(crate) writer: Writer,
    max_frame: usize,
    stall_bytes: usize,
    pub(super) streams: HashMap<u64, Stream>,
    pub(super) replies: VecDeque<PendingReply>,
    /// Streams whose tasks wait for room in the ring.
    pub(super) room_waiters: Vec<u64>,
    /// Streams whose tasks wait for credit, or did since the last look, and how the item moves that each of them sends.
    pub(super) credit_waiters: Vec<(u64, Pace)>,
    /// Bytes held for this connection outside the budget: they bound how far it is read.
    pub(crate) parked: usize,
    /// When the client stopped taking what is written, if it has.
    pub(crate) blocked_since: Option<Instant>,
    pub(crate) closed: bool,
    /// What came again and was run here: the id of each, and the one that it had at first. Few, and mostly none.
    pub(super) repeats: Vec<(u64, u64)>,
    /// Once the connection is closed: requests that run on without it.
    pub(super) adrift: HashMap<u64, Adrift>,
    /// What a sync handler's answer ran into; the reactor takes it after the handler.
    pub(crate) fault: Option<Fault>,
}

/// The task behind a stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) abort: Option<AbortHandle>,
    pub(super) waker: Option<Waker>,
}

/// A sync handler's answer that could not be written at once.
#[derive(Debug)]
pub(super) struct PendingReply {
    pub(super) id: u64,
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
pub(super) enum Written {
    /// So many bytes; the item goes on.
    Some(usize),
    /// The item is complete.
    All,
    NoCredit,
    NoRoom,
}

impl Tx {
    pub(super) fn new(state: ServerState, writer: Writer, options: &Options) -> Self {
        Self {
            state,
            writer,
            max_frame: options.limits.max_frame_payload as usize,
            stall_bytes: options.stall_bytes,
            streams: HashMap::new(),
            replies: VecDeque::new(),
            room_waiters: Vec::new(),
            credit_waiters: Vec::new(),
            parked: 0,
            blocked_since: None,
            closed: false,
            repeats: Vec::new(),
            adrift: HashMap::new(),
            fault: None,
        }
    }

    /// Writes what a stream may send of an item now; `None`: the stream has ended.
    pub(super) fn write_piece(
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

    pub(super) fn wait_for_room(&mut self, id: u64, context: &mut Context<'_>) {
        self.wait(id, context);
        if !self.room_waiters.contains(&id) {
            self.room_waiters.push(id);
        }
    }

    /// True: nobody did so far, so the reactor does not look after it yet.
    pub(super) fn wait_for_credit(&mut self, id: u64, context: &Context<'_>) -> bool {
        self.wait(id, context);
        let first = self.credit_waiters.is_empty();
        if !self.credit_waiters.iter().any(|(waiter, _)| *waiter == id) {
            self.credit_waiters.push((id, Pace::new(Instant::now())));
        }
        first
    }

    /// So much more of an item was written, which may have waited for credit.
    pub(super) fn moved(&mut self, id: u64, bytes: usize) {
        let least = self.stall_bytes;
        let mut waiters = self.credit_waiters.iter_mut();
        if let Some((_, pace)) = waiters.find(|(waiter, _)| *waiter == id) {
            pace.moved(bytes, least, Instant::now);
        }
    }

    /// The whole item was.
    pub(super) fn completed(&mut self, id: u64) {
        self.credit_waiters.retain(|(waiter, _)| *waiter != id);
    }

    pub(super) fn wait(&mut self, id: u64, context: &Context<'_>) {
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

    /// Whether answers wait for credit, or those of sync handlers for room.
    pub(crate) fn owes_answers(&self) -> bool {
        !self.replies.is_empty() || !self.credit_waiters.is_empty()
    }

    /// Those of them of which too little was read in the last `limit`.
    pub(crate) fn unread(&mut self, now: Instant, limit: Duration) -> Vec<u64> {
        let state = &self.state;
        self.credit_waiters
            .retain(|(id, _)| state.credit(*id).is_some());
        let replies = self.replies.iter().map(|reply| (reply.id, &reply.pace));
        let items = self.credit_waiters.iter().map(|(id, pace)| (*id, pace));
        replies
            .chain(items)
            .filter(|(_, pace)| pace.is_late(now, limit))
            .map(|(id, _)| id)
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

    /// Whether a task is behind a stream.
    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.streams.contains_key(&id)
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

    /// Whether a [`trim`](Self::trim) has nothing to give back, and never will have unless a request comes.
    pub(crate) fn is_trimmed(&self) -> bool {
        self.writer.is_trimmed()
            && self.state.is_trimmed()
            && self.streams.capacity() == 0
            && self.replies.capacity() == 0
            && self.room_waiters.capacity() == 0
            && self.credit_waiters.capacity() == 0
            && self.repeats.capacity() == 0
    }

    /// Gives back the ring's pages that the client has read, and the memory in which requests were kept. False: some are under
    /// way, and so there may be more later.
    pub(crate) fn trim(&mut self) -> Result<bool, TransportError> {
        if self.state.live() > 0 {
            return Ok(false);
        }
        self.writer.trim()?;
        self.state.trim();
        // What has ended is in none of them for long.
        self.repeats = Vec::new();
        if self.streams.is_empty() {
            self.streams = HashMap::new();
        }
        if self.replies.is_empty() {
            self.replies = VecDeque::new();
        }
        if self.room_waiters.is_empty() {
            self.room_waiters = Vec::new();
        }
        // No stream is live.
        self.credit_waiters = Vec::new();
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
