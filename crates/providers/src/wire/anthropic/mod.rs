//! Anthropic's Messages API.
//!
//! Source: <https://platform.claude.com/docs/en/api/messages>; streams:
//! <https://platform.claude.com/docs/en/build-with-claude/streaming>.
//!
//! We ask for version 2023-06-01 ([versions](https://platform.claude.com/docs/en/api/versioning)). The only difference
//! of 2026-10-21 for what is said here is that it refuses `temperature` and `top_p` on every model, also on those that
//! have them. Whoever wants another version sets the header `anthropic-version`.

mod answer;
mod conversation;
mod decode;
mod error;
mod model;
mod models;
mod request;
mod thinking;

use std::time::SystemTime;

use bytes::Bytes;
use http::header::HeaderValue;
use http::response::Parts;
use http::{HeaderName, Request};
use secrecy::SecretString;

use super::endpoint::{EVENT_STREAM, Endpoint, JSON};
use super::error::from_response;
use super::{Decoder, Wire, body};
use crate::chat::{ChatRequest, ModelInfo};
use crate::error::ProviderError;
use crate::profile::{Profile, Settings};
pub(crate) use model::Model;
pub(crate) use thinking::{Plan, Thinking, plan};

/// What is not in the API yet for everybody, by comma.
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// The Messages API of one server.
#[derive(Debug)]
pub(crate) struct Anthropic {
    endpoint: Endpoint,
    /// `/v1`, unless the base URL has it already, as base URLs of other formats do.
    version: &'static str,
}

impl Anthropic {
    /// Checks the settings. The base URL is everything before `/v1/messages`, or before `/messages`.
    pub(crate) fn new(profile: &Profile, settings: &Settings) -> Result<Self, ProviderError> {
        let endpoint = Endpoint::new(settings, profile)?;
        let version = if endpoint.base().ends_with("/v1") {
            ""
        } else {
            "/v1"
        };
        Ok(Self { endpoint, version })
    }

    fn post(
        &self,
        path: &str,
        accept: &'static str,
        body: request::Written,
    ) -> Result<Request<Bytes>, ProviderError> {
        let path = format!("{}{path}", self.version);
        let mut request = self.endpoint.post(&path, accept, body.json)?;
        if let Some(beta) = body.beta {
            // The user may have asked for others.
            let others = request.headers_mut().remove(BETA);
            let others = others.as_ref().and_then(|others| others.to_str().ok());
            let value = match others {
                Some(others) => HeaderValue::try_from(format!("{others},{beta}")).ok(),
                None => None,
            };
            let value = value.unwrap_or(HeaderValue::from_static(beta));
            request.headers_mut().insert(BETA, value);
        }
        Ok(request)
    }
}

impl Wire for Anthropic {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let accept = if request.stream { EVENT_STREAM } else { JSON };
        self.post("/messages", accept, request::message(request)?)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.endpoint
            .get(&format!("{}{}", self.version, models::path(None)))
    }

    fn next_models_request(
        &self,
        body: &[u8],
        _now: SystemTime,
    ) -> Result<Option<Request<Bytes>>, ProviderError> {
        let Some(last) = models::last_of_more(body) else {
            return Ok(None);
        };
        let path = format!("{}{}", self.version, models::path(Some(&last)));
        self.endpoint.get(&path).map(Some)
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

    fn count_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        self.post("/messages/count_tokens", JSON, request::count(request)?)
    }

    fn decode_count(&self, body: &[u8]) -> Result<u64, ProviderError> {
        models::decode_count(body)
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.endpoint.secrets()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Content, Message};

    fn wire(base_url: &str, headers: &[(&str, &str)]) -> Anthropic {
        let headers = headers.iter();
        let settings = Settings {
            base_url: Some(base_url.into()),
            key: Some("sk-ant-1234567890".into()),
            headers: headers
                .map(|(name, value)| ((*name).to_owned(), SecretString::from(*value)))
                .collect(),
            ..Settings::default()
        };
        Anthropic::new(Profile::named("anthropic").unwrap(), &settings).unwrap()
    }

    fn request(wire: &Anthropic, request: &ChatRequest) -> Request<Bytes> {
        wire.chat_request(request, SystemTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn the_version_is_in_the_path_once() {
        let hello = ChatRequest::new("claude-opus-4-8").with(Message::user("Hello"));
        for base in [
            "https://host",
            "https://host/",
            "https://host/v1",
            "https://host/v1/",
        ] {
            let http = request(&wire(base, &[]), &hello);
            assert_eq!(http.uri(), "https://host/v1/messages", "{base}");
        }
        let proxied = request(&wire("https://host/anthropic", &[]), &hello);
        assert_eq!(proxied.uri(), "https://host/anthropic/v1/messages");
    }

    #[test]
    fn the_key_has_its_own_header() {
        let hello = ChatRequest::new("claude-opus-4-8").with(Message::user("Hello"));
        let http = request(&wire("https://host", &[]), &hello);
        assert_eq!(http.headers()["x-api-key"], "sk-ant-1234567890");
        assert!(http.headers()["x-api-key"].is_sensitive());
        assert_eq!(http.headers()["anthropic-version"], "2023-06-01");
        assert!(!http.headers().contains_key("authorization"));
        assert!(!http.headers().contains_key(BETA));
    }

    #[test]
    fn the_users_headers_win_and_betas_are_joined() {
        let wire = wire(
            "https://host",
            &[
                ("anthropic-version", "2026-10-21"),
                ("anthropic-beta", "context-1m-2025-08-07"),
            ],
        );
        let hello = ChatRequest::new("claude-opus-5-5").with(Message::user("Hello"));
        let http = request(&wire, &hello);
        assert_eq!(http.headers()["anthropic-version"], "2026-10-21");
        assert_eq!(http.headers()[BETA], "context-1m-2025-08-07");
        let thought = Message {
            content: vec![Content::Reasoning {
                text: String::new(),
                signature: Some("s".into()),
            }],
            ..Message::assistant("")
        };
        let again = hello.with(thought).with(Message::user("Go on"));
        let http = request(&wire, &again);
        assert_eq!(
            http.headers()[BETA],
            "context-1m-2025-08-07,thinking-binding-controls-2026-08-01"
        );
    }
}
