//! Everything that is no chat: vectors, the list of models, the size of a request.

use serde::{Deserialize, Serialize};

use super::Usage;

/// Texts to turn into vectors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingsRequest {
    /// As in [`AIRequest`](super::AIRequest).
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
    /// The length of each vector, where the provider lets one choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// What the vectors are for, where the provider makes a difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<EmbeddingPurpose>,
}

/// What vectors are for: some models make other ones for a question than for the documents that are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingPurpose {
    /// Documents that will be searched.
    Document,
    /// The question that they are searched with.
    Query,
}

/// One vector per text.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingsResponse {
    /// The model that made them.
    pub model: String,
    /// The provider that made them.
    pub provider: String,
    /// In the order of the texts.
    pub embeddings: Vec<Vec<f32>>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// As in [`AIResponse`](super::AIResponse).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
    /// As in [`AIResponse`](super::AIResponse).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Which models to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelsRequest {
    /// Only this provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// The models that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelList {
    /// Each as `provider/id` can stand in [`AIRequest::model`](super::AIRequest::model).
    pub models: Vec<Model>,
    /// Providers that could not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ModelListError>,
    /// Names that the daemon's configuration gives to models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<ModelAlias>,
}

/// A name that the daemon's configuration gives to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAlias {
    /// It can stand in [`AIRequest::model`](super::AIRequest::model).
    pub name: String,
    /// What it means there.
    pub model: String,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The provider's name for it.
    pub id: String,
    /// The provider's name in the daemon.
    pub provider: String,
    /// Longest conversation, in tokens, where the provider tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_window: Option<u64>,
    /// Longest answer, in tokens, where the provider tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// A name for people, where the provider gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Who made or offers it, in the provider's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A provider that could not list its models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelListError {
    /// Its name in the daemon.
    pub provider: String,
    /// Why.
    pub message: String,
}

/// The size of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    /// How many.
    pub tokens: u64,
    /// Counted by the provider, or estimated from the text's length.
    pub exact: bool,
}
