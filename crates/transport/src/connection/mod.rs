//! The two halves of a connection: one reads frames, the other writes them.

mod reader;
mod writer;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use lapce_ai_proto::Codec;
use lapce_ai_shm::{Bell, Consumer, MappedRing, PeerCredentials, Producer, publish_and_release};

use self::reader::Source;
pub use self::reader::{Batch, Reader, Rest};
pub use self::writer::Writer;
use self::writer::{Sink, unstage};
use crate::TransportError;

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
            long: false,
            rung: false,
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
            long: false,
            rung: false,
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
