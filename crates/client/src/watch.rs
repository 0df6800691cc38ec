//! Hears of a daemon's socket being made: one inotify descriptor and one thread for the whole process, which exist only
//! while some client of it waits for its daemon.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// All that this process watches.
static WATCHES: Mutex<Watches> = Mutex::new(Watches {
    inotify: None,
    process: 0,
    places: Vec::new(),
});

struct Watches {
    /// While the thread runs.
    inotify: Option<Arc<OwnedFd>>,
    /// Whose thread it is: a forked child has the descriptor's number and no thread.
    process: u32,
    places: Vec<Watched>,
}

struct Watched {
    /// The kernel's number for the directory.
    descriptor: i32,
    place: Arc<Place>,
    /// Clients that wait there.
    clients: usize,
}

/// A name in a directory.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    name: OsString,
    /// How often it was made, or touched.
    changes: AtomicU64,
    /// The directory has gone: no more changes will be told.
    gone: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

/// One client's share in the watch on its daemon's socket.
#[derive(Debug)]
pub(crate) struct Watching {
    place: Arc<Place>,
    seen: u64,
}

/// What happened to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    /// It was made, or touched by a daemon that now listens. So many clients of this process wait for it.
    Appeared {
        crowd: usize,
    },
    /// Its directory has gone, and with it the watch.
    Gone,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watching {
    /// Begins to watch. What happened before is not told, so whoever begins looks once more for himself. `None`: there is
    /// no such directory, or no inotify to be had.
    pub(crate) fn begin(socket: &Path) -> Option<Self> {
        let name = socket.file_name()?.to_owned();
        let directory = match socket.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return None,
        };
        let mut watches = lock(&WATCHES);
        let inotify = watches.running()?;
        // For a directory that is watched already this gives the same number, and for one that was made anew another.
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let Ok(descriptor) = inotify::add_watch(&inotify, directory, flags) else {
            watches.end_if_unused();
            return None;
        };
        let known = watches.places.iter_mut().find(|watched| {
            watched.descriptor == descriptor
                && watched.place.name == name
                && watched.place.directory == directory
        });
        let place = match known {
            Some(watched) => {
                watched.clients += 1;
                Arc::clone(&watched.place)
            }
            None => {
                let place = Arc::new(Place {
                    directory: directory.to_owned(),
                    name,
                    changes: AtomicU64::new(0),
                    gone: AtomicBool::new(false),
                    wakers: Mutex::default(),
                });
                watches.places.push(Watched {
                    descriptor,
                    place: Arc::clone(&place),
                    clients: 1,
                });
                place
            }
        };
        let seen = place.changes.load(Ordering::Acquire);
        Some(Self { place, seen })
    }

    /// What happened since the last look.
    pub(crate) fn look(&mut self) -> Seen {
        if self.place.gone.load(Ordering::Acquire) {
            return Seen::Gone;
        }
        let changes = self.place.changes.load(Ordering::Acquire);
        if std::mem::replace(&mut self.seen, changes) == changes {
            return Seen::Nothing;
        }
        let watches = lock(&WATCHES);
        let ours = |watched: &&Watched| Arc::ptr_eq(&watched.place, &self.place);
        let watched = watches.places.iter().find(ours);
        Seen::Appeared {
            crowd: watched.map_or(1, |watched| watched.clients),
        }
    }

    /// Has this waker called at the next change. False: something has changed since the last look.
    pub(crate) fn wake(&self, waker: &Waker) -> bool {
        let mut wakers = lock(&self.place.wakers);
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        drop(wakers);
        // Whoever changes it does so before he takes the wakers.
        self.place.changes.load(Ordering::Acquire) == self.seen
            && !self.place.gone.load(Ordering::Acquire)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watches = lock(&WATCHES);
        let ours = |watched: &Watched| Arc::ptr_eq(&watched.place, &self.place);
        let Some(at) = watches.places.iter().position(ours) else {
            return;
        };
        let watched = &mut watches.places[at];
        watched.clients -= 1;
        if watched.clients > 0 {
            return;
        }
        let descriptor = watched.descriptor;
        watches.places.swap_remove(at);
        watches.forget(descriptor);
    }
}

impl Watches {
    /// The descriptor of the thread that runs, which is started if there is none.
    fn running(&mut self) -> Option<Arc<OwnedFd>> {
        let process = std::process::id();
        if let Some(inotify) = self.inotify.as_ref().filter(|_| self.process == process) {
            return Some(Arc::clone(inotify));
        }
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC).ok()?);
        let read = Arc::clone(&inotify);
        std::thread::Builder::new()
            .name("lapce-ai-watch".to_owned())
            .stack_size(64 << 10)
            .spawn(move || tell(&read))
            .ok()?;
        self.places.clear();
        self.process = process;
        self.inotify = Some(Arc::clone(&inotify));
        Some(inotify)
    }

    /// Lets go of a directory in which nothing is watched any more. The kernel says so to the thread, which then sees
    /// whether it is needed.
    fn forget(&mut self, descriptor: i32) {
        let used = |watched: &Watched| watched.descriptor == descriptor;
        if !self.places.iter().any(used)
            && let Some(inotify) = &self.inotify
        {
            // The directory may have gone, and the watch with it.
            let _ = inotify::remove_watch(inotify, descriptor);
        }
    }

    /// After a watch that could not be made: wakes the thread, if there is nothing to watch, by one that can.
    fn end_if_unused(&self) {
        if self.places.is_empty()
            && let Some(inotify) = &self.inotify
            && let Ok(descriptor) = inotify::add_watch(inotify, "/", WatchFlags::DELETE_SELF)
        {
            let _ = inotify::remove_watch(inotify, descriptor);
        }
    }

    /// The places in a directory, or of a negative number all.
    fn of(&self, descriptor: i32) -> Vec<Arc<Place>> {
        let places = self.places.iter();
        places
            .filter(|watched| descriptor < 0 || watched.descriptor == descriptor)
            .map(|watched| Arc::clone(&watched.place))
            .collect()
    }
}

/// Tells clients of changes until none watches anything.
fn tell(inotify: &Arc<OwnedFd>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(inotify, &mut buffer);
    loop {
        let places = match events.next() {
            Ok(event) => {
                let (what, name) = (event.events(), event.file_name());
                let lost = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
                let mut places = lock(&WATCHES).of(event.wd());
                if what.intersects(lost) {
                    for place in &places {
                        place.gone.store(true, Ordering::Release);
                    }
                } else if !what.contains(ReadFlags::QUEUE_OVERFLOW) {
                    let name = name.map(std::ffi::CStr::to_bytes);
                    places.retain(|place| Some(place.name.as_bytes()) == name);
                }
                places
            }
            Err(Errno::INTR) => continue,
            Err(_) => {
                // It never comes to that; whoever waits then looks for himself.
                let mut watches = lock(&WATCHES);
                let places = watches.of(-1);
                for place in &places {
                    place.gone.store(true, Ordering::Release);
                }
                watches.inotify = None;
                drop(watches);
                wake(&places);
                return;
            }
        };
        wake(&places);
        if events.is_buffer_empty() {
            let mut watches = lock(&WATCHES);
            if watches.places.is_empty() {
                watches.inotify = None;
                return;
            }
        }
    }
}

fn wake(places: &[Arc<Place>]) {
    for place in places {
        place.changes.fetch_add(1, Ordering::AcqRel);
        let wakers = std::mem::take(&mut *lock(&place.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    /// After which a test has failed.
    const LIMIT: Duration = Duration::from_secs(30);

    struct Ring(Mutex<Sender<()>>);

    impl Wake for Ring {
        fn wake(self: Arc<Self>) {
            let _ = lock(&self.0).send(());
        }
    }

    fn bell() -> (Waker, Receiver<()>) {
        let (send, receive) = channel();
        (Waker::from(Arc::new(Ring(Mutex::new(send)))), receive)
    }

    #[test]
    fn who_waits_is_told_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("daemon.sock");
        let (waker, woken) = bell();
        let mut watching = Watching::begin(&socket).unwrap();
        let mut second = Watching::begin(&socket).unwrap();
        let mut other = Watching::begin(&dir.path().join("other.sock")).unwrap();
        assert_eq!(watching.look(), Seen::Nothing);
        assert!(watching.wake(&waker));
        fs::write(dir.path().join("unrelated"), "").unwrap();
        fs::write(&socket, "").unwrap();
        woken.recv_timeout(LIMIT).unwrap();
        let two = Seen::Appeared { crowd: 2 };
        assert_eq!((watching.look(), second.look()), (two, two));
        assert_eq!(other.look(), Seen::Nothing);
        drop(second);
        // A change between the look and the waker is not missed.
        assert!(watching.wake(&waker));
        fs::set_permissions(&socket, fs::metadata(&socket).unwrap().permissions()).unwrap();
        woken.recv_timeout(LIMIT).unwrap();
        assert!(!watching.wake(&waker));
        assert_eq!(watching.look(), Seen::Appeared { crowd: 1 });
        // And so is the end of the directory.
        assert!(watching.wake(&waker));
        while woken.try_recv().is_ok() {}
        dir.close().unwrap();
        woken.recv_timeout(LIMIT).unwrap();
        assert_eq!(watching.look(), Seen::Gone);
        assert!(Watching::begin(&socket).is_none());
    }
}
