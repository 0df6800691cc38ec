//! A request's way from a client to the pool: the cache, the budgets, the pool, the bill.

use std::sync::Arc;

use crate::cache::{AnswerCache, CacheStatus, Opening};
use crate::chat::ChatRequest;
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::pool::{Answer, Caller, NoAnswer, Plan, Pool, Trail};
use crate::spend::{Bill, Receipt, Spend};

/// What stands between the clients and a [`Pool`].
#[derive(Debug)]
pub struct Gateway {
    spend: Arc<Spend>,
    cache: Option<AnswerCache>,
}

/// The client on whose bill it goes where nobody knows who asked: `(uid_t)-1`, which is no user's.
const NOBODY: u32 = u32::MAX;

impl Gateway {
    /// With a cache or without.
    pub fn new(spend: Arc<Spend>, cache: Option<AnswerCache>) -> Self {
        Self { spend, cache }
    }

    /// What answers cost.
    pub fn spend(&self) -> &Arc<Spend> {
        &self.spend
    }

    /// What the cache does, if there is one.
    pub fn cache(&self) -> Option<CacheStatus> {
        self.cache.as_ref().map(AnswerCache::status)
    }

    /// Has `request` answered as [`Pool::chat`] does, unless a budget forbids it or the answer is there already: `wish` is what the
    /// request itself says about that. The receipt has the bill once the answer has finished.
    ///
    /// What is tried stands on `trail`, of an answer that another one waited for first on that one's.
    ///
    /// Where several wait for one answer, the first of them is the pool's caller, whose priority and limits count. Each keeps its own
    /// deadline.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn chat<P: AsRef<Pool> + Send + Sync + 'static>(
        &self,
        pool: &Arc<P>,
        plan: Plan,
        request: ChatRequest,
        caller: Caller,
        wish: Option<bool>,
        trail: &Trail,
    ) -> Result<(Answer, Receipt), NoAnswer> {
        let client = client(&caller);
        let known = self.cache.as_ref();
        let found =
            known.and_then(|known| Some((known, known.key(client, &plan, &request, wish)?)));
        let Some((cache, key)) = found else {
            let pool = P::as_ref(pool);
            return metered(&self.spend, pool, plan, request, caller, trail).await;
        };
        let open = || -> Opening {
            let (spend, pool) = (Arc::clone(&self.spend), Arc::clone(pool));
            let trail = trail.clone();
            // Without a deadline: each of those who may join has its own.
            let caller = Caller {
                deadline: None,
                ..caller
            };
            Box::pin(async move {
                metered(&spend, P::as_ref(&pool), plan, request, caller, &trail).await
            })
        };
        let (answer, receipt) = cache.chat(key, caller.deadline, trail, open).await?;
        if receipt.bill().is_some_and(|bill| bill.cached) {
            self.spend.cached(client, &answer.provider, &answer.model);
        }
        Ok((answer, receipt))
    }

    /// Has vectors made as [`Pool::embed`] does, unless a budget forbids it. They are not kept.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn embed(
        &self,
        pool: &Pool,
        plan: Plan,
        mut request: EmbeddingRequest,
        caller: Caller,
    ) -> Result<(Answer<Embeddings>, Bill), NoAnswer> {
        let trail = Trail::default();
        let admitted = self
            .spend
            .admit_embedding(client(&caller), plan, &request, &trail)
            .map_err(|error| *error)?;
        let answer = pool.embed_traced(&admitted.plan, &mut request, caller, &trail);
        let answer = answer.await?;
        Ok(admitted.settle(answer))
    }
}

fn client(caller: &Caller) -> u32 {
    caller.uid.unwrap_or(NOBODY)
}

/// Has a request answered that counts for the budgets.
async fn metered(
    spend: &Arc<Spend>,
    pool: &Pool,
    plan: Plan,
    request: ChatRequest,
    caller: Caller,
    trail: &Trail,
) -> Result<(Answer, Receipt), NoAnswer> {
    let admitted = spend
        .admit(client(&caller), plan, &request, trail)
        .map_err(|error| *error)?;
    let answer = pool.chat_traced(&admitted.plan, request, caller, trail);
    let answer = answer.await?;
    Ok(admitted.meter(answer))
}
