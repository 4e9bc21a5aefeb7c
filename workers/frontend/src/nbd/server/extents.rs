//! From allocated blocks to the extents of a block status.

use super::span::{Run, Span};
use crate::nbd::proto::ExtentFlags;
use crate::nbd::{EXTENTS_MAX, Extent};

/// Merges the blocks of `runs`, each with the mask of those that are allocated, into extents that
/// begin at the start of `asked` and do not go past its end. Stops when there is no room for more.
pub(super) fn merge(
    asked: Span,
    block_bytes: u32,
    runs: impl Iterator<Item = (Run, u16)>,
    into: &mut Vec<Extent>,
) {
    let block_bytes = u64::from(block_bytes);
    for (run, allocated) in runs {
        for index in 0..u64::from(run.count) {
            let start = ((run.block + index) * block_bytes).max(asked.start);
            let end = ((run.block + index + 1) * block_bytes).min(asked.end);
            let flags = match allocated >> index & 1 {
                1 => ExtentFlags::empty(),
                _ => ExtentFlags::HOLE | ExtentFlags::ZERO,
            };
            let length = (end - start) as u32;
            let full = into.len() == EXTENTS_MAX;
            match into.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ if full => return,
                _ => into.push(Extent { length, flags }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_are_one_extent() {
        let run = |block, count| Run { block, count, first: 0, last: 4096 };
        let runs = [(run(1, 3), 0b011), (run(4, 2), 0b10), (run(6, 1), 1)];
        let mut extents = Vec::new();
        let asked = Span { start: 5000, end: 6 * 4096 + 10 };
        merge(asked, 4096, runs.into_iter(), &mut extents);
        let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
        let expected = [
            Extent { length: 3 * 4096 - 5000, flags: ExtentFlags::empty() },
            Extent { length: 2 * 4096, flags: hole },
            Extent { length: 4096 + 10, flags: ExtentFlags::empty() },
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn more_extents_than_fit_are_left_out() {
        let runs = (0..10).map(|n| (Run { block: n * 8, count: 8, first: 0, last: 512 }, 0x55));
        let mut extents = Vec::new();
        merge(Span { start: 0, end: 80 * 512 }, 512, runs, &mut extents);
        assert_eq!(extents.len(), EXTENTS_MAX);
    }
}
