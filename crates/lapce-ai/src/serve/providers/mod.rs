//! Which providers there are: the configured ones, those whose keys are in the environment, those on this machine, and
//! `local`, which is always there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_proto::status::ProviderStatus;
use lapce_ai_providers::{
    BoxFuture, BreakerConfig, Catalog, CatalogEntry, CatalogError, ChatRequest, ChatStream,
    Discovered, Feature, Features, Hedge, HttpClient, HttpConfig, Local, LoopbackServer, Member,
    ModelInfo, Plan, Pool, Profile, Provider, ProviderError, Settings, Target, from_environment,
    probe,
};

use super::attempts;
use super::keys::{self, ByCommand};
use crate::config::{
    ApiKey, ClientLimits, Config, HttpSettings, Network, ProviderKind, ProviderSettings,
    RouteSettings, Waits,
};

const LOCAL: &str = "local";
/// The most time that the daemon's start waits for servers on this machine.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// The daemon's providers.
#[derive(Debug)]
pub(crate) struct Providers {
    catalog: Catalog,
    pool: Pool,
    /// Names that lead to several models.
    routes: Vec<(String, Plan)>,
    about: Vec<ProviderStatus>,
    default_model: Option<String>,
    /// Those that lead to a model, in order of preference.
    real: Vec<String>,
    problems: Vec<String>,
    /// The breakers of those that have their own; the others have this one.
    breakers: HashMap<String, BreakerConfig>,
    breaker: BreakerConfig,
    /// Who is probed, and how often.
    probed: Vec<(String, Duration)>,
}

impl Providers {
    /// Finds every provider. `lookup` reads the environment.
    pub(crate) async fn gather(config: &Config, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut providers = Self::configured(config, &lookup);
        let waits = config.requests.waits;
        let shared = HttpClient::new(&HttpConfig {
            connect_timeout: waits.connect,
            ..http_config(&config.network)
        });
        if config.discovery.environment {
            for found in from_environment(&lookup) {
                providers.add_discovered(&found, "environment", &shared, waits);
            }
        }
        if config.discovery.loopback
            && let Ok(client) = &shared
        {
            for found in probe(client, &LoopbackServer::usual(&lookup), PROBE_TIMEOUT).await {
                providers.add_discovered(&found, "discovered", &shared, waits);
            }
        }
        if !providers.knows(LOCAL) {
            providers.add(
                LOCAL,
                Ok(Accounts::local(Local::default(), waits)),
                Some(LOCAL.to_owned()),
                Offer::listed(vec![LOCAL.to_owned()]),
                about("built in"),
            );
        }
        providers.alias(&config.aliases);
        providers.limit(config);
        providers.route(&config.routes);
        providers.choose_default(config.requests.default_model.as_deref());
        for problem in &providers.problems {
            tracing::warn!("{problem}");
        }
        providers
    }

    /// Only what the configuration names; nothing is contacted.
    pub(crate) fn configured(config: &Config, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let of_each = config.providers.iter();
        let mut providers = Self {
            catalog: Catalog::default(),
            pool: Pool::new(config.pool),
            routes: Vec::new(),
            about: Vec::new(),
            default_model: None,
            real: Vec::new(),
            problems: Vec::new(),
            breakers: of_each
                .clone()
                .filter_map(|own| Some((own.name.clone(), own.breaker?)))
                .collect(),
            probed: of_each
                .filter_map(|own| Some((own.name.clone(), own.probe?)))
                .collect(),
            breaker: config.pool.breaker,
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

    /// What each is.
    pub(crate) fn about(&self) -> &[ProviderStatus] {
        &self.about
    }

    /// What each is, and how it does now.
    pub(crate) fn status(&self) -> Vec<ProviderStatus> {
        let with_health = |about: &ProviderStatus| ProviderStatus {
            health: self
                .member(&about.name)
                .map(|member| attempts::health(&member.status())),
            ..about.clone()
        };
        self.about.iter().map(with_health).collect()
    }

    /// The providers that are to be probed, and how often.
    pub(crate) fn probed(&self) -> impl Iterator<Item = (&Arc<Member>, Duration)> {
        let probed = self.probed.iter();
        probed.filter_map(|(name, every)| Some((self.member(name)?, *every)))
    }

    /// What has requests answered.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Who may answer a request for `model`, which is a route's name or whatever else names a model.
    pub(crate) fn plan(&self, model: &str) -> Result<Plan, CatalogError> {
        let name = match model.trim() {
            "" => self.default_model().unwrap_or_default(),
            name => name,
        };
        if let Some((_, plan)) = self
            .routes
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            return Ok(plan.clone());
        }
        Ok(Plan {
            targets: vec![self.target(name, 1)?],
            ..Plan::default()
        })
    }

    fn target(&self, model: &str, weight: u32) -> Result<Target, CatalogError> {
        let route = self.catalog.resolve(Some(model))?;
        // Whatever is in the catalog is in the pool.
        let member = self.member(route.name).ok_or(CatalogError::Empty)?;
        Ok(Target {
            member: Arc::clone(member),
            model: route.model.into(),
            weight,
        })
    }

    fn member(&self, name: &str) -> Option<&Arc<Member>> {
        let mut members = self.pool.members().iter();
        members.find(|member| &**member.name() == name)
    }

    /// Gives each provider and each client its limits.
    fn limit(&mut self, config: &Config) {
        for member in self.pool.members() {
            let mut configured = config.providers.iter();
            let own = configured.find(|settings| *settings.name == **member.name());
            let limits = own.map_or(&config.limits, |settings| &settings.limits);
            member.limit(limits.clone());
        }
        let ClientLimits { usual, special } = &config.clients;
        self.pool.limit_clients(*usual, special.clone());
    }

    /// Makes a plan of each route. Targets that lead nowhere are told of and left out.
    fn route(&mut self, routes: &[RouteSettings]) {
        for route in routes {
            let mut targets = Vec::new();
            for (model, weight) in route.targets.iter().zip(&route.weights) {
                match self.target(model, *weight) {
                    Ok(target) => targets.push(target),
                    Err(error) => self
                        .problems
                        .push(format!("routes.{}: {error}", route.name)),
                }
            }
            let plan = Plan {
                targets,
                balance: route.balance,
                hedge: route.hedge.map(|config| Arc::new(Hedge::new(config))),
                continues: route.continue_midstream,
            };
            self.routes.push((route.name.clone(), plan));
        }
    }

    /// Where requests without a model go.
    pub(crate) fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref()
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
        accounts: Result<Accounts, ProviderError>,
        default_model: Option<String>,
        offer: Offer,
        about: ProviderStatus,
    ) {
        let usable = accounts.is_ok();
        let Accounts {
            each,
            features,
            whole,
        } = accounts.unwrap_or_else(|mut error| {
            error.provider = name.into();
            self.problems.push(error.to_string());
            Accounts {
                each: vec![Arc::new(Unusable(error))],
                features: Features::of(Feature::ALL),
                whole: None,
            }
        });
        let breaker = self.breakers.get(name).copied().unwrap_or(self.breaker);
        let provider = self
            .pool
            .add_with_breaker(name, each, features, whole, breaker);
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
                    Ok(Accounts::local(Local::new(*local), config.requests.waits)),
                    Some(model),
                    Offer::listed(vec![LOCAL.to_owned()]),
                    about("configuration"),
                );
            }
            ProviderKind::Http(http) => {
                let mut http = http.clone();
                if http.base_url.is_none() && config.discovery.environment {
                    http.base_url = http.profile.url_in_environment(&lookup);
                    http.profile = match &http.base_url {
                        Some(url) => http.profile.at(url),
                        None => http.profile,
                    };
                }
                let client = clients
                    .entry((http.waits.connect, http.extra_root_certs.clone()))
                    .or_insert_with(|| {
                        HttpClient::new(&HttpConfig {
                            connect_timeout: http.waits.connect,
                            extra_root_certs: http.extra_root_certs.clone(),
                            ..http_config(&config.network)
                        })
                    });
                // `openai` at somebody else's address is still what its name says.
                let known = Profile::named(name).unwrap_or(http.profile);
                let usual = config.discovery.environment.then_some(known);
                let accounts = client
                    .clone()
                    .and_then(|client| accounts(name, &http, usual, &lookup, &client));
                let model = settings.default_model.clone();
                let usual = known.usual_model.or(http.profile.usual_model);
                let model = model.or_else(|| usual.map(ToOwned::to_owned));
                let url = http.base_url.as_deref().unwrap_or(http.profile.base_url);
                let about = ProviderStatus {
                    // One that will not do may have a password in it.
                    base_url: accounts.is_ok().then(|| url.to_owned()),
                    ..about("configuration")
                };
                let offer = Offer {
                    models: http.models.clone(),
                    claims: http.profile.claims,
                };
                self.add(name, accounts, model, offer, about);
            }
        }
    }

    fn add_discovered(
        &mut self,
        found: &Discovered,
        source: &str,
        client: &Result<HttpClient, ProviderError>,
        waits: Waits,
    ) {
        if self.knows(&found.name) {
            return;
        }
        let accounts = client.clone().and_then(|client| {
            let provider = found.connect(client)?.with_timeouts(waits.timeouts);
            Ok(Accounts {
                each: vec![Arc::new(provider)],
                features: found.profile.features,
                whole: waits.answer,
            })
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
            accounts,
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
            if let Err(error) = self.plan(model) {
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

/// One provider with each of its keys.
struct Accounts {
    each: Vec<Arc<dyn Provider>>,
    features: Features,
    /// The most time for a whole answer.
    whole: Option<Duration>,
}

impl Accounts {
    /// It repeats what it is told, whatever that is, and does nothing else.
    fn local(local: Local, waits: Waits) -> Self {
        let none = [Feature::Embeddings, Feature::TokenCount];
        Self {
            each: vec![Arc::new(local)],
            features: Features::of(Feature::ALL).without(&none),
            whole: waits.answer,
        }
    }
}

/// The provider with each of its keys. `usual` is whose key in the environment will do where none is configured, if the
/// environment may be asked at all.
fn accounts(
    name: &str,
    settings: &HttpSettings,
    usual: Option<&Profile>,
    lookup: impl Fn(&str) -> Option<String>,
    client: &HttpClient,
) -> Result<Accounts, ProviderError> {
    let one = |key| account(name, settings, key, usual, &lookup, client);
    let each = match settings.keys.as_slice() {
        [] => vec![one(None)?],
        keys => keys
            .iter()
            .map(|key| one(Some(key)))
            .collect::<Result<_, _>>()?,
    };
    Ok(Accounts {
        each,
        features: settings.profile.features,
        whole: settings.waits.answer,
    })
}

/// The provider with one key, or with the command that prints it.
fn account(
    name: &str,
    settings: &HttpSettings,
    key: Option<&ApiKey>,
    usual: Option<&Profile>,
    lookup: impl Fn(&str) -> Option<String>,
    client: &HttpClient,
) -> Result<Arc<dyn Provider>, ProviderError> {
    let (key, command) = match key {
        None => (usual.and_then(|usual| keys::usual(usual, &lookup)), None),
        Some(ApiKey::Value(key)) => (Some(key.clone()), None),
        Some(ApiKey::Environment(variable)) => (Some(keys::in_variable(variable, &lookup)?), None),
        Some(ApiKey::File(path)) => (Some(keys::in_file(path)?), None),
        // Whether the other settings will do is known without the key.
        Some(ApiKey::Command(command)) => (Some("not-yet-known".into()), Some(command)),
    };
    // Whoever names a profile of AWS asks for its files, which the environment places.
    let asked = usual.is_some() || settings.aws_profile.is_some();
    let account = Settings {
        base_url: settings.base_url.clone(),
        key,
        headers: settings.headers.clone(),
        region: settings.region.clone(),
        project: settings.project.clone(),
        api_version: settings.api_version.clone(),
        aws_profile: settings.aws_profile.clone(),
        ..Settings::default()
    };
    let surroundings = |name: &str| lookup(name).filter(|_| asked);
    let account = settings.profile.in_environment(account, surroundings)?;
    let (profile, timeouts, client) = (settings.profile, settings.waits.timeouts, client.clone());
    let connect =
        move |name: &str, account: &Settings| -> Result<Arc<dyn Provider>, ProviderError> {
            let provider = profile.connect(name, account, client.clone())?;
            Ok(Arc::new(provider.with_timeouts(timeouts)))
        };
    let provider = connect(name, &account)?;
    let Some(command) = command else {
        return Ok(provider);
    };
    let called = name.to_owned();
    let with_key = move |key| {
        let account = Settings {
            key: Some(key),
            ..account.clone()
        };
        connect(&called, &account)
    };
    Ok(Arc::new(ByCommand::new(name, command.clone(), with_key)))
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
