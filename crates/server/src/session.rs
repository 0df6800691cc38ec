//! The writing half of a connection, shared by the reactor and the tasks that answer its requests. What is behind its lock is
//! in `session/tx.rs`; what becomes of requests whose connection is lost, in `session/adrift.rs`.

mod adrift;
mod tx;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use lapce_ai_proto::{ErrorBody, Kind, ServerState};
use lapce_ai_transport::{Peer, TransportError, Writer};

pub(crate) use self::adrift::Fetched;
use self::tx::Written;
pub(crate) use self::tx::{ReplyBytes, Tx};
use crate::mailbox::{Mailbox, Past};
use crate::options::Options;
use crate::server::Shared;

/// One connection, as everybody but the reactor sees it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) since: Instant,
    /// Requests taken.
    pub(crate) requests: AtomicU64,
    /// Requests under way, as of the last turn.
    pub(crate) live: AtomicU64,
    /// Whether the reactor has been asked to look after this connection.
    pub(crate) attention: AtomicBool,
    /// The client's earlier connections are known to be closed.
    pub(crate) is_only: AtomicBool,
    /// The reactor that serves it, and its token there.
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) token: u64,
    tx: Mutex<Tx>,
}

/// Why an answer does not go on here.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It is not wanted any more.
    Gone,
    /// It goes on in another session, with another id. An item that was not sent whole is sent there from its start.
    Moved(Arc<Session>, u64),
}

impl Session {
    pub(crate) fn new(
        id: u64,
        token: u64,
        mailbox: Arc<Mailbox>,
        peer: Peer,
        state: ServerState,
        writer: Writer,
        options: &Options,
    ) -> Self {
        Self {
            id,
            peer,
            since: Instant::now(),
            requests: AtomicU64::new(0),
            live: AtomicU64::new(0),
            attention: AtomicBool::new(false),
            is_only: AtomicBool::new(false),
            mailbox,
            token,
            tx: Mutex::new(Tx::new(state, writer, options)),
        }
    }

    /// The same of a connection that was served elsewhere before.
    pub(crate) fn after(self, past: &Past) -> Self {
        Self {
            since: past.since,
            requests: AtomicU64::new(past.requests),
            ..self
        }
    }

    /// What another session can be made of.
    pub(crate) fn into_parts(self) -> (ServerState, Writer) {
        let tx = self.tx.into_inner().unwrap_or_else(PoisonError::into_inner);
        (tx.state, tx.writer)
    }

    /// A handler that panics does so outside of the copies, so what the lock guards stays whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tx> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the connection's reactor to look after it: to watch for room, or to notice that it broke.
    pub(crate) fn call_reactor(&self) {
        if !self.attention.swap(true, Ordering::AcqRel) {
            self.mailbox
                .post(|letters| letters.attention.push(self.token));
        }
    }

    /// Notes how many requests are under way, for those who look without the lock.
    pub(crate) fn note_live(&self, tx: &Tx) {
        self.live.store(tx.state.live() as u64, Ordering::Relaxed);
    }

    /// Makes what a task wrote visible. A connection that broke is left to the reactor, which sees it too.
    fn settle(&self, tx: &mut Tx) {
        let result = tx.pump();
        self.note_live(tx);
        if result.is_err() || tx.blocked_since.is_some() || tx.writer.wants_writable() {
            self.call_reactor();
        }
    }

    /// Sends an item, or with `last` the response's last item, from `offset` on.
    pub(crate) fn poll_send(
        &self,
        id: u64,
        item: &[u8],
        offset: &mut usize,
        last: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        let mut tx = self.lock();
        if tx.closed {
            return tx.poll_adrift(id, context);
        }
        let outcome = loop {
            match tx.write_piece(id, item, *offset, last) {
                Ok(Some(Written::All)) => {
                    tx.completed(id);
                    break Poll::Ready(Ok(()));
                }
                Ok(Some(Written::Some(bytes))) => {
                    *offset += bytes;
                    tx.moved(id, bytes);
                }
                Ok(Some(Written::NoCredit)) => {
                    if tx.wait_for_credit(id, context) {
                        self.call_reactor();
                    }
                    break Poll::Pending;
                }
                Ok(Some(Written::NoRoom)) => {
                    tx.wait_for_room(id, context);
                    break Poll::Pending;
                }
                Ok(None) => return Poll::Ready(Err(Stopped::Gone)),
                Err(error) => return self.broken(&mut tx, id, &error, context),
            }
        };
        if last && outcome.is_ready() {
            tx.streams.remove(&id);
        }
        self.settle(&mut tx);
        outcome
    }

    /// The connection broke. Its reactor is told, and closes it.
    fn broken(
        &self,
        tx: &mut Tx,
        id: u64,
        error: &TransportError,
        context: &Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        self.call_reactor();
        if error.fault().is_some() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        // The client is gone. It may come again and fetch the answer: that is known once it is closed.
        tx.wait(id, context);
        Poll::Pending
    }

    /// Ends a response without a further item.
    pub(crate) fn poll_end(&self, id: u64, context: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let mut tx = self.lock();
        if tx.closed {
            return tx.poll_adrift(id, context);
        }
        if tx.state.credit(id).is_none() {
            return Poll::Ready(Err(Stopped::Gone));
        }
        let written = match tx.writer.frame(Kind::End, 0, 0, id, &[], &[]) {
            Ok(written) => written,
            Err(error) => return self.broken(&mut tx, id, &error, context),
        };
        if written {
            tx.state.ended(id);
            tx.streams.remove(&id);
        } else {
            tx.wait_for_room(id, context);
        }
        self.settle(&mut tx);
        if written {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Ends a stream with an error, from a task.
    pub(crate) fn fail(&self, shared: &Shared, id: u64, body: ErrorBody) {
        let mut tx = self.lock();
        if tx.closed {
            if let Some((session, id)) = tx.fail_adrift(id, &body) {
                drop(tx);
                session.fail(shared, id, body);
            }
            return;
        }
        if tx.state.credit(id).is_none() {
            return;
        }
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        tx.state.fail(id, body);
        tx.streams.remove(&id);
        self.settle(&mut tx);
    }
}
