//! A daemon for which the system has no memory left, as far as a limit on its address space shows it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use lapce_ai_client::ai::{AIRequest, Message};
use lapce_ai_client::{BlockingClient, ErrorCode, Options};
use lapce_ai_proto::MessageType;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use support::{ANSWERS, Daemon, Home};

/// More than glibc ever takes out of a heap (32 MiB).
const LARGE: usize = 40 << 20;
const LIMITS: &str =
    "[ipc]\nring_size = '4MiB'\nmax_message_size = '50MiB'\nbuffer_pool_size = '100MiB'\n";

/// A daemon that reserves no address space in advance, as glibc does for each of its threads otherwise.
fn serve(home: &Home) -> Daemon {
    let mut command = home.command(&["serve"]);
    command.env("MALLOC_ARENA_MAX", "1");
    Daemon::start(command)
}

/// Lets a daemon have so much more than it has: in bytes, or without a limit.
fn allow(daemon: &Daemon, more: Option<u64>) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    let has = kib.parse::<u64>().unwrap() << 10;
    let Rlimit { maximum, .. } = getrlimit(Resource::As);
    let limit = Rlimit {
        current: more.map(|more| has + more).or(maximum),
        maximum,
    };
    prlimit(Pid::from_raw(daemon.pid()), Resource::As, limit).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_and_nobody_else_notices() {
    let home = Home::new(LIMITS);
    let daemon = serve(&home);
    let connect = || BlockingClient::connect(Options::new(home.socket()));
    let (client, other) = (connect().unwrap(), connect().unwrap());
    for client in [&client, &other] {
        assert_eq!(
            client.call(MessageType::ECHO, b"before").unwrap(),
            b"before"
        );
    }
    let large = vec![7; LARGE];
    let ask = || {
        let answer = client.call(MessageType::ECHO, &large);
        answer.map(|answer| answer == large)
    };
    // Less than a newcomer's two rings.
    allow(&daemon, Some(4 << 20));
    for _ in 0..3 {
        let error = ask().unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{error}");
        assert!(error.to_string().contains("no memory"), "{error}");
        assert!(error.is_retryable());
        for client in [&client, &other] {
            assert_eq!(client.call(MessageType::ECHO, b"still").unwrap(), b"still");
        }
        let refused = connect().unwrap_err();
        assert!(refused.is_retryable(), "{refused}");
    }
    allow(&daemon, None);
    assert!(ask().unwrap());
    connect().unwrap().call(MessageType::ECHO, b"new").unwrap();
    assert_eq!(client.counters().connected, 1, "it is the same connection");
    let pool = home.status()["pool"].clone();
    assert_eq!(pool["held"], 0, "{pool}");
}

#[test]
fn where_it_has_to_end_that_is_a_kill_to_its_clients() {
    let home = Home::new(&format!("{LIMITS}{ANSWERS}"));
    let mut daemon = serve(&home);
    let client = BlockingClient::connect(Options::new(home.socket())).unwrap();
    client.call(MessageType::ECHO, b"before").unwrap();
    // There is memory for the request, and not for what it says.
    let long = AIRequest::new("", vec![Message::user("x".repeat(LARGE))]);
    allow(&daemon, Some(LARGE as u64 + (16 << 20)));
    let error = client.complete(&long).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OutcomeUnknown), "{error}");
    assert_eq!(daemon.wait().signal(), Some(6));
    daemon.log.wait_for("memory allocation of");
    // The next one is served as after any kill.
    let _next = home.serve(&[]);
    assert_eq!(client.call(MessageType::ECHO, b"after").unwrap(), b"after");
    assert_eq!(client.counters().new_daemons, 1);
}
