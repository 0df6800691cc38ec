//! What lies with the service manager (systemd) while the daemon is restarted by it: the listening socket, in whose backlog
//! clients wait meanwhile, the lock, and at an orderly end what the next daemon has to know.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapce_ai_server::{Legacy, ServerHandle};
use lapce_ai_transport::{Listener, RuntimeDir, ServiceManager, kept_descriptors};
use rustix::fs::{MemfdFlags, memfd_create};

use super::succession::Estate;

/// Names of what is kept.
const SOCKET: &str = "socket";
const LOCK: &str = "lock";
const ESTATE: &str = "estate";
/// The longest estate that is read, in bytes.
const MAX_ESTATE: u64 = 64 << 20;
/// The most time that closing the door may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service manager that has started this daemon.
#[derive(Debug)]
pub(super) struct Service {
    manager: ServiceManager,
    /// The daemon is another process by now.
    moved: AtomicBool,
}

/// What was kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) listener: Listener,
    /// What the daemon before this one has left; it crashed if there is nothing.
    pub(super) legacy: Option<Legacy>,
}

impl Service {
    /// The one that the environment tells of.
    pub(super) fn find() -> Option<Self> {
        match ServiceManager::find(|name| std::env::var_os(name)) {
            Ok(manager) => manager.map(|manager| Self {
                manager,
                moved: AtomicBool::new(false),
            }),
            Err(error) => {
                tracing::warn!(%error, "cannot reach the service manager (NOTIFY_SOCKET)");
                None
            }
        }
    }

    /// The door that was kept for this daemon. What cannot be used is forgotten, and the daemon begins without it.
    pub(super) fn take_kept(&self, directory: &RuntimeDir) -> Option<Kept> {
        let kept = kept_descriptors(std::process::id(), |name| std::env::var_os(name));
        let kept = match kept {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "cannot take what the service manager has kept");
                return None;
            }
        };
        let (mut socket, mut lock, mut estate) = (None, None, None);
        for (name, descriptor) in kept {
            match name.as_str() {
                SOCKET => socket = Some(descriptor),
                LOCK => lock = Some(descriptor),
                ESTATE => estate = Some(descriptor),
                _ => tracing::warn!(name, "the service manager has kept what is not known here"),
            }
        }
        let legacy = estate.and_then(|estate| match take_estate(estate) {
            Ok(legacy) => legacy,
            Err(error) => {
                tracing::warn!(%error, "cannot read what the daemon before this one has left");
                None
            }
        });
        self.report(self.manager.forget(ESTATE));
        let adopted = match (socket, lock) {
            (None, None) => return None,
            (Some(socket), Some(lock)) => {
                Listener::adopt(directory, socket, lock).map_err(|error| error.to_string())
            }
            _ => Err("of socket and lock it has one only".to_owned()),
        };
        match adopted {
            Ok(listener) => Some(Kept { listener, legacy }),
            Err(error) => {
                tracing::warn!(%error, "cannot use the socket that the service manager has kept");
                self.report(self.manager.forget(SOCKET));
                self.report(self.manager.forget(LOCK));
                None
            }
        }
    }

    /// Has the door kept from now on.
    pub(super) fn keep_door(&self, listener: &Listener) {
        if self.manager.keeps() {
            for (name, part) in [SOCKET, LOCK].into_iter().zip(listener.parts()) {
                self.report(self.manager.keep(name, part));
            }
        }
    }

    /// The daemon serves.
    pub(super) fn ready(&self) {
        self.report(self.manager.tell("READY=1"));
    }

    /// The daemon is another process from now on.
    pub(super) fn moved_to(&self, process: u32) {
        self.moved
            .store(process != std::process::id(), Ordering::Release);
        self.report(self.manager.tell(&format!("MAINPID={process}")));
    }

    /// The daemon was told to stop, perhaps to be started again. Where the door is kept, newcomers wait there for the next
    /// one, which gets what it has to know; what runs has `drain`. False: it is to be stopped as if there were no next one.
    pub(super) fn leave(&self, server: &ServerHandle, drain: Duration) -> bool {
        if self.moved.load(Ordering::Acquire) {
            // It is not the service that stops.
            return false;
        }
        self.report(self.manager.tell("STOPPING=1"));
        if !self.manager.keeps() {
            return false;
        }
        let retired = server.retire(drain, false, Instant::now() + PATIENCE);
        let (legacy, retiring) = match retired {
            Ok(retired) => retired,
            Err(error) => {
                tracing::info!(%error, "nothing is left to a next daemon");
                return false;
            }
        };
        let kept = estate(legacy).and_then(|estate| self.manager.keep(ESTATE, estate.as_fd()));
        if let Err(error) = kept {
            // The next one is another life to its clients then.
            tracing::warn!(%error, "cannot leave anything to the next daemon");
        }
        retiring.leave(drain);
        true
    }

    fn report(&self, told: io::Result<()>) {
        if let Err(error) = told {
            tracing::warn!(%error, "the service manager does not hear");
        }
    }
}

/// What the next daemon has to know, in a file without a name.
fn estate(legacy: Legacy) -> io::Result<File> {
    let mut file = File::from(memfd_create("lapce-ai-estate", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&Estate::from(legacy))?)?;
    Ok(file)
}

/// Reads and empties that file: it is true for one life only. Were this daemon to crash, the next one would believe that
/// nothing has been taken since.
fn take_estate(file: OwnedFd) -> io::Result<Option<Legacy>> {
    let mut file = File::from(file);
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    (&mut file).take(MAX_ESTATE).read_to_end(&mut text)?;
    file.set_len(0)?;
    if text.is_empty() {
        return Ok(None);
    }
    let estate: Estate = serde_json::from_slice(&text)?;
    Ok(Some(estate.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::fd::BorrowedFd;

    use super::*;

    #[test]
    fn an_estate_is_taken_once() {
        let legacy = Legacy {
            instance: 7,
            connections: 8,
            clients: Vec::new(),
        };
        let file = estate(legacy.clone()).unwrap();
        let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned().unwrap();
        assert_eq!(take_estate(copy(file.as_fd())).unwrap(), Some(legacy));
        assert_eq!(take_estate(copy(file.as_fd())).unwrap(), None);
        (&file).write_all(b"{\"instance\":").unwrap();
        assert!(take_estate(copy(file.as_fd())).is_err());
        assert_eq!(take_estate(copy(file.as_fd())).unwrap(), None);
        // What cannot be emptied is not believed.
        let mut text = tempfile::NamedTempFile::new().unwrap();
        text.write_all(b"{\"instance\":\"1\",\"connections\":1,\"clients\":[]}")
            .unwrap();
        let read_only = File::open(text.path()).unwrap();
        assert!(take_estate(read_only.into()).is_err());
    }
}
