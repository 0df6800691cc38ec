//! iceoryx2's request-response: shared memory too, and zero copies of what was received. Set up as its documentation and its own
//! benchmark do: one client, one server, slices with room for the message preallocated, both sides polling.
//!
//! The same bytes travel as in the other peers, header and payload. The client writes them into a loaned request and looks at the
//! answer where it lies; the server writes its answer from the request where it lies.
//!
//! Each exchange has its own names, in `/dev/shm` and below a directory for temporary files. Whichever side ends last unlinks them, so that
//! nothing stays even when one of the two is killed.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use iceoryx2::active_request::ActiveRequest;
use iceoryx2::config::Config;
use iceoryx2::node::{Node, NodeBuilder};
use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::client::Client;
use iceoryx2::prelude::{
    FileName, LogLevel, SemanticString, SignalHandlingMode, ipc, set_log_level,
};
use iceoryx2::response::Response;
use iceoryx2::service::port_factory::request_response::PortFactory;
use lapce_ai_proto::HEADER_LEN;
use tempfile::TempDir;

use super::{Peer, Setup};
use crate::child::{Child, Parent, Patience};
use crate::message::{Flow, Messages, payload_of};

/// Where iceoryx2 has its memory on Linux.
const SHARED_MEMORY: &str = "/dev/shm";
const SERVICE: &str = "lapce-ai-bench/echo";
/// iceoryx2's own default; more only where more are in flight.
const LEAST_ACTIVE: usize = 4;

type Service = PortFactory<ipc::Service, [u8], (), [u8], ()>;
type Pending = PendingResponse<ipc::Service, [u8], (), [u8], ()>;

/// The asking side. Fields are dropped in this order.
pub(super) struct Iceoryx2 {
    /// The last answer, which is given back when the next is asked for.
    answer: Option<Response<ipc::Service, [u8], ()>>,
    client: Client<ipc::Service, [u8], (), [u8], ()>,
    _service: Service,
    _node: Node<ipc::Service>,
    frame: usize,
    child: Child,
    _names: Names,
}

impl Iceoryx2 {
    pub(super) fn start(setup: &Setup, payload: usize, in_flight: usize) -> Result<Self> {
        let names = Names::new()?;
        let root = names.dir.path().to_str().context("no UTF-8 path")?;
        let frame = HEADER_LEN + payload;
        let arguments = ["iceoryx2", root, &frame.to_string(), &in_flight.to_string()];
        let child = Child::start(&arguments, &setup.cpus, &[])?;
        let (node, service) = service(names.dir.path(), in_flight)?;
        let client = service
            .client_builder()
            .initial_max_slice_len(frame)
            .create()?;
        Ok(Self {
            answer: None,
            client,
            _service: service,
            _node: node,
            frame,
            child,
            _names: names,
        })
    }

    #[inline]
    fn send(&self, frame: &[u8]) -> Result<Pending> {
        let request = self.client.loan_slice_uninit(self.frame)?;
        Ok(request.write_from_slice(frame).send()?)
    }
}

impl Peer for Iceoryx2 {
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>> {
        self.answer = None;
        let pending = self.send(messages.frame(index))?;
        let mut patience = Patience::default();
        loop {
            if let Some(answer) = pending.receive()? {
                let answer = self.answer.insert(answer);
                return payload_of(answer.payload()).map(Some);
            }
            patience.turn(&mut self.child)?;
        }
    }

    fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
        self.answer = None;
        let messages = flow.messages();
        let mut pending: VecDeque<Pending> = VecDeque::with_capacity(messages.len());
        let mut patience = Patience::default();
        while !flow.is_done() {
            while let Some(index) = flow.next() {
                pending.push_back(self.send(messages.frame(index))?);
                flow.sent();
            }
            let mut progress = false;
            while let Some(first) = pending.front() {
                let Some(answer) = first.receive()? else {
                    break;
                };
                flow.answered(payload_of(answer.payload())?)?;
                pending.pop_front();
                progress = true;
            }
            if progress {
                patience = Patience::default();
            } else {
                patience.turn(&mut self.child)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { child, .. } = *self;
        child.finish()
    }
}

/// The answering side.
pub(super) fn answer(parent: Parent, root: &Path, frame: usize, in_flight: usize) -> Result<()> {
    // For when this side fails before the parent knows of it, or when there is no parent any more.
    let _swept = Swept(root.to_owned());
    let (_node, service) = service(root, in_flight)?;
    let server = service
        .server_builder()
        .initial_max_slice_len(frame)
        .create()?;
    let root = root.to_owned();
    parent.ready_until(move || sweep(&root))?;
    loop {
        match server.receive()? {
            Some(request) => echo(&request)?,
            None => std::hint::spin_loop(),
        }
    }
}

#[inline]
fn echo(request: &ActiveRequest<ipc::Service, [u8], (), [u8], ()>) -> Result<()> {
    let frame = request.payload();
    payload_of(frame)?;
    let response = request.loan_slice_uninit(frame.len())?;
    response.write_from_slice(frame).send()?;
    Ok(())
}

fn service(root: &Path, in_flight: usize) -> Result<(Node<ipc::Service>, Service)> {
    // What goes wrong comes as an error; a killed other side is for `sweep`.
    set_log_level(LogLevel::Fatal);
    let mut config = Config::default();
    let root_path = iceoryx2::prelude::Path::new(root.as_os_str().as_encoded_bytes())
        .map_err(|error| anyhow::anyhow!("{}: {error:?}", root.display()))?;
    config.global.set_root_path(&root_path);
    config.global.prefix = FileName::new(prefix(root)?.as_bytes())
        .map_err(|error| anyhow::anyhow!("{}: {error:?}", root.display()))?;
    config.global.node.cleanup_dead_nodes_on_creation = false;
    config.global.node.cleanup_dead_nodes_on_destruction = false;
    let node = NodeBuilder::new()
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .config(&config)
        .create::<ipc::Service>()?;
    let service = node
        .service_builder(&SERVICE.try_into()?)
        .request_response::<[u8], [u8]>()
        .max_clients(1)
        .max_servers(1)
        .max_nodes(2)
        .max_active_requests_per_client(in_flight.max(LEAST_ACTIVE))
        .max_response_buffer_size(1)
        .open_or_create()?;
    Ok((node, service))
}

/// The names of one exchange.
struct Names {
    dir: TempDir,
}

impl Names {
    fn new() -> Result<Self> {
        // iceoryx2 takes no paths of more than 255 bytes, of which it needs about a hundred.
        let dir = tempfile::Builder::new()
            .prefix("lapce-ai-bench-")
            .tempdir()?;
        if dir.path().as_os_str().len() > 100 {
            bail!("the directory for temporary files has too long a name");
        }
        Ok(Self { dir })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        sweep(self.dir.path());
    }
}

/// The answering side's hand on the same names.
struct Swept(PathBuf);

impl Drop for Swept {
    fn drop(&mut self) {
        sweep(&self.0);
    }
}

/// What all names of an exchange in `/dev/shm` begin with.
fn prefix(root: &Path) -> Result<String> {
    let name = root.file_name().context("a directory has a name")?;
    let name = name.to_str().context("no UTF-8 path")?;
    Ok(format!("{}_", name.replace('.', "_")))
}

/// Unlinks everything of an exchange. The other side may be using it still; it keeps what it has mapped.
fn sweep(root: &Path) {
    // What is not there needs no removal, and what cannot be removed nobody could.
    let _ = fs::remove_dir_all(root);
    let Ok(prefix) = prefix(root) else { return };
    for entry in fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_what_has_its_prefix() {
        let names = Names::new().unwrap();
        let prefix = prefix(names.dir.path()).unwrap();
        let own = Path::new(SHARED_MEMORY).join(format!("{prefix}x"));
        let other = Path::new(SHARED_MEMORY).join(format!("other-{prefix}x"));
        fs::write(&own, "x").unwrap();
        fs::write(&other, "x").unwrap();
        drop(names);
        let found = (own.exists(), other.exists());
        fs::remove_file(&other).unwrap();
        assert_eq!(found, (false, true));
    }
}
