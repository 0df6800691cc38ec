//! What a reactor does because of the time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapce_ai_proto::ErrorCode;
use lapce_ai_transport::TransportError;

use super::Reactor;
use super::retire::Succession;

/// How often the reactor looks at the clock while something may stall or expire.
const TICK: Duration = Duration::from_millis(100);
/// The same while it drains.
const DRAIN_TICK: Duration = Duration::from_millis(5);
/// After so long without traffic a connection gives back what memory it can.
pub(super) const QUIET: Duration = Duration::from_secs(1);

impl Reactor {
    /// How long nothing can happen by itself.
    pub(super) fn sleep_time(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let tick = if self.draining.is_some() {
            // Nobody waits for the end of one that is followed, and it may take long.
            let followed = self.succession == Succession::Followed;
            Some(now + if followed { TICK } else { DRAIN_TICK })
        } else {
            self.tick_at(now)
        };
        self.note_heap(now);
        // Whoever closes the last connection sees this afterwards, and so somebody does.
        let exit = if self.may_leave_idle() {
            self.shared.exit_at()
        } else {
            None
        };
        let heap = self.heap.next_look;
        [tick, self.next_idle_look, self.next_trim, heap, exit]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now))
    }

    /// Whether it may stop for lack of clients.
    fn may_leave_idle(&self) -> bool {
        self.connections.len() == 0 && self.door.open && self.draining.is_none()
    }

    /// When the reactor looks for what stalls or expires, if anything may. Once set it is kept until it comes, so that
    /// steady traffic does not put it off.
    fn tick_at(&mut self, now: Instant) -> Option<Instant> {
        let busy =
            self.door.wants_a_tick() || !self.shared.line.is_empty() || !self.watched.is_empty();
        self.next_tick = busy.then(|| self.next_tick.unwrap_or(now + TICK));
        self.next_tick
    }

    /// Whatever depends on the clock.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.tick_at(now);
        if self.may_leave_idle() {
            self.shared.stop_if_idle(now);
        }
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = None;
            self.expire_handshakes(now);
            self.door.try_again();
            self.expire_waiting(now);
            let mut watched = std::mem::take(&mut self.watched_before);
            std::mem::swap(&mut watched, &mut self.watched);
            for index in watched.drain(..) {
                let Some(connection) = self.connections.get(index) else {
                    continue;
                };
                connection.listed = false;
                match connection.check_stalls(now, &self.shared) {
                    Ok(()) => {
                        // It sleeps without a bell for its data: whether it may be read again is seen here.
                        if connection.paused {
                            self.heat(index);
                        }
                        self.note_watched(index);
                    }
                    Err(error) => self.close(index, &error),
                }
            }
            self.watched_before = watched;
            self.grant();
        }
        if self.next_idle_look.is_some_and(|at| at <= now) {
            self.close_idle(now);
        }
        if self.next_trim.is_some_and(|at| at <= now) {
            self.trim_quiet(now);
        }
        if self.heap.next_look.is_some_and(|at| at <= now) {
            self.look_at_heap(now);
        }
    }

    /// Requests whose deadline passed while they waited for memory.
    fn expire_waiting(&mut self, now: Instant) {
        let reactor = self.mailbox.number;
        for (number, token, id) in self.shared.line.expired(reactor, now) {
            let Some(index) = self.connections.index(token) else {
                continue;
            };
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let parked = self.shared.forget(number, Some(id));
            if let Err(error) = connection.expire(id, parked, &self.shared) {
                self.close(index, &error);
            }
        }
    }

    fn close_idle(&mut self, now: Instant) {
        self.next_idle_look = None;
        let Some(limit) = self.shared.options.idle_timeout else {
            return;
        };
        for index in self.connections.indices() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            // A hot connection talked a moment ago; when it cools, the time is noted.
            if connection.hot {
                connection.last_activity = now;
            }
            let expires = connection.last_activity + limit;
            if connection.session.live.load(Ordering::Relaxed) == 0 && expires <= now {
                connection.say_goodbye(ErrorCode::IdleTimeout, "nothing was asked for a long time");
                self.close(index, &TransportError::PeerGone);
            } else {
                // A busy connection is looked at again after a whole limit.
                let next = if expires <= now { now + limit } else { expires };
                self.next_idle_look = Some(self.next_idle_look.map_or(next, |at| at.min(next)));
            }
        }
    }

    pub(super) fn note_idle_deadline(&mut self) {
        if let Some(limit) = self.shared.options.idle_timeout
            && self.next_idle_look.is_none()
        {
            self.next_idle_look = Some(Instant::now() + limit);
        }
    }

    /// Sees to it that a connection which went to sleep is looked at when it may be quiet, if there is a reason.
    pub(super) fn note_cooled(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index)
            && !connection.quieting
            && connection.may_trim()
        {
            connection.quieting = true;
            let at = connection.last_activity + QUIET;
            self.quieting.push(index);
            self.next_trim.get_or_insert(at);
        }
    }

    /// Has connections that are quiet give back what memory they can; those that are not yet, or on which something runs, keep
    /// their place.
    pub(super) fn trim_quiet(&mut self, now: Instant) {
        self.next_trim = None;
        let mut at = 0;
        while let Some(&index) = self.quieting.get(at) {
            let Some(connection) = self.connections.get(index) else {
                self.quieting.swap_remove(at);
                continue;
            };
            let quiet_at = connection.last_activity + QUIET;
            if connection.hot || quiet_at > now {
                let look = quiet_at.max(now + TICK);
                self.next_trim = Some(self.next_trim.map_or(look, |next| next.min(look)));
                at += 1;
                continue;
            }
            match connection.trim() {
                Ok(false) => {
                    let look = now + QUIET;
                    self.next_trim = Some(self.next_trim.map_or(look, |next| next.min(look)));
                    at += 1;
                }
                Ok(true) => {
                    connection.quieting = false;
                    self.quieting.swap_remove(at);
                }
                Err(error) => self.close(index, &error),
            }
        }
    }
}
