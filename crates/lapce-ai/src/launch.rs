//! Reaching the daemon, and starting one where there is none.
//!
//! Two commands may find none at once. Both start one, one of the two gets the lock, the other leaves quietly, and
//! both commands connect to the first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapce_ai_client::{Client, ClientError, ConnectError, ErrorCode, Options};

use crate::cli::Global;
use crate::config::Config;
use crate::failure::Failure;

/// A daemon that a command has started stops after so long without a client.
const IDLE_SECS: u64 = 300;
/// The most time that a daemon may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A log that is longer than this is put aside before the next start, in bytes.
const LOG_LIMIT: u64 = 1 << 20;
/// How much of what a daemon said before it died is shown, in bytes.
const SAID_LIMIT: u64 = 4096;
/// For how long a command tries to get a lost connection back.
const GIVE_UP_AFTER: Duration = Duration::from_secs(2);

/// Connects to the daemon that runs.
pub(crate) async fn connect(config: &Config) -> Result<Client, ClientError> {
    let mut options = Options::new(&config.ipc.socket_path);
    options.name = format!("lapce-ai {}", env!("CARGO_PKG_VERSION"));
    options.server_uids.clone_from(&config.ipc.server_uids);
    options.reconnect.give_up_after = Some(GIVE_UP_AFTER);
    Client::connect(options).await
}

/// Connects to the daemon, and starts one first if none runs and the flags allow it.
pub(crate) async fn connect_or_start(config: &Config, global: &Global) -> Result<Client, Failure> {
    if global.no_start {
        return Ok(connect(config).await?);
    }
    let deadline = Instant::now() + START_TIMEOUT;
    let mut pause = FIRST_PAUSE;
    let mut daemon: Option<Starting> = None;
    loop {
        let error = match connect(config).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let nobody = match &error {
            ClientError::Connect(ConnectError::NotRunning { .. }) => true,
            // One that is just going away, or whose next one is about to come.
            ClientError::Connect(ConnectError::Transport(_) | ConnectError::TimedOut { .. }) => {
                false
            }
            error if error.code() == Some(ErrorCode::ServerRestarting) => false,
            _ => return Err(error.into()),
        };
        match &mut daemon {
            Some(starting) => match starting.ended()? {
                End::Runs => {}
                // Somebody else holds the lock: they are starting, or stopping.
                End::Yielded => daemon = None,
                End::Failed(failure) => return Err(failure),
            },
            None if nobody => daemon = Some(Starting::spawn(config, global)?),
            None => {}
        }
        if Instant::now() >= deadline {
            let log = log_path()?;
            let why = format!(
                "it did not answer within {} s ({error})",
                START_TIMEOUT.as_secs()
            );
            return Err(Failure::NotStarted {
                why,
                said: said(&log, tail(&log)),
                log,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Starting {
    child: Child,
    log: PathBuf,
    /// Where in the log this daemon's words begin.
    from: u64,
}

enum End {
    Runs,
    Yielded,
    Failed(Failure),
}

impl Starting {
    fn spawn(config: &Config, global: &Global) -> Result<Self, Failure> {
        let log = log_path()?;
        let not_started = |why: String| Failure::NotStarted {
            why,
            said: String::new(),
            log: log.clone(),
        };
        let file =
            open_log(&log).map_err(|error| not_started(format!("cannot open its log: {error}")))?;
        let from = file.metadata().map_or(0, |meta| meta.len());
        let program = std::env::current_exe().map_err(|error| {
            not_started(format!("cannot find this program's own file: {error}"))
        })?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--if-needed", "--exit-when-idle"])
            .arg(IDLE_SECS.to_string());
        // The socket and the file as this process sees them: the daemon runs in another directory.
        command.arg("--socket").arg(&config.ipc.socket_path);
        if let Some(file) = &config.file {
            command.arg("--config").arg(file);
        }
        for set in &global.set {
            command.arg("--set").arg(set);
        }
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        // Out of the terminal's foreground group, so that Ctrl-C does not reach it.
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|error| not_started(error.to_string()))?;
        Ok(Self { child, log, from })
    }

    fn ended(&mut self) -> Result<End, Failure> {
        let status = self
            .child
            .try_wait()
            .map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(match status {
            None => End::Runs,
            Some(status) if status.success() => End::Yielded,
            Some(status) => End::Failed(Failure::NotStarted {
                why: format!("it ended with {status}"),
                said: said(&self.log, self.from),
                log: self.log.clone(),
            }),
        })
    }
}

/// `$XDG_STATE_HOME/lapce-ai`, or the same under `~/.local/state`. Not the runtime directory, where only the socket and
/// its lock may be.
pub(crate) fn state_directory() -> Option<PathBuf> {
    let base = match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from) {
        Some(base) if base.is_absolute() => base,
        _ => std::env::home_dir()?.join(".local/state"),
    };
    Some(base.join("lapce-ai"))
}

fn log_path() -> Result<PathBuf, Failure> {
    let directory = state_directory().ok_or_else(|| {
        Failure::Usage(
            "there is no home directory for the daemon's log: set XDG_STATE_HOME".to_owned(),
        )
    })?;
    Ok(directory.join("daemon.log"))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn tail(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |meta| meta.len().saturating_sub(SAID_LIMIT))
}

/// What stands in the log from there on, in lines that end.
fn said(log: &Path, from: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.take(SAID_LIMIT).read_to_end(&mut bytes)
    });
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    if read.is_err() || text.is_empty() {
        String::new()
    } else {
        format!("it said: {text}\n")
    }
}
