//! Every interleaving, within the bound on preemptions, of two or three threads that wait.
//!
//! ```text
//! RUSTFLAGS="--cfg client_loom" cargo test -p lapce-ai-client --lib lead::models
//! ```

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
