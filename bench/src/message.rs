//! What is sent and how it is known to have come back unharmed.

use anyhow::{Result, bail};
use lapce_ai_proto::{Codec, FIN, HEADER_LEN, Kind, MAGIC, MessageType};

/// The largest payload that a header is made for.
const LARGEST: u32 = 16 << 20;

/// A stock of messages, each with its own stamp, made before anything is measured and sent round and round. There are
/// two more than may be in flight, so an answer to an earlier message is never taken for the present one's.
#[derive(Debug)]
pub(crate) struct Messages {
    frames: Vec<Vec<u8>>,
    payload: usize,
}

impl Messages {
    pub(crate) fn new(payload: usize, window: usize) -> Self {
        let codec = Codec {
            crc: false,
            max_payload: LARGEST,
        };
        let frames = (0..window + 2)
            .map(|index| {
                let period: Vec<u8> = (0..=u8::MAX)
                    .map(|at| at.wrapping_mul(31) ^ index as u8)
                    .collect();
                let mut bytes = period.repeat(payload.div_ceil(period.len()));
                bytes.truncate(payload);
                for at in stamped(payload) {
                    bytes[at..at + 8].copy_from_slice(&stamp(index).to_le_bytes());
                }
                codec.encode(
                    Kind::Open,
                    FIN,
                    MessageType::ECHO.0,
                    index as u64 + 1,
                    &bytes,
                )
            })
            .collect();
        Self { frames, payload }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// A message's header and payload, as one piece.
    #[inline]
    pub(crate) fn frame(&self, index: usize) -> &[u8] {
        &self.frames[index]
    }

    /// A message's payload.
    #[inline]
    pub(crate) fn payload(&self, index: usize) -> &[u8] {
        &self.frames[index][HEADER_LEN..]
    }

    /// Checks an answer's length and its stamps at the beginning, in the middle and at the end.
    #[inline]
    pub(crate) fn check(&self, index: usize, answer: &[u8]) -> Result<()> {
        let right = answer.len() == self.payload
            && stamped(self.payload)
                .into_iter()
                .all(|at| answer[at..at + 8] == stamp(index).to_le_bytes());
        if right {
            Ok(())
        } else {
            self.wrong(index, answer)
        }
    }

    /// Checks every byte of an answer.
    pub(crate) fn check_whole(&self, index: usize, answer: &[u8]) -> Result<()> {
        if answer == self.payload(index) {
            Ok(())
        } else {
            self.wrong(index, answer)
        }
    }

    #[cold]
    fn wrong(&self, index: usize, answer: &[u8]) -> Result<()> {
        bail!(
            "wrong data: message {index} of {} bytes was answered with {} bytes, beginning {:02x?} instead of {:02x?}",
            self.payload,
            answer.len(),
            &answer[..answer.len().min(8)],
            &self.payload(index)[..8],
        )
    }
}

/// Where a payload has its stamps. It has at least eight bytes.
#[inline]
fn stamped(payload: usize) -> [usize; 3] {
    [0, (payload / 2) & !7, payload - 8]
}

#[inline]
fn stamp(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The payload of a frame that came back whole, if its header is that of a frame of this length.
#[inline]
pub(crate) fn payload_of(frame: &[u8]) -> Result<&[u8]> {
    let (header, payload) = frame.split_at(HEADER_LEN);
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if header[..4] != MAGIC.to_le_bytes() || length as usize != payload.len() {
        bail!(
            "wrong data: the header {header:02x?} is not that of {} bytes",
            payload.len()
        );
    }
    Ok(payload)
}

/// Messages to be exchanged with several in flight; answers come in the order of their messages.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    messages: &'a Messages,
    window: u64,
    count: u64,
    sent: u64,
    answered: u64,
    next: usize,
    awaited: usize,
    /// Whether every byte of each answer is checked, which takes time.
    whole: bool,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(messages: &'a Messages, window: usize, count: u64) -> Self {
        Self {
            messages,
            window: window as u64,
            count,
            sent: 0,
            answered: 0,
            next: 0,
            awaited: 0,
            whole: false,
        }
    }

    /// Each message once, and every byte of its answer checked: for before anything is measured.
    pub(crate) fn whole(messages: &'a Messages, window: usize) -> Self {
        Self {
            whole: true,
            ..Self::new(messages, window, messages.len() as u64)
        }
    }

    /// The message to send next, unless as many as may be are in flight or all are sent.
    #[inline]
    pub(crate) fn next(&self) -> Option<usize> {
        let may = self.sent < self.count && self.sent - self.answered < self.window;
        may.then_some(self.next)
    }

    pub(crate) fn messages(&self) -> &'a Messages {
        self.messages
    }

    /// The message that [`next`](Self::next) named has been sent.
    #[inline]
    pub(crate) fn sent(&mut self) {
        self.sent += 1;
        self.next = if self.next + 1 == self.messages.len() {
            0
        } else {
            self.next + 1
        };
    }

    /// The next answer has come.
    #[inline]
    pub(crate) fn answered(&mut self, answer: &[u8]) -> Result<()> {
        if self.answered == self.sent {
            bail!("wrong data: an answer to nothing");
        }
        if self.whole {
            self.messages.check_whole(self.awaited, answer)?;
        }
        self.messages.check(self.awaited, answer)?;
        self.answered += 1;
        self.awaited = if self.awaited + 1 == self.messages.len() {
            0
        } else {
            self.awaited + 1
        };
        Ok(())
    }

    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.answered == self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harm_is_noticed() {
        let messages = Messages::new(64, 1);
        let good = messages.payload(1).to_vec();
        assert_eq!(payload_of(messages.frame(1)).unwrap(), good);
        messages.check(1, &good).unwrap();
        messages.check_whole(1, &good).unwrap();
        messages.check(0, &good).unwrap_err();
        messages.check(1, &good[..63]).unwrap_err();
        for at in [0, 32, 63] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            messages.check(1, &bad).unwrap_err();
        }
        let mut bad = good;
        bad[20] ^= 1;
        messages.check_whole(1, &bad).unwrap_err();
        let mut frame = messages.frame(0).to_vec();
        frame[8] = 1;
        payload_of(&frame).unwrap_err();
    }

    #[test]
    fn a_flow_keeps_its_window_and_its_order() {
        let messages = Messages::new(64, 2);
        let mut flow = Flow::new(&messages, 2, 5);
        flow.answered(messages.payload(0)).unwrap_err();
        let mut in_flight = std::collections::VecDeque::new();
        let mut count = 0;
        while !flow.is_done() {
            while let Some(index) = flow.next() {
                in_flight.push_back(index);
                flow.sent();
                count += 1;
            }
            assert!(in_flight.len() <= 2);
            let index = in_flight.pop_front().unwrap();
            flow.answered(messages.payload(index)).unwrap();
        }
        assert_eq!((count, in_flight.len()), (5, 0));
        let mut bad = messages.payload(0).to_vec();
        bad[20] ^= 1;
        for (mut flow, is_seen) in [
            (Flow::new(&messages, 2, 5), false),
            (Flow::whole(&messages, 2), true),
        ] {
            flow.sent();
            assert_eq!(flow.answered(&bad).is_err(), is_seen);
        }
    }
}
