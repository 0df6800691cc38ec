//! A map from stream ids, cheap to look up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Ids rise, and there are at most `max_streams` of them, so one multiplication spreads them well enough, and even
/// ids chosen to collide cost no more than a walk over that many entries.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) type IdMap<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;
