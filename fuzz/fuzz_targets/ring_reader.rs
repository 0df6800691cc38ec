//! Arbitrary scripts of operations and hostile control words against both ends of a ring. The
//! script language and what it checks are in `crates/shm/tests/script/mod.rs`, which the property
//! tests share.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run ring_reader -- -max_total_time=20
//! ```

#![no_main]

#[path = "../../crates/shm/tests/script/mod.rs"]
mod script;

use lapce_ai_shm::HeapStorage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((shape, steps)) = input.split_first() else {
        return;
    };
    match shape % 3 {
        0 => script::run(HeapStorage::<4>::new(16), steps),
        1 => script::run(HeapStorage::<16>::new(16), steps),
        _ => script::run(HeapStorage::<8>::new(128), steps),
    };
});
