//! The daemon's own code as a child: a program that has it linked in, started again in another role.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_client::{BlockingClient, Options};
use lapce_ai_transport::RuntimeDir;
use tempfile::TempDir;

use crate::child::{Child, Parent, runtime_dir};
use crate::machine::Cpus;

/// Longest wait for the daemon to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon in a child, whose program has the role `daemon <socket> <configuration>`.
#[derive(Debug)]
pub(crate) struct LinkedDaemon {
    child: Child,
    /// Connected all the time.
    pub(crate) client: BlockingClient,
    dir: TempDir,
}

impl LinkedDaemon {
    /// Starts it with the providers that this piece of a configuration describes.
    pub(crate) fn start(providers: &str, cpus: &Cpus) -> Result<Self> {
        let dir = runtime_dir()?;
        let socket = dir.path().join(RuntimeDir::SOCKET);
        let config = dir.path().join("config.toml");
        // The user's own ledger is no place for what is measured here.
        let text = format!(
            "[discovery]\nenvironment = false\nloopback = false\n[log]\nlevel = \"error\"\n[spend]\nledger = \"spend.db\"\n{providers}"
        );
        std::fs::write(&config, text)?;
        let [socket_text, config] = [&socket, &config].map(|path| path.to_str());
        let no_text = "the temporary directory's path is no UTF-8";
        let arguments = [
            "daemon",
            socket_text.context(no_text)?,
            config.context(no_text)?,
        ];
        let mut child = Child::start(&arguments, cpus, &[])?;
        let until = Instant::now() + PATIENCE;
        let client = loop {
            child.check()?;
            match BlockingClient::connect(Options::new(&socket)) {
                Ok(client) => break client,
                Err(error) if Instant::now() > until => {
                    return Err(error).context("the daemon does not listen");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        Ok(Self { child, client, dir })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(RuntimeDir::SOCKET)
    }

    /// Ends it, and says whether it had been well to the end.
    pub(crate) fn finish(self) -> Result<()> {
        self.child.finish()
    }
}

/// The child.
pub(crate) fn serve(parent: Parent, socket: &Path, config: &Path) -> Result<()> {
    parent.ready()?;
    let mut arguments = vec![
        "lapce-ai".into(),
        "--socket".into(),
        socket.as_os_str().to_owned(),
    ];
    arguments.extend([
        "--config".into(),
        config.as_os_str().to_owned(),
        "serve".into(),
    ]);
    lapce_ai::run_with(arguments);
    bail!("the daemon stopped by itself")
}
