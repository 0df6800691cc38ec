//! Waiting without sleeping, briefly, where that can help at all.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Turns between two looks at the clock.
const TURNS_PER_LOOK: u32 = 64;

/// How many processors this process may use, by its affinity and its cgroup's quota; at least 1.
/// Asked once.
pub fn usable_cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// A wait that looks again and again for a limited time. Where fewer than two processors are
/// usable it ends at once: the peer cannot run while we spin.
///
/// ```
/// # use lapce_ai_shm::Spin;
/// # use std::time::Duration;
/// let mut looks = 0;
/// let mut spin = Spin::new(Duration::from_micros(20));
/// while spin.turn() {
///     looks += 1; // look for what is awaited, and break when it is there
/// }
/// ```
#[derive(Debug)]
pub struct Spin {
    budget: Duration,
    turns: u32,
    began: Option<Instant>,
    waited: Duration,
}

impl Spin {
    /// A spin of at most `budget`. The clock is first read after some turns, so what comes quickly
    /// costs no look at the clock.
    #[inline]
    #[must_use]
    pub fn new(budget: Duration) -> Self {
        Self {
            budget,
            turns: 0,
            began: None,
            waited: Duration::ZERO,
        }
    }

    /// How long it has turned, as of its last look at the clock: nothing where what it waited for came quickly.
    #[inline]
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// True: look again. False: the time is over, or spinning cannot help here.
    #[inline]
    pub fn turn(&mut self) -> bool {
        std::hint::spin_loop();
        self.turns += 1;
        if self.turns % TURNS_PER_LOOK != 1 {
            return true;
        }
        self.look()
    }

    /// On the first turn, and on each 64th after it.
    #[cold]
    fn look(&mut self) -> bool {
        if self.turns == 1 {
            return !self.budget.is_zero() && usable_cpus() >= 2;
        }
        self.turns = 1;
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        self.waited = now.duration_since(began);
        self.waited < self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(spin: &mut Spin) -> usize {
        let mut turns = 0;
        while spin.turn() {
            turns += 1;
        }
        turns
    }

    #[test]
    fn spin_ends_and_reads_the_clock_rarely() {
        assert!(usable_cpus() >= 1);
        assert_eq!(turns(&mut Spin::new(Duration::ZERO)), 0);
        let mut spin = Spin::new(Duration::from_micros(50));
        let turns = turns(&mut spin);
        if usable_cpus() < 2 {
            assert_eq!((turns, spin.began), (0, None));
        } else {
            assert!(spin.waited() >= Duration::from_micros(50));
            // The first look starts the clock, a later one ends the spin: whole rounds.
            assert!(turns >= 2 * TURNS_PER_LOOK as usize);
            assert!(turns.is_multiple_of(TURNS_PER_LOOK as usize), "{turns}");
        }
    }
}
