//! Self-describing sectors: what is read back names the stream, the address and the version.
//!
//! Every 512-byte sector is a pure function of (stream, address, version): a header of four
//! little-endian words - magic, stream, address, version - and pseudo-random fill keyed by the
//! last three. So stale, misdirected, torn and rotten sectors are told from one another without
//! keeping any data. Zeros are their own case: never written, or discarded.

use crate::rng::{mix, splitmix_at};

/// The size of the smallest unit that the oracle knows, in bytes.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: u64 = u64::from_le_bytes(*b"iomdtest");
const WORDS: usize = SECTOR_BYTES / 8;
const HEADER_WORDS: usize = 4;

/// What one sector that was read turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sector {
    /// Only zero bytes: never written, or discarded.
    Zeros,
    /// What the stream wrote to this very address with this version.
    Version(u64),
    /// A whole sector of ours that belongs to another stream or address.
    Misplaced {
        /// The stream it was written by.
        stream: u64,
        /// The sector it was written to.
        address: u64,
        /// Its version.
        version: u64,
    },
    /// A header of ours with a fill that does not belong to it: rot, or torn inside a sector.
    Damaged {
        /// The stream in the header.
        stream: u64,
        /// The address in the header.
        address: u64,
        /// The version in the header.
        version: u64,
    },
    /// Not ours.
    Foreign,
}

fn key(stream: u64, address: u64, version: u64) -> u64 {
    mix(stream ^ mix(address ^ mix(version)))
}

/// Writes the sectors from `first_address` (in sectors) with `version` into `bytes`, whose length
/// must be a multiple of [`SECTOR_BYTES`].
pub fn fill(stream: u64, first_address: u64, version: u64, bytes: &mut [u8]) {
    let (sectors, rest) = bytes.as_chunks_mut::<SECTOR_BYTES>();
    assert!(rest.is_empty(), "content is made in whole sectors");
    for (index, sector) in sectors.iter_mut().enumerate() {
        let address = first_address + index as u64;
        let key = key(stream, address, version);
        let (words, _) = sector.as_chunks_mut::<8>();
        words[0] = MAGIC.to_le_bytes();
        words[1] = stream.to_le_bytes();
        words[2] = address.to_le_bytes();
        words[3] = version.to_le_bytes();
        for (index, word) in words.iter_mut().enumerate().skip(HEADER_WORDS) {
            *word = splitmix_at(key, index as u64).to_le_bytes();
        }
    }
}

/// Tells what a sector read from `address` (in sectors) holds, for the reader of `stream`.
pub fn decode_sector(stream: u64, address: u64, bytes: &[u8; SECTOR_BYTES]) -> Sector {
    let (chunks, _) = bytes.as_chunks::<8>();
    let word = |index: usize| u64::from_le_bytes(chunks[index]);
    if word(0) != MAGIC {
        let zeros = (0..WORDS).all(|index| word(index) == 0);
        return if zeros { Sector::Zeros } else { Sector::Foreign };
    }
    let found = (word(1), word(2), word(3));
    let key = key(found.0, found.1, found.2);
    let whole = (HEADER_WORDS..WORDS)
        .fold(0, |differences, index| differences | (word(index) ^ splitmix_at(key, index as u64)))
        == 0;
    match (whole, found) {
        (false, (stream, address, version)) => Sector::Damaged { stream, address, version },
        (true, (s, a, version)) if s == stream && a == address => Sector::Version(version),
        (true, (stream, address, version)) => Sector::Misplaced { stream, address, version },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(stream: u64, address: u64, version: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        fill(stream, address, version, &mut bytes);
        bytes
    }

    #[test]
    fn a_sector_tells_its_address_and_version() {
        let mut bytes = [0; 2 * SECTOR_BYTES];
        fill(9, 40, 7, &mut bytes);
        let second: &[u8; SECTOR_BYTES] = bytes[SECTOR_BYTES..].try_into().unwrap();
        assert_eq!(decode_sector(9, 41, second), Sector::Version(7));
        let misplaced = Sector::Misplaced { stream: 9, address: 41, version: 7 };
        assert_eq!(decode_sector(9, 40, second), misplaced);
        assert_eq!(decode_sector(8, 41, second), misplaced);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for index in 0..SECTOR_BYTES {
            let mut bytes = sector(1, 2, 3);
            bytes[index] ^= 0x10;
            assert_ne!(decode_sector(1, 2, &bytes), Sector::Version(3), "byte {index}");
        }
    }

    #[test]
    fn zeros_and_foreign_bytes_are_told_apart() {
        let mut bytes = [0; SECTOR_BYTES];
        assert_eq!(decode_sector(1, 2, &bytes), Sector::Zeros);
        bytes[511] = 1;
        assert_eq!(decode_sector(1, 2, &bytes), Sector::Foreign);
    }

    #[test]
    fn versions_and_neighbours_share_no_fill() {
        let a = sector(1, 2, 3);
        for other in [sector(1, 2, 4), sector(1, 3, 3), sector(2, 2, 3)] {
            let same = a[32..].iter().zip(&other[32..]).filter(|(x, y)| x == y).count();
            assert!(same < 16, "{same} equal bytes");
        }
    }
}
