//! Many connections from one process to one server: what they cost when they have talked and are idle.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_proto::{FIN, Kind, MessageType};
use lapce_ai_transport::{Connection, Spin, flush};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::child::{Child, Parent};
use crate::machine::{Cpus, Machine, Side};
use crate::message::Messages;
use crate::peers::{ServerChild, connect_raw};
use crate::report::print;

/// Payload of each message.
const PAYLOAD: usize = 1 << 10;
/// Descriptors that a process needs beside its connections.
const FURTHER_DESCRIPTORS: u64 = 64;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measure what many idle connections cost.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Connections, all from one process
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Seconds of quiet before idleness is measured
    #[arg(long, default_value_t = 1.0)]
    quiet: f64,
    /// Seconds for which idleness is measured
    #[arg(long, default_value_t = 5.0)]
    idle: f64,
    /// Microseconds that the server spins before it sleeps
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    what: String,
    machine: Machine,
    connections: u64,
    open_seconds: f64,
    /// One message on each connection, one after another.
    serve_seconds: f64,
    before: Memory,
    after: Memory,
    descriptors: u64,
    /// Bytes of `(Pss_Anon + Pss_Shmem)` that came with the connections, for each of them.
    bytes_per_connection: f64,
    idle_seconds: f64,
    idle_cpu_seconds: f64,
    idle_cpu_percent: f64,
    /// Times that a thread of the server was switched to during idleness.
    idle_wake_ups: u64,
    answered_after: u64,
}

/// A process's memory in bytes.
///
/// All from `smaps` and `smaps_rollup`, which walk the page tables at the moment of reading and are exact; the `Rss` lines of
/// `/proc/<pid>/status` are sums of counters that lag behind by up to 64 pages for each thread. A page that two
/// processes have touched counts half in a `Pss` and whole in an `Rss`; one that only the client has touched does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    pss: u64,
    pub(crate) pss_anon: u64,
    pss_file: u64,
    pub(crate) pss_shmem: u64,
    /// Of the mappings of memory files, which is what segments are.
    rss_shmem: u64,
    memfd_mappings: u64,
}

/// A line of the table of memory: its name, and where its value is.
type Line = (&'static str, fn(&Memory) -> u64);

/// Measures and prints. False: an answer was wrong or missing.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    raise_limit(arguments.count)?;
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let machine = Machine::look(&cpus);
    let count = arguments.count;
    let spin = Duration::from_micros(arguments.spin);
    let server = ServerChild::start(&cpus, spin, usize::try_from(count)? + 1)?;
    let socket = server.socket();
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    let pid = server.child.pid();
    // On the parent's processor, which does nothing meanwhile, so that the server has its own.
    let mut holder = Child::start(&["holder", socket], &cpus.exchanged(), &[])?;
    let before = memory(pid)?;
    let open_seconds = seconds(&holder.ask(&format!("open {count}"))?)?;
    let serve_seconds = seconds(&holder.ask("serve")?)?;
    let after = memory(pid)?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;

    thread::sleep(Duration::try_from_secs_f64(arguments.quiet)?);
    let (cpu_before, switches_before) = (cpu_time(pid)?, switches(pid)?);
    let began = Instant::now();
    thread::sleep(Duration::try_from_secs_f64(arguments.idle)?);
    let idle_cpu = cpu_time(pid)?.saturating_sub(cpu_before);
    let idle_wake_ups = switches(pid)? - switches_before;
    let idle_seconds = began.elapsed().as_secs_f64();

    let still = holder.ask("serve");
    let all_answer = still.is_ok();
    if let Err(error) = &still {
        writeln!(
            io::stderr(),
            "not all connections answer after idleness: {error:#}"
        )?;
    }
    let private = |memory: Memory| memory.pss_anon + memory.pss_shmem;
    let report = Report {
        what: format!(
            "{count} connections from one process, each served one message of {PAYLOAD} bytes, then idle"
        ),
        machine,
        connections: count,
        open_seconds,
        serve_seconds,
        before,
        after,
        descriptors,
        bytes_per_connection: private(after).saturating_sub(private(before)) as f64
            / count.max(1) as f64,
        idle_seconds,
        idle_cpu_seconds: idle_cpu.as_secs_f64(),
        idle_cpu_percent: 100.0 * idle_cpu.as_secs_f64() / idle_seconds,
        idle_wake_ups,
        answered_after: if all_answer { count } else { 0 },
    };
    print(&report, arguments.json)?;
    if all_answer {
        holder.finish()?;
        server.child.finish()?;
    }
    Ok(all_answer)
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(out, "{}\n", self.what)?;
        writeln!(
            out,
            "opened in {:.3} s ({:.1} µs each), served in {:.3} s ({:.1} µs each)",
            self.open_seconds,
            self.open_seconds * 1e6 / self.connections as f64,
            self.serve_seconds,
            self.serve_seconds * 1e6 / self.connections as f64,
        )?;
        writeln!(out, "\nthe server's memory, KiB     before     after")?;
        let rows: [Line; 7] = [
            ("Pss_Anon + Pss_Shmem", |m| m.pss_anon + m.pss_shmem),
            ("  Pss_Anon", |m| m.pss_anon),
            ("  Pss_Shmem", |m| m.pss_shmem),
            ("Rss_Shmem (memory files)", |m| m.rss_shmem),
            ("Pss_File", |m| m.pss_file),
            ("Pss", |m| m.pss),
            ("Rss", |m| m.rss),
        ];
        for (name, value) in rows {
            writeln!(
                out,
                "{name:<25} {:>9} {:>9}",
                value(&self.before) >> 10,
                value(&self.after) >> 10
            )?;
        }
        writeln!(
            out,
            "{:.0} bytes of Pss_Anon + Pss_Shmem for each connection; {} segments mapped; {} descriptors",
            self.bytes_per_connection, self.after.memfd_mappings, self.descriptors
        )?;
        writeln!(
            out,
            "\nidle for {:.1} s: {:.6} s of CPU time ({:.4} % of a core), {} wake-ups",
            self.idle_seconds, self.idle_cpu_seconds, self.idle_cpu_percent, self.idle_wake_ups
        )?;
        writeln!(
            out,
            "afterwards {} of {} connections answered",
            self.answered_after, self.connections
        )
    }
}

/// The child that holds the connections: `open <count>`, then `serve` any number of times.
pub(crate) fn hold(parent: Parent, socket: &Path) -> Result<()> {
    let messages = Messages::new(PAYLOAD, 1);
    let mut connections: Vec<Connection> = Vec::new();
    let mut scratch = Vec::new();
    let mut round = 0;
    parent.serve(|request| {
        let began = Instant::now();
        match request.split_once(' ') {
            Some(("open", count)) => {
                for _ in 0..count.parse()? {
                    connections.push(connect_raw(socket)?);
                }
            }
            None if request == "serve" => {
                round += 1;
                for (index, connection) in connections.iter_mut().enumerate() {
                    scratch.resize(connection.reader.scratch_len(), 0);
                    exchange(connection, round, &messages, &mut scratch)
                        .with_context(|| format!("connection {index}"))?;
                }
            }
            _ => bail!("an unknown request: {request}"),
        }
        Ok(began.elapsed().as_secs_f64().to_string())
    })
}

/// One message and its answer; spins briefly, then sleeps.
fn exchange(
    connection: &mut Connection,
    id: u64,
    messages: &Messages,
    scratch: &mut [u8],
) -> Result<()> {
    let Connection { reader, writer, .. } = connection;
    let index = (id % 2) as usize;
    let body = messages.payload(index);
    if !writer.frame(Kind::Open, FIN, MessageType::ECHO.0, id, &[], body)? {
        bail!("the ring is full with nothing in flight");
    }
    writer.flush()?;
    let mut spin = Spin::new(Duration::from_micros(50));
    loop {
        let taken = reader.read(scratch, |frame| {
            if frame.kind != Kind::End || frame.id != id {
                bail!("{:?} came for request {id}", frame.kind);
            }
            messages.check_whole(index, frame.payload)
        })?;
        if taken > 0 {
            return Ok(flush(reader, writer)?);
        }
        if spin.turn() || !reader.prepare_to_sleep()? {
            continue;
        }
        let limit = Timespec::try_from(PATIENCE)?;
        let mut socket = [PollFd::from_borrowed_fd(reader.socket(), PollFlags::IN)];
        if poll(&mut socket, Some(&limit))? == 0 {
            bail!("no answer within {PATIENCE:?}");
        }
        reader.drain_bell()?;
        reader.awake();
    }
}

fn seconds(word: &str) -> Result<f64> {
    word.parse()
        .with_context(|| format!("the child said {word:?}"))
}

/// Lets this process and its children have a descriptor for each connection.
pub(crate) fn raise_limit(count: u64) -> Result<()> {
    let need = count + FURTHER_DESCRIPTORS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < need) {
        if limit.maximum.is_some_and(|maximum| maximum < need) {
            bail!(
                "{count} connections need {need} descriptors, and at most {} are allowed (ulimit -Hn)",
                limit.maximum.unwrap_or(0)
            );
        }
        limit.current = Some(need);
        setrlimit(Resource::Nofile, limit).context("cannot raise the limit of descriptors")?;
    }
    Ok(())
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let mut memory = rollup(&read("smaps_rollup")?)?;
    let segments = memfds(&read("smaps")?);
    (memory.rss_shmem, memory.memfd_mappings) = (segments.rss, segments.count);
    Ok(memory)
}

/// A process's mappings of memory files, which is what segments are, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    pub(crate) count: u64,
    pub(crate) rss: u64,
    /// Resident bytes of the one that has most of them.
    pub(crate) largest: u64,
    /// `Pss` of what is mapped shared and writable beside them.
    pub(crate) other_pss: u64,
}

pub(crate) fn segments(pid: u32) -> Result<Segments> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(memfds(&text))
}

fn rollup(text: &str) -> Result<Memory> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| kib(line.strip_prefix(name)?))
            .with_context(|| format!("smaps_rollup has no {name} (a kernel before 5.10?)"))
    };
    Ok(Memory {
        rss: field("Rss:")?,
        pss: field("Pss:")?,
        pss_anon: field("Pss_Anon:")?,
        pss_file: field("Pss_File:")?,
        pss_shmem: field("Pss_Shmem:")?,
        ..Memory::default()
    })
}

fn memfds(smaps: &str) -> Segments {
    let mut found = Segments::default();
    let (mut inside, mut shared) = (false, false);
    for line in smaps.lines() {
        if is_mapping(line) {
            inside = line.contains(" /memfd:");
            shared = line
                .split(' ')
                .nth(1)
                .is_some_and(|flags| flags.starts_with("rw") && flags.ends_with('s'));
            found.count += u64::from(inside);
        } else if let (true, Some(value)) = (inside, line.strip_prefix("Rss:")) {
            let rss = kib(value).unwrap_or(0);
            found.rss += rss;
            found.largest = found.largest.max(rss);
        } else if let (true, false, Some(value)) = (shared, inside, line.strip_prefix("Pss:")) {
            found.other_pss += kib(value).unwrap_or(0);
        }
    }
    found
}

/// A mapping's first line begins with its addresses, `7f00-7f01`; the others with a name and a colon.
fn is_mapping(line: &str) -> bool {
    line.split(' ')
        .next()
        .is_some_and(|word| word.contains('-') && !word.ends_with(':'))
}

fn kib(value: &str) -> Option<u64> {
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Time on a processor, of all threads that live, from the scheduler's own account in nanoseconds.
fn cpu_time(pid: u32) -> Result<Duration> {
    let nanos = threads(pid, "schedstat", |text| {
        text.split(' ').next()?.parse().ok()
    })?;
    Ok(Duration::from_nanos(nanos))
}

/// How often the threads were switched away from, which is as often as they were switched to.
fn switches(pid: u32) -> Result<u64> {
    threads(pid, "status", |text| {
        let counts = text
            .lines()
            .filter(|line| line.contains("voluntary_ctxt_switches:"));
        counts
            .map(|line| line.rsplit('\t').next()?.trim().parse::<u64>().ok())
            .sum()
    })
}

fn threads(pid: u32, file: &str, value: impl Fn(&str) -> Option<u64>) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join(file);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // The thread has ended since the list was made: no such file, or (ESRCH) no such process.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) =>
            {
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        sum += value(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rollup_is_read() {
        let text = "0-1 ---p 0 00:00 0 [rollup]\nRss: 100 kB\nPss:\t 90 kB\nPss_Dirty: 7 kB\n\
                    Pss_Anon: 40 kB\nPss_File: 20 kB\nPss_Shmem: 30 kB\n";
        let found = rollup(text).unwrap();
        assert_eq!((found.rss, found.pss), (100 << 10, 90 << 10));
        assert_eq!((found.pss_anon, found.pss_shmem), (40 << 10, 30 << 10));
        rollup("Rss: 1 kB").unwrap_err();
    }

    #[test]
    fn only_memory_files_are_summed() {
        let text = "7f00-7f01 rw-s 00000000 00:01 5  /memfd:lapce-ai (deleted)\nSize: 8 kB\nRss: 8 kB\nPss: 6 kB\n\
                    VmFlags: rd wr sh\n7f02-7f03 rw-p 00000000 00:00 0\nRss: 100 kB\n\
                    7f04-7f05 rw-s 00000000 00:01 6  /memfd:lapce-ai (deleted)\nRss: 4 kB\n\
                    7f06-7f07 rw-s 00000000 00:01 7  /dev/zero (deleted)\nRss: 12 kB\nPss: 3 kB\n";
        let expected = Segments {
            count: 2,
            rss: 12 << 10,
            largest: 8 << 10,
            other_pss: 3 << 10,
        };
        assert_eq!(memfds(text), expected);
    }

    #[test]
    fn our_own_process_is_read() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss > 0);
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        switches(pid).unwrap();
    }
}
