//! An answer that came through the pool: what was read of it to be sure that it begins, then the rest.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::member::Call;
use super::trail::Step;
use crate::chat::ChatRequest;
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::{Event, EventQueue};
use crate::provider::{ChatStream, EventStream};

/// The most memory that an answer takes which is gathered before anybody sees it, in bytes. Where the provider streams it
/// all the same, the 128,000 tokens that models say at most are about 13 MB: an event each, of a hundred bytes.
const MOST_GATHERED: usize = 32 << 20;

/// When an answer must be complete, and what it is that ends then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    at: Instant,
    phase: Phase,
    /// How long that was, for the error's text.
    limit: Duration,
}

impl Bound {
    /// The earlier of the request's deadline and the provider's limit for a whole answer.
    pub(super) fn of(
        begun: Instant,
        whole: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Option<Self> {
        // A far future, where the sum is too large, never comes.
        let whole = whole.and_then(|limit| {
            let at = begun.checked_add(limit)?;
            Some(Self {
                at,
                phase: Phase::Whole,
                limit,
            })
        });
        let deadline = deadline.map(|at| Self {
            at,
            phase: Phase::Deadline,
            limit: at.saturating_duration_since(begun),
        });
        [whole, deadline]
            .into_iter()
            .flatten()
            .min_by_key(|bound| bound.at)
    }

    fn error(self, name: &str) -> ProviderError {
        let message = format!("gave up after {} s", self.limit.as_secs_f64());
        let mut error = ProviderError::new(ErrorKind::TimedOut(self.phase), message);
        error.provider = name.into();
        error
    }
}

/// Asks, and waits for the first token, or without streaming for the whole answer: until then another may be asked
/// instead, since nobody has seen anything.
pub(super) async fn open(
    mut call: Call,
    step: Step,
    request: &ChatRequest,
    bound: Option<Bound>,
) -> Result<ChatStream, ProviderError> {
    let member = Arc::clone(call.member());
    let reading = async {
        let mut inner = member.account(call.key).chat(request).await?;
        call.heard(inner.rate_limits());
        let mut queue = EventQueue::default();
        loop {
            let Some(event) = inner.next().await else {
                return Err(ended_early(member.name()));
            };
            let event = event?;
            call.saw(&event);
            queue.push(event);
            match event {
                Event::Start { .. } => {}
                Event::Finish(_) => break,
                _ if request.stream => break,
                _ if queue.size() > MOST_GATHERED => return Err(too_long(member.name())),
                _ => {}
            }
        }
        Ok((inner, queue))
    };
    match within(bound, member.name(), reading).await {
        Ok((inner, queue)) => {
            call.began(request.stream);
            step.answered(Instant::now());
            Ok(ChatStream::new(Pooled {
                queue,
                inner: Some(inner),
                call,
                step,
                timer: bound.map(|bound| (bound, Box::pin(sleep_until(bound.at)))),
                out_of_time: None,
                over: false,
            }))
        }
        Err(error) => {
            call.failed(&error);
            step.failed(error.kind, Instant::now());
            Err(error)
        }
    }
}

/// How `work` ends, or that it did not in time. `name` is the provider's, for the error.
pub(super) async fn within<T>(
    bound: Option<Bound>,
    name: &str,
    work: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    match bound {
        None => work.await,
        Some(bound) => match tokio::time::timeout_at(bound.at, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(bound.error(name)),
        },
    }
}

/// Without its end mark nobody knows what is missing.
pub(super) fn ended_early(name: &str) -> ProviderError {
    let mut error = ProviderError::new(
        ErrorKind::StreamCut,
        "the answer ended without its end mark",
    );
    error.provider = name.into();
    error
}

/// Nobody asks for so much in one piece: it is an attack or a defect.
fn too_long(name: &str) -> ProviderError {
    let message = format!("the answer takes more than {MOST_GATHERED} bytes");
    let mut error = ProviderError::new(ErrorKind::MalformedResponse, message);
    error.provider = name.into();
    error
}

struct Pooled {
    queue: EventQueue,
    /// `None` when the time is over: that drops the request.
    inner: Option<ChatStream>,
    call: Call,
    step: Step,
    timer: Option<(Bound, Pin<Box<Sleep>>)>,
    out_of_time: Option<Bound>,
    /// It was given whole.
    over: bool,
}

impl EventStream for Pooled {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.queue.is_empty() {
            return Poll::Ready(());
        }
        // First the time: an answer that drips for ever always has something.
        if let Some((bound, timer)) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.out_of_time = Some(*bound);
            self.inner = None;
            return Poll::Ready(());
        }
        match &mut self.inner {
            Some(inner) => inner.poll_ready(cx),
            None => Poll::Ready(()),
        }
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let Self {
            queue,
            inner,
            call,
            step,
            timer,
            out_of_time,
            over,
        } = self;
        let event = match out_of_time {
            Some(bound) => Some(Err(bound.error(call.member().name()))),
            None if queue.is_empty() => {
                let event = inner.as_mut()?.take();
                if let Some(Ok(event)) = &event {
                    call.saw(event);
                }
                event
            }
            // These were seen when they were put there.
            None => queue.pop().map(Ok),
        };
        let failed = |call: &mut Call, error: &ProviderError| {
            call.failed(error);
            step.failed(error.kind, Instant::now());
        };
        match &event {
            Some(Ok(Event::Usage(usage))) => step.used(*usage),
            Some(Ok(Event::Finish(_))) => {
                *over = true;
                call.finished();
                // What is left is the end of the body, which has a limit of its own.
                *timer = None;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => failed(call, error),
            None if *over => {}
            None => {
                let error = ended_early(call.member().name());
                failed(call, &error);
            }
        }
        event
    }
}
