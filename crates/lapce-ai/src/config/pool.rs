//! Sections `[retries]`, `[breaker]` and `[routes.<name>]`: what happens when a provider fails, and who may answer.

use lapce_ai_providers::{Balance, BreakerConfig, HedgeConfig, PoolConfig, RetryConfig};
use serde_json::Value;

use super::layers::{Entry, Table};
use super::provider::ProviderSettings;
use super::section::{Findings, Section, named_entries};
use super::{DAY, kinds, name_of};

/// The part of a route's requests that may be hedged, unless it says otherwise.
const HEDGE_BUDGET: f64 = 0.1;
/// The most targets of one route.
const MOST_TARGETS: usize = 32;

const BALANCES: &[(&str, Balance)] = &[
    ("ordered", Balance::Ordered),
    ("weighted", Balance::Weighted),
    ("least_in_flight", Balance::LeastInFlight),
    ("peak_ewma", Balance::PeakEwma),
    ("cheapest", Balance::Cheapest),
];

/// A name that leads to several models.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteSettings {
    /// The name, as requests give it for a model.
    pub name: String,
    /// The models in order of preference, in any form that a request may give.
    pub targets: Vec<String>,
    /// The weight of each.
    pub weights: Vec<u32>,
    /// How requests are spread over them.
    pub balance: Balance,
    /// Whether and when a second target is asked as well.
    pub hedge: Option<HedgeConfig>,
    /// Whether another target goes on with a streamed answer that breaks off.
    pub continue_midstream: bool,
}

pub(super) fn read_pool(tree: &mut Table, findings: &mut Findings) -> PoolConfig {
    let retries = read_retries(tree, findings);
    let breaker = read_breaker(tree, findings);
    PoolConfig { breaker, retries }
}

fn read_retries(tree: &mut Table, findings: &mut Findings) -> RetryConfig {
    let usual = RetryConfig::default();
    let mut section = Section::take(tree, "retries", findings);
    let retries = RetryConfig {
        attempts: section.get("attempts", usual.attempts, &kinds::integer(1..=10)),
        base: section.get("base_secs", usual.base, &kinds::seconds(0..=3600)),
        max: section.get("max_secs", usual.max, &kinds::seconds(0..=3600)),
        budget: section.get("budget", usual.budget, &kinds::number(0.0..=1.0)),
    };
    section.finish();
    retries
}

fn read_breaker(tree: &mut Table, findings: &mut Findings) -> BreakerConfig {
    let mut section = Section::take(tree, "breaker", findings);
    let breaker = breaker_of(&mut section, BreakerConfig::default());
    section.finish();
    breaker
}

/// Reads the settings of `section`; what it leaves out is `usual`.
pub(super) fn breaker_of(section: &mut Section<'_>, usual: BreakerConfig) -> BreakerConfig {
    let rate = || kinds::number(0.01..=1.0);
    let breaker = BreakerConfig {
        window: section.get("window_secs", usual.window, &kinds::seconds(1..=3600)),
        min_calls: section.get("min_calls", usual.min_calls, &kinds::integer(1..=10_000)),
        failure_rate: section.get("failure_rate", usual.failure_rate, &rate()),
        slow_call: section.get("slow_call_secs", usual.slow_call, &kinds::seconds(0..=DAY)),
        slow_rate: section.get("slow_rate", usual.slow_rate, &rate()),
        open: section.get("open_secs", usual.open, &kinds::seconds(0..=3600)),
        max_open: section.get("max_open_secs", usual.max_open, &kinds::seconds(0..=3600)),
        probes: section.get("probes", usual.probes, &kinds::integer(1..=100)),
    };
    if breaker.open > breaker.max_open {
        section.must_not_exceed("open_secs", "max_open_secs");
    }
    breaker
}

/// The routes in the file's order.
pub(super) fn read_routes(
    entry: Option<Entry>,
    providers: &[ProviderSettings],
    aliases: &[(String, String)],
    findings: &mut Findings,
) -> Vec<RouteSettings> {
    let must = "routes must hold tables such as [routes.best]";
    let entries = named_entries(entry, must, findings);
    let route = |(name, entry)| read_route(name, entry, providers, aliases, findings);
    entries.into_iter().filter_map(route).collect()
}

fn read_route(
    name: String,
    entry: Entry,
    providers: &[ProviderSettings],
    aliases: &[(String, String)],
    findings: &mut Findings,
) -> Option<RouteSettings> {
    let place = entry.origin.clone();
    let mut section = Section::new(format!("routes.{name}"), Some(entry), findings);
    if name.trim().is_empty() || name.contains('/') {
        section.problem(
            place.clone(),
            "a route's name must not be empty or have a `/`",
        );
    }
    let same = |provider: &&ProviderSettings| provider.name.eq_ignore_ascii_case(&name);
    if let Some(provider) = providers.iter().find(same) {
        let text = format!(
            "[providers.{}] has the same name: choose another",
            provider.name
        );
        section.problem(place.clone(), text);
    }
    if let Some((alias, _)) = aliases
        .iter()
        .find(|(alias, _)| alias.eq_ignore_ascii_case(&name))
    {
        let text = format!("aliases.{alias} has the same name: choose another");
        section.problem(place.clone(), text);
    }
    for (alias, _) in aliases
        .iter()
        .filter(|(_, model)| model.trim().eq_ignore_ascii_case(&name))
    {
        let text = format!(
            "aliases.{alias} leads here, and an alias leads to one model: give a route that name"
        );
        section.problem(place.clone(), text);
    }
    let given = section.has("targets");
    let targets = section.maybe("targets", &kinds::texts());
    let balance = section.get(
        "balance",
        Balance::Ordered,
        &kinds::one_of(BALANCES, |balance| Value::from(name_of(BALANCES, *balance))),
    );
    let weights = section.maybe("weights", &kinds::integers(1..=1000));
    let hedge_after = section.maybe("hedge_after", &kinds::hedge_after());
    let hedge_budget = section.maybe("hedge_budget", &kinds::number(0.0..=1.0));
    let continue_midstream = section.get("continue_midstream", false, &kinds::switch());
    let Some(targets) = targets.filter(|targets| (1..=MOST_TARGETS).contains(&targets.len()))
    else {
        let origin = if given {
            section.origin("targets")
        } else {
            place
        };
        let text = format!(
            "targets must be 1 to {MOST_TARGETS} models such as [\"openai/gpt-5.4\", \"groq/openai/gpt-oss-120b\"]"
        );
        section.problem(origin, text);
        section.finish();
        return None;
    };
    if let Some(weights) = &weights {
        let origin = section.origin("weights");
        if balance != Balance::Weighted {
            section.problem(origin, "weights belong to balance = \"weighted\"");
        } else if weights.len() != targets.len() {
            let text = format!(
                "there are {} weights for {} targets",
                weights.len(),
                targets.len()
            );
            section.problem(origin, text);
        }
    }
    if hedge_budget.is_some() && hedge_after.is_none() {
        let origin = section.origin("hedge_budget");
        section.problem(origin, "hedge_budget does nothing without hedge_after");
    }
    if hedge_after.is_some() && targets.len() < 2 {
        let origin = section.origin("hedge_after");
        section.problem(origin, "hedge_after needs a second target to ask");
    }
    section.finish();
    Some(RouteSettings {
        hedge: hedge_after.map(|after| HedgeConfig {
            after,
            budget: hedge_budget.unwrap_or(HEDGE_BUDGET),
        }),
        continue_midstream,
        weights: weights.unwrap_or_else(|| vec![1; targets.len()]),
        name,
        targets,
        balance,
    })
}
