//! Which providers there are: the configured ones, those whose keys are in the environment, those on this machine, and
//! `local`, which is always there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_proto::status::ProviderStatus;
use lapce_ai_providers::{
    BoxFuture, Catalog, CatalogEntry, CatalogError, ChatRequest, ChatStream, Discovered,
    HttpClient, HttpConfig, Local, LoopbackServer, ModelInfo, Profile, Provider, ProviderError,
    Route, SecretString, Settings, from_environment, probe,
};

use super::keys::{self, ByCommand};
use crate::config::{ApiKey, Config, HttpSettings, Network, ProviderKind, ProviderSettings};

const LOCAL: &str = "local";
/// The most time that the daemon's start waits for servers on this machine.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// The daemon's providers.
#[derive(Debug)]
pub(crate) struct Providers {
    catalog: Catalog,
    about: Vec<ProviderStatus>,
    default_model: Option<String>,
    /// Those that lead to a model, in order of preference.
    real: Vec<String>,
    problems: Vec<String>,
}

impl Providers {
    /// Finds every provider. `lookup` reads the environment.
    pub(crate) async fn gather(config: &Config, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut providers = Self::configured(config, &lookup);
        let shared = HttpClient::new(&http_config(&config.network));
        if config.discovery.environment {
            for found in from_environment(&lookup) {
                providers.add_discovered(&found, "environment", &shared);
            }
        }
        if config.discovery.loopback
            && let Ok(client) = &shared
        {
            for found in probe(client, &LoopbackServer::usual(), PROBE_TIMEOUT).await {
                providers.add_discovered(&found, "discovered", &shared);
            }
        }
        if !providers.knows(LOCAL) {
            providers.add(
                LOCAL,
                Ok(Arc::new(Local::default())),
                Some(LOCAL.to_owned()),
                Offer::listed(vec![LOCAL.to_owned()]),
                about("built in"),
            );
        }
        providers.alias(&config.aliases);
        providers.choose_default(config.requests.default_model.as_deref());
        for problem in &providers.problems {
            tracing::warn!("{problem}");
        }
        providers
    }

    /// Only what the configuration names; nothing is contacted.
    pub(crate) fn configured(config: &Config, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut providers = Self {
            catalog: Catalog::default(),
            about: Vec::new(),
            default_model: None,
            real: Vec::new(),
            problems: Vec::new(),
        };
        let mut clients = HashMap::new();
        for settings in &config.providers {
            providers.add_configured(settings, config, &lookup, &mut clients);
        }
        providers
    }

    /// What is wrong with them.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// For `status`.
    pub(crate) fn about(&self) -> &[ProviderStatus] {
        &self.about
    }

    /// Where requests without a model go.
    pub(crate) fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref()
    }

    /// The provider and model that a request means.
    pub(crate) fn resolve(&self, model: &str) -> Result<Route<'_>, CatalogError> {
        let model = model.trim();
        if model.is_empty() {
            self.catalog.resolve(self.default_model())
        } else {
            self.catalog.resolve(Some(model))
        }
    }

    /// The providers, or the one of this name.
    pub(crate) fn named<'a>(
        &'a self,
        name: Option<&'a str>,
    ) -> impl Iterator<Item = &'a CatalogEntry> {
        let entries = self.catalog.entries().iter();
        entries.filter(move |entry| name.is_none_or(|name| entry.name.eq_ignore_ascii_case(name)))
    }

    /// The configured aliases, each with the model that it means.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.catalog.aliases()
    }

    fn alias(&mut self, aliases: &[(String, String)]) {
        for (name, target) in aliases {
            if let Err(error) = self.catalog.alias(name, target) {
                self.problems.push(error.to_string());
            }
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.named(Some(name)).next().is_some()
    }

    fn add(
        &mut self,
        name: &str,
        provider: Result<Arc<dyn Provider>, ProviderError>,
        default_model: Option<String>,
        offer: Offer,
        about: ProviderStatus,
    ) {
        let usable = provider.is_ok();
        let provider = provider.unwrap_or_else(|mut error| {
            error.provider = name.into();
            self.problems.push(error.to_string());
            Arc::new(Unusable(error))
        });
        let shown = ProviderStatus {
            name: name.to_owned(),
            default_model: default_model.clone(),
            ..about
        };
        let default_model = default_model.filter(|_| usable);
        let entry = CatalogEntry {
            name: name.to_owned(),
            provider,
            default_model,
            models: offer.models,
            claims: offer.claims,
        };
        match self.catalog.add(entry) {
            Ok(()) => {
                if usable && shown.base_url.is_some() {
                    self.real.push(name.to_owned());
                }
                self.about.push(shown);
            }
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    fn add_configured(
        &mut self,
        settings: &ProviderSettings,
        config: &Config,
        lookup: impl Fn(&str) -> Option<String>,
        clients: &mut HashMap<(Duration, Option<PathBuf>), Result<HttpClient, ProviderError>>,
    ) {
        let name = settings.name.as_str();
        match &settings.kind {
            ProviderKind::Local(local) => {
                let model = settings
                    .default_model
                    .clone()
                    .unwrap_or_else(|| LOCAL.to_owned());
                self.add(
                    name,
                    Ok(Arc::new(Local::new(*local))),
                    Some(model),
                    Offer::listed(vec![LOCAL.to_owned()]),
                    about("configuration"),
                );
            }
            ProviderKind::Http(http) => {
                let client = clients
                    .entry((http.connect_timeout, http.extra_root_certs.clone()))
                    .or_insert_with(|| {
                        HttpClient::new(&HttpConfig {
                            connect_timeout: http.connect_timeout,
                            extra_root_certs: http.extra_root_certs.clone(),
                            ..http_config(&config.network)
                        })
                    });
                // `openai` at somebody else's address is still what its name says.
                let use_environment = config.discovery.environment;
                let known = Profile::named(name).unwrap_or(http.profile);
                let lookup =
                    |name: &str| lookup(name).filter(|_| use_environment || http.key.is_some());
                let provider = client
                    .clone()
                    .and_then(|client| with_key(name, http, known, lookup, client));
                let model = settings.default_model.clone();
                let usual = known.usual_model.or(http.profile.usual_model);
                let model = model.or_else(|| usual.map(ToOwned::to_owned));
                let url = http.base_url.as_deref().unwrap_or(http.profile.base_url);
                let about = ProviderStatus {
                    // One that will not do may have a password in it.
                    base_url: provider.is_ok().then(|| url.to_owned()),
                    ..about("configuration")
                };
                let offer = Offer {
                    models: http.models.clone(),
                    claims: http.profile.claims,
                };
                self.add(name, provider, model, offer, about);
            }
        }
    }

    fn add_discovered(
        &mut self,
        found: &Discovered,
        source: &str,
        client: &Result<HttpClient, ProviderError>,
    ) {
        if self.knows(&found.name) {
            return;
        }
        let provider = client.clone().and_then(|client| {
            let provider: Arc<dyn Provider> = Arc::new(found.connect(client)?);
            Ok(provider)
        });
        let models: Vec<String> = found.models.iter().map(|model| model.id.clone()).collect();
        // A model that makes vectors is no model to talk to.
        let first = models
            .iter()
            .find(|model| !model.to_lowercase().contains("embed"))
            .cloned();
        let about = ProviderStatus {
            base_url: found.settings.base_url.clone(),
            ..about(source)
        };
        self.add(
            &found.name,
            provider,
            usual_model(&found.name).or(first),
            Offer {
                models,
                claims: found.profile.claims,
            },
            about,
        );
    }

    /// The configured model, else the default one of the first real provider that has one, else `local`.
    fn choose_default(&mut self, configured: Option<&str>) {
        if let Some(model) = configured {
            if let Err(error) = self.catalog.resolve(Some(model)) {
                self.problems
                    .push(format!("requests.default_model: {error}"));
            }
            self.default_model = Some(model.to_owned());
            return;
        }
        let of = |entry: &CatalogEntry| {
            Some(format!(
                "{}/{}",
                entry.name,
                entry.default_model.as_deref()?
            ))
        };
        let default_of = |name: &String| self.named(Some(name)).find_map(of);
        self.default_model = self.real.iter().find_map(default_of);
        if self.default_model.is_some() {
            return;
        }
        // `local` is last, unless somebody configured another of its kind.
        self.default_model = self.catalog.entries().iter().rev().find_map(of);
        if let Some(real) = self.real.first() {
            let text = format!(
                "{real} has no default model, so requests without a model go to {}: set requests.default_model",
                self.default_model.as_deref().unwrap_or("nobody")
            );
            self.problems.push(text);
        }
    }
}

/// Which models a provider has.
#[derive(Default)]
struct Offer {
    /// Those that are known.
    models: Vec<String>,
    /// How the names of those begin that are its own, whether known or not.
    claims: &'static [&'static str],
}

impl Offer {
    fn listed(models: Vec<String>) -> Self {
        Self {
            models,
            claims: &[],
        }
    }
}

fn about(source: &str) -> ProviderStatus {
    ProviderStatus {
        source: source.to_owned(),
        ..ProviderStatus::default()
    }
}

fn usual_model(provider: &str) -> Option<String> {
    Profile::named(provider)?.usual_model.map(ToOwned::to_owned)
}

/// How all providers are reached.
fn http_config(network: &Network) -> HttpConfig {
    HttpConfig {
        https_proxy: network.https_proxy.clone(),
        no_proxy: network.no_proxy.clone(),
        system_root_certs: network.system_root_certs,
        ..HttpConfig::default()
    }
}

/// The provider with its key, or with the command that prints it.
fn with_key(
    name: &str,
    settings: &HttpSettings,
    known: &Profile,
    lookup: impl Fn(&str) -> Option<String>,
    client: HttpClient,
) -> Result<Arc<dyn Provider>, ProviderError> {
    let key = match &settings.key {
        None => keys::usual(known, lookup),
        Some(ApiKey::Value(key)) => Some(key.clone()),
        Some(ApiKey::Environment(variable)) => Some(keys::in_variable(variable, lookup)?),
        Some(ApiKey::File(path)) => Some(keys::in_file(path)?),
        Some(ApiKey::Command(command)) => {
            // Whether the other settings will do is known without the key.
            let stand_in = SecretString::from("not-yet-known");
            connect(name, settings, Some(stand_in), client.clone())?;
            let (called, settings) = (name.to_owned(), settings.clone());
            let connect = move |key| connect(&called, &settings, Some(key), client.clone());
            return Ok(Arc::new(ByCommand::new(name, command.clone(), connect)));
        }
    };
    connect(name, settings, key, client)
}

fn connect(
    name: &str,
    settings: &HttpSettings,
    key: Option<SecretString>,
    client: HttpClient,
) -> Result<Arc<dyn Provider>, ProviderError> {
    let account = Settings {
        base_url: settings.base_url.clone(),
        key,
        headers: settings.headers.clone(),
        region: settings.region.clone(),
        project: settings.project.clone(),
        api_version: settings.api_version.clone(),
    };
    let provider = settings.profile.connect(name, &account, client)?;
    Ok(Arc::new(provider.with_timeouts(settings.timeouts)))
}

/// A configured provider whose settings will not do. It stays in the catalog, so that whoever asks for it is told why.
#[derive(Debug)]
struct Unusable(ProviderError);

impl Provider for Unusable {
    fn chat<'a>(
        &'a self,
        _request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(std::future::ready(Err(self.0.clone())))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(std::future::ready(Err(self.0.clone())))
    }
}

#[cfg(test)]
mod tests;
