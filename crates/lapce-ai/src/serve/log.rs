//! The daemon's log. Keys and prompts never get into it: nothing logs a request's or an answer's text.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Log, LogFormat};
use crate::failure::Failure;

pub(super) fn init(log: &Log) -> Result<(), Failure> {
    let writer = match &log.file {
        None => BoxMakeWriter::new(io::stderr),
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
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let colours = log.file.is_none() && io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log)?)
        .with_writer(writer)
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
