//! Errors: a status and `{"message": "..."}`.
//!
//! Source: <https://docs.cohere.com/v2/reference/errors>.

use serde_json::Value;

use crate::error::{ErrorKind, ProviderError};
use crate::wire::error::{classify, plain};

/// The error in a JSON document, which may stand in an error answer or in a stream.
pub(super) fn from_json(document: &Value, status: Option<u16>) -> ProviderError {
    let text = |name: &str| document.get(name).filter(|value| !value.is_null());
    let message = match document {
        Value::String(message) => message.clone(),
        _ => text("message").map(plain).unwrap_or_default(),
    };
    let mut error = ProviderError::new(kind(status, &message), message);
    error.status = status;
    error.request_id = text("id").and_then(Value::as_str).map(Into::into);
    error
}

fn kind(status: Option<u16>, message: &str) -> ErrorKind {
    let lower = message.to_ascii_lowercase();
    match status {
        // A limit on the answer that is above the model's is told in the same words.
        None | Some(400)
            if lower.starts_with("too many tokens") && !lower.contains("max tokens must") =>
        {
            ErrorKind::ContextLengthExceeded
        }
        // Trial keys have a limit a month.
        Some(429) if lower.contains("/ month") || lower.contains("per month") => {
            ErrorKind::QuotaExhausted
        }
        // A word on Cohere's list of forbidden ones, in the prompt or the answer.
        Some(498) => ErrorKind::ContentFiltered,
        // Cancelled by whoever stands between us.
        Some(499) => ErrorKind::ConnectionFailed,
        Some(501) => ErrorKind::Unsupported,
        _ => classify(status, "", "", message),
    }
}
