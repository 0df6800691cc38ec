//! How to connect, and how to ask.

use std::path::PathBuf;
use std::time::Duration;

use lapce_ai_proto::Class;
use lapce_ai_transport::RuntimeDir;

use crate::ReconnectPolicy;

/// How a client connects.
#[derive(Debug, Clone)]
pub struct Options {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Who this is, for people: `lapce 0.4.3`. At most 64 bytes.
    pub name: String,
    /// Frames go through shared memory (the default), or else over the socket, slower.
    pub shared_memory: bool,
    /// Each frame has a CRC-32C. Off by default.
    pub crc: bool,
    /// Response bytes that the daemon may send for one request before they are taken: 256 KiB.
    pub response_window: u32,
    /// Longest wait for the daemon's answer to a connection: 5 s.
    pub connect_timeout: Duration,
    /// What to do when the connection is lost.
    pub reconnect: ReconnectPolicy,
    /// How long a call looks for its answer before it sleeps. Cheap for nobody but the one who waits; of no effect
    /// over a socket and where fewer than two processors are usable. 0 unless set.
    pub spin: Duration,
}

impl Options {
    /// The defaults, for a daemon on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name: concat!("lapce-ai-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            shared_memory: true,
            crc: false,
            response_window: 256 << 10,
            connect_timeout: Duration::from_secs(5),
            reconnect: ReconnectPolicy::default(),
            spin: Duration::ZERO,
        }
    }

    /// The defaults, for the daemon of this user.
    pub fn for_default_socket() -> Self {
        Self::new(RuntimeDir::default_for_user().socket())
    }
}

/// How one request is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestOptions {
    /// When the answer is worthless. `None`: the daemon's default. The client gives up by itself one second later, in
    /// case the daemon hangs.
    pub deadline: Option<Duration>,
    /// How urgent it is.
    pub class: Class,
    /// Running it twice does no harm, so it is sent again whenever a connection is lost before an item came.
    pub repeatable: bool,
}

impl RequestOptions {
    /// The defaults with a deadline.
    pub fn with_deadline(deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..Self::default()
        }
    }
}
