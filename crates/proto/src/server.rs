//! The daemon's end of one connection: which streams live, what each may still send, what has to be said.

use std::collections::VecDeque;

use crate::id_map::IdMap;
use crate::payload::add_credit;
use crate::{
    Control, ErrorBody, ErrorCode, FIN, Fault, Frame, GoAway, Kind, Limits, MessageType,
    OpenPrefix, PREFIX,
};

/// What a client's frame means.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// A whole request. The stream is not recorded: either answer it at once, within its
    /// [window](ServerState::window), or [`track`](ServerState::track) it.
    Request {
        /// The stream.
        id: u64,
        /// What is asked.
        ty: MessageType,
        /// What the request says about itself; `total_length` is that of `body`.
        prefix: OpenPrefix,
        /// The request.
        body: &'a [u8],
    },
    /// The start of a request in pieces. It goes on when [`grant`](ServerState::grant) was called; if the first piece
    /// is all of it, it may be complete before that.
    Begin {
        /// The stream.
        id: u64,
        /// What is asked.
        ty: MessageType,
        /// What the request says about itself.
        prefix: OpenPrefix,
        /// The first piece, perhaps empty.
        first: &'a [u8],
    },
    /// The next piece of a request.
    Data {
        /// The stream.
        id: u64,
        /// The piece, or what of it has been copied: the frame's [`rest`](Frame::rest) follows.
        bytes: &'a [u8],
    },
    /// The last piece of a request, perhaps empty. All pieces together are `total_length` bytes.
    Complete {
        /// The stream.
        id: u64,
        /// The piece, or what of it has been copied, as with `Data`.
        bytes: &'a [u8],
    },
    /// The response is no longer wanted. The stream lives until its terminal frame.
    Cancel {
        /// The stream.
        id: u64,
    },
    /// More of the response may be sent.
    Credit {
        /// The stream.
        id: u64,
    },
    /// Nothing to do.
    Nothing,
}

/// The rules of one connection, seen from the daemon. Sans I/O: [`handle`](Self::handle) takes frames,
/// [`next_control`](Self::next_control) gives the small frames that must be written, and the response's own frames are
/// written by the caller within [`credit`](Self::credit).
#[derive(Debug)]
pub struct ServerState {
    limits: Limits,
    window: u32,
    last_id: u64,
    streams: IdMap<Stream>,
    inline_bytes: u64,
    to_say: VecDeque<u64>,
    front: Option<Control>,
    pong: Option<[u8; 8]>,
    goaway: Option<GoAway>,
    goaway_unsaid: bool,
}

#[derive(Debug, Default)]
struct Stream {
    /// Payload bytes of OPEN, until the stream's first frame from us.
    inline: u32,
    /// Response bytes that may still be sent.
    credit: u32,
    /// Items of the response that were sent whole.
    items: u32,
    upload: Option<Upload>,
    accept: bool,
    grant: u32,
    error: Option<Box<ErrorBody>>,
    /// Whether the id stands in `to_say`.
    queued: bool,
}

#[derive(Debug)]
struct Upload {
    total: u64,
    received: u64,
    granted: bool,
}

impl ServerState {
    /// A new connection. `window` is HELLO's `response_window`.
    pub fn new(limits: Limits, window: u32) -> Self {
        Self {
            limits,
            window,
            last_id: 0,
            streams: IdMap::default(),
            inline_bytes: 0,
            to_say: VecDeque::new(),
            front: None,
            pong: None,
            goaway: None,
            goaway_unsaid: false,
        }
    }

    /// A connection that another process has served so far, on which nothing runs; `last_id` is the highest that it took.
    pub fn resume(limits: Limits, window: u32, last_id: u64) -> Self {
        Self {
            last_id,
            ..Self::new(limits, window)
        }
    }

    /// Whether nothing is known of the connection but its [`last_id`](Self::last_id): nothing runs or is to be said, and it
    /// does not go away.
    pub fn is_at_rest(&self) -> bool {
        self.streams.is_empty() && !self.has_control() && self.goaway.is_none()
    }

    /// Response bytes that a stream opened with `prefix` may send before the first CREDIT.
    #[inline]
    pub fn window(&self, prefix: &OpenPrefix) -> u32 {
        if prefix.response_window == 0 {
            self.window
        } else {
            prefix.response_window
        }
    }

    /// Streams that have no terminal frame yet.
    pub fn live(&self) -> usize {
        self.streams.len()
    }

    /// Whether a [`trim`](Self::trim) has nothing to give back, and never will have unless a request comes.
    pub fn is_trimmed(&self) -> bool {
        self.streams.capacity() == 0 && self.to_say.capacity() == 0
    }

    /// Gives back the memory in which streams were kept, if there are none now.
    pub fn trim(&mut self) {
        if self.streams.is_empty() {
            self.streams = IdMap::default();
        }
        if self.to_say.is_empty() {
            self.to_say = VecDeque::new();
        }
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// The rule that the client broke; the connection is then to be closed.
    #[inline]
    pub fn handle<'a>(&mut self, frame: &Frame<'a>) -> Result<ServerEvent<'a>, Fault> {
        match frame.kind {
            Kind::Open => self.on_open(frame),
            Kind::Data => self.on_piece(frame, false),
            Kind::End => self.on_piece(frame, true),
            // An unknown id is no fault here: whoever cancels need not know how far its OPEN came.
            Kind::Cancel => {
                let live = self
                    .streams
                    .get(&frame.id)
                    .is_some_and(|s| s.error.is_none());
                Ok(if live {
                    ServerEvent::Cancel { id: frame.id }
                } else {
                    ServerEvent::Nothing
                })
            }
            Kind::Credit => {
                self.known(frame.id)?;
                let Some(stream) = self.streams.get_mut(&frame.id) else {
                    return Ok(ServerEvent::Nothing);
                };
                stream.credit = add_credit(stream.credit, frame.payload)?;
                Ok(ServerEvent::Credit { id: frame.id })
            }
            Kind::Ping => {
                // An answer to a PING of ours asks for nothing.
                if !frame.has(FIN) {
                    self.pong = frame.payload.try_into().ok();
                }
                Ok(ServerEvent::Nothing)
            }
            Kind::Hello => Err(Fault::UnexpectedFrame),
            Kind::Error | Kind::Accepted | Kind::GoAway | Kind::Welcome => Err(Fault::BadKind),
        }
    }

    fn known(&self, id: u64) -> Result<(), Fault> {
        if id > self.last_id {
            Err(Fault::BadId)
        } else {
            Ok(())
        }
    }

    #[inline]
    fn on_open<'a>(&mut self, frame: &Frame<'a>) -> Result<ServerEvent<'a>, Fault> {
        let id = frame.id;
        if id <= self.last_id {
            return Err(Fault::IdReused);
        }
        self.last_id = id;
        let whole = frame.has(FIN);
        let (prefix, body) = if frame.has(PREFIX) {
            OpenPrefix::split(frame.payload)?
        } else if whole {
            let total_length = frame.payload.len() as u64;
            (
                OpenPrefix {
                    total_length,
                    ..OpenPrefix::default()
                },
                frame.payload,
            )
        } else {
            return Err(Fault::BadFlags);
        };
        let received = body.len() as u64;
        if received > prefix.total_length || (whole && received != prefix.total_length) {
            return Err(Fault::LengthMismatch);
        }
        if prefix.response_window > i32::MAX as u32 {
            return Err(Fault::CreditOverflow);
        }
        let ty = MessageType(frame.ty);
        if let Some(goaway) = self.goaway {
            self.track(id, &prefix, body.len())?;
            let body = ErrorBody::new(goaway.code, "the daemon is going away; this was not run");
            self.fail(id, body);
            return Ok(ServerEvent::Nothing);
        }
        if prefix.total_length > self.limits.max_message_size {
            self.track(id, &prefix, body.len())?;
            let message = format!(
                "the request has {} bytes; at most {} are taken",
                prefix.total_length, self.limits.max_message_size
            );
            self.fail(id, ErrorBody::new(ErrorCode::MessageTooLarge, message));
            return Ok(ServerEvent::Nothing);
        }
        if whole {
            return Ok(ServerEvent::Request {
                id,
                ty,
                prefix,
                body,
            });
        }
        self.track(id, &prefix, body.len())?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.upload = Some(Upload {
                total: prefix.total_length,
                received,
                granted: false,
            });
        }
        Ok(ServerEvent::Begin {
            id,
            ty,
            prefix,
            first: body,
        })
    }

    fn on_piece<'a>(&mut self, frame: &Frame<'a>, last: bool) -> Result<ServerEvent<'a>, Fault> {
        let id = frame.id;
        if frame.flags != 0 {
            return Err(Fault::BadFlags);
        }
        self.known(id)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(ServerEvent::Nothing);
        };
        if stream.error.is_some() {
            return Ok(ServerEvent::Nothing);
        }
        let Some(upload) = &mut stream.upload else {
            return Err(Fault::UnexpectedFrame);
        };
        let bytes = frame.payload;
        let len = frame.payload_len() as u64;
        if !upload.granted && len > 0 {
            return Err(Fault::CreditExceeded);
        }
        upload.received += len;
        if upload.received > upload.total {
            return Err(Fault::CreditExceeded);
        }
        if !last {
            return Ok(ServerEvent::Data { id, bytes });
        }
        // The grant covers the whole rest, so a request that ends early is short. One whose first piece was all of it
        // needs no credit, and may end before its grant.
        if upload.received != upload.total {
            return Err(Fault::LengthMismatch);
        }
        stream.upload = None;
        Ok(ServerEvent::Complete { id, bytes })
    }

    /// Records a whole request that is not answered at once. `inline` is the length of its body.
    ///
    /// # Errors
    /// [`Fault::TooManyStreams`] or [`Fault::WindowExceeded`]: the client opened more than it may.
    pub fn track(&mut self, id: u64, prefix: &OpenPrefix, inline: usize) -> Result<(), Fault> {
        if self.streams.len() >= self.limits.max_streams as usize {
            return Err(Fault::TooManyStreams);
        }
        self.inline_bytes += inline as u64;
        if self.inline_bytes > u64::from(self.limits.inline_window) {
            return Err(Fault::WindowExceeded);
        }
        let credit = self.window(prefix);
        let stream = Stream {
            inline: inline as u32,
            credit,
            ..Stream::default()
        };
        self.streams.insert(id, stream);
        Ok(())
    }

    /// The rest of the request may be sent: its bytes are reserved.
    pub fn grant(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let Some(upload) = &mut stream.upload else {
            return;
        };
        upload.granted = true;
        // Lengths are bounded by max_message_size, which the daemon keeps below 2^31.
        stream.grant = u32::try_from(upload.total - upload.received).unwrap_or(i32::MAX as u32);
        if stream.grant > 0 {
            self.queue(id);
        }
    }

    /// The request will be run: says ACCEPTED, unless an answer comes first.
    pub fn accept(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.accept = true;
            self.queue(id);
        }
    }

    /// Ends the stream with ERROR. Nothing else is said for it any more.
    pub fn fail(&mut self, id: u64, body: ErrorBody) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.error.is_none()
        {
            stream.error = Some(Box::new(body));
            self.queue(id);
        }
    }

    /// Response bytes that may be sent now; `None` once the stream has ended or failed.
    pub fn credit(&self, id: u64) -> Option<u32> {
        self.streams
            .get(&id)
            .filter(|stream| stream.error.is_none())
            .map(|stream| stream.credit)
    }

    /// A DATA frame with `bytes` of payload, prefix not counted, has been written.
    pub fn sent(&mut self, id: u64, bytes: u32) {
        self.note_sent(id, bytes, 0);
    }

    /// The same for a frame that ends an item.
    pub fn sent_item(&mut self, id: u64, bytes: u32) {
        self.note_sent(id, bytes, 1);
    }

    #[inline]
    fn note_sent(&mut self, id: u64, bytes: u32, items: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.credit = stream.credit.saturating_sub(bytes);
            stream.items = stream.items.saturating_add(items);
            stream.accept = false;
            self.inline_bytes -= u64::from(std::mem::take(&mut stream.inline));
            self.forget_accepted(id);
        }
    }

    /// Items of the response that were sent whole: of a stream that goes on from another connection, those before it, too.
    pub fn items(&self, id: u64) -> u32 {
        self.streams.get(&id).map_or(0, |stream| stream.items)
    }

    /// The stream's response goes on behind so many items that its client has from an earlier connection.
    pub fn goes_on(&mut self, id: u64, items: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.items = items;
        }
    }

    /// The highest id that the client has used.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The END frame has been written: the stream is gone.
    pub fn ended(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.inline_bytes -= u64::from(stream.inline);
            self.forget_accepted(id);
        }
    }

    /// An ACCEPTED that found no room must not come behind the answer, which implies it.
    #[inline]
    fn forget_accepted(&mut self, id: u64) {
        if self.front == Some(Control::Accepted(id)) {
            self.front = None;
        }
    }

    /// No new requests: says GOAWAY, and refuses what is opened from now on.
    pub fn go_away(&mut self, code: ErrorCode, drain_ms: u32) {
        if self.goaway.is_none() {
            self.goaway = Some(GoAway {
                last_id: self.last_id,
                drain_ms,
                code,
            });
            self.goaway_unsaid = true;
        }
    }

    /// Whether GOAWAY has been said, or is about to be: no request is taken any more.
    pub fn is_going_away(&self) -> bool {
        self.goaway.is_some()
    }

    /// The highest id that was taken: what came after GOAWAY was sent back.
    pub fn last_taken(&self) -> u64 {
        self.goaway.map_or(self.last_id, |goaway| goaway.last_id)
    }

    /// Every live stream's id.
    pub fn ids(&self) -> Vec<u64> {
        self.streams.keys().copied().collect()
    }

    fn queue(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.to_say.push_back(id);
        }
    }

    /// Whether [`next_control`](Self::next_control) may have something.
    #[inline]
    pub fn has_control(&self) -> bool {
        self.front.is_some() || self.pong.is_some() || self.goaway_unsaid || !self.to_say.is_empty()
    }

    /// The control frame that is to be written next. It stays next until [`control_sent`](Self::control_sent).
    pub fn next_control(&mut self) -> Option<&Control> {
        if self.front.is_none() {
            self.front = self.make_control();
        }
        self.front.as_ref()
    }

    /// The frame from [`next_control`](Self::next_control) has been written.
    pub fn control_sent(&mut self) {
        self.front = None;
    }

    fn make_control(&mut self) -> Option<Control> {
        if let Some(bytes) = self.pong.take() {
            return Some(Control::Pong(bytes));
        }
        if std::mem::take(&mut self.goaway_unsaid)
            && let Some(goaway) = self.goaway
        {
            return Some(Control::GoAway(goaway));
        }
        while let Some(&id) = self.to_say.front() {
            if let Some(stream) = self.streams.get_mut(&id) {
                if stream.error.is_some() || stream.accept || stream.grant > 0 {
                    self.inline_bytes -= u64::from(std::mem::take(&mut stream.inline));
                }
                if let Some(body) = stream.error.take() {
                    self.streams.remove(&id);
                    self.to_say.pop_front();
                    return Some(Control::Error(id, body));
                }
                if std::mem::take(&mut stream.accept) {
                    return Some(Control::Accepted(id));
                }
                let bytes = std::mem::take(&mut stream.grant);
                if bytes > 0 {
                    return Some(Control::Credit(id, bytes));
                }
                stream.queued = false;
            }
            self.to_say.pop_front();
        }
        None
    }
}
