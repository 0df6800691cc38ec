//! Why a command failed, what a person reads about it, and the exit code that a script sees.

use std::io;
use std::path::PathBuf;

use lapce_ai_client::{ClientError, ConnectError};
use lapce_ai_transport::BindError;

use crate::config::ConfigError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("the configuration cannot be used\n{0}")]
    Config(#[from] ConfigError),
    #[error("no daemon listens on {socket}: start one with `lapce-ai serve`", socket = .socket.display())]
    NoDaemon { socket: PathBuf },
    #[error("the daemon did not start: {why}\n{said}its log is {log}", log = .log.display())]
    NotStarted {
        why: String,
        said: String,
        log: PathBuf,
    },
    #[error(transparent)]
    Client(Box<ClientError>),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    Failed(String),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("interrupted")]
    Interrupted,
    /// Whoever reads our output has enough of it.
    #[error("the reader has gone")]
    ReaderGone,
}

impl Failure {
    /// The process's exit code. `lapce-ai --help` has the table.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Usage(_) | Self::Config(_) => 2,
            Self::NoDaemon { .. } | Self::NotStarted { .. } => 3,
            Self::Client(_) | Self::Bind(_) | Self::Failed(_) | Self::Output(_) => 1,
            Self::Interrupted => 130,
        }
    }

    /// Whether there is anything to tell a person.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self, Self::Interrupted | Self::ReaderGone)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Connect(ConnectError::NotRunning { path }) => {
                Self::NoDaemon { socket: path }
            }
            error => Self::Client(Box::new(error)),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::Output(error)
        }
    }
}
