//! `lapce-ai providers --live`: how the daemon's providers do now.

use lapce_ai_proto::status::{Breaker, Health, Status};

use super::{or_interrupted, spend};
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, table};

pub(crate) fn run(config: &Config, json: bool) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let client = launch::connect(config).await?;
        let status = client.status().await?;
        client.close().await;
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
        "FIRST TOKEN p50/p95/p99",
        "KEYS",
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
        ];
        let mut row = vec![provider.name.clone()];
        row.extend(counts.map(|count| count.to_string()));
        row.extend([
            first_token(&health),
            keys(&health),
            breakers(&health.breakers),
        ]);
        rows.push(row);
    }
    table(&rows)
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
            "openai 12 9 2 1 0 200/900/1200 ms 2, 1 resting for 30 s gpt-x open for 5 s, half open"
        );
        assert!(lines[2].ends_with("closed"), "{lines:?}");
    }
}
