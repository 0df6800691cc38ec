//! What a pool's targets can be asked for: a chat, vectors, a count of tokens.

use std::future::Future;
use std::sync::Arc;

use tokio::time::Instant;

use super::member::Call;
use super::needs;
use super::rate::Cost;
use super::stream::{self, Bound};
use super::trail::Step;
use crate::chat::ChatRequest;
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Feature, Features};
use crate::provider::{BoxFuture, ChatStream};

/// Something that targets are asked for, one after the other, until one gives it.
pub(super) trait Ask: Clone + Send + Sync {
    /// What it is that they give.
    type Given: Send;

    /// The first thing that it needs and `features` lacks.
    fn lacking(&self, features: Features) -> Option<Feature>;

    /// The model to be asked, by the name that the provider uses.
    fn model(&mut self) -> &mut String;

    /// Whether it comes token by token.
    fn is_streamed(&self) -> bool {
        false
    }

    /// What it will probably cost, in tokens.
    fn cost(&self) -> Cost;

    /// Asks with the key of `call`, and tells it and `step` how that went.
    fn open(
        &self,
        call: Call,
        step: Step,
        bound: Option<Bound>,
    ) -> impl Future<Output = Result<Self::Given, ProviderError>> + Send;
}

impl Ask for ChatRequest {
    type Given = ChatStream;

    fn lacking(&self, features: Features) -> Option<Feature> {
        needs::lacking(self, features)
    }

    fn model(&mut self) -> &mut String {
        &mut self.model
    }

    fn is_streamed(&self) -> bool {
        self.stream
    }

    fn cost(&self) -> Cost {
        Cost::of(self)
    }

    async fn open(
        &self,
        call: Call,
        step: Step,
        bound: Option<Bound>,
    ) -> Result<ChatStream, ProviderError> {
        stream::open(call, step, self, bound).await
    }
}

impl Ask for EmbeddingRequest {
    type Given = Embeddings;

    fn lacking(&self, features: Features) -> Option<Feature> {
        Some(Feature::Embeddings).filter(|needed| !features.has(*needed))
    }

    fn model(&mut self) -> &mut String {
        &mut self.model
    }

    fn cost(&self) -> Cost {
        Cost::of_texts(&self.input)
    }

    async fn open(
        &self,
        call: Call,
        step: Step,
        bound: Option<Bound>,
    ) -> Result<Embeddings, ProviderError> {
        let member = Arc::clone(call.member());
        let asked = member.account(call.key).embed(self);
        whole(call, step, bound, asked, |given| given.input_tokens).await
    }
}

/// How many tokens a chat has.
#[derive(Clone)]
pub(super) struct Count(pub(super) ChatRequest);

impl Ask for Count {
    type Given = u64;

    fn lacking(&self, features: Features) -> Option<Feature> {
        let counts = features.has(Feature::TokenCount);
        let other = || needs::lacking(&self.0, features);
        if counts {
            other()
        } else {
            Some(Feature::TokenCount)
        }
    }

    fn model(&mut self) -> &mut String {
        &mut self.0.model
    }

    /// Counting is a request, and generates nothing.
    fn cost(&self) -> Cost {
        Cost::default()
    }

    async fn open(
        &self,
        call: Call,
        step: Step,
        bound: Option<Bound>,
    ) -> Result<u64, ProviderError> {
        let member = Arc::clone(call.member());
        let asked = member.account(call.key).count_tokens(&self.0);
        whole(call, step, bound, asked, |_| None).await
    }
}

/// What comes whole or not at all. `tokens` says what the provider counted, if it says so.
async fn whole<T>(
    mut call: Call,
    step: Step,
    bound: Option<Bound>,
    asked: BoxFuture<'_, Result<T, ProviderError>>,
    tokens: impl Fn(&T) -> Option<u64>,
) -> Result<T, ProviderError> {
    let given = stream::within(bound, call.member().clone().name(), asked).await;
    match &given {
        Ok(given) => {
            call.gave(tokens(given));
            step.answered(Instant::now());
        }
        Err(error) => {
            call.failed(error);
            step.failed(error.kind, Instant::now());
        }
    }
    given
}
