//! The list of models, in pages, and the number of a request's tokens.
//!
//! Source: <https://platform.claude.com/docs/en/api/models/list> and
//! <https://platform.claude.com/docs/en/api/messages/count_tokens>.

use serde::Deserialize;
use serde_json::Value;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::endpoint::segment;
use crate::wire::error::{malformed, not_understood};

/// The most models of a page that the API allows.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct List {
    data: Vec<Value>,
    #[serde(default)]
    has_more: Option<bool>,
    #[serde(default)]
    last_id: Option<String>,
}

/// The path of the first page, or of the one after the model `last`.
pub(super) fn path(last: Option<&str>) -> String {
    match last {
        None => format!("/models?limit={PAGE}"),
        Some(last) => format!("/models?limit={PAGE}&after_id={}", segment(last)),
    }
}

/// The last model of a page that more pages follow.
pub(super) fn last_of_more(body: &[u8]) -> Option<String> {
    let list: List = serde_json::from_slice(body).ok()?;
    list.last_id
        .filter(|last| list.has_more == Some(true) && !last.is_empty())
}

/// The models of a page.
pub(super) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let list: List = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the answer is no list of models: {error}")))?;
    let model = |entry: &Value| {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).map(Into::into);
        let number = |name: &str| entry.get(name).and_then(Value::as_u64);
        Some(ModelInfo {
            id: text("id").filter(|id: &String| !id.is_empty())?,
            display_name: text("display_name"),
            owner: None,
            context_length: number("max_input_tokens"),
            max_output_tokens: number("max_tokens"),
        })
    };
    Ok(list.data.iter().filter_map(model).collect())
}

/// The tokens in an answer.
pub(super) fn decode_count(body: &[u8]) -> Result<u64, ProviderError> {
    #[derive(Deserialize)]
    struct Count {
        input_tokens: u64,
    }
    let count: Count = serde_json::from_slice(body).map_err(not_understood)?;
    Ok(count.input_tokens)
}
