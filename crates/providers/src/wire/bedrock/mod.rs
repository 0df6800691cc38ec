//! AWS Bedrock: Converse and `ConverseStream`, which are one format for the models of many makers.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html>, and the same as data in
//! botocore's `data/bedrock-runtime/2023-09-30/service-2.json`, against which the tests hold what is written here.

mod answer;
mod decode;
mod embeddings;
mod error;
mod model;
mod models;
mod request;
mod sign;
mod stream;

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use secrecy::{ExposeSecret, SecretString};

use super::endpoint::{Endpoint, JSON, segment};
use super::error::from_response;
use super::{Credentials, Decoder, Wire, body};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Auth, Profile, Settings};
use decode::Converse;
use sign::Signer;
use stream::Messages;

/// The media type of streamed answers.
const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";

/// Bedrock in one region.
#[derive(Debug)]
pub(crate) struct Bedrock {
    /// Where models run.
    runtime: Endpoint,
    /// Where they are listed.
    control: Endpoint,
    /// `None` where a key is sent instead of a signature.
    signer: Option<Signer>,
}

impl Bedrock {
    /// Checks the settings. A key is a Bedrock API key; without one the AWS account's keys sign.
    pub(crate) fn new(profile: &Profile, settings: &Settings) -> Result<Self, ProviderError> {
        let key = settings.key.as_ref();
        let has_key = key.is_some_and(|key| !key.expose_secret().trim().is_empty());
        let signer = if has_key {
            None
        } else {
            Some(Signer::new(settings)?)
        };
        let auth = if has_key {
            Auth::Bearer
        } else {
            Auth::AwsSigV4
        };
        let profile = Profile { auth, ..*profile };
        let runtime = Endpoint::new(settings, &profile)?;
        let control = Settings {
            base_url: Some(runtime.base().replacen("//bedrock-runtime", "//bedrock", 1)),
            ..settings.clone()
        };
        Ok(Self {
            control: Endpoint::new(&control, &profile)?,
            runtime,
            signer,
        })
    }

    /// A request of an operation on a model.
    fn post(
        &self,
        model: &str,
        operation: &str,
        accept: &'static str,
        body: Vec<u8>,
        now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let path = format!("/model/{}/{operation}", segment(model));
        self.signed(self.runtime.post(&path, accept, body)?, now)
    }

    fn signed(
        &self,
        mut request: Request<Bytes>,
        now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        if let Some(signer) = &self.signer {
            signer.sign(&mut request, now)?;
        }
        Ok(request)
    }
}

impl Wire for Bedrock {
    fn chat_request(
        &self,
        request: &ChatRequest,
        now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let (operation, accept) = if request.stream {
            ("converse-stream", EVENT_STREAM)
        } else {
            ("converse", JSON)
        };
        let body = request::converse(request)?;
        self.post(&request.model, operation, accept, body, now)
    }

    fn models_request(&self, now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.signed(self.control.get(models::FIRST)?, now)
    }

    fn next_models_request(
        &self,
        page: &[u8],
        now: SystemTime,
    ) -> Result<Option<Request<Bytes>>, ProviderError> {
        let Some(path) = models::next(page)? else {
            return Ok(None);
        };
        self.signed(self.control.get(&path)?, now).map(Some)
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        let answer = Converse::new(head);
        if body::media_type(head) == EVENT_STREAM {
            return Ok(Box::new(Messages::new(answer, limit)));
        }
        body::decoder_of(answer, head, limit)
    }

    fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
        models::decode(body)
    }

    fn decode_error(&self, head: &Parts, body: &[u8], now: SystemTime) -> ProviderError {
        let name = error::name(head);
        let error = from_response(head, body, now, |document, status| {
            error::from_json(document, name, status)
        });
        if let (Some(signer), Some("ExpiredTokenException")) = (&self.signer, error.code.as_deref())
        {
            signer.expired();
        }
        error
    }

    fn embeddings_request(
        &self,
        request: &EmbeddingRequest,
        now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let body = embeddings::body(request)?;
        self.post(&request.model, "invoke", JSON, body, now)
    }

    fn embeddings_batch(&self, model: &str) -> usize {
        embeddings::batch(model)
    }

    fn decode_embeddings(&self, body: &[u8]) -> Result<Embeddings, ProviderError> {
        embeddings::decode(body)
    }

    fn count_request(
        &self,
        request: &ChatRequest,
        now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let body = request::count(request)?;
        self.post(&request.model, "count-tokens", JSON, body, now)
    }

    fn decode_count(&self, body: &[u8]) -> Result<u64, ProviderError> {
        answer::count(body)
    }

    fn credentials(&self) -> Option<&dyn Credentials> {
        Some(self.signer.as_ref()?.credentials())
    }

    fn secrets(&self) -> Vec<SecretString> {
        let mut secrets = self.runtime.secrets();
        secrets.extend(self.signer.iter().flat_map(Signer::secrets));
        secrets
    }
}
