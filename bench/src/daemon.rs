//! The product itself: the `lapce-ai` program with its own AI handlers, as a child, or as the process that has followed it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lapce_ai_client::{BlockingClient, Options};
use lapce_ai_transport::RuntimeDir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use tempfile::TempDir;

use crate::child::{Child, Parent, runtime_dir};
use crate::machine::Cpus;

/// Longest wait for it to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds without a client after which it stops: one that has followed another does not die with this process. Far longer
/// than any load leaves it alone.
const ALONE_SECS: &str = "600";
const CONFIG: &str = "config.toml";
const LOG: &str = "daemon.log";

/// A daemon that runs. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    /// Connected all the time: whoever looks at the daemon is somebody as well.
    pub(crate) observer: BlockingClient,
    dir: TempDir,
}

#[derive(Debug)]
enum Process {
    First(Child),
    Follower(Follower),
}

/// A daemon that has followed another one: no child of this process, which holds it by this descriptor. Killed when dropped.
#[derive(Debug)]
struct Follower {
    pid: u32,
    process: OwnedFd,
}

/// Where the program is: what was named, or what lies beside this one.
pub(crate) fn program(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("cannot tell where this program lies")?
            .with_file_name("lapce-ai"),
    };
    if !path.is_file() {
        let build = if cfg!(debug_assertions) {
            ""
        } else {
            "--release "
        };
        bail!(
            "there is no daemon at {}: build it with `cargo build {build}-p lapce-ai`, or name one with --daemon",
            path.display()
        );
    }
    Ok(path)
}

impl Daemon {
    /// Starts it for so many connections, with the providers that this piece of a configuration describes.
    pub(crate) fn start(
        program: &Path,
        cpus: &Cpus,
        providers: &str,
        connections: u64,
    ) -> Result<Self> {
        let dir = runtime_dir()?;
        let config = format!(
            "[ipc]\nmax_connections = {connections}\n[log]\nlevel = \"warn\"\n[discovery]\nenvironment = false\nloopback = false\n{providers}"
        );
        fs::write(dir.path().join(CONFIG), config)?;
        let text = |path: &Path| -> Result<String> {
            let path = path.to_str().context("a path is no UTF-8")?;
            Ok(path.to_owned())
        };
        let role = ["daemon", &text(program)?, &text(dir.path())?];
        let mut child = Child::start(&role, cpus, &[])?;
        let socket = dir.path().join(RuntimeDir::SOCKET);
        let until = Instant::now() + PATIENCE;
        let observer = loop {
            match BlockingClient::connect(Options::new(&socket)) {
                Ok(observer) => break observer,
                Err(error) => {
                    let log = || fs::read_to_string(dir.path().join(LOG)).unwrap_or_default();
                    child.check().with_context(log)?;
                    if Instant::now() > until {
                        let context = format!("the daemon does not serve: {error}\n{}", log());
                        bail!(context);
                    }
                }
            }
            thread::sleep(Duration::from_millis(5));
        };
        Ok(Self {
            process: Process::First(child),
            observer,
            dir,
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(RuntimeDir::SOCKET)
    }

    /// What it said in its log, which has warnings only.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::First(child) => child.pid(),
            Process::Follower(follower) => follower.pid,
        }
    }

    /// # Errors
    /// It has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match &mut self.process {
            Process::First(child) => child.check(),
            Process::Follower(follower) => {
                ensure!(!follower.ends_within(Duration::ZERO)?, "the daemon ended");
                Ok(())
            }
        }
    }

    /// Has it replaced by the next one, as `lapce-ai restart` does, and waits until the old process has gone.
    ///
    /// # Errors
    /// It was not replaced, or the old process did not end, or not well.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let pid = self
            .observer
            .restart()
            .context("the daemon was not replaced")?;
        let follower = Process::Follower(Follower::of(pid)?);
        match std::mem::replace(&mut self.process, follower) {
            Process::First(child) => child.ended(),
            Process::Follower(follower) => follower.ended(),
        }
    }

    /// Has it stop by itself, as a service manager would.
    pub(crate) fn finish(self) -> Result<()> {
        self.observer.close();
        match self.process {
            Process::First(child) => child.terminate(),
            Process::Follower(follower) => {
                pidfd_send_signal(&follower.process, Signal::TERM)?;
                follower.ended()
            }
        }
    }
}

impl Follower {
    fn of(pid: u32) -> Result<Self> {
        let raw = Pid::from_raw(pid.cast_signed()).context("a process has a number")?;
        let process = pidfd_open(raw, PidfdFlags::empty())
            .with_context(|| format!("process {pid}, the next daemon, is gone"))?;
        Ok(Self { pid, process })
    }

    fn ends_within(&self, limit: Duration) -> Result<bool> {
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        Ok(poll(&mut ended, Some(&Timespec::try_from(limit)?))? > 0)
    }

    /// Waits for its end. Whether it ended well only its parent is told.
    fn ended(&self) -> Result<()> {
        let ended = self.ends_within(PATIENCE)?;
        ensure!(ended, "process {} did not end", self.pid);
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Has it ended already, this does nothing.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// The child, which becomes the daemon; it dies when its parent does. (Those that follow it stop when they are alone.)
pub(crate) fn become_daemon(parent: &Parent, program: &Path, dir: &Path) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let log = File::create(dir.join(LOG))?;
    let mut command = Command::new(program);
    command
        .arg("--socket")
        .arg(dir.join(RuntimeDir::SOCKET))
        .arg("--config")
        .arg(dir.join(CONFIG))
        // As clients start it: its process does not stay once another one has followed.
        .args(["serve", "--if-needed", "--exit-when-idle", ALONE_SECS]);
    command.env_clear().env("HOME", dir);
    // What the run of a measured build needs; nobody's keys and settings.
    for name in ["PATH", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    parent.said_ready()?;
    Err(command.exec()).with_context(|| format!("cannot start {}", program.display()))
}
