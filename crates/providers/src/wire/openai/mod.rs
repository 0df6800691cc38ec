//! OpenAI chat completions, the format that most providers and every local server speak.
//!
//! Source: <https://platform.openai.com/docs/api-reference/chat>. What was seen of others is named where it is handled.

mod answer;
mod decode;
mod dialect;
mod error;
mod models;
mod request;

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::response::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use secrecy::{ExposeSecret, SecretString};

use super::{Decoder, Wire};
use crate::chat::{ChatRequest, ModelInfo};
use crate::error::{ErrorKind, ProviderError};
pub use dialect::Dialect;

/// Where a chat completions server is and how it wants to be spoken to.
#[derive(Clone, Debug)]
pub struct OpenAiConfig {
    /// Everything before `/chat/completions`, for example `https://api.openai.com/v1` or `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// Sent as `Authorization: Bearer`. Local servers need none; an empty one is none.
    pub key: Option<SecretString>,
    /// Further headers, sent with each request. Their values are treated as secrets.
    pub headers: Vec<(String, SecretString)>,
    /// The server's peculiarities.
    pub dialect: Dialect,
}

/// The chat completions format towards one server.
#[derive(Debug)]
pub struct OpenAi {
    chat: Uri,
    models: Uri,
    headers: HeaderMap,
    secrets: Vec<SecretString>,
    dialect: Dialect,
}

impl OpenAi {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the URL is no `http` or `https` URL or carries a password,
    /// or the key or a header has characters that HTTP does not allow.
    pub fn new(config: OpenAiConfig) -> Result<Self, ProviderError> {
        let OpenAiConfig {
            base_url,
            key,
            headers: extra,
            dialect,
        } = config;
        let base = base_url.trim().trim_end_matches('/');
        let mut headers = HeaderMap::new();
        let mut secrets = Vec::new();
        // An empty key, as from an empty variable, is none.
        let key = key
            .as_ref()
            .map(|key| key.expose_secret().trim())
            .filter(|key| !key.is_empty());
        if let Some(key) = key {
            headers.insert(
                AUTHORIZATION,
                sensitive(&format!("Bearer {key}"), "the key")?,
            );
            secrets.push(SecretString::from(key));
        }
        for (name, value) in extra {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| wrong(format!("`{name}` is no name for a header")))?;
            headers.insert(
                header,
                sensitive(value.expose_secret(), &format!("the header `{name}`"))?,
            );
            secrets.push(value);
        }
        Ok(Self {
            chat: join(base, "/chat/completions")?,
            models: join(base, "/models")?,
            headers,
            secrets,
            dialect,
        })
    }

    fn request(
        &self,
        method: Method,
        uri: &Uri,
        accept: &'static str,
        body: Bytes,
    ) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        // Compression would hold tokens back.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.headers.clone());
        request
    }
}

impl Wire for OpenAi {
    fn chat_request(
        &self,
        request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<Request<Bytes>, ProviderError> {
        let body = request::body(request, &self.dialect)?.into();
        let accept = if request.stream {
            "text/event-stream"
        } else {
            "application/json"
        };
        let mut request = self.request(Method::POST, &self.chat, accept, body);
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(request)
    }

    fn models_request(&self, _now: SystemTime) -> Result<Request<Bytes>, ProviderError> {
        Ok(self.request(Method::GET, &self.models, "application/json", Bytes::new()))
    }

    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError> {
        let content_type = head
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("");
        let media_type = content_type
            .split(';')
            .next()
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase();
        match media_type.as_str() {
            // Some small servers name no type, or the wrong one, for their streams.
            "text/event-stream" | "text/plain" | "application/octet-stream" | "" => {
                Ok(Box::new(decode::StreamDecoder::new(limit)))
            }
            json if json == "application/json" || json.ends_with("+json") => {
                Ok(Box::new(decode::BodyDecoder::new(limit)))
            }
            other => Err(ProviderError::new(
                ErrorKind::MalformedResponse,
                format!("the answer is of type `{other}`; is the base URL right?"),
            )),
        }
    }

    fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
        models::decode(body)
    }

    fn decode_error(&self, head: &Parts, body: &[u8], now: SystemTime) -> ProviderError {
        error::from_response(head, body, now)
    }

    fn secrets(&self) -> &[SecretString] {
        &self.secrets
    }
}

pub(crate) use models::looks_like_a_model_list;

fn join(base: &str, path: &str) -> Result<Uri, ProviderError> {
    // The URL itself may hold a password, so it is not repeated.
    let uri: Uri = format!("{base}{path}")
        .parse()
        .map_err(|_| wrong("the base URL is no URL".into()))?;
    if !matches!(uri.scheme(), Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)
    {
        return Err(wrong(
            "the base URL must begin with http:// or https://".into(),
        ));
    }
    if uri
        .authority()
        .is_none_or(|authority| authority.as_str().contains('@') || authority.host().is_empty())
    {
        return Err(wrong(
            "the base URL must name a host, and no user or password; use the key or a header"
                .into(),
        ));
    }
    if uri.query().is_some() {
        return Err(wrong("the base URL must have no `?`".into()));
    }
    Ok(uri)
}

fn sensitive(value: &str, what: &str) -> Result<HeaderValue, ProviderError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        wrong(format!(
            "{what} has characters that are not allowed in a header, such as a line feed"
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn wrong(message: String) -> ProviderError {
    ProviderError::new(ErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Message;

    fn config(base_url: &str) -> OpenAiConfig {
        OpenAiConfig {
            base_url: base_url.into(),
            key: Some(" sk-1234567890\n".into()),
            headers: vec![("x-team".into(), "hidden-value".into())],
            dialect: Dialect::OPENAI,
        }
    }

    #[test]
    fn requests_go_to_the_right_places() {
        let wire = OpenAi::new(config(" https://host/api/v1/ ")).unwrap();
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
        let wire = OpenAi::new(OpenAiConfig {
            key: Some(" ".into()),
            ..config("http://h")
        })
        .unwrap();
        let models = wire.models_request(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!models.headers().contains_key(AUTHORIZATION));
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!(
            "{:?} {:?}",
            config("http://h"),
            OpenAi::new(config("http://h")).unwrap()
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
            let error = OpenAi::new(config(url)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Configuration);
            assert!(
                error.message.contains(sign) && !error.message.contains("secret"),
                "{url}: {error}"
            );
        }
        let bad_key = OpenAiConfig {
            key: Some("a\nb".into()),
            ..config("http://h")
        };
        assert!(
            OpenAi::new(bad_key)
                .unwrap_err()
                .message
                .contains("the key")
        );
        let bad_name = OpenAiConfig {
            headers: vec![("a b".into(), "x".into())],
            ..config("http://h")
        };
        assert!(OpenAi::new(bad_name).unwrap_err().message.contains("`a b`"));
    }

    #[test]
    fn the_content_type_chooses_the_decoder() {
        let wire = OpenAi::new(config("http://h")).unwrap();
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
