//! AWS's binary event stream, `application/vnd.amazon.eventstream`, read incrementally and without I/O, as
//! [Smithy](https://smithy.io/2.0/aws/amazon-eventstream.html) says.
//!
//! ```text
//! total length u32 | length of headers u32 | CRC-32 of these 8 bytes
//! headers, each: length of name u8, name, type u8, value
//! payload
//! CRC-32 of everything before it
//! ```
//!
//! All numbers are big-endian. A message is handed out only when both sums and every header are right, so that what
//! reads it need not ask again.

mod header;

pub use header::HeaderValue;
use header::{MAX_HEADERS, headers};

/// Both lengths and their sum.
const PRELUDE: usize = 12;
/// The sum at the end.
const TRAILER: usize = 4;
/// The most bytes that the headers of a message may have, as AWS has it.
const MAX_HEADERS_LEN: usize = 128 << 10;

/// Why a stream of messages cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventStreamError {
    /// A message is longer than allowed.
    #[error("a message of the stream is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The lengths of a message contradict each other, or its headers are longer than AWS allows.
    #[error("a message of the stream has impossible lengths")]
    Lengths,
    /// The lengths of a message have another sum than was sent with them.
    #[error("the lengths of a message in the stream are damaged: their checksum is wrong")]
    PreludeChecksum,
    /// A message has another sum than was sent with it.
    #[error("a message of the stream is damaged: its checksum is wrong")]
    MessageChecksum,
    /// The headers of a message are not in their documented form.
    #[error("a message of the stream has wrong headers: {0}")]
    Headers(&'static str),
}

/// One message, whose sums and headers are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventStreamMessage<'a> {
    headers: &'a [u8],
    /// What it carries; of which kind, its headers say.
    pub payload: &'a [u8],
}

impl<'a> EventStreamMessage<'a> {
    /// Its headers in order. No name comes twice.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, HeaderValue<'a>)> + use<'a> {
        // They were checked, so none is an error.
        headers(self.headers).filter_map(Result::ok)
    }

    /// The header of this name, if it is there and a text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.headers().find_map(|(other, value)| match value {
            HeaderValue::String(text) if other == name => Some(text),
            _ => None,
        })
    }
}

/// Reads messages from chunks of bytes that may be cut anywhere.
///
/// It keeps one message at most, and no more of it than has come, whatever length the message claims.
#[derive(Debug)]
pub struct EventStreamParser {
    limit: usize,
    /// The message at hand, as far as it has come.
    message: Vec<u8>,
    /// Its lengths, once they are known and checked.
    lengths: Option<Lengths>,
    /// The message was handed out and is to be cleared.
    dispatched: bool,
}

#[derive(Clone, Copy, Debug)]
struct Lengths {
    total: usize,
    headers: usize,
}

impl EventStreamParser {
    /// A parser for one stream, whose messages may have up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            message: Vec::new(),
            lengths: None,
            dispatched: false,
        }
    }

    /// Reads from the front of `chunk` up to the end of the next message. `None` means that the chunk is used up.
    ///
    /// # Errors
    ///
    /// When a message is damaged or longer than the limit. The stream is of no use then.
    pub fn next(
        &mut self,
        chunk: &mut &[u8],
    ) -> Result<Option<EventStreamMessage<'_>>, EventStreamError> {
        if self.dispatched {
            self.message.clear();
            self.lengths = None;
            self.dispatched = false;
        }
        let lengths = match self.lengths {
            Some(lengths) => lengths,
            None => {
                if !self.fill(PRELUDE, chunk) {
                    return Ok(None);
                }
                let lengths = self.prelude()?;
                self.lengths = Some(lengths);
                lengths
            }
        };
        if !self.fill(lengths.total, chunk) {
            return Ok(None);
        }
        let (body, sum) = self.message.split_at(lengths.total - TRAILER);
        if crc32fast::hash(body) != number(sum) {
            return Err(EventStreamError::MessageChecksum);
        }
        let (head, payload) = body[PRELUDE..].split_at(lengths.headers);
        check_headers(head)?;
        self.dispatched = true;
        Ok(Some(EventStreamMessage {
            headers: head,
            payload,
        }))
    }

    /// Whether the bytes so far end in the middle of a message.
    pub fn is_inside(&self) -> bool {
        !self.dispatched && !self.message.is_empty()
    }

    /// Moves bytes from the chunk until the message has `length` of them; false: not yet.
    fn fill(&mut self, length: usize, chunk: &mut &[u8]) -> bool {
        let wanted = length - self.message.len();
        let (taken, rest) = chunk.split_at(wanted.min(chunk.len()));
        self.message.extend_from_slice(taken);
        *chunk = rest;
        taken.len() == wanted
    }

    fn prelude(&self) -> Result<Lengths, EventStreamError> {
        let (lengths, sum) = self.message.split_at(PRELUDE - TRAILER);
        if crc32fast::hash(lengths) != number(sum) {
            return Err(EventStreamError::PreludeChecksum);
        }
        let total = number(&lengths[..4]) as usize;
        let headers = number(&lengths[4..]) as usize;
        if headers > MAX_HEADERS_LEN || total < PRELUDE + TRAILER + headers {
            return Err(EventStreamError::Lengths);
        }
        if total > self.limit {
            return Err(EventStreamError::TooLong { limit: self.limit });
        }
        Ok(Lengths { total, headers })
    }
}

/// Every header must be readable, and no name may come twice.
fn check_headers(head: &[u8]) -> Result<(), EventStreamError> {
    for (at, header) in headers(head).enumerate() {
        let (name, _) = header?;
        if at == MAX_HEADERS {
            return Err(EventStreamError::Headers("there are too many of them"));
        }
        let mut before = headers(head).take(at).flatten();
        if before.any(|(other, _)| other == name) {
            return Err(EventStreamError::Headers("a name comes twice"));
        }
    }
    Ok(())
}

/// The big-endian number of four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}
