//! A client on a plain socket that asks much and reads nothing is not read itself, and costs no processor meanwhile. One test in a
//! process of its own, whose threads it looks at.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, and needs not all of the support"
)]

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use lapce_ai_proto::{FIN, Kind};
use support::{Carrier, Client, Daemon, LARGE, LENGTH, options};

/// How much of a processor the reactor has used, in hundredths of a second.
fn used() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of_reactors = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        // Behind the name: the 12th and 13th are user and system time.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let times = [fields[11], fields[12]].map(|time| time.parse::<u64>().unwrap());
        name.starts_with("lapce-ai-ipc")
            .then(|| times.iter().sum::<u64>())
    });
    of_reactors.sum::<u64>()
}

#[test]
fn a_client_that_is_not_read_does_not_keep_the_reactor_awake() {
    let mut options = options();
    options.pool.budget = 1 << 20;
    options.limits.max_streams = 2000;
    let daemon = Daemon::start(options);
    // All of the budget, so that answers are held beside it.
    let mut holder = Client::new(&daemon, Carrier::SHARED_MEMORY);
    let held = holder.begin(LENGTH, 1 << 20, &[]);
    holder.await_credit(held);
    let mut client = Client::with_window(&daemon, Carrier::SOCKET, 1 << 30);
    let ask = |client: &mut Client| {
        let id = client.id();
        client.codec.encode(Kind::Open, FIN, LARGE, id, b"20000")
    };
    let (mut frame, mut sent, mut full) = (ask(&mut client), 0, 0);
    // Until nothing goes into its socket any more for a while: then the daemon does not read it.
    while full < 50 {
        match client.try_bytes(&frame, &mut sent) {
            Some(true) => (frame, sent, full) = (ask(&mut client), 0, 0),
            Some(false) => {
                full += 1;
                thread::sleep(Duration::from_millis(5));
            }
            None => panic!("the daemon is gone"),
        }
    }
    let before = used();
    thread::sleep(Duration::from_secs(1));
    let after = used();
    assert!(
        after - before < 20,
        "{} hundredths of a second",
        after - before
    );
    // Everybody else is served meanwhile.
    holder.echo(1000);
}
