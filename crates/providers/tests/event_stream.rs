//! AWS's event stream, cut anywhere. What botocore makes of the same bytes is in `botocore.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use lapce_ai_providers::{EventStreamError, EventStreamParser, HeaderValue};
use proptest::prelude::*;
use support::aws::{framed, header, message, prelude};

type Owned = Vec<(Vec<(String, String)>, Vec<u8>)>;

fn read<'a>(
    limit: usize,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Owned, Option<EventStreamError>) {
    let mut parser = EventStreamParser::new(limit);
    let mut messages = Vec::new();
    for mut chunk in chunks {
        loop {
            match parser.next(&mut chunk) {
                Ok(Some(message)) => {
                    let headers = message.headers();
                    let headers = headers.map(|(name, value)| (name.into(), format!("{value:?}")));
                    messages.push((headers.collect(), message.payload.to_vec()));
                }
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

#[test]
fn limits_are_exact() {
    let whole = message(&[("a", HeaderValue::String("b"))], b"payload");
    assert_eq!(read(whole.len(), [&whole[..]]).1, None);
    let limit = whole.len() - 1;
    assert_eq!(
        read(limit, [&whole[..]]).1,
        Some(EventStreamError::TooLong { limit })
    );
    // The lengths alone are enough to be refused.
    assert_eq!(
        read(limit, [&whole[..12]]).1,
        Some(EventStreamError::TooLong { limit })
    );
    for (total, headers) in [
        (0, 0),
        (15, 0),
        (16, 1),
        (u32::MAX, u32::MAX),
        (1 << 20, (128 << 10) + 1),
    ] {
        let error = read(usize::MAX, [&prelude(total, headers, b"", b"")[..]]).1;
        assert_eq!(error, Some(EventStreamError::Lengths), "{total} {headers}");
    }
    let head = |count: u8| -> Vec<u8> {
        let names: Vec<_> = (0..count)
            .map(|number| format!("header {number}"))
            .collect();
        names
            .iter()
            .flat_map(|name| header(name, HeaderValue::Bool(true)))
            .collect()
    };
    assert_eq!(read(1 << 20, [&framed(&head(64), b"")[..]]).1, None);
    let error = read(1 << 20, [&framed(&head(65), b"")[..]]).1;
    assert!(
        matches!(error, Some(EventStreamError::Headers(_))),
        "{error:?}"
    );
}

#[test]
fn texts_are_found_by_name_and_type() {
    let bytes = message(
        &[
            (":event-type", HeaderValue::Int(1)),
            (":message-type", HeaderValue::String("event")),
        ],
        b"",
    );
    let mut parser = EventStreamParser::new(1000);
    let message = parser.next(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(message.text(":message-type"), Some("event"));
    assert_eq!(
        (message.text(":event-type"), message.text("x")),
        (None, None)
    );
}

fn value() -> impl Strategy<Value = HeaderValue<'static>> {
    prop_oneof![
        any::<bool>().prop_map(HeaderValue::Bool),
        any::<i8>().prop_map(HeaderValue::Byte),
        any::<i16>().prop_map(HeaderValue::Short),
        any::<i32>().prop_map(HeaderValue::Int),
        any::<i64>().prop_map(HeaderValue::Long),
        any::<i64>().prop_map(HeaderValue::Timestamp),
        any::<[u8; 16]>().prop_map(HeaderValue::Uuid),
        prop::sample::select(vec!["", "event", "Grüße 🙂"]).prop_map(HeaderValue::String),
        prop::sample::select(vec![&b""[..], b"\0\xff"]).prop_map(HeaderValue::Bytes),
    ]
}

proptest! {
    #[test]
    fn as_written_wherever_it_is_cut(
        values in prop::collection::vec(value(), 0..6),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(1_usize..100, 1..20),
    ) {
        let names: Vec<_> = (0..values.len()).map(|number| format!("h{number}")).collect();
        let headers: Vec<_> = names.iter().map(String::as_str).zip(values).collect();
        let one = message(&headers, &payload);
        let bytes = [&one[..], &message(&[], b""), &one].concat();
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        let written: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), format!("{value:?}"))).collect();
        let expected = vec![(written.clone(), payload.clone()), (Vec::new(), Vec::new()), (written, payload)];
        prop_assert_eq!(read(1 << 20, chunks), (expected, None));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(1 << 20, bytes.chunks(7));
        // With right sums, so that the headers are reached.
        let _ = read(1 << 20, [&framed(&bytes, b"payload")[..]]);
    }
}
