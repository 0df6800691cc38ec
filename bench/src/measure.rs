//! One figure: a latency or a throughput of one peer.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub(crate) use crate::latency::{Latency, histogram, median};
use crate::message::{Flow, Messages};
use crate::peers::Peer;

/// At most so many times the time that was asked for, to reach the least number of samples.
const PATIENCE: u32 = 10;
/// Messages of a throughput that are waited for, however slow they are.
const BEARABLE: u64 = 100;

/// How long each figure is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Effort {
    /// Time for each figure, without warming up.
    pub(crate) time: Duration,
    /// Round trips that are made at least.
    pub(crate) least: u64,
}

impl Effort {
    fn warm_up(self) -> Self {
        Self {
            time: self.time / 5,
            least: self.least.min(100),
        }
    }
}

/// Messages, each with its answer, with several in flight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Throughput {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
}

/// What a peer gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Figure {
    Latency(Latency),
    Throughput(Throughput),
}

/// The same, with all that a latency is made of.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) figure: Figure,
    /// In nanoseconds.
    pub(crate) distribution: Option<Histogram<u64>>,
}

impl Figure {
    /// How this figure stands to a peer's of the same kind: a median latency over a median latency, a rate over a rate.
    pub(crate) fn ratio_to(&self, peer: &Self) -> Option<f64> {
        match (self, peer) {
            (Self::Latency(own), Self::Latency(peer)) => Some(own.p50 as f64 / peer.p50 as f64),
            (Self::Throughput(own), Self::Throughput(peer)) => {
                Some(own.per_second / peer.per_second)
            }
            _ => None,
        }
    }
}

/// Measures one message in flight.
pub(crate) fn latency(peer: &mut dyn Peer, messages: &Messages, effort: Effort) -> Result<Latency> {
    Latency::of(&distribution(peer, messages, effort)?)
}

/// The same, with all that was measured, in nanoseconds.
pub(crate) fn distribution(
    peer: &mut dyn Peer,
    messages: &Messages,
    effort: Effort,
) -> Result<Histogram<u64>> {
    for index in 0..messages.len() {
        if let Some(answer) = peer.round_trip(messages, index)? {
            messages.check_whole(index, answer)?;
        }
    }
    sample(peer, messages, effort.warm_up())?;
    sample(peer, messages, effort)
}

fn sample(peer: &mut dyn Peer, messages: &Messages, effort: Effort) -> Result<Histogram<u64>> {
    let mut histogram = histogram()?;
    let began = Instant::now();
    let mut index = 0;
    loop {
        let before = Instant::now();
        let answer = peer.round_trip(messages, index)?;
        let after = Instant::now();
        if let Some(answer) = answer {
            messages.check(index, answer)?;
        }
        let took = after.duration_since(before).as_nanos() as u64;
        histogram.saturating_record(took.max(1));
        index = if index + 1 == messages.len() {
            0
        } else {
            index + 1
        };
        let elapsed = after.duration_since(began);
        let enough = elapsed >= effort.time && histogram.len() >= effort.least;
        if enough || elapsed >= effort.time * PATIENCE {
            return Ok(histogram);
        }
    }
}

/// Measures messages with `window` of them in flight.
pub(crate) fn throughput(
    peer: &mut dyn Peer,
    messages: &Messages,
    window: usize,
    effort: Effort,
) -> Result<Throughput> {
    peer.windowed(&mut Flow::whole(messages, window))?;
    // Warms up, and finds how many messages take the time.
    let mut count = 2 * window as u64;
    let mut warmed = run(peer, messages, window, count)?;
    while warmed.seconds < effort.time.as_secs_f64() / 5.0 && count < 1 << 40 {
        count *= 2;
        warmed = run(peer, messages, window, count)?;
    }
    let count = (warmed.per_second * effort.time.as_secs_f64()) as u64;
    let bearable = count.saturating_mul(u64::from(PATIENCE)).max(BEARABLE);
    let least = effort.least.min(bearable);
    run(
        peer,
        messages,
        window,
        count.max(least).max(2 * window as u64),
    )
}

fn run(peer: &mut dyn Peer, messages: &Messages, window: usize, count: u64) -> Result<Throughput> {
    let mut flow = Flow::new(messages, window, count);
    let began = Instant::now();
    peer.windowed(&mut flow)?;
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    Ok(Throughput {
        messages: count,
        seconds,
        per_second: count as f64 / seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives back what it gets.
    struct Mirror {
        answer: Vec<u8>,
        broken: bool,
    }

    impl Peer for Mirror {
        fn round_trip<'a>(
            &'a mut self,
            messages: &Messages,
            index: usize,
        ) -> Result<Option<&'a [u8]>> {
            self.answer = messages.payload(index).to_vec();
            if self.broken {
                self.answer.pop();
            }
            Ok(Some(&self.answer))
        }

        fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
            while let Some(index) = flow.next() {
                flow.sent();
                flow.answered(flow.messages().payload(index))?;
            }
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    const EFFORT: Effort = Effort {
        time: Duration::ZERO,
        least: 50,
    };

    #[test]
    fn a_figure_comes_from_samples() {
        let messages = Messages::new(64, 4);
        let mut mirror = Mirror {
            answer: Vec::new(),
            broken: false,
        };
        let found = throughput(&mut mirror, &messages, 4, EFFORT).unwrap();
        assert_eq!(found.messages, 50);
        assert!(found.per_second > 0.0 && found.seconds > 0.0);
        let effort = Effort {
            time: Duration::from_millis(1),
            ..EFFORT
        };
        let found = latency(&mut mirror, &messages, effort).unwrap();
        assert!(found.samples > 0);
        assert!(found.p50 <= found.p99 && found.p99 <= found.p999 && found.p999 <= found.max);
    }

    #[test]
    fn a_wrong_answer_ends_it() {
        let mut mirror = Mirror {
            answer: Vec::new(),
            broken: true,
        };
        let error = latency(&mut mirror, &Messages::new(64, 1), EFFORT).unwrap_err();
        assert!(error.to_string().contains("wrong data"), "{error}");
    }

    #[test]
    fn ratios_are_between_figures_of_one_kind() {
        let latency = |p50| {
            Figure::Latency(Latency {
                p50,
                p99: 9,
                p999: 9,
                max: 9,
                samples: 9,
            })
        };
        let rate = |per_second| {
            Figure::Throughput(Throughput {
                messages: 1,
                seconds: 1.0,
                per_second,
            })
        };
        assert_eq!(latency(300).ratio_to(&latency(200)), Some(1.5));
        assert_eq!(rate(2.0).ratio_to(&rate(4.0)), Some(0.5));
        assert_eq!(rate(2.0).ratio_to(&latency(1)), None);
    }
}
