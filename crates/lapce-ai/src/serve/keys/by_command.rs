//! A provider whose key a command prints.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use lapce_ai_providers::{
    BoxFuture, ChatRequest, ChatStream, EmbeddingRequest, Embeddings, ErrorKind, ModelInfo,
    Provider, ProviderError, SecretString,
};
use tokio::sync::Mutex;

use super::command::key_of;
use crate::config::KeyCommand;

type Connect = dyn Fn(SecretString) -> Result<Arc<dyn Provider>, ProviderError> + Send + Sync;

/// The provider is made when it is first asked for something, and anew when its key is too old or was refused.
pub(in crate::serve) struct ByCommand {
    name: String,
    command: KeyCommand,
    connect: Box<Connect>,
    /// Whoever finds it locked waits for the command that runs already.
    made: Mutex<Option<Made>>,
}

struct Made {
    provider: Arc<dyn Provider>,
    at: Instant,
}

impl ByCommand {
    /// `name` is the provider's, for errors; `connect` makes it of a key.
    pub(in crate::serve) fn new(
        name: &str,
        command: KeyCommand,
        connect: impl Fn(SecretString) -> Result<Arc<dyn Provider>, ProviderError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            command,
            connect: Box::new(connect),
            made: Mutex::new(None),
        }
    }

    async fn provider(&self) -> Result<Arc<dyn Provider>, ProviderError> {
        let mut made = self.made.lock().await;
        let fresh = |made: &&Made| self.command.ttl.is_none_or(|ttl| made.at.elapsed() < ttl);
        if let Some(made) = made.as_ref().filter(fresh) {
            return Ok(Arc::clone(&made.provider));
        }
        *made = None;
        tracing::debug!(
            provider = self.name,
            program = self.command.run.name(),
            "running the key command"
        );
        let provider = match key_of(&self.command).await {
            Ok(key) => (self.connect)(key),
            Err(error) => Err(error),
        };
        let provider = provider.map_err(|mut error| {
            error.provider = self.name.as_str().into();
            error
        })?;
        *made = Some(Made {
            provider: Arc::clone(&provider),
            at: Instant::now(),
        });
        Ok(provider)
    }

    /// A refused key is of no more use: the next request has the command run anew.
    async fn heard<T>(
        &self,
        asked: &Arc<dyn Provider>,
        outcome: Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        if matches!(&outcome, Err(error) if error.kind == ErrorKind::Authentication) {
            let mut made = self.made.lock().await;
            // Unless somebody else has got a new one meanwhile.
            if made
                .as_ref()
                .is_some_and(|made| Arc::ptr_eq(&made.provider, asked))
            {
                *made = None;
            }
        }
        outcome
    }
}

impl Provider for ByCommand {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            let provider = self.provider().await?;
            self.heard(&provider, provider.chat(request).await).await
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move {
            let provider = self.provider().await?;
            self.heard(&provider, provider.models().await).await
        })
    }

    fn embed<'a>(
        &'a self,
        request: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        Box::pin(async move {
            let provider = self.provider().await?;
            self.heard(&provider, provider.embed(request).await).await
        })
    }

    fn count_tokens<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<u64, ProviderError>> {
        Box::pin(async move {
            let provider = self.provider().await?;
            self.heard(&provider, provider.count_tokens(request).await)
                .await
        })
    }
}

impl fmt::Debug for ByCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByCommand")
            .field("name", &self.name)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}
