//! Errors: a `google.rpc.Status` in JSON, with details that say more than its code.
//!
//! Source: <https://cloud.google.com/apis/design/errors>, <https://ai.google.dev/gemini-api/docs/troubleshooting>; reasons:
//! <https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto>.

use std::time::Duration;

use serde_json::Value;

use crate::error::{ErrorKind, Phase, ProviderError};
use crate::wire::error::{classify, plain};

/// The error in a JSON document: `{"error":{"code","message","status","details"}}`, alone or as the only element of an
/// array, as the answer of a streaming method; also in the middle of a stream.
pub(super) fn from_json(document: &Value, status: Option<u16>) -> ProviderError {
    let outer = document.get(0).unwrap_or(document);
    let inner = outer
        .get("error")
        .filter(|error| !error.is_null())
        .unwrap_or(outer);
    let text = |name: &str| inner.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = match inner {
        // Of a proxy, or of OAuth: {"error":"invalid_grant","error_description":"..."}.
        Value::String(error) => match outer.get("error_description") {
            Some(description) => format!("{error}: {}", plain(description)),
            None => error.clone(),
        },
        _ => inner.get("message").map(plain).unwrap_or_default(),
    };
    let details = Details(inner.get("details").and_then(Value::as_array));
    let reason = details.text("ErrorInfo", "reason");
    let number = inner.get("code").and_then(Value::as_u64);
    let number = number.and_then(|code| u16::try_from(code).ok());
    let status = status.or(number.filter(|code| (400..600).contains(code)));
    let kind = by_reason(reason)
        .or_else(|| by_status(text("status"), &message, details))
        .or_else(|| by_message(&message))
        .unwrap_or_else(|| classify(status, "", "", &message));
    let mut error = ProviderError::new(kind, details.explained(message));
    let code = [reason, text("status")]
        .into_iter()
        .find(|code| !code.is_empty());
    error.code = code.map(Into::into);
    error.status = status;
    error.retry_after = delay(details.text("RetryInfo", "retryDelay"));
    let id = details.text("RequestInfo", "requestId");
    error.request_id = Some(id).filter(|id| !id.is_empty()).map(Into::into);
    error
}

/// The list of details, each of a type of its own.
#[derive(Clone, Copy)]
struct Details<'a>(Option<&'a Vec<Value>>);

impl<'a> Details<'a> {
    fn of(self, name: &'static str) -> impl Iterator<Item = &'a Value> {
        let all = self.0.into_iter().flatten();
        all.filter(move |detail| {
            let r#type = detail.get("@type").and_then(Value::as_str);
            r#type.is_some_and(|r#type| r#type.rsplit(['.', '/']).next() == Some(name))
        })
    }

    fn text(self, name: &'static str, field: &str) -> &'a str {
        self.of(name)
            .find_map(|detail| detail.get(field)?.as_str())
            .unwrap_or_default()
    }

    /// What a `QuotaFailure` was about.
    fn violations(self) -> impl Iterator<Item = &'a Value> {
        let lists = self.of("QuotaFailure");
        lists.flat_map(|failure| failure["violations"].as_array().into_iter().flatten())
    }

    /// `message`, with the fields that are wrong where it does not name them itself.
    fn explained(self, mut message: String) -> String {
        let lists = self.of("BadRequest");
        let fields =
            lists.flat_map(|detail| detail["fieldViolations"].as_array().into_iter().flatten());
        for field in fields {
            let description = field["description"].as_str().unwrap_or_default();
            if !message.contains(description) {
                let name = field["field"].as_str().unwrap_or_default();
                message.push_str(&format!("; {name}: {description}"));
            }
        }
        message
    }
}

/// The kind that `ErrorInfo.reason` means, the most exact sign there is.
fn by_reason(reason: &str) -> Option<ErrorKind> {
    Some(match reason {
        // A wrong key comes as 400 INVALID_ARGUMENT.
        "API_KEY_INVALID"
        | "API_KEY_EXPIRED"
        | "API_KEY_NOT_FOUND"
        | "CREDENTIALS_MISSING"
        | "ACCESS_TOKEN_EXPIRED"
        | "ACCESS_TOKEN_TYPE_UNSUPPORTED"
        | "ACCOUNT_STATE_INVALID" => ErrorKind::Authentication,
        "API_KEY_SERVICE_BLOCKED"
        | "API_KEY_HTTP_REFERRER_BLOCKED"
        | "API_KEY_IP_ADDRESS_BLOCKED"
        | "SERVICE_DISABLED"
        | "SERVICE_NOT_VISIBLE"
        | "BILLING_DISABLED"
        | "CONSUMER_INVALID"
        | "CONSUMER_SUSPENDED"
        | "USER_PROJECT_DENIED"
        | "IAM_PERMISSION_DENIED"
        | "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
        | "LOCATION_POLICY_VIOLATED"
        | "SECURITY_POLICY_VIOLATED" => ErrorKind::Permission,
        "RATE_LIMIT_EXCEEDED" => ErrorKind::RateLimited,
        _ => return None,
    })
}

/// The kind that the `google.rpc.Code` means.
fn by_status(status: &str, message: &str, details: Details<'_>) -> Option<ErrorKind> {
    Some(match status {
        "RESOURCE_EXHAUSTED" => exhausted(message, details),
        "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => {
            return Some(by_message(message).unwrap_or(ErrorKind::InvalidRequest));
        }
        "UNAUTHENTICATED" => ErrorKind::Authentication,
        "PERMISSION_DENIED" => {
            return Some(by_message(message).unwrap_or(ErrorKind::Permission));
        }
        // models/x is not found for API version v1beta; Publisher Model `projects/..` was not found.
        "NOT_FOUND" if message.to_ascii_lowercase().contains("model") => ErrorKind::ModelNotFound,
        "NOT_FOUND" => ErrorKind::NotFound,
        "UNAVAILABLE" => ErrorKind::Overloaded,
        "DEADLINE_EXCEEDED" => ErrorKind::TimedOut(Phase::Upstream),
        "UNIMPLEMENTED" => ErrorKind::Unsupported,
        "INTERNAL" | "UNKNOWN" | "DATA_LOSS" | "ABORTED" | "CANCELLED" => {
            ErrorKind::ProviderInternal
        }
        _ => return None,
    })
}

/// What only words tell.
fn by_message(message: &str) -> Option<ErrorKind> {
    let message = message.to_ascii_lowercase();
    let says = |signs: &[&str]| signs.iter().any(|sign| message.contains(sign));
    Some(match () {
        // The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).
        () if message.contains("token count") && message.contains("exceed") => {
            ErrorKind::ContextLengthExceeded
        }
        () if says(&["payload size exceeds", "request size exceeds"]) => ErrorKind::RequestTooLarge,
        () if says(&[
            "api key not valid",
            "api key expired",
            "api key not found",
            "api key was reported as leaked",
            // No key at all.
            "unregistered callers",
        ]) =>
        {
            ErrorKind::Authentication
        }
        () if says(&["location is not supported"]) => ErrorKind::Permission,
        () => return None,
    })
}

/// A limit per minute passes, one per day or of money does not soon. The message is the same for all of them.
fn exhausted(message: &str, details: Details<'_>) -> ErrorKind {
    let lasting = |violation: &Value| {
        let id = violation["quotaId"].as_str().unwrap_or_default();
        id.contains("PerDay") || violation["quotaValue"] == "0"
    };
    let message = message.to_ascii_lowercase();
    let spent = ["spending cap", "spend cap", "credits are depleted"];
    if details.violations().any(lasting) || spent.iter().any(|sign| message.contains(sign)) {
        ErrorKind::QuotaExhausted
    } else {
        ErrorKind::RateLimited
    }
}

/// A `google.protobuf.Duration`: seconds, up to nine decimals, and an `s`. `0s` is as if it were not there.
fn delay(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    let delay = Duration::try_from_secs_f64(seconds).ok()?;
    (!delay.is_zero()).then_some(delay)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(document: &Value) -> ErrorKind {
        from_json(document, None).kind
    }

    #[test]
    fn every_code_has_a_kind() {
        for (status, expected) in [
            ("INVALID_ARGUMENT", ErrorKind::InvalidRequest),
            ("FAILED_PRECONDITION", ErrorKind::InvalidRequest),
            ("OUT_OF_RANGE", ErrorKind::InvalidRequest),
            ("UNAUTHENTICATED", ErrorKind::Authentication),
            ("PERMISSION_DENIED", ErrorKind::Permission),
            ("NOT_FOUND", ErrorKind::NotFound),
            ("RESOURCE_EXHAUSTED", ErrorKind::RateLimited),
            ("CANCELLED", ErrorKind::ProviderInternal),
            ("INTERNAL", ErrorKind::ProviderInternal),
            ("UNIMPLEMENTED", ErrorKind::Unsupported),
            ("UNAVAILABLE", ErrorKind::Overloaded),
            ("DEADLINE_EXCEEDED", ErrorKind::TimedOut(Phase::Upstream)),
        ] {
            assert_eq!(
                kind(&json!({"error": {"message": "m", "status": status}})),
                expected
            );
        }
    }

    #[test]
    fn forms_that_are_not_googles_are_read_as_far_as_they_go() {
        let error = from_json(
            &json!({"error": "invalid_grant", "error_description": "Bad token"}),
            Some(401),
        );
        assert_eq!(
            (error.kind, &*error.message),
            (ErrorKind::Authentication, "invalid_grant: Bad token")
        );
        for nonsense in [
            json!(null),
            json!([]),
            json!({}),
            json!(1),
            json!("x"),
            json!({"error": {"code": 9e9, "details": [1, {"@type": 2}], "status": 3}}),
        ] {
            assert_eq!(from_json(&nonsense, Some(503)).kind, ErrorKind::Overloaded);
        }
    }

    #[test]
    fn delays() {
        assert_eq!(delay("34.4s"), Some(Duration::from_millis(34_400)));
        for nonsense in ["", "s", "34", "0s", "-1s", "infs", "NaNs"] {
            assert_eq!(delay(nonsense), None, "{nonsense}");
        }
    }
}
