//! The peer that ratios are against: two plain rings of bytes in shared memory, one for each direction. One writer and
//! one reader each, positions that only grow, each side keeping the last position it saw of the other. No bells, no
//! checks of what a hostile peer might write, no flow control, no streams, headers made beforehand: what the same bytes cost
//! at least.
//!
//! Message by message, as such rings are commonly used: each frame is copied in and published, then copied out and its
//! room given back. And batched, which only matters with several in flight: what lies there is taken with one copy, and its
//! answers are published together. That is the most the memory gives.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use anyhow::Result;
use lapce_ai_proto::HEADER_LEN;
use lapce_ai_shm::Mapping;

use super::stream::{Stream, StreamPeer, echo};
use super::{Peer, Setup};
use crate::child::{Child, Parent};

/// Where the rings' bytes begin; before them lie the four positions.
const BYTES: usize = 4096;
/// From one position to the next.
const LINE: usize = 128;
/// What does not fit at once is sent in pieces of this size.
const PIECE: usize = 16 * 1024;
/// Batched: bytes that are pushed before the other side may begin with them, and that are taken at a time.
const PUBLISH: u64 = 4 * 1024;
const TAKEN: usize = 16 * 1024;

struct Rings {
    mapping: Mapping,
    capacity: usize,
    out: usize,
    into: usize,
    /// Bytes that are pushed before they are published.
    publish_at: u64,
    /// Own position as a writer, what of it is published, and the reader's last seen one.
    tail: u64,
    published: u64,
    seen_head: u64,
    /// Own position as a reader and the writer's last seen one.
    head: u64,
    seen_tail: u64,
}

impl Rings {
    /// `out`: the ring that this side writes, 0 or 1.
    fn new(mapping: Mapping, capacity: usize, out: usize, batched: bool) -> Self {
        Self {
            mapping,
            capacity,
            out,
            into: 1 - out,
            publish_at: if batched { PUBLISH } else { 1 },
            tail: 0,
            published: 0,
            seen_head: 0,
            head: 0,
            seen_tail: 0,
        }
    }

    #[inline]
    fn publish(&mut self) {
        if self.tail != self.published {
            self.published = self.tail;
            let line = self.out * 2 * LINE;
            self.mapping
                .atomic_u64(line)
                .store(self.tail, Ordering::Release);
        }
    }

    /// A place in a ring, and how many bytes lie from there to its end.
    #[inline]
    fn place(&self, ring: usize, position: u64) -> (usize, usize) {
        let offset = position as usize & (self.capacity - 1);
        (
            BYTES + ring * self.capacity + offset,
            self.capacity - offset,
        )
    }
}

impl Stream for Rings {
    #[inline]
    fn push(&mut self, bytes: &[u8]) -> Result<usize> {
        let len = bytes.len().min(PIECE);
        if len > self.capacity - (self.tail - self.seen_head) as usize {
            let line = (self.out * 2 + 1) * LINE;
            self.seen_head = self.mapping.atomic_u64(line).load(Ordering::Acquire);
            if len > self.capacity - (self.tail - self.seen_head) as usize {
                return Ok(0);
            }
        }
        let (at, until_end) = self.place(self.out, self.tail);
        if len <= until_end {
            self.mapping.write(at, &bytes[..len]);
        } else {
            self.mapping.write(at, &bytes[..until_end]);
            self.mapping
                .write(BYTES + self.out * self.capacity, &bytes[until_end..len]);
        }
        self.tail += len as u64;
        if self.tail - self.published >= self.publish_at {
            self.publish();
        }
        Ok(len)
    }

    #[inline]
    fn flush(&mut self) -> Result<bool> {
        self.publish();
        Ok(true)
    }

    #[inline]
    fn pop(&mut self, into: &mut [u8], _: bool) -> Result<usize> {
        if self.head == self.seen_tail {
            let line = self.into * 2 * LINE;
            self.seen_tail = self.mapping.atomic_u64(line).load(Ordering::Acquire);
            if self.head == self.seen_tail {
                return Ok(0);
            }
        }
        let len = into.len().min((self.seen_tail - self.head) as usize);
        let (at, until_end) = self.place(self.into, self.head);
        if len <= until_end {
            self.mapping.read(at, &mut into[..len]);
        } else {
            self.mapping.read(at, &mut into[..until_end]);
            self.mapping
                .read(BYTES + self.into * self.capacity, &mut into[until_end..len]);
        }
        self.head += len as u64;
        let line = (self.into * 2 + 1) * LINE;
        self.mapping
            .atomic_u64(line)
            .store(self.head, Ordering::Release);
        Ok(len)
    }

    #[inline]
    fn pause(&mut self) -> Result<()> {
        Ok(())
    }
}

fn memory_len(capacity: usize) -> u64 {
    (BYTES + 2 * capacity) as u64
}

pub(super) fn start(setup: &Setup, payload: usize, batched: bool) -> Result<impl Peer + use<>> {
    let capacity = setup.ring;
    let frame = HEADER_LEN + payload;
    let (mapping, memory) = Mapping::create(memory_len(capacity))?;
    let role = if batched {
        "batched-ring"
    } else {
        "plain-ring"
    };
    let arguments = [role, &capacity.to_string(), &frame.to_string()];
    let child = Child::start(&arguments, &setup.cpus, &[memory.as_fd()])?;
    Ok(StreamPeer::new(
        child,
        Rings::new(mapping, capacity, 0, batched),
        frame,
        taken(batched),
    ))
}

/// One frame at a time, or as much as ours takes.
fn taken(batched: bool) -> usize {
    if batched { TAKEN } else { 0 }
}

pub(super) fn answer(parent: Parent, capacity: usize, frame: usize, batched: bool) -> Result<()> {
    let mapping = Mapping::open(parent.descriptor()?, memory_len(capacity))?;
    parent.ready()?;
    echo(
        Rings::new(mapping, capacity, 1, batched),
        frame,
        taken(batched),
    )
}
