//! Where a provider is, and what every request to it carries.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use secrecy::{ExposeSecret, SecretString};

use crate::error::{ErrorKind, ProviderError};
use crate::profile::{Auth, Profile, Settings};

/// The media types that answers may have.
pub(crate) const JSON: &str = "application/json";
pub(crate) const EVENT_STREAM: &str = "text/event-stream";
pub(crate) const JSON_LINES: &str = "application/x-ndjson";

/// One provider's address with its key and headers.
///
/// Keys are kept as secrets, which are zeroed when dropped, and are written into a header only for the request that
/// carries them.
#[derive(Debug)]
pub(crate) struct Endpoint {
    base: String,
    auth: Auth,
    key: Option<SecretString>,
    fixed: HeaderMap,
    headers: Vec<(HeaderName, SecretString)>,
}

impl Endpoint {
    /// Checks the settings; what they leave out is the profile's.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the URL is no `http` or `https` URL or carries a password,
    /// or the key or a header has characters that HTTP does not allow.
    pub(crate) fn new(settings: &Settings, profile: &Profile) -> Result<Self, ProviderError> {
        let base = base_url(settings, profile)?;
        check(&base)?;
        // An empty key, as from an empty variable, is none.
        let key = settings
            .key
            .as_ref()
            .map(|key| key.expose_secret().trim())
            .filter(|key| !key.is_empty())
            .map(SecretString::from);
        if let Some(key) = &key {
            sensitive(key.expose_secret(), "the key")?;
        }
        let mut headers = Vec::new();
        for (name, value) in &settings.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| wrong(format!("`{name}` is no name for a header")))?;
            sensitive(value.expose_secret(), &format!("the header `{name}`"))?;
            headers.push((header, value.clone()));
        }
        let fixed = profile.headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        Ok(Self {
            base,
            auth: profile.auth,
            key,
            fixed: fixed.collect(),
            headers,
        })
    }

    /// Everything before the path of a request, without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    #[allow(dead_code, reason = "for the formats to come")]
    /// The key, where there is one.
    pub(crate) fn key(&self) -> Option<&SecretString> {
        self.key.as_ref()
    }

    /// What must never appear in an error's text.
    pub(crate) fn secrets(&self) -> Vec<SecretString> {
        let headers = self.headers.iter().map(|(_, value)| value);
        self.key.iter().chain(headers).cloned().collect()
    }

    /// A request without a body. `path` begins with `/`, is percent-encoded, and may have a query.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) where base and path make no URL.
    pub(crate) fn get(&self, path: &str) -> Result<Request<Bytes>, ProviderError> {
        self.request(Method::GET, path, JSON, Bytes::new())
    }

    /// A request with a JSON body, for an answer of the type `accept`.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) where base and path make no URL.
    pub(crate) fn post(
        &self,
        path: &str,
        accept: &'static str,
        body: Vec<u8>,
    ) -> Result<Request<Bytes>, ProviderError> {
        let mut request = self.request(Method::POST, path, accept, body.into())?;
        let json = HeaderValue::from_static(JSON);
        request.headers_mut().insert(CONTENT_TYPE, json);
        Ok(request)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Result<Request<Bytes>, ProviderError> {
        let uri: Uri = format!("{}{path}", self.base).parse().map_err(|_| {
            let message = format!("`{path}` is no path of a URL; is the model's name right?");
            ProviderError::new(ErrorKind::InvalidRequest, message)
        })?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        // Compression would hold tokens back.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.fixed.clone());
        if let Some(key) = &self.key {
            let key = key.expose_secret();
            match self.auth {
                Auth::HeaderOrToken(_) if is_token(key) => bearer(headers, key)?,
                Auth::Bearer => bearer(headers, key)?,
                Auth::Header(name) | Auth::HeaderOrToken(name) => {
                    headers.insert(HeaderName::from_static(name), sensitive(key, "the key")?);
                }
                // Its format signs the finished request.
                Auth::AwsSigV4 | Auth::None => {}
            }
        }
        for (name, value) in &self.headers {
            let value = sensitive(value.expose_secret(), &format!("the header `{name}`"))?;
            headers.insert(name.clone(), value);
        }
        Ok(request)
    }
}

/// `text` as one segment of a URL's path: everything but unreserved characters is percent-encoded
/// ([RFC 3986, 2.3](https://www.rfc-editor.org/rfc/rfc3986#section-2.3)).
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The settings' base URL or the profile's, with region and project put in.
fn base_url(settings: &Settings, profile: &Profile) -> Result<String, ProviderError> {
    let mut base = match &settings.base_url {
        Some(base) => base.trim().trim_end_matches('/').to_owned(),
        None if profile.base_url.is_empty() => {
            return Err(wrong(format!(
                "base_url is missing: {} has none of its own",
                profile.title
            )));
        }
        None => profile.base_url.to_owned(),
    };
    for (place, name, value) in [
        ("{region}", "region", &settings.region),
        ("{project}", "project", &settings.project),
    ] {
        if base.contains(place) {
            let value = value.as_deref().map(str::trim).filter(|value| {
                !value.is_empty()
                    && value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
            });
            let value =
                value.ok_or_else(|| wrong(format!("{name} is missing or no plain name")))?;
            base = base.replace(place, value);
        }
    }
    Ok(base)
}

fn check(base: &str) -> Result<(), ProviderError> {
    // The URL itself may hold a password, so it is not repeated.
    let uri: Uri = base
        .parse()
        .map_err(|_| wrong("the base URL is no URL; one begins with http:// or https://".into()))?;
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
    Ok(())
}

/// Whether a key is a JSON Web Token ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519#section-3)): three parts, the
/// first of which begins with `{"` in base64.
fn is_token(key: &str) -> bool {
    key.starts_with("eyJ") && key.split('.').count() == 3
}

fn bearer(headers: &mut HeaderMap, key: &str) -> Result<(), ProviderError> {
    let value = sensitive(&format!("Bearer {key}"), "the key")?;
    headers.insert(AUTHORIZATION, value);
    Ok(())
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

pub(crate) fn wrong(message: String) -> ProviderError {
    ProviderError::new(ErrorKind::Configuration, message)
}
