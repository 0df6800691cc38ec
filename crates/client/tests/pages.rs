//! A client that has become quiet gives the memory of its request ring back. One test in a process of its own, since it
//! looks at the process's mappings.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and needs not all of the support"
)]

mod support;

use std::time::{Duration, Instant};

use lapce_ai_client::{BlockingClient, Client, RequestOptions};
use lapce_ai_proto::MessageType;
use support::{Daemon, HOLD};

const ECHO: MessageType = MessageType::ECHO;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31) as u8).collect()
}

/// Resident KiB of the ring memory that is mapped here, both ends counted.
fn resident() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut sum = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if ours => sum += words.next().unwrap().parse::<u64>().unwrap(),
            Some(first) if !first.ends_with(':') => ours = line.contains("memfd:lapce-ai"),
            _ => {}
        }
    }
    sum
}

/// KiB that go back at least: however fast the other side reads, a piece of 16 KiB and its header lie on five pages, of which
/// the first stays, and both ends map them.
const LEAST: u64 = 2 * 16 - 4;

fn await_less(than: u64) {
    let began = Instant::now();
    while resident() >= than {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{} KiB stay",
            resident()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_quiet_client_gives_its_pages_back() {
    let daemon = Daemon::start();
    let client = BlockingClient::connect(daemon.options(true)).unwrap();
    let body = pattern(1 << 20);
    assert!(client.call(ECHO, &body).unwrap() == body);
    let used = resident();
    assert!(used >= 2 * 64, "a long message fills the ring: {used} KiB");
    // Nothing runs between a blocking client's calls; while one waits long, the ring is given back.
    let held = std::thread::spawn(move || {
        let patient = RequestOptions::with_deadline(Duration::from_secs(3));
        let _ = client.call_with(HOLD, b"", &patient);
        client
    });
    await_less(used - LEAST);
    let client = held.join().unwrap();
    assert!(client.call(ECHO, &body).unwrap() == body);
    client.close();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::connect(daemon.options(true)).await.unwrap();
        assert!(client.call(ECHO, &body).await.unwrap() == body);
        let used = resident();
        tokio::task::spawn_blocking(move || await_less(used - LEAST))
            .await
            .unwrap();
        assert!(client.call(ECHO, &body).await.unwrap() == body);
    });
}
