//! One daemon follows another: the second knows what the first has taken, nobody is lost between the two, and a first one that
//! is not followed goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lapce_ai_client::{BlockingClient, RequestOptions};
use lapce_ai_proto::{ErrorCode, FIN, GoAway, Kind, MessageType, OpenPrefix};
use lapce_ai_server::{Options, RepeatOptions, Responder, Resting, RetireError, Server};
use support::{Carrier, Client, Daemon, PATIENCE, options, prefix};
use tokio::sync::Semaphore;

/// Counts its runs, in both daemons together, and answers with their number.
const COUNT: u16 = 0x8020;
/// The same from a task, and only when there is a permit.
const GATED: u16 = 0x8021;

const CARRIERS: [Carrier; 2] = [Carrier::SHARED_MEMORY, Carrier::SOCKET];
/// The client that all of these tests are about.
const ME: u128 = 0x1234;

#[derive(Clone)]
struct Runs {
    count: Arc<AtomicU64>,
    gate: Arc<Semaphore>,
}

impl Runs {
    fn new() -> Self {
        Self {
            count: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// ACCEPTED is said a moment before the handler is called.
    fn await_count(&self, count: u64) {
        support::eventually("it runs", || self.count() == count);
    }

    fn handlers(&self) -> impl FnOnce(&mut Server) + use<> {
        let Self { count, gate } = self.clone();
        move |server| {
            let counted = Arc::clone(&count);
            server.handle(MessageType(COUNT), move |_, reply| {
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                reply.send(number.to_string().as_bytes());
            });
            server.handle_async(MessageType(GATED), move |_, responder: Responder| {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await.unwrap().forget();
                    let _ = responder.answer(number.to_string().as_bytes()).await;
                }
            });
        }
    }
}

/// The prefix of a request that comes again.
fn again(sequence: u64) -> OpenPrefix {
    OpenPrefix {
        sequence,
        ..prefix(0)
    }
}

fn assert_unknown(client: &mut Client, sequence: u64) {
    let id = client.open_with(COUNT, &again(sequence), b"");
    assert_eq!(client.error_of(id).code, ErrorCode::OutcomeUnknown);
}

fn goaway(client: &mut Client) -> GoAway {
    let frame = client.next_of(0);
    assert_eq!(frame.kind, Kind::GoAway, "{frame:?}");
    GoAway::decode(&frame.payload).unwrap()
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

#[test]
fn the_next_daemon_knows_what_was_taken_of_lost_connections() {
    for carrier in CARRIERS {
        let runs = Runs::new();
        let first = Daemon::with(options(), runs.handlers());
        let mut client = Client::again(&first, carrier, ME, 0);
        let (instance, connection) = (client.welcome.instance, client.welcome.connection);
        let id = client.open(COUNT, b"");
        assert_eq!(client.answer(id), b"1");
        drop(client);
        first.await_quiet(0);
        let second = first.followed(options(), runs.handlers());
        first.await_stop();
        let mut client = Client::again(&second, carrier, ME, id + 1);
        assert_eq!(client.welcome.instance, instance, "the same life");
        assert!(client.welcome.connection > connection);
        assert_unknown(&mut client, id);
        // What never came is run, once.
        let run = client.open_with(COUNT, &again(id + 1), b"");
        assert_eq!(client.answer(run), b"2");
        assert_unknown(&mut client, id + 1);
        // Nobody else has anything of it.
        let mut stranger = Client::again(&second, carrier, ME + 1, id + 1);
        assert_unknown(&mut stranger, id + 1);
        assert_eq!(runs.count(), 2);
    }
}

#[test]
fn what_runs_ends_at_the_first_and_is_not_run_at_the_second() {
    for carrier in CARRIERS {
        let runs = Runs::new();
        let first = Daemon::with(options(), runs.handlers());
        let mut old = Client::again(&first, carrier, ME, 0);
        let answered = old.open(COUNT, b"");
        assert_eq!(old.answer(answered), b"1");
        let running = old.open(GATED, b"");
        assert_eq!(old.next_of(running).kind, Kind::Accepted);
        runs.await_count(2);
        let second = first.followed(options(), runs.handlers());
        let said = goaway(&mut old);
        assert_eq!(
            (said.last_id, said.code),
            (running, ErrorCode::ServerRestarting)
        );
        // What comes too late is sent back.
        let late = old.open(COUNT, b"");
        assert_eq!(old.error_of(late).code, ErrorCode::ServerRestarting);
        let mut new = Client::again(&second, carrier, ME, late);
        for taken in [answered, running] {
            assert_unknown(&mut new, taken);
        }
        let run = new.open_with(COUNT, &again(late), b"");
        assert_eq!(new.answer(run), b"3");
        assert_unknown(&mut new, late);
        // And the one that runs has all the time that it needs.
        runs.gate.add_permits(1);
        assert_eq!(old.answer(running), b"2");
        first.await_stop();
        assert_eq!(runs.count(), 3);
        assert!(second.path.exists(), "the name is the second one's");
        let fresh = new.open(COUNT, b"");
        assert_eq!(new.answer(fresh), b"4");
    }
}

#[test]
fn those_who_come_between_the_two_wait_and_are_served() {
    let runs = Runs::new();
    let first = Daemon::with(options(), runs.handlers());
    // Most of these are in the middle of their handshakes, some may be in the backlog.
    let halfway: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(&first.path).unwrap())
        .collect();
    let second = first.followed(options(), runs.handlers());
    let (mut sent_on, mut served) = (0, 0);
    for socket in halfway {
        let mut client = Client::on(socket, Carrier::SHARED_MEMORY);
        let id = client.id();
        let open = client.codec.encode(Kind::Open, FIN, COUNT, id, b"");
        // One that is sent on is hung up on at once, since nothing runs for it.
        client.bytes(&open);
        let frame = client.next().expect("the daemon has said something");
        if frame.kind == Kind::GoAway {
            assert_eq!(GoAway::decode(&frame.payload).unwrap().last_id, 0);
            sent_on += 1;
        } else {
            assert_eq!((frame.kind, frame.id), (Kind::End, id));
            served += 1;
        }
    }
    assert_eq!((sent_on + served, runs.count()), (20, served));
    first.await_stop();
    let mut client = Client::new(&second, Carrier::SHARED_MEMORY);
    let id = client.open(COUNT, b"");
    assert_eq!(client.answer(id), (served + 1).to_string().as_bytes());
}

#[test]
fn a_server_that_nobody_follows_goes_on() {
    for carrier in CARRIERS {
        let runs = Runs::new();
        let daemon = Daemon::with(options(), runs.handlers());
        let mut old = Client::again(&daemon, carrier, ME, 0);
        let running = old.open(GATED, b"");
        assert_eq!(old.next_of(running).kind, Kind::Accepted);
        runs.await_count(1);
        for _ in 0..3 {
            let drain = Duration::from_secs(1 << 20);
            let (legacy, retiring) = daemon.handle.retire(drain, false, soon()).unwrap();
            assert_eq!(legacy.instance, old.welcome.instance);
            let busy = daemon.handle.retire(drain, false, soon()).unwrap_err();
            assert_eq!(busy, RetireError::Busy);
            let mut waits = UnixStream::connect(&daemon.path).unwrap();
            waits
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            let heard = std::io::Read::read(&mut waits, &mut [0]);
            assert!(heard.is_err(), "nobody answers at the moment");
            drop(retiring);
            let mut client = Client::again(&daemon, carrier, ME + 1, 0);
            let id = client.open(COUNT, b"");
            assert!(!client.answer(id).is_empty());
        }
        // GOAWAY was said, once; what runs goes on, here or elsewhere.
        assert_eq!(goaway(&mut old).last_id, running);
        let late = old.open(COUNT, b"");
        assert_eq!(old.error_of(late).code, ErrorCode::ServerRestarting);
        let mut new = Client::again(&daemon, carrier, ME, late);
        assert_unknown(&mut new, running);
        let before = runs.count();
        let run = new.open_with(COUNT, &again(late), b"");
        assert_eq!(new.answer(run), (before + 1).to_string().as_bytes());
        runs.gate.add_permits(1);
        assert_eq!(old.answer(running), b"1");
        let closed = old.next();
        assert!(closed.is_none(), "nothing runs on it: {closed:?}");
    }
}

#[test]
fn one_that_never_served_takes_no_name_away() {
    let runs = Runs::new();
    let first = Daemon::with(options(), runs.handlers());
    let (next, retiring) = first.nearly_followed(options());
    next.handle.shutdown(Duration::ZERO);
    next.await_stop();
    assert!(first.path.exists());
    drop(retiring);
    let mut client = Client::new(&first, Carrier::SHARED_MEMORY);
    let id = client.open(COUNT, b"");
    assert_eq!(client.answer(id), b"1");
}

#[test]
fn a_server_that_is_stopped_while_it_retires_leaves_nothing_behind() {
    let daemon = Daemon::start(options());
    let (_, retiring) = daemon
        .handle
        .retire(Duration::from_secs(1 << 20), false, soon())
        .unwrap();
    assert!(!retiring.is_stopping());
    daemon.handle.shutdown(Duration::ZERO);
    assert!(retiring.is_stopping());
    drop(retiring);
    daemon.await_stop();
    assert!(!daemon.path.exists());
    let late = daemon
        .handle
        .retire(Duration::ZERO, false, soon())
        .unwrap_err();
    assert_eq!(late, RetireError::Stopping);
}

/// How often each request was run, by its body.
type Bodies = Arc<Mutex<HashMap<Vec<u8>, u32>>>;

/// Answers with the body, and notes that it ran.
const NOTE: MessageType = MessageType(0x8022);
/// The same in three items, a moment between them.
const NOTE_SLOWLY: MessageType = MessageType(0x8023);

fn noting(bodies: &Bodies) -> impl FnOnce(&mut Server) + use<> {
    let note = |bodies: &Bodies, body: &[u8]| {
        *bodies.lock().unwrap().entry(body.to_vec()).or_default() += 1;
    };
    let (sync, slow) = (Arc::clone(bodies), Arc::clone(bodies));
    move |server| {
        server.handle(NOTE, move |request, reply| {
            note(&sync, request.body());
            reply.send(request.body());
        });
        server.handle_async(NOTE_SLOWLY, move |request, mut responder: Responder| {
            note(&slow, &request.body);
            async move {
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if responder.send(&request.body).await.is_err() {
                        return;
                    }
                }
                let _ = responder.end().await;
            }
        });
    }
}

#[test]
fn calls_and_streams_through_many_daemons_are_run_once_and_none_fails() {
    let bodies = Bodies::default();
    let several = || Options {
        keep_segments: true,
        reactors: 2,
        // Nobody's request is in doubt, so nothing need be remembered.
        repeats: RepeatOptions {
            clients: 0,
            ..RepeatOptions::default()
        },
        ..options()
    };
    let mut daemon = Daemon::with(several(), noting(&bodies));
    let path = daemon.path.clone();
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let connect = |number: u64| {
        let mut options = lapce_ai_client::Options {
            shared_memory: number.is_multiple_of(2),
            ..lapce_ai_client::Options::new(&path)
        };
        // On a busy machine one request may be sent back by more daemons in a row than a person ever starts.
        options.reconnect.max_resends = 1000;
        BlockingClient::connect(options).unwrap()
    };
    let ask = |client: &BlockingClient, number: u64| {
        let mut body = number.to_le_bytes().to_vec();
        // Some go in pieces.
        body.resize(if number.is_multiple_of(9) { 9000 } else { 60 }, 7);
        if number.is_multiple_of(4) {
            let stream = client.stream(NOTE_SLOWLY, &body, &RequestOptions::default());
            let items: Result<Vec<_>, _> = stream.unwrap().collect();
            assert!(items.unwrap() == vec![body.clone(); 3]);
        } else {
            assert!(client.call(NOTE, &body).unwrap() == body);
        }
        assert_eq!(bodies.lock().unwrap().get(&body), Some(&1), "run once");
    };
    thread::scope(|scope| {
        for number in 0..4 {
            let (connect, ask, stop, asked) = (&connect, &ask, &stop, &asked);
            scope.spawn(move || {
                let mut client = connect(number);
                while !stop.load(Ordering::Relaxed) {
                    let next = asked.fetch_add(1, Ordering::Relaxed);
                    ask(&client, next);
                    if next.is_multiple_of(64) {
                        client = connect(next / 64);
                    }
                }
            });
        }
        let idle = connect(0);
        for round in 0..24 {
            let from = asked.load(Ordering::Relaxed);
            support::eventually("requests are answered", || {
                asked.load(Ordering::Relaxed) > from + 30
            });
            if round % 4 == 3 {
                let drain = Duration::from_secs(1 << 20);
                // Nobody follows.
                drop(daemon.handle.retire(drain, false, soon()).unwrap());
            } else {
                let next = daemon.followed(several(), noting(&bodies));
                daemon.await_stop();
                daemon = next;
            }
        }
        stop.store(true, Ordering::Relaxed);
        ask(&idle, u64::MAX);
        assert_eq!(idle.counters().new_daemons, 0);
    });
    assert_eq!(daemon.handle.counters().faults, 0);
}

fn keeping() -> Options {
    Options {
        keep_segments: true,
        ..options()
    }
}

#[test]
fn clients_of_connections_at_rest_notice_nothing() {
    for crc in [false, true] {
        let carrier = Carrier {
            shared_memory: true,
            crc,
        };
        let runs = Runs::new();
        let mut daemon = Daemon::with(keeping(), runs.handlers());
        let mut client = Client::again(&daemon, carrier, ME, 0);
        let (mut ids, mut answers) = (0, 0);
        // Through all of its ring, and more than once around it.
        for round in 0..40_usize {
            let body = support::pattern(round as u64, 37 * round % 3000);
            let id = client.open(support::ECHO, &body);
            assert_eq!(client.answer(id), body);
            if round % 3 == 0 {
                // Asked while nobody serves it, and before.
                let early = client.open(COUNT, b"");
                answers += 1;
                let next = daemon.followed(keeping(), runs.handlers());
                daemon.await_stop();
                daemon = next;
                assert_eq!(client.answer(early), answers.to_string().as_bytes());
            }
            ids = id;
        }
        // The last one may not have been asked anything yet.
        support::eventually("it has come", || daemon.handle.connections().len() == 1);
        let connections = daemon.handle.connections();
        assert_eq!((connections[0].id, connections[0].earlier), (1, 0));
        assert_eq!(connections[0].requests, 40 + answers);
        assert_eq!(
            daemon.handle.counters().connections,
            0,
            "none was made here"
        );
        // It is known here what was taken over there.
        drop(client);
        let mut client = Client::again(&daemon, carrier, ME, ids + 10);
        assert_unknown(&mut client, ids);
        let run = client.open_with(COUNT, &again(ids + 10), b"");
        assert_eq!(client.answer(run), (answers + 1).to_string().as_bytes());
    }
}

#[test]
fn what_a_client_writes_over_its_segments_header_holds_no_daemon_up() {
    let runs = Runs::new();
    let first = Daemon::with(keeping(), runs.handlers());
    let mut scribbler = Client::again(&first, Carrier::SHARED_MEMORY, 1, 0);
    let mut other = Client::again(&first, Carrier::SHARED_MEMORY, 2, 0);
    for (client, answer) in [(&mut scribbler, b"1"), (&mut other, b"2")] {
        let id = client.open(COUNT, b"");
        assert_eq!(client.answer(id), answer);
    }
    // All of it, up to the control lines of the rings.
    let mapping = scribbler.mapping();
    for offset in (0..0x200).step_by(8) {
        let word = mapping.atomic_u64(offset);
        word.store(u64::MAX, Ordering::SeqCst);
    }
    let second = first.followed(keeping(), runs.handlers());
    first.await_stop();
    for (client, answer) in [(&mut other, b"3"), (&mut scribbler, b"4")] {
        let id = client.open(COUNT, b"");
        assert_eq!(client.answer(id), answer);
    }
    assert_eq!(
        second.handle.counters().connections,
        0,
        "none was made here"
    );
}

#[test]
fn connections_with_work_and_those_over_sockets_are_sent_away() {
    let runs = Runs::new();
    let first = Daemon::with(keeping(), runs.handlers());
    let mut busy = Client::again(&first, Carrier::SHARED_MEMORY, 1, 0);
    let running = busy.open(GATED, b"");
    assert_eq!(busy.next_of(running).kind, Kind::Accepted);
    runs.await_count(1);
    let mut sending = Client::again(&first, Carrier::SHARED_MEMORY, 2, 0);
    let upload = sending.begin(support::ASYNC_ECHO, 9000, &[]);
    assert_eq!(sending.await_credit(upload), 9000);
    let mut over_socket = Client::again(&first, Carrier::SOCKET, 3, 0);
    let mut at_rest = Client::again(&first, Carrier::SHARED_MEMORY, 4, 0);
    let second = first.followed(keeping(), runs.handlers());
    assert_eq!(goaway(&mut busy).last_id, running);
    assert_eq!(goaway(&mut sending).last_id, upload);
    assert_eq!(goaway(&mut over_socket).last_id, 0);
    let id = at_rest.open(COUNT, b"");
    assert_eq!(at_rest.answer(id), b"2");
    assert_eq!(second.handle.connections().len(), 1);
    runs.gate.add_permits(1);
    assert_eq!(busy.answer(running), b"1");
    let body = support::pattern(1, 9000);
    sending.send_rest(upload, &body, 0);
    assert_eq!(sending.answer(upload), body);
    first.await_stop();
    // One that hangs up is seen to by the second.
    drop(at_rest);
    second.await_quiet(0);
}

#[test]
fn connections_at_rest_come_back_if_nobody_follows() {
    let runs = Runs::new();
    let daemon = Daemon::with(keeping(), runs.handlers());
    let mut client = Client::again(&daemon, Carrier::SHARED_MEMORY, ME, 0);
    for number in 1..6_u64 {
        let (_, retiring) = daemon
            .handle
            .retire(Duration::from_secs(1 << 20), true, soon())
            .unwrap();
        assert_eq!(retiring.resting().count(), 1);
        let id = client.open(COUNT, b"");
        thread::sleep(Duration::from_millis(5));
        assert_eq!(runs.count(), number - 1, "nobody reads");
        drop(retiring);
        assert_eq!(client.answer(id), number.to_string().as_bytes());
    }
    assert_eq!(daemon.handle.connections()[0].requests, 5);
    assert_eq!(daemon.handle.counters().connections, 1);
    // Stopped meanwhile, they are told.
    let (_, retiring) = daemon
        .handle
        .retire(Duration::from_secs(1 << 20), true, soon())
        .unwrap();
    daemon.handle.shutdown(Duration::ZERO);
    drop(retiring);
    daemon.await_stop();
    while client.next().is_some() {}
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_and_stays_where_it_is() {
    let runs = Runs::new();
    let first = Daemon::with(keeping(), runs.handlers());
    let other = Daemon::with(keeping(), runs.handlers());
    let mut client = Client::again(&first, Carrier::SHARED_MEMORY, ME, 0);
    let id = client.open(COUNT, b"");
    assert_eq!(client.answer(id), b"1");
    let (_, retiring) = first
        .handle
        .retire(Duration::from_secs(1 << 20), true, soon())
        .unwrap();
    let copy = || {
        let (resting, parts) = retiring.resting().next().unwrap();
        (
            resting,
            parts.map(|part| part.try_clone_to_owned().unwrap()),
        )
    };
    let refused = |change: &dyn Fn(&mut Resting, &mut [OwnedFd; 2])| {
        let (mut resting, mut parts) = copy();
        change(&mut resting, &mut parts);
        other
            .handle
            .adopt([(resting, parts)])
            .unwrap_err()
            .to_string()
    };
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
    refused(&|_, parts| parts[0] = null());
    refused(&|_, parts| parts[1] = null());
    refused(&|_, parts| parts[1] = socket());
    refused(&|_, parts| parts.swap(0, 1));
    refused(&|resting, _| resting.at_rest.consumed = u64::MAX);
    let produced: [fn(&mut Resting); 6] = [
        |resting| resting.at_rest.produced.tail = u64::MAX,
        |resting| resting.at_rest.produced.seen_head = u64::MAX,
        |resting| resting.at_rest.produced.restart = 1,
        |resting| resting.at_rest.produced.tail += 1 << 20,
        |resting| resting.at_rest.produced.touched = 0,
        |resting| resting.at_rest.produced.touched = 1 << 40,
    ];
    for change in produced {
        refused(&|resting, _| change(resting));
    }
    // Positions that are possible and wrong end that connection, and no other.
    let (mut resting, parts) = copy();
    resting.at_rest.consumed += 1 << 30;
    let adopted = other.handle.adopt([(resting, parts)]).unwrap();
    assert_eq!((adopted.len(), adopted.is_empty()), (1, false));
    drop(adopted);
    drop(retiring);
    let id = client.open(COUNT, b"");
    assert_eq!(client.answer(id), b"2", "nothing has happened to it");
    assert!(other.handle.connections().is_empty());
}

#[test]
fn a_long_row_of_daemons_is_one_life() {
    let runs = Runs::new();
    let limits = || Options {
        reactors: 3,
        ..options()
    };
    let mut daemon = Daemon::with(limits(), runs.handlers());
    let mut clients: Vec<Client> = (0..9)
        .map(|number| Client::again(&daemon, CARRIERS[number % 2], number as u128, 0))
        .collect();
    let instance = clients[0].welcome.instance;
    for _ in 0..5 {
        let mut last = Vec::new();
        for client in &mut clients {
            let id = client.open(COUNT, b"");
            assert!(!client.answer(id).is_empty());
            last.push(id);
        }
        let before = runs.count();
        let next = daemon.followed(limits(), runs.handlers());
        daemon.await_stop();
        daemon = next;
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(goaway(client).last_id, last[number]);
            *client = Client::again(&daemon, CARRIERS[number % 2], number as u128, last[number]);
            assert_eq!(client.welcome.instance, instance);
            assert_unknown(client, last[number]);
        }
        assert_eq!(runs.count(), before);
    }
}
