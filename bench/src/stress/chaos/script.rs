//! What is asked of the server, and what must come back.

use std::time::Duration;

/// A streamed answer that its client knows beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Script {
    /// Which request this is; no two have the same.
    pub(super) nonce: u64,
    pub(super) items: u32,
    /// Bytes of each item beside its number and the run's.
    pub(super) length: u32,
    /// Before each item.
    pub(super) pause: Duration,
}

const LEN: usize = 8 + 4 + 4 + 8;
/// Before an item's bytes: its number and how often its request was run.
const HEAD: usize = 4 + 4;

impl Script {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(LEN);
        body.extend(self.nonce.to_le_bytes());
        body.extend(self.items.to_le_bytes());
        body.extend(self.length.to_le_bytes());
        body.extend((self.pause.as_micros() as u64).to_le_bytes());
        body
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        if body.len() != LEN {
            return None;
        }
        Some(Self {
            nonce: u64::from_le_bytes(body[..8].try_into().ok()?),
            items: u32::from_le_bytes(body[8..12].try_into().ok()?),
            length: u32::from_le_bytes(body[12..16].try_into().ok()?),
            pause: Duration::from_micros(u64::from_le_bytes(body[16..].try_into().ok()?)),
        })
    }

    pub(super) fn item(&self, number: u32, run: u32) -> Vec<u8> {
        let mut item = Vec::with_capacity(HEAD + self.length as usize);
        item.extend(number.to_le_bytes());
        item.extend(run.to_le_bytes());
        item.extend(pattern(self.seed(number), self.length as usize));
        item
    }

    fn seed(&self, number: u32) -> u64 {
        self.nonce ^ u64::from(number) << 40
    }

    /// Why this is not the item that must come now, if it is not.
    pub(super) fn check(&self, number: u32, item: &[u8]) -> Result<(), String> {
        let nonce = self.nonce;
        if item.len() != HEAD + self.length as usize {
            let len = item.len();
            return Err(format!(
                "item {number} of request {nonce:x} has {len} bytes"
            ));
        }
        let (head, bytes) = item.split_at(HEAD);
        if head[..4] != number.to_le_bytes() {
            return Err(format!(
                "item {number} of request {nonce:x} is another: {head:?}"
            ));
        }
        if head[4..] != 1_u32.to_le_bytes() {
            return Err(format!("request {nonce:x} was run again: {head:?}"));
        }
        if bytes != pattern(self.seed(number), bytes.len()) {
            return Err(format!(
                "item {number} of request {nonce:x} has others' bytes"
            ));
        }
        Ok(())
    }
}

/// Bytes that belong to this seed alone.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut at = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while bytes.len() < len {
        at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (at ^ (at >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bytes.extend((mixed ^ (mixed >> 32)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: Script = Script {
        nonce: 7,
        items: 3,
        length: 100,
        pause: Duration::from_micros(50),
    };

    #[test]
    fn a_script_comes_back_as_it_was() {
        assert_eq!(Script::decode(&SCRIPT.encode()), Some(SCRIPT));
        assert_eq!(Script::decode(b"else"), None);
    }

    #[test]
    fn every_harm_to_an_item_is_noticed() {
        let good = SCRIPT.item(1, 1);
        SCRIPT.check(1, &good).unwrap();
        SCRIPT.check(2, &good).unwrap_err();
        SCRIPT.check(1, &good[..107]).unwrap_err();
        let other = Script { nonce: 8, ..SCRIPT };
        other.check(1, &good).unwrap_err();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            SCRIPT.check(1, &bad).unwrap_err();
        }
        let again = SCRIPT.check(1, &SCRIPT.item(1, 2)).unwrap_err();
        assert!(again.contains("run again"), "{again}");
    }

    #[test]
    fn patterns_differ() {
        assert_eq!(pattern(1, 13).len(), 13);
        assert_ne!(pattern(1, 16), pattern(2, 16));
        assert_ne!(pattern(1, 16)[..8], pattern(1, 16)[8..]);
    }
}
