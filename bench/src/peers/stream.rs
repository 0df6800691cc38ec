//! Frames over anything that carries bytes in order: the asking and the answering side of the plain ring and of the
//! Unix socket.

use anyhow::{Result, bail};
use lapce_ai_proto::HEADER_LEN;

use super::Peer;
use crate::child::{Child, Patience};
use crate::message::{Flow, Messages, payload_of};

/// A carrier of bytes in both directions.
pub(super) trait Stream {
    /// Takes bytes to be sent, as many as there is room for.
    fn push(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Lets the other side see what was pushed. False: some of it is still on this side.
    fn flush(&mut self) -> Result<bool>;

    /// Takes received bytes. With `may_sleep` there is nothing else to do until some come.
    fn pop(&mut self, into: &mut [u8], may_sleep: bool) -> Result<usize>;

    /// After a flush that was not complete: sleeps until something can be done, or returns at once where this side spins.
    fn pause(&mut self) -> Result<()>;
}

/// The asking side.
#[derive(Debug)]
pub(super) struct StreamPeer<S> {
    child: Child,
    stream: S,
    incoming: Incoming,
}

impl<S: Stream> StreamPeer<S> {
    /// `frame`: length of every frame; `batch`: bytes that are taken at a time, if more than one frame fits.
    pub(super) fn new(child: Child, stream: S, frame: usize, batch: usize) -> Self {
        Self {
            child,
            stream,
            incoming: Incoming::new(frame, batch),
        }
    }
}

impl<S: Stream> Peer for StreamPeer<S> {
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>> {
        let Self {
            child,
            stream,
            incoming,
        } = self;
        let frame = messages.frame(index);
        let mut sent = stream.push(frame)?;
        let mut flushed = stream.flush()?;
        let mut patience = Patience::default();
        loop {
            let all_sent = flushed && sent == frame.len();
            let mut progress = incoming.fill_one(stream, all_sent)?;
            if incoming.has_one() {
                break;
            }
            if !all_sent {
                let pushed = stream.push(&frame[sent..])?;
                sent += pushed;
                flushed = stream.flush()?;
                progress |= pushed > 0;
            }
            if !progress {
                if !flushed {
                    stream.pause()?;
                }
                patience.turn(child)?;
            }
        }
        incoming.take_one().map(Some)
    }

    fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
        let Self {
            child,
            stream,
            incoming,
        } = self;
        let messages = flow.messages();
        let mut sent = 0;
        let mut patience = Patience::default();
        while !flow.is_done() {
            let mut progress = false;
            while let Some(index) = flow.next() {
                let frame = messages.frame(index);
                let pushed = stream.push(&frame[sent..])?;
                progress |= pushed > 0;
                sent += pushed;
                if sent < frame.len() {
                    break;
                }
                sent = 0;
                flow.sent();
            }
            let flushed = stream.flush()?;
            let may_sleep = flushed && flow.next().is_none();
            progress |= incoming.fill(stream, may_sleep)? > 0;
            incoming.take(|frame| flow.answered(payload_of(frame)?))?;
            if progress {
                patience = Patience::default();
            } else {
                if !flushed {
                    stream.pause()?;
                }
                patience.turn(child)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.child.finish()
    }
}

/// The answering side: sends every frame back, for ever.
pub(super) fn echo<S: Stream>(mut stream: S, frame: usize, batch: usize) -> Result<()> {
    let mut incoming = Incoming::new(frame, batch);
    loop {
        if incoming.fill(&mut stream, true)? == 0 {
            std::hint::spin_loop();
            continue;
        }
        incoming.take(|frame| {
            payload_of(frame)?;
            let mut sent = stream.push(frame)?;
            while sent < frame.len() {
                if !stream.flush()? {
                    stream.pause()?;
                }
                std::hint::spin_loop();
                sent += stream.push(&frame[sent..])?;
            }
            Ok(())
        })?;
        while !stream.flush()? {
            stream.pause()?;
        }
    }
}

/// Private memory for what was received: frames of one length.
#[derive(Debug)]
struct Incoming {
    bytes: Vec<u8>,
    have: usize,
    frame: usize,
}

impl Incoming {
    fn new(frame: usize, batch: usize) -> Self {
        let bytes = vec![0; (batch / frame).max(1) * frame];
        Self {
            bytes,
            have: 0,
            frame,
        }
    }

    #[inline]
    fn fill<S: Stream>(&mut self, stream: &mut S, may_sleep: bool) -> Result<usize> {
        let n = stream.pop(&mut self.bytes[self.have..], may_sleep)?;
        self.have += n;
        Ok(n)
    }

    /// Takes bytes of one frame only. True: there were some.
    #[inline]
    fn fill_one<S: Stream>(&mut self, stream: &mut S, may_sleep: bool) -> Result<bool> {
        let n = stream.pop(&mut self.bytes[self.have..self.frame], may_sleep)?;
        self.have += n;
        Ok(n > 0)
    }

    #[inline]
    fn has_one(&self) -> bool {
        self.have == self.frame
    }

    #[inline]
    fn take_one(&mut self) -> Result<&[u8]> {
        if self.have != self.frame {
            bail!("wrong data: {} bytes instead of one frame", self.have);
        }
        self.have = 0;
        payload_of(&self.bytes[..self.frame])
    }

    /// Hands out every whole frame.
    #[inline]
    fn take(&mut self, mut on_frame: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        debug_assert!(self.frame > HEADER_LEN);
        let mut at = 0;
        while self.have - at >= self.frame {
            on_frame(&self.bytes[at..at + self.frame])?;
            at += self.frame;
        }
        if at > 0 {
            self.bytes.copy_within(at..self.have, 0);
            self.have -= at;
        }
        Ok(())
    }
}
