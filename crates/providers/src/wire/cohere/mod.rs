//! Cohere's chat, version 2 of its API.
//!
//! Source: <https://docs.cohere.com/v2/reference/chat>. Its `tokenize` counts a bare text, without the template that a
//! chat is put into (a one-line question is several hundred tokens there), so tokens are not counted here.

mod answer;
mod decode;
mod embeddings;
mod error;
mod models;
mod request;

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use secrecy::SecretString;

use super::endpoint::{EVENT_STREAM, Endpoint, JSON};
use super::error::from_response;
use super::{Decoder, Wire, body};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Profile, Settings};

/// Cohere's format towards one server.
#[derive(Debug)]
pub(crate) struct Cohere {
    endpoint: Endpoint,
}

impl Cohere {
    /// Checks the settings. The base URL is everything before `/v2/chat`.
    pub(crate) fn new(profile: &Profile, settings: &Settings) -> Result<Self, ProviderError> {
        Ok(Self {
            endpoint: Endpoint::new(settings, profile)?,
        })
    }
}

impl Wire for Cohere {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let accept = if request.stream { EVENT_STREAM } else { JSON };
        self.endpoint
            .post("/v2/chat", accept, request::body(request)?)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.endpoint.get(models::FIRST_PAGE)
    }

    fn next_models_request(
        &self,
        page: &[u8],
        _now: SystemTime,
    ) -> Result<Option<Request<Bytes>>, ProviderError> {
        let path = models::next_page(page);
        path.map(|path| self.endpoint.get(&path)).transpose()
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        body::decoder::<decode::Reply>(head, limit)
    }

    fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
        models::decode(body)
    }

    fn decode_error(&self, head: &Parts, body: &[u8], now: SystemTime) -> ProviderError {
        from_response(head, body, now, error::from_json)
    }

    fn embeddings_request(
        &self,
        request: &EmbeddingRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        self.endpoint
            .post("/v2/embed", JSON, embeddings::body(request)?)
    }

    fn embeddings_batch(&self, _model: &str) -> usize {
        embeddings::BATCH
    }

    fn decode_embeddings(&self, body: &[u8]) -> Result<Embeddings, ProviderError> {
        embeddings::decode(body)
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.endpoint.secrets()
    }
}
