//! A Unix stream socket: what a program would use without shared memory. Frames that wait to be sent go in one call.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lapce_ai_proto::HEADER_LEN;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::stream::{Stream, StreamPeer, echo};
use super::{Peer, Setup};
use crate::child::{Child, Parent};

/// Bytes that are gathered for one call, and taken with one.
const GATHERED: usize = 64 * 1024;
/// Longest sleep of the asking side before it concludes that the child hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Socket {
    socket: UnixStream,
    spinning: bool,
    outgoing: Vec<u8>,
    sent: usize,
}

impl Socket {
    fn new(socket: UnixStream, spinning: bool) -> Self {
        Self {
            socket,
            spinning,
            outgoing: Vec::with_capacity(2 * GATHERED),
            sent: 0,
        }
    }
}

impl Stream for Socket {
    fn push(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.outgoing.len() >= GATHERED {
            self.flush()?;
        }
        let n = bytes
            .len()
            .min(GATHERED.saturating_sub(self.outgoing.len()));
        self.outgoing.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> Result<bool> {
        while self.sent < self.outgoing.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, &self.outgoing[self.sent..], flags) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot send to the other side"),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(true)
    }

    fn pop(&mut self, into: &mut [u8], may_sleep: bool) -> Result<usize> {
        // The socket itself blocks, so that sleeping takes one call, as in any blocking program.
        let sleeps = may_sleep && !self.spinning;
        let flags = if sleeps {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        match recv(&self.socket, into, flags) {
            Ok((_, 0)) => bail!("the other side is gone"),
            Ok((_, n)) => Ok(n),
            Err(Errno::AGAIN) if sleeps => bail!("nothing has come for {PATIENCE:?}"),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(errno) => Err(errno).context("cannot receive from the other side"),
        }
    }

    fn pause(&mut self) -> Result<()> {
        if !self.spinning {
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !self.outgoing.is_empty());
            poll(&mut [PollFd::new(&self.socket, wanted)], None)?;
        }
        Ok(())
    }
}

pub(super) fn start(setup: &Setup, payload: usize, spinning: bool) -> Result<impl Peer + use<>> {
    let frame = HEADER_LEN + payload;
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let role = if spinning {
        "unix-spinning"
    } else {
        "unix-blocking"
    };
    let child = Child::start(&[role, &frame.to_string()], &setup.cpus, &[theirs.as_fd()])?;
    Ok(StreamPeer::new(
        child,
        Socket::new(ours, spinning),
        frame,
        GATHERED,
    ))
}

pub(super) fn answer(parent: Parent, frame: usize, spinning: bool) -> Result<()> {
    let socket = UnixStream::from(parent.descriptor()?);
    parent.ready()?;
    echo(Socket::new(socket, spinning), frame, GATHERED)
}
