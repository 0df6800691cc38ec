//! Round trips one after another, as fast as they go or as often as they are due.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use lapce_ai_client::{BlockingClient, MessageType, RequestOptions};
use lapce_ai_proto::Class;

use crate::measure::{Latency, histogram};
use crate::message::Messages;
use crate::peers::Peer;

/// Round trips at `rate` a second for `time`. Each counts from when it was due, so that one that is late makes those
/// behind it late too, as it would for somebody who waits.
pub(super) fn open_loop(
    peer: &mut dyn Peer,
    messages: &Messages,
    rate: u32,
    time: Duration,
) -> Result<Latency> {
    let mut index = 0;
    on_schedule(rate, time, || {
        if let Some(answer) = peer.round_trip(messages, index)? {
            messages.check(index, answer)?;
        }
        index = (index + 1) % messages.len();
        Ok(())
    })
}

/// The same without a round trip: how late the system itself wakes a sleeper.
pub(super) fn scheduling_noise(rate: u32, time: Duration) -> Result<Latency> {
    on_schedule(rate, time, || Ok(()))
}

fn on_schedule(rate: u32, time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<Latency> {
    let mut found = histogram()?;
    let period = Duration::from_secs(1) / rate.max(1);
    let count = (time.as_secs_f64() * f64::from(rate)).ceil().max(1.0) as u32;
    let began = Instant::now();
    for turn in 1..=count {
        let due = began + period * turn;
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
        }
        work()?;
        record(&mut found, due.elapsed());
    }
    Latency::of(&found)
}

/// Calls of a class, one after another, for `time`.
pub(super) fn calls(
    client: &BlockingClient,
    payload: usize,
    class: Class,
    time: Duration,
) -> Result<Latency> {
    let options = RequestOptions {
        class,
        ..RequestOptions::default()
    };
    let body = vec![b'p'; payload];
    let mut found = histogram()?;
    let began = Instant::now();
    while began.elapsed() < time {
        let before = Instant::now();
        let answer = client.call_with(MessageType::ECHO, &body, &options)?;
        let took = before.elapsed();
        anyhow::ensure!(answer == body, "an answer is not the request's");
        record(&mut found, took);
    }
    Latency::of(&found)
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record((took.as_nanos() as u64).max(1));
}
