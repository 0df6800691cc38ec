//! The list of models: `GET /v1/models`, a page at a time.
//!
//! Source: <https://docs.cohere.com/v2/reference/list-models>.

use serde::Deserialize;
use serde_json::Value;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::endpoint::segment;
use crate::wire::error::not_understood;

/// The largest page that there is.
pub(super) const FIRST_PAGE: &str = "/v1/models?page_size=1000";

#[derive(Deserialize)]
struct Page {
    models: Vec<Value>,
    next_page_token: Option<String>,
}

/// Reads a page. What neither talks nor makes vectors (rerankers, classifiers) is left out.
pub(super) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let page: Page = serde_json::from_slice(body).map_err(not_understood)?;
    Ok(page.models.iter().filter_map(model).collect())
}

/// The path of the page after this one.
pub(super) fn next_page(body: &[u8]) -> Option<String> {
    let page: Page = serde_json::from_slice(body).ok()?;
    let token = page.next_page_token.filter(|token| !token.is_empty())?;
    Some(format!("{FIRST_PAGE}&page_token={}", segment(&token)))
}

fn model(entry: &Value) -> Option<ModelInfo> {
    let name = entry.get("name").and_then(Value::as_str)?;
    let usable = |endpoint: &Value| matches!(endpoint.as_str(), Some("chat" | "embed"));
    if let Some(Value::Array(endpoints)) = entry.get("endpoints")
        && !endpoints.iter().any(usable)
    {
        return None;
    }
    let context = entry.get("context_length").and_then(Value::as_f64);
    Some(ModelInfo {
        id: Some(name.to_owned()).filter(|name| !name.is_empty())?,
        context_length: context
            .map(|tokens| tokens as u64)
            .filter(|tokens| *tokens > 0),
        ..ModelInfo::default()
    })
}
