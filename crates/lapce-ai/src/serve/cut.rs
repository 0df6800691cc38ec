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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    /// What is logged when it is dropped.
    fn told(cut: impl FnOnce() -> Cut) -> String {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(std::sync::Arc::new(log.reopen().unwrap()))
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || drop(cut()));
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_request_that_is_cut_leaves_its_trail() {
        let trail = Trail::default();
        let passed = told(|| Cut::new(&trail, Some(Instant::now())));
        assert!(
            passed.contains("INFO") && passed.contains("the deadline cut a request trail=\"\""),
            "{passed}"
        );
        let soon = Some(Instant::now() + Duration::from_secs(3600));
        for cancelled in [
            told(|| Cut::new(&trail, soon)),
            told(|| Cut::new(&trail, None)),
        ] {
            assert!(
                cancelled.contains("DEBUG") && cancelled.contains("a request was cancelled"),
                "{cancelled}"
            );
        }
        let ended = told(|| {
            let mut cut = Cut::new(&trail, Some(Instant::now()));
            cut.ended();
            cut
        });
        assert_eq!(ended, "");
    }
}
