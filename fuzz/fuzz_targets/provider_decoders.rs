//! Arbitrary answers, in arbitrary pieces, against every provider's decoders. What is checked is in
//! `crates/providers/tests/decoders/feed.rs`, which the property tests share; the corpus is written from the conformance
//! fixtures by `cargo test -p lapce-ai-providers --test decoders -- --ignored`.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run provider_decoders -- -max_total_time=20
//! ```

#![no_main]

#[allow(dead_code)]
#[path = "../../crates/providers/tests/decoders/feed.rs"]
mod feed;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| feed::run(input));
