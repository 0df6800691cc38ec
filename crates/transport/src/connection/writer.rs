//! Frames become bytes in the ring, or for the socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_proto::{Codec, Control, HEADER_LEN, Kind};
use lapce_ai_shm::{Bell, MappedRing, Producer, Woken};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::{CONTROL_ROOM, SOCKET_BUFFER};
use crate::TransportError;

/// Bytes of small frames that are gathered before they enter the ring, with one copy and at the latest when they are
/// flushed. Stores into the ring miss the cache, since the peer has those lines; any locked operation between two of
/// them, and a lock has two, waits for all before it. Gathered, they are in flight together.
const STAGE: usize = 2048;

/// Gives frames to the peer. One owner; frames are visible to the peer after [`flush`](Self::flush).
#[derive(Debug)]
pub struct Writer {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) sink: Sink,
    pub(super) codec: Codec,
    pub(super) scratch: Vec<u8>,
    /// Small frames on their way into the ring, in which they have room: see [`STAGE`].
    pub(super) staged: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Sink {
    Ring(Producer<MappedRing>),
    /// Bytes from `start` on are to be sent.
    Socket {
        buffer: Vec<u8>,
        start: usize,
    },
}

impl Writer {
    /// Writes a frame whose payload is `prefix` and `payload` one after the other; leaves [`CONTROL_ROOM`].
    /// False: there is no room.
    ///
    /// # Errors
    /// The ring is corrupt.
    #[inline]
    pub fn frame(
        &mut self,
        kind: Kind,
        flags: u8,
        ty: u16,
        id: u64,
        prefix: &[u8],
        payload: &[u8],
    ) -> Result<bool, TransportError> {
        let len = HEADER_LEN + prefix.len() + payload.len();
        let room = match &mut self.sink {
            Sink::Ring(producer) => producer.has_room(self.staged.len() + len + CONTROL_ROOM)?,
            Sink::Socket { buffer, start } => buffer.len() - *start < SOCKET_BUFFER,
        };
        if !room {
            return Ok(false);
        }
        let header = self.codec.header(kind, flags, ty, id, &[prefix, payload]);
        self.push(&header, prefix, payload)
    }

    /// Writes a control frame, into the room kept for them too. False: there is no room.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn control(&mut self, control: &Control) -> Result<bool, TransportError> {
        let mut payload = std::mem::take(&mut self.scratch);
        let (kind, flags, ty, id) = control.parts(&mut payload);
        let header = self.codec.header(kind, flags, ty, id, &[&payload]);
        let pushed = match &mut self.sink {
            Sink::Ring(producer) => {
                // Not staged: whether there is room for it is known only now.
                unstage(producer, &mut self.staged)?;
                producer.push(&[&header, &payload])?
            }
            Sink::Socket { buffer, start } => {
                // What `frame` may leave behind, and the room kept for control.
                let most = SOCKET_BUFFER + HEADER_LEN + self.codec.max_payload as usize;
                let room =
                    buffer.len() - *start + HEADER_LEN + payload.len() <= most + CONTROL_ROOM;
                if room {
                    buffer.extend_from_slice(&header);
                    buffer.extend_from_slice(&payload);
                }
                room
            }
        };
        self.scratch = payload;
        Ok(pushed)
    }

    #[inline]
    fn push(
        &mut self,
        header: &[u8; HEADER_LEN],
        prefix: &[u8],
        payload: &[u8],
    ) -> Result<bool, TransportError> {
        match &mut self.sink {
            Sink::Ring(producer) => {
                let len = HEADER_LEN + prefix.len() + payload.len();
                let small = len <= STAGE / 2;
                if !small || self.staged.len() + len > STAGE {
                    unstage(producer, &mut self.staged)?;
                }
                if !small {
                    return Ok(producer.push(&[header, prefix, payload])?);
                }
                self.staged.extend_from_slice(header);
                self.staged.extend_from_slice(prefix);
                self.staged.extend_from_slice(payload);
                Ok(true)
            }
            Sink::Socket { buffer, .. } => {
                buffer.extend_from_slice(header);
                buffer.extend_from_slice(prefix);
                buffer.extend_from_slice(payload);
                Ok(true)
            }
        }
    }

    /// Makes everything written visible to the peer, and wakes it if it sleeps.
    ///
    /// # Errors
    /// The peer is gone.
    #[inline]
    pub fn flush(&mut self) -> Result<(), TransportError> {
        match &mut self.sink {
            Sink::Ring(producer) => {
                unstage(producer, &mut self.staged)?;
                if producer.publish() {
                    Bell::new(&self.socket).ring()?;
                }
                Ok(())
            }
            Sink::Socket { buffer, start } => send_all(&self.socket, buffer, start),
        }
    }

    /// Asks to be woken through the socket when a frame with `payload` bytes, prefix included, finds room.
    /// False: there is room already. Over a plain socket, wait until it is writable, then [`flush`](Self::flush).
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn wait_for_room(&mut self, payload: usize) -> Result<bool, TransportError> {
        match &mut self.sink {
            Sink::Ring(producer) => {
                debug_assert!(
                    self.staged.is_empty(),
                    "waiting for room with unflushed frames"
                );
                let need = need_to_resume(producer, payload);
                Ok(producer.wait_for_space(need)?)
            }
            Sink::Socket { buffer, start } => Ok(buffer.len() - *start >= SOCKET_BUFFER),
        }
    }

    /// Whether whoever waits for room for `payload` bytes could go on. Costs a look at the peer's line.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn has_room(&mut self, payload: usize) -> Result<bool, TransportError> {
        match &mut self.sink {
            Sink::Ring(producer) => {
                let need = need_to_resume(producer, payload);
                unstage(producer, &mut self.staged)?;
                Ok(producer.has_room(need)?)
            }
            Sink::Socket { buffer, start } => Ok(buffer.len() - *start < SOCKET_BUFFER),
        }
    }

    /// Whether bytes wait for the socket to be writable. Never over shared memory.
    #[inline]
    pub fn wants_writable(&self) -> bool {
        match &self.sink {
            Sink::Ring(_) => false,
            Sink::Socket { buffer, start } => *start < buffer.len(),
        }
    }

    /// If the peer has read everything, gives the memory of the ring's further pages back to the system, and what it
    /// holds beside. For a connection that has become quiet.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn trim(&mut self) -> Result<(), TransportError> {
        if let Sink::Ring(producer) = &mut self.sink {
            unstage(producer, &mut self.staged)?;
            self.staged = Vec::new();
            producer.trim()?;
        }
        Ok(())
    }

    /// Whether a [`trim`](Self::trim) would have nothing to give back.
    pub fn is_trimmed(&self) -> bool {
        match &self.sink {
            Sink::Ring(producer) => producer.is_trimmed() && self.staged.capacity() == 0,
            Sink::Socket { .. } => true,
        }
    }

    /// Whether the peer has hung up, or died, by now.
    pub fn is_hung_up(&self) -> bool {
        let woken = Bell::new(&self.socket).wait(Some(Duration::ZERO));
        matches!(woken, Ok(Woken::PeerGone))
    }

    /// Ends the connection: the peer sees its end once it has read what was flushed.
    pub fn hang_up(&mut self) {
        // A socket that is not connected any more is as good as shut down.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// Bytes that must be free before a writer that found no room goes on: half the ring, so that a long message does not
/// stop at every frame.
fn need_to_resume(producer: &Producer<MappedRing>, payload: usize) -> usize {
    let frame = HEADER_LEN + payload + CONTROL_ROOM;
    frame.max(producer.capacity() / 2).min(producer.capacity())
}

/// Copies staged frames into the ring.
#[inline]
pub(super) fn unstage(
    producer: &mut Producer<MappedRing>,
    staged: &mut Vec<u8>,
) -> Result<(), TransportError> {
    if !staged.is_empty() {
        let pushed = producer.push(&[staged])?;
        debug_assert!(pushed, "room was found when they were staged");
        staged.clear();
    }
    Ok(())
}

fn send_all(
    socket: &OwnedFd,
    buffer: &mut Vec<u8>,
    start: &mut usize,
) -> Result<(), TransportError> {
    while *start < buffer.len() {
        match send(
            socket,
            &buffer[*start..],
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => *start += sent,
            Err(Errno::AGAIN) => {
                if *start >= SOCKET_BUFFER {
                    buffer.drain(..*start);
                    *start = 0;
                }
                return Ok(());
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(TransportError::system("send", errno)),
        }
    }
    buffer.clear();
    *start = 0;
    Ok(())
}
