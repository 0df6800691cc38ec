//! What one core copies: the measure for large payloads, whose time is nothing but copies.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

/// Bytes of each of the two buffers that are walked through: more than the processor's caches hold.
const WALKED: usize = 128 << 20;

/// Megabytes copied in a second by one `memcpy` after another of a payload's length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Copied {
    pub(crate) payload: usize,
    /// From one large buffer to another, each piece where none was copied lately: from memory to memory.
    pub(crate) walking_mb_per_second: f64,
    /// The same piece again and again, between two buffers of its length: as much of it in caches as they hold.
    pub(crate) again_mb_per_second: f64,
}

/// Measures on this thread's processor, so long each.
pub(crate) fn measure(payload: usize, time: Duration) -> Result<Copied> {
    // Written, or all pages of the source would be the one of zeros.
    let from = vec![1_u8; WALKED.max(payload)];
    let mut into = vec![2_u8; WALKED.max(payload)];
    Ok(Copied {
        payload,
        walking_mb_per_second: copy(&from, &mut into, payload, time)?,
        again_mb_per_second: copy(&from[..payload], &mut into[..payload], payload, time)?,
    })
}

fn copy(from: &[u8], into: &mut [u8], piece: usize, time: Duration) -> Result<f64> {
    let began = Instant::now();
    let mut copied = 0_usize;
    loop {
        for (from, into) in from.chunks_exact(piece).zip(into.chunks_exact_mut(piece)) {
            black_box(&mut *into).copy_from_slice(black_box(from));
            copied += piece;
            let elapsed = began.elapsed();
            if elapsed >= time {
                let seconds = Some(elapsed.as_secs_f64()).filter(|seconds| *seconds > 0.0);
                return Ok(copied as f64 / seconds.context("no time has passed")? / 1e6);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_copied() {
        let from: Vec<u8> = (0..100).collect();
        let mut into = vec![0; 100];
        let found = copy(&from, &mut into, 10, Duration::from_millis(1)).unwrap();
        assert!(found > 0.0);
        assert_eq!(from, into);
    }
}
