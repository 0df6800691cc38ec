//! Sockets that forked children do not have.
//!
//! `CLOEXEC` closes a descriptor when a process runs another program. A child that forks and runs on keeps it, and then the peer
//! sees no hang-up when the parent has gone. So in each child of the C library's `fork`, before `fork` returns there
//! (`pthread_atfork`), the end of a connection that is over takes each one's place. `_Fork` and `clone` do without such handlers, and
//! where a process has no two descriptors left its children keep what it has.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use rustix::io::DupFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// So many sockets of a process are guarded at once; 64 KiB of zeros, which cost memory as they are used.
const SLOTS: usize = 16 * 1024;
/// A slot that is free. Others have the descriptor's number and one.
const FREE: i32 = 0;

/// The descriptors that are guarded. No lock: another thread might hold it in the moment of the fork.
static NOTED: [AtomicI32; SLOTS] = [const { AtomicI32::new(FREE) }; SLOTS];
/// Slots from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

fn take_slot(descriptor: RawFd) -> Option<&'static AtomicI32> {
    let word = descriptor + 1;
    let at = NOTED.iter().position(|slot| {
        slot.load(Ordering::Relaxed) == FREE
            && slot
                .compare_exchange(FREE, word, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    })?;
    USED.fetch_max(at + 1, Ordering::AcqRel);
    NOTED.get(at)
}

/// While it lives, a child of this process that forks has this socket's number, and behind it a connection that is over. So the
/// child can read, write and close what it believes to be its own, and reaches nobody.
#[derive(Debug)]
pub struct ForkGuard {
    /// Stays open as long as it is noted.
    socket: Arc<OwnedFd>,
    slot: Option<&'static AtomicI32>,
}

impl ForkGuard {
    /// Guards this socket. A fork that another thread makes before this, or between the guard's end and the socket's, still takes
    /// it along.
    pub fn new(socket: Arc<OwnedFd>) -> Self {
        static IS_PREPARED: AtomicBool = AtomicBool::new(false);
        // Twice, by two threads at once, would do no harm.
        if !IS_PREPARED.load(Ordering::Acquire) {
            // SAFETY: `in_child` has the type that is asked for, and may run in a child of many threads; see there. Without memory for
            // it children have the sockets.
            let _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            IS_PREPARED.store(true, Ordering::Release);
        }
        let slot = take_slot(socket.as_raw_fd());
        Self { socket, slot }
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        // Before the descriptor is closed, so that the number is never somebody else's while it is noted. In a child the slot may be
        // another guard's by now.
        if let Some(slot) = self.slot {
            let ours = self.socket.as_raw_fd() + 1;
            let _ = slot.compare_exchange(ours, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Runs in the child, whose only thread it is; others may have held any lock. So: atomics and system calls, no memory from the heap.
extern "C" fn in_child() {
    let used = USED.load(Ordering::Acquire);
    if used == 0 {
        return;
    }
    let pair = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let over = pair.map(|(over, _peer)| over);
    for slot in NOTED.iter().take(used) {
        // In any case: nothing is left to be hidden from children of this one, which may close all that it has and use the numbers
        // anew.
        let word = slot.swap(FREE, Ordering::AcqRel);
        let (Ok(over), true) = (&over, word != FREE) else {
            continue;
        };
        // SAFETY: a descriptor is open as long as it is noted, by `ForkGuard`, and each is looked at once in this process. Its owner
        // stays its owner: this one is not dropped.
        let mut noted = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(word - 1) });
        let _ = rustix::io::dup3(over, &mut noted, DupFlags::CLOEXEC);
    }
}
