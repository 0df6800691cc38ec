//! One live connection, without a runtime: requests go in, answers come out, whoever waits pumps.
//!
//! Two locks. `tx` guards everything that is written and known: the writer, the protocol's state, the slots where
//! answers gather. `rx` guards the reader; its holder, the leader, is the one who pumps, spins and sleeps. Where both are
//! needed `rx` is taken first. No waker is called under `tx`.
//!
//! | part | here |
//! |---|---|
//! | the link and its phases; beginning a request, and letting go of one | `mod.rs` |
//! | the two locks, who leads, and who does next | `lead.rs` |
//! | `rx`: reading and sleeping | `pump.rs` |
//! | `tx`: requests and control frames out, the daemon's frames to their slots | `tx.rs` |
//! | requests that go in pieces | `upload.rs` |
//! | where one answer gathers, and how it is taken | `slot.rs` |
//! | how far a link is and how it ends, in words | `end.rs` |

mod end;
mod lead;
mod pump;
mod slot;
#[cfg(test)]
mod tests;
mod tx;
mod upload;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Poll, Waker};

use lapce_ai_proto::{GoAway, MessageType, OpenPrefix, Refusal, Welcome};
use lapce_ai_transport::{Connection, TransportError};

pub(crate) use self::end::{End, Outcome, Phase, Refused};
pub(crate) use self::lead::{LeadGuard, Turn};
use self::lead::{Leadership, TxGuard, wake_all};
pub(crate) use self::pump::{QUIET, Rx};
use self::slot::SlotEnd;
pub(crate) use self::slot::Stream;
pub(crate) use self::tx::Tx;
pub(crate) use self::upload::Lent;
use crate::Body;

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) ty: MessageType,
    pub(crate) body: &'a Body<'a>,
    /// If the body has to go in pieces, whoever waits for the answer sends them, as [`Lent`].
    pub(crate) lent: bool,
    pub(crate) prefix: Option<OpenPrefix>,
    pub(crate) repeatable: bool,
    /// The answer is one item, wanted whole.
    pub(crate) one_item: bool,
    /// It may be published together with those that follow, at the latest when an answer is waited for.
    pub(crate) may_lag: bool,
}

/// Requests that are published together at most. Each publication costs a fence that waits until all that was written
/// has left the CPU; so few of them hardly delay the first.
const LAG: u32 = 8;

pub(crate) struct Link {
    lead: Leadership<Rx, Tx>,
    socket: Arc<OwnedFd>,
    phase: AtomicU8,
    welcome: Welcome,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("welcome", &self.welcome)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// `last_id`: the highest id of the client's earlier links.
    pub(crate) fn new(
        connection: Connection,
        welcome: Welcome,
        response_window: u32,
        last_id: u64,
    ) -> Self {
        let Connection { reader, writer, .. } = connection;
        let socket = reader.shared_socket();
        Self {
            lead: Leadership::new(
                Rx::new(reader),
                Tx::new(writer, &welcome, response_window, last_id),
            ),
            socket,
            phase: AtomicU8::new(Phase::Open as u8),
            welcome,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.socket.as_fd()
    }

    pub(crate) fn shared_socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    pub(crate) fn shares_memory(&self) -> bool {
        self.welcome.features.shared_memory
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::GoingAway,
            _ => Phase::Ended,
        }
    }

    /// The daemon's life at the other end.
    pub(crate) fn daemon(&self) -> u128 {
        self.welcome.instance
    }

    /// The highest id that was used here. Final once the link takes no more requests.
    pub(crate) fn last_id(&self) -> u64 {
        self.tx().state.last_id()
    }

    /// Why it ended.
    pub(crate) fn end(&self) -> Option<Arc<End>> {
        self.tx().end.clone()
    }

    pub(crate) fn goaway(&self) -> Option<GoAway> {
        self.tx().goaway
    }

    #[inline]
    pub(crate) fn tx(&self) -> TxGuard<'_, Tx> {
        self.lead.tx()
    }

    /// The right to pump, if nobody has it.
    #[inline]
    pub(crate) fn try_rx(&self) -> Option<LeadGuard<'_, Rx>> {
        self.lead.try_rx()
    }

    /// The right to pump.
    pub(crate) fn rx(&self) -> LeadGuard<'_, Rx> {
        self.lead.rx()
    }

    /// Begins a request, or queues for it: `ticket` is the place in the queue, `waker` is called when it is worth
    /// another try. Whoever gives up must [`leave_queue`](Self::leave_queue).
    #[inline]
    pub(crate) fn begin(
        &self,
        request: &Outgoing<'_>,
        ticket: &mut Option<u64>,
        waker: &Waker,
    ) -> Poll<Result<u32, Refused>> {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        let begun = self.begin_locked(&mut tx, request, ticket, waker, &mut wakes);
        drop(tx);
        wake_all(&mut wakes);
        begun
    }

    /// Begins a request without options whose answer is one item, if it can go at once and in one frame.
    /// It may lag: see [`Outgoing::may_lag`].
    #[inline]
    pub(crate) fn begin_plain(&self, ty: MessageType, body: &[u8]) -> Option<u32> {
        let mut guard = self.tx();
        let tx = &mut *guard;
        if !tx.takes_plain || tx.deferred.is_some() || !tx.queue.is_empty() {
            return None;
        }
        let (index, mut written) = tx.open_plain(ty, body)?;
        tx.lagging += 1;
        // One that is alone in flight has nobody to wait for.
        if written.is_ok() && (tx.lagging >= LAG || tx.state.live() <= 1) {
            written = tx.flush_now();
        }
        if let Err(error) = written {
            let mut wakes = Vec::new();
            self.write_failed(tx, error, &mut wakes);
            drop(guard);
            wake_all(&mut wakes);
        }
        Some(index)
    }

    /// Takes the answer of a one-item request if it is there and right, and its slot with it. If it is not, publishes
    /// what lags, since the caller is about to wait.
    #[inline]
    pub(crate) fn take_ready(&self, index: u32, answer: &mut Vec<u8>) -> bool {
        let mut tx = self.tx();
        if tx.take_ready(index, answer) {
            return true;
        }
        if tx.lagging > 0 {
            self.publish_lagging(tx);
        }
        false
    }

    #[inline(never)]
    fn publish_lagging(&self, mut tx: TxGuard<'_, Tx>) {
        if tx.end.is_none()
            && let Err(error) = tx.flush_now()
        {
            let mut wakes = Vec::new();
            self.write_failed(&mut tx, error, &mut wakes);
            drop(tx);
            wake_all(&mut wakes);
        }
    }

    /// [`begin`](Self::begin) for those who hold `tx`; `wakes` are to be called without it.
    #[inline]
    pub(crate) fn begin_locked(
        &self,
        tx: &mut Tx,
        request: &Outgoing<'_>,
        ticket: &mut Option<u64>,
        waker: &Waker,
        wakes: &mut Vec<Waker>,
    ) -> Poll<Result<u32, Refused>> {
        let turn = tx
            .queue
            .front()
            .is_none_or(|(first, _)| Some(*first) == *ticket);
        let begun = match tx.end {
            Some(_) => Err(Refusal::GoingAway),
            None if !turn || tx.deferred.is_some() => Err(Refusal::Busy),
            None => tx.open(request),
        };
        let refused = match begun {
            Err(Refusal::Busy) => {
                tx.enqueue(ticket, waker);
                return Poll::Pending;
            }
            Err(Refusal::GoingAway) => Err(Refused::Gone),
            Err(Refusal::TooLarge) => Err(Refused::TooLarge(tx.state.limits().max_message_size)),
            Ok((slot, written)) => {
                tx.lagging += 1;
                // One that is alone in flight has nobody to wait for.
                let lag = request.may_lag && tx.lagging < LAG && tx.state.live() > 1;
                let flushed = written.and_then(|()| if lag { Ok(()) } else { tx.flush_now() });
                match flushed {
                    Ok(()) => {
                        if tx.writer.wants_writable() {
                            wakes.extend(tx.driver.clone());
                        }
                    }
                    Err(error) => self.write_failed(tx, error, wakes),
                }
                Ok(slot)
            }
        };
        if ticket.is_some() {
            tx.dequeue(ticket, wakes);
        }
        Poll::Ready(refused)
    }

    /// Looks without pumping; if there is nothing, publishes what lags, since the caller is about to wait.
    #[inline]
    pub(crate) fn look<T>(
        &self,
        look: impl FnOnce(&mut Tx, &mut Vec<Waker>) -> Poll<T>,
    ) -> Poll<T> {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        let found = look(&mut tx, &mut wakes);
        if found.is_pending()
            && tx.lagging > 0
            && tx.end.is_none()
            && let Err(error) = tx.flush_now()
        {
            self.write_failed(&mut tx, error, &mut wakes);
        }
        tx.call_next(&mut wakes);
        drop(tx);
        wake_all(&mut wakes);
        found
    }

    /// Bytes that were lent are copied, since who lent them is about to wait for another who pumps.
    pub(crate) fn keep(&self, tx: &mut Tx, lent: &Lent<'_>, wakes: &mut Vec<Waker>) {
        tx.keep(lent);
        if tx.end.is_none()
            && let Err(error) = tx.write_on()
        {
            self.write_failed(tx, error, wakes);
        }
        tx.call_next(wakes);
    }

    pub(crate) fn leave_queue(&self, ticket: &mut Option<u64>) {
        if ticket.is_some() {
            let mut wakes = Vec::new();
            self.tx().dequeue(ticket, &mut wakes);
            wake_all(&mut wakes);
        }
    }

    /// Publishes GOAWAY, and the end of a link that has drained after it.
    #[inline]
    fn note_phase(&self, tx: &mut Tx, wakes: &mut Vec<Waker>) {
        if tx.goaway.is_none() {
            return;
        }
        if self.phase() == Phase::Open {
            self.phase.store(Phase::GoingAway as u8, Ordering::Release);
            wakes.extend(tx.queue.drain(..).map(|(_, waker)| waker));
            wakes.extend(tx.driver.clone());
        }
        if tx.state.live() == 0 {
            self.fail(tx, End::Drained, wakes);
        }
    }

    /// What was to be written could not be. A daemon that is gone may have said something before, such as GOAWAY: whoever
    /// reads takes that in first, and then finds the end as well.
    #[cold]
    fn write_failed(&self, tx: &mut Tx, error: TransportError, wakes: &mut Vec<Waker>) {
        if !matches!(error, TransportError::PeerGone) {
            self.fail(tx, error.into(), wakes);
        }
    }

    /// Ends the link: every stream that lives is lost, everybody is told.
    fn fail(&self, tx: &mut Tx, end: End, wakes: &mut Vec<Waker>) {
        if tx.end.is_some() {
            return;
        }
        tx.reason = Arc::from(end.to_string());
        tx.end = Some(Arc::new(end));
        tx.takes_plain = false;
        self.phase.store(Phase::Ended as u8, Ordering::Release);
        tx.writer.hang_up();
        for slot in tx.slots.iter_mut().filter(|slot| slot.live) {
            slot.live = false;
            slot.end = Some(SlotEnd::Lost);
            wakes.extend(slot.waker.take());
        }
        wakes.extend(tx.queue.drain(..).map(|(_, waker)| waker));
        wakes.extend(tx.followers.all());
        wakes.extend(tx.driver.take());
    }

    /// Ends the link on this side's wish. Where the client itself ends, the daemon hears that nobody comes back for what runs.
    pub(crate) fn close(&self, end: End) {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        if matches!(end, End::Closed) {
            tx.cancel_all();
        }
        self.fail(&mut tx, end, &mut wakes);
        drop(tx);
        wake_all(&mut wakes);
    }

    /// Lets go of a stream: cancels it if it has not ended.
    pub(crate) fn release(&self, index: u32) {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        if let Err(error) = tx.release(index) {
            self.write_failed(&mut tx, error, &mut wakes);
        } else if tx.writer.wants_writable() {
            wakes.extend(tx.driver.clone());
        }
        tx.call_next(&mut wakes);
        drop(tx);
        wake_all(&mut wakes);
    }

    /// After GOAWAY: ends the link if no stream lives any more.
    pub(crate) fn close_if_drained(&self) -> bool {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        self.note_phase(&mut tx, &mut wakes);
        let ended = tx.end.is_some();
        drop(tx);
        wake_all(&mut wakes);
        ended
    }
}
