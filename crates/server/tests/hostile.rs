//! Clients that do not break a rule of the protocol so much as the spirit of it: silent, dying, deaf, greedy. Each is dealt with, and a client that behaves is served throughout.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lapce_ai_proto::{
    Codec, ErrorBody, ErrorCode, FIN, Fault, Features, Hello, Kind, MessageType, OpenPrefix,
};
use lapce_ai_server::{Options, Responder};
use lapce_ai_shm::Bell;
use support::{
    Carrier, Client, Daemon, ECHO, LARGE, LENGTH, OWN, STREAM, Witness, eventually, last_words,
    options, pattern, prefix, socket,
};

const SHORT: Duration = Duration::from_millis(50);
/// So long that a client which does its best is not taken for one that stalls, however busy the machine is.
const BEARABLE: Duration = Duration::from_secs(1);

fn stalling() -> Options {
    Options {
        stall_timeout: SHORT,
        // Only those who stop are meant; see the tests about those who trickle.
        stall_bytes: 1,
        ..options()
    }
}

fn hello(change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut hello = Hello::new("raw", 1, Features::default(), 1 << 16);
    change(&mut hello);
    Codec::HANDSHAKE.encode(Kind::Hello, 0, 0, 0, &hello.encode())
}

#[test]
fn a_handshake_that_goes_wrong_is_told_why() {
    let daemon = Daemon::start(options());
    let witness = Witness::new(&daemon, Carrier::SHARED_MEMORY);
    let garbage: [(Vec<u8>, Fault); 5] = [
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            Fault::BadMagic,
        ),
        (vec![0; 4096], Fault::BadMagic),
        (vec![0xFF; 24], Fault::BadMagic),
        (
            Codec::HANDSHAKE.encode(Kind::Open, FIN, ECHO, 1, b"early"),
            Fault::UnexpectedFrame,
        ),
        (
            hello(|hello| hello.response_window = u32::MAX),
            Fault::BadPayload,
        ),
    ];
    for (bytes, fault) in garbage {
        let client = socket(&daemon.path);
        (&client).write_all(&bytes).unwrap();
        let body = last_words(&client);
        assert_eq!(body.code, ErrorCode::ProtocolError);
        assert_eq!(body.fault.as_deref(), Some(fault.name()));
    }
    for (min, max) in [(2, 9), (0, 0), (3, 1)] {
        let client = socket(&daemon.path);
        let bytes = hello(|hello| (hello.version_min, hello.version_max) = (min, max));
        (&client).write_all(&bytes).unwrap();
        let body = last_words(&client);
        assert_eq!(body.code, ErrorCode::UnsupportedVersion);
        assert!(body.message.contains("version 1"), "{body}");
    }
    // Some just go.
    drop(socket(&daemon.path));
    let half = socket(&daemon.path);
    (&half).write_all(&hello(|_| {})[..20]).unwrap();
    drop(half);
    witness.was_served();
    daemon.await_quiet(0);
}

#[test]
fn a_client_that_says_nothing_is_sent_away() {
    let daemon = Daemon::start(Options {
        handshake_timeout: SHORT,
        ..options()
    });
    // Busy all the time: the clock is looked at all the same.
    let witness = Witness::new(&daemon, Carrier::SHARED_MEMORY);
    let silent = socket(&daemon.path);
    let slow = socket(&daemon.path);
    (&slow).write_all(&hello(|_| {})[..40]).unwrap();
    for client in [silent, slow] {
        let body = last_words(&client);
        assert_eq!(body.code, ErrorCode::DeadlineExceeded);
    }
    witness.was_served();
}

#[test]
fn many_silent_clients_keep_nobody_out() {
    let daemon = Daemon::start(Options {
        handshake_timeout: SHORT,
        ..options()
    });
    // More than may shake hands at once, and behind them many that come all at once.
    let silent: Vec<_> = (0..300).map(|_| socket(&daemon.path)).collect();
    let eager: Vec<_> = (0..600)
        .map(|_| {
            let client = socket(&daemon.path);
            (&client).write_all(&hello(|_| {})).unwrap();
            client
        })
        .collect();
    eventually("those behind them are taken", || {
        daemon.handle.connections().len() == eager.len()
    });
    for client in silent {
        assert_eq!(last_words(&client).code, ErrorCode::DeadlineExceeded);
    }
    Client::new(&daemon, Carrier::SOCKET).echo(100);
}

#[test]
fn buffers_of_a_client_that_dies_come_back() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        // With half an upload; before its credit; and while its answer waits.
        for progress in 0..3 {
            let mut client = Client::with_window(&daemon, carrier, 10);
            let id = client.begin(ECHO, 1 << 20, b"first");
            if progress > 0 {
                client.await_credit(id);
                assert!(daemon.handle.pool().held >= 1 << 20);
                client.send(Kind::Data, 0, 0, id, &[7; 3000]);
            }
            if progress > 1 {
                client.send_rest(id, &vec![7; 1 << 20], 3005);
                let frame = client.next_of(id);
                assert_eq!(frame.payload.len(), 8 + 10, "its window and no more");
            }
            drop(client);
            daemon.await_quiet(1);
        }
        // In the middle of a frame.
        let mut client = Client::new(
            &daemon,
            Carrier {
                shared_memory: false,
                ..carrier
            },
        );
        let frame = client.codec.encode(Kind::Open, FIN, ECHO, 1, &[1; 1000]);
        assert!(client.bytes(&frame[..500]));
        drop(client);
        daemon.await_quiet(1);
        witness.was_served();
        daemon.await_quiet(0);
    }
}

#[test]
fn a_client_that_never_reads_is_cut_and_bounded() {
    let daemon = Daemon::start(stalling());
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        // Echoes; errors, which no window bounds; PINGs; and answers far larger than their requests.
        for ty in [ECHO, 0x7FFF, 0, LARGE] {
            println!("{carrier:?} {ty:#x}");
            let mut client = Client::new(&daemon, carrier);
            let mut sent_bytes = 0;
            let mut id = 0;
            let mut frame = Vec::new();
            let mut sent = 0;
            // Never reads a byte; it sends as long as the daemon takes it, and then waits for its end.
            loop {
                if sent == frame.len() {
                    sent = 0;
                    id += 1;
                    frame = match ty {
                        0 => client.codec.encode(Kind::Ping, 0, 0, 0, &[0; 8]),
                        LARGE => client.codec.encode(Kind::Open, FIN, ty, id, b"900000"),
                        _ => client.codec.encode(Kind::Open, FIN, ty, id, &[1; 1500]),
                    };
                }
                match client.try_bytes(&frame, &mut sent) {
                    None => break,
                    Some(true) => {
                        sent = frame.len();
                        sent_bytes += frame.len();
                        assert!(
                            sent_bytes < 64 << 20,
                            "the daemon takes requests without end from a client that never reads"
                        );
                    }
                    Some(false) => {
                        // Nothing but the daemon's end can help.
                        if let Ok(lapce_ai_shm::Woken::PeerGone) =
                            Bell::new(&client.socket).wait(Some(Duration::from_millis(1)))
                        {
                            break;
                        }
                    }
                }
            }
            daemon.await_quiet(1);
        }
        assert!(daemon.handle.pool().peak <= options().pool.budget);
        witness.was_served();
        daemon.await_quiet(0);
    }
}

#[test]
fn an_upload_that_stalls_is_told_so_and_gives_its_memory_back() {
    let daemon = Daemon::start(stalling());
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::new(&daemon, carrier);
        let id = client.begin(LENGTH, 10_000, &[]);
        client.await_credit(id);
        client.send(Kind::Data, 0, 0, id, &[1; 1000]);
        let error = client.error_of(id);
        assert_eq!(error.code, ErrorCode::Stalled);
        assert!(error.message.contains("1000 of 10000"), "{error}");
        eventually("its memory is back", || daemon.handle.pool().held == 0);
        // What comes late is ignored, and the connection goes on.
        client.send(Kind::Data, 0, 0, id, &[1; 1000]);
        client.echo(2000);
        witness.was_served();
    }
}

/// Bytes that must move within a time-out in which a client that sends one at a time cannot move so many.
fn trickling() -> Options {
    Options {
        stall_timeout: BEARABLE,
        stall_bytes: 200_000,
        ..options()
    }
}

/// Has a client do something again and again, with pauses, until its stream ends with an error.
fn trickle(client: &mut Client, id: u64, mut step: impl FnMut(&mut Client)) -> ErrorBody {
    for _ in 0..100_000 {
        step(client);
        if let Some(frame) = client.poll_of(id, Kind::Error) {
            return frame.error();
        }
        let _ = Bell::new(&client.socket).wait(Some(Duration::from_millis(1)));
    }
    panic!("a trickle goes on for ever");
}

#[test]
fn an_upload_that_trickles_does_not_hold_the_budget() {
    let daemon = Daemon::start(trickling());
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        let ids: Vec<u64> = (0..4)
            .map(|_| {
                let id = client.begin(LENGTH, 1 << 20, &[]);
                client.await_credit(id);
                id
            })
            .collect();
        // Somebody else waits for memory, which this one holds all of.
        let mut other = Client::new(&daemon, carrier);
        let waiting = other.begin(LENGTH, 1 << 20, &[]);
        let error = trickle(&mut client, ids[3], |client| {
            for id in &ids {
                client.send(Kind::Data, 0, 0, *id, b"x");
            }
        });
        assert_eq!(error.code, ErrorCode::Stalled);
        assert!(error.message.contains("fewer than 200000"), "{error}");
        other.await_credit(waiting);
        other.send(Kind::Cancel, 0, 0, waiting, &[]);
        client.echo(100);
    }
}

#[test]
fn an_answer_that_is_read_in_a_trickle_does_not_hold_the_budget() {
    let daemon = Daemon::start(trickling());
    for carrier in Carrier::ALL {
        let mut client = Client::with_window(&daemon, carrier, 1);
        let body = pattern(3, 1 << 20);
        let id = client.upload(ECHO, &body);
        let error = trickle(&mut client, id, |client| client.credit(id, 1));
        assert_eq!(error.code, ErrorCode::Stalled);
        eventually("its memory is back", || daemon.handle.pool().held == 0);
        client.echo(1);
    }
}

#[test]
fn an_answer_without_credit_does_not_hold_memory_for_ever() {
    let daemon = Daemon::start(Options {
        stall_timeout: BEARABLE,
        ..stalling()
    });
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::with_window(&daemon, carrier, 1);
        // The whole budget, in answers of which one byte each may be sent.
        let body = pattern(3, 1 << 20);
        let ids: Vec<u64> = (0..4).map(|_| client.upload(ECHO, &body)).collect();
        for id in ids {
            let first = client.next_of(id);
            assert_eq!((first.kind, first.payload.len()), (Kind::Data, 9));
            assert_eq!(client.error_of(id).code, ErrorCode::Stalled);
        }
        eventually("its memory is back", || daemon.handle.pool().held == 0);
        // Somebody else can have it.
        let mut other = Client::new(&daemon, carrier);
        let id = other.upload(LENGTH, &body);
        assert_eq!(other.answer(id), b"1048576");
        // And so can the first.
        let id = client.open(ECHO, b"x");
        assert_eq!(client.answer(id), b"x");
        witness.was_served();
    }
}

#[test]
fn a_stream_whose_reader_gives_no_credit_is_cut_and_its_task_with_it() {
    struct Running(Arc<AtomicU64>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let running = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&running);
    let options = Options {
        stall_timeout: BEARABLE,
        ..stalling()
    };
    let daemon = Daemon::with(options, move |server| {
        server.handle_async(MessageType(OWN), move |_, mut responder: Responder| {
            count.fetch_add(1, Ordering::SeqCst);
            let running = Running(Arc::clone(&count));
            async move {
                let _running = running;
                while responder.send(&[7; 1000]).await.is_ok() {}
            }
        });
    });
    for carrier in Carrier::ALL {
        let witness = Witness::new(&daemon, carrier);
        let mut client = Client::with_window(&daemon, carrier, 1500);
        // Without a deadline to speak of, so that nothing else ends it.
        let patient = OpenPrefix {
            deadline_ms: u32::MAX,
            ..prefix(0)
        };
        let ids: Vec<u64> = (0..3)
            .map(|_| client.open_with(OWN, &patient, b""))
            .collect();
        for id in ids {
            assert_eq!(client.next_of(id).kind, Kind::Accepted);
            // What the window allows, and not a byte more.
            for bytes in [1000, 500] {
                let piece = client.next_of(id);
                assert_eq!(piece.kind, Kind::Data);
                let prefix = if bytes == 500 { 8 } else { 0 };
                assert_eq!(piece.payload.len(), bytes + prefix);
            }
            assert_eq!(client.error_of(id).code, ErrorCode::Stalled);
        }
        eventually("their tasks are gone", || {
            running.load(Ordering::SeqCst) == 0
        });
        // Who gives credit gets all of it.
        let id = client.open(STREAM, &[20, 2]);
        assert_eq!(client.items(id).len(), 20);
        witness.was_served();
    }
}

#[test]
fn a_reader_that_is_late_with_its_credit_is_heard_when_it_gives_it() {
    // So small that no answer fits: they are held beside the budget.
    let mut options = options();
    options.pool.budget = 1 << 20;
    options.limits.max_message_size = 1 << 20;
    let daemon = Daemon::start(options);
    for carrier in Carrier::ALL {
        let mut holder = Client::new(&daemon, carrier);
        let held = holder.begin(LENGTH, 1 << 20, &[]);
        holder.await_credit(held);
        let mut client = Client::with_window(&daemon, carrier, 100);
        let ids: Vec<u64> = (0..4).map(|_| client.open(LARGE, b"20000")).collect();
        // Over the bound: refused, but read.
        let refused = client.open(LARGE, b"20000");
        assert_eq!(client.error_of(refused).code, ErrorCode::Overloaded);
        // More is held than may be, and yet its credit is read.
        for id in ids {
            match client.next_of(id) {
                frame if frame.kind == Kind::Error => {
                    assert_eq!(frame.error().code, ErrorCode::Overloaded);
                }
                frame => {
                    let mut answer = frame.payload[8..].to_vec();
                    client.credit(id, 20_000);
                    while answer.len() < 20_000 {
                        answer.extend_from_slice(&client.next_of(id).payload);
                    }
                    assert!(answer == pattern(1, 20_000));
                }
            }
        }
        client.echo(50);
        holder.send_rest(held, &vec![0; 1 << 20], 0);
        assert_eq!(holder.answer(held), b"1048576");
    }
}

#[test]
fn a_long_pipeline_is_answered_to_the_last_byte() {
    // Answers that a plain socket does not take at once must follow when it does, though nobody asks again.
    let mut options = options();
    options.limits.max_streams = 2000;
    options.limits.inline_window = 8 << 20;
    let daemon = Daemon::start(options);
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        // Whatever the kernel's buffer holds, one of these is just over it, by less than the daemon's own.
        for count in (20..440).step_by(30) {
            let len = 1500;
            let first = client.id() + 1;
            let frames: Vec<u8> = (0..count)
                .flat_map(|_| {
                    let id = client.id();
                    client
                        .codec
                        .encode(Kind::Open, FIN, ECHO, id, &pattern(id, len))
                })
                .collect();
            // All are sent before any is read, as far as they go.
            for frame in frames.chunks(24 + len) {
                assert!(client.bytes(frame));
            }
            for id in first..first + count {
                assert!(client.answer(id) == pattern(id, len));
            }
        }
    }
}

/// Where a segment says that the daemon sleeps until it is rung for: the request ring's data-wanted flag.
const DATA_WANTED: usize = 0x300;

#[test]
fn one_that_talks_now_and_then_keeps_nobody_waiting_who_rings() {
    let daemon = Daemon::start(Options {
        spin: Duration::from_micros(500),
        ..options()
    });
    let mut seldom = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let mut sleeper = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let (stop, said) = (AtomicBool::new(false), AtomicU64::new(0));
    let meanwhile = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Always in time for the reactor to find it while it spins.
            for _ in 0..1_000_000 {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                seldom.echo(10);
                said.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let meanwhile = (0..5).map(|_| {
            let wanted = sleeper.mapping();
            eventually("the daemon waits for the bell", || {
                wanted.atomic_u32(DATA_WANTED).load(Ordering::SeqCst) == 1
            });
            let before = said.load(Ordering::SeqCst);
            sleeper.echo(10);
            said.load(Ordering::SeqCst) - before
        });
        let least = meanwhile.min();
        stop.store(true, Ordering::SeqCst);
        least
    });
    // The sockets are looked at whenever the reactor has waited for as long as it spins at most.
    assert!(
        meanwhile < Some(32),
        "{meanwhile:?} of the other one's came first"
    );
}

#[test]
fn prefix_bytes_do_not_count_against_the_windows() {
    let daemon = Daemon::start(options());
    for carrier in Carrier::ALL {
        let mut client = Client::new(&daemon, carrier);
        // The inline window to its last byte, and a prefix on each.
        let body = pattern(1, 2048);
        for _ in 0..16 {
            client.open_with(ECHO, &prefix(body.len()), &body);
        }
        for id in 1..=16 {
            assert!(client.answer(id) == body);
        }
    }
}
