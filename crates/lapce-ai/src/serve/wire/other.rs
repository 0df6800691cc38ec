//! What is no chat: the list of models, and vectors.

use lapce_ai_proto::ErrorBody;
use lapce_ai_proto::ai::{self, EmbeddingsRequest, EmbeddingsResponse};
use lapce_ai_providers as domain;
use lapce_ai_providers::{Bill, EmbeddingRequest, Embeddings, NanoUsd};

use super::request::invalid;

/// A provider's model.
pub(in crate::serve) fn model(model: domain::ModelInfo, provider: &str) -> ai::Model {
    ai::Model {
        id: model.id,
        provider: provider.to_owned(),
        context_window: model.context_length,
        max_output_tokens: model.max_output_tokens,
        display_name: model.display_name,
        owner: model.owner,
    }
}

/// A request for vectors of `model`, by the name that the provider uses.
pub(in crate::serve) fn embedding_request(
    request: EmbeddingsRequest,
    model: String,
) -> Result<EmbeddingRequest, ErrorBody> {
    if request.input.is_empty() {
        return Err(invalid("input is empty: a request needs at least one text"));
    }
    if let Some(at) = request.input.iter().position(String::is_empty) {
        return Err(invalid(format!("input[{at}] is empty: a text needs words")));
    }
    if request.dimensions == Some(0) {
        return Err(invalid("dimensions is 0: a vector needs at least one"));
    }
    Ok(EmbeddingRequest {
        model,
        input: request.input,
        dimensions: request.dimensions,
        purpose: match request.purpose {
            None | Some(ai::EmbeddingPurpose::Document) => domain::EmbeddingPurpose::Document,
            Some(ai::EmbeddingPurpose::Query) => domain::EmbeddingPurpose::Query,
        },
    })
}

/// The vectors for a client.
pub(in crate::serve) fn embeddings(
    embeddings: Embeddings,
    provider: &str,
    asked: &str,
    bill: Bill,
) -> EmbeddingsResponse {
    EmbeddingsResponse {
        model: embeddings.model.unwrap_or_else(|| asked.to_owned()),
        provider: provider.to_owned(),
        embeddings: embeddings.vectors,
        usage: embeddings.input_tokens.map(|tokens| ai::Usage {
            input_tokens: tokens,
            ..ai::Usage::default()
        }),
        cost_nano_usd: bill.cost.map(NanoUsd::get),
        warnings: bill.warnings,
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::ErrorCode;

    use super::*;

    #[test]
    fn a_request_for_vectors_arrives_whole_or_is_told_what_it_lacks() {
        let request =
            |json: &str| embedding_request(serde_json::from_str(json).unwrap(), "m".to_owned());
        let whole = request(
            r#"{"model": "p/m", "input": ["a", "b"], "dimensions": 8, "purpose": "query"}"#,
        )
        .unwrap();
        assert_eq!(whole.model, "m");
        assert_eq!(whole.input, ["a", "b"]);
        assert_eq!(whole.dimensions, Some(8));
        assert_eq!(whole.purpose, domain::EmbeddingPurpose::Query);
        let plain = request(r#"{"model": "p/m", "input": ["a"]}"#).unwrap();
        assert_eq!(plain.purpose, domain::EmbeddingPurpose::Document);
        for (json, part) in [
            (r#"{"model": "m", "input": []}"#, "input is empty"),
            (r#"{"model": "m", "input": ["a", ""]}"#, "input[1] is empty"),
            (
                r#"{"model": "m", "input": ["a"], "dimensions": 0}"#,
                "dimensions is 0",
            ),
        ] {
            let error = request(json).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn vectors_say_who_made_them_and_what_they_took() {
        let made = Embeddings {
            model: None,
            vectors: vec![vec![0.5, -1.0]],
            input_tokens: Some(3),
        };
        let plain = embeddings(made.clone(), "p", "asked", Bill::default());
        assert_eq!(
            serde_json::to_string(&plain).unwrap(),
            r#"{"model":"asked","provider":"p","embeddings":[[0.5,-1.0]],"usage":{"inputTokens":3,"outputTokens":0}}"#
        );
        let bill = Bill {
            cost: Some(NanoUsd::new(60)),
            warnings: vec!["over".to_owned()],
            ..Bill::default()
        };
        let billed = embeddings(made, "p", "asked", bill);
        assert_eq!(
            (billed.cost_nano_usd, billed.warnings),
            (Some(60), vec!["over".to_owned()])
        );
    }
}
