//! Requests and answers as types, over [`BlockingClient`]'s `call` and `stream`.

use std::time::Duration;

use lapce_ai_proto::MessageType;
use lapce_ai_proto::ai::{
    AIRequest, AIResponse, AutocompleteRequest, EmbeddingsRequest, EmbeddingsResponse,
    FileAnalysisRequest, ModelList, StreamEvent, TokenCount,
};
use lapce_ai_proto::status::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BlockingClient, Items};
use crate::bodies::{Restarted, models_body, shutdown_body, single};
use crate::{ClientError, RequestOptions};

impl BlockingClient {
    /// Asks for the next turn of a conversation, as events.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn chat(&self, request: &AIRequest) -> Result<ChatItems<'_>, ClientError> {
        self.chat_with(request, &RequestOptions::default())
    }

    /// [`chat`](Self::chat) with options.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn chat_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = AIRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(MessageType::CHAT, &request, options)
    }

    /// Asks for the next turn of a conversation, whole.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn complete(&self, request: &AIRequest) -> Result<AIResponse, ClientError> {
        self.complete_with(request, &RequestOptions::default())
    }

    /// [`complete`](Self::complete) with options.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn complete_with(
        &self,
        request: &AIRequest,
        options: &RequestOptions,
    ) -> Result<AIResponse, ClientError> {
        let request = AIRequest {
            stream: Some(false),
            ..request.clone()
        };
        let body = serde_json::to_vec(&request)?;
        single(self.stream(MessageType::CHAT, body, options)?.next())
    }

    /// Asks for code at the cursor.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn autocomplete(
        &self,
        request: &AutocompleteRequest,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = AutocompleteRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::AUTOCOMPLETE,
            &request,
            &RequestOptions::default(),
        )
    }

    /// Asks a question about a file.
    ///
    /// # Errors
    /// See [`ClientError`]; the daemon's errors come from the iterator.
    pub fn analyze_file(
        &self,
        request: &FileAnalysisRequest,
    ) -> Result<ChatItems<'_>, ClientError> {
        let request = FileAnalysisRequest {
            stream: Some(true),
            ..request.clone()
        };
        self.events(
            MessageType::FILE_ANALYSIS,
            &request,
            &RequestOptions::default(),
        )
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn embeddings(
        &self,
        request: &EmbeddingsRequest,
    ) -> Result<EmbeddingsResponse, ClientError> {
        self.ask(MessageType::EMBEDDINGS, &serde_json::to_vec(request)?)
    }

    /// Counts a request's tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn token_count(&self, request: &AIRequest) -> Result<TokenCount, ClientError> {
        self.ask(MessageType::TOKEN_COUNT, &serde_json::to_vec(request)?)
    }

    /// The models that can be asked, of all providers or of one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn models(&self, provider: Option<&str>) -> Result<ModelList, ClientError> {
        self.ask(MessageType::MODELS, &models_body(provider)?)
    }

    /// The daemon at a glance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.ask(MessageType::STATUS, &[])
    }

    /// Lets the daemon drain, for at most `drain` or what it is configured for, and stop.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn shutdown(&self, drain: Option<Duration>) -> Result<(), ClientError> {
        self.call(MessageType::SHUTDOWN, shutdown_body(drain))
            .map(drop)
    }

    /// Has the daemon start the next one, which takes over: the process id of that one. This client is served by it from
    /// then on. After an error the daemon goes on as before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn restart(&self) -> Result<u32, ClientError> {
        let restarted: Restarted = self.ask(MessageType::RESTART, &[])?;
        Ok(restarted.pid)
    }

    fn ask<T: DeserializeOwned>(&self, ty: MessageType, body: &[u8]) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.call(ty, body)?)?)
    }

    fn events(
        &self,
        ty: MessageType,
        request: &impl Serialize,
        options: &RequestOptions,
    ) -> Result<ChatItems<'_>, ClientError> {
        let body = serde_json::to_vec(request)?;
        Ok(ChatItems {
            items: self.stream(ty, body, options)?,
            item: Vec::new(),
        })
    }
}

/// A response of events, as an iterator. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct ChatItems<'a> {
    items: Items<'a>,
    item: Vec<u8>,
}

impl Iterator for ChatItems<'_> {
    type Item = Result<StreamEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.items.next_into(&mut self.item) {
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
