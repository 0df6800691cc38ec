//! The listening socket and the lock beside it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW, fcntl_getfl,
    fcntl_setfl, flock, utimensat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, getsockname, listen,
    socket_with, sockopt,
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
    /// What another daemon handed over is not what listens there.
    #[error("cannot take over {path}: {what}", path = .path.display())]
    NotTaken {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        what: String,
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

    /// Takes over the socket and the lock that another daemon has at this place, both as that daemon's [`parts`](Self::parts).
    /// Neither the names nor the lock change hands meanwhile: the two processes hold the same open files, until one
    /// closes its own.
    ///
    /// # Errors
    /// See [`BindError`]: they are checked like anything that comes from outside.
    pub fn adopt(dir: &RuntimeDir, socket: OwnedFd, lock: OwnedFd) -> Result<Self, BindError> {
        dir.prepare()?;
        let path = dir.socket();
        let wrong = |what: String| BindError::NotTaken {
            path: path.to_owned(),
            what,
        };
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::PathTooLong {
            path: path.to_owned(),
        })?;
        let listens = matches!(sockopt::socket_domain(&socket), Ok(AddressFamily::UNIX))
            && matches!(sockopt::socket_type(&socket), Ok(SocketType::STREAM))
            && matches!(sockopt::socket_acceptconn(&socket), Ok(true));
        if !listens {
            return Err(wrong("what came is no socket that listens".to_owned()));
        }
        let bound = getsockname(&socket).map_err(|errno| wrong(errno.to_string()))?;
        let bound = SocketAddrUnix::try_from(bound).map_err(|errno| wrong(errno.to_string()))?;
        if bound != address {
            let elsewhere = bound.path().map(|path| path.to_string_lossy().into_owned());
            return Err(wrong(format!(
                "the daemon listens on {}, and only a daemon that is stopped and started moves",
                elsewhere.unwrap_or_default()
            )));
        }
        let lock = File::from(lock);
        let ours = lock.metadata().map_err(|error| wrong(error.to_string()))?;
        let named = fs::symlink_metadata(dir.lock()).map_err(|error| wrong(error.to_string()))?;
        if (named.dev(), named.ino()) != (ours.dev(), ours.ino()) {
            return Err(wrong("what came is not its lock".to_owned()));
        }
        // It is held already, by the file that both have open.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| wrong(format!("its lock is not held: {errno}")))?;
        let failed = |what| {
            move |source: io::Error| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let flags = fcntl_getfl(&socket).map_err(|errno| failed("look at")(errno.into()))?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)
            .map_err(|errno| failed("look at")(errno.into()))?;
        if dir.is_open_to_others() {
            let everybody = Permissions::from_mode(0o666);
            fs::set_permissions(path, everybody).map_err(failed("open to others"))?;
        }
        Ok(Self {
            dir: dir.clone(),
            socket,
            lock,
        })
    }

    /// The socket and the lock, for a daemon that [takes over](Self::adopt).
    pub fn parts(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.lock.as_fd()]
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
    fn another_takes_over_without_a_gap() {
        let (_base, dir) = dir();
        let first = Listener::bind(&dir).unwrap();
        let copies = |listener: &Listener| {
            listener
                .parts()
                .map(|part| part.try_clone_to_owned().unwrap())
        };
        let [socket, lock] = copies(&first);
        let second = Listener::adopt(&dir, socket, lock).unwrap();
        // Whoever came to the first is taken by the second.
        let _client = std::os::unix::net::UnixStream::connect(dir.socket()).unwrap();
        drop(first);
        assert!(second.accept().unwrap().is_some());
        let error = Listener::bind(&dir).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning { .. }), "{error}");
        second.remove().unwrap();
        assert!(!dir.socket().exists() && !dir.lock().exists());
    }

    #[test]
    fn nothing_is_taken_over_that_is_not_what_listens_there() {
        let (_base, dir) = dir();
        let listener = Listener::bind(&dir).unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let [socket, lock] = listener.parts();
        let copy = |part: BorrowedFd<'_>| part.try_clone_to_owned().unwrap();
        let refused = |dir: &RuntimeDir, socket, lock| {
            let error = Listener::adopt(dir, socket, lock).unwrap_err();
            assert!(matches!(error, BindError::NotTaken { .. }), "{error}");
            error.to_string()
        };
        assert!(refused(&dir, null(), copy(lock)).contains("no socket"));
        let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(refused(&dir, connected.into(), copy(lock)).contains("no socket"));
        assert!(refused(&dir, copy(socket), null()).contains("lock"));
        // The right file, but opened by somebody else, who has no lock on it.
        let other = File::open(dir.lock()).unwrap();
        assert!(refused(&dir, copy(socket), other.into()).contains("lock"));
        let elsewhere = RuntimeDir::for_socket(dir.socket().with_file_name("other.sock"));
        let why = refused(&elsewhere, copy(socket), copy(lock));
        assert!(why.contains("daemon.sock"), "{why}");
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
