//! What each provider is: one table, from which a provider is made, documented and tested.
//!
//! Providers that speak the same format differ by rows, not by code. How to add one: `docs/adding-a-provider.md`.

mod feature;
mod rows;

use std::sync::Arc;

use secrecy::SecretString;

use crate::aws::{AwsCredentials, AwsEnvironment};
use crate::error::ProviderError;
use crate::http::{HttpClient, HttpProvider};
use crate::wire::Wire;
use crate::wire::anthropic::Anthropic;
use crate::wire::bedrock::Bedrock;
use crate::wire::cohere::Cohere;
use crate::wire::gemini::{Gemini, GeminiService};
use crate::wire::ollama::{self, Ollama};
use crate::wire::openai::server::Paths;
use crate::wire::openai::{Dialect, OpenAi};
use crate::wire::responses::{self, Responses};
pub use feature::{Feature, Features};
pub use rows::PROFILES;

/// A provider that is known by name: where it is, what it speaks, what it can do.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its usual name, in lower case.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// The format that it speaks.
    pub format: Format,
    /// Its base URL; empty where every account has its own. `{region}` and `{project}` stand for the settings.
    pub base_url: &'static str,
    /// How a request shows its key.
    pub auth: Auth,
    /// The environment variables that may hold its key, the first that is set counts.
    pub key_variables: &'static [&'static str],
    /// The environment variable that replaces its base URL.
    pub url_variable: Option<&'static str>,
    /// Headers of every request. They are no secrets.
    pub headers: &'static [(&'static str, &'static str)],
    /// What it is asked for when nobody names a model: a small and cheap one, or the provider's own alias.
    pub usual_model: Option<&'static str>,
    /// The beginnings of model names that are its own, so that a bare model leads to it.
    pub claims: &'static [&'static str],
    /// Whether a key in the environment is enough to offer it unasked.
    pub discovered: bool,
    /// What it can do, as its format here says it.
    pub features: Features,
    /// What is peculiar about it, for people.
    pub quirks: &'static str,
    /// Its API reference.
    pub reference: &'static str,
}

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// OpenAI chat completions, in one server's dialect.
    ChatCompletions(Dialect),
    /// OpenAI's Responses API, in one server's dialect.
    Responses(responses::Dialect),
    /// Anthropic's Messages API.
    Messages,
    /// AWS Bedrock's Converse.
    Bedrock,
    /// Google Gemini, towards one of its two services.
    Gemini(GeminiService),
    /// Cohere's chat, version 2.
    Cohere,
    /// Ollama's own chat.
    Ollama,
}

impl Format {
    /// Its name, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::ChatCompletions(_) => "OpenAI chat completions",
            Self::Responses(_) => "OpenAI Responses",
            Self::Cohere => "Cohere Chat v2",
            Self::Ollama => "Ollama's own",
            Self::Messages => "Anthropic Messages",
            Self::Bedrock => "AWS Bedrock Converse",
            Self::Gemini(GeminiService::AiStudio) => "Google Gemini",
            Self::Gemini(GeminiService::Vertex) => "Google Gemini, on Vertex AI",
        }
    }
}

/// How a request shows its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer`.
    Bearer,
    /// A header of this name, in lower case.
    Header(&'static str),
    /// A header of this name; a token (JWT), which is told by its form, as `Authorization: Bearer`.
    HeaderOrToken(&'static str),
    /// A signature over the request (AWS Signature Version 4).
    AwsSigV4,
    /// Not at all.
    None,
}

/// What a user sets for a provider. Everything may be left out that the [`Profile`] knows.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Replaces the profile's base URL.
    pub base_url: Option<String>,
    /// The key. Local servers need none; an empty one is none.
    pub key: Option<SecretString>,
    /// Further headers, sent with each request. Their values are treated as secrets.
    pub headers: Vec<(String, SecretString)>,
    /// The region or location, for clouds.
    pub region: Option<String>,
    /// The project, for Google's cloud.
    pub project: Option<String>,
    /// The version of the API, for Azure.
    pub api_version: Option<String>,
    /// The AWS account whose keys sign requests, where there is no key that is sent itself.
    pub aws: Option<AwsCredentials>,
    /// The profile of that account in the AWS files.
    pub aws_profile: Option<String>,
}

impl Profile {
    /// The profile of this name. Case makes no difference.
    ///
    /// ```
    /// use lapce_ai_providers::Profile;
    ///
    /// assert_eq!(Profile::named("openai").unwrap().title, "OpenAI");
    /// assert!(Profile::named("nobody").is_none());
    /// ```
    pub fn named(name: &str) -> Option<&'static Self> {
        PROFILES
            .iter()
            .find(|profile| profile.name.eq_ignore_ascii_case(name))
    }

    /// Whether a bare model of this name is its own.
    pub fn claims(&self, model: &str) -> bool {
        self.claims.iter().any(|start| model.starts_with(start))
    }

    /// Whether its API has versions that the settings choose from (Azure).
    pub fn has_api_version(&self) -> bool {
        let paths = match self.format {
            Format::ChatCompletions(dialect) => dialect.paths,
            Format::Responses(dialect) => dialect.paths,
            _ => return false,
        };
        paths == Paths::Azure
    }

    /// These settings with what the environment adds to them: of AWS the region and, where there is no key, the
    /// account; of Google's cloud the project and the location; of Azure the version of the API. `lookup` reads the
    /// environment, usually `|name| std::env::var(name).ok()`; the AWS files are read.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) when there is no account, or its profile cannot be used.
    pub fn in_environment(
        &self,
        mut settings: Settings,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, ProviderError> {
        match self.format {
            Format::Bedrock => {
                let environment = AwsEnvironment::new(settings.aws_profile.as_deref(), lookup);
                settings.region = settings.region.or_else(|| environment.region());
                if settings.key.is_none() && settings.aws.is_none() {
                    settings.aws = Some(environment.credentials()?);
                }
            }
            Format::Gemini(GeminiService::Vertex) => {
                let location = || lookup("GOOGLE_CLOUD_LOCATION");
                settings.region = settings.region.or_else(location);
                let project = || lookup("GOOGLE_CLOUD_PROJECT");
                settings.project = settings.project.or_else(project);
            }
            _ if self.has_api_version() => {
                let version = || lookup("OPENAI_API_VERSION");
                settings.api_version = settings.api_version.or_else(version);
            }
            _ => {}
        }
        Ok(settings)
    }

    /// What the variable says that replaces the profile's base URL.
    pub fn url_in_environment(&self, lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
        let url = lookup(self.url_variable?)?;
        let url = Some(url.trim()).filter(|url| !url.is_empty())?;
        Some(match self.format {
            Format::Ollama => ollama::base_url(url),
            _ => url.to_owned(),
        })
    }

    /// What is behind `url`. Many say `openai` and mean any server of its kind, and the other way round: the address tells.
    pub fn at(&'static self, url: &str) -> &'static Self {
        if !matches!(self.name, "openai" | "compatible") {
            return self;
        }
        let same = |known: &&Self| {
            matches!(known.format, Format::ChatCompletions(_))
                && known.base_url.trim_end_matches('/') == url.trim().trim_end_matches('/')
        };
        let known = PROFILES.iter().find(same);
        known.or_else(|| Self::named("compatible")).unwrap_or(self)
    }

    /// The profile's wire format with these settings.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) when the settings are wrong, or lack what the format needs.
    pub fn wire(&self, settings: &Settings) -> Result<Arc<dyn Wire>, ProviderError> {
        Ok(match self.format {
            Format::ChatCompletions(dialect) => Arc::new(OpenAi::new(self, settings, dialect)?),
            Format::Responses(dialect) => Arc::new(Responses::new(self, settings, dialect)?),
            Format::Messages => Arc::new(Anthropic::new(self, settings)?),
            Format::Bedrock => Arc::new(Bedrock::new(self, settings)?),
            Format::Gemini(service) => Arc::new(Gemini::new(self, settings, service)?),
            Format::Cohere => Arc::new(Cohere::new(self, settings)?),
            Format::Ollama => Arc::new(Ollama::new(self, settings)?),
        })
    }

    /// A provider called `name` in errors, with these settings.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) when the settings are wrong, or lack what the format needs.
    pub fn connect(
        &self,
        name: &str,
        settings: &Settings,
        client: HttpClient,
    ) -> Result<HttpProvider, ProviderError> {
        let wire = self
            .wire(settings)
            .map_err(|error| error.leaving(name, &[]))?;
        Ok(HttpProvider::new(name, wire, client))
    }
}
