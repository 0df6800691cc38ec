//! Newcomers: accepting, checking who they are, shaking hands.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use lapce_ai_proto::{ErrorBody, ErrorCode, Hello};
use lapce_ai_transport::{Handshake, Listener, Progress, ServerTerms};
use rustix::event::epoll;
use rustix::io::{self, Errno};

use super::seldom::Seldom;
use super::{LISTENER, Reactor};
use crate::mailbox::{Newcomer, Past};
use crate::occupancy::Place;

/// Handshakes that may be under way at once, at all reactors together; later clients wait in the listener's backlog.
const MAX_HANDSHAKES: usize = 256;
/// Clients that are taken at a time; the others wait for the next turn, so that a crowd at the door stops nobody inside.
const ACCEPTS: usize = 64;
/// Tokens of handshakes have this bit, which a connection's generation never reaches.
const HANDSHAKE: u64 = 1 << 63;

/// The listener, which all reactors share, and those who stand before this one.
pub(crate) struct Door {
    /// `None`: another daemon has it.
    listener: Option<Arc<Listener>>,
    /// Whether newcomers are to be taken.
    pub(super) open: bool,
    terms: ServerTerms,
    handshakes: BTreeMap<u64, Entering>,
    most_handshakes: usize,
    next_handshake: u64,
    /// Given up for a moment to refuse a client politely when descriptors have run out.
    spare: Option<File>,
    /// Whether the epoll tells of newcomers.
    watched: bool,
    /// Nobody could be taken, for a reason that takes time to pass: nobody is until the next tick.
    rests: bool,
    /// Refusals are told of seldom: anybody who can connect can cause them.
    refusals: Seldom,
    /// And so are failures of the system, which come again and again.
    failures: Seldom,
}

/// A client in its handshake.
struct Entering {
    handshake: Handshake,
    deadline: Instant,
    place: Place,
}

impl Door {
    /// One of so many reactors' doors.
    pub(crate) fn new(
        listener: Arc<Listener>,
        terms: ServerTerms,
        reactors: usize,
        open: bool,
    ) -> Self {
        Self {
            listener: Some(listener),
            open,
            terms,
            handshakes: BTreeMap::new(),
            most_handshakes: MAX_HANDSHAKES.div_ceil(reactors),
            next_handshake: 0,
            spare: File::open("/dev/null").ok(),
            watched: false,
            rests: false,
            refusals: Seldom::default(),
            failures: Seldom::default(),
        }
    }

    /// Has this epoll tell of newcomers while they are to be taken. Of several that wait the kernel wakes one for each, and
    /// never one that is held up by a handler, since that does not wait. While as many handshakes are under way as may be,
    /// those who wait in the backlog would keep the reactor from sleeping.
    pub(super) fn watch(&mut self, epoll: &impl std::os::fd::AsFd) -> io::Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let watch = self.open && !self.is_full() && !self.rests;
        if watch == self.watched {
            return Ok(());
        }
        if watch {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(epoll, listener, epoll::EventData::new_u64(LISTENER), flags)?;
        } else {
            epoll::delete(epoll, listener)?;
        }
        self.watched = watch;
        Ok(())
    }

    /// The system does not let newcomers be taken: that is tried again on the next tick.
    #[cold]
    fn rest(&mut self, what: &str, error: impl std::fmt::Display) {
        self.rests = true;
        if let Some(others) = self.failures.turn(Instant::now()) {
            tracing::warn!(what, %error, others_since_the_last_line = others, "failed at the door");
        }
    }

    /// Where newcomers could not be taken, it is tried again.
    pub(super) fn try_again(&mut self) {
        self.rests = false;
    }

    /// The listener, unless another daemon has it.
    pub(super) fn listener(&self) -> Option<&Arc<Listener>> {
        self.listener.as_ref()
    }

    /// Another daemon has the listener from now on. It is not watched here any more.
    pub(super) fn leave(&mut self) {
        self.listener = None;
    }

    pub(super) fn into_listener(self) -> Option<Arc<Listener>> {
        self.listener
    }

    /// Whether there is something to be done by and by.
    pub(super) fn wants_a_tick(&self) -> bool {
        !self.handshakes.is_empty() || self.rests
    }

    fn is_full(&self) -> bool {
        self.handshakes.len() >= self.most_handshakes
    }
}

impl Reactor {
    /// Takes those who wait.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            // The epoll may have told of newcomers a moment before the door was closed.
            let Some(listener) = self.door.listener.as_ref().filter(|_| self.door.open) else {
                return;
            };
            if self.door.is_full() {
                return;
            }
            let socket = match listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    let errno = Errno::from_io_error(&error);
                    if matches!(errno, Some(Errno::MFILE | Errno::NFILE)) && self.refuse_one() {
                        continue;
                    }
                    // Those who wait in the backlog would wake the reactor again and again.
                    self.door.rest("accept", error);
                    return;
                }
            };
            match Handshake::new(socket) {
                Ok(handshake) => self.greet(handshake),
                Err(error) => tracing::warn!(%error, "a client without credentials"),
            }
        }
    }

    /// Descriptors have run out: gives up the spare one to tell a client so. False: not even that is possible.
    fn refuse_one(&mut self) -> bool {
        if self.door.spare.take().is_none() {
            // It could not be had again the last time; perhaps it can now.
            self.door.spare = File::open("/dev/null").ok();
            return false;
        }
        let accepted = self
            .door
            .listener
            .as_ref()
            .map(|listener| listener.accept());
        if let Some(Ok(Some(socket))) = accepted
            && let Ok(handshake) = Handshake::new(socket)
        {
            self.refuse(
                &handshake,
                ErrorCode::TooManyConnections,
                "the daemon has no descriptors left",
            );
        }
        self.door.spare = File::open("/dev/null").ok();
        self.door.spare.is_some()
    }

    fn refuse(&mut self, handshake: &Handshake, code: ErrorCode, message: &str) {
        let who = handshake.credentials();
        if let Some(others) = self.door.refusals.turn(Instant::now()) {
            tracing::warn!(
                pid = who.pid,
                uid = who.uid,
                code = code.name(),
                message,
                others_since_the_last_line = others,
                "refused a client"
            );
        }
        self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        handshake.refuse(&ErrorBody::new(code, message));
    }

    fn greet(&mut self, handshake: Handshake) {
        if self.draining.is_some() {
            // Clients that wait for the next daemon ask again and again: no warning for each.
            let body = ErrorBody::new(ErrorCode::ServerRestarting, "the daemon is stopping");
            handshake.refuse(&body);
            return;
        }
        let options = &self.shared.options;
        let uid = handshake.credentials().uid;
        if !options.serves(uid) {
            let message = format!("uid {uid} may not use this daemon");
            self.refuse(&handshake, ErrorCode::PermissionDenied, &message);
            return;
        }
        let place = match self.shared.occupancy.enter(options.max_connections) {
            Ok(place) => place,
            Err(connections) => {
                let message = format!("{connections} connections are open, as many as may be");
                self.refuse(&handshake, ErrorCode::TooManyConnections, &message);
                return;
            }
        };
        let token = HANDSHAKE | self.door.next_handshake;
        self.door.next_handshake += 1;
        let data = epoll::EventData::new_u64(token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if let Err(errno) = epoll::add(&self.epoll, handshake.socket(), data, flags) {
            tracing::warn!(%errno, "cannot watch a client");
            return;
        }
        let deadline = Instant::now() + options.handshake_timeout;
        let entering = Entering {
            handshake,
            deadline,
            place,
        };
        self.door.handshakes.insert(token, entering);
        self.advance_handshake(token);
    }

    pub(super) fn advance_handshake(&mut self, token: u64) {
        let Some(entering) = self.door.handshakes.remove(&token) else {
            return;
        };
        let Entering {
            handshake,
            deadline,
            place,
        } = entering;
        let who = handshake.credentials();
        match handshake.advance() {
            Ok(Progress::Pending(handshake)) => {
                let entering = Entering {
                    handshake,
                    deadline,
                    place,
                };
                self.door.handshakes.insert(token, entering);
            }
            Ok(Progress::Hello(handshake, hello)) => {
                let _ = epoll::delete(&self.epoll, handshake.socket());
                self.welcome(handshake, hello, place);
            }
            Err(error) => {
                if error.fault().is_some() {
                    self.shared.counters.faults.fetch_add(1, Ordering::Relaxed);
                }
                tracing::warn!(pid = who.pid, %error, "a handshake failed");
            }
        }
    }

    /// Watches the listener, or stops watching it, as the door has it.
    pub(super) fn mind_the_door(&mut self) {
        if let Err(errno) = self.door.watch(&self.epoll) {
            self.door.rest("watching the listener", errno);
        }
    }

    fn welcome(&mut self, handshake: Handshake, hello: Hello, mut place: Place) {
        if !hello.speaks_our_version() {
            let message = format!(
                "this daemon speaks version {}, the client {} to {}",
                lapce_ai_proto::VERSION,
                hello.version_min,
                hello.version_max
            );
            self.refuse(&handshake, ErrorCode::UnsupportedVersion, &message);
            return;
        }
        let id = 1 + self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let window = hello.response_window;
        let again = hello.earlier > 0;
        let pid = handshake.credentials().pid;
        // Before WELCOME: the client can be seen once it has that.
        let reactor = place.settle();
        let connection = match handshake.accept(hello, &self.door.terms, id) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(pid, %error, "a handshake failed");
                return;
            }
        };
        self.shared
            .counters
            .connections
            .fetch_add(1, Ordering::Relaxed);
        if again {
            let reconnections = &self.shared.counters.reconnections;
            reconnections.fetch_add(1, Ordering::Relaxed);
        }
        let newcomer = Newcomer {
            id,
            connection,
            window,
            place,
            past: Past::none(),
        };
        if reactor == self.mailbox.number {
            self.admit(newcomer);
        } else {
            self.shared.mailboxes[reactor].post(move |letters| letters.newcomers.push(newcomer));
        }
    }

    pub(super) fn expire_handshakes(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .door
            .handshakes
            .iter()
            .filter(|(_, entering)| entering.deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            if let Some(late) = self.door.handshakes.remove(&token) {
                self.refuse(
                    &late.handshake,
                    ErrorCode::DeadlineExceeded,
                    "no HELLO came in time",
                );
            }
        }
    }

    pub(super) fn refuse_handshakes(&mut self) {
        for entering in std::mem::take(&mut self.door.handshakes).into_values() {
            self.refuse(
                &entering.handshake,
                ErrorCode::ServerRestarting,
                "the daemon is stopping",
            );
        }
    }
}
