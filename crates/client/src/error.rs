//! Why a request did not get its answer.

use lapce_ai_proto::{ErrorBody, ErrorCode};
use lapce_ai_transport::ConnectError;

/// Why a request did not get its answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no connection: nobody listens, or the daemon said no.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection was lost and could not be made again within what the
    /// [`ReconnectPolicy`](crate::ReconnectPolicy) allows. The next request tries again.
    #[error("the daemon could not be reached again ({attempts} attempts): {reason}")]
    Unreachable {
        /// How often it was tried.
        attempts: u32,
        /// What the last attempt said.
        reason: String,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Daemon(Box<ErrorBody>),
    /// The connection was lost while the request ran, and it is not known whether it was run to its end.
    #[error("the connection was lost while the request ran ({reason}): {}", ErrorCode::OutcomeUnknown.advice())]
    OutcomeUnknown {
        /// What ended the connection.
        reason: String,
    },
    /// The client has been closed.
    #[error("this client has been closed")]
    Closed,
    /// The deadline passed without a word from the daemon, or before there was a connection.
    #[error("no answer came before the deadline: {}", ErrorCode::DeadlineExceeded.advice())]
    DeadlineExceeded,
    /// The daemon's answer, or the request, is not the JSON that it must be.
    #[error("the message is not what it must be: {0}")]
    Decode(#[from] serde_json::Error),
}

impl ClientError {
    /// The code that says the same, where there is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Daemon(body) => Some(body.code),
            Self::Connect(ConnectError::Refused(body)) => Some(body.code),
            Self::OutcomeUnknown { .. } => Some(ErrorCode::OutcomeUnknown),
            Self::DeadlineExceeded => Some(ErrorCode::DeadlineExceeded),
            Self::Connect(_) | Self::Unreachable { .. } | Self::Closed | Self::Decode(_) => None,
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(
                ConnectError::NotRunning { .. }
                | ConnectError::TimedOut { .. }
                | ConnectError::Transport(_),
            )
            | Self::Unreachable { .. } => true,
            _ => self.code().is_some_and(ErrorCode::may_retry),
        }
    }
}
