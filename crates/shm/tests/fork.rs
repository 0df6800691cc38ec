//! What a child that forks and runs on has of its parent's sockets. One test: children inherit what others make meanwhile.

#![cfg(not(ring_loom))]
#![allow(
    clippy::unwrap_used,
    reason = "the helpers of tests are not seen as tests"
)]

use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_shm::ForkGuard;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const MANY: usize = 150;

/// Lives until it is dropped.
struct Forked(Pid);

impl Forked {
    /// A child that sends a byte to each of these numbers, and then runs on.
    fn sending_to(numbers: &[RawFd]) -> Self {
        // SAFETY: the child does nothing but system calls.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            for number in numbers {
                // SAFETY: the byte is there; a number that is no socket is an error.
                unsafe { libc::send(*number, [1_u8].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
            }
            loop {
                // SAFETY: it waits for a signal, and touches nothing.
                unsafe { libc::pause() };
            }
        }
        Self(Pid::from_raw(pid).unwrap())
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        kill_process(self.0, Signal::KILL).unwrap();
        waitpid(Some(self.0), WaitOptions::empty()).unwrap();
    }
}

fn pair() -> (Arc<OwnedFd>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    (Arc::new(ours.into()), theirs)
}

fn read(mut from: &UnixStream) -> usize {
    from.read(&mut [0; 8]).unwrap()
}

#[test]
fn a_child_that_runs_on_holds_no_guarded_socket() {
    let (plain, plain_peer) = pair();
    let (ours, peers): (Vec<_>, Vec<_>) = (0..MANY).map(|_| pair()).unzip();
    let guards: Vec<ForkGuard> = ours.iter().cloned().map(ForkGuard::new).collect();
    let numbers = |sockets: &[Arc<OwnedFd>]| -> Vec<RawFd> {
        sockets.iter().map(AsRawFd::as_raw_fd).collect()
    };
    let mut all = numbers(&ours);
    all.push(plain.as_raw_fd());
    let child = Forked::sending_to(&all);
    assert_eq!(
        read(&plain_peer),
        1,
        "an ordinary socket is the child's, too"
    );
    // What is the parent's stays as it was.
    let mut parents = UnixStream::from(ours[0].try_clone().unwrap());
    std::io::Write::write_all(&mut parents, b"123").unwrap();
    assert_eq!(read(&peers[0]), 3, "and the child's byte did not come");
    drop((guards, ours, parents));
    for peer in &peers {
        assert_eq!(read(peer), 0, "nothing was sent, and it has hung up");
    }
    drop(child);

    // A guard that has gone guards nothing, and its slot another.
    let (first, first_peer) = pair();
    drop(ForkGuard::new(Arc::clone(&first)));
    let (second, second_peer) = pair();
    let guard = ForkGuard::new(Arc::clone(&second));
    let _child = Forked::sending_to(&numbers(&[first, second.clone()]));
    assert_eq!(read(&first_peer), 1);
    drop((guard, second));
    assert_eq!(read(&second_peer), 0);
}
