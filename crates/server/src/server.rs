//! Building, starting and stopping a server.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lapce_ai_proto::status::{ConnectionStatus, Counters};
use lapce_ai_proto::{ErrorBody, MessageType, OPEN_PREFIX_LEN};
use lapce_ai_transport::{BufferPool, CONTROL_ROOM, Listener, PoolStats};
use rustix::event::{EventfdFlags, eventfd};

use crate::handler::{Handler, OwnedRequest, Reply, Request, Responder, Router};
use crate::options::Options;
use crate::reactor::Reactor;
use crate::session::Session;

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

/// What the reactor, the tasks and the handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) pool: BufferPool,
    pub(crate) counters: AtomicCounters,
    pub(crate) sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    /// Tokens of connections that the reactor shall look after.
    pub(crate) attention: Mutex<Vec<u64>>,
    /// Requests that wait for the budget: a release is of interest.
    pub(crate) awaiting_budget: AtomicUsize,
    /// How to drain, once a stop has been asked for.
    pub(crate) stop: Mutex<Option<Duration>>,
    wake: Option<OwnedFd>,
}

#[derive(Debug, Default)]
pub(crate) struct AtomicCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) overruns: AtomicU64,
}

impl Shared {
    /// Asks the reactor to look after a connection: to watch for room, or to notice that it broke.
    pub(crate) fn call_reactor(&self, session: &Session) {
        if !session.attention.swap(true, Ordering::AcqRel) {
            let mut attention = self
                .attention
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            attention.push(session.token);
            drop(attention);
            self.wake_reactor();
        }
    }

    pub(crate) fn wake_reactor(&self) {
        if let Some(wake) = &self.wake {
            // A counter that is full wakes as well.
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn wake_fd(&self) -> Option<&OwnedFd> {
        self.wake.as_ref()
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
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        let shared = Arc::new(Shared {
            pool: BufferPool::new(options.pool),
            options,
            counters: AtomicCounters::default(),
            sessions: Mutex::default(),
            attention: Mutex::default(),
            awaiting_budget: AtomicUsize::new(0),
            stop: Mutex::default(),
            wake,
        });
        let weak = Arc::downgrade(&shared);
        shared.pool.on_release(move || {
            if let Some(shared) = weak.upgrade()
                && shared.awaiting_budget.load(Ordering::Relaxed) > 0
            {
                shared.wake_reactor();
            }
        });
        Self {
            router: Router::default(),
            shared,
        }
    }

    /// Answers requests of a type on the reactor's own thread: for work of microseconds. While it runs, no other
    /// connection is served.
    pub fn handle(
        &mut self,
        ty: MessageType,
        handler: impl Fn(Request<'_>, Reply<'_>) + Send + 'static,
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

    /// Starts to serve, on a thread of its own; async handlers run on `runtime`.
    ///
    /// # Errors
    /// Options that make no sense, or the system's refusal.
    pub fn start(
        self,
        listener: Listener,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Running, StartError> {
        let handle = self.handle_ref();
        let reactor = Reactor::new(listener, self.router, self.shared, runtime.clone())?;
        let thread = std::thread::Builder::new()
            .name("lapce-ai-ipc".to_owned())
            .spawn(move || reactor.run())
            .map_err(|source| StartError::System {
                what: "spawn a thread",
                source,
            })?;
        Ok(Running { thread, handle })
    }
}

/// Looks at a server and stops it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
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
                name: session.peer.name.clone(),
                pid: session.peer.credentials.pid,
                uid: session.peer.credentials.uid,
                transport: if session.peer.shared_memory {
                    "shared memory"
                } else {
                    "socket"
                }
                .to_owned(),
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
        Counters {
            connections: load(&counters.connections),
            refused: load(&counters.refused),
            requests: load(&counters.requests),
            failed: load(&counters.failed),
            cancelled: load(&counters.cancelled),
            faults: load(&counters.faults),
            overruns: load(&counters.overruns),
        }
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
        let mut stop = self
            .shared
            .stop
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stop = Some(stop.map_or(drain, |before| before.min(drain)));
        drop(stop);
        self.shared.wake_reactor();
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    handle: ServerHandle,
}

impl Running {
    /// A handle to look at it and stop it.
    pub fn handle(&self) -> &ServerHandle {
        &self.handle
    }

    /// Waits until it has stopped; socket and lock file are gone then.
    pub fn join(self) {
        // The reactor catches what handlers do; should it panic itself, there is nothing left to stop.
        if self.thread.join().is_err() {
            tracing::error!("the server's thread panicked");
        }
    }
}
