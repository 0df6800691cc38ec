//! From one daemon to the next: what is handed over, and how the door passes from one to the other.
//!
//! A server that [retires](ServerHandle::retire) takes nothing new: it stops accepting, and asks its clients to open their
//! requests elsewhere. From then on what it knows of the past is final, so it can be given away. It goes on accepting if the
//! other cannot take over, and otherwise [leaves](Retiring::leave): then it finishes what runs, and never accepts again.
//! The next server [inherits](crate::Server::inherit) that knowledge before it takes its first client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use lapce_ai_transport::Listener;

use crate::repeats::Remembered;
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
        report: mpsc::Sender<Arc<Listener>>,
    },
    /// Nobody took over: go on.
    Resume,
    /// Somebody did: finish what runs within this time, and go.
    Leave { drain: Duration },
    /// Accept.
    Open,
}

/// A server that takes nothing new, and is about to be followed by another one. Dropping it lets the server go on.
#[derive(Debug)]
pub struct Retiring {
    shared: Arc<Shared>,
    /// Kept, so that no reactor that ends meanwhile removes its names.
    listener: Option<Arc<Listener>>,
    /// Another server follows.
    followed: bool,
}

impl ServerHandle {
    /// Has the server take nothing new until it is decided whether another one follows: newcomers wait in the listener's
    /// backlog, clients hear GOAWAY, and what runs has `drain`. Blocks for as long as the reactors take to do so, until
    /// `deadline` at most.
    ///
    /// # Errors
    /// See [`RetireError`]; the server goes on then.
    pub fn retire(
        &self,
        drain: Duration,
        deadline: Instant,
    ) -> Result<(Legacy, Retiring), RetireError> {
        let shared = &self.shared;
        if shared.retiring.swap(true, Ordering::AcqRel) {
            return Err(RetireError::Busy);
        }
        let mut retiring = Retiring {
            shared: Arc::clone(shared),
            listener: None,
            followed: false,
        };
        let (report, reports) = mpsc::channel();
        for mailbox in &shared.mailboxes {
            let report = report.clone();
            mailbox.post(|letters| letters.orders.push(Order::Retire { drain, report }));
        }
        drop(report);
        for _ in &shared.mailboxes {
            let left = deadline.saturating_duration_since(Instant::now());
            let listener = reports.recv_timeout(left).map_err(|error| match error {
                RecvTimeoutError::Timeout => RetireError::TooSlow,
                RecvTimeoutError::Disconnected => RetireError::Stopping,
            })?;
            retiring.listener = Some(listener);
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

    /// Lets a server that was started [behind a closed door](crate::Server::start_closed) accept clients.
    pub fn open(&self) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(|letters| letters.orders.push(Order::Open));
        }
    }
}

impl Retiring {
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
        // Told to stop meanwhile, all reactors may be gone.
        if let Some(listener) = self.listener.take().and_then(Arc::into_inner)
            && let Err(error) = listener.remove()
        {
            tracing::warn!(%error, "could not remove the socket or its lock");
        }
        self.shared.retiring.store(false, Ordering::Release);
    }
}
