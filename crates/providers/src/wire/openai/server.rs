//! Where the operations of OpenAI's APIs are: below one base URL, or at an Azure resource.

use bytes::Bytes;
use http::Request;
use secrecy::SecretString;

use crate::error::ProviderError;
use crate::profile::{Profile, Settings};
use crate::wire::endpoint::{Endpoint, segment, wrong};

/// How the paths of a server are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// The operation alone.
    Plain,
    /// Azure's, of which there are two kinds. The settings' `api_version` tells which.
    ///
    /// Source: <https://learn.microsoft.com/en-us/azure/foundry/openai/api-version-lifecycle>.
    Azure,
}

/// One server with what its paths need.
#[derive(Debug)]
pub(crate) struct Server {
    endpoint: Endpoint,
    /// What comes before the operation; a model's deployment has its own path.
    prefix: &'static str,
    deployments: bool,
    /// Nothing, or `?` and what follows it.
    query: String,
}

impl Server {
    /// Checks the settings. For Azure, the base URL is the resource's, with or without `/openai/v1`. With an
    /// `api_version` that is a date, the paths are those of before the v1 API; `preview` is the v1 API's own.
    ///
    /// # Errors
    ///
    /// Those of [`Endpoint::new`], and [`Configuration`](crate::ErrorKind::Configuration) for a version that is none.
    pub(crate) fn new(
        profile: &Profile,
        settings: &Settings,
        paths: Paths,
    ) -> Result<Self, ProviderError> {
        if paths == Paths::Plain {
            return Ok(Self {
                endpoint: Endpoint::new(settings, profile)?,
                prefix: "",
                deployments: false,
                query: String::new(),
            });
        }
        let mut settings = settings.clone();
        if let Some(base) = &mut settings.base_url {
            let base_url = base.trim().trim_end_matches('/');
            let resource = ["/openai/v1", "/openai"]
                .iter()
                .find_map(|suffix| base_url.strip_suffix(suffix))
                .unwrap_or(base_url);
            *base = resource.to_owned();
        }
        let version = settings.api_version.as_deref().map(str::trim);
        let version = version.filter(|version| !version.is_empty());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if version.is_some_and(|version| !version.bytes().all(plain)) {
            return Err(wrong(
                "api_version must be a date such as 2024-10-21, or preview, or left out".into(),
            ));
        }
        let deployments =
            version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        Ok(Self {
            endpoint: Endpoint::new(&settings, profile)?,
            prefix: if deployments { "/openai" } else { "/openai/v1" },
            deployments,
            query: version.map_or_else(String::new, |version| format!("?api-version={version}")),
        })
    }

    /// A request for the list of models or whatever else belongs to no model.
    ///
    /// # Errors
    ///
    /// Those of [`Endpoint::get`].
    pub(crate) fn get(&self, operation: &str) -> Result<Request<Bytes>, ProviderError> {
        let Self { prefix, query, .. } = self;
        self.endpoint.get(&format!("{prefix}{operation}{query}"))
    }

    /// A request with a body. On Azure a model goes by the name of its deployment, which some operations have in
    /// their path.
    ///
    /// # Errors
    ///
    /// Those of [`Endpoint::post`].
    pub(crate) fn post(
        &self,
        operation: &str,
        deployment: Option<&str>,
        accept: &'static str,
        body: Vec<u8>,
    ) -> Result<Request<Bytes>, ProviderError> {
        let Self { prefix, query, .. } = self;
        let path = match deployment.filter(|_| self.deployments) {
            Some(name) => format!("{prefix}/deployments/{}{operation}{query}", segment(name)),
            None => format!("{prefix}{operation}{query}"),
        };
        self.endpoint.post(&path, accept, body)
    }

    /// What must never appear in an error's text.
    pub(crate) fn secrets(&self) -> Vec<SecretString> {
        self.endpoint.secrets()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn azure(
        base_url: &str,
        key: &str,
        api_version: Option<&str>,
    ) -> Result<Server, ProviderError> {
        let settings = Settings {
            base_url: Some(base_url.into()),
            key: Some(key.into()),
            api_version: api_version.map(Into::into),
            ..Settings::default()
        };
        Server::new(Profile::named("azure").unwrap(), &settings, Paths::Azure)
    }

    #[test]
    fn azures_paths_follow_the_version() {
        let resource = "https://r.openai.azure.com";
        for base_url in ["", "/", "/openai", "/openai/v1", "/openai/v1/"] {
            for (version, chat, models) in [
                (None, "/openai/v1/chat/completions", "/openai/v1/models"),
                (
                    Some(" "),
                    "/openai/v1/chat/completions",
                    "/openai/v1/models",
                ),
                (
                    Some("preview"),
                    "/openai/v1/chat/completions?api-version=preview",
                    "/openai/v1/models?api-version=preview",
                ),
                (
                    Some("2024-10-21"),
                    "/openai/deployments/my%20model/chat/completions?api-version=2024-10-21",
                    "/openai/models?api-version=2024-10-21",
                ),
            ] {
                let server = azure(&format!("{resource}{base_url}"), "k", version).unwrap();
                let request = server
                    .post(
                        "/chat/completions",
                        Some("my model"),
                        "application/json",
                        Vec::new(),
                    )
                    .unwrap();
                assert_eq!(request.uri().to_string(), format!("{resource}{chat}"));
                let request = server.get("/models").unwrap();
                assert_eq!(request.uri().to_string(), format!("{resource}{models}"));
            }
        }
    }

    #[test]
    fn a_token_is_told_from_a_key() {
        let token = "eyJ0eXAiOiJKV1QifQ.eyJhdWQiOiJhIn0.c2ln";
        for (key, header, value) in [
            ("0123456789abcdef", "api-key", "0123456789abcdef"),
            ("eyJ-no-token", "api-key", "eyJ-no-token"),
            (token, "authorization", &*format!("Bearer {token}")),
        ] {
            let request = azure("https://r", key, None)
                .unwrap()
                .get("/models")
                .unwrap();
            assert_eq!(request.headers()[header], value);
            assert!(request.headers()[header].is_sensitive());
            let both =
                ["api-key", "authorization"].map(|name| request.headers().contains_key(name));
            assert!(both[0] != both[1], "{key}");
        }
    }

    #[test]
    fn a_version_that_is_none_is_refused() {
        let error = azure("https://r", "k", Some("2024&x=y")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration);
        assert!(error.message.contains("api_version"), "{error}");
    }
}
