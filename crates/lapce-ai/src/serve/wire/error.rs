//! What went wrong: from the providers' errors to the protocol's.

use lapce_ai_proto::{ErrorBody, ErrorCode};
use lapce_ai_providers::{CatalogError, ErrorKind, Phase, ProviderError};

/// What a provider's error is for a client.
pub(in crate::serve) fn provider_error(error: &ProviderError) -> ErrorBody {
    let code = match error.kind {
        ErrorKind::Authentication => ErrorCode::AuthenticationFailed,
        ErrorKind::Permission => ErrorCode::ProviderDenied,
        ErrorKind::ModelNotFound => ErrorCode::ModelNotFound,
        ErrorKind::InvalidRequest | ErrorKind::RequestTooLarge => ErrorCode::ProviderRejected,
        ErrorKind::ContextLengthExceeded => ErrorCode::ContextTooLong,
        ErrorKind::RateLimited => ErrorCode::RateLimited,
        ErrorKind::QuotaExhausted => ErrorCode::QuotaExhausted,
        ErrorKind::BudgetSpent => ErrorCode::BudgetSpent,
        ErrorKind::Overloaded => ErrorCode::ProviderOverloaded,
        ErrorKind::Shed | ErrorKind::NoResources => ErrorCode::Overloaded,
        ErrorKind::ContentFiltered => ErrorCode::ContentFiltered,
        // A wrong address, too: the advice is to check the base URL.
        ErrorKind::ConnectionFailed | ErrorKind::NotFound | ErrorKind::TimedOut(Phase::Connect) => {
            ErrorCode::ProviderUnreachable
        }
        ErrorKind::TimedOut(Phase::Deadline) => ErrorCode::DeadlineExceeded,
        ErrorKind::TimedOut(_) => ErrorCode::ProviderTimeout,
        ErrorKind::StreamCut => ErrorCode::StreamCut,
        ErrorKind::MalformedResponse => ErrorCode::ProviderMalformed,
        ErrorKind::Unsupported => ErrorCode::Unsupported,
        // The provider cannot be used as it is configured.
        ErrorKind::Configuration => ErrorCode::NoProvider,
        // `ProviderInternal`, `CircuitOpen`, and kinds that come later.
        _ => ErrorCode::ProviderFailed,
    };
    let whole = error.to_string();
    let message = whole
        .strip_prefix(&format!("{}: ", error.provider))
        .unwrap_or(&whole);
    ErrorBody {
        provider: Some(error.provider.clone()).filter(|name| !name.is_empty()),
        status: error.status,
        provider_code: error.code.clone(),
        request_id: error.request_id.clone(),
        retry_after_ms: error
            .retry_after
            .map(|wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)),
        ..ErrorBody::new(code, message)
    }
}

/// What a model's name that leads nowhere is for a client.
pub(in crate::serve) fn catalog_error(error: &CatalogError) -> ErrorBody {
    let code = match error {
        CatalogError::Empty => ErrorCode::NoProvider,
        CatalogError::TooLong { .. } => ErrorCode::InvalidRequest,
        _ => ErrorCode::ModelNotFound,
    };
    ErrorBody::new(code, error.to_string())
}

/// An answer that ended too early, which a sound provider reports itself.
pub(in crate::serve) fn without_finish(provider: &str) -> ErrorBody {
    let body = ErrorBody::new(
        ErrorCode::StreamCut,
        "the answer ended without its end mark",
    );
    ErrorBody {
        provider: Some(provider.into()),
        ..body
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn errors_keep_what_the_provider_said() {
        let mut error = ProviderError::new(ErrorKind::RateLimited, "slow down");
        error.provider = "groq".into();
        error.status = Some(429);
        error.code = Some("rate_limit_exceeded".into());
        error.request_id = Some("req_1".into());
        error.retry_after = Some(Duration::from_millis(1500));
        let body = provider_error(&error);
        assert_eq!(
            (body.code, body.status, body.retry_after_ms),
            (ErrorCode::RateLimited, Some(429), Some(1500))
        );
        assert_eq!(body.provider.as_deref(), Some("groq"));
        assert_eq!(body.provider_code.as_deref(), Some("rate_limit_exceeded"));
        assert_eq!(body.request_id.as_deref(), Some("req_1"));
        assert_eq!(
            body.message,
            "too many requests (HTTP 429): slow down; try again in 2 s"
        );
        for (kind, code) in [
            (
                ErrorKind::TimedOut(Phase::Connect),
                ErrorCode::ProviderUnreachable,
            ),
            (
                ErrorKind::TimedOut(Phase::NextToken),
                ErrorCode::ProviderTimeout,
            ),
            (
                ErrorKind::TimedOut(Phase::Deadline),
                ErrorCode::DeadlineExceeded,
            ),
            (ErrorKind::NoResources, ErrorCode::Overloaded),
            (ErrorKind::ProviderInternal, ErrorCode::ProviderFailed),
            (ErrorKind::CircuitOpen, ErrorCode::ProviderFailed),
            (ErrorKind::Configuration, ErrorCode::NoProvider),
        ] {
            assert_eq!(provider_error(&ProviderError::new(kind, "")).code, code);
        }
        assert_eq!(
            catalog_error(&CatalogError::Empty).code,
            ErrorCode::NoProvider
        );
        let too_long = CatalogError::TooLong {
            beginning: "m".into(),
            bytes: 257,
        };
        assert_eq!(catalog_error(&too_long).code, ErrorCode::InvalidRequest);
    }
}
