//! HELLO and WELCOME.

use crate::payload::{u32_at, u64_at};
use crate::{Fault, VERSION};

/// Longest name of a client or daemon, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 64;
/// Least that `max_frame_payload` may be, in bytes: an ERROR must fit.
pub const MIN_FRAME_PAYLOAD: u32 = 960;
/// Most that `max_frame_payload` may be, in bytes: readers set so much aside.
pub const MAX_FRAME_PAYLOAD: u32 = 1 << 24;
const HELLO_LEN: usize = 32;
const WELCOME_LEN: usize = 64;

/// What a connection can have beyond plain frames on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features {
    /// Frames go through rings in a shared segment.
    pub shared_memory: bool,
    /// Every frame has a CRC-32C.
    pub crc: bool,
}

impl Features {
    fn bits(self) -> u32 {
        u32::from(self.shared_memory) | u32::from(self.crc) << 1
    }

    /// Unknown bits are dropped: the daemon leaves off what it does not know.
    fn from_bits(bits: u32) -> Self {
        Self {
            shared_memory: bits & 1 != 0,
            crc: bits & 2 != 0,
        }
    }
}

/// The client's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version the client speaks.
    pub version_min: u8,
    /// Highest protocol version the client speaks.
    pub version_max: u8,
    /// How many connections this client has had before; 65,535 stands for more.
    pub earlier: u16,
    /// What the client would like.
    pub features: Features,
    /// Random, the same for the life of this client.
    pub instance: u128,
    /// Response bytes per stream that may come before the first CREDIT.
    pub response_window: u32,
    /// Who this is, for people.
    pub name: String,
}

impl Hello {
    /// A HELLO for the version of this crate.
    pub fn new(name: &str, instance: u128, features: Features, response_window: u32) -> Self {
        Self {
            version_min: VERSION,
            version_max: VERSION,
            earlier: 0,
            features,
            instance,
            response_window,
            name: shortened(name),
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.version_min, self.version_max];
        bytes.extend_from_slice(&self.earlier.to_le_bytes());
        bytes.extend_from_slice(&self.features.bits().to_le_bytes());
        bytes.extend_from_slice(&self.instance.to_le_bytes());
        bytes.extend_from_slice(&self.response_window.to_le_bytes());
        push_name(&mut bytes, &self.name);
        bytes
    }

    /// # Errors
    /// [`Fault::BadPayload`] where lengths do not add up, the name is not UTF-8 or the window is over 2^31 - 1.
    pub fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let name = take_name(payload, HELLO_LEN)?;
        let response_window = u32_at(payload, 24);
        if response_window > i32::MAX as u32 {
            return Err(Fault::BadPayload);
        }
        Ok(Self {
            version_min: payload[0],
            version_max: payload[1],
            earlier: u16::from_le_bytes([payload[2], payload[3]]),
            features: Features::from_bits(u32_at(payload, 4)),
            instance: u128_at(payload, 8),
            response_window,
            name,
        })
    }

    /// Whether this crate's version is among the client's.
    pub fn speaks_our_version(&self) -> bool {
        (self.version_min..=self.version_max).contains(&VERSION)
    }
}

/// What one connection may do, as told in WELCOME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest request, and longest item of a response, in bytes.
    pub max_message_size: u64,
    /// Longest payload of one frame, in bytes.
    pub max_frame_payload: u32,
    /// Requests that may be unanswered at once.
    pub max_streams: u32,
    /// Payload bytes of OPEN frames that may be unanswered at once.
    pub inline_window: u32,
}

/// The daemon's answer to HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u8,
    /// What is on.
    pub features: Features,
    /// Random, the same for the life of this daemon.
    pub instance: u128,
    /// This connection's number.
    pub connection: u64,
    /// What the connection may do.
    pub limits: Limits,
    /// Bytes of the request ring; 0 without shared memory.
    pub request_capacity: u32,
    /// Bytes of the response ring; 0 without shared memory.
    pub response_capacity: u32,
    /// Which daemon this is, for people.
    pub name: String,
}

impl Welcome {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.version, 0, 0, 0];
        bytes.extend_from_slice(&self.features.bits().to_le_bytes());
        bytes.extend_from_slice(&self.instance.to_le_bytes());
        bytes.extend_from_slice(&self.connection.to_le_bytes());
        bytes.extend_from_slice(&self.limits.max_message_size.to_le_bytes());
        bytes.extend_from_slice(&self.limits.max_frame_payload.to_le_bytes());
        bytes.extend_from_slice(&self.limits.max_streams.to_le_bytes());
        bytes.extend_from_slice(&self.limits.inline_window.to_le_bytes());
        bytes.extend_from_slice(&self.request_capacity.to_le_bytes());
        bytes.extend_from_slice(&self.response_capacity.to_le_bytes());
        push_name(&mut bytes, &self.name);
        bytes
    }

    /// # Errors
    /// [`Fault::BadPayload`] where lengths do not add up or limits make the connection useless,
    /// [`Fault::BadVersion`] for a version this crate does not speak.
    pub fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let name = take_name(payload, WELCOME_LEN)?;
        if payload[0] != VERSION {
            return Err(Fault::BadVersion);
        }
        let limits = Limits {
            max_message_size: u64_at(payload, 32),
            max_frame_payload: u32_at(payload, 40),
            max_streams: u32_at(payload, 44),
            inline_window: u32_at(payload, 48),
        };
        if !(MIN_FRAME_PAYLOAD..=MAX_FRAME_PAYLOAD).contains(&limits.max_frame_payload)
            || limits.max_streams == 0
        {
            return Err(Fault::BadPayload);
        }
        Ok(Self {
            version: payload[0],
            features: Features::from_bits(u32_at(payload, 4)),
            instance: u128_at(payload, 8),
            connection: u64_at(payload, 24),
            limits,
            request_capacity: u32_at(payload, 52),
            response_capacity: u32_at(payload, 56),
            name,
        })
    }
}

fn shortened(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME_LEN)].to_owned()
}

fn push_name(bytes: &mut Vec<u8>, name: &str) {
    let name = shortened(name);
    bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
}

/// The name after `fixed` bytes, whose last four are its length; also checks that there are so many bytes.
fn take_name(payload: &[u8], fixed: usize) -> Result<String, Fault> {
    let (head, name) = payload.split_at_checked(fixed).ok_or(Fault::BadPayload)?;
    if name.len() > MAX_NAME_LEN || u32_at(head, fixed - 4) as usize != name.len() {
        return Err(Fault::BadPayload);
    }
    String::from_utf8(name.to_vec()).map_err(|_| Fault::BadPayload)
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_frames_survive_the_wire() {
        let features = Features {
            shared_memory: true,
            crc: true,
        };
        let hello = Hello {
            earlier: 0x0203,
            ..Hello::new(&"é".repeat(40), 7 << 100, features, 9)
        };
        assert_eq!(hello.name.len(), 64);
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        let welcome = Welcome {
            version: VERSION,
            features: Features {
                shared_memory: false,
                crc: true,
            },
            instance: u128::MAX - 3,
            connection: 12,
            limits: Limits {
                max_message_size: 10 << 20,
                max_frame_payload: 16384,
                max_streams: 64,
                inline_window: 65536,
            },
            request_capacity: 1 << 17,
            response_capacity: 1 << 16,
            name: "lapce-ai 0.1.0".to_owned(),
        };
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            let _ = Hello::decode(&bytes);
            let _ = Welcome::decode(&bytes);
        }
    }
}
