//! From one daemon to the next: what is handed over, and how the door passes from one to the other.
//!
//! A server that [retires](ServerHandle::retire) takes nothing new: it stops accepting, and asks its clients to open their
//! requests elsewhere. From then on what it knows of the past is final, so it can be given away. It goes on accepting if the
//! other cannot take over, and otherwise [leaves](Retiring::leave): then it finishes what runs, and never accepts again.
//! The next server [inherits](crate::Server::inherit) that knowledge before it takes its first client.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use lapce_ai_proto::Limits;
use lapce_ai_transport::{AtRest, ClientWords, Connection, LAYOUT_VERSION, Listener, ResumeError};

use crate::mailbox::{Newcomer, Past};
use crate::repeats::{Remembered, Whose};
use crate::server::{ServerHandle, Shared};

/// What the next daemon has to know, so that it is the same life to its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// What clients know this life of the daemon by.
    pub instance: u128,
    /// The number of the latest connection; the next daemon goes on with the one after it.
    pub connections: u64,
    /// What is remembered of clients, oldest first: what they may not send again.
    pub clients: Vec<Remembered>,
}

/// Why a server does not retire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetireError {
    /// It is retiring already, or has left.
    #[error("another daemon is taking over already")]
    Busy,
    /// It stops.
    #[error("the daemon is stopping")]
    Stopping,
    /// A handler held a reactor up for too long.
    #[error("the daemon was too busy to retire in time")]
    TooSlow,
}

/// What a reactor is told about the door.
#[derive(Debug)]
pub(crate) enum Order {
    /// Take nothing new; what runs has so long. The listener is sent there once that is so.
    Retire {
        drain: Duration,
        /// Connections at rest are not sent away, but given to whoever asks.
        keep: bool,
        report: mpsc::Sender<Report>,
    },
    /// Nobody took over: go on.
    Resume,
    /// Somebody did: finish what runs within this time, and go.
    Leave { drain: Duration },
    /// Accept.
    Open,
}

/// What a reactor has when it takes nothing new. Whoever has given up waiting for it drops it, unread as it may be, and what rests
/// is served again.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listener: Arc<Listener>,
    /// Connections that it does not serve any more.
    pub(crate) resting: Vec<Newcomer>,
}

impl Drop for Report {
    fn drop(&mut self) {
        for newcomer in self.resting.drain(..) {
            self.shared.hand_out(newcomer);
        }
    }
}

/// A connection at rest, as the next server needs to know it. Its socket and its segment's descriptor go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resting {
    /// Its number.
    pub id: u64,
    /// Response bytes per stream before the first CREDIT.
    pub window: u32,
    /// The highest id that was taken.
    pub last_id: u64,
    /// Requests taken.
    pub requests: u64,
    /// How long it has been there.
    pub age: Duration,
    /// What its client said of itself.
    pub said: ClientWords,
    /// Where its rings stand.
    pub at_rest: AtRest,
}

/// What connections of a server have been told. Another one can go on with them if it says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentTerms {
    /// The version of the segments' layout.
    pub layout: u32,
    /// What a connection may do.
    pub limits: Limits,
    /// Bytes of each request ring.
    pub request_capacity: u32,
    /// Bytes of each response ring.
    pub response_capacity: u32,
}

/// A connection that cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[error("connection {id}: {source}")]
pub struct AdoptError {
    /// Its number.
    pub id: u64,
    /// Why.
    pub source: ResumeError,
}

/// Connections of another server, which this one is about to serve. Dropping it closes them here, and nothing else.
#[derive(Debug)]
pub struct Adopted {
    shared: Arc<Shared>,
    newcomers: Vec<Newcomer>,
}

/// A server that takes nothing new, and is about to be followed by another one. Dropping it lets the server go on.
#[derive(Debug)]
pub struct Retiring {
    shared: Arc<Shared>,
    /// Kept, so that no reactor that ends meanwhile removes its names.
    listener: Option<Arc<Listener>>,
    /// Connections that nobody serves for the moment.
    resting: Vec<Newcomer>,
    /// Another server follows.
    followed: bool,
}

impl ServerHandle {
    /// Has the server take nothing new until it is decided whether another one follows: newcomers wait in the listener's
    /// backlog, clients hear GOAWAY, and what runs has `drain`. With `keep`, clients on whose connections nothing runs hear
    /// nothing: those [can be given](Retiring::resting) to the other one, if their segments were
    /// [kept](crate::Options::keep_segments). Blocks for as long as the reactors take to do so, until
    /// `deadline` at most.
    ///
    /// # Errors
    /// See [`RetireError`]; the server goes on then.
    pub fn retire(
        &self,
        drain: Duration,
        keep: bool,
        deadline: Instant,
    ) -> Result<(Legacy, Retiring), RetireError> {
        let shared = &self.shared;
        if shared.retiring.swap(true, Ordering::AcqRel) {
            return Err(RetireError::Busy);
        }
        // Before the other: what comes too late is served again behind the word that all goes on.
        let (report, reports) = mpsc::channel();
        let mut retiring = Retiring {
            shared: Arc::clone(shared),
            listener: None,
            resting: Vec::new(),
            followed: false,
        };
        for mailbox in &shared.mailboxes {
            let report = report.clone();
            mailbox.post(|letters| {
                letters.orders.push(Order::Retire {
                    drain,
                    keep,
                    report,
                });
            });
        }
        drop(report);
        for _ in &shared.mailboxes {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut report = reports.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => RetireError::TooSlow,
                RecvTimeoutError::Disconnected => RetireError::Stopping,
            })?;
            retiring.listener = Some(Arc::clone(&report.listener));
            retiring.resting.append(&mut report.resting);
        }
        if retiring.is_stopping() {
            return Err(RetireError::Stopping);
        }
        let legacy = Legacy {
            instance: shared.instance(),
            connections: shared.accepted.load(Ordering::Acquire),
            clients: shared.repeats.export(Instant::now()),
        };
        Ok((legacy, retiring))
    }

    /// What connections here have been told.
    pub fn segment_terms(&self) -> SegmentTerms {
        let options = &self.shared.options;
        SegmentTerms {
            layout: LAYOUT_VERSION,
            limits: options.limits,
            request_capacity: options.request_capacity,
            response_capacity: options.response_capacity,
        }
    }

    /// Takes over connections of another server of the same [terms](Self::segment_terms), which serves them no more; each with its socket and its segment. They are
    /// checked here, and touched only by [`Adopted::serve`]. Those of users who may not use this server are left out.
    ///
    /// # Errors
    /// The first one that cannot be gone on with; none is taken then.
    pub fn adopt(
        &self,
        resting: impl IntoIterator<Item = (Resting, [OwnedFd; 2])>,
    ) -> Result<Adopted, AdoptError> {
        let shared = &self.shared;
        let terms = shared.options.terms(shared.instance());
        let mut adopted = Adopted {
            shared: Arc::clone(shared),
            newcomers: Vec::new(),
        };
        for (resting, [socket, segment]) in resting {
            let Resting {
                id,
                window,
                last_id,
                requests,
                age,
                said,
                at_rest,
            } = resting;
            let connection = Connection::resume(socket, segment, &terms, &at_rest, said)
                .map_err(|source| AdoptError { id, source })?;
            if !shared.options.serves(connection.peer.credentials.uid) {
                continue;
            }
            let whose = Whose {
                uid: connection.peer.credentials.uid,
                instance: connection.peer.instance,
            };
            shared.repeats.on_its_way(whose, last_id);
            // However many there may be: they are there.
            let Ok(mut place) = shared.occupancy.enter(usize::MAX) else {
                continue;
            };
            place.settle();
            let now = Instant::now();
            adopted.newcomers.push(Newcomer {
                id,
                connection,
                window: window.clamp(1, i32::MAX as u32),
                place,
                past: Past {
                    since: now.checked_sub(age).unwrap_or(now),
                    last_id,
                    requests,
                },
            });
        }
        Ok(adopted)
    }

    /// Lets a server that was started [behind a closed door](crate::Server::start_closed) accept clients.
    pub fn open(&self) {
        self.shared.opened.store(true, Ordering::Release);
        for mailbox in &self.shared.mailboxes {
            mailbox.post(|letters| letters.orders.push(Order::Open));
        }
    }
}

impl Adopted {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.newcomers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.newcomers.is_empty()
    }

    /// Serves them from now on.
    pub fn serve(self) {
        for newcomer in self.newcomers {
            self.shared.hand_out(newcomer);
        }
    }
}

impl Retiring {
    /// The connections at rest, each with its socket and its segment. While this is there nobody serves them.
    pub fn resting(&self) -> impl Iterator<Item = (Resting, [BorrowedFd<'_>; 2])> {
        self.resting.iter().filter_map(|newcomer| {
            let Newcomer {
                id,
                connection,
                window,
                past,
                ..
            } = newcomer;
            let resting = Resting {
                id: *id,
                window: *window,
                last_id: past.last_id,
                requests: past.requests,
                age: past.since.elapsed(),
                said: ClientWords {
                    name: connection.peer.name.clone(),
                    instance: connection.peer.instance,
                    earlier: connection.peer.earlier,
                },
                at_rest: connection.at_rest()?,
            };
            Some((resting, connection.descriptors()?))
        })
    }

    /// Where newcomers wait.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_deref()
    }

    /// Whether the server has been told to stop meanwhile: then nobody should follow.
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Another server accepts from now on. This one finishes what runs, within `drain`, and ends; the names of socket and
    /// lock stay, since they are the other's.
    pub fn leave(mut self, drain: Duration) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(|letters| letters.orders.push(Order::Leave { drain }));
        }
        self.followed = true;
    }
}

impl Drop for Retiring {
    fn drop(&mut self) {
        if self.followed {
            // It never retires again.
            return;
        }
        for mailbox in &self.shared.mailboxes {
            mailbox.post(|letters| letters.orders.push(Order::Resume));
        }
        for newcomer in self.resting.drain(..) {
            self.shared.hand_out(newcomer);
        }
        // Told to stop meanwhile, all reactors may be gone.
        if let Some(listener) = self.listener.take().and_then(Arc::into_inner)
            && let Err(error) = listener.remove()
        {
            tracing::warn!(%error, "could not remove the socket or its lock");
        }
        self.shared.retiring.store(false, Ordering::Release);
    }
}
