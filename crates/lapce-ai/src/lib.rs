//! The `lapce-ai` program: the daemon, and the command line that talks to it.
//!
//! | stop on the path | here |
//! |---|---|
//! | file, environment and flags -> settings | [`config`] |
//! | the command line | `cli`, `commands`, `output` |
//! | a daemon where there is none | `launch` |
//! | what was spent -> disk | `ledger` |
//! | requests -> providers -> events | `serve`; wire types and domain types meet in `serve::wire` and nowhere else |
#![forbid(unsafe_code)]

mod cli;
mod commands;
pub mod config;
mod failure;
mod launch;
mod ledger;
mod output;
mod serve;

pub use cli::{run, run_with};
