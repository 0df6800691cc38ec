//! What can be used without any configuration: keys in the environment, servers on this machine.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use secrecy::SecretString;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::http::{HttpClient, HttpProvider, Timeouts};
use crate::wire::openai::{Dialect, OpenAi, OpenAiConfig, looks_like_a_model_list};

/// Enough for a server on the same machine, for [`probe`].
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// A hosted provider that speaks OpenAI chat completions and needs nothing but a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownProvider {
    /// Its usual name.
    pub name: &'static str,
    /// The environment variable that holds its key.
    pub key_variable: &'static str,
    /// The environment variable that replaces its base URL.
    pub url_variable: Option<&'static str>,
    /// Its base URL.
    pub base_url: &'static str,
    /// Its dialect.
    pub dialect: Dialect,
}

/// The rows of the table below: name, key, base URL. Together, Fireworks and DeepSeek are as their own
/// documentation has them; the others as third parties use them, and not yet confirmed.
const fn row(
    name: &'static str,
    key_variable: &'static str,
    base_url: &'static str,
) -> KnownProvider {
    KnownProvider {
        name,
        key_variable,
        url_variable: None,
        base_url,
        dialect: Dialect::COMPATIBLE,
    }
}

/// The hosted providers that [`from_environment`] looks for, in order of preference.
pub const KNOWN_PROVIDERS: &[KnownProvider] = &[
    KnownProvider {
        url_variable: Some("OPENAI_BASE_URL"),
        dialect: Dialect::OPENAI,
        ..row("openai", "OPENAI_API_KEY", "https://api.openai.com/v1")
    },
    row(
        "openrouter",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/api/v1",
    ),
    row("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1"),
    KnownProvider {
        dialect: Dialect::DEEPSEEK,
        ..row("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com")
    },
    KnownProvider {
        dialect: Dialect::MISTRAL,
        ..row("mistral", "MISTRAL_API_KEY", "https://api.mistral.ai/v1")
    },
    row("xai", "XAI_API_KEY", "https://api.x.ai/v1"),
    row("together", "TOGETHER_API_KEY", "https://api.together.ai/v1"),
    row(
        "fireworks",
        "FIREWORKS_API_KEY",
        "https://api.fireworks.ai/inference/v1",
    ),
];

/// An address on this machine where a server may listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopbackServer {
    /// The name that the provider gets.
    pub name: String,
    /// Its base URL. The host must be a loopback address in numbers, anything else is not probed.
    pub base_url: String,
}

impl LoopbackServer {
    /// Where Ollama and llama.cpp listen unless told otherwise.
    pub fn usual() -> Vec<Self> {
        [
            ("ollama", "http://127.0.0.1:11434/v1"),
            ("llamacpp", "http://127.0.0.1:8080/v1"),
        ]
        .map(|(name, base_url)| Self {
            name: name.into(),
            base_url: base_url.into(),
        })
        .into()
    }
}

/// A provider that can be used.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// The name that it should get.
    pub name: String,
    /// How to reach it.
    pub config: OpenAiConfig,
    /// Where it was found: an environment variable or an address. For people.
    pub found_in: String,
    /// Its models, where they are known already.
    pub models: Vec<ModelInfo>,
}

impl Discovered {
    /// The provider itself.
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) when the environment's key or URL is not usable.
    pub fn connect(&self, client: HttpClient) -> Result<HttpProvider, ProviderError> {
        let wire =
            OpenAi::new(self.config.clone()).map_err(|error| error.leaving(&self.name, &[]))?;
        Ok(HttpProvider::new(self.name.as_str(), wire, client))
    }
}

/// The hosted providers whose keys `lookup` knows, usually `|name| std::env::var(name).ok()`. Nothing is contacted.
///
/// With `OPENAI_BASE_URL` set, `openai` needs no key, and is taken for a compatible server of someone else's.
pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Vec<Discovered> {
    let lookup = |name: &str| {
        lookup(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let found = KNOWN_PROVIDERS.iter().filter_map(|known| {
        let key = lookup(known.key_variable);
        let base_url = known.url_variable.and_then(lookup);
        let found_in = match (&key, &base_url) {
            (Some(_), _) => known.key_variable,
            (None, Some(_)) => known.url_variable?,
            (None, None) => return None,
        };
        let foreign = base_url
            .as_deref()
            .is_some_and(|url| url.trim_end_matches('/') != known.base_url);
        Some(Discovered {
            name: known.name.into(),
            config: OpenAiConfig {
                base_url: base_url.unwrap_or_else(|| known.base_url.into()),
                key: key.map(SecretString::from),
                headers: Vec::new(),
                dialect: if foreign {
                    Dialect::COMPATIBLE
                } else {
                    known.dialect
                },
            },
            found_in: found_in.into(),
            models: Vec::new(),
        })
    });
    found.collect()
}

/// The servers of `candidates` that answer with a list of models. All are asked at once, for `timeout` at
/// most.
///
/// Nothing but loopback addresses is ever contacted. No key is sent.
pub async fn probe(
    client: &HttpClient,
    candidates: &[LoopbackServer],
    timeout: Duration,
) -> Vec<Discovered> {
    let probes: Vec<_> = candidates
        .iter()
        .filter(|server| is_loopback(&server.base_url))
        .cloned()
        .map(|server| tokio::spawn(probe_one(client.clone(), server, timeout)))
        .collect();
    let mut found = Vec::new();
    for probe in probes {
        if let Ok(Some(server)) = probe.await {
            found.push(server);
        }
    }
    found
}

async fn probe_one(
    client: HttpClient,
    server: LoopbackServer,
    timeout: Duration,
) -> Option<Discovered> {
    let mut discovered = Discovered {
        name: server.name,
        found_in: server.base_url.clone(),
        config: OpenAiConfig {
            base_url: server.base_url,
            key: None,
            headers: Vec::new(),
            dialect: Dialect::COMPATIBLE,
        },
        models: Vec::new(),
    };
    let timeouts = Timeouts {
        models: timeout,
        ..Timeouts::default()
    };
    let provider = discovered.connect(client).ok()?.with_timeouts(timeouts);
    let body = provider.models_body().await.ok()?;
    if !looks_like_a_model_list(&body) {
        return None;
    }
    discovered.models = provider.decode_models(&body).ok()?;
    Some(discovered)
}

/// A name such as `localhost` may lead anywhere, so only numbers count.
fn is_loopback(base_url: &str) -> bool {
    let Ok(uri) = base_url.parse::<Uri>() else {
        return false;
    };
    let host = uri
        .host()
        .unwrap_or("")
        .trim_start_matches('[')
        .trim_end_matches(']');
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Vec<Discovered> {
        from_environment(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).into())
        })
    }

    #[test]
    fn keys_are_found_in_order_of_preference() {
        assert!(environment(&[]).is_empty());
        assert!(environment(&[("OPENAI_API_KEY", "  ")]).is_empty());
        let all: Vec<_> = KNOWN_PROVIDERS
            .iter()
            .map(|known| (known.key_variable, " sk-1\n"))
            .collect();
        let found = environment(&all);
        assert_eq!(found.len(), KNOWN_PROVIDERS.len());
        for (found, known) in found.iter().zip(KNOWN_PROVIDERS) {
            assert_eq!(
                (found.name.as_str(), found.found_in.as_str()),
                (known.name, known.key_variable)
            );
            assert_eq!(
                (&*found.config.base_url, found.config.dialect),
                (known.base_url, known.dialect)
            );
            assert_eq!(found.config.key.as_ref().unwrap().expose_secret(), "sk-1");
            assert!(OpenAi::new(found.config.clone()).is_ok());
        }
    }

    #[test]
    fn a_base_url_of_ones_own_speaks_the_common_dialect() {
        let found = environment(&[("OPENAI_BASE_URL", "http://10.0.0.1:8000/v1")]);
        assert_eq!(
            (found.len(), found[0].found_in.as_str()),
            (1, "OPENAI_BASE_URL")
        );
        assert!(found[0].config.key.is_none());
        assert_eq!(found[0].config.dialect, Dialect::COMPATIBLE);
        let same = environment(&[
            ("OPENAI_BASE_URL", "https://api.openai.com/v1/"),
            ("OPENAI_API_KEY", "k"),
        ]);
        assert_eq!(same[0].config.dialect, Dialect::OPENAI);
    }

    #[test]
    fn only_loopback_in_numbers_is_loopback() {
        for url in [
            "http://127.0.0.1:1/v1",
            "http://127.9.9.9",
            "http://[::1]:80/v1",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://localhost/v1",
            "http://10.0.0.1",
            "http://127.0.0.1.evil.com",
            "http://127.0.0.1@evil.com/",
            "",
            "x",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
        assert!(
            LoopbackServer::usual()
                .iter()
                .all(|server| is_loopback(&server.base_url))
        );
    }
}
