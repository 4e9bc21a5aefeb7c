//! Data that tells where it belongs: reproducible contents of blocks and images.

use std::io::{BufWriter, Write};
use std::path::Path;

/// The preferred block of the arrays under test, in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// A reproducible sequence of numbers (splitmix64, Steele, Lea and Flood 2014).
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }
}

/// `length` bytes that no other seed yields.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let words = std::iter::repeat_with(|| numbers.draw().to_le_bytes());
    words.flatten().take(length).collect()
}

/// Writes an image of `size_bytes` (a multiple of 64 KiB) with runs of data and of zeros.
pub fn write_image(path: &Path, seed: u64, size_bytes: u64) {
    const RUN: usize = 64 << 10;
    let file = std::fs::File::create(path).expect("the world is writable");
    let mut writer = BufWriter::new(file);
    for run in 0..size_bytes / RUN as u64 {
        let bytes = match Numbers(seed ^ run).below(4) {
            0 => vec![0; RUN],
            _ => pattern(seed.wrapping_mul(1_000_003) ^ run, RUN),
        };
        writer.write_all(&bytes).expect("the disk has room");
    }
    writer.flush().expect("the disk has room");
}
