//! The daemon that goes: starts the next one, gives it the door, and takes it back if that one fails.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_proto::{ErrorBody, ErrorCode, MessageType};
use lapce_ai_server::{
    Legacy, OwnedRequest, Responder, RetireError, Retiring, Server, ServerHandle,
};
use lapce_ai_transport::{Channel, ChannelError, Listener, MAX_FDS};
use rustix::process::geteuid;
use tokio::runtime::Handle;

use super::super::service::Service;
use super::lineage::Lineage;
use super::message::{Message, TalkError, Terms, VERSION};

/// The flag of the next daemon.
const TAKE_OVER: &str = "--take-over";
/// What systemd says to one process and not to its children.
const NOT_FOR_CHILDREN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The most time from closing the door to the decision who opens it, in which newcomers wait.
const DECISION: Duration = Duration::from_secs(2);
/// What runs when another daemon has taken over may run to its end: its own deadline is the limit.
const FOR_EVER: Duration = Duration::from_millis(u32::MAX as u64);

/// The file that this program was started from: as it was named, so that a link which an upgrade turns leads to the new one, and
/// where that name says nothing, as the system knows it.
fn program() -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let named = std::env::args_os().next().map(PathBuf::from);
    let same = |named: &PathBuf| {
        named.is_absolute() && fs::canonicalize(named).is_ok_and(|named| named == running)
    };
    Ok(named.filter(same).unwrap_or(running))
}

/// How to start the next daemon.
#[derive(Debug)]
pub(crate) struct Successors {
    server: ServerHandle,
    service: Option<Arc<Service>>,
    lineage: Arc<Lineage>,
    /// The file that this program was started from, by its name: an upgrade puts another in its place.
    program: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    /// How long it may take until it is ready.
    timeout: Duration,
    /// How long this one may finish what runs when all others have been stopped.
    drain: Duration,
    /// Held by a restart that is under way: one after the other.
    under_way: Mutex<()>,
}

/// The next daemon, which is ready.
struct Next<'a> {
    channel: &'a Channel,
    pid: u32,
    /// What connections are told by it.
    terms: Terms,
}

/// Why nobody follows.
#[derive(Debug, thiserror::Error)]
enum HandOverError {
    #[error("cannot find the file of the running program: {0}")]
    NoProgram(String),
    #[error("cannot start {}: {source}", .program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Retire(#[from] RetireError),
    #[error("the new daemon failed: {0}")]
    Talk(#[from] TalkError),
    #[error("the new daemon ended ({0}); see the daemon's log")]
    Ended(ExitStatus),
    #[error("the new daemon was not ready within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("whoever asked for it has gone")]
    Cancelled,
    #[error("another restart is under way; when it is over, another one can begin")]
    UnderWay,
}

/// The next daemon before it is decided that it follows. Whoever asked for it may go away meanwhile, which ends it.
#[derive(Debug, Default)]
struct Attempt(Mutex<Stage>);

#[derive(Debug, Default)]
struct Stage {
    child: Option<Child>,
    /// How it ended, when it was made sure that it has.
    ended: Option<ExitStatus>,
    cancelled: bool,
    decided: bool,
}

impl Attempt {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the process. False: it is not wanted any more.
    fn begun(&self, child: Child) -> bool {
        let mut stage = self.lock();
        stage.child = Some(child);
        !stage.cancelled
    }

    /// From here on the next daemon follows. False: it is not wanted any more.
    fn decide(&self) -> bool {
        let mut stage = self.lock();
        stage.decided = !stage.cancelled;
        stage.decided
    }

    /// Ends the process, so that it surely does nothing any more, and says how it ended.
    fn end(&self) -> Option<ExitStatus> {
        let mut stage = self.lock();
        if let Some(mut child) = stage.child.take() {
            // One that has ended cannot be killed, and has a status all the same.
            let _ = child.kill();
            stage.ended = child.wait().ok();
        }
        stage.ended
    }

    /// The next daemon, which nobody ends any more.
    fn take_child(&self) -> Option<Child> {
        self.lock().child.take()
    }
}

/// Cancels an attempt when the request for it is dropped.
struct CancelOnDrop(Arc<Attempt>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let mut stage = self.0.lock();
        if stage.decided {
            return;
        }
        stage.cancelled = true;
        if let Some(child) = &mut stage.child {
            let _ = child.kill();
        }
    }
}

impl Successors {
    /// Started like this process.
    pub(crate) fn new(
        server: ServerHandle,
        service: Option<Arc<Service>>,
        lineage: Arc<Lineage>,
        timeout: Duration,
        drain: Duration,
    ) -> Self {
        let arguments = std::env::args_os().skip(1);
        let mut arguments: Vec<OsString> = arguments.filter(|word| word != TAKE_OVER).collect();
        arguments.push(TAKE_OVER.into());
        Self {
            server,
            service,
            lineage,
            program: program(),
            arguments,
            timeout,
            drain,
            under_way: Mutex::default(),
        }
    }

    /// Answers `restart` requests.
    pub(crate) fn register(self, server: &mut Server) {
        let successors = Arc::new(self);
        server.handle_async(MessageType::RESTART, move |request, responder| {
            Arc::clone(&successors).restart(request, responder)
        });
    }

    /// Users in `allowed_uids` may use the daemon, and not replace it. Nobody may say by which program: a client that can
    /// reach the socket may be kept from anything else.
    async fn restart(self: Arc<Self>, request: OwnedRequest, responder: Responder) {
        let who = request.peer().credentials;
        if who.uid != 0 && who.uid != geteuid().as_raw() {
            let text = format!(
                "uid {} may use this daemon, and only its own user and root may restart it",
                who.uid
            );
            return responder.fail(ErrorBody::new(ErrorCode::PermissionDenied, text));
        }
        drop(request);
        tracing::info!(process = who.pid, "told to restart");
        let attempt = Arc::<Attempt>::default();
        let _cancels = CancelOnDrop(Arc::clone(&attempt));
        let work = tokio::task::spawn_blocking(move || self.hand_over(&attempt));
        let goes_on = |why: &dyn std::fmt::Display| {
            format!("no other daemon has taken over, and this one goes on: {why}")
        };
        let outcome = work.await.map_err(|error| goes_on(&error));
        let outcome = outcome.and_then(|outcome| {
            outcome.map_err(|error| match error {
                HandOverError::UnderWay => error.to_string(),
                error => goes_on(&error),
            })
        });
        match outcome {
            Ok(pid) => {
                let answer = format!("{{\"pid\":{pid}}}");
                // Whoever has gone needs no answer.
                let _ = responder.answer(answer.as_bytes()).await;
            }
            Err(text) => responder.fail(ErrorBody::new(ErrorCode::Internal, text)),
        }
    }

    /// Starts the next daemon and hands over to it: its process id. After an error it does not run, and this one serves.
    fn hand_over(&self, attempt: &Attempt) -> Result<u32, HandOverError> {
        let Ok(_under_way) = self.under_way.try_lock() else {
            return Err(HandOverError::UnderWay);
        };
        let begun = Instant::now();
        // The channel lives until the other process has been ended: to one that has taken over already its end would say
        // that this daemon has died.
        let mut channel = None;
        let outcome = self
            .start(attempt, &mut channel)
            .and_then(|next| self.give(&next, attempt).map(|()| next.pid));
        match outcome {
            Ok(pid) => {
                let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(
                    successor = pid,
                    millis,
                    "another daemon has taken over: finishing what runs"
                );
                self.watch();
                Ok(pid)
            }
            Err(error) => {
                let status = attempt.end();
                let error = match (error, status) {
                    (
                        HandOverError::Talk(TalkError::Channel(ChannelError::Closed)),
                        Some(status),
                    ) => HandOverError::Ended(status),
                    (HandOverError::Talk(TalkError::Channel(ChannelError::TimedOut)), _) => {
                        HandOverError::TimedOut(begun.elapsed())
                    }
                    (error, _) => error,
                };
                // Whoever asked for it may have gone.
                tracing::error!(why = %error, "no other daemon has taken over: this one goes on");
                Err(error)
            }
        }
    }

    /// Sees to it that nobody takes a dead daemon for one that serves: whoever looks after the daemon hears of its end when this
    /// process ends, which does not finish what it has begun then. Where the last one was told to stop this one stops, too.
    fn watch(&self) {
        let (server, lineage, drain) = (self.server.clone(), Arc::clone(&self.lineage), self.drain);
        Handle::current().spawn(async move {
            match lineage.end().await {
                Ok(()) => {
                    tracing::info!("the daemon that has taken over has stopped");
                    server.shutdown(drain);
                }
                Err(failure) => {
                    tracing::error!(%failure, "nobody serves any more");
                    server.shutdown(DECISION);
                }
            }
        });
    }

    /// Closes the door, gives the next daemon everything, and lets it open the door. After an error the other one has ended, and
    /// then this one opens it again.
    fn give(&self, next: &Next<'_>, attempt: &Attempt) -> Result<(), HandOverError> {
        let deadline = Instant::now() + DECISION;
        // Connections that have been told something else make themselves anew.
        let keep = next.terms == self.server.segment_terms().into();
        let (legacy, retiring) = self.server.retire(FOR_EVER, keep, deadline)?;
        let decided = self.bequeath(next, attempt, legacy, &retiring, deadline);
        if decided.is_err() {
            attempt.end();
            return decided;
        }
        // Before this daemon can end, which it may at once.
        if let Some(child) = attempt.take_child() {
            self.lineage.followed(&child);
        }
        retiring.leave(FOR_EVER);
        decided
    }

    fn bequeath(
        &self,
        next: &Next<'_>,
        attempt: &Attempt,
        legacy: Legacy,
        retiring: &Retiring,
        deadline: Instant,
    ) -> Result<(), HandOverError> {
        let Next { channel, pid, .. } = *next;
        let parts = retiring.listener().map(Listener::parts);
        let parts = parts.as_ref().map_or(&[][..], |parts| &parts[..]);
        let resting: Vec<_> = retiring.resting().collect();
        let estate = Message::Estate {
            estate: legacy.into(),
            connections: resting.len(),
        };
        estate.send(channel, parts, deadline)?;
        for some in resting.chunks(MAX_FDS / 2) {
            let descriptors: Vec<_> = some.iter().flat_map(|(_, parts)| *parts).collect();
            let connections = some.iter().map(|(resting, _)| resting.clone().into());
            let connections = Message::Connections(connections.collect());
            connections.send(channel, &descriptors, deadline)?;
        }
        let handed_over = resting.len();
        drop(resting);
        let (message, _) = Message::receive(channel, Some(deadline))?;
        let Message::Taken = message else {
            return Err(message.unexpected().into());
        };
        if retiring.is_stopping() {
            return Err(RetireError::Stopping.into());
        }
        if !attempt.decide() {
            return Err(HandOverError::Cancelled);
        }
        // Before the other speaks to it.
        let moved_to = |process| {
            if let Some(service) = &self.service {
                service.moved_to(process);
            }
        };
        moved_to(pid);
        if let Err(error) = Message::Go.send(channel, &[], Instant::now() + DECISION) {
            moved_to(std::process::id());
            return Err(error.into());
        }
        tracing::info!(connections = handed_over, "handed over");
        Ok(())
    }

    /// Starts the next daemon, and waits until it is ready: its process id. The way to it goes into `channel`.
    fn start<'a>(
        &self,
        attempt: &Attempt,
        channel: &'a mut Option<Channel>,
    ) -> Result<Next<'a>, HandOverError> {
        let program = self.program.as_ref();
        let program = program.map_err(|error| HandOverError::NoProgram(error.to_string()))?;
        let (ours, theirs) = Channel::pair()?;
        let channel = &*channel.insert(ours);
        let mut command = Command::new(program);
        command.args(&self.arguments).stdin(Stdio::from(theirs));
        for name in NOT_FOR_CHILDREN {
            command.env_remove(name);
        }
        self.lineage.prepare(&mut command);
        let child = command.spawn().map_err(|source| HandOverError::Spawn {
            program: program.clone(),
            source,
        })?;
        // Its end of the channel is its alone, so that its death is seen here.
        drop(command);
        let pid = child.id();
        tracing::info!(successor = pid, program = %program.display(), "started the next daemon");
        if !attempt.begun(child) {
            return Err(HandOverError::Cancelled);
        }
        let deadline = Instant::now() + self.timeout;
        match Message::receive(channel, Some(deadline))? {
            (
                Message::Ready {
                    version: VERSION,
                    name,
                    terms,
                },
                _,
            ) => {
                tracing::info!(successor = pid, name, "the next daemon is ready");
                Ok(Next {
                    channel,
                    pid,
                    terms,
                })
            }
            (Message::Ready { version, .. }, _) => {
                Err(TalkError::Version { theirs: version }.into())
            }
            (message, _) => Err(message.unexpected().into()),
        }
    }
}
