//! The one error of this crate: what went wrong, whose fault it is, and whether trying again can help.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::rate_limit::RateLimits;

/// The longest provider message that an error keeps, in bytes.
const MESSAGE_LIMIT: usize = 2048;
/// The most bytes of one character.
const CHAR_LEN: usize = 4;
/// What stands where a secret stood.
const REDACTED: &str = "[redacted]";
/// Shorter keys are placeholders such as `none` or `ollama`; replacing them would maim ordinary words.
const SHORTEST_SECRET: usize = 8;

/// Why a provider gave no answer, or not all of it.
///
/// Keys never appear in it: whatever leaves an [`HttpProvider`](crate::HttpProvider) has its secrets replaced.
#[derive(Clone, Debug)]
pub struct ProviderError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// The provider's name as configured; empty while the error is still inside a wire format.
    pub provider: Box<str>,
    /// The provider's own message, or ours where it gave none.
    pub message: Box<str>,
    /// The provider's own code or type for it, for example `insufficient_quota`.
    pub code: Option<Box<str>>,
    /// The HTTP status, if an HTTP answer came.
    pub status: Option<u16>,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// The provider's id of the request, for its support.
    pub request_id: Option<Box<str>>,
    /// What the answer's headers tell of the provider's limits.
    pub rate_limits: RateLimits,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key is missing, wrong or expired.
    Authentication,
    /// The key is right but may not do this.
    Permission,
    /// The provider does not know the model, or not for this account.
    ModelNotFound,
    /// The address answers, but not to this: a wrong base URL.
    NotFound,
    /// The provider does not accept the request as it is.
    InvalidRequest,
    /// Prompt and answer do not fit the model's context.
    ContextLengthExceeded,
    /// The request has too many bytes.
    RequestTooLarge,
    /// Too many requests or tokens in a short time.
    RateLimited,
    /// The account's credit or monthly limit is used up.
    QuotaExhausted,
    /// What the configuration allows to be spent is spent, or would not be enough. Nobody was asked.
    BudgetSpent,
    /// The provider has no capacity now.
    Overloaded,
    /// The provider failed.
    ProviderInternal,
    /// The provider's filter refused the prompt.
    ContentFiltered,
    /// The provider's address could not be resolved or connected to, TLS failed, or the connection broke before
    /// an answer came.
    ConnectionFailed,
    /// This process or machine had no descriptor or no memory for a connection. The provider was not asked.
    NoResources,
    /// The provider was not asked: it failed too often just now, and its circuit breaker is open.
    CircuitOpen,
    /// The provider was not asked: our own limits had no room for the request in time.
    Shed,
    /// A time-out; which one.
    TimedOut(Phase),
    /// The answer ended without its end mark.
    StreamCut,
    /// The answer is not in the provider's documented form.
    MalformedResponse,
    /// This provider or its wire format cannot do what was asked for.
    Unsupported,
    /// Our own settings for the provider are wrong: its URL, its headers, its certificates.
    Configuration,
}

/// What was waited for when a time-out struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Name resolution, TCP and TLS.
    Connect,
    /// The first token after the request was sent, response headers included.
    FirstToken,
    /// The next token. A comment or a ping is no token.
    NextToken,
    /// The provider, or a proxy before it, gave up waiting itself (HTTP 408, 504, 522, 524).
    Upstream,
    /// The whole answer, by the limit set for the provider.
    Whole,
    /// The answer, by the request's own deadline. No fault of the provider's.
    Deadline,
}

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Whoever wrote the request.
    Caller,
    /// The provider.
    Provider,
    /// The way to the provider.
    Network,
    /// This installation: its keys, account, settings.
    Us,
}

impl ErrorKind {
    /// The kind that an HTTP status means where the body tells no more.
    pub fn from_status(status: u16) -> Self {
        match status {
            401 | 407 => Self::Authentication,
            402 => Self::QuotaExhausted,
            403 | 451 => Self::Permission,
            404 | 405 | 410 | 421 => Self::NotFound,
            408 | 504 | 522 | 524 => Self::TimedOut(Phase::Upstream),
            413 => Self::RequestTooLarge,
            429 => Self::RateLimited,
            // 498 and 529 are private: Groq's and Anthropic's words for "no capacity".
            498 | 503 | 529 => Self::Overloaded,
            300..=399 => Self::Configuration,
            400..=499 => Self::InvalidRequest,
            500..=599 => Self::ProviderInternal,
            _ => Self::MalformedResponse,
        }
    }

    /// Whether the same request to the same provider may succeed later.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::TimedOut(phase) => phase != Phase::Deadline,
            Self::RateLimited
            | Self::Overloaded
            | Self::ProviderInternal
            | Self::ConnectionFailed
            | Self::NoResources
            | Self::CircuitOpen
            | Self::Shed
            | Self::StreamCut => true,
            _ => false,
        }
    }

    /// Who has to act.
    pub fn fault(self) -> Fault {
        match self {
            Self::InvalidRequest
            | Self::ModelNotFound
            | Self::ContextLengthExceeded
            | Self::RequestTooLarge
            | Self::ContentFiltered
            | Self::TimedOut(Phase::Deadline)
            | Self::Unsupported => Fault::Caller,
            Self::Overloaded
            | Self::ProviderInternal
            | Self::CircuitOpen
            | Self::StreamCut
            | Self::MalformedResponse => Fault::Provider,
            Self::TimedOut(
                Phase::FirstToken | Phase::NextToken | Phase::Upstream | Phase::Whole,
            ) => Fault::Provider,
            Self::ConnectionFailed | Self::TimedOut(Phase::Connect) => Fault::Network,
            Self::Authentication
            | Self::Permission
            | Self::RateLimited
            | Self::NoResources
            | Self::Shed
            | Self::QuotaExhausted
            | Self::BudgetSpent
            | Self::NotFound
            | Self::Configuration => Fault::Us,
        }
    }

    /// A stable name in `snake_case`, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Permission => "permission",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::InvalidRequest => "invalid_request",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::RequestTooLarge => "request_too_large",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::BudgetSpent => "budget_spent",
            Self::Overloaded => "overloaded",
            Self::ProviderInternal => "provider_internal",
            Self::ContentFiltered => "content_filtered",
            Self::ConnectionFailed => "connection_failed",
            Self::NoResources => "no_resources",
            Self::CircuitOpen => "circuit_open",
            Self::Shed => "shed",
            Self::TimedOut(Phase::Connect) => "connect_timed_out",
            Self::TimedOut(Phase::FirstToken) => "first_token_timed_out",
            Self::TimedOut(Phase::NextToken) => "next_token_timed_out",
            Self::TimedOut(Phase::Upstream) => "upstream_timed_out",
            Self::TimedOut(Phase::Whole) => "whole_timed_out",
            Self::TimedOut(Phase::Deadline) => "deadline_exceeded",
            Self::StreamCut => "stream_cut",
            Self::MalformedResponse => "malformed_response",
            Self::Unsupported => "unsupported",
            Self::Configuration => "configuration",
        }
    }

    fn phrase(self) -> &'static str {
        match self {
            Self::Authentication => "the key was not accepted",
            Self::Permission => "not permitted",
            Self::ModelNotFound => "no such model",
            Self::NotFound => "nothing is at this address; check the base URL",
            Self::InvalidRequest => "the request was not accepted",
            Self::ContextLengthExceeded => "the conversation is too long for the model",
            Self::RequestTooLarge => "the request is too large",
            Self::RateLimited => "too many requests",
            Self::QuotaExhausted => "the account's credit or limit is used up",
            Self::BudgetSpent => "a budget is spent",
            Self::Overloaded => "no capacity now",
            Self::ProviderInternal => "the provider failed",
            Self::ContentFiltered => "refused by the provider's content filter",
            Self::ConnectionFailed => "no connection",
            Self::NoResources => "no descriptor or memory left for a connection",
            Self::CircuitOpen => "not asked",
            Self::Shed => "no room for it now",
            Self::TimedOut(Phase::Connect) => "connecting took too long",
            Self::TimedOut(Phase::FirstToken) => "the first token took too long",
            Self::TimedOut(Phase::NextToken) => "the next token took too long",
            Self::TimedOut(Phase::Upstream) => "the provider's side gave up waiting",
            Self::TimedOut(Phase::Whole) => "the whole answer took too long",
            Self::TimedOut(Phase::Deadline) => "the request's deadline came first",
            Self::StreamCut => "the answer was cut off",
            Self::MalformedResponse => "the answer could not be understood",
            Self::Unsupported => "not supported",
            Self::Configuration => "wrong settings",
        }
    }
}

impl ProviderError {
    /// An error with nothing but its kind and message. Long messages are cut.
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Self {
            kind,
            provider: Box::from(""),
            message: shorten(message.as_ref().trim()).into(),
            code: None,
            status: None,
            retry_after: None,
            request_id: None,
            rate_limits: RateLimits::default(),
            source: None,
        }
    }

    /// Adds what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Whether the same request to the same provider may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    /// Who has to act.
    pub fn fault(&self) -> Fault {
        self.kind.fault()
    }

    /// The error as it leaves provider `name`: named, and without any of `secrets` in its texts, nor of their words,
    /// since an upstream may repeat a header's value without its `Bearer`.
    #[must_use]
    pub(crate) fn leaving(mut self, name: &str, secrets: &[SecretString]) -> Self {
        self.provider = name.into();
        for secret in secrets {
            let whole = secret.expose_secret();
            for secret in std::iter::once(whole).chain(whole.split_whitespace()) {
                if secret.len() >= SHORTEST_SECRET {
                    self.forget(secret);
                }
            }
        }
        self
    }

    fn forget(&mut self, secret: &str) {
        if self.message.contains(secret) {
            self.message = self.message.replace(secret, REDACTED).into();
        }
        // A message that was cut may end inside the secret.
        if self.message.len() + CHAR_LEN > MESSAGE_LIMIT {
            let ends = (1..secret.len())
                .rev()
                .filter(|end| secret.is_char_boundary(*end));
            let mut begun = ends.map(|end| &secret[..end]);
            if let Some(begun) = begun.find(|begun| self.message.ends_with(begun)) {
                let end = self.message.len() - begun.len();
                self.message = format!("{}{REDACTED}", &self.message[..end]).into();
            }
        }
        for text in [&mut self.code, &mut self.request_id].into_iter().flatten() {
            if text.contains(secret) {
                *text = REDACTED.into();
            }
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.provider.is_empty() {
            write!(f, "{}: ", self.provider)?;
        }
        f.write_str(self.kind.phrase())?;
        if let Some(status) = self.status {
            write!(f, " (HTTP {status})")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if let Some(wait) = self.retry_after {
            write!(f, "; try again in {} s", wait.as_secs_f64().ceil())?;
        }
        Ok(())
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

fn shorten(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_LIMIT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_and_short_placeholders_are_not() {
        let secrets = [
            SecretString::from("sk-12345678"),
            SecretString::from("none"),
        ];
        let error = ProviderError::new(
            ErrorKind::Authentication,
            "Incorrect key sk-12345678, none given",
        )
        .leaving("openai", &secrets);
        assert_eq!(&*error.message, "Incorrect key [redacted], none given");
        assert!(!format!("{error} {error:?}").contains("12345678"));
    }

    #[test]
    fn a_header_s_words_are_secret_and_so_is_the_beginning_of_one_that_was_cut() {
        let secrets = [SecretString::from("Bearer sk-12345678")];
        let error = ProviderError::new(ErrorKind::Authentication, "token sk-12345678 is wrong");
        let error = error.leaving("openai", &secrets);
        assert_eq!(&*error.message, "token [redacted] is wrong");
        for shown in 1.."sk-12345678".len() {
            let text = format!("{}sk-12345678", "x".repeat(MESSAGE_LIMIT - shown));
            let error = ProviderError::new(ErrorKind::Authentication, text);
            let error = error.leaving("openai", &secrets);
            assert!(error.message.ends_with("x[redacted]"), "{shown}: {error}");
        }
    }

    #[test]
    fn the_text_says_who_what_and_when_to_try_again() {
        let mut error =
            ProviderError::new(ErrorKind::RateLimited, "Rate limit reached").leaving("groq", &[]);
        error.status = Some(429);
        error.retry_after = Some(Duration::from_millis(1500));
        assert_eq!(
            error.to_string(),
            "groq: too many requests (HTTP 429): Rate limit reached; try again in 2 s"
        );
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = ProviderError::new(ErrorKind::InvalidRequest, "ä".repeat(MESSAGE_LIMIT));
        assert_eq!(error.message.len(), MESSAGE_LIMIT);
        let error = ProviderError::new(
            ErrorKind::InvalidRequest,
            format!("x{}", "ä".repeat(MESSAGE_LIMIT)),
        );
        assert_eq!(error.message.len(), MESSAGE_LIMIT - 1);
    }
}
