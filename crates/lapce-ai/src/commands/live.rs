//! `lapce-ai providers --live`: how the daemon's providers do now.

use lapce_ai_proto::status::{Breaker, Health, LimitStatus, Probe, Status};

use super::{or_interrupted, spend, status};
use crate::config::Config;
use crate::failure::Failure;
use crate::output::{Output, table};

pub(crate) fn run(config: &Config, json: bool) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let status = status::ask(config).await?;
        let mut out = Output::stdout();
        if json {
            out.json(&serde_json::json!({
                "providers": status.providers, "budgets": status.budgets,
                "cache": status.cache, "ledger": status.ledger,
            }))?;
        } else {
            for line in lines(&status).into_iter().chain(spend::live(&status)) {
                out.line(&line)?;
            }
        }
        Ok(())
    }))
}

fn lines(status: &Status) -> Vec<String> {
    let header = [
        "PROVIDER",
        "ASKED",
        "ANSWERED",
        "FAILED",
        "CANCELLED",
        "RUNNING",
        "WAITING",
        "SHED",
        "FIRST TOKEN p50/p95/p99",
        "KEYS",
        "PROBE",
        "BREAKER",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for provider in &status.providers {
        // A daemon of an earlier version does not say.
        let health = provider.health.clone().unwrap_or_default();
        let counts = [
            health.asked,
            health.answered,
            health.failed,
            health.cancelled,
            health.in_flight,
            health.waiting,
            health.shed,
        ];
        let mut row = vec![provider.name.clone()];
        row.extend(counts.map(|count| count.to_string()));
        row.extend([
            first_token(&health),
            keys(&health),
            health.probe.as_ref().map_or_else(|| "-".to_owned(), probe),
            breakers(&health.breakers),
        ]);
        rows.push(row);
    }
    let mut lines = table(&rows);
    let limits = limits(status);
    if limits.len() > 1 {
        lines.push(String::new());
        lines.extend(table(&limits));
    }
    lines
}

/// What is left of each limit, where there are any.
fn limits(status: &Status) -> Vec<Vec<String>> {
    let header = ["PROVIDER", "LIMIT", "LEFT", "OF", "FULL IN", "FROM"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for provider in &status.providers {
        let limits = provider.health.iter().flat_map(|health| &health.limits);
        rows.extend(limits.map(|limit| one_limit(&provider.name, limit)));
    }
    rows
}

fn one_limit(provider: &str, limit: &LimitStatus) -> Vec<String> {
    let key = limit.key.map(|key| format!("key {key} "));
    let model = limit.model.as_deref().map(|model| format!("{model} "));
    let measure = limit.measure.replace('_', " ");
    let per = match (limit.measure.as_str(), limit.learned) {
        ("in_flight", _) | (_, true) => "",
        _ => " per minute",
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        provider.to_owned(),
        format!(
            "{}{}{measure}{per}",
            key.unwrap_or_default(),
            model.unwrap_or_default()
        ),
        limit.left.to_string(),
        or_dash(limit.most.map(|most| most.to_string())),
        or_dash(
            limit
                .reset_ms
                .map(|millis| format!("{} s", millis.div_ceil(1000))),
        ),
        match limit.learned {
            true => "its headers",
            false => "configuration",
        }
        .to_owned(),
    ]
}

fn first_token(health: &Health) -> String {
    let times = [
        health.first_token_p50_ms,
        health.first_token_p95_ms,
        health.first_token_p99_ms,
    ];
    match times {
        [Some(half), Some(most), Some(nearly)] => format!("{half}/{most}/{nearly} ms"),
        _ => "-".to_owned(),
    }
}

fn keys(health: &Health) -> String {
    match health.resting_keys {
        0 => health.keys.to_string(),
        resting => format!(
            "{}, {resting} resting{}",
            health.keys,
            for_seconds(health.rest_ms)
        ),
    }
}

fn probe(probe: &Probe) -> String {
    let ago = probe.ago_ms / 1000;
    match &probe.why {
        None => format!("{} ms, {ago} s ago", probe.took_ms),
        Some(why) => format!("{}, {ago} s ago", why.replace('_', " ")),
    }
}

fn breakers(breakers: &[Breaker]) -> String {
    if breakers.is_empty() {
        return "closed".to_owned();
    }
    let one = |breaker: &Breaker| {
        let model = breaker.model.as_deref().map(|model| format!("{model} "));
        let state = breaker.state.replace('_', " ");
        format!(
            "{}{state}{}",
            model.unwrap_or_default(),
            for_seconds(breaker.open_ms)
        )
    };
    breakers.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn for_seconds(millis: Option<u64>) -> String {
    millis.map_or_else(String::new, |millis| {
        format!(" for {} s", millis.div_ceil(1000))
    })
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::status::ProviderStatus;

    use super::*;

    #[test]
    fn one_line_a_provider() {
        let health = Health {
            asked: 12,
            answered: 9,
            failed: 2,
            cancelled: 1,
            first_token_p50_ms: Some(200),
            first_token_p95_ms: Some(900),
            first_token_p99_ms: Some(1200),
            breakers: vec![
                Breaker {
                    model: Some("gpt-x".to_owned()),
                    state: "open".to_owned(),
                    open_ms: Some(4001),
                },
                Breaker {
                    state: "half_open".to_owned(),
                    ..Breaker::default()
                },
            ],
            keys: 2,
            resting_keys: 1,
            rest_ms: Some(30_000),
            waiting: 4,
            shed: 5,
            limits: vec![
                LimitStatus {
                    scope: "provider".to_owned(),
                    measure: "in_flight".to_owned(),
                    most: Some(8),
                    left: 3,
                    ..LimitStatus::default()
                },
                LimitStatus {
                    scope: "key".to_owned(),
                    measure: "input_tokens".to_owned(),
                    model: Some("gpt-x".to_owned()),
                    key: Some(2),
                    left: 900,
                    reset_ms: Some(1500),
                    learned: true,
                    ..LimitStatus::default()
                },
            ],
            probe: Some(Probe {
                ok: true,
                took_ms: 80,
                ago_ms: 2900,
                why: None,
            }),
            ..Health::default()
        };
        let provider = |name: &str, health| ProviderStatus {
            name: name.to_owned(),
            health,
            ..ProviderStatus::default()
        };
        let status = Status {
            providers: vec![provider("openai", Some(health)), provider("old", None)],
            ..Status::default()
        };
        let lines = lines(&status);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "openai 12 9 2 1 0 4 5 200/900/1200 ms 2, 1 resting for 30 s 80 ms, 2 s ago gpt-x open for 5 s, half open"
        );
        assert!(lines[2].ends_with("closed"), "{lines:?}");
        let limits = lines[5..].iter().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.join(" ")
        });
        let expected = [
            "openai in flight 3 8 - configuration",
            "openai key 2 gpt-x input tokens 900 - 2 s its headers",
        ];
        assert!(limits.eq(expected), "{lines:?}");
    }
}
