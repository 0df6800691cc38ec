//! Leader and followers: of those who wait for answers one holds `rx` and pumps for all, the leader. The others sleep until
//! their answer is there, or until the leader leaves and one of them has to lead. Checked with loom: see the end.
//!
//! No wake-up is lost, because
//! - a follower joins under `tx` before it tries `rx` once more, and who leaves lets go of `rx` while it holds `tx`: either
//!   the leaver sees the newcomer, or the newcomer finds `rx` free;
//! - who leaves wakes one follower, and that is enough: it leads, or it has nothing more to wait for and wakes the next.

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

/// A mutex whose release is a step of its own, before which others may try. Loom's (0.7.3) is let go of in one step with what
/// its holder did before, so the order of two releases is not checked; and a try that another forestalls is put off until the
/// lock is free, where it ought to fail.
#[cfg(client_loom)]
mod stepwise {
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, TryLockError, TryLockResult};

    use loom::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T> {
        held: AtomicBool,
        /// Taken by none but who has set `held`.
        inside: std::sync::Mutex<T>,
    }

    #[derive(Debug)]
    pub(crate) struct Guard<'a, T> {
        held: &'a AtomicBool,
        /// There until the drop.
        inside: Option<std::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(super) fn new(inside: T) -> Self {
            Self {
                held: AtomicBool::new(false),
                inside: std::sync::Mutex::new(inside),
            }
        }

        /// With the orderings of the standard library's.
        pub(super) fn try_lock(&self) -> TryLockResult<Guard<'_, T>> {
            let taken =
                self.held
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_err() {
                return Err(TryLockError::WouldBlock);
            }
            let held = &self.held;
            let guard = |inside| Guard {
                held,
                inside: Some(inside),
            };
            Ok(self
                .inside
                .lock()
                .map_or_else(|e| guard(e.into_inner()), guard))
        }

        pub(super) fn lock(&self) -> LockResult<Guard<'_, T>> {
            loop {
                if let Ok(guard) = self.try_lock() {
                    return Ok(guard);
                }
                loom::thread::yield_now();
            }
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match &self.inside {
                Some(inside) => inside,
                None => unreachable!("it is there until the drop"),
            }
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match &mut self.inside {
                Some(inside) => inside,
                None => unreachable!("it is there until the drop"),
            }
        }
    }

    impl<T> Drop for Guard<'_, T> {
        fn drop(&mut self) {
            self.inside = None;
            // A model that has failed has no more steps.
            if !std::thread::panicking() {
                self.held.store(false, Ordering::Release);
            }
        }
    }
}

/// Every interleaving, within the bound on preemptions, of two or three threads that wait.
///
/// ```text
/// RUSTFLAGS="--cfg client_loom" cargo test -p lapce-ai-client --lib lead::models
/// ```
#[cfg(all(test, client_loom))]
mod models {
    use std::cell::Cell;
    use std::collections::VecDeque;
    // Loom's would be another step at each drop, which a model that has failed does not survive.
    use std::sync::Arc;
    use std::task::Wake;

    use loom::sync::Condvar;
    use loom::thread;

    use super::*;

    /// Something that happens once or again, and who sleeps until it does: a thread's parking, or the end of one.
    #[derive(Debug, Default)]
    struct Signal {
        given: Mutex<bool>,
        changed: Condvar,
    }

    impl Signal {
        fn give(&self) {
            *self.given.lock().unwrap() = true;
            self.changed.notify_one();
        }

        fn take(&self) {
            let mut given = self.given.lock().unwrap();
            while !*given {
                given = self.changed.wait(given).unwrap();
            }
            *given = false;
        }
    }

    impl Wake for Signal {
        fn wake(self: Arc<Self>) {
            self.give();
        }
    }

    /// What one pump brings: the answers of these. It comes once that thread is done.
    #[derive(Debug, Clone, Copy)]
    struct Batch(&'static [usize], Option<usize>);

    #[derive(Debug)]
    struct Rx {
        wakes: Vec<Waker>,
        coming: VecDeque<Batch>,
    }

    impl Leading for Rx {
        fn wakes(&mut self) -> &mut Vec<Waker> {
            &mut self.wakes
        }
    }

    #[derive(Debug, Default)]
    struct Tx {
        followers: Followers,
        answered: [bool; 4],
        waiting: [Option<Waker>; 4],
    }

    impl Shared for Tx {
        fn followers(&mut self) -> &mut Followers {
            &mut self.followers
        }
    }

    impl Tx {
        fn look(&mut self, who: usize, waker: Option<&Waker>) -> Poll<()> {
            if self.answered[who] {
                return Poll::Ready(());
            }
            if let Some(waker) = waker {
                self.waiting[who] = Some(waker.clone());
            }
            Poll::Pending
        }
    }

    #[derive(Debug)]
    struct Link {
        lead: Leadership<Rx, Tx>,
        done: [Signal; 3],
    }

    /// How a thread waits.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Until {
        Answered,
        /// The first sleep as a follower ends without a cause.
        Restless,
        /// Gives up after one pump, and as a follower instead of sleeping.
        Soon,
        /// Gives up after one pump, and as a follower when it has been woken.
        Woken,
    }

    impl Until {
        fn may_give_up(self) -> bool {
            matches!(self, Self::Soon | Self::Woken)
        }
    }

    impl Link {
        fn new(coming: &[Batch]) -> Arc<Self> {
            let rx = Rx {
                wakes: Vec::new(),
                coming: coming.iter().copied().collect(),
            };
            Arc::new(Self {
                lead: Leadership::new(rx, Tx::default()),
                done: [Signal::default(), Signal::default(), Signal::default()],
            })
        }

        /// Whether the answer came.
        fn wait(&self, who: usize, until: Until) -> bool {
            let found = self.wait_until(who, until);
            self.done[who].give();
            found
        }

        fn wait_until(&self, who: usize, until: Until) -> bool {
            let turn = match self.lead.try_rx() {
                Some(rx) => Turn::Lead(rx),
                None => self.follow(who, until),
            };
            let mut rx = match turn {
                Turn::Found(()) => return true,
                Turn::Over => return false,
                Turn::Lead(rx) => rx,
            };
            loop {
                let pumped = self.lead.lead(rx, |rx, tx| {
                    let there = rx.coming.pop_front_if(|batch| batch.1.is_none());
                    for answer in there.map_or(&[][..], |batch| batch.0) {
                        tx.answered[*answer] = true;
                        rx.wakes.extend(tx.waiting[*answer].take());
                    }
                    tx.look(who, None)
                });
                match pumped {
                    Ok(()) => return true,
                    Err(kept) if until.may_give_up() => {
                        self.lead.leave(kept);
                        return false;
                    }
                    Err(kept) => rx = kept,
                }
                // As on the socket.
                if let Some(Batch(_, after)) = rx.coming.front_mut()
                    && let Some(after) = after.take()
                {
                    self.done[after].take();
                }
            }
        }

        fn follow(&self, who: usize, until: Until) -> Turn<'_, Rx, ()> {
            let parked = Arc::new(Signal::default());
            let waker = Waker::from(Arc::clone(&parked));
            let slept = Cell::new(false);
            self.lead.follow(
                &waker,
                |tx, _| match tx.look(who, Some(&waker)) {
                    Poll::Ready(()) => Ok(()),
                    Poll::Pending => Err(()),
                },
                || until.may_give_up() && slept.get(),
                |()| {
                    let first = !slept.replace(true);
                    if until != Until::Soon && !(first && until == Until::Restless) {
                        parked.take();
                    }
                },
            )
        }
    }

    /// Thread 0 is the model's own. Whether each got its answer.
    fn all_wait<const N: usize>(coming: &[Batch], until: [Until; N]) -> [bool; N] {
        let link = Link::new(coming);
        let others: Vec<_> = (1..N)
            .map(|who| {
                let link = Arc::clone(&link);
                thread::spawn(move || link.wait(who, until[who]))
            })
            .collect();
        let mut found = [link.wait(0, until[0]); N];
        for (found, other) in found[1..].iter_mut().zip(others) {
            *found = other.join().unwrap();
        }
        assert_eq!(link.lead.tx().followers.0.len(), 0, "nobody is left behind");
        assert!(link.lead.try_rx().is_some(), "nobody leads");
        found
    }

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
        builder.check(model);
    }

    /// Answers come in either order, one a pump: both get theirs, and nobody is left asleep, which loom calls a deadlock.
    #[test]
    fn whoever_waits_gets_its_answer() {
        for coming in [
            [Batch(&[0], None), Batch(&[1], None)],
            [Batch(&[1], None), Batch(&[0], None)],
        ] {
            for until in [Until::Answered, Until::Restless] {
                check(5, move || {
                    assert_eq!(all_wait(&coming, [Until::Answered, until]), [true; 2]);
                });
            }
        }
    }

    /// The leader gives up while another joins: the other takes over, and its answer is not lost.
    #[test]
    fn a_leader_that_gives_up_is_followed() {
        check(5, || {
            let coming = [Batch(&[3], None), Batch(&[1], None)];
            let found = all_wait(&coming, [Until::Soon, Until::Answered]);
            assert_eq!(found, [false, true]);
        });
    }

    /// One gives up that may have been woken to lead: the wake goes on to the next.
    #[test]
    fn who_gives_up_passes_the_wake_on() {
        for until in [Until::Soon, Until::Woken] {
            check(3, move || {
                let coming = [Batch(&[0], None), Batch(&[2], None)];
                let found = all_wait(&coming, [Until::Answered, until, Until::Answered]);
                assert_eq!(found, [true, false, true]);
            });
        }
    }

    /// One finds its answer that may have been woken to lead: the wake goes on to the next.
    #[test]
    fn who_finds_its_answer_passes_the_wake_on() {
        check(3, || {
            let coming = [Batch(&[0, 1], None), Batch(&[2], None)];
            assert_eq!(all_wait(&coming, [Until::Answered; 3]), [true; 3]);
        });
    }

    /// The leader has long to wait for its own answer: the others get theirs meanwhile.
    #[test]
    fn a_leader_that_stays_wakes_whom_it_pumped_for() {
        check(5, || {
            let coming = [Batch(&[1], None), Batch(&[0], Some(1))];
            assert_eq!(all_wait(&coming, [Until::Answered; 2]), [true; 2]);
        });
    }

    /// The next leader may have as long to wait, so whose answer came with the last leader's own is not left to it.
    #[test]
    fn a_leader_that_leaves_wakes_whom_it_pumped_for() {
        check(3, || {
            let coming = [Batch(&[0, 2], None), Batch(&[1], Some(2))];
            assert_eq!(all_wait(&coming, [Until::Answered; 3]), [true; 3]);
        });
    }
}
