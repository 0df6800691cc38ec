//! The process that was started first, for whoever watches it and knows of no other, while another one is the daemon.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::time::Duration;

use lapce_ai_client::ai::StreamEvent;
use lapce_ai_client::{ChatStream, Client};
use lapce_ai_proto::MessageType;
use rustix::process::Signal;
use support::{ANSWERS, Daemon, Home, OpenAi, connect, question, signal, until};

/// An answer of four seconds, which is longer than a daemon goes on for that nobody follows any more.
const SLOW: &str =
    "[ipc]\ndrain_timeout_secs = 60\n[providers.local]\ntokens = 160\ntokens_per_second = 40\n";
const ENDLESS: &str =
    "[providers.local]\ntype = 'local'\ntokens = 1000000\ntokens_per_second = 20\n";

/// Restarts the daemon so many times: the process that serves then. The first one and it are all that is left.
fn restarted(home: &Home, first: &Daemon, times: usize) -> i32 {
    for _ in 0..times {
        home.ok(&["restart"]);
    }
    let last = home.pid();
    until("those between have gone", || {
        let mut daemons = home.daemons();
        daemons.sort_unstable();
        let mut left = [first.pid(), last];
        left.sort_unstable();
        daemons == left
    });
    last
}

async fn begun(client: &Client) -> ChatStream {
    let mut stream = client.chat(&question()).await.unwrap();
    let event = stream.next().await;
    assert!(matches!(event, Some(Ok(StreamEvent::Start { .. }))));
    stream
}

/// Reads the answer to its end: its words.
async fn words(mut stream: ChatStream) -> usize {
    let mut words = 0;
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            StreamEvent::Text { .. } => words += 1,
            StreamEvent::Finish { .. } => return words,
            _ => {}
        }
    }
    panic!("the answer has no end after {words} words");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stays_and_stops_the_others_in_order() {
    let home = Home::new(SLOW);
    let mut first = home.serve(&[]);
    let last = restarted(&home, &first, 3);
    assert_eq!(first.child.try_wait().unwrap(), None);
    first.log.wait_for("this process ends when");
    // It has neither the door nor anybody's connection: all of them have the door's name.
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let path = home.socket().into_os_string().into_string().unwrap();
    let sockets = sockets.lines().filter(|line| line.ends_with(&path));
    let sockets: Vec<String> = sockets
        .filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(6)?)))
        .collect();
    assert!(!sockets.is_empty());
    let open = |pid: i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let open = open.flatten().filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            target.into_os_string().into_string().ok()
        });
        open.filter(|name| sockets.contains(name)).count()
    };
    assert_ne!(open(last), 0);
    assert_eq!(open(first.pid()), 0);
    let client = connect(&home).await;
    let stream = begun(&client).await;
    signal(first.pid(), Signal::TERM);
    assert_eq!(words(stream).await, 160);
    assert_eq!(first.wait().code(), Some(0));
    assert!(home.daemons().is_empty());
    assert!(home.names_in_runtime_dir().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_signals_all_processes_stops_them_in_order_too() {
    let home = Home::new(SLOW);
    let mut first = home.serve(&[]);
    let last = restarted(&home, &first, 1);
    let client = connect(&home).await;
    let stream = begun(&client).await;
    for _ in 0..2 {
        for process in [first.pid(), last] {
            signal(process, Signal::TERM);
        }
    }
    assert_eq!(words(stream).await, 160);
    assert_eq!(first.wait().code(), Some(0));
    assert!(home.daemons().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_again_waits_for_nobody() {
    let home = Home::new(&format!("{ENDLESS}[ipc]\ndrain_timeout_secs = 600\n"));
    let mut first = home.serve(&[]);
    let last = restarted(&home, &first, 1);
    let client = connect(&home).await;
    let mut stream = begun(&client).await;
    signal(first.pid(), Signal::INT);
    until("the daemon is stopping", || {
        first.log.try_seen("stopping drain_secs", 2)
    });
    assert_eq!(home.daemons().len(), 2, "process {last} has work");
    signal(first.pid(), Signal::INT);
    assert_eq!(first.wait().code(), Some(0));
    assert!(home.daemons().is_empty());
    let mut ended = false;
    while let Some(event) = stream.next().await {
        ended |= event.is_err();
    }
    assert!(ended);
}

#[test]
fn it_ends_as_the_last_daemon_does() {
    let home = Home::new(ANSWERS);
    let mut first = home.serve(&[]);
    restarted(&home, &first, 2);
    home.ok(&["stop"]);
    assert_eq!(first.wait().code(), Some(0));

    let mut first = home.serve(&[]);
    let last = restarted(&home, &first, 2);
    signal(last, Signal::KILL);
    assert_eq!(first.wait().code(), Some(1));
    first.log.wait_for("has ended (signal: 9 (SIGKILL))");
    // And another one can be started at once.
    let _next = home.serve(&[]);
    home.ok(&["chat", "well?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_has_begun_outlives_many_restarts() {
    let provider = OpenAi::new();
    let home = Home::new(&provider.config());
    let first = home.serve(&[]);
    let client = connect(&home).await;
    let stream = client.chat(&question()).await.unwrap();
    let mut answer = provider.begun().await;
    restarted(&home, &first, 3);
    // Longer than a daemon goes on for when nobody serves any more.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    OpenAi::say(&mut answer, "word");
    OpenAi::end(&mut answer);
    assert_eq!(words(stream).await, 2);
    client.call(MessageType::ECHO, b"well").await.unwrap();
    assert_eq!(client.counters().new_daemons, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_runs_has_its_time_when_all_are_stopped() {
    let home = Home::new(SLOW);
    let mut first = home.serve(&[]);
    let client = connect(&home).await;
    let stream = begun(&client).await;
    restarted(&home, &first, 2);
    // The other one has nothing to finish, and goes at once.
    signal(first.pid(), Signal::TERM);
    assert_eq!(words(stream).await, 160);
    assert_eq!(first.wait().code(), Some(0));
    assert!(home.daemons().is_empty());
}

#[test]
fn a_terminal_that_is_closed_stops_all_unless_that_is_to_be_outlived() {
    let home = Home::new(ANSWERS);
    // Whoever runs this test may outlive its terminal, and what it starts would, too.
    let script = "exec env --default-signal=HUP \"$0\" \"$@\"";
    let mut first = Daemon::start(home.command_by_shell(script, &["serve"]));
    restarted(&home, &first, 1);
    signal(first.pid(), Signal::HUP);
    assert_eq!(first.wait().code(), Some(0));
    assert!(home.daemons().is_empty());
    assert!(home.names_in_runtime_dir().is_empty());

    let script = "trap '' HUP; exec \"$0\" \"$@\"";
    let mut first = Daemon::start(home.command_by_shell(script, &["serve"]));
    let last = restarted(&home, &first, 1);
    for process in [first.pid(), last] {
        signal(process, Signal::HUP);
    }
    home.ok(&["chat", "well?"]);
    assert_eq!(home.pid(), last);
    signal(first.pid(), Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
}

/// What a daemon's commands leave behind becomes the first process's when the daemon is replaced or the command ends.
#[test]
fn it_buries_what_others_have_left_behind() {
    let home = Home::new(
        "[providers.mine]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\ndefault_model = 'm-1'\n\
         api_key_command = 'touch begun; (while test ! -e end; do sleep 0.02; done; touch ended) >/dev/null & echo sk-test-12345'\n",
    );
    let mut first = home.serve(&[]);
    restarted(&home, &first, 2);
    // Nobody listens there, but the key is fetched.
    assert_eq!(home.run(&["chat", "well?"]).code, Some(1));
    until("the command has run", || home.path("begun").exists());
    let children = || {
        let line = format!("PPid:\t{}", first.pid());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let status = processes.map(|process| fs::read_to_string(process.path().join("status")));
        status
            .flatten()
            .filter(|status| status.contains(&line))
            .count()
    };
    until("what is left behind has another parent", || children() == 2);
    fs::write(home.path("end"), "").unwrap();
    until("it has ended, and is no zombie", || {
        home.path("ended").exists() && children() == 1
    });
    home.ok(&["stop"]);
    assert_eq!(first.wait().code(), Some(0));
}

/// A process that was started first and finishes what it has begun, when the daemon of that moment dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_serves_behind_a_daemon_that_died() {
    let home = Home::new(ENDLESS);
    let mut first = home.serve(&[]);
    let client = connect(&home).await;
    let mut stream = begun(&client).await;
    let last = restarted(&home, &first, 2);
    signal(last, Signal::KILL);
    // It must not go on for its own sake: whoever watches it has to start another one.
    assert_eq!(first.wait().code(), Some(1));
    while let Some(Ok(_)) = stream.next().await {}
}
