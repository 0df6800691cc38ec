//! The server that is mistreated: the real one, with little memory and short patience, so that every limit is met.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use lapce_ai_proto::{ErrorBody, ErrorCode, MessageType};
use lapce_ai_server::{Options, OwnedRequest, Responder, Server};
use lapce_ai_transport::{Listener, RuntimeDir};

use super::script::Script;
use crate::child::Parent;

/// Answers a [`Script`] with its items.
pub(super) const SCRIPT: MessageType = MessageType(0x8001);

/// Bytes of payload that may be held, and of the longest message: a few of those are all there is room for.
pub(super) const BUDGET: u64 = 4 << 20;
pub(super) const LONGEST: u64 = 1 << 20;
/// How long it waits for a HELLO, and for progress.
const HANDSHAKE: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 4000;

fn options() -> Options {
    let mut options = Options {
        max_connections: CONNECTIONS,
        handshake_timeout: HANDSHAKE,
        stall_timeout: STALL,
        require_crc: true,
        ..Options::default()
    };
    options.limits.max_message_size = LONGEST;
    options.pool.budget = BUDGET;
    options
}

/// The child.
pub(crate) fn serve(parent: Parent, socket: &Path) -> Result<()> {
    let mut server = Server::new(options());
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    let runs = Arc::new(Runs::default());
    server.handle_async(SCRIPT, move |request, responder| {
        answer(request, responder, Arc::clone(&runs))
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    // It ends with the process.
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let listener = Listener::bind(&RuntimeDir::for_socket(socket))?;
    let running = server.start(listener, &handle)?;
    parent.ready()?;
    running.join();
    bail!("the server stopped by itself")
}

/// How often each request was run in this life of the server.
#[derive(Debug, Default)]
struct Runs(Mutex<HashMap<u64, u32>>);

impl Runs {
    /// This run's number, from 1.
    fn count(&self, nonce: u64) -> u32 {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = runs.entry(nonce).or_default();
        *count += 1;
        *count
    }
}

async fn answer(request: OwnedRequest, mut responder: Responder, runs: Arc<Runs>) {
    let Some(script) = Script::decode(&request.body) else {
        let why = "this is no script";
        return responder.fail(ErrorBody::new(ErrorCode::InvalidRequest, why));
    };
    drop(request);
    let run = runs.count(script.nonce);
    for number in 0..script.items {
        if !script.pause.is_zero() {
            tokio::time::sleep(script.pause).await;
        }
        if responder.send(&script.item(number, run)).await.is_err() {
            return;
        }
    }
    // Whoever has gone needs no end.
    let _ = responder.end().await;
}
