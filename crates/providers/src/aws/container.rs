//! Keys that a container's agent gives out: ECS, EKS Pod Identity, Greengrass.
//!
//! Source: <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Limited};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Keys, read_keys, wrong};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::http::HttpClient;

/// Where a relative address leads: the agent of ECS.
const ECS: &str = "http://169.254.170.2";
/// Who may be asked without TLS beside this machine itself: the agents of ECS and of EKS.
const AGENTS: &[&str] = &[
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::23",
    "localhost",
];
/// The most time for an answer of the agent, which is on this machine or next to it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of an answer.
const LIMIT: usize = 64 << 10;

/// A container's agent.
pub(super) struct Container {
    uri: Uri,
    token: Token,
}

/// What is shown to the agent.
pub(super) enum Token {
    None,
    Value(SecretString),
    /// Read anew for every request, since EKS writes a new one every hour.
    File(PathBuf),
}

impl Container {
    pub(super) fn relative(path: &str, token: Token) -> Result<Self, ProviderError> {
        if !path.starts_with('/') {
            return Err(wrong(
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI must begin with `/`",
            ));
        }
        Self::full(&format!("{ECS}{path}"), token)
    }

    /// # Errors
    ///
    /// The address could give the token, and then the keys, to somebody on the network.
    pub(super) fn full(url: &str, token: Token) -> Result<Self, ProviderError> {
        let uri: Uri = url
            .parse()
            .map_err(|_| wrong("the address of the container's AWS credentials is no URL"))?;
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
        let here = host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback());
        let allowed = match uri.scheme_str() {
            Some("https") => !host.is_empty(),
            Some("http") => here || AGENTS.contains(&host),
            _ => false,
        };
        let user = uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'));
        if !allowed || user {
            let agents = AGENTS.join(", ");
            return Err(wrong(format!(
                "AWS credentials are not fetched from `{host}` (AWS_CONTAINER_CREDENTIALS_FULL_URI): without https only \
                 from this machine or one of {agents}"
            )));
        }
        Ok(Self { uri, token })
    }

    pub(super) async fn fetch(&self, client: &HttpClient) -> Result<Keys, ProviderError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let token = self.token.read().await?;
        if let Some(token) = &token {
            let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| {
                wrong("the container's authorization token has characters that no header may have")
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let keys = match tokio::time::timeout(TIMEOUT, ask(client, request)).await {
            Ok(keys) => keys,
            Err(_) => {
                let seconds = TIMEOUT.as_secs();
                Err(ProviderError::new(
                    ErrorKind::TimedOut(Phase::Upstream),
                    format!("the container's agent gave no AWS credentials in {seconds} s"),
                ))
            }
        };
        keys.map_err(|error| error.leaving("", token.as_slice()))
    }
}

async fn ask(client: &HttpClient, request: Request<Bytes>) -> Result<Keys, ProviderError> {
    let response = client.send(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await;
    let body = body.map_err(|error| ProviderError::new(ErrorKind::StreamCut, error.to_string()))?;
    let body = body.to_bytes();
    if status.as_u16() != 200 {
        let complaint = serde_json::from_slice(&body).unwrap_or(Complaint { message: None });
        let why = complaint.message.unwrap_or_default();
        let kind = match ErrorKind::from_status(status.as_u16()) {
            kind if kind.is_retryable() => kind,
            _ => ErrorKind::Authentication,
        };
        let message =
            format!("the container's agent gave no AWS credentials (HTTP {status}): {why}");
        return Err(ProviderError::new(kind, message));
    }
    read_keys(&body, "the container's agent")
}

#[derive(Deserialize)]
struct Complaint {
    message: Option<String>,
}

impl Token {
    async fn read(&self) -> Result<Option<SecretString>, ProviderError> {
        match self {
            Self::None => Ok(None),
            Self::Value(token) => Ok(Some(token.clone())),
            Self::File(path) => {
                let shown = path.display().to_string();
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
                let text = read
                    .map_err(std::io::Error::other)
                    .flatten()
                    .map_err(|error| {
                        wrong(format!(
                            "the container's authorization token {shown} cannot be read: {error}"
                        ))
                    })?;
                Ok(Some(SecretString::from(text.trim())))
            }
        }
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
