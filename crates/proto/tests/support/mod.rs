//! What the protocol's tests share.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]

pub mod document;
pub mod frames;
