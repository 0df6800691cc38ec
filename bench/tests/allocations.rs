//! In steady state a message costs no heap allocation, on either side: the real server and the real client, in one process,
//! every thread counted. An echo, one of a window, a message in pieces, an item of a stream; blocking and async.
//!
//! The only test of its binary, because the counter counts every thread.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::System;
use std::fs::Permissions;
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lapce_ai_client::{BlockingClient, Client, MessageType, Options, RequestOptions};
use lapce_ai_server::{Responder, Server};
use lapce_ai_transport::{Listener, RuntimeDir};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ECHO: MessageType = MessageType::ECHO;
/// Items without end.
const ITEMS: MessageType = MessageType(0x8001);
const ROUNDS: usize = 10;

/// That a round comes to allocate nothing. Threads that still start and tables that grow to their size may allocate in
/// the first rounds; what a message costs, it costs in each.
async fn assert_steady(what: &str, mut work: impl AsyncFnMut()) {
    let mut counts = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let counted = Region::new(COUNTING);
        work().await;
        let change = counted.change();
        counts.push(change.allocations + change.reallocations);
        if counts.last() == Some(&0) {
            return;
        }
    }
    panic!("{what} allocate: {counts:?}");
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

async fn blocking(client: &BlockingClient) {
    let mut answer = Vec::new();
    for (len, count) in [(64, 2000), (1024, 2000), (20_000, 500), (1 << 20, 20)] {
        let body = body(len);
        assert_steady(&format!("blocking echoes of {len} bytes"), async || {
            for _ in 0..count {
                client.call_into(ECHO, &body, &mut answer).unwrap();
                assert!(answer == body);
            }
        })
        .await;
    }
    for len in [64, 1024] {
        let body = body(len);
        let mut pending = Vec::with_capacity(64);
        assert_steady(&format!("a window of {len} bytes"), async || {
            for _ in 0..50 {
                for _ in 0..64 {
                    pending.push(client.submit(ECHO, &body).unwrap());
                }
                for one in pending.drain(..) {
                    one.wait_into(&mut answer).unwrap();
                    assert!(answer == body);
                }
            }
        })
        .await;
    }
    let mut items = client
        .stream(ITEMS, &[], &RequestOptions::default())
        .unwrap();
    assert_steady("blocking items", async || {
        for _ in 0..5000 {
            assert!(items.next_into(&mut answer).unwrap());
            assert_eq!(answer.len(), 50);
        }
    })
    .await;
}

async fn nonblocking(client: &Client) {
    let mut answer = Vec::new();
    let options = RequestOptions::default();
    for (len, count) in [(64, 2000), (1024, 2000), (20_000, 500), (1 << 20, 20)] {
        let body = body(len);
        assert_steady(&format!("async echoes of {len} bytes"), async || {
            for _ in 0..count {
                let called = client.call_into(ECHO, &body, &options, &mut answer);
                called.await.unwrap();
                assert!(answer == body);
            }
        })
        .await;
    }
    let mut items = client.stream(ITEMS, &[], &options).await.unwrap();
    assert_steady("async items", async || {
        for _ in 0..5000 {
            assert!(items.next_into(&mut answer).await.unwrap());
            assert_eq!(answer.len(), 50);
        }
    })
    .await;
}

#[test]
fn a_message_allocates_nothing_on_either_side() {
    // The counter counts.
    let counted = Region::new(COUNTING);
    black_box(Vec::<u8>::with_capacity(100));
    assert!(counted.change().allocations > 0);

    let dir = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    let socket = dir.path().join(RuntimeDir::SOCKET);
    let mut server = Server::new(lapce_ai_server::Options::default());
    server.handle(ECHO, |request, reply| reply.send_body(request.into_body()));
    server.handle_async(ITEMS, |_, mut responder: Responder| async move {
        while responder.send(&[1; 50]).await.is_ok() {}
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let listener = Listener::bind(&RuntimeDir::for_socket(&socket)).unwrap();
    let running = server.start(listener, runtime.handle()).unwrap();
    for shared_memory in [true, false] {
        for crc in [false, true] {
            let options = || Options {
                shared_memory,
                crc,
                ..Options::new(&socket)
            };
            let client = BlockingClient::connect(options()).unwrap();
            runtime.block_on(blocking(&client));
            client.close();
            runtime.block_on(async {
                let client = Client::connect(options()).await.unwrap();
                nonblocking(&client).await;
                client.close().await;
            });
        }
    }
    running.handle().shutdown(Duration::ZERO);
    running.join();
}
