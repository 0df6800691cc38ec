//! What becomes of a request whose connection is lost: rule 13 of the design, without I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapce_ai_proto::{Class, ErrorBody, ErrorCode, MessageType, OpenPrefix};

use crate::link::{Outcome, Outgoing, Refused};
use crate::{Body, ClientError, RequestOptions};

/// How much longer than a request's deadline its client waits for the daemon's word.
const GRACE: Duration = Duration::from_secs(1);

/// A request that may go over several connections.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    ty: MessageType,
    class: Class,
    /// Its options say something beside type and body.
    prefixed: bool,
    repeatable: bool,
    one_item: bool,
    deadline: Option<Instant>,
    /// Items of the answer that were handed out.
    received: u32,
    /// What is known of it, since a connection was lost on which it may have been taken.
    lost: Option<Lost>,
    resends: u32,
    max_resends: u32,
}

/// A request that may have been taken by a daemon whose connection was lost.
#[derive(Debug, Clone)]
struct Lost {
    /// Which life of the daemon.
    daemon: u128,
    /// What it was called there at first.
    sequence: u64,
    /// The daemon has neither accepted nor answered it.
    untouched: bool,
    reason: Arc<str>,
}

impl Plan {
    pub(crate) fn new(
        ty: MessageType,
        options: &RequestOptions,
        one_item: bool,
        max_resends: u32,
    ) -> Self {
        // A time too far to be represented is no deadline.
        let deadline = options
            .deadline
            .and_then(|after| Instant::now().checked_add(after));
        Self {
            ty,
            class: options.class,
            prefixed: *options != RequestOptions::default(),
            repeatable: options.repeatable || ty.is_harmless(),
            one_item,
            deadline,
            received: 0,
            lost: None,
            resends: 0,
            max_resends,
        }
    }

    /// Nothing beside its type and body is to be sent or remembered.
    pub(crate) fn is_plain(&self) -> bool {
        !self.prefixed && self.one_item && self.lost.is_none()
    }

    /// It may be run from its start, though it may have been before.
    fn may_run_again(&self) -> bool {
        self.repeatable && self.received == 0
    }

    /// Only the daemon that took it can say what became of it.
    pub(crate) fn needs_its_daemon(&self) -> bool {
        let touched = self.lost.as_ref().is_some_and(|lost| !lost.untouched);
        touched && !self.may_run_again()
    }

    /// Prepares to send it to a daemon in one of its lives.
    ///
    /// # Errors
    /// [`ClientError::OutcomeUnknown`]: another life took it, and it must not be run twice.
    pub(crate) fn prepare(&mut self, daemon: u128) -> Result<(), ClientError> {
        let Some(lost) = &self.lost else {
            return Ok(());
        };
        // The same one knows whether it was run.
        if lost.daemon != daemon {
            if self.needs_its_daemon() {
                return Err(self.unknown());
            }
            self.lost = None;
        }
        Ok(())
    }

    fn unknown(&self) -> ClientError {
        let reason = self.lost.as_ref().map(|lost| lost.reason.to_string());
        ClientError::OutcomeUnknown {
            reason: reason.unwrap_or_default(),
        }
    }

    /// The error of a request that could not be sent again.
    pub(crate) fn not_sent(&self, error: ClientError) -> ClientError {
        match error {
            ClientError::Connect(_)
            | ClientError::Unreachable { .. }
            | ClientError::DeadlineExceeded
                if self.needs_its_daemon() =>
            {
                self.unknown()
            }
            error => error,
        }
    }

    /// An item of the answer was handed out.
    pub(crate) fn handed_out(&mut self) {
        self.received = self.received.saturating_add(1);
    }

    /// What is sent now.
    pub(crate) fn outgoing<'a>(&self, body: &'a Body<'a>) -> Outgoing<'a> {
        Outgoing {
            ty: self.ty,
            body,
            lent: false,
            prefix: self.prefix(),
            repeatable: self.may_run_again(),
            one_item: self.one_item,
            may_lag: false,
        }
    }

    /// What OPEN says beside type and body.
    pub(crate) fn prefix(&self) -> Option<OpenPrefix> {
        (self.prefixed || self.lost.is_some()).then(|| OpenPrefix {
            deadline_ms: self.deadline.map_or(0, |deadline| {
                let left = deadline
                    .saturating_duration_since(Instant::now())
                    .as_millis();
                u32::try_from(left).unwrap_or(u32::MAX).max(1)
            }),
            class: self.class,
            repeatable: self.may_run_again(),
            received: self.received,
            sequence: self.lost.as_ref().map_or(0, |lost| lost.sequence),
            ..OpenPrefix::default()
        })
    }

    /// When waiting for a connection or for one's turn ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// When waiting for an answer ends, if the daemon says nothing.
    pub(crate) fn last_moment(&self) -> Option<Instant> {
        self.deadline
            .and_then(|deadline| deadline.checked_add(GRACE))
    }

    /// What becomes of a request whose stream ended so, on a link to this life of the daemon. `Ok`: send it again.
    pub(crate) fn after(&mut self, outcome: Outcome, daemon: u128) -> Result<(), ClientError> {
        let (id, untouched, reason) = match outcome {
            Outcome::Failed(body) if body.code == ErrorCode::OutcomeUnknown => {
                let reason = body.message;
                return Err(ClientError::OutcomeUnknown { reason });
            }
            Outcome::Failed(body) => return Err(ClientError::Daemon(body.into())),
            Outcome::Closed => return Err(ClientError::Closed),
            Outcome::Lost {
                id,
                untouched,
                reason,
            } => (id, untouched, reason),
        };
        if let Some(id) = id {
            let before = self.lost.take();
            self.lost = Some(Lost {
                daemon,
                sequence: before.as_ref().map_or(id, |lost| lost.sequence),
                untouched: untouched && before.is_none_or(|lost| lost.untouched),
                reason: Arc::clone(&reason),
            });
        }
        if self.resends >= self.max_resends {
            let reason = reason.to_string();
            return Err(ClientError::OutcomeUnknown { reason });
        }
        self.resends += 1;
        Ok(())
    }
}

impl From<Refused> for Option<ClientError> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Gone => None,
            Refused::TooLarge(most) => {
                let message = format!("at most {most} bytes are taken");
                let body = ErrorBody::new(ErrorCode::MessageTooLarge, message);
                Some(ClientError::Daemon(body.into()))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A type that has effects.
    const TYPE: MessageType = MessageType(0x8001);
    /// Two lives of the daemon.
    const FIRST: u128 = 1;
    const SECOND: u128 = 2;

    fn plan(repeatable: bool) -> Plan {
        let options = RequestOptions {
            repeatable,
            ..RequestOptions::default()
        };
        Plan::new(TYPE, &options, true, 3)
    }

    fn lost(id: u64, untouched: bool) -> Outcome {
        Outcome::Lost {
            id: Some(id),
            untouched,
            reason: Arc::from("cut"),
        }
    }

    /// What the next OPEN says: sequence, received, repeatable.
    fn says(plan: &Plan) -> Option<(u64, u32, bool)> {
        let prefix = plan.prefix()?;
        Some((prefix.sequence, prefix.received, prefix.repeatable))
    }

    fn is_unknown<T>(result: &Result<T, ClientError>) -> bool {
        matches!(result, Err(ClientError::OutcomeUnknown { .. }))
    }

    #[test]
    fn the_same_daemon_is_asked_by_the_first_id() {
        for untouched in [true, false] {
            let mut plan = plan(false);
            assert!(plan.is_plain() && says(&plan).is_none());
            plan.after(lost(70, untouched), FIRST).unwrap();
            assert_eq!(plan.needs_its_daemon(), !untouched);
            plan.prepare(FIRST).unwrap();
            assert_eq!(says(&plan), Some((70, 0, false)));
            plan.after(lost(90, true), FIRST).unwrap();
            plan.prepare(FIRST).unwrap();
            assert_eq!(says(&plan), Some((70, 0, false)));
            assert_eq!(plan.needs_its_daemon(), !untouched, "once touched, always");
        }
    }

    #[test]
    fn another_daemon_gets_what_was_not_touched_or_may_be_repeated() {
        let mut untouched = plan(false);
        untouched.after(lost(70, true), FIRST).unwrap();
        untouched.prepare(SECOND).unwrap();
        assert_eq!(says(&untouched), None, "as for the first time");
        let mut touched = plan(false);
        touched.after(lost(70, false), FIRST).unwrap();
        assert!(is_unknown(&touched.prepare(SECOND)));
        let mut repeatable = plan(true);
        repeatable.after(lost(70, false), FIRST).unwrap();
        assert!(!repeatable.needs_its_daemon());
        repeatable.prepare(SECOND).unwrap();
        assert_eq!(says(&repeatable), Some((0, 0, true)));
        // The second daemon is asked by the id that it knows.
        repeatable.after(lost(90, false), SECOND).unwrap();
        repeatable.prepare(SECOND).unwrap();
        assert_eq!(says(&repeatable), Some((90, 0, true)));
    }

    #[test]
    fn what_was_handed_out_is_not_begun_anew() {
        let mut plan = plan(true);
        plan.handed_out();
        plan.after(lost(70, false), FIRST).unwrap();
        plan.prepare(FIRST).unwrap();
        assert_eq!(says(&plan), Some((70, 1, false)));
        assert!(plan.needs_its_daemon() && is_unknown(&plan.prepare(SECOND)));
        let unreachable = ClientError::Unreachable {
            attempts: 1,
            reason: String::new(),
        };
        assert!(is_unknown::<()>(&Err(plan.not_sent(unreachable))));
    }

    #[test]
    fn what_was_sent_back_goes_as_for_the_first_time() {
        let mut plan = plan(false);
        let sent_back = Outcome::Lost {
            id: None,
            untouched: true,
            reason: Arc::from("going away"),
        };
        plan.after(sent_back, FIRST).unwrap();
        plan.prepare(FIRST).unwrap();
        assert_eq!(says(&plan), None);
    }

    #[test]
    fn a_request_is_not_sent_for_ever() {
        let mut plan = plan(true);
        for id in 1..=3 {
            plan.after(lost(id, true), FIRST).unwrap();
        }
        assert!(is_unknown(&plan.after(lost(4, true), FIRST)));
    }

    #[test]
    fn the_daemons_word_that_it_is_unknown_is_the_clients() {
        let body = ErrorBody::new(ErrorCode::OutcomeUnknown, "was run");
        assert!(is_unknown(&plan(false).after(Outcome::Failed(body), FIRST)));
        let harmless = Plan::new(MessageType::ECHO, &RequestOptions::default(), true, 3);
        assert!(harmless.is_plain() && harmless.may_run_again());
    }
}
