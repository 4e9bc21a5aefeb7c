//! Deterministic access patterns: which block next, and is it read or written.
//!
//! The Zipf order draws ranks by the method of J. Gray et al., "Quickly generating billion-record
//! synthetic databases" (SIGMOD 1994), with the zeta sum of large sets approximated by its
//! integral, and spreads the ranks over the range, so that hot blocks are not neighbours.

use crate::rng::{Rng, mix};

/// The order in which blocks are visited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// One after the other, starting over at the end.
    Sequential,
    /// Uniformly random.
    Random,
    /// Skewed: the parameter is theta, between 0 (uniform) and 1, both excluded.
    Zipf(f64),
}

/// How many of the requests are reads, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix(pub u8);

/// One request of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read (true) or write.
    pub read: bool,
    /// Where, in bytes from the beginning of the range.
    pub offset: u64,
    /// How much, in bytes; always the pattern's block size.
    pub length: u32,
}

/// Why a pattern cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// The block size is zero, or the range holds not even one block.
    RangeTooSmall,
    /// Theta of Zipf is not between 0 and 1.
    BadTheta,
    /// More than a hundred percent of reads.
    BadMix,
}

impl std::fmt::Display for PatternError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PatternError::RangeTooSmall => "the range does not hold one block",
            PatternError::BadTheta => "theta must lie between 0 and 1, both excluded",
            PatternError::BadMix => "the share of reads exceeds 100 percent",
        })
    }
}

impl std::error::Error for PatternError {}

/// An endless, deterministic sequence of requests.
#[derive(Clone, Debug)]
pub struct Pattern {
    order: Order,
    mix: Mix,
    block_size: u32,
    blocks: u64,
    next: u64,
    zipf: Zipf,
    rng: Rng,
}

impl Pattern {
    /// The requests of `seed` of `block_size` bytes each within a range of `size` bytes.
    pub fn new(
        order: Order,
        mix: Mix,
        block_size: u32,
        size: u64,
        seed: u64,
    ) -> Result<Pattern, PatternError> {
        if block_size == 0 || size < u64::from(block_size) {
            return Err(PatternError::RangeTooSmall);
        }
        if mix.0 > 100 {
            return Err(PatternError::BadMix);
        }
        let theta = match order {
            Order::Zipf(theta) if theta > 0.0 && theta < 1.0 => theta,
            Order::Zipf(_) => return Err(PatternError::BadTheta),
            Order::Sequential | Order::Random => 0.5,
        };
        let blocks = size / u64::from(block_size);
        let zipf = Zipf::new(blocks, theta);
        Ok(Pattern { order, mix, block_size, blocks, next: 0, zipf, rng: Rng::new(seed) })
    }

    /// Lets a sequential pattern begin at another block, so that several share a range.
    pub fn start_at(mut self, block: u64) -> Pattern {
        self.next = block % self.blocks;
        self
    }

    /// The next request.
    pub fn next_access(&mut self) -> Access {
        let read = self.rng.percent(self.mix.0);
        let block = match self.order {
            Order::Sequential => {
                let block = self.next;
                self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
                block
            }
            Order::Random => self.rng.below(self.blocks),
            Order::Zipf(_) => mix(self.zipf.rank(self.rng.unit())) % self.blocks,
        };
        Access { read, offset: block * u64::from(self.block_size), length: self.block_size }
    }
}

/// The constants of Gray's method for one set size.
#[derive(Clone, Debug)]
struct Zipf {
    items: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
    second: f64,
}

impl Zipf {
    fn new(items: u64, theta: f64) -> Zipf {
        let zeta = zeta(items, theta);
        let second = 1.0 + 0.5f64.powf(theta);
        let items = items as f64;
        let eta = if items > 2.0 {
            (1.0 - (2.0 / items).powf(1.0 - theta)) / (1.0 - second / zeta)
        } else {
            1.0
        };
        Zipf { items, zeta, alpha: 1.0 / (1.0 - theta), eta, second }
    }

    /// The rank, from zero, that a uniform number stands for.
    fn rank(&self, unit: f64) -> u64 {
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < self.second {
            return 1;
        }
        let rank = self.items * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.items as u64 - 1)
    }
}

/// The sum of 1/i^theta up to `items`; from 10,000 on by its integral (Euler-Maclaurin).
fn zeta(items: u64, theta: f64) -> f64 {
    const EXACT: u64 = 10_000;
    let head: f64 = (1..=items.min(EXACT)).map(|i| (i as f64).powf(-theta)).sum();
    if items <= EXACT {
        return head;
    }
    let power = 1.0 - theta;
    head + ((items as f64).powf(power) - (EXACT as f64).powf(power)) / power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(order: Order, mix: u8, blocks: u64, seed: u64) -> Pattern {
        Pattern::new(order, Mix(mix), 4096, blocks * 4096, seed).unwrap()
    }

    #[test]
    fn sequential_starts_over() {
        let mut p = pattern(Order::Sequential, 0, 3, 1).start_at(1);
        let offsets: Vec<u64> = (0..5).map(|_| p.next_access().offset / 4096).collect();
        assert_eq!(offsets, [1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_seed_gives_one_sequence() {
        for order in [Order::Random, Order::Zipf(0.9), Order::Sequential] {
            let take = |seed| {
                let mut p = pattern(order, 50, 1000, seed);
                (0..200).map(|_| p.next_access()).collect::<Vec<_>>()
            };
            assert_eq!(take(5), take(5));
            assert_ne!(take(5), take(6));
        }
    }

    #[test]
    fn random_reaches_every_block_and_keeps_the_mix() {
        let mut p = pattern(Order::Random, 70, 100, 3);
        let mut seen = [false; 100];
        let mut reads = 0;
        for _ in 0..10_000 {
            let access = p.next_access();
            seen[(access.offset / 4096) as usize] = true;
            reads += u32::from(access.read);
        }
        assert!(seen.iter().all(|&s| s));
        assert!((6_700..7_300).contains(&reads), "{reads}");
    }

    #[test]
    fn zipf_is_as_skewed_as_its_theta() {
        let share_of_hottest = |theta| {
            let mut p = pattern(Order::Zipf(theta), 0, 1000, 3);
            let mut counts = vec![0u32; 1000];
            for _ in 0..100_000 {
                counts[(p.next_access().offset / 4096) as usize] += 1;
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            f64::from(counts[0]) / 100_000.0
        };
        // The first rank's share is 1 / zeta(1000, theta).
        let (mild, strong) = (share_of_hottest(0.5), share_of_hottest(0.99));
        assert!((mild - 1.0 / zeta(1000, 0.5)).abs() < 0.01, "{mild}");
        assert!((strong - 1.0 / zeta(1000, 0.99)).abs() < 0.02, "{strong}");
    }

    #[test]
    fn the_integral_of_zeta_is_close_to_the_sum() {
        let exact: f64 = (1..=100_000u64).map(|i| (i as f64).powf(-0.9)).sum();
        assert!((zeta(100_000, 0.9) - exact).abs() < 1e-3);
    }

    #[test]
    fn tiny_ranges_stay_inside() {
        for blocks in 1..5 {
            for order in [Order::Random, Order::Zipf(0.99), Order::Sequential] {
                let mut p = pattern(order, 50, blocks, 1);
                assert!((0..1000).all(|_| p.next_access().offset < blocks * 4096));
            }
        }
    }

    #[test]
    fn impossible_patterns_are_refused() {
        let make = |order, mix, size| Pattern::new(order, Mix(mix), 4096, size, 1).err();
        assert_eq!(make(Order::Random, 0, 4095), Some(PatternError::RangeTooSmall));
        assert_eq!(make(Order::Zipf(1.0), 0, 4096), Some(PatternError::BadTheta));
        assert_eq!(make(Order::Random, 101, 4096), Some(PatternError::BadMix));
    }
}
