//! Where things are: client addresses to slices and rows, and the layout of a slice.
//!
//! A row is one block at the same row number of each slice, N data and one parity. Rows are grouped
//! into chunks, so that consecutive client addresses stay on one slice for a chunk; parity rotates
//! from chunk to chunk (left-symmetric, as Linux md lays out RAID 5 by default).

use crate::port::SliceIndex;

/// Unit of metadata and of direct I/O, in bytes.
pub const SECTOR_BYTES: u64 = 4096;
/// Rows that one map page covers.
pub const PAGE_ROWS: u32 = 500;
/// Smallest journal, in units of 4 KiB.
pub const JOURNAL_UNITS_MIN: u32 = 128;
/// Fewest spare slots.
pub const SPARE_MIN: u32 = 8;
/// Most slices of an array.
pub const SLICES_MAX: usize = 16;

/// Shape of an array: the same on all its slices, fixed when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Number of slices, N+1: 3 to 16.
    pub slices: u8,
    /// Bytes in a block: 4, 16 or 64 KiB.
    pub block_bytes: u32,
    /// Blocks in a chunk: a power of two.
    pub chunk_blocks: u32,
    /// Rows: a multiple of `chunk_blocks`.
    pub rows: u32,
    /// Slots on a slice: rows and spare ones.
    pub slots: u32,
    /// Length of a slice's journal in units of 4 KiB.
    pub journal_units: u32,
}

/// Why a geometry cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GeometryError {
    /// Not 3 to 16 slices.
    Slices,
    /// Not 4, 16 or 64 KiB.
    BlockSize,
    /// Not a power of two times the block size, or more than 4 MiB.
    ChunkSize,
    /// The journal is too small or larger than half the slice.
    JournalSize,
    /// No room for a single chunk of rows.
    TooSmall,
    /// Numbers that contradict one another (only from a damaged superblock).
    Inconsistent,
}

impl std::fmt::Display for GeometryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Slices => "an array has 3 to 16 slices",
            Self::BlockSize => "the block size must be 4K, 16K or 64K",
            Self::ChunkSize => {
                "the chunk size must be a power of two, at least one block and at most 4M"
            }
            Self::JournalSize => "the journal must be at least 512K and at most half of the slice",
            Self::TooSmall => "the slices are too small to hold a single chunk",
            Self::Inconsistent => "the numbers of the superblock contradict one another",
        })
    }
}

impl std::error::Error for GeometryError {}

/// A client's block: where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The slice that holds it.
    pub slice: SliceIndex,
    /// Its row.
    pub row: u32,
}

impl Geometry {
    /// The geometry of slices of `slice_bytes` each. `journal_bytes` 0 chooses: 1/64 of the slice,
    /// 4 MiB to 512 MiB.
    pub fn plan(
        slices: usize,
        slice_bytes: u64,
        block_bytes: u64,
        chunk_bytes: u64,
        journal_bytes: u64,
    ) -> Result<Self, GeometryError> {
        if !(3..=SLICES_MAX).contains(&slices) {
            return Err(GeometryError::Slices);
        }
        if ![4096, 16384, 65536].contains(&block_bytes) {
            return Err(GeometryError::BlockSize);
        }
        if !chunk_bytes.is_power_of_two() || chunk_bytes < block_bytes || chunk_bytes > 4 << 20 {
            return Err(GeometryError::ChunkSize);
        }
        let journal = match journal_bytes {
            0 => (slice_bytes / 64).clamp(4 << 20, 512 << 20).min(slice_bytes / 4),
            bytes => bytes,
        } / SECTOR_BYTES;
        if journal < u64::from(JOURNAL_UNITS_MIN) || journal * SECTOR_BYTES > slice_bytes / 2 {
            return Err(GeometryError::JournalSize);
        }
        let mut plan = Self {
            slices: slices as u8,
            block_bytes: block_bytes as u32,
            chunk_blocks: (chunk_bytes / block_bytes) as u32,
            rows: 0,
            slots: 0,
            journal_units: u32::try_from(journal).map_err(|_| GeometryError::JournalSize)?,
        };
        // One slot in eight is spare: room for new addresses, and for runs of them.
        let (mut low, mut high) = (0u64, slice_bytes / chunk_bytes);
        while low < high {
            let chunks = (low + high).div_ceil(2);
            plan.set_rows(chunks);
            if plan.slice_bytes() <= slice_bytes { low = chunks } else { high = chunks - 1 }
        }
        plan.set_rows(low);
        if low == 0 { Err(GeometryError::TooSmall) } else { plan.valid() }
    }

    fn set_rows(&mut self, chunks: u64) {
        let rows = (chunks * u64::from(self.chunk_blocks)).min(u64::from(u32::MAX / 2));
        self.rows = rows as u32 / self.chunk_blocks * self.chunk_blocks;
        self.slots = self.rows + (self.rows / 7).max(SPARE_MIN);
    }

    /// Checks numbers that were read from a disk.
    pub fn valid(self) -> Result<Self, GeometryError> {
        let sane = (3..=SLICES_MAX).contains(&usize::from(self.slices))
            && [4096, 16384, 65536].contains(&self.block_bytes)
            && self.chunk_blocks.is_power_of_two()
            && self.chunk_blocks <= 1024
            && self.rows > 0
            && self.rows.is_multiple_of(self.chunk_blocks)
            && self.rows <= u32::MAX / 2
            && self.slots >= self.rows + SPARE_MIN
            && self.slots <= self.rows.saturating_mul(2).saturating_add(1 << 16)
            && self.journal_units >= JOURNAL_UNITS_MIN
            && self.journal_units <= 1 << 20;
        if sane { Ok(self) } else { Err(GeometryError::Inconsistent) }
    }

    /// Data blocks in a row, N.
    #[must_use]
    pub fn columns(&self) -> u32 {
        u32::from(self.slices) - 1
    }

    /// What clients see, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.blocks() * u64::from(self.block_bytes)
    }

    /// What clients see, in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.columns())
    }

    /// The slice that holds the parity of `row`.
    #[must_use]
    pub fn parity(&self, row: u32) -> SliceIndex {
        let stripe = row / self.chunk_blocks;
        (self.columns() - stripe % u32::from(self.slices)) as u8
    }

    /// Where client block `block` is.
    #[must_use]
    pub fn place(&self, block: u64) -> Place {
        let chunk = block / u64::from(self.chunk_blocks);
        let stripe = (chunk / u64::from(self.columns())) as u32;
        let column = (chunk % u64::from(self.columns())) as u32;
        let row = stripe * self.chunk_blocks + (block % u64::from(self.chunk_blocks)) as u32;
        let slice = (u32::from(self.parity(row)) + 1 + column) % u32::from(self.slices);
        Place { slice: slice as u8, row }
    }

    /// The client block at `row` of `slice`; `None` where that is parity.
    #[must_use]
    pub fn block(&self, slice: SliceIndex, row: u32) -> Option<u64> {
        let slices = u32::from(self.slices);
        let parity = u32::from(self.parity(row));
        let column = (u32::from(slice) + slices - parity - 1) % slices;
        if u32::from(slice) == parity {
            return None;
        }
        let chunk = u64::from(row / self.chunk_blocks) * u64::from(self.columns());
        let within = u64::from(row % self.chunk_blocks);
        Some((chunk + u64::from(column)) * u64::from(self.chunk_blocks) + within)
    }

    /// All slices as a mask.
    #[must_use]
    pub fn all(&self) -> u16 {
        ((1u32 << self.slices) - 1) as u16
    }

    /// Slots beyond one for each row.
    #[must_use]
    pub fn spare(&self) -> u32 {
        self.slots - self.rows
    }

    /// Map pages of a slice.
    #[must_use]
    pub fn map_pages(&self) -> u32 {
        self.rows.div_ceil(PAGE_ROWS)
    }

    /// Offset of the anchor's copy 0 or 1, in bytes.
    #[must_use]
    pub fn anchor_offset(&self, copy: u8) -> u64 {
        SECTOR_BYTES * (1 + u64::from(copy))
    }

    /// Offset of copy 0 or 1 of a map page, in bytes.
    #[must_use]
    pub fn map_offset(&self, page: u32, copy: u8) -> u64 {
        let pages = u64::from(self.map_pages());
        SECTOR_BYTES * (4 + u64::from(page) + pages * u64::from(copy))
    }

    /// Offset of unit `position` of the journal ring (taken modulo its length), in bytes.
    #[must_use]
    pub fn journal_offset(&self, position: u64) -> u64 {
        let start = self.map_offset(0, 0) + 2 * SECTOR_BYTES * u64::from(self.map_pages());
        start + position % u64::from(self.journal_units) * SECTOR_BYTES
    }

    /// Offset of a slot, in bytes; a multiple of the block size.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> u64 {
        let start = self.journal_offset(0) + u64::from(self.journal_units) * SECTOR_BYTES;
        let block = u64::from(self.block_bytes);
        start.next_multiple_of(block) + u64::from(slot) * block
    }

    /// Bytes that a slice needs; the last 4 KiB hold the second superblock.
    #[must_use]
    pub fn slice_bytes(&self) -> u64 {
        self.slot_offset(self.slots) + SECTOR_BYTES
    }
}

/// Offset of the second superblock on a device of `size_bytes`: its last whole 4 KiB, to be found
/// without the first.
#[must_use]
pub fn backup_offset(size_bytes: u64) -> u64 {
    (size_bytes / SECTOR_BYTES).saturating_sub(1) * SECTOR_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> Vec<Geometry> {
        let mut all = vec![];
        for slices in [3, 4, 5, 16] {
            for (block, chunk) in [(4096, 4096), (4096, 65536), (16384, 65536), (65536, 1 << 20)] {
                all.push(Geometry::plan(slices, 64 << 20, block, chunk, 0).unwrap());
            }
        }
        all
    }

    #[test]
    fn p1_every_block_has_one_place_and_comes_back() {
        for g in plans() {
            for block in (0..g.blocks().min(4000)).chain(g.blocks() - 1..g.blocks()) {
                let at = g.place(block);
                assert!(at.row < g.rows && at.slice < g.slices);
                assert_ne!(at.slice, g.parity(at.row));
                assert_eq!(g.block(at.slice, at.row), Some(block));
            }
            let rows = 0..g.rows.min(2000);
            assert!(rows.clone().all(|row| g.block(g.parity(row), row).is_none()));
            let holders: std::collections::HashSet<_> = rows.map(|row| g.parity(row)).collect();
            assert_eq!(holders.len(), usize::from(g.slices), "parity rotates over all slices");
        }
    }

    #[test]
    fn a_plan_fits_its_slice_and_leaves_little_unused() {
        for g in plans() {
            assert!(g.slice_bytes() <= 64 << 20);
            let chunk = u64::from(g.chunk_blocks * g.block_bytes);
            assert!((64 << 20) - g.slice_bytes() < 3 * chunk, "{g:?}");
            assert_eq!(g.slot_offset(0) % u64::from(g.block_bytes), 0);
        }
    }

    #[test]
    fn refuses_what_cannot_be() {
        use GeometryError::*;
        let plan = Geometry::plan;
        assert_eq!(plan(2, 1 << 30, 4096, 65536, 0), Err(Slices));
        assert_eq!(plan(17, 1 << 30, 4096, 65536, 0), Err(Slices));
        assert_eq!(plan(5, 1 << 30, 8192, 65536, 0), Err(BlockSize));
        assert_eq!(plan(5, 1 << 30, 4096, 2048, 0), Err(ChunkSize));
        assert_eq!(plan(5, 1 << 30, 4096, 12288, 0), Err(ChunkSize));
        assert_eq!(plan(5, 1 << 30, 4096, 65536, 4096), Err(JournalSize));
        assert_eq!(plan(5, 1 << 30, 4096, 65536, 1 << 30), Err(JournalSize));
        assert!(plan(5, 1 << 20, 65536, 1 << 20, 0).is_err());
    }
}
