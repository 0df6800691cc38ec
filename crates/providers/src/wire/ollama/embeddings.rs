//! Vectors of texts: `POST /api/embed`.
//!
//! Source: <https://docs.ollama.com/api/embed>.

use serde::{Deserialize, Serialize};

use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::wire::error::not_understood;
use crate::wire::request::{invalid, to_json};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
}

#[derive(Deserialize)]
struct Answer {
    model: Option<String>,
    embeddings: Vec<Vec<f32>>,
    prompt_eval_count: Option<u64>,
}

pub(super) fn body(request: &EmbeddingRequest) -> Result<Vec<u8>, ProviderError> {
    if request.model.is_empty() {
        return Err(invalid("no model is named"));
    }
    to_json(&Body {
        model: &request.model,
        input: &request.input,
        dimensions: request.dimensions,
    })
}

pub(super) fn decode(body: &[u8]) -> Result<Embeddings, ProviderError> {
    let answer: Answer = serde_json::from_slice(body).map_err(not_understood)?;
    Ok(Embeddings {
        model: answer.model,
        vectors: answer.embeddings,
        input_tokens: answer.prompt_eval_count,
    })
}
