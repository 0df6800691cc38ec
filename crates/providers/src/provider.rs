//! The centre: what a provider is, and the stream of events that it answers with.

use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::task::{self, Context, Poll};

use crate::chat::{ChatRequest, Content, Message, ModelInfo, Role, ToolCall};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::event::{Event, FinishReason, Usage};
use crate::rate_limit::RateLimits;
use crate::wire::unsupported;

/// A future in a box, so that [`Provider`] can be used as `dyn Provider`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that answers chat requests.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Sends `request` and waits until the provider has accepted it. To cancel, drop the future or the stream: an
    /// HTTP provider then closes its HTTP/1.1 connection or resets its HTTP/2 stream.
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>>;

    /// The models that the provider offers now.
    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>>;

    /// Vectors of texts. [`Unsupported`](crate::ErrorKind::Unsupported) where the provider makes none.
    fn embed<'a>(
        &'a self,
        _request: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        Box::pin(ready(Err(unsupported("embeddings"))))
    }

    /// The tokens of `request`, as the provider counts them. [`Unsupported`](crate::ErrorKind::Unsupported) where it
    /// does not.
    fn count_tokens<'a>(
        &'a self,
        _request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<u64, ProviderError>> {
        Box::pin(ready(Err(unsupported("counting tokens"))))
    }
}

/// What a provider's answer is made of inside a [`ChatStream`].
///
/// Waiting and taking are two steps because the events borrow from the stream.
pub trait EventStream: Send {
    /// Waits until an event, an error or the end can be taken.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Takes what [`poll_ready`](Self::poll_ready) found; `None` is the end. Called only after `poll_ready` was ready.
    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>>;
}

/// The events of one answer. Dropping it cancels the request.
///
/// After [`Event::Finish`] it gives `None`. An error is the last thing it gives. Ask on until `None` so that the
/// connection can be used again; who drops the stream right after `Finish` may cost a new connection.
pub struct ChatStream {
    inner: Box<dyn EventStream>,
    ended: bool,
    rate_limits: RateLimits,
}

impl ChatStream {
    /// A stream made of `events`.
    pub fn new(events: impl EventStream + 'static) -> Self {
        Self {
            inner: Box::new(events),
            ended: false,
            rate_limits: RateLimits::default(),
        }
    }

    /// Adds what the answer's headers tell of the provider's limits.
    #[must_use]
    pub fn with_rate_limits(mut self, told: RateLimits) -> Self {
        self.rate_limits = told;
        self
    }

    /// What the answer's headers told of the provider's limits.
    pub fn rate_limits(&self) -> &RateLimits {
        &self.rate_limits
    }

    /// The next event, which borrows from the stream; `None` at the end.
    pub fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Event<'_>, ProviderError>>> {
        task::ready!(self.poll_ready(cx));
        Poll::Ready(self.take())
    }

    /// Waits until [`take`](Self::take) has something to give.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        self.inner.poll_ready(cx)
    }

    /// The next event, which borrows from the stream; `None` at the end. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        poll_fn(|cx| self.poll_ready(cx)).await;
        self.take()
    }

    /// Reads the whole answer.
    ///
    /// # Errors
    ///
    /// The error that the stream ends in; what came before is lost.
    pub async fn collect(mut self) -> Result<ChatResponse, ProviderError> {
        let mut response = ChatResponse::default();
        while let Some(event) = self.next().await {
            response.add(event?);
        }
        Ok(response)
    }

    /// Takes what [`poll_ready`](Self::poll_ready) found.
    pub(crate) fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        if self.ended {
            return None;
        }
        let taken = self.inner.take();
        self.ended = !matches!(taken, Some(Ok(_)));
        taken
    }
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatStream")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// A source that an answer rests on: a [`Citation`](crate::Citation) that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Source {
    /// Its address; a document that came with the request has none.
    pub url: Option<String>,
    /// Its title, if the provider gives one.
    pub title: Option<String>,
    /// The words of the source that are meant, if the provider gives them.
    pub quote: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChatResponse {
    /// The provider's id of the answer.
    pub id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// The answer.
    pub text: String,
    /// The model's thoughts in order: [`Content::Reasoning`] and [`Content::RedactedReasoning`] only.
    pub thoughts: Vec<Content>,
    /// The tools to call.
    pub tool_calls: Vec<ToolCall>,
    /// The sources.
    pub citations: Vec<Source>,
    /// The tokens, if the provider told them.
    pub usage: Option<Usage>,
    /// Why the answer ended; `None` while it has not.
    pub finish: Option<FinishReason>,
}

impl ChatResponse {
    /// Adds the next event of the answer.
    pub fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Start { id, model } => {
                self.id = id.map(Into::into);
                self.model = model.map(Into::into);
            }
            Event::Text(text) => self.text.push_str(text),
            Event::Reasoning { text, signature } => self.think(text, signature),
            Event::RedactedReasoning(data) => {
                self.thoughts.push(Content::RedactedReasoning(data.into()));
            }
            Event::ToolCall(delta) => {
                // Indexes come from outside: a call is added at most once a delta, whatever the number says.
                let at = (delta.index as usize).min(self.tool_calls.len());
                if at == self.tool_calls.len() {
                    self.tool_calls.push(ToolCall::default());
                }
                let call = &mut self.tool_calls[at];
                if let Some(id) = delta.id {
                    call.id = id.into();
                }
                if let Some(name) = delta.name {
                    call.name = name.into();
                }
                call.arguments.push_str(delta.arguments);
                if let Some(signature) = delta.signature {
                    call.signature = Some(signature.into());
                }
            }
            Event::Citation(citation) => self.citations.push(Source {
                url: citation.url.map(Into::into),
                title: citation.title.map(Into::into),
                quote: citation.quote.map(Into::into),
            }),
            // Another's thoughts must not be joined to one that was under way, whose proof never came.
            Event::Continued { .. } => self.thoughts.push(Content::Reasoning {
                text: String::new(),
                signature: None,
            }),
            Event::Usage(usage) => self.usage = Some(usage),
            Event::Finish(reason) => {
                let is_empty = |thought: &Content| matches!(thought, Content::Reasoning { text, signature: None } if text.is_empty());
                self.thoughts.retain(|thought| !is_empty(thought));
                self.finish = Some(reason);
            }
        }
    }

    /// A signature ends its thought; what comes after it is the next one.
    fn think(&mut self, more: &str, proof: Option<&str>) {
        if let Some(Content::Reasoning {
            text,
            signature: signature @ None,
        }) = self.thoughts.last_mut()
        {
            text.push_str(more);
            *signature = proof.map(Into::into);
        } else {
            self.thoughts.push(Content::Reasoning {
                text: more.into(),
                signature: proof.map(Into::into),
            });
        }
    }

    /// All of the model's thinking that can be read.
    pub fn reasoning(&self) -> String {
        let texts = self.thoughts.iter().filter_map(|thought| match thought {
            Content::Reasoning { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// The answer as a message of the conversation, to be sent with the next turn.
    pub fn into_message(self) -> Message {
        let mut content = self.thoughts;
        if !self.text.is_empty() {
            content.push(Content::Text(self.text));
        }
        Message {
            role: Role::Assistant,
            content,
            tool_calls: self.tool_calls,
            tool_call_id: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ToolCallDelta;

    #[test]
    fn a_response_grows_by_its_events() {
        let mut response = ChatResponse::default();
        let call = |index, id, arguments| {
            Event::ToolCall(ToolCallDelta {
                index,
                id,
                name: id,
                arguments,
                signature: None,
            })
        };
        for event in [
            Event::Start {
                id: Some("c"),
                model: None,
            },
            Event::Reasoning {
                text: "h",
                signature: None,
            },
            Event::Reasoning {
                text: "m",
                signature: Some("s"),
            },
            Event::RedactedReasoning("x"),
            Event::Reasoning {
                text: "n",
                signature: None,
            },
            call(0, Some("a"), "{"),
            // An index from nowhere is the next one.
            call(u32::MAX, Some("b"), "{}"),
            call(0, None, "}"),
            Event::Finish(FinishReason::ToolCalls),
        ] {
            response.add(event);
        }
        assert_eq!(response.reasoning(), "hmn");
        let thought = |text: &str, signature: Option<&str>| Content::Reasoning {
            text: text.into(),
            signature: signature.map(Into::into),
        };
        let message = response.clone().into_message();
        assert_eq!(
            message.content,
            [
                thought("hm", Some("s")),
                Content::RedactedReasoning("x".into()),
                thought("n", None)
            ]
        );
        assert_eq!(message.tool_calls, response.tool_calls);
        let calls: Vec<_> = response
            .tool_calls
            .iter()
            .map(|call| (call.id.as_str(), call.arguments.as_str()))
            .collect();
        assert_eq!(calls, [("a", "{}"), ("b", "{}")]);
        assert_eq!(response.finish, Some(FinishReason::ToolCalls));
    }
}
