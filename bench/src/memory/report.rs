//! What a run found: judged, and told as text.

use std::fmt;

use lapce_ai_client::status::Status;
use lapce_ai_server::Options;
use lapce_ai_shm::layout::segment_len;
use serde::Serialize;

use super::load::{LARGE, Outcome, SMALL, Told};
use super::{Arguments, Sample, Samples};
use crate::machine::Machine;

/// Bytes for everything that is neither payload nor rings. A debug build has 431 KiB more of tables that are relocated as it is
/// loaded (`.data.rel.ro` and `.got`, by `readelf -S`), and so are its own before it does anything.
const BASE: u64 = if cfg!(debug_assertions) {
    3_000_000 + (431 << 10)
} else {
    3_000_000
};
/// Bytes that a connection at rest may cost.
const AT_REST: u64 = 8 << 10;
/// A line of the table of memory: its name, and where its value is.
type Row = (&'static str, fn(&Sample) -> u64);

/// A bound and how it stands to what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Bound {
    pub(crate) what: &'static str,
    pub(crate) found: u64,
    base: u64,
    budget: u64,
    rings: u64,
    pub(super) held: bool,
}

impl Bound {
    /// What it may be at most.
    pub(crate) fn limit(&self) -> u64 {
        self.base + self.budget + self.rings
    }

    /// Of a sample that was taken when nothing had been asked for a while.
    pub(super) fn at_rest(arguments: &Arguments, sample: &Sample) -> Self {
        let connections = arguments.small + arguments.large;
        Self::of("at rest", sample, arguments.budget, AT_REST * connections)
    }

    fn of(what: &'static str, sample: &Sample, budget: u64, rings: u64) -> Self {
        let found = sample.total();
        Self {
            what,
            found,
            base: BASE,
            budget,
            rings,
            held: found <= BASE + budget + rings,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) what: String,
    machine: Machine,
    connections: u64,
    processes: u64,
    window: u16,
    budget: u64,
    pub(crate) small_expected: u64,
    pub(crate) large_expected: u64,
    pub(crate) small: Outcome,
    pub(crate) large: Outcome,
    /// Messages of 1 MiB that were answered by when their process had all answers of 4 KiB.
    large_beside_small: u64,
    lost_connections: u64,
    samples: Samples,
    /// At the peak, of `Pss`; and what it would be if both sides had touched every page.
    ring_bytes_per_connection: f64,
    ring_bytes_at_most: u64,
    pub(crate) bounds: Vec<Bound>,
    /// What the server itself says at the end.
    server: Status,
    /// Why the run failed, if it did.
    pub(crate) broken: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(out, "{}\n", self.what)?;
        self.write_messages(out)?;
        self.write_memory(out)?;
        self.write_buffers(out)?;
        for broken in &self.broken {
            writeln!(out, "FAILED: {broken}")?;
        }
        if self.broken.is_empty() {
            writeln!(out, "nothing lost, every bound holds")?;
        }
        Ok(())
    }
}

impl Report {
    pub(super) fn new(
        arguments: &Arguments,
        machine: Machine,
        samples: Samples,
        told: Vec<Told>,
        server: Status,
    ) -> Self {
        let connections = arguments.small + arguments.large;
        let [small_messages, large_messages] = arguments.messages();
        let budget = arguments.budget;
        let mut small = Outcome::default();
        let mut large = Outcome::default();
        let (mut lost_connections, mut large_beside_small) = (0, 0);
        for told in told {
            small = small.with(told.small);
            large = large.with(told.large);
            lost_connections += told.lost_connections;
            large_beside_small += told.large_beside_small;
        }
        let of = |what, sample: &Sample| Bound::of(what, sample, budget, sample.rings());
        // The server has those of its defaults.
        let rings = Options::default();
        let mut report = Self {
            what: format!(
                "stress level 2: {} connections x {small_messages} messages of 4 KiB beside {} x {large_messages} of 1 MiB, from {} \
                 processes, window {}, closed loop",
                arguments.small, arguments.large, arguments.processes, arguments.window
            ),
            machine,
            connections,
            processes: arguments.processes,
            window: arguments.window,
            budget,
            small_expected: arguments.small * small_messages,
            large_expected: arguments.large * large_messages,
            small,
            large,
            large_beside_small,
            lost_connections,
            ring_bytes_per_connection: samples.peak.rings() as f64 / connections as f64,
            ring_bytes_at_most: segment_len(rings.request_capacity, rings.response_capacity) / 2,
            bounds: vec![
                of("peak", &samples.peak),
                of("nearest", &samples.nearest),
                of("end", &samples.end),
                Bound::at_rest(arguments, &samples.rest),
            ],
            samples,
            server,
            broken: Vec::new(),
        };
        report.broken = report.judge();
        report
    }

    /// What is not as it must be.
    fn judge(&self) -> Vec<String> {
        let mut broken: Vec<String> = self
            .bounds
            .iter()
            .filter(|bound| !bound.held)
            .map(|bound| {
                format!(
                    "{}: {} KiB are over the bound",
                    bound.what,
                    bound.found >> 10
                )
            })
            .collect();
        for (what, outcome, expected) in [
            ("4 KiB", &self.small, self.small_expected),
            ("1 MiB", &self.large, self.large_expected),
        ] {
            let Outcome {
                answered,
                wrong,
                failed,
                errors,
                ..
            } = outcome;
            if *answered != expected || *wrong > 0 || *failed > 0 {
                broken.push(format!(
                    "of {expected} messages of {what}, {answered} were answered, {wrong} with others' bytes, {failed} failed: {errors:?}"
                ));
            }
        }
        if self.samples.most_segments > self.connections {
            broken.push(format!(
                "{} segments were mapped for {} connections",
                self.samples.most_segments, self.connections
            ));
        }
        let Status { counters, pool, .. } = &self.server;
        let cut = [
            ("connections were lost", self.lost_connections),
            ("requests failed at the server", counters.failed),
            ("connections were refused", counters.refused),
            ("connections had a fault", counters.faults),
            ("payload bytes are still held", pool.held),
            (
                "payload bytes were held over the budget",
                pool.peak.saturating_sub(self.budget),
            ),
        ];
        broken.extend(
            cut.iter()
                .filter(|(_, count)| *count > 0)
                .map(|(what, count)| format!("{count} {what}")),
        );
        broken
    }

    fn write_messages(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<9} {:>8} {:>9} {:>6} {:>7} {:>8} {:>11} {:>8} {:>9} {:>9} {:>9}",
            "messages",
            "sent",
            "answered",
            "wrong",
            "failed",
            "seconds",
            "messages/s",
            "MB/s",
            "p50 ms",
            "p99 ms",
            "max ms"
        )?;
        for (what, payload, expected, found) in [
            ("4 KiB", SMALL, self.small_expected, &self.small),
            ("1 MiB", LARGE, self.large_expected, &self.large),
        ] {
            let rate = found.answered as f64 / found.seconds.max(1e-9);
            writeln!(
                out,
                "{what:<9} {expected:>8} {:>9} {:>6} {:>7} {:>8.2} {rate:>11.0} {:>8.0} {:>9.2} {:>9.2} {:>9.2}",
                found.answered,
                found.wrong,
                found.failed,
                found.seconds,
                rate * payload as f64 / 1e6,
                found.p50_ms,
                found.p99_ms,
                found.max_ms
            )?;
        }
        writeln!(
            out,
            "every answer is compared whole with its request. Times are without the first message of each place in a window; of the \
             processes'\np50 and p99 the largest. The first connection had all of its answers after {:.2} s (4 KiB) and {:.2} s (1 MiB), the \
             last after the\nseconds above. Until the 4 KiB were through, {} of the 1 MiB were\n",
            self.small.first_done, self.large.first_done, self.large_beside_small
        )
    }

    fn write_memory(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples = &self.samples;
        let columns = [
            ("started", &samples.started),
            ("open", &samples.open),
            ("peak", &samples.peak),
            ("nearest", &samples.nearest),
            ("end", &samples.end),
            ("rest", &samples.rest),
        ];
        let line = |out: &mut fmt::Formatter<'_>, name: &str, cells: [String; 6]| {
            write!(out, "{name:<26}")?;
            for cell in cells {
                write!(out, " {cell:>9}")?;
            }
            writeln!(out)
        };
        line(
            out,
            "the server's memory, KiB",
            columns.map(|(name, _)| name.to_owned()),
        )?;
        let rows: [Row; 5] = [
            ("Pss_Anon + Pss_Shmem", Sample::total),
            ("  Pss_Anon", |sample| sample.pss_anon),
            ("  Pss_Shmem", |sample| sample.pss_shmem),
            ("  of it no ring", |sample| sample.other_shmem),
            ("Rss_Shmem (rings)", |sample| sample.rss_shmem),
        ];
        for (name, value) in rows {
            line(
                out,
                name,
                columns.map(|(_, sample)| (value(sample) >> 10).to_string()),
            )?;
        }
        writeln!(
            out,
            "{} samples under load. Peak: the most memory. Nearest: the most beside the rings. Rest: asked for nothing\n",
            samples.taken
        )?;
        writeln!(
            out,
            "{:<9} {:>9}    {:>6} + {:>7} + {:>18} = {:>9}",
            "KiB", "found", "base", "budget", "ring cost x number", "bound"
        )?;
        for bound in &self.bounds {
            let Bound {
                what,
                found,
                base,
                budget,
                rings,
                held,
            } = bound;
            let cost = format!(
                "{:.1} x {}",
                *rings as f64 / 1024.0 / self.connections as f64,
                self.connections
            );
            writeln!(
                out,
                "{what:<9} {:>9} {} {:>6} + {:>7} + {cost:>18} = {:>9}",
                found >> 10,
                if *held { "<=" } else { "> " },
                base >> 10,
                budget >> 10,
                bound.limit() >> 10,
            )?;
        }
        writeln!(
            out,
            "A connection's rings cost {:.1} KiB of Pss at the peak ({:.1} KiB touched; {:.1} KiB the most of one), measured; every page \
             touched\nby both sides would be {} KiB. At rest the bound is the {} KiB of criterion 1, not what is measured\n",
            self.ring_bytes_per_connection / 1024.0,
            samples.peak.rss_shmem as f64 / 1024.0 / self.connections as f64,
            samples.peak.largest_segment as f64 / 1024.0,
            self.ring_bytes_at_most >> 10,
            AT_REST >> 10,
        )
    }

    fn write_buffers(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { counters, pool, .. } = &self.server;
        writeln!(
            out,
            "the server says: {} connections, {} requests, {} failed; {} bytes of payload held, {} at most, of {}",
            counters.connections,
            counters.requests,
            counters.failed,
            pool.held,
            pool.peak,
            pool.budget
        )?;
        let mean = pool.waited_micros as f64 / 1e3 / pool.waits.max(1) as f64;
        writeln!(
            out,
            "{} requests had to wait for memory, {mean:.1} ms in the mean, {:.1} ms at most",
            pool.waits,
            pool.longest_wait_micros as f64 / 1e3
        )?;
        writeln!(
            out,
            "{:<9} {:>8} {:>6} {:>5} {:>9} {:>8}",
            "buffers", "in use", "kept", "cap", "hits", "misses"
        )?;
        for tier in &pool.tiers {
            let size = tier
                .size
                .map_or_else(|| "larger".to_owned(), |size| format!("{} KiB", size >> 10));
            writeln!(
                out,
                "{size:<9} {:>8} {:>6} {:>5} {:>9} {:>8}",
                tier.in_use, tier.kept, tier.cap, tier.hits, tier.misses
            )?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::machine::Cpus;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments::of(words).unwrap()
    }

    fn sample(pss_anon: u64, rings: u64) -> Sample {
        Sample {
            pss_anon,
            pss_shmem: rings,
            segments: 600,
            ..Sample::default()
        }
    }

    /// A report of a run in which all was answered, and each sample was this one.
    fn report(each: Sample) -> Report {
        let arguments = arguments(&[]);
        let mut samples = Samples {
            end: each,
            rest: each,
            ..Samples::default()
        };
        samples.under_load(each);
        let told = Told {
            small: Outcome {
                answered: 500_000,
                ..Outcome::default()
            },
            large: Outcome {
                answered: 50_000,
                ..Outcome::default()
            },
            large_beside_small: 0,
            lost_connections: 0,
        };
        let machine = Machine::look(&Cpus::from_list(Vec::new()));
        Report::new(&arguments, machine, samples, vec![told], Status::default())
    }

    #[test]
    fn a_run_is_compressed_down_to_its_window() {
        assert_eq!(arguments(&[]).messages(), [1000, 500]);
        assert_eq!(arguments(&["--quick"]).messages(), [40, 20]);
        assert_eq!(arguments(&["--scale", "100"]).messages(), [16, 16]);
        let few = ["--scale", "100", "--large-messages", "3"];
        assert_eq!(arguments(&few).messages(), [16, 3]);
    }

    #[test]
    fn rings_are_allowed_what_they_cost_and_the_rest_is_bounded() {
        let allowed = BASE + (2 << 20);
        let at_rest = 600 * AT_REST;
        assert_eq!(report(sample(allowed, at_rest)).broken, [""; 0]);
        assert_eq!(
            report(sample(allowed + 1, at_rest)).broken.len(),
            4,
            "each of the four bounds"
        );
        let broken = report(sample(allowed, at_rest + 1)).broken;
        assert!(
            broken.len() == 1 && broken[0].starts_with("at rest"),
            "{broken:?}"
        );
        let other = Sample {
            other_shmem: 1,
            ..sample(allowed, at_rest)
        };
        assert_eq!(report(other).broken.len(), 3, "what is no ring is no ring");
    }

    #[test]
    fn the_worst_samples_are_kept() {
        let mut samples = Samples::default();
        for each in [sample(1, 9), sample(3, 1), sample(2, 2)] {
            samples.under_load(each);
        }
        assert_eq!(
            (samples.peak, samples.nearest, samples.taken),
            (sample(1, 9), sample(3, 1), 3)
        );
    }

    #[test]
    fn what_is_lost_or_wrong_fails_the_run() {
        let changes: [fn(&mut Report); 8] = [
            |report| report.small.answered -= 1,
            |report| report.large.wrong = 1,
            |report| report.large.failed = 1,
            |report| report.lost_connections = 1,
            |report| report.samples.most_segments = 601,
            |report| report.server.counters.failed = 1,
            |report| report.server.pool.held = 1,
            |report| report.server.pool.peak = report.budget + 1,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut report = report(sample(0, 0));
            assert_eq!(report.broken, [""; 0]);
            change(&mut report);
            assert_eq!(report.judge().len(), 1, "change {at}");
        }
    }
}
