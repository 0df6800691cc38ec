//! Node.js: what an editor's extensions use for IPC. Both sides run under node and are measured there; here the run is
//! started, bounded and read.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use crate::ipc::Mode;
use crate::machine::{Cpus, Side};
use crate::measure::{Effort, Figure, Measured, histogram};

const SCRIPTS: [(&str, &str); 3] = [
    ("measure.js", include_str!("../../node/measure.js")),
    (CHILD_PROCESS, include_str!("../../node/child_process.js")),
    (NET, include_str!("../../node/net.js")),
];
pub(super) const CHILD_PROCESS: &str = "child_process.js";
pub(super) const NET: &str = "net.js";
/// Longest wait for a figure, beside the time that it is measured for.
const PATIENCE: Duration = Duration::from_secs(20);

/// An installed Node.js.
#[derive(Debug)]
pub(crate) struct Node {
    program: PathBuf,
    version: String,
    /// Where the scripts are, and the sockets.
    dir: TempDir,
}

impl Node {
    /// # Errors
    /// It cannot be started, or the scripts cannot be written.
    pub(crate) fn find(program: &Path) -> Result<Self> {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        if !output.status.success() {
            bail!("`{} --version`: {}", program.display(), output.status);
        }
        let dir = tempfile::Builder::new()
            .prefix("lapce-ai-bench-")
            .tempdir()?;
        for (name, text) in SCRIPTS {
            fs::write(dir.path().join(name), text)?;
        }
        Ok(Self {
            program: program.to_owned(),
            version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            dir,
        })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Runs a script. Nobody is pinned: node has threads beside its main one.
    pub(crate) fn measure(
        &self,
        (script, batched): (&str, bool),
        (mode, payload, window): (Mode, usize, usize),
        cpus: &Cpus,
        effort: Effort,
    ) -> Result<Measured> {
        let settings = json!({
            "mode": mode,
            "payload": payload,
            "window": window,
            "batched": batched,
            "nanos": effort.time.as_nanos() as u64,
            "least": effort.least,
        });
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        // Warming up and measuring take up to ten times the time each, to reach the least number of samples.
        ours.set_read_timeout(Some(PATIENCE + effort.time * 20))?;
        let mut command = Command::new(&self.program);
        command
            .arg(self.dir.path().join(script))
            .arg(settings.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::from(OwnedFd::from(theirs)));
        cpus.unpin()?;
        let process = command.spawn();
        cpus.pin(Side::Parent)?;
        // It holds the other end of our socket.
        drop(command);
        let mut process =
            Running(process.with_context(|| format!("cannot start `{}`", self.program.display()))?);
        let mut line = String::new();
        let read = BufReader::new(ours).read_line(&mut line);
        if !matches!(read, Ok(n) if n > 0) {
            bail!(
                "node printed no figure ({read:?}, {:?})",
                process.0.try_wait()?
            );
        }
        let printed: Printed =
            serde_json::from_str(&line).with_context(|| format!("node printed {line:?}"))?;
        Ok(Measured {
            distribution: printed.distribution()?,
            figure: printed.figure,
        })
    }
}

/// What a script prints.
#[derive(Debug, Deserialize)]
struct Printed {
    #[serde(flatten)]
    figure: Figure,
    /// Of latencies: nanoseconds, rounded to three digits, and how often.
    distribution: Option<Vec<(u64, u64)>>,
}

impl Printed {
    fn distribution(&self) -> Result<Option<Histogram<u64>>> {
        let Some(counts) = &self.distribution else {
            return Ok(None);
        };
        let mut found = histogram()?;
        for &(ns, count) in counts {
            found.saturating_record_n(ns.max(1), count);
        }
        Ok(Some(found))
    }
}

/// Killed when dropped; its echo side ends when it does.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Has it ended already, both do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
