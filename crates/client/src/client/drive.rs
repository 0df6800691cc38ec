//! The client's tasks: one makes the connection again when it is lost, one pumps each link while nobody else does.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lapce_ai_transport::{Attempt, ConnectError, Connecting, TransportError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Sleep};

use crate::link::{End, Link, Phase, QUIET};
use crate::session::{Connected, Session, Step};

/// Batches that one turn of the driving task takes before it lets others run.
const BATCHES: usize = 32;
/// How long an attempt waits that found the daemon's backlog full.
const CROWDED: Duration = Duration::from_millis(1);

/// Connects once.
pub(super) async fn attempt(session: &Session) -> Result<Arc<Link>, ConnectError> {
    session.connected(connect(session).await)
}

async fn connect(session: &Session) -> Connected {
    let options = session.connect_options();
    let until = Instant::now() + options.timeout;
    let mut attempt = Connecting::begin(&session.options.socket, &options)?;
    loop {
        let connecting = match attempt {
            Attempt::Done(done) => return Ok(*done),
            Attempt::Crowded(connecting) => {
                if Instant::now() >= until {
                    return Err(connecting.timed_out(&options));
                }
                tokio::time::sleep(CROWDED).await;
                connecting
            }
            Attempt::Pending(connecting) => {
                let readable = readable(connecting.shared_socket());
                match tokio::time::timeout_at(until, readable).await {
                    Err(_) => return Err(connecting.timed_out(&options)),
                    Ok(Err(source)) => {
                        let path = session.options.socket.clone();
                        return Err(ConnectError::Io { path, source });
                    }
                    Ok(Ok(())) => connecting,
                }
            }
        };
        attempt = connecting.advance(&options)?;
    }
}

async fn readable(socket: Arc<OwnedFd>) -> io::Result<()> {
    let registered = register(socket, Interest::READABLE)?;
    registered.readable().await.map(drop)
}

fn register(socket: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; an Arc<OwnedFd> keeps its one open"
    )]
    AsyncFd::with_interest(socket, interest)
}

/// Makes the connection again whenever it is wanted.
pub(super) async fn supervise(session: Arc<Session>) {
    let kick = Waker::from(Arc::clone(&session.kick));
    loop {
        match session.step(&kick) {
            Step::Connect => {
                if let Ok(link) = attempt(&session).await {
                    tokio::spawn(drive(Arc::clone(&session), link));
                }
            }
            Step::WaitUntil(until) => {
                // Ending earlier is as well: the step is looked up again.
                let _ = tokio::time::timeout_at(until.into(), session.kick.kicked()).await;
            }
            Step::Rest => session.kick.kicked().await,
            Step::Closed => return,
        }
    }
}

/// Pumps a link until it ends.
pub(super) async fn drive(session: Arc<Session>, link: Arc<Link>) {
    // Over shared memory every bell that the daemon takes would make the socket writable anew.
    let interest = match link.shares_memory() {
        true => Interest::READABLE,
        false => Interest::READABLE | Interest::WRITABLE,
    };
    let mut trimming = false;
    match register(link.shared_socket(), interest) {
        Ok(socket) => {
            let mut quiet = pin!(tokio::time::sleep(QUIET));
            poll_fn(|cx| {
                let driven = poll_drive(&session, &link, &socket, cx);
                if driven.is_pending() {
                    poll_quiet(&link, quiet.as_mut(), &mut trimming, cx);
                }
                driven
            })
            .await;
        }
        Err(source) => {
            let call = "epoll_ctl";
            link.close(TransportError::System { call, source }.into());
        }
    }
    session.note(&link);
}

/// A while after there was memory that a quiet link need not hold, gives it back; then there is no timer any more.
fn poll_quiet(link: &Link, mut quiet: Pin<&mut Sleep>, trimming: &mut bool, cx: &mut Context<'_>) {
    while link.may_trim() {
        if !std::mem::replace(trimming, true) {
            quiet.as_mut().reset(Instant::now() + QUIET);
        }
        if quiet.as_mut().poll(cx).is_pending() {
            return;
        }
        link.trim();
        *trimming = false;
    }
    *trimming = false;
}

/// The runtime shuts down, and nobody will be woken by the socket any more.
fn closed(link: &Link) -> Poll<()> {
    link.close(End::Closed);
    Poll::Ready(())
}

fn poll_drive(
    session: &Session,
    link: &Arc<Link>,
    socket: &AsyncFd<Arc<OwnedFd>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    link.set_driver(cx.waker());
    for _ in 0..BATCHES {
        let sleep = {
            let mut rx = link.rx();
            let (frames, ()) = link.pump(&mut rx, |_| ());
            if frames > 0 {
                None
            } else {
                Some(link.prepare_to_sleep(&mut rx))
            }
        };
        match link.phase() {
            Phase::Ended => return Poll::Ready(()),
            Phase::GoingAway => {
                session.note(link);
                if link.close_if_drained() {
                    return Poll::Ready(());
                }
            }
            Phase::Open => {}
        }
        let Some(Some(writable)) = sleep else {
            continue;
        };
        match socket.poll_read_ready(cx) {
            Poll::Ready(Ok(mut ready)) => {
                link.woken(&mut link.rx());
                ready.clear_ready();
                continue;
            }
            Poll::Ready(Err(_)) => return closed(link),
            Poll::Pending => {}
        }
        if writable {
            match socket.poll_write_ready(cx) {
                Poll::Ready(Ok(mut ready)) => {
                    if !link.write_more() {
                        ready.clear_ready();
                    }
                    continue;
                }
                Poll::Ready(Err(_)) => return closed(link),
                Poll::Pending => {}
            }
        }
        return Poll::Pending;
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
