//! Server-sent events, read incrementally and without I/O, as
//! [WHATWG HTML, 9.2.6](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation) says.
//!
//! The one thing added is a bound on the length of an event, so that a hostile server cannot fill the memory.

use memchr::memchr2;

/// The longest event by default: 10 MiB.
pub const DEFAULT_MAX_EVENT_LEN: usize = 10 << 20;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Its type; `message` where the stream names none.
    pub event: &'a str,
    /// Its data lines, joined by line feeds. Bytes that are no UTF-8 are replaced by U+FFFD.
    pub data: &'a str,
}

/// Why a stream of events cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event, or a line, is longer than allowed.
    #[error("an event of the stream is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
}

/// Reads events from chunks of bytes that may be cut anywhere.
///
/// An event that is not ended by an empty line when the bytes end is no event: the standard has it discarded.
#[derive(Debug)]
pub struct SseParser {
    limit: usize,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    data: Vec<u8>,
    event: Vec<u8>,
    /// Replacements for `data` and `event` where these are no UTF-8.
    lossy: (String, String),
    has_data: bool,
    first_line: bool,
    /// The last byte was a CR: an LF now belongs to it.
    after_cr: bool,
    /// The last event was handed out and is to be cleared.
    dispatched: bool,
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_EVENT_LEN)
    }
}

impl SseParser {
    /// A parser for one stream, whose events may have up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            data: Vec::new(),
            event: Vec::new(),
            lossy: Default::default(),
            has_data: false,
            first_line: true,
            after_cr: false,
            dispatched: false,
        }
    }

    /// Reads from the front of `chunk` up to the end of the next event. `None` means that the chunk is used up.
    ///
    /// # Errors
    ///
    /// When a line or an event is longer than the limit. The stream is of no use then.
    pub fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<SseEvent<'_>>, SseError> {
        if self.dispatched {
            self.clear();
        }
        loop {
            if self.after_cr && !chunk.is_empty() {
                self.after_cr = false;
                if chunk[0] == b'\n' {
                    *chunk = &chunk[1..];
                }
            }
            let Some(end) = memchr2(b'\r', b'\n', chunk) else {
                self.check(chunk.len())?;
                self.line.extend_from_slice(chunk);
                *chunk = &[];
                return Ok(None);
            };
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            self.after_cr = chunk[end] == b'\r';
            *chunk = rest;
            self.check(line.len())?;
            let complete = if self.line.is_empty() {
                self.take_line(line)
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                let complete = self.take_line(&whole);
                whole.clear();
                self.line = whole;
                complete
            };
            if complete {
                return Ok(Some(self.dispatch()));
            }
        }
    }

    fn check(&self, more: usize) -> Result<(), SseError> {
        if self.data.len() + self.line.len() + more > self.limit {
            return Err(SseError::TooLong { limit: self.limit });
        }
        Ok(())
    }

    /// Takes a whole line. True when it ends an event that is to be handed out.
    fn take_line(&mut self, mut line: &[u8]) -> bool {
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        if line.is_empty() {
            if self.has_data {
                return true;
            }
            self.clear();
            return false;
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            // An empty field is a comment; `id` and `retry` serve reconnecting, which no provider offers.
            _ => {}
        }
        false
    }

    fn dispatch(&mut self) -> SseEvent<'_> {
        self.dispatched = true;
        let (data, event) = (&mut self.lossy.0, &mut self.lossy.1);
        let event = text(&self.event, event);
        SseEvent {
            event: if event.is_empty() { "message" } else { event },
            data: text(&self.data, data),
        }
    }

    fn clear(&mut self) {
        self.data.clear();
        self.event.clear();
        self.has_data = false;
        self.dispatched = false;
    }
}

fn text<'a>(bytes: &'a [u8], lossy: &'a mut String) -> &'a str {
    match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => {
            lossy.clear();
            lossy.push_str(&String::from_utf8_lossy(bytes));
            lossy
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = Vec<Result<(String, String), SseError>>;

    fn read<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Owned {
        let mut parser = SseParser::new(limit);
        let mut events = Vec::new();
        for mut chunk in chunks {
            loop {
                match parser.next(&mut chunk) {
                    Ok(Some(event)) => events.push(Ok((event.event.into(), event.data.into()))),
                    Ok(None) => break,
                    Err(error) => {
                        events.push(Err(error));
                        return events;
                    }
                }
            }
        }
        events
    }

    fn message(data: &str) -> Result<(String, String), SseError> {
        Ok(("message".into(), data.into()))
    }

    /// The standard's algorithm over the whole text at once.
    fn reference(bytes: &[u8]) -> Owned {
        let text = String::from_utf8_lossy(bytes.strip_prefix(BOM).unwrap_or(bytes)).into_owned();
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let Some((complete, _)) = text.rsplit_once('\n') else {
            return Vec::new();
        };
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), Vec::new());
        for line in complete.split('\n') {
            if line.is_empty() {
                if !data.is_empty() {
                    let name = if name.is_empty() {
                        "message".to_owned()
                    } else {
                        name
                    };
                    events.push(Ok((name, data.join("\n"))));
                }
                (name, data) = (String::new(), Vec::new());
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => data.push(value.to_owned()),
                "event" => name = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    #[test]
    fn the_examples_of_the_standard() {
        let stream = b"data: YHOO\ndata: +2\ndata: 10\n\n";
        assert_eq!(read(100, [&stream[..]]), [message("YHOO\n+2\n10")]);
        let stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        assert_eq!(
            read(100, [&stream[..]]),
            [
                message("first event"),
                message("second event"),
                message(" third event")
            ]
        );
        // An empty data line makes an event; the last block is not ended.
        assert_eq!(
            read(100, [&b"data\n\ndata\ndata\n\ndata:"[..]]),
            [message(""), message("\n")]
        );
        assert_eq!(
            read(100, [&b"data:test\n\ndata: test\n\n"[..]]),
            [message("test"), message("test")]
        );
    }

    #[test]
    fn names_comments_and_a_byte_order_mark() {
        let stream =
            "\u{FEFF}event: delta\n: ping\ndata: a\nunknown: x\n\nevent: lost\n\ndata: b\n\n";
        assert_eq!(
            read(100, [stream.as_bytes()]),
            [Ok(("delta".into(), "a".into())), message("b")]
        );
        // Only at the very beginning is it a mark.
        assert_eq!(
            read(100, ["data: a\n\n\u{FEFF}data: b\n\n".as_bytes()]),
            [message("a")]
        );
    }

    #[test]
    fn every_cut_gives_the_same_events() {
        let stream =
            "\u{FEFF}data: grüße\r\ndata: 🙂\r\n\r\nevent: x\rdata: y\r\rdata: z\n\n".as_bytes();
        let whole = read(100, [stream]);
        assert_eq!(
            whole,
            [
                message("grüße\n🙂"),
                Ok(("x".into(), "y".into())),
                message("z")
            ]
        );
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let chunks = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(read(100, chunks), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn the_length_of_an_event_is_bounded() {
        let too_long = Err(SseError::TooLong { limit: 20 });
        assert_eq!(
            read(20, [&b"data: 12345678901234\n\n"[..]]),
            [message("12345678901234")]
        );
        assert_eq!(
            read(20, [&b"data: ok\n\ndata: 123456789012345\n\n"[..]]),
            [message("ok"), too_long.clone()]
        );
        // Over many lines, and in a line that never ends.
        let lines = read(20, [&b"data: 1234567\ndata: 12345678\n\n"[..]]);
        assert_eq!(lines, std::slice::from_ref(&too_long));
        assert_eq!(read(20, std::iter::repeat_n(&b"x"[..], 100)), [too_long]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        assert_eq!(
            read(100, [&b"data: a\xFFb\n\ndata: c\n\n"[..]]),
            [message("a\u{FFFD}b"), message("c")]
        );
    }

    fn stream_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(&b"data: "[..]),
            Just(&b"data:"[..]),
            Just(&b"data"[..]),
            Just(&b"event: "[..]),
            Just(&b"id: 7"[..]),
            Just(&b": comment"[..]),
            Just(&b"\n"[..]),
            Just(&b"\r"[..]),
            Just(&b"\r\n"[..]),
            Just(&b"\n\n"[..]),
            Just(&b"{\"a\":1}"[..]),
            Just("ü🙂".as_bytes()),
            Just(&b"\xFF\xC3"[..]),
            Just(BOM),
            Just(&b" "[..]),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_chunking_gives_what_the_standard_says(
            bytes in stream_bytes(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(1 << 20, chunks.iter().copied()), reference(&bytes));
            // With a small limit, too, the chunking makes no difference.
            prop_assert_eq!(read(30, chunks.iter().copied()), read(30, [&bytes[..]]));
        }
    }
}
