//! How long a worker spins before it sleeps.
//!
//! Spinning saves the wake-up when the next event is near and wastes a CPU when it is not. What the
//! last sleeps were like tells which: after short ones spinning pays, after a long one it waits for
//! the next sign of life.

/// Longest spin, in nanoseconds.
const SPIN_MAX_NS: u64 = 20_000;
/// A sleep up to this long would have been worth spinning through, nearly.
const SHORT_SLEEP_NS: u64 = 4 * SPIN_MAX_NS;
/// After a sleep this long spinning is no use.
const LONG_SLEEP_NS: u64 = 50 * SPIN_MAX_NS;

/// The decision of one worker.
#[derive(Debug)]
pub struct Pace {
    spins: bool,
    active_ns: u64,
}

impl Pace {
    /// A worker that has just begun.
    pub fn new(now_ns: u64) -> Pace {
        Pace { spins: false, active_ns: now_ns }
    }

    /// Something happened.
    pub fn active(&mut self, now_ns: u64) {
        self.active_ns = now_ns;
    }

    /// Nothing happened: whether to look again at once.
    pub fn should_spin(&self, now_ns: u64) -> bool {
        self.spins && now_ns.saturating_sub(self.active_ns) < SPIN_MAX_NS
    }

    /// The worker slept for this long and something woke it.
    pub fn slept(&mut self, slept_ns: u64) {
        if slept_ns <= SHORT_SLEEP_NS {
            self.spins = true;
        } else if slept_ns >= LONG_SLEEP_NS {
            self.spins = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_worker_does_not_spin_and_a_busy_one_does_for_a_while() {
        let mut pace = Pace::new(0);
        assert!(!pace.should_spin(1));
        pace.slept(SHORT_SLEEP_NS);
        pace.active(1000);
        assert!(pace.should_spin(1000 + SPIN_MAX_NS - 1));
        assert!(!pace.should_spin(1000 + SPIN_MAX_NS));
        pace.slept(SHORT_SLEEP_NS + 1);
        assert!(pace.should_spin(1000), "neither short nor long changes nothing");
        pace.slept(LONG_SLEEP_NS);
        assert!(!pace.should_spin(1000));
    }
}
