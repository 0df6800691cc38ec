//! Latencies, and what stands for many of them.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told from longer ones: a minute, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies with one message in flight, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
    pub(crate) samples: u64,
}

impl Latency {
    /// # Errors
    /// There is nothing in it.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Result<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Some(histogram.len())
            .filter(|samples| *samples > 0)
            .context("nothing was measured")?;
        Ok(Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            samples: histogram.len(),
        })
    }
}

/// For nanoseconds.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST_NS, 3)?)
}

/// The median, or of two in the middle their mean; `None` of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_histogram() {
        let mut histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3).unwrap();
        Latency::of(&histogram).unwrap_err();
        (1..=1000).for_each(|ns| histogram.saturating_record(ns));
        let found = Latency::of(&histogram).unwrap();
        assert_eq!((found.p50, found.p99, found.p999), (500, 990, 999));
        assert_eq!((found.max, found.samples), (1000, 1000));
        histogram.saturating_record(u64::MAX);
        assert!(Latency::of(&histogram).unwrap().max >= LONGEST_NS);
    }

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
