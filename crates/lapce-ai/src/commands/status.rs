//! `lapce-ai status`.

use lapce_ai_proto::status::Status;

use super::or_interrupted;
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
            out.json(&status)?;
        } else {
            for line in lines(&status) {
                out.line(&line)?;
            }
        }
        Ok(())
    }))
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
            "{} connections ({} refused, {} cut), {} requests ({} failed, {} cancelled)",
            counters.connections,
            counters.refused,
            counters.faults,
            counters.requests,
            counters.failed,
            counters.cancelled
        ),
    ]);
    lines.extend(table(&facts));

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
        "NAME",
        "PROCESS",
        "USER",
        "TRANSPORT",
        "REQUESTS",
        "RUNNING",
        "SINCE",
    ];
    let mut connections = vec![header.map(text).to_vec()];
    for connection in &status.connections {
        connections.push(vec![
            connection.id.to_string(),
            // A client may call itself what it likes, in one line.
            connection.name.replace(['\n', '\t'], " "),
            connection.pid.to_string(),
            connection.uid.to_string(),
            connection.transport.clone(),
            connection.requests.to_string(),
            connection.in_flight.to_string(),
            span(connection.connected_secs),
        ]);
    }
    lines.extend(table(&connections));
    lines
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
    use lapce_ai_proto::status::{ConnectionStatus, ProviderStatus};

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
                name: "evil\nname".into(),
                ..Default::default()
            }],
            providers: vec![ProviderStatus {
                name: "local".into(),
                source: "built in".into(),
                ..Default::default()
            }],
            ..Status::default()
        };
        let text = lines(&status).join("\n");
        for part in [
            "process 7, up 1 h 1 min",
            "/run/x.sock",
            "after 5 min 0 s",
            "local     built in",
            "evil name",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(
            [5, 65, 3_605, 90_000].map(span),
            ["5 s", "1 min 5 s", "1 h 0 min", "1 d 1 h"]
        );
    }
}
