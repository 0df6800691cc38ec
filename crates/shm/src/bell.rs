//! The bell: one byte over the connection's Unix socket wakes the peer, and the socket's end tells
//! of the peer's death, so nobody sleeps on something that a dead peer would have to wake.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Why a bell did not work.
#[derive(Debug, thiserror::Error)]
pub enum BellError {
    /// The peer has closed its socket or died.
    #[error("the peer is gone")]
    PeerGone,
    /// The system refused.
    #[error("{call} on the bell's socket failed: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The bell was rung. Drain it, then look at the rings.
    Rung,
    /// The time is over.
    TimedOut,
    /// The peer has closed its socket or died. It may have rung, and left bytes, before.
    PeerGone,
}

/// The bell of one connection, on its stream socket. Works on blocking and non-blocking sockets.
#[derive(Debug, Clone, Copy)]
pub struct Bell<'a> {
    socket: BorrowedFd<'a>,
}

impl<'a> Bell<'a> {
    /// The bell on this socket.
    pub fn new<Fd: AsFd>(socket: &'a Fd) -> Self {
        Self {
            socket: socket.as_fd(),
        }
    }

    /// Rings the peer's bell. Never blocks: a full socket means that it is already rung.
    ///
    /// # Errors
    /// [`BellError::PeerGone`], or the system's refusal.
    pub fn ring(self) -> Result<(), BellError> {
        loop {
            match send(self.socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(BellError::PeerGone),
                Err(errno) => return Err(system("send", errno)),
            }
        }
    }

    /// Takes the rings of our own bell, without blocking, in one system call. True if there were any. A peer that rang
    /// thousands of times leaves some for the next call, and the socket readable: nobody is kept here by it.
    ///
    /// # Errors
    /// [`BellError::PeerGone`] if the peer is gone and what it rang before has been taken; or the system's refusal.
    pub fn drain(self) -> Result<bool, BellError> {
        // Not zeroed: that was half of the instructions of a round trip between sleepers.
        let mut bytes = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            match recv(self.socket, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Err(BellError::PeerGone),
                Ok(_) => return Ok(true),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("recv", errno)),
            }
        }
    }

    /// Sleeps until the bell is rung, the peer is gone, or `timeout` is over (`None`: for ever).
    /// Takes no rings.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn wait(self, timeout: Option<Duration>) -> Result<Woken, BellError> {
        // A time too far to be represented is for ever.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()))
                .and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::RDHUP)];
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => return Ok(Woken::TimedOut),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(system("poll", errno)),
            }
            let events = polled[0].revents();
            if events.contains(PollFlags::NVAL) {
                return Err(system("poll", Errno::BADF));
            }
            let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
            return Ok(if events.intersects(gone) {
                Woken::PeerGone
            } else {
                Woken::Rung
            });
        }
    }
}

fn system(call: &'static str, errno: Errno) -> BellError {
    BellError::System {
        call,
        source: errno.into(),
    }
}
