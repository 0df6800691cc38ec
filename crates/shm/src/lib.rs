//! Shared memory between a server and its clients: segments, byte rings, bells, descriptor passing.
//!
//! This is the only crate of the project with `unsafe`; what it offers is safe and copies. Nothing a
//! peer writes into shared memory can do more than end its own connection with a named fault.
//!
//! A connection has one segment, made and sealed by the server, and one Unix socket. The socket
//! passes the segment's descriptor once and then carries only bells: a byte that wakes a sleeping
//! peer, and the end of file that tells of a dead one.
//!
//! ```text
//!          0x0000 +-------------------------------------------------+
//!                 | magic, version, lengths                         |
//!          0x0200 | request ring:  tail,restart | head | data | space |   one line of 128 bytes
//!          0x0400 | response ring: tail,restart | head | data | space |   for each
//!          0x1000 +-------------------------------------------------+
//!                 | request ring's bytes:  client ---> server       |   a power of two,
//!                 |   ....[head #########published######### tail].. |   4 KiB to 1 GiB
//!     + requests  +-------------------------------------------------+
//!                 | response ring's bytes: server ---> client       |
//!     + responses +-------------------------------------------------+
//! ```
//!
//! Start at [`Segment`]; it splits into a [`Producer`] and a [`Consumer`] for each side. The restart
//! rule, the proof of its single word, and how nobody misses a wake-up are told in `ring/mod.rs`.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "lapce-ai-shm works on Linux only (memfd, file seals, SO_PEERCRED): another system needs its own \
     segment and bell; the ring itself is portable"
);

mod bell;
#[cfg(not(ring_loom))]
mod copy;
mod fds;
mod fork;
mod heap;
pub mod layout;
#[cfg(not(ring_loom))]
mod mapping;
mod ring;
#[cfg(not(ring_loom))]
mod segment;
mod spin;
mod sync;

pub use bell::{Bell, BellError, Woken};
#[cfg(not(ring_loom))]
pub use copy::append;
pub use fds::{
    FdError, MAX_FDS, PeerCredentials, peer_credentials, recv_with_fd, recv_with_fds, send_with_fd,
    send_with_fds, take_inherited,
};
pub use fork::ForkGuard;
pub use heap::{release_thread_cache, trim_heap};
#[cfg(not(ring_loom))]
pub use mapping::{Mapping, ShmError};
#[cfg(not(ring_loom))]
pub use ring::MappedRing;
pub use ring::{
    Consumer, ConsumerLine, DataLine, HeapStorage, PositionError, Producer, ProducerLine,
    ProducerPosition, RingControl, RingFault, SpaceLine, Storage, publish_and_release,
};
#[cfg(not(ring_loom))]
pub use segment::Segment;
pub use spin::{Spin, usable_cpus};
