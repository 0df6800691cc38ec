//! The product itself: the `lapce-ai` program with its own AI handlers, as a child.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_client::{BlockingClient, Options};
use lapce_ai_transport::RuntimeDir;
use rustix::process::{Signal, set_parent_process_death_signal};
use tempfile::TempDir;

use crate::child::{Child, Parent, runtime_dir};
use crate::machine::Cpus;

/// Longest wait for it to serve.
const PATIENCE: Duration = Duration::from_secs(20);
const CONFIG: &str = "config.toml";
const LOG: &str = "daemon.log";

/// A daemon that runs. Killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) child: Child,
    /// Connected all the time: whoever looks at the daemon is somebody as well.
    pub(super) observer: BlockingClient,
    dir: TempDir,
}

/// Where the program is: what was named, or what lies beside this one.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf> {
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
    /// Starts it for so many connections, with one provider at this address.
    pub(super) fn start(
        program: &Path,
        cpus: &Cpus,
        provider: &str,
        connections: u64,
    ) -> Result<Self> {
        let dir = runtime_dir()?;
        let config = format!(
            "[ipc]\nmax_connections = {connections}\n[log]\nlevel = \"warn\"\n[discovery]\nenvironment = false\nloopback = false\n\
             [providers.scripted]\ntype = \"openai\"\nbase_url = \"http://{provider}/v1\"\ndefault_model = \"scripted\"\n"
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
            child,
            observer,
            dir,
        })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join(RuntimeDir::SOCKET)
    }

    /// What it said in its log, which has warnings only.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default()
    }

    /// Has it stop by itself, as a service manager would.
    pub(super) fn finish(self) -> Result<()> {
        self.observer.close();
        self.child.terminate()
    }
}

/// The child, which becomes the daemon; it dies when its parent does.
pub(crate) fn become_daemon(parent: &Parent, program: &Path, dir: &Path) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let log = File::create(dir.join(LOG))?;
    let mut command = Command::new(program);
    command
        .arg("--socket")
        .arg(dir.join(RuntimeDir::SOCKET))
        .arg("--config")
        .arg(dir.join(CONFIG))
        .arg("serve");
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
