//! The daemons that have followed this one.
//!
//! Whoever has started a daemon (a shell, a container, a supervisor that cannot be told of another process) watches the process
//! that it has started, takes its end for the daemon's, and sends signals to it. So that process stays when another one
//! serves: it passes on what it is told, and ends when the last of those that have followed it does, and as that one did.
//!
//! It cannot know them all by name, since each starts the next one. But they are a process group of their own, which the first of
//! them leads, and one whose parent has gone becomes a child of this process (`PR_SET_CHILD_SUBREAPER`).

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lapce_ai_transport::trim_heap;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpgrp, getpid, kill_process_group, set_child_subreaper,
    wait, waitpgid,
};
use tokio::signal::unix::{SignalKind, signal};

/// The daemons that have followed this one, if any have.
#[derive(Debug)]
pub(crate) struct Lineage {
    /// Whether this process has followed another one itself.
    follows: bool,
    /// Whether somebody watches this process and no other.
    stays: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The process group of those that have followed.
    group: Option<Pid>,
    /// How the one ended that was the last to end so far.
    last: Option<WaitStatus>,
    /// What they are to be told; whoever follows in the same moment is told it then.
    told: Option<Signal>,
    /// This process serves nobody any more, and starts nobody.
    alone: bool,
}

impl Lineage {
    /// Nobody has followed yet. `stays`: somebody watches this process, and cannot be told to watch another one.
    pub(crate) fn new(follows: bool, stays: bool) -> Self {
        Self {
            follows,
            stays,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the next one has to be started.
    pub(super) fn prepare(&self, command: &mut Command) {
        if !self.follows {
            command.process_group(0);
        }
    }

    /// This one has followed.
    pub(super) fn followed(&self, child: &Child) {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::warn!(%error, "cannot look after the daemons that follow the next one");
        }
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let mut state = self.lock();
        state.group = match self.follows {
            true => Some(getpgrp()),
            false => leader,
        };
        if let Some(signal) = state.told {
            state.pass_on(signal);
        }
    }

    /// Has all that have followed, and whoever follows in this moment, told it too, if this process stands for them. SIGTERM may
    /// reach them twice: from here, and from whoever signals all processes.
    pub(crate) fn pass_on(&self, signal: Signal) {
        if self.stays {
            let mut state = self.lock();
            state.told = Some(signal);
            state.pass_on(signal);
        }
    }

    /// This daemon has ended. If others have followed, and this process stands for them, it waits until none is left.
    ///
    /// # Errors
    /// The last one failed, or it cannot be waited for.
    pub(crate) async fn outlive(&self) -> Result<(), LineageEnd> {
        if !self.remains() {
            return self.ended().unwrap_or(Ok(()));
        }
        tracing::info!("this process ends when the daemon that has taken over does");
        trim_heap();
        self.end().await
    }

    /// Notes that this daemon has ended. True: others have followed, and this process stands for them.
    fn remains(&self) -> bool {
        let mut state = self.lock();
        state.alone = self.stays && state.group.is_some();
        state.alone
    }

    /// Waits until none is left.
    ///
    /// # Errors
    /// The last one failed, or it cannot be waited for.
    pub(super) async fn end(&self) -> Result<(), LineageEnd> {
        let mut ends = signal(SignalKind::child())?;
        loop {
            if let Some(end) = self.ended() {
                return end;
            }
            ends.recv().await;
        }
    }

    /// How the last one ended, if none is left.
    fn ended(&self) -> Option<Result<(), LineageEnd>> {
        let mut state = self.lock();
        let group = state.group?;
        // Whoever was waited for last, when it was not known who that would be.
        let mut other = None;
        loop {
            match waitpgid(group, WaitOptions::NOHANG) {
                Ok(Some((_, status))) => (state.last, other) = (Some(status), None),
                Ok(None) => other = Some(state.reap_other()?),
                Err(Errno::INTR) => {}
                // No such child. If there was one a moment ago, it has been waited for since then.
                Err(_) => {
                    state.last = other.or(state.last);
                    break;
                }
            }
        }
        match state
            .last
            .map(|status| ExitStatus::from_raw(status.as_raw()))
        {
            Some(status) if !status.success() => Some(Err(LineageEnd::Failed(status))),
            _ => Some(Ok(())),
        }
    }
}

impl State {
    /// Waits for one of those that became this process's children with the others, such as what their commands have left behind.
    /// While this process has children of its own it is theirs to wait.
    fn reap_other(&self) -> Option<WaitStatus> {
        if !self.alone {
            return None;
        }
        let reaped = wait(WaitOptions::NOHANG).ok().flatten();
        reaped.map(|(_, status)| status)
    }

    fn pass_on(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Those who have gone already need none.
            let _ = kill_process_group(group, signal);
        }
    }
}

/// What became of the daemon after this one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineageEnd {
    #[error("the daemon that has taken over has ended ({0})")]
    Failed(ExitStatus),
    #[error("the daemon that has taken over cannot be waited for: {0}")]
    Unknown(#[from] io::Error),
}
