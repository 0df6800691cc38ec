//! Several reactors: what they share works, and what they do not share is each one's own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use lapce_ai_proto::{ErrorCode, FIN, GoAway, Kind, MessageType};
use lapce_ai_server::{Options, Responder, Server, StartError};
use support::{
    ASYNC_ECHO, Carrier, Client, Daemon, ECHO, LENGTH, OWN, PANIC, PATIENCE, Witness, eventually,
    options, pattern, prefix,
};

const REACTORS: usize = 3;

fn several() -> Options {
    Options {
        reactors: REACTORS,
        ..options()
    }
}

/// Connections of each reactor.
fn spread(daemon: &Daemon) -> Vec<u64> {
    let reactors = daemon.handle.reactors();
    reactors.iter().map(|reactor| reactor.connections).collect()
}

/// A client of each reactor, in their order. Each must have as many others.
fn one_of_each(daemon: &Daemon, carrier: Carrier) -> Vec<Client> {
    let client = |_| {
        let mut client = Client::new(daemon, carrier);
        client.echo(10);
        client
    };
    (0..REACTORS).map(client).collect()
}

/// Has type [`OWN`] tell that it runs and hold its reactor up until it is let go.
struct Gate {
    closed: mpsc::Receiver<()>,
    open: mpsc::Sender<()>,
}

impl Gate {
    fn new() -> (Self, impl FnOnce(&mut Server)) {
        let (tell, closed) = mpsc::channel();
        let (open, gate) = mpsc::channel();
        let gate = Mutex::new(gate);
        let register = move |server: &mut Server| {
            server.handle(MessageType(OWN), move |_, reply| {
                tell.send(()).unwrap();
                gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                reply.send(b"open");
            });
        };
        (Self { closed, open }, register)
    }

    /// Holds up the reactor of this client.
    fn close(&self, client: &mut Client) -> u64 {
        let id = client.open(OWN, &[]);
        self.closed.recv_timeout(PATIENCE).unwrap();
        id
    }

    fn open(&self, client: &mut Client, id: u64) {
        self.open.send(()).unwrap();
        assert_eq!(client.answer(id), b"open");
    }
}

#[test]
fn connections_spread_over_the_reactors_and_stay_where_they_are() {
    let daemon = Daemon::start(several());
    let mut clients: Vec<Option<Client>> = (0..9)
        .map(|number| Some(Client::new(&daemon, Carrier::ALL[number % 4])))
        .collect();
    assert_eq!(spread(&daemon), [3, 3, 3]);
    for (number, client) in clients.iter_mut().flatten().enumerate() {
        for _ in 0..=number {
            client.echo(100);
        }
    }
    let requests = daemon.handle.reactors();
    let requests: Vec<u64> = requests.iter().map(|reactor| reactor.requests).collect();
    assert_eq!(
        requests,
        [1 + 4 + 7, 2 + 5 + 8, 3 + 6 + 9],
        "each by its reactor"
    );
    assert_eq!(daemon.handle.counters().requests, 45);
    let of = |id: u64| {
        let connections = daemon.handle.connections();
        connections.iter().find(|c| c.id == id).unwrap().reactor
    };
    assert_eq!(
        (1..=9).map(of).collect::<Vec<_>>(),
        [0, 1, 2, 0, 1, 2, 0, 1, 2]
    );
    // All of one reactor go. Nobody is moved, and newcomers fill it.
    for number in [1, 4, 7] {
        clients[number] = None;
    }
    daemon.await_quiet(6);
    assert_eq!(spread(&daemon), [3, 0, 3]);
    for _ in 0..3 {
        clients.push(Some(Client::new(&daemon, Carrier::SHARED_MEMORY)));
    }
    assert_eq!(spread(&daemon), [3, 3, 3]);
    for client in clients.iter_mut().flatten() {
        client.echo(100);
    }
}

#[test]
fn a_handler_that_blocks_holds_its_own_reactor_up_and_no_other() {
    let (gate, register) = Gate::new();
    let daemon = Daemon::with(several(), register);
    let mut clients = one_of_each(&daemon, Carrier::SHARED_MEMORY);
    for blocked in 0..REACTORS {
        let id = gate.close(&mut clients[blocked]);
        for number in (0..REACTORS).filter(|number| *number != blocked) {
            let client = &mut clients[number];
            client.echo(1000);
            let body = pattern(1, 100_000);
            let upload = client.upload(ECHO, &body);
            assert!(client.answer(upload) == body);
            let task = client.open(ASYNC_ECHO, b"task");
            assert_eq!(client.answer(task), b"task");
        }
        // Newcomers come in, whoever is held up, one to each; and those of the others are served.
        let carrier = Carrier::ALL[blocked];
        let mut newcomers: Vec<Client> = (0..REACTORS)
            .map(|_| Client::new(&daemon, carrier))
            .collect();
        assert_eq!(spread(&daemon), [2; REACTORS]);
        for number in (0..REACTORS).filter(|number| *number != blocked) {
            newcomers[number].echo(1000);
        }
        drop(newcomers);
        gate.open(&mut clients[blocked], id);
        daemon.await_quiet(REACTORS);
    }
}

#[test]
fn memory_that_comes_back_on_one_reactor_goes_to_those_who_wait_on_others() {
    for carrier in Carrier::ALL {
        let daemon = Daemon::start(several());
        let mut clients = one_of_each(&daemon, carrier);
        // The first holds the whole budget, the others sleep in line.
        let held: Vec<u64> = (0..4)
            .map(|_| {
                let id = clients[0].begin(LENGTH, 1 << 20, &[]);
                clients[0].await_credit(id);
                id
            })
            .collect();
        let waiting: Vec<u64> = (1..REACTORS)
            .map(|number| clients[number].begin(LENGTH, 1 << 20, b"first"))
            .collect();
        eventually("both wait", || daemon.handle.pool().waiting == 2);
        // One upload ends and one is cancelled.
        clients[0].send_rest(held[0], &vec![0; 1 << 20], 0);
        clients[0].answer(held[0]);
        let credit = clients[1].await_credit(waiting[0]);
        assert_eq!(credit, (1 << 20) - 5);
        clients[0].send(Kind::Cancel, 0, 0, held[1], &[]);
        clients[2].await_credit(waiting[1]);
        // A client that dies gives way, too.
        let next = clients[1].begin(LENGTH, 1 << 20, &[]);
        eventually("it waits", || daemon.handle.pool().waiting == 1);
        drop(clients.remove(0));
        clients[0].await_credit(next);
    }
}

#[test]
fn memory_goes_past_a_reactor_that_is_held_up() {
    let (gate, register) = Gate::new();
    let daemon = Daemon::with(several(), register);
    let mut clients = one_of_each(&daemon, Carrier::SHARED_MEMORY);
    let held: Vec<u64> = (0..4)
        .map(|_| {
            let id = clients[0].begin(LENGTH, 1 << 20, &[]);
            clients[0].await_credit(id);
            id
        })
        .collect();
    // First in line: one whose reactor is held up in the same moment.
    let first = clients[1].begin(LENGTH, 1 << 20, &[]);
    eventually("it waits", || daemon.handle.pool().waiting == 1);
    let closed = gate.close(&mut clients[1]);
    let second = clients[2].begin(LENGTH, 1 << 20, &[]);
    eventually("so does the next", || daemon.handle.pool().waiting == 2);
    for id in &held[..2] {
        clients[0].send(Kind::Cancel, 0, 0, *id, &[]);
    }
    // Neither the reactor that is held up nor its request is in the way.
    clients[2].await_credit(second);
    assert_eq!(daemon.handle.pool().waiting, 0);
    gate.open(&mut clients[1], closed);
    clients[1].await_credit(first);
}

#[test]
fn a_wait_ends_with_its_deadline_on_each_reactor() {
    let daemon = Daemon::start(several());
    let mut clients = one_of_each(&daemon, Carrier::SHARED_MEMORY);
    for _ in 0..4 {
        let id = clients[0].begin(LENGTH, 1 << 20, &[]);
        clients[0].await_credit(id);
    }
    for client in &mut clients {
        let id = client.id();
        let prefix = lapce_ai_proto::OpenPrefix {
            deadline_ms: 30,
            ..prefix(5000)
        };
        client.send(
            Kind::Open,
            lapce_ai_proto::PREFIX,
            LENGTH,
            id,
            &prefix.encode(),
        );
        assert_eq!(client.error_of(id).code, ErrorCode::DeadlineExceeded);
    }
    assert_eq!(daemon.handle.pool().waiting, 0);
}

#[test]
fn a_panic_and_a_fault_stay_with_their_reactor() {
    let daemon = Daemon::start(several());
    let witnesses: Vec<Witness> = (0..REACTORS)
        .map(|_| Witness::new(&daemon, Carrier::SHARED_MEMORY))
        .collect();
    for _ in 0..REACTORS {
        let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
        for _ in 0..5 {
            let id = client.open(PANIC, b"x");
            assert_eq!(client.error_of(id).code, ErrorCode::Internal);
        }
        client.echo(10);
        client.send(Kind::Open, FIN, ECHO, 0, b"an id that must not be");
        assert_eq!(client.closing_error().code, ErrorCode::ProtocolError);
    }
    for witness in witnesses {
        witness.was_served();
    }
    daemon.await_quiet(0);
    assert_eq!(spread(&daemon), [0, 0, 0]);
}

#[test]
fn all_reactors_drain_before_the_server_ends() {
    for carrier in Carrier::ALL {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let handlers_gate = Arc::clone(&gate);
        let daemon = Daemon::with(several(), move |server| {
            server.handle_async(MessageType(OWN), move |_, responder: Responder| {
                let gate = Arc::clone(&handlers_gate);
                async move {
                    let _permit = gate.acquire().await;
                    let _ = responder.answer(b"in time").await;
                }
            });
        });
        let mut clients = one_of_each(&daemon, carrier);
        let mut quiet = one_of_each(&daemon, carrier);
        let running: Vec<u64> = clients
            .iter_mut()
            .map(|client| {
                let id = client.open(OWN, b"x");
                assert_eq!(client.next_of(id).kind, Kind::Accepted);
                id
            })
            .collect();
        daemon.handle.shutdown(PATIENCE);
        for client in quiet.iter_mut().chain(&mut clients) {
            let frame = client.next().unwrap();
            assert_eq!((frame.kind, frame.id), (Kind::GoAway, 0));
            let goaway = GoAway::decode(&frame.payload).unwrap();
            assert_eq!(goaway.code, ErrorCode::ServerRestarting);
        }
        for client in &mut quiet {
            assert_eq!(client.next(), None, "nothing keeps it");
        }
        assert!(daemon.path.exists(), "the last one is still there");
        gate.add_permits(REACTORS);
        assert_eq!(running, [1 + 1; REACTORS], "after the echo of each");
        for client in &mut clients {
            let frame = client.next().unwrap();
            assert_eq!(
                (frame.kind, frame.payload.as_slice()),
                (Kind::End, &b"in time"[..])
            );
            assert_eq!(client.next(), None, "then it ends");
        }
        daemon.await_stop();
        assert!(!daemon.path.exists());
    }
}

#[test]
fn a_reactor_that_is_held_up_stops_once_it_goes_on() {
    let (gate, register) = Gate::new();
    let daemon = Daemon::with(several(), register);
    let mut clients = one_of_each(&daemon, Carrier::SHARED_MEMORY);
    let id = gate.close(&mut clients[1]);
    daemon.handle.shutdown(Duration::ZERO);
    for number in [0, 2] {
        clients[number].drain();
    }
    assert!(daemon.path.exists(), "the last one is still there");
    gate.open.send(()).unwrap();
    let frame = clients[1].next_of(id);
    assert_eq!(frame.payload, b"open");
    clients[1].drain();
    daemon.await_stop();
    assert!(!daemon.path.exists());
}

#[test]
fn a_daemon_that_nobody_needs_stops_whichever_reactor_was_last() {
    std::thread::scope(|scope| {
        for last in 0..REACTORS {
            scope.spawn(move || {
                let daemon = Daemon::start(Options {
                    exit_when_idle: Some(Duration::from_secs(2)),
                    ..several()
                });
                let mut clients = one_of_each(&daemon, Carrier::SHARED_MEMORY);
                let last = clients.swap_remove(last);
                drop(clients);
                daemon.await_quiet(1);
                drop(last);
                daemon.await_stop();
                assert!(!daemon.path.exists());
            });
        }
    });
}

/// Clients come and go as fast as they can, at the limit, some of them hostile; meanwhile a few stay.
#[test]
fn comings_and_goings_keep_every_account_straight() {
    const MOST: usize = 12;
    let daemon = Daemon::start(Options {
        max_connections: MOST,
        ..several()
    });
    let witnesses: Vec<Witness> = (0..REACTORS)
        .map(|number| Witness::new(&daemon, Carrier::ALL[number]))
        .collect();
    let (taken, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (daemon, taken, refused) = (&daemon, &taken, &refused);
            scope.spawn(move || {
                let mut kept = Vec::new();
                for round in 0..150_usize {
                    let carrier = Carrier::ALL[(thread + round) % 4];
                    match Client::try_new(&daemon.path, carrier, 1 << 16) {
                        Ok(mut client) => {
                            taken.fetch_add(1, Ordering::Relaxed);
                            match round % 5 {
                                // Gone at once, perhaps before its reactor has it.
                                0 => drop(client),
                                1 => {
                                    client.begin(ECHO, 1 << 20, &pattern(1, 500));
                                }
                                2 => assert!(client.bytes(&[0; 24])),
                                3 => client.echo(2000),
                                _ => kept.push(client),
                            }
                        }
                        Err(error) => {
                            assert_eq!(error.code, ErrorCode::TooManyConnections);
                            refused.fetch_add(1, Ordering::Relaxed);
                            kept.clear();
                        }
                    }
                }
            });
        }
        let seen = |daemon: &Daemon| daemon.handle.connections().len() <= MOST;
        for _ in 0..1000 {
            assert!(seen(&daemon) && spread(&daemon).iter().sum::<u64>() <= MOST as u64);
            std::thread::yield_now();
        }
    });
    for witness in witnesses {
        witness.was_served();
    }
    daemon.await_quiet(0);
    assert_eq!(spread(&daemon), [0, 0, 0]);
    let counters = daemon.handle.counters();
    let taken = taken.into_inner() + REACTORS as u64;
    assert_eq!(
        (counters.connections, counters.refused),
        (taken, refused.into_inner())
    );
    // All places are free.
    let clients: Vec<Client> = (0..MOST)
        .map(|_| Client::new(&daemon, Carrier::SHARED_MEMORY))
        .collect();
    assert_eq!(spread(&daemon), [4, 4, 4]);
    drop(clients);
}

/// The server stops while clients pour in: each is served, refused or hung up on, and none is left waiting.
#[test]
fn a_stop_amid_newcomers_leaves_nobody_waiting() {
    for round in 0..10 {
        let daemon = Daemon::start(several());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (daemon, stop) = (&daemon, &stop);
                scope.spawn(move || {
                    let carrier = Carrier::ALL[thread];
                    while !stop.load(Ordering::Relaxed) {
                        let Some(mut client) = Client::if_taken(&daemon.path, carrier) else {
                            continue;
                        };
                        let id = client.id();
                        let frame = client.codec.encode(Kind::Open, FIN, ECHO, id, b"x");
                        if client.bytes(&frame) {
                            // An answer, an error or the end, and each within bounds.
                            while client.next().is_some_and(|frame| frame.id != id) {}
                        }
                    }
                });
            }
            eventually("they come", || {
                daemon.handle.counters().connections > 20 + round
            });
            daemon.handle.shutdown(Duration::ZERO);
            daemon.await_stop();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!daemon.path.exists());
        assert_eq!(daemon.handle.pool().held, 0);
    }
}

#[test]
fn a_number_of_reactors_that_makes_no_sense_is_refused() {
    for reactors in [0, Options::MOST_REACTORS + 1] {
        let base = tempfile::tempdir().unwrap();
        let dir = lapce_ai_transport::RuntimeDir::for_socket(base.path().join("a/daemon.sock"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let options = Options {
            reactors,
            ..options()
        };
        let listener = lapce_ai_transport::Listener::bind(&dir).unwrap();
        let error = Server::new(options)
            .start(listener, runtime.handle())
            .unwrap_err();
        assert!(
            matches!(&error, StartError::Options(text) if text.contains("1 to 64")),
            "{error}"
        );
    }
}
