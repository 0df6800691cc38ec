//! The directory with the socket and the lock file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The directory that holds the daemon's socket and its lock file, and nothing else.
///
/// It must belong to the daemon's user and be closed to everybody else (mode 0700): whoever can write there could
/// stand in for the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    socket: PathBuf,
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
    /// Others may enter or change it.
    #[error("{path} has mode {mode:04o}, so that others could reach the daemon: run `chmod 700 {path}`", path = .path.display())]
    OpenToOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl RuntimeDir {
    /// Name of the socket in the default directory.
    pub const SOCKET: &'static str = "daemon.sock";

    /// The place for a socket at this path; the lock file is beside it, with the extension `lock`.
    pub fn for_socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// `$XDG_RUNTIME_DIR/lapce-ai`, and where that is not set `/tmp/lapce-ai-<uid>`.
    pub fn default_for_user() -> Self {
        let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(base) if Path::new(&base).is_absolute() => Path::new(&base).join("lapce-ai"),
            _ => PathBuf::from(format!("/tmp/lapce-ai-{}", geteuid().as_raw())),
        };
        Self {
            socket: dir.join(Self::SOCKET),
        }
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
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(dir)
                    .map_err(io_error)?;
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error(error));
            }
            _ => {}
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
        let mode = meta.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(RuntimeDirError::OpenToOthers {
                path: dir.to_owned(),
                mode,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
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
}
