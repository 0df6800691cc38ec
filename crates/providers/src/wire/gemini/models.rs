//! The list of models, and the number of a request's tokens.
//!
//! Source: <https://ai.google.dev/api/models#method:-models.list>, <https://ai.google.dev/api/tokens>,
//! <https://cloud.google.com/vertex-ai/docs/reference/rest/v1beta1/publishers.models/list>.

use serde_json::Value;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::error::{malformed, not_understood};

/// Reads a page of either list: `models` of AI Studio, `publisherModels` of Vertex.
pub(super) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let document: Value = serde_json::from_slice(body).map_err(not_understood)?;
    let list = document
        .get("models")
        .or_else(|| document.get("publisherModels"));
    match list {
        Some(Value::Array(entries)) => Ok(entries.iter().filter_map(model).collect()),
        // A page without entries may lack the list.
        None if document
            .as_object()
            .is_some_and(|page| page.is_empty() || page.contains_key("nextPageToken")) =>
        {
            Ok(Vec::new())
        }
        _ => Err(malformed("the answer is no list of models")),
    }
}

/// The token of the next page, if there is one.
pub(super) fn next_page(body: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(body).ok()?;
    let token = document.get("nextPageToken")?.as_str()?;
    Some(token.to_owned()).filter(|token| !token.is_empty())
}

fn model(entry: &Value) -> Option<ModelInfo> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| entry.get(name).and_then(Value::as_u64);
    // Pictures, videos, speech only over WebSockets: nothing that could be asked for here.
    if let Some(Value::Array(methods)) = entry.get("supportedGenerationMethods") {
        let ours = ["generateContent", "embedContent"];
        if !methods
            .iter()
            .any(|method| ours.iter().any(|our| method == our))
        {
            return None;
        }
    }
    let name = text("name")?;
    let id = name.rsplit_once("models/").map_or(&*name, |(_, id)| id);
    Some(ModelInfo {
        id: Some(id.to_owned()).filter(|id| !id.is_empty())?,
        display_name: text("displayName"),
        owner: None,
        // The limit of the prompt alone; the answer has its own.
        context_length: number("inputTokenLimit"),
        max_output_tokens: number("outputTokenLimit"),
    })
}

/// Reads the answer of `countTokens`.
pub(super) fn decode_count(body: &[u8]) -> Result<u64, ProviderError> {
    let document: Value = serde_json::from_slice(body).map_err(not_understood)?;
    let count = document.get("totalTokens").and_then(Value::as_u64);
    count.ok_or_else(|| malformed("the answer has no totalTokens"))
}
