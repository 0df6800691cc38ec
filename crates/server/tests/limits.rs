//! What a daemon allows: connections, users, idle times, memory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lapce_ai_proto::{ErrorCode, Kind, MessageType};
use lapce_ai_server::{Options, Responder};
use lapce_ai_transport::PoolOptions;
use support::{
    ASYNC_ECHO, Carrier, Client, Daemon, ECHO, FAIL, LARGE, LENGTH, OWN, Witness, options, pattern,
};

#[test]
fn connections_over_the_limit_are_refused_until_one_goes() {
    let daemon = Daemon::start(Options {
        max_connections: 3,
        ..options()
    });
    let mut clients: Vec<_> = (0..3)
        .map(|_| Client::new(&daemon, Carrier::SHARED_MEMORY))
        .collect();
    for carrier in Carrier::ALL {
        let Err(refused) = Client::try_new(&daemon.path, carrier, 1000) else {
            panic!("a fourth was taken");
        };
        assert_eq!(refused.code, ErrorCode::TooManyConnections);
    }
    assert_eq!(daemon.handle.counters().refused, 4);
    for client in &mut clients {
        client.echo(10);
    }
    clients.pop();
    daemon.await_quiet(2);
    Client::new(&daemon, Carrier::SOCKET).echo(10);
}

#[test]
fn an_idle_connection_is_closed_with_a_word() {
    let daemon = Daemon::start(Options {
        idle_timeout: Some(Duration::from_millis(50)),
        ..options()
    });
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let id = client.open(ECHO, b"x");
        assert_eq!(client.answer(id), b"x");
        assert_eq!(client.closing_error().code, ErrorCode::IdleTimeout);
        daemon.await_quiet(0);
    }
}

#[test]
fn a_connection_that_works_is_not_idle() {
    let daemon = Daemon::with(
        Options {
            idle_timeout: Some(Duration::from_secs(2)),
            // So long that the daemon never sleeps between two requests.
            spin: Duration::from_secs(1),
            ..options()
        },
        |_| {},
    );
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let until = Instant::now() + Duration::from_secs(5);
    for _ in 0..8 {
        client.open(ECHO, b"x");
    }
    let mut next = 1;
    while Instant::now() < until {
        let frame = client.next_of(next);
        assert_eq!(frame.kind, Kind::End);
        next += 1;
        client.open(ECHO, b"x");
    }
}

#[test]
fn a_daemon_that_nobody_needs_stops() {
    for (visited, exit) in [(false, 20), (true, 3000)] {
        let daemon = Daemon::start(Options {
            exit_when_idle: Some(Duration::from_millis(exit)),
            ..options()
        });
        if visited {
            Client::new(&daemon, Carrier::SHARED_MEMORY).echo(10);
        }
        daemon.await_stop();
        assert!(!daemon.path.exists());
    }
}

#[test]
fn the_budget_is_shared_in_order_and_nothing_is_lost() {
    const CLIENTS: usize = 6;
    const UPLOADS: usize = 5;
    let budget = 2 << 20;
    let mut options = options();
    options.pool = PoolOptions {
        budget,
        keep: [4, 4, 1],
    };
    let daemon = Daemon::start(options);
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut client = Client::new(daemon, carrier);
                    // Several at once, each as large as may be: far more than the budget.
                    let body = pattern(number as u64, 1 << 20);
                    let ids: Vec<u64> = (0..UPLOADS)
                        .map(|_| client.begin(ASYNC_ECHO, body.len(), &body[..500]))
                        .collect();
                    for id in ids {
                        let credit = client.await_credit(id);
                        assert_eq!(credit as usize, body.len() - 500);
                        client.send_rest(id, &body, 500);
                        assert!(client.answer(id) == body);
                    }
                });
            }
        });
        witness.was_served();
        daemon.await_quiet(0);
        let pool = daemon.handle.pool();
        assert!(pool.peak <= budget && pool.kept <= budget, "{pool:?}");
        assert!(pool.refused > 0, "nobody had to wait: {pool:?}");
        // Of each six, two at most have memory at a time.
        assert!(
            pool.waits >= 4 && pool.waits <= pool.tiers[2].hits + pool.tiers[2].misses,
            "{pool:?}"
        );
        assert!(
            pool.waited >= pool.longest_wait && !pool.longest_wait.is_zero(),
            "{pool:?}"
        );
        assert_eq!(
            (pool.waiting, pool.tiers.map(|tier| tier.in_use)),
            (0, [0; 4])
        );
        assert!(
            pool.tiers[2].hits > 0,
            "the large one is used again: {pool:?}"
        );
    }
}

#[test]
fn those_who_wait_for_memory_are_served_in_the_order_of_their_coming() {
    let daemon = Daemon::start(options());
    let mut holder = Client::new(&daemon, Carrier::SHARED_MEMORY);
    // All but 1000 bytes of the budget.
    let held: Vec<_> = [1 << 20, 1 << 20, 1 << 20, (1 << 20) - 1000]
        .into_iter()
        .map(|len: usize| {
            let id = holder.begin(LENGTH, len, &[]);
            holder.await_credit(id);
            (id, len)
        })
        .collect();
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let large = client.begin(LENGTH, 1 << 20, &[]);
    // It would fit, and it waits all the same, behind the large one.
    let small = client.begin(LENGTH, 500, &[]);
    client.send(Kind::Ping, 0, 0, 0, &[0; 8]);
    assert_eq!(client.next().unwrap().kind, Kind::Ping, "no credit yet");
    for (id, len) in held {
        holder.send_rest(id, &vec![0; len], 0);
        assert_eq!(holder.answer(id), len.to_string().as_bytes());
    }
    let order: Vec<u64> = (0..2).map(|_| client.next().unwrap().id).collect();
    assert_eq!(order, [large, small]);
}

#[test]
fn a_wait_for_memory_ends_with_its_deadline_and_with_a_cancel() {
    let daemon = Daemon::start(options());
    let witness = Witness::new(&daemon, Carrier::SOCKET);
    let mut holder = Client::new(&daemon, Carrier::SHARED_MEMORY);
    for _ in 0..4 {
        let id = holder.begin(LENGTH, 1 << 20, &[]);
        holder.await_credit(id);
    }
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let id = client.id();
        let prefix = lapce_ai_proto::OpenPrefix {
            deadline_ms: 30,
            ..support::prefix(5000)
        };
        client.send(
            Kind::Open,
            lapce_ai_proto::PREFIX,
            LENGTH,
            id,
            &prefix.encode(),
        );
        assert_eq!(client.error_of(id).code, ErrorCode::DeadlineExceeded);
        let id = client.begin(LENGTH, 5000, b"first");
        client.send(Kind::Cancel, 0, 0, id, &[]);
        assert_eq!(client.error_of(id).code, ErrorCode::Cancelled);
        // A whole request to a task waits for memory as well.
        let id = client.open(ASYNC_ECHO, b"whole");
        client.send(Kind::Cancel, 0, 0, id, &[]);
        assert_eq!(client.error_of(id).code, ErrorCode::Cancelled);
        client.echo(10);
    }
    witness.was_served();
}

#[test]
fn a_request_that_could_never_fit_is_refused_at_once() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let id = client.begin(LENGTH, (1 << 20) + 1, &[1; 100]);
        let error = client.error_of(id);
        assert_eq!(error.code, ErrorCode::MessageTooLarge);
        assert!(error.message.contains("1048577"), "{error}");
        let id = client.upload(LENGTH, &vec![0; 1 << 20]);
        assert_eq!(client.answer(id), b"1048576", "the largest fits");
    }
}

#[test]
fn an_answer_longer_than_a_message_may_be_is_its_requests_error_and_nothing_else() {
    let daemon = Daemon::with(options(), |server| {
        server.handle_async(
            MessageType(OWN),
            |request, responder: Responder| async move {
                let len = std::str::from_utf8(&request.body).unwrap();
                let answer = pattern(1, len.parse().unwrap());
                let _ = responder.answer(&answer).await;
            },
        );
    });
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let most = client.welcome.limits.max_message_size as usize;
        for ty in [LARGE, OWN] {
            let id = client.open(ty, (most + 1).to_string().as_bytes());
            let error = client.error_of(id);
            assert_eq!(error.code, ErrorCode::MessageTooLarge);
            assert!(error.message.contains("1048577"), "{error}");
            let id = client.open(ty, most.to_string().as_bytes());
            assert!(client.answer(id) == pattern(1, most), "the largest fits");
        }
    }
    daemon.await_quiet(0);
}

#[test]
fn every_error_fits_the_smallest_frames() {
    let mut options = options();
    options.request_capacity = 4096;
    options.response_capacity = 4096;
    options.limits.max_frame_payload = 256;
    options.limits.inline_window = 4096;
    let daemon = Daemon::start(options);
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let most = client.welcome.limits.max_frame_payload as usize;
        for _ in 0..20 {
            let id = client.open(FAIL, b"");
            let frame = client.next_of(id);
            assert!(frame.payload.len() <= most, "{}", frame.payload.len());
            assert_eq!(frame.error().code, ErrorCode::InvalidRequest);
        }
        let id = client.open(LARGE, b"100000");
        assert!(client.answer(id) == pattern(1, 100_000));
        let body = pattern(2, 100_000);
        let id = client.upload(ECHO, &body);
        assert!(client.answer(id) == body);
    }
}

/// Connects as another user and prints what the daemon says.
const STRANGER: &str = r#"
import os, socket, sys
client = socket.socket(socket.AF_UNIX)
directory = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
os.chmod(sys.argv[1], 0o777)
os.fchdir(directory)
os.fchmod(directory, 0o711)
os.setuid(65534)
client.settimeout(20)
client.connect(sys.argv[1])
try:
    while True:
        chunk = client.recv(4096)
        if not chunk:
            break
        sys.stdout.buffer.write(chunk)
except ConnectionResetError:
    pass
"#;

#[test]
fn another_user_is_refused_and_an_allowed_one_is_not() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let say = |daemon: &Daemon| {
        let output = Command::new("python3")
            .args(["-c", STRANGER])
            .arg(&daemon.path)
            .stderr(Stdio::inherit())
            .output()
            .expect("python3 runs");
        assert!(output.status.success());
        let (frame, _) = lapce_ai_proto::Codec::HANDSHAKE
            .decode(&output.stdout)
            .unwrap()
            .expect("the daemon says something");
        assert_eq!((frame.kind, frame.id), (Kind::Error, 0));
        lapce_ai_proto::ErrorBody::read(frame.ty, frame.payload)
    };
    let daemon = Daemon::start(options());
    let witness = Witness::new(&daemon, Carrier::SHARED_MEMORY);
    let refused = say(&daemon);
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    assert!(refused.message.contains("65534"), "{refused}");
    assert_eq!(daemon.handle.counters().refused, 1);
    witness.was_served();
    // With its uid in the list it comes as far as the handshake, in which it says nothing.
    let daemon = Daemon::start(Options {
        allowed_uids: vec![65534],
        handshake_timeout: Duration::from_millis(50),
        ..options()
    });
    assert_eq!(say(&daemon).code, ErrorCode::DeadlineExceeded);
}
