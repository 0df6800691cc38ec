//! Pairs of connected ends, and waits that are bounded.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lapce_ai_proto::{Features, Kind, Limits, Welcome};
use lapce_ai_transport::{
    ConnectError, ConnectOptions, Connection, Handshake, Listener, Progress, Reader, RuntimeDir,
    ServerTerms, TransportError, Writer, connect, flush,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest wait for anything; only a hang takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How frames travel.
#[derive(Debug, Clone, Copy)]
pub struct Carrier {
    pub shared_memory: bool,
    pub crc: bool,
}

impl Carrier {
    pub const ALL: [Self; 4] = [
        Self::new(true, false),
        Self::new(true, true),
        Self::new(false, false),
        Self::new(false, true),
    ];

    const fn new(shared_memory: bool, crc: bool) -> Self {
        Self { shared_memory, crc }
    }
}

pub const LIMITS: Limits = Limits {
    max_message_size: 10 << 20,
    max_frame_payload: 4 << 10,
    max_streams: 256,
    inline_window: 128 << 10,
};

pub const CAPACITY: u32 = 16 << 10;

pub fn terms() -> ServerTerms {
    ServerTerms {
        instance: 2,
        name: "conformance".to_owned(),
        limits: LIMITS,
        request_capacity: CAPACITY,
        response_capacity: CAPACITY,
        shared_memory: true,
        require_crc: false,
        keep_segments: false,
    }
}

pub fn options(carrier: Carrier) -> ConnectOptions {
    ConnectOptions {
        name: "a client".to_owned(),
        instance: 7,
        features: Features {
            shared_memory: carrier.shared_memory,
            crc: carrier.crc,
        },
        response_window: 1 << 16,
        earlier: 0,
        timeout: PATIENCE,
        server_uids: Vec::new(),
    }
}

/// A place for a socket, that goes away with it.
pub fn place() -> (tempfile::TempDir, RuntimeDir) {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let dir = RuntimeDir::for_socket(base.path().join("daemon.sock"));
    (base, dir)
}

/// Waits until one of the events is there.
pub fn await_events(fd: impl AsFd, events: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(&fd, events)];
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut polled, Some(&timeout)).unwrap();
    assert_ne!(ready, 0, "nothing of {events:?} came");
    polled[0].revents()
}

/// The next client of a listener.
pub fn accept(listener: &Listener) -> OwnedFd {
    await_events(listener, PollFlags::IN);
    listener.accept().unwrap().expect("a client waits")
}

/// A handshake up to its HELLO, or why there is none.
pub fn await_hello(socket: OwnedFd) -> Result<(Handshake, lapce_ai_proto::Hello), TransportError> {
    let mut handshake = Handshake::new(socket)?;
    loop {
        await_events(handshake.socket(), PollFlags::IN);
        match handshake.advance()? {
            Progress::Pending(pending) => handshake = pending,
            Progress::Hello(handshake, hello) => return Ok((handshake, hello)),
        }
    }
}

/// Lets a client connect to a daemon that does what `daemon` says with its socket.
pub fn meet<T>(
    options: &ConnectOptions,
    daemon: impl FnOnce(OwnedFd) -> T,
) -> (T, Result<(Connection, Welcome), ConnectError>) {
    let (_base, dir) = place();
    let listener = Listener::bind(&dir).unwrap();
    let (path, options) = (dir.socket().to_owned(), options.clone());
    let client = std::thread::spawn(move || connect(&path, &options));
    let daemon = daemon(accept(&listener));
    (daemon, client.join().unwrap())
}

/// Two ends of one connection.
pub struct Pair {
    pub daemon: Connection,
    pub client: Connection,
    pub welcome: Welcome,
}

impl Pair {
    pub fn new(carrier: Carrier) -> Self {
        Self::with(carrier, &terms())
    }

    pub fn with(carrier: Carrier, terms: &ServerTerms) -> Self {
        let (daemon, client) = meet(&options(carrier), |socket| {
            let (handshake, hello) = await_hello(socket).unwrap();
            handshake.accept(hello, terms, 3).unwrap()
        });
        let (client, welcome) = client.unwrap();
        Self {
            daemon,
            client,
            welcome,
        }
    }
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub kind: Kind,
    pub flags: u8,
    pub ty: u16,
    pub id: u64,
    pub payload: Vec<u8>,
}

/// What is there now.
pub fn read(reader: &mut Reader) -> Result<Vec<Received>, TransportError> {
    let mut scratch = vec![0; reader.scratch_len()];
    let mut frames = Vec::new();
    reader.read(&mut scratch, |frame| {
        frames.push(Received {
            kind: frame.kind,
            flags: frame.flags,
            ty: frame.ty,
            id: frame.id,
            payload: frame.payload.to_vec(),
        });
        Ok::<_, TransportError>(())
    })?;
    Ok(frames)
}

/// Reads until there are some, asleep in between, and gives their room back.
pub fn await_frames(connection: &mut Connection) -> Result<Vec<Received>, TransportError> {
    loop {
        let frames = read(&mut connection.reader)?;
        flush(&mut connection.reader, &mut connection.writer)?;
        if !frames.is_empty() {
            return Ok(frames);
        }
        if connection.reader.prepare_to_sleep()? {
            await_events(connection.reader.socket(), PollFlags::IN);
            connection.reader.drain_bell()?;
            connection.reader.awake();
        }
    }
}

/// Waits, asleep, for room for a frame with this payload.
pub fn await_room(connection: &mut Connection, payload: usize) -> Result<(), TransportError> {
    connection.writer.flush()?;
    while connection.writer.wait_for_room(payload)? {
        let events = if connection.peer.shared_memory {
            PollFlags::IN
        } else {
            PollFlags::OUT
        };
        await_events(connection.reader.socket(), events);
        connection.reader.drain_bell()?;
        connection.writer.flush()?;
    }
    Ok(())
}

/// Writes a frame, waiting for room if there is none.
pub fn write(connection: &mut Connection, frame: &Received) -> Result<(), TransportError> {
    let Received {
        kind,
        flags,
        ty,
        id,
        payload,
    } = frame;
    while !connection
        .writer
        .frame(*kind, *flags, *ty, *id, &[], payload)?
    {
        await_room(connection, payload.len())?;
    }
    Ok(())
}

/// Sends everything that was written, to the last byte.
pub fn await_sent(writer: &mut Writer, socket: impl AsFd) -> Result<(), TransportError> {
    writer.flush()?;
    while writer.wants_writable() {
        await_events(&socket, PollFlags::OUT);
        writer.flush()?;
    }
    Ok(())
}

/// A payload whose every byte has its place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (seed.wrapping_mul(0x9E37_79B9) >> 3) as u8 ^ at as u8 ^ (at >> 8) as u8)
        .collect()
}

/// A DATA frame with such a payload.
pub fn data(id: u64, len: usize) -> Received {
    Received {
        kind: Kind::Data,
        flags: 0,
        ty: 0,
        id,
        payload: pattern(id, len),
    }
}
