//! Waiting by leader and followers: one thread pumps for all, the others are parked until their answer is there or the
//! leader leaves. Who leads is decided in `link/lead.rs`; here is what the threads do meanwhile.

use std::cell::OnceCell;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use lapce_ai_transport::Spin;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::BlockingClient;
use crate::link::{LeadGuard, Lent, Link, QUIET, Rx, Turn, Tx};

/// How long a thread looks for more at least, in the middle of a long message: the daemon is at the other end of the ring,
/// and a sleep for each half of it would take longer than the copy.
const MIDWAY: Duration = Duration::from_micros(50);

/// Longest sleep of a thread that waits for its answer and for a full socket at once.
const WRITABLE_SLICE: Duration = Duration::from_millis(10);

impl BlockingClient {
    /// Waits on a link until `look` has what it looks for, pumping if nobody else does. `None`: the time is over.
    pub(super) fn wait<T>(
        &self,
        link: &Link,
        until: Option<Instant>,
        mut look: impl FnMut(&mut Tx, Option<&Waker>, &mut Vec<Waker>) -> Poll<T>,
    ) -> Option<T> {
        // With many requests in flight, one pump brings the answers of several.
        match link.look(|tx, wakes| look(tx, None, wakes)) {
            Poll::Ready(found) => Some(found),
            Poll::Pending => self.wait_further(link, until, None, look),
        }
    }

    /// [`wait`](Self::wait) for those who have just looked, and found nothing. `lent`: the bytes of their own request, if
    /// they lend them.
    pub(super) fn wait_further<T>(
        &self,
        link: &Link,
        until: Option<Instant>,
        mut lent: Option<Lent<'_>>,
        mut look: impl FnMut(&mut Tx, Option<&Waker>, &mut Vec<Waker>) -> Poll<T>,
    ) -> Option<T> {
        let rx = match link.try_rx() {
            Some(rx) => rx,
            None => {
                let turn = with_waker(|waker| {
                    let look = |tx: &mut Tx, wakes: &mut Vec<Waker>| {
                        if let Some(lent) = lent.take() {
                            link.keep(tx, &lent, wakes);
                        }
                        match look(tx, Some(waker), wakes) {
                            Poll::Ready(found) => Ok(found),
                            Poll::Pending => Err(tx.wants_writable()),
                        }
                    };
                    let over = || passed(until);
                    link.follow(waker, look, over, |writable| rest(link, until, writable))
                });
                match turn {
                    Turn::Found(found) => return Some(found),
                    Turn::Over => return None,
                    Turn::Lead(rx) => rx,
                }
            }
        };
        self.lead(link, rx, until, lent, &mut look)
    }

    #[inline]
    fn lead<T>(
        &self,
        link: &Link,
        mut rx: LeadGuard<'_, Rx>,
        until: Option<Instant>,
        lent: Option<Lent<'_>>,
        look: &mut impl FnMut(&mut Tx, Option<&Waker>, &mut Vec<Waker>) -> Poll<T>,
    ) -> Option<T> {
        let mut wakes = Vec::new();
        loop {
            // The answer cannot be there at once: a look at the ring costs less than a pump for nothing.
            let ready = rx.has_data() || self.spin(link, &mut rx);
            let pumped = link.pump_for(rx, lent, |tx| look(tx, None, &mut wakes));
            if !wakes.is_empty() {
                wakes.drain(..).for_each(Waker::wake);
            }
            let frames = match pumped {
                Ok(found) => return Some(found),
                Err((frames, kept)) => {
                    rx = kept;
                    frames
                }
            };
            if passed(until) {
                link.leave(rx);
                return None;
            }
            if frames > 0 || ready {
                continue;
            }
            if let Some(writable) = link.prepare_to_sleep(&mut rx) {
                let flags = if writable {
                    PollFlags::IN | PollFlags::OUT
                } else {
                    PollFlags::IN
                };
                let quiet = link.may_trim().then(|| Instant::now() + QUIET);
                let wake = until.into_iter().chain(quiet).min();
                sleep(link, flags, wake);
                link.woken(&mut rx);
                if passed(quiet) {
                    link.trim();
                }
                if writable {
                    link.write_more();
                }
            }
        }
    }

    /// Looks again and again for a while. True: there is something.
    #[inline]
    fn spin(&self, link: &Link, rx: &mut Rx) -> bool {
        if !link.shares_memory() {
            return false;
        }
        // A request that found no room in the ring waits for that too.
        let blocked = link.is_blocked();
        let mut time = self.session.options.spin;
        if blocked || rx.is_midway() {
            time = time.max(MIDWAY);
        }
        let mut spin = Spin::new(time);
        while spin.turn() {
            if rx.has_data() || (blocked && link.has_room()) {
                return true;
            }
        }
        false
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Calls `f` with this thread's waker, which is made once.
pub(super) fn with_waker<T>(f: impl FnOnce(&Waker) -> T) -> T {
    thread_local! {
        static WAKER: OnceCell<Waker> = const { OnceCell::new() };
    }
    let made = || Waker::from(Arc::new(Unpark(thread::current())));
    let mut f = Some(f);
    let kept = WAKER.try_with(|kept| f.take().map(|f| f(kept.get_or_init(made))));
    match (kept, f) {
        (Ok(Some(result)), _) => result,
        // While the thread ends there is none to keep.
        (_, Some(f)) => f(&made()),
        (_, None) => unreachable!("the closure is taken only where it is called"),
    }
}

pub(super) fn passed(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until <= Instant::now())
}

pub(super) fn park(until: Option<Instant>) {
    match until {
        None => thread::park(),
        Some(until) => thread::park_timeout(until.saturating_duration_since(Instant::now())),
    }
}

/// Sleeps while another pumps, and meanwhile looks after the socket if it has to become `writable`.
fn rest(link: &Link, until: Option<Instant>, writable: bool) {
    if writable {
        // A poll does not notice that our answer came, so it is a short one.
        let soon = Instant::now() + WRITABLE_SLICE;
        let until = until.map_or(soon, |until| until.min(soon));
        sleep(link, PollFlags::OUT, Some(until));
        link.write_more();
    } else {
        park(until);
    }
}

/// Sleeps on the link's socket. Waking without a cause does no harm, so errors are left to the next pump.
fn sleep(link: &Link, flags: PollFlags, until: Option<Instant>) {
    let left = until
        .map(|until| until.saturating_duration_since(Instant::now()))
        .and_then(|left| Timespec::try_from(left).ok());
    let socket = link.socket();
    let _ = poll(
        &mut [PollFd::new(&socket, flags | PollFlags::RDHUP)],
        left.as_ref(),
    );
}
