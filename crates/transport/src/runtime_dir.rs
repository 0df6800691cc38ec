//! The directory with the socket and the lock file.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The directory that holds the daemon's socket and its lock file, and nothing else.
///
/// It must belong to the daemon's user and be closed to everybody else (mode 0700): whoever can write there could
/// stand in for the daemon. If the daemon [serves others](Self::open_to_others), they may enter it, and still not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    socket: PathBuf,
    others: bool,
}

/// Why a directory cannot hold the socket.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// It cannot be made or looked at.
    #[error("cannot use {path} as the runtime directory: {source}", path = .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{path} is not a directory (a link does not count): remove it, or set ipc.socket_path to another place",
        path = .path.display()
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error(
        "{path} belongs to uid {owner}, not to uid {us}: remove it, or set ipc.socket_path to a directory of your own",
        path = .path.display()
    )]
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// We.
        us: u32,
    },
    /// Others may change it, or enter it though only this user is served.
    #[error("{path} has mode {mode:04o}, so that others could reach the daemon: run `chmod 700 {path}`", path = .path.display())]
    OpenToOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may write to it.
    #[error(
        "{path} has mode {mode:04o}, so that others could put a socket of their own there: run `chmod go-w {path}`",
        path = .path.display()
    )]
    WritableByOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others are to be served and cannot come in.
    #[error(
        "{path} has mode {mode:04o}, so that the users in ipc.allowed_uids cannot reach the socket: run `chmod 711 {path}`, or set ipc.socket_path to a place that they can reach",
        path = .path.display()
    )]
    ClosedToOthers {
        /// The directory, or one above it.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Write permission of group and others.
const WRITE: u32 = 0o022;
/// Their permission to pass through.
const SEARCH: u32 = 0o011;
/// Of a directory that others may pass through, and no more.
const MODE_FOR_OTHERS: u32 = 0o711;

impl RuntimeDir {
    /// Name of the socket in the default directory.
    pub const SOCKET: &'static str = "daemon.sock";

    /// The place for a socket at this path; the lock file is beside it, with the extension `lock`.
    pub fn for_socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            others: false,
        }
    }

    /// `$XDG_RUNTIME_DIR/lapce-ai`, and where that is not set `/tmp/lapce-ai-<uid>`.
    pub fn default_for_user() -> Self {
        let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(base) if Path::new(&base).is_absolute() => Path::new(&base).join("lapce-ai"),
            _ => PathBuf::from(format!("/tmp/lapce-ai-{}", geteuid().as_raw())),
        };
        Self::for_socket(dir.join(Self::SOCKET))
    }

    /// The same place for a daemon that serves other users, too: whoever can reach the directory may connect, and whom
    /// the daemon serves is decided by their uid, of which the kernel tells. The lock file stays the daemon's own.
    #[must_use]
    pub fn open_to_others(self) -> Self {
        Self {
            others: true,
            ..self
        }
    }

    /// Whether other users may connect.
    pub(crate) fn is_open_to_others(&self) -> bool {
        self.others
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The lock file's path.
    pub fn lock(&self) -> PathBuf {
        self.socket.with_extension("lock")
    }

    /// Makes the directory if it is not there, and checks whose it is and who may enter.
    ///
    /// # Errors
    /// See [`RuntimeDirError`].
    pub fn prepare(&self) -> Result<(), RuntimeDirError> {
        let dir = match self.socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let io_error = |source| RuntimeDirError::Io {
            path: dir.to_owned(),
            source,
        };
        let mode = if self.others { MODE_FOR_OTHERS } else { 0o700 };
        let made = match DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .mode(mode)
                    .recursive(true)
                    .create(dir)
                    .map_err(io_error)?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(io_error(error)),
        };
        if made && self.others {
            // The umask may have taken something away.
            fs::set_permissions(dir, Permissions::from_mode(mode)).map_err(io_error)?;
        }
        let meta = fs::symlink_metadata(dir).map_err(io_error)?;
        if !meta.is_dir() {
            return Err(RuntimeDirError::NotADirectory {
                path: dir.to_owned(),
            });
        }
        let us = geteuid().as_raw();
        if meta.uid() != us {
            return Err(RuntimeDirError::WrongOwner {
                path: dir.to_owned(),
                owner: meta.uid(),
                us,
            });
        }
        let (path, mode) = (dir.to_owned(), meta.mode() & 0o7777);
        if !self.others {
            return match mode & 0o077 {
                0 => Ok(()),
                _ => Err(RuntimeDirError::OpenToOthers { path, mode }),
            };
        }
        if mode & WRITE != 0 {
            return Err(RuntimeDirError::WritableByOthers { path, mode });
        }
        for place in fs::canonicalize(dir).map_err(io_error)?.ancestors() {
            let meta = fs::metadata(place).map_err(io_error)?;
            // Somebody else's may be the very user's who is to come in.
            if [us, 0].contains(&meta.uid()) && meta.mode() & SEARCH == 0 {
                return Err(RuntimeDirError::ClosedToOthers {
                    path: place.to_owned(),
                    mode: meta.mode() & 0o7777,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_closed() {
        let base = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::for_socket(base.path().join("a/b/daemon.sock"));
        dir.prepare().unwrap();
        assert_eq!(
            fs::metadata(base.path().join("a/b")).unwrap().mode() & 0o777,
            0o700
        );
        assert_eq!(dir.lock(), base.path().join("a/b/daemon.lock"));
    }

    #[test]
    fn an_open_directory_is_refused_with_the_remedy() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
        let error = RuntimeDir::for_socket(base.path().join("daemon.sock"))
            .prepare()
            .unwrap_err();
        assert!(
            matches!(error, RuntimeDirError::OpenToOthers { mode: 0o755, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_link_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        let error = RuntimeDir::for_socket(link.join("daemon.sock"))
            .prepare()
            .unwrap_err();
        assert!(
            matches!(error, RuntimeDirError::NotADirectory { .. }),
            "{error}"
        );
    }

    /// A base that others may pass, and a place in it.
    fn open_place() -> (tempfile::TempDir, RuntimeDir) {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o711)).unwrap();
        let dir = RuntimeDir::for_socket(base.path().join("run/daemon.sock")).open_to_others();
        (base, dir)
    }

    #[test]
    fn a_directory_for_others_lets_them_pass_and_no_more() {
        let (base, dir) = open_place();
        dir.prepare().unwrap();
        let run = base.path().join("run");
        assert_eq!(fs::metadata(&run).unwrap().mode() & 0o777, 0o711);
        // By group, or with the names to be read: all the same, as long as nobody else writes.
        for mode in [0o711, 0o710, 0o755, 0o750] {
            fs::set_permissions(&run, Permissions::from_mode(mode)).unwrap();
            dir.prepare().unwrap();
        }
        for mode in [0o777, 0o731, 0o713, 0o1777] {
            fs::set_permissions(&run, Permissions::from_mode(mode)).unwrap();
            let error = dir.prepare().unwrap_err();
            assert!(error.to_string().contains("chmod go-w"), "{error}");
        }
    }

    #[test]
    fn a_place_that_others_cannot_reach_is_named_with_the_remedy() {
        let (base, dir) = open_place();
        dir.prepare().unwrap();
        for closed in [base.path().join("run"), base.path().to_owned()] {
            fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
            let error = dir.prepare().unwrap_err();
            assert!(
                matches!(&error, RuntimeDirError::ClosedToOthers { path, mode: 0o700 } if *path == closed),
                "{error}"
            );
            assert!(error.to_string().contains("chmod 711"), "{error}");
            fs::set_permissions(&closed, Permissions::from_mode(0o711)).unwrap();
        }
        dir.prepare().unwrap();
        // And what is open to others will not do for a daemon that serves nobody else.
        let alone = RuntimeDir::for_socket(dir.socket());
        assert!(matches!(
            alone.prepare(),
            Err(RuntimeDirError::OpenToOthers { mode: 0o711, .. })
        ));
    }
}
