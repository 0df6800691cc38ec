//! How long copies are made, where a whole one would be slow.

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
pub(crate) fn step(from: usize, to: usize, len: usize) -> usize {
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
