//! AWS's event stream, written for the tests.

use lapce_ai_providers::HeaderValue;

/// A message with these headers and payload.
pub fn message(headers: &[(&str, HeaderValue<'_>)], payload: &[u8]) -> Vec<u8> {
    let head: Vec<u8> = headers
        .iter()
        .flat_map(|(name, value)| header(name, *value))
        .collect();
    framed(&head, payload)
}

/// A message with these bytes for its headers: right lengths and sums, whatever the headers are.
pub fn framed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let total = 12 + head.len() + payload.len() + 4;
    prelude(total as u32, head.len() as u32, head, payload)
}

/// A message that claims these lengths, with right sums.
pub fn prelude(total: u32, headers: u32, head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = total.to_be_bytes().to_vec();
    bytes.extend_from_slice(&headers.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

pub fn header(name: &str, value: HeaderValue<'_>) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let (kind, value) = match value {
        HeaderValue::Bool(value) => (u8::from(!value), Vec::new()),
        HeaderValue::Byte(value) => (2, value.to_be_bytes().into()),
        HeaderValue::Short(value) => (3, value.to_be_bytes().into()),
        HeaderValue::Int(value) => (4, value.to_be_bytes().into()),
        HeaderValue::Long(value) => (5, value.to_be_bytes().into()),
        HeaderValue::Bytes(value) => (6, with_length(value)),
        HeaderValue::String(value) => (7, with_length(value.as_bytes())),
        HeaderValue::Timestamp(value) => (8, value.to_be_bytes().into()),
        HeaderValue::Uuid(value) => (9, value.into()),
    };
    bytes.push(kind);
    bytes.extend_from_slice(&value);
    bytes
}

/// An event as Bedrock sends it; `!` before its type makes it an exception.
pub fn event(name: &str, payload: &str) -> Vec<u8> {
    let (kind, of_kind, name) = match name.strip_prefix('!') {
        Some(name) => ("exception", ":exception-type", name),
        None => ("event", ":event-type", name),
    };
    message(
        &[
            (of_kind, HeaderValue::String(name)),
            (":content-type", HeaderValue::String("application/json")),
            (":message-type", HeaderValue::String(kind)),
        ],
        payload.as_bytes(),
    )
}

/// A stream, one event a line: its type and its payload.
pub fn stream(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .flat_map(|line| {
            let (name, payload) = line.split_once(' ').unwrap();
            event(name, payload.trim())
        })
        .collect()
}
