//! What a reactor does when another daemon follows, or may follow.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Reactor;
use crate::mailbox::Newcomer;
use crate::succession::{Order, Report};

/// Whether another daemon follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// Nobody.
    None,
    /// It takes nothing new until it is known.
    Undecided,
    /// Another one has the door.
    Followed,
}

impl Reactor {
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::Retire {
                drain,
                keep,
                report,
            } => {
                self.door.open = false;
                self.mind_the_door();
                self.succession = Succession::Undecided;
                self.shorten_drain(drain);
                let mut resting = Vec::new();
                for index in self.connections.indices() {
                    let rests = if keep { self.put_to_rest(index) } else { None };
                    if rests.is_none() {
                        self.send_away(index, drain);
                        self.note_taken(index);
                    }
                    resting.extend(rests);
                }
                if let Some(listener) = self.door.listener() {
                    let (shared, listener) = (Arc::clone(&self.shared), Arc::clone(listener));
                    // One that has given up waiting hears nothing, and the report is dropped.
                    let _ = report.send(Report {
                        shared,
                        listener,
                        resting,
                    });
                }
            }
            Order::Resume => {
                // Clients that were sent away come back by themselves.
                self.succession = Succession::None;
                self.door.open = true;
                self.mind_the_door();
                if !self.stopping {
                    self.draining = None;
                }
            }
            Order::Leave { drain } => {
                self.succession = Succession::Followed;
                self.door.leave();
                self.shorten_drain(drain);
            }
            Order::Open => self.door.open = true,
        }
    }

    /// Takes a connection out that another daemon can go on with. `None`: this one has to end what is under way, or it ended
    /// here and now.
    fn put_to_rest(&mut self, index: u32) -> Option<Newcomer> {
        match self.connections.get(index)?.is_at_rest() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                self.close(index, &error);
                return None;
            }
        }
        let session = &self.connections.get(index)?.session;
        {
            let sessions = self.shared.sessions.lock();
            let mut sessions = sessions.unwrap_or_else(PoisonError::into_inner);
            // That list's and the connection's: a task that has answered may hold it still, and another reactor may be about
            // to close it. Nobody gets it from the list now.
            if Arc::strong_count(session) > 2 {
                return None;
            }
            sessions.remove(&session.id);
        }
        let through = session.lock().state.last_taken();
        self.shared.repeats.on_its_way(session.whose(), through);
        self.take_off(index)?.into_newcomer()
    }

    /// What a connection has taken is final: it is remembered as if the connection had been lost by now, so that the next
    /// daemon knows.
    fn note_taken(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index) {
            let session = &connection.session;
            let tx = session.lock();
            if !tx.closed {
                self.shared
                    .repeats
                    .taken(session.whose(), tx.state.last_taken(), Instant::now());
            }
        }
    }

    pub(super) fn shorten_drain(&mut self, drain: Duration) {
        let until = Instant::now() + drain;
        self.draining = Some(self.draining.map_or(until, |before| before.min(until)));
    }
}
