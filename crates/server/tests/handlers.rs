//! What happens to handlers and their answers: cancels, deadlines, deaths, panics, slow readers, the daemon's end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::mpsc;
use std::time::Duration;

use lapce_ai_proto::{ErrorBody, ErrorCode, FIN, GoAway, Kind, MORE, MessageType, OpenPrefix};
use lapce_ai_server::{Options, Responder, Server};
use support::{
    ASYNC_ECHO, ASYNC_PANIC, Carrier, Client, Daemon, ECHO, OWN, PANIC, PATIENCE, Received, STREAM,
    Witness, options, pattern, prefix,
};

/// Tells when a future starts and when it is dropped.
struct Guard(mpsc::Sender<&'static str>);

impl Guard {
    fn new(told: &mpsc::Sender<&'static str>) -> Self {
        let _ = told.send("started");
        Self(told.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

/// Has type [`OWN`] wait for ever, and tell of it.
fn hanging(told: mpsc::Sender<&'static str>) -> impl FnOnce(&mut Server) {
    move |server| {
        server.handle_async(MessageType(OWN), move |_, responder: Responder| {
            let told = told.clone();
            async move {
                let _guard = Guard::new(&told);
                std::future::pending::<()>().await;
                drop(responder);
            }
        });
    }
}

fn await_told(told: &mpsc::Receiver<&'static str>, what: &str) {
    assert_eq!(told.recv_timeout(PATIENCE), Ok(what));
}

#[test]
fn a_cancel_drops_the_handlers_future() {
    let (tell, told) = mpsc::channel();
    let daemon = Daemon::with(options(), hanging(tell));
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::new(&daemon, carrier);
        let id = client.open(OWN, b"x");
        await_told(&told, "started");
        assert_eq!(client.next_of(id).kind, Kind::Accepted);
        client.send(Kind::Cancel, 0, 0, id, &[]);
        await_told(&told, "dropped");
        assert_eq!(client.error_of(id).code, ErrorCode::Cancelled);
        // A second one comes too late and is ignored; the connection goes on.
        client.send(Kind::Cancel, 0, 0, id, &[]);
        client.echo(10);
        drop(client);
        witness.was_served();
        daemon.await_quiet(0);
    }
    assert_eq!(daemon.handle.counters().cancelled, 4);
}

#[test]
fn a_cancelled_upload_gives_its_memory_back() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let id = client.begin(ECHO, 1 << 20, &[]);
        client.await_credit(id);
        client.send(Kind::Data, 0, 0, id, &[1; 2000]);
        client.send(Kind::Cancel, 0, 0, id, &[]);
        client.send(Kind::Data, 0, 0, id, &[1; 2000]);
        assert_eq!(client.error_of(id).code, ErrorCode::Cancelled);
        assert_eq!(daemon.handle.pool().held, 0);
        client.echo(10);
    }
}

#[test]
fn a_deadline_drops_the_handlers_future() {
    let (tell, told) = mpsc::channel();
    let daemon = Daemon::with(options(), hanging(tell.clone()));
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let prefix = OpenPrefix {
            deadline_ms: 20,
            ..prefix(1)
        };
        let id = client.open_with(OWN, &prefix, b"x");
        assert_eq!(client.error_of(id).code, ErrorCode::DeadlineExceeded);
        await_told(&told, "started");
        await_told(&told, "dropped");
        client.echo(10);
    }
    let daemon = Daemon::with(
        Options {
            default_deadline: Some(Duration::from_millis(20)),
            ..options()
        },
        hanging(tell),
    );
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let id = client.open(OWN, b"x");
    assert_eq!(client.error_of(id).code, ErrorCode::DeadlineExceeded);
}

#[test]
fn a_client_that_goes_takes_its_handlers_with_it() {
    let (tell, told) = mpsc::channel();
    let daemon = Daemon::with(options(), hanging(tell));
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::new(&daemon, carrier);
        for _ in 0..3 {
            client.open(OWN, b"x");
            await_told(&told, "started");
        }
        drop(client);
        for _ in 0..3 {
            await_told(&told, "dropped");
        }
        witness.was_served();
        daemon.await_quiet(0);
    }
}

#[test]
fn a_panic_is_one_requests_error() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::new(&daemon, carrier);
        for ty in [PANIC, ASYNC_PANIC] {
            let id = client.open(ty, b"x");
            let error = client.error_of(id);
            assert_eq!(error.code, ErrorCode::Internal);
            assert!(error.message.contains("panicked"), "{error}");
            let id = client.upload(ty, &[1; 9000]);
            assert_eq!(client.error_of(id).code, ErrorCode::Internal);
            client.echo(100);
        }
        drop(client);
        witness.was_served();
        daemon.await_quiet(0);
    }
}

#[test]
fn a_handler_without_an_answer_is_an_error() {
    let daemon = Daemon::with(options(), |server| {
        server.handle(MessageType(OWN), |_, _| {});
        server.handle_async(MessageType(OWN + 1), |_, _| async {});
        server.handle_async(
            MessageType(OWN + 2),
            |_, mut responder: Responder| async move {
                let _ = responder.send(b"a beginning").await;
            },
        );
        server.handle_async(MessageType(OWN + 3), |_, responder: Responder| async move {
            responder.fail(ErrorBody::new(ErrorCode::ContextTooLong, "so it is"));
        });
    });
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        for ty in [OWN, OWN + 1] {
            let id = client.open(ty, b"x");
            assert_eq!(client.error_of(id).code, ErrorCode::Internal);
        }
        let id = client.open(OWN + 2, b"x");
        let mut frame = client.next_of(id);
        if frame.kind == Kind::Accepted {
            frame = client.next_of(id);
        }
        assert_eq!(frame.payload, b"a beginning");
        assert_eq!(client.error_of(id).code, ErrorCode::Internal);
        let id = client.open(OWN + 3, b"x");
        let error = client.error_of(id);
        assert_eq!(error.code, ErrorCode::ContextTooLong);
        assert_eq!(error.message, "so it is");
        client.echo(10);
    }
}

#[test]
fn answers_of_every_shape_and_size() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        // Windows smaller than a frame, than an item, and than nothing.
        for window in [1, 100, 5000, 1 << 20] {
            let mut client = Client::with_window(&daemon, carrier, window);
            let most = client.welcome.limits.max_frame_payload as usize;
            for len in [0, 1, 99, 100, 101, most - 8, most - 7, most - 1, most] {
                if len > 500 && window == 1 {
                    continue;
                }
                let body = pattern(len as u64, len);
                for ty in [ECHO, ASYNC_ECHO] {
                    let id = client.open(ty, &body);
                    assert!(client.answer(id) == body, "{ty:#x} {len} {window}");
                }
            }
            if window > 1 {
                let sizes: &[usize] = if window < 1000 {
                    &[most + 1]
                } else {
                    &[most + 1, 16 << 10, 70_000, 1 << 20]
                };
                for &len in sizes {
                    let body = pattern(len as u64, len);
                    for ty in [ECHO, ASYNC_ECHO] {
                        let id = client.upload(ty, &body);
                        assert!(client.answer(id) == body, "{ty:#x} {len} {window}");
                    }
                }
                let id = client.open(STREAM, &[20, 9]);
                let items = client.items(id);
                assert_eq!(items.len(), 20);
                for (number, item) in items.iter().enumerate() {
                    assert!(*item == vec![number as u8; 9 << 10]);
                }
            }
            let id = client.open(STREAM, &[0, 0]);
            assert_eq!(client.items(id).len(), 0);
            let id = client.open(STREAM, &[3, 0]);
            assert_eq!(client.items(id), vec![Vec::<u8>::new(); 3]);
        }
        witness.was_served();
        daemon.await_quiet(0);
    }
}

#[test]
fn a_slow_reader_blocks_its_own_stream_only() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::with_window(&daemon, carrier, 8 << 10);
        let slow = client.open(STREAM, &[100, 4]);
        // Its window is used up, and not a byte more comes.
        let mut come = 0;
        while come < 8 << 10 {
            let frame = client.next_of(slow);
            if frame.kind == Kind::Data {
                come += frame.payload.len();
            }
        }
        assert_eq!(come, 8 << 10);
        for _ in 0..50 {
            client.echo(3000);
        }
        let other = client.open(STREAM, &[30, 4]);
        assert_eq!(client.items(other).len(), 30);
        let upload = client.upload(ECHO, &pattern(1, 100_000));
        assert!(client.answer(upload) == pattern(1, 100_000));
        // It goes on where it was.
        client.credit(slow, 8 << 10);
        let rest = client.items(slow);
        assert_eq!(rest.len(), 98);
        assert!(rest[0] == vec![2; 4 << 10]);
    }
}

#[test]
fn many_streams_at_once_on_one_connection() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::with_window(&daemon, carrier, 3000);
        let ids: Vec<u64> = (0..16)
            .map(|number| client.open(STREAM, &[10 + number, 2]))
            .collect();
        // The last first: all others wait, and lose nothing.
        for (number, id) in ids.into_iter().enumerate().rev() {
            assert_eq!(client.items(id).len(), 10 + number);
        }
    }
}

/// Lets a handler of type [`OWN`] go on when it is told to.
fn gated(gate: std::sync::Arc<tokio::sync::Semaphore>) -> impl FnOnce(&mut Server) {
    move |server| {
        server.handle_async(MessageType(OWN), move |_, responder: Responder| {
            let gate = std::sync::Arc::clone(&gate);
            async move {
                let _permit = gate.acquire().await;
                let _ = responder.answer(b"in time").await;
            }
        });
    }
}

fn goaway(frame: &Received) -> GoAway {
    assert_eq!((frame.kind, frame.id), (Kind::GoAway, 0));
    GoAway::decode(&frame.payload).unwrap()
}

#[test]
fn a_drain_lets_running_requests_end_and_takes_no_new_ones() {
    for carrier in Carrier::ALL {
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let daemon = Daemon::with(options(), gated(std::sync::Arc::clone(&gate)));
        let mut quiet = Client::new(&daemon, carrier);
        quiet.echo(10);
        let mut client = Client::new(&daemon, carrier);
        let running = client.open(OWN, b"x");
        assert_eq!(client.next_of(running).kind, Kind::Accepted);
        daemon.handle.shutdown(PATIENCE);
        for client in [&mut client, &mut quiet] {
            let frame = client.next().unwrap();
            assert_eq!(goaway(&frame).code, ErrorCode::ServerRestarting);
        }
        assert_eq!(quiet.next(), None, "nothing keeps it");
        let late = client.open(ECHO, b"late");
        assert_eq!(client.error_of(late).code, ErrorCode::ServerRestarting);
        let late = client.begin(ECHO, 100, b"late");
        assert_eq!(client.error_of(late).code, ErrorCode::ServerRestarting);
        // Newcomers are refused, or find nobody.
        let newcomer = std::os::unix::net::UnixStream::connect(&daemon.path);
        if let Ok(newcomer) = newcomer {
            let body = support::last_words(&newcomer);
            assert_eq!(body.code, ErrorCode::ServerRestarting);
        }
        gate.add_permits(1);
        assert_eq!(client.answer(running), b"in time");
        assert_eq!(client.next(), None, "then it ends");
        daemon.await_stop();
        assert!(!daemon.path.exists());
    }
}

#[test]
fn a_drain_that_is_over_cuts_what_still_runs() {
    for carrier in Carrier::ALL {
        let (tell, told) = mpsc::channel();
        let daemon = Daemon::with(options(), hanging(tell));
        let mut client = Client::new(&daemon, carrier);
        let id = client.open(OWN, b"x");
        await_told(&told, "started");
        // The second call shortens the first.
        daemon.handle.shutdown(PATIENCE);
        daemon.handle.shutdown(Duration::from_millis(20));
        let mut codes = Vec::new();
        while let Some(frame) = client.next() {
            match frame.kind {
                Kind::GoAway => assert_eq!(goaway(&frame).last_id, id),
                Kind::Error => codes.push((frame.id, frame.error().code)),
                _ => assert_eq!(frame.kind, Kind::Accepted),
            }
        }
        assert_eq!(codes, [(id, ErrorCode::ServerRestarting)]);
        await_told(&told, "dropped");
        daemon.await_stop();
        assert_eq!(daemon.handle.pool().held, 0);
    }
}

#[test]
fn a_handler_can_stop_the_daemon() {
    for carrier in Carrier::ALL {
        let daemon = Daemon::with(options(), |server| {
            let handle = server.handle_ref();
            server.handle(MessageType::SHUTDOWN, move |_, reply| {
                reply.send(b"{}");
                handle.shutdown(Duration::from_millis(20));
            });
        });
        let mut client = Client::new(&daemon, carrier);
        let id = client.open(MessageType::SHUTDOWN.0, b"");
        assert_eq!(client.answer(id), b"{}");
        client.drain();
        daemon.await_stop();
    }
}

#[test]
fn the_daemon_says_who_is_connected_and_what_happened() {
    let daemon = Daemon::start(options());
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let mut other = Client::new(&daemon, Carrier::SOCKET);
    for _ in 0..3 {
        client.echo(10);
    }
    let id = other.open(0x7FFF, b"?");
    assert_eq!(other.error_of(id).code, ErrorCode::UnknownType);
    let (connections, counters) = daemon.handle.status();
    assert_eq!((counters.connections, counters.requests), (2, 4));
    assert_eq!((counters.failed, counters.faults), (1, 0));
    let seen: Vec<_> = connections
        .iter()
        .map(|c| (c.name.as_str(), c.transport.as_str(), c.requests))
        .collect();
    assert_eq!(
        seen,
        [
            ("without rules", "shared memory", 3),
            ("without rules", "socket", 1)
        ]
    );
    assert_eq!(connections[0].pid, std::process::id() as i32);
}

#[test]
fn one_item_in_one_frame_is_one_end() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let id = client.open(ECHO, b"x");
        let frame = client.next().unwrap();
        assert_eq!((frame.kind, frame.flags, frame.id), (Kind::End, FIN, id));
        let id = client.open(ECHO, &pattern(0, 4096));
        assert_eq!(client.next().unwrap().flags & MORE, 0, "{id}");
    }
}

#[test]
fn a_talker_keeps_nobody_out() {
    // So long that the daemon never sleeps while the talker talks.
    let daemon = Daemon::start(Options {
        spin: Duration::from_secs(5),
        ..options()
    });
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let talker = std::thread::spawn({
        let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
        let stop = std::sync::Arc::clone(&stop);
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.echo(10);
            }
        }
    });
    // A handshake, bells and a hang-up each need a look at the sockets.
    for carrier in [Carrier::SHARED_MEMORY, Carrier::SOCKET] {
        let mut client = Client::new(&daemon, carrier);
        client.echo(10);
        drop(client);
        daemon.await_quiet(1);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    talker.join().unwrap();
}

#[test]
fn a_sync_handler_that_overruns_is_counted() {
    let daemon = Daemon::with(options(), |server| {
        server.handle(MessageType(OWN), |_, reply| {
            std::thread::sleep(Duration::from_millis(60));
            reply.send(&[]);
        });
    });
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        client.echo(10);
        let before = daemon.handle.counters().overruns;
        let id = client.open(OWN, &[]);
        client.answer(id);
        // The answer is out before the clock is read.
        support::eventually("it is counted", || {
            daemon.handle.counters().overruns == before + 1
        });
    }
}
