//! Ollama's own chat: lines of JSON, no server-sent events.
//!
//! Source: <https://docs.ollama.com/api/chat>, and <https://github.com/ollama/ollama/blob/main/docs/api.md>. How long a
//! model stays loaded (`keep_alive`) is left to the server.

mod decode;
mod embeddings;
mod error;
mod host;
mod models;
mod request;

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use secrecy::SecretString;

use super::endpoint::{Endpoint, JSON, JSON_LINES};
use super::error::from_response;
use super::{Decoder, Wire, body};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Profile, Settings};

pub(crate) use host::base_url;
pub(crate) use models::looks_like_a_model_list;

/// Ollama's format towards one server.
#[derive(Debug)]
pub(crate) struct Ollama {
    endpoint: Endpoint,
}

impl Ollama {
    /// Checks the settings. The base URL is everything before `/api/chat`; what `OLLAMA_HOST` may hold will do.
    pub(crate) fn new(profile: &Profile, settings: &Settings) -> Result<Self, ProviderError> {
        let settings = Settings {
            base_url: settings.base_url.as_deref().map(base_url),
            ..settings.clone()
        };
        Ok(Self {
            endpoint: Endpoint::new(&settings, profile)?,
        })
    }
}

impl Wire for Ollama {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let accept = if request.stream { JSON_LINES } else { JSON };
        self.endpoint
            .post("/api/chat", accept, request::body(request)?)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.endpoint.get("/api/tags")
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
            .post("/api/embed", JSON, embeddings::body(request)?)
    }

    fn decode_embeddings(&self, body: &[u8]) -> Result<Embeddings, ProviderError> {
        embeddings::decode(body)
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.endpoint.secrets()
    }
}
