//! What is told of a request that is cut: by its deadline, or because nobody wants the answer any more. Its future is
//! dropped then, wherever it stands, so this is said by a value that is dropped with it.

use lapce_ai_providers::Trail;
use tokio::time::Instant;

/// Logs what was tried for a request, unless it came to its end.
#[derive(Debug)]
pub(super) struct Cut {
    trail: Trail,
    deadline: Option<Instant>,
    ended: bool,
}

impl Cut {
    /// Of the request that leaves this trail.
    pub(super) fn new(trail: &Trail, deadline: Option<Instant>) -> Self {
        Self {
            trail: trail.clone(),
            deadline,
            ended: false,
        }
    }

    /// The request was answered, or its error told.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // As a quoted text: a client may name a model as it likes.
        let trail = self.trail.to_string();
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            tracing::info!(?trail, "the deadline cut a request");
        } else {
            // Editors do so all the time.
            tracing::debug!(?trail, "a request was cancelled");
        }
    }
}
