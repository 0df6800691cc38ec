//! The writing side: opens requests, sends them as far as the ring and the daemon's credit allow, and hands what the
//! daemon sends to the slots.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use lapce_ai_proto::{
    ClientEvent, ClientState, FIN, Frame, GoAway, HEADER_LEN, Kind, Limits, MessageType,
    OPEN_PREFIX_LEN, OpenPrefix, PREFIX, Refusal, Welcome,
};
use lapce_ai_transport::{CONTROL_ROOM, Rest, TransportError, Writer, append};

use super::lead::{Followers, Shared};
use super::slot::{Kept, Slot, SlotEnd};
use super::upload::{Lent, Upload};
use super::{End, Outgoing};
use crate::Body;

/// The writing side and everything that is known.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(super) writer: Writer,
    pub(super) state: ClientState,
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    /// Empty memory for a long answer. Goes back when the link is quiet.
    pub(super) spare: Vec<u8>,
    /// Whether free slots keep memory that is worth giving back.
    pub(super) kept: Kept,
    /// The slot of each live stream, by the stream's [place](ClientState::place).
    places: Vec<u32>,
    /// Slots with credit and bytes to send, in turn.
    pub(super) uploads: VecDeque<u32>,
    /// The one request whose OPEN found no room in the ring. No other is begun before it is out: ids rise.
    pub(super) deferred: Option<u32>,
    /// There may be room for the first of those who wait, who has not been told.
    pub(super) next_may_go: bool,
    /// Who waits to begin a request, in order. Only the first may.
    pub(super) queue: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    /// Threads that wait while another one pumps.
    pub(super) followers: Followers,
    /// The task that pumps when nobody else does.
    pub(super) driver: Option<Waker>,
    /// Payload of the frame that found no room, if one waits. The bell for that room is asked for by whoever sleeps.
    pub(super) blocked: Option<usize>,
    /// Requests that were written and not yet published.
    pub(super) lagging: u32,
    /// Over shared memory, until the end: requests may go the short way.
    pub(super) takes_plain: bool,
    /// Longest payload of a request's frame, so that it fits the ring.
    pub(super) fragment: usize,
    pub(super) goaway: Option<GoAway>,
    pub(super) end: Option<Arc<End>>,
    pub(super) reason: Arc<str>,
}

impl Shared for Tx {
    #[inline]
    fn followers(&mut self) -> &mut Followers {
        &mut self.followers
    }
}

impl Tx {
    pub(super) fn new(
        writer: Writer,
        welcome: &Welcome,
        response_window: u32,
        last_id: u64,
    ) -> Self {
        let limits = welcome.limits;
        // A ring smaller than a frame with its reserve could never take one.
        let room = match welcome.request_capacity as usize {
            0 => usize::MAX,
            capacity => capacity
                .saturating_sub(HEADER_LEN + CONTROL_ROOM)
                .max(OPEN_PREFIX_LEN + 1),
        };
        let fragment = room.min(limits.max_frame_payload as usize);
        let limits = Limits {
            max_frame_payload: fragment as u32,
            ..limits
        };
        Self {
            writer,
            state: ClientState::after(last_id, limits, response_window),
            slots: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            kept: Kept::Nothing,
            places: Vec::new(),
            uploads: VecDeque::new(),
            deferred: None,
            next_may_go: false,
            queue: VecDeque::new(),
            next_ticket: 0,
            followers: Followers::default(),
            driver: None,
            blocked: None,
            lagging: 0,
            takes_plain: welcome.features.shared_memory,
            fragment,
            goaway: None,
            end: None,
            reason: Arc::from(""),
        }
    }

    pub(super) fn enqueue(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        let Some(ticket) = *ticket else {
            self.next_ticket += 1;
            *ticket = Some(self.next_ticket);
            self.queue.push_back((self.next_ticket, waker.clone()));
            return;
        };
        match self.queue.iter_mut().find(|(other, _)| *other == ticket) {
            Some((_, old)) => old.clone_from(waker),
            None => self.queue.push_back((ticket, waker.clone())),
        }
    }

    pub(super) fn dequeue(&mut self, ticket: &mut Option<u64>, wakes: &mut Vec<Waker>) {
        let ticket = ticket.take();
        self.queue.retain(|(other, _)| Some(*other) != ticket);
        // The next in line may find room too.
        self.next_may_go = true;
        self.call_next(wakes);
    }

    /// Has the first in line woken, if it may be his turn. To be asked before the lock is let go of by whoever may have written or
    /// read something under it.
    #[inline]
    pub(super) fn call_next(&mut self, wakes: &mut Vec<Waker>) {
        if std::mem::take(&mut self.next_may_go)
            && let Some((_, waker)) = self.queue.front()
        {
            wakes.push(waker.clone());
        }
    }

    /// Opens a stream and writes its OPEN, or defers that.
    #[inline]
    pub(super) fn open(
        &mut self,
        request: &Outgoing<'_>,
    ) -> Result<(u32, Result<(), TransportError>), Refusal> {
        let opening = self
            .state
            .open(request.body.len() as u64, request.prefix.is_some())?;
        let index = self.take_slot(opening.id);
        let prefix = match request.prefix {
            None if opening.whole => None,
            prefix => {
                let total_length = request.body.len() as u64;
                Some(OpenPrefix {
                    total_length,
                    ..prefix.unwrap_or_default()
                })
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.one_item = request.one_item;
        slot.repeatable = request.repeatable;
        slot.whole = opening.whole;
        slot.prefix = prefix;
        slot.ty = Some(request.ty);
        slot.sent = 0;
        slot.body.clear();
        if !opening.whole {
            slot.upload = match request.body {
                Body::Owned(bytes) => Upload::Owned(bytes.clone()),
                Body::Lent(bytes) if request.lent => Upload::Lent(bytes.len()),
                Body::Lent(bytes) => {
                    append(&mut slot.body, bytes);
                    Upload::Kept
                }
            };
        }
        let opened = self.write_open(index, request.body);
        let written = opened.and_then(|written| match written {
            true => Ok(()),
            false => self.defer(index, request.body),
        });
        Ok((index, written))
    }

    /// [`open`](Self::open) for the plainest and most frequent request: one frame, no prefix, an answer of one
    /// item. `None`: not now, or not so.
    #[inline]
    pub(super) fn open_plain(
        &mut self,
        ty: MessageType,
        body: &[u8],
    ) -> Option<(u32, Result<(), TransportError>)> {
        let id = self.state.open_whole(body.len())?;
        let index = self.take_slot(id);
        let slot = &mut self.slots[index as usize];
        slot.one_item = true;
        slot.repeatable = false;
        slot.whole = true;
        slot.ty = Some(ty);
        let written = match self.writer.frame(Kind::Open, FIN, ty.0, id, &[], body) {
            Ok(true) => Ok(()),
            Ok(false) => self.defer(index, body),
            Err(error) => Err(error),
        };
        Some((index, written))
    }

    /// A slot for a new stream.
    #[inline]
    fn take_slot(&mut self, id: u64) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let place = self.state.place(id);
        if self.places.len() <= place {
            self.places.resize(place + 1, 0);
        }
        self.places[place] = index;
        let slot = &mut self.slots[index as usize];
        slot.id = id;
        slot.live = true;
        index
    }

    /// Keeps a request whose OPEN found no room until there is some.
    #[cold]
    fn defer(&mut self, index: u32, body: &[u8]) -> Result<(), TransportError> {
        let slot = &mut self.slots[index as usize];
        slot.sent = 0;
        if slot.whole {
            slot.body.clear();
            slot.body.extend_from_slice(body);
        }
        self.deferred = Some(index);
        self.write_and_leave()
    }

    fn write_open(&mut self, index: u32, whole_body: &[u8]) -> Result<bool, TransportError> {
        let slot = &self.slots[index as usize];
        let encoded = slot.prefix.map(|prefix| prefix.encode());
        let prefix = encoded.as_ref().map_or(&[][..], |prefix| prefix);
        let flags = if slot.whole { FIN } else { 0 } | if encoded.is_some() { PREFIX } else { 0 };
        let body = if slot.whole { whole_body } else { &[] };
        let ty = slot.ty.map_or(0, |ty| ty.0);
        self.writer
            .frame(Kind::Open, flags, ty, slot.id, prefix, body)
    }

    /// Publishes what was written. A daemon that is gone is found by the reader, after what it left.
    #[inline]
    pub(super) fn flush_now(&mut self) -> Result<(), TransportError> {
        self.lagging = 0;
        match self.writer.flush() {
            Err(TransportError::PeerGone) => Ok(()),
            other => other,
        }
    }

    /// Writes control frames, the deferred OPEN and pieces of uploads as far as there is room. `lent`: the bytes of the
    /// caller's own request, if it lends them. What is blocked then is looked after by the caller, or
    /// [asked to be woken for](Self::ask_for_room).
    #[inline]
    pub(super) fn write_out(&mut self, lent: Option<Lent<'_>>) -> Result<(), TransportError> {
        self.blocked = None;
        if let Some(lent) = &lent {
            self.resume_lent(lent);
        }
        if !self.state.has_control() && self.deferred.is_none() && self.uploads.is_empty() {
            return Ok(());
        }
        while let Some(need) = self.write_some(lent)? {
            self.flush_now()?;
            if !self.writer.has_room(need)? {
                self.blocked = Some(need);
                break;
            }
        }
        Ok(())
    }

    /// [`write_out`](Self::write_out) for those who do not look after the link any further: if anything is blocked, whoever
    /// sleeps on the socket is woken for it.
    pub(super) fn write_and_leave(&mut self) -> Result<(), TransportError> {
        loop {
            self.write_out(None)?;
            if self.ask_for_room()? {
                return Ok(());
            }
        }
    }

    /// Before sleep: asks for a bell when what is blocked finds room. False: there is room now.
    pub(super) fn ask_for_room(&mut self) -> Result<bool, TransportError> {
        match self.blocked {
            Some(need) => {
                // Others may have begun requests since, and the daemon makes no room for what it cannot see.
                self.flush_now()?;
                self.writer.wait_for_room(need)
            }
            None => Ok(true),
        }
    }

    /// Whether what was blocked would find room by now: the last flush may have made it, and nobody else would tell.
    pub(super) fn found_room(&mut self) -> Result<bool, TransportError> {
        match self.blocked {
            Some(need) => self.writer.has_room(need),
            None => Ok(false),
        }
    }

    /// Sends what waits for the socket to be writable, and what waits behind it.
    pub(super) fn write_on(&mut self) -> Result<(), TransportError> {
        self.flush_now()?;
        loop {
            self.write_and_leave()?;
            self.flush_now()?;
            if !self.found_room()? {
                return Ok(());
            }
        }
    }

    /// Writes until all is written, or a frame with so many bytes of payload finds no room.
    fn write_some(&mut self, lent: Option<Lent<'_>>) -> Result<Option<usize>, TransportError> {
        while let Some(control) = self.state.next_control() {
            if !self.writer.control(control)? {
                return Ok(Some(8));
            }
            self.state.control_sent();
        }
        if let Some(index) = self.deferred {
            let body = std::mem::take(&mut self.slots[index as usize].body);
            let written = self.write_open(index, &body);
            let slot = &mut self.slots[index as usize];
            slot.body = body;
            if !written? {
                let body = if slot.whole { slot.body.len() } else { 0 };
                return Ok(Some(OPEN_PREFIX_LEN + body));
            }
            self.deferred = None;
            self.next_may_go = true;
            if slot.abandoned {
                self.state.cancel(slot.id);
                return self.write_some(lent);
            }
        }
        self.write_uploads(lent)
    }

    #[inline]
    pub(super) fn on_frame(
        &mut self,
        frame: &Frame<'_>,
        rest: Rest<'_>,
        wakes: &mut Vec<Waker>,
    ) -> Result<(), End> {
        match self.state.handle(frame).map_err(TransportError::Fault)? {
            ClientEvent::Piece {
                id,
                bytes,
                item_length,
                item_ends,
                stream_ends,
            } => {
                let Some(index) = self.slot_of(id) else {
                    return Ok(());
                };
                let slot = &mut self.slots[index as usize];
                slot.live = !stream_ends;
                if slot.abandoned {
                    if stream_ends {
                        self.recycle(index);
                    }
                    return Ok(());
                }
                slot.answered = true;
                if let Some(length) = item_length {
                    slot.expect(length, &mut self.spare);
                }
                let len = bytes.len() + rest.len();
                append(&mut slot.bytes, bytes);
                rest.append_to(&mut slot.bytes);
                slot.partial += len;
                let credit = len as u32;
                // A call wants its one item whole, and a reader with nothing ahead of an unfinished item waits for it.
                let at_once = slot.one_item || (slot.items.is_empty() && !item_ends);
                if !stream_ends && at_once {
                    self.state.taken(id, credit);
                } else {
                    slot.partial_credit += credit;
                }
                if item_ends {
                    let length = std::mem::take(&mut slot.partial);
                    let credit = std::mem::take(&mut slot.partial_credit);
                    slot.items.push_back((length, credit));
                }
                if stream_ends {
                    slot.end = Some(SlotEnd::Fine);
                }
                if stream_ends || (item_ends && !slot.one_item) {
                    wakes.extend(slot.waker.take());
                }
            }
            ClientEvent::Ended { id } => self.finish(id, SlotEnd::Fine, wakes),
            ClientEvent::Failed { id, body } => {
                let end = match (self.goaway, self.slot_of(id)) {
                    // Not run: it goes to the next connection. What was taken before gets the same code when the drain is over.
                    (Some(goaway), Some(index))
                        if body.code == goaway.code
                            && id > goaway.last_id
                            && self.slots[index as usize].is_untouched() =>
                    {
                        self.reason = Arc::from(body.to_string());
                        SlotEnd::NotRun
                    }
                    _ => SlotEnd::Failed(body),
                };
                self.finish(id, end, wakes);
            }
            ClientEvent::Accepted { id } => {
                if let Some(index) = self.slot_of(id) {
                    self.slots[index as usize].accepted = true;
                }
            }
            ClientEvent::Credit { id } => {
                if let Some(index) = self.slot_of(id) {
                    self.resume(index);
                }
            }
            ClientEvent::GoAway(goaway) => self.goaway = Some(goaway),
            ClientEvent::Closed(body) => return Err(End::Daemon(body)),
            ClientEvent::Nothing => {}
        }
        Ok(())
    }

    /// The slot of a live stream.
    #[inline]
    fn slot_of(&self, id: u64) -> Option<u32> {
        let index = *self.places.get(self.state.place(id))?;
        let slot = &self.slots[index as usize];
        (slot.live && slot.id == id).then_some(index)
    }

    fn finish(&mut self, id: u64, end: SlotEnd, wakes: &mut Vec<Waker>) {
        let Some(index) = self.slot_of(id) else {
            return;
        };
        let slot = &mut self.slots[index as usize];
        slot.live = false;
        if slot.abandoned {
            self.recycle(index);
        } else {
            slot.end = Some(end);
            wakes.extend(slot.waker.take());
        }
    }

    pub(super) fn release(&mut self, index: u32) -> Result<(), TransportError> {
        let slot = &mut self.slots[index as usize];
        if slot.end.is_some() {
            self.recycle(index);
            return Ok(());
        }
        slot.abandoned = true;
        slot.waker = None;
        // Before its OPEN is out, there is nothing that could be cancelled.
        if self.deferred != Some(index) {
            self.state.cancel(slot.id);
            self.write_and_leave()?;
            self.flush_now()?;
        }
        Ok(())
    }

    /// Cancels all that runs, as far as there is room to say so: after this the connection ends.
    pub(super) fn cancel_all(&mut self) {
        if self.end.is_some() {
            return;
        }
        for slot in self.slots.iter().filter(|slot| slot.live) {
            self.state.cancel(slot.id);
        }
        // Who cannot be told sees the hang-up.
        while let Some(control) = self.state.next_control()
            && matches!(self.writer.control(control), Ok(true))
        {
            self.state.control_sent();
        }
        let _ = self.writer.flush();
    }

    pub(crate) fn wants_writable(&self) -> bool {
        self.end.is_none() && self.writer.wants_writable()
    }
}
