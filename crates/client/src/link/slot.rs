//! Where one answer gathers, how it is taken, and what is left of its request meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};

use lapce_ai_proto::{ErrorBody, ErrorCode, MessageType, OpenPrefix};

use lapce_ai_transport::append;

use super::tx::Tx;
use super::upload::Upload;
use super::{End, Link, Outcome};

/// Longest memory that a free slot keeps in each of its buffers, until the link is quiet.
const KEPT: usize = 1 << 20;

/// What is not worth a look at the clock whenever somebody sleeps: a free slot keeps so much in each of its buffers for good.
const SMALL: usize = 16 << 10;

/// Most that is set aside for an item on the daemon's word that it will come: addresses, which cost no memory before the
/// bytes are there. What grows step by step is copied at each.
const AHEAD: u64 = 16 << 20;

/// Where one answer gathers.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) id: u64,
    /// The stream has no terminal frame yet.
    pub(super) live: bool,
    pub(super) one_item: bool,
    pub(super) repeatable: bool,
    pub(super) accepted: bool,
    /// Something of the response came.
    pub(super) answered: bool,
    /// The application has seen an item.
    handed: bool,
    /// Nobody waits for the answer any more.
    pub(super) abandoned: bool,
    pub(super) end: Option<SlotEnd>,
    pub(super) waker: Option<Waker>,
    /// Finished items from `head` on, one after another, and behind them the pieces of the next.
    pub(super) bytes: Vec<u8>,
    head: usize,
    /// Length of each finished item, with the credit that is given when it is taken.
    pub(super) items: VecDeque<(usize, u32)>,
    pub(super) partial: usize,
    pub(super) partial_credit: u32,
    /// A request that is sent from here: one whose OPEN found no room, or whose pieces are [kept](Upload::Kept).
    pub(super) body: Vec<u8>,
    /// Where the pieces of a request are, from `sent` on.
    pub(super) upload: Upload,
    pub(super) sent: usize,
    pub(super) prefix: Option<OpenPrefix>,
    pub(super) ty: Option<MessageType>,
    pub(super) whole: bool,
    pub(super) uploading: bool,
}

#[derive(Debug)]
pub(super) enum SlotEnd {
    Fine,
    Failed(ErrorBody),
    Lost,
    /// Sent back by a daemon that goes away.
    NotRun,
}

impl Slot {
    /// Surely not run: neither accepted nor answered.
    pub(super) fn is_untouched(&self) -> bool {
        !self.accepted && !self.answered
    }

    fn may_repeat(&self) -> bool {
        self.is_untouched() || (self.repeatable && !self.handed)
    }

    fn wait(&mut self, waker: Option<&Waker>) {
        if let Some(waker) = waker {
            match &mut self.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    fn compact(&mut self) {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        } else if self.head >= self.bytes.len() / 2 && self.head >= 4096 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// Memory for an item of so many bytes, which may come from `spare`.
    pub(super) fn expect(&mut self, length: u64, spare: &mut Vec<u8>) {
        let length = length.min(AHEAD) as usize;
        let longer = spare.capacity() > self.bytes.capacity();
        if self.bytes.is_empty() && self.bytes.capacity() < length && length > KEPT && longer {
            std::mem::swap(&mut self.bytes, spare);
        }
        self.bytes.reserve(length);
    }

    /// Ready for another stream. `uploading` stays: it says that the slot stands in `uploads`.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.bytes.clear();
        self.body.clear();
        if self.body.capacity() > KEPT {
            self.body = Vec::new();
        }
        self.items.clear();
        self.head = 0;
        self.partial = 0;
        self.partial_credit = 0;
        self.sent = 0;
        self.upload = Upload::Kept;
        self.accepted = false;
        self.answered = false;
        self.handed = false;
        self.abandoned = false;
        self.end = None;
        self.waker = None;
        self.prefix = None;
    }
}

/// Whether free slots keep memory that is worth giving back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    /// One was given back since the last trim.
    Lately,
    /// None was.
    Before,
}

impl Tx {
    /// Gives a slot back. Of what is too long for it the longest buffer is kept for the next long answer, so that not each of
    /// them is a thousand page faults.
    #[inline]
    pub(super) fn recycle(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.reset();
        if slot.bytes.capacity().max(slot.body.capacity()) > SMALL {
            self.kept = Kept::Lately;
        }
        if slot.bytes.capacity() > KEPT {
            let long = std::mem::take(&mut slot.bytes);
            if long.capacity() > self.spare.capacity() {
                self.spare = long;
            }
        }
        self.free.push(index);
    }

    /// Gives back the memory that is kept for other streams, if none has ended since this was last called: a link that is in use needs
    /// it again at once.
    pub(super) fn trim_slots(&mut self) {
        self.kept = match self.kept {
            Kept::Lately => Kept::Before,
            Kept::Before => {
                self.spare = Vec::new();
                for &index in &self.free {
                    let slot = &mut self.slots[index as usize];
                    slot.bytes = Vec::new();
                    slot.items = VecDeque::new();
                    slot.body = Vec::new();
                }
                Kept::Nothing
            }
            Kept::Nothing => Kept::Nothing,
        };
    }

    /// Takes the answer of a one-item request if it is there and right, and gives the slot back.
    #[inline]
    pub(super) fn take_ready(&mut self, index: u32, answer: &mut Vec<u8>) -> bool {
        let slot = &mut self.slots[index as usize];
        if !matches!(slot.end, Some(SlotEnd::Fine)) || slot.items.len() != 1 {
            return false;
        }
        std::mem::swap(answer, &mut slot.bytes);
        self.recycle(index);
        true
    }

    /// Takes the answer of a one-item request into `answer`, or notes who waits for it. With the answer the slot is
    /// given back: see [`Stream::taken`].
    #[inline]
    pub(crate) fn take_answer(
        &mut self,
        index: u32,
        answer: &mut Vec<u8>,
        waker: Option<&Waker>,
    ) -> Poll<Result<(), Outcome>> {
        let slot = &mut self.slots[index as usize];
        match &slot.end {
            None => {
                if slot.bytes.is_empty() && slot.bytes.capacity() < answer.capacity() {
                    // The answer comes to where it is wanted.
                    answer.clear();
                    std::mem::swap(answer, &mut slot.bytes);
                }
                slot.wait(waker);
                Poll::Pending
            }
            Some(SlotEnd::Fine) if slot.items.len() == 1 => {
                std::mem::swap(answer, &mut slot.bytes);
                self.recycle(index);
                Poll::Ready(Ok(()))
            }
            Some(SlotEnd::Fine) => {
                let message = format!(
                    "the answer has {} items where one was expected",
                    slot.items.len()
                );
                Poll::Ready(Err(Outcome::Failed(ErrorBody::new(
                    ErrorCode::Internal,
                    message,
                ))))
            }
            Some(_) => Poll::Ready(Err(self.outcome(index))),
        }
    }

    /// Takes the next item into `item`: true, or false at the end; or notes who waits for it.
    #[inline]
    pub(crate) fn take_item(
        &mut self,
        index: u32,
        item: &mut Vec<u8>,
        waker: Option<&Waker>,
    ) -> Poll<Result<bool, Outcome>> {
        let slot = &mut self.slots[index as usize];
        let lost = matches!(slot.end, Some(SlotEnd::Lost)) && slot.may_repeat();
        if let Some(&(length, mut credit)) = slot.items.front().filter(|_| !lost) {
            slot.items.pop_front();
            slot.handed = true;
            item.clear();
            append(item, &slot.bytes[slot.head..slot.head + length]);
            slot.head += length;
            slot.compact();
            if slot.items.is_empty() {
                // What comes now is what the reader waits for.
                credit += std::mem::take(&mut slot.partial_credit);
            }
            if slot.end.is_none() && self.end.is_none() {
                let id = slot.id;
                self.state.taken(id, credit);
                // A daemon that is gone, and a ring that is corrupt, are found by the next pump.
                let _ = self.write_and_leave().and_then(|()| self.flush_now());
            }
            return Poll::Ready(Ok(true));
        }
        match &slot.end {
            None => {
                slot.wait(waker);
                Poll::Pending
            }
            Some(SlotEnd::Fine) => Poll::Ready(Ok(false)),
            Some(_) => Poll::Ready(Err(self.outcome(index))),
        }
    }

    /// Whether the request may still have to be sent again from its start.
    pub(crate) fn may_repeat(&self, index: u32) -> bool {
        self.slots[index as usize].may_repeat()
    }

    /// Whether the daemon has said, before it hung up, that it takes no request of this id, or that nothing was under way.
    fn came_too_late(&self, id: u64) -> bool {
        self.goaway.is_some_and(|goaway| id > goaway.last_id)
            || matches!(self.end.as_deref(), Some(End::Daemon(body)) if body.code == ErrorCode::IdleTimeout)
    }

    fn outcome(&mut self, index: u32) -> Outcome {
        let slot = &self.slots[index as usize];
        match &slot.end {
            Some(SlotEnd::Failed(body)) => Outcome::Failed(body.clone()),
            _ if matches!(self.end.as_deref(), Some(End::Closed)) => Outcome::Closed,
            end => {
                let sent_back = matches!(end, Some(SlotEnd::NotRun));
                let not_run = sent_back
                    || self.deferred == Some(index)
                    || (slot.is_untouched() && self.came_too_late(slot.id));
                Outcome::Lost {
                    id: (!not_run).then_some(slot.id),
                    untouched: slot.is_untouched(),
                    reason: Arc::clone(&self.reason),
                }
            }
        }
    }
}

/// A stream that somebody waits for. Dropping it before its end cancels it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) link: Arc<Link>,
    pub(crate) index: u32,
    taken: bool,
}

impl Stream {
    pub(crate) fn new(link: Arc<Link>, index: u32) -> Self {
        Self {
            link,
            index,
            taken: false,
        }
    }

    /// [`Tx::take_answer`] has given the answer, and the slot back.
    pub(crate) fn taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.taken {
            self.link.release(self.index);
        }
    }
}
