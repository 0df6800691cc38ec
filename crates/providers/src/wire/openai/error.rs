//! Errors of chat completions servers, in the many forms that they take.
//!
//! Source: <https://platform.openai.com/docs/guides/error-codes>; the other forms are named where they are read.

use serde_json::Value;

use crate::error::ProviderError;
use crate::wire::error::{classify, plain};

/// The error in a JSON document, which may stand in an error answer, in an answer of status 200 or in a stream.
pub(in crate::wire) fn from_json(document: &Value, status: Option<u16>) -> ProviderError {
    // Gemini's compatible endpoint wraps the object in an array.
    let outer = document.get(0).unwrap_or(document);
    let inner = outer
        .get("error")
        .filter(|error| !error.is_null())
        .unwrap_or(outer);
    let text = |name: &str| {
        inner
            .get(name)
            .or_else(|| outer.get(name))
            .filter(|value| !value.is_null())
    };
    // OpenAI: {"error":{"message","type","code"}}; vLLM, Mistral: {"object":"error","message","type","code"};
    // Ollama: {"error":"..."}; xAI: {"code":"...","error":"..."}; FastAPI: {"detail": ...}.
    let message = match inner {
        Value::String(message) => message.clone(),
        _ => text("message")
            .or_else(|| text("detail"))
            .map(plain)
            .unwrap_or_default(),
    };
    let code = text("code").map(plain);
    let r#type = text("type").map(plain);
    // The number in `code` is the status that a stream can no longer have (OpenRouter, llama.cpp, vLLM).
    let number = code
        .as_ref()
        .and_then(|code| code.parse().ok())
        .filter(|code| (400..600).contains(code));
    let (code_text, type_text) = (
        code.as_deref().unwrap_or(""),
        r#type.as_deref().unwrap_or(""),
    );
    let kind = classify(status.or(number), code_text, type_text, &message);
    // OpenRouter hides what the provider behind it said.
    let raw = inner
        .pointer("/metadata/raw")
        .map(plain)
        .filter(|raw| !raw.is_empty() && *raw != message);
    let message = match (raw, filtered(inner)) {
        (Some(raw), _) => format!("{message}: {raw}"),
        (None, Some(found)) => format!("{message} (filtered: {found})"),
        (None, None) => message,
    };
    let mut error = ProviderError::new(kind, message);
    error.code = code.filter(|_| number.is_none()).or(r#type).map(Into::into);
    error.status = status.or(number);
    error
}

/// What Azure's filter found:
/// `{"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true}}}}`.
///
/// Source: <https://learn.microsoft.com/en-us/azure/foundry/openai/concepts/content-filter>.
fn filtered(error: &Value) -> Option<String> {
    let verdicts = error.pointer("/innererror/content_filter_result")?;
    let found = verdicts.as_object()?.iter();
    let found = found.filter(|(_, verdict)| verdict["filtered"] == true);
    let found: Vec<_> = found.map(|(name, _)| name.as_str()).collect();
    (!found.is_empty()).then(|| found.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::error::ErrorKind;
    use crate::wire::error::from_response;

    fn error(status: u16, headers: &[(&str, &str)], body: &str) -> ProviderError {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let (head, ()) = response.body(()).unwrap().into_parts();
        from_response(&head, body.as_bytes(), SystemTime::UNIX_EPOCH, from_json)
    }

    fn kind(status: u16, body: &str) -> ErrorKind {
        error(status, &[], body).kind
    }

    #[test]
    fn openai_in_its_own_words() {
        let error = error(
            429,
            &[("retry-after-ms", "1500"), ("x-request-id", "req_1")],
            r#"{"error":{"message":"Rate limit reached for gpt-x","type":"requests","param":null,
                "code":"rate_limit_exceeded"}}"#,
        );
        assert_eq!(error.kind, ErrorKind::RateLimited);
        assert_eq!(&*error.message, "Rate limit reached for gpt-x");
        assert_eq!(error.code.as_deref(), Some("rate_limit_exceeded"));
        assert_eq!(
            (error.status, error.retry_after),
            (Some(429), Some(Duration::from_millis(1500)))
        );
        assert_eq!(error.request_id.as_deref(), Some("req_1"));

        let body = |r#type: &str, code: &str| {
            format!(r#"{{"error":{{"message":"m","type":"{type}","param":null,"code":{code}}}}}"#)
        };
        for (status, r#type, code, expected) in [
            (
                429,
                "insufficient_quota",
                r#""insufficient_quota""#,
                ErrorKind::QuotaExhausted,
            ),
            (429, "tokens", "null", ErrorKind::RateLimited),
            (
                400,
                "invalid_request_error",
                r#""context_length_exceeded""#,
                ErrorKind::ContextLengthExceeded,
            ),
            (
                400,
                "invalid_request_error",
                r#""unsupported_parameter""#,
                ErrorKind::InvalidRequest,
            ),
            (
                400,
                "invalid_request_error",
                r#""content_filter""#,
                ErrorKind::ContentFiltered,
            ),
            (
                401,
                "invalid_request_error",
                r#""invalid_api_key""#,
                ErrorKind::Authentication,
            ),
            (403, "invalid_request_error", "null", ErrorKind::Permission),
            (
                404,
                "invalid_request_error",
                r#""model_not_found""#,
                ErrorKind::ModelNotFound,
            ),
            (404, "invalid_request_error", "null", ErrorKind::NotFound),
            (500, "server_error", "null", ErrorKind::ProviderInternal),
            (503, "server_error", "null", ErrorKind::Overloaded),
        ] {
            assert_eq!(
                kind(status, &body(r#type, code)),
                expected,
                "{status} {type} {code}"
            );
        }
    }

    #[test]
    fn the_status_alone() {
        use crate::error::Phase;
        let upstream = ErrorKind::TimedOut(Phase::Upstream);
        for (status, expected) in [
            (400, ErrorKind::InvalidRequest),
            (401, ErrorKind::Authentication),
            (402, ErrorKind::QuotaExhausted),
            (403, ErrorKind::Permission),
            (404, ErrorKind::NotFound),
            (408, upstream),
            (413, ErrorKind::RequestTooLarge),
            (422, ErrorKind::InvalidRequest),
            (429, ErrorKind::RateLimited),
            (500, ErrorKind::ProviderInternal),
            (502, ErrorKind::ProviderInternal),
            (503, ErrorKind::Overloaded),
            (504, upstream),
            (529, ErrorKind::Overloaded),
        ] {
            let page = "<html><head><TITLE>Oh no</TITLE></head><body>nginx</body></html>";
            for body in ["", page, "{}", "null", "[]", "[1]", "\u{0}"] {
                assert_eq!(kind(status, body), expected, "{status} {body:?}");
            }
            assert_eq!(&*error(status, &[], page).message, "Oh no");
            assert_eq!(&*error(status, &[], "").message, "");
            assert_eq!(&*error(status, &[], "<p>no title</p>").message, "");
        }
    }

    #[test]
    fn the_forms_of_other_servers() {
        let too_long = ErrorKind::ContextLengthExceeded;
        for (status, body, expected) in [
            (
                404,
                r#"{"error":"model \"x\" not found, try pulling it first"}"#,
                ErrorKind::ModelNotFound,
            ),
            (
                404,
                r#"{"object":"error","message":"The model `x` does not exist.","code":404}"#,
                ErrorKind::ModelNotFound,
            ),
            (
                400,
                r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: ab***"}"#,
                ErrorKind::Authentication,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":
                "exceed_context_size_error","n_ctx":4096}}"#,
                too_long,
            ),
            (
                400,
                r#"{"object":"error","message":"Prompt contains 40000 tokens and 0 draft tokens, too large for
                model with 32768 maximum context length","type":"invalid_request_error","code":"3051"}"#,
                too_long,
            ),
            (
                422,
                r#"{"detail":[{"loc":["body","x"],"msg":"field required"}]}"#,
                ErrorKind::InvalidRequest,
            ),
            (
                400,
                r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}]"#,
                ErrorKind::Authentication,
            ),
            (
                402,
                r#"{"error":{"message":"Insufficient Balance","type":"unknown_error"}}"#,
                ErrorKind::QuotaExhausted,
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"Your input was flagged"}}"#,
                ErrorKind::ContentFiltered,
            ),
        ] {
            assert_eq!(kind(status, body), expected, "{body}");
        }
        let error = error(
            429,
            &[],
            r#"{"error":{"message":"Provider returned error","code":429,"metadata":{"raw":"busy","provider_name":"X"}}}"#,
        );
        assert_eq!(
            (&*error.message, error.code),
            ("Provider returned error: busy", None)
        );
    }

    #[test]
    fn a_redirect_names_its_goal() {
        let error = error(308, &[("location", "https://b/v1")], "");
        assert_eq!(error.kind, ErrorKind::Configuration);
        assert!(error.message.contains("https://b/v1"));
    }
}
