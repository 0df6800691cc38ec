//! A thread that owns the reading half of its connections.
//!
//! It turns in a loop: serve the *hot* connections (those that talked a moment ago) without system calls; when none of
//! them has anything for a while, ask each for a bell and sleep on all sockets at once. A connection without
//! traffic costs nothing but its registration.
//!
//! There is one such thread, or several where the machine has processors for them. A connection belongs to one of them
//! from its handshake to its end, so that what happens with a message touches nothing that another reactor writes. What
//! they share: the limit on connections, the buffers' budget with the line for it, and the listening socket. All watch
//! that one, so that a reactor which is held up by a handler keeps nobody out.

mod clock;
mod connection;
mod connections;
mod dispatch;
mod door;
mod heap;
mod overrun;
mod retire;
mod schedule;
mod seldom;
mod stop;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_proto::{Class, ErrorBody, ServerState};
use lapce_ai_transport::{Spin, TransportError, usable_cpus};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::handler::Router;
use crate::line::Granted;
use crate::mailbox::{Letters, Mailbox, Newcomer};
use crate::server::{Shared, StartError};
use crate::session::{Session, Tx};
use connection::{Connection, Progress};
use connections::Connections;
pub(crate) use door::Door;
use heap::Heap;
pub(crate) use heap::Sweep;
use overrun::Overruns;
use retire::Succession;
use schedule::Schedule;

/// Turns without progress after which a hot connection cools while others stay hot.
const COOL_AFTER: u32 = 4096;
/// Batches after which sockets are looked at although hot connections keep the reactor busy, so that whoever rings waits
/// as long however many connections are hot.
const LOOK_AFTER: u32 = 64;

const LISTENER: u64 = u64::MAX;
const MAILBOX: u64 = u64::MAX - 1;

pub(crate) struct Reactor {
    epoll: OwnedFd,
    door: Door,
    connections: Connections,
    /// Connections that are polled without a system call.
    hot: Schedule,
    /// Indices of connections where something may stall, each once: those that are [listed](Connection::listed).
    watched: Vec<u32>,
    /// Empty; takes turns with it.
    watched_before: Vec<u32>,
    /// Indices of connections that sleep and have memory to give back once they are [quiet](clock::QUIET) and nothing runs, each once.
    quieting: Vec<u32>,
    /// Requests that got their memory as they came, until their batch is over.
    granted: VecDeque<Granted>,
    overruns: Overruns,
    scratch: Vec<u8>,
    spin: Duration,
    router: Arc<Router>,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    /// Empty; the connections that cool down are gathered in it.
    cooled: Vec<u32>,
    /// Empty; takes turns with those in the mailbox, so that neither is allocated anew.
    letters: Letters,
    next_tick: Option<Instant>,
    next_idle_look: Option<Instant>,
    next_trim: Option<Instant>,
    heap: Heap,
    draining: Option<Instant>,
    /// It was told to stop.
    stopping: bool,
    succession: Succession,
}

/// What a connection's turn came to.
#[derive(Debug, Clone, Copy)]
enum Served {
    /// So many bytes of requests of this class.
    Something(usize, Class),
    Nothing,
    /// It sleeps until its bell, or is gone: off the list with it.
    Cooled,
}

/// What turn-taking code needs of the reactor beside the connection at hand.
struct Tools<'a> {
    router: &'a Router,
    runtime: &'a tokio::runtime::Handle,
    shared: &'a Arc<Shared>,
    mailbox: &'a Mailbox,
    granted: &'a mut VecDeque<Granted>,
}

impl Tools<'_> {
    /// Whether more is held for a connection, beside the budget, than may be.
    fn is_over(&self, tx: &Tx) -> bool {
        is_over(tx, self.shared)
    }
}

fn is_over(tx: &Tx, shared: &Shared) -> bool {
    tx.parked > shared.options.limits.inline_window as usize
}

impl Reactor {
    /// The reactor of a mailbox.
    pub(crate) fn new(
        mut door: Door,
        router: Arc<Router>,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let failed = |what| move |source: io::Error| StartError::System { what, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| failed("make an epoll")(errno.into()))?;
        let Some(bell) = mailbox.bell() else {
            return Err(failed("make an eventfd")(io::ErrorKind::OutOfMemory.into()));
        };
        epoll::add(
            &epoll,
            bell,
            epoll::EventData::new_u64(MAILBOX),
            epoll::EventFlags::IN,
        )
        .map_err(|errno| failed("watch an eventfd")(errno.into()))?;
        door.watch(&epoll)
            .map_err(|errno| failed("watch the listener")(errno.into()))?;
        let options = &shared.options;
        // The peer that is waited for needs a processor, too.
        let spin = if usable_cpus() <= shared.mailboxes.len() {
            Duration::ZERO
        } else {
            options.spin
        };
        Ok(Self {
            epoll,
            door,
            connections: Connections::default(),
            hot: Schedule::default(),
            watched: Vec::new(),
            watched_before: Vec::new(),
            quieting: Vec::new(),
            granted: VecDeque::new(),
            overruns: Overruns::new(options.handler_limit),
            scratch: Vec::new(),
            spin,
            router,
            runtime,
            cooled: Vec::new(),
            letters: Letters::default(),
            next_tick: None,
            next_idle_look: None,
            next_trim: None,
            heap: Heap::default(),
            draining: None,
            stopping: false,
            succession: Succession::None,
            mailbox,
            shared,
        })
    }

    /// Serves until stopped.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            if self.serve_hot() {
                self.cool_down();
            }
            self.mind_the_door();
            // Busy or not: what depends on the clock must not wait until nobody talks.
            let sleep = self.sleep_time();
            let timeout = if self.hot.is_empty() {
                sleep
            } else {
                Some(Duration::ZERO)
            };
            self.poll_sockets(&mut events, timeout);
            self.tick();
            if self.is_done() {
                break;
            }
        }
        self.finish();
    }

    /// Serves hot connections in turn until none has had anything for the spin time (true), or until sockets are due for
    /// a look (false); the next call goes on where this one stopped.
    fn serve_hot(&mut self) -> bool {
        let mut spin = Spin::new(self.spin);
        let mut batches = 0;
        let mut waited = Duration::ZERO;
        let mut progress = false;
        while !self.hot.is_empty() {
            let Some(turn) = self.hot.next() else {
                // Nobody had anything in a whole round.
                self.grant();
                if std::mem::take(&mut progress) {
                    // One that talks now and then must not keep those who ring waiting for many spins.
                    if !spin.waited().is_zero() {
                        waited += spin.waited();
                        if waited > self.spin {
                            return false;
                        }
                    }
                    // What was served may bring the next at once: the spin begins anew.
                    spin = Spin::new(self.spin);
                } else if !spin.turn() {
                    return true;
                }
                continue;
            };
            match self.serve(turn.index, turn.most) {
                Ok(Served::Something(bytes, class)) => {
                    self.hot.took(turn, bytes, class);
                    batches += 1;
                    progress = true;
                }
                Ok(Served::Nothing) => self.hot.had_nothing(turn),
                Ok(Served::Cooled) => {
                    self.hot.slept(turn);
                    self.note_cooled(turn.index);
                }
                Err(error) => self.close(turn.index, &error),
            }
            if batches >= LOOK_AFTER {
                self.grant();
                return false;
            }
        }
        // The last one closed; what it was granted in its last batch goes back.
        self.grant();
        true
    }

    /// Serves one connection once.
    fn serve(&mut self, index: u32, most: usize) -> Result<Served, TransportError> {
        let Some(connection) = self.connections.get(index) else {
            return Ok(Served::Cooled);
        };
        let mut tools = Tools {
            router: &self.router,
            runtime: &self.runtime,
            shared: &self.shared,
            mailbox: &self.mailbox,
            granted: &mut self.granted,
        };
        let began = Overruns::begin();
        let progress = connection.serve(&mut self.scratch, most, &mut tools)?;
        if connection.watched && !std::mem::replace(&mut connection.listed, true) {
            self.watched.push(index);
        }
        if let Progress::Some { bytes } = progress {
            connection.idle_turns = 0;
            let (id, latest) = (connection.session.id, connection.latest);
            if self.overruns.end(began, id, latest) {
                let overruns = &self.shared.counters.overruns;
                overruns.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(Served::Something(bytes, connection.class));
        }
        connection.idle_turns += 1;
        if connection.idle_turns >= COOL_AFTER
            && connection.go_to_sleep(&self.shared, &self.epoll)?
        {
            connection.hot = false;
            return Ok(Served::Cooled);
        }
        Ok(Served::Nothing)
    }

    /// Asks every hot connection for a bell. Those that have something by now stay hot.
    fn cool_down(&mut self) {
        let mut cooled = std::mem::take(&mut self.cooled);
        let mut broken = Vec::new();
        let (connections, shared, epoll) = (&mut self.connections, &self.shared, &self.epoll);
        self.hot.retain(|index| {
            let Some(connection) = connections.get(index) else {
                return false;
            };
            match connection.go_to_sleep(shared, epoll) {
                Ok(false) => return true,
                Ok(true) => {
                    connection.hot = false;
                    cooled.push(index);
                }
                Err(error) => broken.push((index, error)),
            }
            false
        });
        for index in cooled.drain(..) {
            self.note_cooled(index);
        }
        self.cooled = cooled;
        for (index, error) in broken {
            self.close(index, &error);
        }
    }

    fn heat(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index)
            && !connection.hot
        {
            connection.hot = true;
            connection.idle_turns = 0;
            self.hot.add(index, connection.class);
        }
    }

    fn poll_sockets(&mut self, events: &mut Vec<epoll::Event>, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        events.clear();
        let free = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, free, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => tracing::error!(%errno, "epoll_wait failed"),
        }
        for event in events.drain(..) {
            let flags = event.flags;
            match event.data.u64() {
                MAILBOX => self.read_letters(),
                LISTENER => self.accept(),
                token => self.on_socket(token, flags),
            }
        }
    }

    /// Somebody rang, died, or a handshake goes on.
    fn on_socket(&mut self, token: u64, flags: epoll::EventFlags) {
        let Some(index) = self.connections.index(token) else {
            self.advance_handshake(token);
            return;
        };
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        match connection.on_socket(flags, &self.epoll) {
            Ok(()) => {
                self.note_watched(index);
                self.heat(index);
            }
            Err(error) => {
                self.close(index, &error);
            }
        }
    }

    fn read_letters(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.mailbox.take(&mut letters);
        for token in letters.attention.drain(..) {
            let Some(index) = self.connections.index(token) else {
                continue;
            };
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            connection.session.attention.store(false, Ordering::Release);
            match connection.attend(&self.epoll) {
                Ok(()) => self.note_watched(index),
                Err(error) => self.close(index, &error),
            }
        }
        for order in letters.orders.drain(..) {
            self.obey(order);
        }
        for newcomer in letters.newcomers.drain(..) {
            self.admit(newcomer);
        }
        for granted in letters.granted.drain(..) {
            self.give(granted);
        }
        if let Some(drain) = letters.stop.take() {
            self.drain(drain);
        }
        self.letters = letters;
    }

    /// Takes a connection in, to serve it until it ends.
    fn admit(&mut self, newcomer: Newcomer) {
        let Newcomer {
            id,
            connection,
            window,
            place,
            past,
        } = newcomer;
        let options = &self.shared.options;
        let (index, token) = self.connections.next();
        let pid = connection.peer.credentials.pid;
        let session = Session::new(
            id,
            token,
            Arc::clone(&self.mailbox),
            connection.peer,
            ServerState::resume(options.limits, window, past.last_id),
            connection.writer,
            options,
        );
        let session = Arc::new(session.after(&past));
        let reader = connection.reader;
        let data = epoll::EventData::new_u64(token);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if let Err(errno) = epoll::add(&self.epoll, reader.socket(), data, flags) {
            tracing::warn!(%errno, "cannot watch a connection");
            return;
        }
        if self.scratch.is_empty() {
            self.scratch.resize(reader.scratch_len(), 0);
        }
        tracing::debug!(
            connection = id,
            reactor = self.mailbox.number,
            name = session.peer.name,
            pid,
            shared_memory = session.peer.shared_memory,
            "connected"
        );
        self.shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&session));
        if self.shared.repeats.is_let_go(session.whose(), id) {
            // While it was on its way from another reactor, its client came again: what it has sent here it sends there.
            session.lock().closed = true;
        }
        self.connections.insert(Box::new(Connection::new(
            reader,
            session,
            place,
            connection.segment,
        )));
        self.note_idle_deadline();
        self.heat(index);
        if let Some(until) = self.draining {
            // It shook hands with a reactor that had not heard of the stop.
            let left = until.saturating_duration_since(Instant::now());
            self.send_away(index, left);
        }
    }

    /// Sees to it that a connection where something may stall is looked at on every tick.
    fn note_watched(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index)
            && connection.watched
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.watched.push(index);
        }
    }

    /// Has those go on that got their memory, and whatever else the mailbox holds.
    fn grant(&mut self) {
        while let Some(granted) = self.granted.pop_front() {
            self.give(granted);
        }
        if self.mailbox.has_letters() {
            self.read_letters();
        }
    }

    /// Gives a request its memory. If its connection is gone, the memory goes back.
    fn give(&mut self, granted: Granted) {
        let Some(index) = self.connections.index(granted.waiter.token) else {
            return;
        };
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        let mut tools = Tools {
            router: &self.router,
            runtime: &self.runtime,
            shared: &self.shared,
            mailbox: &self.mailbox,
            granted: &mut self.granted,
        };
        match connection.grant(granted, &mut tools) {
            Ok(()) => self.note_watched(index),
            Err(error) => self.close(index, &error),
        }
    }

    /// Takes a connection off all lists.
    fn take_off(&mut self, index: u32) -> Option<Box<Connection>> {
        let connection = self.connections.remove(index)?;
        if connection.hot {
            self.hot.remove(index);
        }
        self.watched.retain(|watched| *watched != index);
        if connection.quieting {
            self.quieting.retain(|quieting| *quieting != index);
        }
        // The socket lives as long as a task that still holds the session, and must not wake anybody.
        let _ = epoll::delete(&self.epoll, connection.reader.socket());
        Some(connection)
    }

    fn close(&mut self, index: u32, error: &TransportError) {
        let Some(mut connection) = self.take_off(index) else {
            return;
        };
        // Before the client hears of the end: it may come again at once.
        drop(connection.place.take());
        if matches!(error, TransportError::PeerGone) {
            connection.take_last_cancels(&mut self.scratch, &self.shared);
        }
        self.shared.forget(connection.session.id, None);
        connection.close(error, &self.shared, &self.runtime);
        self.shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&connection.session.id);
    }
}

/// The error that tells a peer what it did wrong.
fn fault_body(error: &TransportError) -> Option<ErrorBody> {
    error.fault().map(ErrorBody::from_fault)
}
