//! What can be used without any configuration: keys in the environment, servers on this machine.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use secrecy::SecretString;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::http::{HttpClient, HttpProvider, Timeouts};
use crate::profile::{Format, PROFILES, Profile, Settings};
use crate::wire::{ollama, openai};

/// Enough for a server on the same machine, for [`probe`].
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// An address on this machine where a server may listen.
#[derive(Clone, Debug)]
pub struct LoopbackServer {
    /// The name that the provider gets.
    pub name: String,
    /// What it would be.
    pub profile: &'static Profile,
    /// Its base URL. The host must be a loopback address in numbers, anything else is not probed.
    pub base_url: String,
}

impl LoopbackServer {
    /// Where Ollama and llama.cpp listen, Ollama where `OLLAMA_HOST` says if `lookup` knows that.
    pub fn usual(lookup: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let servers = [
            ("ollama", "ollama", None),
            ("llamacpp", "compatible", Some("http://127.0.0.1:8080/v1")),
        ];
        let servers = servers.into_iter().filter_map(|(name, profile, base_url)| {
            let profile = Profile::named(profile)?;
            let set = || profile.url_in_environment(&lookup);
            let usual = || profile.base_url.to_owned();
            let base_url = base_url.map(ToOwned::to_owned).or_else(set);
            Some(Self {
                name: name.into(),
                profile,
                base_url: base_url.unwrap_or_else(usual),
            })
        });
        servers.collect()
    }
}

/// A provider that can be used.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// The name that it should get.
    pub name: String,
    /// What it is.
    pub profile: &'static Profile,
    /// How to reach it.
    pub settings: Settings,
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
        self.profile.connect(&self.name, &self.settings, client)
    }
}

/// The providers whose keys or addresses `lookup` knows, usually `|name| std::env::var(name).ok()`. Nothing is contacted.
///
/// With `OPENAI_BASE_URL` set, `openai` needs no key, and is taken for a compatible server of someone else's. With
/// `OLLAMA_HOST` set to another machine's address, `ollama` is there; one on this machine is left to [`probe`], which
/// learns its models, too. Where every account has its own address, key and address must both be there.
pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Vec<Discovered> {
    let lookup = &|name: &str| {
        lookup(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let found = PROFILES.iter().filter_map(|profile| {
        let keys = profile.key_variables.iter().filter(|_| profile.discovered);
        let key = keys
            .into_iter()
            .find_map(|name| Some((*name, lookup(name)?)));
        let base_url = profile.url_in_environment(lookup);
        let own = profile.base_url.is_empty();
        if own && (key.is_none() || base_url.is_none()) {
            return None;
        }
        let found_in = match (&key, &base_url) {
            (Some((name, _)), _) => name,
            (None, Some(url)) if profile.discovered || !is_loopback(url) => profile.url_variable?,
            _ => return None,
        };
        let behind = base_url.as_deref().map_or(profile, |url| profile.at(url));
        let settings = Settings {
            base_url: base_url.or_else(|| Some(profile.base_url.into())),
            key: key.map(|(_, key)| SecretString::from(key)),
            ..Settings::default()
        };
        Some(Discovered {
            name: profile.name.into(),
            profile: behind,
            settings: profile.in_environment(settings, lookup).ok()?,
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
        profile: server.profile,
        settings: Settings {
            base_url: Some(server.base_url),
            ..Settings::default()
        },
        models: Vec::new(),
    };
    let timeouts = Timeouts {
        models: timeout,
        ..Timeouts::default()
    };
    let provider = discovered.connect(client).ok()?.with_timeouts(timeouts);
    let body = provider.models_body().await.ok()?;
    let sure = match discovered.profile.format {
        Format::Ollama => ollama::looks_like_a_model_list(&body),
        _ => openai::looks_like_a_model_list(&body),
    };
    if !sure {
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
        let hosted = || {
            PROFILES
                .iter()
                .filter(|profile| profile.discovered && !profile.base_url.contains('{'))
                .filter(|profile| !profile.base_url.is_empty())
        };
        let all: Vec<_> = hosted()
            .map(|profile| (profile.key_variables[0], " sk-1\n"))
            .collect();
        let found = environment(&all);
        assert_eq!(found.len(), hosted().count());
        for (found, profile) in found.iter().zip(hosted()) {
            assert_eq!(
                (found.name.as_str(), found.found_in.as_str()),
                (profile.name, profile.key_variables[0])
            );
            assert_eq!(found.profile.name, profile.name);
            assert_eq!(found.settings.key.as_ref().unwrap().expose_secret(), "sk-1");
            assert!(found.profile.wire(&found.settings).is_ok());
        }
    }

    #[test]
    fn a_base_url_of_ones_own_speaks_the_common_dialect() {
        let found = environment(&[("OPENAI_BASE_URL", "http://10.0.0.1:8000/v1")]);
        assert_eq!(
            (found.len(), found[0].found_in.as_str()),
            (1, "OPENAI_BASE_URL")
        );
        assert!(found[0].settings.key.is_none());
        assert_eq!(found[0].profile.name, "compatible");
        let same = environment(&[
            ("OPENAI_BASE_URL", "https://api.openai.com/v1/"),
            ("OPENAI_API_KEY", "k"),
        ]);
        assert_eq!(same[0].profile.name, "openai");
        // There is no common dialect of other formats.
        let found = environment(&[("ANTHROPIC_BASE_URL", "http://10.0.0.1:8000")]);
        assert_eq!(found[0].profile.name, "anthropic");
    }

    #[test]
    fn ollama_is_where_its_variable_says() {
        let address = |host: &'static str| {
            let servers =
                LoopbackServer::usual(|name| (name == "OLLAMA_HOST").then(|| host.into()));
            servers[0].base_url.clone()
        };
        assert_eq!(address("0.0.0.0:9"), "http://127.0.0.1:9");
        // One on this machine is probed, another machine's is believed.
        assert!(environment(&[("OLLAMA_HOST", "0.0.0.0:9")]).is_empty());
        let far = environment(&[("OLLAMA_HOST", "10.0.0.5")]);
        assert_eq!((far.len(), far[0].found_in.as_str()), (1, "OLLAMA_HOST"));
        assert_eq!(far[0].profile.name, "ollama");
        let url = far[0].settings.base_url.as_deref();
        assert_eq!(url, Some("http://10.0.0.5:11434"));
        assert!(!is_loopback(&address("10.0.0.5")));
        let cloud = environment(&[("OLLAMA_API_KEY", "k")]);
        assert_eq!((cloud.len(), cloud[0].name.as_str()), (1, "ollama-cloud"));
    }

    #[test]
    fn an_aws_key_comes_with_its_region() {
        let key = ("AWS_BEARER_TOKEN_BEDROCK", "k");
        let found = environment(&[key, ("AWS_REGION", "eu-west-3")]);
        assert_eq!((found.len(), found[0].name.as_str()), (1, "bedrock"));
        let wire = found[0].profile.wire(&found[0].settings).unwrap();
        let models = wire
            .models_request(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(models.uri().host(), Some("bedrock.eu-west-3.amazonaws.com"));
        // Without one it says what it lacks. Keys of an account alone are there for other services, too.
        assert!(
            environment(&[key])[0]
                .profile
                .wire(&environment(&[key])[0].settings)
                .is_err()
        );
        let account = [
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "eu-west-3"),
        ];
        assert!(environment(&account).is_empty());
    }

    #[test]
    fn an_address_of_ones_own_needs_a_key_and_a_key_an_address() {
        let key = ("AZURE_OPENAI_API_KEY", "k");
        let url = ("AZURE_OPENAI_ENDPOINT", "https://r.openai.azure.com/");
        assert!(environment(&[key]).is_empty());
        assert!(environment(&[url]).is_empty());
        let found = environment(&[key, url]);
        let names: Vec<_> = found.iter().map(|found| found.profile.name).collect();
        assert_eq!(names, ["azure"]);
        assert_eq!(found[0].settings.base_url.as_deref(), Some(url.1));
        assert_eq!(found[0].found_in, key.0);
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
        let usual = LoopbackServer::usual(|_| None);
        assert_eq!(usual.len(), 2);
        assert!(usual.iter().all(|server| is_loopback(&server.base_url)));
    }
}
