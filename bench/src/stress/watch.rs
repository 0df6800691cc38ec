//! Looks at the server while the load runs, and shows a person on a terminal how it goes.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::connections::memory;
use crate::measure::Latency;

/// So many moments are kept of a run, however long it is.
const MOMENTS: u32 = 400;
/// From one look to the next.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// What was seen at one moment, and since the one before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Moment {
    /// Since the load began.
    pub(super) seconds: f64,
    /// Of the server, in bytes; `None`: it was dead.
    pub(super) memory: Option<Held>,
    /// Messages with their answers.
    pub(super) per_second: f64,
    /// In nanoseconds.
    pub(super) latency: Option<Latency>,
}

/// Bytes that a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Held {
    pub(super) rss: u64,
    /// Its own, and its share of what it shares.
    pub(super) pss_anon: u64,
    pub(super) pss_shmem: u64,
}

impl Held {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let memory = memory(pid)?;
        Ok(Self {
            rss: memory.rss,
            pss_anon: memory.pss_anon,
            pss_shmem: memory.pss_shmem,
        })
    }

    /// What bounds are about.
    pub(super) fn own(self) -> u64 {
        self.pss_anon + self.pss_shmem
    }
}

#[cfg(test)]
impl Moment {
    pub(super) fn examples() -> Vec<Self> {
        let moment = |at: u64| Self {
            seconds: at as f64,
            memory: (at != 3).then_some(Held {
                rss: (5 + at) << 20,
                pss_anon: (1 + at) << 20,
                pss_shmem: 1 << 20,
            }),
            per_second: 1000.0,
            latency: at.is_multiple_of(2).then_some(Latency {
                p50: 1000,
                p99: 20_000 * (1 + at),
                p999: 300_000,
                max: 4_000_000,
                samples: 10,
            }),
        };
        (0..8).map(moment).collect()
    }
}

/// Keeps moments.
pub(super) struct Watch {
    began: Instant,
    interval: Duration,
    bar: ProgressBar,
    /// Seconds and messages at the moment before.
    before: (f64, u64),
    moments: Vec<Moment>,
    /// The most memory that was seen.
    peak: Held,
}

impl Watch {
    /// For a load that should last so long. On a terminal a bar is shown; elsewhere nothing is.
    pub(super) fn new(what: &'static str, expected: Duration) -> Result<Self> {
        // Nothing is drawn unless standard error is a terminal.
        let bar = ProgressBar::new(expected.as_millis() as u64);
        let style =
            "{prefix} {bar:30} {percent:>3} % {elapsed_precise} of {duration_precise}  {msg}";
        bar.set_style(ProgressStyle::with_template(style)?);
        bar.set_prefix(what);
        Ok(Self {
            began: Instant::now(),
            interval: interval(expected),
            bar,
            before: (0.0, 0),
            moments: Vec::new(),
            peak: Held::default(),
        })
    }

    /// Since the load began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether it is time for a look.
    pub(super) fn is_due(&self) -> bool {
        self.elapsed().as_secs_f64() >= self.before.0 + self.interval.as_secs_f64()
    }

    /// Looks at the server, if there is one. `messages`: all that were answered since the load began.
    pub(super) fn look(
        &mut self,
        server: Option<u32>,
        messages: u64,
        latency: Option<Latency>,
    ) -> Result<()> {
        let memory = server.map(Held::of).transpose()?;
        self.note(memory, messages, latency);
        Ok(())
    }

    /// The same where somebody has looked.
    pub(super) fn note(&mut self, memory: Option<Held>, messages: u64, latency: Option<Latency>) {
        let seconds = self.elapsed().as_secs_f64();
        let (seconds_before, messages_before) = self.before;
        let per_second =
            messages.saturating_sub(messages_before) as f64 / (seconds - seconds_before).max(1e-3);
        self.before = (seconds, messages);
        if let Some(held) = memory
            && held.own() > self.peak.own()
        {
            self.peak = held;
        }
        self.moments.push(Moment {
            seconds,
            memory,
            per_second,
            latency,
        });
        if self.bar.is_hidden() {
            return;
        }
        let memory = memory.map_or("no server".to_owned(), |held| {
            HumanBytes(held.own()).to_string()
        });
        let latency = latency.map_or(String::new(), |latency| {
            format!(", p99 {:.1} µs", latency.p99 as f64 / 1e3)
        });
        let rate = HumanCount(per_second as u64);
        self.bar
            .set_message(format!("{rate} messages/s, {memory}{latency}"));
        self.bar.set_position((seconds * 1e3) as u64);
    }

    /// The most memory that was seen at a look.
    pub(super) fn peak(&self) -> Held {
        self.peak
    }

    /// What was seen.
    pub(super) fn finish(self) -> Vec<Moment> {
        self.bar.finish_and_clear();
        self.moments
    }
}

fn interval(expected: Duration) -> Duration {
    (expected / MOMENTS).clamp(SHORTEST, LONGEST)
}

/// Of latencies that several processes measured: nobody can say more of them together than what the worst says.
pub(super) fn worst(latencies: impl IntoIterator<Item = Latency>) -> Option<Latency> {
    latencies.into_iter().reduce(|one, other| Latency {
        p50: one.p50.max(other.p50),
        p99: one.p99.max(other.p99),
        p999: one.p999.max(other.p999),
        max: one.max.max(other.max),
        samples: one.samples + other.samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_looked_at_less_often() {
        assert_eq!(interval(Duration::from_secs(3)), SHORTEST);
        assert_eq!(interval(Duration::from_secs(400)), Duration::from_secs(1));
        assert_eq!(interval(Duration::from_secs(7200)), LONGEST);
    }

    #[test]
    fn rates_are_of_what_came_since_the_last_look() {
        let mut watch = Watch::new("test", Duration::from_secs(1)).unwrap();
        let held = |rss| Held {
            rss,
            pss_anon: rss,
            pss_shmem: 0,
        };
        watch.note(Some(held(7)), 100, None);
        watch.note(Some(held(5)), 100, None);
        watch.note(None, 50, None);
        assert_eq!(watch.peak(), held(7));
        let moments = watch.finish();
        assert!(moments[0].per_second > 0.0);
        assert_eq!(moments[1].per_second, 0.0);
        assert_eq!((moments[2].per_second, moments[2].memory), (0.0, None));
    }

    #[test]
    fn of_several_processes_the_worst_counts() {
        let latency = |p50, p99| Latency {
            p50,
            p99,
            p999: p99,
            max: p99,
            samples: 2,
        };
        let found = worst([latency(1, 9), latency(3, 4)]).unwrap();
        assert_eq!((found.p50, found.p99, found.samples), (3, 9, 4));
        assert_eq!(worst([]), None);
    }
}
