//! The whole path: from the upstream's writing of a token to its receipt here, through the daemon and beside it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use lapce_ai_client::BlockingClient;
use lapce_ai_client::ai::{AIRequest, Message as AIMessage, StreamEvent};
use lapce_ai_providers::{ChatRequest, Event, HttpClient, HttpConfig, Message, Provider, Settings};
use serde::Serialize;

use super::formats::Format;
use super::upstream::age;
use crate::child::Child;
use crate::latency::{Latency, histogram};
use crate::linked_daemon::LinkedDaemon;
use crate::machine::Cpus;

/// Longest wait for the upstream.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Route {
    /// A blocking read of the upstream's socket, and our decoder: as good as it gets.
    Socket,
    /// Our providers as a library in the client: hyper on tokio.
    Library,
    /// The daemon's provider, shared memory, our client.
    Daemon,
}

impl Route {
    const ALL: [Self; 3] = [Self::Socket, Self::Library, Self::Daemon];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Socket => "blocking read, our decoder",
            Self::Library => "our providers as a library",
            Self::Daemon => "lapce-ai, shared memory",
        }
    }
}

/// One format on one way.
#[derive(Debug, Serialize)]
pub(super) struct Travelled {
    pub(super) format: &'static str,
    pub(super) route: Route,
    pub(super) name: &'static str,
    /// In nanoseconds.
    pub(super) latency: Latency,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Load {
    pub(super) tokens: usize,
    /// Between two tokens, in microseconds.
    pub(super) gap_micros: u64,
    pub(super) repeat: usize,
}

/// Measures every format on every way, in turn.
pub(super) fn measure(
    formats: &[&'static Format],
    load: Load,
    cpus: &Cpus,
) -> Result<Vec<Travelled>> {
    let mut upstream = Child::start(&["upstream"], cpus, &[])?;
    let port: u16 = upstream.ask("port")?.parse()?;
    let daemon = daemon(formats, port, cpus)?;
    let mut rows = Vec::new();
    for format in formats {
        for route in Route::ALL {
            rows.push((*format, route, histogram()?));
        }
    }
    for _ in 0..load.repeat {
        for (format, route, latencies) in &mut rows {
            let plan = format!("{} {} {}", format.profile, load.tokens, load.gap_micros);
            upstream.ask(&plan)?;
            let found = match route {
                Route::Socket => socket(format, port, latencies),
                Route::Library => library(format, port, latencies),
                Route::Daemon => chat(&daemon.client, format, latencies),
            };
            let what = || format!("{}, {}", format.profile, route.name());
            let tokens = found.with_context(what)?;
            if tokens != load.tokens {
                bail!("{}: {tokens} tokens came of {}", what(), load.tokens);
            }
        }
    }
    daemon.finish()?;
    upstream.finish()?;
    let travelled = rows.into_iter().map(|(format, route, latencies)| {
        Ok(Travelled {
            format: format.profile,
            route,
            name: route.name(),
            latency: Latency::of(&latencies)?,
        })
    });
    travelled.collect()
}

fn socket(format: &Format, port: u16, latencies: &mut Histogram<u64>) -> Result<usize> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
    let mut decoding = format.decoding()?;
    let mut head = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let mut tokens = 0;
    let mut in_body = false;
    loop {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(tokens);
        }
        if in_body {
            decoding.push(&buffer[..read]);
        } else {
            head.extend_from_slice(&buffer[..read]);
            let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            in_body = true;
            decoding.push(&head[end + 4..]);
        }
        while let Some(event) = decoding.next() {
            if let Event::Text(text) = event? {
                latencies.saturating_record(age(text)?.max(1));
                tokens += 1;
            }
        }
    }
}

fn library(format: &Format, port: u16, latencies: &mut Histogram<u64>) -> Result<usize> {
    let settings = Settings {
        base_url: Some(format!("http://127.0.0.1:{port}")),
        key: Some("none".into()),
        region: Some("us-east-1".into()),
        ..Settings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = HttpClient::new(&HttpConfig::default())?;
        let provider = format.profile()?.connect("upstream", &settings, client)?;
        let request = ChatRequest::new("m").with(Message::user("x"));
        let mut stream = provider.chat(&request).await?;
        let mut tokens = 0;
        while let Some(event) = stream.next().await {
            if let Event::Text(text) = event? {
                latencies.saturating_record(age(text)?.max(1));
                tokens += 1;
            }
        }
        Ok(tokens)
    })
}

/// A daemon whose providers all lead to the upstream.
fn daemon(formats: &[&'static Format], port: u16, cpus: &Cpus) -> Result<LinkedDaemon> {
    let providers: String = formats
        .iter()
        .map(|format| {
            let profile = format.profile;
            format!(
                "[providers.to-{profile}]\ntype = \"{profile}\"\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = \"none\"\nregion = \"us-east-1\"\n"
            )
        })
        .collect();
    LinkedDaemon::start(&providers, cpus)
}

fn chat(client: &BlockingClient, format: &Format, latencies: &mut Histogram<u64>) -> Result<usize> {
    let model = format!("to-{}/m", format.profile);
    let request = AIRequest::new(&model, vec![AIMessage::user("x")]);
    let mut tokens = 0;
    for event in client.chat(&request)? {
        if let StreamEvent::Text { text } = event? {
            latencies.saturating_record(age(&text)?.max(1));
            tokens += 1;
        }
    }
    Ok(tokens)
}
