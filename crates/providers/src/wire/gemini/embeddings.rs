//! Vectors of texts. The two services have three methods for it.
//!
//! Source: <https://ai.google.dev/api/embeddings>,
//! <https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings-api>.

use serde::{Deserialize, Serialize};

use super::GeminiService;
use crate::embeddings::{EmbeddingPurpose, EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::wire::error::{malformed, not_understood};

/// How vectors are asked for.
#[derive(Clone, Copy)]
pub(super) enum Method {
    /// AI Studio: `batchEmbedContents`.
    Batch,
    /// Vertex, for Gemini's models: `embedContent`, one text at a time.
    Single,
    /// Vertex, for the older ones: `predict`.
    Predict,
}

/// The method that `service` has for `model`.
pub(super) fn method(service: GeminiService, model: &str) -> Method {
    let name = model.rsplit('/').next().unwrap_or(model);
    match service {
        GeminiService::AiStudio => Method::Batch,
        GeminiService::Vertex if name.starts_with("gemini-") => Method::Single,
        GeminiService::Vertex => Method::Predict,
    }
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Batch => "batchEmbedContents",
            Self::Predict => "predict",
            Self::Single => "embedContent",
        }
    }

    /// The most texts of one request.
    pub(super) fn batch(self) -> usize {
        match self {
            Self::Batch => 100,
            Self::Single => 1,
            // 250, but no more than 20,000 tokens together, and each may have 2,048.
            Self::Predict => 9,
        }
    }

    /// The body of a request. `resource` is the model's full name.
    pub(super) fn body(
        self,
        request: &EmbeddingRequest,
        resource: &str,
    ) -> Result<Vec<u8>, ProviderError> {
        let task_type = match request.purpose {
            EmbeddingPurpose::Document => "RETRIEVAL_DOCUMENT",
            EmbeddingPurpose::Query => "RETRIEVAL_QUERY",
        };
        let output_dimensionality = request.dimensions;
        let content = |text| Content {
            role: "user",
            parts: [Part { text }],
        };
        let body = match self {
            Self::Batch => {
                let one = |text| One {
                    model: resource,
                    content: content(text),
                    task_type,
                    output_dimensionality,
                };
                let requests: Vec<_> = request.input.iter().map(|text| one(text)).collect();
                serde_json::to_vec(&Batch { requests })
            }
            Self::Predict => {
                let one = |content| Instance { content, task_type };
                let instances: Vec<_> = request.input.iter().map(|text| one(text)).collect();
                let parameters = output_dimensionality.map(|dimensions| Parameters {
                    output_dimensionality: dimensions,
                });
                serde_json::to_vec(&Predict {
                    instances,
                    parameters,
                })
            }
            Self::Single => serde_json::to_vec(&Single {
                content: content(request.input.first().map_or("", String::as_str)),
                embed_content_config: Config {
                    task_type,
                    output_dimensionality,
                },
            }),
        };
        body.map_err(|error| ProviderError::new(ErrorKind::InvalidRequest, error.to_string()))
    }
}

#[derive(Serialize)]
struct Batch<'a> {
    requests: Vec<One<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct One<'a> {
    model: &'a str,
    content: Content<'a>,
    task_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimensionality: Option<u32>,
}

#[derive(Serialize)]
struct Content<'a> {
    role: &'static str,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
struct Part<'a> {
    text: &'a str,
}

#[derive(Serialize)]
struct Predict<'a> {
    instances: Vec<Instance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
}

/// Its names are in another style than everything else's.
#[derive(Serialize)]
struct Instance<'a> {
    content: &'a str,
    task_type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Parameters {
    output_dimensionality: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Single<'a> {
    content: Content<'a>,
    embed_content_config: Config,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    task_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimensionality: Option<u32>,
}

/// Every method's answer: `embeddings` of a batch, `predictions`, or one `embedding`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    embeddings: Option<Vec<Vector>>,
    predictions: Option<Vec<Prediction>>,
    embedding: Option<Vector>,
    usage_metadata: Option<UsageMetadata>,
}

#[derive(Deserialize)]
struct Prediction {
    embeddings: Vector,
}

#[derive(Deserialize)]
struct Vector {
    values: Vec<f32>,
    statistics: Option<Statistics>,
}

#[derive(Deserialize)]
struct Statistics {
    /// Sometimes written with a decimal point.
    token_count: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsageMetadata {
    prompt_token_count: Option<u64>,
}

/// Reads the answer of any of the methods.
pub(super) fn decode(body: &[u8]) -> Result<Embeddings, ProviderError> {
    let answer: Answer = serde_json::from_slice(body).map_err(not_understood)?;
    let predicted = answer
        .predictions
        .map(|list| list.into_iter().map(|one| one.embeddings).collect());
    let single = answer.embedding.map(|one| vec![one]);
    let vectors: Vec<Vector> = answer
        .embeddings
        .or(predicted)
        .or(single)
        .ok_or_else(|| malformed("the answer has no embeddings"))?;
    let counted = vectors
        .iter()
        .filter_map(|vector| vector.statistics.as_ref()?.token_count);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of tokens; what is below 0 becomes 0"
    )]
    let counted = counted.map(|tokens| tokens as u64);
    let counted = counted.reduce(u64::saturating_add);
    let told = answer
        .usage_metadata
        .and_then(|usage| usage.prompt_token_count);
    Ok(Embeddings {
        model: None,
        input_tokens: told.or(counted),
        vectors: vectors.into_iter().map(|vector| vector.values).collect(),
    })
}
