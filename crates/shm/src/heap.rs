//! Memory that the allocator keeps for itself.

/// Has the C library's allocator give its free pages back to the system: also those in the middle of a heap, which it keeps for
/// good otherwise. Takes time with the size of the heap, up to some milliseconds, in which other threads may wait for
/// memory: for moments of quiet. Does nothing where the C library is not glibc.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it asks for nothing but the allocator's own state, which it locks; pages that an allocation uses stay.
        unsafe { libc::malloc_trim(0) };
    }
}
