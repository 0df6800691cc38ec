//! The ring against a queue, and against hostile control words.

#![cfg(not(ring_loom))]

mod script;

use std::collections::HashSet;
use std::mem::discriminant;
use std::sync::atomic::Ordering::Relaxed;

use lapce_ai_shm::{Consumer, HeapStorage, Producer, ProducerPosition, RingFault, Storage};
use proptest::prelude::*;

/// Bytes of a script without a scribble: whatever operation would be one becomes a publish.
fn honest() -> impl Strategy<Value = Vec<u8>> {
    // An operation, and two operands that are operations themselves if it takes fewer.
    prop::collection::vec((0..15_u8, 0..15_u8, 0..15_u8), 0..200)
        .prop_map(|steps| steps.into_iter().flat_map(|(a, b, c)| [a, b, c]).collect())
}

fn any_script() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn is_a_queue(script in honest()) {
        script::run(HeapStorage::<4>::new(16), &script);
        script::run(HeapStorage::<16>::new(16), &script);
        script::run(HeapStorage::<8>::new(64), &script);
    }

    #[test]
    fn survives_hostile_words(script in any_script()) {
        script::run(HeapStorage::<4>::new(16), &script);
        script::run(HeapStorage::<8>::new(128), &script);
    }
}

/// What happens to a ring whose ends change hands.
#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Take(usize),
    Trim,
    NextProducer,
    NextConsumer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..20_usize).prop_map(Step::Push),
        4 => (1..40_usize).prop_map(Step::Take),
        1 => Just(Step::Trim),
        2 => Just(Step::NextProducer),
        2 => Just(Step::NextConsumer),
    ];
    prop::collection::vec(step, 0..120)
}

/// Positions near those that a ring may have, and any others.
fn positions() -> impl Strategy<Value = ProducerPosition> {
    let word = || prop_oneof![0..200_u64, (0..8_u64).prop_map(|at| at * 32), any::<u64>()];
    (word(), word(), word(), word()).prop_map(|(tail, seen_head, restart, touched)| {
        ProducerPosition {
            tail,
            seen_head,
            restart,
            touched,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn another_goes_on_where_one_has_stopped(steps in steps()) {
        let (mut producer, mut consumer, storage) = ends();
        let (mut sent, mut taken) = (0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Push(len) => {
                    let bytes: Vec<u8> = (sent..).take(len).map(|at| at as u8).collect();
                    if producer.push(&[&bytes]).unwrap() {
                        sent += len as u64;
                        let _ = producer.publish();
                    }
                }
                Step::Take(most) => {
                    let readable = consumer.readable().unwrap();
                    prop_assert_eq!(readable as u64, sent - taken);
                    let mut bytes = vec![0; most.min(readable)];
                    consumer.peek(0, &mut bytes);
                    consumer.consume(bytes.len());
                    for byte in bytes {
                        prop_assert_eq!(byte, taken as u8);
                        taken += 1;
                    }
                    let _ = consumer.release();
                }
                Step::Trim => drop(producer.trim().unwrap()),
                Step::NextProducer => {
                    let position = producer.position().unwrap();
                    producer = Producer::resume(storage.clone(), &position).unwrap();
                    prop_assert_eq!(producer.position(), Some(position));
                }
                Step::NextConsumer => {
                    let position = consumer.position().unwrap();
                    consumer = Consumer::resume(storage.clone(), position).unwrap();
                }
            }
        }
        prop_assert_eq!(consumer.readable().unwrap() as u64, sent - taken);
    }

    #[test]
    fn a_wrong_position_is_an_error_or_a_fault(
        position in positions(),
        consumed in prop_oneof![0..200_u64, any::<u64>()],
        words in (0..200_u64, 0..200_u64, 0..200_u64),
    ) {
        let (_, _, storage) = ends();
        let control = storage.control();
        control.producer.tail.store(words.0, Relaxed);
        control.producer.restart.store(words.1, Relaxed);
        control.consumer.head.store(words.2, Relaxed);
        if let Ok(mut producer) = Producer::resume(storage.clone(), &position) {
            for len in [1, 7, 32, 3] {
                if producer.push(&[&[0; 32][..len]]).is_err() {
                    break;
                }
                let _ = producer.publish();
            }
            let _ = producer.trim();
            let _ = producer.wait_for_space(32);
        }
        if let Ok(mut consumer) = Consumer::resume(storage, consumed)
            && let Ok(readable) = consumer.readable()
        {
            prop_assert!(readable <= 32);
            let mut bytes = vec![0; readable];
            prop_assert_eq!(consumer.peek(0, &mut bytes), readable);
            consumer.consume(readable);
            let _ = consumer.release();
        }
    }
}

#[test]
fn what_is_under_way_is_no_position() {
    let (mut producer, mut consumer, _) = ends();
    assert!(producer.push(&[b"abc"]).unwrap());
    assert_eq!(producer.position(), None);
    let _ = producer.publish();
    assert_eq!(producer.position().unwrap().tail, 3);
    assert_eq!(consumer.readable().unwrap(), 3);
    // What is there and not consumed is left to the next one.
    assert_eq!(consumer.position(), Some(0));
    consumer.consume(2);
    assert_eq!(consumer.position(), None);
    let _ = consumer.release();
    assert_eq!(consumer.position(), Some(2));
}

/// The scripts really reach what they are for.
#[test]
fn scripts_reach_everything() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut compared, mut jumps, mut trims, mut bells) = (0, 0, 0, 0);
    let mut faults = HashSet::new();
    for _ in 0..4000 {
        let script = honest().new_tree(&mut runner).unwrap().current();
        let report = script::run(HeapStorage::<4>::new(16), &script);
        assert_eq!(report.faults, []);
        compared += report.compared;
        jumps += usize::from(report.jumped);
        trims += report.trims;
        bells += report.bells;
        let script = any_script().new_tree(&mut runner).unwrap().current();
        let report = script::run(HeapStorage::<8>::new(128), &script);
        faults.extend(report.faults.iter().map(discriminant));
    }
    assert!(compared > 10_000 && jumps > 100 && trims > 100 && bells > 100);
    assert_eq!(faults.len(), 6, "every kind of fault was found");
}

type Heap = HeapStorage<8>;

fn ends() -> (Producer<Heap>, Consumer<Heap>, Heap) {
    let storage = Heap::new(32);
    (
        Producer::new(storage.clone()),
        Consumer::new(storage.clone()),
        storage,
    )
}

#[test]
fn tail_faults_have_their_names() {
    let (mut producer, mut consumer, storage) = ends();
    let tail = &storage.control().producer.tail;
    assert_eq!(producer.push(&[b"hello"]), Ok(true));
    assert!(!producer.publish());
    assert_eq!(consumer.readable(), Ok(5));
    tail.store(4, Relaxed);
    assert_eq!(
        consumer.readable(),
        Err(RingFault::TailWentBack { seen: 5, found: 4 })
    );
    tail.store(33, Relaxed);
    let overrun = RingFault::TailOverrun {
        position: 0,
        found: 33,
        capacity: 32,
    };
    assert_eq!(consumer.readable(), Err(overrun));
    assert_eq!(
        overrun.to_string(),
        "the peer's tail 33 is over 32 bytes beyond the position 0"
    );
    // A fault changes nothing: the bytes seen before are still there.
    let mut bytes = [0; 8];
    assert_eq!(consumer.peek(0, &mut bytes), 5);
    assert_eq!(&bytes[..5], b"hello");
}

#[test]
fn restart_faults_have_their_names() {
    let invalid = |position, tail, found| {
        Err(RingFault::RestartInvalid {
            position,
            tail,
            found,
        })
    };
    // (tail, restart): not a multiple; two laps on; beyond the tail.
    for (tail, restart) in [(40, 31), (70, 64), (20, 32)] {
        let (mut producer, mut consumer, storage) = ends();
        assert_eq!(producer.push(&[&[0; 9]]), Ok(true));
        assert!(!producer.publish());
        assert_eq!(consumer.readable(), Ok(9));
        consumer.consume(9);
        assert!(!consumer.release());
        storage.control().producer.restart.store(restart, Relaxed);
        storage.control().producer.tail.store(tail, Relaxed);
        assert_eq!(consumer.readable(), invalid(9, tail, restart));
        assert_eq!(
            consumer.wait_for_data().map(usize::from),
            invalid(9, tail, restart)
        );
    }
    // A valid restart with too much behind it.
    let (_, mut consumer, storage) = ends();
    assert_eq!(consumer.readable(), Ok(0));
    storage.control().producer.tail.store(9, Relaxed);
    assert_eq!(consumer.readable(), Ok(9));
    consumer.consume(9);
    assert!(!consumer.release());
    storage.control().producer.restart.store(32, Relaxed);
    storage.control().producer.tail.store(65, Relaxed);
    let overrun = RingFault::TailOverrun {
        position: 32,
        found: 65,
        capacity: 32,
    };
    assert_eq!(consumer.readable(), Err(overrun));
    // A jump over bytes that were seen and not consumed, or consumed and not released.
    for consumed in [4, 9] {
        let (_, mut consumer, storage) = ends();
        storage.control().producer.tail.store(9, Relaxed);
        assert_eq!(consumer.readable(), Ok(9));
        consumer.consume(consumed);
        storage.control().producer.restart.store(32, Relaxed);
        storage.control().producer.tail.store(33, Relaxed);
        assert_eq!(consumer.readable(), invalid(consumed as u64, 33, 32));
    }
}

#[test]
fn head_faults_have_their_names() {
    let (mut producer, mut consumer, storage) = ends();
    let head = &storage.control().consumer.head;
    assert_eq!(producer.push(&[&[0; 9]]), Ok(true));
    head.store(1, Relaxed);
    // Pushed is not published: no honest consumer has read it.
    assert_eq!(
        producer.free(),
        Err(RingFault::HeadOverrun {
            published: 0,
            found: 1
        })
    );
    head.store(0, Relaxed);
    assert!(!producer.publish());
    assert_eq!(consumer.readable(), Ok(9));
    consumer.consume(9);
    assert!(!consumer.release());
    assert_eq!(producer.is_drained(), Ok(true));
    head.store(8, Relaxed);
    assert_eq!(
        producer.is_drained(),
        Err(RingFault::HeadWentBack { seen: 9, found: 8 })
    );
    assert_eq!(
        producer.trim(),
        Err(RingFault::HeadWentBack { seen: 9, found: 8 })
    );
    head.store(9, Relaxed);
    assert_eq!(producer.trim(), Ok(true));
    head.store(10, Relaxed);
    let gap = RingFault::HeadInGap {
        seen: 9,
        restart: 32,
        found: 10,
    };
    assert_eq!(producer.free(), Err(gap));
    assert_eq!(producer.push(&[&[0; 20]]), Err(gap));
    assert_eq!(producer.wait_for_space(32), Err(gap));
}

#[test]
fn restarts_on_the_first_page_when_empty() {
    let (mut producer, mut consumer, storage) = ends();
    // Each message enters the second page unless the ring restarts, so offset 8 stays untouched.
    for turn in 0..100_u8 {
        assert_eq!(producer.push(&[&[turn + 1; 6]]), Ok(true));
        assert!(!producer.publish());
        assert_eq!(consumer.readable(), Ok(6));
        let mut bytes = [0; 6];
        assert_eq!(consumer.peek(0, &mut bytes), 6);
        assert_eq!(bytes, [turn + 1; 6]);
        consumer.consume(6);
        assert!(!consumer.release());
    }
    let mut beyond = [0xFF; 24];
    storage.read(8, &mut beyond);
    assert_eq!(beyond, [0; 24]);
    assert_eq!(storage.control().producer.restart.load(Relaxed), 99 * 32);
    // Nothing beyond the first page was touched, so there is nothing to give back.
    assert_eq!(producer.trim(), Ok(false));
}

#[test]
fn trim_gives_back_what_was_touched_once() {
    let (mut producer, mut consumer, storage) = ends();
    assert_eq!(producer.push(&[&[7; 20]]), Ok(true));
    assert_eq!(producer.trim(), Ok(false), "not empty");
    assert!(!producer.publish());
    assert_eq!(consumer.readable(), Ok(20));
    consumer.consume(20);
    assert_eq!(producer.trim(), Ok(false), "not released");
    assert!(!consumer.release());
    assert_eq!(producer.trim(), Ok(true));
    let mut bytes = [0; 32];
    storage.read(0, &mut bytes);
    assert_eq!(bytes, [[7; 8], [0; 8], [0; 8], [0; 8]].concat()[..]);
    assert_eq!(producer.trim(), Ok(false), "nothing touched since");
    // The jump is not visible before there is something to read behind it.
    assert_eq!(consumer.readable(), Ok(0));
    assert_eq!(producer.push(&[&[9; 32]]), Ok(true));
    assert!(!producer.publish());
    assert_eq!(consumer.readable(), Ok(32));
}

#[test]
fn push_is_all_or_nothing() {
    let (mut producer, mut consumer, _) = ends();
    assert_eq!(producer.push(&[&[1; 30]]), Ok(true));
    assert_eq!(producer.push(&[&[2; 2], &[3; 1]]), Ok(false));
    assert_eq!(producer.push(&[]), Ok(true));
    assert_eq!(producer.push(&[&[2; 2], &[]]), Ok(true));
    assert_eq!(producer.free(), Ok(0));
    assert!(!producer.publish());
    let mut bytes = [0; 40];
    assert_eq!(consumer.readable(), Ok(32));
    assert_eq!(consumer.peek(0, &mut bytes), 32);
    assert_eq!(bytes[28..33], [1, 1, 2, 2, 0]);
    assert_eq!(consumer.peek(31, &mut bytes), 1);
    assert_eq!(consumer.peek(32, &mut bytes), 0);
    assert_eq!(consumer.peek(usize::MAX, &mut bytes), 0);
    assert_eq!((producer.capacity(), consumer.capacity()), (32, 32));
}

#[test]
fn bell_for_space_waits_for_enough() {
    let (mut producer, mut consumer, _) = ends();
    assert_eq!(producer.push(&[&[1; 32]]), Ok(true));
    assert!(!producer.publish());
    assert_eq!(producer.wait_for_space(10), Ok(true));
    assert_eq!(consumer.readable(), Ok(32));
    consumer.consume(9);
    assert!(!consumer.release(), "nine bytes are not ten");
    consumer.consume(1);
    assert!(consumer.release());
    consumer.consume(1);
    assert!(!consumer.release(), "one bell for one wish");
    assert_eq!(producer.wait_for_space(11), Ok(false));
    assert!(!consumer.release(), "nothing consumed");
}

#[test]
#[should_panic(expected = "a push longer than the ring")]
fn push_longer_than_the_ring_is_a_bug() {
    let _ = ends().0.push(&[&[0; 33]]);
}

#[test]
#[should_panic(expected = "consuming more than is readable")]
fn consuming_the_unreadable_is_a_bug() {
    ends().1.consume(1);
}

#[test]
#[should_panic(expected = "waiting for more space than the ring has")]
fn waiting_for_the_impossible_is_a_bug() {
    let _ = ends().0.wait_for_space(33);
}

#[test]
fn handles_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let (producer, consumer, storage) = ends();
    is_send(&producer);
    is_send(&consumer);
    assert!(format!("{producer:?} {consumer:?} {storage:?}").contains("capacity: 32"));
}
