//! How long it takes until a provider's work ends once its client does not want it any more: from the client through shared
//! memory, the daemon and its pool to the provider's socket, each in a process of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use lapce_ai_client::ai::{AIRequest, Message};
use lapce_ai_client::{Client, ErrorCode, ItemStream, MessageType, Options, RequestOptions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::child::{Child, Parent};
use crate::linked_daemon::LinkedDaemon;
use crate::load::LONGEST_NS;
use crate::machine::{Cpus, monotonic};
use crate::upstream::{LONGEST, event, length_of_request};

/// How late the provider may see it.
pub(crate) const LIMIT: Duration = Duration::from_millis(10);
/// Between two words of the provider's.
pub(crate) const GAP: Duration = Duration::from_millis(10);
/// Longest wait for an end that does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a client gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Cancel,
    Deadline,
    /// The client is closed. (One that dies without a word might come again: what it asked runs on for a moment.)
    Disconnect,
}

impl By {
    const ALL: [Self; 3] = [Self::Cancel, Self::Deadline, Self::Disconnect];

    fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Deadline => "deadline",
            Self::Disconnect => "disconnect",
        }
    }

    /// A deadline travels in whole milliseconds, rounded down; an end that is early by that counts as one in time.
    fn may_be_early(self) -> Duration {
        match self {
            Self::Deadline => Duration::from_millis(1),
            _ => Duration::ZERO,
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Requests that are given up in each way.
    pub(crate) samples: u32,
    /// Of those that are given up by it: long enough for the provider to have begun.
    pub(crate) deadline: Duration,
}

/// One way.
#[derive(Debug)]
pub(crate) struct Row {
    by: By,
    /// Nanoseconds from the moment at which the client gave up to the end at the provider.
    times: Histogram<u64>,
    /// How many of them are longer than the limit.
    late: u32,
}

impl Row {
    pub(crate) fn name(&self) -> &'static str {
        self.by.name()
    }

    pub(crate) fn samples(&self) -> u64 {
        self.times.len()
    }

    /// p50, p99 and the longest, in milliseconds.
    pub(crate) fn times_ms(&self) -> [f64; 3] {
        let at = |quantile| self.times.value_at_quantile(quantile) as f64 / 1e6;
        [at(0.5), at(0.99), self.times.max() as f64 / 1e6]
    }

    pub(crate) fn late(&self) -> u32 {
        self.late
    }

    pub(crate) fn json(&self) -> Value {
        let [p50, p99, max] = self.times_ms();
        json!({"by": self.name(), "samples": self.samples(), "p50_ms": p50, "p99_ms": p99, "max_ms": max, "late": self.late})
    }
}

/// Gives up one request after the other, in each of the ways.
pub(crate) fn measure(plan: Plan, runtime: &Runtime, cpus: &Cpus) -> Result<Vec<Row>> {
    let mut provider = Child::start(&["slow-provider"], cpus, &[])?;
    let port = provider.ask("port")?;
    let provider_config = format!(
        "[providers.slow]\ntype = \"openai\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = \"none\"\n"
    );
    let mut rows = Vec::new();
    for by in By::ALL {
        let daemon = LinkedDaemon::start(&provider_config, cpus)?;
        let socket = daemon.socket();
        let mut row = Row {
            by,
            times: Histogram::new_with_bounds(1, LONGEST_NS, 3)?,
            late: 0,
        };
        // The first one makes what all others find made.
        for number in 0..=plan.samples {
            let what = || format!("giving up by {}", by.name());
            let (client, given_up) = runtime
                .block_on(give_up(by, &socket, plan.deadline))
                .with_context(what)?;
            let ended = provider.ask("ended").with_context(what)?.parse::<u64>()?;
            // Not before: it would do what a cancel or a deadline may have left undone.
            runtime.block_on(client.close());
            let early = Duration::from_nanos(given_up.saturating_sub(ended));
            ensure!(
                early <= by.may_be_early(),
                "{}: the provider's connection had ended {early:?} before",
                what()
            );
            if number > 0 {
                let took = ended.saturating_sub(given_up);
                row.times.saturating_record(took.max(1));
                row.late += u32::from(Duration::from_nanos(took) > LIMIT);
            }
        }
        daemon.finish()?;
        rows.push(row);
    }
    provider.finish()?;
    Ok(rows)
}

/// Asks, hears the answer begin, and gives it up: who did, and when.
async fn give_up(by: By, socket: &Path, deadline: Duration) -> Result<(Client, u64)> {
    let client = Client::connect(Options::new(socket)).await?;
    let request = AIRequest::new("slow/m", vec![Message::user("Say something long.")]);
    let body = serde_json::to_vec(&request)?;
    let options = RequestOptions {
        deadline: (by == By::Deadline).then_some(deadline),
        ..RequestOptions::default()
    };
    let asked = monotonic();
    let mut items = client.stream(MessageType::CHAT, &body, &options).await?;
    let first = items.next().await.context("an answer without an end")?;
    ensure!(first?.starts_with(b"{\"type\":\"start\""), "a wrong answer");
    if by == By::Deadline {
        until_deadline(&mut items).await?;
        return Ok((client, asked + deadline.as_nanos() as u64));
    }
    // At any moment between two words.
    tokio::time::sleep(GAP.mul_f64(fastrand::f64())).await;
    let given_up = monotonic();
    match by {
        By::Cancel => drop(items),
        // All of its clones.
        _ => client.clone().close().await,
    }
    Ok((client, given_up))
}

async fn until_deadline(items: &mut ItemStream) -> Result<()> {
    loop {
        match items.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) if error.code() == Some(ErrorCode::DeadlineExceeded) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            None => bail!("the answer came to its end"),
        }
    }
}

/// The child: a provider that speaks slowly and for ever, and says when each of those who asked had gone.
pub(crate) fn provider(parent: Parent) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let (ended, ends) = channel();
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let ended = ended.clone();
            thread::spawn(move || speak(connection, &ended));
        }
    });
    parent.serve(|request| match request {
        "port" => Ok(port.clone()),
        "ended" => {
            let end = ends.recv_timeout(PATIENCE);
            let end: u64 = end.context("no provider's connection ended")?;
            Ok(end.to_string())
        }
        other => bail!("asked for {other:?}"),
    })
}

/// Answers one request until nobody listens. A connection that ends before it asked is of no interest.
fn speak(mut connection: TcpStream, ended: &Sender<u64>) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while length_of_request(&bytes).is_none() {
        let read = connection.read(&mut buffer)?;
        ensure!(read > 0 && bytes.len() < LONGEST, "no request");
        bytes.extend_from_slice(&buffer[..read]);
    }
    connection.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
    )?;
    connection.set_read_timeout(Some(GAP))?;
    let word = event(&json!({"content": "word "}), None);
    while connection.write_all(word.as_bytes()).is_ok() {
        match connection.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => bail!("more than a request"),
            // Nothing comes, and nobody has gone.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A reset is as good as an end.
            Err(_) => break,
        }
    }
    ended.send(monotonic())?;
    Ok(())
}
