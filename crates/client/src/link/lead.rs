//! Leader and followers: of those who wait for answers one holds `rx` and pumps for all, the leader. The others sleep until
//! their answer is there, or until the leader leaves and one of them has to lead. Checked with loom: see `lead/models.rs`.
//!
//! No wake-up is lost, because
//! - a follower joins under `tx` before it tries `rx` once more, and who leaves lets go of `rx` while it holds `tx`: either
//!   the leaver sees the newcomer, or the newcomer finds `rx` free;
//! - who leaves wakes one follower, and that is enough: it leads, or it has nothing more to wait for and wakes the next.

#[cfg(all(test, client_loom))]
mod models;
#[cfg(client_loom)]
mod stepwise;

#[cfg(client_loom)]
use loom::sync::Mutex;
#[cfg(client_loom)]
pub(super) use loom::sync::MutexGuard as TxGuard;
#[cfg(not(client_loom))]
use std::sync::Mutex;
#[cfg(not(client_loom))]
pub(super) use std::sync::MutexGuard as TxGuard;
use std::sync::{PoisonError, TryLockError};
use std::task::{Poll, Waker};

#[cfg(client_loom)]
pub(crate) use self::stepwise::Guard as LeadGuard;
#[cfg(client_loom)]
use self::stepwise::Mutex as LeadMutex;
#[cfg(not(client_loom))]
use std::sync::Mutex as LeadMutex;
#[cfg(not(client_loom))]
pub(crate) use std::sync::MutexGuard as LeadGuard;

/// What the leader holds.
pub(crate) trait Leading {
    /// Those for whom something came. They are woken when no lock is held that they need.
    fn wakes(&mut self) -> &mut Vec<Waker>;
}

/// What all share.
pub(crate) trait Shared {
    fn followers(&mut self) -> &mut Followers;
}

/// Those who wait while another leads, each with its waker.
#[derive(Debug, Default)]
pub(crate) struct Followers(Vec<Waker>);

impl Followers {
    pub(super) fn all(&self) -> impl Iterator<Item = Waker> {
        self.0.iter().cloned()
    }

    fn join(&mut self, waker: &Waker) {
        self.0.push(waker.clone());
    }

    fn quit(&mut self, waker: &Waker) {
        if let Some(at) = self.0.iter().position(|other| other.will_wake(waker)) {
            self.0.swap_remove(at);
        }
    }
}

/// How following ends.
pub(crate) enum Turn<'a, R, F> {
    Found(F),
    /// The time is over, and nothing was found.
    Over,
    /// Nobody leads: it is the caller who does now.
    Lead(LeadGuard<'a, R>),
}

/// The two locks, and who holds which when.
#[derive(Debug)]
pub(crate) struct Leadership<R, T> {
    tx: Mutex<T>,
    rx: LeadMutex<R>,
}

impl<R: Leading, T: Shared> Leadership<R, T> {
    pub(super) fn new(rx: R, tx: T) -> Self {
        Self {
            tx: Mutex::new(tx),
            rx: LeadMutex::new(rx),
        }
    }

    // Every step leaves the state whole, so a panic elsewhere does not spoil it.
    #[inline]
    pub(super) fn tx(&self) -> TxGuard<'_, T> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads, once nobody else does.
    pub(super) fn rx(&self) -> LeadGuard<'_, R> {
        self.rx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads, if nobody else does.
    #[inline]
    pub(super) fn try_rx(&self) -> Option<LeadGuard<'_, R>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Takes in for all by `pump`, which says whether the leader's own is there. If it is, the leader leaves, else `rx`
    /// comes back. Those for whom something came are woken.
    #[inline]
    pub(super) fn lead<'a, F>(
        &self,
        mut rx: LeadGuard<'a, R>,
        pump: impl FnOnce(&mut R, &mut T) -> Poll<F>,
    ) -> Result<F, LeadGuard<'a, R>> {
        let mut tx = self.tx();
        match pump(&mut rx, &mut tx) {
            Poll::Ready(found) => {
                self.leave_locked(tx, rx);
                Ok(found)
            }
            Poll::Pending => {
                drop(tx);
                wake_all(rx.wakes());
                Err(rx)
            }
        }
    }

    /// Leads no more, and wakes one of those who wait.
    pub(super) fn leave(&self, rx: LeadGuard<'_, R>) {
        self.leave_locked(self.tx(), rx);
    }

    #[inline]
    fn leave_locked(&self, mut tx: TxGuard<'_, T>, mut rx: LeadGuard<'_, R>) {
        let first = tx.followers().0.first();
        if rx.wakes().is_empty() && first.is_none() {
            drop(rx);
            drop(tx);
            return;
        }
        // They are called outside of the locks.
        let mut wakes = std::mem::take(rx.wakes());
        wakes.extend(first.cloned());
        drop(rx);
        drop(tx);
        wake_all(&mut wakes);
    }

    /// For those who have just found another leading: waits with the others until `look` finds something, the time is
    /// `over`, or nobody leads. `look` says otherwise how to `sleep`, which must end soon after `waker` is called, and may
    /// end without a cause. What `look` gives to be woken is woken without the lock.
    pub(super) fn follow<F, S>(
        &self,
        waker: &Waker,
        mut look: impl FnMut(&mut T, &mut Vec<Waker>) -> Result<F, S>,
        over: impl Fn() -> bool,
        sleep: impl Fn(S),
    ) -> Turn<'_, R, F> {
        let mut wakes = Vec::new();
        let mut joined = false;
        loop {
            // Before the look: what came in time is found.
            let over = over();
            let mut tx = self.tx();
            let looked = look(&mut tx, &mut wakes);
            let stays = looked.is_err() && !over;
            if stays && !joined {
                tx.followers().join(waker);
            } else if joined && !stays {
                tx.followers().quit(waker);
            }
            drop(tx);
            wake_all(&mut wakes);
            let how = match looked {
                Err(how) if stays => how,
                looked => {
                    // We may have been woken to lead, and go away instead.
                    if joined {
                        self.promote();
                    }
                    return looked.map_or(Turn::Over, Turn::Found);
                }
            };
            joined = true;
            // The leader may have left before we joined those whom it would have woken, or has woken us to lead.
            if let Some(rx) = self.try_rx() {
                self.tx().followers().quit(waker);
                return Turn::Lead(rx);
            }
            sleep(how);
        }
    }

    /// Wakes one of those who wait, if nobody leads.
    fn promote(&self) {
        if let Some(rx) = self.try_rx() {
            self.leave(rx);
        }
    }
}

pub(super) fn wake_all(wakes: &mut Vec<Waker>) {
    for waker in wakes.drain(..) {
        waker.wake();
    }
}
