//! `stream` is a program of its own, `lapce-ai-bench-stream` beside this one: it has the daemon in it, and whatever is linked
//! in here would count as memory of the server that `memory` and `connections` weigh.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const PROGRAM: &str = "lapce-ai-bench-stream";

/// Measure the reading of providers' streams, and their whole path to a client
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What `lapce-ai-bench-stream` takes; `--help` says it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Hands over to it.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    if !program.exists() {
        build(&program)?;
    }
    // Comes back only if it could not be done.
    let error = Command::new(&program).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// `cargo run` builds the program that it runs, and none beside it.
fn build(program: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").with_context(|| {
        let program = program.display();
        format!("{program} is not there; `cargo build --release -p lapce-ai-bench` builds it")
    })?;
    let mut command = Command::new(cargo);
    command.args(["build", "--package", env!("CARGO_PKG_NAME"), "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "{PROGRAM} was not built");
    Ok(())
}
