//! The real client and the real server, and between them something that cuts connections: whatever is asked is run once, and
//! ends in its answer or in one error that says so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lapce_ai_client::{
    BlockingClient, Client, ClientError, ErrorCode, MessageType, Options, RequestOptions,
};
use lapce_ai_server::{Options as ServerOptions, RepeatOptions, Responder, Server};
use support::{Daemon, PATIENCE, options};

/// Answers at once with the body, and notes that it ran.
const NOTE: MessageType = MessageType(0x8020);
/// Notes that it ran, and answers in five items, a moment between them.
const NOTE_SLOWLY: MessageType = MessageType(0x8021);

/// Hands bytes on between clients and a daemon, and cuts all connections after every few pieces. So it depends on no time how
/// much gets through.
struct Cutter {
    path: PathBuf,
    wire: Arc<Wire>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
struct Wire {
    live: Mutex<Vec<UnixStream>>,
    stop: AtomicBool,
    pieces: AtomicU64,
    cuts: AtomicU64,
}

impl Wire {
    /// Cuts every connection, wherever its bytes are.
    fn cut(&self) {
        for socket in self.live.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// A piece has come that is to be handed on: cuts after 20 to 108 of them.
    fn count(&self) {
        let cuts = self.cuts.load(Ordering::SeqCst);
        let most = 20 + cuts * 7 % 23 * 4;
        if self.pieces.fetch_add(1, Ordering::SeqCst) == most {
            self.pieces.store(0, Ordering::SeqCst);
            self.cuts.fetch_add(1, Ordering::SeqCst);
            self.cut();
        }
    }

    fn hand_on(&self, mut from: UnixStream, mut to: UnixStream) {
        // Few at a time: so a cut finds messages halfway.
        let mut chunk = [0; 700];
        loop {
            match from.read(&mut chunk) {
                Ok(n) if n > 0 => {
                    self.count();
                    if to.write_all(&chunk[..n]).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Cutter {
    fn before(daemon: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("cutter.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let wire = Arc::<Wire>::default();
        let thread = thread::spawn({
            let (daemon, wire) = (daemon.to_owned(), Arc::clone(&wire));
            move || {
                for client in listener.incoming() {
                    if wire.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let client = client.unwrap();
                    let Ok(server) = UnixStream::connect(&daemon) else {
                        return;
                    };
                    let again = |socket: &UnixStream| socket.try_clone().unwrap();
                    wire.live
                        .lock()
                        .unwrap()
                        .extend([again(&client), again(&server)]);
                    for (from, to) in [(&client, &server), (&server, &client)] {
                        let (from, to, wire) = (again(from), again(to), Arc::clone(&wire));
                        thread::spawn(move || wire.hand_on(from, to));
                    }
                }
            }
        });
        Self {
            path,
            wire,
            thread: Some(thread),
            _dir: dir,
        }
    }

    /// Whether it has cut often enough.
    fn is_tired(&self) -> bool {
        self.wire.cuts.load(Ordering::SeqCst) >= 100
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.wire.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        self.wire.cut();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How often each body was run.
type Runs = Arc<Mutex<HashMap<Vec<u8>, u32>>>;

fn daemon() -> (Daemon, Runs) {
    let runs = Runs::default();
    let options = ServerOptions {
        repeats: RepeatOptions {
            grace: PATIENCE,
            running: 1000,
            ..RepeatOptions::default()
        },
        ..options()
    };
    let daemon = Daemon::with(options, |server: &mut Server| {
        let noted = Arc::clone(&runs);
        server.handle(NOTE, move |request, reply| {
            *noted
                .lock()
                .unwrap()
                .entry(request.body().to_vec())
                .or_default() += 1;
            reply.send(request.body());
        });
        let noted = Arc::clone(&runs);
        server.handle_async(NOTE_SLOWLY, move |request, mut responder: Responder| {
            *noted
                .lock()
                .unwrap()
                .entry(request.body.to_vec())
                .or_default() += 1;
            async move {
                for item in 0..5_u8 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let item = [&[item], &*request.body].concat();
                    if responder.send(&item).await.is_err() {
                        return;
                    }
                }
                let _ = responder.end().await;
            }
        });
    });
    (daemon, runs)
}

fn client_options(cutter: &Cutter) -> Options {
    let mut options = Options {
        // What can be handed on by somebody else.
        shared_memory: false,
        ..Options::new(&cutter.path)
    };
    options.reconnect.max_resends = 1000;
    options
}

/// A body of its own for each request; some go in pieces.
fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(
        if number.is_multiple_of(7) { 9000 } else { 100 },
        number as u8,
    );
    body
}

/// What requests came to, all of them together.
#[derive(Debug, Default)]
struct Ends {
    answered: AtomicU64,
    unknown: AtomicU64,
}

impl Ends {
    fn note(&self, runs: &Runs, body: &[u8], answered: Result<(), ClientError>) {
        let ran = runs.lock().unwrap().get(body).copied().unwrap_or(0);
        match answered {
            Ok(()) => {
                assert_eq!(ran, 1, "an answer comes of one run");
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(error.code(), Some(ErrorCode::OutcomeUnknown), "{error}");
                assert!(ran <= 1, "run {ran} times");
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn account_for(&self, asked: u64) {
        let answered = self.answered.load(Ordering::Relaxed);
        let unknown = self.unknown.load(Ordering::Relaxed);
        assert!(answered > 0, "{self:?}");
        assert_eq!(answered + unknown, asked, "{self:?}");
    }
}

#[test]
fn calls_through_many_cuts_are_run_once() {
    let (daemon, runs) = daemon();
    let cutter = Cutter::before(&daemon.path);
    let client = BlockingClient::connect(client_options(&cutter)).unwrap();
    let (ends, asked) = (Ends::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !cutter.is_tired() {
                    let body = body(asked.fetch_add(1, Ordering::SeqCst));
                    let answer = client.call(NOTE, &body);
                    if let Ok(answer) = &answer {
                        assert!(*answer == body);
                    }
                    ends.note(&runs, &body, answer.map(drop));
                }
            });
        }
    });
    let counters = client.counters();
    assert!(counters.lost > 0, "{counters:?}");
    assert_eq!(counters.new_daemons, 0, "it was one life of the daemon");
    assert!(daemon.handle.counters().repeated > 0);
    ends.account_for(asked.load(Ordering::SeqCst));
}

#[test]
fn streams_through_many_cuts_lose_nothing_and_run_once() {
    let (daemon, runs) = daemon();
    let cutter = Arc::new(Cutter::before(&daemon.path));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (ends, asked) = (Arc::new(Ends::default()), Arc::new(AtomicU64::new(0)));
    let client = runtime.block_on(Client::connect(client_options(&cutter)));
    let client = client.unwrap();
    runtime.block_on(async {
        let tasks = (0..4).map(|_| {
            let (client, ends) = (client.clone(), Arc::clone(&ends));
            let (runs, asked, cutter) =
                (Arc::clone(&runs), Arc::clone(&asked), Arc::clone(&cutter));
            tokio::spawn(async move {
                while !cutter.is_tired() {
                    let body = body(asked.fetch_add(1, Ordering::SeqCst));
                    let ended = stream(&client, &body).await;
                    ends.note(&runs, &body, ended);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
    let counters = daemon.handle.counters();
    assert!(counters.fetched > 0, "{counters:?}");
    ends.account_for(asked.load(Ordering::SeqCst));
}

#[test]
fn a_client_that_was_idle_for_too_long_asks_as_for_the_first_time() {
    for shared_memory in [true, false] {
        let noted = Arc::new(AtomicU64::new(0));
        let options = ServerOptions {
            idle_timeout: Some(Duration::from_millis(50)),
            // When it comes back nobody remembers it.
            repeats: RepeatOptions {
                clients: 0,
                ..RepeatOptions::default()
            },
            ..options()
        };
        let count = Arc::clone(&noted);
        let daemon = Daemon::with(options, |server: &mut Server| {
            server.handle(NOTE, move |request, reply| {
                count.fetch_add(1, Ordering::SeqCst);
                reply.send(request.body());
            });
        });
        let client = BlockingClient::connect(Options {
            shared_memory,
            ..Options::new(&daemon.path)
        });
        let client = client.unwrap();
        for number in 1..4 {
            assert_eq!(client.call(NOTE, b"once").unwrap(), b"once");
            assert_eq!(noted.load(Ordering::SeqCst), number);
            daemon.await_quiet(0);
        }
    }
}

/// Reads an answer to its end, each item once and in order.
async fn stream(client: &Client, body: &[u8]) -> Result<(), ClientError> {
    let options = RequestOptions::default();
    let mut stream = client.stream(NOTE_SLOWLY, body, &options).await?;
    let mut expected = 0..5_u8;
    while let Some(item) = stream.next().await {
        let item = item?;
        assert_eq!(Some(item[0]), expected.next());
        assert!(item[1..] == *body);
    }
    assert_eq!(expected.next(), None, "the end came too early");
    Ok(())
}
