//! A daemon that is to take over, when the one before it says what it should not, or dies. The test plays that one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lapce_ai_client::{BlockingClient, Options};
use lapce_ai_proto::MessageType;
use lapce_ai_transport::{Channel, ChannelError, Listener, RuntimeDir};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Ended, Home, ended, signal};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A daemon that waits for what it is given.
struct Next {
    child: Child,
    channel: Channel,
    ready: Value,
}

fn start(home: &Home) -> Next {
    let (channel, theirs) = Channel::pair().unwrap();
    let mut command = home.command(&["serve", "--take-over"]);
    let child = command.stdin(Stdio::from(theirs)).spawn().unwrap();
    drop(command);
    let ready = receive(&channel).unwrap();
    Next {
        child,
        channel,
        ready,
    }
}

fn receive(channel: &Channel) -> Result<Value, ChannelError> {
    let (body, descriptors) = channel.receive(Some(soon()))?;
    assert!(descriptors.is_empty());
    Ok(serde_json::from_slice(&body).unwrap())
}

impl Next {
    fn tell(&self, message: &Value, descriptors: &[BorrowedFd<'_>]) {
        let text = message.to_string();
        self.channel
            .send(text.as_bytes(), descriptors, soon())
            .unwrap();
    }

    /// Why it cannot follow, and how it ended.
    fn fails(self) -> (String, Ended) {
        let said = receive(&self.channel).unwrap();
        let reason = said["failed"]["reason"].as_str().unwrap_or_default();
        let reason = reason.to_owned();
        (reason, ended(self.child))
    }
}

fn listener(home: &Home) -> Listener {
    Listener::bind(&RuntimeDir::for_socket(home.socket())).unwrap()
}

fn estate(connections: u64) -> Value {
    json!({"estate": {
        "estate": {"instance": "2a", "connections": 41, "clients": []},
        "connections": connections,
    }})
}

/// A connection at rest, as it may be said.
fn resting() -> Value {
    json!({"id": 1, "window": 1000, "lastId": 5, "requests": 5, "ageMs": 1, "name": "x", "instance": "7", "earlier": 0,
        "crc": false, "consumed": 0, "tail": 0, "seenHead": 0, "restart": 0, "touched": 4096})
}

#[test]
fn a_daemon_whose_predecessor_dies_takes_over() {
    let home = Home::new("");
    let listener = listener(&home);
    let mut next = start(&home);
    assert_eq!(next.ready["ready"]["version"], 1);
    next.tell(&estate(0), &listener.parts());
    assert_eq!(receive(&next.channel).unwrap(), "taken");
    // Whoever comes by now waits.
    let connect = || BlockingClient::connect(Options::new(home.socket()));
    let waiting = std::thread::spawn({
        let options = Options::new(home.socket());
        move || BlockingClient::connect(options).map(|client| client.welcome().unwrap().instance)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished(), "it must not accept yet");
    // As if this process had died.
    drop((listener, next.channel));
    assert_eq!(waiting.join().unwrap().unwrap(), 0x2a);
    let client = connect().unwrap();
    assert_eq!(client.welcome().unwrap().connection, 43);
    assert_eq!(client.call(MessageType::ECHO, b"well").unwrap(), b"well");
    signal(i32::try_from(next.child.id()).unwrap(), Signal::TERM);
    assert_eq!(support::wait(&mut next.child).code(), Some(0));
    assert!(home.names_in_runtime_dir().is_empty());
}

#[test]
fn an_estate_that_cannot_be_is_refused() {
    let home = Home::new("");
    let listener = listener(&home);
    let [socket, lock] = listener.parts();
    let null = File::open("/dev/null").unwrap();
    let (pipe, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = |message: &Value, descriptors: &[BorrowedFd<'_>], why: &str| {
        let next = start(&home);
        next.tell(message, descriptors);
        let (reason, ended) = next.fails();
        assert!(reason.contains(why), "{message}: {reason}");
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains(why), "{}", ended.err);
    };
    refused(&json!("go"), &[], "`go`");
    refused(&json!({"what": 1}), &[], "cannot be read");
    refused(
        &json!({"estate": {"connections": 0}}),
        &[],
        "cannot be read",
    );
    refused(&estate(0), &[socket], "1 descriptors came");
    refused(&estate(0), &[socket, lock, lock], "3 descriptors came");
    refused(&estate(0), &[lock, socket], "no socket that listens");
    refused(&estate(0), &[pipe.as_fd(), lock], "no socket that listens");
    refused(&estate(0), &[socket, null.as_fd()], "not its lock");
    // Connections that are not what they are said to be.
    let connections = |list: Value, descriptors: &[BorrowedFd<'_>], why: &str| {
        let next = start(&home);
        next.tell(&estate(1), &[socket, lock]);
        next.tell(&json!({"connections": list}), descriptors);
        let (reason, ended) = next.fails();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(ended.code, Some(1), "{ended:?}");
    };
    let one = || json!([resting()]);
    connections(json!([]), &[], "descriptors");
    connections(one(), &[pipe.as_fd()], "1 descriptors came where 2");
    connections(one(), &[null.as_fd(), null.as_fd()], "whose connection");
    connections(one(), &[pipe.as_fd(), null.as_fd()], "connection 1");
    connections(one(), &[pipe.as_fd(), pipe.as_fd()], "connection 1");
    connections(json!([{"id": 1}]), &[], "cannot be read");
    // The door is where it was, and still this process's.
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    let second = home.run(&["serve"]);
    assert!(second.err.contains("running already"), "{second:?}");
}

#[test]
fn a_daemon_whose_predecessor_says_nothing_more_ends_without_a_trace() {
    let home = Home::new("");
    let listener = listener(&home);
    // Before the estate, in the middle of it, and with connections to come.
    for told in 0..2 {
        let next = start(&home);
        if told == 1 {
            next.tell(&estate(3), &listener.parts());
        }
        drop(next.channel);
        let ended = ended(next.child);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("has gone"), "{}", ended.err);
    }
    assert_eq!(home.names_in_runtime_dir(), ["daemon.lock", "daemon.sock"]);
    // Nobody has listened: whoever comes is this process's.
    let _client = std::os::unix::net::UnixStream::connect(home.socket()).unwrap();
    let taken: Option<OwnedFd> = listener.accept().unwrap();
    assert!(taken.is_some());
}
