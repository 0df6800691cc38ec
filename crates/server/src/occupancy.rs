//! Who is in: how many connections there are, and which reactor has how many.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts places. Everything in it changes when somebody comes or goes, never with a message, so a lock will do.
#[derive(Debug)]
pub(crate) struct Occupancy(Mutex<Taken>);

#[derive(Debug)]
struct Taken {
    handshakes: usize,
    /// Connections of each reactor.
    of: Vec<usize>,
    /// Since when there has been no connection.
    nobody_since: Option<Instant>,
}

impl Taken {
    fn connections(&self) -> usize {
        self.of.iter().sum()
    }
}

/// A client's place. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Place {
    occupancy: Arc<Occupancy>,
    /// `None` while it shakes hands.
    reactor: Option<usize>,
}

impl Occupancy {
    pub(crate) fn new(reactors: usize) -> Self {
        Self(Mutex::new(Taken {
            handshakes: 0,
            of: vec![0; reactors],
            nobody_since: Some(Instant::now()),
        }))
    }

    /// A place for a handshake, if fewer than `most` are taken in all.
    ///
    /// # Errors
    /// The number of connections.
    pub(crate) fn enter(self: &Arc<Self>, most: usize) -> Result<Place, usize> {
        let mut taken = self.lock();
        let connections = taken.connections();
        if connections + taken.handshakes >= most {
            return Err(connections);
        }
        taken.handshakes += 1;
        drop(taken);
        Ok(Place {
            occupancy: Arc::clone(self),
            reactor: None,
        })
    }

    /// Whether nobody is connected or about to be.
    pub(crate) fn is_empty(&self) -> bool {
        let taken = self.lock();
        taken.handshakes == 0 && taken.connections() == 0
    }

    /// Connections of each reactor.
    pub(crate) fn of_reactors(&self) -> Vec<usize> {
        self.lock().of.clone()
    }

    /// Since when there has been no connection; `None`: there is one.
    pub(crate) fn nobody_since(&self) -> Option<Instant> {
        self.lock().nobody_since
    }

    /// Whether there has been no connection for so long. Says so once.
    pub(crate) fn is_over(&self, now: Instant, limit: Duration) -> bool {
        let since = &mut self.lock().nobody_since;
        let over = since.is_some_and(|since| since + limit <= now);
        if over {
            *since = None;
        }
        over
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The handshake is over: gives the connection to the reactor that has the fewest, the first of them, for its life.
    pub(crate) fn settle(&mut self) -> usize {
        if let Some(reactor) = self.reactor {
            return reactor;
        }
        let mut taken = self.occupancy.lock();
        let counts = taken.of.iter().enumerate();
        let reactor = counts
            .min_by_key(|(_, count)| **count)
            .map_or(0, |(reactor, _)| reactor);
        taken.of[reactor] += 1;
        taken.handshakes -= 1;
        taken.nobody_since = None;
        self.reactor = Some(reactor);
        reactor
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.occupancy.lock();
        match self.reactor {
            None => taken.handshakes -= 1,
            Some(reactor) => {
                taken.of[reactor] -= 1;
                if taken.connections() == 0 {
                    taken.nobody_since = Some(Instant::now());
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn each_gets_a_place_at_the_emptiest_reactor() {
        let occupancy = Arc::new(Occupancy::new(3));
        assert!(occupancy.nobody_since().is_some());
        let mut places: Vec<Place> = (0..7).filter_map(|_| occupancy.enter(7).ok()).collect();
        assert_eq!(occupancy.enter(7).err(), Some(0), "handshakes count");
        assert!(occupancy.nobody_since().is_some(), "and are nobody yet");
        let reactors: Vec<usize> = places.iter_mut().map(Place::settle).collect();
        assert_eq!(reactors, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(places[4].settle(), 1, "for its life");
        assert_eq!(occupancy.enter(7).err(), Some(7));
        // Two of the second reactor go: the next two come there.
        places.retain(|place| place.reactor != Some(1));
        assert_eq!(occupancy.of_reactors(), [3, 0, 2]);
        let next = |_| {
            occupancy
                .enter(7)
                .ok()
                .map(|mut place| (place.settle(), place))
        };
        let newcomers: Vec<_> = (0..3).filter_map(next).collect();
        assert_eq!(
            newcomers.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
            [1, 1],
            "and then it is full"
        );
        assert!(occupancy.nobody_since().is_none());
        drop((places, newcomers));
        assert_eq!(occupancy.of_reactors(), [0, 0, 0]);
        let since = occupancy.nobody_since().unwrap();
        let limit = Duration::from_secs(5);
        assert!(!occupancy.is_over(since, limit));
        assert!(occupancy.is_over(since + limit, limit));
        assert!(!occupancy.is_over(since + limit, limit), "said already");
        // Who goes before the end of the handshake leaves nothing behind.
        drop(occupancy.enter(1));
        assert!(occupancy.enter(1).is_ok());
    }
}
