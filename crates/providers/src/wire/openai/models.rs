//! The list of models: `GET {base}/models`.
//!
//! Source: <https://platform.openai.com/docs/api-reference/models/list>.

use serde_json::Value;

use crate::chat::ModelInfo;
use crate::error::{ErrorKind, ProviderError};

/// Reads a list. Together sends a bare array, older Ollamas `null` where there are none.
pub(in crate::wire) fn decode(body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError> {
    let malformed = |message: String| ProviderError::new(ErrorKind::MalformedResponse, message);
    let document: Value = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the list of models is no JSON: {error}")))?;
    let entries = match document.get("data").unwrap_or(&document) {
        Value::Array(entries) => entries.as_slice(),
        Value::Null => &[],
        _ => return Err(malformed("the answer is no list of models".into())),
    };
    Ok(entries.iter().filter_map(model).collect())
}

/// Whether `body` is a list of models without doubt, for probing a port where anything may listen.
pub(crate) fn looks_like_a_model_list(body: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return false;
    };
    if document.get("object").and_then(Value::as_str) != Some("list") {
        return false;
    }
    match document.get("data") {
        Some(Value::Array(entries)) => entries.iter().all(|entry| model(entry).is_some()),
        Some(Value::Null) => true,
        _ => false,
    }
}

fn model(entry: &Value) -> Option<ModelInfo> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).map(Into::into);
    // Fireworks, OpenRouter, Together; Groq; Mistral; vLLM; llama.cpp.
    let context = [
        "/context_length",
        "/context_window",
        "/max_context_length",
        "/max_model_len",
        "/meta/n_ctx_train",
    ];
    // Groq; OpenRouter.
    let output = [
        "/max_completion_tokens",
        "/top_provider/max_completion_tokens",
    ];
    let number = |places: &[&str]| {
        places
            .iter()
            .find_map(|place| entry.pointer(place).and_then(Value::as_u64))
    };
    Some(ModelInfo {
        id: text("id").filter(|id: &String| !id.is_empty())?,
        display_name: text("display_name").or_else(|| text("name")),
        owner: text("owned_by"),
        context_length: number(&context),
        max_output_tokens: number(&output),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_many_servers() {
        let openai = br#"{"object":"list","data":[{"id":"gpt-x","object":"model","created":1,"owned_by":"openai"}]}"#;
        let expected = ModelInfo {
            id: "gpt-x".into(),
            owner: Some("openai".into()),
            ..ModelInfo::default()
        };
        assert_eq!(decode(openai).unwrap(), [expected]);
        let router = br#"{"data":[{"id":"a/b","name":"B","context_length":8,"top_provider":{"max_completion_tokens":4}}]}"#;
        let model = &decode(router).unwrap()[0];
        assert_eq!(
            (
                model.display_name.as_deref(),
                model.context_length,
                model.max_output_tokens
            ),
            (Some("B"), Some(8), Some(4))
        );
        assert_eq!(
            decode(br#"[{"id":"x"},{"id":""},{"object":"model"}]"#)
                .unwrap()
                .len(),
            1
        );
        assert_eq!(decode(br#"{"object":"list","data":null}"#).unwrap(), []);
        for wrong in [&b""[..], b"<html>", b"{}", br#"{"data":{}}"#, b"3"] {
            assert_eq!(
                decode(wrong).unwrap_err().kind,
                ErrorKind::MalformedResponse
            );
        }
    }

    #[test]
    fn a_probe_is_not_easily_pleased() {
        assert!(looks_like_a_model_list(
            br#"{"object":"list","data":[{"id":"x"}],"models":[]}"#
        ));
        assert!(looks_like_a_model_list(br#"{"object":"list","data":null}"#));
        for wrong in [
            &b"[]"[..],
            b"{}",
            br#"{"object":"list"}"#,
            br#"{"object":"list","data":[{"name":"x"}]}"#,
            b"OK",
        ] {
            assert!(!looks_like_a_model_list(wrong));
        }
    }
}
