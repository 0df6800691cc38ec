//! Why a connection ends.

use std::io;

use lapce_ai_proto::Fault;
use lapce_ai_shm::{BellError, RingFault};

/// Why a connection can no longer be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer broke a rule of the protocol.
    #[error("the peer broke the protocol: {0}")]
    Fault(#[from] Fault),
    /// The peer wrote positions into a ring that cannot be. On the wire this is [`Fault::RingCorrupt`].
    #[error("the peer broke the protocol: ring_corrupt: {0}")]
    Ring(#[from] RingFault),
    /// The peer has closed the connection or died.
    #[error("the peer is gone")]
    PeerGone,
    /// The system refused.
    #[error("{call} failed on the connection's socket: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl TransportError {
    /// The rule that the peer broke, if it is that.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Fault(fault) => Some(*fault),
            Self::Ring(_) => Some(Fault::RingCorrupt),
            Self::PeerGone | Self::System { .. } => None,
        }
    }

    pub(crate) fn system(call: &'static str, errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::PeerGone,
            _ => Self::System {
                call,
                source: errno.into(),
            },
        }
    }
}

impl From<BellError> for TransportError {
    fn from(error: BellError) -> Self {
        match error {
            BellError::PeerGone => Self::PeerGone,
            BellError::System { call, source } => Self::System { call, source },
        }
    }
}
