//! The lapce-ai protocol: what is on the wire, and the rules both ends keep.
//!
//! The contract is [`docs/protocol.md`](https://github.com/lapce/lapce-ai/blob/main/docs/protocol.md); this crate is that
//! page in code, and a test holds the two against each other. Nothing here does I/O or reads a clock: bytes go in,
//! [events](ServerEvent) and frames come out, so every rule can be tested without a socket.
//!
//! | stop on the path | here |
//! |---|---|
//! | bytes -> frame | [`Codec`], [`Frame`], [`Kind`] |
//! | handshake | [`Hello`], [`Welcome`] |
//! | frame -> message | [`ServerState`] for the daemon's end, [`ClientState`] for the client's |
//! | what goes wrong | [`Fault`] (the peer broke a rule), [`ErrorCode`] (a request failed) |
//! | messages | [`ai`], [`status`] |
#![forbid(unsafe_code)]

pub mod ai;
mod attempt;
mod client;
mod error;
mod fault;
mod frame;
mod handshake;
mod id_map;
mod message_type;
mod payload;
mod server;
mod slots;
pub mod status;

pub use attempt::Attempt;
pub use client::{ClientEvent, ClientState, Opening, Refusal};
pub use error::{ErrorBody, ErrorCode, Whose};
pub use fault::Fault;
pub use frame::{
    Codec, Frame, HEADER_LEN, Kind, MAGIC, VERSION,
    flag::{CRC, FIN, MORE, PREFIX},
};
pub use handshake::{
    Features, Hello, Limits, MAX_FRAME_PAYLOAD, MAX_NAME_LEN, MIN_FRAME_PAYLOAD, Welcome,
};
pub use message_type::MessageType;
pub use payload::{Class, Control, GoAway, ITEM_PREFIX_LEN, OPEN_PREFIX_LEN, OpenPrefix};
pub use server::{ServerEvent, ServerState};
