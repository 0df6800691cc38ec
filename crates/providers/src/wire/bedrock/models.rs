//! The list of models: those that can be asked by their own names, then the inference profiles, by whose names the others
//! are asked.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_ListFoundationModels.html> and
//! <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_ListInferenceProfiles.html>.

use serde::Deserialize;

use crate::chat::ModelInfo;
use crate::error::ProviderError;
use crate::wire::endpoint::segment;
use crate::wire::error::{malformed, not_understood};

/// Where the list begins, at the control plane.
pub(super) const FIRST: &str = "/foundation-models";
/// What comes after it, as many as there may be at once.
const PROFILES: &str = "/inference-profiles?maxResults=1000";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    model_summaries: Option<Vec<Model>>,
    inference_profile_summaries: Option<Vec<InferenceProfile>>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    model_id: String,
    model_name: Option<String>,
    provider_name: Option<String>,
    #[serde(default)]
    inference_types_supported: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InferenceProfile {
    inference_profile_id: String,
    inference_profile_arn: Option<String>,
    inference_profile_name: Option<String>,
    r#type: Option<String>,
}

/// The models of a page.
pub(super) fn decode(page: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let page: Page = serde_json::from_slice(page).map_err(not_understood)?;
    if let Some(models) = page.model_summaries {
        let models = models.into_iter().filter(Model::can_be_asked);
        return Ok(models.map(Model::into_info).collect());
    }
    let profiles = page.inference_profile_summaries;
    let profiles = profiles.ok_or_else(|| malformed("the answer is no list of models"))?;
    Ok(profiles
        .into_iter()
        .map(InferenceProfile::into_info)
        .collect())
}

/// The address of the page after this one.
pub(super) fn next(page: &[u8]) -> Result<Option<String>, ProviderError> {
    let page: Page = serde_json::from_slice(page).map_err(not_understood)?;
    if page.model_summaries.is_some() {
        return Ok(Some(PROFILES.into()));
    }
    let token = page.next_token.filter(|token| !token.is_empty());
    Ok(token.map(|token| format!("{PROFILES}&nextToken={}", segment(&token))))
}

impl Model {
    /// Some models are there for their profiles, or for those who have bought capacity, only.
    fn can_be_asked(&self) -> bool {
        let types = &self.inference_types_supported;
        types.is_empty() || types.iter().any(|name| name == "ON_DEMAND")
    }

    fn into_info(self) -> ModelInfo {
        ModelInfo {
            id: self.model_id,
            display_name: self.model_name,
            owner: self.provider_name,
            ..ModelInfo::default()
        }
    }
}

impl InferenceProfile {
    /// The profiles of an account are known by their ARNs, those of Bedrock by their names.
    fn into_info(self) -> ModelInfo {
        let own = self.r#type.as_deref() == Some("APPLICATION");
        let arn = self.inference_profile_arn.filter(|_| own);
        ModelInfo {
            id: arn.unwrap_or(self.inference_profile_id),
            display_name: self.inference_profile_name,
            ..ModelInfo::default()
        }
    }
}
