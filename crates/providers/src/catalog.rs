//! Names: which provider and model a request means.

use std::fmt;
use std::sync::Arc;

use crate::provider::Provider;

/// How many near names an error offers.
const NEAR_NAMES: usize = 3;
/// How alike a name must be to be offered, from 0 to 1.
const NEAR_ENOUGH: f64 = 0.7;

/// The longest name of a model that is taken, in bytes: clients may name any, and names are kept and logged.
const LONGEST_NAME: usize = 256;
/// So many characters of a longer one are shown.
const SHOWN: usize = 32;

/// The configured providers, in order of preference.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: Vec<CatalogEntry>,
    /// A name, and the model that it means.
    aliases: Vec<(String, String)>,
}

/// One provider of a [`Catalog`].
#[derive(Clone, Debug)]
pub struct CatalogEntry {
    /// Its name, without `/`. Case makes no difference.
    pub name: String,
    /// Itself.
    pub provider: Arc<dyn Provider>,
    /// The model that is meant where only the provider is named.
    pub default_model: Option<String>,
    /// The models that it is known to offer; empty if they are not known.
    pub models: Vec<String>,
    /// The beginnings of model names that are its own ([`Profile::claims`](crate::Profile)).
    pub claims: &'static [&'static str],
}

/// What a name means.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// The provider's name.
    pub name: &'a str,
    /// The provider.
    pub provider: &'a Arc<dyn Provider>,
    /// The model, by the name that the provider uses.
    pub model: String,
}

/// Why a name means nothing, or a provider could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// There is no provider at all.
    #[error("no provider is configured")]
    Empty,
    /// No provider or model has this name.
    #[error("no provider or model is called `{name}`{}", Near(near))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Names that are near it, nearest first, in a form that can be asked for.
        near: Vec<String>,
    },
    /// The name is longer than 256 bytes.
    #[error("a model's name has at most {LONGEST_NAME} bytes, and `{beginning}…` has {bytes}")]
    TooLong {
        /// How it begins.
        beginning: String,
        /// How long it is.
        bytes: usize,
    },
    /// The provider is named without a model, and has no default one.
    #[error(
        "provider `{provider}` has no default model: ask for `{provider}/MODEL`{}",
        Near(near)
    )]
    NoModel {
        /// The provider.
        provider: String,
        /// Some of its models, in a form that can be asked for.
        near: Vec<String>,
    },
    /// An alias leads nowhere.
    #[error("alias `{alias}`: {error}")]
    Alias {
        /// The alias.
        alias: String,
        /// Why.
        error: Box<CatalogError>,
    },
    /// The name of a provider or an alias is empty or has a `/`.
    #[error("`{0}` cannot be a name: it must not be empty or have a `/`")]
    BadName(String),
    /// An alias has the name of a provider.
    #[error("alias `{0}` has the name of a provider, which is what it means")]
    ShadowedAlias(String),
    /// Two providers have the same name.
    #[error("there are two providers called `{0}`")]
    DuplicateName(String),
}

struct Near<'a>(&'a [String]);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, "; near it: {}", self.0.join(", "))
        }
    }
}

impl Catalog {
    /// Adds a provider after all others. The first one is the default.
    ///
    /// # Errors
    ///
    /// [`BadName`](CatalogError::BadName) and [`DuplicateName`](CatalogError::DuplicateName).
    pub fn add(&mut self, entry: CatalogEntry) -> Result<(), CatalogError> {
        if entry.name.is_empty() || entry.name.contains('/') {
            return Err(CatalogError::BadName(entry.name));
        }
        if self.named(&entry.name).is_some() {
            return Err(CatalogError::DuplicateName(entry.name));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Gives the model `target`, in any form that [`resolve`](Self::resolve) takes but an alias, another name. Case
    /// makes no difference to it.
    ///
    /// # Errors
    ///
    /// [`BadName`](CatalogError::BadName), [`ShadowedAlias`](CatalogError::ShadowedAlias) where a provider has the
    /// name, so add the providers first, and [`Alias`](CatalogError::Alias) where `target` leads nowhere. In the last
    /// case the alias is there all the same, and tells whoever uses it why.
    pub fn alias(&mut self, name: &str, target: &str) -> Result<(), CatalogError> {
        if name.is_empty() || name.contains('/') {
            return Err(CatalogError::BadName(name.into()));
        }
        if self.named(name).is_some() {
            return Err(CatalogError::ShadowedAlias(name.into()));
        }
        self.aliases.push((name.into(), target.into()));
        self.aliased(name, target).map(|_| ())
    }

    /// The aliases, each with the model that it means.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        let aliases = self.aliases.iter();
        aliases.map(|(name, target)| (name.as_str(), target.as_str()))
    }

    /// All providers, in order of preference.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// The provider and model that `name` means:
    ///
    /// - nothing: the first provider's default model;
    /// - an alias: what it stands for;
    /// - `provider/model`, where the model may have slashes of its own;
    /// - `provider`: its default model;
    /// - a model that some provider is known to offer: the first such provider;
    /// - a model whose name some provider claims: the provider whose claim is the longest, the first of several;
    /// - any other model, if there is exactly one provider whose models are not known: that provider.
    ///
    /// `openai/gpt-oss` means provider `openai` if there is one, unless its models are known and lack `gpt-oss` while
    /// another provider has a model that is called `openai/gpt-oss` in full.
    ///
    /// # Errors
    ///
    /// [`Empty`](CatalogError::Empty), [`Unknown`](CatalogError::Unknown), [`TooLong`](CatalogError::TooLong),
    /// [`NoModel`](CatalogError::NoModel), [`Alias`](CatalogError::Alias).
    pub fn resolve(&self, name: Option<&str>) -> Result<Route<'_>, CatalogError> {
        let first = self.entries.first().ok_or(CatalogError::Empty)?;
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        let Some(name) = name else {
            return first.default_route();
        };
        if name.len() > LONGEST_NAME {
            return Err(CatalogError::TooLong {
                beginning: name.chars().take(SHOWN).collect(),
                bytes: name.len(),
            });
        }
        let mut aliases = self.aliases();
        match aliases.find(|(alias, _)| alias.eq_ignore_ascii_case(name)) {
            Some((alias, target)) => self.aliased(alias, target),
            None => self.meant(name),
        }
    }

    fn aliased(&self, alias: &str, target: &str) -> Result<Route<'_>, CatalogError> {
        self.meant(target).map_err(|mut error| {
            if let CatalogError::Unknown { near, .. } = &mut error {
                let is_alias = |name: &str| self.aliases().any(|(alias, _)| alias == name);
                near.retain(|name| !is_alias(name));
            }
            CatalogError::Alias {
                alias: alias.into(),
                error: Box::new(error),
            }
        })
    }

    /// What a name that is no alias means.
    fn meant(&self, name: &str) -> Result<Route<'_>, CatalogError> {
        let offering = self.entries.iter().find(|entry| entry.offers(name));
        if let Some((provider, model)) = name.split_once('/')
            && let Some(entry) = self.named(provider)
        {
            return match offering {
                Some(other) if !entry.models.is_empty() && !entry.offers(model) => {
                    Ok(other.route(name))
                }
                _ if model.is_empty() => entry.default_route(),
                _ => Ok(entry.route(model)),
            };
        }
        if let Some(entry) = self.named(name) {
            return entry.default_route();
        }
        if let Some(entry) = offering {
            return Ok(entry.route(name));
        }
        if let Some(entry) = self.claiming(name) {
            return Ok(entry.route(name));
        }
        let mut open = self.entries.iter().filter(|entry| entry.models.is_empty());
        match (open.next(), open.next()) {
            (Some(entry), None) => Ok(entry.route(name)),
            _ => Err(CatalogError::Unknown {
                name: name.into(),
                near: self.near(name),
            }),
        }
    }

    /// The first of those whose claim on the model is the longest: `o1-pro` is a closer one than `o1`.
    fn claiming(&self, model: &str) -> Option<&CatalogEntry> {
        let mut closest: Option<(usize, &CatalogEntry)> = None;
        for entry in &self.entries {
            let own = entry.claims.iter().filter(|own| model.starts_with(**own));
            if let Some(length) = own.map(|own| own.len()).max()
                && closest.is_none_or(|(most, _)| length > most)
            {
                closest = Some((length, entry));
            }
        }
        closest.map(|(_, entry)| entry)
    }

    fn named(&self, name: &str) -> Option<&CatalogEntry> {
        self.entries
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    fn near(&self, name: &str) -> Vec<String> {
        let name = name.to_lowercase();
        let likeness = |known: &str| strsim::jaro_winkler(&name, &known.to_lowercase());
        let aliases = self.aliases();
        let mut near: Vec<(f64, String)> = aliases
            .map(|(alias, _)| (likeness(alias), alias.to_owned()))
            .collect();
        for entry in &self.entries {
            near.push((likeness(&entry.name), entry.name.clone()));
            for model in &entry.models {
                let full = format!("{}/{model}", entry.name);
                near.push((likeness(model).max(likeness(&full)), full));
            }
        }
        near.retain(|(likeness, _)| *likeness >= NEAR_ENOUGH);
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.into_iter()
            .take(NEAR_NAMES)
            .map(|(_, name)| name)
            .collect()
    }
}

impl CatalogEntry {
    fn offers(&self, model: &str) -> bool {
        self.models.iter().any(|known| known == model)
    }

    fn route(&self, model: &str) -> Route<'_> {
        Route {
            name: &self.name,
            provider: &self.provider,
            model: model.into(),
        }
    }

    fn default_route(&self) -> Result<Route<'_>, CatalogError> {
        // One known model leaves no choice.
        let only = if let [model] = self.models.as_slice() {
            Some(model)
        } else {
            None
        };
        match self.default_model.as_ref().or(only) {
            Some(model) => Ok(self.route(model)),
            None => Err(CatalogError::NoModel {
                provider: self.name.clone(),
                near: self
                    .models
                    .iter()
                    .take(NEAR_NAMES)
                    .map(|model| format!("{}/{model}", self.name))
                    .collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Local;

    #[test]
    fn a_name_has_at_most_256_bytes_and_is_not_repeated_whole() {
        let mut catalog = Catalog::default();
        catalog.add(entry("p", None, &[])).unwrap();
        let longest = format!("p/{}", "m".repeat(LONGEST_NAME - 2));
        assert!(catalog.resolve(Some(&longest)).is_ok());
        for long in [format!("{longest}m"), "é".repeat(1 << 20)] {
            let error = catalog.resolve(Some(&long)).unwrap_err();
            let (CatalogError::TooLong { bytes, .. }, message) = (&error, error.to_string()) else {
                panic!("{error}");
            };
            assert_eq!(*bytes, long.len());
            assert!(message.contains("at most 256 bytes"), "{message}");
            assert!(message.len() < 200, "{message}");
        }
    }

    fn entry(name: &str, default_model: Option<&str>, models: &[&str]) -> CatalogEntry {
        CatalogEntry {
            name: name.into(),
            provider: Arc::new(Local::default()),
            default_model: default_model.map(Into::into),
            models: models.iter().map(|model| (*model).into()).collect(),
            claims: &[],
        }
    }

    fn catalog(entries: impl IntoIterator<Item = CatalogEntry>) -> Catalog {
        let mut catalog = Catalog::default();
        for entry in entries {
            catalog.add(entry).unwrap();
        }
        catalog
    }

    fn resolved(catalog: &Catalog, name: &str) -> (String, String) {
        let route = catalog.resolve(Some(name)).unwrap();
        (route.name.into(), route.model)
    }

    #[test]
    fn the_longest_claim_wins_and_the_first_of_equals() {
        let claiming = |name, claims| CatalogEntry {
            claims,
            ..entry(name, None, &[])
        };
        let catalog = catalog([
            claiming("short", &["o1", "o3"]),
            claiming("long", &["o1-pro"]),
            claiming("late", &["o1", "o1-pro"]),
        ]);
        for (name, provider) in [("o1", "short"), ("o1-mini", "short"), ("o1-pro-2", "long")] {
            assert_eq!(resolved(&catalog, name), (provider.into(), name.into()));
        }
    }

    #[test]
    fn names_find_their_way() {
        let catalog = catalog([
            entry("openai", Some("gpt-x"), &["gpt-x", "gpt-mini"]),
            entry("groq", None, &["llama-3", "openai/gpt-oss"]),
            entry("openrouter", None, &[]),
            entry("local", None, &["local"]),
        ]);
        let default = catalog.resolve(None).unwrap();
        assert_eq!((default.name, default.model.as_str()), ("openai", "gpt-x"));
        for (name, provider, model) in [
            ("", "openai", "gpt-x"),
            ("openai/gpt-mini", "openai", "gpt-mini"),
            ("OpenAI/new-model", "openai", "new-model"),
            ("openai/", "openai", "gpt-x"),
            ("openai", "openai", "gpt-x"),
            ("llama-3", "groq", "llama-3"),
            (
                "openrouter/meta-llama/llama-3",
                "openrouter",
                "meta-llama/llama-3",
            ),
            ("openai/gpt-oss", "groq", "openai/gpt-oss"),
            ("groq/openai/gpt-oss", "groq", "openai/gpt-oss"),
            ("local", "local", "local"),
            // The one whose models are not known gets the rest.
            ("meta-llama/llama-3", "openrouter", "meta-llama/llama-3"),
        ] {
            assert_eq!(
                resolved(&catalog, name),
                (provider.into(), model.into()),
                "{name}"
            );
        }
        let error = catalog.resolve(Some("groq")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "provider `groq` has no default model: ask for `groq/MODEL`; near it: groq/llama-3, groq/openai/gpt-oss"
        );
    }

    #[test]
    fn unknown_names_are_answered_with_near_ones() {
        let catalog = catalog([
            entry("openai", None, &["gpt-4o", "gpt-4o-mini"]),
            entry("local", None, &["local"]),
        ]);
        let CatalogError::Unknown { near, .. } = catalog.resolve(Some("gpt4o")).unwrap_err() else {
            panic!()
        };
        assert_eq!(near[0], "openai/gpt-4o");
        let CatalogError::Unknown { near, .. } = catalog.resolve(Some("opnai")).unwrap_err() else {
            panic!()
        };
        assert_eq!(near[0], "openai");
        let error = catalog.resolve(Some("zzz")).unwrap_err();
        assert_eq!(error.to_string(), "no provider or model is called `zzz`");
        assert_eq!(
            Catalog::default().resolve(None).unwrap_err(),
            CatalogError::Empty
        );
    }

    #[test]
    fn a_claimed_model_finds_its_provider() {
        let claiming = |name, claims| CatalogEntry {
            claims,
            ..entry(name, None, &[])
        };
        let catalog = catalog([
            claiming("openrouter", &[]),
            claiming("openai", &["gpt-", "o1"]),
            claiming("azure", &["gpt-"]),
            claiming("fireworks", &["accounts/fireworks/"]),
            entry("groq", None, &["gpt-oss"]),
        ]);
        for (name, provider) in [
            ("gpt-4.1", "openai"),
            ("o1-pro", "openai"),
            // Who is known to have it comes before who claims it.
            ("gpt-oss", "groq"),
            ("accounts/fireworks/models/x", "fireworks"),
        ] {
            assert_eq!(resolved(&catalog, name), (provider.into(), name.into()));
        }
        assert!(catalog.resolve(Some("claude-x")).is_err());
    }

    #[test]
    fn an_alias_stands_for_a_model() {
        let mut catalog = catalog([
            entry("groq", Some("llama-3"), &["llama-3", "gpt-oss"]),
            entry("openai", None, &["gpt-4o"]),
        ]);
        catalog.alias("fast", "groq/gpt-oss").unwrap();
        catalog.alias("Smart", "gpt-4o").unwrap();
        catalog.alias("any", "groq").unwrap();
        for (name, provider, model) in [
            ("fast", "groq", "gpt-oss"),
            (" FAST ", "groq", "gpt-oss"),
            ("smart", "openai", "gpt-4o"),
            ("any", "groq", "llama-3"),
        ] {
            assert_eq!(resolved(&catalog, name), (provider.into(), model.into()));
        }
        let CatalogError::Unknown { near, .. } = catalog.resolve(Some("fasst")).unwrap_err() else {
            panic!()
        };
        assert_eq!(near, ["fast"]);
        assert_eq!(
            catalog.alias("GROQ", "gpt-4o"),
            Err(CatalogError::ShadowedAlias("GROQ".into()))
        );
        assert_eq!(
            catalog.alias("a/b", "gpt-4o"),
            Err(CatalogError::BadName("a/b".into()))
        );
        // One alias does not lead to another.
        let error = catalog.alias("chained", "fast").unwrap_err();
        assert_eq!(
            error.to_string(),
            "alias `chained`: no provider or model is called `fast`"
        );
        assert_eq!(catalog.resolve(Some("chained")).unwrap_err(), error);
    }

    #[test]
    fn provider_names_are_checked() {
        let mut catalog = catalog([entry("a", None, &[])]);
        assert_eq!(
            catalog.add(entry("x/y", None, &[])),
            Err(CatalogError::BadName("x/y".into()))
        );
        assert_eq!(
            catalog.add(entry("", None, &[])),
            Err(CatalogError::BadName(String::new()))
        );
        assert_eq!(
            catalog.add(entry("A", None, &[])),
            Err(CatalogError::DuplicateName("A".into()))
        );
        assert_eq!(catalog.entries().len(), 1);
    }
}
