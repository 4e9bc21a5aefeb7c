//! A hash table keyed by row, whose order depends on nothing but what was put in.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// By row (or page).
pub(crate) type RowTable<T> = HashMap<u32, T, BuildHasherDefault<RowHasher>>;

/// A table that holds `capacity` rows without allocating again.
pub(crate) fn row_table<T>(capacity: u32) -> RowTable<T> {
    RowTable::with_capacity_and_hasher(capacity as usize, BuildHasherDefault::default())
}

/// Fibonacci hashing (Knuth, TAOCP 6.4): rows are small numbers that nobody chooses to our harm.
#[derive(Default, Debug, Clone, Copy)]
pub(crate) struct RowHasher(u64);

impl Hasher for RowHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u32(u32::from(*b)));
    }

    fn write_u32(&mut self, n: u32) {
        let mixed = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}
