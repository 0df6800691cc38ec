//! Descriptors sent over a Unix socket, and whose process is at its other end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::cmsg_space;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Why a message with a descriptor could not be sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum FdError {
    /// The peer sent more than one descriptor; all of them are closed.
    #[error("the peer sent more than one descriptor with one message")]
    TooMany,
    /// The control data did not fit; what came of it is closed. Too many descriptors, or this
    /// process may not have more (`RLIMIT_NOFILE`).
    #[error("descriptors sent with a message were lost: too many of them, or none left here")]
    Truncated,
    /// The system refused. `WouldBlock` on a non-blocking socket that is not ready.
    #[error("{call} failed: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// Who is at the other end of a Unix socket, by the kernel's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process that connected; 0 if it is not visible from our pid namespace.
    pub pid: i32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
}

/// Sends bytes, and a descriptor with the first of them. Returns how many bytes were taken: the
/// descriptor is sent if it was any. No signal is raised if the peer is gone.
///
/// # Errors
/// [`FdError::System`].
///
/// # Panics
/// If `bytes` is empty: a stream carries a descriptor only with a byte.
pub fn send_with_fd<Fd: AsFd>(
    socket: Fd,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<usize, FdError> {
    send::<{ cmsg_space!(ScmRights(1)) }>(socket, bytes, fd.as_slice())
}

/// Receives bytes and the descriptor sent with them, if any, closed on exec. Zero bytes mean that
/// the peer has closed its end.
///
/// # Errors
/// [`FdError::TooMany`] and [`FdError::Truncated`], which leave no descriptor open, and
/// [`FdError::System`].
pub fn recv_with_fd<Fd: AsFd>(
    socket: Fd,
    buffer: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), FdError> {
    // Room for two, so that a second one is seen as such.
    let (bytes, mut fds) = receive::<{ cmsg_space!(ScmRights(2)) }>(socket, buffer)?;
    if fds.len() > 1 {
        return Err(FdError::TooMany);
    }
    Ok((bytes, fds.pop()))
}

/// The most descriptors that the kernel takes with one message (its `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// [`send_with_fd`] with several descriptors.
///
/// # Errors
/// [`FdError::System`].
///
/// # Panics
/// If `bytes` is empty: a stream carries descriptors only with a byte. If there are more than [`MAX_FDS`].
pub fn send_with_fds<Fd: AsFd>(
    socket: Fd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, FdError> {
    assert!(fds.len() <= MAX_FDS, "{} descriptors at once", fds.len());
    send::<{ cmsg_space!(ScmRights(MAX_FDS)) }>(socket, bytes, fds)
}

/// Receives bytes, and at most [`MAX_FDS`] descriptors sent with them, closed on exec. Zero bytes mean that the peer has
/// closed its end.
///
/// # Errors
/// [`FdError::Truncated`], which leaves no descriptor open, and [`FdError::System`].
pub fn recv_with_fds<Fd: AsFd>(
    socket: Fd,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), FdError> {
    receive::<{ cmsg_space!(ScmRights(MAX_FDS)) }>(socket, buffer)
}

/// `SPACE` is what the control data of the descriptors takes at most.
fn send<const SPACE: usize>(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, FdError> {
    assert!(
        !bytes.is_empty(),
        "descriptors travel with at least one byte"
    );
    loop {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits);
        }
        let bytes = [IoSlice::new(bytes)];
        match sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(system("sendmsg", errno)),
        }
    }
}

/// `SPACE` is what the control data of the descriptors takes at most; of more nothing is left open.
fn receive<const SPACE: usize>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), FdError> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [IoSliceMut::new(buffer)];
        match recvmsg(&socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(system("recvmsg", errno)),
        }
    };
    // Whatever is returned below, descriptors not handed out are closed by their drop.
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(FdError::Truncated);
    }
    Ok((received.bytes, fds))
}

/// Who is at the other end of a connected Unix socket (`SO_PEERCRED`).
///
/// # Errors
/// The system's error, for something that is not a connected Unix socket.
pub fn peer_credentials<Fd: AsFd>(socket: Fd) -> io::Result<PeerCredentials> {
    let mut found = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and so open; `found` has the `len` bytes that the kernel
    // may write, and any bits are valid in its three integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // What is not a Unix socket, or not connected, has nobody at its other end: -1.
    if len as usize != size_of::<libc::ucred>() || found.uid == u32::MAX {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(PeerCredentials {
        pid: found.pid,
        uid: found.uid,
        gid: found.gid,
    })
}

/// Takes the descriptor of this number, which whoever started this program has left open for it, and has it closed on exec
/// from now on.
///
/// # Errors
/// There is none of this number, or it is this program's own: whatever it opens itself is closed on exec, so that what
/// survived exec was inherited.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes any number, looks at the descriptor's flags, and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if number <= 2 || flags & libc::FD_CLOEXEC != 0 {
        let what = format!("descriptor {number} was not left open for this program");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    // SAFETY: it is open. It came through exec, since it is not closed there as everything is that this program opens; so
    // nothing in this process owns it. From the next line on it is not taken a second time.
    let taken = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&taken, FdFlags::CLOEXEC)?;
    Ok(taken)
}

fn system(call: &'static str, errno: Errno) -> FdError {
    FdError::System {
        call,
        source: errno.into(),
    }
}
