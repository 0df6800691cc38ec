//! What happens to those who stay: a client whose daemon is killed, a daemon whose client is stopped.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use lapce_ai_client::{BlockingClient, Client, Options};
use lapce_ai_proto::MessageType;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use support::{Home, Log, ended, first_bytes, signal, until, wait};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_outlives_its_daemon() {
    let home = Home::new("");
    let mut first = home.serve(&[]);
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let life = client.welcome().unwrap().instance;
    assert_eq!(
        client.call(MessageType::ECHO, b"one").await.unwrap(),
        b"one"
    );

    signal(first.pid(), Signal::KILL);
    first.wait();
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    // Asked while nobody is there: waits for the next daemon.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(MessageType::ECHO, b"two").await }
    });
    let _second = home.serve(&[]);
    assert_eq!(waiting.await.unwrap().unwrap(), b"two");
    assert_ne!(
        client.welcome().unwrap().instance,
        life,
        "another life of the daemon"
    );
    assert!(
        client.history().len() >= 3,
        "connected, lost, connected: {:?}",
        client.history()
    );
    client.close().await;
}

/// Resident memory of a process in KiB.
fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_stopped_client_slows_nobody_and_costs_bounded_memory() {
    let home = Home::new(
        "[ipc]\nstall_timeout_secs = 2\n[providers.local]\ntype = 'local'\ntokens = 20000000\n",
    );
    let mut daemon = home.serve(&[]);
    let mut chat = home.command(&["chat", "hello"]).spawn().unwrap();
    let pid = i32::try_from(chat.id()).unwrap();
    first_bytes(&mut chat);
    let before = memory(daemon.pid());
    support::stop(pid);
    // Its ring is full soon, or its window, whichever had less room left; then the daemon gives up on it, or on its request, and
    // says so.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let other = Client::connect(Options::new(home.socket())).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let status = other.status().await.unwrap();
            if status.connections.len() == 1 || status.counters.failed > 0 {
                break;
            }
            assert_eq!(
                other.call(MessageType::ECHO, b"still here").await.unwrap(),
                b"still here"
            );
            assert!(
                tokio::time::Instant::now() < deadline,
                "the stopped client was never cut"
            );
        }
        other.close().await;
    });
    let grown = memory(daemon.pid()).saturating_sub(before);
    assert!(
        grown < 4 << 10,
        "a client that reads nothing took {grown} KiB of the daemon"
    );
    daemon.log.wait_for("does not read");
    signal(pid, Signal::CONT);
    let cut = ended(chat);
    assert_eq!(cut.code, Some(1), "{}", cut.err);
    until("the daemon is quiet", || {
        home.status()["connections"].as_array().unwrap().len() == 1
    });
}

#[test]
fn a_full_disk_under_the_log_stops_nobody() {
    for config in ["", "[log]\nfile = \"/dev/full\"\n"] {
        let home = Home::new(config);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut daemon = home.command(&["serve"]).stderr(full).spawn().unwrap();
        until("it serves", || home.run(&["status"]).code == Some(0));
        assert_eq!(daemon.try_wait().unwrap(), None);
        home.ok(&["stop"]);
        assert!(daemon.wait().unwrap().success());
    }
}

#[test]
fn standard_error_that_nobody_reads_stops_nobody() {
    let home = Home::new("");
    let mut daemon = home.command(&["serve"]).spawn().unwrap();
    let log = daemon.stderr.take().unwrap();
    stops_nobody(&home, daemon, log, 32 << 10);
}

#[test]
fn a_terminal_that_nobody_reads_stops_nobody() {
    let home = Home::new("");
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let log = openpt(flags).unwrap();
    unlockpt(&log).unwrap();
    let terminal = ioctl_tiocgptpeer(&log, flags).unwrap();
    let daemon = home.command(&["serve"]).stderr(terminal).spawn().unwrap();
    stops_nobody(&home, daemon, fs::File::from(log), 1 << 10);
}

/// What a daemon says is not read, then `some` bytes of it are, and then all.
fn stops_nobody(home: &Home, mut daemon: Child, mut log: impl Read + Send + 'static, some: usize) {
    until("it serves", || home.run(&["status"]).code == Some(0));
    let client = BlockingClient::connect(Options::new(home.socket())).unwrap();
    // Each is a line; a pipe takes 64 KiB, and a terminal less.
    let misbehave = |times: usize| {
        for _ in 0..times {
            let mut stranger = UnixStream::connect(home.socket()).unwrap();
            stranger.write_all(b"this is no handshake at all").unwrap();
            stranger
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            // Until it is thrown out, however that looks.
            if let Err(error) = stranger.read_to_end(&mut Vec::new()) {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "the daemon hangs");
            }
        }
    };
    misbehave(1000);
    assert_eq!(client.call(MessageType::ECHO, b"well").unwrap(), b"well");
    log.read_exact(&mut vec![0; some]).unwrap();
    misbehave(1);
    assert_eq!(client.call(MessageType::ECHO, b"well").unwrap(), b"well");
    let mut log = Log::read(log);
    until("it is told what was lost", || {
        misbehave(1);
        log.try_seen("lines of the log could not be written", 1)
    });
    home.ok(&["stop"]);
    assert!(wait(&mut daemon).success());
}
