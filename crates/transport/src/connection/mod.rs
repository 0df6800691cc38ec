//! The two halves of a connection: one reads frames, the other writes them.

mod reader;
mod writer;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lapce_ai_proto::Codec;
use lapce_ai_shm::{
    Bell, Consumer, MappedRing, PeerCredentials, PositionError, Producer, ProducerPosition,
    Segment, ShmError, peer_credentials, publish_and_release,
};

use self::reader::Source;
pub use self::reader::{Batch, Reader, Rest};
pub use self::writer::Writer;
use self::writer::{Sink, unstage};
use crate::{ServerTerms, TransportError};

/// Bytes of each ring, and of each socket's buffer, that OPEN, DATA and END leave free, so that CREDIT, CANCEL,
/// ERROR and their like always find room.
pub const CONTROL_ROOM: usize = 1024;

/// Payload bytes of one frame of a message that goes in several. So one side copies out what it has while the other copies
/// in what follows, both within their nearest caches.
pub const PIECE: usize = 16 * 1024;

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
    /// On the daemon's side the segment's descriptor, if the terms have it kept: so another process can map it.
    pub segment: Option<OwnedFd>,
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
    /// How many connections it had before this one, by its own word: a client's; a daemon's is 0.
    pub earlier: u16,
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
            long: false,
            rung: false,
            guard: None,
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
            segment: None,
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
            long: false,
            rung: false,
            guard: None,
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
            segment: None,
        }
    }
}

/// How far a connection over shared memory is, for another process that goes on there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtRest {
    /// Bytes of the request ring that were consumed.
    pub consumed: u64,
    /// Where the response ring's producer stands.
    pub produced: ProducerPosition,
    /// Whether frames have a CRC.
    pub crc: bool,
}

/// Why a connection cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The kernel does not say who the client is.
    #[error("cannot tell whose connection it is: {0}")]
    Credentials(std::io::Error),
    /// What came is no segment of this layout and size.
    #[error(transparent)]
    Segment(#[from] ShmError),
    /// A ring cannot stand where it is said to.
    #[error(transparent)]
    Position(#[from] PositionError),
}

impl Connection {
    /// How far it is; `None` if it goes over the socket, or something is written and not flushed, read and not released.
    pub fn at_rest(&self) -> Option<AtRest> {
        let (Sink::Ring(producer), Source::Ring(consumer)) =
            (&self.writer.sink, &self.reader.source)
        else {
            return None;
        };
        if !self.writer.staged.is_empty() {
            return None;
        }
        Some(AtRest {
            consumed: consumer.position()?,
            produced: producer.position()?,
            crc: self.writer.codec.crc,
        })
    }

    /// The connection's socket and its segment's descriptor, if that is kept.
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.writer.socket.as_fd(), self.segment.as_ref()?.as_fd()])
    }

    /// Goes on with a connection that another process has served on these terms, and serves no more. Nothing is believed:
    /// the kernel says whose it is, how long the segment is, and that it stays so long. What the client may have written into it is
    /// no reason to refuse: its faults are found when it is read. `said` is what the client said of itself.
    ///
    /// # Errors
    /// See [`ResumeError`].
    pub fn resume(
        socket: OwnedFd,
        segment: OwnedFd,
        terms: &ServerTerms,
        at_rest: &AtRest,
        said: ClientWords,
    ) -> Result<Self, ResumeError> {
        let credentials = peer_credentials(&socket).map_err(ResumeError::Credentials)?;
        let kept = segment.try_clone().map_err(|source| ShmError::System {
            call: "fcntl(F_DUPFD_CLOEXEC)",
            source,
        })?;
        let mapped = Segment::reopen(segment, terms.request_capacity, terms.response_capacity)?;
        let ends = mapped.resume_server_ends(at_rest.consumed, &at_rest.produced)?;
        let codec = Codec {
            crc: at_rest.crc,
            max_payload: terms.limits.max_frame_payload,
        };
        let peer = Peer {
            credentials,
            name: said.name,
            instance: said.instance,
            earlier: said.earlier,
            shared_memory: true,
        };
        let connection = Self::over_rings(Arc::new(socket), ends, codec, peer);
        Ok(Self {
            segment: Some(kept),
            ..connection
        })
    }
}

/// What a client said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientWords {
    /// Its name.
    pub name: String,
    /// Its random instance.
    pub instance: u128,
    /// How many connections it had before this one.
    pub earlier: u16,
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
