//! AI providers: what a request and an answer are, and how each provider is spoken to.
//!
//! A [`ChatRequest`] goes to a [`Provider`], which answers with a [`ChatStream`] of [`Event`]s or one
//! [`ProviderError`]. [`HttpProvider`] is a provider for any [`Wire`] format; the formats do no I/O and read no clock.
//! [`PROFILES`] is the table of those that are known by name, with what each can do.
//! A [`Gateway`] stands between clients and a [`Pool`] of providers: it counts what answers cost, keeps to budgets, and gives
//! answers again that it has.
//! [`Local`] needs neither key nor network. [`from_environment`] and [`probe`] find what can be used, and a
//! [`Catalog`] knows which provider and model a name means.
//!
//! Events borrow from the stream's buffer: a text token costs no heap allocation on its way through a decoder.
//!
//! ```
//! use lapce_ai_providers::{ChatRequest, Event, Local, Message, Provider};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), lapce_ai_providers::ProviderError> {
//! let provider = Local::default();
//! let request = ChatRequest::new("local").with(Message::user("Hello"));
//! let mut stream = provider.chat(&request).await?;
//! let mut answer = String::new();
//! while let Some(event) = stream.next().await {
//!     if let Event::Text(text) = event? {
//!         answer.push_str(text);
//!     }
//! }
//! assert!(answer.contains("You said: \"Hello\""));
//! # Ok(())
//! # }
//! ```
//!
//! A server that speaks OpenAI chat completions, by its URL:
//!
//! ```
//! use lapce_ai_providers::{HttpClient, HttpConfig, Profile, Settings};
//!
//! # fn main() -> Result<(), lapce_ai_providers::ProviderError> {
//! let client = HttpClient::new(&HttpConfig::default())?;
//! let settings = Settings {
//!     base_url: Some("http://127.0.0.1:8080/v1".into()),
//!     ..Settings::default()
//! };
//! let compatible = Profile::named("compatible").expect("it is in the table");
//! let provider = compatible.connect("llamacpp", &settings, client)?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod aws;
mod cache;
mod catalog;
mod chat;
mod discover;
mod embeddings;
mod error;
mod event;
mod event_stream;
mod gateway;
mod http;
mod local;
mod pool;
mod profile;
mod provider;
mod rate_limit;
mod spend;
mod sse;
mod wire;

pub use aws::{AwsCredentials, AwsEnvironment};
pub use cache::{AnswerCache, CacheConfig, CacheKey, CacheRequests, CacheStatus};
pub use catalog::{Catalog, CatalogEntry, CatalogError, Route};
pub use chat::{
    ChatRequest, Content, Image, ImageDetail, ImageSource, Message, ModelInfo, ReasoningEffort,
    ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};
pub use discover::{Discovered, LoopbackServer, PROBE_TIMEOUT, from_environment, probe};
pub use embeddings::{EmbeddingPurpose, EmbeddingRequest, Embeddings};
pub use error::{ErrorKind, Fault, Phase, ProviderError};
pub use event::{Citation, Event, EventQueue, FinishReason, ToolCallDelta, Usage};
pub use event_stream::{EventStreamError, EventStreamMessage, EventStreamParser, HeaderValue};
pub use gateway::Gateway;
pub use http::{HttpClient, HttpConfig, HttpProvider, Timeouts};
pub use local::{FailureMode, Local, LocalConfig, LocalFailure};
pub use pool::{
    Answer, Attempt, Balance, BreakerConfig, BreakerState, Caller, Counts, Hedge, HedgeAfter,
    HedgeConfig, Limit, LimitStatus, Limits, Measure, Member, MemberStatus, ModelLimits, NoAnswer,
    Outcome, Plan, Pool, PoolConfig, Priority, ProbeStatus, Purpose, Rate, RetryConfig, Scope,
    Skip, Target, Trail,
};
pub use profile::{Auth, Feature, Features, Format, PROFILES, Profile, Settings};
pub use provider::{BoxFuture, ChatResponse, ChatStream, EventStream, Provider, Source};
pub use rate_limit::{Counted, RateLimits, RateWindow};
/// Keys are given in this type, which never shows them.
pub use secrecy::SecretString;
pub use spend::{
    Admitted, Bill, Book, Budget, BudgetStatus, Clients, Day, Entry, Key, Ledger, NanoUsd, Period,
    Price, PriceError, PriceTable, ProviderSpend, Receipt, Spend, Totals,
};
pub use sse::{DEFAULT_MAX_EVENT_LEN, SseError, SseEvent, SseParser};
pub use wire::gemini::GeminiService;
pub use wire::openai::Dialect;
pub use wire::responses::Dialect as ResponsesDialect;
pub use wire::{Credentials, Decoder, Decoding, Wire};
