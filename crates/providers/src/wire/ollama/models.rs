//! The models on a server: `GET /api/tags`.
//!
//! Source: <https://docs.ollama.com/api/tags>.

use serde::Deserialize;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::error::not_understood;

#[derive(Deserialize)]
struct Tags {
    /// Null where there are none.
    models: Option<Vec<Tag>>,
}

#[derive(Deserialize)]
struct Tag {
    name: Option<String>,
    model: Option<String>,
}

impl Tag {
    fn id(self) -> Option<String> {
        let name = self.model.or(self.name);
        name.filter(|name| !name.is_empty())
    }
}

/// Reads a list.
pub(super) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let tags: Tags = serde_json::from_slice(body).map_err(not_understood)?;
    let ids = tags.models.into_iter().flatten().filter_map(Tag::id);
    Ok(ids
        .map(|id| ModelInfo {
            id,
            ..ModelInfo::default()
        })
        .collect())
}

/// Whether `body` is such a list without doubt, for probing a port where anything may listen.
pub(crate) fn looks_like_a_model_list(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Sure {
        #[serde(deserialize_with = "Option::deserialize")]
        models: Option<Vec<Tag>>,
    }
    let Ok(Sure { models }) = serde_json::from_slice(body) else {
        return false;
    };
    models
        .into_iter()
        .flatten()
        .all(|model| model.id().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_servers_have_nothing_but_names() {
        let models = decode(br#"{"models":[{"name":"old:7b"},{"name":""}]}"#).unwrap();
        assert_eq!((models.len(), models[0].id.as_str()), (1, "old:7b"));
    }

    #[test]
    fn a_probe_is_not_easily_pleased() {
        for list in [
            &br#"{"models":[{"name":"a:latest","model":"a:latest","size":1}]}"#[..],
            br#"{"models":[]}"#,
            br#"{"models":null}"#,
        ] {
            assert!(looks_like_a_model_list(list));
        }
        for wrong in [
            &b"[]"[..],
            b"{}",
            br#"{"models":{}}"#,
            br#"{"models":[{"id":"a"}]}"#,
            br#"{"models":["a"]}"#,
            b"Ollama is running",
        ] {
            assert!(!looks_like_a_model_list(wrong));
        }
    }
}
