//! Errors that come with a status of 200: events called `error`, and responses that failed.
//!
//! Sources: <https://platform.openai.com/docs/api-reference/responses-streaming/error> and
//! <https://platform.openai.com/docs/api-reference/responses/object>, `error`. Answers of another status are those of
//! chat completions.

use serde_json::Value;

use crate::error::{ErrorKind, ProviderError};
use crate::wire::openai::error::from_json;

/// The error in a whole answer or in an event: `{"error":{"code","message"}}`, or the fields themselves.
pub(super) fn failed(document: &str) -> ProviderError {
    let mut document: Value = serde_json::from_str(document).unwrap_or_default();
    // The event's own type is no word for an error.
    if let Some(fields) = document.as_object_mut()
        && fields.get("type").and_then(Value::as_str) == Some("error")
    {
        fields.remove("type");
    }
    let mut error = from_json(&document, None);
    if error.kind == ErrorKind::ProviderInternal
        && let Some(kind) = error
            .code
            .as_deref()
            .and_then(|code| kind(code, &error.message))
    {
        error.kind = kind;
    }
    if error.message.is_empty() {
        error.message = "the provider gave no reason for its failure".into();
    }
    error
}

/// The codes that only this API has. What is wrong with the request would otherwise be taken for the provider's fault.
fn kind(code: &str, message: &str) -> Option<ErrorKind> {
    Some(match code {
        "invalid_prompt" if message.contains("flagged") => ErrorKind::ContentFiltered,
        "bio_policy"
        | "cyber_policy"
        | "misalignment_policy_violation"
        | "image_content_policy_violation" => ErrorKind::ContentFiltered,
        "unsupported_image_media_type" | "empty_image_file" | "failed_to_download_image" => {
            ErrorKind::InvalidRequest
        }
        code if code.starts_with("image_") || code.starts_with("invalid_") => {
            ErrorKind::InvalidRequest
        }
        _ => return None,
    })
}
