//! A script of operations on a ring, read from arbitrary bytes: for the property tests here and for
//! the fuzz target `ring_reader`.
//!
//! Until the script scribbles over the control words it is compared with a queue, exactly. After
//! that anything may be refused, but nothing may panic, hang, leave the ring's bytes, or claim more
//! than its capacity.

use std::collections::VecDeque;

use lapce_ai_shm::{Consumer, Producer, RingFault, Storage, publish_and_release};

/// What a script did, for tests that check that scripts reach everything.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// Bytes read and compared with the queue.
    pub(crate) compared: usize,
    /// Whether the producer jumped back to the first page.
    pub(crate) jumped: bool,
    /// Trims that gave pages back.
    pub(crate) trims: usize,
    /// Bells that were to be rung.
    pub(crate) bells: usize,
    /// The faults found, in order.
    pub(crate) faults: Vec<RingFault>,
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }
}

struct Machine<S: Storage> {
    producer: Producer<S>,
    consumer: Consumer<S>,
    capacity: usize,
    /// False once somebody scribbled: the queue tells nothing any more.
    clean: bool,
    /// All bytes pushed and not consumed.
    queue: VecDeque<u8>,
    /// Of the queue: published; seen by the consumer.
    published: usize,
    seen: usize,
    /// Consumed and not released.
    unreleased: usize,
    data_wanted: bool,
    space_wanted: usize,
    next: u8,
    report: Report,
}

/// Runs a script on a fresh storage, which both ends share.
pub(crate) fn run<S: Storage + Clone>(storage: S, script: &[u8]) -> Report {
    let mut machine = Machine {
        capacity: storage.capacity(),
        producer: Producer::new(storage.clone()),
        consumer: Consumer::new(storage),
        clean: true,
        queue: VecDeque::new(),
        published: 0,
        seen: 0,
        unreleased: 0,
        data_wanted: false,
        space_wanted: 0,
        next: 0,
        report: Report::default(),
    };
    let mut script = Script(script);
    while machine.step(&mut script).is_some() {}
    machine.finish()
}

impl<S: Storage> Machine<S> {
    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        match script.byte()? % 16 {
            0..=3 => self.push(script.byte()?, script.byte()?),
            4 | 5 => self.publish(),
            6 => self.readable(),
            7 => self.peek(script.byte()?, script.byte()?),
            8 => self.consume(script.byte()?),
            9 => self.release(),
            10 => self.publish_and_release(),
            11 => self.trim(),
            12 => self.look_for_space(),
            13 => self.wait_for_space(script.byte()?),
            14 => self.wait_for_data(),
            _ => self.scribble(script)?,
        }
        Some(())
    }

    /// The bytes that the ring's room is spent on.
    fn used(&self) -> usize {
        self.queue.len() + self.unreleased
    }

    /// A fault is right only after a scribble.
    fn fault(&mut self, fault: RingFault) {
        assert!(!self.clean, "a fault without a hostile write: {fault}");
        self.report.faults.push(fault);
    }

    fn push(&mut self, len: u8, split: u8) {
        let len = usize::from(len) % (self.capacity + 1);
        let bytes: Vec<u8> = (0..len)
            .map(|at| self.next.wrapping_add(at as u8))
            .collect();
        let (first, second) = bytes.split_at(usize::from(split) % (len + 1));
        match self.producer.push(&[first, second]) {
            Ok(pushed) => {
                if self.clean {
                    assert_eq!(
                        pushed,
                        self.used() + len <= self.capacity,
                        "{:?}",
                        self.producer
                    );
                }
                if pushed {
                    self.queue.extend(&bytes);
                    self.next = self.next.wrapping_add(len as u8);
                }
            }
            Err(fault) => self.fault(fault),
        }
    }

    fn published(&mut self, rung: bool) {
        if self.clean {
            let new = self.queue.len() != self.published;
            assert_eq!(rung, new && self.data_wanted);
            self.data_wanted &= !new;
        }
        self.published = self.queue.len();
        self.report.bells += usize::from(rung);
    }

    fn publish(&mut self) {
        let rung = self.producer.publish();
        self.published(rung);
    }

    fn released(&mut self, rung: bool) {
        let new = self.unreleased != 0;
        self.unreleased = 0;
        if self.clean {
            let room = self.capacity - self.published >= self.space_wanted;
            assert_eq!(
                rung,
                new && self.space_wanted != 0 && room,
                "{:?}",
                self.consumer
            );
        }
        if rung {
            self.space_wanted = 0;
        }
        self.report.bells += usize::from(rung);
    }

    fn release(&mut self) {
        let rung = self.consumer.release();
        self.released(rung);
    }

    fn publish_and_release(&mut self) {
        let rung = publish_and_release(&mut self.producer, &mut self.consumer);
        let new = self.queue.len() != self.published;
        let data = new && self.data_wanted;
        self.published = self.queue.len();
        let room = self.capacity - self.published.min(self.capacity) >= self.space_wanted;
        let space = self.unreleased != 0 && self.space_wanted != 0 && room;
        self.unreleased = 0;
        if self.clean {
            assert_eq!(rung, data || space);
            self.data_wanted &= !new;
        }
        if space {
            self.space_wanted = 0;
        }
        self.report.bells += usize::from(rung);
    }

    fn readable(&mut self) {
        match self.consumer.readable() {
            Ok(readable) => {
                assert!(readable <= self.capacity);
                if self.clean {
                    assert_eq!(readable, self.published);
                }
                self.seen = readable;
            }
            Err(fault) => self.fault(fault),
        }
    }

    fn peek(&mut self, offset: u8, len: u8) {
        let (offset, len) = (usize::from(offset), usize::from(len));
        let mut bytes = vec![0; len];
        let copied = self.consumer.peek(offset, &mut bytes);
        assert_eq!(copied, self.seen.saturating_sub(offset).min(len));
        if self.clean {
            assert!(
                self.queue
                    .range(offset.min(self.queue.len())..)
                    .take(copied)
                    .eq(&bytes[..copied])
            );
            self.report.compared += copied;
        }
    }

    fn consume(&mut self, n: u8) {
        let n = usize::from(n) % (self.seen + 1);
        self.consumer.consume(n);
        self.seen -= n;
        self.unreleased += n;
        let known = n.min(self.queue.len());
        self.queue.drain(..known);
        self.published = self.published.saturating_sub(n);
    }

    fn trim(&mut self) {
        match self.producer.trim() {
            Ok(trimmed) => {
                assert!(!self.clean || !trimmed || self.used() == 0);
                self.report.trims += usize::from(trimmed);
            }
            Err(fault) => self.fault(fault),
        }
    }

    fn look_for_space(&mut self) {
        match self.producer.free() {
            Ok(free) => {
                assert!(free <= self.capacity);
                assert!(!self.clean || free == self.capacity - self.used());
            }
            Err(fault) => self.fault(fault),
        }
        match self.producer.is_drained() {
            Ok(drained) => assert!(!self.clean || drained == (self.used() == 0)),
            Err(fault) => self.fault(fault),
        }
    }

    fn wait_for_space(&mut self, need: u8) {
        self.publish();
        let need = usize::from(need) % (self.capacity + 1);
        match self.producer.wait_for_space(need) {
            Ok(wait) => {
                if self.clean {
                    assert_eq!(wait, self.capacity - self.used() < need);
                }
                self.space_wanted = if wait { need } else { 0 };
            }
            Err(fault) => self.fault(fault),
        }
    }

    fn wait_for_data(&mut self) {
        let before = self.seen;
        match self.consumer.wait_for_data() {
            Ok(wait) => {
                let mut bytes = vec![0; self.capacity];
                self.seen = self.consumer.peek(0, &mut bytes);
                assert!(!wait || self.seen == before);
                if self.clean {
                    assert_eq!(wait, self.published == before);
                    assert_eq!(self.seen, self.published);
                }
                self.data_wanted = wait;
                if self.data_wanted && before.is_multiple_of(2) {
                    self.consumer.awake();
                    self.data_wanted = false;
                }
            }
            Err(fault) => self.fault(fault),
        }
    }

    /// Writes a word as either side might, at once absurd or near to what is right.
    fn scribble(&mut self, script: &mut Script<'_>) -> Option<()> {
        let control = self.consumer.storage().control();
        let what = script.byte()?;
        let word = match what % 5 {
            0 => &control.producer.tail,
            1 => &control.producer.restart,
            2 => &control.consumer.head,
            other => {
                let value = script.byte()?.into();
                let word = if other == 3 {
                    &control.data.wanted
                } else {
                    &control.space.wanted
                };
                word.store(value, std::sync::atomic::Ordering::Relaxed);
                self.clean = false;
                return Some(());
            }
        };
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let capacity = self.capacity as u64;
        let base = match what / 5 % 4 {
            0 => script.number()?,
            1 => word.load(relaxed),
            2 => control.producer.tail.load(relaxed),
            _ => control.consumer.head.load(relaxed),
        };
        let by = u64::from(script.byte()?);
        let value = match what / 20 % 6 {
            0 => base,
            1 => base.wrapping_add(by),
            2 => base.wrapping_sub(by),
            3 => base.wrapping_add(capacity),
            4 => base & !(capacity - 1),
            _ => (base & !(capacity - 1)).wrapping_add(capacity),
        };
        word.store(value, relaxed);
        self.clean = false;
        Some(())
    }

    /// Everything pushed can be read in the end.
    fn finish(mut self) -> Report {
        self.publish();
        self.readable();
        self.peek(0, u8::MAX);
        let seen = self.seen;
        self.consumer.consume(seen);
        let _ = self.consumer.release();
        if self.clean {
            assert_eq!(self.producer.is_drained(), Ok(true));
        }
        let restart = &self.consumer.storage().control().producer.restart;
        self.report.jumped = self.clean && restart.load(std::sync::atomic::Ordering::Relaxed) != 0;
        self.report
    }
}
