//! The client's live streams, found by their id without hashing.

/// A table of streams whose ids this side chooses: the low bits of an id are its place in the table, the high bits
/// rise with every stream. So ids rise strictly, with gaps, as the protocol allows, and a look-up is an index.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// How many low bits of an id are the place.
    bits: u32,
    last_id: u64,
    most: usize,
}

#[derive(Debug)]
struct Slot<T> {
    id: u64,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// A table for at most `most` streams at once, of which it takes no more than a million: the number may be the
    /// peer's. Ids are above `after`.
    pub(crate) fn new(most: u32, after: u64) -> Self {
        let most = most.clamp(1, 1 << 20);
        let bits = most.next_power_of_two().trailing_zeros();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            bits,
            last_id: after,
            most: most as usize,
        }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// The highest id that was given.
    #[inline(always)]
    pub(crate) fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The place of an id, which no other live stream shares.
    #[inline(always)]
    pub(crate) fn place(&self, id: u64) -> usize {
        (id & ((1 << self.bits) - 1)) as usize
    }

    /// Records a stream and gives it its id. Not when the table [is full](Self::is_full).
    #[inline(always)]
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        debug_assert!(!self.is_full());
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { id: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let id = ((self.last_id >> self.bits) + 1) << self.bits | u64::from(place);
        self.last_id = id;
        self.slots[place as usize] = Slot {
            id,
            value: Some(value),
        };
        id
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let slot = self.slots.get(self.place(id))?;
        slot.value.as_ref().filter(|_| slot.id == id)
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let place = self.place(id);
        let slot = self.slots.get_mut(place)?;
        slot.value.as_mut().filter(|_| slot.id == id)
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let place = self.place(id);
        let slot = self.slots.get_mut(place).filter(|slot| slot.id == id)?;
        let value = slot.value.take()?;
        self.free.push(place as u32);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_whose_ids_rise(most in 1u32..9, after in 0u64..100, steps in proptest::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let mut slots = Slots::new(most, after);
            let mut model = BTreeMap::new();
            let mut last = after;
            for (insert, value) in steps {
                if insert && !slots.is_full() {
                    let id = slots.insert(value);
                    prop_assert!(id > last);
                    last = id;
                    model.insert(id, value);
                } else if let Some(&id) = model.keys().nth(usize::from(value) % model.len().max(1)) {
                    prop_assert_eq!(slots.get(id), model.get(&id));
                    prop_assert_eq!(slots.remove(id), model.remove(&id));
                    prop_assert_eq!(slots.remove(id), None);
                    prop_assert_eq!(slots.get_mut(id), None);
                }
                prop_assert_eq!(slots.len(), model.len());
                prop_assert_eq!(slots.is_full(), model.len() == most as usize);
                prop_assert_eq!(slots.last_id(), last);
                prop_assert_eq!(slots.get(u64::from(value)), model.get(&u64::from(value)));
            }
        }
    }
}
