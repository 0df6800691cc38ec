//! How a reactor stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapce_ai_proto::ErrorCode;
use lapce_ai_transport::TransportError;

use super::Reactor;
use super::retire::Succession;

impl Reactor {
    /// Begins to stop, or shortens the time for it.
    pub(super) fn drain(&mut self, drain: Duration) {
        self.stopping = true;
        let begun = self.draining.is_some();
        // Only a shorter one changes anything.
        self.shorten_drain(drain);
        if begun {
            return;
        }
        self.refuse_handshakes();
        for index in self.connections.indices() {
            self.send_away(index, drain);
        }
    }

    /// Asks a client to open its requests elsewhere from now on; what runs has so long.
    pub(super) fn send_away(&mut self, index: u32, drain: Duration) {
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        let millis = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
        let mut tx = connection.session.lock();
        tx.state.go_away(ErrorCode::ServerRestarting, millis);
        let result = tx.pump();
        if tx.writer.wants_writable() {
            connection.session.call_reactor();
        }
        drop(tx);
        match result {
            // Where nobody follows after all it is looked at until it is quiet.
            Ok(()) => {
                connection.watched = true;
                self.note_watched(index);
            }
            Err(error) => self.close(index, &error),
        }
    }

    /// While draining: closes what is quiet, and at the deadline cuts the rest.
    pub(super) fn is_done(&mut self) -> bool {
        let Some(until) = self.draining else {
            return false;
        };
        let over = Instant::now() >= until;
        for index in self.connections.indices() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let mut tx = connection.session.lock();
            if over {
                tx.cut_all(ErrorCode::ServerRestarting, "the daemon is stopping");
                let _ = tx.pump();
            }
            if over || tx.is_quiet() {
                drop(tx);
                self.close(index, &TransportError::PeerGone);
            }
        }
        match self.succession {
            Succession::None => self.connections.len() == 0,
            // Who comes back must find somebody here.
            Succession::Undecided => false,
            // Somebody may be on the way here from another reactor, or in a handshake.
            Succession::Followed => self.shared.occupancy.is_empty(),
        }
    }

    /// The last reactor takes the socket's name away, unless it is another daemon's: by now, or still.
    pub(super) fn finish(self) {
        // Whoever is in it has just come from another reactor, and is hung up on.
        drop(self.mailbox.close());
        if let Some(listener) = self.door.into_listener().and_then(Arc::into_inner) {
            if self.shared.opened.load(Ordering::Acquire)
                && let Err(error) = listener.remove()
            {
                tracing::warn!(%error, "could not remove the socket or its lock");
            }
            tracing::info!("stopped");
        }
    }
}
