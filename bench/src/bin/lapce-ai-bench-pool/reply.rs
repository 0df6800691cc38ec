//! A provider inside this process that answers at once, and gives way to others between its events as a real one does.

use std::task::{Context, Poll};

use lapce_ai_providers::{
    BoxFuture, ChatRequest, ChatStream, Event, EventStream, FinishReason, ModelInfo, Provider,
    ProviderError,
};

/// What it says, token by token.
pub(crate) const TOKENS: [&str; 8] = ["To", "kens", " one", " by", " one", ",", " eight", "."];

/// The provider.
#[derive(Debug)]
pub(crate) struct Reply;

impl Provider for Reply {
    fn chat<'a>(
        &'a self,
        _request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            Ok(ChatStream::new(Events {
                next: 0,
                gave_way: false,
            }))
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

struct Events {
    next: usize,
    gave_way: bool,
}

impl EventStream for Events {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gave_way = !self.gave_way;
        if self.gave_way {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let at = self.next;
        self.next += 1;
        let event = match at {
            0 => Event::Start {
                id: None,
                model: None,
            },
            at => match TOKENS.get(at - 1) {
                Some(token) => Event::Text(token),
                None if at == TOKENS.len() + 1 => Event::Finish(FinishReason::Stop),
                None => return None,
            },
        };
        Some(Ok(event))
    }
}
