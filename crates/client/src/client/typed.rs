//! Requests and answers as types, over [`Client`]'s `call` and `stream`.

use std::time::Duration;

use lapce_ai_proto::MessageType;
use lapce_ai_proto::ai::{
    AIRequest, AIResponse, AutocompleteRequest, EmbeddingsRequest, EmbeddingsResponse,
    FileAnalysisRequest, ModelList, StreamEvent, TokenCount,
};
use lapce_ai_proto::status::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Client, ItemStream};
use crate::bodies::{Restarted, models_body, shutdown_body, single};
use crate::{ClientError, RequestOptions};

impl Client {
    /// Asks for the next turn of a conversation, as a stream of events.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn chat(&self, request: &AIRequest) -> Result<ChatStream, ClientError> {
        self.chat_with(request, &RequestOptions::default()).await
    }

    /// [`chat`](Self::chat) with options.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn chat_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<ChatStream, ClientError> {
        let request = AIRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(MessageType::CHAT, &request, options).await
    }

    /// Asks for the next turn of a conversation, whole.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn complete(&self, request: &AIRequest) -> Result<AIResponse, ClientError> {
        self.complete_with(request, &RequestOptions::default())
            .await
    }

    /// [`complete`](Self::complete) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn complete_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<AIResponse, ClientError> {
        let request = AIRequest {
            stream: Some(false),
            ..request.clone()
        };
        let body = serde_json::to_vec(&request)?;
        // Its answer takes a while: the prefix has the key that recognises a repetition.
        let mut items = self.stream(MessageType::CHAT, body, options).await?;
        single(items.next().await)
    }

    /// Asks for code at the cursor.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn autocomplete(
        &self,
        request: &AutocompleteRequest,
    ) -> Result<ChatStream, ClientError> {
        let request = AutocompleteRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::AUTOCOMPLETE,
            &request,
            &RequestOptions::default(),
        )
        .await
    }

    /// Asks a question about a file.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the stream.
    pub async fn analyze_file(
        &self,
        request: &FileAnalysisRequest,
    ) -> Result<ChatStream, ClientError> {
        let request = FileAnalysisRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::FILE_ANALYSIS,
            &request,
            &RequestOptions::default(),
        )
        .await
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn embeddings(
        &self,
        request: &EmbeddingsRequest,
    ) -> Result<EmbeddingsResponse, ClientError> {
        self.ask(MessageType::EMBEDDINGS, &serde_json::to_vec(request)?)
            .await
    }

    /// Counts a request's tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn token_count(&self, request: &AIRequest) -> Result<TokenCount, ClientError> {
        self.ask(MessageType::TOKEN_COUNT, &serde_json::to_vec(request)?)
            .await
    }

    /// The models that can be asked, of all providers or of one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn models(&self, provider: Option<&str>) -> Result<ModelList, ClientError> {
        self.ask(MessageType::MODELS, &models_body(provider)?).await
    }

    /// The daemon at a glance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(MessageType::STATUS, &[]).await
    }

    /// Lets the daemon drain, for at most `drain` or what it is configured for, and stop.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shutdown(&self, drain: Option<Duration>) -> Result<(), ClientError> {
        self.call(MessageType::SHUTDOWN, shutdown_body(drain))
            .await
            .map(drop)
    }

    /// Has the daemon start the next one, which takes over: the process id of that one. This client is served by it from
    /// then on. After an error the daemon goes on as before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn restart(&self) -> Result<u32, ClientError> {
        let restarted: Restarted = self.ask(MessageType::RESTART, &[]).await?;
        Ok(restarted.pid)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        ty: MessageType,
        body: &[u8],
    ) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.call(ty, body).await?)?)
    }

    async fn events(
        &self,
        ty: MessageType,
        request: &impl Serialize,
        options: &RequestOptions,
    ) -> Result<ChatStream, ClientError> {
        let body = serde_json::to_vec(request)?;
        let items = self.stream(ty, body, options).await?;
        Ok(ChatStream {
            items,
            item: Vec::new(),
        })
    }
}

/// A response of events. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct ChatStream {
    items: ItemStream,
    item: Vec<u8>,
}

impl ChatStream {
    /// The next event; `None` at the end, and after an error. Events of unknown types are left out.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ClientError>> {
        loop {
            match self.items.next_into(&mut self.item).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
            match serde_json::from_slice(&self.item) {
                Ok(StreamEvent::Unknown) => {}
                Ok(event) => return Some(Ok(event)),
                Err(error) => {
                    self.items.stream = None;
                    return Some(Err(error.into()));
                }
            }
        }
    }
}
