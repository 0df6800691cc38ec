//! The reading side: whoever leads takes what came for all, and sleeps when there is nothing.

use std::task::{Poll, Waker};
use std::time::Duration;

use lapce_ai_proto::MORE;
use lapce_ai_transport::{Reader, TransportError, flush};

use super::Link;
use super::lead::{LeadGuard, Leading, Turn, wake_all};
use super::slot::Kept;
use super::tx::Tx;
use super::upload::Lent;

/// After so long without traffic a link gives back what memory it can.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// The reading side and who holds it.
#[derive(Debug)]
pub(crate) struct Rx {
    reader: Reader,
    scratch: Vec<u8>,
    wakes: Vec<Waker>,
    /// The daemon's end of the socket is closed; what it had published is still read.
    gone: bool,
    /// The last frame was a piece of an item that goes on.
    midway: bool,
}

impl Leading for Rx {
    #[inline]
    fn wakes(&mut self) -> &mut Vec<Waker> {
        &mut self.wakes
    }
}

impl Rx {
    /// Whether the daemon is writing an item of which more follows at once, unless it waits for room or credit.
    #[inline]
    pub(crate) fn is_midway(&self) -> bool {
        self.midway
    }

    pub(super) fn new(reader: Reader) -> Self {
        let scratch = vec![0; reader.scratch_len()];
        Self {
            reader,
            scratch,
            wakes: Vec::new(),
            gone: false,
            midway: false,
        }
    }

    /// Whether there is something to read, without a system call. A corrupt ring counts: the pump tells.
    #[inline]
    pub(crate) fn has_data(&mut self) -> bool {
        self.reader.has_data().unwrap_or(true)
    }
}

impl Link {
    /// Takes frames that are there, sends what waits, and asks `then` before it lets go of the lock. Returns how many
    /// frames there were.
    #[inline]
    pub(crate) fn pump<T>(&self, rx: &mut Rx, then: impl FnOnce(&mut Tx) -> T) -> (usize, T) {
        let mut tx = self.tx();
        let frames = self.take_in(&mut tx, rx, None);
        // Who pumps so may go away without another look.
        self.leave_blocked(&mut tx, &mut rx.wakes);
        let then = then(&mut tx);
        tx.call_next(&mut rx.wakes);
        drop(tx);
        if !rx.wakes.is_empty() {
            wake_all(&mut rx.wakes);
        }
        (frames, then)
    }

    /// [`pump`](Self::pump), and if `then` is ready, [`leave`](Self::leave) too. Otherwise `rx` comes back, with the
    /// number of frames. `lent`: the bytes of the caller's own request, if it lends them.
    #[inline]
    pub(crate) fn pump_for<'a, T>(
        &self,
        rx: LeadGuard<'a, Rx>,
        lent: Option<Lent<'_>>,
        then: impl FnOnce(&mut Tx) -> Poll<T>,
    ) -> Result<T, (usize, LeadGuard<'a, Rx>)> {
        let mut frames = 0;
        let led = self.lead.lead(rx, |rx, tx| {
            frames = self.take_in(tx, rx, lent);
            let then = then(tx);
            tx.call_next(&mut rx.wakes);
            then
        });
        led.map_err(|rx| (frames, rx))
    }

    #[inline]
    fn take_in(&self, tx: &mut Tx, rx: &mut Rx, lent: Option<Lent<'_>>) -> usize {
        let Rx {
            reader,
            scratch,
            wakes,
            gone,
            midway,
        } = rx;
        if tx.end.is_some() {
            return 0;
        }
        let mut frames = 0;
        // What is found out below says nothing of what is read here: the daemon may have published more before it went.
        let was_gone = *gone;
        let read = reader.receive(scratch, usize::MAX, |frame, rest| {
            frames += 1;
            *midway = frame.has(MORE);
            tx.on_frame(&frame, rest, wakes)
        });
        let pumped = read.and_then(|_| {
            loop {
                let written = tx.write_out(lent);
                tx.lagging = 0;
                match written.and_then(|()| flush(reader, &mut tx.writer)) {
                    // Whether it left something to read is seen on the next round.
                    Err(TransportError::PeerGone) => *gone = true,
                    other => other?,
                }
                if *gone || !tx.found_room()? {
                    break;
                }
            }
            if was_gone && frames == 0 {
                Err(TransportError::PeerGone.into())
            } else {
                Ok(())
            }
        });
        match pumped {
            Err(end) => self.fail(tx, end, wakes),
            Ok(()) if frames > 0 => {
                tx.next_may_go = true;
                self.note_phase(tx, wakes);
            }
            Ok(()) => {}
        }
        frames
    }

    /// Prepares to sleep on the socket. `None`: there is something to do first. Otherwise whether it matters too that
    /// the socket becomes writable.
    pub(crate) fn prepare_to_sleep(&self, rx: &mut Rx) -> Option<bool> {
        // The daemon has been rung by now, so this takes no time from anybody.
        let taken = rx.reader.take_bell();
        if !self.noted(rx, taken) {
            return None;
        }
        let mut tx = self.tx();
        if tx.end.is_some() {
            return None;
        }
        let prepared = rx
            .reader
            .prepare_to_sleep()
            .and_then(|sleeps| Ok(sleeps && tx.ask_for_room()?));
        match prepared {
            Ok(true) => Some(tx.writer.wants_writable()),
            Ok(false) => None,
            // What it had published is read first.
            Err(TransportError::PeerGone) => {
                rx.gone = true;
                None
            }
            Err(error) => {
                let mut wakes = Vec::new();
                self.fail(&mut tx, error.into(), &mut wakes);
                drop(tx);
                wake_all(&mut wakes);
                None
            }
        }
    }

    /// Writes what is blocked, or asks for a bell when it finds room.
    #[inline]
    fn leave_blocked(&self, tx: &mut Tx, wakes: &mut Vec<Waker>) {
        if tx.blocked.is_some()
            && tx.end.is_none()
            && let Err(error) = tx.write_on()
        {
            self.write_failed(tx, error, wakes);
        }
    }

    /// Whether there is memory that a quiet connection need not hold.
    pub(crate) fn may_trim(&self) -> bool {
        let tx = self.tx();
        !tx.writer.is_trimmed() || tx.kept != Kept::Nothing
    }

    /// Gives the memory of the request ring's further pages back, and at the second call in a row what is kept for requests and
    /// answers to come. For a link on which nothing has happened for [`QUIET`], as far as the caller knows.
    pub(crate) fn trim(&self) {
        let mut tx = self.tx();
        tx.trim_slots();
        // A ring that is corrupt is found by the next pump.
        let _ = tx.writer.trim();
    }

    /// After a sleep. The bell is taken before the next one.
    pub(crate) fn woken(&self, rx: &mut Rx) {
        let woken = rx.reader.woken();
        self.noted(rx, woken);
    }

    /// Notes the daemon's death. False: there is an end to be told of.
    fn noted(&self, rx: &mut Rx, bell: Result<(), TransportError>) -> bool {
        match bell {
            Ok(()) => return true,
            // What it had published is read first.
            Err(TransportError::PeerGone) => rx.gone = true,
            Err(error) => self.close(error.into()),
        }
        false
    }

    /// Sends what waits for the socket to be writable, or for room. False: it would block still.
    pub(crate) fn write_more(&self) -> bool {
        let mut wakes = Vec::new();
        let mut tx = self.tx();
        if tx.end.is_none()
            && let Err(error) = tx.write_on()
        {
            self.write_failed(&mut tx, error, &mut wakes);
        }
        tx.next_may_go = true;
        tx.call_next(&mut wakes);
        let done = tx.end.is_some() || !tx.writer.wants_writable();
        drop(tx);
        wake_all(&mut wakes);
        done
    }

    /// Whether a frame waits for room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.tx().blocked.is_some()
    }

    /// Whether a frame that waits for room would find it now. A corrupt ring counts: the pump tells.
    pub(crate) fn has_room(&self) -> bool {
        let mut tx = self.tx();
        let need = tx.blocked.unwrap_or(0);
        tx.writer.has_room(need).unwrap_or(true)
    }

    /// Notes who is to be woken when something other than the socket asks for attention.
    pub(crate) fn set_driver(&self, waker: &Waker) {
        let mut tx = self.tx();
        if !tx
            .driver
            .as_ref()
            .is_some_and(|driver| driver.will_wake(waker))
        {
            tx.driver = Some(waker.clone());
        }
    }

    /// Over a plain socket: wakes the driver if something waits for it to be writable, or if there is `more` to read.
    #[inline]
    pub(crate) fn tell_driver(&self, more: bool) {
        if !self.shares_memory() {
            let tx = self.tx();
            let driver = if more || tx.wants_writable() {
                tx.driver.clone()
            } else {
                None
            };
            drop(tx);
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }

    /// Gives up the right to pump, and wakes one of those who wait.
    pub(crate) fn leave(&self, rx: LeadGuard<'_, Rx>) {
        self.lead.leave(rx);
    }

    /// Waits while another pumps: see [`Leadership::follow`](super::lead::Leadership::follow).
    pub(crate) fn follow<T, S>(
        &self,
        waker: &Waker,
        look: impl FnMut(&mut Tx, &mut Vec<Waker>) -> Result<T, S>,
        over: impl Fn() -> bool,
        sleep: impl Fn(S),
    ) -> Turn<'_, Rx, T> {
        self.lead.follow(waker, look, over, sleep)
    }
}
