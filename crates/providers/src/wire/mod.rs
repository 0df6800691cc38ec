//! Wire formats: how a request is written for a provider, and how its answer is read. No I/O, no clock.
//!
//! A format is one [`Wire`] for what can be said about whole requests and answers, and one [`Decoder`] per answer,
//! which is fed the body's chunks and leaves events in an [`EventQueue`]. [`crate::HttpProvider`]
//! drives any of them; [`Decoding`] does so by hand.

pub(crate) mod anthropic;
pub(crate) mod bedrock;
mod body;
pub(crate) mod cohere;
mod decoding;
mod endpoint;
mod error;
pub(crate) mod gemini;
mod json;
pub(crate) mod ollama;
pub(crate) mod openai;
mod request;
pub(crate) mod responses;
mod retry_after;

use std::fmt::Debug;
use std::time::SystemTime;

use bytes::Bytes;
use http::response::Parts;
use secrecy::SecretString;

use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::event::EventQueue;
use crate::http::HttpClient;
use crate::provider::BoxFuture;

pub use decoding::Decoding;
pub(crate) use retry_after::retry_after;

/// How one provider's HTTP API is spoken. It holds the base URL and the key.
pub trait Wire: Debug + Send + Sync {
    /// The HTTP request of a chat. `now` is for formats that sign their requests.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) when the format cannot say what is asked for,
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) when the request makes no sense.
    fn chat_request(
        &self,
        request: &ChatRequest,
        now: SystemTime,
    ) -> Result<http::Request<Bytes>, ProviderError>;

    /// The HTTP request of the list of models.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) when the provider has no such list.
    fn models_request(&self, now: SystemTime) -> Result<http::Request<Bytes>, ProviderError>;

    /// The HTTP request of what comes after a page of the list of models; `None`: it was the last one.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) where the page's mark makes no URL.
    fn next_models_request(
        &self,
        _page: &[u8],
        _now: SystemTime,
    ) -> Result<Option<http::Request<Bytes>>, ProviderError> {
        Ok(None)
    }

    /// A decoder for the body of a chat answer with a status of 2xx, streamed or not, as its headers tell.
    /// `limit` is the most bytes that it may keep: the longest event of a stream, or a whole body.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) when the headers promise something else than an
    /// answer, such as a web page.
    fn decoder(&self, head: &Parts, limit: usize) -> Result<Box<dyn Decoder>, ProviderError>;

    /// The models in the body of a list of models, or of a page of it.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) when it is no such list.
    fn decode_models(&self, body: &[u8]) -> Result<Vec<ModelInfo>, ProviderError>;

    /// The error in an answer whose status is not 2xx. `body` may be cut, empty, or a proxy's web page.
    fn decode_error(&self, head: &Parts, body: &[u8], now: SystemTime) -> ProviderError;

    /// The HTTP request of vectors for at most [`embeddings_batch`](Self::embeddings_batch) texts.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) when the provider makes none.
    fn embeddings_request(
        &self,
        _request: &EmbeddingRequest,
        _now: SystemTime,
    ) -> Result<http::Request<Bytes>, ProviderError> {
        Err(unsupported("embeddings"))
    }

    /// The most texts of one request for vectors to this model.
    fn embeddings_batch(&self, _model: &str) -> usize {
        usize::MAX
    }

    /// The most bytes of all texts of one request for vectors to this model; a longer text goes alone.
    fn embeddings_batch_bytes(&self, _model: &str) -> usize {
        usize::MAX
    }

    /// The vectors in the body of an answer, in the order of the texts.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) when there are none in it.
    fn decode_embeddings(&self, _body: &[u8]) -> Result<Embeddings, ProviderError> {
        Err(unsupported("embeddings"))
    }

    /// The HTTP request that has the tokens of a chat request counted.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) when the provider does not count.
    fn count_request(
        &self,
        _request: &ChatRequest,
        _now: SystemTime,
    ) -> Result<http::Request<Bytes>, ProviderError> {
        Err(unsupported("counting tokens"))
    }

    /// The tokens in the body of an answer.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) when there is no number in it.
    fn decode_count(&self, _body: &[u8]) -> Result<u64, ProviderError> {
        Err(unsupported("counting tokens"))
    }

    /// What requests are signed with, where that is fetched and expires: whoever sends a request
    /// [refreshes](Credentials::refresh) it first.
    fn credentials(&self) -> Option<&dyn Credentials> {
        None
    }

    /// What must never appear in an error's text.
    fn secrets(&self) -> Vec<SecretString>;
}

/// Credentials that have to be fetched, and again before they expire. Fetching is all that they do: the format takes
/// what was fetched last.
pub trait Credentials: Debug + Send + Sync {
    /// Returns at once while the last ones hold at `now`, and fetches others through `client` where they do not.
    ///
    /// # Errors
    ///
    /// There are none that hold; why not.
    fn refresh<'a>(
        &'a self,
        client: &'a HttpClient,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<(), ProviderError>>;
}

/// The provider cannot do this.
pub(crate) fn unsupported(what: &str) -> ProviderError {
    ProviderError::new(
        ErrorKind::Unsupported,
        format!("this provider has no API for {what}"),
    )
}

/// Reads the body of one answer.
///
/// It keeps the promise of [`Event`](crate::Event)'s order: `Usage` and `Finish` are left in the queue last.
pub trait Decoder: Send {
    /// Takes the next chunk of the body and adds its events.
    ///
    /// # Errors
    ///
    /// Ends the answer. Events added before it still count.
    fn chunk(&mut self, chunk: &[u8], events: &mut EventQueue) -> Result<(), ProviderError>;

    /// Takes the end of the body, or its loss, and adds the last events.
    ///
    /// # Errors
    ///
    /// [`StreamCut`](crate::ErrorKind::StreamCut) when the answer is not complete.
    fn end(&mut self, events: &mut EventQueue) -> Result<(), ProviderError>;

    /// Whether the answer is complete: what may still come is of no interest.
    fn is_complete(&self) -> bool;
}
