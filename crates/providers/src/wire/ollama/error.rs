//! Errors: `{"error": "..."}`, with a status or as a line of a stream.
//!
//! Source: <https://docs.ollama.com/api/errors>.

use serde_json::Value;

use crate::error::{ErrorKind, ProviderError};
use crate::wire::error::{classify, plain};

/// The error in a JSON document.
pub(super) fn from_json(document: &Value, status: Option<u16>) -> ProviderError {
    let message = document.get("error").filter(|error| !error.is_null());
    let message = message.map(plain).unwrap_or_default();
    let kind = match status {
        // Tools, thinking, images: the model's matter, not the server's.
        Some(400) if message.contains("does not support") => ErrorKind::Unsupported,
        _ => classify(status, "", "", &message),
    };
    let mut error = ProviderError::new(kind, message);
    error.status = status;
    error
}
