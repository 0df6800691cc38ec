//! Building, starting and stopping a server.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lapce_ai_proto::status::{ConnectionStatus, Counters, ReactorStatus};
use lapce_ai_proto::{ErrorBody, MessageType, OPEN_PREFIX_LEN};
use lapce_ai_transport::{Buffer, BufferPool, CONTROL_ROOM, Listener, PoolStats};
use tokio::runtime::Handle;

use crate::handler::{Handler, OwnedRequest, Reply, Request, Responder, Router};
use crate::line::{Granted, Line, Waiter};
use crate::mailbox::{Mailbox, Newcomer};
use crate::occupancy::Occupancy;
use crate::options::{Options, instance};
use crate::reactor::{Door, Reactor, Sweep};
use crate::repeats::{Repeats, Verdict};
use crate::session::Session;
use crate::succession::Legacy;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option makes no sense.
    #[error("{0}")]
    Options(String),
    /// The system refused.
    #[error("cannot start the server: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A server that is being put together: options and handlers.
#[derive(Debug)]
pub struct Server {
    router: Router,
    shared: Arc<Shared>,
}

/// What the reactors, the tasks and the handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) pool: BufferPool,
    pub(crate) line: Line,
    pub(crate) repeats: Repeats,
    pub(crate) counters: AtomicCounters,
    pub(crate) sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    pub(crate) occupancy: Arc<Occupancy>,
    /// Connections that were ever accepted: the number of the latest.
    pub(crate) accepted: AtomicU64,
    /// What clients know this life of the daemon by.
    instance: OnceLock<u128>,
    /// Another server is about to follow, or has.
    pub(crate) retiring: AtomicBool,
    /// It was told to stop.
    pub(crate) stopping: AtomicBool,
    /// It has accepted, or may: until then the names of socket and lock are those of the server before it.
    pub(crate) opened: AtomicBool,
    /// The threads' giving back of memory that is under way, if one is.
    pub(crate) sweep: Mutex<Weak<Sweep>>,
    /// One for each reactor.
    pub(crate) mailboxes: Box<[Arc<Mailbox>]>,
}

/// What is counted rarely enough for one place; each reactor counts its requests itself.
#[derive(Debug, Default)]
pub(crate) struct AtomicCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) reconnections: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) fetched: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) overruns: AtomicU64,
}

/// What is left of a client's earlier connections.
#[derive(Debug, Clone, Copy, Default)]
struct Earlier {
    any: bool,
    /// One of them has taken as much as the request in question.
    may_run: bool,
}

impl Shared {
    fn new(options: Options) -> Self {
        let reactors = options.reactors.clamp(1, Options::MOST_REACTORS);
        Self {
            pool: BufferPool::new(options.pool),
            line: Line::default(),
            repeats: Repeats::new(options.repeats.clone()),
            options,
            counters: AtomicCounters::default(),
            sessions: Mutex::default(),
            occupancy: Arc::new(Occupancy::new(reactors)),
            accepted: AtomicU64::new(0),
            instance: OnceLock::new(),
            retiring: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            sweep: Mutex::default(),
            mailboxes: (0..reactors).map(|at| Arc::new(Mailbox::new(at))).collect(),
        }
    }

    /// What clients know this life of the daemon by.
    pub(crate) fn instance(&self) -> u128 {
        *self.instance.get_or_init(instance)
    }

    /// Memory for a request, unless it has to wait: then it [enters](Self::enter) the line.
    #[inline]
    pub(crate) fn at_once(&self, length: usize) -> Option<Buffer> {
        self.line.at_once(length, &self.pool)
    }

    pub(crate) fn enter(&self, waiter: Waiter) {
        self.line
            .enter(waiter, &self.pool, |granted| self.deliver(granted));
    }

    /// Takes requests out of the line; see [`Line::forget`].
    pub(crate) fn forget(&self, connection: u64, id: Option<u64>) -> usize {
        let deliver = |granted| self.deliver(granted);
        self.line.forget(connection, id, &self.pool, deliver)
    }

    /// What is to be done with a request of `session` that had the id `sequence` on an earlier connection. Those of its
    /// earlier connections that still stand here are closed first: the client has let them go, however that came, and only
    /// then it is known what was taken of them, and nothing more is. To be called under the session's lock; those of the
    /// earlier ones are taken.
    pub(crate) fn judge(
        self: &Arc<Self>,
        session: &Session,
        sequence: u64,
        runtime: &Handle,
    ) -> Verdict {
        let whose = session.whose();
        // Once none is left none comes any more, and a look through all sessions for each request would hold others up.
        if !session.is_only.load(Ordering::Relaxed) {
            let before = self.close_earlier(session, sequence, runtime);
            // One that is on its way to its reactor is seen by one of the two: here, or there.
            let is_noted = self.repeats.let_go(whose, session.id);
            let left = self.close_earlier(session, sequence, runtime);
            if before.may_run || left.may_run {
                return Verdict::Refuse;
            }
            let is_only = is_noted && !left.any;
            session.is_only.store(is_only, Ordering::Relaxed);
        }
        self.repeats.judge(whose, sequence, Instant::now())
    }

    /// Closes a client's connections before this one. What is left of them drains.
    fn close_earlier(
        self: &Arc<Self>,
        session: &Session,
        sequence: u64,
        runtime: &Handle,
    ) -> Earlier {
        let whose = session.whose();
        let earlier: Vec<Arc<Session>> = {
            let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let earlier = sessions.range(..session.id).map(|(_, earlier)| earlier);
            earlier
                .filter(|earlier| earlier.whose() == whose)
                .cloned()
                .collect()
        };
        let mut left = Earlier::default();
        for earlier in earlier {
            let mut tx = earlier.lock();
            if tx.closed {
                continue;
            }
            // One that drains takes nothing new, and is used to its end.
            if tx.state.is_going_away() && !tx.writer.is_hung_up() {
                left.any = true;
                left.may_run |= tx.state.last_taken() >= sequence;
                continue;
            }
            let ended = earlier.close(&mut tx, self, runtime);
            self.counters
                .cancelled
                .fetch_add(ended as u64, Ordering::Relaxed);
        }
        left
    }

    /// Memory came back that somebody waits for.
    fn released(&self) {
        self.line
            .advance(&self.pool, |granted| self.deliver(granted));
    }

    /// Gives a connection to the reactor where it has its place.
    pub(crate) fn hand_out(&self, mut newcomer: Newcomer) {
        let reactor = newcomer.place.settle();
        self.mailboxes[reactor].post(|letters| letters.newcomers.push(newcomer));
    }

    fn deliver(&self, granted: Granted) {
        self.mailboxes[granted.waiter.reactor].post(|letters| letters.granted.push(granted));
    }

    /// How many requests and connections there ever were.
    pub(crate) fn done(&self) -> (u64, u64) {
        let requests = self.mailboxes.iter();
        let requests = requests.map(|mailbox| mailbox.requests.load(Ordering::Relaxed));
        (requests.sum(), self.accepted.load(Ordering::Relaxed))
    }

    /// Whether any request is unanswered.
    pub(crate) fn is_running(&self) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .values()
            .any(|session| session.live.load(Ordering::Relaxed) > 0)
    }

    /// When the server stops if nobody comes.
    pub(crate) fn exit_at(&self) -> Option<Instant> {
        let limit = self.options.exit_when_idle?;
        Some(self.occupancy.nobody_since()? + limit)
    }

    /// Stops the server if nobody has been connected for long enough.
    pub(crate) fn stop_if_idle(&self, now: Instant) {
        if let Some(limit) = self.options.exit_when_idle
            && self.occupancy.is_over(now, limit)
        {
            tracing::info!("nobody has been connected for a while: stopping");
            self.stop(Duration::ZERO);
        }
    }

    /// Has every reactor drain and end.
    fn stop(&self, drain: Duration) {
        tracing::info!(seconds = drain.as_secs_f64(), "draining");
        self.stopping.store(true, Ordering::Release);
        for mailbox in &self.mailboxes {
            mailbox.post(|letters| {
                let before = letters.stop.unwrap_or(drain);
                letters.stop = Some(before.min(drain));
            });
        }
    }
}

impl Server {
    /// A server without handlers.
    pub fn new(options: Options) -> Self {
        let mut options = options;
        // A frame with its prefix and the room kept for control must fit half a ring, so that the two sides can
        // work on two of them at once.
        let ring = options.request_capacity.min(options.response_capacity);
        let most = (ring / 2).saturating_sub((CONTROL_ROOM + OPEN_PREFIX_LEN) as u32);
        // Every ERROR fits a frame.
        let least = ErrorBody::MAX_LEN as u32;
        let frame = &mut options.limits.max_frame_payload;
        *frame = (*frame).min(most).max(least);
        let shared = Arc::new(Shared::new(options));
        let weak = Arc::downgrade(&shared);
        shared.pool.on_release(move || {
            if let Some(shared) = weak.upgrade() {
                shared.released();
            }
        });
        Self {
            router: Router::default(),
            shared,
        }
    }

    /// Answers requests of a type on the thread of the connection's reactor: for work of microseconds. While it runs, no
    /// other connection of that reactor is served. With several reactors it runs in several threads at once.
    pub fn handle(
        &mut self,
        ty: MessageType,
        handler: impl Fn(Request<'_>, Reply<'_>) + Send + Sync + 'static,
    ) {
        self.router.insert(ty, Handler::Sync(Box::new(handler)));
    }

    /// Answers requests of a type in a task of their own. The task is dropped when the request is cancelled, its
    /// deadline passes or the client goes.
    pub fn handle_async<F>(
        &mut self,
        ty: MessageType,
        handler: impl Fn(OwnedRequest, Responder) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let handler = Arc::new(move |request, responder| {
            let future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(handler(request, responder));
            future
        });
        self.router.insert(ty, Handler::Async(handler));
    }

    /// A handle for handlers that look at the server or stop it.
    pub fn handle_ref(&self) -> ServerHandle {
        ServerHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Takes over what another server has left, so that it is the same life of the daemon to its clients.
    pub fn inherit(&mut self, legacy: Legacy) {
        let shared = &self.shared;
        // Nobody has asked for it yet, since nothing is started.
        let _ = shared.instance.set(legacy.instance);
        shared.accepted.store(legacy.connections, Ordering::Release);
        shared.repeats.import(legacy.clients, Instant::now());
    }

    /// Starts to serve, on as many threads as there are [reactors](Options::reactors); async handlers run on `runtime`.
    ///
    /// # Errors
    /// Options that make no sense, or the system's refusal.
    pub fn start(self, listener: Listener, runtime: &Handle) -> Result<Running, StartError> {
        self.start_with(listener, runtime, true)
    }

    /// The same, but nobody is accepted before [`ServerHandle::open`].
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_closed(self, listener: Listener, runtime: &Handle) -> Result<Running, StartError> {
        self.start_with(listener, runtime, false)
    }

    fn start_with(
        self,
        listener: Listener,
        runtime: &Handle,
        open: bool,
    ) -> Result<Running, StartError> {
        let Self { router, shared } = self;
        shared.options.check()?;
        let reactors = shared.mailboxes.len();
        shared.opened.store(open, Ordering::Release);
        let socket = listener.dir().socket().display().to_string();
        tracing::info!(socket, reactors, "listening");
        let listener = Arc::new(listener);
        let terms = shared.options.terms(shared.instance());
        let router = Arc::new(router);
        let ready = shared.mailboxes.iter().map(|mailbox| {
            Reactor::new(
                Door::new(Arc::clone(&listener), terms.clone(), reactors, open),
                Arc::clone(&router),
                Arc::clone(&shared),
                Arc::clone(mailbox),
                runtime.clone(),
            )
        });
        let ready = ready.collect::<Result<Vec<_>, _>>()?;
        // From here on the reactors have it alone: the last of them removes its name.
        drop(listener);
        let mut running = Running {
            threads: Vec::with_capacity(reactors),
            handle: ServerHandle {
                shared: Arc::clone(&shared),
            },
        };
        for (number, reactor) in ready.into_iter().enumerate() {
            let guard = StopAll(Arc::clone(&shared));
            let thread = std::thread::Builder::new()
                .name(format!("lapce-ai-ipc-{number}"))
                .spawn(move || {
                    let _guard = guard;
                    reactor.run();
                });
            match thread {
                Ok(thread) => running.threads.push(thread),
                Err(source) => {
                    running.handle.shutdown(Duration::ZERO);
                    running.join();
                    let what = "spawn a thread";
                    return Err(StartError::System { what, source });
                }
            }
        }
        Ok(running)
    }
}

/// A reactor that panics takes the others with it: its clients would wait for ever, and the process shall end.
struct StopAll(Arc<Shared>);

impl Drop for StopAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(Duration::ZERO);
        }
    }
}

/// Looks at a server and stops it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    pub(crate) shared: Arc<Shared>,
}

impl ServerHandle {
    /// Who is connected, by connection number.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let sessions = self
            .shared
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sessions
            .values()
            .map(|session| ConnectionStatus {
                id: session.id,
                reactor: session.mailbox.number as u64,
                name: session.peer.name.clone(),
                pid: session.peer.credentials.pid,
                uid: session.peer.credentials.uid,
                transport: if session.peer.shared_memory {
                    "shared memory"
                } else {
                    "socket"
                }
                .to_owned(),
                earlier: session.peer.earlier.into(),
                requests: session.requests.load(Ordering::Relaxed),
                in_flight: session.live.load(Ordering::Relaxed),
                connected_secs: session.since.elapsed().as_secs(),
            })
            .collect()
    }

    /// What happened since the start.
    pub fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        let of_reactors = self.shared.mailboxes.iter();
        Counters {
            connections: load(&counters.connections),
            reconnections: load(&counters.reconnections),
            repeated: load(&counters.repeated),
            fetched: load(&counters.fetched),
            refused: load(&counters.refused),
            requests: of_reactors.map(|mailbox| load(&mailbox.requests)).sum(),
            failed: load(&counters.failed),
            cancelled: load(&counters.cancelled),
            faults: load(&counters.faults),
            overruns: load(&counters.overruns),
        }
    }

    /// How the connections lie on the reactors.
    pub fn reactors(&self) -> Vec<ReactorStatus> {
        let connections = self.shared.occupancy.of_reactors();
        let mailboxes = self.shared.mailboxes.iter();
        mailboxes
            .zip(connections)
            .map(|(mailbox, connections)| ReactorStatus {
                connections: connections as u64,
                requests: mailbox.requests.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Connections and counters in one call.
    pub fn status(&self) -> (Vec<ConnectionStatus>, Counters) {
        (self.connections(), self.counters())
    }

    /// What the buffers hold.
    pub fn pool(&self) -> PoolStats {
        self.shared.pool.stats()
    }

    /// Stops the server: no new connections and requests, `drain` for running ones, then `server_restarting` for the
    /// rest. A second call can only shorten the time.
    pub fn shutdown(&self, drain: Duration) {
        self.shared.stop(drain);
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<()>>,
    handle: ServerHandle,
}

impl Running {
    /// A handle to look at it and stop it.
    pub fn handle(&self) -> &ServerHandle {
        &self.handle
    }

    /// Waits until it has stopped; socket and lock file are gone then.
    pub fn join(self) {
        // A reactor catches what handlers do; one that panics itself has stopped the others.
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }
}
