//! `stream` and `pool` are programs of their own, `lapce-ai-bench-stream` and `lapce-ai-bench-pool` beside this one: they have
//! the daemon and its providers in them, and whatever is linked in here would count as memory of the server that `memory`
//! and `connections` weigh.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Stream,
    Pool,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "lapce-ai-bench-stream",
            Self::Pool => "lapce-ai-bench-pool",
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What that program takes; `--help` says it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Hands over to it.
pub(crate) fn run(program: Program, arguments: &Arguments) -> Result<bool> {
    let program = std::env::current_exe()?.with_file_name(program.name());
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
    ensure!(
        command.status()?.success(),
        "{} was not built",
        program.display()
    );
    Ok(())
}
