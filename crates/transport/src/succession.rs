//! The channel between a daemon and the one that takes over from it: whole messages, and descriptors with them.
//!
//! It is a pair of sockets without a name, of which the daemon's child inherits one end, so that nobody else can reach it. A
//! message is a head of 8 bytes, little endian, and a body:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the body in bytes |
//! | 4 | 4 | number of descriptors, which travel with the first byte |
//!
//! Each end has but one thread, which waits; never longer than until the deadline that it is given.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lapce_ai_shm::{FdError, MAX_FDS, recv_with_fds, send_with_fds};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// Bytes of a message's head.
const HEAD: usize = 8;
/// The longest body that is taken, in bytes.
const MAX_BODY: usize = 64 << 20;
/// How much is taken at a time, so that memory grows with what has come and not with what was announced.
const CHUNK: usize = 64 << 10;

/// Why a message could not be sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// What was inherited is no stream socket of the Unix kind.
    #[error(
        "there is no daemon at the other end: this is not the socket that it gives to its successor"
    )]
    NotAChannel,
    /// The other process has closed its end, which it does when it ends.
    #[error("the other process has gone")]
    Closed,
    /// Nothing came, or nothing was taken, in time.
    #[error("the other process did not say anything in time")]
    TimedOut,
    /// A head that cannot be.
    #[error(
        "a message of {length} bytes with {descriptors} descriptors: at most {MAX_BODY} and {MAX_FDS} are taken"
    )]
    TooLong {
        /// The length that was announced.
        length: u32,
        /// The number of descriptors that was announced.
        descriptors: u32,
    },
    /// Not as many descriptors came as were announced.
    #[error("{found} descriptors came where {announced} were announced")]
    WrongDescriptors {
        /// What the head says.
        announced: usize,
        /// What came.
        found: usize,
    },
    /// Descriptors were lost on the way.
    #[error(transparent)]
    Descriptors(FdError),
    /// The system refused.
    #[error("{call} failed on the channel: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// One end of the channel between a daemon and its successor.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A channel: this process's end, and the socket for the other process.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pair() -> Result<(Self, OwnedFd), ChannelError> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| system("socketpair", errno))?;
        Ok((Self { socket }, theirs))
    }

    /// The end that another process has given us.
    ///
    /// # Errors
    /// [`ChannelError::NotAChannel`].
    pub fn inherited(socket: OwnedFd) -> Result<Self, ChannelError> {
        let is_one = matches!(socket_domain(&socket), Ok(AddressFamily::UNIX))
            && matches!(socket_type(&socket), Ok(SocketType::STREAM));
        if is_one {
            Ok(Self { socket })
        } else {
            Err(ChannelError::NotAChannel)
        }
    }

    /// Sends a message with descriptors; the other process gets copies of them.
    ///
    /// # Errors
    /// See [`ChannelError`]; the channel cannot be used any more then.
    pub fn send(
        &self,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let (length, count) = (number(body.len()), number(descriptors.len()));
        check(length, count)?;
        let mut message = Vec::with_capacity(HEAD + body.len());
        message.extend_from_slice(&length.to_le_bytes());
        message.extend_from_slice(&count.to_le_bytes());
        message.extend_from_slice(body);
        self.limit(Timeout::Send, Some(deadline))?;
        let mut sent = send_with_fds(&self.socket, &message, descriptors).map_err(from_fds)?;
        while sent < message.len() {
            self.limit(Timeout::Send, Some(deadline))?;
            match send(&self.socket, &message[sent..], SendFlags::NOSIGNAL) {
                Ok(more) => sent += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("send", errno)),
            }
        }
        Ok(())
    }

    /// The next message. Without a deadline it waits until the other process says something, or ends.
    ///
    /// # Errors
    /// See [`ChannelError`]; the channel cannot be used any more then.
    pub fn receive(
        &self,
        deadline: Option<Instant>,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        let mut head = [0; HEAD];
        self.limit(Timeout::Recv, deadline)?;
        let (mut have, descriptors) = recv_with_fds(&self.socket, &mut head).map_err(from_fds)?;
        if have == 0 {
            return Err(ChannelError::Closed);
        }
        while have < HEAD {
            have += self.receive_some(&mut head[have..], deadline)?;
        }
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, announced) = (word(0), word(4));
        check(length, announced)?;
        let (length, announced) = (length as usize, announced as usize);
        if descriptors.len() != announced {
            return Err(ChannelError::WrongDescriptors {
                announced,
                found: descriptors.len(),
            });
        }
        let mut body = Vec::new();
        while body.len() < length {
            let have = body.len();
            body.resize(length.min(have + CHUNK), 0);
            let more = self.receive_some(&mut body[have..], deadline)?;
            body.truncate(have + more);
        }
        Ok((body, descriptors))
    }

    fn receive_some(
        &self,
        into: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<usize, ChannelError> {
        loop {
            self.limit(Timeout::Recv, deadline)?;
            match recv(&self.socket, &mut *into, RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ChannelError::Closed),
                Ok((_, n)) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("recv", errno)),
            }
        }
    }

    /// Has the next call wait no longer than until then.
    fn limit(&self, which: Timeout, deadline: Option<Instant>) -> Result<(), ChannelError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ChannelError::TimedOut);
        }
        // The system counts in microseconds, and takes zero for no limit.
        let left = left.map(|left| left.max(Duration::from_micros(1)));
        set_socket_timeout(&self.socket, which, left).map_err(|errno| system("setsockopt", errno))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn check(length: u32, descriptors: u32) -> Result<(), ChannelError> {
    if length as usize > MAX_BODY || descriptors as usize > MAX_FDS {
        return Err(ChannelError::TooLong {
            length,
            descriptors,
        });
    }
    Ok(())
}

fn system(call: &'static str, errno: Errno) -> ChannelError {
    match errno {
        Errno::PIPE | Errno::CONNRESET => ChannelError::Closed,
        Errno::AGAIN => ChannelError::TimedOut,
        errno => ChannelError::System {
            call,
            source: errno.into(),
        },
    }
}

fn from_fds(error: FdError) -> ChannelError {
    match error {
        FdError::System { call, source } => match Errno::from_io_error(&source) {
            Some(errno) => system(call, errno),
            None => ChannelError::System { call, source },
        },
        error => ChannelError::Descriptors(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::inherited(theirs).unwrap())
    }

    #[test]
    fn messages_of_any_length_come_whole_and_with_their_descriptors() {
        let (ours, theirs) = pair();
        let long: Vec<u8> = (0..5_000_000_u32).map(|at| at as u8).collect();
        let reader = thread::spawn(move || {
            let take = || theirs.receive(Some(soon())).unwrap();
            let (empty, none) = take();
            assert_eq!((empty.len(), none.len()), (0, 0));
            let (short, mut files) = take();
            assert_eq!((&short[..], files.len()), (&b"short"[..], 2));
            let mut text = String::new();
            File::from(files.remove(1))
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "through a descriptor");
            let (long, none) = take();
            assert!(none.is_empty());
            assert!(matches!(theirs.receive(None), Err(ChannelError::Closed)));
            long
        });
        ours.send(b"", &[], soon()).unwrap();
        let (mut write, read) = UnixStream::pair().unwrap();
        write.write_all(b"through a descriptor").unwrap();
        drop(write);
        let null = File::open("/dev/null").unwrap();
        ours.send(b"short", &[null.as_fd(), read.as_fd()], soon())
            .unwrap();
        ours.send(&long, &[], soon()).unwrap();
        drop(ours);
        assert_eq!(reader.join().unwrap(), long);
    }

    #[test]
    fn nobody_is_waited_for_beyond_the_deadline() {
        let (ours, theirs) = pair();
        let soon = || Instant::now() + Duration::from_millis(20);
        assert!(matches!(
            ours.receive(Some(soon())),
            Err(ChannelError::TimedOut)
        ));
        // Half a message does not help.
        let half = send_with_fds(&theirs, &[9, 0, 0], &[]).unwrap();
        assert_eq!(half, 3);
        assert!(matches!(
            ours.receive(Some(soon())),
            Err(ChannelError::TimedOut)
        ));
        let (ours, _reads_nothing) = pair();
        let error = ours.send(&vec![0; 32 << 20], &[], soon()).unwrap_err();
        assert!(matches!(error, ChannelError::TimedOut), "{error}");
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let garbled = |bytes: &[u8], descriptors: usize| {
            let (ours, theirs) = pair();
            let null = File::open("/dev/null").unwrap();
            send_with_fds(&theirs, bytes, &vec![null.as_fd(); descriptors]).unwrap();
            drop(theirs);
            ours.receive(Some(soon())).unwrap_err()
        };
        let too_long = garbled(&[0xff; 8], 0);
        assert!(
            matches!(too_long, ChannelError::TooLong { .. }),
            "{too_long}"
        );
        let too_many = garbled(&[0, 0, 0, 0, 254, 0, 0, 0], 0);
        assert!(
            matches!(too_many, ChannelError::TooLong { .. }),
            "{too_many}"
        );
        for (announced, found) in [(1, 0), (0, 1), (2, 3)] {
            let wrong = garbled(&[0, 0, 0, 0, announced, 0, 0, 0], found);
            assert!(
                matches!(wrong, ChannelError::WrongDescriptors { .. }),
                "{wrong}"
            );
        }
        for cut in [&[4, 0, 0][..], &[4, 0, 0, 0, 0, 0, 0, 0, b'x']] {
            assert!(matches!(garbled(cut, 0), ChannelError::Closed));
        }
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(
            Channel::inherited(file.into()),
            Err(ChannelError::NotAChannel)
        ));
    }
}
