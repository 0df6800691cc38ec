//! What a peer can do wrong, each with its exact name.

/// A rule of the protocol that the peer broke. The connection ends; nobody else notices.
///
/// The names ([`Fault::name`]) are those of `docs/protocol.md` section 9 and travel in the `fault` field of the
/// `protocol_error` that tells the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}: {}", self.name(), self.meaning())]
#[non_exhaustive]
pub enum Fault {
    /// The header does not start with the magic.
    BadMagic,
    /// The header's version is not the negotiated one.
    BadVersion,
    /// The kind is unknown, or not for this side to send.
    BadKind,
    /// A flag that this kind does not have.
    BadFlags,
    /// A type field that must be 0 is not.
    BadType,
    /// An id of 0 where a stream is meant, or the reverse, or of a stream that never was.
    BadId,
    /// An OPEN whose id is not above every earlier one.
    IdReused,
    /// A payload over `max_frame_payload`.
    FrameTooLarge,
    /// A ring ended inside a frame.
    TornFrame,
    /// The CRC is on and the frame has none.
    CrcMissing,
    /// The CRC is off and the frame has one.
    CrcUnexpected,
    /// The CRC does not match.
    CrcMismatch,
    /// A payload of the wrong size or form for its kind.
    BadPayload,
    /// The fragments do not add up to `total_length`.
    LengthMismatch,
    /// More bytes than credit was given for.
    CreditExceeded,
    /// Credit beyond 2^31 - 1.
    CreditOverflow,
    /// More OPEN payload than `inline_window`.
    WindowExceeded,
    /// More unanswered requests than `max_streams`.
    TooManyStreams,
    /// Positions in a ring that cannot be.
    RingCorrupt,
    /// A frame that has no place here, such as a second HELLO.
    UnexpectedFrame,
}

impl Fault {
    /// Every fault, in the order of the document's table.
    pub const ALL: [Self; 20] = [
        Self::BadMagic,
        Self::BadVersion,
        Self::BadKind,
        Self::BadFlags,
        Self::BadType,
        Self::BadId,
        Self::IdReused,
        Self::FrameTooLarge,
        Self::TornFrame,
        Self::CrcMissing,
        Self::CrcUnexpected,
        Self::CrcMismatch,
        Self::BadPayload,
        Self::LengthMismatch,
        Self::CreditExceeded,
        Self::CreditOverflow,
        Self::WindowExceeded,
        Self::TooManyStreams,
        Self::RingCorrupt,
        Self::UnexpectedFrame,
    ];

    /// The stable name, as on the wire.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// One line for people.
    pub fn meaning(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::BadMagic => ("bad_magic", "the header does not start with the magic"),
            Self::BadVersion => (
                "bad_version",
                "the header's version is not the negotiated one",
            ),
            Self::BadKind => (
                "bad_kind",
                "the kind is unknown, or not for this side to send",
            ),
            Self::BadFlags => ("bad_flags", "a flag that this kind does not have"),
            Self::BadType => ("bad_type", "a type field that must be 0 is not"),
            Self::BadId => (
                "bad_id",
                "an id of 0 where a stream is meant, or the reverse, or of a stream that never was",
            ),
            Self::IdReused => (
                "id_reused",
                "an OPEN whose id is not above every earlier one",
            ),
            Self::FrameTooLarge => ("frame_too_large", "a payload over max_frame_payload"),
            Self::TornFrame => ("torn_frame", "a ring ended inside a frame"),
            Self::CrcMissing => ("crc_missing", "the CRC is on and the frame has none"),
            Self::CrcUnexpected => ("crc_unexpected", "the CRC is off and the frame has one"),
            Self::CrcMismatch => ("crc_mismatch", "the CRC does not match"),
            Self::BadPayload => (
                "bad_payload",
                "a payload of the wrong size or form for its kind",
            ),
            Self::LengthMismatch => (
                "length_mismatch",
                "the fragments do not add up to total_length",
            ),
            Self::CreditExceeded => ("credit_exceeded", "more bytes than credit was given for"),
            Self::CreditOverflow => ("credit_overflow", "credit beyond 2^31 - 1"),
            Self::WindowExceeded => ("window_exceeded", "more OPEN payload than inline_window"),
            Self::TooManyStreams => (
                "too_many_streams",
                "more unanswered requests than max_streams",
            ),
            Self::RingCorrupt => ("ring_corrupt", "positions in a ring that cannot be"),
            Self::UnexpectedFrame => (
                "unexpected_frame",
                "a frame that has no place here, such as a second HELLO",
            ),
        }
    }
}
