//! Requests whose connection is lost: those that run on for a while, until their client comes again and fetches them. The client
//! is its process: if that has died, nobody comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapce_ai_proto::ErrorBody;
use lapce_ai_transport::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::{Session, Stopped, Tx};
use crate::repeats::{Left, Running, Whose};
use crate::server::Shared;

/// How soon it is looked first whether a client has died; then after twice as long, and so on up to the latter. A socket closes some
/// milliseconds before its process is dead.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LATER_LOOKS: Duration = Duration::from_secs(1);

/// The process of a client whose connection is lost.
enum Client {
    Dead,
    Process(OwnedFd),
    /// It cannot be known: we do not see its process, or somebody between us passes its bytes on.
    Unknown,
}

impl Client {
    fn of(peer: &Peer) -> Self {
        // Whoever passes bytes on cannot pass memory on.
        let pid = Pid::from_raw(peer.credentials.pid).filter(|_| peer.shared_memory);
        match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(process)) => Self::Process(process),
            Some(Err(Errno::SRCH)) => Self::Dead,
            Some(Err(_)) | None => Self::Unknown,
        }
    }

    fn is_dead(&self) -> bool {
        match self {
            Self::Dead => true,
            // If the number belongs to another process by now, the client counts as living.
            Self::Process(process) => {
                let now = Timespec::default();
                let mut ended = [PollFd::new(process, PollFlags::IN)];
                poll(&mut ended, Some(&now)).is_ok_and(|ended| ended > 0)
            }
            Self::Unknown => false,
        }
    }

    /// Waits so long, or until it is dead.
    async fn outlives(&self, grace: Duration) {
        if matches!(self, Self::Unknown) {
            return tokio::time::sleep(grace).await;
        }
        let (began, mut pause) = (Instant::now(), FIRST_LOOK);
        while !self.is_dead() {
            let left = grace.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LATER_LOOKS);
        }
    }
}

/// A request that runs on though its connection was lost.
#[derive(Debug)]
pub(super) enum Adrift {
    /// Whoever has its answer waits for the client to fetch it.
    Waiting {
        /// The id that it had at first.
        first: u64,
        /// Items that were sent whole.
        items: u32,
        abort: AbortHandle,
        waker: Option<Waker>,
    },
    /// It failed meanwhile.
    Failed { first: u64, body: ErrorBody },
    /// It goes on there.
    Moved(Arc<Session>, u64),
}

/// What became of a request that a client wants to fetch.
pub(crate) enum Fetched {
    /// It goes on here: how to end its task.
    GoesOn(AbortHandle),
    Failed(ErrorBody),
    /// The client does not stand where the answer does, or it is over.
    Lost,
}

impl Session {
    /// Whose requests they are.
    pub(crate) fn whose(&self) -> Whose {
        Whose {
            uid: self.peer.credentials.uid,
            instance: self.peer.instance,
        }
    }

    /// Ends everything: buffers are freed, the peer is hung up on, and tasks are aborted but for those that the client may
    /// still fetch. What may be asked of the connection later is remembered. Returns how many requests ended with it.
    pub(crate) fn close(
        self: &Arc<Self>,
        tx: &mut Tx,
        shared: &Arc<Shared>,
        runtime: &Handle,
    ) -> usize {
        if tx.closed {
            return 0;
        }
        tx.closed = true;
        let mut left = Left {
            through: tx.state.last_taken(),
            ..Left::default()
        };
        let live = tx.state.live();
        for id in tx.state.ids() {
            let begun = tx.streams.contains_key(&id)
                || tx.state.credit(id).is_none()
                || tx.replies.iter().any(|reply| reply.id == id);
            if !begun {
                left.spared.push(tx.first_id(id));
            }
        }
        for (id, stream) in std::mem::take(&mut tx.streams) {
            let Some(abort) = stream.abort else {
                continue;
            };
            if tx.state.credit(id).is_none() || !shared.repeats.hold() {
                abort.abort();
                continue;
            }
            if let Some(waker) = stream.waker {
                // It waits for what does not come any more.
                waker.wake();
            }
            let first = tx.first_id(id);
            left.running.push((first, (Arc::clone(self), id)));
            let adrift = Adrift::Waiting {
                first,
                items: tx.state.items(id),
                abort,
                waker: None,
            };
            tx.adrift.insert(id, adrift);
        }
        tx.replies.clear();
        tx.room_waiters.clear();
        tx.credit_waiters.clear();
        tx.parked = 0;
        tx.writer.hang_up();
        let running = left.running.len();
        shared.repeats.lost(self.whose(), left, Instant::now());
        if running > 0 {
            let (session, shared) = (Arc::clone(self), Arc::clone(shared));
            let client = Client::of(&self.peer);
            runtime.spawn(async move {
                client.outlives(shared.repeats.grace()).await;
                session.give_up(&shared);
            });
        }
        live - running
    }

    /// Nobody fetches the requests that run on.
    fn give_up(&self, shared: &Shared) {
        let mut tx = self.lock();
        let mut over = Vec::new();
        tx.adrift.retain(|_, adrift| match adrift {
            Adrift::Waiting { first, abort, .. } => {
                abort.abort();
                over.push(*first);
                false
            }
            Adrift::Failed { first, .. } => {
                over.push(*first);
                false
            }
            Adrift::Moved(..) => true,
        });
        drop(tx);
        let cancelled = &shared.counters.cancelled;
        cancelled.fetch_add(over.len() as u64, Ordering::Relaxed);
        for first in over {
            shared.repeats.unfetched(self.whose(), first);
            shared.repeats.release();
        }
    }

    /// The client wants a request of this session, which it lost, to go on as `id` of another one. It has so many items of the answer.
    pub(crate) fn fetch(
        running: &Running,
        to: &Arc<Self>,
        id: u64,
        received: u32,
        shared: &Shared,
    ) -> Fetched {
        let (session, old) = running;
        let mut tx = session.lock();
        let fetched = match tx.adrift.remove(old) {
            Some(Adrift::Waiting {
                items,
                abort,
                waker,
                ..
            }) if items == received => {
                tx.adrift.insert(*old, Adrift::Moved(Arc::clone(to), id));
                if let Some(waker) = waker {
                    waker.wake();
                }
                Fetched::GoesOn(abort)
            }
            Some(Adrift::Waiting { abort, .. }) => {
                abort.abort();
                Fetched::Lost
            }
            Some(Adrift::Failed { body, .. }) => Fetched::Failed(body),
            Some(moved @ Adrift::Moved(..)) => {
                tx.adrift.insert(*old, moved);
                return Fetched::Lost;
            }
            None => return Fetched::Lost,
        };
        drop(tx);
        shared.repeats.release();
        fetched
    }
}

impl Tx {
    /// Where an answer goes on whose connection was lost.
    pub(super) fn poll_adrift(
        &mut self,
        id: u64,
        context: &Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        match self.adrift.get_mut(&id) {
            Some(Adrift::Waiting { waker, .. }) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(Adrift::Moved(session, id)) => {
                Poll::Ready(Err(Stopped::Moved(Arc::clone(session), *id)))
            }
            Some(Adrift::Failed { .. }) | None => Poll::Ready(Err(Stopped::Gone)),
        }
    }

    /// A request that runs on has failed. If it goes on elsewhere, where.
    pub(super) fn fail_adrift(&mut self, id: u64, body: &ErrorBody) -> Option<Running> {
        let adrift = self.adrift.get_mut(&id)?;
        match adrift {
            Adrift::Waiting { first, .. } => {
                *adrift = Adrift::Failed {
                    first: *first,
                    body: body.clone(),
                };
                None
            }
            Adrift::Failed { .. } => None,
            Adrift::Moved(session, id) => Some((Arc::clone(session), *id)),
        }
    }

    /// A request that came again is run here.
    pub(crate) fn note_repeat(&mut self, id: u64, first: u64) {
        if self.repeats.len() >= self.state.live().max(16) * 2 {
            let state = &self.state;
            self.repeats.retain(|(id, _)| state.credit(*id).is_some());
        }
        self.repeats.push((id, first));
    }

    /// The id that a request had at first.
    fn first_id(&self, id: u64) -> u64 {
        let repeat = self.repeats.iter().find(|(here, _)| *here == id);
        repeat.map_or(id, |(_, first)| *first)
    }
}
