//! Running a command for the key that it prints.

use std::process::{ExitStatus, Stdio};

use lapce_ai_providers::{ProviderError, SecretString};
use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::zeroize::Zeroizing;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{LONGEST, of_bytes, wrong};
use crate::config::{KeyCommand, KeyProgram};

/// Runs `command` to its end. Dropping the future ends it, with all that it started.
///
/// What it writes to standard error is thrown away: nobody knows what is in it.
///
/// # Errors
/// It could not be started, failed, took too long, or printed no key.
pub(super) async fn key_of(command: &KeyCommand) -> Result<SecretString, ProviderError> {
    let told = |why: String| {
        wrong(format!(
            "the key command `{}` (api_key_command) {why}",
            command.run.name()
        ))
    };
    let mut running = Running::start(&command.run)
        .map_err(|error| told(format!("cannot be started: {error}")))?;
    let ended = tokio::time::timeout(command.timeout, running.run_out()).await;
    let (bytes, status) = match ended {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(told(format!("cannot be read: {error}"))),
        Err(_) => {
            let secs = command.timeout.as_secs_f64();
            return Err(told(format!(
                "took longer than {secs} s (api_key_timeout_secs)"
            )));
        }
    };
    if bytes.len() > LONGEST {
        return Err(told(format!(
            "printed more than {LONGEST} bytes: that is no key"
        )));
    }
    if !status.success() {
        return Err(told(format!(
            "failed ({status}): run it in a terminal to see why"
        )));
    }
    of_bytes(&bytes).map_err(|why| told(why.replace("holds", "printed")))
}

/// A command in a process group of its own, which ends when this is dropped.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(run: &KeyProgram) -> std::io::Result<Self> {
        let mut command = match run {
            KeyProgram::Shell(line) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(line);
                shell
            }
            KeyProgram::Program(program, arguments) => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            child,
            group: id.and_then(Pid::from_raw),
        })
    }

    /// What it printed, at most a byte more than a key may have.
    async fn run_out(&mut self) -> std::io::Result<(Zeroizing<Vec<u8>>, ExitStatus)> {
        // With room for all of it, so that growing leaves no copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 64));
        if let Some(output) = self.child.stdout.take() {
            let mut most = output.take(LONGEST as u64 + 1);
            most.read_to_end(&mut bytes).await?;
            if bytes.len() > LONGEST {
                // It may go on forever.
                self.end();
            }
        }
        let status = self.child.wait().await?;
        // Its number may be another's from now on.
        self.group = None;
        Ok((bytes, status))
    }

    fn end(&self) {
        if let Some(group) = self.group {
            // Whoever has gone already needs none.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
