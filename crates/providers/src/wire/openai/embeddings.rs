//! Vectors of texts: `POST {base}/embeddings`.
//!
//! Source: <https://platform.openai.com/docs/api-reference/embeddings/create>. Where the server can, the vectors come
//! as base64: less than half of the bytes of their decimal form, and nothing is rounded.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::wire::error::{malformed, not_understood};
use crate::wire::json::cow;
use crate::wire::request::{invalid, to_json};

/// How one server makes vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// What the length of a vector is called, where it can be set.
    pub dimensions: Option<Dimensions>,
    /// Whether vectors may come as base64. Not all servers know it, and some refuse it.
    pub base64: bool,
    /// The most texts of one request. Where a provider takes more, it is still so few that their vectors fit into the
    /// 16 MiB that are read of an answer.
    pub texts: usize,
    /// The most bytes of all texts of one request. Providers limit the tokens, and no token is shorter than a byte.
    pub bytes: usize,
}

/// What the length of a vector is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimensions {
    /// `dimensions`.
    Usual,
    /// `output_dimension` (Mistral).
    Output,
}

impl Vectors {
    /// OpenAI and Azure, which take 2,048 texts and 300,000 tokens.
    pub const OPENAI: Self = Self {
        dimensions: Some(Dimensions::Usual),
        base64: true,
        texts: 512,
        bytes: 300_000,
    };

    /// Other servers. How much they take at once is their own affair; this much is usual.
    pub const COMPATIBLE: Self = Self {
        base64: false,
        texts: 256,
        ..Self::OPENAI
    };

    /// Mistral: no more than 256 texts and 16,384 tokens. Neither is documented; both were seen in its errors.
    pub const MISTRAL: Self = Self {
        dimensions: Some(Dimensions::Output),
        base64: true,
        texts: 256,
        bytes: 16_384,
    };

    /// Together, which documents a model and texts and nothing else.
    pub const TOGETHER: Self = Self {
        dimensions: None,
        ..Self::COMPATIBLE
    };
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

pub(super) fn body(request: &EmbeddingRequest, server: Vectors) -> Result<Vec<u8>, ProviderError> {
    if request.model.is_empty() {
        return Err(invalid("no model is named"));
    }
    if request.input.is_empty() {
        return Err(invalid("there are no texts"));
    }
    let called = |name| {
        request
            .dimensions
            .filter(|_| server.dimensions == Some(name))
    };
    to_json(&Body {
        model: &request.model,
        input: &request.input,
        dimensions: called(Dimensions::Usual),
        output_dimension: called(Dimensions::Output),
        encoding_format: server.base64.then_some("base64"),
    })
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Vec<Entry<'a>>,
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    index: Option<usize>,
    /// Numbers, or a string with them in base64: whatever was asked for, the server may answer either.
    #[serde(borrow)]
    embedding: &'a RawValue,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

pub(super) fn decode(body: &[u8]) -> Result<Embeddings, ProviderError> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(not_understood)?;
    let mut vectors = vec![Vec::new(); answer.data.len()];
    for (at, entry) in answer.data.iter().enumerate() {
        let place = vectors.get_mut(entry.index.unwrap_or(at));
        let place = place.filter(|place| place.is_empty());
        *place.ok_or_else(|| malformed("the vectors are not numbered from 0"))? =
            vector(entry.embedding)?;
    }
    let usage = answer.usage;
    Ok(Embeddings {
        model: answer.model.map(Cow::into_owned),
        vectors,
        input_tokens: usage.and_then(|usage| usage.prompt_tokens.or(usage.total_tokens)),
    })
}

fn vector(raw: &RawValue) -> Result<Vec<f32>, ProviderError> {
    let Some(text) = cow(raw) else {
        return serde_json::from_str(raw.get()).map_err(not_understood);
    };
    let bytes = STANDARD
        .decode(text.as_bytes())
        .map_err(|error| malformed(format!("a vector is no base64: {error}")))?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(malformed("a vector is no list of 32-bit numbers"));
    }
    let numbers = numbers.iter().map(|number| f32::from_le_bytes(*number));
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    proptest! {
        #[test]
        fn numbers_come_back_as_they_were(vectors in proptest::collection::vec(
            proptest::collection::vec(-2.0f32..2.0, 1..40), 1..5)) {
            let decimal: Vec<_> = vectors.iter().enumerate().map(|(index, vector)| {
                format!(r#"{{"index":{index},"embedding":{}}}"#, serde_json::to_string(vector).unwrap())
            }).collect();
            let base64: Vec<_> = vectors.iter().enumerate().rev().map(|(index, vector)| {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                format!(r#"{{"index":{index},"embedding":"{}"}}"#, STANDARD.encode(bytes))
            }).collect();
            for data in [decimal, base64] {
                let body = format!(r#"{{"data":[{}],"model":"m"}}"#, data.join(","));
                prop_assert_eq!(&decode(body.as_bytes()).unwrap().vectors, &vectors);
            }
        }
    }

    #[test]
    fn nonsense_is_no_vector() {
        for data in [
            r#"{"index":1,"embedding":[1]}"#,
            r#"{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}"#,
            r#"{"index":0,"embedding":"AAA"}"#,
            r#"{"index":0,"embedding":"AAAA"}"#,
            r#"{"index":0,"embedding":["a"]}"#,
            r#"{"index":0,"embedding":null}"#,
            r#"{"index":0}"#,
        ] {
            let error = decode(format!(r#"{{"data":[{data}]}}"#).as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::MalformedResponse, "{data}");
        }
    }
}
