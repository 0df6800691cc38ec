//! In steady state a message costs no heap allocation, on any thread: an echo, a message in pieces, a token of a
//! stream.
//!
//! The only test of its binary, because the counter counts every thread.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::alloc::System;
use std::time::Instant;

use lapce_ai_proto::{Control, FIN, Features, Frame, Kind, MessageType, PREFIX};
use lapce_ai_server::Responder;
use lapce_ai_transport::{ConnectOptions, Connection, TransportError, connect, flush};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{Carrier, Daemon, OWN, PATIENCE};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// `window` echoes at a time, `rounds` times. Allocates nothing itself.
fn echo(
    connection: &mut Connection,
    scratch: &mut [u8],
    body: &[u8],
    id: &mut u64,
    window: u64,
    rounds: u64,
) {
    for _ in 0..rounds {
        for _ in 0..window {
            *id += 1;
            let (echo, id) = (MessageType::ECHO.0, *id);
            // The room of the frames before it may come back a moment after their answers.
            while !connection
                .writer
                .frame(Kind::Open, FIN, echo, id, &[], body)
                .unwrap()
            {
                flush(&mut connection.reader, &mut connection.writer).unwrap();
            }
        }
        let mut left = window;
        let until = Instant::now() + PATIENCE;
        while left > 0 {
            flush(&mut connection.reader, &mut connection.writer).unwrap();
            connection
                .reader
                .read(scratch, |frame| {
                    assert!(frame.kind == Kind::End && frame.payload == body);
                    left -= 1;
                    Ok::<_, TransportError>(())
                })
                .unwrap();
            assert!(Instant::now() < until, "no answer came");
            std::thread::yield_now();
        }
    }
    flush(&mut connection.reader, &mut connection.writer).unwrap();
}

/// Messages in pieces: OPEN with a prefix, credit, DATA, END, and the answer in pieces.
fn fragmented(
    connection: &mut Connection,
    scratch: &mut [u8],
    body: &[u8],
    id: &mut u64,
    rounds: u64,
) {
    for _ in 0..rounds {
        *id += 1;
        let prefix = support::prefix(body.len()).encode();
        let sent =
            connection
                .writer
                .frame(Kind::Open, PREFIX, MessageType::ECHO.0, *id, &prefix, &[]);
        assert!(sent.unwrap());
        await_frames(connection, scratch, |frame| frame.kind == Kind::Credit);
        let mut at = 0;
        while at < body.len() {
            let piece = &body[at..body.len().min(at + 4000)];
            let last = at + piece.len() == body.len();
            let kind = if last { Kind::End } else { Kind::Data };
            if connection
                .writer
                .frame(kind, 0, 0, *id, &[], piece)
                .unwrap()
            {
                at += piece.len();
            }
            flush(&mut connection.reader, &mut connection.writer).unwrap();
        }
        let mut come = 0;
        await_frames(connection, scratch, |frame| {
            let prefix = if frame.has(PREFIX) { 8 } else { 0 };
            come += frame.payload.len() - prefix;
            frame.kind == Kind::End
        });
        assert_eq!(come, body.len());
    }
}

/// Items of one stream, as tokens come.
fn items(connection: &mut Connection, scratch: &mut [u8], id: u64, count: u64) {
    let mut left = count;
    while left > 0 {
        let mut bytes = 0;
        await_frames(connection, scratch, |frame| {
            if frame.kind == Kind::Data {
                bytes += frame.payload.len() as u32;
                left = left.saturating_sub(1);
            }
            true
        });
        if bytes > 0 {
            let credit = Control::Credit(id, bytes);
            while !connection.writer.control(&credit).unwrap() {
                flush(&mut connection.reader, &mut connection.writer).unwrap();
            }
        }
    }
}

/// Reads until a frame was the one.
fn await_frames(
    connection: &mut Connection,
    scratch: &mut [u8],
    mut is_it: impl FnMut(Frame<'_>) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    let mut found = false;
    while !found {
        flush(&mut connection.reader, &mut connection.writer).unwrap();
        connection
            .reader
            .read(scratch, |frame| {
                assert_ne!(frame.kind, Kind::Error);
                found |= is_it(frame);
                Ok::<_, TransportError>(())
            })
            .unwrap();
        assert!(Instant::now() < until, "no answer came");
        std::thread::yield_now();
    }
}

/// How many allocations all threads did meanwhile.
fn allocations(work: impl FnOnce()) -> usize {
    let counted = Region::new(COUNTING);
    work();
    let change = counted.change();
    change.allocations + change.reallocations
}

/// That thousands of messages come to allocate nothing. Threads that still start and tables that grow to their size
/// may allocate in the first rounds; what a message costs, it costs in each.
fn assert_steady(what: &str, carrier: Carrier, mut work: impl FnMut()) {
    let mut counts = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        counts.push(allocations(&mut work));
        if counts.last() == Some(&0) {
            return;
        }
    }
    panic!("{what} over {carrier:?} allocate: {counts:?}");
}

const ROUNDS: usize = 10;

#[test]
fn a_message_allocates_nothing() {
    let daemon = Daemon::with(support::options(), |server| {
        server.handle_async(MessageType(OWN), |_, mut responder: Responder| async move {
            while responder.send(&[1; 50]).await.is_ok() {}
        });
    });
    for carrier in Carrier::ALL {
        let options = ConnectOptions {
            name: "counted".to_owned(),
            instance: 1,
            features: Features {
                shared_memory: carrier.shared_memory,
                crc: carrier.crc,
            },
            response_window: 1 << 16,
            earlier: 0,
            timeout: PATIENCE,
            server_uids: Vec::new(),
        };
        let (mut connection, _) = connect(&daemon.path, &options).unwrap();
        let mut scratch = vec![0; connection.reader.scratch_len()];
        // The counter sees what the reactor's thread does.
        let seen = allocations(|| {
            let ty = support::LARGE;
            let sent = connection
                .writer
                .frame(Kind::Open, FIN, ty, 1, &[], b"1000");
            assert!(sent.unwrap());
            await_frames(&mut connection, &mut scratch, |_| true);
        });
        assert!(seen > 0);
        let mut id = 1;
        for (len, window) in [(64, 1), (1024, 1), (1024, 8), (4096, 2)] {
            let body = vec![7; len];
            let rounds = 10_000 / window;
            assert_steady("echoes", carrier, || {
                echo(
                    &mut connection,
                    &mut scratch,
                    &body,
                    &mut id,
                    window,
                    rounds,
                );
            });
        }
        let body = vec![8; 20_000];
        assert_steady("messages in pieces", carrier, || {
            fragmented(&mut connection, &mut scratch, &body, &mut id, 300);
        });
        id += 1;
        let sent = connection.writer.frame(Kind::Open, FIN, OWN, id, &[], b"");
        assert!(sent.unwrap());
        assert_steady("tokens", carrier, || {
            items(&mut connection, &mut scratch, id, 5_000);
        });
    }
}
