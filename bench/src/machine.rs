//! What the figures were measured on, and who runs on which processor.

use std::fmt;
use std::fs;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use lapce_ai_transport::usable_cpus;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// The processors of a run: the parent's first, the child's second. With fewer than two nobody is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpus(Vec<usize>);

/// Which side of an exchange a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Parent = 0,
    Child = 1,
}

impl Cpus {
    /// Those that this process may use.
    pub(crate) fn allowed() -> Result<Self> {
        let set = sched_getaffinity(None).context("cannot read the processor affinity")?;
        Ok(Self(
            (0..CpuSet::MAX_CPU)
                .filter(|cpu| set.is_set(*cpu))
                .collect(),
        ))
    }

    pub(crate) fn from_list(list: Vec<usize>) -> Self {
        Self(list)
    }

    /// The same with the sides exchanged: for a child that runs where its parent does.
    pub(crate) fn exchanged(&self) -> Self {
        let mut list = self.0.clone();
        if list.len() >= 2 {
            list.swap(0, 1);
        }
        Self(list)
    }

    /// As [`from_list`](Self::from_list) takes it, on a command line.
    pub(crate) fn to_argument(&self) -> String {
        let list: Vec<String> = self.0.iter().map(usize::to_string).collect();
        list.join(",")
    }

    /// Where this side runs, if it is pinned.
    pub(crate) fn of(&self, side: Side) -> Option<usize> {
        if self.0.len() < 2 {
            None
        } else {
            Some(self.0[side as usize])
        }
    }

    /// Whether two processes can run at once, without which nobody should spin.
    pub(crate) fn can_spin(&self) -> bool {
        self.0.len() >= 2 && usable_cpus() >= 2
    }

    /// One for each processor, with that one as the child's.
    pub(crate) fn each(&self) -> Vec<Self> {
        let turned = |by| {
            let mut list = self.0.clone();
            list.rotate_left(by);
            Self(list)
        };
        (0..self.0.len()).map(turned).collect()
    }

    /// The same for the `index`th of many clients: they share what processors the child's side leaves.
    pub(crate) fn for_client(&self, index: usize) -> Self {
        let Some(server) = self.of(Side::Child) else {
            return self.clone();
        };
        let mut others: Vec<usize> = self
            .0
            .iter()
            .copied()
            .filter(|cpu| *cpu != server)
            .collect();
        let others_len = others.len();
        others.rotate_left(index % others_len);
        // A child takes the second place.
        others.insert(0, server);
        Self(others)
    }

    /// Whether the server and one client can each have a processor to themselves, with one more for everybody else.
    pub(crate) fn can_own(&self) -> bool {
        self.0.len() >= 3 && usable_cpus() >= 3
    }

    /// The same run without the parent's processor, which then belongs to whoever is pinned to it.
    pub(crate) fn without_parents(&self) -> Self {
        let mut list = self.0[1..].to_vec();
        // The server stays in the second place.
        list.swap(0, 1);
        Self(list)
    }

    /// Lets this thread, and those it starts from now on, run on all of them again.
    pub(crate) fn unpin(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        set_affinity(&self.0)
    }

    /// Pins this thread, and those it starts from now on, to its side's processor.
    pub(crate) fn pin(&self, side: Side) -> Result<()> {
        // A child inherits its parent's pin. What the transport asks once, how many processors are usable, must be asked
        // of all of them: from one alone it would conclude that spinning is useless.
        self.unpin()?;
        let _ = usable_cpus();
        self.of(side).map_or(Ok(()), |cpu| set_affinity(&[cpu]))
    }
}

fn set_affinity(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).context("cannot pin to a processor")
}

/// Nanoseconds on a clock that all processes of this machine share.
pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The machine and the moment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) usable_cpus: usize,
    /// Parent's and child's processor; empty: not pinned.
    pub(crate) pinned_to: Vec<usize>,
    pub(crate) kernel: String,
    pub(crate) load_average: String,
    pub(crate) date: String,
    pub(crate) version: &'static str,
    pub(crate) build: &'static str,
    /// What one reading of the clock costs; each latency has one in it.
    pub(crate) clock_ns: f64,
}

impl Machine {
    /// Whose two sides run where, in words.
    pub(crate) fn pinned(&self) -> String {
        match self.pinned_to.as_slice() {
            [parent, child] => format!("client on CPU {parent}, server on CPU {child}"),
            _ => "nobody pinned".to_owned(),
        }
    }

    pub(crate) fn look(cpus: &Cpus) -> Self {
        let unknown = || "unknown".to_owned();
        let uname = rustix::system::uname();
        Self {
            cpu: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| cpu_model(&text))
                .unwrap_or_else(unknown),
            usable_cpus: usable_cpus(),
            pinned_to: [Side::Parent, Side::Child]
                .iter()
                .filter_map(|s| cpus.of(*s))
                .collect(),
            kernel: format!(
                "{} {} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            load_average: fs::read_to_string("/proc/loadavg").map_or_else(
                |_| unknown(),
                |text| text.split(' ').take(3).collect::<Vec<_>>().join(" "),
            ),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            clock_ns: clock_cost(),
        }
    }
}

/// The head of a report: two lines, and a third where the figures say nothing.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "lapce-ai-bench {} ({} build), {}",
            self.version, self.build, self.date
        )?;
        write!(
            f,
            "{}, {} usable CPUs; {}; load {}",
            self.cpu, self.usable_cpus, self.kernel, self.load_average
        )?;
        if self.build == "debug" {
            write!(f, "\nA DEBUG BUILD: these figures say nothing about speed.")?;
        }
        Ok(())
    }
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn clock_cost() -> f64 {
    const READINGS: u32 = 10_000;
    let began = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    began.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC: x\nflags\t: fpu\n";
        assert_eq!(cpu_model(text).unwrap(), "AMD EPYC: x");
        assert_eq!(cpu_model("processor: 0"), None);
    }

    #[test]
    fn fewer_than_two_processors_pin_nobody() {
        let one = Cpus::from_list(vec![3]);
        assert_eq!((one.of(Side::Parent), one.can_spin()), (None, false));
        let two = Cpus::from_list(vec![3, 5]);
        assert_eq!(
            (two.of(Side::Child), two.to_argument()),
            (Some(5), "3,5".to_owned())
        );
        assert_eq!(two.exchanged().of(Side::Child), Some(3));
        assert_eq!(two.for_client(5).of(Side::Child), Some(3));
        let three = Cpus::from_list(vec![3, 5, 7]);
        let without = three.without_parents();
        assert_eq!(
            (without.of(Side::Parent), without.of(Side::Child)),
            (Some(7), Some(5))
        );
        assert_eq!(without.for_client(3).of(Side::Child), Some(7));
        let of_clients = [0, 1, 2].map(|index| three.for_client(index).of(Side::Child));
        assert_eq!(of_clients, [Some(3), Some(7), Some(3)]);
    }
}
