//! Where each byte of a segment is. `docs/protocol.md` says the same; all numbers are little endian.

#[cfg(target_endian = "big")]
compile_error!(
    "the segment layout is little endian; lapce-ai-shm does not support big-endian machines"
);

#[cfg(not(target_has_atomic = "64"))]
compile_error!("lapce-ai-shm needs 64-bit atomics for its ring positions");

/// The first eight bytes of a segment, as a little-endian number: `b"LAPCESHM"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LAPCESHM");

/// The layout this crate speaks. The header's version word is 0 until the header is complete.
pub const LAYOUT_VERSION: u32 = 1;

/// Length in bytes of the header page, which also holds the control lines; the rings' bytes follow.
pub const HEADER_LEN: usize = 4096;

/// Offset of the `u64` [`MAGIC`].
pub const MAGIC_OFFSET: usize = 0x000;
/// Offset of the `u32` layout version, written last.
pub const VERSION_OFFSET: usize = 0x008;
/// Offset of the `u32` [`HEADER_LEN`].
pub const HEADER_LEN_OFFSET: usize = 0x00C;
/// Offset of the `u64` length in bytes of the whole segment.
pub const SEGMENT_LEN_OFFSET: usize = 0x010;
/// Offset of the `u32` capacity in bytes of the request ring.
pub const REQUEST_CAPACITY_OFFSET: usize = 0x018;
/// Offset of the `u32` capacity in bytes of the response ring.
pub const RESPONSE_CAPACITY_OFFSET: usize = 0x01C;

/// Offset of the control lines of the request ring (client to server).
pub const REQUEST_CONTROL_OFFSET: usize = 0x200;
/// Offset of the control lines of the response ring (server to client).
pub const RESPONSE_CONTROL_OFFSET: usize = 0x400;

/// Length in bytes of one control line: two cache lines, because processors fetch them in pairs.
pub const CONTROL_LINE: usize = 128;
/// In a ring's control lines: the `u64` tail, the count of bytes ever published.
pub const TAIL_OFFSET: usize = 0x000;
/// In a ring's control lines: the `u64` restart, where the last jump to the first page went.
pub const RESTART_OFFSET: usize = 0x008;
/// In a ring's control lines: the `u64` head, the count of bytes ever released.
pub const HEAD_OFFSET: usize = 0x080;
/// In a ring's control lines: the `u32` data-wanted flag, 1 while the consumer sleeps.
pub const DATA_WANTED_OFFSET: usize = 0x100;
/// In a ring's control lines: the `u32` space-wanted count, the free bytes a waiting producer needs.
pub const SPACE_WANTED_OFFSET: usize = 0x180;

/// Offset of the request ring's bytes. The response ring's bytes follow them directly.
pub const REQUEST_BYTES_OFFSET: usize = HEADER_LEN;

/// The page size of the layout, on every machine: the unit of the restart rule.
pub const PAGE_SIZE: usize = 4096;
/// The smallest capacity of a ring in bytes.
pub const MIN_CAPACITY: u32 = 4096;
/// The largest capacity of a ring in bytes.
pub const MAX_CAPACITY: u32 = 1 << 30;

/// Whether a segment may have a ring of so many bytes: a power of two from [`MIN_CAPACITY`] to
/// [`MAX_CAPACITY`].
#[must_use]
pub const fn is_valid_capacity(capacity: u32) -> bool {
    capacity.is_power_of_two() && capacity >= MIN_CAPACITY && capacity <= MAX_CAPACITY
}

/// The length in bytes of a segment with rings of these capacities.
#[must_use]
pub const fn segment_len(request_capacity: u32, response_capacity: u32) -> u64 {
    HEADER_LEN as u64 + request_capacity as u64 + response_capacity as u64
}

const _: () = {
    assert!(MAGIC == 0x4D48_5345_4350_414C);
    assert!(REQUEST_CONTROL_OFFSET + 4 * CONTROL_LINE == RESPONSE_CONTROL_OFFSET);
    assert!(RESPONSE_CONTROL_OFFSET + 4 * CONTROL_LINE <= HEADER_LEN);
    assert!(REQUEST_CONTROL_OFFSET.is_multiple_of(CONTROL_LINE));
    assert!(HEADER_LEN.is_multiple_of(PAGE_SIZE));
    assert!(is_valid_capacity(MIN_CAPACITY) && is_valid_capacity(MAX_CAPACITY));
    assert!(!is_valid_capacity(0) && !is_valid_capacity(6000) && !is_valid_capacity(1 << 31));
};
