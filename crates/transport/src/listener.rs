//! The listening socket and the lock beside it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW, flock, utimensat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use crate::{RuntimeDir, RuntimeDirError};

/// Connections that may wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The present, as `utimensat` takes it.
const UTIME_NOW_TIMESPEC: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW as _,
};

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory will not do.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Another daemon holds the lock.
    #[error(
        "a daemon is running already: it holds {lock}; use it, stop it with `lapce-ai stop`, or set another ipc.socket_path",
        lock = .lock.display()
    )]
    AlreadyRunning {
        /// The lock file.
        lock: PathBuf,
    },
    /// The path is longer than a socket's may be.
    #[error("the socket's path {path} is too long: at most 107 bytes; set a shorter ipc.socket_path", path = .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The path is taken by something that is no socket.
    #[error("{path} is there and is no socket: move it away, or set another ipc.socket_path", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The daemon's listening socket, with the lock that makes it the only one.
///
/// Dropping it closes both but leaves the names; [`remove`](Self::remove) takes them away.
#[derive(Debug)]
pub struct Listener {
    dir: RuntimeDir,
    socket: OwnedFd,
    lock: File,
}

impl Listener {
    /// Takes the lock, removes a stale socket, binds and listens. Only the holder of the lock unlinks or binds, so
    /// two daemons that start at once cannot take each other's socket away.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(dir: &RuntimeDir) -> Result<Self, BindError> {
        dir.prepare()?;
        let path = dir.socket();
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::PathTooLong {
            path: path.to_owned(),
        })?;
        let lock = take_lock(dir)?;
        let failed = |what| {
            move |source: io::Error| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        match fs::symlink_metadata(path) {
            Ok(meta) => {
                use std::os::unix::fs::FileTypeExt;
                if !meta.file_type().is_socket() {
                    return Err(BindError::NotASocket {
                        path: path.to_owned(),
                    });
                }
                fs::remove_file(path).map_err(failed("remove the stale socket"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| failed("make a socket for")(errno.into()))?;
        bind(&socket, &address).map_err(|errno| failed("bind")(errno.into()))?;
        if dir.is_open_to_others() {
            // To connect is to write. Nobody else can change names in the directory, so it is still the same socket.
            let everybody = Permissions::from_mode(0o666);
            fs::set_permissions(path, everybody).map_err(failed("open to others"))?;
        }
        listen(&socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into()))?;
        // Clients that watch the directory heard of the name before anybody listened: now they hear of it again. Those who
        // do not, because this failed, look for themselves.
        let now = Timestamps {
            last_access: UTIME_NOW_TIMESPEC,
            last_modification: UTIME_NOW_TIMESPEC,
        };
        let _ = utimensat(CWD, path, &now, AtFlags::SYMLINK_NOFOLLOW);
        Ok(Self {
            dir: dir.clone(),
            socket,
            lock,
        })
    }

    /// The next client, if one waits. The socket does not block.
    ///
    /// # Errors
    /// What `accept` says; with [`io::ErrorKind::WouldBlock`] and errors of a client that has gone already left out.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => return Ok(Some(client)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Where it listens.
    pub fn dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// Removes socket and lock file, in this order and still under the lock, then closes them. To be called at
    /// the end of an orderly shutdown.
    ///
    /// # Errors
    /// The first file that could not be removed.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(self.dir.socket())?;
        // Whoever waits for the lock sees that its file has gone, and makes a new one.
        fs::remove_file(self.dir.lock())?;
        drop(self.lock);
        Ok(())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens and locks the lock file. The name may be replaced between the two steps by a daemon that is just stopping,
/// so the file that was locked must still be the one that has the name.
fn take_lock(dir: &RuntimeDir) -> Result<File, BindError> {
    let path = dir.lock();
    let failed = |what| {
        move |source: io::Error| BindError::Io {
            what,
            path: dir.lock(),
            source,
        }
    };
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed())
            .open(&path)
            .map_err(failed("open the lock file"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BindError::AlreadyRunning { lock: path }),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        let ours = file.metadata().map_err(failed("look at"))?;
        match fs::symlink_metadata(&path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {
                return Ok(file);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, RuntimeDir) {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o700)).unwrap();
        let dir = RuntimeDir::for_socket(base.path().join("daemon.sock"));
        (base, dir)
    }

    #[test]
    fn a_second_daemon_is_told_who_is_in_the_way() {
        let (_base, dir) = dir();
        let first = Listener::bind(&dir).unwrap();
        let error = Listener::bind(&dir).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning { .. }), "{error}");
        first.remove().unwrap();
        assert!(!dir.socket().exists() && !dir.lock().exists());
        Listener::bind(&dir).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let (_base, dir) = dir();
        drop(Listener::bind(&dir).unwrap());
        assert!(dir.socket().exists());
        Listener::bind(&dir).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let (_base, dir) = dir();
        fs::write(dir.socket(), "precious").unwrap();
        let error = Listener::bind(&dir).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(dir.socket()).unwrap(), "precious");
    }

    #[test]
    fn others_may_connect_and_not_lock() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o711)).unwrap();
        let dir = RuntimeDir::for_socket(base.path().join("daemon.sock")).open_to_others();
        let listener = Listener::bind(&dir).unwrap();
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(dir.socket()), mode(&dir.lock())), (0o666, 0o600));
        listener.remove().unwrap();
    }

    #[test]
    fn a_long_path_is_named() {
        let (base, _) = dir();
        let dir = RuntimeDir::for_socket(base.path().join("x".repeat(200)));
        assert!(matches!(
            Listener::bind(&dir),
            Err(BindError::PathTooLong { .. })
        ));
    }
}
