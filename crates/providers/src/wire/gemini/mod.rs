//! Google Gemini, `generateContent`: AI Studio with a key, Vertex AI with a bearer token.
//!
//! Source: <https://ai.google.dev/api/generate-content>,
//! <https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference>.

mod answer;
mod arguments;
mod decode;
mod embeddings;
mod error;
mod generation;
mod models;
mod parts;
mod request;

use std::time::SystemTime;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderName, HeaderValue, Request};
use secrecy::SecretString;

use super::endpoint::{EVENT_STREAM, Endpoint, JSON, segment};
use super::error::from_response;
use super::{Decoder, Wire, body};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::profile::{Profile, Settings};

/// Which of Google's two services is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeminiService {
    /// `generativelanguage.googleapis.com`.
    AiStudio,
    /// Vertex AI in a project and a region.
    Vertex,
}

/// The location that has no region's prefix, and knows every model.
const GLOBAL: &str = "global";

/// What the ids of calls begin with that came without one. They are not sent back.
const MADE: &str = "gemini_";

/// The id of call `at` in answer `answer`, which gave it none. No two calls of a conversation have the same.
fn made_id(answer: &str, at: usize) -> String {
    format!("{MADE}{answer}_{at}")
}

/// The format towards one of the two.
#[derive(Debug)]
pub(crate) struct Gemini {
    service: GeminiService,
    endpoint: Endpoint,
    /// Where the models are listed.
    catalog: Endpoint,
    /// The project whose quota a list of models counts for.
    project: Option<HeaderValue>,
}

impl Gemini {
    /// Checks the settings. The base URL is everything before `/models`, for Vertex before `/publishers`.
    pub(crate) fn new(
        profile: &Profile,
        settings: &Settings,
        service: GeminiService,
    ) -> Result<Self, ProviderError> {
        let mut settings = settings.clone();
        let mut project = None;
        if service == GeminiService::Vertex {
            let region = settings.region.as_deref().map(str::trim);
            let region = region.filter(|region| !region.is_empty()).unwrap_or(GLOBAL);
            if settings.base_url.is_none() {
                settings.base_url = vertex_host(region).map(|host| {
                    profile
                        .base_url
                        .replace("{region}-aiplatform.googleapis.com", host)
                });
            }
            settings.region = Some(region.to_owned());
            let name = settings.project.as_deref().map(str::trim);
            project = name.and_then(|name| HeaderValue::from_str(name).ok());
        }
        let endpoint = Endpoint::new(&settings, profile)?;
        settings.base_url = Some(match endpoint.base().split_once("/v1/projects/") {
            // Only this version of the API has the list.
            Some((host, _)) if service == GeminiService::Vertex => format!("{host}/v1beta1"),
            _ => endpoint.base().to_owned(),
        });
        Ok(Self {
            service,
            catalog: Endpoint::new(&settings, profile)?,
            endpoint,
            project,
        })
    }

    /// The path of `model`.
    fn model(&self, model: &str) -> Result<String, ProviderError> {
        if model.is_empty() {
            let message = "no model is named";
            return Err(ProviderError::new(ErrorKind::InvalidRequest, message));
        }
        let bare = |model: &str| {
            let model = model.strip_prefix("publishers/google/").unwrap_or(model);
            segment(model.strip_prefix("models/").unwrap_or(model))
        };
        let tuned = match self.service {
            GeminiService::AiStudio => "tunedModels/",
            GeminiService::Vertex => "endpoints/",
        };
        Ok(match (model.strip_prefix(tuned), self.service) {
            (Some(own), _) => format!("/{tuned}{}", segment(own)),
            (None, GeminiService::AiStudio) => format!("/models/{}", bare(model)),
            (None, GeminiService::Vertex) => format!("/publishers/google/models/{}", bare(model)),
        })
    }
}

/// The host of locations that are no regions.
/// Source: <https://cloud.google.com/vertex-ai/generative-ai/docs/learn/locations>.
fn vertex_host(region: &str) -> Option<&'static str> {
    match region {
        GLOBAL => Some("aiplatform.googleapis.com"),
        "us" => Some("aiplatform.us.rep.googleapis.com"),
        "eu" => Some("aiplatform.eu.rep.googleapis.com"),
        _ => None,
    }
}

impl Wire for Gemini {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let model = self.model(&request.model)?;
        let (method, accept) = if request.stream {
            // Without `alt` the stream is one JSON array.
            ("streamGenerateContent?alt=sse", EVENT_STREAM)
        } else {
            ("generateContent", JSON)
        };
        let body = request::body(request, self.service)?;
        self.endpoint
            .post(&format!("{model}:{method}"), accept, body)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.models_page("")
    }

    fn next_models_request(
        &self,
        page: &[u8],
        _now: SystemTime,
    ) -> Result<Option<Request<Bytes>>, ProviderError> {
        let token = models::next_page(page);
        token.map(|token| self.models_page(&token)).transpose()
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        body::decoder::<decode::Generation>(head, limit)
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
        let model = self.model(&request.model)?;
        let method = embeddings::method(self.service, &request.model);
        let body = method.body(request, model.trim_start_matches('/'))?;
        let path = format!("{model}:{}", method.name());
        self.endpoint.post(&path, JSON, body)
    }

    fn embeddings_batch(&self, model: &str) -> usize {
        embeddings::method(self.service, model).batch()
    }

    fn decode_embeddings(&self, body: &[u8]) -> Result<Embeddings, ProviderError> {
        embeddings::decode(body)
    }

    fn count_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let model = self.model(&request.model)?;
        let body = request::count_body(request, self.service, model.trim_start_matches('/'))?;
        let path = format!("{model}:countTokens");
        self.endpoint.post(&path, JSON, body)
    }

    fn decode_count(&self, body: &[u8]) -> Result<u64, ProviderError> {
        models::decode_count(body)
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.endpoint.secrets()
    }
}

impl Gemini {
    fn models_page(&self, token: &str) -> Result<Request<Bytes>, ProviderError> {
        let mut path = match self.service {
            GeminiService::AiStudio => "/models?pageSize=1000".to_owned(),
            GeminiService::Vertex => "/publishers/google/models?pageSize=100".to_owned(),
        };
        if !token.is_empty() {
            path.push_str(&format!("&pageToken={}", segment(token)));
        }
        let mut request = self.catalog.get(&path)?;
        // Its path names no project.
        if let Some(project) = &self.project {
            let name = HeaderName::from_static("x-goog-user-project");
            request.headers_mut().insert(name, project.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests;
