//! The ledger: what was spent, kept across restarts in a SQLite database.
//!
//! Entries are merged into sums in memory, and one thread writes them in batches; no request ever waits for the disk. What cannot be
//! written stays in memory, where it is bounded: sums by day, client, provider and model, and the last requests one by one. A database
//! that is broken is put aside, and one that cannot be written is tried again later. The daemon goes on in either case.
//!
//! Two daemons may write to it for a while: after a planned restart the one before finishes what it began. So whoever writes looks
//! whether somebody else has, too, and then counts that as well.
//!
//! It lives in the binary, and not with the providers, since it is I/O: what an answer costs is theirs, where that is kept is not.

mod store;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use lapce_ai_providers::{Book, Day, Entry, Key, Ledger, Spend, Totals};
use lapce_ai_transport::release_thread_cache;

use store::FileId;
pub(crate) use store::{By, RequestRow, Store, StoreError, Sum};

/// So many requests wait to be written one by one, at most. Further ones are in the sums only.
const MOST_REQUESTS: usize = 4096;
/// How long entries are gathered before they are written: what a crash may lose.
const GATHER: Duration = Duration::from_millis(200);
/// After so long without an entry the thread gives back what memory it can.
const QUIET: Duration = Duration::from_millis(500);
/// The wait before a failed write is tried again: the first, which doubles, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often old requests are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(86_400);
/// How long the start waits for what was spent before, and the end for the last write.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many broken databases are put aside in one run: more of them mean that it is not the database.
const MOST_ASIDE: u32 = 3;

/// The ledger of a daemon.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Dropped by the thread when it ends.
    ended: Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    pending: Mutex<Batch>,
    changed: Condvar,
    /// Whom to tell what others spend.
    spend: OnceLock<Weak<Spend>>,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    sums: Book,
    requests: VecDeque<Entry>,
    /// Requests that are in the sums only, since too many waited.
    left_out: u64,
    closing: bool,
    /// Why nothing is written now.
    trouble: Option<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    fn add(&mut self, entry: &Entry) {
        self.sums.add(entry.key(), &entry.into());
        if self.requests.len() < MOST_REQUESTS {
            self.requests.push_back(entry.clone());
        } else {
            self.left_out += 1;
        }
    }

    /// Takes back what could not be written, which is older.
    fn take_back(&mut self, failed: Self) {
        for (key, totals) in failed.sums {
            self.sums.add(key, &totals);
        }
        self.left_out += failed.left_out;
        for entry in failed.requests.into_iter().rev() {
            if self.requests.len() < MOST_REQUESTS {
                self.requests.push_front(entry);
            } else {
                self.left_out += 1;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the time.
type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// What was spent in this month before the start; `None`: it cannot be read now, and comes later.
type Before = Option<Vec<(Key, Totals)>>;

impl Keeper {
    /// Begins to keep the ledger in this file. What is in it already comes when it has been read.
    pub(crate) fn start(
        path: &Path,
        keep_requests: Duration,
    ) -> (Arc<Self>, mpsc::Receiver<Before>) {
        Self::with_clock(path, keep_requests, Box::new(SystemTime::now))
    }

    /// The same by another clock.
    fn with_clock(
        path: &Path,
        keep_requests: Duration,
        clock: Clock,
    ) -> (Arc<Self>, mpsc::Receiver<Before>) {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            pending: Mutex::default(),
            changed: Condvar::new(),
            spend: OnceLock::new(),
        });
        let (send_before, before) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let month = Day::of(clock()).month();
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            keep_requests,
            clock,
            month,
            store: None,
            file: None,
            before: Some(send_before),
            aside: 0,
            forget_at: None,
            known: HashMap::new(),
            read: None,
        };
        let thread = thread::Builder::new()
            .name("lapce-ai-ledger".to_owned())
            .spawn(move || {
                writer.run();
                drop(alive);
            });
        if let Err(error) = &thread {
            tracing::warn!(%error, "no thread for the ledger: what is spent is counted in memory only");
            shared.lock().trouble = Some(format!("no thread: {error}"));
        }
        let keeper = Arc::new(Self {
            shared,
            thread: Mutex::new(thread.ok()),
            ended: Mutex::new(ended),
        });
        (keeper, before)
    }

    /// Where it is kept; and why it is not, if it is not.
    pub(crate) fn status(&self) -> (&Path, Option<String>) {
        (&self.shared.path, self.shared.lock().trouble.clone())
    }

    /// Writes what waits, and ends. A disk that is stuck does not hold it up for more than two seconds.
    pub(crate) fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let waiting = self.shared.lock().sums.len();
            tracing::warn!(
                waiting,
                "the ledger's disk does not answer: what was spent last is not kept"
            );
            return;
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // It has ended; a panic has been told already.
            let _ = thread.join();
        }
    }
}

impl Ledger for Keeper {
    fn record(&self, entry: &Entry) {
        let mut pending = self.shared.lock();
        let was_complete = pending.left_out == 0;
        pending.add(entry);
        let is_new = was_complete && pending.left_out > 0;
        drop(pending);
        self.shared.changed.notify_all();
        if is_new {
            tracing::warn!(
                waiting = MOST_REQUESTS,
                "the ledger's disk does not keep up: further requests are counted, and not listed one by one"
            );
        }
    }

    fn warn(&self, warning: &str) {
        tracing::warn!("{warning}");
    }
}

/// Gives `spend` what was spent before: at once if the disk answers, or else when it does. Later it is given what others spend.
pub(crate) fn load(keeper: &Keeper, spend: &Arc<Spend>, before: mpsc::Receiver<Before>) {
    // A keeper has one, for good.
    let _ = keeper.shared.spend.set(Arc::downgrade(spend));
    match before.recv_timeout(PATIENCE) {
        Ok(Some(sums)) => spend.load(sums),
        Err(mpsc::RecvTimeoutError::Disconnected) => {}
        Ok(None) | Err(mpsc::RecvTimeoutError::Timeout) => {
            tracing::warn!("the ledger cannot be read yet: budgets begin at nothing until it can");
            let spend = Arc::downgrade(spend);
            // It ends with the ledger's thread, if not before.
            let _ = thread::Builder::new()
                .name("lapce-ai-ledger-wait".to_owned())
                .spawn(move || {
                    while let Ok(sums) = before.recv() {
                        if let (Some(sums), Some(spend)) = (sums, spend.upgrade()) {
                            return spend.load(sums);
                        }
                    }
                });
        }
    }
}

/// Adds sums without telling models apart: clients may name any, so there is no bound to their number, and no budget is for one.
fn add_up(to: &mut HashMap<Key, Totals>, sums: impl IntoIterator<Item = (Key, Totals)>) {
    let any: Arc<str> = "".into();
    for (mut key, totals) in sums {
        key.model = Arc::clone(&any);
        to.entry(key).or_default().add(&totals);
    }
}

struct Writer {
    shared: Arc<Shared>,
    keep_requests: Duration,
    clock: Clock,
    /// The first day of this month.
    month: Day,
    store: Option<Store>,
    /// The file that was opened last, or could not be; `None`: there was none. Another one may have its name by now.
    file: Option<FileId>,
    /// Whom to tell what was spent before, once.
    before: Option<mpsc::Sender<Before>>,
    aside: u32,
    /// When old requests are forgotten next; `None`: with the first batch.
    forget_at: Option<Instant>,
    /// What is in the database and was counted here: what was told of the time before, what was written since, what others wrote.
    /// All models are one, and so nothing need be forgotten.
    known: HashMap<Key, Totals>,
    /// The store's version and the month, when it was read last; `None`: it is another connection since.
    read: Option<(i64, Day)>,
}

impl Writer {
    fn run(&mut self) {
        let mut wait = FIRST_WAIT;
        let mut is_last = false;
        // At once, for what was spent before.
        let mut outcome = self.open();
        loop {
            match outcome {
                Ok(()) => {
                    wait = FIRST_WAIT;
                    self.say(None);
                }
                Err(error) => {
                    self.store = None;
                    let mut why = error.to_string();
                    if error.is_broken() && self.aside < MOST_ASIDE {
                        match self.put_aside(&error) {
                            Ok(()) => {
                                outcome = self.open();
                                continue;
                            }
                            Err(also) => why = format!("{why}, and it cannot be put aside: {also}"),
                        }
                    }
                    if is_last {
                        return self.say_what_is_lost(&why);
                    }
                    self.say(Some(why));
                    self.tell_what_can_be_read();
                    // Told to end, it tries once more: the last time may be a minute ago, and there may be room by now.
                    is_last = self.rest(wait);
                    wait = (wait * 2).min(LONGEST_WAIT);
                    if self.before.is_some() {
                        outcome = self.open();
                        continue;
                    }
                }
            }
            let Some(batch) = self.next_batch() else {
                return;
            };
            outcome = self.write(&batch);
            match outcome {
                Ok(()) => {
                    self.know(batch.sums);
                    self.count_others();
                    self.forget_old_requests();
                }
                Err(_) => self.shared.lock().take_back(batch),
            }
        }
    }

    fn open(&mut self) -> Result<(), StoreError> {
        if self.store.is_some() {
            return Ok(());
        }
        // Noted beforehand, since one that is broken may not open.
        self.file = store::file_at(&self.shared.path);
        let store = Store::open(&self.shared.path)?;
        self.file = Some(store.file());
        self.read = None;
        self.turn();
        if let Some(to) = self.before.take() {
            // Before the sums: who writes between the two is seen the next time.
            let version = store.version();
            match version.and_then(|version| Ok((version, store.month(self.month)?))) {
                Ok((version, sums)) => {
                    self.read = Some((version, self.month));
                    self.know(sums.iter().cloned());
                    // Whoever does not wait any more needs nothing.
                    let _ = to.send(Some(sums));
                }
                Err(error) => {
                    self.before = Some(to);
                    return Err(error);
                }
            }
        }
        self.store = Some(store);
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.open()?;
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        store.write(&batch.sums, &batch.requests)
    }

    fn know(&mut self, sums: impl IntoIterator<Item = (Key, Totals)>) {
        add_up(&mut self.known, sums);
    }

    /// Looks which month it is.
    fn turn(&mut self) {
        self.month = Day::of((self.clock)()).month();
    }

    /// Counts what somebody else has written; and after the clock has come to another month, what it did not know of that.
    fn count_others(&mut self) {
        self.turn();
        let (Some(store), Some(spend)) = (&self.store, self.shared.spend.get()) else {
            return;
        };
        let Some(spend) = spend.upgrade() else {
            return;
        };
        let version = match store.version() {
            Ok(version) if self.read == Some((version, self.month)) => return,
            version => version,
        };
        let sums = match version.and_then(|version| Ok((version, store.month(self.month)?))) {
            Ok((version, sums)) => {
                self.read = Some((version, self.month));
                sums
            }
            Err(error) => {
                tracing::debug!(%error, "whether others write to the ledger is looked at with the next batch");
                return;
            }
        };
        let mut written = HashMap::new();
        add_up(&mut written, sums);
        let mut others = Vec::new();
        for (key, totals) in written {
            let known = self.known.get(&key).copied().unwrap_or_default();
            let more = totals.minus(&known);
            if more != Totals::default() {
                others.push((key, more));
            }
        }
        self.know(others.iter().cloned());
        spend.load(others);
    }

    /// Apart from what is written: a batch is in the database even where this fails, and must not be written again.
    fn forget_old_requests(&mut self) {
        let now = Instant::now();
        let is_time = self.forget_at.is_none_or(|at| at <= now);
        let Some(store) = self.store.as_ref().filter(|_| is_time) else {
            return;
        };
        let wait = match store.forget_requests(self.keep_requests) {
            Ok(()) => FORGET_EVERY,
            Err(error) => {
                tracing::warn!(%error, "old requests stay in the ledger until they can be forgotten");
                LONGEST_WAIT
            }
        };
        self.forget_at = now.checked_add(wait);
    }

    /// What there is to write; waits for it. `None`: nothing, and no more will come.
    fn next_batch(&self) -> Option<Batch> {
        let waits = |pending: &mut Batch| pending.is_empty() && !pending.closing;
        let changed = &self.shared.changed;
        let (mut pending, waited) = changed
            .wait_timeout_while(self.shared.lock(), QUIET, waits)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            drop(pending);
            // The heap is trimmed by whoever knows that nothing runs, a little later.
            release_thread_cache();
            pending = changed
                .wait_while(self.shared.lock(), waits)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if pending.is_empty() {
            return None;
        }
        drop(pending);
        self.rest(GATHER);
        let mut pending = self.shared.lock();
        let batch = Batch {
            sums: std::mem::take(&mut pending.sums),
            requests: std::mem::take(&mut pending.requests),
            left_out: std::mem::take(&mut pending.left_out),
            ..Batch::default()
        };
        if batch.left_out > 0 {
            tracing::warn!(
                requests = batch.left_out,
                "some requests are in the ledger's sums only"
            );
        }
        Some(batch)
    }

    /// Waits so long, or until it is told to end; whether it was.
    fn rest(&self, wait: Duration) -> bool {
        let pending = self.shared.lock();
        let (pending, _) = self
            .shared
            .changed
            .wait_timeout_while(pending, wait, |pending| !pending.closing)
            .unwrap_or_else(PoisonError::into_inner);
        pending.closing
    }

    /// Says when it begins to go wrong, and when it works again.
    fn say(&self, trouble: Option<String>) {
        let path = self.shared.path.display();
        let mut pending = self.shared.lock();
        let before = std::mem::replace(&mut pending.trouble, trouble.clone());
        drop(pending);
        match (before, trouble) {
            (None, Some(why)) => tracing::warn!(
                %path, why,
                "the ledger cannot be written: what is spent is counted in memory until it can"
            ),
            (Some(_), None) => tracing::info!(%path, "the ledger is written again"),
            _ => {}
        }
    }

    /// Says what waits still, at the end.
    fn say_what_is_lost(&self, why: &str) {
        let mut lost = Totals::default();
        for (_, totals) in self.shared.lock().sums.iter() {
            lost.add(totals);
        }
        if lost.requests > 0 {
            tracing::warn!(
                requests = lost.requests, cost = %lost.cost, why,
                "the ledger cannot be written at the end either: what was spent last is not kept"
            );
        }
    }

    /// A ledger that cannot be written may be readable: then budgets go on from it.
    fn tell_what_can_be_read(&mut self) {
        let Some(to) = self.before.take() else {
            return;
        };
        let looked = Store::look(&self.shared.path);
        self.turn();
        let month = self.month;
        let sums = looked.and_then(|store| store.map(|store| store.month(month)).transpose());
        let sums = sums.ok().flatten();
        let is_read = sums.is_some();
        self.know(sums.iter().flatten().cloned());
        // Whoever does not wait any more needs nothing.
        let _ = to.send(sums);
        if !is_read {
            self.before = Some(to);
        }
    }

    /// Puts a broken database aside, unless another daemon has: the new one that has its name now stays.
    fn put_aside(&mut self, error: &StoreError) -> io::Result<()> {
        let path = self.shared.path.display();
        let is_there = store::file_at(&self.shared.path) == self.file;
        let aside = is_there.then(|| store::put_aside(&self.shared.path));
        let aside = aside.transpose()?;
        self.aside += 1;
        self.known.clear();
        match aside {
            Some(aside) => tracing::error!(
                %path, %error, aside = %aside.display(),
                "the ledger is broken: it was put aside, and a new one begins"
            ),
            None => tracing::warn!(
                %path, %error,
                "the ledger was broken, and somebody else has put it aside: the one that is there now goes on"
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
