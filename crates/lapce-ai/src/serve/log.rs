//! The daemon's log. Keys and prompts never get into it: nothing logs a request's or an answer's text.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fstat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Log, LogFormat};
use crate::failure::Failure;

pub(super) fn init(log: &Log) -> Result<(), Failure> {
    let json = matches!(log.format, LogFormat::Json);
    let writer = match &log.file {
        None => match open_standard_error() {
            Some(file) => BoxMakeWriter::new(Mutex::new(Lossy::new(file, json))),
            None => BoxMakeWriter::new(Mutex::new(Lossy::new(Ready(io::stderr()), json))),
        },
        Some(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(|error| {
                    Failure::Usage(format!(
                        "cannot write the log to {} (log.file): {error}",
                        path.display()
                    ))
                })?;
            BoxMakeWriter::new(Mutex::new(Lossy::new(Ready(file), json)))
        }
    };
    let colours = log.file.is_none() && io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log)?)
        .with_writer(writer)
        // It would be told on standard error, and panic where that cannot be written either.
        .log_internal_errors(false)
        .with_ansi(colours);
    let outcome = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    outcome.map_err(|error| Failure::Failed(format!("cannot start the log: {error}")))
}

/// `$RUST_LOG`, or our own crates at the configured level and all others at most at `warn`.
fn filter(log: &Log) -> Result<EnvFilter, Failure> {
    if let Some(directives) = std::env::var("RUST_LOG")
        .ok()
        .filter(|directives| !directives.is_empty())
    {
        return directives
            .parse()
            .map_err(|error| Failure::Usage(format!("RUST_LOG={directives}: {error}")));
    }
    let level = log.level.name();
    let others = if matches!(level, "off" | "error") {
        level
    } else {
        "warn"
    };
    Ok(EnvFilter::new(format!("{others},lapce_ai={level}")))
}

/// Opens standard error anew, to write what can be written at once: whoever reads it, and has stopped to, must not hold the
/// daemon up. The descriptor itself stays as it is, since others have it too. `None`: it is neither a pipe nor a terminal, or
/// may not be opened, as one of another user.
fn open_standard_error() -> Option<File> {
    let stderr = io::stderr();
    let kind = FileType::from_raw_mode(fstat(&stderr).ok()?.st_mode);
    if kind != FileType::Fifo && !stderr.is_terminal() {
        return None;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open("/proc/self/fd/2")
        .ok()
}

/// What a pipe with any room takes without waiting (`PIPE_BUF`).
const PIECE: usize = 4096;

/// The same for what is not opened anew: looks for room first. A write waits all the same where there is room for a part only, or
/// somebody else takes it.
struct Ready<W>(W);

impl<W: Write + AsFd> Write for Ready<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = [PollFd::new(&self.0, PollFlags::OUT)];
        if poll(&mut room, Some(&Timespec::default()))? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.write(&bytes[..bytes.len().min(PIECE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Where the log goes. While it cannot be written, because the disk is full or nobody reads, its lines are lost and counted, and
/// nothing else happens.
struct Lossy<W> {
    inner: W,
    json: bool,
    lost: u64,
}

impl<W: Write> Lossy<W> {
    fn new(inner: W, json: bool) -> Self {
        Self {
            inner,
            json,
            lost: 0,
        }
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.lost > 0 {
            let note = format!("{} lines of the log could not be written", self.lost);
            // The last line may have been cut.
            let note = if self.json {
                format!("\n{{\"level\":\"WARN\",\"fields\":{{\"message\":\"{note}\"}}}}\n")
            } else {
                format!("\n WARN {note}\n")
            };
            self.inner.write_all(note.as_bytes())?;
            self.lost = 0;
        }
        self.inner.write_all(line)
    }
}

impl<W: Write> Write for Lossy<W> {
    /// `line` is a whole one: the subscriber writes each event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.try_write(line).is_err() {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What could not be written was counted.
        let _ = self.inner.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that has so much room.
    #[derive(Default)]
    struct Disk {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_which_are_counted() {
        let disk = Disk {
            room: 10,
            ..Disk::default()
        };
        let mut log = Lossy::new(disk, false);
        for line in ["first\n", "second\n", "third\n"] {
            log.write_all(line.as_bytes()).unwrap();
            log.flush().unwrap();
        }
        log.inner.room = 1000;
        log.write_all(b"fourth\n").unwrap();
        log.write_all(b"fifth\n").unwrap();
        let written = String::from_utf8(log.inner.written).unwrap();
        let expected =
            "first\nseco\n WARN 2 lines of the log could not be written\nfourth\nfifth\n";
        assert_eq!(written, expected);
        let mut log = Lossy::new(Disk::default(), true);
        log.write_all(b"{}\n").unwrap();
        log.inner.room = 1000;
        log.write_all(b"{}\n").unwrap();
        let written = String::from_utf8(log.inner.written).unwrap();
        for line in written.lines().filter(|line| !line.is_empty()) {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert!(written.contains("\"1 lines of the log"), "{written}");
    }
}
