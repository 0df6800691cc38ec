//! Errors, in error answers and in streams.
//!
//! Source: <https://platform.claude.com/docs/en/api/errors>:
//! `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}`.

use serde_json::Value;

use crate::error::{ErrorKind, Phase, ProviderError};
use crate::wire::error::{classify, plain};

/// The error in a JSON document.
pub(super) fn from_json(document: &Value, status: Option<u16>) -> ProviderError {
    let inner = document
        .get("error")
        .filter(|error| !error.is_null())
        .unwrap_or(document);
    let message = match inner {
        Value::String(message) => message.clone(),
        _ => inner.get("message").map(plain).unwrap_or_default(),
    };
    // More exact where it is there, such as `enforced_spend_limit_reached`.
    let detail = inner.pointer("/details/error_code").and_then(Value::as_str);
    let r#type = inner.get("type").and_then(Value::as_str);
    let kind = kind(detail.unwrap_or(""), r#type.unwrap_or(""), &message)
        .unwrap_or_else(|| classify(status, "", r#type.unwrap_or(""), &message));
    let mut error = ProviderError::new(kind, message);
    error.code = detail.or(r#type).map(Into::into);
    error.status = status;
    error.request_id = document
        .get("request_id")
        .and_then(Value::as_str)
        .map(Into::into);
    error
}

/// What only Anthropic says so. `invalid_request_error` is many things, which its message tells apart.
fn kind(detail: &str, r#type: &str, message: &str) -> Option<ErrorKind> {
    if detail.ends_with("spend_limit_reached") {
        return Some(ErrorKind::QuotaExhausted);
    }
    let message = message.to_ascii_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| message.contains(sign));
    Some(match r#type {
        "billing_error" => ErrorKind::QuotaExhausted,
        "request_too_large" => ErrorKind::RequestTooLarge,
        "timeout_error" => ErrorKind::TimedOut(Phase::Upstream),
        // `model: claude-9`; anything else that is not found is an address.
        "not_found_error" if message.contains("model") => ErrorKind::ModelNotFound,
        "not_found_error" => ErrorKind::NotFound,
        "invalid_request_error"
            if says(&[
                "prompt is too long",
                "exceed context limit",
                "context window",
            ]) =>
        {
            ErrorKind::ContextLengthExceeded
        }
        "invalid_request_error" if says(&["credit balance", "usage limits", "spend limit"]) => {
            ErrorKind::QuotaExhausted
        }
        "invalid_request_error" if says(&["content filtering policy"]) => {
            ErrorKind::ContentFiltered
        }
        _ => return None,
    })
}
