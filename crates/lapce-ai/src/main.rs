//! The `lapce-ai` program: see the library beside it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lapce_ai::run()
}
