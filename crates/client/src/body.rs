//! What is sent.

use std::ops::Deref;

use bytes::Bytes;

/// The bytes of a request: lent for as long as it is under way, or given away.
///
/// Both are sent without a copy of their own where that can be: a lent body of the blocking client's
/// [`call`](crate::BlockingClient::call), and any that was given away. Otherwise what does not fit one frame is copied first.
///
/// ```
/// use lapce_ai_client::Body;
/// let text = String::from("lent");
/// assert_eq!(*Body::from(text.as_bytes()), *b"lent");
/// assert_eq!(*Body::from(vec![1, 2]), [1, 2]);
/// ```
#[derive(Debug, Clone)]
pub enum Body<'a> {
    /// The caller's memory.
    Lent(&'a [u8]),
    /// Memory that nobody changes any more.
    Owned(Bytes),
}

impl Body<'_> {
    /// The bytes, copied unless they were given away.
    pub(crate) fn into_owned(self) -> Body<'static> {
        Body::Owned(match self {
            Self::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        })
    }
}

impl Deref for Body<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Body<'a> {
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        Self::Lent(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Body<'a> {
    #[inline]
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Lent(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Body<'a> {
    #[inline]
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Lent(bytes)
    }
}

impl From<Vec<u8>> for Body<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes.into())
    }
}

impl From<Bytes> for Body<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Owned(bytes)
    }
}
