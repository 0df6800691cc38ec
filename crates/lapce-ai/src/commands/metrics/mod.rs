//! `lapce-ai metrics`: what `status` tells in numbers, as Prometheus reads it.
//!
//! Names have the units that Prometheus wants: seconds, bytes, and `_total` for what only grows.

mod text;

use std::collections::BTreeMap;

use lapce_ai_proto::status::{BudgetStatus, Health, LimitStatus, ProviderStatus, Status};

use self::text::Kind::{self, Counter, Gauge};
use self::text::{Text, seconds_of_micros, seconds_of_millis, usd};
use super::{or_interrupted, status};
use crate::config::Config;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let status = status::ask(config).await?;
        Output::stdout().text(&exposition(&status))?;
        Ok(())
    }))
}

fn exposition(status: &Status) -> String {
    let mut text = Text(String::new());
    process(&mut text, status);
    clients(&mut text, status);
    buffers(&mut text, status);
    providers(&mut text, &status.providers);
    limits(&mut text, &status.providers);
    spending(&mut text, status);
    text.0
}

fn process(text: &mut Text, status: &Status) {
    let named = vec![("version", status.name.as_str())];
    text.family(
        "info",
        Gauge,
        "Which daemon it is.",
        [(named, "1".to_owned())],
    );
    text.one(
        "uptime_seconds",
        Gauge,
        "Since the daemon started.",
        status.uptime_secs,
    );
    text.one(
        "tasks",
        Gauge,
        "What runs beside the reactors.",
        status.tasks,
    );
}

fn clients(text: &mut Text, status: &Status) {
    let mut by_transport: BTreeMap<&str, u64> = BTreeMap::new();
    for connection in &status.connections {
        *by_transport.entry(&connection.transport).or_default() += 1;
    }
    let counts = by_transport
        .iter()
        .map(|(transport, count)| (vec![("transport", *transport)], count.to_string()));
    text.family("connections", Gauge, "Clients that are connected.", counts);
    let in_flight: u64 = status.connections.iter().map(|c| c.in_flight).sum();
    text.one(
        "requests_in_flight",
        Gauge,
        "Requests under way.",
        in_flight,
    );
    let counters = &status.counters;
    for (name, help, count) in [
        (
            "connections_taken",
            "Connections taken.",
            counters.connections,
        ),
        (
            "reconnections",
            "Those of them whose clients had had one before.",
            counters.reconnections,
        ),
        (
            "connections_refused",
            "Connections refused.",
            counters.refused,
        ),
        (
            "connection_faults",
            "Connections cut for a fault.",
            counters.faults,
        ),
        ("requests", "Requests taken.", counters.requests),
        (
            "requests_failed",
            "Requests that ended with an error.",
            counters.failed,
        ),
        (
            "requests_cancelled",
            "Requests cancelled.",
            counters.cancelled,
        ),
        (
            "requests_repeated",
            "Requests that came again after their connection was lost.",
            counters.repeated,
        ),
        (
            "requests_fetched",
            "Those of them that ran on meanwhile.",
            counters.fetched,
        ),
        (
            "handler_overruns",
            "Times that sync handlers held a reactor up for too long.",
            counters.overruns,
        ),
    ] {
        text.one(name, Counter, help, count);
    }
    let numbers: Vec<String> = (0..status.reactors.len()).map(|n| n.to_string()).collect();
    let reactors = || numbers.iter().zip(&status.reactors);
    text.family(
        "reactor_connections",
        Gauge,
        "Connections that a reactor serves.",
        reactors().map(|(n, r)| (vec![("reactor", n.as_str())], r.connections.to_string())),
    );
    text.family(
        "reactor_requests",
        Counter,
        "Requests that a reactor's connections made.",
        reactors().map(|(n, r)| (vec![("reactor", n.as_str())], r.requests.to_string())),
    );
}

fn buffers(text: &mut Text, status: &Status) {
    let pool = &status.pool;
    for (name, kind, help, value) in [
        (
            "budget_bytes",
            Gauge,
            "Payload that may be held at once.",
            pool.budget,
        ),
        ("held_bytes", Gauge, "Payload that is held.", pool.held),
        (
            "held_peak_bytes",
            Gauge,
            "The most that was ever held.",
            pool.peak,
        ),
        ("kept_bytes", Gauge, "Kept free for reuse.", pool.kept),
        (
            "waiting",
            Gauge,
            "Requests that wait for the budget.",
            pool.waiting,
        ),
        (
            "waits",
            Counter,
            "Requests that had to wait for it.",
            pool.waits,
        ),
    ] {
        text.one(&format!("buffers_{name}"), kind, help, value);
    }
    text.one(
        "buffers_waited_seconds",
        Counter,
        "How long all of them waited together.",
        seconds_of_micros(pool.waited_micros),
    );
    text.one(
        "buffers_longest_wait_seconds",
        Gauge,
        "The longest wait that is over.",
        seconds_of_micros(pool.longest_wait_micros),
    );
    let sizes = pool.tiers.iter().map(|tier| {
        let larger = || "larger".to_owned();
        tier.size.map_or_else(larger, |size| size.to_string())
    });
    let sizes: Vec<String> = sizes.collect();
    let mut tiers = |name: &str, kind, help: &str, count: &dyn Fn(usize) -> u64| {
        let samples = sizes.iter().enumerate();
        let samples = samples.map(|(at, size)| (vec![("size", &**size)], count(at).to_string()));
        text.family(&format!("buffers_{name}"), kind, help, samples);
    };
    let of = |at: usize| &pool.tiers[at];
    tiers("in_use", Gauge, "Buffers that hold payload.", &|at| {
        of(at).in_use
    });
    tiers("kept", Gauge, "Buffers kept free for reuse.", &|at| {
        of(at).kept
    });
    tiers("hits", Counter, "Taken from the kept ones.", &|at| {
        of(at).hits
    });
    tiers("misses", Counter, "Those that needed new memory.", &|at| {
        of(at).misses
    });
}

fn providers(text: &mut Text, providers: &[ProviderStatus]) {
    type Count = fn(&Health) -> u64;
    let healths = || {
        let healths = providers.iter();
        healths.filter_map(|p| Some((p.name.as_str(), p.health.as_ref()?)))
    };
    let counts: [(&str, Kind, &str, Count); 10] = [
        ("in_flight", Gauge, "Requests under way.", |h| h.in_flight),
        (
            "asked",
            Counter,
            "Requests sent to it, retries included.",
            |h| h.asked,
        ),
        ("answered", Counter, "Those answered whole.", |h| h.answered),
        ("failed", Counter, "Those that failed.", |h| h.failed),
        (
            "cancelled",
            Counter,
            "Those given up by whoever asked.",
            |h| h.cancelled,
        ),
        ("keys", Gauge, "Keys that it has.", |h| h.keys),
        (
            "keys_resting",
            Gauge,
            "Keys that rest after a refusal.",
            |h| h.resting_keys,
        ),
        (
            "waiting",
            Gauge,
            "Requests that wait for its limits.",
            |h| h.waiting,
        ),
        (
            "queued",
            Counter,
            "Requests that had to wait for its limits.",
            |h| h.queued,
        ),
        (
            "shed",
            Counter,
            "Requests sent away for want of room.",
            |h| h.shed,
        ),
    ];
    for (name, kind, help, count) in counts {
        text.family(
            &format!("provider_{name}"),
            kind,
            help,
            healths().map(|(p, h)| (vec![("provider", p)], count(h).to_string())),
        );
    }
    let first_tokens = healths().flat_map(|(provider, health)| {
        let quantiles = [
            ("0.5", health.first_token_p50_ms),
            ("0.95", health.first_token_p95_ms),
            ("0.99", health.first_token_p99_ms),
        ];
        quantiles.into_iter().filter_map(move |(quantile, millis)| {
            let labels = vec![("provider", provider), ("quantile", quantile)];
            Some((labels, seconds_of_millis(millis?)))
        })
    });
    text.family(
        "provider_first_token_seconds",
        Gauge,
        "Time to the first token of the last 256 answers.",
        first_tokens,
    );
    let breakers = healths().flat_map(|(provider, health)| {
        health.breakers.iter().map(move |breaker| {
            let model = breaker.model.as_deref().unwrap_or_default();
            let state = breaker.state.as_str();
            let labels = vec![("provider", provider), ("model", model), ("state", state)];
            (labels, "1".to_owned())
        })
    });
    text.family(
        "provider_breaker",
        Gauge,
        "Circuit breakers that are not closed; without a model: the way to the provider.",
        breakers,
    );
    let probes = || healths().filter_map(|(p, h)| Some((vec![("provider", p)], h.probe.as_ref()?)));
    text.family(
        "provider_probe_ok",
        Gauge,
        "Whether the last active probe was answered.",
        probes().map(|(labels, probe)| (labels, u8::from(probe.ok).to_string())),
    );
    text.family(
        "provider_probe_seconds",
        Gauge,
        "How long it took.",
        probes().map(|(labels, probe)| (labels, seconds_of_millis(probe.took_ms))),
    );
}

fn limits(text: &mut Text, providers: &[ProviderStatus]) {
    let all = providers.iter().flat_map(|provider| {
        let limits = provider.health.iter().flat_map(|health| &health.limits);
        limits.map(|limit| (provider.name.as_str(), limit))
    });
    let all: Vec<(&str, &LimitStatus)> = all.collect();
    // Windows of one measure, such as a minute's and a day's, are told apart by their sizes.
    let numbers = all.iter().map(|(_, limit)| {
        let text = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
        (text(limit.key), text(limit.most))
    });
    let numbers: Vec<(String, String)> = numbers.collect();
    let samples = all
        .iter()
        .zip(&numbers)
        .map(|((provider, limit), (key, most))| {
            let labels = vec![
                ("provider", *provider),
                ("scope", limit.scope.as_str()),
                ("measure", limit.measure.as_str()),
                ("model", limit.model.as_deref().unwrap_or_default()),
                ("key", key.as_str()),
                ("most", most.as_str()),
            ];
            (labels, limit.left.to_string())
        });
    text.family(
        "provider_limit_left",
        Gauge,
        "What is left of a limit.",
        samples,
    );
}

fn spending(text: &mut Text, status: &Status) {
    let spends = || {
        let providers = status.providers.iter();
        providers.filter_map(|p| Some((vec![("provider", p.name.as_str())], p.spend?)))
    };
    text.family(
        "spent_today_usd",
        Gauge,
        "What a provider's answers cost today, in UTC.",
        spends().map(|(labels, spend)| (labels, usd(spend.today_nano_usd))),
    );
    text.family(
        "spent_month_usd",
        Gauge,
        "What they cost this month, in UTC.",
        spends().map(|(labels, spend)| (labels, usd(spend.month_nano_usd))),
    );
    let tokens = spends().flat_map(|(labels, spend)| {
        let directions = [
            ("input", spend.month_input_tokens),
            ("output", spend.month_output_tokens),
        ];
        directions.map(|(direction, tokens)| {
            let mut labels = labels.clone();
            labels.push(("direction", direction));
            (labels, tokens.to_string())
        })
    });
    text.family("month_tokens", Gauge, "Tokens of this month.", tokens);

    let uids = status.budgets.iter().map(|budget| {
        let uid = budget.client.map(|uid| uid.to_string());
        uid.unwrap_or_default()
    });
    let uids: Vec<String> = uids.collect();
    let mut budgets = |name: &str, help: &str, amount: fn(&BudgetStatus) -> Option<u64>| {
        let samples = status
            .budgets
            .iter()
            .zip(&uids)
            .filter_map(|(budget, uid)| {
                let provider = budget.provider.as_deref().unwrap_or_default();
                let labels = vec![
                    ("budget", budget.name.as_str()),
                    ("per", budget.per.as_str()),
                    ("provider", provider),
                    ("client", uid.as_str()),
                ];
                Some((labels, usd(amount(budget)?)))
            });
        text.family(&format!("budget_{name}_usd"), Gauge, help, samples);
    };
    budgets("spent", "What was spent of a budget.", |b| {
        Some(b.spent_nano_usd)
    });
    budgets("reserved", "What requests under way may cost.", |b| {
        Some(b.reserved_nano_usd)
    });
    budgets("soft", "From here on there are warnings.", |b| {
        b.soft_nano_usd
    });
    budgets("hard", "No request may lead beyond it.", |b| {
        b.hard_nano_usd
    });

    if let Some(cache) = &status.cache {
        for (name, kind, help, value) in [
            ("answers", Gauge, "Answers that are kept.", cache.answers),
            ("bytes", Gauge, "The memory that they take.", cache.bytes),
            (
                "hits",
                Counter,
                "Requests answered from what is kept.",
                cache.hits,
            ),
            (
                "joined",
                Counter,
                "Requests that joined one under way.",
                cache.joined,
            ),
            (
                "misses",
                Counter,
                "Requests that were not found.",
                cache.misses,
            ),
            (
                "evicted",
                Counter,
                "Answers that made room for others.",
                cache.evicted,
            ),
        ] {
            text.one(&format!("cache_{name}"), kind, help, value);
        }
    }
    if let Some(ledger) = &status.ledger {
        text.one(
            "ledger_written",
            Gauge,
            "Whether what is spent is written to the ledger.",
            u8::from(ledger.trouble.is_none()),
        );
    }
}

#[cfg(test)]
mod tests;
