//! Sections `[spend]` and `[budgets.<name>]`: what answers cost, where that is kept, and how much they may.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapce_ai_providers::{Budget, Clients, NanoUsd, Period};
use serde_json::Value;

use super::layers::{Entry, Raw, Table};
use super::section::{self, Findings, Section};
use super::{beside, kinds, name_of};

const PERIODS: &[(&str, Period)] = &[("day", Period::Day), ("month", Period::Month)];
/// The largest budget, in dollars.
const MOST: f64 = 1e9;

/// Section `[spend]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendSettings {
    /// Whether it is kept across restarts.
    pub keep: bool,
    /// The ledger's file; `None`: in the state directory.
    pub ledger: Option<PathBuf>,
    /// How long requests are listed one by one.
    pub keep_requests: Duration,
    /// A file of prices that go before the built-in ones.
    pub prices: Option<PathBuf>,
}

pub(super) fn read_spend(
    tree: &mut Table,
    place: Option<&Path>,
    findings: &mut Findings,
) -> SpendSettings {
    let mut section = Section::take(tree, "spend", findings);
    let keep = section.get("keep", true, &kinds::switch());
    let mut file = |key| {
        let path = section.maybe(key, &kinds::path());
        path.map(|path| beside(place, path))
    };
    let (ledger, prices) = (file("ledger"), file("prices"));
    let days = section.get("keep_requests_days", 30, &kinds::integer(0..=3650u32));
    section.finish();
    SpendSettings {
        keep,
        ledger,
        keep_requests: Duration::from_secs(u64::from(days) * 86_400),
        prices,
    }
}

/// The budgets in the file's order.
pub(super) fn read_budgets(entry: Option<Entry>, findings: &mut Findings) -> Vec<Budget> {
    let must = "budgets must hold tables such as [budgets.all]";
    let entries = section::named_entries(entry, must, findings);
    let budget = |(name, entry)| read_budget(name, entry, findings);
    entries.into_iter().filter_map(budget).collect()
}

fn read_budget(name: String, entry: Entry, findings: &mut Findings) -> Option<Budget> {
    let place = entry.origin.clone();
    let mut section = Section::new(format!("budgets.{name}"), Some(entry), findings);
    let period = section.get(
        "per",
        Period::Month,
        &kinds::one_of(PERIODS, |period| Value::from(name_of(PERIODS, *period))),
    );
    let provider = section.maybe("provider", &kinds::text("a provider's name"));
    let clients = section.get("clients", Clients::All, &clients());
    let mut dollars = |key| {
        let amount = section.maybe(key, &kinds::number(0.0..=MOST));
        amount.map(NanoUsd::from_dollars)
    };
    let (soft, hard) = (dollars("soft_usd"), dollars("hard_usd"));
    let refuse_unpriced = section.get("refuse_unpriced", false, &kinds::switch());
    if soft.is_none() && hard.is_none() {
        section.problem(place, "soft_usd or hard_usd must say how much it is");
    } else if soft > hard && hard.is_some() {
        let origin = section.origin("soft_usd");
        section.problem(origin, "soft_usd must not be more than hard_usd");
    }
    section.finish();
    Some(Budget {
        name,
        period,
        provider,
        clients,
        soft,
        hard,
        refuse_unpriced,
    })
}

fn clients() -> kinds::Kind<Clients> {
    let read = |raw: &Raw| match raw {
        Raw::Int(uid) => Some(Clients::One(u32::try_from(*uid).ok()?)),
        Raw::Text(text) | Raw::Untyped(text) => match text.trim().to_lowercase().as_str() {
            "all" => Some(Clients::All),
            "each" => Some(Clients::Each),
            uid => Some(Clients::One(uid.parse().ok()?)),
        },
        _ => None,
    };
    kinds::Kind::new(
        "\"all\", \"each\" or a user id",
        read,
        |clients| match clients {
            Clients::All => Value::from("all"),
            Clients::Each => Value::from("each"),
            Clients::One(uid) => Value::from(*uid),
        },
    )
}
