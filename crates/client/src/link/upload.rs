//! Requests that go in pieces, as the ring has room and the daemon gave credit, and where their bytes are meanwhile.

use bytes::Bytes;
use lapce_ai_proto::Kind;
use lapce_ai_transport::{PIECE, TransportError, append};

use super::tx::Tx;

/// Where the bytes of a request that goes in pieces are.
#[derive(Debug, Default)]
pub(super) enum Upload {
    /// Copied: in the slot's `body`.
    #[default]
    Kept,
    /// Given away.
    Owned(Bytes),
    /// With whoever waits for the answer, who sends them while pumping, as [`Lent`]. So many.
    Lent(usize),
}

/// The bytes of a request that was begun as [lent](super::Outgoing::lent), for the length of a pump.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lent<'a> {
    pub(crate) index: u32,
    pub(crate) body: &'a [u8],
}

impl Tx {
    /// Bytes of a request that are not sent yet.
    fn unsent(&self, index: u32) -> usize {
        let slot = &self.slots[index as usize];
        let len = match &slot.upload {
            Upload::Kept => slot.body.len(),
            Upload::Owned(bytes) => bytes.len(),
            Upload::Lent(len) => *len,
        };
        len - slot.sent
    }

    /// The daemon gave credit for a request, or its bytes are at hand now: it is sent on in its turn.
    pub(super) fn resume(&mut self, index: u32) {
        if self.unsent(index) > 0 {
            let slot = &mut self.slots[index as usize];
            if !slot.uploading {
                slot.uploading = true;
                self.uploads.push_back(index);
            }
        }
    }

    /// [`resume`](Self::resume) for bytes that are at hand only now.
    pub(super) fn resume_lent(&mut self, lent: &Lent<'_>) {
        let slot = &self.slots[lent.index as usize];
        if slot.live && matches!(slot.upload, Upload::Lent(_)) {
            self.resume(lent.index);
        }
    }

    /// Copies what is not sent yet of bytes that were lent: whoever lent them will not pump.
    pub(super) fn keep(&mut self, lent: &Lent<'_>) {
        let slot = &mut self.slots[lent.index as usize];
        if slot.live && matches!(slot.upload, Upload::Lent(_)) {
            append(&mut slot.body, &lent.body[slot.sent..]);
            slot.upload = Upload::Kept;
            slot.sent = 0;
            self.resume(lent.index);
        }
    }

    /// Writes pieces until all that may be sent is, or one of so many bytes finds no room.
    pub(super) fn write_uploads(
        &mut self,
        lent: Option<Lent<'_>>,
    ) -> Result<Option<usize>, TransportError> {
        while let Some(&index) = self.uploads.front() {
            let left = self.unsent(index);
            let slot = &mut self.slots[index as usize];
            let body = match (&slot.upload, lent) {
                (Upload::Kept, _) => Some(&*slot.body),
                (Upload::Owned(bytes), _) => Some(&**bytes),
                (Upload::Lent(_), lent) => lent
                    .filter(|lent| lent.index == index)
                    .map(|lent| lent.body),
            };
            let sendable = body
                .filter(|_| slot.uploading)
                .zip(self.state.sendable(slot.id));
            let Some((body, sendable)) = sendable.filter(|(_, sendable)| *sendable > 0) else {
                slot.uploading = false;
                self.uploads.pop_front();
                continue;
            };
            let len = left.min(self.fragment.min(PIECE)).min(sendable as usize);
            let last = len == left;
            let kind = if last { Kind::End } else { Kind::Data };
            let piece = &body[slot.sent..slot.sent + len];
            if !self.writer.frame(kind, 0, 0, slot.id, &[], piece)? {
                return Ok(Some(len));
            }
            slot.sent += len;
            self.state.sent(slot.id, len as u32);
            self.uploads.pop_front();
            if last {
                slot.uploading = false;
            } else {
                self.uploads.push_back(index);
                // The daemon copies it out while we copy the next one in.
                self.flush_now()?;
            }
        }
        Ok(None)
    }
}
