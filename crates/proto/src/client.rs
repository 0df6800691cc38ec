//! The client's end of one connection.

use std::collections::VecDeque;

use crate::payload::{add_credit, u64_at};
use crate::slots::Slots;
use crate::{
    Control, ErrorBody, FIN, Fault, Frame, GoAway, ITEM_PREFIX_LEN, Kind, Limits, MORE,
    OPEN_PREFIX_LEN, PREFIX,
};

/// What a daemon's frame means.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// A piece of an item of a response.
    Piece {
        /// The stream.
        id: u64,
        /// The piece, or what of it has been copied: the frame's [`rest`](Frame::rest) follows.
        bytes: &'a [u8],
        /// The length of the whole item, with its first piece.
        item_length: Option<u64>,
        /// This is the item's last piece.
        item_ends: bool,
        /// This is the response's last piece.
        stream_ends: bool,
    },
    /// The response has ended, without a further item.
    Ended {
        /// The stream.
        id: u64,
    },
    /// The stream ended with an error.
    Failed {
        /// The stream.
        id: u64,
        /// Why.
        body: ErrorBody,
    },
    /// The request will be run.
    Accepted {
        /// The stream.
        id: u64,
    },
    /// More of the request may be sent.
    Credit {
        /// The stream.
        id: u64,
    },
    /// No new requests on this connection.
    GoAway(GoAway),
    /// The connection failed; the daemon closes it.
    Closed(ErrorBody),
    /// Nothing to do.
    Nothing,
}

/// How a request is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The stream.
    pub id: u64,
    /// The whole request goes into OPEN (with FIN). Otherwise OPEN carries none of it and needs the prefix.
    pub whole: bool,
}

/// Why a request cannot be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests are unanswered as may be: try again when one ends.
    Busy,
    /// The daemon is going away: use another connection.
    GoingAway,
    /// Over `max_message_size`.
    TooLarge,
}

/// The rules of one connection, seen from the client. Sans I/O, like [`ServerState`](crate::ServerState).
#[derive(Debug)]
pub struct ClientState {
    limits: Limits,
    window: u32,
    streams: Slots<Stream>,
    inline_bytes: u64,
    to_say: VecDeque<u64>,
    front: Option<Control>,
    pong: Option<[u8; 8]>,
    going_away: bool,
}

#[derive(Debug, Default)]
struct Stream {
    /// Payload bytes of OPEN, until the stream's first frame from the daemon.
    inline: u32,
    /// Request bytes not sent yet.
    unsent: u64,
    /// Request bytes that may be sent.
    credit: u32,
    /// Response bytes that the daemon may send.
    granted: u32,
    window: u32,
    /// Response bytes that were read and not granted again.
    taken: u32,
    /// Bytes that the present item still needs.
    item_left: Option<u64>,
    cancel: bool,
    grant: u32,
    queued: bool,
}

impl ClientState {
    /// A new connection. `window` is what HELLO said.
    pub fn new(limits: Limits, window: u32) -> Self {
        Self::after(0, limits, window)
    }

    /// A new connection of a client that has used ids up to `last_id` on earlier ones: those of this one are above, so that
    /// an id tells a client's requests apart for its whole life.
    pub fn after(last_id: u64, limits: Limits, window: u32) -> Self {
        Self {
            limits,
            window,
            streams: Slots::new(limits.max_streams, last_id),
            inline_bytes: 0,
            to_say: VecDeque::new(),
            front: None,
            pong: None,
            going_away: false,
        }
    }

    /// What WELCOME allows.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A small number for a stream, below twice `max_streams`, that no other live stream has: an index for tables
    /// beside this one. The number of a stream that has ended goes to another.
    #[inline]
    pub fn place(&self, id: u64) -> usize {
        self.streams.place(id)
    }

    /// Streams that have no terminal frame yet.
    pub fn live(&self) -> usize {
        self.streams.len()
    }

    /// The highest id that was used, on this connection or before it.
    pub fn last_id(&self) -> u64 {
        self.streams.last_id()
    }

    /// Begins a request of `length` bytes. `prefix`: OPEN will have the prefix even if the request is whole.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn open(&mut self, length: u64, prefix: bool) -> Result<Opening, Refusal> {
        if self.going_away {
            return Err(Refusal::GoingAway);
        }
        if length > self.limits.max_message_size {
            return Err(Refusal::TooLarge);
        }
        if self.streams.is_full() {
            return Err(Refusal::Busy);
        }
        let room = u64::from(self.limits.max_frame_payload)
            - if prefix { OPEN_PREFIX_LEN as u64 } else { 0 };
        let whole = length <= room.min(u64::from(self.limits.inline_window));
        let inline = if whole { length } else { 0 };
        if self.inline_bytes + inline > u64::from(self.limits.inline_window) {
            return Err(Refusal::Busy);
        }
        self.inline_bytes += inline;
        let stream = Stream {
            inline: inline as u32,
            unsent: length - inline,
            granted: self.window,
            window: self.window,
            ..Stream::default()
        };
        let id = self.streams.insert(stream);
        Ok(Opening { id, whole })
    }

    /// [`open`](Self::open) for a request without prefix that goes in one frame; its id. `None`: not now, or not so.
    #[inline(always)]
    pub fn open_whole(&mut self, length: usize) -> Option<u64> {
        let most = self.limits.max_frame_payload.min(self.limits.inline_window);
        let inline = self.inline_bytes + length as u64;
        let fits = length <= most as usize
            && length as u64 <= self.limits.max_message_size
            && inline <= u64::from(self.limits.inline_window);
        if self.going_away || !fits || self.streams.is_full() {
            return None;
        }
        self.inline_bytes = inline;
        let stream = Stream {
            inline: length as u32,
            granted: self.window,
            window: self.window,
            ..Stream::default()
        };
        Some(self.streams.insert(stream))
    }

    /// Request bytes of a stream that may be sent now in DATA or END; `None` once the stream has ended or was cancelled.
    pub fn sendable(&self, id: u64) -> Option<u64> {
        let stream = self.streams.get(id).filter(|stream| !stream.cancel)?;
        Some(stream.unsent.min(u64::from(stream.credit)))
    }

    /// `bytes` of the request have been written.
    pub fn sent(&mut self, id: u64, bytes: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.unsent -= u64::from(bytes);
            stream.credit -= bytes;
        }
    }

    /// The reader has taken `bytes` of the response. Credit goes back in steps of half a window.
    pub fn taken(&mut self, id: u64, bytes: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.taken += bytes;
            if stream.taken >= stream.window.div_ceil(2) && !stream.cancel {
                stream.grant += std::mem::take(&mut stream.taken);
                self.queue(id);
            }
        }
    }

    /// The response is no longer wanted. The stream lives until the daemon ends it, and its pieces are still reported.
    pub fn cancel(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.cancel
        {
            stream.cancel = true;
            self.queue(id);
        }
    }

    /// Whether the stream has no terminal frame yet.
    pub fn is_live(&self, id: u64) -> bool {
        self.streams.get(id).is_some()
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// The rule that the daemon broke; the connection is then to be closed.
    #[inline(always)]
    pub fn handle<'a>(&mut self, frame: &Frame<'a>) -> Result<ClientEvent<'a>, Fault> {
        match frame.kind {
            Kind::Data | Kind::End => self.on_piece(frame),
            _ => self.on_other(frame),
        }
    }

    fn on_other<'a>(&mut self, frame: &Frame<'a>) -> Result<ClientEvent<'a>, Fault> {
        let id = frame.id;
        match frame.kind {
            Kind::Data | Kind::End => self.on_piece(frame),
            Kind::Error if id == 0 => Ok(ClientEvent::Closed(ErrorBody::read(
                frame.ty,
                frame.payload,
            ))),
            Kind::Error => {
                let known = self.answered(id)?;
                self.remove(id);
                let body = ErrorBody::read(frame.ty, frame.payload);
                Ok(if known {
                    ClientEvent::Failed { id, body }
                } else {
                    ClientEvent::Nothing
                })
            }
            Kind::Accepted => {
                let known = self.answered(id)?;
                Ok(if known {
                    ClientEvent::Accepted { id }
                } else {
                    ClientEvent::Nothing
                })
            }
            Kind::Credit => {
                if !self.answered(id)? {
                    return Ok(ClientEvent::Nothing);
                }
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.credit = add_credit(stream.credit, frame.payload)?;
                }
                Ok(ClientEvent::Credit { id })
            }
            Kind::GoAway => {
                self.going_away = true;
                Ok(ClientEvent::GoAway(GoAway::decode(frame.payload)?))
            }
            Kind::Ping => {
                if !frame.has(FIN) {
                    self.pong = frame.payload.try_into().ok();
                }
                Ok(ClientEvent::Nothing)
            }
            Kind::Welcome => Err(Fault::UnexpectedFrame),
            Kind::Open | Kind::Cancel | Kind::Hello => Err(Fault::BadKind),
        }
    }

    /// Notes the stream's first frame from the daemon; false for a stream that has ended.
    fn answered(&mut self, id: u64) -> Result<bool, Fault> {
        if id > self.streams.last_id() {
            return Err(Fault::BadId);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(false);
        };
        self.inline_bytes -= u64::from(std::mem::take(&mut stream.inline));
        Ok(true)
    }

    #[inline(always)]
    fn on_piece<'a>(&mut self, frame: &Frame<'a>) -> Result<ClientEvent<'a>, Fault> {
        let id = frame.id;
        let end = frame.kind == Kind::End;
        if id > self.streams.last_id() {
            return Err(Fault::BadId);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(ClientEvent::Nothing);
        };
        self.inline_bytes -= u64::from(std::mem::take(&mut stream.inline));
        if end && !frame.has(FIN) {
            if frame.payload_len() != 0 {
                return Err(Fault::BadPayload);
            }
            if stream.item_left.is_some() {
                return Err(Fault::LengthMismatch);
            }
            self.remove(id);
            return Ok(ClientEvent::Ended { id });
        }
        let first = stream.item_left.is_none();
        let more = frame.has(MORE);
        // The prefix comes with the first of several pieces, and only there.
        if frame.has(PREFIX) != (first && more) {
            return Err(Fault::BadFlags);
        }
        let (bytes, item_length) = if frame.has(PREFIX) {
            let length = u64_at(frame.payload, 0);
            if length > self.limits.max_message_size {
                return Err(Fault::FrameTooLarge);
            }
            (&frame.payload[ITEM_PREFIX_LEN..], length)
        } else {
            (
                frame.payload,
                stream.item_left.unwrap_or(frame.payload_len() as u64),
            )
        };
        let len = bytes.len() as u32 + frame.rest;
        if len > stream.granted {
            return Err(Fault::CreditExceeded);
        }
        stream.granted -= len;
        let left = item_length
            .checked_sub(u64::from(len))
            .ok_or(Fault::LengthMismatch)?;
        if !more && left != 0 {
            return Err(Fault::LengthMismatch);
        }
        stream.item_left = more.then_some(left);
        if end {
            self.remove(id);
        }
        Ok(ClientEvent::Piece {
            id,
            bytes,
            item_length: first.then_some(item_length),
            item_ends: !more,
            stream_ends: end,
        })
    }

    fn remove(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(id) {
            self.inline_bytes -= u64::from(stream.inline);
        }
    }

    fn queue(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.queued
        {
            stream.queued = true;
            self.to_say.push_back(id);
        }
    }

    /// Whether [`next_control`](Self::next_control) may have something.
    #[inline]
    pub fn has_control(&self) -> bool {
        self.front.is_some() || self.pong.is_some() || !self.to_say.is_empty()
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
        while let Some(id) = self.to_say.pop_front() {
            let Some(stream) = self.streams.get_mut(id) else {
                continue;
            };
            stream.queued = false;
            let grant = std::mem::take(&mut stream.grant);
            if stream.cancel {
                return Some(Control::Cancel(id));
            }
            if grant > 0 {
                stream.granted = stream.granted.saturating_add(grant);
                return Some(Control::Credit(id, grant));
            }
        }
        None
    }
}
