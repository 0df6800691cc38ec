//! Bytes of the ring, or of the socket, become frames.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lapce_ai_proto::{Codec, Fault, Frame, HEADER_LEN, ITEM_PREFIX_LEN};
use lapce_ai_shm::{Bell, Consumer, ForkGuard, MappedRing};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::SOCKET_BUFFER;
use crate::TransportError;

/// Bytes that are copied out of a ring at a time, unless one frame is longer. Small enough that the first frame
/// does not wait long for the copy of those behind it.
const BATCH: usize = 4 * 1024;

/// What is copied of a frame that is likely to be a long one: its header, and the prefix that it may have.
const START: usize = HEADER_LEN + ITEM_PREFIX_LEN;

/// What was read in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batch {
    /// So many frames.
    pub frames: usize,
    /// Their bytes, headers included.
    pub bytes: usize,
}

/// Takes the peer's frames. One owner.
#[derive(Debug)]
pub struct Reader {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) source: Source,
    pub(super) codec: Codec,
    /// The latest frame was a long one that went to its place at once, and the next is likely to be one.
    pub(super) long: bool,
    /// A bell was rung, and has not been taken yet.
    pub(super) rung: bool,
    /// On a client's side: its program may fork. A daemon's children run other programs.
    pub(crate) guard: Option<ForkGuard>,
}

/// The end of a long frame's payload, still in the ring. What is not taken from there is skipped.
#[derive(Debug)]
pub struct Rest<'a> {
    /// Where it begins, from the first unconsumed byte on. `None`: the frame is whole, there is no rest.
    ring: Option<(&'a Consumer<MappedRing>, usize)>,
    len: usize,
}

impl Rest<'_> {
    const NONE: Self = Self { ring: None, len: 0 };

    /// Its length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies it behind what `to` holds. These bytes are copied once and never looked at before.
    #[inline]
    pub fn append_to(self, to: &mut Vec<u8>) {
        if let Some((ring, offset)) = self.ring {
            ring.append_to(offset, self.len, to);
        }
    }
}

/// What lies in the scratch buffer.
enum Fetched {
    /// So many bytes, of whole frames and perhaps a part of one more.
    Frames(usize),
    /// So many bytes of a long frame's start.
    Start(usize),
}

#[derive(Debug)]
pub(super) enum Source {
    Ring(Consumer<MappedRing>),
    /// Bytes from `start` on were received and not yet read as frames.
    Socket {
        buffer: Vec<u8>,
        start: usize,
    },
}

impl Reader {
    /// Length that the scratch buffer of [`read`](Self::read) must have at least.
    pub fn scratch_len(&self) -> usize {
        (HEADER_LEN + self.codec.max_payload as usize).max(BATCH)
    }

    /// Hands the frames that are there to `on_frame`, about 4 KiB of them at most, and returns how many
    /// they were. The bytes are copied to `scratch` once and checked there; their room goes back to the peer with
    /// [`flush`](super::flush) or [`release`](Self::release).
    ///
    /// # Errors
    /// What `on_frame` returns, or why the connection cannot go on; frames before the bad one have been handed over.
    ///
    /// # Panics
    /// If `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    #[inline]
    pub fn read<E: From<TransportError>>(
        &mut self,
        scratch: &mut [u8],
        on_frame: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        self.check_scratch(scratch);
        match self.fetch(scratch, BATCH, false).map_err(E::from)? {
            Fetched::Frames(available) | Fetched::Start(available) => {
                Ok(self.take(&scratch[..available], on_frame)?.frames)
            }
        }
    }

    /// The same with frames of at most `most` bytes together, up to 4 KiB, or one frame; says how much it was. A DATA or
    /// END frame that is longer than that need not come whole: `on_frame` gets its start, and its
    /// [`rest`](Frame::rest) still in the ring, to be copied to where it belongs.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    #[inline]
    pub fn receive<E: From<TransportError>>(
        &mut self,
        scratch: &mut [u8],
        most: usize,
        mut on_frame: impl FnMut(Frame<'_>, Rest<'_>) -> Result<(), E>,
    ) -> Result<Batch, E> {
        self.check_scratch(scratch);
        match self
            .fetch(scratch, most.min(BATCH), true)
            .map_err(E::from)?
        {
            Fetched::Frames(available) => {
                self.take(&scratch[..available], |frame| on_frame(frame, Rest::NONE))
            }
            Fetched::Start(fetched) => self.take_start(&scratch[..fetched], on_frame),
        }
    }

    #[inline]
    fn check_scratch(&self, scratch: &[u8]) {
        assert!(
            scratch.len() >= self.scratch_len(),
            "the scratch buffer is too short"
        );
    }

    /// Hands over the whole frames of what was fetched.
    #[inline]
    fn take<E: From<TransportError>>(
        &mut self,
        fetched: &[u8],
        mut on_frame: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<Batch, E> {
        let codec = self.codec;
        let mut frames = 0;
        let mut taken = 0;
        let result = loop {
            match codec.decode(&fetched[taken..]) {
                Ok(Some((frame, len))) => {
                    taken += len;
                    frames += 1;
                    if let Err(error) = on_frame(frame) {
                        break Err(error);
                    }
                }
                Ok(None) => {
                    break Ok(Batch {
                        frames,
                        bytes: taken,
                    });
                }
                Err(fault) => break Err(E::from(TransportError::Fault(fault))),
            }
        };
        self.consume(taken);
        result
    }

    /// Hands over a long frame of which only the start was fetched.
    fn take_start<E: From<TransportError>>(
        &mut self,
        fetched: &[u8],
        mut on_frame: impl FnMut(Frame<'_>, Rest<'_>) -> Result<(), E>,
    ) -> Result<Batch, E> {
        let (Source::Ring(ring), Ok(Some(frame))) =
            (&self.source, self.codec.decode_start(fetched))
        else {
            unreachable!("it was decoded when it was fetched");
        };
        let len = frame.rest as usize;
        let rest = Rest {
            ring: Some((ring, fetched.len())),
            len,
        };
        let result = on_frame(frame, rest);
        let bytes = fetched.len() + len;
        self.consume(bytes);
        result.map(|()| Batch { frames: 1, bytes })
    }

    /// Copies `most` bytes of what is there, or the first frame, to `scratch`, from a frame's start. `starts`: of a long frame
    /// the start is enough.
    #[inline]
    fn fetch(
        &mut self,
        scratch: &mut [u8],
        most: usize,
        starts: bool,
    ) -> Result<Fetched, TransportError> {
        match &mut self.source {
            Source::Ring(consumer) => {
                let readable = consumer.readable()?;
                if readable == 0 {
                    return Ok(Fetched::Frames(0));
                }
                let glance = if starts && self.long { START } else { most };
                let mut fetched = consumer.peek(0, &mut scratch[..readable.min(glance)]);
                let first = self.codec.frame_len(&scratch[..fetched])?;
                let wanted = match first {
                    // A frame is published whole, so a part of one will never be completed.
                    None => return Err(Fault::TornFrame.into()),
                    Some(len) if len > readable => return Err(Fault::TornFrame.into()),
                    Some(len) if len > most => {
                        self.long =
                            starts && self.codec.decode_start(&scratch[..fetched])?.is_some();
                        if self.long {
                            return Ok(Fetched::Start(fetched));
                        }
                        len
                    }
                    Some(_) => readable.min(most),
                };
                if wanted > fetched {
                    self.long = false;
                    fetched += consumer.peek(fetched, &mut scratch[fetched..wanted]);
                }
                Ok(Fetched::Frames(fetched))
            }
            Source::Socket { buffer, start } => {
                let gone = receive(&self.socket, buffer, *start, scratch.len())?;
                let bytes = &buffer[*start..];
                let first = self.codec.frame_len(bytes)?.unwrap_or(0);
                let len = bytes.len().min(scratch.len()).min(most.max(first));
                scratch[..len].copy_from_slice(&bytes[..len]);
                // What came before the end is still read.
                if gone && self.codec.decode(&scratch[..len])?.is_none() {
                    return Err(TransportError::PeerGone);
                }
                Ok(Fetched::Frames(len))
            }
        }
    }

    #[inline]
    fn consume(&mut self, taken: usize) {
        match &mut self.source {
            Source::Ring(consumer) => consumer.consume(taken),
            Source::Socket { buffer, start } => {
                *start += taken;
                if *start == buffer.len() {
                    buffer.clear();
                    *start = 0;
                } else if *start >= SOCKET_BUFFER {
                    buffer.drain(..*start);
                    *start = 0;
                }
            }
        }
    }

    /// Gives the room of the frames that were read back to the peer. [`flush`](super::flush) does this too.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn release(&mut self) -> Result<(), TransportError> {
        if let Source::Ring(consumer) = &mut self.source
            && consumer.release()
        {
            Bell::new(&self.socket).ring()?;
        }
        Ok(())
    }

    /// Whether a read would find something, without a system call over shared memory. Costs one look at the peer's
    /// line; over a socket it is true while received bytes wait.
    ///
    /// # Errors
    /// The ring is corrupt.
    #[inline]
    pub fn has_data(&mut self) -> Result<bool, TransportError> {
        match &mut self.source {
            Source::Ring(consumer) => Ok(consumer.readable()? > 0),
            Source::Socket { buffer, start } => Ok(self.codec.decode(&buffer[*start..])?.is_some()),
        }
    }

    /// Asks to be woken through the socket when there is something to read. False: there is something already.
    /// Release first.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn prepare_to_sleep(&mut self) -> Result<bool, TransportError> {
        match &mut self.source {
            // Unread frames from an earlier look count as something.
            Source::Ring(consumer) => Ok(consumer.readable()? == 0 && consumer.wait_for_data()?),
            Source::Socket { .. } => Ok(!self.has_data()?),
        }
    }

    /// Tells the peer that no wake-up is wanted any more.
    #[inline]
    pub fn awake(&mut self) {
        if let Source::Ring(consumer) = &mut self.source {
            consumer.awake();
        }
    }

    /// Takes the bells that have been rung. To be called when the socket is readable.
    ///
    /// # Errors
    /// The peer is gone; frames that it had published can still be [read](Self::read).
    pub fn drain_bell(&mut self) -> Result<(), TransportError> {
        if matches!(self.source, Source::Ring(_)) {
            self.rung = false;
            Bell::new(&self.socket).drain()?;
        }
        Ok(())
    }

    /// The socket is readable. Instead of [`awake`](Self::awake) and [`drain_bell`](Self::drain_bell): the bell is left
    /// until [`take_bell`](Self::take_bell), so that the system call comes after the work that the peer waits for.
    /// If it was left before, it is taken now.
    ///
    /// # Errors
    /// The peer is gone; frames that it had published can still be [read](Self::read).
    pub fn woken(&mut self) -> Result<(), TransportError> {
        self.awake();
        if self.rung {
            return self.drain_bell();
        }
        self.rung = matches!(self.source, Source::Ring(_));
        Ok(())
    }

    /// Takes the bell that was left. To be called before [`prepare_to_sleep`](Self::prepare_to_sleep), never between it and
    /// the sleep: a bell that is rung then is the one to wake up by.
    ///
    /// # Errors
    /// The peer is gone; frames that it had published can still be [read](Self::read).
    pub fn take_bell(&mut self) -> Result<(), TransportError> {
        if self.rung {
            self.drain_bell()?;
        }
        Ok(())
    }

    /// The socket to wait on.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The same socket, to keep.
    pub fn shared_socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }
}

/// Receives up to `most` unread bytes without blocking. True: the peer has closed its end.
fn receive(
    socket: &OwnedFd,
    buffer: &mut Vec<u8>,
    start: usize,
    most: usize,
) -> Result<bool, TransportError> {
    let mut chunk = [0; 4096];
    while buffer.len() - start < most {
        match recv(socket, chunk.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(true),
            Ok((_, n)) => buffer.extend_from_slice(&chunk[..n]),
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(TransportError::system("recv", errno)),
        }
    }
    Ok(false)
}
