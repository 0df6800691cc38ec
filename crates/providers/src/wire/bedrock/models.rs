//! The list of models: `GET /foundation-models` of the control plane.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_ListFoundationModels.html>.

use serde::Deserialize;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::error::not_understood;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    model_summaries: Vec<Summary>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    model_id: String,
    model_name: Option<String>,
    provider_name: Option<String>,
}

pub(super) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let list: List = serde_json::from_slice(body).map_err(not_understood)?;
    let models = list.model_summaries.into_iter().map(|model| ModelInfo {
        id: model.model_id,
        display_name: model.model_name,
        owner: model.provider_name,
        ..ModelInfo::default()
    });
    Ok(models.collect())
}
