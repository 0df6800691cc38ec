//! Hostile answers against every provider's decoders, and what must hold whatever comes. The property tests and the fuzz
//! target `provider_decoders` share it.
//!
//! An input is the name of a profile and a line feed, a byte that says what the bytes pretend to be, a byte that says in
//! which pieces they come, and the bytes.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::response::Parts;
use lapce_ai_providers::{Decoding, ErrorKind, Event, PROFILES, Settings, Wire};

/// The most bytes that a decoder may keep here.
pub(crate) const LIMIT: usize = 64 << 10;

/// What an answer pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The answer of a chat, of this media type.
    Chat(&'static str),
    Models,
    Embeddings,
    Count,
    /// An answer of this status.
    Error(u16),
}

/// All kinds; a byte chooses one.
pub(crate) const KINDS: &[Kind] = &[
    Kind::Chat("text/event-stream"),
    Kind::Chat("application/json"),
    Kind::Chat("application/vnd.amazon.eventstream"),
    Kind::Chat("application/x-ndjson"),
    Kind::Chat(""),
    Kind::Chat("text/html"),
    Kind::Models,
    Kind::Embeddings,
    Kind::Count,
    Kind::Error(400),
    Kind::Error(429),
    Kind::Error(500),
    Kind::Error(308),
];

static WIRES: LazyLock<Vec<(&str, Arc<dyn Wire>)>> = LazyLock::new(|| {
    let settings = |base_url: &str| Settings {
        base_url: base_url
            .is_empty()
            .then(|| "https://base.example".to_owned()),
        key: Some("sk-a-secret-of-the-tests".into()),
        region: Some("us-east-1".into()),
        project: Some("p1".into()),
        ..Settings::default()
    };
    let wires = PROFILES.iter().map(|profile| {
        let wire = profile.wire(&settings(profile.base_url));
        (profile.name, wire.expect("these settings will do"))
    });
    wires.collect()
});

/// The wire format of this profile; of an unknown name, some profile's.
pub(crate) fn wire(name: &[u8]) -> &'static dyn Wire {
    let known = WIRES
        .iter()
        .find(|(known, _)| known.as_bytes() == name)
        .or_else(|| {
            let sum: usize = name.iter().map(|byte| usize::from(*byte)).sum();
            WIRES.get(sum % WIRES.len())
        });
    &*known.expect("there are profiles").1
}

/// The input that has these parts.
pub(crate) fn input(profile: &str, kind: Kind, piece: u8, body: &[u8]) -> Vec<u8> {
    let kind = KINDS.iter().position(|known| *known == kind);
    let kind = u8::try_from(kind.expect("it is one of KINDS")).expect("they are few");
    [profile.as_bytes(), b"\n", &[kind, piece], body].concat()
}

/// Runs an input.
pub(crate) fn run(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (name, rest) = input.split_at(end.unwrap_or(0));
    let rest = rest.strip_prefix(b"\n").unwrap_or(rest);
    let [kind, piece, body @ ..] = rest else {
        return;
    };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    answer(
        wire(name),
        kind,
        body.chunks(usize::from(*piece).max(1)),
        body,
    );
}

/// Feeds one answer.
pub(crate) fn answer<'a>(
    wire: &dyn Wire,
    kind: Kind,
    pieces: impl Iterator<Item = &'a [u8]>,
    body: &[u8],
) {
    let refused = match kind {
        Kind::Chat(media_type) => {
            chat(wire, media_type, pieces, body.len());
            return;
        }
        Kind::Models => wire.decode_models(body).err(),
        Kind::Embeddings => wire.decode_embeddings(body).err(),
        Kind::Count => wire.decode_count(body).err(),
        Kind::Error(status) => {
            let error = wire.decode_error(&head(status, ""), body, SystemTime::UNIX_EPOCH);
            assert_eq!(error.status, Some(status));
            Some(error)
        }
    };
    if let Some(error) = refused {
        // However long what it was made of.
        assert!(error.to_string().len() < 4096, "{error}");
    }
}

/// What a stream of events may be, whatever it is made of.
fn chat<'a>(
    wire: &dyn Wire,
    media_type: &str,
    pieces: impl Iterator<Item = &'a [u8]>,
    length: usize,
) {
    let decoder = match wire.decoder(&head(200, media_type), LIMIT) {
        Ok(decoder) => decoder,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::MalformedResponse);
            return;
        }
    };
    let mut decoding = Decoding::new(decoder);
    let mut seen = Seen::default();
    for piece in pieces {
        decoding.push(piece);
        seen.take(&mut decoding);
    }
    decoding.finish();
    seen.take(&mut decoding);
    assert!(decoding.is_ended());
    // Each answer has one end.
    assert_eq!(seen.finishes + seen.errors, 1);
    decoding.push(b"data: {}\n\n");
    decoding.finish();
    assert!(decoding.next().is_none(), "the end is the end");
    // Nothing is made out of nothing.
    assert!(
        seen.events <= 4 * length + 16,
        "{} of {length}",
        seen.events
    );
    assert!(
        seen.bytes <= 16 * length + 1024,
        "{} of {length}",
        seen.bytes
    );
}

#[derive(Default)]
struct Seen {
    events: usize,
    bytes: usize,
    usages: usize,
    finishes: usize,
    errors: usize,
}

impl Seen {
    fn take(&mut self, decoding: &mut Decoding) {
        while let Some(event) = decoding.next() {
            assert_eq!(self.finishes + self.errors, 0, "after the end: {event:?}");
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    assert!(error.to_string().len() < 4096, "{error}");
                    self.errors += 1;
                    continue;
                }
            };
            assert!(
                self.usages == 0 || matches!(event, Event::Finish(_)),
                "after the usage: {event:?}"
            );
            assert_eq!(
                matches!(event, Event::Start { .. }),
                self.events == 0,
                "the start comes first, and once: {event:?}"
            );
            self.events += 1;
            let len = |text: Option<&str>| text.map_or(0, str::len);
            self.bytes += match event {
                Event::Text(text) => {
                    assert!(!text.is_empty());
                    text.len()
                }
                Event::RedactedReasoning(text) => text.len(),
                Event::Reasoning { text, signature } => text.len() + len(signature),
                Event::ToolCall(delta) => {
                    delta.arguments.len() + len(delta.id) + len(delta.name) + len(delta.signature)
                }
                Event::Citation(citation) => {
                    len(citation.url) + len(citation.title) + len(citation.quote)
                }
                Event::Start { id, model } => len(id) + len(model),
                Event::Usage(_) | Event::Finish(_) => 0,
                Event::Continued { .. } => unreachable!("a decoder knows of no other: {event:?}"),
            };
            self.usages += usize::from(matches!(event, Event::Usage(_)));
            self.finishes += usize::from(matches!(event, Event::Finish(_)));
        }
    }
}

fn head(status: u16, media_type: &str) -> Parts {
    let mut head = http::Response::builder().status(status);
    if !media_type.is_empty() {
        head = head.header("content-type", media_type);
    }
    head.body(()).expect("these are headers").into_parts().0
}
