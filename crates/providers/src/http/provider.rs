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
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::provider::{BoxFuture, ChatStream, Provider};
use crate::sse::DEFAULT_MAX_EVENT_LEN;
use crate::wire::{Decoding, Wire};

/// The most bytes of an error's body that are read.
const ERROR_BODY_LIMIT: usize = 64 << 10;
/// The most time that an error's body may take: the status alone says most of it.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a list of models (OpenRouter's had 1 MB in 2026), and of an answer with vectors (2,048 of 3,072
/// numbers are about 80 MB as JSON, which nobody should ask for at once).
const DOCUMENT_LIMIT: usize = 16 << 20;
/// The most pages of a list of models that are read: a server that always has one more must not hold us for ever.
const MOST_PAGES: usize = 100;

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
    pub fn new(name: impl Into<Arc<str>>, wire: Arc<dyn Wire>, client: HttpClient) -> Self {
        Self {
            name: name.into(),
            wire,
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

    /// The time at which a request is written, once the format has what it signs with.
    async fn ready(&self) -> Result<SystemTime, ProviderError> {
        let now = SystemTime::now();
        if let Some(credentials) = self.wire.credentials() {
            credentials.refresh(&self.client, now).await?;
        }
        Ok(now)
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
        let http = self.wire.chat_request(request, self.ready().await?)?;
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
        let mut page = self.models_body().await?;
        let mut models = self.wire.decode_models(&page)?;
        for _ in 1..MOST_PAGES {
            let now = self.ready().await?;
            let Some(next) = self.wire.next_models_request(&page, now)? else {
                break;
            };
            page = self.document(next, self.timeouts.models).await?;
            models.append(&mut self.wire.decode_models(&page)?);
        }
        Ok(models)
    }

    /// The body of the list of models, or of its first page, unread.
    pub(crate) async fn models_body(&self) -> Result<Bytes, ProviderError> {
        let request = self.wire.models_request(self.ready().await?)?;
        self.document(request, self.timeouts.models).await
    }

    async fn vectors(&self, request: &EmbeddingRequest) -> Result<Embeddings, ProviderError> {
        let mut all = Embeddings::default();
        let mut rest = request.input.as_slice();
        while !rest.is_empty() {
            let texts;
            (texts, rest) = rest.split_at(self.batch(&request.model, rest));
            let part = EmbeddingRequest {
                input: texts.to_vec(),
                ..request.clone()
            };
            let http = self.wire.embeddings_request(&part, self.ready().await?)?;
            let body = self.document(http, self.timeouts.first_token).await?;
            let part = self.wire.decode_embeddings(&body)?;
            if part.vectors.len() != texts.len() {
                let message = format!(
                    "{} vectors came for {} texts",
                    part.vectors.len(),
                    texts.len()
                );
                return Err(ProviderError::new(ErrorKind::MalformedResponse, message));
            }
            all.vectors.extend(part.vectors);
            all.model = part.model.or(all.model);
            if let Some(tokens) = part.input_tokens {
                all.input_tokens = Some(all.input_tokens.unwrap_or(0) + tokens);
            }
        }
        Ok(all)
    }

    /// How many of these texts go into the next request for vectors: one at least.
    fn batch(&self, model: &str, texts: &[String]) -> usize {
        let most = self.wire.embeddings_batch(model).min(texts.len());
        let mut room = self.wire.embeddings_batch_bytes(model);
        let fits = texts[..most].iter().take_while(|text| {
            let fits = text.len() <= room;
            room = room.saturating_sub(text.len());
            fits
        });
        fits.count().max(1)
    }

    async fn count(&self, request: &ChatRequest) -> Result<u64, ProviderError> {
        let http = self.wire.count_request(request, self.ready().await?)?;
        let body = self.document(http, self.timeouts.first_token).await?;
        self.wire.decode_count(&body)
    }

    /// An answer in one piece.
    async fn document(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, ProviderError> {
        let whole = async {
            let response = self.send(request, timeout).await?;
            match Limited::new(response.into_body(), DOCUMENT_LIMIT)
                .collect()
                .await
            {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    let message = format!("the answer is longer than {DOCUMENT_LIMIT} bytes");
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
        error.leaving(&self.name, &self.wire.secrets())
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
        Box::pin(async move {
            // However many pages it has.
            let limit = self.timeouts.models;
            let list = match tokio::time::timeout(limit, self.list()).await {
                Ok(list) => list,
                Err(_) => Err(timed_out(Phase::FirstToken, limit)),
            };
            list.map_err(|error| self.leaving(error))
        })
    }

    fn embed<'a>(
        &'a self,
        request: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        Box::pin(async move {
            let vectors = self.vectors(request).await;
            vectors.map_err(|error| self.leaving(error))
        })
    }

    fn count_tokens<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<u64, ProviderError>> {
        Box::pin(async move {
            let count = self.count(request).await;
            count.map_err(|error| self.leaving(error))
        })
    }
}

pub(super) fn timed_out(phase: Phase, after: Duration) -> ProviderError {
    ProviderError::new(
        ErrorKind::TimedOut(phase),
        format!("gave up after {} s", after.as_secs_f64()),
    )
}

/// The text of the error behind all others.
pub(super) fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}
