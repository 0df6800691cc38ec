//! What others tell a reactor, and how they wake it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_transport::Connection;
use rustix::event::{EventfdFlags, eventfd};

use crate::line::Granted;
use crate::occupancy::Place;
use crate::succession::Order;

/// One reactor, as everybody else sees it. Aligned so that two reactors write to no common cache line.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Mailbox {
    /// The reactor's number, from 0.
    pub(crate) number: usize,
    /// Requests that its connections made. Only the reactor writes it.
    pub(crate) requests: AtomicU64,
    inside: Mutex<Inside>,
    /// There are letters, and the bell has been rung for them. Changed under the lock only; the reactor glances at it
    /// between two batches.
    rung: AtomicBool,
    /// `None`: the system had none left, and the server will not start.
    bell: Option<OwnedFd>,
}

#[derive(Debug, Default)]
struct Inside {
    letters: Letters,
    /// The reactor is gone.
    closed: bool,
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
        Self {
            number,
            requests: AtomicU64::new(0),
            inside: Mutex::default(),
            rung: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
        }
    }

    /// Puts something in, and wakes the reactor unless that has been done.
    pub(crate) fn post(&self, write: impl FnOnce(&mut Letters)) {
        self.change(|inside| write(&mut inside.letters));
    }

    /// Hands a connection over. If the reactor is gone, the connection ends.
    pub(crate) fn hand_over(&self, newcomer: Newcomer) {
        let mut newcomer = Some(newcomer);
        self.change(|inside| {
            if !inside.closed {
                inside.letters.newcomers.extend(newcomer.take());
            }
        });
    }

    /// Tells the reactor what to do about the door. If it is gone, nobody does it.
    pub(crate) fn order(&self, order: Order) {
        let mut order = Some(order);
        self.change(|inside| {
            if !inside.closed {
                inside.letters.orders.extend(order.take());
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inside)) {
        let mut inside = self.lock();
        change(&mut inside);
        let rung = self.rung.swap(true, Ordering::Relaxed);
        drop(inside);
        if !rung && let Some(bell) = &self.bell {
            // A counter that is full wakes as well.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// Whether there is something. What was posted in this moment may be missed: then the bell is about to ring.
    #[inline]
    pub(crate) fn has_letters(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Swaps what has come with `letters`, which must be empty.
    pub(crate) fn take(&self, letters: &mut Letters) {
        if let Some(bell) = &self.bell {
            // Before the look: whoever posts after it rings again.
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        let mut inside = self.lock();
        self.rung.store(false, Ordering::Relaxed);
        std::mem::swap(&mut inside.letters, letters);
    }

    /// The reactor goes, with what has come by now. Nobody is sent to it any more.
    pub(crate) fn close(&self) -> Letters {
        let mut inside = self.lock();
        inside.closed = true;
        std::mem::take(&mut inside.letters)
    }

    /// What wakes the reactor.
    pub(crate) fn bell(&self) -> Option<&OwnedFd> {
        self.bell.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
