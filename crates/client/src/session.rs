//! What both clients share: which link is the present one, and when to make another.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Wake, Waker};
use std::time::Instant;

use lapce_ai_proto::{ErrorCode, Features, MessageType, Welcome};
use lapce_ai_transport::{ConnectError, ConnectOptions, Connection, connect};
use tokio::sync::Notify;

use crate::link::{End, Link, Phase};
use crate::plan::Plan;
use crate::reconnect::Reconnect;
use crate::watch::{Seen, Watching};
use crate::{ClientError, Health, Options, RequestOptions, State};

/// A daemon's answer to a connection.
pub(crate) type Connected = Result<(Connection, Welcome), ConnectError>;

pub(crate) struct Session {
    pub(crate) options: Options,
    connect: ConnectOptions,
    inner: Mutex<Inner>,
    /// Without a task that watches, a lost connection is made again by the next request.
    watched: bool,
    /// Wakes the task that connects.
    pub(crate) kick: Arc<Kick>,
}

/// Wakes the task that connects.
#[derive(Debug, Default)]
pub(crate) struct Kick(Notify);

impl Kick {
    pub(crate) async fn kicked(&self) {
        self.0.notified().await;
    }
}

impl Wake for Kick {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

struct Inner {
    reconnect: Reconnect,
    /// While the daemon is waited for.
    watching: Option<Watching>,
    link: Option<Arc<Link>>,
    /// Links that still drain.
    older: Vec<Weak<Link>>,
    welcome: Option<Welcome>,
    /// The highest id of a request on links that take no more.
    last_id: u64,
    waiters: Vec<Waker>,
}

/// What whoever connects does next.
#[derive(Debug)]
pub(crate) enum Step {
    Connect,
    WaitUntil(Instant),
    Rest,
    Closed,
}

/// One caller's wait for a link: notes how many rounds of attempts had failed when it began.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    gave_up: Option<u64>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(options: Options, watched: bool) -> Result<Self, ClientError> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| ConnectError::Io {
            path: options.socket.clone(),
            source: std::io::Error::other(error),
        })?;
        let (instance, seed) = random.split_at(16);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0_u128, |sum, &byte| sum << 8 | u128::from(byte))
        };
        let connect = ConnectOptions {
            name: options.name.clone(),
            instance: number(instance),
            features: Features {
                shared_memory: options.shared_memory,
                crc: options.crc,
            },
            // More than the protocol allows is as good as the most.
            response_window: options.response_window.clamp(1, i32::MAX as u32),
            earlier: 0,
            timeout: options.connect_timeout,
            server_uids: options.server_uids.clone(),
        };
        let inner = Inner {
            reconnect: Reconnect::new(
                options.reconnect.clone(),
                number(seed) as u64,
                Instant::now(),
            ),
            watching: None,
            link: None,
            older: Vec::new(),
            welcome: None,
            last_id: 0,
            waiters: Vec::new(),
        };
        Ok(Self {
            options,
            connect,
            inner: Mutex::new(inner),
            watched,
            kick: Arc::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects. Blocks, at most until `deadline`.
    pub(crate) fn connect(&self, deadline: Option<Instant>) -> Connected {
        let mut options = self.connect_options();
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            options.timeout = options.timeout.min(left);
        }
        connect(&self.options.socket, &options)
    }

    /// What is said to the daemon now.
    pub(crate) fn connect_options(&self) -> ConnectOptions {
        let before = self.counters().connected;
        ConnectOptions {
            earlier: u16::try_from(before).unwrap_or(u16::MAX),
            ..self.connect.clone()
        }
    }

    /// Notes how an attempt ended; a new link is the present one from now on.
    pub(crate) fn connected(&self, connected: Connected) -> Result<Arc<Link>, ConnectError> {
        let mut inner = self.lock();
        let now = Instant::now();
        let result = match connected {
            Ok((connection, welcome)) => {
                let window = self.connect.response_window;
                let link = Link::new(connection, welcome.clone(), window, inner.last_id);
                let link = Arc::new(link);
                if inner.reconnect.state() == State::Closed {
                    link.close(End::Closed);
                } else {
                    inner
                        .reconnect
                        .connected(now, welcome.connection, welcome.instance);
                    inner.welcome = Some(welcome);
                    inner.link = Some(Arc::clone(&link));
                }
                Ok(link)
            }
            Err(error) => {
                inner
                    .reconnect
                    .failed(now, error.to_string(), may_pass(&error));
                if inner.reconnect.wants_watch() {
                    inner.watching = Watching::begin(&self.options.socket);
                    if inner.watching.is_some() {
                        inner.reconnect.watched(now);
                    }
                }
                Err(error)
            }
        };
        if !matches!(inner.reconnect.state(), State::Waiting { .. }) {
            inner.watching = None;
        }
        self.tell(inner);
        result
    }

    /// Wakes everybody who waits for a change.
    fn tell(&self, mut inner: MutexGuard<'_, Inner>) {
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        for waker in waiters {
            waker.wake();
        }
        self.kick.wake_by_ref();
    }

    /// The present link, if there is one that takes requests.
    #[inline]
    pub(crate) fn open_link(&self) -> Option<Arc<Link>> {
        let inner = self.lock();
        let link = inner.link.as_ref()?;
        (link.phase() == Phase::Open).then(|| Arc::clone(link))
    }

    /// Waits for a link that takes requests. `at_once`: only if the daemon is there still, so that the first attempt
    /// succeeds.
    pub(crate) fn poll_link(
        &self,
        wait: &mut Wait,
        at_once: bool,
        waker: &Waker,
    ) -> Poll<Result<Arc<Link>, ClientError>> {
        let mut inner = self.lock();
        if let Some(link) = &inner.link {
            if link.phase() == Phase::Open {
                return Poll::Ready(Ok(Arc::clone(link)));
            }
            self.retire(&mut inner);
            // Nobody else will find it the present one any more, and so tell the task that connects.
            self.kick.wake_by_ref();
        }
        let gave_up = inner.reconnect.counters().gave_up;
        let before = *wait.gave_up.get_or_insert(gave_up);
        match inner.reconnect.state() {
            State::Closed => return Poll::Ready(Err(ClientError::Closed)),
            State::Idle | State::GivenUp if gave_up > before => {
                let (attempts, reason) = inner.reconnect.last_failure();
                return Poll::Ready(Err(ClientError::Unreachable { attempts, reason }));
            }
            State::Waiting { .. } if at_once => {
                let (attempts, reason) = inner.reconnect.last_failure();
                return Poll::Ready(Err(ClientError::Unreachable { attempts, reason }));
            }
            _ => {}
        }
        if inner.reconnect.wanted(Instant::now()) {
            self.kick.wake_by_ref();
        }
        if !inner.waiters.iter().any(|other| other.will_wake(waker)) {
            inner.waiters.push(waker.clone());
        }
        Poll::Pending
    }

    /// Looks whether this link is still the present one and takes requests.
    pub(crate) fn note(&self, link: &Arc<Link>) {
        if link.phase() == Phase::Open {
            return;
        }
        let mut inner = self.lock();
        if inner
            .link
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, link))
        {
            self.retire(&mut inner);
            self.tell(inner);
        }
    }

    fn retire(&self, inner: &mut Inner) {
        let Some(link) = inner.link.take() else {
            return;
        };
        inner.last_id = inner.last_id.max(link.last_id());
        let now = Instant::now();
        let end = link.end();
        match (end.as_deref(), link.goaway()) {
            (Some(End::Drained) | None, Some(goaway)) => {
                inner
                    .reconnect
                    .going_away(now, goaway.code.name().to_owned());
                inner.older.retain(|older| older.strong_count() > 0);
                inner.older.push(Arc::downgrade(&link));
            }
            (Some(end), _) => {
                let idle = matches!(end, End::Daemon(body) if body.code == ErrorCode::IdleTimeout);
                inner
                    .reconnect
                    .lost(now, end.to_string(), self.watched && !idle);
            }
            (None, None) => {}
        }
    }

    /// What is to be done now. `waker` is called if that changes while it is waited.
    pub(crate) fn step(&self, waker: &Waker) -> Step {
        let mut guard = self.lock();
        let inner = &mut *guard;
        loop {
            let now = Instant::now();
            match inner
                .watching
                .as_mut()
                .map_or(Seen::Nothing, Watching::look)
            {
                Seen::Nothing => {}
                Seen::Appeared { crowd } => inner.reconnect.appeared(now, crowd),
                Seen::Gone => {
                    inner.watching = None;
                    inner.reconnect.unwatched(now);
                }
            }
            if inner.reconnect.is_due(now) {
                return Step::Connect;
            }
            match inner.reconnect.state() {
                State::Waiting { until, .. } => {
                    let watching = inner.watching.as_ref();
                    if watching.is_none_or(|watching| watching.wake(waker)) {
                        return Step::WaitUntil(until);
                    }
                }
                State::Closed => return Step::Closed,
                _ => return Step::Rest,
            }
        }
    }

    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.reconnect.close(Instant::now());
        inner.watching = None;
        let links: Vec<_> = inner
            .link
            .take()
            .into_iter()
            .chain(inner.older.drain(..).filter_map(|older| older.upgrade()))
            .collect();
        self.tell(inner);
        for link in links {
            link.close(End::Closed);
        }
    }

    /// Wakes everybody who waits for a link: one of them takes over the connecting.
    pub(crate) fn hand_over(&self) {
        self.tell(self.lock());
    }

    pub(crate) fn welcome(&self) -> Option<Welcome> {
        self.lock().welcome.clone()
    }

    pub(crate) fn state(&self) -> State {
        self.lock().reconnect.state()
    }

    pub(crate) fn health(&self) -> Health {
        self.lock().reconnect.health()
    }

    pub(crate) fn history(&self) -> Vec<crate::Event> {
        self.lock().reconnect.history()
    }

    pub(crate) fn counters(&self) -> crate::ReconnectCounters {
        self.lock().reconnect.counters()
    }

    /// A request that may go over several connections.
    pub(crate) fn plan(&self, ty: MessageType, options: &RequestOptions, one_item: bool) -> Plan {
        Plan::new(ty, options, one_item, self.options.reconnect.max_resends)
    }
}

/// Whether another attempt may succeed.
fn may_pass(error: &ConnectError) -> bool {
    match error {
        ConnectError::Untrusted { .. } | ConnectError::Segment(_) => false,
        ConnectError::Refused(body) => body.code.may_retry(),
        _ => true,
    }
}
