//! Child processes: this same program, started again in another role.
//!
//! The child's standard input is a socket to its parent, the control socket. Descriptors and a few words go over it; and
//! when its other end closes, by whatever death of the parent, the child exits. So no child outlives a run.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_shm::{recv_with_fd, send_with_fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::machine::Cpus;

/// Longest wait for a child to start, to answer, or to make any progress in an exchange.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns of a spin between two looks at whether the child lives: some tens of milliseconds.
const TURNS_PER_LOOK: u32 = 1 << 20;

/// A directory for a server's socket, which must be closed to others whatever the umask.
pub(crate) fn runtime_dir() -> Result<TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("lapce-ai-bench-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()?;
    Ok(dir)
}

/// A child, as its parent sees it. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    what: String,
    process: std::process::Child,
    control: BufReader<UnixStream>,
}

impl Child {
    /// Starts this program as `peer <arguments>`, gives it `descriptors`, and waits until it says that it is ready.
    pub(crate) fn start(
        arguments: &[&str],
        cpus: &Cpus,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Self> {
        let what = arguments.join(" ");
        let (ours, theirs) = UnixStream::pair().context("cannot make a control socket")?;
        ours.set_read_timeout(Some(PATIENCE))?;
        // Not `current_exe`: its path names nothing any more once the program was built anew.
        let process = Command::new("/proc/self/exe")
            .arg("peer")
            .args(["--cpus", &cpus.to_argument()])
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start `{what}`"))?;
        let control = BufReader::new(ours);
        let mut child = Self {
            what,
            process,
            control,
        };
        for descriptor in descriptors {
            send_with_fd(child.control.get_ref(), &[0], Some(*descriptor))?;
        }
        let word = child.read_word()?;
        if word != "ready" {
            bail!("`{}` said {word:?} instead of ready", child.what);
        }
        Ok(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks the child for something, and waits for its word.
    pub(crate) fn ask(&mut self, request: &str) -> Result<String> {
        self.tell(request)?;
        self.read_word()
    }

    /// Asks the child for something without waiting for its word.
    pub(crate) fn tell(&mut self, request: &str) -> Result<()> {
        writeln!(self.control.get_mut(), "{request}")
            .with_context(|| format!("`{}` is gone", self.what))
    }

    /// The child's next word.
    pub(crate) fn read_word(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line);
        if !matches!(read, Ok(n) if n > 0) {
            self.check()?;
            bail!("`{}` did not answer: {read:?}", self.what);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Waits for words of any of several children, and takes all that are there: who said it, and what.
    ///
    /// # Errors
    /// One of them is gone.
    pub(crate) fn next_words(
        children: &mut [Self],
        limit: Duration,
    ) -> Result<Vec<(usize, String)>> {
        if !children.iter().any(Self::has_buffered) {
            let mut sockets: Vec<PollFd<'_>> = children
                .iter()
                .map(|child| PollFd::new(child.control.get_ref(), PollFlags::IN))
                .collect();
            poll(&mut sockets, Some(&Timespec::try_from(limit)?))?;
            let spoke: Vec<bool> = sockets.iter().map(|s| !s.revents().is_empty()).collect();
            for (child, _) in children.iter_mut().zip(spoke).filter(|(_, spoke)| *spoke) {
                if child.control.fill_buf()?.is_empty() {
                    child.check()?;
                    bail!("`{}` hung up", child.what);
                }
            }
        }
        let mut words = Vec::new();
        for (index, child) in children.iter_mut().enumerate() {
            while child.has_buffered() {
                words.push((index, child.read_word()?));
            }
        }
        Ok(words)
    }

    /// Whether something was read of which nobody has been told. Whoever writes a line writes all of it at once, so the rest
    /// of one that has begun is not long in coming.
    fn has_buffered(&self) -> bool {
        !self.control.buffer().is_empty()
    }

    /// # Errors
    /// The child has ended, which it does by itself only when something was wrong.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{}` ended by itself: {status}", self.what),
        }
    }

    /// Kills the child, which is meant to be: it dies in the middle of whatever it does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// A second hand on the control socket, which becomes readable when the child dies.
    pub(crate) fn watch(&self) -> Result<UnixStream> {
        let watch = self.control.get_ref().try_clone()?;
        watch.set_read_timeout(None)?;
        Ok(watch)
    }

    /// Ends the child and says whether it had been well to the end.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.check()?;
        self.control.get_ref().shutdown(std::net::Shutdown::Write)?;
        self.wait()
    }

    /// The same for a child that has become another program: it is sent SIGTERM.
    pub(crate) fn terminate(mut self) -> Result<()> {
        self.check()?;
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// Waits for the end of a child that ends by itself, and says whether it had been well.
    pub(crate) fn ended(mut self) -> Result<()> {
        self.wait()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed()).context("a child has a number")?;
        Ok(kill_process(pid, signal)?)
    }

    fn wait(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.process.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("`{}` ended with {status}", self.what);
            }
            thread::sleep(Duration::from_micros(200));
        }
        bail!("`{}` did not end", self.what)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Has it ended already, both do nothing.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Spins for a child's answer, but not for ever, and not for a dead child's.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    turns: u32,
    since: Option<Instant>,
}

impl Patience {
    /// One turn.
    #[inline]
    pub(crate) fn turn(&mut self, child: &mut Child) -> Result<()> {
        std::hint::spin_loop();
        self.turns += 1;
        if self.turns < TURNS_PER_LOOK {
            return Ok(());
        }
        self.look(child)
    }

    #[cold]
    fn look(&mut self, child: &mut Child) -> Result<()> {
        self.turns = 0;
        child.check()?;
        if self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            bail!("`{}` has not answered for {PATIENCE:?}", child.what);
        }
        Ok(())
    }
}

/// The parent, as the child sees it.
#[derive(Debug)]
pub(crate) struct Parent {
    control: UnixStream,
}

impl Parent {
    pub(crate) fn from_stdin() -> Result<Self> {
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self {
            control: UnixStream::from(control),
        })
    }

    /// The next descriptor that the parent gave.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        let mut byte = [0];
        let (_, descriptor) = recv_with_fd(&self.control, &mut byte)
            .context("this role is started by lapce-ai-bench itself")?;
        descriptor.context("the parent sent no descriptor")
    }

    /// Tells the parent that work begins. From now on the process ends when the parent does.
    pub(crate) fn ready(self) -> Result<()> {
        self.ready_until(|| {})
    }

    /// The same, for a role that leaves something to clear away when the process ends.
    pub(crate) fn ready_until(self, at_end: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut control = self.control;
        control.write_all(b"ready\n")?;
        thread::Builder::new()
            .name("parent".to_owned())
            .spawn(move || {
                let mut rest = [0; 64];
                while matches!(control.read(&mut rest), Ok(n) if n > 0) {}
                at_end();
                std::process::exit(0);
            })?;
        Ok(())
    }

    /// Tells the parent that work begins, for a process that is about to become another program.
    pub(crate) fn said_ready(&self) -> Result<()> {
        Ok((&self.control).write_all(b"ready\n")?)
    }

    /// For words that answer nothing: how far the work is.
    pub(crate) fn voice(&self) -> Result<Voice> {
        Ok(Voice(self.control.try_clone()?))
    }

    /// Answers the parent's requests until the parent closes.
    pub(crate) fn serve(self, mut answer: impl FnMut(&str) -> Result<String>) -> Result<()> {
        let mut control = self.control.try_clone()?;
        control.write_all(b"ready\n")?;
        for request in BufReader::new(self.control).lines() {
            writeln!(control, "{}", answer(&request?)?)?;
        }
        Ok(())
    }
}

/// Says words to the parent that it did not ask for.
#[derive(Debug)]
pub(crate) struct Voice(UnixStream);

impl Voice {
    pub(crate) fn say(&mut self, word: &str) -> Result<()> {
        // In one piece, see `has_buffered`.
        Ok(self.0.write_all(format!("{word}\n").as_bytes())?)
    }
}
