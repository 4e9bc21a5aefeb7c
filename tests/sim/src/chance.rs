//! Small helpers over the one seeded generator.

use workload::Rng;

/// Whether a thing with `permille` chances in a thousand happens.
pub fn permille(rng: &mut Rng, permille: u64) -> bool {
    rng.below(1000) < permille
}

/// A number in `low..=high`.
pub fn between(rng: &mut Rng, low: u64, high: u64) -> u64 {
    low + rng.below(high - low + 1)
}

/// A number in `low..=high` whose magnitude, rather than value, is uniform: small ones are
/// frequent.
pub fn spread(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let (from, to) = ((low.max(1) as f64).ln(), (high as f64).ln());
    ((from + (to - from) * rng.unit()).exp() as u64).clamp(low, high)
}

/// One of several.
pub fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.below(choices.len() as u64) as usize]
}

/// The index of one of several, by weight.
pub fn weighted(rng: &mut Rng, weights: &[u64]) -> usize {
    let mut left = rng.below(weights.iter().sum());
    for (i, weight) in weights.iter().enumerate() {
        if left < *weight {
            return i;
        }
        left -= weight;
    }
    weights.len() - 1
}

/// Puts things into another order (Fisher and Yates).
pub fn shuffle<T>(rng: &mut Rng, things: &mut [T]) {
    for i in (1..things.len()).rev() {
        things.swap(i, rng.below(i as u64 + 1) as usize);
    }
}
