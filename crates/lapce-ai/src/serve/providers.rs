//! Which providers there are: the configured ones, those whose keys are in the environment, those on this machine, and
//! `local`, which is always there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_proto::status::ProviderStatus;
use lapce_ai_providers::{
    BoxFuture, BreakerConfig, Catalog, CatalogEntry, CatalogError, ChatRequest, ChatStream,
    Discovered, ErrorKind, Feature, Features, Format, Hedge, HttpClient, HttpConfig, Local,
    LoopbackServer, Member, ModelInfo, PROFILES, Plan, Pool, Profile, Provider, ProviderError,
    SecretString, Settings, Target, from_environment, probe,
};

use super::attempts;
use crate::config::{
    ApiKey, Config, OpenAiSettings, ProviderKind, ProviderSettings, RouteSettings, Waits,
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
            ..HttpConfig::default()
        });
        if config.discovery.environment {
            for found in from_environment(&lookup) {
                providers.add_discovered(&found, "environment", &shared, waits);
            }
        }
        if config.discovery.loopback
            && let Ok(client) = &shared
        {
            for found in probe(client, &LoopbackServer::usual(), PROBE_TIMEOUT).await {
                providers.add_discovered(&found, "discovered", &shared, waits);
            }
        }
        if !providers.knows(LOCAL) {
            providers.add(
                LOCAL,
                Ok(Accounts::local(Local::default(), waits)),
                Some(LOCAL.to_owned()),
                vec![LOCAL.to_owned()],
                about("built in"),
            );
        }
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

    fn knows(&self, name: &str) -> bool {
        self.named(Some(name)).next().is_some()
    }

    fn add(
        &mut self,
        name: &str,
        accounts: Result<Accounts, ProviderError>,
        default_model: Option<String>,
        models: Vec<String>,
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
            models,
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
                    vec![LOCAL.to_owned()],
                    about("configuration"),
                );
            }
            ProviderKind::OpenAi(openai) => {
                let client = clients
                    .entry((openai.waits.connect, openai.extra_root_certs.clone()))
                    .or_insert_with(|| {
                        HttpClient::new(&HttpConfig {
                            connect_timeout: openai.waits.connect,
                            extra_root_certs: openai.extra_root_certs.clone(),
                            ..HttpConfig::default()
                        })
                    });
                let use_environment = config.discovery.environment;
                let accounts = client.clone().and_then(|client| {
                    let keys = match openai.keys.as_slice() {
                        [] if use_environment => vec![key_of_known(name, &lookup)],
                        [] => vec![None],
                        keys => keys
                            .iter()
                            .map(|key| read_key(key, &lookup).map(Some))
                            .collect::<Result<_, _>>()?,
                    };
                    // Whoever names a profile of AWS asks for its files, which the environment places.
                    let asked = use_environment || openai.aws_profile.is_some();
                    let lookup = |name: &str| lookup(name).filter(|_| asked);
                    connect(name, openai, keys, lookup, &client)
                });
                let model = settings.default_model.clone().or_else(|| usual_model(name));
                let about = ProviderStatus {
                    base_url: Some(openai.base_url.clone()),
                    ..about("configuration")
                };
                self.add(name, accounts, model, openai.models.clone(), about);
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
            models,
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

fn about(source: &str) -> ProviderStatus {
    ProviderStatus {
        source: source.to_owned(),
        ..ProviderStatus::default()
    }
}

fn usual_model(provider: &str) -> Option<String> {
    Profile::named(provider)?.usual_model.map(ToOwned::to_owned)
}

fn key_of_known(name: &str, lookup: impl Fn(&str) -> Option<String>) -> Option<SecretString> {
    let keys = Profile::named(name)?.key_variables.iter();
    let key = keys.filter_map(|name| lookup(name));
    key.map(|key| key.trim().to_owned())
        .find(|key| !key.is_empty())
        .map(SecretString::from)
}

fn read_key(
    key: &ApiKey,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<SecretString, ProviderError> {
    let wrong = |why: String| ProviderError::new(ErrorKind::Configuration, why);
    let text = match key {
        ApiKey::Value(secret) => return Ok(secret.clone()),
        ApiKey::Environment(name) => lookup(name).ok_or_else(|| {
            wrong(format!(
                "the environment variable {name} (api_key_env) is not set where the daemon runs"
            ))
        })?,
        ApiKey::File(path) => std::fs::read_to_string(path).map_err(|error| {
            wrong(format!(
                "the key file {} (api_key_file) cannot be read: {error}",
                path.display()
            ))
        })?,
    };
    match text.trim() {
        "" => Err(wrong("its key is empty".to_owned())),
        text => Ok(SecretString::from(text)),
    }
}

fn connect(
    name: &str,
    settings: &OpenAiSettings,
    keys: Vec<Option<SecretString>>,
    lookup: impl Fn(&str) -> Option<String>,
    client: &HttpClient,
) -> Result<Accounts, ProviderError> {
    // Formats of their own are known by name, wherever the server is.
    let other = |profile: &&Profile| !matches!(profile.format, Format::ChatCompletions(_));
    let named = Profile::named(name).filter(other);
    let same = |url: &str| url.trim_end_matches('/') == settings.base_url.trim_end_matches('/');
    let known = named.or_else(|| PROFILES.iter().find(|profile| same(profile.base_url)));
    let profile = known.or_else(|| Profile::named("compatible"));
    let profile = profile.ok_or_else(|| {
        ProviderError::new(ErrorKind::Configuration, "no profile fits this server")
    })?;
    let one = |key| {
        let account = Settings {
            // The profile's own may depend on the region.
            base_url: Some(settings.base_url.clone()).filter(|url| url != profile.base_url),
            key,
            headers: settings.headers.clone(),
            region: settings.region.clone(),
            project: settings.project.clone(),
            aws_profile: settings.aws_profile.clone(),
            ..Settings::default()
        };
        let account = profile.in_environment(account, &lookup)?;
        let provider = profile.connect(name, &account, client.clone())?;
        let provider: Arc<dyn Provider> = Arc::new(provider.with_timeouts(settings.waits.timeouts));
        Ok(provider)
    };
    Ok(Accounts {
        each: keys
            .into_iter()
            .map(one)
            .collect::<Result<_, ProviderError>>()?,
        features: profile.features,
        whole: settings.waits.answer,
    })
}

/// One provider with each of its keys.
struct Accounts {
    each: Vec<Arc<dyn Provider>>,
    features: Features,
    /// The most time for a whole answer.
    whole: Option<Duration>,
}

impl Accounts {
    /// It repeats what it is told, whatever that is.
    fn local(local: Local, waits: Waits) -> Self {
        Self {
            each: vec![Arc::new(local)],
            features: Features::of(Feature::ALL),
            whole: waits.answer,
        }
    }
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
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(text: &str) -> (tempfile::TempDir, Config) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        let discovery = match text.contains("[discovery]") {
            true => "",
            false => "[discovery]",
        };
        std::fs::write(&file, format!("{text}\n{discovery}\nloopback = false\n")).unwrap();
        let config = Config::load(&Sources {
            file: Some(file),
            ..Sources::default()
        })
        .unwrap();
        (directory, config)
    }

    async fn gather(text: &str, environment: &[(&str, &str)]) -> Providers {
        let (_directory, config) = config(text);
        Providers::gather(&config, |name| {
            environment
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
        .await
    }

    /// The first provider and model that are meant.
    fn first(providers: &Providers, model: &str) -> (String, String) {
        let target = &providers.plan(model).unwrap().targets[0];
        (target.member.name().to_string(), target.model.to_string())
    }

    fn names(providers: &Providers) -> Vec<(&str, &str)> {
        providers
            .about()
            .iter()
            .map(|about| (about.name.as_str(), about.source.as_str()))
            .collect()
    }

    #[tokio::test]
    async fn without_anything_there_is_local() {
        let providers = gather("", &[]).await;
        assert_eq!(names(&providers), [("local", "built in")]);
        assert_eq!(providers.default_model(), Some("local/local"));
        assert_eq!(first(&providers, "").0, "local");
        assert!(providers.problems().is_empty());
    }

    #[tokio::test]
    async fn configured_ones_come_first_and_are_not_doubled() {
        let text = "[providers.mine]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n[providers.groq]\ndefault_model = 'x'\n[providers.local]\ntokens = 3";
        let providers = gather(text, &[("GROQ_API_KEY", "k"), ("OPENAI_API_KEY", "k")]).await;
        let expected = [
            ("mine", "configuration"),
            ("groq", "configuration"),
            ("local", "configuration"),
            ("openai", "environment"),
        ];
        assert_eq!(names(&providers), expected);
        assert_eq!(providers.default_model(), Some("groq/x"));
        assert_eq!(first(&providers, "openai").1, "gpt-4o-mini");
    }

    #[tokio::test]
    async fn a_configured_default_wins_and_a_wrong_one_is_told() {
        let providers = gather(
            "[requests]\ndefault_model = 'local'",
            &[("OPENAI_API_KEY", "k")],
        )
        .await;
        assert_eq!(first(&providers, "").0, "local");
        let providers = gather("[requests]\ndefault_model = 'nobody/x'", &[]).await;
        assert_eq!(
            providers.problems(),
            ["requests.default_model: no provider or model is called `nobody/x`"]
        );
        assert!(providers.plan("").is_err());
    }

    #[tokio::test]
    async fn a_provider_that_will_not_do_says_why_when_it_is_asked() {
        let text = "[providers.groq]\napi_key_env = 'NO_SUCH_KEY'\n[providers.mine]\ntype = 'openai'\nbase_url = 'no address'";
        let providers = gather(text, &[]).await;
        assert_eq!(providers.problems().len(), 2, "{:?}", providers.problems());
        assert_eq!(providers.default_model(), Some("local/local"));
        let plan = providers.plan("groq/x").unwrap();
        let error = plan.targets[0]
            .member
            .chat(&ChatRequest::new("x"))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("NO_SUCH_KEY (api_key_env) is not set"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn bedrock_takes_its_account_and_region_from_aws_itself() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        std::fs::create_dir(home.join(".aws")).unwrap();
        let account =
            "[work]\naws_access_key_id = AK\naws_secret_access_key = s\nregion = eu-west-1\n";
        std::fs::write(home.join(".aws/credentials"), account).unwrap();
        let home = ("HOME", home.to_str().unwrap());
        let environment = [("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let with_home = |more: &[(&'static str, &'static str)]| [&[home], more].concat();
        for (text, environment, problem) in [
            ("aws_profile = 'work'", with_home(&[]), None),
            ("aws_profile = 'other'", with_home(&[]), Some("`other`")),
            ("", with_home(&[]), Some("no AWS credentials")),
            ("region = 'us-east-1'", with_home(&environment), None),
            (
                "region = 'us-east-1'\n[discovery]\nenvironment = false",
                with_home(&environment),
                Some("no AWS credentials"),
            ),
            (
                "aws_profile = 'work'\n[discovery]\nenvironment = false",
                with_home(&[]),
                None,
            ),
            ("", with_home(&environment), Some("region is missing")),
            (
                "base_url = 'http://127.0.0.1:1'",
                with_home(&environment),
                Some("region is missing"),
            ),
            (
                "",
                with_home(&[environment[0], environment[1], ("AWS_REGION", "us-east-1")]),
                None,
            ),
            (
                "region = 'us-east-1'",
                with_home(&[("AWS_BEARER_TOKEN_BEDROCK", "k")]),
                None,
            ),
            ("region = 'us-east-1'\napi_key = 'k'", with_home(&[]), None),
        ] {
            let providers = gather(&format!("[providers.bedrock]\n{text}"), &environment).await;
            match problem {
                None => assert!(
                    providers
                        .problems()
                        .iter()
                        .all(|text| text.contains("default model")),
                    "{text}: {:?}",
                    providers.problems()
                ),
                Some(sign) => assert!(
                    providers.problems()[0].contains(sign),
                    "{text}: {:?}",
                    providers.problems()
                ),
            }
        }
    }

    #[tokio::test]
    async fn vertex_needs_a_project() {
        let problems =
            |settings: &'static str, environment: &'static [(&'static str, &'static str)]| async move {
                let text = format!("[providers.vertex]\napi_key = 'ya29.token'\n{settings}");
                gather(&text, environment).await.problems().to_vec()
            };
        let none = Vec::<String>::new();
        assert_eq!(problems("project = 'p1'", &[]).await, none);
        let place = "project = 'p1'\nregion = 'europe-west4'";
        assert_eq!(problems(place, &[]).await, none);
        assert_eq!(problems("", &[("GOOGLE_CLOUD_PROJECT", "p1")]).await, none);
        for (settings, environment, sign) in [
            ("", &[][..], "project is missing"),
            ("project = 'p1'\nregion = 'a/b'", &[], "region"),
            (
                "project = 'p1'",
                &[("GOOGLE_CLOUD_LOCATION", "a/b")],
                "region",
            ),
        ] {
            let problems = problems(settings, environment).await;
            assert!(
                problems.len() == 1 && problems[0].contains("vertex") && problems[0].contains(sign),
                "{settings}: {problems:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_provider_without_a_default_model_is_told_of() {
        let providers = gather("", &[("TOGETHER_API_KEY", "k")]).await;
        assert_eq!(providers.default_model(), Some("local/local"));
        assert!(
            providers.problems()[0].starts_with("together has no default model"),
            "{:?}",
            providers.problems()
        );
    }
    #[tokio::test]
    async fn a_route_is_a_model_s_name_even_the_default_one() {
        let text = "[requests]\ndefault_model = 'best'\n[providers.groq]\n[providers.openai]\n[routes.best]\ntargets = ['nobody/x', 'groq/a', 'local']";
        let providers = gather(text, &[]).await;
        assert_eq!(
            providers.problems(),
            ["routes.best: no provider or model is called `nobody/x`"]
        );
        for name in ["", "BEST"] {
            let plan = providers.plan(name).unwrap();
            let targets = plan.targets.iter();
            let names = targets.map(|target| format!("{}/{}", target.member.name(), target.model));
            assert!(names.eq(["groq/a", "local/local"]));
        }
    }
}
