//! Requests that come again because their connection was lost: none is run twice in one life of the daemon, and nobody
//! gets what belongs to another.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use lapce_ai_proto::{ErrorBody, ErrorCode, FIN, Kind, MessageType, OpenPrefix};
use lapce_ai_server::{Options, RepeatOptions, Responder, Server};
use support::{Carrier, Client, Daemon, eventually, options, pattern, prefix};
use tokio::sync::Semaphore;

/// A sync handler that counts its runs and answers with their number.
const COUNT: u16 = 0x8020;
/// The same from a task, and only when there is a permit.
const GATED: u16 = 0x8021;
/// An item for each permit, each with its number; ten of them.
const ITEMS: u16 = 0x8022;
/// Fails when there is a permit.
const FAILS: u16 = 0x8023;

const CARRIERS: [Carrier; 2] = [Carrier::SHARED_MEMORY, Carrier::SOCKET];
/// The client that all of these tests are about.
const ME: u128 = 0x1234;

/// What the handlers did.
struct Runs {
    count: Arc<AtomicU64>,
    gate: Arc<Semaphore>,
    /// Tells of futures that were dropped.
    dropped: mpsc::Receiver<()>,
}

struct TellsOfItsDrop(mpsc::Sender<()>);

impl Drop for TellsOfItsDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Runs {
    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// A daemon whose requests run on for as long as a test may take.
fn patient() -> (Daemon, Runs) {
    daemon(Options {
        repeats: RepeatOptions {
            grace: support::PATIENCE,
            ..RepeatOptions::default()
        },
        ..options()
    })
}

fn daemon(options: Options) -> (Daemon, Runs) {
    let count = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (tell, dropped) = mpsc::channel();
    let runs = Runs {
        count: Arc::clone(&count),
        gate: Arc::clone(&gate),
        dropped,
    };
    let daemon = Daemon::with(options, |server: &mut Server| {
        let counted = Arc::clone(&count);
        server.handle(MessageType(COUNT), move |_, reply| {
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            reply.send(number.to_string().as_bytes());
        });
        let asynchronous = |ty| {
            let (count, gate, tell) = (Arc::clone(&count), Arc::clone(&gate), tell.clone());
            move |_, mut responder: Responder| {
                let guard = TellsOfItsDrop(tell.clone());
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let gate = Arc::clone(&gate);
                async move {
                    let _guard = guard;
                    if ty == ITEMS {
                        for item in 0..10_u8 {
                            gate.acquire().await.unwrap().forget();
                            if responder.send(&[item; 3000]).await.is_err() {
                                return;
                            }
                        }
                        let _ = responder.end().await;
                        return;
                    }
                    gate.acquire().await.unwrap().forget();
                    if ty == FAILS {
                        responder.fail(ErrorBody::new(ErrorCode::RateLimited, "slowly"));
                    } else {
                        let _ = responder.answer(number.to_string().as_bytes()).await;
                    }
                }
            }
        };
        for ty in [GATED, ITEMS, FAILS] {
            server.handle_async(MessageType(ty), asynchronous(ty));
        }
    });
    (daemon, runs)
}

/// The prefix of a request that comes again.
fn again(sequence: u64) -> OpenPrefix {
    OpenPrefix {
        sequence,
        ..prefix(0)
    }
}

fn await_accepted(client: &mut Client, id: u64) {
    assert_eq!(client.next_of(id).kind, Kind::Accepted);
}

fn assert_unknown(client: &mut Client, id: u64) {
    assert_eq!(client.error_of(id).code, ErrorCode::OutcomeUnknown);
}

#[test]
fn what_was_run_and_answered_is_not_run_again() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let id = client.open(COUNT, b"");
        eventually("it runs", || runs.count() == 1);
        // It hangs up with the answer unread, and comes at once: the daemon need not have seen it yet.
        drop(client);
        let mut client = Client::again(&daemon, carrier, ME, id);
        let repeated = client.open_with(COUNT, &again(id), b"");
        assert_unknown(&mut client, repeated);
        assert_eq!(runs.count(), 1);
        // Nor in pieces.
        let total = OpenPrefix {
            total_length: 5000,
            ..again(id)
        };
        let repeated = client.id();
        client.send(
            Kind::Open,
            lapce_ai_proto::PREFIX,
            COUNT,
            repeated,
            &total.encode(),
        );
        assert_unknown(&mut client, repeated);
        // What does no harm is run again.
        let harmless = OpenPrefix {
            repeatable: true,
            ..again(id)
        };
        let repeated = client.open_with(COUNT, &harmless, b"");
        assert_eq!(client.answer(repeated), b"2");
        assert_eq!(daemon.handle.counters().repeated, 3);
    }
}

#[test]
fn what_never_arrived_is_run_once() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let id = client.open(COUNT, b"");
        assert_eq!(client.answer(id), b"1");
        drop(client);
        // The next one was never sent, for all that the client knows.
        let lost = id + 1;
        let mut client = Client::again(&daemon, carrier, ME, lost);
        let repeated = client.open_with(COUNT, &again(lost), b"");
        assert_eq!(client.answer(repeated), b"2");
        drop(client);
        for last in [repeated, repeated + 1] {
            let mut client = Client::again(&daemon, carrier, ME, last);
            let repeated = client.open_with(COUNT, &again(lost), b"");
            assert_unknown(&mut client, repeated);
        }
        assert_eq!(runs.count(), 2);
    }
}

#[test]
fn what_runs_is_fetched() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let first = client.open(GATED, b"");
        await_accepted(&mut client, first);
        let mut last = first;
        // Lost several times; each time it is asked for by the id that it had at first.
        for _ in 0..3 {
            drop(client);
            client = Client::again(&daemon, carrier, ME, last);
            last = client.open_with(GATED, &again(first), b"");
            await_accepted(&mut client, last);
        }
        runs.gate.add_permits(1);
        assert_eq!(client.answer(last), b"1");
        assert_eq!(runs.count(), 1);
        assert_eq!(daemon.handle.counters().fetched, 3);
        // Its answer was given: it is not given again.
        let once_more = client.open_with(GATED, &again(first), b"");
        assert_unknown(&mut client, once_more);
        drop(client);
        daemon.await_quiet(0);
        runs.dropped.recv_timeout(support::PATIENCE).unwrap();
    }
}

#[test]
fn an_answer_that_was_ready_while_nobody_was_there_is_fetched() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let (right, wrong) = (client.open(GATED, b""), client.open(FAILS, b""));
        await_accepted(&mut client, right);
        await_accepted(&mut client, wrong);
        drop(client);
        daemon.await_quiet(0);
        runs.gate.add_permits(2);
        let mut client = Client::again(&daemon, carrier, ME, wrong);
        let fetched = client.open_with(GATED, &again(right), b"");
        assert_eq!(client.answer(fetched).len(), 1);
        let fetched = client.open_with(FAILS, &again(wrong), b"");
        assert_eq!(client.error_of(fetched).code, ErrorCode::RateLimited);
        assert_eq!(runs.count(), 2);
    }
}

#[test]
fn a_stream_goes_on_behind_what_its_client_has() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let first = client.open(ITEMS, b"");
        let mut id = first;
        for item in 0..10_u8 {
            runs.gate.add_permits(1);
            let frame = loop {
                let frame = client.next_of(id);
                if frame.kind != Kind::Accepted {
                    break frame;
                }
            };
            assert_eq!((frame.kind, frame.payload), (Kind::Data, vec![item; 3000]));
            if item % 4 == 2 {
                drop(client);
                client = Client::again(&daemon, carrier, ME, id);
                let behind = OpenPrefix {
                    received: u32::from(item) + 1,
                    ..again(first)
                };
                id = client.open_with(ITEMS, &behind, b"");
                // Until then an item could still be sent to the client that is gone, and would be lost.
                await_accepted(&mut client, id);
            }
        }
        let end = client.next_of(id);
        assert_eq!((end.kind, end.flags & FIN), (Kind::End, 0));
        assert_eq!(runs.count(), 1);
    }
}

#[test]
fn a_stream_of_which_something_was_lost_is_not_gone_on_with() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let id = client.open(ITEMS, b"");
        await_accepted(&mut client, id);
        runs.gate.add_permits(2);
        for _ in 0..2 {
            assert_eq!(client.next_of(id).kind, Kind::Data);
        }
        drop(client);
        let mut client = Client::again(&daemon, carrier, ME, id);
        let one = OpenPrefix {
            received: 1,
            ..again(id)
        };
        let repeated = client.open_with(ITEMS, &one, b"");
        assert_unknown(&mut client, repeated);
        runs.dropped
            .recv_timeout(support::PATIENCE)
            .expect("it does not run on");
        // A repeatable one begins anew instead.
        let id = client.open(ITEMS, b"");
        runs.gate.add_permits(1);
        assert_eq!(client.next_of(id).kind, Kind::Accepted);
        assert_eq!(client.next_of(id).kind, Kind::Data);
        drop(client);
        let mut client = Client::again(&daemon, carrier, ME, id);
        let anew = OpenPrefix {
            repeatable: true,
            ..again(id)
        };
        let repeated = client.open_with(ITEMS, &anew, b"");
        await_accepted(&mut client, repeated);
        // The other has been told to end, and takes no permit any more when it has.
        runs.dropped
            .recv_timeout(support::PATIENCE)
            .expect("it does not run on");
        runs.gate.add_permits(10);
        assert_eq!(client.items(repeated).len(), 10);
        assert_eq!(runs.count(), 3);
    }
}

#[test]
fn what_did_not_wholly_arrive_is_run_when_it_comes_again() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let body = pattern(1, 20_000);
        let id = client.begin(COUNT, body.len(), &[]);
        client.await_credit(id);
        client.send(Kind::Data, 0, 0, id, &body[..4000]);
        drop(client);
        let mut client = Client::again(&daemon, carrier, ME, id);
        let repeated = client.open_with(COUNT, &again(id), b"");
        assert_eq!(client.answer(repeated), b"1");
        let repeated = client.open_with(COUNT, &again(id), b"");
        assert_unknown(&mut client, repeated);
        assert_eq!(runs.count(), 1);
        drop(client);
        daemon.await_quiet(0);
    }
}

#[test]
fn strangers_get_nothing_and_the_owner_still_does() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let id = client.open(GATED, b"");
        await_accepted(&mut client, id);
        drop(client);
        for stranger in [0, ME + 1, ME << 64, u128::MAX] {
            let mut client = Client::again(&daemon, carrier, stranger, 1000);
            for sequence in [id, id + 1, 5, u64::MAX] {
                let repeated = client.open_with(GATED, &again(sequence), b"");
                assert_unknown(&mut client, repeated);
            }
        }
        let mut client = Client::again(&daemon, carrier, ME, id);
        let fetched = client.open_with(GATED, &again(id), b"");
        await_accepted(&mut client, fetched);
        runs.gate.add_permits(1);
        assert_eq!(client.answer(fetched), b"1");
        assert_eq!(runs.count(), 1);
    }
}

/// Between a client and the daemon may be something that is late to say that the connection is lost.
#[test]
fn who_comes_again_lets_go_of_what_stands() {
    for carrier in CARRIERS {
        let (daemon, runs) = patient();
        let mut first = Client::again(&daemon, carrier, ME, 0);
        let id = first.open(GATED, b"");
        await_accepted(&mut first, id);
        let mut second = Client::again(&daemon, carrier, ME, id);
        let repeated = second.open_with(GATED, &again(id), b"");
        await_accepted(&mut second, repeated);
        // What comes on the first one now is not taken, and so not run twice.
        let late = first.id();
        let frame = first.codec.encode(Kind::Open, FIN, COUNT, late, b"");
        first.bytes(&frame);
        first.drain();
        runs.gate.add_permits(1);
        assert_eq!(second.answer(repeated), b"1");
        assert_eq!(runs.count(), 1);
        drop(second);
        daemon.await_quiet(0);
    }
}

#[test]
fn what_nobody_fetches_ends() {
    for carrier in CARRIERS {
        let (daemon, runs) = daemon(Options {
            repeats: RepeatOptions {
                grace: Duration::from_millis(50),
                ..RepeatOptions::default()
            },
            ..options()
        });
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let ids = [client.open(GATED, b""), client.open(ITEMS, b"")];
        for id in ids {
            await_accepted(&mut client, id);
        }
        eventually("both have begun", || runs.count() == 2);
        drop(client);
        for _ in ids {
            runs.dropped.recv_timeout(support::PATIENCE).unwrap();
        }
        eventually("they are counted", || {
            daemon.handle.counters().cancelled == 2
        });
        let mut client = Client::again(&daemon, carrier, ME, ids[1]);
        for id in ids {
            let repeated = client.open_with(GATED, &again(id), b"");
            assert_unknown(&mut client, repeated);
        }
        assert_eq!(runs.count(), 2);
    }
}

#[test]
fn so_many_run_on_and_no_more() {
    let (daemon, runs) = daemon(Options {
        repeats: RepeatOptions {
            running: 3,
            grace: support::PATIENCE,
            ..RepeatOptions::default()
        },
        ..options()
    });
    let mut client = Client::again(&daemon, Carrier::SHARED_MEMORY, ME, 0);
    let ids: Vec<u64> = (0..8).map(|_| client.open(GATED, b"")).collect();
    for id in &ids {
        await_accepted(&mut client, *id);
    }
    eventually("all have begun", || runs.count() == 8);
    drop(client);
    for _ in 0..5 {
        runs.dropped.recv_timeout(support::PATIENCE).unwrap();
    }
    let mut client = Client::again(&daemon, Carrier::SHARED_MEMORY, ME, ids[7]);
    runs.gate.add_permits(3);
    let mut fetched = 0;
    for id in ids {
        let repeated = client.open_with(GATED, &again(id), b"");
        match client.next_of(repeated).kind {
            Kind::Accepted => {
                client.answer(repeated);
                fetched += 1;
            }
            Kind::End => fetched += 1,
            kind => assert_eq!(kind, Kind::Error),
        }
    }
    assert_eq!((fetched, runs.count()), (3, 8));
}
