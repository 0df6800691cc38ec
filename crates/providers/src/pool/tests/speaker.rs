//! A provider that does line by line what its script says, and remembers what it was asked.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::chat::{ChatRequest, Content, ModelInfo};
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Event, FinishReason, ToolCallDelta, Usage};
use crate::provider::{BoxFuture, ChatStream, EventStream, Provider};

/// One line of a script.
#[derive(Clone, Debug)]
pub(super) enum Line {
    Wait(u64),
    Text(String),
    Thought(&'static str, Option<&'static str>),
    Call,
    Tokens(u64, u64),
    /// Ends in an error; as the first line, without an answer.
    Fails(ErrorKind),
    Finish,
    /// Ends without a mark.
    Ends,
}

pub(super) fn text(text: &str) -> Line {
    Line::Text(text.to_owned())
}

#[derive(Debug)]
pub(super) struct Speaker {
    /// One script for each request; then the last of these for ever.
    scripts: Mutex<VecDeque<Vec<Line>>>,
    asked: Mutex<Vec<ChatRequest>>,
    /// Requests and answers that somebody still holds.
    held: Arc<AtomicUsize>,
}

impl Speaker {
    pub(super) fn new(scripts: impl IntoIterator<Item = Vec<Line>>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            asked: Mutex::default(),
            held: Arc::default(),
        })
    }

    /// Says one thing after so many milliseconds.
    pub(super) fn after(millis: u64, said: &str) -> Arc<Self> {
        Self::new([vec![Line::Wait(millis), text(said), Line::Finish]])
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// The texts of the last request's messages, and its limit.
    pub(super) fn last(&self) -> (Vec<String>, Option<u32>) {
        let asked = self.asked.lock().unwrap();
        let last = asked.last().unwrap();
        let contents = last.messages.iter().flat_map(|message| &message.content);
        let texts = contents.map(|content| match content {
            Content::Text(text) => text.clone(),
            other => format!("{other:?}"),
        });
        (texts.collect(), last.max_tokens)
    }
}

/// Counts itself.
struct Held(Arc<AtomicUsize>);

impl Held {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Provider for Speaker {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        self.asked.lock().unwrap().push(request.clone());
        let mut scripts = self.scripts.lock().unwrap();
        let lines = match scripts.len() {
            1 => scripts[0].clone(),
            _ => scripts.pop_front().unwrap(),
        };
        let held = Held::new(&self.held);
        Box::pin(async move {
            let mut lines: VecDeque<Line> = lines.into();
            while let Some(Line::Wait(millis)) = lines.front() {
                sleep(Duration::from_millis(*millis)).await;
                lines.pop_front();
            }
            if let Some(Line::Fails(kind)) = lines.front() {
                return Err(ProviderError::new(*kind, ""));
            }
            Ok(ChatStream::new(Speech {
                begun: false,
                lines,
                current: None,
                timer: None,
                _held: held,
            }))
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

struct Speech {
    begun: bool,
    lines: VecDeque<Line>,
    current: Option<Line>,
    timer: Option<Pin<Box<Sleep>>>,
    _held: Held,
}

impl EventStream for Speech {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun {
            return Poll::Ready(());
        }
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            let Some(Line::Wait(millis)) = self.lines.front() else {
                return Poll::Ready(());
            };
            self.timer = Some(Box::pin(sleep(Duration::from_millis(*millis))));
            self.lines.pop_front();
        }
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        if !std::mem::replace(&mut self.begun, true) {
            let (id, model) = (Some("id"), None);
            return Some(Ok(Event::Start { id, model }));
        }
        self.current = self.lines.pop_front();
        Some(Ok(match self.current.as_ref()? {
            Line::Text(text) => Event::Text(text),
            Line::Thought(text, signature) => Event::Reasoning {
                text,
                signature: *signature,
            },
            Line::Call => Event::ToolCall(ToolCallDelta {
                index: 0,
                id: Some("1"),
                name: Some("add"),
                arguments: "{",
                signature: None,
            }),
            Line::Tokens(input_tokens, output_tokens) => Event::Usage(Usage {
                input_tokens: *input_tokens,
                output_tokens: *output_tokens,
                ..Usage::default()
            }),
            Line::Fails(kind) => return Some(Err(ProviderError::new(*kind, "in the middle"))),
            Line::Finish => Event::Finish(FinishReason::Stop),
            Line::Ends | Line::Wait(_) => return None,
        }))
    }
}
