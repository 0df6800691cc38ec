//! OpenAI chat completions, the format that most providers and every local server speak.
//!
//! Source: <https://platform.openai.com/docs/api-reference/chat>. What was seen of others is named where it is handled.

mod answer;
mod decode;
mod dialect;
mod embeddings;
pub(super) mod error;
pub(super) mod models;
pub(super) mod request;
pub(super) mod server;

use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use secrecy::SecretString;

use super::endpoint::{EVENT_STREAM, JSON};
use super::error::from_response;
use super::{Decoder, Wire, body, unsupported};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Profile, Settings};
pub use dialect::Dialect;
use server::Server;

/// The chat completions format towards one server.
#[derive(Debug)]
pub(crate) struct OpenAi {
    server: Server,
    dialect: Dialect,
}

impl OpenAi {
    /// Checks the settings. The base URL is everything before `/chat/completions`.
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

impl Wire for OpenAi {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let accept = if request.stream { EVENT_STREAM } else { JSON };
        let body = request::body(request, &self.dialect)?;
        self.server
            .post("/chat/completions", Some(&request.model), accept, body)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        self.server.get("/models")
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        body::decoder::<decode::Completion>(head, limit)
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
        let vectors = self.dialect.vectors;
        let vectors = vectors.ok_or_else(|| unsupported("embeddings"))?;
        let body = embeddings::body(request, vectors)?;
        self.server
            .post("/embeddings", Some(&request.model), JSON, body)
    }

    fn embeddings_batch(&self, _model: &str) -> usize {
        self.dialect
            .vectors
            .map_or(usize::MAX, |vectors| vectors.texts)
    }

    fn embeddings_batch_bytes(&self, _model: &str) -> usize {
        self.dialect
            .vectors
            .map_or(usize::MAX, |vectors| vectors.bytes)
    }

    fn decode_embeddings(&self, body: &[u8]) -> Result<Embeddings, ProviderError> {
        embeddings::decode(body)
    }

    fn secrets(&self) -> Vec<SecretString> {
        self.server.secrets()
    }
}

pub(crate) use models::looks_like_a_model_list;

#[cfg(test)]
mod tests {
    use http::Method;
    use http::header::{AUTHORIZATION, CONTENT_TYPE};

    use super::*;
    use crate::chat::Message;
    use crate::error::ErrorKind;

    fn settings(base_url: &str) -> Settings {
        Settings {
            base_url: Some(base_url.into()),
            key: Some(" sk-1234567890\n".into()),
            headers: vec![("x-team".into(), "hidden-value".into())],
            ..Settings::default()
        }
    }

    fn wire(settings: &Settings) -> Result<OpenAi, ProviderError> {
        OpenAi::new(Profile::named("openai").unwrap(), settings, Dialect::OPENAI)
    }

    #[test]
    fn requests_go_to_the_right_places() {
        let wire = wire(&settings(" https://host/api/v1/ ")).unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let chat = wire
            .chat_request(&ChatRequest::new("m").with(Message::user("x")), now)
            .unwrap();
        assert_eq!(
            (chat.method(), chat.uri().to_string().as_str()),
            (&Method::POST, "https://host/api/v1/chat/completions")
        );
        assert_eq!(chat.headers()["authorization"], "Bearer sk-1234567890");
        assert_eq!(chat.headers()["x-team"], "hidden-value");
        assert_eq!(chat.headers()["content-type"], "application/json");
        assert_eq!(chat.headers()["accept"], "text/event-stream");
        assert_eq!(chat.headers()["accept-encoding"], "identity");
        let models = wire.models_request(now).unwrap();
        assert_eq!(
            (models.method(), models.uri().path()),
            (&Method::GET, "/api/v1/models")
        );
        assert!(!models.headers().contains_key(CONTENT_TYPE));
    }

    #[test]
    fn an_empty_key_is_none() {
        let wire = wire(&Settings {
            key: Some(" ".into()),
            ..settings("http://h")
        })
        .unwrap();
        let models = wire.models_request(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!models.headers().contains_key(AUTHORIZATION));
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!(
            "{:?} {:?}",
            settings("http://h"),
            wire(&settings("http://h")).unwrap()
        );
        assert!(
            !text.contains("sk-1234567890") && !text.contains("hidden-value"),
            "{text}"
        );
    }

    #[test]
    fn wrong_settings_are_named() {
        for (url, sign) in [
            ("", "http://"),
            ("api.openai.com/v1", "URL"),
            ("ftp://host/v1", "http://"),
            ("https://user:secret@host/v1", "password"),
            ("https://host/v1?x=y", "?"),
            ("http://ho st", "no URL"),
        ] {
            let error = wire(&settings(url)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Configuration);
            assert!(
                error.message.contains(sign) && !error.message.contains("secret"),
                "{url}: {error}"
            );
        }
        let bad_key = Settings {
            key: Some("a\nb".into()),
            ..settings("http://h")
        };
        assert!(wire(&bad_key).unwrap_err().message.contains("the key"));
        let bad_name = Settings {
            headers: vec![("a b".into(), "x".into())],
            ..settings("http://h")
        };
        assert!(wire(&bad_name).unwrap_err().message.contains("`a b`"));
    }

    #[test]
    fn the_content_type_chooses_the_decoder() {
        let wire = wire(&settings("http://h")).unwrap();
        let decoder = |content_type: &str| {
            let response = http::Response::builder().header("content-type", content_type);
            wire.decoder(&response.body(()).unwrap().into_parts().0, 100)
        };
        for accepted in [
            "text/event-stream; charset=utf-8",
            "application/json",
            "application/problem+json",
            "",
        ] {
            assert!(decoder(accepted).is_ok(), "{accepted}");
        }
        assert_eq!(
            decoder("text/html").err().unwrap().kind,
            ErrorKind::MalformedResponse
        );
    }
}
