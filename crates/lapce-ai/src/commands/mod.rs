//! What each command but `serve` does.

pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod count;
pub(crate) mod embed;
mod image;
pub(crate) mod live;
pub(crate) mod metrics;
pub(crate) mod models;
mod prompt;
pub(crate) mod providers;
pub(crate) mod restart;
pub(crate) mod spend;
pub(crate) mod status;
pub(crate) mod stop;

use std::io;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;

/// How long a command has to end by itself after Ctrl-C.
const STUCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a command that talks to the daemon. Ctrl-C ends it: what it holds is dropped, which cancels its requests.
fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The connection lives on, whatever the command itself is busy with.
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
    runtime.spawn(leave_in_the_end());
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

/// Ends the process some time after Ctrl-C, or at the second one, should the command not get to it: it may be stuck
/// writing to a reader that does not read.
async fn leave_in_the_end() {
    if tokio::signal::ctrl_c().await.is_ok() {
        // Whichever comes first; without signals the time is enough.
        let _ = tokio::time::timeout(STUCK_TIMEOUT, tokio::signal::ctrl_c()).await;
        std::process::exit(Failure::Interrupted.exit_code().into());
    }
}

/// Runs `work` until it ends or somebody presses Ctrl-C.
async fn or_interrupted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        // It listens before the work begins: whoever sees something of the work may press Ctrl-C.
        biased;
        heard = tokio::signal::ctrl_c() => Err(match heard {
            Ok(()) => Failure::Interrupted,
            Err(error) => Failure::Failed(format!("cannot wait for Ctrl-C: {error}")),
        }),
        outcome = work => outcome,
    }
}

/// Prints a shell's completions.
pub(crate) fn completions<C: CommandFactory>(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut C::command(), "lapce-ai", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(())
}
