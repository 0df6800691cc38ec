//! Ours: the real server with an echo handler in the child, and the real client here.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lapce_ai_client::{BlockingClient, Body, ReconnectPolicy};
use lapce_ai_proto::status::Status;
use lapce_ai_proto::{ErrorBody, ErrorCode, FIN, Features, Kind, MessageType};
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{
    ConnectOptions, Connection, Listener, RuntimeDir, TransportError, connect, flush,
};
use tempfile::TempDir;

use super::{Peer, Setup};
use crate::child::{Child, Parent, Patience, runtime_dir};
use crate::machine::Cpus;
use crate::message::{Flow, Messages};

/// Connections that the server of an exchange takes.
const CONNECTIONS: usize = 16;
/// Largest payload of the raw transport's row: what surely fits one frame.
pub(crate) const RAW_LARGEST: usize = 4096;

/// A server in a child, and the place of its socket.
#[derive(Debug)]
pub(crate) struct ServerChild {
    pub(crate) child: Child,
    dir: TempDir,
}

impl ServerChild {
    pub(crate) fn start(cpus: &Cpus, spin: Duration, max_connections: usize) -> Result<Self> {
        Self::start_with(cpus, spin, max_connections, None)
    }

    /// With so many bytes for the payload that it keeps, and so for the largest message.
    pub(crate) fn with_budget(
        cpus: &Cpus,
        spin: Duration,
        max_connections: usize,
        budget: u64,
    ) -> Result<Self> {
        Self::start_with(cpus, spin, max_connections, Some(budget))
    }

    fn start_with(
        cpus: &Cpus,
        spin: Duration,
        max_connections: usize,
        budget: Option<u64>,
    ) -> Result<Self> {
        let dir = runtime_dir()?;
        let socket = dir.path().join(RuntimeDir::SOCKET);
        let socket = socket
            .to_str()
            .context("the temporary directory's path is no UTF-8")?;
        let spin = spin.as_micros().to_string();
        let (max_connections, budget) = (
            max_connections.to_string(),
            budget.map(|budget| budget.to_string()),
        );
        let mut arguments = vec!["server", socket, &spin, &max_connections];
        if let Some(budget) = &budget {
            arguments.extend(["--budget", budget]);
        }
        let child = Child::start(&arguments, cpus, &[])?;
        Ok(Self { child, dir })
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join(RuntimeDir::SOCKET)
    }
}

/// The child: a server with its defaults, but for what is said.
pub(super) fn serve(
    parent: Parent,
    socket: &Path,
    spin: Duration,
    max_connections: usize,
    budget: Option<u64>,
) -> Result<()> {
    let mut options = Options {
        spin,
        max_connections,
        ..Options::default()
    };
    if let Some(budget) = budget {
        options.pool.budget = budget;
        let largest = &mut options.limits.max_message_size;
        *largest = budget.min(*largest);
    }
    let mut server = Server::new(options);
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    let handle = server.handle_ref();
    server.handle(MessageType::STATUS, move |_, reply| {
        let (connections, counters) = handle.status();
        let status = Status {
            pid: std::process::id(),
            connections,
            reactors: handle.reactors(),
            counters,
            pool: handle.pool().into(),
            ..Status::default()
        };
        match serde_json::to_vec(&status) {
            Ok(body) => reply.send(&body),
            Err(error) => reply.fail(ErrorBody::new(ErrorCode::Internal, error.to_string())),
        }
    });
    // Only for the handle: there are no async handlers.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let listener = Listener::bind(&RuntimeDir::for_socket(socket))?;
    let running = server.start(listener, runtime.handle())?;
    parent.ready()?;
    running.join();
    bail!("the server stopped by itself")
}

/// The real client.
pub(crate) struct Ours {
    client: BlockingClient,
    answer: Vec<u8>,
    /// The payloads of large messages, to be given away: with several in flight none can be lent.
    given: Vec<Bytes>,
    server: ServerChild,
}

impl Ours {
    pub(super) fn start(
        setup: &Setup,
        client_spin: Duration,
        server_spin: Duration,
    ) -> Result<Self> {
        let server = ServerChild::start(&setup.cpus, server_spin, CONNECTIONS)?;
        Self::beside(server, client_spin)
    }

    /// A client of this server, which it takes over.
    pub(crate) fn beside(server: ServerChild, client_spin: Duration) -> Result<Self> {
        let mut options = lapce_ai_client::Options::new(server.socket());
        options.spin = client_spin;
        // A server that is gone is a failure here.
        options.reconnect = ReconnectPolicy {
            max_attempts: Some(1),
            give_up_after: Some(Duration::from_secs(1)),
            ..ReconnectPolicy::default()
        };
        let client = BlockingClient::connect(options)?;
        Ok(Self {
            client,
            answer: Vec::new(),
            given: Vec::new(),
            server,
        })
    }
}

/// From this length on a payload is given away instead of copied.
const GIVEN: usize = 32 << 10;

impl Peer for Ours {
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>> {
        self.client
            .call_into(MessageType::ECHO, messages.payload(index), &mut self.answer)?;
        Ok(Some(&self.answer))
    }

    fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
        let messages = flow.messages();
        let mut pending = VecDeque::with_capacity(messages.len());
        let large = messages.payload(0).len() >= GIVEN;
        if large && self.given.is_empty() {
            // Before the first measurement: then every byte is checked.
            let payload = |index| Bytes::copy_from_slice(messages.payload(index));
            self.given = (0..messages.len()).map(payload).collect();
        }
        while !flow.is_done() {
            while let Some(index) = flow.next() {
                let body = if large {
                    Body::Owned(self.given[index].clone())
                } else {
                    Body::Lent(messages.payload(index))
                };
                pending.push_back(self.client.submit(MessageType::ECHO, body)?);
                flow.sent();
            }
            if let Some(first) = pending.pop_front() {
                first.wait_into(&mut self.answer)?;
                flow.answered(&self.answer)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.client.close();
        self.server.child.finish()
    }
}

/// The transport without the client: what the client costs is the difference. Small payloads only.
pub(super) struct Raw {
    connection: Connection,
    scratch: Vec<u8>,
    answer: Vec<u8>,
    last_id: u64,
    server: ServerChild,
}

pub(crate) fn connect_raw(socket: &Path) -> Result<Connection> {
    let options = ConnectOptions {
        name: "lapce-ai-bench".to_owned(),
        instance: 1,
        features: Features {
            shared_memory: true,
            crc: false,
        },
        response_window: 256 << 10,
        timeout: Duration::from_secs(20),
        server_uids: Vec::new(),
    };
    let (connection, welcome) = connect(socket, &options)?;
    if !welcome.features.shared_memory {
        bail!("the server offers no shared memory");
    }
    Ok(connection)
}

impl Raw {
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        let server = ServerChild::start(&setup.cpus, setup.spin, CONNECTIONS)?;
        let connection = connect_raw(&server.socket())?;
        let scratch = vec![0; connection.reader.scratch_len()];
        Ok(Self {
            connection,
            scratch,
            answer: Vec::new(),
            last_id: 0,
            server,
        })
    }
}

impl Peer for Raw {
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>> {
        let Connection { reader, writer, .. } = &mut self.connection;
        self.last_id += 1;
        let id = self.last_id;
        let body = messages.payload(index);
        if !writer.frame(Kind::Open, FIN, MessageType::ECHO.0, id, &[], body)? {
            bail!("the ring is full with nothing in flight");
        }
        // Gives back the room of the last answer too.
        flush(reader, writer)?;
        let mut patience = Patience::default();
        let answer = &mut self.answer;
        loop {
            let taken = reader.read(&mut self.scratch, |frame| {
                if frame.kind != Kind::End || frame.id != id {
                    return Err(anyhow::anyhow!("{frame:?} came for the request {id}"));
                }
                answer.clear();
                answer.extend_from_slice(frame.payload);
                Ok::<_, anyhow::Error>(())
            })?;
            if taken > 0 {
                return Ok(Some(&self.answer));
            }
            patience.turn(&mut self.server.child)?;
        }
    }

    fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
        let Connection { reader, writer, .. } = &mut self.connection;
        let messages = flow.messages();
        let mut patience = Patience::default();
        let mut awaited = self.last_id;
        while !flow.is_done() {
            while let Some(index) = flow.next() {
                let id = self.last_id + 1;
                let body = messages.payload(index);
                if !writer.frame(Kind::Open, FIN, MessageType::ECHO.0, id, &[], body)? {
                    break;
                }
                self.last_id = id;
                flow.sent();
            }
            flush(reader, writer)?;
            let taken = reader.read(&mut self.scratch, |frame| {
                awaited += 1;
                if frame.kind != Kind::End || frame.id != awaited {
                    return Err(anyhow::anyhow!("{frame:?} came for the request {awaited}"));
                }
                flow.answered(frame.payload)
            })?;
            if taken > 0 {
                patience = Patience::default();
            } else {
                patience.turn(&mut self.server.child)?;
            }
        }
        flush(reader, writer).map_err(TransportError::into)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        drop(self.connection);
        self.server.child.finish()
    }
}
