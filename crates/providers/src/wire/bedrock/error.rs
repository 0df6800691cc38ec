//! Errors: of answers, and of streams.
//!
//! Source: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_Errors>
//! and <https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html>. Which error it is stands in
//! `x-amzn-errortype`, else in `__type` or `code` of the body.

use http::response::Parts;
use serde_json::Value;

use crate::error::{ErrorKind, Phase, ProviderError};
use crate::wire::error::classify;

/// How the models' makers say that a conversation is too long: Titan and Llama; Claude; Claude with the answer's
/// tokens counted in; Nova; Mistral and others.
const TOO_LONG: &[&str] = &[
    "input is too long",
    "prompt is too long",
    "exceed context limit",
    "input tokens exceed",
    "maximum context length",
];

/// The error's name in the head of an answer; empty where it has none.
pub(super) fn name(head: &Parts) -> &str {
    let name = head.headers.get("x-amzn-errortype");
    bare(name.and_then(|name| name.to_str().ok()).unwrap_or(""))
}

/// `ThrottlingException:http://internal.amazon.com/...` and `com.amazon.coral.service#ThrottlingException` are the same.
fn bare(name: &str) -> &str {
    let name = name.split(':').next().unwrap_or("");
    name.rsplit('#').next().unwrap_or("").trim()
}

/// The error in the body of an answer.
pub(super) fn from_json(document: &Value, name: &str, status: Option<u16>) -> ProviderError {
    let text = |names: &[&str]| {
        let mut texts = names.iter().filter_map(|name| document.get(name)?.as_str());
        texts.next().unwrap_or("")
    };
    let name = if name.is_empty() {
        bare(text(&["__type", "code"]))
    } else {
        name
    };
    let message = text(&["message", "Message", "errorMessage"]);
    new(name, message, status)
}

/// An exception of the service's model within a stream. Their names begin with a small letter there.
pub(super) fn from_exception(name: &str, payload: &str) -> ProviderError {
    let mut letters = bare(name).chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    let name: String = first.into_iter().chain(letters).collect();
    match serde_json::from_str(payload) {
        Ok(document) => from_json(&document, &name, None),
        Err(_) => new(&name, payload, None),
    }
}

/// An error within a stream that is in no model.
pub(super) fn from_stream_error(code: &str, message: &str) -> ProviderError {
    new(bare(code), message, None)
}

fn new(name: &str, message: &str, status: Option<u16>) -> ProviderError {
    let mut error = ProviderError::new(kind(name, message, status), message);
    error.code = Some(name).filter(|name| !name.is_empty()).map(Into::into);
    error
}

fn kind(name: &str, message: &str, status: Option<u16>) -> ErrorKind {
    let message = message.to_ascii_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| message.contains(sign));
    match name {
        // The day's tokens; waiting a little does not help.
        "ThrottlingException" if says(&["per day"]) => ErrorKind::QuotaExhausted,
        "ThrottlingException" | "TooManyRequestsException" => ErrorKind::RateLimited,
        "ServiceQuotaExceededException" => ErrorKind::QuotaExhausted,
        "ModelNotReadyException" | "ServiceUnavailableException" | "ServiceUnavailable" => {
            ErrorKind::Overloaded
        }
        "ModelTimeoutException" => ErrorKind::TimedOut(Phase::Upstream),
        "ModelErrorException"
        | "ModelStreamErrorException"
        | "InternalServerException"
        | "InternalFailure" => ErrorKind::ProviderInternal,
        "ResourceNotFoundException" => ErrorKind::ModelNotFound,
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "RequestExpired"
        | "ExpiredToken"
        | "ExpiredTokenException" => ErrorKind::Authentication,
        // So it is called when an API key is wrong, too.
        "AccessDeniedException" if says(&["authentication failed", "api key"]) => {
            ErrorKind::Authentication
        }
        "AccessDeniedException" | "NotAuthorized" | "OptInRequired" => ErrorKind::Permission,
        "ValidationException" if says(TOO_LONG) => ErrorKind::ContextLengthExceeded,
        "ValidationException" if says(&["model identifier is invalid"]) => ErrorKind::ModelNotFound,
        "ValidationException" | "ValidationError" => ErrorKind::InvalidRequest,
        "UnknownOperationException" => ErrorKind::NotFound,
        _ => classify(status, name, "", &message),
    }
}
