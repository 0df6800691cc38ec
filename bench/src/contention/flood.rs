//! A process that keeps a server busy with requests of one class.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_client::{Client, MessageType, Options, RequestOptions};
use lapce_ai_proto::Class;

use crate::child::{Child, Parent};
use crate::machine::Cpus;

/// Several such processes, with a connection each.
#[derive(Debug)]
pub(super) struct Floods {
    children: Vec<Child>,
    since: Instant,
    before: u64,
}

impl Floods {
    pub(super) fn start(
        cpus: &Cpus,
        socket: &Path,
        processes: usize,
        class: Class,
        payload: usize,
        window: usize,
    ) -> Result<Self> {
        let socket = socket
            .to_str()
            .context("the temporary directory's path is no UTF-8")?;
        let class = match class {
            Class::Interactive => "interactive",
            Class::Bulk => "bulk",
            _ => "normal",
        };
        let (payload, window) = (payload.to_string(), window.to_string());
        let arguments = ["flood", socket, class, &payload, &window];
        let mut children = Vec::new();
        for index in 0..processes {
            children.push(Child::start(&arguments, &cpus.for_client(index), &[])?);
        }
        Ok(Self {
            children,
            since: Instant::now(),
            before: 0,
        })
    }

    fn count(&mut self) -> Result<u64> {
        let mut count = 0;
        for child in &mut self.children {
            count += child.ask("count")?.parse::<u64>()?;
        }
        Ok(count)
    }

    /// From now on messages count.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.before = self.count()?;
        self.since = Instant::now();
        Ok(())
    }

    /// Messages a second since then.
    pub(super) fn rate(&mut self) -> Result<f64> {
        let seconds = self.since.elapsed().as_secs_f64();
        let count = self.count()? - self.before;
        Ok(count as f64 / seconds.max(1e-9))
    }

    pub(super) fn finish(self) -> Result<()> {
        self.children.into_iter().try_for_each(Child::finish)
    }
}

/// The child: its window is always full.
pub(crate) fn flood(
    parent: Parent,
    socket: PathBuf,
    class: &str,
    payload: usize,
    window: usize,
) -> Result<()> {
    let class = match class {
        "interactive" => Class::Interactive,
        "bulk" => Class::Bulk,
        "normal" => Class::Normal,
        other => bail!("{other:?} is no class"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answered = Arc::new(AtomicU64::new(0));
    let client = Arc::new(runtime.block_on(Client::connect(Options::new(socket)))?);
    for _ in 0..window {
        let (client, answered) = (Arc::clone(&client), Arc::clone(&answered));
        runtime.spawn(async move {
            let options = RequestOptions {
                class,
                ..RequestOptions::default()
            };
            let body = vec![b'f'; payload];
            // A connection that broke is seen by the count that stands still.
            while let Ok(answer) = client.call_with(MessageType::ECHO, &body, &options).await
                && answer == body
            {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // Ends with the process.
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    // It counts as a flood once it flows.
    let until = Instant::now() + Duration::from_secs(10);
    while answered.load(Ordering::Relaxed) < window as u64 {
        if Instant::now() > until {
            bail!("the flood does not flow");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    parent.serve(|_| Ok(answered.load(Ordering::Relaxed).to_string()))
}
