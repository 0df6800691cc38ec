//! A connection that has become quiet gives the memory of its response ring back. One test in a process of its own,
//! since it looks at the process's mappings.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and needs not all of the support"
)]

mod support;

use std::time::{Duration, Instant};

use lapce_ai_server::Options;
use support::{Carrier, Client, Daemon, LARGE, options};

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

#[test]
fn a_quiet_connection_gives_its_pages_back() {
    let daemon = Daemon::start(Options {
        response_capacity: 128 << 10,
        ..options()
    });
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    for _ in 0..2 {
        // Three times around its ring, which both ends have mapped.
        let id = client.open(LARGE, b"400000");
        assert_eq!(client.answer(id).len(), 400_000);
        let used = resident();
        assert!(used >= 2 * 128, "a long answer fills the ring: {used} KiB");
        let began = Instant::now();
        while resident() > used - 2 * 100 {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{} of {used} KiB stay",
                resident()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        client.echo(10);
    }
}
