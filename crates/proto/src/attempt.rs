//! Who was asked for an answer.

use serde::{Deserialize, Serialize};

use crate::ai::Usage;

/// A provider that was asked for an answer, or passed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Which of the provider's keys, from 1; absent where it has one. Never the key itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    /// Why it was its turn, where that was not to answer: `hedge`, since the first token of the one before was late, or
    /// `continuation` of an answer that had broken off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// `answered`, `failed`, `skipped`, `lost` to another that was quicker, or `cancelled`.
    pub outcome: String,
    /// Why it failed or was not asked, in one word such as `overloaded` or `breaker_open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Milliseconds until the first token, without streaming until the whole answer, or until it failed.
    pub took_ms: u64,
    /// The tokens of its answer, where it told them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}
