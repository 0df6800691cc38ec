//! The two halves of a connection: one reads frames, the other writes them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lapce_ai_proto::{Codec, Control, Fault, Frame, HEADER_LEN, Kind};
use lapce_ai_shm::{Bell, Consumer, MappedRing, PeerCredentials, Producer, publish_and_release};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::TransportError;

/// Bytes of each ring, and of each socket's buffer, that OPEN, DATA and END leave free, so that CREDIT, CANCEL,
/// ERROR and their like always find room.
pub const CONTROL_ROOM: usize = 1024;

/// Payload bytes of one frame of a message that goes in several. So one side copies out what it has while the other copies
/// in what follows, both within their nearest caches.
pub const PIECE: usize = 16 * 1024;

/// Bytes that are copied out of a ring at a time, unless one frame is longer. Small enough that the first frame
/// does not wait long for the copy of those behind it.
const BATCH: usize = 4 * 1024;

/// Bytes of small frames that are gathered before they enter the ring, with one copy and at the latest when they are
/// flushed. Stores into the ring miss the cache, since the peer has those lines; any locked operation between two of
/// them, and a lock has two, waits for all before it. Gathered, they are in flight together.
const STAGE: usize = 2048;

/// Bytes that a socket's writer holds before it says that there is no room.
const SOCKET_BUFFER: usize = 64 * 1024;

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    /// Takes the peer's frames.
    pub reader: Reader,
    /// Gives frames to the peer.
    pub writer: Writer,
    /// Who is at the other end.
    pub peer: Peer,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// By the kernel's word.
    pub credentials: PeerCredentials,
    /// By its own word.
    pub name: String,
    /// Its random instance, which changes when it starts anew.
    pub instance: u128,
    /// Frames go through shared memory.
    pub shared_memory: bool,
}

impl Connection {
    pub(crate) fn over_rings(
        socket: Arc<OwnedFd>,
        ends: (Consumer<MappedRing>, Producer<MappedRing>),
        codec: Codec,
        peer: Peer,
    ) -> Self {
        let reader = Reader {
            socket: Arc::clone(&socket),
            source: Source::Ring(ends.0),
            codec,
        };
        let writer = Writer {
            socket,
            sink: Sink::Ring(ends.1),
            codec,
            scratch: Vec::new(),
            staged: Vec::new(),
        };
        Self {
            reader,
            writer,
            peer,
        }
    }

    pub(crate) fn over_socket(
        socket: Arc<OwnedFd>,
        received: Vec<u8>,
        codec: Codec,
        peer: Peer,
    ) -> Self {
        let source = Source::Socket {
            buffer: received,
            start: 0,
        };
        let sink = Sink::Socket {
            buffer: Vec::new(),
            start: 0,
        };
        let reader = Reader {
            socket: Arc::clone(&socket),
            source,
            codec,
        };
        let writer = Writer {
            socket,
            sink,
            codec,
            scratch: Vec::new(),
            staged: Vec::new(),
        };
        Self {
            reader,
            writer,
            peer,
        }
    }
}

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
    socket: Arc<OwnedFd>,
    source: Source,
    codec: Codec,
}

#[derive(Debug)]
enum Source {
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
    /// [`flush`] or [`release`](Self::release).
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
        Ok(self.read_some(scratch, BATCH, on_frame)?.frames)
    }

    /// The same with frames of at most `most` bytes together, up to 4 KiB, or one frame. Says how much it was.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    #[inline]
    pub fn read_some<E: From<TransportError>>(
        &mut self,
        scratch: &mut [u8],
        most: usize,
        mut on_frame: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<Batch, E> {
        assert!(
            scratch.len() >= self.scratch_len(),
            "the scratch buffer is too short"
        );
        let codec = self.codec;
        let available = self.fetch(scratch, most.min(BATCH)).map_err(E::from)?;
        let mut frames = 0;
        let mut taken = 0;
        let result = loop {
            match codec.decode(&scratch[taken..available]) {
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

    /// Copies `most` bytes of what is there, or the first frame, to `scratch`, from a frame's start.
    #[inline]
    fn fetch(&mut self, scratch: &mut [u8], most: usize) -> Result<usize, TransportError> {
        match &mut self.source {
            Source::Ring(consumer) => {
                let readable = consumer.readable()?;
                if readable == 0 {
                    return Ok(0);
                }
                let mut fetched = consumer.peek(0, &mut scratch[..readable.min(most)]);
                let first = self.codec.frame_len(&scratch[..fetched])?;
                match first {
                    // A frame is published whole, so a part of one will never be completed.
                    None => return Err(Fault::TornFrame.into()),
                    Some(len) if len > readable => return Err(Fault::TornFrame.into()),
                    Some(len) if len > fetched => {
                        fetched += consumer.peek(fetched, &mut scratch[fetched..len]);
                    }
                    Some(_) => {}
                }
                Ok(fetched)
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
                Ok(len)
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

    /// Gives the room of the frames that were read back to the peer. [`flush`] does this too.
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
            Bell::new(&self.socket).drain()?;
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

/// Gives frames to the peer. One owner; frames are visible to the peer after [`flush`](Self::flush).
#[derive(Debug)]
pub struct Writer {
    socket: Arc<OwnedFd>,
    sink: Sink,
    codec: Codec,
    scratch: Vec<u8>,
    /// Small frames on their way into the ring, in which they have room: see [`STAGE`].
    staged: Vec<u8>,
}

#[derive(Debug)]
enum Sink {
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

    /// Ends the connection: the peer sees its end once it has read what was flushed.
    pub fn hang_up(&mut self) {
        // A socket that is not connected any more is as good as shut down.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// [`Writer::flush`] and [`Reader::release`] together, for the price of one.
///
/// # Errors
/// The peer is gone.
#[inline]
pub fn flush(reader: &mut Reader, writer: &mut Writer) -> Result<(), TransportError> {
    match (&mut writer.sink, &mut reader.source) {
        (Sink::Ring(producer), Source::Ring(consumer)) => {
            unstage(producer, &mut writer.staged)?;
            if publish_and_release(producer, consumer) {
                Bell::new(&writer.socket).ring()?;
            }
            Ok(())
        }
        _ => writer.flush(),
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
fn unstage(
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
