//! A provider over HTTP, whatever its format.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;
use http::response::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::client::HttpClient;
use super::stream::HttpStream;
use crate::chat::{ChatRequest, ModelInfo};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::provider::{BoxFuture, ChatStream, Provider};
use crate::sse::DEFAULT_MAX_EVENT_LEN;
use crate::wire::{Decoding, Wire};

/// The most bytes of an error's body that are read.
const ERROR_BODY_LIMIT: usize = 64 << 10;
/// The most time that an error's body may take: the status alone says most of it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a list of models: OpenRouter's had 1 MB in 2026.
const MODELS_LIMIT: usize = 16 << 20;

/// How long to wait for an answer. Connecting has its own limit in [`HttpConfig`](crate::HttpConfig).
///
/// Only time spent waiting for the provider counts, not time in which the reader does not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From sending the request to the first token; without streaming, to the whole answer. Reasoning models may
    /// think for minutes before they say a word. 300 s by default.
    pub first_token: Duration,
    /// From one token to the next. Comments and pings are no tokens. 120 s by default.
    pub between_tokens: Duration,
    /// For the list of models. 30 s by default.
    pub models: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_token: Duration::from_secs(300),
            between_tokens: Duration::from_secs(120),
            models: Duration::from_secs(30),
        }
    }
}

/// A provider that is reached over HTTP.
#[derive(Debug)]
pub struct HttpProvider {
    name: Arc<str>,
    wire: Arc<dyn Wire>,
    client: HttpClient,
    timeouts: Timeouts,
    max_event_len: usize,
}

impl HttpProvider {
    /// A provider called `name` in errors, which speaks `wire` through `client`.
    pub fn new(name: impl Into<Arc<str>>, wire: impl Wire + 'static, client: HttpClient) -> Self {
        Self {
            name: name.into(),
            wire: Arc::new(wire),
            client,
            timeouts: Timeouts::default(),
            max_event_len: DEFAULT_MAX_EVENT_LEN,
        }
    }

    /// Sets the time-outs.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sets the longest event of a stream, or answer in one piece, in bytes. 10 MiB by default.
    #[must_use]
    pub fn with_max_event_len(mut self, bytes: usize) -> Self {
        self.max_event_len = bytes;
        self
    }

    async fn send(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, ProviderError> {
        let response = match tokio::time::timeout(timeout, self.client.send(request)).await {
            Ok(response) => response?,
            Err(_) => return Err(timed_out(Phase::FirstToken, timeout)),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        Err(self.error(&head, body).await)
    }

    async fn error(&self, head: &Parts, mut body: Incoming) -> ProviderError {
        let mut read = Vec::new();
        let whole = async {
            while let Some(Ok(frame)) = body.frame().await {
                let data = frame.into_data().unwrap_or_default();
                read.extend_from_slice(&data[..data.len().min(ERROR_BODY_LIMIT - read.len())]);
                if read.len() == ERROR_BODY_LIMIT {
                    break;
                }
            }
        };
        // Whatever came in time is what there is to say.
        let _ = tokio::time::timeout(ERROR_BODY_TIMEOUT, whole).await;
        self.wire.decode_error(head, &read, SystemTime::now())
    }

    async fn open(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let begun = Instant::now();
        let http = self.wire.chat_request(request, SystemTime::now())?;
        let response = self.send(http, self.timeouts.first_token).await?;
        let (head, body) = response.into_parts();
        let decoding = Decoding::new(self.wire.decoder(&head, self.max_event_len)?);
        let timeouts = Timeouts {
            first_token: self.timeouts.first_token.saturating_sub(begun.elapsed()),
            ..self.timeouts
        };
        Ok(ChatStream::new(HttpStream::new(
            body,
            decoding,
            timeouts,
            self.name.clone(),
            self.wire.clone(),
        )))
    }

    async fn list(&self) -> Result<Vec<ModelInfo>, ProviderError> {
        self.wire.decode_models(&self.models_body().await?)
    }

    /// The body of the list of models, unread.
    pub(crate) async fn models_body(&self) -> Result<Bytes, ProviderError> {
        let timeout = self.timeouts.models;
        let whole = async {
            let response = self
                .send(self.wire.models_request(SystemTime::now())?, timeout)
                .await?;
            match Limited::new(response.into_body(), MODELS_LIMIT)
                .collect()
                .await
            {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    let message = format!("the list of models is longer than {MODELS_LIMIT} bytes");
                    Err(ProviderError::new(ErrorKind::MalformedResponse, message))
                }
                Err(error) => Err(ProviderError::new(ErrorKind::StreamCut, error.to_string())),
            }
        };
        match tokio::time::timeout(timeout, whole).await {
            Ok(body) => body,
            Err(_) => Err(timed_out(Phase::FirstToken, timeout)),
        }
    }

    pub(crate) fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
        self.wire.decode_models(body)
    }

    fn leaving(&self, error: ProviderError) -> ProviderError {
        error.leaving(&self.name, self.wire.secrets())
    }
}

impl Provider for HttpProvider {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            self.open(request)
                .await
                .map_err(|error| self.leaving(error))
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move { self.list().await.map_err(|error| self.leaving(error)) })
    }
}

pub(super) fn timed_out(phase: Phase, after: Duration) -> ProviderError {
    ProviderError::new(
        ErrorKind::TimedOut(phase),
        format!("gave up after {} s", after.as_secs_f64()),
    )
}
