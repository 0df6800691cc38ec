//! `mixed`: small messages beside large ones on the same connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lapce_ai_client::{BlockingClient, MessageType, Options};
use lapce_ai_proto::Class;

use super::probe::calls;
use super::{Rate, Repetition, Report};
use crate::machine::{Cpus, Machine, Side};
use crate::peers::ServerChild;

/// Measure small messages beside large ones on the same connection
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Payload of the small messages in bytes
    #[arg(long, default_value_t = 1024)]
    small: usize,
    /// Payloads of the large messages in bytes
    #[arg(long, value_delimiter = ',', default_values_t = [1 << 20, 10 << 20])]
    large: Vec<usize>,
    /// How often each row is measured, in turn
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Microseconds that both sides spin before they sleep
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// One repetition of 100 ms
    #[arg(long)]
    quick: bool,
    /// Print JSON, with every repetition
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let (repeat, millis) = match arguments.quick {
        true => (1, 100),
        false => (arguments.repeat.max(1), arguments.millis),
    };
    let time = Duration::from_millis(millis);
    let about = format!(
        "echoes of {} bytes, interactive, one after another; beside them echoes of large messages one after another on the \
         same connection, from another thread of the same process; the client's threads share a processor, the server has the other",
        arguments.small
    );
    let mut report = Report::new(Machine::look(&cpus), about);
    let spin = Duration::from_micros(arguments.spin);
    for _ in 0..repeat {
        let server = ServerChild::start(&cpus, spin, 16)?;
        let mut options = Options::new(server.socket());
        options.spin = spin;
        let client = Arc::new(BlockingClient::connect(options)?);
        let alone = calls(&client, arguments.small, Class::Interactive, time)?;
        let small = format!("{} bytes", arguments.small);
        report.add(
            &small,
            "alone",
            Repetition {
                latency: Some(alone),
                rates: Vec::new(),
            },
        );
        for &large in &arguments.large {
            let name = format!("{} KiB", large >> 10);
            let stream = Large::start(&client, large);
            thread::sleep(time);
            let rate = stream.finish(large)?;
            report.add(
                &name,
                "alone",
                Repetition {
                    latency: None,
                    rates: vec![rate],
                },
            );
            let stream = Large::start(&client, large);
            let beside = calls(&client, arguments.small, Class::Interactive, time)?;
            let rate = stream.finish(large)?;
            report.add(
                &small,
                &format!("beside {name}"),
                Repetition {
                    latency: Some(beside),
                    rates: vec![rate],
                },
            );
        }
        Arc::into_inner(client)
            .context("somebody still uses the client")?
            .close();
        server.child.finish()?;
    }
    report.print(arguments.json)?;
    Ok(true)
}

/// Large messages one after another, from a thread.
struct Large {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    began: Instant,
    thread: thread::JoinHandle<Result<()>>,
}

impl Large {
    fn start(client: &Arc<BlockingClient>, payload: usize) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = {
            let (client, stop, done) = (Arc::clone(client), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let body: Vec<u8> = (0..payload).map(|at| (at % 251) as u8).collect();
                let mut answer = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    client.call_into(MessageType::ECHO, &body, &mut answer)?;
                    ensure!(answer == body, "a large answer is not the request's");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        Self {
            stop,
            done,
            began: Instant::now(),
            thread,
        }
    }

    /// Megabytes a second, each way.
    fn finish(self, payload: usize) -> Result<Rate> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the thread with the large messages panicked"))??;
        let seconds = self.began.elapsed().as_secs_f64();
        let bytes = self.done.load(Ordering::Relaxed) as f64 * payload as f64;
        Ok(Rate {
            of: "MB",
            per_second: bytes / 1e6 / seconds,
        })
    }
}
