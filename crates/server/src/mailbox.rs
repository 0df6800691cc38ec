//! What others tell a reactor, and how they wake it.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use lapce_ai_transport::Connection;
use rustix::event::{EventfdFlags, eventfd};

use crate::line::Granted;
use crate::occupancy::Place;
use crate::postbox::{Bell, Postbox};
use crate::succession::Order;

/// One reactor, as everybody else sees it. Aligned so that two reactors write to no common cache line.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Mailbox {
    /// The reactor's number, from 0.
    pub(crate) number: usize,
    /// Requests that its connections made. Only the reactor writes it.
    pub(crate) requests: AtomicU64,
    postbox: Postbox<Letters, EventFd>,
}

/// What waits for a reactor.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// Tokens of connections to look after: to watch for room, or to notice that one broke.
    pub(crate) attention: Vec<u64>,
    /// Connections that it shall serve from now on.
    pub(crate) newcomers: Vec<Newcomer>,
    /// Requests of its connections that got their memory.
    pub(crate) granted: Vec<Granted>,
    /// What to do about the door, in this order.
    pub(crate) orders: Vec<Order>,
    /// How long to drain, once a stop has been asked for.
    pub(crate) stop: Option<Duration>,
}

/// A connection after its handshake, on its way to the reactor that serves it.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) id: u64,
    pub(crate) connection: Connection,
    /// Response bytes per stream before the first CREDIT.
    pub(crate) window: u32,
    pub(crate) place: Place,
    pub(crate) past: Past,
}

/// What there was of a connection before its reactor got it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Past {
    pub(crate) since: Instant,
    /// The highest id that was taken.
    pub(crate) last_id: u64,
    /// Requests taken.
    pub(crate) requests: u64,
}

impl Past {
    /// Of one that is new.
    pub(crate) fn none() -> Self {
        Self {
            since: Instant::now(),
            last_id: 0,
            requests: 0,
        }
    }
}

impl Mailbox {
    pub(crate) fn new(number: usize) -> Self {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Self {
            number,
            requests: AtomicU64::new(0),
            postbox: Postbox::new(EventFd(bell.ok())),
        }
    }

    /// Puts something in, and wakes the reactor unless that has been done. Once the reactor is gone nobody needs it any more:
    /// a connection that was to be handed over ends.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Letters)) {
        let _ = self.postbox.post(write);
    }

    /// Whether there is something. What was posted in this moment may be missed: then the bell is about to ring.
    #[inline]
    pub(crate) fn has_letters(&self) -> bool {
        self.postbox.has_letters()
    }

    /// Swaps what has come with `letters`, which must be empty.
    pub(crate) fn take(&self, letters: &mut Letters) {
        self.postbox.take(letters);
    }

    /// The reactor goes, with what has come by now. Nobody is sent to it any more.
    pub(crate) fn close(&self) -> Letters {
        self.postbox.close()
    }

    /// What wakes the reactor. `None`: the system had none left, and the server will not start.
    pub(crate) fn bell(&self) -> Option<&OwnedFd> {
        self.postbox.bell().0.as_ref()
    }
}

#[derive(Debug)]
struct EventFd(Option<OwnedFd>);

impl Bell for EventFd {
    fn ring(&self) {
        if let Some(bell) = &self.0 {
            // A counter that is full wakes as well.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    fn silence(&self) {
        if let Some(bell) = &self.0 {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }
}
