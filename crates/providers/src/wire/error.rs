//! What the errors of all formats have in common: the head of the answer, bodies that are no JSON, and the signs by
//! which a kind is known.

use std::time::SystemTime;

use http::response::Parts;
use serde_json::Value;

use super::retry_after;
use crate::error::{ErrorKind, ProviderError};

/// How vLLM, DeepSeek, Together and OpenRouter; llama.cpp; Mistral; xAI; Ollama say that a conversation is too long.
const TOO_LONG: &[&str] = &[
    "maximum context length",
    "exceeds the available context",
    "too large for model with",
    "maximum prompt length",
    "exceeds the context window",
    "exceeds the context length",
];

/// The error of an answer whose status is not 2xx. `from_json` reads the body where it is JSON.
pub(crate) fn from_response(
    head: &Parts,
    body: &[u8],
    now: SystemTime,
    from_json: impl FnOnce(&Value, Option<u16>) -> ProviderError,
) -> ProviderError {
    let status = head.status.as_u16();
    let mut error = match serde_json::from_slice::<Value>(body) {
        Ok(value) => from_json(&value, Some(status)),
        Err(_) => from_text(&String::from_utf8_lossy(body), status),
    };
    if head.status.is_redirection() {
        let to = head
            .headers
            .get(http::header::LOCATION)
            .and_then(|to| to.to_str().ok())
            .unwrap_or("nowhere");
        error = ProviderError::new(
            ErrorKind::Configuration,
            format!("the base URL redirects to {to}; use that"),
        );
    }
    error.status = Some(status);
    // Google says it in the body.
    error.retry_after = retry_after(&head.headers, now).or(error.retry_after);
    let id = [
        "x-request-id",
        "request-id",
        "x-amzn-requestid",
        "apim-request-id",
        "x-debug-trace-id",
    ]
    .into_iter()
    .find_map(|name| head.headers.get(name));
    let id = id.and_then(|id| id.to_str().ok()).map(Into::into);
    error.request_id = id.or(error.request_id);
    error
}

/// The error of a body that is no JSON: nothing, a line of text, or a proxy's web page.
fn from_text(body: &str, status: u16) -> ProviderError {
    let lower = body.to_ascii_lowercase();
    let message = match (lower.find("<title>"), lower.find("</title>")) {
        (Some(start), Some(end)) if start + 7 <= end => &body[start + 7..end],
        _ if lower.trim_start().starts_with('<') => "",
        _ => body,
    };
    ProviderError::new(classify(Some(status), "", "", message), message)
}

/// A value as a person reads it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The kind of an error, most telling sign first: code, type, message, then status.
pub(crate) fn classify(status: Option<u16>, code: &str, r#type: &str, message: &str) -> ErrorKind {
    for sign in [code, r#type] {
        let kind = match sign {
            "insufficient_quota"
            | "billing_hard_limit_reached"
            | "insufficient_balance"
            | "credit_limit" => ErrorKind::QuotaExhausted,
            "rate_limit_exceeded" | "rate_limit_error" | "too_many_requests" | "rate_limited" => {
                ErrorKind::RateLimited
            }
            "context_length_exceeded" | "exceed_context_size_error" | "string_above_max_length" => {
                ErrorKind::ContextLengthExceeded
            }
            "model_not_found" | "invalid_model" | "DeploymentNotFound" => ErrorKind::ModelNotFound,
            "invalid_api_key" | "authentication_error" | "invalid_authentication" => {
                ErrorKind::Authentication
            }
            "content_filter"
            | "content_policy_violation"
            | "responsible_ai_policy_violation"
            | "ResponsibleAIPolicyViolation" => ErrorKind::ContentFiltered,
            "overloaded_error" | "engine_overloaded" | "capacity_exceeded"
            | "unavailable_error" => ErrorKind::Overloaded,
            "permission_error"
            | "permission_denied"
            | "PermissionDenied"
            | "unsupported_country_region_territory" => ErrorKind::Permission,
            _ => continue,
        };
        return kind;
    }
    let message = message.to_ascii_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| message.contains(sign));
    match status {
        None | Some(400 | 403 | 413 | 422 | 500) if says(TOO_LONG) => {
            ErrorKind::ContextLengthExceeded
        }
        // Ollama: model "x" not found, try pulling it first. vLLM: The model `x` does not exist.
        Some(400 | 404)
            if message.contains("model")
                && says(&["not found", "not exist", "not a valid model"]) =>
        {
            ErrorKind::ModelNotFound
        }
        Some(400) if says(&["incorrect api key", "invalid api key", "api key not valid"]) => {
            ErrorKind::Authentication
        }
        Some(403) if says(&["requires moderation", "was flagged", "content policy"]) => {
            ErrorKind::ContentFiltered
        }
        Some(403 | 412 | 429)
            if says(&[
                "account is suspended",
                "exceeded your current quota",
                "insufficient balance",
                "credit balance",
            ]) =>
        {
            ErrorKind::QuotaExhausted
        }
        Some(status) => ErrorKind::from_status(status),
        None if code == "invalid_request_error" || r#type == "invalid_request_error" => {
            ErrorKind::InvalidRequest
        }
        None => ErrorKind::ProviderInternal,
    }
}

/// An answer that is not in the provider's documented form.
pub(crate) fn malformed(message: impl AsRef<str>) -> ProviderError {
    ProviderError::new(ErrorKind::MalformedResponse, message)
}

/// The same, of JSON that is no JSON or has another shape.
#[allow(
    clippy::needless_pass_by_value,
    reason = "has the form that map_err wants"
)]
pub(crate) fn not_understood(error: serde_json::Error) -> ProviderError {
    malformed(format!("the answer is not in the documented form: {error}"))
}

/// A stream that ended without its end mark.
pub(crate) fn cut() -> ProviderError {
    ProviderError::new(
        ErrorKind::StreamCut,
        "the stream ended before the answer was complete",
    )
}
