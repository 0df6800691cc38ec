//! The client's side: connect, check who listens, shake hands.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapce_ai_proto::{Codec, ErrorBody, Fault, Features, Hello, Kind, Welcome};
use lapce_ai_shm::{Bell, Segment, ShmError, Woken, peer_credentials, recv_with_fd, send_with_fd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with,
};
use rustix::process::geteuid;

use crate::{Connection, Peer, TransportError};

/// What a client says of itself, and wants.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Who this is, for people.
    pub name: String,
    /// Random, the same for the life of this client, across reconnections.
    pub instance: u128,
    /// What the connection shall have.
    pub features: Features,
    /// Response bytes per stream that may come before the first CREDIT.
    pub response_window: u32,
    /// Longest wait for the daemon's answer.
    pub timeout: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no daemon listens on {path}: start one with `lapce-ai serve`", path = .path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's owner is neither this user nor root.
    #[error(
        "the socket {path} is held by uid {uid}, which is neither yours nor root: nothing was sent to it",
        path = .path.display()
    )]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// Who holds it.
        uid: u32,
    },
    /// The daemon said no.
    #[error("the daemon refused the connection: {0}")]
    Refused(ErrorBody),
    /// The daemon did not answer in time.
    #[error("the daemon on {path} did not answer within {timeout:?}", path = .path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The daemon's segment is not what it must be.
    #[error("the daemon's segment cannot be used: {0}")]
    Segment(#[from] ShmError),
    /// The connection broke, or the daemon broke the protocol.
    #[error("the handshake failed: {0}")]
    Transport(#[from] TransportError),
    /// The system refused.
    #[error("cannot connect to {path}: {source}", path = .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Connects to the daemon's socket and shakes hands. Blocks for at most the options' time-out.
///
/// # Errors
/// See [`ConnectError`]. Nothing but HELLO has been sent, and that only to a daemon of this user or root.
pub fn connect(
    path: &Path,
    options: &ConnectOptions,
) -> Result<(Connection, Welcome), ConnectError> {
    let io_error = |source: io::Error| ConnectError::Io {
        path: path.to_owned(),
        source,
    };
    let address = SocketAddrUnix::new(path).map_err(|errno| io_error(errno.into()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| io_error(errno.into()))?;
    let deadline = Instant::now() + options.timeout;
    loop {
        match connect_socket(&socket, &address) {
            Ok(()) => break,
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                return Err(ConnectError::NotRunning {
                    path: path.to_owned(),
                });
            }
            Err(Errno::INTR) => {}
            // The daemon's backlog is full; a Unix socket cannot be waited on for that.
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::AGAIN) => return Err(timed_out(path, options)),
            Err(errno) => return Err(io_error(errno.into())),
        }
    }
    let credentials = peer_credentials(&socket).map_err(io_error)?;
    if credentials.uid != geteuid().as_raw() && credentials.uid != 0 {
        return Err(ConnectError::Untrusted {
            path: path.to_owned(),
            uid: credentials.uid,
        });
    }
    let hello = Hello::new(
        &options.name,
        options.instance,
        options.features,
        options.response_window,
    );
    let frame = Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode());
    match send_with_fd(&socket, &frame, None) {
        Ok(n) if n == frame.len() => {}
        // Closed already: then why has been said, and is still to be read.
        Err(lapce_ai_shm::FdError::System { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) => {}
        _ => return Err(TransportError::PeerGone.into()),
    }
    let (welcome, segment, received) = await_welcome(path, &socket, options, deadline)?;
    let peer = Peer {
        credentials,
        name: welcome.name.clone(),
        instance: welcome.instance,
        shared_memory: welcome.features.shared_memory,
    };
    let codec = Codec {
        crc: welcome.features.crc,
        max_payload: welcome.limits.max_frame_payload,
    };
    let socket = Arc::new(socket);
    let connection = match (welcome.features.shared_memory, segment) {
        (true, Some(segment)) => {
            let segment =
                Segment::open(segment, welcome.request_capacity, welcome.response_capacity)?;
            let (producer, consumer) = segment.into_client_ends();
            Connection::over_rings(socket, (consumer, producer), codec, peer)
        }
        (false, None) => Connection::over_socket(socket, received, codec, peer),
        _ => return Err(TransportError::Fault(Fault::BadPayload).into()),
    };
    Ok((connection, welcome))
}

fn timed_out(path: &Path, options: &ConnectOptions) -> ConnectError {
    ConnectError::TimedOut {
        path: path.to_owned(),
        timeout: options.timeout,
    }
}

/// The daemon's answer, its descriptor, and what came behind it.
fn await_welcome(
    path: &Path,
    socket: &OwnedFd,
    options: &ConnectOptions,
    deadline: Instant,
) -> Result<(Welcome, Option<OwnedFd>, Vec<u8>), ConnectError> {
    let mut received = Vec::new();
    let mut segment = None;
    loop {
        let mut chunk = [0; 512];
        match recv_with_fd(socket, &mut chunk) {
            Ok((0, _)) => return Err(TransportError::PeerGone.into()),
            Ok((n, descriptor)) => {
                received.extend_from_slice(&chunk[..n]);
                segment = segment.or(descriptor);
            }
            Err(lapce_ai_shm::FdError::System { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                let left = deadline.saturating_duration_since(Instant::now());
                match Bell::new(socket)
                    .wait(Some(left))
                    .map_err(TransportError::from)?
                {
                    Woken::TimedOut => return Err(timed_out(path, options)),
                    // What was sent before the end is still to be read.
                    Woken::Rung | Woken::PeerGone => continue,
                }
            }
            // The daemon closed without having read HELLO.
            Err(lapce_ai_shm::FdError::System { source, .. })
                if source.kind() == io::ErrorKind::ConnectionReset =>
            {
                return Err(TransportError::PeerGone.into());
            }
            Err(error) => {
                return Err(ConnectError::Io {
                    path: path.to_owned(),
                    source: io::Error::other(error),
                });
            }
        }
        let Some((frame, taken)) = Codec::HANDSHAKE
            .decode(&received)
            .map_err(TransportError::Fault)?
        else {
            continue;
        };
        match frame.kind {
            Kind::Welcome => {
                let welcome = Welcome::decode(frame.payload).map_err(TransportError::Fault)?;
                received.drain(..taken);
                return Ok((welcome, segment, received));
            }
            Kind::Error => {
                return Err(ConnectError::Refused(ErrorBody::read(
                    frame.ty,
                    frame.payload,
                )));
            }
            _ => return Err(TransportError::Fault(Fault::UnexpectedFrame).into()),
        }
    }
}
