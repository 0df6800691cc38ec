//! The headers of a message.

use super::EventStreamError;

/// The most headers that one message may have: real ones have three or four.
pub(super) const MAX_HEADERS: usize = 64;

/// The value of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderValue<'a> {
    /// True or false.
    Bool(bool),
    /// Eight bits.
    Byte(i8),
    /// 16 bits.
    Short(i16),
    /// 32 bits.
    Int(i32),
    /// 64 bits.
    Long(i64),
    /// Bytes, 65,535 at most.
    Bytes(&'a [u8]),
    /// A text, of 65,535 bytes at most.
    String(&'a str),
    /// Milliseconds since 1970.
    Timestamp(i64),
    /// A UUID.
    Uuid([u8; 16]),
}

/// Reads headers one after the other. After an error nothing more comes.
pub(super) fn headers(
    mut rest: &[u8],
) -> impl Iterator<Item = Result<(&str, HeaderValue<'_>), EventStreamError>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let header = read(&mut rest);
        if header.is_err() {
            rest = &[];
        }
        Some(header)
    })
}

fn read<'a>(rest: &mut &'a [u8]) -> Result<(&'a str, HeaderValue<'a>), EventStreamError> {
    let length = array::<1>(rest)?[0];
    if length == 0 {
        return Err(EventStreamError::Headers("a name is empty"));
    }
    let name = text(take(rest, length.into())?)?;
    let value = match array::<1>(rest)?[0] {
        0 => HeaderValue::Bool(true),
        1 => HeaderValue::Bool(false),
        2 => HeaderValue::Byte(i8::from_be_bytes(array(rest)?)),
        3 => HeaderValue::Short(i16::from_be_bytes(array(rest)?)),
        4 => HeaderValue::Int(i32::from_be_bytes(array(rest)?)),
        5 => HeaderValue::Long(i64::from_be_bytes(array(rest)?)),
        6 => HeaderValue::Bytes(with_length(rest)?),
        7 => HeaderValue::String(text(with_length(rest)?)?),
        8 => HeaderValue::Timestamp(i64::from_be_bytes(array(rest)?)),
        9 => HeaderValue::Uuid(array(rest)?),
        _ => return Err(EventStreamError::Headers("a value is of no known type")),
    };
    Ok((name, value))
}

fn with_length<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], EventStreamError> {
    let length = u16::from_be_bytes(array(rest)?);
    take(rest, length.into())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], EventStreamError> {
    let (taken, after) = rest
        .split_at_checked(length)
        .ok_or(EventStreamError::Headers("the last one is cut"))?;
    *rest = after;
    Ok(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], EventStreamError> {
    let mut array = [0; N];
    array.copy_from_slice(take(rest, N)?);
    Ok(array)
}

fn text(bytes: &[u8]) -> Result<&str, EventStreamError> {
    str::from_utf8(bytes).map_err(|_| EventStreamError::Headers("a text is no UTF-8"))
}
