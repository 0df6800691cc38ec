//! What a reactor does when another daemon follows, or may follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reactor;
use crate::succession::Order;

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
            Order::Retire { drain, report } => {
                self.door.open = false;
                self.mind_the_door();
                self.succession = Succession::Undecided;
                self.shorten_drain(drain);
                for index in self.connections.indices() {
                    self.send_away(index, drain);
                    self.note_taken(index);
                }
                if let Some(listener) = self.door.listener() {
                    // Whoever has given up waiting needs no report.
                    let _ = report.send(Arc::clone(listener));
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
