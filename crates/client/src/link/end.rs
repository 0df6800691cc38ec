//! The words for how far a link is, how it ends, and what becomes of its requests.

use std::fmt;
use std::sync::Arc;

use lapce_ai_proto::ErrorBody;
use lapce_ai_transport::TransportError;

/// Why a link ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The daemon is gone, or broke the protocol.
    Transport(TransportError),
    /// The daemon said why it hangs up.
    Daemon(ErrorBody),
    /// It drained after GOAWAY.
    Drained,
    /// This client was closed.
    Closed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Daemon(body) => body.fmt(f),
            Self::Drained => f.write_str("the daemon went away"),
            Self::Closed => f.write_str("the client was closed"),
        }
    }
}

impl From<TransportError> for End {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Open,
    GoingAway,
    Ended,
}

/// How a response ended, other than by its last item.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The daemon's error.
    Failed(ErrorBody),
    /// The connection was lost.
    Lost {
        /// What the request was called on it; `None`: it did not get there, or was sent back, so it was not run.
        id: Option<u64>,
        /// The daemon has neither accepted nor answered it.
        untouched: bool,
        reason: Arc<str>,
    },
    /// The client was closed.
    Closed,
}

/// Why a request was not begun.
#[derive(Debug)]
pub(crate) enum Refused {
    /// This link takes no more requests.
    Gone,
    /// Over `max_message_size`.
    TooLarge(u64),
}
