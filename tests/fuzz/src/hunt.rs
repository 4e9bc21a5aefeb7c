//! Runs a fuzzer over consecutive seeds and catches the first panic.

use crate::Fuzzer;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// When a hunt that finds nothing ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// After so many cases.
    Cases(u64),
    /// After so much time.
    Time(Duration),
}

/// A case that broke a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The seed that reproduces it as the first case.
    pub seed: u64,
    /// What the panic said, and where.
    pub says: String,
}

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics are not printed but kept for the report of [`hunt`]; if `traced`, and with
/// `RUST_BACKTRACE` set, also whence they came.
pub fn record_panics(traced: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let trace = if traced { Backtrace::capture() } else { Backtrace::disabled() };
        let captured = trace.status() == BacktraceStatus::Captured;
        let whence = if captured { format!("\n{trace}") } else { String::new() };
        LAST.set(Some(format!("{info}{whence}")));
    }));
}

/// Tries the cases of `seed`, `seed + 1` and so on. The number of cases tried, or the first that
/// panicked.
pub fn hunt(fuzzer: &Fuzzer, seed: u64, limit: Limit) -> Result<u64, Found> {
    let start = Instant::now();
    let mut tried = 0;
    loop {
        let over = match limit {
            Limit::Cases(cases) => tried >= cases,
            Limit::Time(time) => start.elapsed() >= time,
        };
        if over {
            return Ok(tried);
        }
        let seed = seed.wrapping_add(tried);
        if catch_unwind(AssertUnwindSafe(|| (fuzzer.case)(seed))).is_err() {
            let says = LAST.take().unwrap_or_else(|| "see the panic above".into());
            return Err(Found { seed, says });
        }
        tried += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fuzzer(case: fn(u64)) -> Fuzzer {
        Fuzzer { name: "test", about: "", smoke_cases: 1, must_fail: false, case }
    }

    #[test]
    fn the_seed_found_is_the_one_that_fails() {
        let picky = fuzzer(|seed| assert!(seed < 15, "too large"));
        let found = hunt(&picky, 10, Limit::Cases(100)).unwrap_err();
        assert_eq!(found.seed, 15);
        assert_eq!(hunt(&picky, 15, Limit::Cases(1)).unwrap_err().seed, 15);
        assert_eq!(hunt(&picky, 10, Limit::Cases(5)), Ok(5));
    }

    #[test]
    fn time_ends_a_hunt() {
        let lazy = fuzzer(|_| std::thread::sleep(Duration::from_millis(1)));
        assert!(hunt(&lazy, 0, Limit::Time(Duration::from_millis(20))).unwrap() <= 20);
    }
}
