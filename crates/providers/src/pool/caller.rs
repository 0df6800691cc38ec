//! Who asks, and how urgently.

use tokio::time::Instant;

use super::limits::Priority;

/// What the pool knows of whoever makes a request. A deadline alone is a caller whom nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// When the answer becomes worthless.
    pub deadline: Option<Instant>,
    /// How urgent it is where requests have to wait.
    pub priority: Priority,
    /// The user whose limits count; none: no client's.
    pub uid: Option<u32>,
}

impl From<Option<Instant>> for Caller {
    fn from(deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            ..Self::default()
        }
    }
}
