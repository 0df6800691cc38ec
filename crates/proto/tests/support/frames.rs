//! Scripts of frames, right and wrong, against either end of a connection. The property tests make the scripts, and
//! so does `fuzz/fuzz_targets/frame_reader.rs`.

use std::collections::BTreeMap;

use lapce_ai_proto::{
    ClientEvent, ClientState, Codec, Control, ErrorBody, ErrorCode, Frame, HEADER_LEN, Kind,
    Limits, MAGIC, ServerEvent, ServerState, VERSION,
};

/// One step of a script.
#[derive(Debug, Clone)]
pub enum Step {
    /// A frame comes, as the peer wrote it.
    Frame(Written),
    /// This side does something.
    Act {
        /// What, modulo the number of things it can do.
        what: u8,
        /// To which stream.
        id: u64,
        /// How much.
        amount: u32,
    },
}

/// A frame whose header may be anything.
#[derive(Debug, Clone)]
pub struct Written {
    /// The header's flags byte: kind and flags.
    pub flags: u8,
    /// The header's type.
    pub ty: u16,
    /// The header's id.
    pub id: u64,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Written {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.push(VERSION);
        bytes.push(self.flags);
        bytes.extend_from_slice(&self.ty.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Small limits, so that scripts reach them.
pub const LIMITS: Limits = Limits {
    max_message_size: 4096,
    max_frame_payload: 512,
    max_streams: 4,
    inline_window: 1024,
};

const CODEC: Codec = Codec {
    crc: false,
    max_payload: LIMITS.max_frame_payload,
};

/// Reads a byte stream as frames, as both ends would, until the first fault. Returns how many bytes were frames.
pub fn stream(bytes: &[u8], crc: bool) -> usize {
    let codec = Codec { crc, ..CODEC };
    let mut server = Server::new();
    let mut client = Client::new();
    let (mut to_server, mut to_client) = (true, true);
    let mut at = 0;
    while let Ok(Some((frame, taken))) = codec.decode(&bytes[at..]) {
        assert_eq!(
            codec.frame_len(&bytes[at..]),
            Ok(Some(taken)),
            "a frame's length is known from its header"
        );
        assert!(taken >= HEADER_LEN && frame.payload.len() + HEADER_LEN == taken);
        let again = codec.encode(frame.kind, frame.flags, frame.ty, frame.id, frame.payload);
        assert_eq!(
            again,
            bytes[at..at + taken],
            "a frame has one form on the wire"
        );
        to_server = to_server && server.take(&frame);
        to_client = to_client && client.take(&frame);
        at += taken;
    }
    at
}

/// Runs a script against the daemon's end until its first fault.
pub fn against_server(script: &[Step]) {
    let mut server = Server::new();
    for step in script {
        match step {
            Step::Frame(written) => {
                let bytes = written.encode();
                let Ok(Some((frame, _))) = CODEC.decode(&bytes) else {
                    return;
                };
                if !server.take(&frame) {
                    return;
                }
            }
            Step::Act { what, id, amount } => server.act(*what, *id, *amount),
        }
        server.check();
    }
}

/// Runs a script against the client's end until its first fault.
pub fn against_client(script: &[Step]) {
    let mut client = Client::new();
    for step in script {
        match step {
            Step::Frame(written) => {
                let bytes = written.encode();
                let Ok(Some((frame, _))) = CODEC.decode(&bytes) else {
                    return;
                };
                if !client.take(&frame) {
                    return;
                }
            }
            Step::Act { what, id, amount } => client.act(*what, *id, *amount),
        }
        client.check();
    }
}

/// The daemon's end, and what its user must have seen.
struct Server {
    state: ServerState,
    /// Bytes that have come and bytes that shall come, by stream.
    uploads: BTreeMap<u64, (u64, u64)>,
}

impl Server {
    fn new() -> Self {
        Self {
            state: ServerState::new(LIMITS, 300),
            uploads: BTreeMap::new(),
        }
    }

    /// False: that was a fault.
    fn take(&mut self, frame: &Frame<'_>) -> bool {
        let Ok(event) = self.state.handle(frame) else {
            return false;
        };
        match event {
            ServerEvent::Request {
                id, prefix, body, ..
            } => {
                assert_eq!(prefix.total_length, body.len() as u64);
                // Some are answered at once.
                return id % 3 == 0 || self.state.track(id, &prefix, body.len()).is_ok();
            }
            ServerEvent::Begin {
                id, prefix, first, ..
            } => {
                assert!(prefix.total_length <= LIMITS.max_message_size);
                let total = (first.len() as u64, prefix.total_length);
                assert!(self.uploads.insert(id, total).is_none());
            }
            ServerEvent::Data { id, bytes } => self.arrived(id, bytes),
            ServerEvent::Complete { id, bytes } => {
                self.arrived(id, bytes);
                let (come, total) = self.uploads.remove(&id).expect("it had begun");
                assert_eq!(come, total, "complete means complete");
            }
            ServerEvent::Cancel { id } => {
                assert!(self.state.credit(id).is_some(), "cancelled while it lives");
            }
            ServerEvent::Credit { .. } | ServerEvent::Nothing => {}
        }
        true
    }

    fn arrived(&mut self, id: u64, bytes: &[u8]) {
        let (come, total) = self.uploads.get_mut(&id).expect("it had begun");
        *come += bytes.len() as u64;
        assert!(come <= total);
    }

    fn act(&mut self, what: u8, id: u64, amount: u32) {
        let credit = self.state.credit(id).unwrap_or(0);
        match what % 8 {
            0 => self.state.grant(id),
            1 => self.state.accept(id),
            2 => self
                .state
                .fail(id, ErrorBody::new(ErrorCode::Internal, "why")),
            3 => self.state.sent(id, amount.min(credit)),
            4 => {
                self.state.ended(id);
                self.uploads.remove(&id);
            }
            5 => self.state.go_away(ErrorCode::ServerRestarting, amount),
            6 => {
                // No room for it yet.
                let _ = self.state.next_control();
            }
            _ => {
                if let Some(control) = self.state.next_control() {
                    assert_is_frame(control);
                    self.state.control_sent();
                }
            }
        }
    }

    fn check(&self) {
        assert!(self.state.live() <= LIMITS.max_streams as usize);
        for id in self.state.ids() {
            assert!(
                self.state
                    .credit(id)
                    .is_none_or(|credit| credit <= i32::MAX as u32)
            );
        }
    }
}

/// The client's end, and what its user must have seen.
struct Client {
    state: ClientState,
    /// Response bytes that came and were not taken, by stream.
    unread: BTreeMap<u64, u32>,
    /// Bytes that the present item still needs, by stream.
    item_left: BTreeMap<u64, u64>,
}

impl Client {
    fn new() -> Self {
        Self {
            state: ClientState::new(LIMITS, 300),
            unread: BTreeMap::new(),
            item_left: BTreeMap::new(),
        }
    }

    /// False: that was a fault.
    fn take(&mut self, frame: &Frame<'_>) -> bool {
        let Ok(event) = self.state.handle(frame) else {
            return false;
        };
        match event {
            ClientEvent::Piece {
                id,
                bytes,
                item_length,
                item_ends,
                stream_ends,
            } => {
                let unread = self.unread.entry(id).or_default();
                *unread += bytes.len() as u32;
                assert!(*unread <= 300, "more than the window");
                let left = item_length.or(self.item_left.remove(&id));
                let left = left.expect("an item begins with its length") - bytes.len() as u64;
                if item_ends {
                    assert_eq!(left, 0, "an item has its length");
                } else {
                    self.item_left.insert(id, left);
                }
                assert!(item_ends || !stream_ends);
                assert_eq!(stream_ends, !self.state.is_live(id));
            }
            ClientEvent::Ended { id } => {
                assert!(!self.item_left.contains_key(&id) && !self.state.is_live(id));
            }
            ClientEvent::Failed { id, .. } => assert!(!self.state.is_live(id)),
            ClientEvent::Accepted { id } | ClientEvent::Credit { id } => {
                assert!(self.state.is_live(id));
            }
            ClientEvent::GoAway(_) | ClientEvent::Closed(_) | ClientEvent::Nothing => {}
        }
        true
    }

    fn act(&mut self, what: u8, id: u64, amount: u32) {
        match what % 6 {
            0 => {
                let _ = self.state.open(u64::from(amount), amount.is_multiple_of(2));
            }
            1 => {
                let most = self.state.sendable(id).unwrap_or(0);
                self.state.sent(id, u64::from(amount).min(most) as u32);
            }
            2 => {
                let unread = self.unread.entry(id).or_default();
                let taken = amount.min(*unread);
                *unread -= taken;
                self.state.taken(id, taken);
            }
            3 => self.state.cancel(id),
            4 => {
                let _ = self.state.next_control();
            }
            _ => {
                if let Some(control) = self.state.next_control() {
                    assert_is_frame(control);
                    self.state.control_sent();
                }
            }
        }
    }

    fn check(&self) {
        assert!(self.state.live() <= LIMITS.max_streams as usize);
    }
}

/// What a state machine wants said is a frame that the other side's codec takes.
fn assert_is_frame(control: &Control) {
    let mut payload = Vec::new();
    let (kind, flags, ty, id) = control.parts(&mut payload);
    let bytes = CODEC.encode(kind, flags, ty, id, &payload);
    let (frame, _) = CODEC
        .decode(&bytes)
        .expect("a right frame")
        .expect("a whole one");
    assert_eq!(frame.kind, kind);
    assert!(kind != Kind::Data && kind != Kind::End);
}
