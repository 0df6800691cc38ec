//! A daemon, and a client that writes frames byte by byte and may break every rule.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lapce_ai_proto::{
    CRC, Codec, ErrorBody, ErrorCode, FIN, Fault, Features, HEADER_LEN, Hello, Kind, MORE,
    MessageType, OpenPrefix, PREFIX, Welcome,
};
use lapce_ai_server::{Options, Responder, Retiring, Running, Server, ServerHandle};
use lapce_ai_shm::{Bell, BellError, Consumer, MappedRing, Mapping, Producer, Segment, Woken};
use lapce_ai_transport::{Listener, RuntimeDir};

/// Longest wait for anything; only a hang takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const ECHO: u16 = MessageType::ECHO.0;
/// The same bytes, from a task.
pub const ASYNC_ECHO: u16 = 0x8001;
/// A sync handler that panics.
pub const PANIC: u16 = 0x8002;
/// An async handler that panics.
pub const ASYNC_PANIC: u16 = 0x8003;
/// Answers with the request's length, at once.
pub const LENGTH: u16 = 0x8004;
/// As many items as the body's first byte says, each of as many KiB as the second says.
pub const STREAM: u16 = 0x8005;
/// Answers with as many bytes as the body, a number, says.
pub const LARGE: u16 = 0x8006;
/// Fails with a message that JSON makes six times as long.
pub const FAIL: u16 = 0x8007;
/// For handlers of a test's own.
pub const OWN: u16 = 0x8010;

/// How many reactors the daemons have: every test of `several.rs` runs with more than one.
pub const REACTORS: usize = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"several" => 3,
    _ => 1,
};

/// How frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pub const SHARED_MEMORY: Self = Self::ALL[0];
    pub const SOCKET: Self = Self::ALL[2];

    const fn new(shared_memory: bool, crc: bool) -> Self {
        Self { shared_memory, crc }
    }
}

/// Small rings and limits, so that tests reach them.
pub fn options() -> Options {
    let mut options = Options {
        request_capacity: 16 << 10,
        response_capacity: 16 << 10,
        reactors: REACTORS,
        ..Options::default()
    };
    options.limits.max_message_size = 1 << 20;
    options.limits.max_frame_payload = 4 << 10;
    options.limits.max_streams = 16;
    options.limits.inline_window = 32 << 10;
    options.pool.budget = 4 << 20;
    options
}

/// A running daemon. It is stopped, within bounds, when this is dropped.
pub struct Daemon {
    pub handle: ServerHandle,
    pub path: PathBuf,
    stopped: Mutex<mpsc::Receiver<()>>,
    runtime: Option<tokio::runtime::Runtime>,
    base: Arc<tempfile::TempDir>,
}

impl Daemon {
    pub fn start(options: Options) -> Self {
        Self::with(options, |_| {})
    }

    /// With handlers of the test's own.
    pub fn with(options: Options, own: impl FnOnce(&mut Server)) -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self::launch(Arc::new(base), options, own, |server, dir, runtime| {
            server.start(Listener::bind(dir).unwrap(), runtime).unwrap()
        })
    }

    /// Another one, which takes over from this one; whatever runs here has time without end. Connections at rest are handed
    /// over where segments are kept.
    pub fn followed(&self, options: Options, own: impl FnOnce(&mut Server)) -> Self {
        let for_ever = Duration::from_secs(1 << 20);
        let until = Instant::now() + PATIENCE;
        let (legacy, retiring) = self.handle.retire(for_ever, true, until).unwrap();
        let copies = retiring.listener().unwrap().parts();
        let [socket, lock] = copies.map(|part| part.try_clone_to_owned().unwrap());
        let copy = |part: std::os::fd::BorrowedFd<'_>| part.try_clone_to_owned().unwrap();
        let resting: Vec<_> = retiring
            .resting()
            .map(|(resting, parts)| (resting, parts.map(copy)))
            .collect();
        let base = Arc::clone(&self.base);
        Self::launch(base, options, own, |mut server, dir, runtime| {
            server.inherit(legacy);
            let listener = Listener::adopt(dir, socket, lock).unwrap();
            let running = server.start_closed(listener, runtime).unwrap();
            let adopted = running.handle().adopt(resting).unwrap();
            retiring.leave(for_ever);
            adopted.serve();
            running.handle().open();
            running
        })
    }

    /// Another one that is about to take over and does not serve yet; whoever drops the other has this one go on.
    pub fn nearly_followed(&self, options: Options) -> (Self, Retiring) {
        let for_ever = Duration::from_secs(1 << 20);
        let until = Instant::now() + PATIENCE;
        let (legacy, retiring) = self.handle.retire(for_ever, false, until).unwrap();
        let copies = retiring.listener().unwrap().parts();
        let [socket, lock] = copies.map(|part| part.try_clone_to_owned().unwrap());
        let base = Arc::clone(&self.base);
        let start = |mut server: Server, dir: &RuntimeDir, runtime: &tokio::runtime::Handle| {
            server.inherit(legacy);
            let listener = Listener::adopt(dir, socket, lock).unwrap();
            server.start_closed(listener, runtime).unwrap()
        };
        (Self::launch(base, options, |_| {}, start), retiring)
    }

    fn launch(
        base: Arc<tempfile::TempDir>,
        options: Options,
        own: impl FnOnce(&mut Server),
        start: impl FnOnce(Server, &RuntimeDir, &tokio::runtime::Handle) -> Running,
    ) -> Self {
        let dir = RuntimeDir::for_socket(base.path().join("daemon.sock"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        let mut server = Server::new(options);
        handlers(&mut server);
        own(&mut server);
        let running = start(server, &dir, runtime.handle());
        let handle = running.handle().clone();
        let (sender, stopped) = mpsc::channel();
        std::thread::spawn(move || {
            running.join();
            let _ = sender.send(());
        });
        Self {
            handle,
            path: dir.socket().to_owned(),
            stopped: Mutex::new(stopped),
            runtime: Some(runtime),
            base,
        }
    }

    /// Waits until it has stopped.
    pub fn await_stop(&self) {
        if self.stopped.lock().unwrap().recv_timeout(PATIENCE)
            == Err(mpsc::RecvTimeoutError::Timeout)
        {
            panic!("the daemon does not stop");
        }
    }

    /// Nothing is held for anybody, except the connections that are to be left.
    pub fn await_quiet(&self, connections: usize) {
        eventually("no buffers and no further connections are left", || {
            self.handle.pool().held == 0 && self.handle.connections().len() == connections
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.handle.shutdown(Duration::ZERO);
        if !std::thread::panicking() {
            self.await_stop();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn handlers(server: &mut Server) {
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    server.handle_async(
        MessageType(ASYNC_ECHO),
        |request, responder: Responder| async move {
            let _ = responder.answer(&request.body).await;
        },
    );
    server.handle(MessageType(PANIC), |_, _| panic!("on purpose"));
    server.handle_async(
        MessageType(ASYNC_PANIC),
        |_, responder: Responder| async move {
            let _responder = responder;
            panic!("on purpose")
        },
    );
    server.handle(MessageType(LENGTH), |request, reply| {
        reply.send(request.body().len().to_string().as_bytes());
    });
    server.handle_async(
        MessageType(STREAM),
        |request, mut responder: Responder| async move {
            let (count, kib) = (request.body[0], request.body[1]);
            for number in 0..count {
                let item = vec![number; usize::from(kib) << 10];
                if responder.send(&item).await.is_err() {
                    return;
                }
            }
            let _ = responder.end().await;
        },
    );
    server.handle(MessageType(LARGE), |request, reply| {
        let len = std::str::from_utf8(request.body())
            .unwrap()
            .parse()
            .unwrap();
        reply.send(&pattern(1, len));
    });
    server.handle(MessageType(FAIL), |_, reply| {
        let message = "\u{1}".repeat(5000);
        reply.fail(ErrorBody::new(ErrorCode::InvalidRequest, message));
    });
}

/// Waits until something is so that nothing tells of.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "not so in time: {what}");
        std::thread::yield_now();
    }
}

/// A payload whose every byte has its place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (seed.wrapping_mul(0x9E37_79B9) >> 3) as u8 ^ at as u8 ^ (at >> 8) as u8)
        .collect()
}

/// A prefix for a request of this length.
pub fn prefix(total_length: usize) -> OpenPrefix {
    OpenPrefix {
        total_length: total_length as u64,
        ..OpenPrefix::default()
    }
}

/// CRC-32C bit by bit, to seal frames that no codec would write.
fn castagnoli(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
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

impl Received {
    /// What an ERROR says.
    pub fn error(&self) -> ErrorBody {
        assert_eq!(self.kind, Kind::Error, "{self:?}");
        ErrorBody::read(self.ty, &self.payload)
    }
}

/// A client without rules.
pub struct Client {
    pub socket: UnixStream,
    pub welcome: Welcome,
    pub codec: Codec,
    link: Link,
    received: Vec<u8>,
    frames: VecDeque<Received>,
    next_id: u64,
}

enum Link {
    Ring {
        producer: Producer<MappedRing>,
        consumer: Consumer<MappedRing>,
        mapping: Arc<Mapping>,
    },
    Socket,
}

/// The socket of a daemon, before any handshake.
pub fn socket(path: &Path) -> UnixStream {
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// All that a daemon says until it closes, which must be one ERROR of the connection.
pub fn last_words(mut socket: &UnixStream) -> ErrorBody {
    let mut heard = Vec::new();
    match socket.read_to_end(&mut heard) {
        Ok(_) => {}
        // What it did not read makes the end a reset.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the daemon does not close: {error}"),
    }
    let (frame, taken) = Codec::HANDSHAKE
        .decode(&heard)
        .unwrap()
        .expect("the daemon says why it closes");
    assert_eq!((frame.kind, frame.id, taken), (Kind::Error, 0, heard.len()));
    ErrorBody::read(frame.ty, frame.payload)
}

impl Client {
    pub fn new(daemon: &Daemon, carrier: Carrier) -> Self {
        Self::with_window(daemon, carrier, 1 << 20)
    }

    pub fn with_window(daemon: &Daemon, carrier: Carrier, window: u32) -> Self {
        Self::try_new(&daemon.path, carrier, window).expect("the daemon takes the client")
    }

    /// Shakes hands, or says how the daemon refused.
    pub fn try_new(path: &Path, carrier: Carrier, window: u32) -> Result<Self, ErrorBody> {
        Self::shake_hands(socket(path), carrier, window, 5)
            .map_err(|why| why.expect("the daemon closed without a word"))
    }

    /// Shakes hands with a daemon that may be going away.
    pub fn if_taken(path: &Path, carrier: Carrier) -> Option<Self> {
        let socket = UnixStream::connect(path).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::shake_hands(socket, carrier, 1 << 16, 5).ok()
    }

    /// A client of this instance that has used ids up to `last_id` before.
    pub fn again(daemon: &Daemon, carrier: Carrier, instance: u128, last_id: u64) -> Self {
        let socket = socket(&daemon.path);
        let client = Self::shake_hands(socket, carrier, 1 << 20, instance);
        Self {
            next_id: last_id,
            ..client.unwrap_or_else(|why| panic!("not taken: {why:?}"))
        }
    }

    /// A client on a socket that was connected before.
    pub fn on(socket: UnixStream, carrier: Carrier) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = Self::shake_hands(socket, carrier, 1 << 20, 5);
        client.unwrap_or_else(|why| panic!("not taken: {why:?}"))
    }

    /// `None` as the error: the daemon has hung up.
    fn shake_hands(
        socket: UnixStream,
        carrier: Carrier,
        window: u32,
        instance: u128,
    ) -> Result<Self, Option<ErrorBody>> {
        let features = Features {
            shared_memory: carrier.shared_memory,
            crc: carrier.crc,
        };
        let hello = Hello::new("without rules", instance, features, window);
        let frame = Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode());
        // A daemon that is full may have answered and closed already.
        let _ = (&socket).write_all(&frame);
        let mut received = Vec::new();
        let mut descriptor = None;
        let welcome = loop {
            let mut chunk = [0; 512];
            let (n, file) = match lapce_ai_shm::recv_with_fd(&socket, &mut chunk) {
                Ok((0, _)) => return Err(None),
                Ok(received) => received,
                Err(lapce_ai_shm::FdError::System { source, .. })
                    if source.kind() == ErrorKind::ConnectionReset =>
                {
                    return Err(None);
                }
                Err(error) => panic!("{error}"),
            };
            received.extend_from_slice(&chunk[..n]);
            descriptor = descriptor.or(file);
            if let Some((frame, taken)) = Codec::HANDSHAKE.decode(&received).unwrap() {
                if frame.kind == Kind::Error {
                    return Err(Some(ErrorBody::read(frame.ty, frame.payload)));
                }
                assert_eq!(frame.kind, Kind::Welcome);
                let welcome = Welcome::decode(frame.payload).unwrap();
                received.drain(..taken);
                break welcome;
            }
        };
        assert_eq!(welcome.features, features);
        let link = match descriptor {
            Some(file) => {
                assert!(carrier.shared_memory && received.is_empty());
                let segment =
                    Segment::open(file, welcome.request_capacity, welcome.response_capacity)
                        .unwrap();
                let mapping = Arc::clone(segment.mapping());
                let (producer, consumer) = segment.into_client_ends();
                Link::Ring {
                    producer,
                    consumer,
                    mapping,
                }
            }
            None => {
                assert!(!carrier.shared_memory);
                Link::Socket
            }
        };
        socket.set_nonblocking(true).unwrap();
        Ok(Self {
            socket,
            codec: Codec {
                crc: carrier.crc,
                max_payload: u32::MAX,
            },
            welcome,
            link,
            received,
            frames: VecDeque::new(),
            next_id: 0,
        })
    }

    /// An id that was not used.
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The memory that the daemon shares with this client.
    pub fn mapping(&self) -> Arc<Mapping> {
        match &self.link {
            Link::Ring { mapping, .. } => Arc::clone(mapping),
            Link::Socket => panic!("a socket has no segment"),
        }
    }

    /// Sends bytes as they are, waiting for room. False: the daemon is gone.
    pub fn bytes(&mut self, bytes: &[u8]) -> bool {
        let mut sent = 0;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_bytes(bytes, &mut sent) {
                None => return false,
                Some(true) => return true,
                Some(false) => {}
            }
            assert!(Instant::now() < until, "the daemon does not read");
            // Whatever comes meanwhile is kept, so that the daemon can go on.
            if !self.receive() {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Sends bytes without waiting. `None`: the daemon is gone; false: there is no room for all of them.
    pub fn try_bytes(&mut self, bytes: &[u8], sent: &mut usize) -> Option<bool> {
        match &mut self.link {
            Link::Ring { producer, .. } => {
                let Ok(pushed) = producer.push(&[bytes]) else {
                    return None;
                };
                if pushed && producer.publish() && Bell::new(&self.socket).ring().is_err() {
                    return None;
                }
                Some(pushed)
            }
            Link::Socket => {
                while *sent < bytes.len() {
                    match self.socket.write(&bytes[*sent..]) {
                        Ok(n) => *sent += n,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(false),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return None,
                    }
                }
                Some(true)
            }
        }
    }

    /// Sends a frame that the codec would write.
    pub fn send(&mut self, kind: Kind, flags: u8, ty: u16, id: u64, payload: &[u8]) {
        let frame = self.codec.encode(kind, flags, ty, id, payload);
        assert!(self.bytes(&frame), "the daemon is gone");
    }

    /// Sends a frame whose header was changed, with a CRC that is right for it where there is one.
    pub fn send_changed(&mut self, mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) {
        change(&mut frame);
        if self.codec.crc {
            frame[20..HEADER_LEN].fill(0);
            let crc = castagnoli(&frame);
            frame[20..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        assert!(self.bytes(&frame), "the daemon is gone");
    }

    /// Begins a request that is whole in its OPEN, and returns its id.
    pub fn open(&mut self, ty: u16, body: &[u8]) -> u64 {
        let id = self.id();
        self.send(Kind::Open, FIN, ty, id, body);
        id
    }

    /// The same with a prefix.
    pub fn open_with(&mut self, ty: u16, prefix: &OpenPrefix, body: &[u8]) -> u64 {
        let id = self.id();
        let payload = [prefix.encode().as_slice(), body].concat();
        self.send(Kind::Open, FIN | PREFIX, ty, id, &payload);
        id
    }

    /// Begins a request in pieces, with a first piece.
    pub fn begin(&mut self, ty: u16, total: usize, first: &[u8]) -> u64 {
        let id = self.id();
        let payload = [prefix(total).encode().as_slice(), first].concat();
        self.send(Kind::Open, PREFIX, ty, id, &payload);
        id
    }

    /// Waits for the CREDIT of a request in pieces.
    pub fn await_credit(&mut self, id: u64) -> u32 {
        let frame = self.next_of(id);
        assert_eq!(frame.kind, Kind::Credit, "{:?}", frame);
        u32::from_le_bytes(frame.payload.try_into().unwrap())
    }

    /// The rest of a request in pieces, from `from` on.
    pub fn send_rest(&mut self, id: u64, body: &[u8], from: usize) {
        let most = self.welcome.limits.max_frame_payload as usize;
        let mut pieces = body[from..].chunks(most).peekable();
        if pieces.peek().is_none() {
            self.send(Kind::End, 0, 0, id, &[]);
        }
        while let Some(piece) = pieces.next() {
            let kind = if pieces.peek().is_none() {
                Kind::End
            } else {
                Kind::Data
            };
            self.send(kind, 0, 0, id, piece);
        }
    }

    /// Sends a request in pieces, from its beginning to its end.
    pub fn upload(&mut self, ty: u16, body: &[u8]) -> u64 {
        let id = self.begin(ty, body.len(), &[]);
        assert_eq!(self.await_credit(id) as usize, body.len());
        self.send_rest(id, body, 0);
        id
    }

    pub fn credit(&mut self, id: u64, bytes: u32) {
        self.send(Kind::Credit, 0, 0, id, &bytes.to_le_bytes());
    }

    /// Takes what is there. False: the daemon is gone, and all that it had sent is taken.
    pub fn receive(&mut self) -> bool {
        let mut gone = false;
        match &mut self.link {
            Link::Ring { consumer, .. } => {
                match Bell::new(&self.socket).drain() {
                    Ok(_) => {}
                    Err(BellError::PeerGone) => gone = true,
                    Err(error) => panic!("{error}"),
                }
                // After scribbling, the positions may be anything.
                if let Ok(readable) = consumer.readable() {
                    let start = self.received.len();
                    self.received.resize(start + readable, 0);
                    assert_eq!(consumer.peek(0, &mut self.received[start..]), readable);
                    consumer.consume(readable);
                }
                if consumer.release() && Bell::new(&self.socket).ring().is_err() {
                    gone = true;
                }
            }
            Link::Socket => {
                let mut chunk = [0; 4096];
                loop {
                    match self.socket.read(&mut chunk) {
                        Ok(0) => {
                            gone = true;
                            break;
                        }
                        Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => {
                            gone = true;
                            break;
                        }
                    }
                }
            }
        }
        let mut at = 0;
        while let Ok(Some((frame, taken))) = self.codec.decode(&self.received[at..]) {
            self.frames.push_back(Received {
                kind: frame.kind,
                flags: frame.flags,
                ty: frame.ty,
                id: frame.id,
                payload: frame.payload.to_vec(),
            });
            at += taken;
        }
        self.received.drain(..at);
        !gone
    }

    /// The next frame; `None` once the daemon has gone.
    pub fn next(&mut self) -> Option<Received> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            if !self.receive() {
                return self.frames.pop_front();
            }
            if !self.frames.is_empty() {
                continue;
            }
            assert!(Instant::now() < until, "no frame came");
            let sleep = match &mut self.link {
                Link::Ring { consumer, .. } => consumer.wait_for_data().unwrap_or(true),
                Link::Socket => true,
            };
            if sleep {
                let woken = Bell::new(&self.socket).wait(Some(PATIENCE)).unwrap();
                assert_ne!(woken, Woken::TimedOut, "no frame came");
            }
        }
    }

    /// The next frame of a stream; frames of others are kept.
    pub fn next_of(&mut self, id: u64) -> Received {
        let mut others = VecDeque::new();
        let found = loop {
            let frame = self.next().expect("the daemon is gone");
            assert!(
                frame.id != 0 || frame.kind != Kind::Error,
                "the connection failed: {:?}",
                frame.error()
            );
            if frame.id == id {
                break frame;
            }
            others.push_back(frame);
        };
        others.append(&mut self.frames);
        self.frames = others;
        found
    }

    /// The next frame of this kind of a stream, if it has come; other frames are dropped.
    pub fn poll_of(&mut self, id: u64, kind: Kind) -> Option<Received> {
        assert!(self.receive(), "the daemon is gone");
        self.frames
            .drain(..)
            .find(|frame| (frame.id, frame.kind) == (id, kind))
    }

    /// The error that ends a stream.
    pub fn error_of(&mut self, id: u64) -> ErrorBody {
        loop {
            let frame = self.next_of(id);
            if frame.kind != Kind::Accepted {
                return frame.error();
            }
        }
    }

    /// The items of a response, whole, with credit for every byte, up to its END.
    pub fn items(&mut self, id: u64) -> Vec<Vec<u8>> {
        let mut items = Vec::new();
        let mut item = Vec::new();
        loop {
            let frame = self.next_of(id);
            let has = |flag| frame.flags & flag != 0;
            match frame.kind {
                Kind::Accepted => continue,
                Kind::Data | Kind::End => {}
                _ => panic!("in place of an answer: {frame:?} {:?}", frame.error()),
            }
            if frame.kind == Kind::End && !has(FIN) {
                assert!(frame.payload.is_empty() && item.is_empty());
                return items;
            }
            let prefix = if has(PREFIX) { 8 } else { 0 };
            item.extend_from_slice(&frame.payload[prefix..]);
            if frame.kind == Kind::End {
                items.push(item);
                return items;
            }
            if !has(MORE) {
                items.push(std::mem::take(&mut item));
            }
            let len = (frame.payload.len() - prefix) as u32;
            if len > 0 {
                self.credit(id, len);
            }
        }
    }

    /// The one item of a response.
    pub fn answer(&mut self, id: u64) -> Vec<u8> {
        let mut items = self.items(id);
        assert_eq!(items.len(), 1);
        items.remove(0)
    }

    /// One echo there and back.
    pub fn echo(&mut self, len: usize) {
        let body = pattern(self.next_id, len);
        let id = self.open(ECHO, &body);
        assert!(self.answer(id) == body, "the echo is another");
    }

    /// The error with which the daemon ends the connection, and that it does end it.
    pub fn closing_error(&mut self) -> ErrorBody {
        let body = loop {
            let frame = self.next().expect("the daemon says why it closes");
            if frame.kind == Kind::Error && frame.id == 0 {
                break frame.error();
            }
        };
        assert_eq!(self.next(), None, "nothing comes after it");
        body
    }

    /// That the daemon names this fault, and closes.
    pub fn expect_fault(&mut self, fault: Fault) {
        let body = self.closing_error();
        assert_eq!(body.code, ErrorCode::ProtocolError);
        assert_eq!(body.fault.as_deref(), Some(fault.name()));
    }

    /// Reads to the end, however it comes.
    pub fn drain(&mut self) {
        while self.next().is_some() {}
    }
}

/// A frame with the CRC flag set, though there is no CRC on this connection.
pub fn with_crc_flag(frame: &mut [u8]) {
    frame[5] |= CRC;
}

/// A client that keeps all rules, and must not notice what others do.
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Witness {
    pub fn new(daemon: &Daemon, carrier: Carrier) -> Self {
        let mut client = Client::new(daemon, carrier);
        client.echo(100);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            loop {
                let last = asked.load(Ordering::Acquire);
                client.echo(1 + count as usize % 3000);
                count += 1;
                if last {
                    return count;
                }
            }
        });
        Self { stop, thread }
    }

    /// That it was served to the end, and is still.
    pub fn was_served(self) {
        self.stop.store(true, Ordering::Release);
        assert!(self.thread.join().expect("the witness saw an error") > 0);
    }
}
