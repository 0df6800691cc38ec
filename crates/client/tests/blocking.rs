//! The blocking client against a small daemon, over both carriers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lapce_ai_client::{
    BlockingClient, ClientError, ErrorCode, EventKind, MessageType, Options, ReconnectPolicy,
    RequestOptions, State,
};
use lapce_ai_proto::Limits;
use support::{
    ACCEPT_DIE, ACCEPT_HOLD, BAD_ID, DIE, Daemon, FAIL, GO_AWAY, HOLD, IDLE, ITEMS, LIMIT, Note,
    bounded, limits,
};

const ECHO: MessageType = MessageType::ECHO;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

/// Each test once over shared memory and once over the socket.
macro_rules! over_both {
    ($($(#[$meta:meta])* fn $name:ident($shared:ident: bool) $body:block)*) => {
        $(mod $name {
            use super::*;
            fn test($shared: bool) $body
            #[test]
            fn shared_memory() {
                bounded(|| test(true));
            }
            #[test]
            fn socket() {
                bounded(|| test(false));
            }
        })*
    };
}

fn connect(daemon: &Daemon, shared: bool) -> BlockingClient {
    BlockingClient::connect(daemon.options(shared)).unwrap()
}

over_both! {
    fn echoes_of_all_sizes(shared: bool) {
        let daemon = Daemon::start();
        for (crc, spin) in [(false, 0), (true, 50)] {
            let spin = Duration::from_micros(spin);
            let options = Options { crc, spin, ..daemon.options(shared) };
            let client = BlockingClient::connect(options).unwrap();
            let mut answer = Vec::new();
            for len in [0, 1, 64, 1024, 16 << 10, 64 << 10, (64 << 10) + 1, 1 << 20, 10 << 20] {
                let body = pattern(len);
                client.call_into(ECHO, &body, &mut answer).unwrap();
                assert!(answer == body, "{len} bytes came back as {}", answer.len());
            }
            let error = client.call(ECHO, pattern((10 << 20) + 1)).unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::MessageTooLarge));
        }
    }

    fn one_thread_keeps_a_window_in_flight(shared: bool) {
        let daemon = Daemon::start();
        let client = connect(&daemon, shared);
        let bodies: Vec<_> = (0..100).map(|n| pattern(n * 50)).collect();
        let mut answer = Vec::new();
        for _ in 0..20 {
            // More than the daemon takes at once: the later ones wait until earlier ones are answered.
            let window: Vec<_> =
                bodies.iter().map(|body| client.submit(ECHO, body).unwrap()).collect();
            for (pending, body) in window.into_iter().zip(&bodies) {
                pending.wait_into(&mut answer).unwrap();
                assert!(answer == *body);
            }
        }
        // In any other order too.
        let mut window: Vec<_> =
            bodies.iter().map(|body| (client.submit(ECHO, body).unwrap(), body)).collect();
        while let Some((pending, body)) = window.pop() {
            assert!(pending.wait().unwrap() == *body);
        }
        assert!(daemon.most_live() <= u64::from(limits().max_streams));
    }

    fn large_bodies_are_lent_and_given_away(shared: bool) {
        let daemon = Daemon::start();
        let client = connect(&daemon, shared);
        let bodies: Vec<_> = (0..4).map(|n| pattern(300_000 + n)).collect();
        for n in 0..4 {
            let window: Vec<_> = bodies
                .iter()
                .map(|body| match n {
                    0 => client.submit(ECHO, body.clone()).unwrap(),
                    _ => client.submit(ECHO, body).unwrap(),
                })
                .collect();
            // One that is lent goes between those, and its answer comes before theirs are waited for.
            assert!(client.call(ECHO, &bodies[n]).unwrap() == bodies[n]);
            for (pending, body) in window.into_iter().zip(&bodies) {
                assert!(pending.wait().unwrap() == *body);
            }
        }
        // A connection that is lost in between costs nothing but time.
        assert!(client.call(DIE, &bodies[0]).unwrap() == bodies[0]);
        let items = client.stream(ECHO, &bodies[1], &RequestOptions::default()).unwrap();
        assert!(items.map(Result::unwrap).eq([pattern(300_001)]));
        // One that nobody waits for is cancelled, sent or not.
        drop(client.submit(ECHO, &bodies[2]).unwrap());
        assert!(client.call(ECHO, &bodies[3]).unwrap() == bodies[3]);
        assert_eq!(daemon.count(|note| matches!(note, Note::ClientFault(_))), 0);
    }

    fn many_threads_share_a_connection(shared: bool) {
        let few = Limits { max_streams: 4, ..limits() };
        let daemon = Daemon::with(few, 64 << 10);
        let client = Arc::new(connect(&daemon, shared));
        let threads: Vec<_> = (0..8_usize)
            .map(|thread| {
                let client = Arc::clone(&client);
                thread::spawn(move || {
                    let mut answer = Vec::new();
                    for n in 0..200 {
                        let len = if n % 50 == 0 { 300_000 } else { n * (thread + 1) };
                        let body = pattern(len);
                        client.call_into(ECHO, &body, &mut answer).unwrap();
                        assert!(answer == body);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(daemon.most_live() <= 4);
        assert_eq!(daemon.count(|note| matches!(note, Note::ClientFault(_))), 0);
    }

    fn a_thread_that_waits_long_does_not_hold_up_others(shared: bool) {
        let daemon = Daemon::start();
        let client = Arc::new(connect(&daemon, shared));
        // It leads, and waits for ever.
        let held = thread::spawn({
            let client = Arc::clone(&client);
            move || client.call_with(HOLD, b"", &RequestOptions::with_deadline(Duration::from_millis(100)))
        });
        daemon.wait_for_request(1, HOLD);
        // Bytes that are lent are copied for it, since it sends them.
        for n in (0..50).chain([300_000]) {
            let body = pattern(n);
            assert!(client.call(ECHO, &body).unwrap() == body);
            assert!(client.call(ECHO, body).unwrap() == pattern(n));
        }
        assert!(matches!(held.join().unwrap(), Err(ClientError::DeadlineExceeded)));
        daemon.wait_for(1, |note| *note == Note::Cancelled(HOLD));
    }

    fn items_come_one_by_one_and_dropping_cancels(shared: bool) {
        let daemon = Daemon::start();
        let options = Options { response_window: 4 << 10, ..daemon.options(shared) };
        let client = BlockingClient::connect(options).unwrap();
        let body = [1000_u32.to_le_bytes(), 700_u32.to_le_bytes()].concat();
        let items = client.stream(ITEMS, &body, &RequestOptions::default()).unwrap();
        assert_eq!(items.map(|item| item.unwrap().len()).sum::<usize>(), 700_000);
        let mut items = client.stream(ITEMS, &body, &RequestOptions::default()).unwrap();
        assert!(items.next().unwrap().is_ok());
        drop(items);
        daemon.wait_for(1, |note| *note == Note::Cancelled(ITEMS));
        drop(client.submit(ACCEPT_HOLD, b"").unwrap());
        daemon.wait_for(1, |note| *note == Note::Cancelled(ACCEPT_HOLD));
        assert_eq!(client.call(FAIL, b"").unwrap_err().code(), Some(ErrorCode::RateLimited));
    }

    fn lost_connections_are_made_again(shared: bool) {
        let mut daemon = Daemon::start();
        let client = connect(&daemon, shared);
        assert_eq!(client.call(DIE, b"again").unwrap(), b"again");
        assert_eq!(client.call(BAD_ID, b"again").unwrap(), b"again");
        let error = client.call(ACCEPT_DIE, b"once").unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::OutcomeUnknown));
        // It was asked, over a new connection, whether it had run it.
        assert_eq!(client.state(), State::Connected);
        assert_eq!(daemon.count(|note| matches!(note, Note::Repeated(ACCEPT_DIE, 1..))), 1);
        daemon.restart();
        assert_eq!(client.call(ECHO, b"new life").unwrap(), b"new life");
        assert_eq!(client.call(IDLE, b"idle").unwrap(), b"idle");
        assert_eq!(client.call(ECHO, b"busy").unwrap(), b"busy");
        let lives = client.history().into_iter().filter(|event| {
            matches!(event.kind, EventKind::Connected { new_daemon: true, .. })
        });
        assert_eq!(lives.count(), 1);
        assert_eq!(client.state(), State::Connected);
    }

    fn after_goaway_new_requests_go_elsewhere(shared: bool) {
        let daemon = Daemon::start();
        let client = connect(&daemon, shared);
        let running = client.submit(GO_AWAY, b"finish").unwrap();
        daemon.wait_for_request(1, GO_AWAY);
        // The first of them may find GOAWAY on its way, and is then sent again.
        for _ in 0..5 {
            assert_eq!(client.call(ECHO, b"new").unwrap(), b"new");
        }
        assert_eq!(client.counters().connected, 2);
        daemon.release();
        assert_eq!(running.wait().unwrap(), b"finish");
    }

    fn all_threads_find_the_new_daemon(shared: bool) {
        let mut daemon = Daemon::start();
        let client = Arc::new(connect(&daemon, shared));
        let restarted = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let client = Arc::clone(&client);
                let restarted = Arc::clone(&restarted);
                thread::spawn(move || {
                    let repeatable = RequestOptions { repeatable: true, ..RequestOptions::default() };
                    let call = |n: usize| {
                        let body = pattern(n % 300);
                        assert!(client.call_with(ECHO, &body, &repeatable).unwrap() == body);
                    };
                    // However fast it is, it still has something to ask of the last daemon.
                    (0..1_000_000).take_while(|_| !restarted.load(Ordering::Relaxed)).for_each(call);
                    (0..10).for_each(call);
                })
            })
            .collect();
        for _ in 0..3 {
            // Of this life: fast clients may have asked the last one for more.
            let before = daemon.count(|note| matches!(note, Note::Request { .. }));
            daemon.wait_for_request(before + 100, ECHO);
            daemon.restart();
        }
        restarted.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(client.counters().new_daemons, 3);
    }

    fn a_socket_that_comes_is_found_at_once(shared: bool) {
        let mut daemon = Daemon::start();
        // Without the watch the next attempt would come after the test has failed.
        let far = Duration::from_secs(3600);
        let reconnect = ReconnectPolicy {
            watched_delay: far, quick_attempts: 0, quick_delay: far, max_delay: far,
            give_up_after: None, ..ReconnectPolicy::default()
        };
        let client = BlockingClient::connect(Options { reconnect, ..daemon.options(shared) });
        let client = Arc::new(client.unwrap());
        for _ in 0..3 {
            daemon.kill();
            let callers: Vec<_> = (0..4)
                .map(|_| {
                    let client = Arc::clone(&client);
                    thread::spawn(move || client.call(ECHO, b"who is there?").unwrap())
                })
                .collect();
            while !(client.health().watched && matches!(client.state(), State::Waiting { .. })) {
                thread::sleep(Duration::from_millis(1));
            }
            daemon.restart();
            callers.into_iter().for_each(|caller| assert_eq!(caller.join().unwrap(), b"who is there?"));
        }
    }

    fn a_deadline_cuts_an_attempt_to_connect_short_and_others_wait_on(shared: bool) {
        let mut daemon = Daemon::start();
        // Longer than a test may take.
        let connect_timeout = 2 * LIMIT;
        let client = BlockingClient::connect(Options { connect_timeout, ..daemon.options(shared) });
        let client = Arc::new(client.unwrap());
        daemon.kill();
        std::fs::remove_file(daemon.socket()).unwrap();
        // The kernel lets everybody in here, and nobody answers.
        let silent = UnixListener::bind(daemon.socket()).unwrap();
        let hurry = |client: &BlockingClient| {
            let soon = RequestOptions::with_deadline(Duration::from_millis(100));
            let error = client.call_with(ECHO, b"soon", &soon).unwrap_err();
            assert!(matches!(error, ClientError::DeadlineExceeded), "{error}");
        };
        hurry(&client);
        assert_eq!(client.counters().failed, 0, "the time was the caller's");
        let hurried = thread::spawn({
            let client = Arc::clone(&client);
            move || hurry(&client)
        });
        let patient = thread::spawn({
            let client = Arc::clone(&client);
            move || client.call(ECHO, b"at some time").unwrap()
        });
        hurried.join().unwrap();
        drop(silent);
        daemon.restart();
        assert_eq!(patient.join().unwrap(), b"at some time");
    }

    fn a_daemon_that_stays_away_is_given_up(shared: bool) {
        let mut daemon = Daemon::start();
        let reconnect = ReconnectPolicy { max_attempts: Some(3), ..ReconnectPolicy::default() };
        let client =
            BlockingClient::connect(Options { reconnect, ..daemon.options(shared) }).unwrap();
        daemon.kill();
        let error = client.call(ECHO, b"").unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { attempts: 3, .. }), "{error}");
        let soon = RequestOptions::with_deadline(Duration::from_millis(5));
        let patient = ReconnectPolicy { max_delay: Duration::from_secs(60), quick_attempts: 0, quick_delay: Duration::from_secs(60),
            give_up_after: None, ..ReconnectPolicy::default() };
        daemon.restart();
        let client =
            BlockingClient::connect(Options { reconnect: patient, ..daemon.options(shared) }).unwrap();
        daemon.kill();
        let error = client.call_with(ECHO, b"", &soon).unwrap_err();
        assert!(matches!(error, ClientError::DeadlineExceeded), "{error}");
    }
}
