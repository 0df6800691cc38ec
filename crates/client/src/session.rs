//! What both clients share: which link is the present one, and when to make another.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use lapce_ai_proto::{Class, ErrorBody, ErrorCode, Features, MessageType, OpenPrefix, Welcome};
use lapce_ai_transport::{ConnectError, ConnectOptions, Connection, connect};
use tokio::sync::Notify;

use crate::link::{End, Link, Outcome, Outgoing, Phase, Refused};
use crate::reconnect::Reconnect;
use crate::{Body, ClientError, Options, RequestOptions, State};

/// How much longer than a request's deadline its client waits for the daemon's word.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// A daemon's answer to a connection.
pub(crate) type Connected = Result<(Connection, Welcome), ConnectError>;

pub(crate) struct Session {
    pub(crate) options: Options,
    connect: ConnectOptions,
    inner: Mutex<Inner>,
    sequence: AtomicU64,
    /// Without a task that watches, a lost connection is made again by the next request.
    watched: bool,
    /// Wakes the task that connects.
    pub(crate) kick: Notify,
}

struct Inner {
    reconnect: Reconnect,
    link: Option<Arc<Link>>,
    /// Links that still drain.
    older: Vec<Weak<Link>>,
    welcome: Option<Welcome>,
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
            timeout: options.connect_timeout,
            server_uids: options.server_uids.clone(),
        };
        let inner = Inner {
            reconnect: Reconnect::new(
                options.reconnect.clone(),
                number(seed) as u64,
                Instant::now(),
            ),
            link: None,
            older: Vec::new(),
            welcome: None,
            waiters: Vec::new(),
        };
        Ok(Self {
            options,
            connect,
            inner: Mutex::new(inner),
            sequence: AtomicU64::new(0),
            watched,
            kick: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects. Blocks.
    pub(crate) fn connect(&self) -> Connected {
        connect(&self.options.socket, &self.connect)
    }

    /// Notes how an attempt ended; a new link is the present one from now on.
    pub(crate) fn connected(&self, connected: Connected) -> Result<Arc<Link>, ConnectError> {
        let mut inner = self.lock();
        let now = Instant::now();
        let result = match connected {
            Ok((connection, welcome)) => {
                let link = Link::new(connection, welcome.clone(), self.connect.response_window);
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
                Err(error)
            }
        };
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
        self.kick.notify_one();
    }

    /// The present link, if there is one that takes requests.
    #[inline]
    pub(crate) fn open_link(&self) -> Option<Arc<Link>> {
        let inner = self.lock();
        let link = inner.link.as_ref()?;
        (link.phase() == Phase::Open).then(|| Arc::clone(link))
    }

    /// Waits for a link that takes requests.
    pub(crate) fn poll_link(
        &self,
        wait: &mut Wait,
        waker: &Waker,
    ) -> Poll<Result<Arc<Link>, ClientError>> {
        let mut inner = self.lock();
        if let Some(link) = &inner.link {
            if link.phase() == Phase::Open {
                return Poll::Ready(Ok(Arc::clone(link)));
            }
            self.retire(&mut inner);
            // Nobody else will find it the present one any more, and so tell the task that connects.
            self.kick.notify_one();
        }
        let gave_up = inner.reconnect.counters().gave_up;
        let before = *wait.gave_up.get_or_insert(gave_up);
        match inner.reconnect.state() {
            State::Closed => return Poll::Ready(Err(ClientError::Closed)),
            State::Idle if gave_up > before => {
                let (attempts, reason) = inner.reconnect.last_failure();
                return Poll::Ready(Err(ClientError::Unreachable { attempts, reason }));
            }
            _ => {}
        }
        if inner.reconnect.wanted(Instant::now()) {
            self.kick.notify_one();
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

    pub(crate) fn step(&self) -> Step {
        let mut inner = self.lock();
        if inner.reconnect.is_due(Instant::now()) {
            return Step::Connect;
        }
        match inner.reconnect.state() {
            State::Waiting { until, .. } => Step::WaitUntil(until),
            State::Closed => Step::Closed,
            _ => Step::Rest,
        }
    }

    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.reconnect.close(Instant::now());
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

    pub(crate) fn history(&self) -> Vec<crate::Event> {
        self.lock().reconnect.history()
    }

    pub(crate) fn counters(&self) -> crate::ReconnectCounters {
        self.lock().reconnect.counters()
    }

    /// A request that may go over several connections.
    pub(crate) fn plan(&self, ty: MessageType, options: &RequestOptions, one_item: bool) -> Plan {
        let plain = options.deadline.is_none()
            && options.class == Class::ByType
            && !options.repeatable
            && one_item;
        let sequence = if plain {
            0
        } else {
            self.sequence.fetch_add(1, Ordering::Relaxed) + 1
        };
        // A time too far to be represented is no deadline.
        let deadline = options
            .deadline
            .and_then(|after| Instant::now().checked_add(after));
        Plan {
            ty,
            class: options.class,
            repeatable: options.repeatable,
            one_item,
            deadline,
            sequence,
            resends: 0,
            max_resends: self.options.reconnect.max_resends,
        }
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

/// A request that may go over several connections.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    ty: MessageType,
    class: Class,
    repeatable: bool,
    one_item: bool,
    deadline: Option<Instant>,
    sequence: u64,
    resends: u32,
    max_resends: u32,
}

impl Plan {
    /// Nothing beside its type and body is to be sent or remembered.
    pub(crate) fn is_plain(&self) -> bool {
        self.sequence == 0
    }

    /// What is sent now.
    pub(crate) fn outgoing<'a>(&self, body: &'a Body<'a>) -> Outgoing<'a> {
        Outgoing {
            ty: self.ty,
            body,
            lent: false,
            prefix: self.prefix(),
            repeatable: self.repeatable,
            one_item: self.one_item,
            may_lag: false,
        }
    }

    /// What OPEN says beside type and body.
    pub(crate) fn prefix(&self) -> Option<OpenPrefix> {
        (self.sequence != 0).then(|| OpenPrefix {
            deadline_ms: self.deadline.map_or(0, |deadline| {
                let left = deadline
                    .saturating_duration_since(Instant::now())
                    .as_millis();
                u32::try_from(left).unwrap_or(u32::MAX).max(1)
            }),
            class: self.class,
            repeatable: self.repeatable,
            sequence: self.sequence,
            ..OpenPrefix::default()
        })
    }

    /// When waiting for a connection or for one's turn ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// When waiting for an answer ends, if the daemon says nothing.
    pub(crate) fn last_moment(&self) -> Option<Instant> {
        self.deadline
            .and_then(|deadline| deadline.checked_add(GRACE))
    }

    /// What becomes of a request whose stream ended so. `Ok`: send it again.
    pub(crate) fn after(&mut self, outcome: Outcome) -> Result<(), ClientError> {
        match outcome {
            Outcome::Failed(body) => Err(ClientError::Daemon(body.into())),
            Outcome::Closed => Err(ClientError::Closed),
            Outcome::Lost { safe, reason } => {
                if !safe || self.resends >= self.max_resends {
                    return Err(ClientError::OutcomeUnknown {
                        reason: reason.to_string(),
                    });
                }
                self.resends += 1;
                Ok(())
            }
        }
    }
}

impl From<Refused> for Option<ClientError> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Gone => None,
            Refused::TooLarge(most) => {
                let message = format!("at most {most} bytes are taken");
                let body = ErrorBody::new(ErrorCode::MessageTooLarge, message);
                Some(ClientError::Daemon(body.into()))
            }
        }
    }
}
