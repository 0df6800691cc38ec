//! What is remembered of connections that were lost, so that a request which comes again is not run again.
//!
//! Ids of streams rise over all connections of a client, so a client's requests need no other number, and those that were
//! taken need no list: of each client that lost a connection the highest id says which ones were. Beside it stand the
//! exceptions, which are few: what was taken and never run, and what still runs and waits to be fetched. So nothing is
//! noted while messages flow, and what is kept is small and bounded.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::session::Session;

/// How much is remembered of connections that were lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatOptions {
    /// Of so many clients, the latest ones: 1024. What another one sends again ends as `outcome_unknown`, unless it is
    /// marked repeatable.
    pub clients: usize,
    /// For so long: 60 s.
    pub age: Duration,
    /// So many requests are run on at once whose connection was lost; further ones end with it: 64.
    pub running: usize,
    /// A request runs on for so long without its client, which may fetch the answer meanwhile, or until the client's process
    /// is seen to be dead. Zero: it ends with its connection. 1 s.
    pub grace: Duration,
}

impl Default for RepeatOptions {
    fn default() -> Self {
        Self {
            clients: 1024,
            age: Duration::from_secs(60),
            running: 64,
            grace: Duration::from_secs(1),
        }
    }
}

/// Ids of all clients together that are kept as exceptions.
const MOST_IDS: usize = 4096;

/// Whose requests they are: the uid by the kernel's word, and the client's random instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Whose {
    pub(crate) uid: u32,
    pub(crate) instance: u128,
}

/// A request that runs on after its connection was lost: its old session, and its id there.
pub(crate) type Running = (Arc<Session>, u64);

/// What is left of a connection that was lost.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The highest id that was taken.
    pub(crate) through: u64,
    /// What was taken and never run, by the first id that each request had.
    pub(crate) spared: Vec<u64>,
    /// What runs on, by the first id.
    pub(crate) running: Vec<(u64, Running)>,
}

/// What is remembered of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its user, by the kernel's word.
    pub uid: u32,
    /// Its random instance.
    pub instance: u128,
    /// How long ago it lost its latest connection.
    pub age: Duration,
    /// The number of its latest connection on which something came again, or 0.
    pub present: u64,
    /// The highest id that was taken.
    pub through: u64,
    /// Those up to it that were taken and never run.
    pub spared: Vec<u64>,
    /// Those above it that were run since.
    pub since: Vec<u64>,
}

/// What is to be done with a request that comes again.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It has not been run.
    Run,
    /// It runs.
    Fetch(Running),
    /// It was run, or nobody knows.
    Refuse,
}

/// The memory. Changed when a connection is lost and when a request comes again, never with a message.
#[derive(Debug)]
pub(crate) struct Repeats {
    options: RepeatOptions,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    clients: HashMap<Whose, Past>,
    /// The losses, oldest first. One that is not its client's latest says nothing any more. All in one piece: a tree's nodes, made
    /// while a burst of requests ends, would each keep a page of the heap from going back.
    order: VecDeque<(u64, Whose)>,
    losses: u64,
    running: usize,
    ids: usize,
}

#[derive(Debug)]
struct Past {
    loss: u64,
    at: Instant,
    /// The latest connection on which something came again.
    present: u64,
    through: u64,
    /// Few clients have any, and a place in the table is there for each.
    exceptions: Option<Box<Exceptions>>,
}

/// What a client's highest id does not tell.
#[derive(Debug, Default)]
struct Exceptions {
    spared: BTreeSet<u64>,
    /// Above `through`, and run since.
    since: BTreeSet<u64>,
    running: HashMap<u64, Running>,
}

impl Past {
    fn ids(&self) -> usize {
        let exceptions = self.exceptions.as_ref();
        exceptions.map_or(0, |of| of.spared.len() + of.since.len())
    }

    /// So much was taken.
    fn take(&mut self, through: u64) {
        self.through = self.through.max(through);
        if let Some(exceptions) = &mut self.exceptions {
            exceptions.since.retain(|id| *id > self.through);
        }
    }

    fn exceptions(&mut self) -> &mut Exceptions {
        self.exceptions.get_or_insert_default()
    }
}

impl Inner {
    /// The client, if this was its latest loss.
    fn latest(&self, loss: u64, whose: Whose) -> Option<&Past> {
        self.clients.get(&whose).filter(|past| past.loss == loss)
    }

    /// Puts a loss in order. Those that say nothing any more go once there are so many.
    fn note(&mut self, loss: u64, whose: Whose, most: usize) {
        if self.order.len() >= most {
            let clients = &self.clients;
            self.order
                .retain(|(loss, whose)| clients.get(whose).is_some_and(|past| past.loss == *loss));
        }
        self.order.push_back((loss, whose));
    }

    /// Forgets what is too much or too old.
    fn forget(&mut self, options: &RepeatOptions, now: Instant) {
        while let Some((loss, whose)) = self.order.front().copied() {
            if let Some(past) = self.latest(loss, whose) {
                let old = now.saturating_duration_since(past.at) >= options.age;
                let over = self.clients.len() > options.clients || self.ids > MOST_IDS;
                if !over && !old {
                    break;
                }
                self.ids -= past.ids();
                self.clients.remove(&whose);
            }
            self.order.pop_front();
        }
    }
}

impl Repeats {
    pub(crate) fn new(options: RepeatOptions) -> Self {
        Self {
            options,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a request runs on without its client.
    pub(crate) fn grace(&self) -> Duration {
        self.options.grace
    }

    /// A place for a request that shall run on, if there is one.
    pub(crate) fn hold(&self) -> bool {
        let mut inner = self.lock();
        let room = inner.running < self.options.running && !self.options.grace.is_zero();
        inner.running += usize::from(room);
        room
    }

    /// A request that ran on does so no more: it was fetched, or has ended.
    pub(crate) fn release(&self) {
        self.lock().running -= 1;
    }

    /// A request that ran on and was not fetched has ended.
    pub(crate) fn unfetched(&self, whose: Whose, first: u64) {
        let mut inner = self.lock();
        let past = inner.clients.get_mut(&whose);
        if let Some(exceptions) = past.and_then(|past| past.exceptions.as_mut()) {
            exceptions.running.remove(&first);
        }
    }

    /// The client has let go of its connections before this one. False: nothing is known of the client, and so that is not
    /// noted.
    pub(crate) fn let_go(&self, whose: Whose, connection: u64) -> bool {
        let mut inner = self.lock();
        let Some(past) = inner.clients.get_mut(&whose) else {
            return false;
        };
        past.present = past.present.max(connection);
        true
    }

    /// Whether the client has let go of a connection before it was even served: it was on its way to its reactor.
    pub(crate) fn is_let_go(&self, whose: Whose, connection: u64) -> bool {
        let inner = self.lock();
        let past = inner.clients.get(&whose);
        past.is_some_and(|past| connection < past.present)
    }

    /// A client's connection that has taken so much is on its way from one reactor or daemon to another, where nobody sees
    /// it: a request that comes again meanwhile must not be taken for one that never came.
    pub(crate) fn on_its_way(&self, whose: Whose, through: u64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // Whoever is not remembered is refused anyway.
        if let Some(past) = inner.clients.get_mut(&whose) {
            inner.ids -= past.ids();
            past.take(through);
            inner.ids += past.ids();
        }
    }

    /// A connection takes nothing more: so much was taken, and what may yet come of it is not known elsewhere.
    pub(crate) fn taken(&self, whose: Whose, through: u64, now: Instant) {
        let left = Left {
            through,
            ..Left::default()
        };
        self.lost(whose, left, now);
    }

    /// A connection was lost.
    pub(crate) fn lost(&self, whose: Whose, left: Left, now: Instant) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.losses += 1;
        let loss = inner.losses;
        let past = inner.clients.entry(whose).or_insert_with(|| Past {
            loss,
            at: now,
            present: 0,
            through: 0,
            exceptions: None,
        });
        inner.ids -= past.ids();
        (past.loss, past.at) = (loss, now);
        past.take(left.through);
        if !left.spared.is_empty() || !left.running.is_empty() {
            let exceptions = past.exceptions();
            exceptions.spared.extend(left.spared);
            exceptions.running.extend(left.running);
        }
        inner.ids += past.ids();
        inner.note(loss, whose, 2 * self.options.clients);
        inner.forget(&self.options, now);
    }

    /// Gives back what memory it can: for moments of quiet. After a crowd has gone the tables would keep room for it for good.
    pub(crate) fn shrink(&self, now: Instant) {
        let mut inner = self.lock();
        inner.forget(&self.options, now);
        inner.clients.shrink_to_fit();
        inner.order.shrink_to_fit();
    }

    /// A request comes again that had this id at first.
    pub(crate) fn judge(&self, whose: Whose, sequence: u64, now: Instant) -> Verdict {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(past) = inner.clients.get_mut(&whose) else {
            return Verdict::Refuse;
        };
        if now.saturating_duration_since(past.at) >= self.options.age {
            return Verdict::Refuse;
        }
        if let Some(exceptions) = &mut past.exceptions {
            if let Some(running) = exceptions.running.remove(&sequence) {
                return Verdict::Fetch(running);
            }
            if exceptions.spared.remove(&sequence) {
                inner.ids -= 1;
                return Verdict::Run;
            }
        }
        let is_new = sequence > past.through && inner.ids < MOST_IDS;
        if is_new && past.exceptions().since.insert(sequence) {
            inner.ids += 1;
            return Verdict::Run;
        }
        Verdict::Refuse
    }

    /// What the next daemon has to know: oldest first. Requests that run on stay here: nobody fetches them there.
    pub(crate) fn export(&self, now: Instant) -> Vec<Remembered> {
        let inner = self.lock();
        let in_order = inner.order.iter();
        let clients =
            in_order.filter_map(|(loss, whose)| Some((whose, inner.latest(*loss, *whose)?)));
        clients
            .map(|(whose, past)| {
                let exceptions = past.exceptions.as_ref();
                let ids = |of: fn(&Exceptions) -> &BTreeSet<u64>| {
                    let ids = exceptions.into_iter().flat_map(|exceptions| of(exceptions));
                    ids.copied().collect()
                };
                Remembered {
                    uid: whose.uid,
                    instance: whose.instance,
                    age: now.saturating_duration_since(past.at),
                    present: past.present,
                    through: past.through,
                    spared: ids(|exceptions| &exceptions.spared),
                    since: ids(|exceptions| &exceptions.since),
                }
            })
            .collect()
    }

    /// Takes over what another daemon knew. Bounded like everything that is remembered.
    pub(crate) fn import(&self, remembered: Vec<Remembered>, now: Instant) {
        for client in remembered {
            let whose = Whose {
                uid: client.uid,
                instance: client.instance,
            };
            let left = Left {
                through: client.through,
                spared: client.spared,
                running: Vec::new(),
            };
            // A machine that has run for less than that has nothing so old.
            let at = now.checked_sub(client.age).unwrap_or(now);
            self.lost(whose, left, at);
            let mut inner = self.lock();
            let inner = &mut *inner;
            if let Some(past) = inner.clients.get_mut(&whose) {
                past.present = past.present.max(client.present);
                inner.ids -= past.ids();
                let through = past.through;
                for id in client.since.into_iter().filter(|id| *id > through) {
                    past.exceptions().since.insert(id);
                }
                inner.ids += past.ids();
            }
        }
    }

    /// Clients, exceptions, and requests that run on.
    #[cfg(test)]
    fn sizes(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        let order = inner.order.iter();
        let latest = order.filter(|(loss, whose)| inner.latest(*loss, *whose).is_some());
        assert_eq!(inner.clients.len(), latest.count());
        assert!(inner.order.len() <= (2 * self.options.clients).max(1));
        let ids: usize = inner.clients.values().map(Past::ids).sum();
        assert_eq!(ids, inner.ids);
        (inner.clients.len(), inner.ids, inner.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(instance: u128) -> Whose {
        Whose { uid: 7, instance }
    }

    fn left(through: u64, spared: &[u64]) -> Left {
        Left {
            through,
            spared: spared.to_vec(),
            running: Vec::new(),
        }
    }

    fn runs(repeats: &Repeats, whose: Whose, sequence: u64, now: Instant) -> bool {
        matches!(repeats.judge(whose, sequence, now), Verdict::Run)
    }

    #[test]
    fn what_was_taken_is_not_run_again_and_what_was_not_is_run_once() {
        let (repeats, now) = (Repeats::new(RepeatOptions::default()), Instant::now());
        repeats.lost(whose(1), left(10, &[8]), now);
        assert!(!runs(&repeats, whose(1), 10, now));
        assert!(!runs(&repeats, whose(1), 1, now));
        for never_run in [8, 11, 1 << 60] {
            assert!(runs(&repeats, whose(1), never_run, now));
            assert!(!runs(&repeats, whose(1), never_run, now), "once");
        }
        // The connection on which they were run is lost, too.
        repeats.lost(whose(1), left(30, &[]), now);
        for taken in [8, 11, 29, 30, 1 << 60] {
            assert!(!runs(&repeats, whose(1), taken, now), "{taken}");
        }
        assert!(runs(&repeats, whose(1), 31, now));
    }

    #[test]
    fn nobody_has_anything_of_others() {
        let (repeats, now) = (Repeats::new(RepeatOptions::default()), Instant::now());
        repeats.lost(whose(1), left(10, &[8]), now);
        let other_user = Whose {
            uid: 8,
            instance: 1,
        };
        for stranger in [whose(2), other_user] {
            for sequence in [8, 10, 11] {
                assert!(!runs(&repeats, stranger, sequence, now));
            }
        }
        assert!(runs(&repeats, whose(1), 8, now));
    }

    #[test]
    fn what_a_connection_on_its_way_has_taken_is_not_run() {
        let (repeats, now) = (Repeats::new(RepeatOptions::default()), Instant::now());
        repeats.lost(whose(1), left(10, &[8]), now);
        assert!(runs(&repeats, whose(1), 15, now));
        repeats.on_its_way(whose(1), 20);
        repeats.on_its_way(whose(2), 20);
        assert_eq!(repeats.sizes(), (1, 1, 0));
        assert!(!runs(&repeats, whose(1), 15, now) && !runs(&repeats, whose(1), 20, now));
        assert!(runs(&repeats, whose(1), 21, now) && runs(&repeats, whose(1), 8, now));
        assert!(!runs(&repeats, whose(2), 21, now));
    }

    #[test]
    fn the_next_daemon_knows_the_same() {
        let now = Instant::now();
        let before = Repeats::new(RepeatOptions::default());
        let long_ago = now - Duration::from_secs(59);
        before.lost(whose(1), left(10, &[4, 8]), long_ago);
        before.lost(whose(2), left(20, &[]), now);
        assert!(runs(&before, whose(1), 8, now) && runs(&before, whose(1), 12, now));
        before.let_go(whose(2), 77);
        let next = Repeats::new(RepeatOptions::default());
        next.import(before.export(now), now);
        assert_eq!(next.export(now), before.export(now));
        assert_eq!(next.sizes(), before.sizes());
        for run in [1, 8, 10, 12] {
            assert!(!runs(&next, whose(1), run, now), "{run}");
        }
        for never_run in [4, 11, 13] {
            assert!(runs(&next, whose(1), never_run, now), "{never_run}");
        }
        assert!(next.is_let_go(whose(2), 76) && !next.is_let_go(whose(2), 77));
        // What is old stays old.
        let later = now + Duration::from_secs(2);
        assert!(!runs(&next, whose(1), 99, later));
        assert!(runs(&next, whose(2), 99, later));
        // A daemon that remembers less takes the latest.
        let forgetful = Repeats::new(RepeatOptions {
            clients: 1,
            ..RepeatOptions::default()
        });
        forgetful.import(before.export(now), now);
        assert_eq!(forgetful.sizes(), (1, 0, 0));
        assert!(runs(&forgetful, whose(2), 21, now));
    }

    #[test]
    fn what_is_remembered_is_bounded_by_number_and_age() {
        let options = RepeatOptions {
            clients: 10,
            running: 2,
            ..RepeatOptions::default()
        };
        let (repeats, now) = (Repeats::new(options), Instant::now());
        for instance in 0..100_000 {
            repeats.lost(whose(instance), left(5, &[3]), now);
        }
        assert_eq!(repeats.sizes(), (10, 10, 0));
        assert!(!runs(&repeats, whose(99_989), 3, now), "forgotten");
        assert!(runs(&repeats, whose(99_990), 3, now));
        // One client with very many exceptions, of either kind.
        let many: Vec<u64> = (0..2 * MOST_IDS as u64).collect();
        repeats.lost(whose(0), left(1 << 20, &many), now);
        assert_eq!(repeats.sizes(), (0, 0, 0));
        repeats.lost(whose(0), left(5, &[]), now);
        let run = (10..20_000).filter(|sequence| runs(&repeats, whose(0), *sequence, now));
        assert_eq!(run.count(), MOST_IDS);
        // Few clients that come and go again and again.
        for instance in 0..1000 {
            repeats.lost(whose(instance % 3), left(5, &[]), now);
            repeats.sizes();
        }
        assert_eq!(repeats.export(now).len(), repeats.sizes().0);
        // Age.
        let later = now + Duration::from_secs(60);
        assert!(!runs(&repeats, whose(0), 6, later));
        repeats.lost(whose(1), left(5, &[]), later);
        assert_eq!(repeats.sizes(), (1, 0, 0));
        assert!([repeats.hold(), repeats.hold()].iter().all(|held| *held));
        assert!(!repeats.hold());
        repeats.release();
        assert!(repeats.hold());
    }

    #[test]
    fn a_crowd_that_has_gone_takes_no_memory_for_good() {
        // In the table one for each of 1,024 clients, and as much again that is free.
        assert!(size_of::<(Whose, Past)>() <= 80);
        let (repeats, now) = (Repeats::new(RepeatOptions::default()), Instant::now());
        let room = || {
            let inner = repeats.lock();
            (inner.clients.capacity(), inner.order.capacity())
        };
        for instance in 0..1000 {
            repeats.lost(whose(instance), left(5, &[]), now);
        }
        let (later, full) = (now + Duration::from_secs(59), room());
        repeats.lost(whose(1000), left(5, &[3]), later);
        repeats.shrink(later);
        assert!(
            runs(&repeats, whose(999), 6, later),
            "as long as it is remembered"
        );
        assert_eq!(repeats.sizes(), (1001, 2, 0));
        repeats.shrink(now + Duration::from_secs(60));
        assert_eq!(repeats.sizes(), (1, 1, 0));
        assert!(
            room().0 < full.0 / 100 && room().1 < full.1 / 100,
            "{:?}",
            room()
        );
        repeats.shrink(later + Duration::from_secs(60));
        assert_eq!(room(), (0, 0));
    }
}
