//! Where a range of bytes lies: which blocks, which bytes of which page, which pieces.

use engine::geometry::Geometry;
use engine::port::PIECE_BLOCKS_MAX;

/// A range of the export's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Consecutive blocks that one piece covers, or a part of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First block of the export.
    pub(super) block: u64,
    /// Number of blocks.
    pub(super) count: u8,
    /// First byte within the block.
    pub(super) first: u32,
    /// One past the last byte within the (last) block.
    pub(super) last: u32,
}

impl Run {
    /// Whether it covers whole blocks.
    pub(super) fn is_whole(&self, geometry: &Geometry) -> bool {
        self.first == 0 && self.last == geometry.block_bytes
    }
}

/// Bytes of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of the span's pages.
    pub(super) page: usize,
    /// First byte within the page.
    pub(super) offset: usize,
    /// Number of bytes.
    pub(super) length: usize,
}

impl Span {
    pub(super) fn new(offset: u64, length: u32) -> Span {
        Span { start: offset, end: offset + u64::from(length) }
    }

    /// Blocks that it touches, hence pages that it needs.
    pub(super) fn blocks(&self, block_bytes: u32) -> u32 {
        let block = u64::from(block_bytes);
        (self.end.div_ceil(block) - self.start / block) as u32
    }

    /// The blocks that it touches, whole.
    pub(super) fn outward(&self, block_bytes: u32) -> Span {
        let block = u64::from(block_bytes);
        Span { start: self.start / block * block, end: self.end.next_multiple_of(block) }
    }

    /// The whole blocks within it; may be empty.
    pub(super) fn inward(&self, block_bytes: u32) -> Span {
        let block = u64::from(block_bytes);
        let start = self.start.next_multiple_of(block);
        Span { start, end: (self.end / block * block).max(start) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// What its first piece covers. A part of a block is a piece of its own; no piece leaves its
    /// chunk.
    pub(super) fn first_run(&self, geometry: &Geometry) -> Option<Run> {
        if self.is_empty() {
            return None;
        }
        let block_bytes = u64::from(geometry.block_bytes);
        let block = self.start / block_bytes;
        let (first, length) = (self.start % block_bytes, self.end - self.start);
        if first != 0 || length < block_bytes {
            let last = (first + length).min(block_bytes);
            return Some(Run { block, count: 1, first: first as u32, last: last as u32 });
        }
        let chunk = u64::from(geometry.chunk_blocks);
        let count = (length / block_bytes).min(chunk - block % chunk).min(PIECE_BLOCKS_MAX as u64);
        Some(Run { block, count: count as u8, first: 0, last: geometry.block_bytes })
    }

    /// What is left after `run`.
    pub(super) fn after(&self, run: &Run, geometry: &Geometry) -> Span {
        let last_block = run.block + u64::from(run.count) - 1;
        let start = last_block * u64::from(geometry.block_bytes) + u64::from(run.last);
        Span { start, end: self.end }
    }

    /// All its pieces.
    pub(super) fn runs(self, geometry: Geometry) -> impl Iterator<Item = Run> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let run = rest.first_run(&geometry)?;
            rest = rest.after(&run, &geometry);
            Some(run)
        })
    }

    /// Where `length` bytes from the span's byte `at` on lie in its pages.
    pub(super) fn parts(
        &self,
        block_bytes: u32,
        at: usize,
        length: usize,
    ) -> impl Iterator<Item = Part> + use<> {
        let block = block_bytes as usize;
        let first = (self.start % u64::from(block_bytes)) as usize;
        let (mut byte, end) = (first + at, first + at + length);
        std::iter::from_fn(move || {
            if byte == end {
                return None;
            }
            let offset = byte % block;
            let part =
                Part { page: byte / block, offset, length: (block - offset).min(end - byte) };
            byte += part.length;
            Some(part)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::plan(5, 64 << 20, 4096, 32768, 0).expect("a plan")
    }

    #[test]
    fn pieces_cover_a_range_once_and_stay_in_their_chunk() {
        let g = geometry();
        for (offset, length) in
            [(0, 1), (4095, 2), (100, 3996), (0, 4096), (1, 4096), (28672, 8192), (777, 200_000)]
        {
            let span = Span::new(offset, length);
            let mut at = span.start;
            for run in span.runs(g) {
                assert_eq!(at, run.block * 4096 + u64::from(run.first));
                assert!(run.count == 1 || run.is_whole(&g), "{run:?}");
                let last = run.block + u64::from(run.count) - 1;
                assert_eq!(run.block / 8, last / 8, "{run:?} leaves its chunk");
                at = last * 4096 + u64::from(run.last);
            }
            assert_eq!(at, span.end);
        }
    }

    #[test]
    fn parts_are_the_pages_of_the_blocks() {
        let span = Span::new(5000, 8000);
        assert_eq!(span.blocks(4096), 3);
        let parts: Vec<_> = span.parts(4096, 3000, 5000).collect();
        let expected = [(0, 3904, 192), (1, 0, 4096), (2, 0, 712)];
        let expected = expected.map(|(page, offset, length)| Part { page, offset, length });
        assert_eq!(parts, expected);
    }

    #[test]
    fn ranges_grow_and_shrink_to_whole_blocks() {
        let span = Span::new(5000, 8000);
        assert_eq!(span.outward(4096), Span { start: 4096, end: 16384 });
        assert_eq!(span.inward(4096), Span { start: 8192, end: 12288 });
        assert!(Span::new(5000, 3000).inward(4096).is_empty());
        assert_eq!(Span::new(8192, 4096).inward(4096), Span { start: 8192, end: 12288 });
    }
}
