//! A picture in a prompt.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapce_ai_proto::ai::Part;

use crate::failure::Failure;

/// The picture in the file, or at the address, `image`.
pub(super) fn part(image: &str) -> Result<Part, Failure> {
    let (media_type, data, url) = if image.starts_with("https://") || image.starts_with("http://") {
        (None, None, Some(image.to_owned()))
    } else {
        let wrong = |why: String| Failure::Usage(format!("--image {image}: {why}"));
        let bytes = fs::read(image).map_err(|error| wrong(error.to_string()))?;
        let media_type = media_type(&bytes)
            .ok_or_else(|| wrong("it is no PNG, JPEG, GIF or WebP picture".to_owned()))?;
        (
            Some(media_type.to_owned()),
            Some(STANDARD.encode(bytes)),
            None,
        )
    };
    Ok(Part::Image {
        media_type,
        data,
        url,
        detail: None,
        cache_control: None,
    })
}

/// The kind of a picture, by its first bytes: those four that every provider with eyes takes.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => "image/png",
        [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => "image/gif",
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => "image/webp",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        for (bytes, kind) in [
            (&b"\x89PNG\r\n\x1a\nrest"[..], Some("image/png")),
            (b"\xFF\xD8\xFF\xE0", Some("image/jpeg")),
            (b"GIF89a", Some("image/gif")),
            (b"RIFF\x01\x02\x03\x04WEBPVP8 ", Some("image/webp")),
            (b"RIFF\x01\x02\x03\x04WAVE", None),
            (b"<svg>", None),
            (b"", None),
        ] {
            assert_eq!(media_type(bytes), kind);
        }
    }
}
