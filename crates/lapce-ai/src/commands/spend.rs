//! `lapce-ai spend`: what was spent, from the ledger itself.

use std::time::SystemTime;

use lapce_ai_proto::status::{BudgetStatus, Status};
use lapce_ai_providers::{Day, NanoUsd, Totals};
use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::Failure;
use crate::ledger::{By, RequestRow, Store, Sum};
use crate::output::{Output, table};
use crate::serve::spend::ledger_path;

/// The most requests that are listed.
const MOST: u32 = 100;

pub(crate) fn run(config: &Config, days: u32, by: By, json: bool) -> Result<(), Failure> {
    let path = ledger_path(&config.spend).ok_or_else(|| {
        Failure::Usage(
            "there is no home directory for the ledger: set XDG_STATE_HOME or spend.ledger"
                .to_owned(),
        )
    })?;
    let since = Day::of(SystemTime::now()).before(days.saturating_sub(1));
    let failed = |error| {
        Failure::Failed(format!(
            "the ledger {} cannot be read: {error}",
            path.display()
        ))
    };
    let store = Store::look(&path).map_err(failed)?;
    let (sums, requests) = match &store {
        None => (Vec::new(), Vec::new()),
        Some(store) if by == By::Request => (
            store.sums(since, by).map_err(failed)?,
            store.requests(since, MOST).map_err(failed)?,
        ),
        Some(store) => (store.sums(since, by).map_err(failed)?, Vec::new()),
    };
    let mut total = Totals::default();
    for sum in &sums {
        total.add(&sum.totals);
    }
    let mut out = Output::stdout();
    if json {
        let rows: Vec<Value> = match by {
            By::Request => requests.iter().map(request_json).collect(),
            _ => sums.iter().map(|sum| sum_json(by, sum)).collect(),
        };
        out.json(&json!({
            "ledger": path.display().to_string(), "since": since.to_string(), "by": name(by),
            "rows": rows, "total": totals_json(&total),
        }))?;
        return Ok(());
    }
    if total.requests == 0 {
        out.line(&format!("nothing since {since}, by {}", path.display()))?;
        return Ok(());
    }
    let lines = match by {
        By::Request => request_lines(&requests),
        _ => sum_lines(by, &sums, &total),
    };
    for line in lines {
        out.line(&line)?;
    }
    if total.unpriced > 0 {
        out.line("")?;
        out.line("Answers without a known price are not in the money: name a table of prices in spend.prices.")?;
    }
    Ok(())
}

/// What the live view says of spending: nothing where nothing was spent and no budget is set.
pub(super) fn live(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let usd = |nanos: u64| NanoUsd::new(nanos).to_string();
    let text = |text: &str| text.to_owned();
    let spent = status
        .providers
        .iter()
        .filter_map(|provider| Some((provider, provider.spend?)))
        .filter(|(_, spend)| spend.month_requests > 0);
    let mut rows = vec![
        [
            "PROVIDER",
            "TODAY",
            "THIS MONTH",
            "INPUT",
            "OUTPUT",
            "CACHED",
            "UNPRICED",
        ]
        .map(text)
        .to_vec(),
    ];
    rows.extend(spent.map(|(provider, spend)| {
        vec![
            provider.name.clone(),
            usd(spend.today_nano_usd),
            usd(spend.month_nano_usd),
            spend.month_input_tokens.to_string(),
            spend.month_output_tokens.to_string(),
            spend.month_cached.to_string(),
            spend.month_unpriced.to_string(),
        ]
    }));
    let mut part = |rows: Vec<Vec<String>>| {
        if rows.len() > 1 {
            lines.push(String::new());
            lines.extend(table(&rows));
        }
    };
    part(rows);
    let mut rows = vec![
        ["BUDGET", "OF", "SPENT", "RESERVED", "SOFT", "HARD", "UNTIL"]
            .map(text)
            .to_vec(),
    ];
    rows.extend(status.budgets.iter().map(|budget| {
        let limit = |limit: Option<u64>| limit.map_or_else(|| text("-"), usd);
        vec![
            format!("{} a {}", budget.name, budget.per),
            whose(budget),
            usd(budget.spent_nano_usd),
            usd(budget.reserved_nano_usd),
            limit(budget.soft_nano_usd),
            limit(budget.hard_nano_usd),
            budget.until.clone(),
        ]
    }));
    part(rows);
    if let Some(cache) = &status.cache {
        lines.push(String::new());
        lines.push(format!(
            "cache: {} answers, {} bytes; {} hits, {} joined, {} misses, {} evicted",
            cache.answers, cache.bytes, cache.hits, cache.joined, cache.misses, cache.evicted
        ));
    }
    if let Some(trouble) = status
        .ledger
        .as_ref()
        .and_then(|ledger| ledger.trouble.as_ref())
    {
        lines.push(String::new());
        lines.push(format!(
            "The ledger is not written, and what is spent is counted in memory only: {trouble}"
        ));
    }
    lines
}

fn whose(budget: &BudgetStatus) -> String {
    let client = budget.client.map(|uid| format!("uid {uid}"));
    let parts: Vec<String> = client.into_iter().chain(budget.provider.clone()).collect();
    match parts.is_empty() {
        true => "all".to_owned(),
        false => parts.join(" at "),
    }
}

fn name(by: By) -> &'static str {
    match by {
        By::Provider => "provider",
        By::Model => "model",
        By::Client => "client",
        By::Day => "day",
        By::Request => "request",
    }
}

fn sum_lines(by: By, sums: &[Sum], total: &Totals) -> Vec<String> {
    let header = [
        &name(by).to_uppercase(),
        "REQUESTS",
        "CACHED",
        "INPUT",
        "FROM CACHE",
        "OUTPUT",
        "COST",
        "UNPRICED",
    ];
    let row = |of: &str, totals: &Totals| {
        let tokens = &totals.tokens;
        vec![
            of.to_owned(),
            totals.requests.to_string(),
            totals.cached.to_string(),
            tokens.input_tokens.to_string(),
            tokens.cached_input_tokens.to_string(),
            tokens.output_tokens.to_string(),
            totals.cost.to_string(),
            totals.unpriced.to_string(),
        ]
    };
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(sums.iter().map(|sum| row(&sum.of, &sum.totals)));
    rows.push(row("all", total));
    table(&rows)
}

fn request_lines(requests: &[RequestRow]) -> Vec<String> {
    let header = ["TIME (UTC)", "CLIENT", "MODEL", "INPUT", "OUTPUT", "COST"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for request in requests {
        let cost = match request.cost {
            _ if request.cached => "cached".to_owned(),
            None => "unknown".to_owned(),
            Some(cost) if request.estimated => format!("about {cost}"),
            Some(cost) => cost.to_string(),
        };
        let tokens = &request.tokens;
        rows.push(vec![
            time(request.at_ms),
            request.client.to_string(),
            format!("{}/{}", request.provider, request.model),
            tokens.input_tokens.to_string(),
            tokens.output_tokens.to_string(),
            cost,
        ]);
    }
    table(&rows)
}

/// `2026-11-26 14:03:09`.
fn time(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let day = u32::try_from(seconds / 86_400).unwrap_or(u32::MAX);
    let (hours, minutes, rest) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{} {hours:02}:{minutes:02}:{rest:02}", Day::new(day))
}

fn sum_json(by: By, sum: &Sum) -> Value {
    let mut value = totals_json(&sum.totals);
    value[name(by)] = match (by, sum.of.parse::<u32>()) {
        (By::Client, Ok(uid)) => Value::from(uid),
        _ => Value::from(sum.of.as_str()),
    };
    value
}

fn totals_json(totals: &Totals) -> Value {
    let Totals {
        requests,
        cached,
        unpriced,
        estimated,
        tokens,
        cost,
    } = totals;
    json!({
        "requests": requests, "cached": cached, "unpriced": unpriced, "estimated": estimated,
        "inputTokens": tokens.input_tokens, "outputTokens": tokens.output_tokens,
        "cachedInputTokens": tokens.cached_input_tokens, "cacheWriteTokens": tokens.cache_write_tokens,
        "reasoningTokens": tokens.reasoning_tokens, "costNanoUsd": cost.get(),
    })
}

fn request_json(request: &RequestRow) -> Value {
    let tokens = &request.tokens;
    json!({
        "atMs": request.at_ms, "client": request.client, "provider": request.provider, "model": request.model,
        "cached": request.cached, "estimated": request.estimated,
        "inputTokens": tokens.input_tokens, "outputTokens": tokens.output_tokens,
        "cachedInputTokens": tokens.cached_input_tokens, "cacheWriteTokens": tokens.cache_write_tokens,
        "reasoningTokens": tokens.reasoning_tokens, "costNanoUsd": request.cost.map(NanoUsd::get),
    })
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::status::{CacheStatus, LedgerStatus, ProviderStatus, Spending};
    use lapce_ai_providers::Usage;

    use super::*;

    fn words(line: &str) -> String {
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn sums_and_requests_are_tables() {
        let totals = Totals {
            requests: 3,
            unpriced: 1,
            tokens: Usage {
                input_tokens: 10,
                cached_input_tokens: 4,
                output_tokens: 20,
                ..Usage::default()
            },
            cost: NanoUsd::new(1_500_000),
            ..Totals::default()
        };
        let sum = Sum {
            of: "openai".into(),
            totals,
        };
        let lines = sum_lines(By::Provider, std::slice::from_ref(&sum), &totals);
        assert_eq!(words(&lines[1]), "openai 3 0 10 4 20 $0.0015 1");
        assert!(lines[0].starts_with("PROVIDER") && lines[2].starts_with("all"));
        let request = RequestRow {
            at_ms: 1_795_701_789_123,
            client: 1000,
            provider: "p".into(),
            model: "m".into(),
            cached: false,
            estimated: true,
            tokens: totals.tokens,
            cost: Some(totals.cost),
        };
        let lines = request_lines(&[request]);
        assert_eq!(
            words(&lines[1]),
            "2026-11-26 14:03:09 1000 p/m 10 20 about $0.0015"
        );
        let client = Sum {
            of: "1000".into(),
            ..sum
        };
        assert_eq!(sum_json(By::Client, &client)["client"], 1000);
    }

    #[test]
    fn the_live_view_says_what_there_is_to_say() {
        assert!(live(&Status::default()).is_empty());
        let provider = ProviderStatus {
            name: "openai".into(),
            spend: Some(Spending {
                today_nano_usd: 1_000_000_000,
                month_nano_usd: 2_500_000_000,
                month_requests: 9,
                ..Spending::default()
            }),
            ..ProviderStatus::default()
        };
        let status = Status {
            providers: vec![provider, ProviderStatus::default()],
            budgets: vec![BudgetStatus {
                name: "team".into(),
                per: "day".into(),
                client: Some(7),
                provider: Some("openai".into()),
                hard_nano_usd: Some(5_000_000_000),
                until: "2026-12-01".into(),
                ..BudgetStatus::default()
            }],
            cache: Some(CacheStatus {
                hits: 3,
                ..CacheStatus::default()
            }),
            ledger: Some(LedgerStatus {
                file: "/x".into(),
                trouble: Some("disk full".into()),
            }),
            ..Status::default()
        };
        let lines: Vec<String> = live(&status).iter().map(|line| words(line)).collect();
        for part in [
            "openai $1.00 $2.50 0 0 0 0",
            "team a day uid 7 at openai $0.00 $0.00 - $5.00 2026-12-01",
            "cache: 0 answers, 0 bytes; 3 hits, 0 joined, 0 misses, 0 evicted",
        ] {
            assert!(lines.iter().any(|line| line == part), "{lines:?}");
        }
        assert!(lines.last().unwrap().ends_with("only: disk full"));
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.starts_with("openai"))
                .count(),
            1
        );
    }
}
