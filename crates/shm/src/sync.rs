//! The atomics that the ring runs on: those of the core library, or loom's under `cfg(ring_loom)`.

#[cfg(not(ring_loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(not(ring_loom))]
pub(crate) use core::sync::atomic::{Ordering, fence};

#[cfg(ring_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(ring_loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};
