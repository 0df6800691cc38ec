//! Arbitrary bytes, and arbitrary frames, against the codec and both state machines. What is checked is in
//! `crates/proto/tests/support/frames.rs`, which the property tests share.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run frame_reader -- -max_total_time=20
//! ```

#![no_main]

#[path = "../../crates/proto/tests/support/frames.rs"]
mod frames;

use arbitrary::{Arbitrary, Unstructured};
use frames::{Step, Written};
use libfuzzer_sys::fuzz_target;

/// A step of a script whose ids are few, so that frames meet the streams that earlier ones opened.
fn step(input: &mut Unstructured<'_>) -> arbitrary::Result<Step> {
    let id = u64::from(input.int_in_range(0..=12_u8)?);
    if input.ratio(1, 3)? {
        return Ok(Step::Act {
            what: u8::arbitrary(input)?,
            id,
            amount: input.int_in_range(0..=1500)?,
        });
    }
    let kind = input.int_in_range(0..=12_u8)?;
    let flags = input.int_in_range(0..=7_u8)? << 4;
    let ty = if kind == 1 { u16::arbitrary(input)? } else { 0 };
    let mut payload = match input.int_in_range(0..=3_u8)? {
        0 => Vec::new(),
        // A credit, a length, or the beginning of a prefix.
        1 => u32::from(u16::arbitrary(input)?).to_le_bytes().to_vec(),
        2 => u64::from(u16::arbitrary(input)?).to_le_bytes().to_vec(),
        _ => {
            let mut prefix = vec![0; 32];
            prefix[..2].copy_from_slice(&u16::arbitrary(input)?.to_le_bytes());
            prefix
        }
    };
    let more = input.int_in_range(0..=300_usize)?;
    payload.resize(payload.len() + more, 7);
    Ok(Step::Frame(Written {
        flags: kind | flags,
        ty,
        id,
        payload,
    }))
}

fn script(bytes: &[u8]) -> Vec<Step> {
    let mut input = Unstructured::new(bytes);
    let mut steps = Vec::new();
    while !input.is_empty() && steps.len() < 200 {
        match step(&mut input) {
            Ok(step) => steps.push(step),
            Err(_) => break,
        }
    }
    steps
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    match mode % 4 {
        0 => {
            frames::stream(bytes, false);
        }
        1 => {
            frames::stream(bytes, true);
        }
        2 => frames::against_server(&script(bytes)),
        _ => frames::against_client(&script(bytes)),
    }
});
