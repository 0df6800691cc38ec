//! The body of an answer as events.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::provider::{Timeouts, deepest, timed_out};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::Event;
use crate::provider::EventStream;
use crate::wire::{Decoding, Wire};

/// After a complete answer, how long to wait for the end of the body so that the connection can be used again.
const END_OF_BODY: Duration = Duration::from_millis(500);

pub(super) struct HttpStream {
    /// `None` once it is at its end, or of no more use.
    body: Option<Incoming>,
    decoding: Decoding,
    wait: Wait,
    between_tokens: Duration,
    name: Arc<str>,
    wire: Arc<dyn Wire>,
}

/// What is left of the time for the next token. It runs only while the reader waits.
struct Wait {
    phase: Phase,
    /// The whole of the time, for the error's text.
    limit: Duration,
    left: Duration,
    /// When the clock began to run.
    since: Option<Instant>,
    /// Reset at most once a wait, and not at all where the data is there already.
    timer: Pin<Box<Sleep>>,
    armed: bool,
}

impl HttpStream {
    pub(super) fn new(
        body: Incoming,
        decoding: Decoding,
        timeouts: Timeouts,
        name: Arc<str>,
        wire: Arc<dyn Wire>,
    ) -> Self {
        let wait = Wait {
            phase: Phase::FirstToken,
            limit: timeouts.first_token,
            left: timeouts.first_token,
            since: None,
            timer: Box::pin(tokio::time::sleep(timeouts.first_token)),
            armed: false,
        };
        Self {
            body: Some(body),
            decoding,
            wait,
            between_tokens: timeouts.between_tokens,
            name,
            wire,
        }
    }

    fn frame(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            // Trailers say nothing that we want.
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    self.decoding.push(&chunk);
                }
            }
            Some(Err(error)) => {
                let message = format!("the connection broke: {}", deepest(&error));
                self.lost(ProviderError::new(ErrorKind::StreamCut, message).caused_by(error));
            }
            None => {
                self.body = None;
                self.decoding.finish();
            }
        }
    }

    /// The rest of the body will not come. Where the answer is complete without it, no harm is done.
    fn lost(&mut self, error: ProviderError) {
        self.body = None;
        self.decoding.lose(error);
    }
}

impl EventStream for HttpStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.decoding.is_ready() {
                self.wait.pause();
                return Poll::Ready(());
            }
            let Some(body) = &mut self.body else {
                return Poll::Ready(());
            };
            if self.decoding.is_ended() {
                self.wait.at_most(END_OF_BODY);
            }
            self.wait.run();
            let over = match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => {
                    self.frame(frame);
                    // Pings may come so fast that there is always one.
                    !self.decoding.is_ready() && self.wait.is_over()
                }
                Poll::Pending => {
                    if self.wait.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    true
                }
            };
            if over {
                self.lost(timed_out(self.wait.phase, self.wait.limit));
            }
        }
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let Self {
            decoding,
            wait,
            name,
            wire,
            between_tokens,
            ..
        } = self;
        let event = decoding.next()?;
        if let Ok(Event::Text(_) | Event::Reasoning { .. } | Event::ToolCall(_)) = event {
            wait.phase = Phase::NextToken;
            wait.limit = *between_tokens;
            wait.left = *between_tokens;
        }
        Some(event.map_err(|error| error.leaving(name, &wire.secrets())))
    }
}

impl Wait {
    /// The reader waits: the clock runs.
    fn run(&mut self) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            self.armed = false;
        }
    }

    /// There is something to read: the clock stops.
    fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
    }

    /// The end is near: no more than `limit` of time is left.
    fn at_most(&mut self, limit: Duration) {
        if self.since.is_none() {
            self.left = self.left.min(limit);
        }
    }

    fn is_over(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= self.left)
    }

    /// Ready when no time is left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        if !self.armed
            && let Some(since) = self.since
            // A far future, where the sum is too large, never comes.
            && let Some(deadline) = since.checked_add(self.left)
        {
            self.timer.as_mut().reset(deadline);
            self.armed = true;
        }
        self.timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_only_while_the_reader_waits() {
        let second = Duration::from_secs(1);
        let mut wait = Wait {
            phase: Phase::FirstToken,
            limit: 3 * second,
            left: 3 * second,
            since: None,
            timer: Box::pin(tokio::time::sleep(3 * second)),
            armed: false,
        };
        wait.run();
        // Two seconds of waiting, ended by something that is no token.
        assert!(
            tokio::time::timeout(2 * second, poll_fn(|cx| wait.poll(cx)))
                .await
                .is_err()
        );
        wait.pause();
        // The reader is busy for long.
        tokio::time::advance(100 * second).await;
        wait.run();
        let begun = Instant::now();
        poll_fn(|cx| wait.poll(cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 1);
    }
}
