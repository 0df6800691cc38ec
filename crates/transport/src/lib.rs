//! Connections that carry frames, over shared memory or over a socket, and the buffers behind them.
//!
//! | stop on the path | here |
//! |---|---|
//! | finding each other | [`RuntimeDir`], [`Listener`], [`connect()`], or [`Connecting`] without blocking |
//! | handshake | [`Handshake`] on the daemon's side, inside [`connect()`] on the client's |
//! | bytes -> frames, frames -> bytes | [`Reader`], [`Writer`], the two halves of a [`Connection`] |
//! | from one daemon to the next | [`Channel`], [`Listener::adopt`] |
//! | payload bytes that outlive a frame | [`BufferPool`], [`Buffer`] |
//!
//! A connection works the same over both carriers; one conformance suite (`tests/conformance.rs`) runs over both.
//! Nothing here blocks: callers wait on the connection's socket, with whatever waits best where they are.
#![forbid(unsafe_code)]

mod connect;
mod connection;
mod error;
mod handshake;
mod listener;
mod pool;
mod runtime_dir;
mod service_manager;
mod succession;

pub use connect::{Attempt, ConnectError, ConnectOptions, Connecting, connect};
pub use connection::{
    AtRest, Batch, CONTROL_ROOM, ClientWords, Connection, PIECE, Peer, Reader, Rest, ResumeError,
    Writer, flush,
};
pub use error::TransportError;
pub use handshake::{Handshake, Progress, ServerTerms};
pub use listener::{BindError, Listener};
pub use pool::{Buffer, BufferPool, NoMemory, PoolOptions, PoolStats, TierStats};
pub use runtime_dir::{RuntimeDir, RuntimeDirError};
pub use service_manager::{ServiceManager, kept_descriptors};
pub use succession::{Channel, ChannelError};

pub use lapce_ai_shm::layout::LAYOUT_VERSION;
pub use lapce_ai_shm::{
    MAX_FDS, PeerCredentials, ProducerPosition, Spin, append, release_thread_cache, trim_heap,
    usable_cpus,
};
