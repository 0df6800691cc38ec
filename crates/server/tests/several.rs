//! The server's tests once more, each with three reactors. `support` knows by this crate's name.
//!
//! Left out: the tests that look at their whole process, and those of the schedule, which each reactor has for itself.
#![allow(clippy::duplicate_mod, reason = "each has its own `mod support`")]

#[path = "faults.rs"]
mod faults;
#[path = "handlers.rs"]
mod handlers;
#[path = "hostile.rs"]
mod hostile;
#[path = "limits.rs"]
mod limits;
#[path = "lost.rs"]
mod lost;
#[path = "repeats.rs"]
mod repeats;
