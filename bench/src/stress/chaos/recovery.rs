//! How soon clients that keep the rules were served again, whatever had happened.
//!
//! A client's short echoes are answered all the time, so what it tells is its *gaps*: from one answer to the next, where that took
//! long. A blow to the server explains what follows its beginning in a gap, and what is left of it when service is possible again is
//! how long the blow was felt. All else is blamed on what clients were doing at the time, whichever of them it was.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::attacker::Attack;

/// Who has an answer again within this is served soon.
pub(super) const SOON: Duration = Duration::from_millis(100);
/// Nobody is served again only after this.
const NEVER: Duration = Duration::from_secs(10);
/// How long after its end an attack is to blame for what happens.
const EFFECT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    ServerKilled,
    ServerStopped,
    #[serde(untagged)]
    Clients(Attack),
}

impl Kind {
    fn is_blow(self) -> bool {
        !matches!(self, Self::Clients(_))
    }
}

/// Something that happened, on the clock that all processes share, in nanoseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Event {
    kind: Kind,
    from: u64,
    /// When service was possible again: the new server is ready, or has been continued. Of an attack, its end.
    to: u64,
}

/// What one client told: its gaps in order, and its latest answer.
#[derive(Debug, Clone)]
struct Client {
    gaps: Vec<[u64; 2]>,
    last: u64,
}

/// All that happened, and what the clients told.
#[derive(Debug)]
pub(super) struct Record {
    events: Vec<Event>,
    clients: Vec<Client>,
}

impl Record {
    pub(super) fn new(clients: usize) -> Self {
        let client = Client {
            gaps: Vec::new(),
            last: 0,
        };
        Self {
            events: Vec::new(),
            clients: vec![client; clients],
        }
    }

    /// A blow, in the order in which they come.
    pub(super) fn blow(&mut self, kind: Kind, from: u64, to: u64) {
        self.events.push(Event { kind, from, to });
    }

    /// An attack began then. What is returned stands for it.
    pub(super) fn attack(&mut self, attack: Attack, from: u64) -> usize {
        let kind = Kind::Clients(attack);
        let to = from;
        self.events.push(Event { kind, from, to });
        self.events.len() - 1
    }

    /// It is over.
    pub(super) fn attack_is_over(&mut self, attack: usize, to: u64) {
        self.events[attack].to = to;
    }

    /// What a client tells since it last did.
    pub(super) fn told(&mut self, client: usize, gaps: &[[u64; 2]], last: u64) {
        let client = &mut self.clients[client];
        client.gaps.extend(gaps);
        client.last = last;
    }

    /// A client was told to stop then: until then it has waited.
    pub(super) fn stopped(&mut self, client: usize, at: u64) {
        let client = &mut self.clients[client];
        if at > client.last {
            client.gaps.push([client.last, at]);
        }
    }

    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    pub(super) fn number_of(&self, kind: Kind) -> u64 {
        self.events.iter().filter(|e| e.kind == kind).count() as u64
    }

    /// For the report in JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!(self.events)
    }

    pub(super) fn judged(&self) -> Judged {
        let blows: Vec<Event> = self
            .events
            .iter()
            .filter(|event| event.kind.is_blow())
            .copied()
            .collect();
        let mut by_kind: BTreeMap<Kind, Vec<Option<Duration>>> = BTreeMap::new();
        let mut unexplained = Vec::new();
        for client in &self.clients {
            let gaps = client.gaps.iter();
            let others: Vec<[u64; 2]> = gaps.filter_map(|gap| before_blows(gap, &blows)).collect();
            for event in &self.events {
                let waited = if event.kind.is_blow() {
                    (event.to <= client.last).then(|| left_over(event.to, &client.gaps))
                } else {
                    (event.from <= client.last).then(|| longest(event, &others))
                };
                by_kind.entry(event.kind).or_default().push(waited);
            }
            let lengths = others.iter().map(|[from, to]| nanos(to - from));
            unexplained.extend(lengths.filter(|length| *length > SOON));
        }
        Judged {
            by_kind,
            clients: self.clients.len(),
            unexplained,
        }
    }
}

fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// What of a gap came before the first of the blows in it, which are in order and one at a time.
fn before_blows(&[from, to]: &[u64; 2], blows: &[Event]) -> Option<[u64; 2]> {
    let first = blows.partition_point(|blow| blow.to < from);
    match blows.get(first) {
        Some(blow) if blow.from <= from => None,
        Some(blow) => Some([from, to.min(blow.from)]),
        None => Some([from, to]),
    }
}

/// The first gap that ends after this.
fn first_after(at: u64, gaps: &[[u64; 2]]) -> usize {
    gaps.partition_point(|[_, to]| *to <= at)
}

/// From then to the next answer. What is in no gap has answers close by.
fn left_over(at: u64, gaps: &[[u64; 2]]) -> Duration {
    match gaps.get(first_after(at, gaps)) {
        Some([from, to]) if *from <= at => nanos(to - at),
        _ => Duration::ZERO,
    }
}

/// The longest that was waited while an attack had effect.
fn longest(attack: &Event, gaps: &[[u64; 2]]) -> Duration {
    let until = attack.to + EFFECT.as_nanos() as u64;
    let touched = gaps[first_after(attack.from, gaps)..].iter();
    let touched = touched.take_while(|[from, _]| *from < until);
    touched
        .map(|[from, to]| nanos(to - from.max(&attack.from)))
        .max()
        .unwrap_or_default()
}

/// How long each event left each client without an answer; `None`: for ever.
#[derive(Debug)]
pub(super) struct Judged {
    by_kind: BTreeMap<Kind, Vec<Option<Duration>>>,
    clients: usize,
    /// The gaps of more than [`SOON`] that no blow explains.
    unexplained: Vec<Duration>,
}

impl Judged {
    /// The recoveries that never came, or after [`NEVER`].
    pub(super) fn never(&self) -> u64 {
        let all = self.by_kind.values().flatten();
        all.filter(|waited| waited.is_none_or(|waited| waited > NEVER))
            .count() as u64
    }

    /// Of the blows to the server, those that were felt for longer than [`SOON`], in per cent.
    pub(super) fn blows_not_soon(&self) -> f64 {
        self.not_soon(Kind::is_blow)
    }

    /// The same of attacks.
    pub(super) fn attacks_not_soon(&self) -> f64 {
        self.not_soon(|kind| !kind.is_blow())
    }

    fn not_soon(&self, is_meant: impl Fn(Kind) -> bool) -> f64 {
        let meant = self.by_kind.iter().filter(|(kind, _)| is_meant(**kind));
        let all: Vec<Option<Duration>> = meant.flat_map(|(_, waited)| waited).copied().collect();
        late_percent(&all)
    }

    /// How many gaps of more than [`SOON`] no blow explains.
    pub(super) fn unexplained(&self) -> usize {
        self.unexplained.len()
    }

    /// The longest of them.
    pub(super) fn longest_unexplained(&self) -> Duration {
        self.unexplained.iter().max().copied().unwrap_or_default()
    }

    pub(super) fn table(&self) -> String {
        let mut told = format!(
            "{:<20} {:>8} {:>10} {:>9} {:>9} {:>9} {:>12}",
            "without answer, ms", "events", "x clients", "p50", "p99", "worst", "over 100 ms"
        );
        for (kind, waited) in &self.by_kind {
            let name = serde_json::to_value(kind).ok();
            let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("?");
            let mut times: Vec<Duration> =
                waited.iter().map(|w| w.unwrap_or(Duration::MAX)).collect();
            times.sort_unstable();
            let at = |quantile: f64| {
                let rank = (times.len() as f64 * quantile).ceil() as usize;
                times[rank.saturating_sub(1)].as_secs_f64() * 1e3
            };
            told += &format!(
                "\n{:<20} {:>8} {:>10} {:>9.1} {:>9.1} {:>9.1} {:>10.2} %",
                name.replace('_', " "),
                times.len() / self.clients,
                times.len(),
                at(0.5),
                at(0.99),
                at(1.0),
                late_percent(waited)
            );
        }
        told + "\nkilled: from the new server's readiness; stopped: from SIGCONT; else the longest from the attack's beginning to a second \
                after its end, where no blow explains it. 0: answers less than 4 ms apart"
    }
}

/// The share of those that took longer than [`SOON`], in per cent.
fn late_percent(waited: &[Option<Duration>]) -> f64 {
    let late = waited
        .iter()
        .filter(|waited| waited.is_none_or(|waited| waited > SOON))
        .count();
    100.0 * late as f64 / waited.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const ATTACK: Attack = Attack::ALL[0];

    fn record(gaps: &[[u64; 2]]) -> Record {
        let mut record = Record::new(1);
        let gaps: Vec<[u64; 2]> = gaps.iter().map(|gap| gap.map(|at| at * MS)).collect();
        record.told(0, &gaps, 5000 * MS);
        record
    }

    fn waited(record: &Record, kind: Kind) -> Vec<Option<u64>> {
        let judged = record.judged();
        let waited = judged.by_kind[&kind].iter();
        waited
            .map(|w| w.map(|w| w.as_nanos() as u64 / MS))
            .collect()
    }

    #[test]
    fn a_blow_is_felt_from_when_service_is_possible_again_to_the_next_answer() {
        let mut record = record(&[[100, 200], [300, 1000]]);
        let kind = Kind::ServerKilled;
        for (from, to) in [(110, 150), (210, 250), (260, 300), (4000, 5001)] {
            record.blow(kind, from * MS, to * MS);
        }
        let expected = [Some(50), Some(0), Some(700), None];
        assert_eq!(waited(&record, kind), expected, "and none came any more");
    }

    #[test]
    fn what_no_blow_explains_is_blamed_on_attacks() {
        let mut record = record(&[[100, 300], [1000, 1150], [1400, 1410], [3000, 3120]]);
        record.blow(Kind::ServerStopped, 120 * MS, 290 * MS);
        for at in [90, 950, 1050, 1200, 2500] {
            record.attack(ATTACK, at * MS);
        }
        let expected = [150, 150, 100, 10, 120].map(Some);
        assert_eq!(waited(&record, Kind::Clients(ATTACK)), expected);
        // The last that was felt, and one that went on until it was.
        let long = record.attack(ATTACK, 1160 * MS);
        record.attack_is_over(long, 2100 * MS);
        assert_eq!(waited(&record, Kind::Clients(ATTACK))[5], Some(120));
        let judged = record.judged();
        assert_eq!(judged.unexplained(), 2);
        assert_eq!(judged.longest_unexplained(), Duration::from_millis(150));
        assert_eq!(judged.attacks_not_soon(), 100.0 * 4.0 / 6.0);
        assert_eq!(judged.blows_not_soon(), 0.0);
    }

    #[test]
    fn a_blow_explains_nothing_that_came_before_it() {
        let mut record = record(&[[1000, 1500]]);
        record.attack(ATTACK, 900 * MS);
        record.blow(Kind::ServerStopped, 1300 * MS, 1490 * MS);
        assert_eq!(waited(&record, Kind::Clients(ATTACK)), [Some(300)]);
        assert_eq!(waited(&record, Kind::ServerStopped), [Some(10)]);
    }

    #[test]
    fn who_still_waits_at_the_end_has_waited() {
        let mut record = record(&[]);
        record.attack(ATTACK, 4900 * MS);
        record.stopped(0, 4999 * MS);
        assert_eq!(record.judged().unexplained(), 0, "it had an answer later");
        record.stopped(0, 5500 * MS);
        assert_eq!(waited(&record, Kind::Clients(ATTACK)), [Some(500)]);
        assert_eq!(record.judged().unexplained(), 1);
    }

    #[test]
    fn late_ones_and_those_that_never_came_are_counted() {
        let millis = |n| Some(Duration::from_millis(n));
        let waited = [millis(100), millis(101), None, millis(0)];
        assert_eq!(late_percent(&waited), 50.0);
        assert_eq!(late_percent(&[]), 0.0);
    }
}
