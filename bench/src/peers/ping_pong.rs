//! The floor: two cache lines in shared memory, each written by one side and watched by the other.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use lapce_ai_shm::Mapping;

use super::{Peer, Setup};
use crate::child::{Child, Parent, Patience};
use crate::message::Messages;

const LEN: u64 = 4096;
/// Two lines apart, because processors fetch them in pairs.
const PING: usize = 0x000;
const PONG: usize = 0x100;

#[derive(Debug)]
pub(super) struct PingPong {
    child: Child,
    mapping: Mapping,
    turn: u64,
}

impl PingPong {
    pub(super) fn start(setup: &Setup) -> Result<Self> {
        let (mapping, memory) = Mapping::create(LEN)?;
        let child = Child::start(&["ping-pong"], &setup.cpus, &[memory.as_fd()])?;
        Ok(Self {
            child,
            mapping,
            turn: 0,
        })
    }
}

impl Peer for PingPong {
    fn round_trip<'a>(&'a mut self, _: &Messages, _: usize) -> Result<Option<&'a [u8]>> {
        self.turn += 1;
        self.mapping
            .atomic_u64(PING)
            .store(self.turn, Ordering::Release);
        let pong = self.mapping.atomic_u64(PONG);
        let mut patience = Patience::default();
        loop {
            let found = pong.load(Ordering::Acquire);
            if found == self.turn {
                return Ok(None);
            }
            if found != self.turn - 1 {
                bail!("wrong data: turn {} was answered with {found}", self.turn);
            }
            patience.turn(&mut self.child)?;
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.child.finish()
    }
}

pub(super) fn answer(parent: Parent) -> Result<()> {
    let mapping = Mapping::open(parent.descriptor()?, LEN)?;
    parent.ready()?;
    let (ping, pong) = (mapping.atomic_u64(PING), mapping.atomic_u64(PONG));
    let mut turn = 0;
    loop {
        let found = ping.load(Ordering::Acquire);
        if found == turn + 1 {
            turn = found;
            pong.store(turn, Ordering::Release);
        } else if found != turn {
            bail!("wrong data: turn {found} after {turn}");
        } else {
            std::hint::spin_loop();
        }
    }
}
