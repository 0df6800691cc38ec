//! Bodies of typed requests and answers, the same for both clients.

use std::time::Duration;

use lapce_ai_proto::ai::ModelsRequest;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ClientError;

pub(crate) fn models_body(provider: Option<&str>) -> Result<Vec<u8>, ClientError> {
    Ok(match provider {
        None => Vec::new(),
        Some(provider) => serde_json::to_vec(&ModelsRequest {
            provider: Some(provider.to_owned()),
        })?,
    })
}

pub(crate) fn shutdown_body(drain: Option<Duration>) -> Vec<u8> {
    drain.map_or_else(Vec::new, |drain| {
        format!(r#"{{"drainMs":{}}}"#, drain.as_millis()).into_bytes()
    })
}

/// The answer to a restart.
#[derive(Debug, Deserialize)]
pub(crate) struct Restarted {
    /// The process that has taken over.
    pub(crate) pid: u32,
}

/// The one item of a stream.
pub(crate) fn single<T: DeserializeOwned>(
    item: Option<Result<Vec<u8>, ClientError>>,
) -> Result<T, ClientError> {
    Ok(serde_json::from_slice(&item.unwrap_or(Ok(Vec::new()))?)?)
}
