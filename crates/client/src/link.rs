//! One live connection, without a runtime: requests go in, answers come out, whoever waits pumps.
//!
//! Two locks. `tx` guards everything that is written and known: the writer, the protocol's state, the slots where
//! answers gather. `rx` guards the reader; its holder is the one who pumps, spins and sleeps. Where both are needed `rx` is
//! taken first. No waker is called under `tx`.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Poll, Waker};

use lapce_ai_proto::{
    ClientEvent, ClientState, ErrorBody, ErrorCode, FIN, Frame, GoAway, HEADER_LEN, Kind, Limits,
    MessageType, OPEN_PREFIX_LEN, OpenPrefix, PREFIX, Refusal, Welcome,
};
use lapce_ai_transport::{CONTROL_ROOM, Connection, Reader, TransportError, Writer, flush};

/// Why a link ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The daemon is gone, or broke the protocol.
    Transport(TransportError),
    /// The daemon said why it hangs up.
    Daemon(ErrorBody),
    /// It drained after GOAWAY.
    Drained,
    /// This client was closed.
    Closed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Daemon(body) => body.fmt(f),
            Self::Drained => f.write_str("the daemon went away"),
            Self::Closed => f.write_str("the client was closed"),
        }
    }
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Open,
    GoingAway,
    Ended,
}

/// How a response ended, other than by its last item.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The daemon's error.
    Failed(ErrorBody),
    /// The connection was lost. `safe`: it may be sent again.
    Lost { safe: bool, reason: Arc<str> },
    /// The client was closed.
    Closed,
}

/// Why a request was not begun.
#[derive(Debug)]
pub(crate) enum Refused {
    /// This link takes no more requests.
    Gone,
    /// Over `max_message_size`.
    TooLarge(u64),
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) ty: MessageType,
    pub(crate) body: &'a [u8],
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

/// Longest memory that a free slot keeps in each of its buffers.
const KEPT: usize = 1 << 20;
/// Most that is set aside for an item on the daemon's word that it will come.
const AHEAD: u64 = 1 << 20;

pub(crate) struct Link {
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    socket: Arc<OwnedFd>,
    phase: AtomicU8,
    followers: AtomicUsize,
    welcome: Welcome,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("welcome", &self.welcome)
            .finish_non_exhaustive()
    }
}

/// The reading side and who holds it.
#[derive(Debug)]
pub(crate) struct Rx {
    reader: Reader,
    scratch: Vec<u8>,
    wakes: Vec<Waker>,
    /// The daemon's end of the socket is closed; what it had published is still read.
    gone: bool,
}

/// The writing side and everything that is known.
#[derive(Debug)]
pub(crate) struct Tx {
    writer: Writer,
    state: ClientState,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The slot of each live stream, by the stream's [place](ClientState::place).
    places: Vec<u32>,
    /// Slots with credit and bytes to send, in turn.
    uploads: VecDeque<u32>,
    /// The one request whose OPEN found no room in the ring. No other is begun before it is out: ids rise.
    deferred: Option<u32>,
    /// Who waits to begin a request, in order. Only the first may.
    queue: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    /// Threads that wait while another one pumps.
    followers: Vec<Waker>,
    /// The task that pumps when nobody else does.
    driver: Option<Waker>,
    /// Payload of the frame that found no room, if one waits.
    blocked: Option<usize>,
    /// Requests that were written and not yet published.
    lagging: u32,
    /// Longest payload of a request's frame, so that it fits the ring.
    fragment: usize,
    goaway: Option<GoAway>,
    end: Option<Arc<End>>,
    reason: Arc<str>,
}

/// Where one answer gathers.
#[derive(Debug, Default)]
struct Slot {
    id: u64,
    /// The stream has no terminal frame yet.
    live: bool,
    one_item: bool,
    repeatable: bool,
    accepted: bool,
    /// Something of the response came.
    answered: bool,
    /// The application has seen an item.
    handed: bool,
    /// Nobody waits for the answer any more.
    abandoned: bool,
    end: Option<SlotEnd>,
    waker: Option<Waker>,
    /// Finished items from `head` on, one after another, and behind them the pieces of the next.
    bytes: Vec<u8>,
    head: usize,
    /// Length of each finished item, with the credit that is given when it is taken.
    items: VecDeque<(usize, u32)>,
    partial: usize,
    partial_credit: u32,
    /// What is still to be sent of the request, from `sent` on.
    body: Vec<u8>,
    sent: usize,
    prefix: Option<OpenPrefix>,
    ty: Option<MessageType>,
    whole: bool,
    uploading: bool,
}

#[derive(Debug)]
enum SlotEnd {
    Fine,
    Failed(ErrorBody),
    Lost,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step leaves the state whole, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake_all(wakes: &mut Vec<Waker>) {
    for waker in wakes.drain(..) {
        waker.wake();
    }
}

impl Link {
    pub(crate) fn new(connection: Connection, welcome: Welcome, response_window: u32) -> Self {
        let Connection { reader, writer, .. } = connection;
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
        let tx = Tx {
            writer,
            state: ClientState::new(limits, response_window),
            slots: Vec::new(),
            free: Vec::new(),
            places: Vec::new(),
            uploads: VecDeque::new(),
            deferred: None,
            queue: VecDeque::new(),
            next_ticket: 0,
            followers: Vec::new(),
            driver: None,
            blocked: None,
            lagging: 0,
            fragment,
            goaway: None,
            end: None,
            reason: Arc::from(""),
        };
        let socket = reader.shared_socket();
        let scratch = vec![0; reader.scratch_len()];
        let rx = Rx {
            reader,
            scratch,
            wakes: Vec::new(),
            gone: false,
        };
        Self {
            tx: Mutex::new(tx),
            rx: Mutex::new(rx),
            socket,
            phase: AtomicU8::new(Phase::Open as u8),
            followers: AtomicUsize::new(0),
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

    /// Why it ended.
    pub(crate) fn end(&self) -> Option<Arc<End>> {
        lock(&self.tx).end.clone()
    }

    pub(crate) fn goaway(&self) -> Option<GoAway> {
        lock(&self.tx).goaway
    }

    #[inline]
    pub(crate) fn tx(&self) -> MutexGuard<'_, Tx> {
        lock(&self.tx)
    }

    /// The right to pump, if nobody has it.
    #[inline]
    pub(crate) fn try_rx(&self) -> Option<MutexGuard<'_, Rx>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The right to pump.
    pub(crate) fn rx(&self) -> MutexGuard<'_, Rx> {
        lock(&self.rx)
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
        let mut tx = lock(&self.tx);
        let begun = self.begin_locked(&mut tx, request, ticket, waker, &mut wakes);
        drop(tx);
        wake_all(&mut wakes);
        begun
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
                    Err(error) => self.fail(tx, error.into(), wakes),
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
        let mut tx = lock(&self.tx);
        let found = look(&mut tx, &mut wakes);
        if found.is_pending()
            && tx.lagging > 0
            && tx.end.is_none()
            && let Err(error) = tx.flush_now()
        {
            self.fail(&mut tx, error.into(), &mut wakes);
        }
        drop(tx);
        wake_all(&mut wakes);
        found
    }

    pub(crate) fn leave_queue(&self, ticket: &mut Option<u64>) {
        if ticket.is_some() {
            let mut wakes = Vec::new();
            lock(&self.tx).dequeue(ticket, &mut wakes);
            wake_all(&mut wakes);
        }
    }

    /// Takes frames that are there, sends what waits, and asks `then` before it lets go of the lock. Returns how many
    /// frames there were.
    #[inline]
    pub(crate) fn pump<T>(&self, rx: &mut Rx, then: impl FnOnce(&mut Tx) -> T) -> (usize, T) {
        let Rx {
            reader,
            scratch,
            wakes,
            gone,
        } = rx;
        let mut guard = lock(&self.tx);
        let tx = &mut *guard;
        let mut frames = 0;
        if tx.end.is_none() {
            let mut taken = 0;
            let read = reader.read(scratch, |frame| {
                taken += 1;
                tx.on_frame(&frame, wakes)
            });
            frames = taken;
            let pumped = read.and_then(|_| {
                tx.write_out()?;
                tx.lagging = 0;
                match flush(reader, &mut tx.writer) {
                    // Whether it left something to read is seen on the next round.
                    Err(TransportError::PeerGone) => *gone = true,
                    other => other?,
                }
                if *gone && frames == 0 {
                    Err(TransportError::PeerGone.into())
                } else {
                    Ok(())
                }
            });
            match pumped {
                Err(end) => self.fail(tx, end, wakes),
                Ok(()) if frames > 0 => {
                    if let Some((_, waker)) = tx.queue.front() {
                        wakes.push(waker.clone());
                    }
                    self.note_phase(tx, wakes);
                }
                Ok(()) => {}
            }
        }
        let then = then(tx);
        drop(guard);
        if !wakes.is_empty() {
            wake_all(wakes);
        }
        (frames, then)
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

    /// Ends the link: every stream that lives is lost, everybody is told.
    pub(crate) fn fail(&self, tx: &mut Tx, end: End, wakes: &mut Vec<Waker>) {
        if tx.end.is_some() {
            return;
        }
        tx.reason = Arc::from(end.to_string());
        tx.end = Some(Arc::new(end));
        self.phase.store(Phase::Ended as u8, Ordering::Release);
        tx.writer.hang_up();
        for slot in tx.slots.iter_mut().filter(|slot| slot.live) {
            slot.live = false;
            slot.end = Some(SlotEnd::Lost);
            wakes.extend(slot.waker.take());
        }
        wakes.extend(tx.queue.drain(..).map(|(_, waker)| waker));
        wakes.extend(tx.followers.iter().cloned());
        wakes.extend(tx.driver.take());
    }

    /// Ends the link on this side's wish.
    pub(crate) fn close(&self, end: End) {
        let mut wakes = Vec::new();
        self.fail(&mut lock(&self.tx), end, &mut wakes);
        wake_all(&mut wakes);
    }

    /// Prepares to sleep on the socket. `None`: there is something to do first. Otherwise whether it matters too that
    /// the socket becomes writable.
    pub(crate) fn prepare_to_sleep(&self, rx: &mut Rx) -> Option<bool> {
        let mut tx = lock(&self.tx);
        if tx.end.is_some() {
            return None;
        }
        match rx.reader.prepare_to_sleep() {
            Ok(true) => Some(tx.writer.wants_writable()),
            Ok(false) => None,
            Err(error) => {
                let mut wakes = Vec::new();
                self.fail(&mut tx, error.into(), &mut wakes);
                drop(tx);
                wake_all(&mut wakes);
                None
            }
        }
    }

    /// After a sleep: takes the bells.
    pub(crate) fn woken(&self, rx: &mut Rx) {
        rx.reader.awake();
        self.drain_bell(rx);
    }

    /// Takes the bells, and notes the daemon's death.
    pub(crate) fn drain_bell(&self, rx: &mut Rx) {
        match rx.reader.drain_bell() {
            Ok(()) => {}
            Err(TransportError::PeerGone) => rx.gone = true,
            Err(error) => self.close(error.into()),
        }
    }

    /// Sends what waits for the socket to be writable, or for room. False: it would block still.
    pub(crate) fn write_more(&self) -> bool {
        let mut wakes = Vec::new();
        let mut tx = lock(&self.tx);
        if tx.end.is_none()
            && let Err(error) = tx
                .flush_now()
                .and_then(|()| tx.write_out())
                .and_then(|()| tx.flush_now())
        {
            self.fail(&mut tx, error.into(), &mut wakes);
        }
        if let Some((_, waker)) = tx.queue.front() {
            wakes.push(waker.clone());
        }
        let done = tx.end.is_some() || !tx.writer.wants_writable();
        drop(tx);
        wake_all(&mut wakes);
        done
    }

    /// Whether a frame waits for room.
    pub(crate) fn is_blocked(&self) -> bool {
        lock(&self.tx).blocked.is_some()
    }

    /// Whether a frame that waits for room would find it now. A corrupt ring counts: the pump tells.
    pub(crate) fn has_room(&self) -> bool {
        let mut tx = lock(&self.tx);
        let need = tx.blocked.unwrap_or(0);
        tx.writer.has_room(need).unwrap_or(true)
    }

    /// Lets go of a stream: cancels it if it has not ended.
    pub(crate) fn release(&self, index: u32) {
        let mut wakes = Vec::new();
        let mut tx = lock(&self.tx);
        if let Err(error) = tx.release(index) {
            self.fail(&mut tx, error.into(), &mut wakes);
        } else if tx.writer.wants_writable() {
            wakes.extend(tx.driver.clone());
        }
        drop(tx);
        wake_all(&mut wakes);
    }

    /// Notes who is to be woken when something other than the socket asks for attention.
    pub(crate) fn set_driver(&self, waker: &Waker) {
        let mut tx = lock(&self.tx);
        if !tx
            .driver
            .as_ref()
            .is_some_and(|driver| driver.will_wake(waker))
        {
            tx.driver = Some(waker.clone());
        }
    }

    /// Wakes the driver if something waits for the socket to be writable.
    #[inline]
    pub(crate) fn tell_driver(&self) {
        if !self.shares_memory() {
            let tx = lock(&self.tx);
            let driver = if tx.wants_writable() {
                tx.driver.clone()
            } else {
                None
            };
            drop(tx);
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }

    /// After GOAWAY: ends the link if no stream lives any more.
    pub(crate) fn close_if_drained(&self) -> bool {
        let mut wakes = Vec::new();
        let mut tx = lock(&self.tx);
        self.note_phase(&mut tx, &mut wakes);
        let ended = tx.end.is_some();
        drop(tx);
        wake_all(&mut wakes);
        ended
    }

    /// Joins those who wait while another thread pumps. To be called before [`try_rx`](Self::try_rx).
    pub(crate) fn follow(&self, tx: &mut Tx, waker: &Waker) {
        tx.followers.push(waker.clone());
        self.followers.store(tx.followers.len(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn unfollow(&self, tx: &mut Tx, waker: &Waker) {
        if let Some(at) = tx.followers.iter().position(|other| other.will_wake(waker)) {
            tx.followers.swap_remove(at);
            self.followers.store(tx.followers.len(), Ordering::Relaxed);
        }
    }

    /// Wakes one of those who wait, after the right to pump was given up.
    #[inline]
    pub(crate) fn promote(&self) {
        fence(Ordering::SeqCst);
        if self.followers.load(Ordering::Relaxed) > 0 {
            let waker = lock(&self.tx).followers.first().cloned();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Rx {
    /// Whether there is something to read, without a system call. A corrupt ring counts: the pump tells.
    #[inline]
    pub(crate) fn has_data(&mut self) -> bool {
        self.reader.has_data().unwrap_or(true)
    }
}

impl Tx {
    fn enqueue(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
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

    fn dequeue(&mut self, ticket: &mut Option<u64>, wakes: &mut Vec<Waker>) {
        let ticket = ticket.take();
        self.queue.retain(|(other, _)| Some(*other) != ticket);
        // The next in line may find room too.
        if let Some((_, waker)) = self.queue.front() {
            wakes.push(waker.clone());
        }
    }

    /// Opens a stream and writes its OPEN, or defers that.
    #[inline]
    fn open(
        &mut self,
        request: &Outgoing<'_>,
    ) -> Result<(u32, Result<(), TransportError>), Refusal> {
        let opening = self
            .state
            .open(request.body.len() as u64, request.prefix.is_some())?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let place = self.state.place(opening.id);
        if self.places.len() <= place {
            self.places.resize(place + 1, 0);
        }
        self.places[place] = index;
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
        slot.id = opening.id;
        slot.live = true;
        slot.one_item = request.one_item;
        slot.repeatable = request.repeatable;
        slot.whole = opening.whole;
        if opening.whole && prefix.is_none() {
            let written =
                self.writer
                    .frame(Kind::Open, FIN, request.ty.0, opening.id, &[], request.body);
            if let Ok(true) = written {
                return Ok((index, Ok(())));
            }
        }
        slot.prefix = prefix;
        slot.ty = Some(request.ty);
        slot.sent = 0;
        slot.body.clear();
        if !opening.whole {
            slot.body.extend_from_slice(request.body);
        }
        let opened = self.write_open(index, request.body);
        let written = opened.and_then(|written| {
            if !written {
                let slot = &mut self.slots[index as usize];
                if slot.whole {
                    slot.body.extend_from_slice(request.body);
                }
                self.deferred = Some(index);
                self.write_out()?;
            }
            Ok(())
        });
        Ok((index, written))
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
    fn flush_now(&mut self) -> Result<(), TransportError> {
        self.lagging = 0;
        match self.writer.flush() {
            Err(TransportError::PeerGone) => Ok(()),
            other => other,
        }
    }

    /// Writes control frames, the deferred OPEN and pieces of uploads as far as there is room; where there is not, asks
    /// to be woken.
    #[inline]
    fn write_out(&mut self) -> Result<(), TransportError> {
        if !self.state.has_control() && self.deferred.is_none() && self.uploads.is_empty() {
            return Ok(());
        }
        self.blocked = None;
        while let Some(need) = self.write_some()? {
            self.flush_now()?;
            if self.writer.wait_for_room(need)? {
                self.blocked = Some(need);
                break;
            }
        }
        Ok(())
    }

    /// Writes until all is written, or a frame with so many bytes of payload finds no room.
    fn write_some(&mut self) -> Result<Option<usize>, TransportError> {
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
            if slot.abandoned {
                self.state.cancel(slot.id);
                return self.write_some();
            }
        }
        while let Some(&index) = self.uploads.front() {
            let slot = &mut self.slots[index as usize];
            let left = slot.body.len() - slot.sent;
            let sendable = if slot.uploading {
                self.state.sendable(slot.id)
            } else {
                None
            };
            let len = match sendable {
                None | Some(0) => {
                    slot.uploading = false;
                    self.uploads.pop_front();
                    continue;
                }
                Some(sendable) => left.min(self.fragment).min(sendable as usize),
            };
            let last = len == left;
            let kind = if last { Kind::End } else { Kind::Data };
            let piece = &slot.body[slot.sent..slot.sent + len];
            if !self.writer.frame(kind, 0, 0, slot.id, &[], piece)? {
                return Ok(Some(len));
            }
            slot.sent += len;
            self.state.sent(slot.id, len as u32);
            self.uploads.pop_front();
            if last {
                slot.uploading = false;
            } else {
                self.uploads.push_back(index);
            }
        }
        Ok(None)
    }

    #[inline]
    fn on_frame(&mut self, frame: &Frame<'_>, wakes: &mut Vec<Waker>) -> Result<(), End> {
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
                    slot.bytes.reserve(length.min(AHEAD) as usize);
                }
                slot.bytes.extend_from_slice(bytes);
                slot.partial += bytes.len();
                let credit = bytes.len() as u32;
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
                    // Not run: it goes to the next connection.
                    (Some(goaway), Some(index))
                        if body.code == goaway.code
                            && self.slots[index as usize].is_untouched() =>
                    {
                        self.reason = Arc::from(body.to_string());
                        SlotEnd::Lost
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
                    let slot = &mut self.slots[index as usize];
                    if !slot.uploading && slot.sent < slot.body.len() {
                        slot.uploading = true;
                        self.uploads.push_back(index);
                    }
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

    fn recycle(&mut self, index: u32) {
        self.slots[index as usize].reset();
        self.free.push(index);
    }

    fn release(&mut self, index: u32) -> Result<(), TransportError> {
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
            self.write_out()?;
            self.flush_now()?;
        }
        Ok(())
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
            item.extend_from_slice(&slot.bytes[slot.head..slot.head + length]);
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
                let _ = self.write_out().and_then(|()| self.flush_now());
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

    /// Whether the request may still have to be sent again.
    pub(crate) fn may_repeat(&self, index: u32) -> bool {
        self.slots[index as usize].may_repeat()
    }

    fn outcome(&mut self, index: u32) -> Outcome {
        let slot = &self.slots[index as usize];
        match &slot.end {
            Some(SlotEnd::Failed(body)) => Outcome::Failed(body.clone()),
            _ if matches!(self.end.as_deref(), Some(End::Closed)) => Outcome::Closed,
            _ => Outcome::Lost {
                safe: slot.may_repeat(),
                reason: Arc::clone(&self.reason),
            },
        }
    }

    pub(crate) fn wants_writable(&self) -> bool {
        self.end.is_none() && self.writer.wants_writable()
    }
}

impl Slot {
    /// Surely not run: neither accepted nor answered.
    fn is_untouched(&self) -> bool {
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

    /// Ready for another stream. `uploading` stays: it says that the slot stands in `uploads`.
    #[inline]
    fn reset(&mut self) {
        for buffer in [&mut self.bytes, &mut self.body] {
            buffer.clear();
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
        }
        self.items.clear();
        self.head = 0;
        self.partial = 0;
        self.partial_credit = 0;
        self.sent = 0;
        self.accepted = false;
        self.answered = false;
        self.handed = false;
        self.abandoned = false;
        self.end = None;
        self.waker = None;
        self.prefix = None;
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
