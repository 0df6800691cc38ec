//! The line by itself: who gets memory when. No reactor, no clock, no sleep.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use lapce_ai_transport::PoolOptions;
use proptest::prelude::*;

use super::*;

fn pool(budget: u64) -> BufferPool {
    BufferPool::new(PoolOptions {
        budget,
        ..PoolOptions::default()
    })
}

fn waiter(connection: u64, id: u64, length: u64) -> Waiter {
    Waiter {
        connection,
        reactor: connection as usize % 3,
        token: connection << 32,
        id,
        ty: MessageType::CHAT,
        prefix: OpenPrefix {
            total_length: length,
            ..OpenPrefix::default()
        },
        first: vec![0; 7],
        whole: false,
        deadline: None,
    }
}

/// A line, its pool, and what was granted and is held.
struct Stage {
    line: Line,
    pool: BufferPool,
    held: Vec<Granted>,
}

impl Stage {
    fn new(budget: u64) -> Self {
        Self {
            line: Line::default(),
            pool: pool(budget),
            held: Vec::new(),
        }
    }

    fn enter(&mut self, connection: u64, id: u64, length: u64) {
        let waiter = waiter(connection, id, length);
        let held = &mut self.held;
        self.line
            .enter(waiter, &self.pool, |granted| held.push(granted));
    }

    /// Gives the oldest memory back and serves the line.
    fn release(&mut self) -> Option<(u64, u64)> {
        if self.held.is_empty() {
            return None;
        }
        let granted = self.held.remove(0);
        let who = (granted.waiter.connection, granted.waiter.id);
        drop(granted);
        let held = &mut self.held;
        self.line.advance(&self.pool, |granted| held.push(granted));
        Some(who)
    }

    fn forget(&mut self, connection: u64, id: Option<u64>) -> usize {
        let held = &mut self.held;
        let deliver = |granted| held.push(granted);
        self.line.forget(connection, id, &self.pool, deliver)
    }

    /// Everybody in the order in which they are served from now on, those that hold memory included.
    fn order(mut self) -> Vec<(u64, u64)> {
        let order = std::iter::from_fn(|| self.release()).collect();
        assert!(self.line.is_empty() && self.line.lock().of.is_empty());
        let stats = self.pool.stats();
        assert_eq!((stats.held, stats.waiting), (0, 0));
        order
    }
}

#[test]
fn connections_take_turns_and_each_keeps_its_order() {
    let mut stage = Stage::new(10);
    // The first holds everything and wants more; the others come much later.
    for id in 1..=4 {
        stage.enter(1, id, 10);
    }
    for id in 1..=2 {
        stage.enter(2, id, 10);
        stage.enter(3, id, 10);
    }
    assert_eq!(stage.pool.stats().waiting, 7);
    let order = [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 1),
        (1, 3),
        (2, 2),
        (3, 2),
        (1, 4),
    ];
    assert_eq!(stage.order(), order);
}

#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    let mut stage = Stage::new(100);
    for id in 0..10 {
        stage.enter(id + 10, id, 10);
    }
    stage.enter(1, 1, 100);
    // A flood from many connections that would each fit into what comes back, and that never ends.
    let mut served = Vec::new();
    for round in 0..100 {
        stage.enter(20 + round, 1, 10);
        served.extend(stage.release());
    }
    let turn = served.iter().position(|who| *who == (1, 1));
    // Those who held memory before it go first, and nobody else.
    assert_eq!(turn, Some(10));
}

#[test]
fn one_that_asks_for_much_delays_a_newcomer_by_one_request() {
    let mut stage = Stage::new(10);
    for id in 0..1000 {
        stage.enter(1, id, 10);
    }
    stage.enter(2, 0, 10);
    let order = stage.order();
    assert_eq!(order.iter().position(|who| who.0 == 2), Some(2));
}

#[test]
fn who_is_forgotten_leaves_the_place_to_the_next() {
    let mut stage = Stage::new(10);
    stage.enter(1, 1, 5);
    stage.enter(2, 1, 10);
    stage.enter(3, 1, 5);
    assert_eq!(stage.forget(2, Some(9)), 0, "no such request");
    assert_eq!(stage.held.len(), 1, "the large one is in the way");
    assert_eq!(stage.forget(2, Some(1)), 7, "the bytes of its first piece");
    assert_eq!(stage.held.len(), 2, "served without any release");
    stage.enter(2, 2, 10);
    stage.enter(2, 3, 10);
    assert_eq!(stage.forget(2, None), 14);
    assert_eq!(stage.order(), [(1, 1), (3, 1)]);
}

#[test]
fn deadlines_are_looked_up_by_reactor() {
    let mut stage = Stage::new(1);
    let now = Instant::now();
    for connection in 0..6 {
        let mut waiter = waiter(connection, 1, 2);
        waiter.deadline = (connection < 4).then(|| now + Duration::from_secs(connection));
        let deliver = |_| unreachable!("nothing fits");
        stage.line.enter(waiter, &stage.pool, deliver);
    }
    let expired = |reactor, after| {
        let mut late = stage
            .line
            .expired(reactor, now + Duration::from_secs(after));
        late.sort_unstable();
        late
    };
    assert_eq!(expired(0, 0), [(0, 0, 1)]);
    assert_eq!(expired(0, 3), [(0, 0, 1), (3, 3 << 32, 1)]);
    assert_eq!(expired(1, 9), [(1, 1 << 32, 1)]);
    for connection in 0..6 {
        stage.forget(connection, None);
    }
    assert!(stage.line.is_empty());
}

/// The hook as the server sets it: whoever gives memory back serves the line, with reactors entering, holding and
/// forgetting at the same time. Everybody is served or forgotten, and nothing stays behind.
#[test]
fn nobody_is_left_behind_by_many_threads() {
    const THREADS: u64 = 4;
    const EACH: u64 = 3000;
    let (tell, told) = std::sync::mpsc::channel::<Granted>();
    let shared = std::sync::Arc::new((Line::default(), pool(100), tell));
    let weak = std::sync::Arc::downgrade(&shared);
    shared.1.on_release(move || {
        if let Some(shared) = weak.upgrade() {
            let (line, pool, tell) = &*shared;
            line.advance(pool, |granted| drop(tell.send(granted)));
        }
    });
    let forgotten = AtomicUsize::new(0);
    let served = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shared, forgotten) = (&shared, &forgotten);
            scope.spawn(move || {
                let (line, pool, tell) = &**shared;
                let deliver = |granted| drop(tell.send(granted));
                for id in 0..EACH {
                    let length = 1 + (id * 37 + thread * 11) % 100;
                    line.enter(waiter(thread, id, length), pool, deliver);
                    if id % 5 == 0 && line.forget(thread, Some(id), pool, deliver) > 0 {
                        forgotten.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        // What is served is given back, which serves the next.
        let mut served = 0;
        let until = Instant::now() + Duration::from_secs(60);
        while served + forgotten.load(Ordering::Relaxed) < (THREADS * EACH) as usize {
            // The last ones may be forgotten, and nothing tells of that.
            if let Ok(granted) = told.recv_timeout(Duration::from_millis(20)) {
                drop(granted);
                served += 1;
            }
            assert!(
                Instant::now() < until,
                "somebody is left behind: {:?}",
                shared.1
            );
        }
        served
    });
    let stats = shared.1.stats();
    let ended = served + forgotten.load(Ordering::Relaxed);
    assert_eq!(ended, (THREADS * EACH) as usize);
    assert_eq!((stats.held, stats.waiting), (0, 0));
    assert!(shared.0.is_empty());
}

proptest! {
    /// Whatever comes and goes: the budget holds, a connection's requests keep their order, and nobody is overtaken by
    /// more than one request of each other connection.
    #[test]
    fn turns_are_fair(steps in proptest::collection::vec((0u8..4, 1u64..6, 1u64..=20), 1..200)) {
        let mut stage = Stage::new(20);
        let mut next_id = 0;
        let mut waiting: Vec<(u64, u64)> = Vec::new();
        let mut overtaken: HashMap<(u64, u64), HashMap<u64, usize>> = HashMap::new();
        for (what, connection, length) in steps {
            let before = stage.held.len();
            let mut released = 0;
            match what {
                0 | 1 => {
                    next_id += 1;
                    waiting.push((connection, next_id));
                    stage.enter(connection, next_id, length);
                }
                2 => released = usize::from(stage.release().is_some()),
                _ => {
                    waiting.retain(|who| who.0 != connection);
                    stage.forget(connection, None);
                }
            }
            let new = stage.held[before - released..].iter();
            let new: Vec<_> = new.map(|granted| (granted.waiter.connection, granted.waiter.id)).collect();
            for who in new {
                let first = waiting.iter().position(|waiter| waiter.0 == who.0).unwrap();
                prop_assert_eq!(waiting.remove(first), who, "a connection's order");
                // The first of every other connection has seen one more go before it.
                let mut seen = vec![who.0];
                for other in &waiting {
                    if !seen.contains(&other.0) {
                        seen.push(other.0);
                        let count = overtaken.entry(*other).or_default().entry(who.0).or_default();
                        *count += 1;
                        prop_assert!(*count <= 1, "{other:?} was overtaken twice by {}", who.0);
                    }
                }
            }
            let held: u64 = stage.held.iter().map(|granted| granted.waiter.prefix.total_length).sum();
            prop_assert!(held <= 20 && stage.pool.stats().held == held);
            prop_assert_eq!(stage.pool.stats().waiting, waiting.len() as u64);
        }
    }
}
