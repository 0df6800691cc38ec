//! What `lapce-ai-bench pool` hands over to: what the pool costs a request, beside asking the provider without it; and how
//! soon a provider's work ends that nobody wants any more. Nothing printed is a constant.

#![forbid(unsafe_code)]

mod cancellation;
#[allow(dead_code, reason = "the other program uses the rest")]
#[path = "../../child.rs"]
mod child;
#[allow(dead_code, reason = "the other program uses the rest")]
#[path = "../../linked_daemon.rs"]
mod linked_daemon;
mod load;
#[path = "../../machine.rs"]
#[expect(
    dead_code,
    reason = "the other program pins its processes, this one does not"
)]
mod machine;
mod reply;
mod report;
mod upstream;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use lapce_ai_providers::{
    Balance, Feature, Features, Hedge, HedgeAfter, HedgeConfig, HttpClient, HttpConfig,
    HttpProvider, Plan, Pool, PoolConfig, Profile, Provider, Settings, Target,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cancellation::Plan as Cancels;
use crate::child::Parent;
use crate::load::{Load, Way};
use crate::machine::{Cpus, Machine};
use crate::reply::Reply;
use crate::report::{Report, Row};
use crate::upstream::Upstream;

/// Measure what the pool costs a request, and how soon a cancel reaches the provider.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Requests at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrent: u32,
    /// Requests of each run, for each way
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Requests of each run over HTTP, for each way
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    http_requests: u32,
    /// Runs, each of which asks both ways in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Requests that are given up in each way: by a cancel, by disconnecting, by the deadline
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    cancels: u32,
    /// A short run that shows only that it works
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// The provider at the other end; started by the program itself.
    #[command(hide = true)]
    Upstream,
    /// The other sides of a cancelled request; started by the program itself.
    #[command(hide = true)]
    Peer {
        /// The run's processors.
        #[arg(long, value_delimiter = ',')]
        cpus: Vec<usize>,
        #[command(subcommand)]
        peer: Peer,
    },
}

#[derive(Debug, clap::Subcommand)]
enum Peer {
    SlowProvider,
    Daemon { socket: PathBuf, config: PathBuf },
}

impl Peer {
    fn play(self) -> Result<bool> {
        let parent = Parent::from_stdin()?;
        match self {
            Self::SlowProvider => cancellation::provider(parent)?,
            Self::Daemon { socket, config } => linked_daemon::serve(parent, &socket, &config)?,
        }
        Ok(true)
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let result = match arguments.role.take() {
        Some(Role::Upstream) => upstream::serve().map(|()| true),
        // Nobody is pinned.
        Some(Role::Peer { peer, .. }) => peer.play(),
        None => run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "lapce-ai-bench-pool: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints. False: an answer was wrong or missing.
fn run(arguments: &Arguments) -> Result<bool> {
    let (concurrent, requests, http_requests, runs) = match arguments.quick {
        true => (50, 500, 200, 2),
        false => (
            arguments.concurrent,
            arguments.requests,
            arguments.http_requests,
            arguments.runs,
        ),
    };
    raise_limit(u64::from(concurrent))?;
    let cpus = Cpus::allowed()?;
    let machine = Machine::look(&cpus);
    let upstream = Upstream::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let double: Arc<dyn Provider> = Arc::new(Reply);
    let http = over_http(upstream.url())?;
    let mut rows = Vec::new();
    for (name, provider, plain, count) in [
        ("in-process provider", &double, true, requests),
        (
            "in-process provider, route of three",
            &double,
            false,
            requests,
        ),
        ("loopback HTTP", &http, true, http_requests),
        ("loopback HTTP, route of three", &http, false, http_requests),
    ] {
        let (pool, plan) = pool(provider, plain);
        let pool = Arc::new(pool);
        let plan = Arc::new(plan);
        let mut row = Row::new(name);
        for _ in 0..runs {
            // In turn, so that both see the same machine.
            for way in [
                Way::Direct(Arc::clone(provider)),
                Way::Pool(Arc::clone(&pool), Arc::clone(&plan)),
            ] {
                let is_direct = matches!(way, Way::Direct(_));
                let load = Load {
                    way,
                    concurrent,
                    requests: count,
                };
                row.add(is_direct, runtime.block_on(load.run())?);
            }
        }
        let idle = pool.members().iter().all(|member| {
            let counts = member.status().counts;
            counts.in_flight == 0 && counts.failed == 0
        });
        if !idle {
            row.errors
                .push("the pool holds something still, or something failed".to_owned());
        }
        rows.push(row);
    }
    upstream.finish()?;
    let cancels = match arguments.quick {
        // The deadline of a machine that does other things as well.
        true => Cancels {
            samples: 4,
            deadline: Duration::from_secs(1),
        },
        false => Cancels {
            samples: arguments.cancels,
            deadline: Duration::from_millis(200),
        },
    };
    let cancellation = cancellation::measure(cancels, &runtime, &cpus)?;
    let report = Report {
        machine,
        concurrent,
        requests,
        http_requests,
        runs,
        rows,
        cancellation,
    };
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report.json())? + "\n",
        false => report.to_string(),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(report.is_right())
}

/// A pool with one target, or with all that a route can have.
fn pool(provider: &Arc<dyn Provider>, plain: bool) -> (Pool, Plan) {
    let mut pool = Pool::new(PoolConfig::default());
    let names: &[&str] = match plain {
        true => &["first"],
        false => &["first", "second", "third"],
    };
    let targets = names.iter().map(|name| Target {
        member: pool.add(
            name,
            vec![Arc::clone(provider)],
            Features::of(Feature::ALL),
            None,
        ),
        model: "m".into(),
        weight: 1,
    });
    let targets = targets.collect();
    let hedge = HedgeConfig {
        after: HedgeAfter::Percentile(99),
        budget: 0.05,
    };
    let plan = match plain {
        true => Plan {
            targets,
            ..Plan::default()
        },
        false => Plan {
            targets,
            balance: Balance::PeakEwma,
            hedge: Some(Arc::new(Hedge::new(hedge))),
            continues: true,
        },
    };
    (pool, plan)
}

fn over_http(url: &str) -> Result<Arc<dyn Provider>> {
    let client = HttpClient::new(&HttpConfig::default())?;
    let settings = Settings {
        base_url: Some(url.to_owned()),
        ..Settings::default()
    };
    let profile = Profile::named("compatible").context("the profile is gone")?;
    let provider: HttpProvider = profile.connect("upstream", &settings, client)?;
    Ok(Arc::new(provider))
}

/// One connection for each request under way, and some.
fn raise_limit(concurrent: u64) -> Result<()> {
    let need = 2 * concurrent + 256;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < need) {
        limit.current = Some(limit.maximum.map_or(need, |maximum| need.min(maximum)));
        setrlimit(Resource::Nofile, limit).context("cannot raise the limit of descriptors")?;
    }
    Ok(())
}
