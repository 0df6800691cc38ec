//! A request's way from a client to the pool: the cache, the budgets, the pool, the bill.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cache::{AnswerCache, CacheStatus, Opening};
use crate::chat::ChatRequest;
use crate::pool::{Answer, NoAnswer, Plan, Pool};
use crate::spend::{Receipt, Spend};

/// What stands between the clients and a [`Pool`].
#[derive(Debug)]
pub struct Gateway {
    spend: Arc<Spend>,
    cache: Option<AnswerCache>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The uid.
    pub client: u32,
    /// Whether the answer may come from the cache, where the request says so.
    pub cache: Option<bool>,
    /// When the answer must be complete.
    pub deadline: Option<Instant>,
}

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

    /// Has `request` answered as [`Pool::chat`] does, unless a budget forbids it or the answer is there already. The receipt has the
    /// bill once the answer has finished.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn chat<P: AsRef<Pool> + Send + Sync + 'static>(
        &self,
        pool: &Arc<P>,
        plan: Plan,
        request: ChatRequest,
        asker: Asker,
    ) -> Result<(Answer, Receipt), NoAnswer> {
        let Asker {
            client,
            cache,
            deadline,
        } = asker;
        let known = self.cache.as_ref();
        let found =
            known.and_then(|known| Some((known, known.key(client, &plan, &request, cache)?)));
        let Some((cache, key)) = found else {
            let pool = P::as_ref(pool);
            return metered(&self.spend, pool, plan, request, client, deadline).await;
        };
        let open = || -> Opening {
            let (spend, pool) = (Arc::clone(&self.spend), Arc::clone(pool));
            // Without a deadline: each of those who may join has its own.
            Box::pin(
                async move { metered(&spend, P::as_ref(&pool), plan, request, client, None).await },
            )
        };
        let (answer, receipt) = cache.chat(key, deadline, open).await?;
        if receipt.bill().is_some_and(|bill| bill.cached) {
            self.spend.cached(client, &answer.provider, &answer.model);
        }
        Ok((answer, receipt))
    }
}

/// Has a request answered that counts for the budgets.
async fn metered(
    spend: &Arc<Spend>,
    pool: &Pool,
    plan: Plan,
    request: ChatRequest,
    client: u32,
    deadline: Option<Instant>,
) -> Result<(Answer, Receipt), NoAnswer> {
    let admitted = spend
        .admit(client, plan, &request)
        .map_err(|error| *error)?;
    match pool.chat(&admitted.plan, request, deadline).await {
        Ok(answer) => Ok(admitted.meter(answer)),
        Err(failed) => Err(admitted.failed(failed)),
    }
}
