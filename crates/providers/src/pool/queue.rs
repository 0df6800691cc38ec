//! Those that wait for a provider, in the order in which they are let through. No clock.
//!
//! Interactive requests go first. Anyone may claim to be interactive, so while others wait they get one turn for three of
//! theirs, and of the others normal requests get three turns to two of bulk. These are the shares that the server gives to
//! connections; so nobody is starved, and bulk keeps at least a tenth.
//!
//! A full queue takes a more urgent request in the place of the last of the least urgent ones, as long as those have more
//! than a tenth of the places.

use std::collections::VecDeque;

use super::limits::Priority;

const LANES: usize = 3;
/// The part of the places that the more urgent cannot take from a lane.
const KEPT: usize = 10;

/// One of those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    lane: usize,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    lanes: [VecDeque<(u64, T)>; LANES],
    /// Interactive ones against the others.
    interactive: Split<3, 1>,
    /// Normal ones against bulk.
    normal: Split<3, 2>,
    next: u64,
}

/// Two sides that share turns where both wait: the favoured one gets `FAVOURED` for `OTHER` of the other's.
#[derive(Debug)]
struct Split<const FAVOURED: i64, const OTHER: i64> {
    /// `OTHER` times the turns that the favoured side may still take before it is the other's.
    credit: i64,
}

impl<const FAVOURED: i64, const OTHER: i64> Split<FAVOURED, OTHER> {
    const MOST: i64 = FAVOURED * OTHER;

    fn new() -> Self {
        Self { credit: Self::MOST }
    }

    fn favours(&self) -> bool {
        self.credit > 0
    }

    fn favoured_went(&mut self, other_waits: bool) {
        self.credit -= OTHER;
        // Who does not wait is owed nothing.
        if !other_waits {
            self.credit = Self::MOST;
        }
    }

    fn other_went(&mut self) {
        self.credit = (self.credit + FAVOURED).min(Self::MOST);
    }
}

fn lane_of(priority: Priority) -> usize {
    match priority {
        Priority::Interactive => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            lanes: std::array::from_fn(|_| VecDeque::new()),
            interactive: Split::new(),
            normal: Split::new(),
            next: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    /// How many wait in front of one that would come now.
    pub(super) fn before(&self, priority: Priority) -> usize {
        let lanes = &self.lanes[..=lane_of(priority)];
        lanes.iter().map(VecDeque::len).sum()
    }

    /// Adds one behind those of its kind.
    pub(super) fn push(&mut self, priority: Priority, waiter: T) -> Place {
        let place = Place {
            lane: lane_of(priority),
            number: self.next,
        };
        self.next += 1;
        self.lanes[place.lane].push_back((place.number, waiter));
        place
    }

    /// Whether this one waits.
    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        let at = self.find(place)?;
        self.lanes[place.lane].get_mut(at).map(|(_, waiter)| waiter)
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let at = self.find(place)?;
        self.lanes[place.lane].remove(at).map(|(_, waiter)| waiter)
    }

    /// Makes room for a more urgent one in a queue of so many places, if that is right.
    pub(super) fn displace(&mut self, priority: Priority, places: usize) -> Option<(Place, T)> {
        let kept = (places / KEPT).max(1);
        let mut lanes = (lane_of(priority) + 1..LANES).rev();
        let lane = lanes.find(|lane| self.lanes[*lane].len() > kept)?;
        let (number, waiter) = self.lanes[lane].pop_back()?;
        Some((Place { lane, number }, waiter))
    }

    /// All of them in the order of their turns now.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (Place, &T)> {
        let order = match (self.interactive.favours(), self.normal.favours()) {
            (true, true) => [0, 1, 2],
            (true, false) => [0, 2, 1],
            (false, true) => [1, 2, 0],
            (false, false) => [2, 1, 0],
        };
        order.into_iter().flat_map(move |lane| {
            let waiters = self.lanes[lane].iter();
            waiters.map(move |(number, waiter)| {
                let number = *number;
                (Place { lane, number }, waiter)
            })
        })
    }

    /// Lets one through: it has had its turn.
    pub(super) fn let_through(&mut self, place: Place) -> Option<T> {
        let waiter = self.remove(place)?;
        let waits = |lane: usize| !self.lanes[lane].is_empty();
        let (normal, bulk) = (waits(1), waits(2));
        match place.lane {
            0 => self.interactive.favoured_went(normal || bulk),
            1 => {
                self.interactive.other_went();
                self.normal.favoured_went(bulk);
            }
            _ => {
                self.interactive.other_went();
                self.normal.other_went();
            }
        }
        Some(waiter)
    }

    fn find(&self, place: Place) -> Option<usize> {
        // Numbers rise along a lane.
        let lane = &self.lanes[place.lane];
        let at = lane.partition_point(|(number, _)| *number < place.number);
        (lane.get(at)?.0 == place.number).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use Priority::{Bulk, Interactive, Normal};
    use proptest::prelude::*;

    use super::*;

    fn next(queue: &mut Queue<Priority>) -> Option<Priority> {
        let (place, _) = queue.in_order().next()?;
        queue.let_through(place)
    }

    #[test]
    fn the_urgent_go_first_and_nobody_starves() {
        let mut queue = Queue::new();
        for priority in [Bulk, Normal, Interactive] {
            for _ in 0..300 {
                queue.push(priority, priority);
            }
        }
        assert_eq!(next(&mut queue), Some(Interactive));
        let mut turns = [1, 0, 0];
        for _ in 1..200 {
            turns[lane_of(next(&mut queue).unwrap())] += 1;
        }
        // 3 in 4, then 3 to 2 of the rest, but for the turn that the favoured have first.
        assert_eq!(turns, [150, 31, 19]);
    }

    #[test]
    fn who_comes_to_an_empty_lane_is_owed_nothing() {
        let mut queue = Queue::new();
        for _ in 0..50 {
            queue.push(Interactive, Interactive);
            assert_eq!(next(&mut queue), Some(Interactive));
        }
        queue.push(Bulk, Bulk);
        for _ in 0..3 {
            queue.push(Interactive, Interactive);
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order, [Interactive, Interactive, Interactive, Bulk]);
    }

    #[test]
    fn the_more_urgent_take_places_but_not_all() {
        let mut queue = Queue::new();
        let places: Vec<_> = (0..20).map(|_| queue.push(Bulk, Bulk)).collect();
        assert!(queue.displace(Bulk, 20).is_none());
        let mut taken = Vec::new();
        while let Some((place, Bulk)) = queue.displace(Interactive, 20) {
            taken.push(place);
            queue.push(Interactive, Interactive);
        }
        let last: Vec<_> = places[2..].iter().rev().copied().collect();
        assert_eq!(taken, last, "the last come go first, and a tenth stays");
        assert_eq!((queue.len(), queue.before(Normal)), (20, 18));
    }

    proptest! {
        #[test]
        fn nobody_is_lost(steps in prop::collection::vec((0..3u8, 0..3usize, any::<prop::sample::Index>()), 0..200)) {
            let mut queue = Queue::new();
            let mut waiting = Vec::new();
            for (step, lane, index) in steps {
                match step {
                    0 => {
                        let priority = [Interactive, Normal, Bulk][lane];
                        waiting.push(queue.push(priority, ()));
                    }
                    1 if !waiting.is_empty() => {
                        let place = waiting.swap_remove(index.index(waiting.len()));
                        prop_assert!(queue.remove(place).is_some());
                        prop_assert!(queue.remove(place).is_none());
                    }
                    _ => {
                        let first = queue.in_order().next().map(|(place, ())| place);
                        if let Some(place) = first {
                            prop_assert!(queue.let_through(place).is_some());
                            waiting.retain(|other| *other != place);
                        }
                    }
                }
                let mut all: Vec<_> = queue.in_order().map(|(place, ())| place).collect();
                all.sort_unstable();
                waiting.sort_unstable();
                prop_assert_eq!(&all, &waiting);
            }
        }
    }
}
