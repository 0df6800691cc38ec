//! The fixed payloads: prefixes, credit, go-away.

use crate::{ErrorBody, ErrorCode, Fault, Kind};

/// Length of the prefix of an OPEN frame in bytes.
pub const OPEN_PREFIX_LEN: usize = 32;
/// Length of the prefix of a response's first DATA frame in bytes.
pub const ITEM_PREFIX_LEN: usize = 8;

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(u8)]
pub enum Class {
    /// As the message type has it.
    #[default]
    ByType = 0,
    /// A person waits for every millisecond.
    Interactive = 1,
    /// A person waits.
    Normal = 2,
    /// Nobody waits.
    Bulk = 3,
}

/// What a request says about itself: the prefix of its OPEN frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenPrefix {
    /// Bytes of the whole request.
    pub total_length: u64,
    /// Milliseconds until the answer is worthless; 0 means the daemon's default.
    pub deadline_ms: u32,
    /// How urgent it is.
    pub class: Class,
    /// Running it twice does no harm.
    pub repeatable: bool,
    /// Response bytes that may come before the first CREDIT; 0 means the connection's.
    pub response_window: u32,
    /// Of a request that comes again: whole items of its response that the client has.
    pub received: u32,
    /// Of a request that comes again after its connection was lost: the id that it had at first. 0: it comes for the first
    /// time.
    pub sequence: u64,
}

impl OpenPrefix {
    /// The 32 bytes.
    pub fn encode(&self) -> [u8; OPEN_PREFIX_LEN] {
        let mut bytes = [0; OPEN_PREFIX_LEN];
        bytes[..8].copy_from_slice(&self.total_length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.deadline_ms.to_le_bytes());
        bytes[12] = self.class as u8;
        bytes[13] = u8::from(self.repeatable);
        bytes[16..20].copy_from_slice(&self.response_window.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.received.to_le_bytes());
        bytes[24..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// Splits an OPEN frame's payload into prefix and body.
    ///
    /// # Errors
    /// [`Fault::BadPayload`] for fewer than 32 bytes or an unknown class.
    pub fn split(payload: &[u8]) -> Result<(Self, &[u8]), Fault> {
        let (bytes, body) = payload
            .split_first_chunk::<OPEN_PREFIX_LEN>()
            .ok_or(Fault::BadPayload)?;
        let class = match bytes[12] {
            0 => Class::ByType,
            1 => Class::Interactive,
            2 => Class::Normal,
            3 => Class::Bulk,
            _ => return Err(Fault::BadPayload),
        };
        let prefix = Self {
            total_length: u64_at(bytes, 0),
            deadline_ms: u32_at(bytes, 8),
            class,
            repeatable: bytes[13] & 1 != 0,
            response_window: u32_at(bytes, 16),
            received: u32_at(bytes, 20),
            sequence: u64_at(bytes, 24),
        };
        Ok((prefix, body))
    }
}

/// The daemon's farewell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoAway {
    /// The highest request id that will still be answered.
    pub last_id: u64,
    /// How long running streams have, in milliseconds.
    pub drain_ms: u32,
    /// Why.
    pub code: ErrorCode,
}

impl GoAway {
    /// The 16 bytes.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.last_id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.drain_ms.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.code.number().to_le_bytes());
        bytes
    }

    /// # Errors
    /// [`Fault::BadPayload`] for a wrong length.
    pub fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let bytes: &[u8; 16] = payload.try_into().map_err(|_| Fault::BadPayload)?;
        Ok(Self {
            last_id: u64_at(bytes, 0),
            drain_ms: u32_at(bytes, 8),
            code: ErrorCode::from_number(u16::from_le_bytes([bytes[12], bytes[13]])),
        })
    }
}

/// A small frame that a [state machine](crate::ServerState) wants written. Control frames are kept as flags of their
/// streams and coalesce, so there are never more of them than streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// ACCEPTED.
    Accepted(u64),
    /// CREDIT for a stream.
    Credit(u64, u32),
    /// CANCEL.
    Cancel(u64),
    /// ERROR, the stream's terminal frame.
    Error(u64, Box<ErrorBody>),
    /// PING with FIN.
    Pong([u8; 8]),
    /// GOAWAY.
    GoAway(GoAway),
}

impl Control {
    /// Kind, flags, type, id and payload of the frame; the payload is written to `buffer`, which is cleared.
    pub fn parts(&self, buffer: &mut Vec<u8>) -> (Kind, u8, u16, u64) {
        buffer.clear();
        match self {
            Self::Accepted(id) => (Kind::Accepted, 0, 0, *id),
            Self::Credit(id, bytes) => {
                buffer.extend_from_slice(&bytes.to_le_bytes());
                (Kind::Credit, 0, 0, *id)
            }
            Self::Cancel(id) => (Kind::Cancel, 0, 0, *id),
            Self::Error(id, body) => {
                body.write(buffer);
                (Kind::Error, 0, body.code.number(), *id)
            }
            Self::Pong(bytes) => {
                buffer.extend_from_slice(bytes);
                (Kind::Ping, crate::FIN, 0, 0)
            }
            Self::GoAway(goaway) => {
                buffer.extend_from_slice(&goaway.encode());
                (Kind::GoAway, 0, 0, 0)
            }
        }
    }
}

/// Adds credit to what is left.
pub(crate) fn add_credit(have: u32, payload: &[u8]) -> Result<u32, Fault> {
    let bytes: [u8; 4] = payload.try_into().map_err(|_| Fault::BadPayload)?;
    match have.checked_add(u32::from_le_bytes(bytes)) {
        Some(sum) if sum <= i32::MAX as u32 => Ok(sum),
        _ => Err(Fault::CreditOverflow),
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
