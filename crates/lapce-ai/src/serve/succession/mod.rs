//! A planned restart: the daemon starts the next one, which takes over while it finishes what it has begun.
//!
//! | who | here |
//! |---|---|
//! | the daemon that goes | `hand_over.rs` |
//! | the one that comes | `take_over.rs` |
//! | what they say to each other | `message.rs` |
//! | the process that was started first, while others serve | `lineage.rs` |
//!
//! The next daemon is a child of the one before it. It has one end of a pair of sockets as its standard input, so that nobody
//! else can speak to either. docs/reliability.md has the order of events, and what happens where it is broken off.

mod hand_over;
mod lineage;
mod message;
mod take_over;

pub(super) use hand_over::Successors;
pub(super) use lineage::Lineage;
pub(super) use message::Estate;
pub(super) use take_over::Predecessor;
