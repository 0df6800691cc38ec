//! What happens to those who stay when the other side is killed, stopped or runs out of something: with the real daemon in a
//! process of its own.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and tells what it found"
)]

mod support;

use std::fs;
use std::time::Duration;

use lapce_ai_client::ai::StreamEvent;
use lapce_ai_client::{
    BlockingClient, Client, ClientError, ErrorCode, Options, RequestOptions, State,
};
use lapce_ai_proto::MessageType;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use support::{ANSWERS, Daemon, HANGS, Home, OpenAi, connect, question, signal, until};

/// How many requests run, beside the one that asks.
fn running(home: &Home) -> u64 {
    let status = home.status();
    let connections = status["connections"].as_array().unwrap();
    connections
        .iter()
        .map(|connection| connection["inFlight"].as_u64().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_flight_at_a_kill_is_sent_again_or_ends() {
    let home = Home::new(HANGS);
    let mut first = home.serve(&[]);
    let client = connect(&home).await;
    // Accepted, and begun to be answered.
    let mut seen = client.chat(&question()).await.unwrap();
    assert!(matches!(
        seen.next().await,
        Some(Ok(StreamEvent::Start { .. }))
    ));
    let ask = |options: RequestOptions| {
        let client = client.clone();
        tokio::spawn(async move { client.complete_with(&question(), &options).await })
    };
    let accepted = ask(RequestOptions::default());
    let repeatable = ask(RequestOptions {
        repeatable: true,
        ..RequestOptions::default()
    });
    until("all of them run", || running(&home) >= 3);
    // Not accepted: a daemon that is stopped reads nothing.
    support::stop(first.pid());
    let unread = ask(RequestOptions::default());
    tokio::time::sleep(Duration::from_millis(50)).await;
    signal(first.pid(), Signal::KILL);
    first.wait();
    home.configure(ANSWERS);
    let _second = home.serve(&[]);
    for unknown in [
        accepted.await.unwrap().unwrap_err(),
        loop {
            match seen.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        },
    ] {
        assert_eq!(unknown.code(), Some(ErrorCode::OutcomeUnknown), "{unknown}");
        assert!(!unknown.is_retryable());
    }
    for answered in [repeatable, unread] {
        assert!(!answered.await.unwrap().unwrap().content.is_empty());
    }
    let status = client.status().await.unwrap();
    // Two that came again, to a daemon that had not seen them, and this one.
    assert_eq!((status.counters.requests, status.counters.repeated), (3, 0));
    assert_eq!(status.counters.reconnections, 1);
    let us = |id| id == client.welcome().unwrap().connection;
    let ours = status.connections.iter().find(|other| us(other.id));
    assert_eq!(ours.unwrap().earlier, 1);
    assert_eq!(client.counters().new_daemons, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_is_given_up_by_the_deadline_and_works_on() {
    let home = Home::new("");
    let daemon = home.serve(&[]);
    let client = connect(&home).await;
    client.call(MessageType::ECHO, b"before").await.unwrap();
    support::stop(daemon.pid());
    let soon = RequestOptions::with_deadline(Duration::from_millis(100));
    let asked = client.call_with(MessageType::ECHO, b"meanwhile", &soon);
    // Far longer than the second that a client waits for the daemon's own word.
    let asked = tokio::time::timeout(Duration::from_secs(60), asked);
    let error = asked.await.expect("it hangs").unwrap_err();
    assert!(matches!(error, ClientError::DeadlineExceeded), "{error}");
    // A newcomer waits as long as it is told, and no longer.
    let impatient = Options {
        connect_timeout: Duration::from_millis(100),
        ..Options::new(home.socket())
    };
    let error = Client::connect(impatient).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    signal(daemon.pid(), Signal::CONT);
    client.call(MessageType::ECHO, b"after").await.unwrap();
    assert_eq!(client.state(), State::Connected);
    assert_eq!(client.counters().connected, 1, "it is the same connection");
}

/// A daemon that may have only so many descriptors.
fn with_descriptors(home: &Home, most: u64) -> Daemon {
    let script = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
    Daemon::start(home.command_by_shell(&script, &["serve"]))
}

#[test]
fn without_descriptors_newcomers_are_refused_and_nobody_else_notices() {
    let home = Home::new("");
    let _daemon = with_descriptors(&home, 48);
    let connect = || BlockingClient::connect(Options::new(home.socket()));
    let first = connect().unwrap();
    let mut clients = Vec::new();
    let refused = loop {
        match connect() {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
        assert!(clients.len() < 48, "more connections than descriptors");
    };
    assert_eq!(
        refused.code(),
        Some(ErrorCode::TooManyConnections),
        "{refused}"
    );
    assert!(refused.is_retryable());
    for client in clients.iter().chain([&first]) {
        assert_eq!(client.call(MessageType::ECHO, b"still").unwrap(), b"still");
    }
    // One goes: there is room for another.
    clients.pop();
    until("another is taken", || match connect() {
        Ok(client) => client.call(MessageType::ECHO, b"new").is_ok(),
        Err(_) => false,
    });
    assert_eq!(first.call(MessageType::ECHO, b"well").unwrap(), b"well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_not_blamed_for_descriptors_that_the_daemon_lacks() {
    const MOST: u64 = 100;
    // An address, and a name: looking one up takes descriptors, too.
    for host in ["127.0.0.1", "localhost"] {
        let upstream = OpenAi::new();
        let config = upstream.config().replace("127.0.0.1", host);
        let home = Home::new(&format!("[retries]\nattempts = 1\n{config}"));
        let daemon = with_descriptors(&home, MOST);
        let client = connect(&home).await;
        let may_have = |most| {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(MOST),
            };
            let daemon = Pid::from_raw(daemon.pid());
            prlimit(daemon, Resource::Nofile, limit).unwrap();
        };
        // Those that every process has from its start: there can be no other.
        may_have(3);
        // More than a breaker wants to open.
        for _ in 0..10 {
            let error = client.complete(&question()).await.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{host}: {error}");
            assert!(error.is_retryable());
        }
        may_have(MOST);
        let mut chat = client.chat(&question()).await.unwrap();
        let mut answer = upstream.begun().await;
        OpenAi::end(&mut answer);
        let mut text = String::new();
        while let Some(event) = chat.next().await {
            if let StreamEvent::Text { text: more } = event.unwrap() {
                text.push_str(&more);
            }
        }
        assert_eq!(text, "word", "{host}");
    }
}

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    mappings: usize,
    threads: usize,
    /// What runs in its runtime.
    tasks: u64,
    /// Bytes of memory of its own.
    anonymous: u64,
}

fn held(home: &Home, pid: i32) -> Held {
    let count = |below: &str| {
        fs::read_dir(format!("/proc/{pid}/{below}"))
            .unwrap()
            .count()
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Anonymous:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    Held {
        descriptors: count("fd"),
        // Only those that connections bring: the allocator's come and go.
        mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
        threads: count("task"),
        tasks: home.status()["tasks"].as_u64().unwrap(),
        anonymous: kib << 10,
    }
}

/// 100,000 cycles in full, as CI runs it: `LAPCE_AI_CYCLES=100000 cargo test -p lapce-ai --test lost cycles`.
#[test]
fn cycles_of_connecting_and_hanging_up_leave_nothing() {
    let cycles = std::env::var("LAPCE_AI_CYCLES").map_or(2000, |text| text.parse().unwrap());
    let home = Home::new(HANGS);
    let daemon = home.serve(&["--set", "ipc.lost_request_secs=0.01"]);
    let options = |number: u32| Options {
        shared_memory: !number.is_multiple_of(4),
        ..Options::new(home.socket())
    };
    let cycle = |number: u32| {
        let client = BlockingClient::connect(options(number)).unwrap();
        client.call(MessageType::ECHO, b"hello").unwrap();
        if number.is_multiple_of(16) {
            // Some go while they are answered.
            let mut chat = client.chat(&question()).unwrap();
            assert!(chat.next().unwrap().is_ok());
        }
    };
    let settled = || {
        until("everything has ended", || {
            let status = home.status();
            status["connections"].as_array().unwrap().len() == 1
                && status["pool"]["held"].as_u64().unwrap() == 0
        });
        // Longer than it waits before it gives back what its heap has free.
        std::thread::sleep(Duration::from_millis(2500));
        held(&home, daemon.pid())
    };
    // More than it remembers of lost connections, and as many as its heap takes to be used as unevenly as it ever is.
    (0..1200.max(cycles / 10)).for_each(cycle);
    let before = settled();
    (0..cycles).for_each(cycle);
    let after = settled();
    println!("before {before:?}\nafter  {after:?}");
    assert_eq!(
        (after.descriptors, after.mappings),
        (before.descriptors, before.mappings)
    );
    assert!(after.threads <= before.threads, "{before:?} {after:?}");
    assert!(after.tasks <= before.tasks, "{before:?} {after:?}");
    assert!(
        after.anonymous <= before.anonymous + (512 << 10),
        "{before:?} {after:?}"
    );
}
