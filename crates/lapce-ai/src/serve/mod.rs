//! `lapce-ai serve`: the daemon.

mod attempts;
mod cut;
mod handlers;
mod keys;
mod log;
pub(crate) mod providers;
mod service;
mod signals;
pub(crate) mod spend;
mod succession;
mod wire;

#[cfg(test)]
mod relay_tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapce_ai_server::{Options, Running, Server, StartError};
use lapce_ai_transport::{BindError, Listener, PoolOptions, RuntimeDir, usable_cpus};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::cli::ServeArgs;
use crate::config::{Config, Ipc};
use crate::failure::Failure;
use crate::ledger::Keeper;
use handlers::App;
use providers::Providers;
use service::{Kept, Service};
use signals::Signals;
use succession::{Lineage, Predecessor, Successors};

/// More threads do not make tokens come faster.
const MOST_WORKERS: usize = 4;
/// Descriptors that the daemon needs besides one per connection: towards providers, for its own purposes.
const OTHER_DESCRIPTORS: u64 = 512;
/// How long tasks have to notice the end.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub(crate) fn run(
    config: impl FnOnce() -> Result<Config, Failure>,
    args: &ServeArgs,
) -> Result<(), Failure> {
    if !args.take_over {
        return start(config()?, args, None);
    }
    let mut predecessor = Predecessor::of_this_process()?;
    let ended = config().and_then(|config| start(config, args, Some(&mut predecessor)));
    if let Err(failure) = &ended {
        predecessor.fail(failure);
    }
    ended
}

/// Where the daemon's door comes from.
enum Origin<'a> {
    /// It is new.
    Bound(Listener),
    /// The service manager has kept it.
    Kept(Kept),
    /// Another daemon has it still.
    TakenOver(RuntimeDir, &'a mut Predecessor),
}

fn start(
    config: Config,
    args: &ServeArgs,
    predecessor: Option<&mut Predecessor>,
) -> Result<(), Failure> {
    log::init(&config.log)?;
    let mut directory = RuntimeDir::for_socket(&config.ipc.socket_path);
    let us = [0, geteuid().as_raw()];
    if config.ipc.allowed_uids.iter().any(|uid| !us.contains(uid)) {
        directory = directory.open_to_others();
    }
    let service = Service::find().map(Arc::new);
    let kept = || service.as_ref()?.take_kept(&directory);
    let origin = match predecessor {
        Some(predecessor) => Origin::TakenOver(directory, predecessor),
        None => match kept() {
            Some(kept) => Origin::Kept(kept),
            None => Origin::Bound(match Listener::bind(&directory) {
                Err(BindError::AlreadyRunning { .. }) if args.if_needed => return Ok(()),
                bound => bound?,
            }),
        },
    };
    let keep_segments = make_room_for_descriptors(config.ipc.max_connections);
    let keep_segments = keep_segments.unwrap_or_else(|why| {
        tracing::warn!("{why}");
        false
    });
    let workers = usable_cpus().clamp(1, MOST_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("lapce-ai-work")
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
    // A service manager is told which process the daemon is, and whoever had one started by a command waits for none. A
    // container is over when its first process is, whoever was told what.
    let is_watched = !args.take_over && !args.if_needed && service.is_none();
    let stays = is_watched || std::process::id() == 1;
    let lineage = Arc::new(Lineage::new(args.take_over, stays));
    let served = serve(
        &runtime,
        origin,
        service,
        keep_segments,
        config,
        args,
        &lineage,
    );
    let outlived = match &served {
        Ok(_) => runtime.block_on(lineage.outlive()),
        Err(_) => Ok(()),
    };
    runtime.shutdown_timeout(RUNTIME_GRACE);
    // An answer that is cut is counted when its task is dropped, and the last of them are with the runtime.
    if let Some(ledger) = served? {
        ledger.close();
    }
    outlived.map_err(|error| Failure::Failed(error.to_string()))
}

/// Serves until it is told to stop. The ledger, if one is kept, is to be closed when nothing runs any more.
fn serve(
    runtime: &Runtime,
    origin: Origin<'_>,
    service: Option<Arc<Service>>,
    keep_segments: bool,
    config: Config,
    args: &ServeArgs,
    lineage: &Arc<Lineage>,
) -> Result<Option<Arc<Keeper>>, Failure> {
    let begun = Instant::now();
    let signals = {
        let _context = runtime.enter();
        Signals::new()?
    };
    let providers = runtime.block_on(Providers::gather(&config, |name| std::env::var(name).ok()));
    for provider in providers.about() {
        tracing::info!(
            name = provider.name,
            source = provider.source,
            model = provider.default_model,
            "provider"
        );
    }
    // They end with the server.
    let mut probes = JoinSet::new();
    for (member, every) in providers.probed() {
        probes.spawn_on(Arc::clone(member).keep_probing(every), runtime.handle());
    }
    if config.metrics.enable {
        tracing::warn!(
            "metrics.enable has no effect yet: this version exports nothing by itself; `lapce-ai metrics` prints the figures"
        );
    }
    let (gateway, ledger) = spend::gateway(&config)?;
    let drain = config.ipc.drain_timeout;
    let restart_timeout = config.ipc.restart_timeout;
    let socket = config.ipc.socket_path.clone();
    let options = Options {
        keep_segments,
        ..options(&config, args)
    };
    let mut server = Server::new(options);
    let handle = server.handle_ref();
    let app = Arc::new(App::new(
        config,
        args.exit_when_idle,
        providers,
        (gateway, ledger.clone()),
        handle.clone(),
        runtime.handle().clone(),
        begun,
    ));
    handlers::register(&mut server, &app);
    Successors::new(
        handle.clone(),
        service.clone(),
        Arc::clone(lineage),
        restart_timeout,
        drain,
    )
    .register(&mut server);
    let running = open(server, origin, service.as_deref(), runtime)?;
    tracing::info!(socket = %socket.display(), process = std::process::id(), "serving");
    if let Some(service) = &service {
        service.ready();
    }
    runtime.spawn(signals.stop(handle, service, Arc::clone(lineage), drain));
    running.join();
    drop(probes);
    tracing::info!("stopped");
    Ok(ledger)
}

/// Lets clients in: at once, or as soon as the daemon before this one is out of the way.
fn open(
    mut server: Server,
    origin: Origin<'_>,
    service: Option<&Service>,
    runtime: &Runtime,
) -> Result<Running, Failure> {
    let failed = |error: StartError| Failure::Failed(error.to_string());
    let keep = |listener: &Listener| {
        if let Some(service) = service {
            service.keep_door(listener);
        }
    };
    match origin {
        Origin::Bound(listener) => {
            keep(&listener);
            server.start(listener, runtime.handle()).map_err(failed)
        }
        Origin::Kept(Kept { listener, legacy }) => {
            keep(&listener);
            if let Some(legacy) = legacy {
                server.inherit(legacy);
            }
            server.start(listener, runtime.handle()).map_err(failed)
        }
        Origin::TakenOver(directory, predecessor) => {
            let given = predecessor.ready(server.handle_ref().segment_terms())?;
            let listener = Listener::adopt(&directory, given.socket, given.lock)?;
            server.inherit(given.legacy);
            let running = server
                .start_closed(listener, runtime.handle())
                .map_err(failed)?;
            let adopted = running.handle().adopt(given.resting);
            let adopted = adopted.map_err(|error| Failure::Failed(error.to_string()))?;
            predecessor.taken()?;
            tracing::info!(connections = adopted.len(), "taken over");
            adopted.serve();
            running.handle().open();
            Ok(running)
        }
    }
}

fn options(config: &Config, args: &ServeArgs) -> Options {
    let Ipc {
        limits,
        ring_size,
        max_connections,
        ..
    } = config.ipc;
    let ipc = &config.ipc;
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Options {
        limits,
        request_capacity: ring_size,
        response_capacity: ring_size,
        max_connections: size(max_connections),
        allowed_uids: ipc.allowed_uids.clone(),
        handshake_timeout: ipc.handshake_timeout,
        stall_timeout: ipc.stall_timeout,
        stall_bytes: size(ipc.stall_bytes),
        idle_timeout: ipc.idle_timeout,
        default_deadline: config.requests.default_deadline,
        handler_limit: ipc.handler_limit,
        repeats: ipc.repeats.clone(),
        spin: ipc.spin,
        reactors: size(ipc.reactor_threads),
        pool: PoolOptions {
            budget: ipc.buffer_pool_size,
            ..PoolOptions::default()
        },
        require_crc: ipc.require_crc,
        shared_memory: ipc.shared_memory,
        exit_when_idle: args.exit_when_idle,
        ..Options::default()
    }
}

/// The usual soft limit of 1,024 descriptors is too few for the connections allowed; most systems have a higher hard one.
/// True: there is room for two of each connection.
fn make_room_for_descriptors(max_connections: u32) -> Result<bool, String> {
    let wanted = u64::from(max_connections) + OTHER_DESCRIPTORS;
    let two_each = wanted + u64::from(max_connections);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (current, maximum.unwrap_or(u64::MAX)) else {
        return Ok(true);
    };
    if soft >= two_each {
        return Ok(true);
    }
    let raised = Rlimit {
        current: Some(two_each.min(hard).max(soft)),
        maximum,
    };
    // If that is refused, the limit is as it was.
    let _ = setrlimit(Resource::Nofile, raised);
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now >= wanted {
        return Ok(now >= two_each);
    }
    Err(format!(
        "ipc.max_connections = {max_connections} needs {wanted} file descriptors, and {now} are allowed: raise the limit (ulimit -n, LimitNOFILE)"
    ))
}
