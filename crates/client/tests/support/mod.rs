//! A small daemon in this process, made of the transport and the protocol's state machine, that does what a test asks by
//! the message's type.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lapce_ai_client::{ErrorBody, ErrorCode, MessageType, Options};
use lapce_ai_proto::{Control, FIN, Fault, Kind, Limits, MORE, PREFIX, ServerEvent, ServerState};
use lapce_ai_transport::{
    Connection, Handshake, Listener, Progress, RuntimeDir, ServerTerms, TransportError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Answers `count` items of `size` bytes each; the request is the two as little-endian u32.
pub(crate) const ITEMS: MessageType = MessageType(0x8001);
/// Is never answered.
pub(crate) const HOLD: MessageType = MessageType(0x8002);
/// Is accepted and never answered.
pub(crate) const ACCEPT_HOLD: MessageType = MessageType(0x8003);
/// Fails with `rate_limited`.
pub(crate) const FAIL: MessageType = MessageType(0x8004);
/// The first time: a frame for a stream that does not exist. Then echo.
pub(crate) const BAD_ID: MessageType = MessageType(0x8005);
/// The first time: the daemon hangs up without a word. Then echo.
pub(crate) const DIE: MessageType = MessageType(0x8006);
/// The first time: the daemon accepts and hangs up. Then echo.
pub(crate) const ACCEPT_DIE: MessageType = MessageType(0x8007);
/// The first time: GOAWAY, and answered only after `release`. Then echo.
pub(crate) const GO_AWAY: MessageType = MessageType(0x8008);
/// The connection ends with `idle_timeout`, after the answer.
pub(crate) const IDLE: MessageType = MessageType(0x8009);
/// An item, and then the daemon hangs up.
pub(crate) const ITEM_DIE: MessageType = MessageType(0x800A);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    Connected(u128),
    Request {
        ty: MessageType,
        connection: u64,
        repeatable: bool,
        deadline_ms: u32,
        sequence: u64,
    },
    /// One that came again and was refused, with the id that it had at first.
    Repeated(MessageType, u64),
    Cancelled(MessageType),
    Gone(u64),
    ClientFault(Fault),
}

#[derive(Default)]
struct Log {
    notes: Mutex<Vec<Note>>,
    more: Condvar,
    stop: AtomicBool,
    released: AtomicBool,
    first: AtomicU32,
    connections: AtomicU64,
    most_live: AtomicU64,
    items_sent: AtomicU64,
}

impl Log {
    fn note(&self, note: Note) {
        self.notes.lock().unwrap().push(note);
        self.more.notify_all();
    }

    /// Whether a type's misdeed is still to be done: once per daemon's directory.
    fn once(&self, ty: MessageType) -> bool {
        let bit = 1 << (ty.0 & 0x1F);
        self.first.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }
}

pub(crate) struct Daemon {
    dir: Arc<tempfile::TempDir>,
    log: Arc<Log>,
    thread: Option<JoinHandle<()>>,
    limits: Limits,
    ring: u32,
    instance: u128,
}

pub(crate) fn limits() -> Limits {
    Limits {
        max_message_size: 10 << 20,
        max_frame_payload: 16 << 10,
        max_streams: 64,
        inline_window: 64 << 10,
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(limits(), 64 << 10)
    }

    pub(crate) fn with(limits: Limits, ring: u32) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut daemon = Self {
            dir,
            log: Arc::default(),
            thread: None,
            limits,
            ring,
            instance: 0,
        };
        daemon.run();
        daemon
    }

    fn run(&mut self) {
        self.instance += 1;
        let listener = Listener::bind(&RuntimeDir::for_socket(self.socket())).unwrap();
        let terms = ServerTerms {
            instance: self.instance,
            name: "test".to_owned(),
            limits: self.limits,
            request_capacity: self.ring,
            response_capacity: self.ring,
            shared_memory: true,
            require_crc: false,
            keep_segments: false,
        };
        let log = Arc::clone(&self.log);
        log.stop.store(false, Ordering::SeqCst);
        self.thread = Some(thread::spawn(move || listen(&listener, &terms, &log)));
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/daemon.sock")
    }

    pub(crate) fn options(&self, shared_memory: bool) -> Options {
        Options {
            shared_memory,
            name: "tests".to_owned(),
            ..Options::new(self.socket())
        }
    }

    /// Ends every connection without a word, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.log.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// A new daemon on the same socket.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.run();
    }

    pub(crate) fn release(&self) {
        self.log.released.store(true, Ordering::SeqCst);
    }

    pub(crate) fn most_live(&self) -> u64 {
        self.log.most_live.load(Ordering::SeqCst)
    }

    /// Bytes of items that went out for `ITEMS`.
    pub(crate) fn items_sent(&self) -> u64 {
        self.log.items_sent.load(Ordering::SeqCst)
    }

    pub(crate) fn notes(&self) -> Vec<Note> {
        self.log.notes.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, pick: impl Fn(&Note) -> bool) -> usize {
        self.notes().iter().filter(|note| pick(note)).count()
    }

    /// Waits until so many notes are like this.
    pub(crate) fn wait_for(&self, count: usize, pick: impl Fn(&Note) -> bool) {
        let end = Instant::now() + LIMIT;
        let mut notes = self.log.notes.lock().unwrap();
        while notes.iter().filter(|note| pick(note)).count() < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "not seen within {LIMIT:?}; seen: {notes:?}"
            );
            notes = self.log.more.wait_timeout(notes, left).unwrap().0;
        }
    }

    pub(crate) fn wait_for_request(&self, count: usize, wanted: MessageType) {
        self.wait_for(
            count,
            |note| matches!(note, Note::Request { ty, .. } if *ty == wanted),
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// After which a test has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Runs a future; fails loudly when it takes too long.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, future)
            .await
            .expect("the test took too long")
    })
}

/// Runs a closure on a thread; fails loudly when it takes too long.
pub(crate) fn bounded(test: impl FnOnce() + Send + 'static) {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = send.send(());
    });
    match receive.recv_timeout(LIMIT) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the test took too long"),
        _ => thread.join().unwrap(),
    }
}

fn wait(fd: &impl std::os::fd::AsFd, flags: PollFlags) {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    let _ = poll(&mut [PollFd::new(fd, flags)], Some(&timeout));
}

fn listen(listener: &Listener, terms: &ServerTerms, log: &Arc<Log>) {
    let mut threads = Vec::new();
    while !log.stop.load(Ordering::SeqCst) {
        while let Some(socket) = listener.accept().unwrap() {
            let (terms, log) = (terms.clone(), Arc::clone(log));
            threads.push(thread::spawn(move || {
                let number = log.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let mut handshake = Handshake::new(socket).unwrap();
                let (hello, handshake) = loop {
                    match handshake.advance() {
                        Ok(Progress::Hello(handshake, hello)) => break (hello, handshake),
                        Ok(Progress::Pending(pending)) => {
                            wait(&pending.socket(), PollFlags::IN);
                            handshake = pending;
                        }
                        Err(_) => return,
                    }
                    if log.stop.load(Ordering::SeqCst) {
                        return;
                    }
                };
                log.note(Note::Connected(hello.instance));
                let window = hello.response_window;
                let Ok(connection) = handshake.accept(hello, &terms, number) else {
                    return;
                };
                let state = ServerState::new(terms.limits, window);
                let served = Served {
                    connection,
                    state,
                    limits: terms.limits,
                    number,
                    uploads: BTreeMap::new(),
                    types: BTreeMap::new(),
                    answers: VecDeque::new(),
                    waiting: Vec::new(),
                    die: false,
                    log: Arc::clone(&log),
                };
                served.serve();
                log.note(Note::Gone(number));
            }));
        }
        wait(listener, PollFlags::IN);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

struct Answer {
    id: u64,
    items: VecDeque<Vec<u8>>,
    /// Sent of the first item.
    sent: usize,
    one: bool,
    then_die: bool,
}

struct Served {
    connection: Connection,
    state: ServerState,
    limits: Limits,
    number: u64,
    uploads: BTreeMap<u64, (MessageType, Vec<u8>)>,
    types: BTreeMap<u64, MessageType>,
    answers: VecDeque<Answer>,
    waiting: Vec<Answer>,
    die: bool,
    log: Arc<Log>,
}

enum Owned {
    Request(u64, MessageType, lapce_ai_proto::OpenPrefix, Vec<u8>),
    Begin(u64, MessageType, lapce_ai_proto::OpenPrefix),
    Data(u64, Vec<u8>),
    Complete(u64, Vec<u8>),
    Cancel(u64),
}

impl Served {
    fn serve(mut self) {
        let mut scratch = vec![0; self.connection.reader.scratch_len()];
        let mut gone = false;
        while !self.log.stop.load(Ordering::SeqCst) {
            let mut events = Vec::new();
            let state = &mut self.state;
            let read = self.connection.reader.read(&mut scratch, |frame| {
                match state.handle(&frame)? {
                    ServerEvent::Request {
                        id,
                        ty,
                        prefix,
                        body,
                    } => {
                        state.track(id, &prefix, body.len())?;
                        events.push(Owned::Request(id, ty, prefix, body.to_vec()));
                    }
                    ServerEvent::Begin { id, ty, prefix, .. } => {
                        events.push(Owned::Begin(id, ty, prefix));
                    }
                    ServerEvent::Data { id, bytes } => events.push(Owned::Data(id, bytes.to_vec())),
                    ServerEvent::Complete { id, bytes } => {
                        events.push(Owned::Complete(id, bytes.to_vec()));
                    }
                    ServerEvent::Cancel { id } => events.push(Owned::Cancel(id)),
                    ServerEvent::Credit { .. } | ServerEvent::Nothing => {}
                }
                Ok::<(), TransportError>(())
            });
            let frames = match read {
                Ok(frames) => frames,
                Err(error) => {
                    if let Some(fault) = error.fault() {
                        self.log.note(Note::ClientFault(fault));
                    }
                    break;
                }
            };
            self.log
                .most_live
                .fetch_max(self.state.live() as u64, Ordering::SeqCst);
            for event in events {
                self.act(event);
            }
            if self.log.released.load(Ordering::SeqCst) {
                self.answers.extend(self.waiting.drain(..));
            }
            let wrote = self.write();
            let full = self.connection.writer.wants_writable();
            if self.connection.writer.flush().is_err() || self.connection.reader.release().is_err()
            {
                gone = true;
            }
            if self.die {
                break;
            }
            // What found no room may find it now, and nobody would tell.
            let emptied = full && !self.connection.writer.wants_writable();
            if frames > 0 || wrote || emptied {
                continue;
            }
            if gone {
                break;
            }
            if self.connection.reader.prepare_to_sleep().unwrap_or(false) {
                let writable = self.connection.writer.wants_writable();
                let flags = if writable {
                    PollFlags::IN | PollFlags::OUT
                } else {
                    PollFlags::IN
                };
                wait(&self.connection.reader.socket(), flags);
                self.connection.reader.awake();
            }
            if self.connection.reader.drain_bell().is_err() {
                gone = true;
            }
        }
        self.connection.writer.hang_up();
    }

    fn act(&mut self, event: Owned) {
        match event {
            // Without a memory like the real daemon's, it knows by the type what it has run.
            Owned::Request(id, ty @ (ACCEPT_DIE | ITEM_DIE), prefix, _)
                if prefix.sequence != 0 && !prefix.repeatable =>
            {
                self.log.note(Note::Repeated(ty, prefix.sequence));
                self.state
                    .fail(id, ErrorBody::new(ErrorCode::OutcomeUnknown, "was run"));
            }
            Owned::Request(id, ty, prefix, body) => {
                self.seen(ty, &prefix);
                self.request(id, ty, body);
            }
            Owned::Begin(id, ty, prefix) => {
                self.seen(ty, &prefix);
                self.uploads.insert(id, (ty, Vec::new()));
                self.state.grant(id);
            }
            Owned::Data(id, bytes) => {
                if let Some((_, body)) = self.uploads.get_mut(&id) {
                    body.extend(bytes);
                }
            }
            Owned::Complete(id, bytes) => {
                if let Some((ty, mut body)) = self.uploads.remove(&id) {
                    body.extend(bytes);
                    self.request(id, ty, body);
                }
            }
            Owned::Cancel(id) => {
                let ty = self.types.get(&id).copied();
                let upload = self.uploads.remove(&id).map(|(ty, _)| ty);
                self.answers.retain(|answer| answer.id != id);
                self.state
                    .fail(id, ErrorBody::new(ErrorCode::Cancelled, "as asked"));
                self.log
                    .note(Note::Cancelled(ty.or(upload).unwrap_or(MessageType(0))));
            }
        }
    }

    fn seen(&self, ty: MessageType, prefix: &lapce_ai_proto::OpenPrefix) {
        self.log.note(Note::Request {
            ty,
            connection: self.number,
            repeatable: prefix.repeatable,
            deadline_ms: prefix.deadline_ms,
            sequence: prefix.sequence,
        });
    }

    fn request(&mut self, id: u64, ty: MessageType, body: Vec<u8>) {
        self.types.insert(id, ty);
        let echo = |body| Answer {
            id,
            items: VecDeque::from([body]),
            sent: 0,
            one: true,
            then_die: false,
        };
        match ty {
            ITEMS => {
                let number =
                    |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
                let items = (0..number(0)).map(|n| vec![n as u8; number(4)]).collect();
                self.state.accept(id);
                self.answers.push_back(Answer {
                    id,
                    items,
                    sent: 0,
                    one: false,
                    then_die: false,
                });
            }
            HOLD => {}
            ACCEPT_HOLD => self.state.accept(id),
            FAIL => {
                let body = ErrorBody {
                    retry_after_ms: Some(7),
                    ..ErrorBody::new(ErrorCode::RateLimited, "slowly")
                };
                self.state.fail(id, body);
            }
            BAD_ID if self.log.once(ty) => {
                self.connection
                    .writer
                    .frame(Kind::Data, 0, 0, 1 << 40, &[], b"x")
                    .unwrap();
            }
            DIE if self.log.once(ty) => self.die = true,
            ACCEPT_DIE if self.log.once(ty) => {
                self.state.accept(id);
                self.die = true;
            }
            ITEM_DIE => {
                self.answers.push_back(Answer {
                    one: false,
                    then_die: true,
                    ..echo(body)
                });
            }
            GO_AWAY if self.log.once(ty) => {
                self.state.go_away(ErrorCode::ServerRestarting, 1000);
                self.waiting.push(echo(body));
            }
            IDLE => {
                let error = ErrorBody::new(ErrorCode::IdleTimeout, "bye");
                self.answers.push_back(echo(body));
                self.write();
                self.connection
                    .writer
                    .control(&Control::Error(0, Box::new(error)))
                    .unwrap();
                self.die = true;
            }
            _ => self.answers.push_back(echo(body)),
        }
    }

    /// Writes what there is room and credit for, a frame of each answer in turn.
    fn write(&mut self) -> bool {
        let mut wrote = false;
        while let Some(control) = self.state.next_control() {
            if !self.connection.writer.control(control).unwrap() {
                return wrote;
            }
            self.state.control_sent();
            wrote = true;
        }
        let mut idle = 0;
        while idle < self.answers.len() {
            let Some(mut answer) = self.answers.pop_front() else {
                break;
            };
            match self.write_one(&mut answer) {
                None => wrote = true,
                Some(true) => {
                    self.answers.push_back(answer);
                    idle = 0;
                    wrote = true;
                }
                Some(false) => {
                    self.answers.push_back(answer);
                    idle += 1;
                }
            }
        }
        wrote
    }

    /// Some(progress), or `None` when the answer is out.
    fn write_one(&mut self, answer: &mut Answer) -> Option<bool> {
        let id = answer.id;
        let credit = self.state.credit(id)? as usize;
        let writer = &mut self.connection.writer;
        let Some(item) = answer.items.front() else {
            if answer.then_die {
                self.die = true;
                return None;
            }
            if !writer.frame(Kind::End, 0, 0, id, &[], &[]).unwrap() {
                return Some(false);
            }
            self.state.ended(id);
            return None;
        };
        let left = item.len() - answer.sent;
        let most = self.limits.max_frame_payload as usize - 8;
        let len = left.min(most).min(credit);
        if len == 0 && left > 0 {
            return Some(false);
        }
        let ends = len == left;
        let prefix = (item.len() as u64).to_le_bytes();
        let (prefix, mut flags) = if answer.sent == 0 && !ends {
            (&prefix[..], PREFIX)
        } else {
            (&[][..], 0)
        };
        let (kind, flags) = match (ends, answer.one) {
            (true, true) => (Kind::End, FIN),
            (true, false) => (Kind::Data, 0),
            (false, _) => {
                flags |= MORE;
                (Kind::Data, flags)
            }
        };
        let piece = &item[answer.sent..answer.sent + len];
        if !writer.frame(kind, flags, 0, id, prefix, piece).unwrap() {
            return Some(false);
        }
        self.state.sent(id, len as u32);
        if !answer.one {
            self.log.items_sent.fetch_add(len as u64, Ordering::SeqCst);
        }
        answer.sent += len;
        if ends {
            answer.items.pop_front();
            answer.sent = 0;
            if answer.one {
                self.state.ended(id);
                return None;
            }
        }
        Some(true)
    }
}
