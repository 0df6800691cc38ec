//! How bytes are copied into shared memory and out of it, and how long copies are made where a plain one would be slow.

use std::ptr;

/// A copy shorter than this is made with vector instructions by every C library we know.
const SHORT: usize = 1024;
/// From here on a C library may take the processor's own string copy, `rep movsb`.
const LONG: usize = 2048;

/// In steps of how many bytes a copy is made.
///
/// Where the destination lies a few bytes above the source, page offsets compared, the string copy of AMD's Zen 3 and 4
/// falls from 100 GB/s to 4 within 16 bytes, and to 10 within 64 (glibc bug 30995). Our frames ask for just that: a payload lies behind 24 bytes of header,
/// and a large allocation starts 16 bytes into a page. Short steps keep the C library away from it.
#[inline]
fn step(from: usize, to: usize, len: usize) -> usize {
    let apart = to.wrapping_sub(from) % 4096;
    if len >= LONG && matches!(apart, 1..16 | 33..64) {
        SHORT
    } else {
        len
    }
}

/// `to.extend_from_slice(from)`, at full speed wherever the two lie to each other.
///
/// Some processors copy at a twenty-fifth of their speed where the destination's offset in its page is a little above
/// the source's, as it easily is with payloads behind a header.
///
/// ```
/// let mut bytes = vec![1];
/// lapce_ai_shm::append(&mut bytes, &[2, 3]);
/// assert_eq!(bytes, [1, 2, 3]);
/// ```
#[inline]
pub fn append(to: &mut Vec<u8>, from: &[u8]) {
    if from.len() < LONG {
        return to.extend_from_slice(from);
    }
    to.reserve(from.len());
    let end = to.as_ptr().addr() + to.len();
    let step = step(from.as_ptr().addr(), end, from.len());
    for piece in from.chunks(step) {
        to.extend_from_slice(piece);
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
pub(crate) unsafe fn copy_bytes(from: *const u8, to: *mut u8, len: usize) {
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

/// [`copy_bytes`] into shared memory with stores that go past the caches (non-temporal ones), where the processor has them.
///
/// The lines of a ring are in the cache of the processor that read them last. A plain store has to fetch each from there
/// first, one after another; such a store does not, and the reader finds the bytes in memory, where its prefetcher is at
/// home. On two cores of an EPYC that share a cache this carries 1.8 times as much, on two that do not 7 times. It costs
/// a wait for the last stores, so short copies are slower.
///
/// # Safety
/// As [`copy_bytes`], and `to` is the shared side.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(never)]
pub(crate) unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    const LINE: usize = 64;
    const STORE: usize = size_of::<__m128i>();
    // Only whole lines go past the caches: a part of one would be written twice.
    let head = to.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: the first `head` bytes of what the caller promises.
    unsafe { copy_bytes(from, to, head) };
    for at in (head..tail).step_by(STORE) {
        let (from, to) = (from.wrapping_add(at), to.wrapping_add(at));
        // SAFETY: `at + STORE` is at most `len`, and this load need not be aligned. Every x86-64 has SSE2.
        let bytes = unsafe { _mm_loadu_si128(from.cast()) };
        // SAFETY: the same on the other side, where `head` ended on a line and so aligned every store.
        unsafe { _mm_stream_si128(to.cast(), bytes) };
    }
    // SAFETY: every x86-64 has it. Nothing else may be stored before those bytes, the position that publishes them above
    // all.
    unsafe { _mm_sfence() };
    let (from, to) = (from.wrapping_add(tail), to.wrapping_add(tail));
    // SAFETY: the last bytes of what the caller promises.
    unsafe { copy_bytes(from, to, len - tail) };
}

/// Other processors get a plain copy.
///
/// # Safety
/// As [`copy_bytes`].
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise is the same.
    unsafe { copy_bytes(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_copies_a_little_upwards_are_cut() {
        assert_eq!(step(0x1000, 0x9008, 2047), 2047);
        assert_eq!(step(0x1000, 0x9008, 2048), SHORT);
        assert_eq!(step(0x9010, 0x1018, 1 << 20), SHORT);
        assert_eq!(step(0x1000, 0x9000, 1 << 20), 1 << 20);
        assert_eq!(step(0x1000, 0x9040, 1 << 20), 1 << 20);
        assert_eq!(step(0x1008, 0x9000, 1 << 20), 1 << 20);
        assert_eq!(step(0x1000, 0x9018, 1 << 20), 1 << 20);
        assert_eq!(step(0x1000, 0x9028, 1 << 20), SHORT);
    }

    #[test]
    fn appending_keeps_every_byte() {
        let from: Vec<u8> = (0..20_000_u32).map(|n| (n * 7) as u8).collect();
        for offset in 0..70 {
            let mut to = Vec::with_capacity(30_000);
            to.resize(offset, 9);
            append(&mut to, &from[offset / 2..]);
            assert!(to[..offset].iter().all(|&byte| byte == 9));
            assert_eq!(to[offset..], from[offset / 2..]);
        }
    }
}
