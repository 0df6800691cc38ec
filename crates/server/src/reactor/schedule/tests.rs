//! The promises of the schedule, on simulated connections.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A connection that always has something, in frames of one size.
#[derive(Debug, Clone, Copy)]
struct Flood {
    class: Class,
    frame: usize,
}

/// As the reader does: whole frames up to `most` bytes, but one at least.
fn batch(frame: usize, most: usize) -> usize {
    (most / frame).max(1) * frame
}

/// Bytes that each got in so many turns.
fn run(floods: &[Flood], turns: usize) -> Vec<usize> {
    let mut schedule = Schedule::default();
    for (index, flood) in floods.iter().enumerate() {
        schedule.add(index as u32, flood.class);
    }
    let mut got = vec![0; floods.len()];
    for _ in 0..turns {
        let turn = schedule.next().unwrap();
        let flood = floods[turn.index as usize];
        let bytes = batch(flood.frame, turn.most);
        got[turn.index as usize] += bytes;
        schedule.took(turn, bytes, flood.class);
    }
    got
}

fn share(floods: &[Flood], got: &[usize], class: Class) -> f64 {
    let all: usize = got.iter().sum();
    let of: usize = floods
        .iter()
        .zip(got)
        .filter(|(flood, _)| flood.class == class)
        .map(|(_, got)| got)
        .sum();
    of as f64 / all as f64
}

fn flood() -> impl Strategy<Value = Flood> {
    let class = prop_oneof![
        Just(Class::Interactive),
        Just(Class::Normal),
        Just(Class::Bulk)
    ];
    (class, 56..16_500_usize).prop_map(|(class, frame)| Flood { class, frame })
}

proptest! {
    #[test]
    fn bulk_keeps_a_tenth_and_interactive_has_its_quota(
        floods in prop::collection::vec(flood(), 1..12)
    ) {
        let got = run(&floods, 20_000);
        let has = |class| floods.iter().any(|flood| flood.class == class);
        let (interactive, normal, bulk) = (
            3 * u32::from(has(Class::Interactive)) * 5,
            3 * u32::from(has(Class::Normal)),
            2 * u32::from(has(Class::Bulk)),
        );
        // Who is alone among the others has all that is theirs.
        let (normal, bulk) = match (normal, bulk) {
            (0, 2) => (0, 5),
            (3, 0) => (5, 0),
            both => both,
        };
        let all = f64::from(interactive + normal + bulk);
        for (class, weight) in [
            (Class::Interactive, interactive),
            (Class::Normal, normal),
            (Class::Bulk, bulk),
        ] {
            let (due, had) = (f64::from(weight) / all, share(&floods, &got, class));
            prop_assert!((due - had).abs() < 0.01, "{:?}: {} is due, had {}", class, due, had);
        }
    }

    #[test]
    fn equals_share_by_bytes_whatever_their_frames(
        frames in prop::collection::vec(56..16_500_usize, 2..10)
    ) {
        for class in [Class::Interactive, Class::Normal, Class::Bulk] {
            let floods: Vec<_> = frames.iter().map(|frame| Flood { class, frame: *frame }).collect();
            let got = run(&floods, 30_000);
            let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
            // A batch of small frames is not quite full: a frame of 2,100 bytes is taken once in 4,096.
            prop_assert!(*least as f64 > *most as f64 * 0.49, "{:?}", got);
        }
    }

    #[test]
    fn everybody_is_looked_at_in_a_round_and_then_there_is_a_pause(
        classes in prop::collection::vec(flood(), 1..20)
    ) {
        let mut schedule = Schedule::default();
        for (index, flood) in classes.iter().enumerate() {
            schedule.add(index as u32, flood.class);
        }
        for _ in 0..3 {
            let mut looks = HashMap::new();
            while let Some(turn) = schedule.next() {
                *looks.entry(turn.index).or_insert(0) += 1;
                schedule.had_nothing(turn);
            }
            prop_assert_eq!(looks.len(), classes.len());
            prop_assert!(looks.values().all(|looks| *looks == 1));
        }
    }

    /// Whatever happens in whatever order, the lists hold who is hot, each once, and the schedule ends its rounds.
    #[test]
    fn nobody_is_lost(steps in prop::collection::vec((0..5_u8, 0..8_u32, flood()), 1..300)) {
        let mut schedule = Schedule::default();
        let mut hot = std::collections::BTreeSet::new();
        for (step, index, flood) in steps {
            match step {
                0 => {
                    if hot.insert(index) {
                        schedule.add(index, flood.class);
                    }
                }
                1 => {
                    schedule.remove(index);
                    hot.remove(&index);
                }
                _ => {
                    let Some(turn) = schedule.next() else { continue };
                    prop_assert!(hot.contains(&turn.index));
                    match step {
                        2 => schedule.took(turn, flood.frame, flood.class),
                        3 => schedule.had_nothing(turn),
                        _ => {
                            schedule.slept(turn);
                            hot.remove(&turn.index);
                        }
                    }
                }
            }
            prop_assert_eq!(schedule.is_empty(), hot.is_empty());
            let mut found: Vec<_> = schedule.queues.iter().flat_map(|queue| &queue.entries).map(|entry| entry.index).collect();
            found.sort_unstable();
            prop_assert_eq!(found, hot.iter().copied().collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_interactive_connection_is_looked_at_after_every_batch_of_others() {
    let mut schedule = Schedule::default();
    schedule.add(0, Class::Bulk);
    schedule.add(1, Class::Normal);
    schedule.add(2, Class::Interactive);
    let mut others = 0;
    for _ in 0..1000 {
        let turn = schedule.next().unwrap();
        if turn.index == 2 {
            schedule.had_nothing(turn);
            others = 0;
        } else {
            others += 1;
            assert_eq!((others, turn.most), (1, SHORT_BATCH));
            let class = [Class::Bulk, Class::Normal][turn.index as usize];
            schedule.took(turn, 1000, class);
        }
    }
}

#[test]
fn who_asks_now_and_then_comes_first_beside_any_flood() {
    // It asks for 1 KiB each time that bulk has had 64 KiB.
    let mut schedule = Schedule::default();
    schedule.add(0, Class::Bulk);
    schedule.add(1, Class::Interactive);
    let (mut since, mut asked) = (0, 0);
    for _ in 0..10_000 {
        let turn = schedule.next().unwrap();
        if turn.index == 0 {
            schedule.took(turn, 1000, Class::Bulk);
            since += 1000;
            // It is never made to wait for its quota.
            assert!(since <= 65_000, "{since}");
        } else if since >= 64_000 {
            schedule.took(turn, 1024, Class::Interactive);
            since = 0;
            asked += 1;
        } else {
            schedule.had_nothing(turn);
        }
    }
    assert!(asked > 50);
}

#[test]
fn a_class_changes_with_the_latest_request() {
    let mut schedule = Schedule::default();
    schedule.add(0, Class::Normal);
    schedule.add(1, Class::Normal);
    let turn = schedule.next().unwrap();
    assert_eq!((turn.index, turn.most), (0, BATCH));
    schedule.took(turn, 100, Class::Interactive);
    assert_eq!(schedule.next().unwrap().index, 0);
}

#[test]
fn bulk_that_was_away_is_owed_nothing() {
    let mut schedule = Schedule::default();
    schedule.add(0, Class::Interactive);
    for _ in 0..1000 {
        let turn = schedule.next().unwrap();
        schedule.took(turn, 4096, Class::Interactive);
    }
    schedule.add(1, Class::Bulk);
    let mut bulk = 0;
    for _ in 0..1000 {
        let turn = schedule.next().unwrap();
        let (bytes, class) = match turn.index {
            0 => (4096, Class::Interactive),
            _ => (1024, Class::Bulk),
        };
        bulk += usize::from(turn.index == 1);
        schedule.took(turn, bytes, class);
    }
    // A quarter of the bytes, in batches of a quarter of the size: four turns in seven.
    assert!((540..590).contains(&bulk), "{bulk}");
}
