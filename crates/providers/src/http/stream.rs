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

use super::encoding::Unpacker;
use super::provider::{Timeouts, deepest, timed_out};
use super::thoughts;
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::Event;
use crate::provider::EventStream;
use crate::wire::{Decoding, Wire};

/// After a complete answer, how long to wait for the end of the body so that the connection can be used again.
const END_OF_BODY: Duration = Duration::from_millis(500);

pub(super) struct HttpStream {
    /// `None` once it is at its end, or of no more use.
    body: Option<Incoming>,
    /// What is left of the chunk that came last. It is decoded when the events before it are taken.
    rest: Bytes,
    unpacker: Unpacker,
    decoding: Decoding,
    wait: Wait,
    between_tokens: Duration,
    /// The last thought's proof.
    proof: String,
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
        unpacker: Unpacker,
        decoding: Decoding,
        timeouts: Timeouts,
        name: Arc<str>,
        wire: Arc<dyn Wire>,
    ) -> Self {
        Self {
            body: Some(body),
            rest: Bytes::new(),
            unpacker,
            decoding,
            wait: Wait::new(timeouts.first_token),
            between_tokens: timeouts.between_tokens,
            proof: String::new(),
            name,
            wire,
        }
    }

    fn frame(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        match frame {
            // Trailers say nothing that we want.
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    self.decode(&chunk);
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

    /// Decodes `chunk` until there is something to take. The rest of it waits: a packed chunk is up to a thousand times as
    /// long as it looks, and only what is taken makes room for more.
    fn decode(&mut self, chunk: &Bytes) {
        let decoding = &mut self.decoding;
        let taken = self.unpacker.push(chunk, |bytes| {
            decoding.push(bytes);
            !decoding.is_ready() && !decoding.is_ended()
        });
        match taken {
            Ok(taken) if !self.decoding.is_ended() => self.rest = chunk.slice(taken..),
            Ok(_) => {}
            Err(error) => self.lost(error),
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
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                self.decode(&rest);
                continue;
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
            proof,
            ..
        } = self;
        let event = decoding.next()?;
        if let Ok(Event::Text(_) | Event::Reasoning { .. } | Event::ToolCall(_)) = event {
            wait.phase = Phase::NextToken;
            wait.limit = *between_tokens;
            wait.left = *between_tokens;
        }
        Some(match event {
            Ok(event) => Ok(thoughts::named(event, name, proof)),
            Err(error) => Err(error.leaving(name, &wire.secrets())),
        })
    }
}

impl Wait {
    /// For the first token, `limit` at most.
    fn new(limit: Duration) -> Self {
        Self {
            phase: Phase::FirstToken,
            limit,
            left: limit,
            since: None,
            timer: Box::pin(tokio::time::sleep(limit)),
            armed: false,
        }
    }

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
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::profile::{Profile, Settings};

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_only_while_the_reader_waits() {
        let second = Duration::from_secs(1);
        let mut wait = Wait::new(3 * second);
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

    #[tokio::test(start_paused = true)]
    async fn a_packed_chunk_is_decoded_no_faster_than_its_events_are_taken() {
        const EVENTS: usize = 50_000;
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(event.repeat(EVENTS).as_bytes()).unwrap();
        encoder.write_all(b"data: [DONE]\n\n").unwrap();
        let chunk = Bytes::from(encoder.finish().unwrap());
        let head = http::Response::builder()
            .header("content-type", "text/event-stream")
            .header("content-encoding", "gzip");
        let head = head.body(()).unwrap().into_parts().0;
        let openai = Profile::named("openai").unwrap();
        let wire = openai.wire(&Settings::default()).unwrap();
        let mut stream = HttpStream {
            // The one chunk was all of it.
            body: None,
            rest: Bytes::new(),
            unpacker: Unpacker::of(&head).unwrap(),
            decoding: Decoding::new(wire.decoder(&head, 1 << 20).unwrap()),
            wait: Wait::new(Duration::from_secs(1)),
            between_tokens: Duration::from_secs(1),
            proof: String::new(),
            name: "tested".into(),
            wire,
        };
        stream.frame(Some(Ok(Frame::data(chunk))));
        let (mut texts, mut finished) = (0, false);
        loop {
            poll_fn(|cx| stream.poll_ready(cx)).await;
            // A piece of the chunk has at most half of them.
            let waiting = stream.decoding.waiting();
            assert!(waiting < EVENTS / 2, "{waiting}");
            let Some(event) = stream.take() else { break };
            match event.unwrap() {
                Event::Text(text) => texts += text.len(),
                event => finished |= matches!(event, Event::Finish(_)),
            }
        }
        assert_eq!((texts, finished), (EVENTS, true));
    }
}
