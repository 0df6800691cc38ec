//! What the allocator keeps goes back to the system.

#![cfg(all(target_env = "gnu", not(ring_loom)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use lapce_ai_shm::{release_thread_cache, trim_heap};

const SIZE: usize = 1000;
const PAGE: usize = 4096;

fn piece() -> Vec<u8> {
    std::hint::black_box(Vec::with_capacity(SIZE))
}

fn address(piece: &[u8]) -> usize {
    piece.as_ptr().addr()
}

/// Whether memory lies behind the page of an address (`/proc/self/pagemap`, bit 63).
fn is_present(address: usize) -> bool {
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap
        .read_exact_at(&mut entry, (address / PAGE * 8) as u64)
        .unwrap();
    entry[7] & 0x80 != 0
}

/// Frees many pieces, of which the thread caches seven that lie far apart. Their addresses.
fn scattered() -> Vec<usize> {
    let mut pieces: Vec<_> = (0..4000).map(|_| piece()).collect();
    let cached: Vec<_> = (1..=7).rev().map(|n| pieces.remove(n * 500)).collect();
    let addresses = cached.iter().map(|piece| address(piece)).collect();
    drop(cached);
    drop(pieces);
    addresses
}

fn present(addresses: &[usize]) -> usize {
    let there = addresses.iter().filter(|address| is_present(**address));
    there.count()
}

/// Runs it in a thread, which has a heap of its own, where nobody else comes between; unless the allocator has no cache for each
/// thread, as a sanitizer's.
fn in_a_thread(test: fn()) {
    let last = piece();
    let at = address(&last);
    drop(last);
    if address(&piece()) == at {
        std::thread::spawn(test).join().unwrap();
    }
}

#[test]
fn what_a_thread_has_cached_goes_back_with_the_rest() {
    in_a_thread(|| {
        let addresses = scattered();
        trim_heap();
        assert_eq!(present(&addresses), 7, "a trim alone leaves what is cached");
        release_thread_cache();
        trim_heap();
        assert_eq!(present(&addresses), 0);
    });
}
