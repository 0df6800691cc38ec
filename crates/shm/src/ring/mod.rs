//! The byte ring between one producer and one consumer that do not trust each other.
//!
//! Positions are `u64` counts of bytes that only grow; a byte's place is its position modulo the
//! capacity. Each side keeps its own position privately, reads the other's word once, checks it,
//! and only then uses it. Nothing that a peer writes into the control words can make the other
//! side read or write outside the ring: offsets come from private positions alone.
//!
//! # The restart rule
//!
//! A ring that runs empty goes back to its first page, so that an idle or lightly used connection
//! keeps one page in use instead of walking over all of them. When a push would enter a new page
//! beyond the first, and the producer, having just read `head`, sees that everything published has
//! been released and nothing is unpublished, it jumps: `restart` becomes the tail rounded up to the
//! next multiple of the capacity, and the positions between the old tail and `restart` do not
//! exist. It stores `restart` (Relaxed) before it publishes the new `tail` (Release).
//!
//! **One word is enough.** Let a jump happen at tail `a` and go to `r`, and let the next one go to
//! `r2`.
//!
//! 1. When the jump to `r` is made the consumer has released, and so consumed, everything up to
//!    `a`: its position is exactly `a`, and the tail it last saw is `a`.
//! 2. The jump to `r2` is made only when the released position equals the tail. If nothing was
//!    published since the first jump, the tail is `r`, a multiple of the capacity, from where no
//!    jump is made. So something was: the tail is beyond `r`, and the consumer has released bytes
//!    beyond `r`. To do that it read a tail beyond `r`, saw `restart`, and followed it.
//! 3. So between the stores of `r` and of `r2` lies the consumer's step over the gap of `r`: it
//!    can never miss `r`, and it can never meet `r2` before it has finished with `r`.
//! 4. The Acquire load of a tail beyond `r` happens after the store of `r`, so the Relaxed load of
//!    `restart` behind it yields `r` or something newer; by 3 it is not newer. And while the
//!    consumer holds a tail without a jump before it, `restart` is at most its own position: the
//!    next jump needs those bytes released first.
//!
//! Hence for the consumer, having read a tail other than the last one: `restart` beyond its own
//! position means exactly one gap, directly at its position; anything else there is a fault.
//!
//! # Sleep and wake
//!
//! Whoever wants to sleep stores its wish, fences (`SeqCst`), and looks at the other's position
//! again. Whoever moves a position stores it, fences, and looks for a wish. Of the two looks at
//! least one sees the other's store, so a wake-up cannot be lost. Taking the wish with a compare
//! and exchange means one bell for one sleep.

mod consumer;
mod producer;
mod storage;

pub use consumer::Consumer;
pub use producer::{Producer, ProducerPosition};
#[cfg(not(ring_loom))]
pub use storage::MappedRing;
pub use storage::{
    ConsumerLine, DataLine, HeapStorage, ProducerLine, RingControl, SpaceLine, Storage,
};

use crate::sync::{AtomicU32, Ordering, fence};

/// What a peer did wrong in the control words of a ring. After a fault the ring cannot be used;
/// the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RingFault {
    /// The producer's tail is below one that it published before.
    #[error("the peer's tail went back from {seen} to {found}")]
    TailWentBack {
        /// The last valid tail.
        seen: u64,
        /// What the word held.
        found: u64,
    },
    /// The producer's tail claims more unread bytes than the ring holds.
    #[error("the peer's tail {found} is over {capacity} bytes beyond the position {position}")]
    TailOverrun {
        /// The position from which the bytes count: the consumer's own, or the restart.
        position: u64,
        /// What the word held.
        found: u64,
        /// The capacity of the ring in bytes.
        capacity: u64,
    },
    /// The producer's restart is no place to which it may have jumped from where it was.
    #[error("the peer's restart {found} is not valid for position {position} and tail {tail}")]
    RestartInvalid {
        /// The consumer's own position.
        position: u64,
        /// The tail read just before.
        tail: u64,
        /// What the word held.
        found: u64,
    },
    /// The consumer's head is below one that it released before.
    #[error("the peer's head went back from {seen} to {found}")]
    HeadWentBack {
        /// The last valid head.
        seen: u64,
        /// What the word held.
        found: u64,
    },
    /// The consumer's head is beyond what was ever published.
    #[error("the peer's head {found} is beyond the published tail {published}")]
    HeadOverrun {
        /// The published tail.
        published: u64,
        /// What the word held.
        found: u64,
    },
    /// The consumer's head is at a position that a restart skipped.
    #[error(
        "the peer's head {found} is between {seen} and the restart {restart}, where no byte is"
    )]
    HeadInGap {
        /// The last valid head.
        seen: u64,
        /// Where the ring restarted.
        restart: u64,
        /// What the word held.
        found: u64,
    },
}

/// No ring gets here: at 10 GB/s it takes fourteen years. So adding to a position never overflows.
const LAST_POSITION: u64 = 1 << 62;

/// A position that the ring cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring cannot stand at this position")]
pub struct PositionError;

/// Publishes what was pushed and releases what was consumed, with one fence for both.
///
/// For the two handles of one connection, whose bells are the same socket: the usual turn of
/// request and response costs half the fences. Returns true if the peer must be rung.
#[inline]
#[must_use = "true means that the peer sleeps until its bell is rung"]
pub fn publish_and_release<P: Storage, C: Storage>(
    producer: &mut Producer<P>,
    consumer: &mut Consumer<C>,
) -> bool {
    let published = producer.store_tail();
    let released = consumer.store_head();
    if !(published || released) {
        return false;
    }
    fence(Ordering::SeqCst);
    // Both wishes are looked at: `|`, not `||`.
    (published && producer.take_data_wanted()) | (released && consumer.take_space_wanted())
}

/// Takes a wish that was read as `wanted` after a fence. False if its owner has changed it since:
/// that store is followed by its owner's fence, which then comes after ours, so its owner's look
/// sees the position we stored, and needs no bell.
fn take(word: &AtomicU32, wanted: u32) -> bool {
    word.compare_exchange(wanted, 0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}
