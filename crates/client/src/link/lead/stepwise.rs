//! A mutex whose release is a step of its own, before which others may try. Loom's (0.7.3) is let go of in one step with what
//! its holder did before, so the order of two releases is not checked; and a try that another forestalls is put off until the
//! lock is free, where it ought to fail.

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
        let taken = self
            .held
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
