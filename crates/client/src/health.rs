//! What a program can see of its connection.

use std::time::{Duration, Instant};

use crate::reconnect::ReconnectPolicy;

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An attempt is being made.
    Connecting,
    /// There is a connection.
    Connected,
    /// The next attempt comes later.
    Waiting {
        /// The number of the next attempt since the connection was lost, from 1.
        attempt: u32,
        /// When it comes, or earlier if the socket does.
        until: Instant,
    },
    /// There is no connection and none was wanted since the daemon hung up an idle one: the next request makes one.
    Idle,
    /// The daemon could not be reached within the limits of the policy. The next request tries again.
    GivenUp,
    /// The client has been closed.
    Closed,
}

/// How a client's connection does.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Where it stands.
    pub state: State,
    /// Since when there is a connection, or none.
    pub since: Instant,
    /// Attempts that failed since there was a connection. When no more are made, the policy says.
    pub attempts: u32,
    /// The limits and pauses in force, as the client was given them.
    pub policy: ReconnectPolicy,
    /// Whether the next attempt comes as soon as the socket does.
    pub watched: bool,
    /// How the last attempt failed, if one ever did.
    pub last_failure: Option<String>,
    /// How long there was no connection the last time.
    pub last_outage: Option<Duration>,
    /// How often what happened.
    pub counters: ReconnectCounters,
}

impl Health {
    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }
}

/// Something that happened to a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// What happened to a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A connection was made.
    Connected {
        /// Its number at the daemon.
        connection: u64,
        /// After how many attempts.
        attempts: u32,
        /// The daemon is not the one of the connection before: it was started anew.
        new_daemon: bool,
    },
    /// An attempt failed.
    Failed {
        /// Its number since the connection was lost, from 1.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// The socket was made, or a daemon began to listen on it.
    Appeared,
    /// The daemon takes no new requests on the connection; running ones go on.
    GoingAway {
        /// Why.
        reason: String,
    },
    /// The connection was lost.
    Lost {
        /// Why.
        reason: String,
    },
    /// No more attempts are made before the next request.
    GaveUp {
        /// How many there were.
        attempts: u32,
    },
    /// The client was closed.
    Closed,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReconnectCounters {
    /// Connections made.
    pub connected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Connections lost.
    pub lost: u64,
    /// Connections after which the daemon was another.
    pub new_daemons: u64,
    /// Times that no more attempts were made.
    pub gave_up: u64,
}
