//! The parse alone: from the body's chunks in hand to the text of each token, ours beside the ordinary way.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::formats::{Format, Stream};
use super::reading::Way;
use crate::latency::median;

/// One format read in one way.
#[derive(Debug, Serialize)]
pub(super) struct Parsed {
    pub(super) format: &'static str,
    pub(super) way: Way,
    pub(super) name: &'static str,
    /// Of the stream, framing and all.
    pub(super) bytes_per_token: f64,
    /// Medians and 99th percentiles of the runs.
    pub(super) ns_per_token: f64,
    pub(super) p99_ns_per_token: f64,
    pub(super) megabytes_per_second: f64,
    /// How many times as long as ours.
    pub(super) to_ours: f64,
    /// `None` where they could not be counted.
    pub(super) allocations_per_token: Option<f64>,
    pub(super) runs: Vec<f64>,
}

/// Measures every format in every way, in turn.
pub(super) fn measure(
    formats: &[&'static Format],
    tokens: usize,
    runs: usize,
) -> Result<Vec<Parsed>> {
    let streams: Vec<Stream> = formats.iter().map(|format| format.stream(tokens)).collect();
    let mut times: Vec<Vec<Vec<f64>>> = formats
        .iter()
        .map(|format| vec![Vec::new(); Way::of(format).len()])
        .collect();
    // The first turn warms up.
    for turn in 0..=runs {
        for (at, format) in formats.iter().enumerate() {
            for (way_at, way) in Way::of(format).iter().enumerate() {
                let began = Instant::now();
                way.read(format, &streams[at])
                    .with_context(|| format!("{}, {}", format.profile, way.name()))?;
                let took = began.elapsed().as_nanos() as f64 / tokens as f64;
                if turn > 0 {
                    times[at][way_at].push(took);
                }
            }
        }
    }
    let mut parsed = Vec::new();
    for ((format, stream), times) in formats.iter().zip(&streams).zip(times) {
        let bytes: usize = stream.chunks.iter().map(Bytes::len).sum();
        let bytes_per_token = bytes as f64 / tokens as f64;
        let mut ours = None;
        for (way, runs) in Way::of(format).iter().zip(times) {
            let typical = median(runs.iter().copied()).context("nothing was measured")?;
            parsed.push(Parsed {
                format: format.profile,
                way: *way,
                name: way.name(),
                bytes_per_token,
                ns_per_token: typical,
                p99_ns_per_token: percentile_99(&runs),
                megabytes_per_second: bytes_per_token / typical * 1e3,
                to_ours: typical / *ours.get_or_insert(typical),
                allocations_per_token: None,
                runs,
            });
        }
    }
    Ok(parsed)
}

/// The smallest that 99 of 100 are not above; of fewer than a hundred the largest.
fn percentile_99(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * 99).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Fills in the allocations, which another program counts.
///
/// # Errors
/// Why they are not known.
pub(super) fn count_allocations(parsed: &mut [Parsed]) -> Result<()> {
    let counter = std::env::current_exe()?.with_file_name("lapce-ai-bench-allocations");
    let output = Command::new(&counter).output().with_context(|| {
        format!(
            "{} is not built; `cargo build --release -p lapce-ai-bench` builds it",
            counter.display()
        )
    })?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let counts: Value = serde_json::from_slice(&output.stdout)?;
    for row in parsed {
        let way = serde_json::to_value(row.way)?;
        let count = &counts[row.format][way.as_str().unwrap_or_default()];
        row.allocations_per_token = count.as_f64();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile_99(&values), 198.0);
        assert_eq!(percentile_99(&[3.0, 1.0, 2.0]), 3.0);
    }

    #[test]
    fn every_way_reads_the_same() {
        let (formats, _) = Format::all();
        assert!(!formats.is_empty());
        for row in measure(&formats, 100, 1).unwrap() {
            assert!(row.ns_per_token > 0.0, "{row:?}");
        }
    }
}
