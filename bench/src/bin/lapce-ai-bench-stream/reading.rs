//! The ways to read a stream, each from the body's chunks in hand to the text of each token.

use std::convert::Infallible;

use anyhow::{Context, Result};
use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures_util::{FutureExt, StreamExt, stream};
use lapce_ai_providers::Event;
use serde::Serialize;

use super::formats::{EVENT_STREAM, Format, Found, Stream};

/// A way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    Ours,
    Sseer,
    EventsourceStream,
    Lines,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "lapce-ai",
            Self::Sseer => "sseer, serde_json",
            Self::EventsourceStream => "eventsource-stream, serde_json",
            Self::Lines => "lines, serde_json",
        }
    }

    /// The ways that this format can be read in; ours is the first.
    pub(crate) fn of(format: &Format) -> &'static [Self] {
        if format.media_type == EVENT_STREAM {
            &[Self::Ours, Self::Sseer, Self::EventsourceStream]
        } else {
            &[Self::Ours, Self::Lines]
        }
    }

    /// Reads a whole stream.
    ///
    /// # Errors
    /// It could not be read, or something else came out than is in it.
    pub(crate) fn read(self, format: &Format, stream: &Stream) -> Result<()> {
        let found = match self {
            Self::Ours => ours(format, &stream.chunks)?,
            Self::Sseer => {
                let mut events = sseer::event_stream::EventStream::new(chunks(&stream.chunks));
                let mut found = Found::default();
                while let Some(event) = events.next().now_or_never().context("it waits")? {
                    found.add(&(format.text)(&event?.data)?);
                }
                found
            }
            Self::EventsourceStream => {
                let mut events = chunks(&stream.chunks).eventsource();
                let mut found = Found::default();
                while let Some(event) = events.next().now_or_never().context("it waits")? {
                    found.add(&(format.text)(&event?.data)?);
                }
                found
            }
            Self::Lines => lines(format, &stream.chunks)?,
        };
        found.check(stream)
    }
}

fn ours(format: &Format, chunks: &[Bytes]) -> Result<Found> {
    let mut decoding = format.decoding()?;
    let mut found = Found::default();
    for chunk in chunks {
        decoding.push(chunk);
        while let Some(event) = decoding.next() {
            if let Event::Text(text) = event? {
                found.add(text);
            }
        }
    }
    Ok(found)
}

/// As an HTTP client hands a body out.
fn chunks(chunks: &[Bytes]) -> impl stream::Stream<Item = Result<Bytes, Infallible>> + Unpin {
    stream::iter(chunks.iter().cloned().map(Ok))
}

fn lines(format: &Format, chunks: &[Bytes]) -> Result<Found> {
    let mut buffer = Vec::new();
    let mut found = Found::default();
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            found.add(&(format.text)(std::str::from_utf8(&line)?)?);
        }
    }
    Ok(found)
}
