//! One connection, as the reactor sees it: read, fed with memory, watched, sent to sleep, ended. What its frames make happen is in
//! `dispatch.rs`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lapce_ai_proto::{Class, ErrorBody, ErrorCode, Kind, MessageType, OpenPrefix, ServerEvent};
use lapce_ai_transport::{Buffer, Reader, Rest, TransportError, flush};
use rustix::event::epoll;
use tokio::runtime::Handle;

use super::dispatch::{Complete, cancel, on_frame, refuse_memory, run};
use super::{Tools, fault_body, is_over};
use crate::line::{Granted, Waiter};
use crate::mailbox::{Newcomer, Past};
use crate::occupancy::Place;
use crate::pace::Pace;
use crate::server::Shared;
use crate::session::{Session, Tx};

/// So many bytes of a client that has hung up are looked through for cancels, or a batch more: a client that still writes would
/// have no end.
const LAST_BYTES: usize = 256 << 10;

pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) session: Arc<Session>,
    /// Its place among all connections; `None` once it is given up.
    pub(super) place: Option<Place>,
    /// The segment's descriptor, if it is kept.
    segment: Option<OwnedFd>,
    /// Requests that are arriving in pieces.
    uploads: HashMap<u64, Upload>,
    /// Requests whose first piece was the whole of them, before they got their memory.
    ended_early: Vec<u64>,
    /// What its latest request was.
    pub(super) latest: Option<MessageType>,
    /// How urgent that was.
    pub(super) class: Class,
    /// Polled without a system call.
    pub(super) hot: bool,
    /// Turns since there was something to do.
    pub(super) idle_turns: u32,
    pub(super) last_activity: Instant,
    /// Something may stall: looked at on every tick.
    pub(super) watched: bool,
    /// Whether the reactor has it on its list for that.
    pub(super) listed: bool,
    /// Whether the reactor has it on its list of those that may give memory back.
    pub(super) quieting: bool,
    /// Asleep without a bell for its data, since it is not read until it reads.
    pub(super) paused: bool,
    /// What the epoll tells of, beside the end.
    interest: epoll::EventFlags,
}

/// What it tells of at first.
const READABLE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP);

/// What a look at a connection came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Progress {
    None,
    /// It had something; so many bytes of requests were read.
    Some {
        bytes: usize,
    },
}

/// A request that is arriving in pieces.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) ty: MessageType,
    pub(super) prefix: OpenPrefix,
    pub(super) buffer: Buffer,
    pub(super) pace: Pace,
    pub(super) deadline: Option<Instant>,
}

impl Upload {
    pub(super) fn extend(&mut self, bytes: &[u8], rest: Rest<'_>) {
        self.buffer.extend(bytes);
        self.buffer.extend_from_ring(rest);
    }
}

impl Connection {
    pub(super) fn new(
        reader: Reader,
        session: Arc<Session>,
        place: Place,
        segment: Option<OwnedFd>,
    ) -> Self {
        Self {
            reader,
            session,
            place: Some(place),
            segment,
            uploads: HashMap::new(),
            ended_early: Vec::new(),
            latest: None,
            class: Class::Normal,
            hot: false,
            idle_turns: 0,
            last_activity: Instant::now(),
            watched: false,
            listed: false,
            quieting: false,
            paused: false,
            interest: READABLE,
        }
    }

    /// Reads up to `most` bytes of what is there, runs sync handlers, starts async ones, writes answers.
    pub(super) fn serve(
        &mut self,
        scratch: &mut [u8],
        most: usize,
        tools: &mut Tools<'_>,
    ) -> Result<Progress, TransportError> {
        if !self.reader.has_data()? && self.session.peer.shared_memory {
            return if self.watched {
                self.write_more()
            } else {
                Ok(Progress::None)
            };
        }
        let session = &self.session;
        let mut tx = session.lock();
        if tx.closed {
            // The client has come again, and let go of this one.
            return Err(TransportError::PeerGone);
        }
        // A client that does not read its answers is not read either, beyond a bound; one that keeps to the
        // protocol's first rule never gets here (docs/protocol.md, section 5).
        if tools.is_over(&tx) {
            tx.pump_awake()?;
            // Where credit is missing, it is read for.
            if tools.is_over(&tx) && tx.blocked_since.is_some() {
                self.watched = true;
                return Ok(Progress::None);
            }
        }
        let mut arriving = Arriving {
            uploads: &mut self.uploads,
            ended_early: &mut self.ended_early,
        };
        let mut latest = None;
        let batch = self.reader.receive(scratch, most, |frame, rest| {
            on_frame(
                session,
                &mut tx,
                &mut arriving,
                &mut latest,
                &frame,
                rest,
                tools,
            )
        })?;
        if let Some((ty, class)) = latest {
            (self.latest, self.class) = (Some(ty), class);
        }
        if batch.frames == 0 {
            return Ok(Progress::None);
        }
        if tx.state.has_control() || tx.state.live() > 0 {
            tx.pump_awake()?;
            self.watched = may_stall(&self.uploads, &tx);
        }
        session.note_live(&tx);
        flush(&mut self.reader, &mut tx.writer)?;
        self.watch_for_writable(&tx);
        Ok(Progress::Some { bytes: batch.bytes })
    }

    /// Goes on with answers that found no room, if there is some by now: while the reactor is awake, no bell is asked for.
    fn write_more(&self) -> Result<Progress, TransportError> {
        let mut tx = self.session.lock();
        if tx.blocked_since.is_none() || !tx.has_room()? {
            return Ok(Progress::None);
        }
        tx.pump_awake()?;
        Ok(Progress::Some { bytes: 0 })
    }

    /// Over a plain socket: has the reactor wait until the socket takes the rest of what was written.
    fn watch_for_writable(&self, tx: &Tx) {
        if tx.writer.wants_writable() && !self.interest.contains(epoll::EventFlags::OUT) {
            self.session.call_reactor();
        }
    }

    /// Prepares for sleep; false: there is something to do.
    pub(super) fn go_to_sleep(
        &mut self,
        shared: &Shared,
        epoll: &impl std::os::fd::AsFd,
    ) -> Result<bool, TransportError> {
        self.reader.take_bell()?;
        self.last_activity = Instant::now();
        let paused = self.watched && {
            let mut tx = self.session.lock();
            // Asks for a bell if there is no room for what waits.
            tx.pump()?;
            is_over(&tx, shared) && tx.blocked_since.is_some()
        };
        if paused != self.paused {
            self.paused = paused;
            self.watch_socket(self.interest.contains(epoll::EventFlags::OUT), epoll)?;
        }
        // A client that is not read because it does not read is woken for by its room, and by the next tick, not by
        // its data.
        Ok(self.paused || self.reader.prepare_to_sleep()?)
    }

    /// Whether it holds memory that it need not while nothing happens, or will when what runs has ended.
    pub(super) fn may_trim(&self) -> bool {
        self.uploads.capacity() > 0
            || self.ended_early.capacity() > 0
            || !self.session.lock().is_trimmed()
    }

    /// Gives that memory back. False: something runs, and so there may be more later.
    pub(super) fn trim(&mut self) -> Result<bool, TransportError> {
        if self.uploads.is_empty() {
            self.uploads = HashMap::new();
        }
        if self.ended_early.is_empty() {
            self.ended_early = Vec::new();
        }
        self.session.lock().trim()
    }

    /// The socket is readable, writable or hung up.
    pub(super) fn on_socket(
        &mut self,
        flags: epoll::EventFlags,
        epoll: &impl std::os::fd::AsFd,
    ) -> Result<(), TransportError> {
        self.reader.woken()?;
        if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return Err(TransportError::PeerGone);
        }
        self.attend(epoll)
    }

    /// Writes what waits for room, and watches for the socket to be writable if something waits for that.
    pub(super) fn attend(&mut self, epoll: &impl std::os::fd::AsFd) -> Result<(), TransportError> {
        let mut tx = self.session.lock();
        tx.pump()?;
        self.session.note_live(&tx);
        self.watched = may_stall(&self.uploads, &tx);
        let wants = tx.writer.wants_writable();
        drop(tx);
        self.watch_socket(wants, epoll)
    }

    fn watch_socket(
        &mut self,
        writable: bool,
        epoll: &impl std::os::fd::AsFd,
    ) -> Result<(), TransportError> {
        // What lies unread in a plain socket would wake the reactor again and again while it is not read, and so would half of a
        // hang-up. The whole of one is told in any case.
        let mut interest = if self.paused && !self.session.peer.shared_memory {
            epoll::EventFlags::empty()
        } else {
            READABLE
        };
        interest.set(epoll::EventFlags::OUT, writable);
        if interest == self.interest {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(self.session.token);
        epoll::modify(epoll, self.reader.socket(), data, interest).map_err(|errno| {
            TransportError::System {
                call: "epoll_ctl",
                source: errno.into(),
            }
        })?;
        self.interest = interest;
        Ok(())
    }

    /// A request got its share of the budget.
    pub(super) fn grant(
        &mut self,
        granted: Granted,
        tools: &mut Tools<'_>,
    ) -> Result<(), TransportError> {
        let Granted { waiter, mut buffer } = granted;
        let session = Arc::clone(&self.session);
        let mut tx = session.lock();
        if tx.closed {
            return Ok(());
        }
        tx.parked -= waiter.first.len();
        let early = self.ended_early.iter().position(|id| *id == waiter.id);
        let ended = early.map(|at| self.ended_early.swap_remove(at)).is_some();
        if tx.state.credit(waiter.id).is_none() {
            return Ok(());
        }
        let first = buffer.allocate().map(|()| buffer.extend(&waiter.first));
        if let Err(error) = first {
            refuse_memory(&mut tx, waiter.id, error, tools.shared);
        } else if waiter.whole || ended {
            let Waiter {
                id,
                ty,
                prefix,
                deadline,
                ..
            } = waiter;
            run(
                &session,
                &mut tx,
                Complete {
                    id,
                    ty,
                    prefix,
                    body: buffer,
                    deadline,
                },
                tools,
            )?;
        } else {
            let upload = Upload {
                ty: waiter.ty,
                prefix: waiter.prefix,
                buffer,
                pace: Pace::new(Instant::now()),
                deadline: waiter.deadline,
            };
            self.uploads.insert(waiter.id, upload);
            tx.state.grant(waiter.id);
            self.watched = true;
        }
        tx.pump()?;
        session.note_live(&tx);
        self.watched |= may_stall(&self.uploads, &tx);
        self.watch_for_writable(&tx);
        Ok(())
    }

    /// Cuts requests whose pieces do not come, and says whether the client has stopped reading for too long.
    pub(super) fn check_stalls(
        &mut self,
        now: Instant,
        shared: &Shared,
    ) -> Result<(), TransportError> {
        let limit = shared.options.stall_timeout;
        let least = shared.options.stall_bytes;
        let mut tx = self.session.lock();
        let late = |since: Instant| now.saturating_duration_since(since) >= limit;
        self.uploads.retain(|id, upload| {
            let stalled = upload.pace.is_late(now, limit);
            let expired = upload.deadline.is_some_and(|deadline| deadline <= now);
            if stalled || expired {
                tracing::warn!(
                    connection = self.session.id,
                    id,
                    "a request came too slowly"
                );
                shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                let message = format!(
                    "{} of {} bytes had come, fewer than {least} of them in the last {} s",
                    upload.buffer.len(),
                    upload.prefix.total_length,
                    limit.as_secs_f64()
                );
                let code = if expired {
                    ErrorCode::DeadlineExceeded
                } else {
                    ErrorCode::Stalled
                };
                tx.state.fail(*id, ErrorBody::new(code, message));
            }
            !(stalled || expired)
        });
        for id in tx.unread(now, limit) {
            tracing::warn!(
                connection = self.session.id,
                id,
                "a client does not read an answer"
            );
            shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let message = "too little credit came for the rest of the answer";
            tx.cut(id, ErrorBody::new(ErrorCode::Stalled, message));
        }
        tx.pump()?;
        self.session.note_live(&tx);
        if tx.blocked_since.is_some_and(late) {
            tracing::warn!(
                connection = self.session.id,
                "a client does not read its answers"
            );
            // It loses what it asked for, and does not find it when it comes again.
            tx.cut_all(ErrorCode::Stalled, "the client does not read its answers");
            return Err(TransportError::PeerGone);
        }
        if tx.state.is_going_away() && self.uploads.is_empty() && tx.is_quiet() {
            // Its client asks elsewhere from now on.
            return Err(TransportError::PeerGone);
        }
        self.watched = may_stall(&self.uploads, &tx);
        self.watch_for_writable(&tx);
        Ok(())
    }

    /// A request's deadline passed while it waited for memory; it held `parked` bytes.
    pub(super) fn expire(
        &mut self,
        id: u64,
        parked: usize,
        shared: &Shared,
    ) -> Result<(), TransportError> {
        self.ended_early.retain(|early| *early != id);
        let mut tx = self.session.lock();
        if tx.closed {
            return Ok(());
        }
        tx.parked -= parked;
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        let message = "the deadline passed while the request waited for memory";
        tx.state
            .fail(id, ErrorBody::new(ErrorCode::DeadlineExceeded, message));
        tx.pump()?;
        self.session.note_live(&tx);
        self.watch_for_writable(&tx);
        Ok(())
    }

    /// Whether nothing is under way on it, and another process could go on: what the client has sent and nobody has read
    /// stays where it is.
    pub(super) fn is_at_rest(&mut self) -> Result<bool, TransportError> {
        if self.segment.is_none() || !self.uploads.is_empty() || !self.ended_early.is_empty() {
            return Ok(false);
        }
        let mut tx = self.session.lock();
        if !tx.is_at_rest() {
            return Ok(false);
        }
        flush(&mut self.reader, &mut tx.writer)?;
        Ok(true)
    }

    /// Takes a connection at rest apart that nobody else holds. `None`: somebody does.
    pub(super) fn into_newcomer(self) -> Option<Newcomer> {
        let session = Arc::into_inner(self.session)?;
        let past = Past {
            since: session.since,
            last_id: 0,
            requests: session.requests.load(Ordering::Relaxed),
        };
        let (id, peer) = (session.id, session.peer.clone());
        let (state, writer) = session.into_parts();
        Some(Newcomer {
            id,
            window: state.window(&OpenPrefix::default()),
            past: Past {
                last_id: state.last_id(),
                ..past
            },
            connection: lapce_ai_transport::Connection {
                reader: self.reader,
                writer,
                peer,
                segment: self.segment,
            },
            place: self.place?,
        })
    }

    /// Tells the client why the connection ends.
    pub(super) fn say_goodbye(&self, code: ErrorCode, message: &str) {
        self.tell(ErrorBody::new(code, message));
    }

    fn tell(&self, body: ErrorBody) {
        let mut tx = self.session.lock();
        let error = lapce_ai_proto::Control::Error(0, Box::new(body));
        // Whoever cannot hear it sees the hang-up.
        if matches!(tx.writer.control(&error), Ok(true)) {
            let _ = tx.writer.flush();
        }
    }

    /// The client has hung up. What it asked last is not run, nobody is there to hear the answers; but what it cancelled last
    /// does not run on until it may have come again. [`close`](Self::close) counts it.
    pub(super) fn take_last_cancels(&mut self, scratch: &mut [u8], shared: &Shared) {
        let session = &self.session;
        let mut tx = session.lock();
        let mut arriving = Arriving {
            uploads: &mut self.uploads,
            ended_early: &mut self.ended_early,
        };
        let mut left = LAST_BYTES;
        while !tx.closed && left > 0 {
            let batch = self.reader.receive(scratch, left, |frame, _| {
                if frame.kind == Kind::Cancel
                    && let ServerEvent::Cancel { id } = tx.state.handle(&frame)?
                {
                    cancel(session, &mut tx, &mut arriving, id, shared);
                }
                Ok::<_, TransportError>(())
            });
            match batch {
                Ok(batch) if batch.frames > 0 => left = left.saturating_sub(batch.bytes),
                // Nothing more, or nonsense, of which nobody is left to be told.
                _ => break,
            }
        }
    }

    /// Ends the connection and everything that hangs on it.
    pub(super) fn close(&self, error: &TransportError, shared: &Arc<Shared>, runtime: &Handle) {
        let connection = self.session.id;
        let name = &self.session.peer.name;
        if let Some(body) = fault_body(error) {
            shared.counters.faults.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(connection, name, pid = self.session.peer.credentials.pid, %error, "disconnected");
            self.tell(body);
        } else {
            tracing::debug!(connection, name, %error, "disconnected");
        }
        // Whoever goes away cancels what it had open, unless it comes again at once.
        let mut tx = self.session.lock();
        if error.fault().is_some() {
            tx.cut_all(ErrorCode::ProtocolError, "the client broke the protocol");
        }
        let ended = self.session.close(&mut tx, shared, runtime) as u64;
        shared
            .counters
            .cancelled
            .fetch_add(ended, Ordering::Relaxed);
    }
}

/// Whether something of a connection has to be looked at on every tick.
fn may_stall(uploads: &HashMap<u64, Upload>, tx: &Tx) -> bool {
    !uploads.is_empty()
        || tx.blocked_since.is_some()
        || tx.owes_answers()
        || tx.state.is_going_away()
}

/// What frames change of a connection beside its session.
pub(super) struct Arriving<'a> {
    pub(super) uploads: &'a mut HashMap<u64, Upload>,
    pub(super) ended_early: &'a mut Vec<u64>,
}
