//! The floor for sleepers: each side sleeps until the other wakes it. No payload.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use lapce_ai_shm::Mapping;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::futex;

use super::{Peer, Setup};
use crate::child::{Child, Parent, Patience};
use crate::message::Messages;

/// A wake-up through a pair of eventfds.
#[derive(Debug)]
pub(super) struct EventFd {
    child: Child,
    ask: OwnedFd,
    answer: OwnedFd,
    turn: u64,
}

impl EventFd {
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        let ask = eventfd(0, EventfdFlags::CLOEXEC)?;
        let answer = eventfd(0, EventfdFlags::CLOEXEC)?;
        let child = Child::start(&["event-fd"], &setup.cpus, &[ask.as_fd(), answer.as_fd()])?;
        // Wakes the sleeper should the child die; it costs nothing until then.
        let mut watch = child.watch()?;
        let bell = answer.try_clone()?;
        thread::spawn(move || {
            let _ = watch.read(&mut [0]);
            let _ = add(&bell, u64::from(u32::MAX));
        });
        Ok(Self {
            child,
            ask,
            answer,
            turn: 0,
        })
    }
}

impl Peer for EventFd {
    fn round_trip<'a>(&'a mut self, _: &Messages, _: usize) -> Result<Option<&'a [u8]>> {
        // The turn's number, so that what comes back is known to answer it.
        self.turn = self.turn % 1000 + 1;
        add(&self.ask, self.turn)?;
        let found = take(&self.answer)?;
        if found != self.turn {
            self.child.check()?;
            bail!("wrong data: turn {} was answered with {found}", self.turn);
        }
        Ok(None)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.child.finish()
    }
}

pub(super) fn answer_eventfd(parent: Parent) -> Result<()> {
    let (ask, answer) = (parent.descriptor()?, parent.descriptor()?);
    parent.ready()?;
    loop {
        add(&answer, take(&ask)?)?;
    }
}

fn add(eventfd: &OwnedFd, count: u64) -> Result<()> {
    rustix::io::write(eventfd, &count.to_ne_bytes())?;
    Ok(())
}

fn take(eventfd: &OwnedFd) -> Result<u64> {
    let mut count = [0; 8];
    loop {
        match rustix::io::read(eventfd, &mut count) {
            Ok(_) => return Ok(u64::from_ne_bytes(count)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

const LEN: u64 = 4096;
const ASK: usize = 0x000;
const ANSWER: usize = 0x100;

/// A wake-up through a pair of futexes.
#[derive(Debug)]
pub(super) struct Futex {
    child: Child,
    mapping: Mapping,
    turn: u32,
}

impl Futex {
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        let (mapping, memory) = Mapping::create(LEN)?;
        let child = Child::start(&["futex"], &setup.cpus, &[memory.as_fd()])?;
        Ok(Self {
            child,
            mapping,
            turn: 0,
        })
    }
}

impl Peer for Futex {
    fn round_trip<'a>(&'a mut self, _: &Messages, _: usize) -> Result<Option<&'a [u8]>> {
        let before = self.turn;
        self.turn = before.wrapping_add(1);
        wake(self.mapping.atomic_u32(ASK), self.turn)?;
        let answer = self.mapping.atomic_u32(ANSWER);
        let mut patience = Patience::default();
        while !sleep(answer, before)? {
            self.child.check()?;
            patience.turn(&mut self.child)?;
        }
        let found = answer.load(Ordering::Acquire);
        if found != self.turn {
            bail!("wrong data: turn {} was answered with {found}", self.turn);
        }
        Ok(None)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.child.finish()
    }
}

pub(super) fn answer_futex(parent: Parent) -> Result<()> {
    let mapping = Mapping::open(parent.descriptor()?, LEN)?;
    parent.ready()?;
    let (ask, answer) = (mapping.atomic_u32(ASK), mapping.atomic_u32(ANSWER));
    let mut turn = 0_u32;
    loop {
        while !sleep(ask, turn)? {}
        let found = ask.load(Ordering::Acquire);
        if found != turn.wrapping_add(1) {
            bail!("wrong data: turn {found} after {turn}");
        }
        turn = found;
        wake(answer, turn)?;
    }
}

fn wake(word: &AtomicU32, value: u32) -> Result<()> {
    word.store(value, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1)?;
    Ok(())
}

/// Sleeps while the word is `old`. False: it still is, after a while.
fn sleep(word: &AtomicU32, old: u32) -> Result<bool> {
    let limit = rustix::thread::Timespec::try_from(Duration::from_secs(1))?;
    while word.load(Ordering::Acquire) == old {
        match futex::wait(word, futex::Flags::empty(), old, Some(&limit)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::TIMEDOUT) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
