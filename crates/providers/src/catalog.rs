//! Names: which provider and model a request means.

use std::fmt;
use std::sync::Arc;

use crate::provider::Provider;

/// How many near names an error offers.
const NEAR_NAMES: usize = 3;
/// How alike a name must be to be offered, from 0 to 1.
const NEAR_ENOUGH: f64 = 0.7;

/// The configured providers, in order of preference.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: Vec<CatalogEntry>,
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
    /// A provider's name is empty or has a `/`.
    #[error("`{0}` cannot be a provider's name: it must not be empty or have a `/`")]
    BadName(String),
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

    /// All providers, in order of preference.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// The provider and model that `name` means:
    ///
    /// - nothing: the first provider's default model;
    /// - `provider/model`, where the model may have slashes of its own;
    /// - `provider`: its default model;
    /// - a model that some provider is known to offer: the first such provider;
    /// - any other model, if there is exactly one provider whose models are not known: that provider.
    ///
    /// `openai/gpt-oss` means provider `openai` if there is one, unless its models are known and lack `gpt-oss` while
    /// another provider has a model that is called `openai/gpt-oss` in full.
    ///
    /// # Errors
    ///
    /// [`Empty`](CatalogError::Empty), [`Unknown`](CatalogError::Unknown), [`NoModel`](CatalogError::NoModel).
    pub fn resolve(&self, name: Option<&str>) -> Result<Route<'_>, CatalogError> {
        let first = self.entries.first().ok_or(CatalogError::Empty)?;
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        let Some(name) = name else {
            return first.default_route();
        };
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
        let mut open = self.entries.iter().filter(|entry| entry.models.is_empty());
        match (open.next(), open.next()) {
            (Some(entry), None) => Ok(entry.route(name)),
            _ => Err(CatalogError::Unknown {
                name: name.into(),
                near: self.near(name),
            }),
        }
    }

    fn named(&self, name: &str) -> Option<&CatalogEntry> {
        self.entries
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    fn near(&self, name: &str) -> Vec<String> {
        let name = name.to_lowercase();
        let mut near: Vec<(f64, String)> = Vec::new();
        for entry in &self.entries {
            near.push((
                strsim::jaro_winkler(&name, &entry.name.to_lowercase()),
                entry.name.clone(),
            ));
            for model in &entry.models {
                let full = format!("{}/{model}", entry.name);
                let likeness = [model.as_str(), &full]
                    .map(|known| strsim::jaro_winkler(&name, &known.to_lowercase()));
                near.push((likeness[0].max(likeness[1]), full));
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

    fn entry(name: &str, default_model: Option<&str>, models: &[&str]) -> CatalogEntry {
        CatalogEntry {
            name: name.into(),
            provider: Arc::new(Local::default()),
            default_model: default_model.map(Into::into),
            models: models.iter().map(|model| (*model).into()).collect(),
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
