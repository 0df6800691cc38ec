//! What answers cost: the gateway as it is configured, and what there is to say about it.

use std::sync::Arc;

use lapce_ai_proto::status::{BudgetStatus, CacheStatus, LedgerStatus, ProviderStatus, Spending};
use lapce_ai_providers::{AnswerCache, Entry, Gateway, Ledger, NanoUsd, PriceTable, Spend};

use crate::config::{Config, SpendSettings};
use crate::failure::Failure;
use crate::ledger::{self, Keeper};

/// A ledger that keeps nothing; the log is told all the same.
#[derive(Debug)]
struct Unkept;

impl Ledger for Unkept {
    fn record(&self, _entry: &Entry) {}

    fn warn(&self, warning: &str) {
        tracing::warn!("{warning}");
    }
}

/// What stands between clients and providers, and the ledger if one is kept.
pub(super) fn gateway(config: &Config) -> Result<(Gateway, Option<Arc<Keeper>>), Failure> {
    let prices = prices(&config.spend)?;
    let kept = match ledger_path(&config.spend) {
        Some(path) if config.spend.keep => Some(Keeper::start(&path, config.spend.keep_requests)),
        Some(_) => None,
        None => {
            tracing::warn!(
                "there is no home directory for the ledger: set XDG_STATE_HOME or spend.ledger; what is spent is counted in memory only"
            );
            None
        }
    };
    let (keeper, before) = kept.unzip();
    let to: Arc<dyn Ledger> = match &keeper {
        Some(keeper) => Arc::clone(keeper) as Arc<dyn Ledger>,
        None => Arc::new(Unkept),
    };
    let spend = Arc::new(Spend::new(prices, config.budgets.clone(), to));
    if let Some((keeper, before)) = keeper.as_ref().zip(before) {
        ledger::load(keeper, &spend, before);
    }
    let cache = config.cache.map(AnswerCache::new);
    Ok((Gateway::new(spend, cache), keeper))
}

/// The built-in prices, after those of the configured file.
pub(crate) fn prices(settings: &SpendSettings) -> Result<PriceTable, Failure> {
    let built_in = PriceTable::embedded().map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(path) = &settings.prices else {
        return Ok(built_in);
    };
    let wrong = |why: String| {
        Failure::Usage(format!(
            "spend.prices: {} cannot be used: {why}",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let own = PriceTable::parse(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(built_in.after(own))
}

/// The ledger's file.
pub(crate) fn ledger_path(settings: &SpendSettings) -> Option<std::path::PathBuf> {
    let usual = || Some(crate::launch::state_directory()?.join("spend.db"));
    settings.ledger.clone().or_else(usual)
}

/// The providers with what each one's answers cost.
pub(super) fn providers(mut providers: Vec<ProviderStatus>, spend: &Spend) -> Vec<ProviderStatus> {
    let known = spend.providers();
    for provider in &mut providers {
        let spend = known.get(provider.name.as_str()).copied();
        let spend = spend.unwrap_or_default();
        provider.spend = Some(Spending {
            today_nano_usd: spend.today.cost.get(),
            month_nano_usd: spend.month.cost.get(),
            month_input_tokens: spend.month.tokens.input_tokens,
            month_output_tokens: spend.month.tokens.output_tokens,
            month_requests: spend.month.requests,
            month_cached: spend.month.cached,
            month_unpriced: spend.month.unpriced,
        });
    }
    providers
}

pub(super) fn budgets(spend: &Spend) -> Vec<BudgetStatus> {
    let one = |status: lapce_ai_providers::BudgetStatus| {
        let budget = status.budget;
        let client = match budget.clients {
            lapce_ai_providers::Clients::One(uid) => Some(uid),
            _ => status.client,
        };
        BudgetStatus {
            per: budget.period.name().to_owned(),
            name: budget.name,
            provider: budget.provider,
            client,
            spent_nano_usd: status.spent.get(),
            reserved_nano_usd: status.reserved.get(),
            soft_nano_usd: budget.soft.map(NanoUsd::get),
            hard_nano_usd: budget.hard.map(NanoUsd::get),
            until: status.until.to_string(),
        }
    };
    spend.budgets().into_iter().map(one).collect()
}

pub(super) fn cache(status: lapce_ai_providers::CacheStatus) -> CacheStatus {
    CacheStatus {
        answers: status.answers as u64,
        bytes: status.bytes as u64,
        under_way: status.under_way as u64,
        hits: status.hits,
        joined: status.joined,
        misses: status.misses,
        evicted: status.evicted,
    }
}

pub(super) fn ledger(keeper: &Keeper) -> LedgerStatus {
    let (file, trouble) = keeper.status();
    LedgerStatus {
        file: file.display().to_string(),
        trouble,
    }
}
