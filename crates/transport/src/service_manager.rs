//! What a service manager (systemd) is told, and what it keeps for us: `sd_notify(3)` and `sd_listen_fds(3)`, which are
//! datagrams to a socket and environment variables.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use lapce_ai_shm::{FdError, send_with_fds, take_inherited};

/// The number of the first descriptor that a service manager hands to a program.
const FIRST_FD: RawFd = 3;
/// More than any service manager keeps for a program.
const MOST_FDS: RawFd = 4096;

/// Descriptors that are kept together: socket, lock, and what the next daemon has to know.
const KEPT: u64 = 3;
/// The most time for telling it something: it reads at once, or does not read.
const TELL: Duration = Duration::from_secs(1);

/// The way to the service manager that has started this program.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    keeps: bool,
}

impl ServiceManager {
    /// The one that the environment names, if it names one; `variable` looks into it.
    ///
    /// # Errors
    /// It names one that cannot be reached.
    pub fn find(variable: impl Fn(&str) -> Option<OsString>) -> io::Result<Option<Self>> {
        let Some(path) = variable("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(&path)?,
            _ => {
                let what = format!("NOTIFY_SOCKET={} is no Unix socket", path.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(TELL))?;
        let most = variable("FDSTORE").and_then(|most| most.to_str()?.parse::<u64>().ok());
        Ok(Some(Self {
            socket,
            keeps: most.is_some_and(|most| most >= KEPT),
        }))
    }

    /// Whether it keeps descriptors while this program is restarted (systemd 254 and newer say so, where
    /// `FileDescriptorStoreMax` has room for all that belongs together).
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Tells it something, such as `READY=1`.
    ///
    /// # Errors
    /// It does not listen any more.
    pub fn tell(&self, state: &str) -> io::Result<()> {
        self.send(state, &[])
    }

    /// Has it keep a copy of a descriptor under a name.
    ///
    /// # Errors
    /// It does not listen any more.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), &[descriptor])
    }

    /// Has it keep nothing under a name any more.
    ///
    /// # Errors
    /// It does not listen any more.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn send(&self, state: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = send_with_fds(self.socket.as_fd(), state.as_bytes(), descriptors);
        sent.map(drop).map_err(|error| match error {
            FdError::System { source, .. } => source,
            error => io::Error::other(error),
        })
    }
}

/// What a service manager has kept for this program, and left open for it: names and descriptors. `process` is this one's
/// id. What it says is only for the process that it started, and each descriptor is taken once.
///
/// # Errors
/// What it says is not so.
pub fn kept_descriptors(
    process: u32,
    variable: impl Fn(&str) -> Option<OsString>,
) -> io::Result<Vec<(String, OwnedFd)>> {
    let text = |name| variable(name).and_then(|text| text.into_string().ok());
    if text("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(process) {
        return Ok(Vec::new());
    }
    let count = text("LISTEN_FDS").and_then(|count| count.parse::<RawFd>().ok());
    let count = count.filter(|count| (0..=MOST_FDS).contains(count));
    let Some(count) = count else {
        let what = "LISTEN_FDS is no number of descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let names = text("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (FIRST_FD..FIRST_FD + count)
        .map(|number| Ok((names.next().unwrap_or_default(), take_inherited(number)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn environment(entries: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + use<> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), OsString::from(value));
        let entries: HashMap<String, OsString> = entries.iter().map(own).collect();
        move |name| entries.get(name).cloned()
    }

    #[test]
    fn a_manager_is_told_and_keeps() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let at = |entries: &[(&str, &str)]| ServiceManager::find(environment(entries));
        let path = path.to_str().unwrap();
        assert!(!at(&[("NOTIFY_SOCKET", path)]).unwrap().unwrap().keeps());
        let manager = at(&[("NOTIFY_SOCKET", path), ("FDSTORE", "3")]);
        let manager = manager.unwrap().unwrap();
        assert!(manager.keeps());
        manager.tell("READY=1").unwrap();
        let file = File::open("/dev/null").unwrap();
        manager.keep("lock", file.as_fd()).unwrap();
        manager.forget("lock").unwrap();
        let hear = || {
            let mut said = [0; 100];
            let (n, fds) = lapce_ai_shm::recv_with_fds(theirs.as_fd(), &mut said).unwrap();
            (String::from_utf8(said[..n].to_vec()).unwrap(), fds)
        };
        assert_eq!(hear().0, "READY=1");
        let (said, mut fds) = hear();
        assert_eq!(said, "FDSTORE=1\nFDNAME=lock");
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(inode(&File::from(fds.remove(0))), inode(&file));
        assert_eq!(hear().0, "FDSTOREREMOVE=1\nFDNAME=lock");
        assert!(at(&[]).unwrap().is_none() && at(&[("NOTIFY_SOCKET", "")]).unwrap().is_none());
        for wrong in ["vsock:2:1", "/nowhere/at/all"] {
            assert!(at(&[("NOTIFY_SOCKET", wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_for_another_process_is_not_taken() {
        let kept = |entries: &[(&str, &str)]| kept_descriptors(7, environment(entries));
        for nothing in [
            &[][..],
            &[("LISTEN_FDS", "2")],
            &[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")],
            &[("LISTEN_PID", "7"), ("LISTEN_FDS", "0")],
        ] {
            assert!(kept(nothing).unwrap().is_empty(), "{nothing:?}");
        }
        for wrong in ["", "-1", "many", "99999"] {
            assert!(kept(&[("LISTEN_PID", "7"), ("LISTEN_FDS", wrong)]).is_err());
        }
    }
}
