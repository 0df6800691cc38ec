//! Memory shared with another process, and the only ways to touch it.
//!
//! No `&[u8]` or `&mut [u8]` into shared memory ever exists: a peer may change the bytes at any
//! moment, which such a reference forbids. Words are reached through atomics; bytes are copied by
//! [`copy_bytes`], once, and only the private copy is looked at.

use std::fmt;
use std::io;
use std::mem::{align_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{self, FileType, MemfdFlags, SealFlags};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::copy::step;
use crate::layout::PAGE_SIZE;

/// Seals without which no file is mapped: without them a peer could shorten the file under the
/// mapping and kill us with SIGBUS, or lengthen it and use up memory.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Why memory could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// A capacity that no segment may have.
    #[error("a ring of {0} bytes: the capacity must be a power of two from 4096 to 1 GiB")]
    InvalidCapacity(u32),
    /// A length that no mapping may have.
    #[error("a mapping of {0} bytes: the length must be at least 1 and fit the address space")]
    InvalidLen(u64),
    /// The system refused.
    #[error("{call} failed: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The descriptor is something other than a file in memory.
    #[error("the descriptor is not a memfd")]
    NotMemfd,
    /// The file has another length than agreed.
    #[error("the shared file has {found} bytes instead of {expected}")]
    WrongLen {
        /// The length agreed.
        expected: u64,
        /// The file's length.
        found: u64,
    },
    /// The file could still change its length.
    #[error("the shared file lacks the seals SHRINK, GROW and SEAL (it has {found:#x})")]
    NotSealed {
        /// The seals it has, as `F_GET_SEALS` returns them.
        found: u32,
    },
    /// The server has not finished the header.
    #[error("the segment's header is not ready (layout version 0)")]
    NotReady,
    /// The segment does not begin with the magic.
    #[error("the segment begins with {found:#018x}, which is not a lapce-ai segment")]
    WrongMagic {
        /// What it begins with.
        found: u64,
    },
    /// The segment has a layout that this build does not know.
    #[error("the segment has layout version {found}, this build knows {expected}")]
    WrongLayoutVersion {
        /// The version this build knows.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// A length in the header is not the one agreed.
    #[error("the segment's header says {field} = {found} instead of {expected}")]
    WrongHeader {
        /// The name of the field, as in the layout.
        field: &'static str,
        /// The value agreed.
        expected: u64,
        /// The value found.
        found: u64,
    },
}

impl ShmError {
    fn system(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System {
            call,
            source: errno.into(),
        }
    }
}

/// A file in memory mapped for reading and writing, shared with whoever holds its descriptor.
///
/// The descriptor is not kept. The memory is unmapped on drop and absent in forked children.
/// Offsets given to the accessors are the caller's own and never come from a peer: a wrong one is
/// a bug and panics.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives access only through atomics and through `copy_bytes`, which any number
// of threads and processes may use at once: a race yields garbage bytes and nothing worse.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes and maps a file of `len` zero bytes that can no longer change its length, and returns
    /// it with the descriptor to pass on. The memory has no name and is charged when first touched.
    ///
    /// # Errors
    /// [`ShmError::InvalidLen`] and [`ShmError::System`].
    pub fn create(len: u64) -> Result<(Self, OwnedFd), ShmError> {
        if len == 0 || usize::try_from(len).map_or(true, |len| len > isize::MAX as usize) {
            return Err(ShmError::InvalidLen(len));
        }
        let file = create_memfd().map_err(ShmError::system("memfd_create"))?;
        fs::ftruncate(&file, len).map_err(ShmError::system("ftruncate"))?;
        fs::fcntl_add_seals(&file, SEALS).map_err(ShmError::system("fcntl(F_ADD_SEALS)"))?;
        let mapping = Self::map(file.as_fd(), len as usize)?;
        Ok((mapping, file))
    }

    /// Maps a file that another process made with [`create`](Self::create), and closes the
    /// descriptor. Nothing is mapped that is not a sealed memfd of exactly `len` bytes.
    ///
    /// # Errors
    /// Each thing that can be wrong has its own error.
    pub fn open(file: OwnedFd, len: u64) -> Result<Self, ShmError> {
        if len == 0 || usize::try_from(len).map_or(true, |len| len > isize::MAX as usize) {
            return Err(ShmError::InvalidLen(len));
        }
        let stat = fs::fstat(&file).map_err(ShmError::system("fstat"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ShmError::NotMemfd);
        }
        // Only files in memory have seals; all others say EINVAL.
        let seals = match fs::fcntl_get_seals(&file) {
            Ok(seals) => seals,
            Err(rustix::io::Errno::INVAL) => return Err(ShmError::NotMemfd),
            Err(errno) => return Err(ShmError::system("fcntl(F_GET_SEALS)")(errno)),
        };
        if !seals.contains(SEALS) {
            return Err(ShmError::NotSealed {
                found: seals.bits(),
            });
        }
        // The seals hold, so this length is final. A negative one is a hostile one.
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found != len {
            return Err(ShmError::WrongLen {
                expected: len,
                found,
            });
        }
        let mapping = Self::map(file.as_fd(), len as usize);
        drop(file);
        mapping
    }

    fn map(file: BorrowedFd<'_>, len: usize) -> Result<Self, ShmError> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing, and `len`
        // is not zero. The file keeps this length for ever, since it is sealed.
        let base = unsafe {
            mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(ShmError::system("mmap"))?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(ShmError::system("mmap")(rustix::io::Errno::FAULT));
        };
        // From here on dropping it unmaps.
        let mapping = Self { base, len };
        // SAFETY: the range is exactly our mapping; a forked child simply does not have it.
        unsafe { mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontFork) }
            .map_err(ShmError::system("madvise(MADV_DONTFORK)"))?;
        // A huge page would cost 2 MiB where one page does. Kernels without them say EINVAL, which
        // is as good.
        // SAFETY: the range is exactly our mapping, and the advice does not change its contents.
        let _ = unsafe { mm::madvise(base.as_ptr().cast(), len, Advice::LinuxNoHugepage) };
        Ok(mapping)
    }

    /// The length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The `u64` at a multiple of eight. A peer may change it at any time.
    ///
    /// # Panics
    /// If the word is not aligned or not inside.
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `place` checked bounds and alignment; the memory is mapped while `self` lives;
        // an atomic may change under a shared reference, and any bits are valid.
        unsafe { self.place::<AtomicU64>(offset).as_ref() }
    }

    /// The `u32` at a multiple of four. A peer may change it at any time.
    ///
    /// # Panics
    /// If the word is not aligned or not inside.
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `place` checked bounds and alignment; the memory is mapped while `self` lives;
        // an atomic may change under a shared reference, and any bits are valid.
        unsafe { self.place::<AtomicU32>(offset).as_ref() }
    }

    /// Copies `src` to `offset`.
    ///
    /// # Panics
    /// If the bytes are not all inside.
    #[inline]
    pub fn write(&self, offset: usize, src: &[u8]) {
        let to = self.range(offset, src.len());
        // SAFETY: `range` checked that all bytes of `to` are mapped; `src` is a live slice; the
        // two cannot overlap, since no slice into the mapping exists.
        unsafe { copy_bytes(src.as_ptr(), to, src.len()) };
    }

    /// Copies the bytes at `offset` to `dst`. A peer may be writing them: then `dst` holds any
    /// mixture, which the caller must check like anything else from a peer.
    ///
    /// # Panics
    /// If the bytes are not all inside.
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        let from = self.range(offset, dst.len());
        // SAFETY: `range` checked that all bytes of `from` are mapped; `dst` is a live slice of
        // our own; the two cannot overlap, since no slice into the mapping exists.
        unsafe { copy_bytes(from, dst.as_mut_ptr(), dst.len()) };
    }

    /// Gives the memory of whole pages back to the system, for everyone who shares them. They read
    /// as zeros afterwards and are charged again when touched.
    ///
    /// # Errors
    /// The system's error; the pages then keep their memory and contents.
    ///
    /// # Panics
    /// If the range is not inside or not whole pages.
    pub fn release_pages(&self, pages: Range<usize>) -> io::Result<()> {
        assert!(pages.start.is_multiple_of(PAGE_SIZE) && pages.end.is_multiple_of(PAGE_SIZE));
        let len = pages.end.checked_sub(pages.start).unwrap_or(usize::MAX);
        let start = self.range(pages.start, len);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: `range` checked that all pages are inside our mapping. Their contents change to
        // zeros under nobody's reference, as a peer could do at any time.
        unsafe { mm::madvise(start.cast(), len, Advice::LinuxRemove) }?;
        Ok(())
    }

    /// A pointer to a `T` at `offset`, valid while `self` lives.
    #[inline]
    pub(crate) fn place<T>(&self, offset: usize) -> NonNull<T> {
        let at = self.range(offset, size_of::<T>());
        assert!(
            offset.is_multiple_of(align_of::<T>()),
            "offset {offset:#x} is not aligned"
        );
        // SAFETY: `range` returns a pointer into the mapping, which is not null. The base is
        // page-aligned, so the offset's alignment is the pointer's.
        unsafe { NonNull::new_unchecked(at.cast::<T>()) }
    }

    /// A pointer to `offset`, if `len` bytes there are inside.
    #[inline]
    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        if offset > self.len || len > self.len - offset {
            outside(offset, len, self.len);
        }
        // SAFETY: `offset` is at most `self.len`, so the pointer stays within the mapping or at
        // its end.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn outside(offset: usize, len: usize, mapped: usize) -> ! {
    panic!("{len} bytes at {offset:#x} are not inside a mapping of {mapped} bytes");
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `map` mapped. No reference outlives `self`: the
        // accessors' borrow it, and a ring's pointer lives beside an `Arc` of it.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
        // It can fail only for a range that is not a mapping.
        debug_assert!(unmapped.is_ok());
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A new file in memory, never executable where the kernel can promise that (6.3 and newer).
fn create_memfd() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match fs::memfd_create("lapce-ai", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => fs::memfd_create("lapce-ai", flags),
        result => result,
    }
}

/// Copies `len` bytes between private memory and memory that a peer may be changing.
///
/// It is one opaque step for the optimiser: never inlined, and behind an assembly barrier that may,
/// for all the compiler knows, have written any memory. So a copy is made exactly where it is
/// called, is never merged with another, and no later check can be answered by a second look at
/// the shared bytes instead of the private copy.
///
/// # Safety
/// Both ranges must be mapped and writable or readable as their side needs, for the whole call, and
/// must not overlap. One of them is shared: bytes written there at the same time by a peer are
/// copied as any mixture of old and new. Rust's memory model has no name yet for such a copy (a
/// bytewise atomic memcpy); what makes it harmless is that no reference to the shared bytes exists,
/// that any byte is a valid `u8`, and that this function is opaque.
#[inline(never)]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(not(miri))]
    // SAFETY: no instruction; without `nomem` and `readonly` it stands for any change of memory
    // reachable from the two pointers.
    unsafe {
        std::arch::asm!("/* {} {} */", in(reg) from, in(reg) to, options(nostack, preserves_flags));
    }
    let step = step(from.addr(), to.addr(), len);
    let mut done = 0;
    while done < len {
        let n = step.min(len - done);
        let (from, to) = (from.wrapping_add(done), to.wrapping_add(done));
        // SAFETY: the caller promises both ranges, and `done + n` is at most `len`.
        unsafe { ptr::copy_nonoverlapping(from, to, n) };
        done += n;
    }
}
