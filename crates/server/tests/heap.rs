//! What a burst of requests took of the heap goes back once the server is quiet. A process of its own: nobody else allocates.
#![cfg(target_env = "gnu")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapce_ai_proto::MessageType;
use support::{Carrier, Client, Daemon, OWN, eventually, options};

/// Bytes that all requests together have on the heap.
const TAKEN: usize = REQUESTS * BLOCKS * BLOCK;
const REQUESTS: usize = 16;
const BLOCKS: usize = 1024;
const BLOCK: usize = 1024;

fn anonymous() -> usize {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn a_burst_leaves_nothing_behind() {
    if option_env!("RUSTFLAGS").is_some_and(|flags| flags.contains("sanitizer")) {
        let why = b"skipped: the sanitizer has an allocator of its own\n";
        io::stderr().write_all(why).unwrap();
        return;
    }
    // All have their blocks at once, and each leaves a small one behind its others, where freed memory is what an allocator
    // keeps.
    let (taken, kept) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let (count, keep) = (Arc::clone(&taken), Arc::clone(&kept));
    let daemon = Daemon::with(options(), |server| {
        server.handle_async(MessageType(OWN), move |_, responder| {
            let (count, keep) = (Arc::clone(&count), Arc::clone(&keep));
            async move {
                let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; BLOCK]).collect();
                keep.lock().unwrap().push(vec![1; BLOCK]);
                count.fetch_add(1, Ordering::SeqCst);
                while count.load(Ordering::SeqCst) <= REQUESTS {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let _ = responder.answer(&blocks[0]).await;
            }
        });
    });
    let mut client = Client::new(&daemon, Carrier::SHARED_MEMORY);
    client.echo(100);
    let before = anonymous();
    let ids: Vec<u64> = (0..REQUESTS).map(|_| client.open(OWN, &[])).collect();
    eventually("all have their blocks", || {
        taken.load(Ordering::SeqCst) == REQUESTS
    });
    assert!(anonymous() > before + TAKEN / 2, "the blocks are no memory");
    taken.fetch_add(1, Ordering::SeqCst);
    for id in ids {
        assert_eq!(client.answer(id).len(), BLOCK);
    }
    assert_eq!(kept.lock().unwrap().len(), REQUESTS);
    eventually("most of it has gone back", || {
        anonymous() < before + TAKEN / 8
    });
    client.echo(100);
}
