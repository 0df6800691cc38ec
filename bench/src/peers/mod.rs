//! The ways for two processes to exchange messages: ours, and those it is measured against.

#[cfg(feature = "peers")]
mod iceoryx2;
mod node;
mod ours;
mod ping_pong;
mod plain_ring;
mod stream;
#[cfg(feature = "peers")]
mod tonic;
mod unix_socket;
mod wakeup;

pub(crate) use node::Node;
pub(crate) use ours::{Ours, RAW_LARGEST, ServerChild, connect_raw};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::child::Parent;
use crate::contention;
use crate::machine::Cpus;
use crate::message::{Flow, Messages};

/// Two processes that exchange messages: this one asks, a child answers with the same bytes.
pub(crate) trait Peer {
    /// Sends a message and waits for its answer. `None`: a peer without payload, which has checked its own counter.
    ///
    /// # Errors
    /// The child failed, or what came is no answer.
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>>;

    /// Exchanges a flow's messages with several in flight.
    ///
    /// # Errors
    /// The child failed, or an answer was wrong.
    fn windowed(&mut self, _flow: &mut Flow<'_>) -> Result<()> {
        bail!("this peer has no window")
    }

    /// Ends the child.
    ///
    /// # Errors
    /// It had not been well to the end.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Spinning times: of a side that always sleeps, and of one that outlasts the other's waking up.
const NEVER: Duration = Duration::ZERO;
const THROUGHOUT: Duration = Duration::from_millis(10);
/// Largest payload of gRPC's rows, which by default limits messages to 4 MiB.
const GRPC_LARGEST: usize = 1 << 20;
/// Largest payload of Node.js's rows: the small ones are what it is compared for.
const NODE_LARGEST: usize = 4096;

/// How the two sides wait: both spinning, or at least one asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Waiting {
    Spinning,
    Asleep,
}

/// The peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    PingPong,
    PlainRing,
    BatchedRing,
    UnixSpinning,
    OursSpinning,
    RawSpinning,
    Iceoryx2,
    EventFd,
    Futex,
    UnixBlocking,
    OursAsleep,
    OursServerAsleep,
    Tonic,
    NodeChildProcess,
    NodeNet,
    NodeNetBatched,
}

/// What peers are started with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) cpus: Cpus,
    /// Bytes of each of the plain ring's rings.
    pub(crate) ring: usize,
    /// How long ours spins before it sleeps, where it spins.
    pub(crate) spin: Duration,
    /// Node.js, if it is installed.
    pub(crate) node: Option<Arc<Node>>,
}

impl Kind {
    pub(crate) const ALL: [Self; 16] = [
        Self::PingPong,
        Self::PlainRing,
        Self::BatchedRing,
        Self::OursSpinning,
        Self::RawSpinning,
        Self::Iceoryx2,
        Self::UnixSpinning,
        Self::EventFd,
        Self::Futex,
        Self::UnixBlocking,
        Self::OursAsleep,
        Self::OursServerAsleep,
        Self::Tonic,
        Self::NodeChildProcess,
        Self::NodeNet,
        Self::NodeNetBatched,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PingPong => "bare ping-pong",
            Self::PlainRing => "plain ring",
            Self::BatchedRing => "plain ring, batched",
            Self::UnixSpinning => "Unix socket, spinning",
            Self::OursSpinning => "lapce-ai, spinning",
            Self::RawSpinning => "lapce-ai, raw transport",
            Self::Iceoryx2 => "iceoryx2 req-resp",
            Self::EventFd => "eventfd",
            Self::Futex => "futex",
            Self::UnixBlocking => "Unix socket, blocking",
            Self::OursAsleep => "lapce-ai, both asleep",
            Self::OursServerAsleep => "lapce-ai, server asleep",
            Self::Tonic => "tonic gRPC, Unix socket",
            Self::NodeChildProcess => "node child_process, JSON",
            Self::NodeNet => "node net, Unix socket",
            Self::NodeNetBatched => "node net, batched",
        }
    }

    pub(crate) fn waiting(self) -> Waiting {
        match self {
            Self::PingPong
            | Self::PlainRing
            | Self::BatchedRing
            | Self::UnixSpinning
            | Self::OursSpinning
            | Self::RawSpinning
            | Self::Iceoryx2 => Waiting::Spinning,
            Self::EventFd
            | Self::Futex
            | Self::UnixBlocking
            | Self::OursAsleep
            | Self::OursServerAsleep
            | Self::Tonic
            | Self::NodeChildProcess
            | Self::NodeNet
            | Self::NodeNetBatched => Waiting::Asleep,
        }
    }

    /// Whether messages of its own travel, of which several can be in flight.
    pub(crate) fn has_window(self) -> bool {
        !matches!(self, Self::PingPong | Self::EventFd | Self::Futex)
    }

    /// Whether it differs from the others with one message in flight.
    pub(crate) fn has_latency(self) -> bool {
        !matches!(self, Self::BatchedRing | Self::NodeNetBatched)
    }

    /// Whether it is what is compared with the others.
    pub(crate) fn is_ours(self) -> bool {
        matches!(
            self,
            Self::OursSpinning | Self::OursAsleep | Self::OursServerAsleep
        )
    }

    /// Whether this program was built with it.
    pub(crate) fn is_built(self) -> bool {
        cfg!(feature = "peers") || !matches!(self, Self::Iceoryx2 | Self::Tonic)
    }

    /// Whether one side spins while the other sleeps, for which there must be two processors.
    pub(crate) fn spins_on_one_side(self) -> bool {
        matches!(self, Self::OursServerAsleep)
    }

    /// Whether it can carry such a payload.
    pub(crate) fn carries(self, payload: usize) -> bool {
        match self {
            Self::RawSpinning => payload <= RAW_LARGEST,
            Self::Tonic => payload <= GRPC_LARGEST,
            Self::NodeChildProcess | Self::NodeNet | Self::NodeNetBatched => {
                payload <= NODE_LARGEST
            }
            _ => true,
        }
    }

    /// The script of a peer whose two sides both run under node, where they are measured too; and whether it batches.
    pub(crate) fn node_script(self) -> Option<(&'static str, bool)> {
        match self {
            Self::NodeChildProcess => Some((node::CHILD_PROCESS, false)),
            Self::NodeNet => Some((node::NET, false)),
            Self::NodeNetBatched => Some((node::NET, true)),
            _ => None,
        }
    }

    /// Starts it for messages of this payload, of which so many will be in flight.
    #[cfg_attr(
        not(feature = "peers"),
        expect(
            unused_variables,
            reason = "only iceoryx2 prepares for what is in flight"
        )
    )]
    pub(crate) fn start(
        self,
        setup: &Setup,
        payload: usize,
        in_flight: usize,
    ) -> Result<Box<dyn Peer>> {
        Ok(match self {
            Self::PingPong => Box::new(ping_pong::PingPong::start(setup)?),
            Self::PlainRing => Box::new(plain_ring::start(setup, payload, false)?),
            Self::BatchedRing => Box::new(plain_ring::start(setup, payload, true)?),
            Self::UnixSpinning => Box::new(unix_socket::start(setup, payload, true)?),
            Self::UnixBlocking => Box::new(unix_socket::start(setup, payload, false)?),
            #[cfg(feature = "peers")]
            Self::Iceoryx2 => Box::new(iceoryx2::Iceoryx2::start(setup, payload, in_flight)?),
            #[cfg(feature = "peers")]
            Self::Tonic => Box::new(tonic::Tonic::start(setup, payload)?),
            #[cfg(not(feature = "peers"))]
            Self::Iceoryx2 | Self::Tonic => {
                bail!("{} is not built in", self.name())
            }
            Self::EventFd => Box::new(wakeup::EventFd::start(setup)?),
            Self::Futex => Box::new(wakeup::Futex::start(setup)?),
            Self::OursSpinning => Box::new(Ours::start(setup, setup.spin, setup.spin)?),
            Self::OursAsleep => Box::new(Ours::start(setup, NEVER, NEVER)?),
            Self::OursServerAsleep => Box::new(Ours::start(setup, THROUGHOUT, NEVER)?),
            Self::RawSpinning => Box::new(ours::Raw::start(setup)?),
            Self::NodeChildProcess | Self::NodeNet | Self::NodeNetBatched => {
                bail!("{} is measured under node", self.name())
            }
        })
    }
}

/// What a child does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Role {
    PingPong,
    PlainRing {
        ring: usize,
        frame: usize,
    },
    BatchedRing {
        ring: usize,
        frame: usize,
    },
    UnixSpinning {
        frame: usize,
    },
    UnixBlocking {
        frame: usize,
    },
    #[cfg(feature = "peers")]
    Iceoryx2 {
        root: PathBuf,
        frame: usize,
        in_flight: usize,
    },
    EventFd,
    Futex,
    #[cfg(feature = "peers")]
    Tonic {
        socket: PathBuf,
        frame: usize,
    },
    Server {
        socket: PathBuf,
        spin_us: u64,
        max_connections: usize,
        /// Bytes of payload that it may keep, and so of the largest message; without it the defaults
        #[arg(long)]
        budget: Option<u64>,
    },
    Holder {
        socket: PathBuf,
    },
    Crowd {
        socket: PathBuf,
        window: usize,
        payload: usize,
    },
    Load {
        socket: PathBuf,
        process: u64,
        window: usize,
    },
    /// A server that will be killed.
    Killed {
        socket: PathBuf,
        max_connections: usize,
        #[arg(long, value_delimiter = ',')]
        on: Vec<usize>,
    },
    /// Clients of a server that is killed and started anew.
    Recovering {
        socket: PathBuf,
        clients: usize,
        kind: String,
        #[arg(long, value_delimiter = ',')]
        on: Vec<usize>,
    },
    /// Clients that ask all the time while the daemon is replaced.
    Asking {
        socket: PathBuf,
        clients: usize,
        kind: String,
        #[arg(long, value_delimiter = ',')]
        on: Vec<usize>,
    },
    Probe {
        socket: PathBuf,
    },
    ChaosServer {
        socket: PathBuf,
    },
    Attacker {
        socket: PathBuf,
    },
    Normal {
        socket: PathBuf,
        seed: u64,
    },
    Upstream,
    Daemon {
        program: PathBuf,
        dir: PathBuf,
    },
    Editors {
        socket: PathBuf,
    },
    Compiler {
        dir: PathBuf,
        name: String,
    },
    Flood {
        socket: PathBuf,
        class: String,
        payload: usize,
        window: usize,
    },
}

impl Role {
    /// Whether it has its place among the processors. Those that stand in for a person's whole machine have not.
    pub(crate) fn is_pinned(&self) -> bool {
        !matches!(
            self,
            Self::Upstream | Self::Daemon { .. } | Self::Editors { .. }
        )
    }

    pub(crate) fn play(self) -> Result<()> {
        let parent = Parent::from_stdin()?;
        match self {
            Self::PingPong => ping_pong::answer(parent),
            Self::PlainRing { ring, frame } => plain_ring::answer(parent, ring, frame, false),
            Self::BatchedRing { ring, frame } => plain_ring::answer(parent, ring, frame, true),
            Self::UnixSpinning { frame } => unix_socket::answer(parent, frame, true),
            Self::UnixBlocking { frame } => unix_socket::answer(parent, frame, false),
            #[cfg(feature = "peers")]
            Self::Iceoryx2 {
                root,
                frame,
                in_flight,
            } => iceoryx2::answer(parent, &root, frame, in_flight),
            Self::EventFd => wakeup::answer_eventfd(parent),
            Self::Futex => wakeup::answer_futex(parent),
            #[cfg(feature = "peers")]
            Self::Tonic { socket, frame } => tonic::answer(parent, &socket, frame),
            Self::Server {
                socket,
                spin_us,
                max_connections,
                budget,
            } => ours::serve(
                parent,
                &socket,
                Duration::from_micros(spin_us),
                max_connections,
                budget,
            ),
            Self::Holder { socket } => crate::connections::hold(parent, &socket),
            Self::Crowd {
                socket,
                window,
                payload,
            } => crate::many::crowd(parent, &socket, window, payload),
            Self::Load {
                socket,
                process,
                window,
            } => crate::memory::load(parent, &socket, process, window),
            Self::Killed {
                socket,
                max_connections,
                on,
            } => crate::recovery::serve(parent, &socket, on, max_connections),
            Self::Recovering {
                socket,
                clients,
                kind,
                on,
            } => crate::recovery::recover(parent, &socket, on, clients, &kind),
            Self::Asking {
                socket,
                clients,
                kind,
                on,
            } => crate::recovery::ask(parent, &socket, on, clients, &kind),
            Self::Probe { socket } => crate::stress::probe(parent, &socket),
            Self::ChaosServer { socket } => crate::stress::chaos_server(parent, &socket),
            Self::Attacker { socket } => crate::stress::attack(parent, &socket),
            Self::Normal { socket, seed } => crate::stress::normal(parent, &socket, seed),
            Self::Upstream => crate::stress::upstream(parent),
            Self::Daemon { program, dir } => crate::daemon::become_daemon(&parent, &program, &dir),
            Self::Editors { socket } => crate::stress::editors(parent, &socket),
            Self::Compiler { dir, name } => contention::compiler::compile(parent, &dir, &name),
            Self::Flood {
                socket,
                class,
                payload,
                window,
            } => contention::flood::flood(parent, socket, &class, payload, window),
        }
    }
}
