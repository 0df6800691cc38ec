//! The thread that owns every connection's reading half.
//!
//! It turns in a loop: serve the *hot* connections (those that talked a moment ago) without system calls; when none of
//! them has anything for a while, ask each for a bell and sleep on all sockets at once. A connection without
//! traffic costs nothing but its registration.

mod accept;
mod connection;
mod overrun;
mod schedule;
mod waiting;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_proto::{Class, ErrorBody, ErrorCode};
use lapce_ai_transport::{Listener, ServerTerms, Spin, TransportError, usable_cpus};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::handler::Router;
use crate::server::{Shared, StartError};
use crate::session::Tx;
use accept::Door;
use connection::{Connection, Progress};
use overrun::Overruns;
use schedule::Schedule;
use waiting::Waiting;

/// How often the reactor looks at the clock while something may stall or expire.
const TICK: Duration = Duration::from_millis(100);
/// The same while it drains.
const DRAIN_TICK: Duration = Duration::from_millis(5);
/// Turns without progress after which a hot connection cools while others stay hot.
const COOL_AFTER: u32 = 4096;
/// Batches after which sockets are looked at although hot connections keep the reactor busy, so that whoever rings waits
/// as long however many connections are hot.
const LOOK_AFTER: u32 = 64;

/// After so long without traffic a connection gives back what memory it can.
const QUIET: Duration = Duration::from_secs(1);

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

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
    /// Indices of connections that sleep and have memory to give back once they are [quiet](QUIET), each once.
    quieting: Vec<u32>,
    waiting: Waiting,
    overruns: Overruns,
    scratch: Vec<u8>,
    spin: Duration,
    router: Router,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
    /// Empty; the connections that cool down are gathered in it.
    cooled: Vec<u32>,
    /// Empty; takes turns with the list that is shared, so that neither is allocated anew.
    attention: Vec<u64>,
    next_tick: Option<Instant>,
    next_idle_look: Option<Instant>,
    next_trim: Option<Instant>,
    draining: Option<Instant>,
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
    waiting: &'a mut Waiting,
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

/// Connections by index; a token is index and generation, so that a late event never meets a newcomer.
#[derive(Default)]
struct Connections {
    slots: Vec<(u32, Option<Box<Connection>>)>,
    free: Vec<u32>,
    live: usize,
}

impl Connections {
    /// The place and token that the next connection will have.
    fn next(&mut self) -> (u32, u64) {
        let index = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.0);
        (index, u64::from(generation) << 32 | u64::from(index))
    }

    fn insert(&mut self, connection: Box<Connection>) {
        self.live += 1;
        match self.free.pop() {
            Some(index) => self.slots[index as usize].1 = Some(connection),
            None => self.slots.push((0, Some(connection))),
        }
    }

    fn index(&self, token: u64) -> Option<u32> {
        let index = token as u32;
        let (generation, connection) = self.slots.get(index as usize)?;
        (u64::from(*generation) == token >> 32 && connection.is_some()).then_some(index)
    }

    fn get(&mut self, index: u32) -> Option<&mut Connection> {
        self.slots.get_mut(index as usize)?.1.as_deref_mut()
    }

    fn remove(&mut self, index: u32) -> Option<Box<Connection>> {
        let slot = self.slots.get_mut(index as usize)?;
        let connection = slot.1.take()?;
        // The two highest tokens are the reactor's own; a generation never gets there.
        slot.0 = slot.0.wrapping_add(1) & 0x7FFF_FFFF;
        self.free.push(index);
        self.live -= 1;
        Some(connection)
    }

    fn indices(&self) -> Vec<u32> {
        (0..self.slots.len() as u32)
            .filter(|i| self.slots[*i as usize].1.is_some())
            .collect()
    }
}

impl Reactor {
    pub(crate) fn new(
        listener: Listener,
        router: Router,
        shared: Arc<Shared>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let options = &shared.options;
        if options.limits.max_message_size > options.pool.budget {
            return Err(StartError::Options(format!(
                "max_message_size ({}) is over the buffers' budget ({}): such a message could never be taken",
                options.limits.max_message_size, options.pool.budget
            )));
        }
        if options.limits.max_message_size > i32::MAX as u64 {
            return Err(StartError::Options(
                "max_message_size is at most 2147483647".to_owned(),
            ));
        }
        for capacity in [options.request_capacity, options.response_capacity] {
            if !capacity.is_power_of_two() || !(4 << 10..=1 << 30).contains(&capacity) {
                return Err(StartError::Options(format!(
                    "a ring of {capacity} bytes: it must be a power of two from 4 KiB to 1 GiB"
                )));
            }
        }
        let failed = |what| move |source: io::Error| StartError::System { what, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| failed("make an epoll")(errno.into()))?;
        let Some(wake) = shared.wake_fd() else {
            return Err(failed("make an eventfd")(io::ErrorKind::OutOfMemory.into()));
        };
        epoll::add(
            &epoll,
            wake,
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )
        .map_err(|errno| failed("watch an eventfd")(errno.into()))?;
        epoll::add(
            &epoll,
            &listener,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN,
        )
        .map_err(|errno| failed("watch the listener")(errno.into()))?;
        let terms = ServerTerms {
            instance: instance(),
            name: options.name.clone(),
            limits: options.limits,
            request_capacity: options.request_capacity,
            response_capacity: options.response_capacity,
            shared_memory: options.shared_memory,
            require_crc: options.require_crc,
        };
        let spin = if usable_cpus() < 2 {
            Duration::ZERO
        } else {
            options.spin
        };
        Ok(Self {
            epoll,
            door: Door::new(listener, terms, options.exit_when_idle),
            connections: Connections::default(),
            hot: Schedule::default(),
            watched: Vec::new(),
            watched_before: Vec::new(),
            quieting: Vec::new(),
            waiting: Waiting::default(),
            overruns: Overruns::new(options.handler_limit),
            scratch: Vec::new(),
            spin,
            router,
            runtime,
            cooled: Vec::new(),
            attention: Vec::new(),
            next_tick: None,
            next_idle_look: None,
            next_trim: None,
            draining: None,
            shared,
        })
    }

    /// Serves until stopped.
    pub(crate) fn run(mut self) {
        tracing::info!(socket = %self.door.listener().dir().socket().display(), "listening");
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
        let mut progress = false;
        while !self.hot.is_empty() {
            let Some(turn) = self.hot.next() else {
                // Nobody had anything in a whole round.
                self.grant();
                if std::mem::take(&mut progress) {
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
            waiting: &mut self.waiting,
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
        if connection.idle_turns >= COOL_AFTER && connection.go_to_sleep(&self.shared)? {
            connection.hot = false;
            return Ok(Served::Cooled);
        }
        Ok(Served::Nothing)
    }

    /// Asks every hot connection for a bell. Those that have something by now stay hot.
    fn cool_down(&mut self) {
        let mut cooled = std::mem::take(&mut self.cooled);
        let mut broken = Vec::new();
        let (connections, shared) = (&mut self.connections, &self.shared);
        self.hot.retain(|index| {
            let Some(connection) = connections.get(index) else {
                return false;
            };
            match connection.go_to_sleep(shared) {
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

    /// Sees to it that a connection which went to sleep is looked at when it may be quiet, if there is a reason.
    fn note_cooled(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index)
            && !connection.quieting
            && connection.may_trim()
        {
            connection.quieting = true;
            let at = connection.last_activity + QUIET;
            self.quieting.push(index);
            self.next_trim.get_or_insert(at);
        }
    }

    /// Has connections that are quiet give back what memory they can, each once; those that are not yet keep their
    /// place.
    fn trim_quiet(&mut self, now: Instant) {
        self.next_trim = None;
        let mut at = 0;
        while let Some(&index) = self.quieting.get(at) {
            let Some(connection) = self.connections.get(index) else {
                self.quieting.swap_remove(at);
                continue;
            };
            let quiet_at = connection.last_activity + QUIET;
            if connection.hot || quiet_at > now {
                let look = quiet_at.max(now + TICK);
                self.next_trim = Some(self.next_trim.map_or(look, |next| next.min(look)));
                at += 1;
                continue;
            }
            connection.quieting = false;
            self.quieting.swap_remove(at);
            if let Err(error) = connection.trim() {
                self.close(index, &error);
            }
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
                WAKE => self.on_wake(),
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
                // What was published before the end is not read: nobody is there to hear the answers.
                self.close(index, &error);
            }
        }
    }

    fn on_wake(&mut self) {
        if let Some(wake) = self.shared.wake_fd() {
            let mut count = [0; 8];
            let _ = rustix::io::read(wake, &mut count);
        }
        let mut tokens = std::mem::take(&mut self.attention);
        std::mem::swap(
            &mut tokens,
            &mut *self
                .shared
                .attention
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for token in tokens.drain(..) {
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
        self.attention = tokens;
        self.grant();
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

    /// Gives what came free of the budget to those who wait for it, in order.
    fn grant(&mut self) {
        while let Some(next) = self.waiting.next(&self.shared) {
            let Some(index) = self.connections.index(next.token) else {
                continue;
            };
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let mut tools = Tools {
                router: &self.router,
                runtime: &self.runtime,
                shared: &self.shared,
                waiting: &mut self.waiting,
            };
            match connection.grant(next, &mut tools) {
                Ok(()) => self.note_watched(index),
                Err(error) => self.close(index, &error),
            }
        }
    }

    fn close(&mut self, index: u32, error: &TransportError) {
        let Some(connection) = self.connections.remove(index) else {
            return;
        };
        if connection.hot {
            self.hot.remove(index);
        }
        self.watched.retain(|watched| *watched != index);
        if connection.quieting {
            self.quieting.retain(|quieting| *quieting != index);
        }
        self.waiting
            .forget(connection.session.token, None, &self.shared);
        // The socket lives as long as a task that still holds the session, and must not wake anybody.
        let _ = epoll::delete(&self.epoll, connection.reader.socket());
        connection.close(error, &self.shared);
        self.shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&connection.session.id);
        if self.connections.live == 0 {
            self.door.nobody_since = Some(Instant::now());
        }
        drop(connection);
        self.grant();
    }

    /// How long nothing can happen by itself.
    fn sleep_time(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let tick = if self.draining.is_some() {
            Some(now + DRAIN_TICK)
        } else {
            self.tick_at(now)
        };
        let exit = if self.connections.live == 0 {
            self.door.exit_at()
        } else {
            None
        };
        [tick, self.next_idle_look, self.next_trim, exit]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now))
    }

    /// When the reactor looks for what stalls or expires, if anything may. Once set it is kept until it comes, so that
    /// steady traffic does not put it off.
    fn tick_at(&mut self, now: Instant) -> Option<Instant> {
        let busy =
            self.door.handshakes() > 0 || !self.waiting.is_empty() || !self.watched.is_empty();
        self.next_tick = busy.then(|| self.next_tick.unwrap_or(now + TICK));
        self.next_tick
    }

    /// Whatever depends on the clock.
    fn tick(&mut self) {
        // Taken, so that a call for less time that comes meanwhile is seen in the next turn.
        let stop = self
            .shared
            .stop
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(drain) = stop {
            self.drain(drain);
        }
        let now = Instant::now();
        self.tick_at(now);
        if self.connections.live == 0 && self.door.exit_at().is_some_and(|at| at <= now) {
            tracing::info!("nobody has been connected for a while: stopping");
            self.drain(Duration::ZERO);
        }
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = None;
            self.expire_handshakes(now);
            self.expire_waiting(now);
            let mut watched = std::mem::take(&mut self.watched_before);
            std::mem::swap(&mut watched, &mut self.watched);
            for index in watched.drain(..) {
                let Some(connection) = self.connections.get(index) else {
                    continue;
                };
                connection.listed = false;
                match connection.check_stalls(now, &self.shared) {
                    Ok(()) => {
                        // It sleeps without a bell for its data: whether it may be read again is seen here.
                        if std::mem::take(&mut connection.paused) {
                            self.heat(index);
                        }
                        self.note_watched(index);
                    }
                    Err(error) => self.close(index, &error),
                }
            }
            self.watched_before = watched;
            self.grant();
        }
        if self.next_idle_look.is_some_and(|at| at <= now) {
            self.close_idle(now);
        }
        if self.next_trim.is_some_and(|at| at <= now) {
            self.trim_quiet(now);
        }
    }

    /// Requests whose deadline passed while they waited for memory.
    fn expire_waiting(&mut self, now: Instant) {
        for (token, id) in self.waiting.expired(now) {
            let Some(index) = self.connections.index(token) else {
                continue;
            };
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let parked = self.waiting.forget(token, Some(id), &self.shared);
            if let Err(error) = connection.expire(id, parked, &self.shared) {
                self.close(index, &error);
            }
        }
    }

    fn close_idle(&mut self, now: Instant) {
        self.next_idle_look = None;
        let Some(limit) = self.shared.options.idle_timeout else {
            return;
        };
        for index in self.connections.indices() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            // A hot connection talked a moment ago; when it cools, the time is noted.
            if connection.hot {
                connection.last_activity = now;
            }
            let expires = connection.last_activity + limit;
            if connection.session.live.load(Ordering::Relaxed) == 0 && expires <= now {
                connection.say_goodbye(ErrorCode::IdleTimeout, "nothing was asked for a long time");
                self.close(index, &TransportError::PeerGone);
            } else {
                // A busy connection is looked at again after a whole limit.
                let next = if expires <= now { now + limit } else { expires };
                self.next_idle_look = Some(self.next_idle_look.map_or(next, |at| at.min(next)));
            }
        }
    }

    fn note_idle_deadline(&mut self) {
        if let Some(limit) = self.shared.options.idle_timeout
            && self.next_idle_look.is_none()
        {
            self.next_idle_look = Some(Instant::now() + limit);
        }
    }

    /// Begins to stop, or shortens the time for it.
    fn drain(&mut self, drain: Duration) {
        let until = Instant::now() + drain;
        match self.draining {
            Some(before) => {
                // Only a shorter one changes anything.
                if until < before {
                    self.draining = Some(until);
                }
            }
            None => {
                tracing::info!(seconds = drain.as_secs_f64(), "draining");
                self.draining = Some(until);
                self.refuse_handshakes();
                for index in self.connections.indices() {
                    let Some(connection) = self.connections.get(index) else {
                        continue;
                    };
                    let millis = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
                    let mut tx = connection.session.lock();
                    tx.state.go_away(ErrorCode::ServerRestarting, millis);
                    let result = tx.pump();
                    if tx.writer.wants_writable() {
                        self.shared.call_reactor(&connection.session);
                    }
                    drop(tx);
                    if let Err(error) = result {
                        self.close(index, &error);
                    }
                }
            }
        }
    }

    /// While draining: closes what is quiet, and at the deadline cuts the rest.
    fn is_done(&mut self) -> bool {
        let Some(until) = self.draining else {
            return false;
        };
        let over = Instant::now() >= until;
        for index in self.connections.indices() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let mut tx = connection.session.lock();
            if over {
                tx.cut_all(ErrorCode::ServerRestarting, "the daemon is stopping");
                let _ = tx.pump();
            }
            if over || tx.is_quiet() {
                drop(tx);
                self.close(index, &TransportError::PeerGone);
            }
        }
        self.connections.live == 0
    }

    fn finish(self) {
        if let Err(error) = self.door.into_listener().remove() {
            tracing::warn!(%error, "could not remove the socket or its lock");
        }
        tracing::info!("stopped");
    }
}

/// Tells this life of the daemon from others. Not a secret.
fn instance() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // Each RandomState has fresh keys from the system's random numbers.
    let half = || u128::from(RandomState::new().hash_one(0_u8));
    half() << 64 | half()
}

/// The error that tells a peer what it did wrong.
fn fault_body(error: &TransportError) -> Option<ErrorBody> {
    error.fault().map(ErrorBody::from_fault)
}
