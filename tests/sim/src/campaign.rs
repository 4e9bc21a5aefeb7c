//! Many seeds: in parallel, in order, until something is found.

use crate::marks::Marks;
use crate::panics;
use crate::plan::Plan;
use crate::world::{Violation, World};
use engine::canary::Canary;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What it met.
    pub marks: Marks,
    /// What was wrong.
    pub violation: Option<Violation>,
}

/// Runs one seed.
#[must_use]
pub fn run_seed(seed: u64, canary: Option<Canary>, trace: bool) -> Outcome {
    let mut marks = Marks::default();
    let result = panics::catch(|| {
        let mut world = World::new(Plan::new(seed, canary), trace)?;
        let result = world.run();
        marks = std::mem::take(&mut world.around.marks);
        result
    });
    let violation = match result {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => Some(Violation { what: format!("in the simulator: {panic}"), panic: true }),
    };
    Outcome { seed, marks, violation }
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The first seed.
    pub start: u64,
    /// Seeds at most.
    pub seeds: u64,
    /// Time at most.
    pub time: Option<Duration>,
    /// Threads.
    pub threads: usize,
}

/// Runs seeds one after another; `see` hears of each outcome, in no particular order, and ends
/// it all by `false`.
pub fn run(budget: Budget, canary: Option<Canary>, mut see: impl FnMut(Outcome) -> bool) {
    let (next, over) = (AtomicU64::new(budget.start), AtomicBool::new(false));
    let began = Instant::now();
    let (send, receive) = mpsc::sync_channel(64);
    std::thread::scope(|scope| {
        for _ in 0..budget.threads {
            let (send, next, over) = (send.clone(), &next, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = budget.time.is_some_and(|time| began.elapsed() >= time);
                    if late || seed - budget.start >= budget.seeds {
                        return;
                    }
                    if send.send(run_seed(seed, canary, false)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for outcome in &receive {
            if !see(outcome) {
                over.store(true, Ordering::Relaxed);
                break;
            }
        }
        // Whoever still sends is told that nobody listens.
        drop(receive);
    });
}

/// How a canary fared.
#[derive(Clone, Debug)]
pub struct Catch {
    /// Seeds run.
    pub seeds: u64,
    /// The seed and the words of the checker.
    pub caught: Option<(u64, String)>,
    /// Seeds in which the engine panicked instead.
    pub panics: u64,
    /// Seeds that fail with the rule unbroken too.
    pub failing: u64,
}

/// Looks for a seed in which a checker notices `canary`.
#[must_use]
pub fn hunt(budget: Budget, canary: Canary) -> Catch {
    let mut found = Catch { seeds: 0, caught: None, panics: 0, failing: 0 };
    run(budget, Some(canary), |outcome| {
        found.seeds += 1;
        match outcome.violation {
            Some(violation) if violation.panic => found.panics += 1,
            Some(_) if run_seed(outcome.seed, None, false).violation.is_some() => {
                found.failing += 1
            }
            Some(violation) => found.caught = Some((outcome.seed, violation.what)),
            None => {}
        }
        found.caught.is_none()
    });
    found
}
