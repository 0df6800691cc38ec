//! Frames: 24 bytes of header, then the payload.

use crate::{Fault, ITEM_PREFIX_LEN, OPEN_PREFIX_LEN};

/// The first four bytes of every frame.
pub const MAGIC: u32 = 0x4C41_5043;
/// The protocol version this crate speaks.
pub const VERSION: u8 = 1;
/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 24;

/// The flag bits, beside the kind in the header's flags byte.
pub(crate) mod flag {
    /// On OPEN: the whole request is in this frame. On a response's END: the payload is the last item. On PING: an answer.
    pub const FIN: u8 = 0x10;
    /// On a response's DATA: the item goes on in the stream's next frame.
    pub const MORE: u8 = 0x20;
    /// The payload starts with a prefix.
    pub const PREFIX: u8 = 0x40;
    /// The CRC field is set.
    pub const CRC: u8 = 0x80;
}
use flag::{CRC, FIN, MORE, PREFIX};

const KIND_MASK: u8 = 0x0F;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Begins a request.
    Open = 1,
    /// More of the request, or of the response.
    Data = 2,
    /// The last of the request, or of the response.
    End = 3,
    /// The response is no longer wanted.
    Cancel = 4,
    /// So many more payload bytes may be sent.
    Credit = 5,
    /// The stream, or with id 0 the connection, failed.
    Error = 6,
    /// The request will be run.
    Accepted = 7,
    /// No new requests on this connection.
    GoAway = 8,
    /// Sent back with FIN.
    Ping = 9,
    /// The client's handshake.
    Hello = 10,
    /// The daemon's handshake.
    Welcome = 11,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::Open,
        Self::Data,
        Self::End,
        Self::Cancel,
        Self::Credit,
        Self::Error,
        Self::Accepted,
        Self::GoAway,
        Self::Ping,
        Self::Hello,
        Self::Welcome,
    ];

    #[inline(always)]
    fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.get(usize::from(bits).wrapping_sub(1)).copied()
    }

    /// The flag bits this kind may have, apart from CRC.
    fn allowed_flags(self) -> u8 {
        match self {
            Self::Open => FIN | PREFIX,
            Self::Data => MORE | PREFIX,
            Self::End | Self::Ping => FIN,
            _ => 0,
        }
    }

    /// Whether the frame belongs to a stream (`Some(true)`), to the connection (`Some(false)`), or to either.
    fn of_stream(self) -> Option<bool> {
        match self {
            Self::Open | Self::Data | Self::End | Self::Cancel | Self::Credit | Self::Accepted => {
                Some(true)
            }
            Self::GoAway | Self::Ping | Self::Hello | Self::Welcome => Some(false),
            Self::Error => None,
        }
    }
}

/// One frame whose payload lies in the reader's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    /// The flag bits (`FIN`, `MORE`, `PREFIX`, `CRC`), without the kind.
    pub flags: u8,
    /// Message type of an OPEN, code of an ERROR, otherwise 0.
    pub ty: u16,
    /// The stream, or 0.
    pub id: u64,
    /// The bytes after the header, prefix included.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Whether a flag is set.
    #[inline]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads and writes frames under the limits agreed for one connection.
#[derive(Debug, Clone, Copy)]
pub struct Codec {
    /// Whether every frame carries a CRC.
    pub crc: bool,
    /// Longest payload taken, in bytes.
    pub max_payload: u32,
}

impl Codec {
    /// The rules before the handshake: no CRC, payloads of at most 4 KiB.
    pub const HANDSHAKE: Self = Self {
        crc: false,
        max_payload: 4096,
    };

    /// Reads the frame at the start of `bytes`, which are private to the reader, and says how many bytes it took.
    /// `None`: the frame is not complete yet.
    ///
    /// Checks all that can be checked without knowing the connection's history.
    ///
    /// # Errors
    /// The [`Fault`] that the frame is.
    #[inline(always)]
    pub fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Fault> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        // Three wide loads: the header was just written by wide stores.
        let first = u64_at(header, 0);
        let second = u64_at(header, 8);
        let third = u64_at(header, 16);
        if first as u32 != MAGIC {
            return Err(Fault::BadMagic);
        }
        if (first >> 32) as u8 != VERSION {
            return Err(Fault::BadVersion);
        }
        let byte = (first >> 40) as u8;
        let Some(kind) = Kind::from_bits(byte & KIND_MASK) else {
            return Err(Fault::BadKind);
        };
        let flags = byte & !KIND_MASK;
        if flags & !(kind.allowed_flags() | CRC) != 0 {
            return Err(Fault::BadFlags);
        }
        let ty = (first >> 48) as u16;
        if ty != 0 && kind != Kind::Open && kind != Kind::Error {
            return Err(Fault::BadType);
        }
        let len = second as u32;
        if len > self.max_payload {
            return Err(Fault::FrameTooLarge);
        }
        let id = second >> 32 | third << 32;
        if kind
            .of_stream()
            .is_some_and(|of_stream| of_stream != (id != 0))
        {
            return Err(Fault::BadId);
        }
        let crc = (third >> 32) as u32;
        match (self.crc, flags & CRC != 0) {
            (true, false) => return Err(Fault::CrcMissing),
            (false, true) => return Err(Fault::CrcUnexpected),
            (false, false) if crc != 0 => return Err(Fault::CrcUnexpected),
            _ => {}
        }
        let Some(payload) = rest.get(..len as usize) else {
            return Ok(None);
        };
        if self.crc && checksum(header, &[payload]) != crc {
            return Err(Fault::CrcMismatch);
        }
        let frame = Frame {
            kind,
            flags: flags & !CRC,
            ty,
            id,
            payload,
        };
        check_size(&frame)?;
        Ok(Some((frame, HEADER_LEN + payload.len())))
    }

    /// The length of the frame whose header starts `bytes`, header included, without looking further;
    /// `None` with fewer than a header's bytes. For readers that must know how much to fetch.
    ///
    /// # Errors
    /// [`Fault::BadMagic`] and [`Fault::FrameTooLarge`], so that garbage never asks for memory.
    pub fn frame_len(&self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        if header[..4] != MAGIC.to_le_bytes() {
            return Err(Fault::BadMagic);
        }
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if len > self.max_payload {
            return Err(Fault::FrameTooLarge);
        }
        Ok(Some(HEADER_LEN + len as usize))
    }

    /// The header of a frame whose payload is the concatenation of `parts`.
    #[inline(always)]
    pub fn header(
        &self,
        kind: Kind,
        flags: u8,
        ty: u16,
        id: u64,
        parts: &[&[u8]],
    ) -> [u8; HEADER_LEN] {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(len <= self.max_payload as usize);
        let flags = kind as u8 | flags | if self.crc { CRC } else { 0 };
        let mut words = [
            u64::from(MAGIC)
                | u64::from(VERSION) << 32
                | u64::from(flags) << 40
                | u64::from(ty) << 48,
            len as u64 | id << 32,
            id >> 32,
        ];
        if self.crc {
            words[2] |= u64::from(checksum(&bytes_of(words), parts)) << 32;
        }
        bytes_of(words)
    }

    /// A whole frame in one vector. For handshakes and tests; the hot path writes header and payload apart.
    pub fn encode(&self, kind: Kind, flags: u8, ty: u16, id: u64, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.header(kind, flags, ty, id, &[payload]).to_vec();
        frame.extend_from_slice(payload);
        frame
    }
}

/// CRC-32C over the header with its CRC field as 0, then the payload's parts.
fn checksum(header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> u32 {
    let mut crc = crc32c::crc32c(&header[..20]);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    for part in parts {
        crc = crc32c::crc32c_append(crc, part);
    }
    crc
}

#[inline(always)]
fn u64_at(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn bytes_of(words: [u64; 3]) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    for (place, word) in header.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    header
}

#[inline(always)]
fn check_size(frame: &Frame<'_>) -> Result<(), Fault> {
    let len = frame.payload.len();
    let right = match frame.kind {
        Kind::Open => !frame.has(PREFIX) || len >= OPEN_PREFIX_LEN,
        Kind::Data => !frame.has(PREFIX) || len >= ITEM_PREFIX_LEN,
        Kind::End | Kind::Error | Kind::Hello | Kind::Welcome => true,
        Kind::Cancel | Kind::Accepted => len == 0,
        Kind::Credit => len == 4,
        Kind::GoAway => len == 16,
        Kind::Ping => len == 8,
    };
    if right {
        Ok(())
    } else {
        Err(Fault::BadPayload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Codec = Codec {
        crc: false,
        max_payload: 1 << 16,
    };
    const CHECKED: Codec = Codec { crc: true, ..PLAIN };

    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn zeros_are_a_fault() {
        assert_eq!(PLAIN.decode(&[0; 64]), Err(Fault::BadMagic));
        let mut frame = PLAIN.encode(Kind::Ping, 0, 0, 0, &[0; 8]);
        frame[5] = 0;
        assert_eq!(PLAIN.decode(&frame), Err(Fault::BadKind));
    }

    #[test]
    fn each_header_fault_has_its_name() {
        let good = PLAIN.encode(Kind::Data, 0, 0, 7, b"payload");
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            PLAIN.decode(&bad).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(0, 0), Fault::BadMagic);
        assert_eq!(with(4, 2), Fault::BadVersion);
        assert_eq!(with(5, 12), Fault::BadKind);
        assert_eq!(with(5, Kind::Data as u8 | FIN), Fault::BadFlags);
        assert_eq!(with(6, 1), Fault::BadType);
        assert_eq!(with(10, 2), Fault::FrameTooLarge);
        assert_eq!(with(12, 0), Fault::BadId);
        assert_eq!(with(20, 1), Fault::CrcUnexpected);
        assert_eq!(with(5, Kind::Data as u8 | CRC), Fault::CrcUnexpected);
        assert_eq!(CHECKED.decode(&good), Err(Fault::CrcMissing));
        let credit = PLAIN.encode(Kind::Credit, 0, 0, 7, &[0; 3]);
        assert_eq!(PLAIN.decode(&credit), Err(Fault::BadPayload));
        let ping = PLAIN.encode(Kind::Ping, 0, 0, 9, &[0; 8]);
        assert_eq!(PLAIN.decode(&ping), Err(Fault::BadId));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            crc: bool, ty: u16, id in 1u64.., payload in proptest::collection::vec(any::<u8>(), 0..2000),
            cut in 0usize..2024,
        ) {
            let codec = if crc { CHECKED } else { PLAIN };
            let bytes = codec.encode(Kind::Open, FIN, ty, id, &payload);
            let (frame, taken) = codec.decode(&bytes).unwrap().unwrap();
            prop_assert_eq!(taken, bytes.len());
            prop_assert_eq!(frame, Frame { kind: Kind::Open, flags: FIN, ty, id, payload: &payload });
            if cut < bytes.len() {
                prop_assert_eq!(codec.decode(&bytes[..cut]), Ok(None));
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(payload in proptest::collection::vec(any::<u8>(), 0..200), bit in 0usize..1792) {
            let mut bytes = CHECKED.encode(Kind::Open, FIN, 1, 1, &payload);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer length asks for more bytes; everything else is a fault.
            if let Ok(Some(_)) = CHECKED.decode(&bytes) {
                prop_assert!(false, "bit {} went unnoticed", bit);
            }
        }

        #[test]
        fn any_bytes_are_a_frame_a_fault_or_incomplete(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = PLAIN.decode(&bytes);
            let _ = CHECKED.decode(&bytes);
        }
    }
}
