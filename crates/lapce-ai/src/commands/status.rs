//! `lapce-ai status`.

use lapce_ai_proto::status::{PoolStatus, ReactorStatus, Status};

use super::or_interrupted;
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, table};

pub(crate) fn run(config: &Config, json: bool) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let status = ask(config).await?;
        let mut out = Output::stdout();
        if json {
            out.json(&status)?;
        } else {
            for line in lines(&status) {
                out.line(&line)?;
            }
        }
        Ok(())
    }))
}

/// What the daemon says of itself.
pub(super) async fn ask(config: &Config) -> Result<Status, Failure> {
    let client = launch::connect(config).await?;
    let status = client.status().await?;
    client.close().await;
    Ok(status)
}

fn lines(status: &Status) -> Vec<String> {
    let text = |text: &str| text.to_owned();
    let mut lines = vec![format!(
        "{}, process {}, up {}",
        status.name,
        status.pid,
        span(status.uptime_secs)
    )];
    let mut facts = vec![vec![text("socket"), status.socket.clone()]];
    let config = status.config.clone().unwrap_or_else(|| text("none"));
    facts.push(vec![text("configuration"), config]);
    let model = status.default_model.clone().unwrap_or_else(|| text("none"));
    facts.push(vec![text("default model"), model]);
    if let Some(secs) = status.stops_when_idle_secs {
        facts.push(vec![
            text("stops"),
            format!("after {} without a client", span(secs)),
        ]);
    }
    let counters = &status.counters;
    facts.push(vec![
        text("since the start"),
        format!(
            "{} connections ({} of clients that came again, {} refused, {} cut), {} requests ({} failed, {} cancelled)",
            counters.connections,
            counters.reconnections,
            counters.refused,
            counters.faults,
            counters.requests,
            counters.failed,
            counters.cancelled
        ),
    ]);
    if counters.repeated > 0 {
        let text_of = format!(
            "{} requests came again after a connection was lost, {} of them while they ran",
            counters.repeated, counters.fetched
        );
        facts.push(vec![text("repeated"), text_of]);
    }
    if counters.overruns > 0 {
        let text_of = format!(
            "{} times sync handlers held their reactor up: the log says which",
            counters.overruns
        );
        facts.push(vec![text("overruns"), text_of]);
    }
    let trouble = status.ledger.as_ref();
    if let Some(trouble) = trouble.and_then(|ledger| ledger.trouble.as_ref()) {
        let text_of = format!("counted in memory only, the ledger is not written: {trouble}");
        facts.push(vec![text("spending"), text_of]);
    }
    facts.extend(reactors(&status.reactors));
    facts.extend(budget(&status.pool));
    lines.extend(table(&facts));

    lines.push(String::new());
    lines.extend(buffers(&status.pool));

    lines.push(String::new());
    let mut providers = vec![
        ["PROVIDER", "SOURCE", "DEFAULT MODEL", "ADDRESS"]
            .map(text)
            .to_vec(),
    ];
    for provider in &status.providers {
        providers.push(vec![
            provider.name.clone(),
            provider.source.clone(),
            provider.default_model.clone().unwrap_or_else(|| text("-")),
            provider.base_url.clone().unwrap_or_else(|| text("-")),
        ]);
    }
    lines.extend(table(&providers));

    lines.push(String::new());
    let header = [
        "CONNECTION",
        "REACTOR",
        "NAME",
        "PROCESS",
        "USER",
        "TRANSPORT",
        "REQUESTS",
        "RUNNING",
        "EARLIER",
        "SINCE",
    ];
    let mut connections = vec![header.map(text).to_vec()];
    for connection in &status.connections {
        connections.push(vec![
            connection.id.to_string(),
            connection.reactor.to_string(),
            // A client may call itself what it likes, in one line.
            connection.name.replace(['\n', '\t'], " "),
            connection.pid.to_string(),
            connection.uid.to_string(),
            connection.transport.clone(),
            connection.requests.to_string(),
            connection.in_flight.to_string(),
            connection.earlier.to_string(),
            span(connection.connected_secs),
        ]);
    }
    lines.extend(table(&connections));
    lines
}

/// How the connections lie on the threads that serve them.
fn reactors(reactors: &[ReactorStatus]) -> Option<Vec<String>> {
    let counts = reactors.iter().map(|reactor| reactor.connections);
    let counts: Vec<String> = counts.map(|count| count.to_string()).collect();
    let what = match counts.len() {
        // A daemon of an earlier version does not say.
        0 => return None,
        1 => format!("1, with {} connections", counts[0]),
        all => format!("{all}, with {} connections", counts.join(", ")),
    };
    Some(vec!["reactors".to_owned(), what])
}

/// What is held of the budget, and who has to wait for it.
fn budget(pool: &PoolStatus) -> [Vec<String>; 2] {
    let held = format!(
        "{} of {} held, {} at most so far; {} kept free",
        size(pool.held),
        size(pool.budget),
        size(pool.peak),
        size(pool.kept)
    );
    let waits = format!(
        "{} requests wait for memory, {} ever did: {} together, {} at most",
        pool.waiting,
        pool.waits,
        brief(pool.waited_micros),
        brief(pool.longest_wait_micros)
    );
    [
        vec!["buffers".to_owned(), held],
        vec!["waits".to_owned(), waits],
    ]
}

/// The buffers of each size.
fn buffers(pool: &PoolStatus) -> Vec<String> {
    let header = ["BUFFERS", "IN USE", "KEPT", "CAP", "HITS", "MISSES"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for tier in &pool.tiers {
        let mut row = vec![tier.size.map_or_else(|| "larger".to_owned(), size)];
        let counts = [tier.in_use, tier.kept, tier.cap, tier.hits, tier.misses];
        row.extend(counts.map(|count| count.to_string()));
        rows.push(row);
    }
    table(&rows)
}

/// Bytes in the largest unit that they fill.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) if bytes.trailing_zeros() >= shift => {
            format!("{} {unit}", bytes >> shift)
        }
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / f64::from(1 << shift)),
        None => format!("{bytes} B"),
    }
}

/// A short time.
fn brief(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ => span(micros / 1_000_000),
    }
}

/// A time span in its two largest units.
fn span(secs: u64) -> String {
    let (days, hours, minutes, rest) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::status::{
        ConnectionStatus, Counters, LedgerStatus, ProviderStatus, TierStatus,
    };

    use super::*;

    #[test]
    fn a_status_tells_everything_in_lines() {
        let status = Status {
            name: "lapce-ai 0.1.0".into(),
            pid: 7,
            uptime_secs: 3_700,
            socket: "/run/x.sock".into(),
            stops_when_idle_secs: Some(300),
            default_model: Some("local/local".into()),
            connections: vec![ConnectionStatus {
                id: 3,
                reactor: 1,
                name: "evil\nname".into(),
                ..Default::default()
            }],
            reactors: [7, 6]
                .map(|connections| ReactorStatus {
                    connections,
                    ..Default::default()
                })
                .to_vec(),
            providers: vec![ProviderStatus {
                name: "local".into(),
                source: "built in".into(),
                ..Default::default()
            }],
            pool: PoolStatus {
                budget: 64 << 20,
                held: 5_000,
                peak: 3 << 20,
                kept: 4 << 10,
                waiting: 2,
                waits: 7,
                waited_micros: 1_500,
                longest_wait_micros: 900,
                tiers: vec![
                    TierStatus {
                        size: Some(4 << 10),
                        in_use: 1,
                        kept: 1,
                        cap: 100,
                        hits: 11,
                        misses: 12,
                    },
                    TierStatus::default(),
                ],
            },
            counters: Counters {
                connections: 9,
                reconnections: 4,
                repeated: 3,
                fetched: 2,
                ..Default::default()
            },
            ledger: Some(LedgerStatus {
                file: "/state/spend.db".into(),
                trouble: Some("disk full".into()),
            }),
            ..Status::default()
        };
        let text = lines(&status).join("\n");
        for part in [
            "process 7, up 1 h 1 min",
            "/run/x.sock",
            "after 5 min 0 s",
            "local     built in",
            "3           1        evil name",
            "spending         counted in memory only, the ledger is not written: disk full",
            "reactors         2, with 7, 6 connections",
            "9 connections (4 of clients that came again, 0 refused, 0 cut)",
            "repeated         3 requests came again after a connection was lost, 2 of them while they ran",
            "4.9 KiB of 64 MiB held, 3 MiB at most so far; 4 KiB kept free",
            "2 requests wait for memory, 7 ever did: 1.5 ms together, 900 µs at most",
            "4 KiB    1       1     100  11    12",
            "larger   0       0     0    0     0",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            [999, 1 << 10, 1_536, 2_621_440, 3 << 30].map(size),
            ["999 B", "1 KiB", "1.5 KiB", "2.5 MiB", "3 GiB"]
        );
        assert_eq!(
            [0, 999, 1_000, 2_500_000, 61_000_000].map(brief),
            ["0 µs", "999 µs", "1.0 ms", "2.5 s", "1 min 1 s"]
        );
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(
            [5, 65, 3_605, 90_000].map(span),
            ["5 s", "1 min 5 s", "1 h 0 min", "1 d 1 h"]
        );
    }
}
