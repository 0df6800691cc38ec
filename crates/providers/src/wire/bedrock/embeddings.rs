//! Vectors: `InvokeModel` with the bodies of the two makers whose models make them.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html> and
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-embed.html>.

use serde::{Deserialize, Serialize};

use crate::embeddings::{EmbeddingPurpose, EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::wire::error::{malformed, not_understood};

/// The most texts of one request to Cohere's models.
const COHERE_BATCH: usize = 96;

/// Whose model it is.
#[derive(Clone, Copy)]
enum Maker {
    /// The first version knows no number of dimensions.
    Titan { first: bool },
    /// The fourth version takes a number of dimensions.
    Cohere { fourth: bool },
}

impl Maker {
    /// By the model's name. The ARN of a profile or of a model of one's own may hide it.
    fn of(model: &str) -> Option<Self> {
        if model.contains("titan-embed-text") || model.contains("titan-embed-g1") {
            let first = !model.contains("titan-embed-text-v2");
            Some(Self::Titan { first })
        } else if model.contains("cohere.embed") {
            let fourth = model.contains("embed-v4");
            Some(Self::Cohere { fourth })
        } else {
            None
        }
    }
}

/// The most texts of one request.
pub(super) fn batch(model: &str) -> usize {
    match Maker::of(model) {
        Some(Maker::Cohere { .. }) => COHERE_BATCH,
        _ => 1,
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    #[serde(rename_all = "camelCase")]
    Titan {
        input_text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<u32>,
    },
    Cohere {
        texts: &'a [String],
        input_type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        output_dimension: Option<u32>,
        /// Without it the fourth version would answer with other numbers than the third.
        embedding_types: [&'static str; 1],
    },
}

/// Writes the body of a request for at most [`batch`] texts.
pub(super) fn body(request: &EmbeddingRequest) -> Result<Vec<u8>, ProviderError> {
    let Some(maker) = Maker::of(&request.model) else {
        return Err(ProviderError::new(
            ErrorKind::Unsupported,
            "vectors are made by amazon.titan-embed-text and cohere.embed models only",
        ));
    };
    let body = match (maker, request.input.as_slice()) {
        (Maker::Titan { first }, [text]) => Body::Titan {
            input_text: text,
            dimensions: request.dimensions.filter(|_| !first),
        },
        (Maker::Cohere { fourth }, texts @ [_, ..]) => Body::Cohere {
            texts,
            input_type: match request.purpose {
                EmbeddingPurpose::Document => "search_document",
                EmbeddingPurpose::Query => "search_query",
            },
            output_dimension: request.dimensions.filter(|_| fourth),
            embedding_types: ["float"],
        },
        (_, texts) => {
            let message = format!("a request cannot have {} texts for this model", texts.len());
            return Err(ProviderError::new(ErrorKind::InvalidRequest, message));
        }
    };
    serde_json::to_vec(&body)
        .map_err(|error| ProviderError::new(ErrorKind::InvalidRequest, error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Titan.
    embedding: Option<Vec<f32>>,
    input_text_token_count: Option<u64>,
    /// Cohere.
    embeddings: Option<Vectors>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vectors {
    Plain(Vec<Vec<f32>>),
    ByType { float: Vec<Vec<f32>> },
}

/// Reads an answer of either maker.
pub(super) fn decode(body: &[u8]) -> Result<Embeddings, ProviderError> {
    let answer: Answer = serde_json::from_slice(body).map_err(not_understood)?;
    let vectors = match (answer.embedding, answer.embeddings) {
        (Some(vector), _) => vec![vector],
        (None, Some(Vectors::Plain(vectors) | Vectors::ByType { float: vectors })) => vectors,
        (None, None) => return Err(malformed("the answer has no vectors")),
    };
    Ok(Embeddings {
        model: None,
        vectors,
        input_tokens: answer.input_text_token_count,
    })
}
