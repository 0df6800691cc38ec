//! The centre: what a provider is, and the stream of events that it answers with.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::chat::{ChatRequest, ModelInfo, ToolCall};
use crate::error::ProviderError;
use crate::event::{Event, FinishReason, Usage};

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
}

impl ChatStream {
    /// A stream made of `events`.
    pub fn new(events: impl EventStream + 'static) -> Self {
        Self {
            inner: Box::new(events),
            ended: false,
        }
    }

    /// The next event, which borrows from the stream; `None` at the end.
    pub fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Event<'_>, ProviderError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        ready!(self.inner.poll_ready(cx));
        Poll::Ready(self.take())
    }

    /// The next event, which borrows from the stream; `None` at the end. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        if self.ended {
            return None;
        }
        poll_fn(|cx| self.inner.poll_ready(cx)).await;
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

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
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

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChatResponse {
    /// The provider's id of the answer.
    pub id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// The answer.
    pub text: String,
    /// The model's thinking.
    pub reasoning: String,
    /// The provider's proof of it, to be handed back in the next turn.
    pub reasoning_signature: Option<String>,
    /// The tools to call.
    pub tool_calls: Vec<ToolCall>,
    /// Addresses and titles of the sources.
    pub citations: Vec<(String, Option<String>)>,
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
            Event::Reasoning { text, signature } => {
                self.reasoning.push_str(text);
                if let Some(signature) = signature {
                    self.reasoning_signature = Some(signature.into());
                }
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
            }
            Event::Citation(citation) => {
                self.citations
                    .push((citation.url.into(), citation.title.map(Into::into)));
            }
            Event::Usage(usage) => self.usage = Some(usage),
            Event::Finish(reason) => self.finish = Some(reason),
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
            call(0, Some("a"), "{"),
            // An index from nowhere is the next one.
            call(u32::MAX, Some("b"), "{}"),
            call(0, None, "}"),
            Event::Finish(FinishReason::ToolCalls),
        ] {
            response.add(event);
        }
        assert_eq!(
            (
                response.reasoning.as_str(),
                response.reasoning_signature.as_deref()
            ),
            ("hm", Some("s"))
        );
        let calls: Vec<_> = response
            .tool_calls
            .iter()
            .map(|call| (call.id.as_str(), call.arguments.as_str()))
            .collect();
        assert_eq!(calls, [("a", "{}"), ("b", "{}")]);
        assert_eq!(response.finish, Some(FinishReason::ToolCalls));
    }
}
