//! The connections of a reactor, by index and by token.

use super::connection::Connection;

/// Connections by index; a token is index and generation, so that a late event never meets a newcomer.
#[derive(Default)]
pub(super) struct Connections {
    slots: Vec<(u32, Option<Box<Connection>>)>,
    free: Vec<u32>,
    live: usize,
}

impl Connections {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The place and token that the next connection will have.
    pub(super) fn next(&mut self) -> (u32, u64) {
        let index = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.0);
        (index, u64::from(generation) << 32 | u64::from(index))
    }

    pub(super) fn insert(&mut self, connection: Box<Connection>) {
        self.live += 1;
        match self.free.pop() {
            Some(index) => self.slots[index as usize].1 = Some(connection),
            None => self.slots.push((0, Some(connection))),
        }
    }

    pub(super) fn index(&self, token: u64) -> Option<u32> {
        let index = token as u32;
        let (generation, connection) = self.slots.get(index as usize)?;
        (u64::from(*generation) == token >> 32 && connection.is_some()).then_some(index)
    }

    pub(super) fn get(&mut self, index: u32) -> Option<&mut Connection> {
        self.slots.get_mut(index as usize)?.1.as_deref_mut()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Box<Connection>> {
        let slot = self.slots.get_mut(index as usize)?;
        let connection = slot.1.take()?;
        // The two highest tokens are the reactor's own; a generation never gets there.
        slot.0 = slot.0.wrapping_add(1) & 0x7FFF_FFFF;
        self.free.push(index);
        self.live -= 1;
        Some(connection)
    }

    pub(super) fn indices(&self) -> Vec<u32> {
        (0..self.slots.len() as u32)
            .filter(|i| self.slots[*i as usize].1.is_some())
            .collect()
    }
}
