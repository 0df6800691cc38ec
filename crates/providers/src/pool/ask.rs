//! What a pool's targets can be asked for: a chat, vectors, a count of tokens.

use std::future::Future;
use std::sync::Arc;

use super::member::Call;
use super::needs;
use super::stream::{self, Bound};
use crate::chat::ChatRequest;
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::ProviderError;
use crate::profile::{Feature, Features};
use crate::provider::{BoxFuture, ChatStream};

/// Something that targets are asked for, one after the other, until one gives it.
pub(super) trait Ask: Send + Sync {
    /// What it is that they give.
    type Given: Send;

    /// The first thing that it needs and `features` lacks.
    fn lacking(&self, features: Features) -> Option<Feature>;

    /// The model to be asked, by the name that the provider uses.
    fn model(&mut self) -> &mut String;

    /// Asks with the key of `call`, and tells it how that went.
    fn open(
        &self,
        call: Call,
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

    async fn open(&self, call: Call, bound: Option<Bound>) -> Result<ChatStream, ProviderError> {
        stream::open(call, self, bound).await
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

    async fn open(&self, call: Call, bound: Option<Bound>) -> Result<Embeddings, ProviderError> {
        let member = Arc::clone(call.member());
        let asked = member.account(call.key).embed(self);
        whole(call, bound, asked).await
    }
}

/// How many tokens a chat has.
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

    async fn open(&self, call: Call, bound: Option<Bound>) -> Result<u64, ProviderError> {
        let member = Arc::clone(call.member());
        let asked = member.account(call.key).count_tokens(&self.0);
        whole(call, bound, asked).await
    }
}

/// What comes whole or not at all.
async fn whole<T>(
    mut call: Call,
    bound: Option<Bound>,
    asked: BoxFuture<'_, Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let given = stream::within(bound, call.member().clone().name(), asked).await;
    match &given {
        Ok(_) => call.gave(),
        Err(error) => call.failed(error),
    }
    given
}
