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

use lapce_ai_client::{BlockingClient, Client, ErrorCode, MessageType, Options, RequestOptions};
use lapce_ai_server::{Options as ServerOptions, RepeatOptions, Responder, Server};
use support::{Daemon, PATIENCE, options};

/// Answers at once with the body, and notes that it ran.
const NOTE: MessageType = MessageType(0x8020);
/// Notes that it ran, and answers in five items, a moment between them.
const NOTE_SLOWLY: MessageType = MessageType(0x8021);

/// Hands bytes on between clients and a daemon, until it is told to cut.
struct Cutter {
    path: PathBuf,
    live: Arc<Mutex<Vec<UnixStream>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Cutter {
    fn before(daemon: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let path = dir.path().join("cutter.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let live = Arc::<Mutex<Vec<UnixStream>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (daemon, live, stop) = (daemon.to_owned(), Arc::clone(&live), Arc::clone(&stop));
            move || {
                for client in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let client = client.unwrap();
                    let Ok(server) = UnixStream::connect(&daemon) else {
                        return;
                    };
                    let mut live = live.lock().unwrap();
                    live.push(client.try_clone().unwrap());
                    live.push(server.try_clone().unwrap());
                    for (from, to) in [(&client, &server), (&server, &client)] {
                        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                        thread::spawn(move || hand_on(from, to));
                    }
                }
            }
        });
        Self {
            path,
            live,
            stop,
            thread: Some(thread),
            _dir: dir,
        }
    }

    /// Cuts every connection, wherever its bytes are.
    fn cut(&self) {
        for socket in self.live.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn hand_on(mut from: UnixStream, mut to: UnixStream) {
    // Few at a time: so a cut finds messages halfway.
    let mut chunk = [0; 700];
    loop {
        match from.read(&mut chunk) {
            Ok(n) if n > 0 && to.write_all(&chunk[..n]).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        self.cut();
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
            *noted.lock().unwrap().entry(request.body().to_vec()).or_default() += 1;
            reply.send(request.body());
        });
        let noted = Arc::clone(&runs);
        server.handle_async(NOTE_SLOWLY, move |request, mut responder: Responder| {
            *noted.lock().unwrap().entry(request.body.to_vec()).or_default() += 1;
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
    body.resize(if number % 7 == 0 { 9000 } else { 100 }, number as u8);
    body
}

/// What requests came to, all of them together.
#[derive(Debug, Default)]
struct Ends {
    answered: AtomicU64,
    unknown: AtomicU64,
}

impl Ends {
    fn note(&self, runs: &Runs, body: &[u8], answered: Result<(), Option<ErrorCode>>) {
        let ran = runs.lock().unwrap().get(body).copied().unwrap_or(0);
        match answered {
            Ok(()) => {
                assert_eq!(ran, 1, "an answer comes of one run");
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(code) => {
                assert_eq!(code, Some(ErrorCode::OutcomeUnknown));
                assert!(ran <= 1, "run {ran} times");
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Cuts again and again while `work` goes on.
fn while_cutting<T>(cutter: &Cutter, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pause = 1;
            while !over.load(Ordering::SeqCst) {
                pause = pause * 7 % 23;
                thread::sleep(Duration::from_millis(2 + pause));
                cutter.cut();
            }
        });
        let done = work();
        over.store(true, Ordering::SeqCst);
        done
    })
}

#[test]
fn calls_through_many_cuts_are_run_once() {
    let (daemon, runs) = daemon();
    let cutter = Cutter::before(&daemon.path);
    let client = BlockingClient::connect(client_options(&cutter)).unwrap();
    let ends = Ends::default();
    while_cutting(&cutter, || {
        thread::scope(|scope| {
            for thread in 0..4 {
                let (client, ends, runs) = (&client, &ends, &runs);
                scope.spawn(move || {
                    for number in 0..500 {
                        let body = body(thread << 32 | number);
                        let answer = client.call(NOTE, &body);
                        if let Ok(answer) = &answer {
                            assert!(*answer == body);
                        }
                        ends.note(runs, &body, answer.map(drop).map_err(|error| error.code()));
                    }
                });
            }
        });
    });
    // Some were cut while they were sent, and some while they were answered.
    assert!(client.counters().lost > 5, "{:?}", client.counters());
    assert!(daemon.handle.counters().repeated > 0);
    assert_eq!(
        client.counters().new_daemons,
        0,
        "it was one life of the daemon"
    );
    let answered = ends.answered.load(Ordering::Relaxed);
    assert!(answered > 1000, "{ends:?}");
    assert_eq!(answered + ends.unknown.load(Ordering::Relaxed), 2000);
}

#[test]
fn streams_through_many_cuts_lose_nothing_and_run_once() {
    let (daemon, runs) = daemon();
    let cutter = Cutter::before(&daemon.path);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let ends = Arc::new(Ends::default());
    let client = runtime.block_on(Client::connect(client_options(&cutter))).unwrap();
    while_cutting(&cutter, || {
        runtime.block_on(async {
            let tasks: Vec<_> = (0..4_u64)
                .map(|task| {
                    let (client, ends) = (client.clone(), Arc::clone(&ends));
                    let runs = Arc::clone(&runs);
                    tokio::spawn(async move {
                        for number in 0..100 {
                            let body = body(task << 32 | number);
                            let ended = stream(&client, &body).await;
                            ends.note(&runs, &body, ended);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
    assert!(client.counters().lost > 5, "{:?}", client.counters());
    let counters = daemon.handle.counters();
    assert!(counters.fetched > 0, "{counters:?}");
    let answered = ends.answered.load(Ordering::Relaxed);
    assert!(answered > 200, "{ends:?}");
    assert_eq!(answered + ends.unknown.load(Ordering::Relaxed), 400);
}

/// Reads an answer to its end, each item once and in order.
async fn stream(client: &Client, body: &[u8]) -> Result<(), Option<ErrorCode>> {
    let opened = client.stream(NOTE_SLOWLY, body, &RequestOptions::default());
    let mut stream = opened.await.map_err(|error| error.code())?;
    let mut expected = 0..5_u8;
    while let Some(item) = stream.next().await {
        let item = item.map_err(|error| error.code())?;
        assert_eq!(Some(item[0]), expected.next());
        assert!(item[1..] == *body);
    }
    assert_eq!(expected.next(), None, "the end came too early");
    Ok(())
}
