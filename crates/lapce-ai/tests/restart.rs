//! A planned restart, with real processes: nobody's request fails, and a new daemon that fails leaves the old one serving.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapce_ai_client::ai::StreamEvent;
use lapce_ai_client::{BlockingClient, Client, Options};
use lapce_ai_proto::MessageType;
use rustix::process::Signal;
use support::{ANSWERS, Daemon, Home, OpenAi, connect, ended, question, signal, until};

/// As a command starts a daemon: nobody watches its process, so that it goes when another one has followed (`foreground.rs` has those
/// that stay).
const UNWATCHED: &[&str] = &["--if-needed"];

/// A file of the home's own that the daemon is started from.
fn program(home: &Home) -> PathBuf {
    let program = home.path("lapce-ai");
    let built = Path::new(env!("CARGO_BIN_EXE_lapce-ai"));
    if fs::hard_link(built, &program).is_err() {
        fs::copy(built, &program).unwrap();
    }
    program
}

/// Puts a script in the program's place, as an upgrade does. Another process writes it: what this one has open for writing
/// its other tests' children have open for a moment, too, and then it cannot be run.
fn replace(program: &Path, script: &str) {
    let written = Command::new("/bin/sh")
        .args([
            "-c",
            "printf '%s' \"$1\" >\"$0.new\" && chmod 755 \"$0.new\" && mv \"$0.new\" \"$0\"",
        ])
        .arg(program)
        .arg(format!("#!/bin/sh\n{script}\n"))
        .status()
        .unwrap();
    assert!(written.success());
}

fn serve_from(home: &Home, program: &Path, args: &[&str]) -> Daemon {
    Daemon::start(home.command_of(program, args))
}

/// The process that serves once `lapce-ai restart` has ended.
fn restart(home: &Home) -> i32 {
    let before = home.pid();
    let said = home.ok(&["restart"]);
    let after = home.pid();
    assert_ne!(after, before, "{said}");
    assert!(said.contains(&format!("process {after} now")), "{said}");
    after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_through_restart_after_restart() {
    // What the daemons remember of so many clients is of no use: none of their requests is in doubt.
    let home =
        Home::new("[ipc]\nremembered_clients = 1\n[providers.local]\ntype = 'local'\ntokens = 3\n");
    let mut daemon = home.serve(UNWATCHED);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut busy = Vec::new();
    for number in 0..6 {
        let options = Options {
            shared_memory: number % 3 != 0,
            crc: number % 2 == 0,
            ..Options::new(home.socket())
        };
        let client = Client::connect(options).await.unwrap();
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        busy.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // A chat is no request that may be run twice.
                client.complete(&question()).await.unwrap();
                client.call(MessageType::ECHO, b"and this").await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
            client.counters()
        }));
    }
    let newcomers = tokio::spawn({
        let (path, stop) = (home.socket(), Arc::clone(&stop));
        async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let client = Client::connect(Options::new(&path)).await.unwrap();
                client.complete(&question()).await.unwrap();
                client.close().await;
                count += 1;
            }
            count
        }
    });
    // Nobody reads for this one while it has nothing to ask: it finds out afterwards.
    let idle = BlockingClient::connect(Options::new(home.socket())).unwrap();
    let instance = idle.welcome().unwrap().instance;
    idle.call(MessageType::ECHO, b"before").unwrap();

    let mut last = daemon.pid();
    for _ in 0..4 {
        let from = answered.load(Ordering::Relaxed);
        until("requests are answered", || {
            answered.load(Ordering::Relaxed) > from + 20
        });
        last = restart(&home);
    }
    assert_eq!(daemon.wait().code(), Some(0), "the first one goes");
    until("the others have gone", || home.daemons() == [last]);
    stop.store(true, Ordering::Relaxed);
    let mut connected = 0;
    for client in busy {
        let counters = client.await.unwrap();
        assert_eq!(counters.new_daemons, 0, "it is the same life to them");
        // Some are in the middle of something each time, and those over sockets always come anew.
        connected += counters.connected;
    }
    assert!(connected >= 6 + 2 * 4, "{connected} connections");
    assert!(newcomers.await.unwrap() > 0);
    idle.complete(&question()).unwrap();
    assert_eq!(idle.welcome().unwrap().instance, instance);
    let counters = home.status()["counters"].clone();
    assert_eq!(counters["faults"], 0, "{counters}");
    drop(idle);
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    home.ok(&["stop"]);
    assert!(home.names_in_runtime_dir().is_empty());
    until("the last one has gone", || home.daemons().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_finished_by_the_daemon_that_began_it() {
    let provider = OpenAi::new();
    let home = Home::new(&format!(
        "[ipc]\ndrain_timeout_secs = 0\n{}",
        provider.config()
    ));
    let mut first = home.serve(UNWATCHED);
    let client = connect(&home).await;
    let mut stream = client.chat(&question()).await.unwrap();
    let mut answer = provider.begun().await;
    assert!(matches!(
        stream.next().await,
        Some(Ok(StreamEvent::Start { .. }))
    ));
    let second = restart(&home);
    // New requests go to the new one, while the stream comes from the old one still.
    let status = client.status().await.unwrap();
    assert_eq!(i64::from(status.pid), i64::from(second));
    assert_eq!(first.child.try_wait().unwrap(), None, "it has work still");
    for _ in 1..60 {
        OpenAi::say(&mut answer, "word");
    }
    OpenAi::end(&mut answer);
    let mut said = String::new();
    let mut finished = false;
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            StreamEvent::Text { text } => said += &text,
            StreamEvent::Finish { .. } => finished = true,
            _ => {}
        }
    }
    assert!(finished && said == "word".repeat(60), "{said}");
    assert_eq!(first.wait().code(), Some(0));
    client.call(MessageType::ECHO, b"well").await.unwrap();
    // Connections are numbered on.
    assert!(client.welcome().unwrap().connection > 1);
}

#[test]
fn clients_of_quiet_connections_notice_nothing() {
    let home = Home::new(ANSWERS);
    let daemon = home.serve(UNWATCHED);
    // More than go with one message.
    let clients: Vec<BlockingClient> = (0..300)
        .map(|_| BlockingClient::connect(Options::new(home.socket())).unwrap())
        .collect();
    for client in &clients {
        assert_eq!(
            client.call(MessageType::ECHO, b"before").unwrap(),
            b"before"
        );
    }
    let held = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let descriptors = held(daemon.pid());
    let mut last = daemon.pid();
    for _ in 0..3 {
        last = restart(&home);
        for client in &clients {
            client.complete(&question()).unwrap();
        }
    }
    for client in &clients {
        assert_eq!(client.counters().connected, 1);
        assert_eq!(client.history().len(), 1, "{:?}", client.history());
    }
    until("the others have gone", || home.daemons() == [last]);
    let status = home.status();
    let connections = status["connections"].as_array().unwrap();
    assert_eq!(connections.len(), 301);
    assert_eq!(connections[0]["requests"], 4);
    assert!(
        held(last) <= descriptors + 3,
        "{} {descriptors}",
        held(last)
    );
    // They are the new daemon's in every way.
    drop(clients);
    until("nobody is left", || {
        home.status()["connections"].as_array().unwrap().len() == 1
    });
    assert!(held(last) < 100, "{}", held(last));
    home.ok(&["stop"]);
}

#[test]
fn other_terms_have_clients_connect_anew() {
    let home = Home::new(ANSWERS);
    let _daemon = home.serve(&[]);
    let client = BlockingClient::connect(Options::new(home.socket())).unwrap();
    client.call(MessageType::ECHO, b"before").unwrap();
    home.configure(&format!("[ipc]\nring_size = '64KiB'\n{ANSWERS}"));
    restart(&home);
    client.complete(&question()).unwrap();
    assert_eq!(client.counters().connected, 2);
    assert_eq!(client.counters().new_daemons, 0);
    assert_eq!(client.welcome().unwrap().request_capacity, 64 << 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_daemon_that_does_not_get_ready_changes_nothing() {
    let home = Home::new(&format!("[ipc]\nrestart_timeout_secs = 1\n{ANSWERS}"));
    let program = program(&home);
    let daemon = serve_from(&home, &program, &["serve"]);
    let client = connect(&home).await;
    // The head of a message: length and number of descriptors, little endian, here as octal digits.
    let says = |length: usize, text: &str| {
        format!(
            "printf '\\{length:03o}\\000\\000\\000\\000\\000\\000\\000{text}' >&0\nexec sleep 100"
        )
    };
    let other = "{\"ready\":{\"version\":99,\"name\":\"x\",\"terms\":{\"layout\":1,\"maxMessageSize\":1,\"maxFramePayload\":1,\"maxStreams\":1,\"inlineWindow\":1,\"requestCapacity\":4096,\"responseCapacity\":4096}}}";
    let failures = [
        ("exit 7".to_owned(), "exit status: 7"),
        ("exec sleep 100".to_owned(), "not ready within 1"),
        (says(other.len(), other), "version 99"),
        (says(4, "what"), "cannot be read"),
        (says(9, "\"taken\"  "), "`taken`"),
        ("kill -9 $$".to_owned(), "signal: 9"),
    ];
    for (script, why) in failures {
        replace(&program, &script);
        let restart = home.run(&["restart"]);
        assert_eq!(restart.code, Some(1), "{script}: {restart:?}");
        assert!(restart.err.contains(why), "{script}: {}", restart.err);
        assert!(restart.err.contains("goes on"), "{script}: {}", restart.err);
        client.complete(&question()).await.unwrap();
    }
    // No file at all.
    fs::remove_file(&program).unwrap();
    let gone = home.run(&["restart"]);
    assert!(gone.err.contains("cannot start"), "{gone:?}");
    assert_eq!(client.counters().connected, 1, "nobody noticed");
    assert_eq!(home.pid(), daemon.pid());
    assert_eq!(home.daemons(), [daemon.pid()], "none is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_is_told_and_changes_nothing() {
    let home = Home::new(ANSWERS);
    let daemon = home.serve(&[]);
    let client = connect(&home).await;
    home.configure("[ipc]\nmax_connections = 'many'\n");
    // The command reads the same file, and says so itself; the new daemon's word is asked for past it.
    assert_eq!(home.run(&["restart"]).code, Some(2));
    let error = client.restart().await.unwrap_err().to_string();
    assert!(error.contains("max_connections"), "{error}");
    client.complete(&question()).await.unwrap();
    assert_eq!(client.counters().connected, 1);
    assert_eq!(home.daemons(), [daemon.pid()]);
    // And put right, it works.
    home.configure(ANSWERS);
    restart(&home);
    client.complete(&question()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_daemon_that_fails_at_the_last_moment_leaves_the_old_one_serving() {
    let home = Home::new(ANSWERS);
    let program = program(&home);
    let daemon = serve_from(&home, &program, &["serve"]);
    let client = connect(&home).await;
    let slow = connect(&home).await;
    slow.call(MessageType::ECHO, b"I am here").await.unwrap();
    let ready = "{\"ready\":{\"version\":1,\"name\":\"x\",\"terms\":{\"layout\":1,\"maxMessageSize\":1,\"maxFramePayload\":1,\"maxStreams\":1,\"inlineWindow\":1,\"requestCapacity\":4096,\"responseCapacity\":4096}}}";
    let says_ready = format!(
        "printf '\\{:03o}\\000\\000\\000\\000\\000\\000\\000{ready}' >&0",
        ready.len()
    );
    // It has the door in its hands, and dies, or does not take it.
    for (then, why) in [
        ("head -c 20 >/dev/null; exit 3", "exit status: 3"),
        (
            "head -c 20 >/dev/null; printf '\\004\\000\\000\\000\\000\\000\\000\\000what' >&0; exec sleep 100",
            "cannot be read",
        ),
        ("exec sleep 100", "not ready"),
    ] {
        replace(&program, &format!("{says_ready}\n{then}"));
        let asked = tokio::spawn({
            let client = client.clone();
            async move {
                for _ in 0..50 {
                    client.complete(&question()).await.unwrap();
                }
            }
        });
        let restart = home.run(&["restart"]);
        assert_eq!(restart.code, Some(1), "{restart:?}");
        assert!(restart.err.contains(why), "{}", restart.err);
        asked.await.unwrap();
        slow.call(MessageType::ECHO, b"still").await.unwrap();
        connect(&home).await.complete(&question()).await.unwrap();
    }
    assert_eq!(home.pid(), daemon.pid());
    assert_eq!(home.daemons(), [daemon.pid()]);
    assert_eq!(client.counters().new_daemons, 0);
}

#[test]
fn whoever_asks_for_a_restart_can_take_it_back() {
    let home = Home::new(&format!(
        "[ipc]\nrestart_timeout_secs = 600\ndrain_timeout_secs = 0\n{ANSWERS}"
    ));
    let program = program(&home);
    let mut daemon = serve_from(&home, &program, &["serve"]);
    replace(&program, "exec sleep 100");
    let restart = home.command(&["restart"]).spawn().unwrap();
    daemon.log.wait_for("started the next daemon");
    signal(i32::try_from(restart.id()).unwrap(), Signal::INT);
    assert_eq!(ended(restart).code, Some(130));
    daemon.log.wait_for("this one goes on");
    assert_eq!(home.daemons(), [daemon.pid()]);
    // And a daemon that is stopped meanwhile stops.
    let restart = home.command(&["restart"]).spawn().unwrap();
    until("another is starting", || {
        daemon.log.try_seen("started the next daemon", 2)
    });
    signal(daemon.pid(), Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(ended(restart).code, Some(1));
    assert!(home.names_in_runtime_dir().is_empty());
    assert!(home.daemons().is_empty());
}

#[test]
fn the_flag_is_for_daemons_only() {
    let home = Home::new("");
    let wrong = home.run(&["serve", "--take-over"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains("lapce-ai restart"), "{}", wrong.err);
    let nobody = home.run(&["restart"]);
    assert_eq!(nobody.code, Some(3), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_in_a_crowd_leave_one_daemon() {
    let home = Home::new(ANSWERS);
    let first = home.serve(UNWATCHED);
    let clients: Vec<Client> = {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(connect(&home).await);
        }
        clients
    };
    let asked = clients.iter().map(|client| {
        let client = client.clone();
        tokio::spawn(async move { client.restart().await })
    });
    let asked: Vec<_> = asked.collect();
    let mut followed = 0;
    for restart in asked {
        match restart.await.unwrap() {
            Ok(_) => followed += 1,
            Err(error) => assert!(error.to_string().contains("is under way"), "{error}"),
        }
    }
    assert!(followed >= 1);
    until("one is left", || home.daemons().len() == 1);
    assert_ne!(home.daemons(), [first.pid()]);
    for client in &clients {
        client.complete(&question()).await.unwrap();
        assert_eq!(client.counters().new_daemons, 0);
    }
}
