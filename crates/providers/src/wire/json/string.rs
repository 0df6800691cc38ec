//! JSON strings without allocation: a token is borrowed where it has no escapes, else decoded into a kept buffer.
//!
//! serde's `Cow<str>` would allocate for each token with a line feed in it, and code is full of those.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// The text of a JSON string, `None` for any other value. `scratch` is overwritten if the string has escapes.
pub(crate) fn string<'a>(raw: &'a RawValue, scratch: &'a mut String) -> Option<&'a str> {
    let inner = quoted(raw)?;
    if !inner.contains('\\') {
        return Some(inner);
    }
    scratch.clear();
    unescape(inner, scratch);
    Some(scratch)
}

/// The same for strings that have no escapes in practice (ids, names): allocates if they do.
pub(crate) fn cow(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = quoted(raw)?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let mut text = String::new();
    unescape(inner, &mut text);
    Some(Cow::Owned(text))
}

fn quoted(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"')
}

/// Decodes the escapes of a string that serde has found to be JSON. Half a surrogate pair becomes U+FFFD.
fn unescape(mut text: &str, out: &mut String) {
    while let Some(at) = memchr::memchr(b'\\', text.as_bytes()) {
        out.push_str(&text[..at]);
        let escaped = text[at + 1..].chars().next();
        let Some(escaped) = escaped else { return };
        text = &text[at + 1 + escaped.len_utf8()..];
        match escaped {
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'u' => {
                let Some(first) = unit(&mut text) else {
                    out.push(char::REPLACEMENT_CHARACTER);
                    continue;
                };
                out.push(character(first, &mut text));
            }
            other => out.push(other),
        }
    }
    out.push_str(text);
}

/// Four hexadecimal digits.
fn unit(text: &mut &str) -> Option<u16> {
    let digits = text.get(..4)?;
    let unit = u16::from_str_radix(digits, 16).ok()?;
    *text = &text[4..];
    Some(unit)
}

fn character(first: u16, text: &mut &str) -> char {
    if let 0xD800..0xDC00 = first
        && let Some(mut rest) = text.strip_prefix("\\u")
        && let Some(second @ 0xDC00..0xE000) = unit(&mut rest)
    {
        *text = rest;
        let point = 0x10000 + ((u32::from(first) - 0xD800) << 10) + (u32::from(second) - 0xDC00);
        return char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
    }
    char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(json: &str) -> Option<String> {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        let cow = cow(raw).map(Cow::into_owned);
        let mut scratch = "left over".to_owned();
        assert_eq!(string(raw, &mut scratch), cow.as_deref());
        cow
    }

    #[test]
    fn escapes() {
        assert_eq!(
            decode(r#""\"\\\/\b\f\n\r\t\u00e9""#).unwrap(),
            "\"\\/\u{8}\u{c}\n\r\té"
        );
        assert_eq!(decode(r#""a\ud83d\ude42b""#).unwrap(), "a🙂b");
        assert_eq!(decode(r#""""#).unwrap(), "");
        assert_eq!(decode("[1]"), None);
        assert_eq!(decode("12"), None);
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced() {
        // serde accepts these as raw values; whether it does is not the point, the decoder must not panic.
        for (json, text) in [
            (r#""\ud83d""#, "\u{FFFD}"),
            (r#""\ude42x""#, "\u{FFFD}x"),
            (r#""\ud83dx\n""#, "\u{FFFD}x\n"),
            (r#""\ud83d\u0041""#, "\u{FFFD}A"),
        ] {
            assert_eq!(decode(json).unwrap(), text);
        }
    }

    proptest! {
        #[test]
        fn as_serde_does(text in any::<String>(), ascii in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                json = json.chars().map(|c| {
                    if c.is_ascii() { return c.to_string() }
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }).collect();
            }
            prop_assert_eq!(decode(&json).unwrap(), text);
        }
    }
}
