//! Many requests at once, one way or the other, each timed.
//!
//! With a thousand requests on few processors each waits for its turn most of the time. So two things are measured: how long
//! a request took as a whole, and how long it was at work itself, which is the sum of the times for which its future was
//! polled. The pool's cost is the difference of the second between the two ways.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use lapce_ai_providers::{ChatRequest, Event, Message, Plan, Pool, Provider};
use tokio::task::JoinSet;

use crate::reply::TOKENS;

/// Beyond it a time counts as so long: a minute.
pub(crate) const LONGEST_NS: u64 = 60_000_000_000;

/// How a request gets to the provider.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Direct(Arc<dyn Provider>),
    Pool(Arc<Pool>, Arc<Plan>),
}

impl Way {
    /// Asks and reads the whole answer. False: it was not the right one.
    async fn ask(&self) -> Result<bool> {
        let request = ChatRequest::new("m").with(Message::user("Say something."));
        let mut stream = match self {
            Self::Direct(provider) => provider.chat(&request).await?,
            Self::Pool(pool, plan) => pool.chat(plan, request, None).await?.given,
        };
        let (mut texts, mut finished) = (TOKENS.iter(), false);
        while let Some(event) = stream.next().await {
            match event? {
                Event::Text(text) if texts.next() == Some(&text) => {}
                Event::Text(_) => return Ok(false),
                Event::Finish(_) => finished = true,
                _ => {}
            }
        }
        Ok(finished && texts.next().is_none())
    }
}

/// So many requests in one way.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) way: Way,
    pub(crate) concurrent: u32,
    pub(crate) requests: u32,
}

/// What was measured of them, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) work: Histogram<u64>,
    pub(crate) whole: Histogram<u64>,
    pub(crate) errors: Vec<String>,
}

impl Measured {
    fn new() -> Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Ok(Self {
            work: histogram()?,
            whole: histogram()?,
            errors: Vec::new(),
        })
    }
}

impl Load {
    pub(crate) async fn run(self) -> Result<Measured> {
        // Each makes one before the others are counted: connections, and the pool's first knowledge.
        let left = Arc::new(AtomicU32::new(self.requests));
        let warm = Arc::new(tokio::sync::Barrier::new(self.concurrent as usize));
        let mut tasks = JoinSet::new();
        for _ in 0..self.concurrent {
            let (way, left, warm) = (self.way.clone(), Arc::clone(&left), Arc::clone(&warm));
            tasks.spawn(async move {
                let first = way.ask().await;
                warm.wait().await;
                let (mut times, mut errors) = (Vec::new(), Vec::new());
                note(&mut errors, first);
                while take_one(&left) {
                    let begun = Instant::now();
                    let mut work = Duration::ZERO;
                    let outcome = {
                        let asking = pin!(way.ask());
                        Timed {
                            inner: asking,
                            spent: &mut work,
                        }
                        .await
                    };
                    times.push((nanoseconds(work), nanoseconds(begun.elapsed())));
                    note(&mut errors, outcome);
                }
                (times, errors)
            });
        }
        let mut all = Measured::new()?;
        while let Some(ended) = tasks.join_next().await {
            let (times, errors) = ended.context("a task died")?;
            for (work, whole) in times {
                all.work.saturating_record(work);
                all.whole.saturating_record(whole);
            }
            all.errors.extend(errors);
        }
        Ok(all)
    }
}

fn note(errors: &mut Vec<String>, outcome: Result<bool>) {
    let error = match outcome {
        Ok(true) => return,
        Ok(false) => "a wrong answer".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    errors.push(error);
}

fn take_one(left: &AtomicU32) -> bool {
    let take = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Adds up for how long a future is polled.
struct Timed<'a, F> {
    inner: Pin<&'a mut F>,
    spent: &'a mut Duration,
}

impl<F: Future> Future for Timed<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let begun = Instant::now();
        let polled = self.inner.as_mut().poll(cx);
        *self.spent += begun.elapsed();
        polled
    }
}
