//! Bodies that come compressed. None is asked for (`accept-encoding: identity`), since it would only hold up the tokens;
//! some proxies compress all the same.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use http::header::CONTENT_ENCODING;
use http::response::Parts;

use crate::error::ProviderError;
use crate::wire::malformed;

/// How much is unpacked at once: what comes of it is at most a thousand times as long.
const PIECE: usize = 1 << 10;

/// Takes a body apart into what the provider wrote.
pub(super) struct Unpacker(Option<Box<MultiGzDecoder<Vec<u8>>>>);

impl Unpacker {
    /// For the body of this head.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) for encodings other than gzip.
    pub(super) fn of(head: &Parts) -> Result<Self, ProviderError> {
        let value = head.headers.get(CONTENT_ENCODING);
        let encoding = value.map_or(Ok(""), |value| value.to_str());
        match encoding.unwrap_or("?").trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self(None)),
            "gzip" | "x-gzip" => Ok(Self(Some(Box::new(MultiGzDecoder::new(Vec::new()))))),
            other => Err(malformed(format!(
                "the answer is packed with `{other}`, which was not asked for"
            ))),
        }
    }

    /// Whether the body is what the provider wrote.
    pub(super) fn is_plain(&self) -> bool {
        self.0.is_none()
    }

    /// Gives what is in `chunk` to `take`, in pieces. It says whether it wants more. Returns how many bytes of `chunk` that
    /// were: the next call goes on behind them.
    ///
    /// # Errors
    ///
    /// [`MalformedResponse`](crate::ErrorKind::MalformedResponse) when the body is not packed as its head says.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<usize, ProviderError> {
        let Some(decoder) = &mut self.0 else {
            take(chunk);
            return Ok(chunk.len());
        };
        let mut taken = 0;
        for piece in chunk.chunks(PIECE) {
            // What has come is to be seen at once, so nothing may stay in the decoder's buffer.
            let written = decoder.write_all(piece).and_then(|()| decoder.flush());
            written.map_err(|error| {
                malformed(format!(
                    "the answer is not the gzip that it should be: {error}"
                ))
            })?;
            let unpacked = decoder.get_mut();
            taken += piece.len();
            let goes_on = take(unpacked);
            unpacked.clear();
            if !goes_on {
                break;
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::error::ErrorKind;

    fn unpacker(encoding: &str) -> Result<Unpacker, ProviderError> {
        let head = http::Response::builder().header(CONTENT_ENCODING, encoding);
        Unpacker::of(&head.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn what_was_flushed_is_seen_at_once() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut unpacker = unpacker("GZIP").unwrap();
        for text in ["data: a\n\n", "data: b\n\n"] {
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.flush().unwrap();
            let chunk = std::mem::take(encoder.get_mut());
            let mut seen = Vec::new();
            for piece in chunk.chunks(1) {
                let taken = unpacker.push(piece, |bytes| {
                    seen.extend_from_slice(bytes);
                    true
                });
                taken.unwrap();
            }
            assert_eq!(seen, text.as_bytes());
        }
    }

    #[test]
    fn a_bomb_goes_off_in_small_pieces() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; 64 << 20]).unwrap();
        let bomb = encoder.finish().unwrap();
        let mut most = 0;
        let mut whole = 0;
        let taken = unpacker("gzip")
            .unwrap()
            .push(&bomb, |bytes| {
                most = most.max(bytes.len());
                whole += bytes.len();
                whole < 8 << 20
            })
            .unwrap();
        assert!(most <= 2 << 20, "{most}");
        assert!((8 << 20..12 << 20).contains(&whole), "{whole}");
        assert!(taken < bomb.len(), "{taken}: what comes behind is left");
    }

    #[test]
    fn other_words_and_other_bytes_are_refused() {
        for word in ["br", "zstd", "deflate", "gzip, br"] {
            let error = unpacker(word).err().unwrap();
            assert_eq!(error.kind, ErrorKind::MalformedResponse);
            assert!(error.message.contains(word), "{error}");
        }
        let mut gzip = unpacker("x-gzip").unwrap();
        let error = gzip.push(b"data: plain\n\n", |_| true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::MalformedResponse);
        let mut plain = unpacker("identity").unwrap();
        let mut seen = Vec::new();
        plain
            .push(b"ab", |bytes| {
                seen.extend_from_slice(bytes);
                true
            })
            .unwrap();
        assert_eq!(seen, b"ab");
    }
}
