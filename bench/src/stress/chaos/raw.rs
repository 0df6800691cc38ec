//! A client without rules: it writes bytes, not frames.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_proto::{Codec, ErrorBody, Features, Hello, Kind, OpenPrefix, Welcome};
use lapce_ai_shm::{Bell, Consumer, MappedRing, Mapping, Producer, Segment, recv_with_fd};

/// Longest wait for room, or for a word of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Raw {
    socket: UnixStream,
    link: Link,
    pub(super) codec: Codec,
    pub(super) welcome: Welcome,
    received: Vec<u8>,
}

enum Link {
    Ring {
        producer: Producer<MappedRing>,
        consumer: Consumer<MappedRing>,
        mapping: Arc<Mapping>,
    },
    Socket,
}

/// What became of a connection that was broken on purpose.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The server said what was wrong, and hung up.
    Told(String),
    /// It hung up.
    HungUp,
    /// It did neither in time.
    Alive,
}

/// A socket to the server, before any handshake.
pub(super) fn dial(path: &Path) -> Result<UnixStream> {
    let socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The first bytes of every connection.
pub(super) fn hello(shared_memory: bool) -> Vec<u8> {
    let features = Features {
        shared_memory,
        crc: true,
    };
    let hello = Hello::new("chaos", 5, features, 1 << 20);
    Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode())
}

impl Raw {
    pub(super) fn connect(path: &Path, shared_memory: bool) -> Result<Self> {
        let mut socket = dial(path)?;
        socket.write_all(&hello(shared_memory))?;
        let (mut received, mut descriptor) = (Vec::new(), None);
        let welcome = loop {
            let mut chunk = [0; 512];
            let (n, file) = recv_with_fd(&socket, &mut chunk)?;
            if n == 0 {
                bail!("the server hung up");
            }
            received.extend_from_slice(&chunk[..n]);
            descriptor = descriptor.or(file);
            if let Some((frame, taken)) = Codec::HANDSHAKE.decode(&received)? {
                if frame.kind != Kind::Welcome {
                    bail!(
                        "the server refused: {}",
                        ErrorBody::read(frame.ty, frame.payload)
                    );
                }
                let welcome = Welcome::decode(frame.payload)?;
                received.drain(..taken);
                break welcome;
            }
        };
        let link = match descriptor {
            Some(file) => {
                let segment =
                    Segment::open(file, welcome.request_capacity, welcome.response_capacity)?;
                let mapping = Arc::clone(segment.mapping());
                let (producer, consumer) = segment.into_client_ends();
                Link::Ring {
                    producer,
                    consumer,
                    mapping,
                }
            }
            None => Link::Socket,
        };
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            link,
            codec: Codec {
                crc: welcome.features.crc,
                max_payload: u32::MAX,
            },
            welcome,
            received,
        })
    }

    pub(super) fn mapping(&self) -> Option<&Mapping> {
        match &self.link {
            Link::Ring { mapping, .. } => Some(mapping),
            Link::Socket => None,
        }
    }

    /// Sends bytes as they are. False: the server is gone, or does not read.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        let until = Instant::now() + PATIENCE;
        match &mut self.link {
            Link::Ring { producer, .. } => loop {
                match producer.push(&[bytes]) {
                    Ok(true) => {
                        return !producer.publish() || Bell::new(&self.socket).ring().is_ok();
                    }
                    Ok(false) if Instant::now() < until => thread::yield_now(),
                    _ => return false,
                }
            },
            Link::Socket => {
                let mut sent = 0;
                while sent < bytes.len() {
                    match self.socket.write(&bytes[sent..]) {
                        Ok(n) => sent += n,
                        Err(error)
                            if error.kind() == ErrorKind::WouldBlock && Instant::now() < until =>
                        {
                            thread::yield_now();
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return false,
                    }
                }
                true
            }
        }
    }

    /// Begins a request of this length, of which nothing is sent.
    pub(super) fn begin(&mut self, ty: u16, id: u64, total_length: u64) -> bool {
        let prefix = OpenPrefix {
            total_length,
            ..OpenPrefix::default()
        };
        let flags = lapce_ai_proto::PREFIX;
        let frame = self
            .codec
            .encode(Kind::Open, flags, ty, id, &prefix.encode());
        self.send(&frame)
    }

    /// Waits until the server ends the connection.
    pub(super) fn end(&mut self, limit: Duration) -> End {
        self.until(limit, |_, _| false).unwrap_or(End::Alive)
    }

    /// The error that ends this stream, if one comes before the end of everything.
    pub(super) fn error_of(&mut self, id: u64, limit: Duration) -> End {
        self.until(limit, |kind, of| kind == Kind::Error && of == id)
            .unwrap_or(End::Alive)
    }

    /// Reads until a frame is wanted or the server is gone.
    fn until(&mut self, limit: Duration, wanted: impl Fn(Kind, u64) -> bool) -> Option<End> {
        let until = Instant::now() + limit;
        let mut told = None;
        loop {
            let gone = !self.receive();
            while let Ok(Some((frame, taken))) = self.codec.decode(&self.received) {
                let (kind, id) = (frame.kind, frame.id);
                if kind == Kind::Error {
                    let body = ErrorBody::read(frame.ty, frame.payload);
                    let fault = body.fault.as_deref();
                    let word = fault.unwrap_or(body.code.name()).to_owned();
                    if wanted(kind, id) {
                        return Some(End::Told(word));
                    }
                    if id == 0 {
                        told = Some(End::Told(word));
                    }
                }
                self.received.drain(..taken);
            }
            if gone {
                return Some(told.unwrap_or(End::HungUp));
            }
            if Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what is there. False: the server is gone.
    fn receive(&mut self) -> bool {
        match &mut self.link {
            Link::Ring { consumer, .. } => {
                let alive = Bell::new(&self.socket).drain().is_ok();
                // Positions that were scribbled over may be anything.
                if let Ok(readable) = consumer.readable() {
                    let start = self.received.len();
                    self.received.resize(start + readable, 0);
                    consumer.peek(0, &mut self.received[start..]);
                    consumer.consume(readable);
                }
                let rings = consumer.release();
                alive && (!rings || Bell::new(&self.socket).ring().is_ok())
            }
            Link::Socket => {
                let mut chunk = [0; 4096];
                loop {
                    match self.socket.read(&mut chunk) {
                        Ok(0) => return false,
                        Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return false,
                    }
                }
            }
        }
    }
}

/// Reads a plain socket until the server hangs up.
pub(super) fn hung_up(mut socket: UnixStream, limit: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(limit))?;
    let mut rest = [0; 512];
    loop {
        match socket.read(&mut rest) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("cannot read from the server"),
        }
    }
}
