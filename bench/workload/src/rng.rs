//! One small seedable generator, so that a seed reproduces a run on any machine.
//!
//! xoshiro256** of D. Blackman and S. Vigna, "Scrambled linear pseudorandom number generators"
//! (ACM TOMS 47, 2021); its state is filled by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), as
//! its authors advise. Not for secrets.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64: spreads every bit of `value` over the result.
pub(crate) fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The `index`-th output of the SplitMix64 sequence that starts at `key`.
pub(crate) fn splitmix_at(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA)))
}

/// A deterministic generator of 64-bit numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of `seed`; every seed is a good one, zero too.
    pub fn new(seed: u64) -> Rng {
        Rng { state: std::array::from_fn(|index| splitmix_at(seed, index as u64)) }
    }

    /// A generator for one of several parallel streams of the same seed.
    pub fn stream(seed: u64, stream: u64) -> Rng {
        Rng::new(mix(seed) ^ splitmix_at(0x1057_ea3d, stream))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`; `bound` must not be zero.
    ///
    /// The multiplication of D. Lemire ("Fast random integer generation in an interval", 2019)
    /// without its rejection step: the bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a random number below zero was asked for");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `0.0..1.0` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with a probability of `percent` in a hundred.
    pub fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_reference_of_xoshiro256_star_star() {
        // From the definition with state 1, 2, 3, 4: the first outputs of the reference code.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let got: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(got, [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn matches_the_reference_of_splitmix64() {
        assert_eq!(splitmix_at(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix_at(0, 1), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let take = |seed| (0..64).map(|_| 0).scan(Rng::new(seed), |r, _| Some(r.next_u64()));
        assert!(take(7).eq(take(7)));
        assert!(take(7).ne(take(8)));
        let mut streams = [Rng::stream(7, 0), Rng::stream(7, 1)];
        assert_ne!(streams[0].next_u64(), streams[1].next_u64());
    }

    #[test]
    fn numbers_stay_in_range_and_reach_all_of_it() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[rng.below(7) as usize] += 1;
            let unit = rng.unit();
            assert!((0.0..1.0).contains(&unit));
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
        assert!(!rng.percent(0) && rng.percent(100));
    }
}
