//! What one frame makes happen: a handler runs, a request waits for memory, what was lost is fetched.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapce_ai_proto::{Class, ErrorBody, ErrorCode, Frame, MessageType, OpenPrefix, ServerEvent};
use lapce_ai_transport::{Buffer, NoMemory, Rest, TransportError};

use super::Tools;
use super::connection::{Arriving, Upload};
use crate::handler::{Body, Handler, OwnedRequest, Reply, Request, Responder, take_fault};
use crate::line::{Granted, Waiter};
use crate::mailbox::Mailbox;
use crate::repeats::Verdict;
use crate::server::Shared;
use crate::session::{Fetched, Session, Tx};

/// What one frame makes happen.
pub(super) fn on_frame(
    session: &Arc<Session>,
    tx: &mut Tx,
    arriving: &mut Arriving<'_>,
    latest: &mut Option<(MessageType, Class)>,
    frame: &Frame<'_>,
    rest: Rest<'_>,
    tools: &mut Tools<'_>,
) -> Result<(), TransportError> {
    match tx.state.handle(frame)? {
        ServerEvent::Request {
            id,
            ty,
            prefix,
            body,
        } => {
            *latest = Some((ty, class_of(ty, &prefix)));
            count_request(session, tools.mailbox);
            if prefix.sequence != 0 && !repeat(session, tx, id, &prefix, Some(body.len()), tools)? {
                return Ok(());
            }
            match tools.router.get(ty) {
                Some(Handler::Sync(_)) if tools.is_over(tx) => {
                    tx.track(id, &prefix, body.len())?;
                    tools.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                    let message = "read the earlier answers first: they take too much memory";
                    tx.state
                        .fail(id, ErrorBody::new(ErrorCode::Overloaded, message));
                    Ok(())
                }
                Some(Handler::Sync(handler)) => {
                    let request = Request {
                        ty,
                        prefix,
                        body: Body::Inline(body),
                        session,
                    };
                    let inline = Some(body.len());
                    call(handler, request, id, inline, tx, tools.shared)
                }
                Some(Handler::Async(_)) => {
                    tx.track(id, &prefix, body.len())?;
                    match tools.shared.at_once(body.len()) {
                        Some(mut buffer) => {
                            buffer.extend(body);
                            let deadline = deadline_of(&prefix, tools.shared);
                            run(
                                session,
                                tx,
                                Complete {
                                    id,
                                    ty,
                                    prefix,
                                    body: buffer,
                                    deadline,
                                },
                                tools,
                            )
                        }
                        None => {
                            wait(session, tx, id, ty, prefix, body, true, tools.shared);
                            Ok(())
                        }
                    }
                }
                None => {
                    tx.track(id, &prefix, body.len())?;
                    refuse_type(tx, id, ty, tools.shared);
                    Ok(())
                }
            }
        }
        ServerEvent::Begin {
            id,
            ty,
            prefix,
            first,
        } => {
            *latest = Some((ty, class_of(ty, &prefix)));
            count_request(session, tools.mailbox);
            if prefix.sequence != 0 && !repeat(session, tx, id, &prefix, None, tools)? {
                return Ok(());
            }
            if tools.router.get(ty).is_none() {
                refuse_type(tx, id, ty, tools.shared);
            } else if let Some(mut buffer) = tools.shared.at_once(prefix.total_length as usize) {
                if let Err(error) = buffer.allocate() {
                    refuse_memory(tx, id, error, tools.shared);
                    return Ok(());
                }
                buffer.extend(first);
                let waiter = waiter(session, id, ty, prefix, Vec::new(), false, tools.shared);
                // Its credit counts from the end of this batch: what has come by then was sent without any.
                tools.granted.push_back(Granted { waiter, buffer });
            } else {
                wait(session, tx, id, ty, prefix, first, false, tools.shared);
            }
            Ok(())
        }
        ServerEvent::Data { id, bytes } => {
            if let Some(upload) = arriving.uploads.get_mut(&id) {
                upload.extend(bytes, rest);
                let least = tools.shared.options.stall_bytes;
                upload.pace.moved(frame.payload_len(), least, Instant::now);
            }
            Ok(())
        }
        ServerEvent::Complete { id, bytes } => {
            if let Some(mut upload) = arriving.uploads.remove(&id) {
                upload.extend(bytes, rest);
                let Upload {
                    ty,
                    prefix,
                    buffer: body,
                    deadline,
                    ..
                } = upload;
                run(
                    session,
                    tx,
                    Complete {
                        id,
                        ty,
                        prefix,
                        body,
                        deadline,
                    },
                    tools,
                )?;
            } else if !tx.is_running(id) {
                // Its first piece was all of it, and it has no memory yet.
                arriving.ended_early.push(id);
            }
            Ok(())
        }
        ServerEvent::Cancel { id } => {
            tools
                .shared
                .counters
                .cancelled
                .fetch_add(1, Ordering::Relaxed);
            cancel(session, tx, arriving, id, tools.shared);
            Ok(())
        }
        ServerEvent::Credit { id } => {
            tx.wake(id);
            Ok(())
        }
        ServerEvent::Nothing => Ok(()),
    }
}

/// The client does not want an answer any more.
pub(super) fn cancel(
    session: &Session,
    tx: &mut Tx,
    arriving: &mut Arriving<'_>,
    id: u64,
    shared: &Shared,
) {
    arriving.uploads.remove(&id);
    arriving.ended_early.retain(|early| *early != id);
    tx.parked -= shared.forget(session.id, Some(id));
    tx.cut(
        id,
        ErrorBody::new(ErrorCode::Cancelled, "cancelled by the client"),
    );
}

/// A request that comes again, since its connection was lost. True: it is to be run, and was not before, or may be twice.
/// Otherwise it is taken care of. `inline`: it came in one frame, of so many bytes, and is not tracked yet.
#[cold]
fn repeat(
    session: &Arc<Session>,
    tx: &mut Tx,
    id: u64,
    prefix: &OpenPrefix,
    inline: Option<usize>,
    tools: &Tools<'_>,
) -> Result<bool, TransportError> {
    let (shared, first) = (tools.shared, prefix.sequence);
    shared.counters.repeated.fetch_add(1, Ordering::Relaxed);
    let fetched = match shared.judge(session, first, tools.runtime) {
        Verdict::Run => {
            tx.note_repeat(id, first);
            return Ok(true);
        }
        Verdict::Fetch(running) => Session::fetch(&running, session, id, prefix.received, shared),
        Verdict::Refuse => Fetched::Lost,
    };
    if matches!(fetched, Fetched::Lost) && prefix.repeatable {
        tx.note_repeat(id, first);
        return Ok(true);
    }
    if let Some(inline) = inline {
        tx.track(id, prefix, inline)?;
    }
    match fetched {
        Fetched::GoesOn(abort) => {
            shared.counters.fetched.fetch_add(1, Ordering::Relaxed);
            tx.note_repeat(id, first);
            tx.state.goes_on(id, prefix.received);
            tx.state.accept(id);
            tx.running(id, abort);
        }
        Fetched::Failed(body) => tx.state.fail(id, body),
        Fetched::Lost => {
            shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            let message = "its connection was lost, and the daemon has no answer for it any more";
            tx.state
                .fail(id, ErrorBody::new(ErrorCode::OutcomeUnknown, message));
        }
    }
    Ok(false)
}

/// How urgent a request is: as it says, or as its type has it.
fn class_of(ty: MessageType, prefix: &OpenPrefix) -> Class {
    match prefix.class {
        Class::ByType => ty.class(),
        class => class,
    }
}

fn count_request(session: &Session, mailbox: &Mailbox) {
    // The reactor is the only one that writes these two, and a locked addition would cost more than the rest.
    for counter in [&session.requests, &mailbox.requests] {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

fn refuse_type(tx: &mut Tx, id: u64, ty: MessageType, shared: &Shared) {
    shared.counters.failed.fetch_add(1, Ordering::Relaxed);
    let message = format!("nothing here answers requests of type {ty}");
    tx.state
        .fail(id, ErrorBody::new(ErrorCode::UnknownType, message));
}

/// Puts a request in line for memory.
#[expect(
    clippy::too_many_arguments,
    reason = "a request's parts, each used once"
)]
fn wait(
    session: &Session,
    tx: &mut Tx,
    id: u64,
    ty: MessageType,
    prefix: OpenPrefix,
    first: &[u8],
    whole: bool,
    shared: &Shared,
) {
    tx.parked += first.len();
    let waiter = waiter(session, id, ty, prefix, first.to_vec(), whole, shared);
    shared.enter(waiter);
}

fn waiter(
    session: &Session,
    id: u64,
    ty: MessageType,
    prefix: OpenPrefix,
    first: Vec<u8>,
    whole: bool,
    shared: &Shared,
) -> Waiter {
    Waiter {
        connection: session.id,
        reactor: session.mailbox.number,
        token: session.token,
        id,
        ty,
        prefix,
        first,
        whole,
        deadline: deadline_of(&prefix, shared),
    }
}

/// Runs a sync handler; its panic is its request's error and nobody else's. `untracked`: the request came in one frame, of so many
/// bytes, and is not tracked yet.
fn call(
    handler: &(dyn Fn(Request<'_>, Reply<'_>) + Send + Sync),
    request: Request<'_>,
    id: u64,
    untracked: Option<usize>,
    tx: &mut Tx,
    shared: &Shared,
) -> Result<(), TransportError> {
    let ty = request.ty;
    let reply = Reply {
        tx,
        shared,
        id,
        prefix: request.prefix,
        untracked,
        answered: false,
    };
    // What the handler may have left half done is its own; the reply answers in its drop.
    if catch_unwind(AssertUnwindSafe(|| handler(request, reply))).is_err() {
        tracing::error!(%ty, "a handler panicked");
    }
    Ok(take_fault(tx)?)
}

/// When a request's answer becomes worthless.
fn deadline_of(prefix: &OpenPrefix, shared: &Shared) -> Option<Instant> {
    let deadline = match prefix.deadline_ms {
        0 => shared.options.default_deadline?,
        millis => Duration::from_millis(millis.into()),
    };
    Instant::now().checked_add(deadline)
}

/// The system has no memory for a request; there may be some later.
#[cold]
pub(super) fn refuse_memory(tx: &mut Tx, id: u64, error: NoMemory, shared: &Shared) {
    shared.counters.failed.fetch_add(1, Ordering::Relaxed);
    tx.cut(id, ErrorBody::new(ErrorCode::Overloaded, error.to_string()));
}

/// A request whose bytes are all there.
pub(super) struct Complete {
    pub(super) id: u64,
    pub(super) ty: MessageType,
    pub(super) prefix: OpenPrefix,
    pub(super) body: Buffer,
    pub(super) deadline: Option<Instant>,
}

/// Runs a request's handler.
pub(super) fn run(
    session: &Arc<Session>,
    tx: &mut Tx,
    request: Complete,
    tools: &mut Tools<'_>,
) -> Result<(), TransportError> {
    let shared = tools.shared;
    let Complete {
        id,
        ty,
        prefix,
        body,
        deadline,
    } = request;
    match tools.router.get(ty) {
        Some(Handler::Sync(handler)) => {
            let request = Request {
                ty,
                prefix,
                body: Body::Buffer(body),
                session,
            };
            call(handler, request, id, None, tx, shared)
        }
        Some(Handler::Async(handler)) => {
            let responder = Responder {
                session: Arc::clone(session),
                shared: Arc::clone(shared),
                id,
                ended: false,
            };
            let request = OwnedRequest {
                ty,
                body,
                class: class_of(ty, &prefix),
                deadline,
                session: Arc::clone(session),
            };
            tx.state.accept(id);
            let (handler, session, shared) =
                (Arc::clone(handler), Arc::clone(session), Arc::clone(shared));
            // The lock is held, so the task cannot answer before its abort handle is noted. The handler is called
            // in the task: what it does there may lock too.
            let task = tools.runtime.spawn(async move {
                answer(handler(request, responder), id, deadline, &session, &shared).await;
            });
            tx.running(id, task.abort_handle());
            Ok(())
        }
        None => {
            refuse_type(tx, id, ty, shared);
            Ok(())
        }
    }
}

/// Runs an async handler's future until it ends or its deadline passes.
async fn answer(
    mut future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    id: u64,
    deadline: Option<Instant>,
    session: &Session,
    shared: &Shared,
) {
    let Some(deadline) = deadline else {
        return future.await;
    };
    if tokio::time::timeout_at(deadline.into(), future.as_mut())
        .await
        .is_err()
    {
        // Before the future is dropped, which would say that it gave no answer.
        let body = ErrorBody::new(
            ErrorCode::DeadlineExceeded,
            "the deadline passed before the answer was complete",
        );
        session.fail(shared, id, body);
    }
}
