//! OpenAI's Responses API, which others offer too.
//!
//! Source: <https://platform.openai.com/docs/api-reference/responses> and, for what others have in common with it,
//! <https://www.openresponses.org/specification>. The tools that a provider runs itself are not asked for, and their
//! items in an answer are passed over.

mod answer;
mod decode;
mod dialect;
mod error;
mod request;

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use secrecy::SecretString;
use serde_json::Value;

use super::endpoint::{EVENT_STREAM, JSON};
use super::error::{from_response, malformed};
use super::openai::{error::from_json, models, server::Server};
use super::{Decoder, Wire, body, unsupported};
use crate::chat::{ChatRequest, ModelInfo};
use crate::error::ProviderError;
use crate::profile::{Profile, Settings};
pub use dialect::Dialect;

/// The Responses API towards one server.
#[derive(Debug)]
pub(crate) struct Responses {
    server: Server,
    dialect: Dialect,
}

impl Responses {
    /// Checks the settings. The base URL is everything before `/responses`.
    pub(crate) fn new(
        profile: &Profile,
        settings: &Settings,
        dialect: Dialect,
    ) -> Result<Self, ProviderError> {
        Ok(Self {
            server: Server::new(profile, settings, dialect.paths)?,
            dialect,
        })
    }
}

impl Wire for Responses {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let accept = if request.stream { EVENT_STREAM } else { JSON };
        let body = request::body(request, &self.dialect)?;
        self.server.post("/responses", None, accept, body)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.server.get("/models")
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        body::decoder::<decode::Output>(head, limit)
    }

    fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
        models::decode(body)
    }

    fn decode_error(&self, head: &Parts, body: &[u8], now: SystemTime) -> ProviderError {
        from_response(head, body, now, from_json)
    }

    fn count_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        if !self.dialect.counts {
            return Err(unsupported("counting tokens"));
        }
        let body = request::count_body(request, &self.dialect)?;
        self.server
            .post("/responses/input_tokens", None, JSON, body)
    }

    fn decode_count(&self, body: &[u8]) -> Result<u64, ProviderError> {
        let answer: Value = serde_json::from_slice(body).map_err(super::error::not_understood)?;
        answer["input_tokens"]
            .as_u64()
            .ok_or_else(|| malformed("the answer has no input_tokens"))
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.server.secrets()
    }
}
