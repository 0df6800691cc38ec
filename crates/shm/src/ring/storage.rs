//! What a ring runs on: its control words and its bytes.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::layout::PAGE_SIZE;
use crate::sync::{AtomicU32, AtomicU64};

#[cfg(not(ring_loom))]
pub use mapped::MappedRing;

/// The line that only the producer writes.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ProducerLine {
    /// Count of bytes ever published.
    pub tail: AtomicU64,
    /// Where the last jump to the ring's first page went.
    pub restart: AtomicU64,
}

/// The line that only the consumer writes.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ConsumerLine {
    /// Count of bytes ever released.
    pub head: AtomicU64,
}

/// The consumer's wish for a bell.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct DataLine {
    /// 1 while the consumer sleeps and wants its bell rung when there is data.
    pub wanted: AtomicU32,
}

/// The producer's wish for a bell.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct SpaceLine {
    /// How many bytes must be free before the waiting producer wants its bell rung; 0 for none.
    pub wanted: AtomicU32,
}

/// The control lines of one ring, as they lie in a segment.
///
/// The words are open to everyone who holds the storage: that is how a test plays a hostile peer.
#[derive(Debug)]
#[repr(C)]
pub struct RingControl {
    /// Written by the producer.
    pub producer: ProducerLine,
    /// Written by the consumer.
    pub consumer: ConsumerLine,
    /// Set by the consumer, taken by the producer.
    pub data: DataLine,
    /// Set by the producer, taken by the consumer.
    pub space: SpaceLine,
}

impl RingControl {
    fn new() -> Self {
        Self {
            producer: ProducerLine {
                tail: AtomicU64::new(0),
                restart: AtomicU64::new(0),
            },
            consumer: ConsumerLine {
                head: AtomicU64::new(0),
            },
            data: DataLine {
                wanted: AtomicU32::new(0),
            },
            space: SpaceLine {
                wanted: AtomicU32::new(0),
            },
        }
    }
}

/// Control words and bytes of one ring, shared by its two ends.
///
/// Implementations must not let `write` and `read` leave the ring's bytes, whatever the offset: the
/// ring passes only offsets below its capacity, and they panic on others.
pub trait Storage {
    /// The unit of the restart rule in bytes: a power of two, at most the capacity.
    const PAGE: usize;

    /// The number of bytes, a power of two. Never changes and never comes from a peer.
    fn capacity(&self) -> usize;

    /// The control words.
    fn control(&self) -> &RingControl;

    /// Copies `src` to `offset`.
    fn write(&self, offset: usize, src: &[u8]);

    /// Copies the bytes at `offset` to `dst`. A peer may be writing them at the same time: then
    /// `dst` holds garbage.
    fn read(&self, offset: usize, dst: &mut [u8]);

    /// Gives the memory of whole pages back; afterwards they read as zeros.
    ///
    /// # Errors
    /// The system's error; then the pages keep their memory, which harms nothing else.
    fn release_pages(&self, pages: Range<usize>) -> io::Result<()>;
}

/// A ring in ordinary memory, for tests, loom and fuzzers: clones share it.
///
/// `PAGE` may be far below 4096, so that small rings exercise the restart rule. Its bytes are
/// atomics, so any number of hostile handles is sound; under loom they are checked cells, so that a
/// copy that races with another is found.
pub struct HeapStorage<const PAGE: usize = PAGE_SIZE> {
    shared: Arc<Shared>,
}

struct Shared {
    control: RingControl,
    bytes: Box<[cell::ByteCell]>,
}

impl<const PAGE: usize> HeapStorage<PAGE> {
    /// An empty ring of `capacity` zero bytes.
    ///
    /// # Panics
    /// If the capacity or the page is no power of two, or the page is larger than the capacity.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && PAGE.is_power_of_two() && PAGE <= capacity);
        let bytes = (0..capacity).map(|_| cell::ByteCell::new()).collect();
        Self {
            shared: Arc::new(Shared {
                control: RingControl::new(),
                bytes,
            }),
        }
    }
}

impl<const PAGE: usize> Clone for HeapStorage<PAGE> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<const PAGE: usize> fmt::Debug for HeapStorage<PAGE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapStorage")
            .field("control", &self.shared.control)
            .field("capacity", &self.shared.bytes.len())
            .finish()
    }
}

impl<const PAGE: usize> Storage for HeapStorage<PAGE> {
    const PAGE: usize = PAGE;

    fn capacity(&self) -> usize {
        self.shared.bytes.len()
    }

    fn control(&self) -> &RingControl {
        &self.shared.control
    }

    fn write(&self, offset: usize, src: &[u8]) {
        let place = &self.shared.bytes[offset..offset + src.len()];
        for (cell, byte) in place.iter().zip(src) {
            cell.set(*byte);
        }
    }

    fn read(&self, offset: usize, dst: &mut [u8]) {
        let place = &self.shared.bytes[offset..offset + dst.len()];
        for (cell, byte) in place.iter().zip(dst) {
            *byte = cell.get();
        }
    }

    fn release_pages(&self, pages: Range<usize>) -> io::Result<()> {
        for cell in &self.shared.bytes[pages] {
            cell.set(0);
        }
        Ok(())
    }
}

#[cfg(not(ring_loom))]
mod cell {
    use std::sync::atomic::{AtomicU8, Ordering};

    pub(super) struct ByteCell(AtomicU8);

    impl ByteCell {
        pub(super) fn new() -> Self {
            Self(AtomicU8::new(0))
        }

        pub(super) fn get(&self) -> u8 {
            self.0.load(Ordering::Relaxed)
        }

        pub(super) fn set(&self, byte: u8) {
            self.0.store(byte, Ordering::Relaxed);
        }
    }
}

#[cfg(ring_loom)]
mod cell {
    use loom::cell::UnsafeCell;

    pub(super) struct ByteCell(UnsafeCell<u8>);

    // SAFETY: loom runs one thread at a time and fails the model at the first access that is not
    // ordered after a conflicting one; finding those is what this cell is for.
    unsafe impl Sync for ByteCell {}

    impl ByteCell {
        pub(super) fn new() -> Self {
            Self(UnsafeCell::new(0))
        }

        pub(super) fn get(&self) -> u8 {
            self.0.with(|byte| {
                // SAFETY: the cell is alive, and loom has just checked that no write races.
                unsafe { *byte }
            })
        }

        pub(super) fn set(&self, value: u8) {
            self.0.with_mut(|byte| {
                // SAFETY: the cell is alive, and loom has just checked that nothing races.
                unsafe { *byte = value };
            });
        }
    }
}

#[cfg(not(ring_loom))]
mod mapped {
    use std::fmt;
    use std::io;
    use std::mem::{offset_of, size_of};
    use std::ops::Range;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use super::{RingControl, Storage};
    use crate::layout;
    use crate::mapping::Mapping;

    const _: () = {
        assert!(size_of::<RingControl>() == 4 * layout::CONTROL_LINE);
        assert!(offset_of!(RingControl, producer.tail) == layout::TAIL_OFFSET);
        assert!(offset_of!(RingControl, producer.restart) == layout::RESTART_OFFSET);
        assert!(offset_of!(RingControl, consumer.head) == layout::HEAD_OFFSET);
        assert!(offset_of!(RingControl, data.wanted) == layout::DATA_WANTED_OFFSET);
        assert!(offset_of!(RingControl, space.wanted) == layout::SPACE_WANTED_OFFSET);
    };

    /// One ring of a mapped segment.
    pub struct MappedRing {
        /// Points into `mapping`; kept so that a word is one load away.
        control: NonNull<RingControl>,
        mapping: Arc<Mapping>,
        bytes_offset: usize,
        capacity: usize,
    }

    // SAFETY: `control` points at atomics in a mapping that `mapping` keeps alive wherever the
    // value goes; nothing is bound to a thread.
    unsafe impl Send for MappedRing {}
    // SAFETY: `&MappedRing` gives out only references to atomics, and copies through `Mapping`,
    // which is itself `Sync`.
    unsafe impl Sync for MappedRing {}

    impl MappedRing {
        pub(crate) fn new(
            mapping: Arc<Mapping>,
            control_offset: usize,
            bytes_offset: usize,
            capacity: usize,
        ) -> Self {
            assert!(capacity.is_power_of_two() && bytes_offset + capacity <= mapping.len());
            let control = mapping.place::<RingControl>(control_offset);
            Self {
                control,
                mapping,
                bytes_offset,
                capacity,
            }
        }
    }

    impl fmt::Debug for MappedRing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("MappedRing")
                .field("control", self.control())
                .field("capacity", &self.capacity)
                .finish_non_exhaustive()
        }
    }

    impl Storage for MappedRing {
        const PAGE: usize = layout::PAGE_SIZE;

        #[inline]
        fn capacity(&self) -> usize {
            self.capacity
        }

        #[inline]
        fn control(&self) -> &RingControl {
            // SAFETY: `Mapping::place` checked bounds and alignment, `self.mapping` keeps the
            // memory mapped while `self` lives, and `RingControl` consists of atomics, for which
            // any bits are valid and which a peer may change at any time.
            unsafe { self.control.as_ref() }
        }

        #[inline]
        fn write(&self, offset: usize, src: &[u8]) {
            assert!(offset <= self.capacity && src.len() <= self.capacity - offset);
            self.mapping.write(self.bytes_offset + offset, src);
        }

        #[inline]
        fn read(&self, offset: usize, dst: &mut [u8]) {
            assert!(offset <= self.capacity && dst.len() <= self.capacity - offset);
            self.mapping.read(self.bytes_offset + offset, dst);
        }

        fn release_pages(&self, pages: Range<usize>) -> io::Result<()> {
            assert!(pages.start <= pages.end && pages.end <= self.capacity);
            self.mapping
                .release_pages(self.bytes_offset + pages.start..self.bytes_offset + pages.end)
        }
    }
}
