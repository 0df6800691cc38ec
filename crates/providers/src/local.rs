//! `local`: a provider without a model, a key or a network.
//!
//! It says plainly what it is. It makes a first start work, and lets tests and measurements run the whole way from an
//! editor to a provider with timing and failures of their choice.

use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::chat::{ChatRequest, Content, Message, ModelInfo, Role};
use crate::error::{ErrorKind, ProviderError};
use crate::event::{Event, FinishReason, Usage};
use crate::provider::{BoxFuture, ChatStream, EventStream, Provider};

/// The provider's name, and that of its one model.
const NAME: &str = "local";
/// The most of the person's words that are repeated.
const QUOTE_LIMIT: usize = 200;

/// How [`Local`] behaves. The default answers at once.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct LocalConfig {
    /// Time from the request to the first token.
    pub first_token_delay: Duration,
    /// Tokens per second after the first; `None` is as fast as the reader takes them.
    pub tokens_per_second: Option<f64>,
    /// Exactly so many tokens, by repeating or cutting the answer. A smaller `max_tokens` of the request still cuts.
    pub tokens: Option<u32>,
    /// A failure in every answer.
    pub failure: Option<LocalFailure>,
}

/// A failure of [`Local`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFailure {
    /// After how many tokens it strikes; with 0 the request itself fails.
    pub after_tokens: u32,
    /// What happens then.
    pub how: FailureMode,
}

/// What happens in a [`LocalFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureMode {
    /// An error of this kind.
    Error(ErrorKind),
    /// Nothing, forever.
    Hang,
}

/// The provider without a model.
#[derive(Clone, Debug, Default)]
pub struct Local {
    config: LocalConfig,
}

impl Local {
    /// A provider that behaves as `config` says.
    pub fn new(config: LocalConfig) -> Self {
        Self { config }
    }

    async fn open(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        if let Some(LocalFailure {
            after_tokens: 0,
            how,
        }) = self.config.failure
        {
            tokio::time::sleep(self.config.first_token_delay).await;
            match how {
                FailureMode::Error(kind) => return Err(injected(kind)),
                FailureMode::Hang => std::future::pending::<()>().await,
            }
        }
        Ok(ChatStream::new(LocalStream::new(self.config, request)))
    }
}

impl Provider for Local {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(self.open(request))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        let model = ModelInfo {
            id: NAME.into(),
            display_name: Some("local (no AI)".into()),
            owner: Some("lapce-ai".into()),
            ..ModelInfo::default()
        };
        Box::pin(std::future::ready(Ok(vec![model])))
    }
}

struct LocalStream {
    config: LocalConfig,
    text: String,
    /// Where in `text` the next token begins.
    at: usize,
    sent: u32,
    total: u32,
    usage: Usage,
    finish: FinishReason,
    step: Step,
    /// When the next token is due; `None` is now.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy)]
enum Step {
    Start,
    Tokens,
    Usage,
    Finish,
    End,
}

impl LocalStream {
    fn new(config: LocalConfig, request: &ChatRequest) -> Self {
        let text = answer(request);
        let natural = count(&text);
        let wanted = config.tokens.unwrap_or(natural);
        let total = wanted.min(request.max_tokens.unwrap_or(u32::MAX));
        let finish = if total < wanted {
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        let input: u32 = request.system.iter().map(|text| count(text)).sum::<u32>()
            + request
                .messages
                .iter()
                .map(|message| count(&said(message)))
                .sum::<u32>();
        let timer = (!config.first_token_delay.is_zero())
            .then(|| Box::pin(tokio::time::sleep(config.first_token_delay)));
        Self {
            config,
            text,
            at: 0,
            sent: 0,
            total,
            usage: Usage {
                input_tokens: input.into(),
                output_tokens: total.into(),
                ..Usage::default()
            },
            finish,
            step: Step::Start,
            timer,
        }
    }

    fn failure(&self) -> Option<FailureMode> {
        let failure = self.config.failure?;
        (failure.after_tokens == self.sent && matches!(self.step, Step::Tokens))
            .then_some(failure.how)
    }

    /// The next token's place in the text, which starts again at its end.
    fn token(&mut self) -> std::ops::Range<usize> {
        if self.at == self.text.len() {
            self.at = 0;
        }
        let start = self.at;
        self.at += token_len(&self.text[start..]);
        self.sent += 1;
        if let Some(rate) = self.config.tokens_per_second
            && let Ok(pause) = Duration::try_from_secs_f64(1.0 / rate)
            && !pause.is_zero()
        {
            // From when it was due, so that a slow reader does not slow the source.
            let due = self
                .timer
                .as_ref()
                .map_or_else(Instant::now, |timer| timer.deadline());
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(due + pause),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(due + pause))),
            }
        } else {
            self.timer = None;
        }
        start..self.at
    }
}

impl EventStream for LocalStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.step, Step::Tokens) {
            if self.failure() == Some(FailureMode::Hang) {
                return Poll::Pending;
            }
            if self.sent < self.total
                && let Some(timer) = &mut self.timer
            {
                return timer.as_mut().poll(cx);
            }
        }
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        if let Some(FailureMode::Error(kind)) = self.failure() {
            self.step = Step::End;
            return Some(Err(injected(kind)));
        }
        if matches!(self.step, Step::Tokens) && self.sent == self.total {
            self.step = Step::Usage;
        }
        Some(Ok(match self.step {
            Step::Start => {
                self.step = Step::Tokens;
                Event::Start {
                    id: None,
                    model: Some(NAME),
                }
            }
            Step::Tokens => {
                let token = self.token();
                Event::Text(&self.text[token])
            }
            Step::Usage => {
                self.step = Step::Finish;
                Event::Usage(self.usage)
            }
            Step::Finish => {
                self.step = Step::End;
                Event::Finish(self.finish)
            }
            Step::End => return None,
        }))
    }
}

/// What `local` says to `request`.
fn answer(request: &ChatRequest) -> String {
    let mut text = "I am lapce-ai's built-in `local` model: no AI, only proof that everything up to here works.".to_owned();
    let last = request
        .messages
        .iter()
        .rev()
        .find(|message| message.role == Role::User)
        .map(said);
    if let Some(last) = last.filter(|last| !last.trim().is_empty()) {
        let mut quote: String = last.trim().chars().take(QUOTE_LIMIT).collect();
        if quote.len() < last.trim().len() {
            quote.push('…');
        }
        // A String takes every write.
        let _ = write!(text, " You said: \"{quote}\".");
    }
    text.push_str(
        " For real answers set a provider's key, for example OPENAI_API_KEY, or start a local server such as Ollama \
         or llama.cpp, and start lapce-ai again.",
    );
    text
}

fn said(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|content| match content {
        Content::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// A token is a word with the white space before it.
fn token_len(text: &str) -> usize {
    let word = text
        .find(|c: char| !c.is_whitespace())
        .unwrap_or(text.len());
    text[word..]
        .find(char::is_whitespace)
        .map_or(text.len(), |end| word + end)
}

fn count(mut text: &str) -> u32 {
    let mut tokens = 0;
    while !text.is_empty() {
        text = &text[token_len(text)..];
        tokens += 1;
    }
    tokens
}

fn injected(kind: ErrorKind) -> ProviderError {
    ProviderError::new(kind, "a failure that `local` was told to have").leaving(NAME, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ChatRequest {
        ChatRequest::new(NAME).with(Message::user("Hello  there"))
    }

    async fn run(
        config: LocalConfig,
        request: &ChatRequest,
    ) -> (Vec<String>, Vec<Event<'static>>, Option<ErrorKind>) {
        let mut stream = match Local::new(config).chat(request).await {
            Ok(stream) => stream,
            Err(error) => return (Vec::new(), Vec::new(), Some(error.kind)),
        };
        let (mut tokens, mut others) = (Vec::new(), Vec::new());
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Text(text)) => tokens.push(text.to_owned()),
                Ok(Event::Usage(usage)) => others.push(Event::Usage(usage)),
                Ok(Event::Finish(reason)) => others.push(Event::Finish(reason)),
                Ok(_) => {}
                Err(error) => return (tokens, others, Some(error.kind)),
            }
        }
        (tokens, others, None)
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_what_it_is_the_same_each_time() {
        let (tokens, others, error) = run(LocalConfig::default(), &request()).await;
        let text = tokens.concat();
        assert!(
            text.starts_with("I am lapce-ai's built-in `local` model: no AI"),
            "{text}"
        );
        assert!(
            text.contains("You said: \"Hello  there\".") && text.contains("OPENAI_API_KEY"),
            "{text}"
        );
        let usage = Usage {
            input_tokens: 2,
            output_tokens: tokens.len() as u64,
            ..Usage::default()
        };
        assert_eq!(
            others,
            [Event::Usage(usage), Event::Finish(FinishReason::Stop)]
        );
        assert_eq!(error, None);
        assert_eq!(run(LocalConfig::default(), &request()).await.0, tokens);
        let mut nothing_said = request();
        nothing_said.messages.clear();
        assert!(
            !run(LocalConfig::default(), &nothing_said)
                .await
                .0
                .concat()
                .contains("You said")
        );
        nothing_said.messages.push(Message::user("ü".repeat(1000)));
        assert!(
            run(LocalConfig::default(), &nothing_said)
                .await
                .0
                .concat()
                .contains("üü…\"")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_tokens_is_exact() {
        for wanted in [0, 1, 5, 1000] {
            let config = LocalConfig {
                tokens: Some(wanted),
                ..LocalConfig::default()
            };
            let (tokens, others, _) = run(config, &request()).await;
            assert_eq!(tokens.len(), wanted as usize);
            assert!(tokens.iter().all(|token| !token.is_empty()));
            assert_eq!(others[1], Event::Finish(FinishReason::Stop));
            let limited = ChatRequest {
                max_tokens: Some(3),
                ..request()
            };
            let (tokens, others, _) = run(config, &limited).await;
            assert_eq!(tokens.len(), wanted.min(3) as usize);
            let reason = if wanted > 3 {
                FinishReason::Length
            } else {
                FinishReason::Stop
            };
            assert_eq!(others[1], Event::Finish(reason));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn timing_is_as_set() {
        let config = LocalConfig {
            first_token_delay: Duration::from_secs(2),
            tokens_per_second: Some(10.0),
            tokens: Some(11),
            ..LocalConfig::default()
        };
        let begun = Instant::now();
        run(config, &request()).await;
        assert_eq!(begun.elapsed().as_millis(), 3000);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_strike_where_they_should() {
        let failing = |after_tokens, how| LocalConfig {
            first_token_delay: Duration::from_secs(1),
            failure: Some(LocalFailure { after_tokens, how }),
            ..LocalConfig::default()
        };
        let kind = ErrorKind::Overloaded;
        let (tokens, _, error) = run(failing(0, FailureMode::Error(kind)), &request()).await;
        assert_eq!((tokens.len(), error), (0, Some(kind)));
        let (tokens, others, error) = run(failing(3, FailureMode::Error(kind)), &request()).await;
        assert_eq!((tokens.len(), others.len(), error), (3, 0, Some(kind)));
        for after in [0, 3] {
            let config = failing(after, FailureMode::Hang);
            let hour = Duration::from_secs(3600);
            assert!(
                tokio::time::timeout(hour, run(config, &request()))
                    .await
                    .is_err()
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_lists_itself() {
        assert_eq!(Local::default().models().await.unwrap()[0].id, NAME);
    }
}
