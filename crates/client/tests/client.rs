//! The asynchronous client against a small daemon, over both carriers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use lapce_ai_client::{
    Client, ClientError, ConnectError, ErrorCode, EventKind, MessageType, Options, ReconnectPolicy,
    RequestOptions, State,
};
use lapce_ai_proto::Limits;
use support::{
    ACCEPT_DIE, ACCEPT_HOLD, BAD_ID, DIE, Daemon, FAIL, GO_AWAY, HOLD, IDLE, ITEM_DIE, ITEMS, Note,
    limits, run,
};
use tokio::task::JoinSet;

const ECHO: MessageType = MessageType::ECHO;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

fn items(count: u32, size: u32) -> Vec<u8> {
    [count.to_le_bytes(), size.to_le_bytes()].concat()
}

/// Each test once over shared memory and once over the socket.
macro_rules! over_both {
    ($($(#[$meta:meta])* async fn $name:ident($shared:ident: bool) $body:block)*) => {
        $(mod $name {
            use super::*;
            async fn test($shared: bool) $body
            $(#[$meta])*
            #[test]
            fn shared_memory() {
                run(test(true));
            }
            $(#[$meta])*
            #[test]
            fn socket() {
                run(test(false));
            }
        })*
    };
}

over_both! {
    async fn echoes_of_all_sizes_cross_rings_smaller_than_they_are(shared: bool) {
        let daemon = Daemon::start();
        for crc in [false, true] {
            let client = Client::connect(Options { crc, ..daemon.options(shared) }).await.unwrap();
            for len in [0, 1, 64, 1024, 16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, 1 << 20, 10 << 20] {
                let body = pattern(len);
                let answer = client.call(ECHO, &body).await.unwrap();
                assert!(answer == body, "{len} bytes came back as {}", answer.len());
            }
            let error = client.call(ECHO, &pattern((10 << 20) + 1)).await.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::MessageTooLarge));
            assert_eq!(client.welcome().unwrap().features.shared_memory, shared);
        }
    }

    async fn a_thousand_calls_wait_for_their_turn(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let mut calls = JoinSet::new();
        for n in 0..1000_usize {
            let client = client.clone();
            calls.spawn(async move {
                let body = pattern(n * 7);
                assert!(client.call(ECHO, &body).await.unwrap() == body);
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
        assert!(daemon.most_live() <= u64::from(limits().max_streams));
        assert_eq!(daemon.count(|note| matches!(note, Note::ClientFault(_))), 0);
    }

    async fn those_who_give_up_their_turn_leave_it_to_others(shared: bool) {
        let few = Limits { max_streams: 1, ..limits() };
        let daemon = Daemon::with(few, 64 << 10);
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let held = client.stream(HOLD, b"", &RequestOptions::default()).await.unwrap();
        let mut first = Box::pin(client.call(ECHO, b"first"));
        let mut second = Box::pin(client.call(ECHO, b"second"));
        // Both queue.
        assert!(futures_poll(&mut first).await.is_none());
        assert!(futures_poll(&mut second).await.is_none());
        drop(first);
        drop(held);
        assert_eq!(second.await.unwrap(), b"second");
    }

    async fn dropping_cancels(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let mut call = Box::pin(client.call(HOLD, b""));
        assert!(futures_poll(&mut call).await.is_none());
        daemon.wait_for_request(1, HOLD);
        drop(call);
        daemon.wait_for(1, |note| *note == Note::Cancelled(HOLD));
        let stream = client.stream(ACCEPT_HOLD, b"", &RequestOptions::default()).await.unwrap();
        daemon.wait_for_request(1, ACCEPT_HOLD);
        drop(stream);
        daemon.wait_for(1, |note| *note == Note::Cancelled(ACCEPT_HOLD));
        // The slots are used again.
        for _ in 0..200 {
            client.call(ECHO, b"x").await.unwrap();
        }
    }

    async fn a_slow_reader_slows_its_own_stream_only(shared: bool) {
        let daemon = Daemon::start();
        let options = Options { response_window: 8 << 10, ..daemon.options(shared) };
        let client = Client::connect(options).await.unwrap();
        // Eight megabytes, of which no more than the window may come unasked.
        let mut slow = client.stream(ITEMS, &items(8192, 1024), &RequestOptions::default()).await.unwrap();
        assert_eq!(slow.next().await.unwrap().unwrap(), [0; 1024]);
        for n in 0..100 {
            let body = pattern(n * 100);
            assert!(client.call(ECHO, &body).await.unwrap() == body);
        }
        // The window, and what was taken; nothing else of the 8 MiB is on its way or held.
        let sent = daemon.items_sent();
        assert!(sent <= (8 << 10) + 1024, "{sent} bytes were sent to a reader that took 1,024");
        let mut count = 1;
        while let Some(item) = slow.next().await {
            assert!(item.unwrap() == vec![count as u8; 1024]);
            count += 1;
        }
        assert_eq!(count, 8192);
    }

    async fn an_item_larger_than_the_window_still_comes(shared: bool) {
        let daemon = Daemon::start();
        let options = Options { response_window: 1000, ..daemon.options(shared) };
        let client = Client::connect(options).await.unwrap();
        let mut stream = client.stream(ITEMS, &items(5, 100_000), &RequestOptions::default()).await.unwrap();
        let mut item = Vec::new();
        for n in 0..5 {
            assert!(stream.next_into(&mut item).await.unwrap());
            assert!(item == vec![n; 100_000]);
        }
        assert!(!stream.next_into(&mut item).await.unwrap());
        assert!(stream.next().await.is_none());
    }

    async fn small_calls_overtake_large_uploads(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let large = pattern(10 << 20);
        let mut uploads = JoinSet::new();
        for _ in 0..3 {
            let (client, large) = (client.clone(), large.clone());
            uploads.spawn(async move { assert!(client.call(ECHO, &large).await.unwrap() == large) });
        }
        daemon.wait_for_request(3, ECHO);
        let mut meanwhile = 0;
        while !uploads.is_empty() {
            client.call(ECHO, b"small").await.unwrap();
            meanwhile += 1;
            while let Some(done) = uploads.try_join_next() {
                done.unwrap();
            }
        }
        assert!(meanwhile > 10, "only {meanwhile} small calls while 30 MiB went both ways");
    }

    async fn errors_come_as_they_are(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let error = client.call(FAIL, b"").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::RateLimited));
        assert!(error.is_retryable());
        let ClientError::Daemon(body) = error else { panic!("{error}") };
        assert_eq!((body.message.as_str(), body.retry_after_ms), ("slowly", Some(7)));
        let mut stream = client.stream(FAIL, b"", &RequestOptions::default()).await.unwrap();
        assert!(stream.next().await.unwrap().is_err());
        assert!(stream.next().await.is_none());
        // A call wants one item.
        let error = client.call(ITEMS, &items(2, 1)).await.unwrap_err();
        assert!(error.to_string().contains("2 items"), "{error}");
    }

    async fn a_daemon_that_breaks_the_protocol_is_left(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        // It was neither accepted nor answered, so it goes out again.
        assert_eq!(client.call(BAD_ID, b"again").await.unwrap(), b"again");
        let lost = client.history().into_iter().any(|event| {
            matches!(event.kind, EventKind::Lost { reason } if reason.contains("bad_id"))
        });
        assert!(lost, "{:?}", client.history());
        assert_eq!(client.counters().connected, 2);
    }

    async fn what_was_not_accepted_is_sent_again(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        assert_eq!(client.call(DIE, b"once more").await.unwrap(), b"once more");
        daemon.wait_for_request(2, DIE);
        let instances: Vec<_> = daemon.notes().into_iter().filter_map(|note| match note {
            Note::Connected(instance) => Some(instance),
            _ => None,
        }).collect();
        assert_eq!(instances.len(), 2);
        assert_eq!(instances[0], instances[1], "a client keeps its instance");
    }

    async fn what_was_accepted_is_unknown(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let error = client.call(ACCEPT_DIE, b"once").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::OutcomeUnknown));
        assert!(!error.is_retryable());
        client.wait_connected().await.unwrap();
        assert_eq!(client.call(ACCEPT_DIE, b"twice").await.unwrap(), b"twice");
        daemon.wait_for_request(2, ACCEPT_DIE);
        // The same life of the daemon was asked whether it had run the first.
        assert_eq!(daemon.count(|note| matches!(note, Note::Repeated(ACCEPT_DIE, 1..))), 1);
        assert_eq!(daemon.count(|note| matches!(note, Note::Request { ty: ACCEPT_DIE, .. })), 2);
    }

    async fn what_is_repeatable_is_sent_again_even_so(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let repeatable = RequestOptions { repeatable: true, ..RequestOptions::default() };
        assert_eq!(client.call_with(ACCEPT_DIE, b"a", &repeatable).await.unwrap(), b"a");
        let sequences: Vec<_> = daemon.notes().into_iter().filter_map(|note| match note {
            Note::Request { repeatable: true, sequence, .. } => Some(sequence),
            _ => None,
        }).collect();
        assert_eq!(sequences.len(), 2);
        assert!(sequences[0] == 0 && sequences[1] != 0, "{sequences:?}");
    }

    async fn a_stream_that_was_seen_is_not_begun_anew(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let repeatable = RequestOptions { repeatable: true, ..RequestOptions::default() };
        let mut stream = client.stream(ITEM_DIE, b"piece", &repeatable).await.unwrap();
        // The daemon dies right behind its item, which may or may not have been taken by then.
        let mut seen = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(item) => {
                    assert_eq!(item, b"piece");
                    seen += 1;
                }
                Err(error) => break error,
            }
        };
        assert!(seen <= 1, "an item was handed out twice");
        assert_eq!(error.code(), Some(ErrorCode::OutcomeUnknown));
    }

    async fn a_killed_daemon_is_found_again(shared: bool) {
        let mut daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let held = tokio::spawn({
            let client = client.clone();
            async move { client.call(ACCEPT_HOLD, b"").await }
        });
        daemon.wait_for_request(1, ACCEPT_HOLD);
        daemon.restart();
        assert_eq!(held.await.unwrap().unwrap_err().code(), Some(ErrorCode::OutcomeUnknown));
        assert_eq!(client.call(ECHO, b"back").await.unwrap(), b"back");
        assert_eq!(client.state(), State::Connected);
        let kinds: Vec<_> = client.history().into_iter().map(|event| event.kind).collect();
        assert!(matches!(kinds[0], EventKind::Connected { attempts: 1, new_daemon: false, .. }), "{kinds:?}");
        assert!(matches!(kinds[1], EventKind::Lost { .. }), "{kinds:?}");
        assert!(matches!(kinds.last(), Some(EventKind::Connected { new_daemon: true, .. })), "{kinds:?}");
        assert_eq!(client.counters().new_daemons, 1);
        let health = client.health();
        assert!(health.is_connected() && health.last_outage.is_some(), "{health:?}");
    }

    async fn a_socket_that_comes_is_found_at_once(shared: bool) {
        let mut daemon = Daemon::start();
        // Without the watch the next attempt would come after the test has failed.
        let far = Duration::from_secs(3600);
        let reconnect = ReconnectPolicy {
            watched_delay: far, quick_attempts: 0, quick_delay: far, max_delay: far,
            give_up_after: None, ..ReconnectPolicy::default()
        };
        let client = Client::connect(Options { reconnect, ..daemon.options(shared) }).await.unwrap();
        for _ in 0..3 {
            daemon.kill();
            let mut call = Box::pin(client.call(ECHO, b"who is there?"));
            assert!(futures_poll(&mut call).await.is_none());
            while !(client.health().watched && matches!(client.state(), State::Waiting { .. })) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            daemon.restart();
            assert_eq!(call.await.unwrap(), b"who is there?");
        }
        let kinds: Vec<_> = client.history().into_iter().map(|event| event.kind).collect();
        assert!(kinds.contains(&EventKind::Appeared), "{kinds:?}");
    }

    async fn a_runtime_directory_that_comes_anew_is_found(shared: bool) {
        let mut daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        daemon.kill();
        std::fs::remove_dir_all(daemon.socket().parent().unwrap()).unwrap();
        let mut call = Box::pin(client.call(ECHO, b"elsewhere"));
        assert!(futures_poll(&mut call).await.is_none());
        while client.counters().failed < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!client.health().watched);
        daemon.restart();
        assert_eq!(call.await.unwrap(), b"elsewhere");
    }

    async fn deadlines_travel_and_a_hung_daemon_is_given_up(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let soon = RequestOptions::with_deadline(Duration::from_millis(50));
        let error = client.call_with(HOLD, b"", &soon).await.unwrap_err();
        assert!(matches!(error, ClientError::DeadlineExceeded), "{error}");
        assert_eq!(error.code(), Some(ErrorCode::DeadlineExceeded));
        let told = daemon.count(|note| matches!(note, Note::Request { deadline_ms: 1..=50, .. }));
        assert_eq!(told, 1);
        daemon.wait_for(1, |note| *note == Note::Cancelled(HOLD));
    }

    async fn after_goaway_new_requests_go_elsewhere(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let running = tokio::spawn({
            let client = client.clone();
            async move { client.call(GO_AWAY, b"finish").await }
        });
        daemon.wait_for_request(1, GO_AWAY);
        for _ in 0..20 {
            assert_eq!(client.call(ECHO, b"new").await.unwrap(), b"new");
        }
        assert_eq!(client.counters().connected, 2);
        assert!(!running.is_finished());
        daemon.release();
        assert_eq!(running.await.unwrap().unwrap(), b"finish");
        // The old connection is closed once it has drained.
        daemon.wait_for(1, |note| matches!(note, Note::Gone(1)));
        assert_eq!(client.counters().lost, 0);
    }

    async fn an_idle_connection_comes_back_with_work(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        assert_eq!(client.call(IDLE, b"x").await.unwrap(), b"x");
        daemon.wait_for(1, |note| matches!(note, Note::Gone(1)));
        while client.state() != State::Idle {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.call(ECHO, b"y").await.unwrap(), b"y");
        assert_eq!(client.counters().connected, 2);
    }

    async fn closing_ends_what_is_under_way(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let held = tokio::spawn({
            let client = client.clone();
            async move { client.call(HOLD, b"").await }
        });
        daemon.wait_for_request(1, HOLD);
        client.clone().close().await;
        assert!(matches!(held.await.unwrap(), Err(ClientError::Closed)));
        assert!(matches!(client.call(ECHO, b"").await, Err(ClientError::Closed)));
        assert_eq!(client.state(), State::Closed);
        daemon.wait_for(1, |note| matches!(note, Note::Gone(1)));
    }

    async fn dropping_the_last_clone_hangs_up(shared: bool) {
        let daemon = Daemon::start();
        let client = Client::connect(daemon.options(shared)).await.unwrap();
        let stream = client.stream(HOLD, b"", &RequestOptions::default()).await.unwrap();
        drop(client);
        daemon.wait_for_request(1, HOLD);
        assert_eq!(daemon.count(|note| matches!(note, Note::Gone(_))), 0);
        drop(stream);
        daemon.wait_for(1, |note| matches!(note, Note::Gone(1)));
    }

    async fn spinning_callers_get_their_answers_too(shared: bool) {
        let daemon = Daemon::start();
        let options = Options { spin: Duration::from_micros(50), ..daemon.options(shared) };
        let client = Client::connect(options).await.unwrap();
        for n in 0..500 {
            let body = pattern(n);
            assert!(client.call(ECHO, &body).await.unwrap() == body);
        }
    }

    async fn a_daemon_that_stays_away_is_given_up_and_tried_again(shared: bool) {
        let mut daemon = Daemon::start();
        let reconnect = ReconnectPolicy { max_attempts: Some(3), ..ReconnectPolicy::default() };
        let options = Options { reconnect, ..daemon.options(shared) };
        let client = Client::connect(options).await.unwrap();
        daemon.kill();
        let error = client.call(ECHO, b"").await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { attempts: 3, .. }), "{error}");
        assert!(error.is_retryable());
        daemon.restart();
        assert_eq!(client.call(ECHO, b"z").await.unwrap(), b"z");
    }
}

#[test]
fn nobody_there_is_told_apart() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let error = Client::connect(Options::new(dir.path().join("none.sock")))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ClientError::Connect(ConnectError::NotRunning { .. })),
            "{error}"
        );
        assert!(error.is_retryable());
    });
}

#[test]
fn a_client_lives_on_a_runtime_of_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let client = Client::connect(daemon.options(true)).await.unwrap();
        let call = client.call(ECHO, b"alone");
        let answer = tokio::time::timeout(support::LIMIT, call).await.unwrap();
        assert_eq!(answer.unwrap(), b"alone");
    });
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
