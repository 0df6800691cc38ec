//! What a server allows.

use std::time::Duration;

use lapce_ai_proto::Limits;
use lapce_ai_transport::PoolOptions;

/// Limits and times of a [`Server`](crate::Server). Everything has a default.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients are told the daemon is.
    pub name: String,
    /// What one connection may do. `max_frame_payload` is lowered where the rings are too small for it.
    pub limits: Limits,
    /// Bytes of each request ring, a power of two from 4 KiB.
    pub request_capacity: u32,
    /// Bytes of each response ring, a power of two from 4 KiB.
    pub response_capacity: u32,
    /// Connections at once; a further one is refused with `too_many_connections`.
    pub max_connections: usize,
    /// User ids that are served beside our own and root.
    pub allowed_uids: Vec<u32>,
    /// Longest time from connecting to a whole HELLO.
    pub handshake_timeout: Duration,
    /// Longest time without progress: of a request that is being sent, and of answers that are not being read.
    pub stall_timeout: Duration,
    /// A connection without requests is closed after so long. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Deadline of requests that name none. `None`: no deadline.
    pub default_deadline: Option<Duration>,
    /// How long the sync handlers of one batch of requests may take before that is counted and logged. It is
    /// measured to a tick of the kernel's clock, 1 to 10 ms, and less than two of them counts as two.
    pub handler_limit: Duration,
    /// How long the reactor looks for more before it sleeps. Zero where fewer than two CPUs are usable.
    pub spin: Duration,
    /// Where payload bytes are kept.
    pub pool: PoolOptions,
    /// A CRC on every frame of every connection.
    pub require_crc: bool,
    /// Whether segments are offered.
    pub shared_memory: bool,
    /// The server stops by itself when nobody has been connected for so long.
    pub exit_when_idle: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: concat!("lapce-ai ", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits {
                max_message_size: 10 << 20,
                max_frame_payload: 16 << 10,
                max_streams: 256,
                inline_window: 128 << 10,
            },
            request_capacity: 128 << 10,
            response_capacity: 128 << 10,
            max_connections: 1000,
            allowed_uids: Vec::new(),
            handshake_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            idle_timeout: Some(Duration::from_secs(1800)),
            default_deadline: Some(Duration::from_secs(600)),
            handler_limit: Duration::from_millis(10),
            spin: Duration::from_micros(50),
            pool: PoolOptions::default(),
            require_crc: false,
            shared_memory: true,
            exit_when_idle: None,
        }
    }
}
