//! The daemon that goes: starts the next one, gives it the door, and takes it back if that one fails.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapce_ai_proto::{ErrorBody, ErrorCode, MessageType};
use lapce_ai_server::{OwnedRequest, Responder, RetireError, Server, ServerHandle};
use lapce_ai_transport::{Channel, ChannelError, Listener, MAX_FDS};
use rustix::process::geteuid;

use super::super::service::Service;
use super::message::{Message, TalkError, Terms, VERSION};

/// The flag of the next daemon.
const TAKE_OVER: &str = "--take-over";
/// What systemd says to one process and not to its children.
const NOT_FOR_CHILDREN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The most time from closing the door to the decision who opens it, in which newcomers wait.
const DECISION: Duration = Duration::from_secs(5);
/// What runs when another daemon has taken over may run to its end: its own deadline is the limit.
const FOR_EVER: Duration = Duration::from_millis(u32::MAX as u64);

/// How to start the next daemon.
#[derive(Debug)]
pub(crate) struct Successors {
    server: ServerHandle,
    service: Option<Arc<Service>>,
    /// The file that this program was started from, by its name: an upgrade puts another in its place.
    program: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    /// How long it may take until it is ready.
    timeout: Duration,
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
}

/// The next daemon before it is decided that it follows. Whoever asked for it may go away meanwhile, which ends it.
#[derive(Debug, Default)]
struct Attempt(Mutex<Stage>);

#[derive(Debug, Default)]
struct Stage {
    child: Option<Child>,
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
        let mut child = self.lock().child.take()?;
        // One that has ended cannot be killed, and has a status all the same.
        let _ = child.kill();
        child.wait().ok()
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
        timeout: Duration,
    ) -> Self {
        let arguments = std::env::args_os().skip(1);
        let mut arguments: Vec<OsString> = arguments.filter(|word| word != TAKE_OVER).collect();
        arguments.push(TAKE_OVER.into());
        Self {
            server,
            service,
            program: std::env::current_exe(),
            arguments,
            timeout,
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
        let outcome = work.await.map_err(|error| error.to_string());
        match outcome.and_then(|outcome| outcome.map_err(|error| error.to_string())) {
            Ok(pid) => {
                let answer = format!("{{\"pid\":{pid}}}");
                // Whoever has gone needs no answer.
                let _ = responder.answer(answer.as_bytes()).await;
            }
            Err(why) => {
                let text = format!("no other daemon has taken over, and this one goes on: {why}");
                responder.fail(ErrorBody::new(ErrorCode::Internal, text));
            }
        }
    }

    /// Starts the next daemon and hands over to it: its process id. After an error it does not run, and this one serves.
    fn hand_over(&self, attempt: &Attempt) -> Result<u32, HandOverError> {
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

    /// Closes the door, gives the next daemon everything, and lets it open the door. After an error this one opens it again;
    /// the other does not by itself as long as the channel is open.
    fn give(&self, next: &Next<'_>, attempt: &Attempt) -> Result<(), HandOverError> {
        let Next {
            channel,
            pid,
            terms,
        } = *next;
        let deadline = Instant::now() + DECISION;
        // Connections that have been told something else make themselves anew.
        let keep = terms == self.server.segment_terms().into();
        let (legacy, retiring) = self.server.retire(FOR_EVER, keep, deadline)?;
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
            // It has ended. Made sure of before the door opens.
            attempt.end();
            return Err(error.into());
        }
        retiring.leave(FOR_EVER);
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
