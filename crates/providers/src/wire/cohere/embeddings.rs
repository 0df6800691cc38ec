//! Vectors of texts: `POST /v2/embed`.
//!
//! Source: <https://docs.cohere.com/v2/reference/embed>.

use serde::{Deserialize, Serialize};

use crate::embeddings::{EmbeddingPurpose, EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::wire::error::{malformed, not_understood};
use crate::wire::request::{invalid, to_json};

/// The most texts of one request.
pub(super) const BATCH: usize = 96;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    texts: &'a [String],
    input_type: &'static str,
    embedding_types: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<u32>,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vectors,
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Vectors {
    float: Option<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Meta {
    billed_units: Option<Billed>,
}

#[derive(Deserialize)]
struct Billed {
    input_tokens: Option<f64>,
}

pub(super) fn body(request: &EmbeddingRequest) -> Result<Vec<u8>, ProviderError> {
    if request.model.is_empty() {
        return Err(invalid("no model is named"));
    }
    to_json(&Body {
        model: &request.model,
        texts: &request.input,
        input_type: match request.purpose {
            EmbeddingPurpose::Document => "search_document",
            EmbeddingPurpose::Query => "search_query",
        },
        embedding_types: ["float"],
        output_dimension: request.dimensions,
    })
}

pub(super) fn decode(body: &[u8]) -> Result<Embeddings, ProviderError> {
    let answer: Answer = serde_json::from_slice(body).map_err(not_understood)?;
    let vectors = answer.embeddings.float;
    let tokens = answer.meta.and_then(|meta| meta.billed_units?.input_tokens);
    Ok(Embeddings {
        model: None,
        vectors: vectors.ok_or_else(|| malformed("the answer has no vectors of floats"))?,
        input_tokens: tokens.map(|tokens| tokens as u64),
    })
}
