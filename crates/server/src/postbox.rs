//! Letters from many threads to one that sleeps until a bell rings. Checked with loom: see the end.

#[cfg(server_loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(server_loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(server_loom))]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(server_loom))]
use std::sync::{Mutex, MutexGuard};

/// What wakes the reader. Once rung it stays so until it is silenced.
pub(crate) trait Bell {
    /// From any thread.
    fn ring(&self);
    /// By the reader.
    fn silence(&self);
}

/// The letters, what guards them, and the bell.
#[derive(Debug)]
pub(crate) struct Postbox<L, B> {
    inside: Mutex<Inside<L>>,
    /// There are letters, and the bell has been rung for them. Changed under the lock only; the reader glances at it between
    /// two batches.
    rung: AtomicBool,
    bell: B,
}

#[derive(Debug, Default)]
struct Inside<L> {
    letters: L,
    /// The reader is gone.
    closed: bool,
}

impl<L: Default, B: Bell> Postbox<L, B> {
    pub(crate) fn new(bell: B) -> Self {
        Self {
            inside: Mutex::new(Inside::default()),
            rung: AtomicBool::new(false),
            bell,
        }
    }

    /// Puts something in, and wakes the reader unless that has been done. False: the reader is gone, and `write` was not
    /// called.
    pub(crate) fn post(&self, write: impl FnOnce(&mut L)) -> bool {
        let mut inside = self.lock();
        if inside.closed {
            return false;
        }
        write(&mut inside.letters);
        let rung = self.rung.swap(true, Ordering::Relaxed);
        drop(inside);
        if !rung {
            self.bell.ring();
        }
        true
    }

    /// Whether there is something. What was posted in this moment may be missed: then the bell is about to ring.
    #[inline]
    pub(crate) fn has_letters(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Swaps what has come with `letters`, which must be empty.
    pub(crate) fn take(&self, letters: &mut L) {
        // Before the look: whoever posts after it rings again.
        self.bell.silence();
        let mut inside = self.lock();
        self.rung.store(false, Ordering::Relaxed);
        std::mem::swap(&mut inside.letters, letters);
    }

    /// The reader goes, with what has come by now. Nothing is taken in any more.
    pub(crate) fn close(&self) -> L {
        let mut inside = self.lock();
        inside.closed = true;
        std::mem::take(&mut inside.letters)
    }

    pub(crate) fn bell(&self) -> &B {
        &self.bell
    }

    fn lock(&self) -> MutexGuard<'_, Inside<L>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every interleaving of small exchanges.
///
/// ```text
/// RUSTFLAGS="--cfg server_loom" cargo test -p lapce-ai-server --lib postbox::models
/// ```
#[cfg(all(test, server_loom))]
mod models {
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    /// An eventfd and who polls it.
    #[derive(Debug, Default)]
    struct Counter {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell for Counter {
        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }

        fn silence(&self) {
            *self.rung.lock().unwrap() = false;
        }
    }

    impl Counter {
        fn sleep(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
        }
    }

    type Box = Postbox<Vec<u8>, Counter>;

    fn post_in_a_thread(postbox: &Arc<Box>, letters: &'static [u8]) -> thread::JoinHandle<usize> {
        let postbox = Arc::clone(postbox);
        thread::spawn(move || {
            let taken = letters.iter();
            taken
                .filter(|letter| postbox.post(|letters| letters.push(**letter)))
                .count()
        })
    }

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(4));
        builder.check(model);
    }

    /// A reader that sleeps whenever it has nothing gets all, each once, and is never left asleep: loom calls that a deadlock.
    #[test]
    fn nothing_is_lost_and_nobody_sleeps_on() {
        check(|| {
            let postbox = Arc::new(Box::new(Counter::default()));
            let posters = [
                post_in_a_thread(&postbox, &[1, 2]),
                post_in_a_thread(&postbox, &[3]),
            ];
            let (mut all, mut letters) = (Vec::new(), Vec::new());
            while all.len() < 3 {
                postbox.bell().sleep();
                postbox.take(&mut letters);
                all.append(&mut letters);
            }
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3]);
            assert_eq!(posters.map(|poster| poster.join().unwrap()), [2, 1]);
        });
    }

    /// The same for one that glances between two batches, and sleeps only when it saw nothing.
    #[test]
    fn a_glance_may_miss_a_letter_but_the_sleep_does_not() {
        check(|| {
            let postbox = Arc::new(Box::new(Counter::default()));
            let poster = post_in_a_thread(&postbox, &[1, 2]);
            let (mut all, mut letters) = (Vec::new(), Vec::new());
            while all.len() < 2 {
                if !postbox.has_letters() {
                    postbox.bell().sleep();
                }
                postbox.take(&mut letters);
                all.append(&mut letters);
            }
            assert_eq!(all, [1, 2], "in their order");
            poster.join().unwrap();
        });
    }

    /// What was taken in has a reader: one that goes leaves nothing behind, and what comes later is refused.
    #[test]
    fn what_is_not_read_is_refused() {
        check(|| {
            let postbox = Arc::new(Box::new(Counter::default()));
            let posters = [
                post_in_a_thread(&postbox, &[1, 2]),
                post_in_a_thread(&postbox, &[3]),
            ];
            let mut letters = Vec::new();
            postbox.take(&mut letters);
            let read = letters.len() + postbox.close().len();
            let taken_in = posters.map(|poster| poster.join().unwrap());
            assert_eq!(taken_in.iter().sum::<usize>(), read);
            assert!(!postbox.post(|_| unreachable!("it is closed")));
        });
    }
}
