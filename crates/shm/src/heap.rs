//! Memory that the allocator keeps for itself.

/// Has the C library's allocator give its free pages back to the system: also those in the middle of a heap, which it keeps for
/// good otherwise. Takes time with the size of the heap, up to some milliseconds, in which other threads may wait for
/// memory: for moments of quiet. Does nothing where the C library is not glibc.
///
/// What [threads have cached](release_thread_cache) it takes for used.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it asks for nothing but the allocator's own state, which it locks; pages that an allocation uses stay.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Empties the calling thread's cache of freed memory, which glibc has no call for. For moments of quiet, and before
/// [`trim_heap`]: it takes some 100 µs. Does nothing where the C library is not glibc.
///
/// A cache holds up to seven pieces of each of 64 sizes, and they lie where they were freed: after a busy time nearly each of the 448
/// keeps a page of its own from being given back, 1.8 MB for each thread (glibc's `tcache`, `malloc/malloc.c`).
pub fn release_thread_cache() {
    #[cfg(target_env = "gnu")]
    {
        /// The usable bytes of the smallest size, how far the sizes are apart, and their number.
        const SIZES: (usize, usize, usize) = (24, 16, 64);
        const OF_EACH: usize = 7;

        let (least, step, count) = SIZES;
        // The compiler must not see that nobody uses them.
        let of_each = || {
            let mut pieces: Vec<Vec<u8>> = Vec::with_capacity(count * OF_EACH);
            for size in (0..count).map(|index| least + index * step) {
                pieces.extend(
                    (0..OF_EACH).map(|_| std::hint::black_box(Vec::<u8>::with_capacity(size))),
                );
            }
            pieces
        };
        // A cache that runs out is filled from the heap as far as that has pieces of the size. So it is filled first, and then it
        // has just as many as are taken.
        drop(of_each());
        let pieces = of_each();
        // Whoever frees a piece caches it, until its thread ends.
        let ends = std::thread::Builder::new()
            .name("lapce-ai-trim".to_owned())
            .spawn(move || drop(pieces));
        if let Ok(ends) = ends {
            // Nothing in it panics.
            let _ = ends.join();
        }
    }
}
