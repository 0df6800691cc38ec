//! The daemon's side of the handshake, without blocking.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lapce_ai_proto::{
    Codec, ErrorBody, ErrorCode, Fault, Features, HEADER_LEN, Hello, Kind, Limits, VERSION, Welcome,
};
use lapce_ai_shm::{PeerCredentials, Segment, ShmError, peer_credentials, send_with_fd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::{Connection, Peer, TransportError};

/// What the daemon offers to a client.
#[derive(Debug, Clone)]
pub struct ServerTerms {
    /// Random, the same for the life of this daemon.
    pub instance: u128,
    /// The daemon's name, for people.
    pub name: String,
    /// What a connection may do.
    pub limits: Limits,
    /// Bytes of each request ring, a power of two.
    pub request_capacity: u32,
    /// Bytes of each response ring, a power of two.
    pub response_capacity: u32,
    /// Whether segments are offered.
    pub shared_memory: bool,
    /// Whether a CRC is used even where the client does not ask for it.
    pub require_crc: bool,
    /// Whether the descriptors of segments are kept, one more for each connection, so that another process can go on.
    pub keep_segments: bool,
}

/// A client that has connected and not finished its handshake.
#[derive(Debug)]
pub struct Handshake {
    socket: Arc<OwnedFd>,
    credentials: PeerCredentials,
    received: Vec<u8>,
}

/// How far a [`Handshake`] is.
#[derive(Debug)]
pub enum Progress {
    /// HELLO has not come yet: try again when the socket is readable.
    Pending(Handshake),
    /// HELLO has come: answer with [`Handshake::accept`] or [`Handshake::refuse`].
    Hello(Handshake, Hello),
}

impl Handshake {
    /// Begins with a socket from [`Listener::accept`](crate::Listener::accept).
    ///
    /// # Errors
    /// The kernel does not say who the client is.
    pub fn new(socket: OwnedFd) -> Result<Self, TransportError> {
        let credentials = peer_credentials(&socket).map_err(|source| TransportError::System {
            call: "getsockopt",
            source,
        })?;
        Ok(Self {
            socket: Arc::new(socket),
            credentials,
            received: Vec::new(),
        })
    }

    /// Who the client is, by the kernel's word.
    pub fn credentials(&self) -> PeerCredentials {
        self.credentials
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// What came is no HELLO (the client has been told), or the client is gone.
    pub fn advance(mut self) -> Result<Progress, TransportError> {
        let mut chunk = [0; 512];
        loop {
            match recv(&self.socket, chunk.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(TransportError::PeerGone),
                Ok((_, n)) => self.received.extend_from_slice(&chunk[..n]),
                Err(Errno::AGAIN) => return Ok(Progress::Pending(self)),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(TransportError::system("recv", errno)),
            }
            match self.hello() {
                Ok(None) => {}
                Ok(Some(hello)) => return Ok(Progress::Hello(self, hello)),
                Err(fault) => {
                    self.refuse(&ErrorBody::from_fault(fault));
                    return Err(fault.into());
                }
            }
        }
    }

    fn hello(&mut self) -> Result<Option<Hello>, Fault> {
        let Some((frame, taken)) = Codec::HANDSHAKE.decode(&self.received)? else {
            return Ok(None);
        };
        if frame.kind != Kind::Hello {
            return Err(Fault::UnexpectedFrame);
        }
        let hello = Hello::decode(frame.payload)?;
        self.received.drain(..taken);
        Ok(Some(hello))
    }

    /// Answers with WELCOME, and the segment if there is to be one.
    ///
    /// # Errors
    /// The client is gone, or there is no memory for its segment (it has been told).
    pub fn accept(
        self,
        hello: Hello,
        terms: &ServerTerms,
        connection: u64,
    ) -> Result<Connection, TransportError> {
        let features = Features {
            shared_memory: hello.features.shared_memory && terms.shared_memory,
            crc: hello.features.crc || terms.require_crc,
        };
        let segment = if features.shared_memory {
            match Segment::create(terms.request_capacity, terms.response_capacity) {
                Ok(segment) => Some(segment),
                Err(error) => {
                    let (code, what) = if lacks_descriptors(&error) {
                        (ErrorCode::TooManyConnections, "no descriptors are left")
                    } else {
                        (ErrorCode::Overloaded, "no memory")
                    };
                    let message = format!("{what} for this connection: {error}");
                    self.refuse(&ErrorBody::new(code, message));
                    let source = std::io::Error::other(error);
                    return Err(TransportError::System {
                        call: "memfd_create",
                        source,
                    });
                }
            }
        } else {
            None
        };
        let capacity = |bytes| if features.shared_memory { bytes } else { 0 };
        let welcome = Welcome {
            version: VERSION,
            features,
            instance: terms.instance,
            connection,
            limits: terms.limits,
            request_capacity: capacity(terms.request_capacity),
            response_capacity: capacity(terms.response_capacity),
            name: terms.name.clone(),
        };
        let frame = Codec::HANDSHAKE.encode(Kind::Welcome, 0, 0, 0, &welcome.encode());
        let descriptor = segment.as_ref().map(|(_, descriptor)| descriptor.as_fd());
        // A new socket's buffer takes so few bytes at once; one that does not belongs to a client that misbehaves.
        let sent = send_with_fd(&*self.socket, &frame, descriptor);
        if !matches!(sent, Ok(n) if n == frame.len()) {
            return Err(TransportError::PeerGone);
        }
        let codec = Codec {
            crc: features.crc,
            max_payload: terms.limits.max_frame_payload,
        };
        let peer = Peer {
            credentials: self.credentials,
            name: hello.name,
            instance: hello.instance,
            earlier: hello.earlier,
            shared_memory: features.shared_memory,
        };
        Ok(match segment {
            Some((segment, descriptor)) => {
                let ends = segment.into_server_ends();
                let connection = Connection::over_rings(self.socket, ends, codec, peer);
                Connection {
                    segment: Some(descriptor).filter(|_| terms.keep_segments),
                    ..connection
                }
            }
            None => Connection::over_socket(self.socket, self.received, codec, peer),
        })
    }

    /// Answers with ERROR and closes.
    pub fn refuse(&self, body: &ErrorBody) {
        let mut payload = Vec::with_capacity(HEADER_LEN + 256);
        body.write(&mut payload);
        let frame = Codec::HANDSHAKE.encode(Kind::Error, 0, body.code.number(), 0, &payload);
        // Who does not take it does not hear it.
        let _ = send_with_fd(&*self.socket, &frame, None);
    }

    /// The socket to wait on.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether the process, or the system, may have no more descriptors.
fn lacks_descriptors(error: &ShmError) -> bool {
    let ShmError::System { source, .. } = error else {
        return false;
    };
    matches!(
        Errno::from_io_error(source),
        Some(Errno::MFILE | Errno::NFILE)
    )
}
