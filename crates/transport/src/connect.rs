//! The client's side: connect, check who listens, shake hands.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapce_ai_proto::{Codec, ErrorBody, Fault, Features, Hello, Kind, Welcome};
use lapce_ai_shm::{
    Bell, ForkGuard, PeerCredentials, Segment, ShmError, Woken, peer_credentials, recv_with_fd,
    send_with_fd,
};
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
    /// How many connections this client has had before.
    pub earlier: u16,
    /// Longest wait for the daemon's answer.
    pub timeout: Duration,
    /// Users whose daemon is trusted with requests, beside this user and root.
    pub server_uids: Vec<u32>,
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
    /// The socket's owner is neither this user nor root, and not trusted otherwise.
    #[error(
        "the socket {path} is held by uid {uid}, which is neither yours nor root: nothing was sent to it; if that user's daemon is to be trusted, add the uid to ipc.server_uids",
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

/// How long to wait before an attempt that found the daemon's [backlog full](Attempt::Crowded) goes on.
const CROWDED: Duration = Duration::from_millis(1);

/// How far an attempt to connect is.
#[derive(Debug)]
pub enum Attempt {
    /// The daemon's backlog is full, and a Unix socket cannot be waited on for that: go on in a millisecond.
    Crowded(Connecting),
    /// WELCOME has not come: go on when the socket is readable.
    Pending(Connecting),
    /// The connection is there.
    Done(Box<(Connection, Welcome)>),
}

/// A connection that is being made, without blocking. How long that may take is the caller's business;
/// [`timed_out`](Self::timed_out) is the error for it.
#[derive(Debug)]
pub struct Connecting {
    path: PathBuf,
    address: SocketAddrUnix,
    socket: Arc<OwnedFd>,
    guard: ForkGuard,
    /// Who listens, once that is known and HELLO has been sent.
    credentials: Option<PeerCredentials>,
    received: Vec<u8>,
    segment: Option<OwnedFd>,
}

/// Connects to the daemon's socket and shakes hands. Blocks for at most the options' time-out.
///
/// # Errors
/// See [`ConnectError`]. Nothing but HELLO has been sent, and that only to a daemon of this user, of root or of a trusted one.
pub fn connect(
    path: &Path,
    options: &ConnectOptions,
) -> Result<(Connection, Welcome), ConnectError> {
    let deadline = Instant::now() + options.timeout;
    let mut attempt = Connecting::begin(path, options)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let connecting = match attempt {
            Attempt::Done(done) => return Ok(*done),
            Attempt::Crowded(connecting) if left.is_zero() => {
                return Err(connecting.timed_out(options));
            }
            Attempt::Crowded(connecting) => {
                std::thread::sleep(CROWDED);
                connecting
            }
            Attempt::Pending(connecting) => {
                let woken = Bell::new(&connecting.socket).wait(Some(left));
                match woken.map_err(TransportError::from)? {
                    Woken::TimedOut => return Err(connecting.timed_out(options)),
                    // What was sent before the end is still to be read.
                    Woken::Rung | Woken::PeerGone => connecting,
                }
            }
        };
        attempt = connecting.advance(options)?;
    }
}

impl Connecting {
    /// Begins to connect to a daemon's socket.
    ///
    /// # Errors
    /// As of [`connect`].
    pub fn begin(path: &Path, options: &ConnectOptions) -> Result<Attempt, ConnectError> {
        let io_error = |errno: Errno| ConnectError::Io {
            path: path.to_owned(),
            source: errno.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(io_error)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io_error)?;
        let socket = Arc::new(socket);
        let connecting = Self {
            path: path.to_owned(),
            address,
            guard: ForkGuard::new(Arc::clone(&socket)),
            socket,
            credentials: None,
            received: Vec::new(),
            segment: None,
        };
        connecting.advance(options)
    }

    /// Goes on as far as it goes without waiting.
    ///
    /// # Errors
    /// As of [`connect`].
    pub fn advance(mut self, options: &ConnectOptions) -> Result<Attempt, ConnectError> {
        let credentials = match self.credentials {
            Some(credentials) => credentials,
            None => {
                if !self.reach()? {
                    return Ok(Attempt::Crowded(self));
                }
                let credentials = self.greet(options)?;
                *self.credentials.insert(credentials)
            }
        };
        match self.read_welcome()? {
            Some(welcome) => self.finish(welcome, credentials),
            None => Ok(Attempt::Pending(self)),
        }
    }

    /// The socket, to wait on.
    pub fn shared_socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// The error of an attempt that has taken too long.
    pub fn timed_out(&self, options: &ConnectOptions) -> ConnectError {
        ConnectError::TimedOut {
            path: self.path.clone(),
            timeout: options.timeout,
        }
    }

    fn io_error(&self, source: io::Error) -> ConnectError {
        ConnectError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// False: the daemon's backlog is full.
    fn reach(&self) -> Result<bool, ConnectError> {
        loop {
            match connect_socket(&self.socket, &self.address) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT | Errno::CONNREFUSED) => {
                    return Err(ConnectError::NotRunning {
                        path: self.path.clone(),
                    });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(self.io_error(errno.into())),
            }
        }
    }

    /// Looks who listens, and sends HELLO.
    fn greet(&self, options: &ConnectOptions) -> Result<PeerCredentials, ConnectError> {
        let credentials = peer_credentials(&self.socket).map_err(|source| self.io_error(source))?;
        let uid = credentials.uid;
        if uid != geteuid().as_raw() && uid != 0 && !options.server_uids.contains(&uid) {
            return Err(ConnectError::Untrusted {
                path: self.path.clone(),
                uid,
            });
        }
        let hello = Hello {
            earlier: options.earlier,
            ..Hello::new(
                &options.name,
                options.instance,
                options.features,
                options.response_window,
            )
        };
        let frame = Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode());
        match send_with_fd(&self.socket, &frame, None) {
            Ok(n) if n == frame.len() => Ok(credentials),
            // Closed already: then why has been said, and is still to be read.
            Err(lapce_ai_shm::FdError::System { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(credentials)
            }
            _ => Err(TransportError::PeerGone.into()),
        }
    }

    /// The daemon's answer, if it has come; what came behind it stays in `received`.
    fn read_welcome(&mut self) -> Result<Option<Welcome>, ConnectError> {
        loop {
            let mut chunk = [0; 512];
            match recv_with_fd(&self.socket, &mut chunk) {
                Ok((0, _)) => return Err(TransportError::PeerGone.into()),
                Ok((n, descriptor)) => {
                    self.received.extend_from_slice(&chunk[..n]);
                    self.segment = self.segment.take().or(descriptor);
                }
                Err(lapce_ai_shm::FdError::System { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock =>
                {
                    return Ok(None);
                }
                // The daemon closed without having read HELLO.
                Err(lapce_ai_shm::FdError::System { source, .. })
                    if source.kind() == io::ErrorKind::ConnectionReset =>
                {
                    return Err(TransportError::PeerGone.into());
                }
                Err(error) => return Err(self.io_error(io::Error::other(error))),
            }
            let Some((frame, taken)) = Codec::HANDSHAKE
                .decode(&self.received)
                .map_err(TransportError::Fault)?
            else {
                continue;
            };
            match frame.kind {
                Kind::Welcome => {
                    let welcome = Welcome::decode(frame.payload).map_err(TransportError::Fault)?;
                    self.received.drain(..taken);
                    return Ok(Some(welcome));
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

    fn finish(
        self,
        welcome: Welcome,
        credentials: PeerCredentials,
    ) -> Result<Attempt, ConnectError> {
        let peer = Peer {
            credentials,
            name: welcome.name.clone(),
            instance: welcome.instance,
            earlier: 0,
            shared_memory: welcome.features.shared_memory,
        };
        let codec = Codec {
            crc: welcome.features.crc,
            max_payload: welcome.limits.max_frame_payload,
        };
        let mut connection = match (welcome.features.shared_memory, self.segment) {
            (true, Some(segment)) => {
                let segment =
                    Segment::open(segment, welcome.request_capacity, welcome.response_capacity)?;
                let (producer, consumer) = segment.into_client_ends();
                Connection::over_rings(self.socket, (consumer, producer), codec, peer)
            }
            (false, None) => Connection::over_socket(self.socket, self.received, codec, peer),
            _ => return Err(TransportError::Fault(Fault::BadPayload).into()),
        };
        connection.reader.guard = Some(self.guard);
        Ok(Attempt::Done(Box::new((connection, welcome))))
    }
}
