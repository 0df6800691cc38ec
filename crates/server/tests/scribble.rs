//! A client that rewrites what lies in its segment, at random and at every moment: ring positions, lengths, payloads. The
//! daemon lives, is right to others, and bounded in memory. One test in a process of its own, whose heap it counts.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and needs not all of the support"
)]

mod support;

use std::alloc::System;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapce_ai_proto::{FIN, Kind};
use lapce_ai_server::Options;
use lapce_ai_shm::Bell;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::{Carrier, Client, Daemon, ECHO, Witness, eventually, options};

const ROUNDS: u64 = 300;

/// Segments that are mapped here, both ends counted.
fn segments() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.matches("memfd:lapce-ai").count()
}

/// Nobody but the witness is there, and no other segment is mapped.
fn await_alone(daemon: &Daemon) {
    daemon.await_quiet(1);
    eventually("only the witness's segment is mapped", || segments() == 2);
}

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes on the heap, of daemon and clients.
fn live() -> usize {
    let stats = COUNTING.stats();
    (stats.bytes_allocated).saturating_sub(stats.bytes_deallocated)
}

/// Numbers without a pattern, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[test]
fn a_client_that_scribbles_over_its_segment_harms_itself_only() {
    let daemon = Daemon::start(Options {
        stall_timeout: Duration::from_millis(50),
        ..options()
    });
    let witness = Witness::new(&daemon, Carrier::SHARED_MEMORY);
    let mut memory = 0;
    for round in 0..ROUNDS {
        if round == ROUNDS / 3 {
            await_alone(&daemon);
            memory = live();
        }
        let mut random = Random(round * 2 + 1);
        let carrier = Carrier {
            shared_memory: true,
            crc: round % 2 == 0,
        };
        let mut client = Client::new(&daemon, carrier);
        let mapping = client.mapping();
        for step in 0..30 {
            // Sometimes a right request, so that it happens at every moment of one.
            if random.below(3) == 0 {
                let frame = client
                    .codec
                    .encode(Kind::Open, FIN, ECHO, step + 1, &[5; 900]);
                if client.try_bytes(&frame, &mut 0).is_none() {
                    break;
                }
            }
            let offset = match random.below(3) {
                // A control word.
                0 => 0x200 + 128 * random.below(8) as usize + 8 * random.below(2) as usize,
                1 => 8 * random.below(4096 / 8) as usize,
                _ => 8 * random.below(mapping.len() as u64 / 8) as usize,
            };
            let word = match random.below(4) {
                0 => random.below(64),
                1 => random.below(40_000),
                2 => 1 << random.below(64),
                _ => random.next(),
            };
            mapping.atomic_u64(offset).store(word, Ordering::SeqCst);
            if Bell::new(&client.socket).ring().is_err() {
                break;
            }
        }
        drop(client);
    }
    await_alone(&daemon);
    let grown = live().saturating_sub(memory);
    assert!(
        grown < 64 << 10,
        "{grown} bytes more than after the first rounds"
    );
    witness.was_served();
    daemon.await_quiet(0);
    Client::new(&daemon, Carrier::SHARED_MEMORY).echo(4000);
}
