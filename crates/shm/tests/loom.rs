//! The ring under loom: every interleaving, within the bound on preemptions, of small transfers.
//!
//! ```text
//! RUSTFLAGS="--cfg ring_loom" cargo test -p lapce-ai-shm --test loom --release
//! ```
//!
//! Loom reports a byte copied while the other side copies it, a sleep that nobody ends (as a
//! deadlock), and a failed assertion. The last line says how many models ran, for CI to check.

#![allow(
    clippy::print_stdout,
    reason = "its output is what this program is for"
)]
#![cfg_attr(
    ring_loom,
    allow(
        clippy::unwrap_used,
        reason = "models are tests, though without the attribute"
    )
)]

#[cfg(not(ring_loom))]
fn main() {
    println!("loom models run: 0 (built without --cfg ring_loom)");
}

#[cfg(ring_loom)]
fn main() {
    models::run_all();
}

#[cfg(ring_loom)]
mod models {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use lapce_ai_shm::{Consumer, HeapStorage, Producer, Storage, publish_and_release};
    use loom::sync::{Condvar, Mutex};
    use loom::thread;

    pub(super) fn run_all() {
        let only = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
        let mut count = 0;
        let mut model = |name: &str, preemptions: usize, courses: &[&str], run: fn(&Seen)| {
            if only
                .as_ref()
                .is_none_or(|only| name.contains(only.as_str()))
            {
                check(name, preemptions, courses, run);
                count += 1;
            }
        };
        let slept = &["awake", "slept"];
        model("wrap", 7, &[], wrap);
        model("restart", 7, &["restart 0", "restart 8"], restart);
        model(
            "restart twice",
            4,
            &["restart 8", "restart 16"],
            restart_twice,
        );
        model(
            "restart or not",
            4,
            &["restart 4", "restart 8"],
            restart_or_not,
        );
        model("data wake-up", 5, slept, data_wake_up);
        model(
            "data wake-up across a restart",
            5,
            slept,
            data_wake_up_across_restart,
        );
        model(
            "data wake-up after a spurious one",
            5,
            slept,
            data_wake_up_after_spurious,
        );
        model("space wake-up", 6, slept, space_wake_up);
        model("space wake-up in parts", 6, slept, space_wake_up_in_parts);
        model("both wake-ups", 4, slept, both_wake_ups);
        model("one fence for both", 3, slept, one_fence_for_both);
        model("trim", 7, &["kept", "trimmed"], trim);
        println!("loom models run: {count}");
    }

    /// The courses that a model's executions took, and how often each.
    #[derive(Default)]
    struct Seen(std::sync::Mutex<BTreeMap<String, usize>>);

    impl Seen {
        fn course(&self, name: String) {
            *self.0.lock().unwrap().entry(name).or_default() += 1;
        }

        fn restart(&self, storage: &impl Storage) {
            let restart = storage.control().producer.restart.load(Ordering::Relaxed);
            self.course(format!("restart {restart}"));
        }

        fn slept(&self, slept: bool) {
            self.course(if slept { "slept" } else { "awake" }.to_owned());
        }
    }

    /// Runs a model, and checks that it really took each of the courses it is about.
    fn check(name: &str, preemptions: usize, courses: &[&str], run: fn(&Seen)) {
        let started = Instant::now();
        let seen = Arc::new(Seen::default());
        let executions = Arc::new(AtomicUsize::new(0));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
        builder.max_branches = 10_000;
        let (in_model, counted) = (Arc::clone(&seen), Arc::clone(&executions));
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(&in_model);
        });
        let seen = seen.0.lock().unwrap();
        println!(
            "loom model {name:?}: {} executions, {:.1?}, courses {seen:?}",
            executions.load(Ordering::Relaxed),
            started.elapsed(),
        );
        for course in courses {
            assert!(
                seen.contains_key(*course),
                "{name} never took the course {course:?}"
            );
        }
    }

    /// What the socket does: a rung bell stays rung until it is drained.
    #[derive(Default)]
    struct Bell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell {
        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }

        fn wait_and_drain(&self) {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    fn ends<const PAGE: usize>(
        capacity: usize,
    ) -> (Producer<HeapStorage<PAGE>>, Consumer<HeapStorage<PAGE>>) {
        let storage = HeapStorage::<PAGE>::new(capacity);
        (Producer::new(storage.clone()), Consumer::new(storage))
    }

    /// Bytes that tell their place in the stream.
    fn numbered(start: u8, len: u8) -> Vec<u8> {
        (start..start + len).collect()
    }

    /// Pushes and publishes each length, polling for room.
    fn push_polling<S: Storage>(producer: &mut Producer<S>, lens: &[u8]) {
        let mut next = 1;
        for len in lens {
            let bytes = numbered(next, *len);
            next += len;
            while !producer.push(&[&bytes]).unwrap() {
                thread::yield_now();
            }
            let _ = producer.publish();
        }
    }

    /// Reads until `total` bytes came, in order, polling.
    fn read_polling<S: Storage>(consumer: &mut Consumer<S>, total: u8) {
        let mut next = 1;
        while next <= total {
            let mut bytes = [0; 16];
            let readable = consumer.readable().unwrap();
            assert_eq!(consumer.peek(0, &mut bytes), readable);
            if readable == 0 {
                thread::yield_now();
                continue;
            }
            assert_eq!(bytes[..readable], numbered(next, readable as u8));
            consumer.consume(readable);
            let _ = consumer.release();
            next += readable as u8;
        }
        assert_eq!(consumer.readable(), Ok(0));
    }

    fn transfer<const PAGE: usize>(seen: &Seen, capacity: usize, lens: &'static [u8]) {
        let (mut producer, mut consumer) = ends::<PAGE>(capacity);
        let writer = thread::spawn(move || {
            push_polling(&mut producer, lens);
            producer
        });
        read_polling(&mut consumer, lens.iter().sum());
        let mut producer = writer.join().unwrap();
        assert_eq!(producer.is_drained(), Ok(true));
        seen.restart(producer.storage());
    }

    fn wrap(_: &Seen) {
        let (mut producer, mut consumer) = ends::<4>(4);
        // Never empty at a push, so the bytes really wrap instead of restarting.
        assert_eq!(producer.push(&[&[1]]), Ok(true));
        let _ = producer.publish();
        let writer = thread::spawn(move || {
            let mut next = 2;
            for len in [2, 3] {
                let bytes = numbered(next, len);
                next += len;
                while !producer.push(&[&bytes[..1], &bytes[1..]]).unwrap() {
                    thread::yield_now();
                }
                let _ = producer.publish();
            }
        });
        read_polling(&mut consumer, 6);
        writer.join().unwrap();
    }

    fn restart(seen: &Seen) {
        transfer::<2>(seen, 8, &[3, 2]);
    }

    fn restart_twice(seen: &Seen) {
        transfer::<2>(seen, 8, &[3, 3, 3]);
    }

    fn restart_or_not(seen: &Seen) {
        transfer::<2>(seen, 4, &[1, 2, 1, 2]);
    }

    /// Reads `total` bytes, sleeping on the bell whenever there are none.
    fn read_sleeping<S: Storage>(
        consumer: &mut Consumer<S>,
        total: u8,
        own: &Bell,
        peers: &Bell,
    ) -> bool {
        let mut slept = false;
        let mut next = 1;
        while next <= total {
            let readable = consumer.readable().unwrap();
            if readable == 0 {
                if consumer.wait_for_data().unwrap() {
                    slept = true;
                    own.wait_and_drain();
                    consumer.awake();
                }
                continue;
            }
            let mut bytes = [0; 16];
            assert_eq!(consumer.peek(0, &mut bytes), readable);
            assert_eq!(bytes[..readable], numbered(next, readable as u8));
            consumer.consume(readable);
            if consumer.release() {
                peers.ring();
            }
            next += readable as u8;
        }
        slept
    }

    /// Pushes, sleeping on the bell while there is no room. Whether it slept.
    fn push_or_sleep<S: Storage>(producer: &mut Producer<S>, bytes: &[u8], own: &Bell) -> bool {
        let mut slept = false;
        while !producer.push(&[bytes]).unwrap() {
            if producer.wait_for_space(bytes.len()).unwrap() {
                slept = true;
                own.wait_and_drain();
            }
        }
        slept
    }

    /// Pushes each length, sleeping on the bell whenever there is no room.
    fn push_sleeping<S: Storage>(
        producer: &mut Producer<S>,
        lens: &[u8],
        own: &Bell,
        peers: &Bell,
    ) -> bool {
        let mut slept = false;
        let mut next = 1;
        for len in lens {
            let bytes = numbered(next, *len);
            next += len;
            slept |= push_or_sleep(producer, &bytes, own);
            if producer.publish() {
                peers.ring();
            }
        }
        slept
    }

    fn wake_data(seen: &Seen, lens: &'static [u8]) {
        let (mut producer, mut consumer) = ends::<2>(8);
        let bell = loom::sync::Arc::new(Bell::default());
        let peers = loom::sync::Arc::clone(&bell);
        let writer = thread::spawn(move || {
            for (at, len) in lens.iter().enumerate() {
                let bytes = numbered(1 + lens[..at].iter().sum::<u8>(), *len);
                assert_eq!(producer.push(&[&bytes]), Ok(true));
                if producer.publish() {
                    peers.ring();
                }
            }
            producer
        });
        let nobody = Bell::default();
        let slept = read_sleeping(&mut consumer, lens.iter().sum(), &bell, &nobody);
        seen.slept(slept);
        seen.restart(writer.join().unwrap().storage());
    }

    fn data_wake_up(seen: &Seen) {
        wake_data(seen, &[1, 1]);
    }

    fn data_wake_up_across_restart(seen: &Seen) {
        wake_data(seen, &[3, 2]);
    }

    /// The consumer is woken by something else first, takes its wish back, and sleeps again.
    fn data_wake_up_after_spurious(seen: &Seen) {
        let (mut producer, mut consumer) = ends::<2>(8);
        let bell = loom::sync::Arc::new(Bell::default());
        let peers = loom::sync::Arc::clone(&bell);
        let writer = thread::spawn(move || {
            assert_eq!(producer.push(&[&[1]]), Ok(true));
            if producer.publish() {
                peers.ring();
            }
        });
        if consumer.wait_for_data().unwrap() {
            consumer.awake();
        }
        seen.slept(read_sleeping(&mut consumer, 1, &bell, &Bell::default()));
        writer.join().unwrap();
    }

    fn wake_space(seen: &Seen, lens: &'static [u8], capacity: usize, step: usize) {
        let (mut producer, mut consumer) = ends::<4>(capacity);
        let bell = loom::sync::Arc::new(Bell::default());
        let own = loom::sync::Arc::clone(&bell);
        let writer =
            thread::spawn(move || push_sleeping(&mut producer, lens, &own, &Bell::default()));
        let total: u8 = lens.iter().sum();
        let mut next = 1;
        while next <= total {
            if consumer.readable().unwrap() == 0 {
                thread::yield_now();
                continue;
            }
            // In steps, so that a release may free less than is wanted.
            let mut bytes = [0; 4];
            let len = consumer.peek(0, &mut bytes[..step]);
            assert_eq!(bytes[..len], numbered(next, len as u8));
            consumer.consume(len);
            next += len as u8;
            if consumer.release() {
                bell.ring();
            }
        }
        seen.slept(writer.join().unwrap());
    }

    fn space_wake_up(seen: &Seen) {
        wake_space(seen, &[3, 3], 4, 4);
    }

    fn space_wake_up_in_parts(seen: &Seen) {
        wake_space(seen, &[4, 4], 4, 2);
    }

    fn both_wake_ups(seen: &Seen) {
        let (mut producer, mut consumer) = ends::<4>(4);
        let producers = loom::sync::Arc::new(Bell::default());
        let consumers = loom::sync::Arc::new(Bell::default());
        let (own, peers) = (producers.clone(), consumers.clone());
        let writer = thread::spawn(move || push_sleeping(&mut producer, &[3, 3], &own, &peers));
        let read_slept = read_sleeping(&mut consumer, 6, &consumers, &producers);
        let write_slept = writer.join().unwrap();
        seen.slept(read_slept || write_slept);
    }

    /// An echo over two rings of one message each: both sides publish and release at once. The tail
    /// may be seen before the head, so a side may have to sleep for room as well as for data.
    fn one_fence_for_both(seen: &Seen) {
        const TURNS: u8 = 2;
        let (mut requests, mut server_requests) = ends::<2>(2);
        let (mut server_responses, mut responses) = ends::<2>(2);
        let client_bell = loom::sync::Arc::new(Bell::default());
        let server_bell = loom::sync::Arc::new(Bell::default());
        let (own, peers) = (server_bell.clone(), client_bell.clone());
        let server = thread::spawn(move || {
            for _ in 0..TURNS {
                let mut bytes = [0; 2];
                while server_requests.readable().unwrap() == 0 {
                    if server_requests.wait_for_data().unwrap() {
                        own.wait_and_drain();
                        server_requests.awake();
                    }
                }
                assert_eq!(server_requests.peek(0, &mut bytes), 2);
                server_requests.consume(2);
                push_or_sleep(&mut server_responses, &bytes, &own);
                if publish_and_release(&mut server_responses, &mut server_requests) {
                    peers.ring();
                }
            }
        });
        let mut slept = false;
        for turn in 0..TURNS {
            slept |= push_or_sleep(&mut requests, &[turn, turn + 10], &client_bell);
            if publish_and_release(&mut requests, &mut responses) {
                server_bell.ring();
            }
            while responses.readable().unwrap() == 0 {
                if responses.wait_for_data().unwrap() {
                    slept = true;
                    client_bell.wait_and_drain();
                    responses.awake();
                }
            }
            let mut bytes = [0; 2];
            assert_eq!(responses.peek(0, &mut bytes), 2);
            assert_eq!(bytes, [turn, turn + 10]);
            responses.consume(2);
        }
        server.join().unwrap();
        seen.slept(slept);
    }

    /// Pages are given back only when nobody reads them: loom would see the clearing race.
    fn trim(seen: &Seen) {
        let (mut producer, mut consumer) = ends::<2>(8);
        let writer = thread::spawn(move || {
            push_polling(&mut producer, &[5]);
            let trimmed = producer.trim().unwrap();
            assert_eq!(producer.push(&[&numbered(6, 3)]), Ok(true));
            let _ = producer.publish();
            trimmed
        });
        read_polling(&mut consumer, 8);
        let trimmed = writer.join().unwrap();
        seen.course(if trimmed { "trimmed" } else { "kept" }.to_owned());
    }
}
