//! Blocks cut into cells of uneven length, so that the oracle's sectors stand for ranges at odd
//! bytes.
//!
//! The oracle knows sectors of 512 bytes; the array takes writes of any bytes. A block has as
//! many cells as it has sectors, with boundaries drawn per run. The content of a cell names its
//! address and its version; what is read back is checked byte by byte here and handed to the
//! oracle as the sector that it stands for.

use workload::{Oracle, Rng, SECTOR_BYTES};

/// Fewest bytes in a cell: its version and its address.
const CELL_BYTES_MIN: u64 = 16;

/// Where the cells of a block lie.
#[derive(Clone, Debug)]
pub struct Cells {
    stream: u64,
    edges: Vec<u32>,
}

impl Cells {
    /// The cells of blocks of `block_bytes`; `uneven` moves all boundaries but the outer ones
    /// off their sectors.
    #[must_use]
    pub fn new(block_bytes: u32, uneven: bool, stream: u64, rng: &mut Rng) -> Self {
        let count = block_bytes / SECTOR_BYTES as u32;
        let reach = (SECTOR_BYTES as u64 - CELL_BYTES_MIN) / 2;
        let edge = |i: u32| {
            let moves = uneven && i > 0 && i < count;
            let shift = if moves { rng.below(2 * reach + 1) } else { reach };
            (u64::from(i) * SECTOR_BYTES as u64 + shift - reach) as u32
        };
        Self { stream, edges: (0..=count).map(edge).collect() }
    }

    /// Cells in a block.
    #[must_use]
    pub fn per_block(&self) -> u32 {
        self.edges.len() as u32 - 1
    }

    /// The first byte of cell `index` of a block; with the number of cells, its end.
    #[must_use]
    pub fn edge(&self, index: u32) -> u32 {
        self.edges[index as usize]
    }

    /// Writes version `version` of cells `cells` of `block` into `page`, a whole block.
    pub fn fill(&self, block: u64, cells: std::ops::Range<u32>, version: u64, page: &mut [u8]) {
        for cell in cells {
            let address = block * u64::from(self.per_block()) + u64::from(cell);
            let range = self.edge(cell) as usize..self.edge(cell + 1) as usize;
            self.fill_cell(address, version, &mut page[range]);
        }
    }

    fn fill_cell(&self, address: u64, version: u64, out: &mut [u8]) {
        let mut state = self.stream ^ (address << 32) ^ version;
        for (i, chunk) in out.chunks_mut(8).enumerate() {
            let word = match i {
                0 => version.to_le_bytes(),
                1 => address.to_le_bytes(),
                _ => {
                    state = state
                        .wrapping_mul(0x5851_f42d_4c95_7f2d)
                        .wrapping_add(0x1405_7b7e_f767_814f);
                    (state ^ (state >> 29)).to_le_bytes()
                }
            };
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// What the oracle must be shown for cells `cells` of `block`, read as `page`.
    pub fn show(
        &self,
        oracle: &Oracle,
        block: u64,
        cells: std::ops::Range<u32>,
        page: &[u8],
        out: &mut Vec<u8>,
    ) {
        for cell in cells {
            let address = block * u64::from(self.per_block()) + u64::from(cell);
            let found = &page[self.edge(cell) as usize..self.edge(cell + 1) as usize];
            let at = out.len();
            out.resize(at + SECTOR_BYTES, 0);
            let sector = &mut out[at..];
            if found.iter().all(|byte| *byte == 0) {
                continue;
            }
            let word =
                |i: usize| u64::from_le_bytes(found[i * 8..][..8].try_into().unwrap_or_default());
            let (version, named) = (word(0), word(1));
            let mut expected = vec![0; found.len()];
            self.fill_cell(named, version, &mut expected);
            if expected == found {
                oracle.fill(version, named, sector);
                debug_assert!(named != address || version > 0);
            } else {
                // Neither zeros nor a cell that was ever written: as foreign to the oracle as
                // it is here.
                sector.fill(0xee);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(uneven: bool) -> Cells {
        Cells::new(4096, uneven, 9, &mut Rng::new(3))
    }

    #[test]
    fn cells_cover_the_block_and_none_is_too_small() {
        for uneven in [false, true] {
            let c = cells(uneven);
            assert_eq!((c.per_block(), c.edge(0), c.edge(8)), (8, 0, 4096));
            assert!((0..8).all(|i| c.edge(i + 1) - c.edge(i) >= 16));
            assert_eq!((1..8).all(|i| c.edge(i) == i * 512), !uneven);
        }
    }

    #[test]
    fn the_oracle_sees_what_was_written() {
        let c = cells(true);
        let mut oracle = Oracle::new(4, 4096, 9);
        let version = oracle.begin_write(2 * 8 + 3, 2);
        let mut page = vec![0; 4096];
        c.fill(2, 3..5, version, &mut page);
        oracle.acknowledge(version, true);
        let mut look = |page: &[u8], block: u64| {
            let mut shown = vec![];
            c.show(&oracle, block, 0..8, page, &mut shown);
            oracle.verify_block(block, &shown)
        };
        assert_eq!(look(&page, 2), Ok(()));
        assert!(look(&page, 1).is_err(), "misplaced");
        page[c.edge(4) as usize + 20] ^= 1;
        assert!(look(&page, 2).is_err(), "damaged");
        assert!(look(&[0; 4096], 2).is_err(), "lost");
    }
}
