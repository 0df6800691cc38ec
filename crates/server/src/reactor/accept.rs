//! Newcomers: accepting, checking who they are, shaking hands.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_proto::{ErrorBody, ErrorCode, Hello, ServerState};
use lapce_ai_transport::{Handshake, Listener, Progress, ServerTerms};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::Reactor;
use super::connection::Connection;
use crate::session::Session;

/// Handshakes that may be under way at once; later clients wait in the listener's backlog.
const MAX_HANDSHAKES: usize = 256;
/// Clients that are taken at a time; the others wait for the next turn, so that a crowd at the door stops nobody inside.
const ACCEPTS: usize = 64;
/// Tokens of handshakes have this bit, which a connection's generation never reaches.
const HANDSHAKE: u64 = 1 << 63;

/// The listener and those who stand before it.
pub(super) struct Door {
    listener: Listener,
    terms: ServerTerms,
    handshakes: BTreeMap<u64, (Handshake, Instant)>,
    next_handshake: u64,
    next_connection: u64,
    /// Given up for a moment to refuse a client politely when descriptors have run out.
    spare: Option<File>,
    exit_when_idle: Option<Duration>,
    /// The listener is not watched.
    full: bool,
    pub(super) nobody_since: Option<Instant>,
}

impl Door {
    pub(super) fn new(
        listener: Listener,
        terms: ServerTerms,
        exit_when_idle: Option<Duration>,
    ) -> Self {
        Self {
            listener,
            terms,
            handshakes: BTreeMap::new(),
            next_handshake: 0,
            next_connection: 0,
            spare: File::open("/dev/null").ok(),
            exit_when_idle,
            full: false,
            nobody_since: Some(Instant::now()),
        }
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    pub(super) fn into_listener(self) -> Listener {
        self.listener
    }

    pub(super) fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    /// When the server stops if nobody comes.
    pub(super) fn exit_at(&self) -> Option<Instant> {
        Some(self.nobody_since? + self.exit_when_idle?)
    }
}

impl Reactor {
    /// Takes those who wait.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if self.door.handshakes.len() >= MAX_HANDSHAKES {
                return;
            }
            let socket = match self.door.listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    let errno = Errno::from_io_error(&error);
                    if !matches!(errno, Some(Errno::MFILE | Errno::NFILE)) || !self.refuse_one() {
                        tracing::warn!(%error, "accept failed");
                        return;
                    }
                    continue;
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
        let accepted = self.door.listener.accept();
        if let Ok(Some(socket)) = accepted
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

    fn refuse(&self, handshake: &Handshake, code: ErrorCode, message: &str) {
        let who = handshake.credentials();
        tracing::warn!(
            pid = who.pid,
            uid = who.uid,
            code = code.name(),
            message,
            "refused a client"
        );
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
        if uid != 0 && uid != geteuid().as_raw() && !options.allowed_uids.contains(&uid) {
            let message = format!("uid {uid} may not use this daemon");
            self.refuse(&handshake, ErrorCode::PermissionDenied, &message);
            return;
        }
        if self.connections.live + self.door.handshakes.len() >= options.max_connections {
            let message = format!(
                "{} connections are open, as many as may be",
                self.connections.live
            );
            self.refuse(&handshake, ErrorCode::TooManyConnections, &message);
            return;
        }
        let token = HANDSHAKE | self.door.next_handshake;
        self.door.next_handshake += 1;
        let data = epoll::EventData::new_u64(token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if let Err(errno) = epoll::add(&self.epoll, handshake.socket(), data, flags) {
            tracing::warn!(%errno, "cannot watch a client");
            return;
        }
        let deadline = Instant::now() + options.handshake_timeout;
        self.door.handshakes.insert(token, (handshake, deadline));
        self.advance_handshake(token);
    }

    pub(super) fn advance_handshake(&mut self, token: u64) {
        let Some((handshake, deadline)) = self.door.handshakes.remove(&token) else {
            return;
        };
        let who = handshake.credentials();
        match handshake.advance() {
            Ok(Progress::Pending(handshake)) => {
                self.door.handshakes.insert(token, (handshake, deadline));
            }
            Ok(Progress::Hello(handshake, hello)) => {
                let _ = epoll::delete(&self.epoll, handshake.socket());
                self.welcome(handshake, hello);
            }
            Err(error) => {
                if error.fault().is_some() {
                    self.shared.counters.faults.fetch_add(1, Ordering::Relaxed);
                }
                tracing::warn!(pid = who.pid, %error, "a handshake failed");
            }
        }
    }

    /// Stops watching the listener while as many handshakes are under way as may be: those who wait in the backlog
    /// would keep the reactor from sleeping.
    pub(super) fn mind_the_door(&mut self) {
        let full = self.door.handshakes.len() >= MAX_HANDSHAKES;
        if full != self.door.full {
            self.door.full = full;
            let flags = if full {
                epoll::EventFlags::empty()
            } else {
                epoll::EventFlags::IN
            };
            let data = epoll::EventData::new_u64(super::LISTENER);
            if let Err(errno) = epoll::modify(&self.epoll, &self.door.listener, data, flags) {
                tracing::error!(%errno, "cannot watch the listener");
            }
        }
    }

    fn welcome(&mut self, handshake: Handshake, hello: Hello) {
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
        self.door.next_connection += 1;
        let id = self.door.next_connection;
        let window = hello.response_window;
        let pid = handshake.credentials().pid;
        let accepted = match handshake.accept(hello, &self.door.terms, id) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(pid, %error, "a handshake failed");
                return;
            }
        };
        let limits = self.shared.options.limits;
        let (index, token) = self.connections.next();
        let state = ServerState::new(limits, window);
        let max_frame = limits.max_frame_payload as usize;
        let session = Arc::new(Session::new(
            id,
            token,
            accepted.peer,
            state,
            accepted.writer,
            max_frame,
        ));
        let data = epoll::EventData::new_u64(token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if let Err(errno) = epoll::add(&self.epoll, accepted.reader.socket(), data, flags) {
            tracing::warn!(%errno, "cannot watch a connection");
            return;
        }
        if self.scratch.is_empty() {
            self.scratch.resize(accepted.reader.scratch_len(), 0);
        }
        tracing::debug!(
            connection = id,
            name = session.peer.name,
            pid,
            shared_memory = session.peer.shared_memory,
            "connected"
        );
        self.shared
            .counters
            .connections
            .fetch_add(1, Ordering::Relaxed);
        self.shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&session));
        self.connections
            .insert(Box::new(Connection::new(accepted.reader, session)));
        self.door.nobody_since = None;
        self.note_idle_deadline();
        self.heat(index);
    }

    pub(super) fn expire_handshakes(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .door
            .handshakes
            .iter()
            .filter(|(_, (_, deadline))| *deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            if let Some((handshake, _)) = self.door.handshakes.remove(&token) {
                self.refuse(
                    &handshake,
                    ErrorCode::DeadlineExceeded,
                    "no HELLO came in time",
                );
            }
        }
    }

    pub(super) fn refuse_handshakes(&mut self) {
        for (handshake, _) in std::mem::take(&mut self.door.handshakes).into_values() {
            self.refuse(
                &handshake,
                ErrorCode::ServerRestarting,
                "the daemon is stopping",
            );
        }
    }
}
