use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use lapce_ai_providers::{Budget, Clients, Day, NanoUsd, Period, PriceTable, Usage};

use super::*;

/// The longest wait for anything.
const BOUND: Duration = Duration::from_secs(60);

fn entry(model: &str, cost: Option<u64>) -> Entry {
    Entry {
        at: SystemTime::now(),
        client: 1000,
        provider: "p".into(),
        model: model.into(),
        tokens: Usage {
            input_tokens: 3,
            output_tokens: 5,
            ..Usage::default()
        },
        cost: cost.map(NanoUsd::new),
        estimated: false,
        cached: false,
    }
}

fn ledger(path: &Path) -> (Arc<Keeper>, mpsc::Receiver<Before>) {
    Keeper::start(path, Duration::from_secs(86_400))
}

/// What was spent before, once it can be read.
fn spent(before: &mpsc::Receiver<Before>) -> Vec<(Key, Totals)> {
    loop {
        if let Some(sums) = before.recv_timeout(BOUND).unwrap() {
            return sums;
        }
    }
}

fn total(path: &Path) -> Totals {
    let store = Store::look(path).unwrap().unwrap();
    let sums = store.sums(Day::new(0), By::Request).unwrap();
    assert!(sums.len() <= 1);
    sums.first().map_or_else(Totals::default, |sum| sum.totals)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_spent_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/lapce-ai/spend.db");
    let (keeper, before) = ledger(&path);
    assert!(spent(&before).is_empty());
    for _ in 0..10 {
        keeper.record(&entry("m", Some(7)));
    }
    keeper.record(&entry("n", None));
    keeper.close();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let sum = total(&path);
    assert_eq!(
        (
            sum.requests,
            sum.unpriced,
            sum.cost.get(),
            sum.tokens.output_tokens
        ),
        (11, 1, 70, 55)
    );

    let (keeper, before) = ledger(&path);
    let mut sums = spent(&before);
    sums.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(sums.len(), 2);
    assert_eq!((&*sums[0].0.model, sums[0].1.requests), ("m", 10));
    keeper.record(&entry("m", Some(7)));
    keeper.close();
    let store = Store::look(&path).unwrap().unwrap();
    let by = |by| {
        let sums = store.sums(Day::new(0), by).unwrap();
        sums.into_iter()
            .map(|sum| (sum.of, sum.totals.requests))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        by(By::Model),
        [("p/m".to_owned(), 11), ("p/n".to_owned(), 1)]
    );
    assert_eq!(by(By::Client), [("1000".to_owned(), 12)]);
    assert_eq!(by(By::Provider), [("p".to_owned(), 12)]);
    let today = Day::of(SystemTime::now());
    assert_eq!(by(By::Day).len(), 1);
    assert!(store.sums(today.next(), By::Day).unwrap().is_empty());
    let requests = store.requests(Day::new(0), 5).unwrap();
    assert_eq!(requests.len(), 5);
    assert_eq!(requests[0].cost, Some(NanoUsd::new(7)));
}

#[test]
fn a_broken_database_is_put_aside_and_a_new_one_begins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    std::fs::write(
        &path,
        "this is no database, and longer than its header ".repeat(100),
    )
    .unwrap();
    let (keeper, before) = ledger(&path);
    keeper.record(&entry("m", Some(7)));
    until("it is written", || {
        Store::look(&path).is_ok_and(|store| store.is_some()) && total(&path).requests == 1
    });
    assert!(spent(&before).is_empty());
    assert_eq!(keeper.status().1, None);
    keeper.close();
    let aside: Vec<String> = names(dir.path())
        .into_iter()
        .filter(|name| name.starts_with("spend.db.corrupt-"))
        .collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    let kept = std::fs::read_to_string(dir.path().join(&aside[0])).unwrap();
    assert!(kept.starts_with("this is no database"));
}

#[test]
fn a_database_that_breaks_under_way_loses_nothing_that_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let (keeper, _before) = ledger(&path);
    keeper.record(&entry("m", Some(7)));
    until("it is written", || {
        path.exists() && Store::look(&path).is_ok_and(|s| s.is_some()) && total(&path).requests == 1
    });
    keeper.close();
    // A page in the middle, which holds a table: opening works, writing does not.
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xA5);
    std::fs::write(&path, &bytes).unwrap();
    let (keeper, _before) = ledger(&path);
    for _ in 0..3 {
        keeper.record(&entry("m", Some(7)));
    }
    keeper.close();
    assert_eq!(total(&path).requests, 3);
    assert!(
        names(dir.path())
            .iter()
            .any(|name| name.contains(".corrupt-"))
    );
}

#[test]
fn a_database_that_another_daemon_has_begun_anew_is_not_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    drop(Store::open(&path).unwrap());
    let [first, second] = [(); 2].map(|()| {
        let (keeper, before) = ledger(&path);
        spent(&before);
        keeper
    });
    // All tables, under both of them.
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xA5);
    std::fs::write(&path, &bytes).unwrap();
    first.record(&entry("m", Some(7)));
    until("it is put aside", || {
        names(dir.path())
            .iter()
            .any(|name| name.contains(".corrupt-"))
    });
    until("it is written anew", || {
        Store::look(&path).is_ok_and(|store| store.is_some()) && total(&path).requests == 1
    });
    second.record(&entry("m", Some(7)));
    second.close();
    assert_eq!(total(&path).requests, 2);
    first.record(&entry("m", Some(7)));
    first.close();
    assert_eq!(total(&path).requests, 3);
}

#[test]
fn what_cannot_be_written_is_counted_in_memory_and_written_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    // Where the file should be there is a directory, which root cannot write either.
    let path = dir.path().join("spend.db");
    std::fs::create_dir(&path).unwrap();
    let (keeper, before) = ledger(&path);
    for _ in 0..3 {
        keeper.record(&entry("m", Some(7)));
    }
    until("it is told", || keeper.status().1.is_some());
    assert_eq!(before.recv_timeout(BOUND).unwrap(), None);
    std::fs::remove_dir(&path).unwrap();
    until("it is written", || {
        path.exists() && Store::look(&path).is_ok_and(|s| s.is_some()) && total(&path).requests == 3
    });
    until("it is well again", || keeper.status().1.is_none());
    assert!(spent(&before).is_empty());
    keeper.close();
    // It is no file of ours to rename, however broken.
    assert!(
        !names(dir.path())
            .iter()
            .any(|name| name.contains("corrupt"))
    );
}

#[test]
fn what_can_be_read_and_not_be_written_is_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    // A path that is no URI as it stands.
    let dir = dir.path().join("50% of what?#");
    let path = dir.join("spend.db");
    let (keeper, before) = ledger(&path);
    assert!(spent(&before).is_empty());
    keeper.record(&entry("m", Some(7)));
    keeper.record(&entry("m", Some(7)));
    keeper.close();
    // Where SQLite's own file should be there is a link, which it does not follow even for root.
    let blocked = dir.join("spend.db-shm");
    std::os::unix::fs::symlink("nowhere", &blocked).unwrap();
    assert!(Store::open(&path).is_err());
    let (keeper, before) = ledger(&path);
    let sums = before.recv_timeout(BOUND).unwrap().unwrap();
    assert_eq!((sums.len(), sums[0].1.requests), (1, 2));
    keeper.record(&entry("m", Some(7)));
    until("it is told", || keeper.status().1.is_some());
    assert_eq!(total(&path).requests, 2);
    std::fs::remove_file(&blocked).unwrap();
    until("it is written", || total(&path).requests == 3);
    until("it is well again", || keeper.status().1.is_none());
    // What was read already is not told twice.
    assert!(before.recv_timeout(BOUND).is_err());
    keeper.close();
    assert!(!names(&dir).iter().any(|name| name.contains("corrupt")));
}

#[test]
fn a_device_is_never_put_aside() {
    let null = Path::new("/dev/null");
    assert!(Store::open(null).is_err());
    assert!(store::put_aside(null).is_err());
    assert!(null.exists());
}

#[test]
fn a_full_disk_keeps_what_was_written_and_the_rest_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let mut store = Store::open(&path).unwrap();
    let batch = |count: usize| {
        let mut batch = Batch::default();
        for at in 0..count {
            batch.add(&entry(&format!("model-{at}"), Some(1)));
        }
        batch
    };
    let small = batch(5);
    store.write(&small.sums, &small.requests).unwrap();
    // As SQLite tells of a disk without room.
    let pages: i64 = store
        .connection()
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    store
        .connection()
        .pragma_update(None, "max_page_count", pages + 1)
        .unwrap();
    let large = batch(2000);
    let error = store.write(&large.sums, &large.requests).unwrap_err();
    assert!(!error.is_broken(), "{error}");
    assert_eq!(total(&path).requests, 5, "all of a batch or nothing");
    store
        .connection()
        .pragma_update(None, "max_page_count", 1_000_000)
        .unwrap();
    store.write(&large.sums, &large.requests).unwrap();
    assert_eq!(total(&path).requests, 2005);
}

#[test]
fn what_waits_at_the_end_is_written_if_it_can_be_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    drop(Store::open(&path).unwrap());
    // Where SQLite's own file should be there is a link, which it does not follow even for root.
    let blocked = dir.path().join("spend.db-shm");
    std::os::unix::fs::symlink("nowhere", &blocked).unwrap();
    let (keeper, _before) = ledger(&path);
    keeper.record(&entry("m", Some(7)));
    until("it is told", || keeper.status().1.is_some());
    std::fs::remove_file(&blocked).unwrap();
    // The next attempt would be a second away.
    keeper.close();
    assert_eq!(total(&path).requests, 1);
}

#[test]
fn a_database_of_another_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let store = Store::open(&path).unwrap();
    store
        .connection()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(store);
    let (keeper, _before) = ledger(&path);
    until("it is told", || {
        keeper
            .status()
            .1
            .is_some_and(|why| why.contains("another version"))
    });
    keeper.record(&entry("m", Some(7)));
    keeper.close();
    assert!(matches!(Store::look(&path), Err(StoreError::Version(99))));
    assert!(
        !names(dir.path())
            .iter()
            .any(|name| name.contains("corrupt"))
    );
}

#[test]
fn what_waits_for_a_stuck_disk_is_bounded_and_nothing_of_it_is_lost() {
    let mut waiting = Batch::default();
    for round in 0..3 {
        let mut failed = Batch::default();
        for at in 0..MOST_REQUESTS {
            failed.add(&entry(&format!("m{}", at % 50), Some(1)));
        }
        waiting.take_back(failed);
        assert_eq!(waiting.requests.len(), MOST_REQUESTS);
        assert_eq!(waiting.sums.len(), 50);
        assert_eq!(waiting.left_out, (round * MOST_REQUESTS) as u64);
    }
    let requests: u64 = waiting.sums.iter().map(|(_, sum)| sum.requests).sum();
    assert_eq!(requests, 3 * MOST_REQUESTS as u64);
}

#[test]
fn numbers_beyond_those_of_the_database_stop_at_its_largest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let mut store = Store::open(&path).unwrap();
    for _ in 0..3 {
        let mut batch = Batch::default();
        let mut entry = entry("m", Some(u64::MAX));
        entry.tokens.input_tokens = u64::MAX;
        batch.add(&entry);
        store.write(&batch.sums, &batch.requests).unwrap();
    }
    let sum = total(&path);
    assert_eq!(sum.requests, 3);
    assert_eq!(sum.cost, NanoUsd::new(u64::MAX));
    assert_eq!(sum.tokens.input_tokens, i64::MAX as u64);
}

#[test]
fn old_requests_are_forgotten_and_their_sums_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let mut store = Store::open(&path).unwrap();
    let mut batch = Batch::default();
    let mut old = entry("m", Some(1));
    old.at = SystemTime::now() - Duration::from_secs(3 * 86_400);
    batch.add(&old);
    batch.add(&entry("m", Some(1)));
    store.write(&batch.sums, &batch.requests).unwrap();
    store
        .forget_requests(Duration::from_secs(2 * 86_400))
        .unwrap();
    assert_eq!(store.requests(Day::new(0), 10).unwrap().len(), 1);
    assert_eq!(total(&path).requests, 2);
}

#[test]
fn what_is_written_is_not_written_again_where_old_requests_cannot_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let store = Store::open(&path).unwrap();
    let refuse =
        "CREATE TRIGGER refuse BEFORE DELETE ON request BEGIN SELECT RAISE(ABORT, 'no'); END";
    store.connection().execute_batch(refuse).unwrap();
    let (keeper, _before) = ledger(&path);
    let mut old = entry("m", Some(1));
    old.at = SystemTime::now() - Duration::from_secs(3 * 86_400);
    keeper.record(&old);
    until("it is written", || total(&path).requests >= 1);
    keeper.record(&entry("m", Some(1)));
    until("the next one is written", || total(&path).requests >= 2);
    assert_eq!(keeper.status().1, None);
    keeper.close();
    assert_eq!(total(&path).requests, 2);
    let listed = store.requests(Day::new(0), 10).unwrap().len();
    assert_eq!(listed, 2, "nothing was forgotten");
}

#[test]
fn what_another_daemon_spends_counts_here_too_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let batch = |model: &str, count: usize| {
        let mut batch = Batch::default();
        (0..count).for_each(|_| batch.add(&entry(model, Some(7))));
        batch
    };
    let mut other = Store::open(&path).unwrap();
    let mut write = |batch: Batch| other.write(&batch.sums, &batch.requests).unwrap();
    write(batch("m", 1));
    let (keeper, before) = ledger(&path);
    let prices = PriceTable::embedded().unwrap();
    let spend = Arc::new(Spend::new(prices, Vec::new(), keeper.clone()));
    load(&keeper, &spend, before);
    let known = || spend.providers().get("p").map(|spend| spend.month);
    until("the start is over", || known().is_some());
    assert_eq!(known().unwrap().requests, 1);
    // What this daemon writes it knows already: these are given to the ledger alone.
    for (round, requests) in [(1, 4), (2, 7)] {
        write(batch("m", 2));
        write(batch("n", 1));
        keeper.record(&entry("m", Some(7)));
        until("it is written", || {
            total(&path).requests == requests + round
        });
        until("the others' is counted", || {
            known().unwrap().requests >= requests
        });
    }
    keeper.record(&entry("n", Some(7)));
    keeper.close();
    let known = known().unwrap();
    assert_eq!((known.requests, known.cost.get()), (7, 49));
    assert_eq!(total(&path).requests, 10);
}

#[test]
fn a_daemon_that_starts_with_a_wrong_clock_knows_what_was_spent_when_it_is_right() {
    // 2026-11-26, noon.
    const RIGHT: u64 = 1_795_694_400;
    const DAY: u64 = 86_400;
    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }
    for wrong in [0, RIGHT - 40 * DAY, RIGHT - DAY, RIGHT + 40 * DAY] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spend.db");
        let one = |secs| Entry {
            at: at(secs),
            ..entry("m", Some(7))
        };
        let mut before = Batch::default();
        for ago in [0, 3 * DAY, 3 * DAY] {
            before.add(&one(RIGHT - ago));
        }
        let mut other = Store::open(&path).unwrap();
        other.write(&before.sums, &before.requests).unwrap();

        let now = Arc::new(AtomicU64::new(wrong));
        let clock = || {
            let now = Arc::clone(&now);
            move || at(now.load(Ordering::Relaxed))
        };
        let (keeper, before) =
            Keeper::with_clock(&path, Duration::from_secs(DAY), Box::new(clock()));
        let budgets = [Period::Day, Period::Month].map(|period| Budget {
            name: "all".into(),
            period,
            provider: None,
            clients: Clients::All,
            soft: None,
            hard: None,
            refuse_unpriced: false,
        });
        let prices = PriceTable::embedded().unwrap();
        let spend = Spend::with_clock(prices, budgets.into(), keeper.clone(), clock());
        let spend = Arc::new(spend);
        load(&keeper, &spend, before);
        let known = || spend.budgets().into_iter().map(|budget| budget.spent.get());
        // Wrong, right, wrong and right again; what is written meanwhile this daemon knows already.
        for (written, now_it_is) in (4..).zip([wrong, RIGHT, wrong, RIGHT]) {
            now.store(now_it_is, Ordering::Relaxed);
            keeper.record(&one(now_it_is));
            until("it is written", || total(&path).requests == written);
            if now_it_is == RIGHT {
                until("this month is known", || known().eq([7, 21]));
            }
        }
        keeper.close();
        assert!(
            known().eq([7, 21]),
            "{wrong}: {:?}",
            known().collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_disk_that_does_not_answer_holds_no_request_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spend.db");
    let (keeper, before) = ledger(&path);
    spent(&before);
    // Somebody else writes, and takes long.
    let other = Store::open(&path).unwrap();
    other.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    let many = 2 * MOST_REQUESTS;
    for at in 0..many {
        keeper.record(&entry(&format!("m{}", at % 10), Some(1)));
    }
    {
        let waiting = keeper.shared.lock();
        assert!(waiting.requests.len() <= MOST_REQUESTS && waiting.sums.len() <= 10);
    }
    other.connection().execute_batch("COMMIT").unwrap();
    until("all are written", || total(&path).requests == many as u64);
    // Nor does the end wait for it, which is for good here.
    other.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    keeper.record(&entry("m0", Some(1)));
    keeper.close();
    let writer = keeper.thread.lock().unwrap().take();
    assert!(writer.is_some(), "it was not waited for");
    other.connection().execute_batch("COMMIT").unwrap();
    let store = Store::look(&path).unwrap().unwrap();
    let listed = store.requests(Day::new(0), u32::MAX).unwrap().len();
    assert!((MOST_REQUESTS..=many).contains(&listed), "{listed}");
}
