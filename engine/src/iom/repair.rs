//! Rebuilding a block from its row (J8): the parity manager holds the row, adds up what the others
//! hold, and lends the sum to the block's manager, which compares it with its map, puts it back in
//! the same slot and lets the row go.
//!
//! Writing the same contents to the same slot changes no map entry, so nothing is journaled: torn,
//! it is found again.

use super::message::{Content, Message};
use super::{Iom, Op};
use crate::port::{DiskResult, Extent, Notice, Page, Port, SliceIndex};
use std::collections::hash_map::Entry;

/// A block being rebuilt, at the parity manager.
#[derive(Debug)]
pub(crate) struct Repair {
    target: SliceIndex,
    sum: Page,
    pub(crate) scratch: Page,
    sum_zero: bool,
    /// Slices whose block is still to be added.
    left: u16,
    again: bool,
    lost: bool,
}

impl Iom {
    /// Slice `target` cannot read its block of the row.
    pub(crate) fn repair_wanted<P: Port>(&mut self, port: &mut P, row: u32, target: SliceIndex) {
        let state = self.parity.rows.entry(row).or_default();
        state.repair_want |= 1 << target;
        self.start_repair(port, row);
    }

    /// Starts the row's next repair if there are pages for it; else it queues.
    pub(crate) fn start_repair<P: Port>(&mut self, port: &mut P, row: u32) {
        let all = self.config.geometry.all();
        let Some(state) = self.parity.rows.get_mut(&row) else { return };
        if state.repair.is_some() || state.repair_want == 0 {
            return;
        }
        if self.parity.repair_pages.len() < 2 {
            if !std::mem::replace(&mut state.repair_queued, true) {
                self.parity.repair_queue.push_back(row);
            }
            return;
        }
        let scratch = self.parity.repair_pages.pop().expect("checked");
        let sum = self.parity.repair_pages.pop().expect("checked");
        let target = state.repair_want.trailing_zeros() as u8;
        state.repair_want &= !(1 << target);
        let left = all & !(1 << target);
        state.repair =
            Some(Repair { target, sum, scratch, sum_zero: true, left, again: false, lost: false });
        self.repair_step(port, row);
    }

    fn repair(&mut self, row: u32) -> &mut Repair {
        let state = self.parity.rows.get_mut(&row);
        state.and_then(|s| s.repair.as_mut()).expect("the row is under repair")
    }

    fn repair_step<P: Port>(&mut self, port: &mut P, row: u32) {
        let (slice, own) = (self.slice, self.map.get(row));
        let repair = self.repair(row);
        if repair.left == 0 || repair.lost {
            let (target, sum) = (repair.target, repair.sum);
            let content = if repair.lost { Content::Lost } else { Content::Page(sum) };
            if repair.sum_zero {
                port.zero(sum);
            }
            return self.send(target, Message::Rebuilt { row, content });
        }
        let from = repair.left.trailing_zeros() as u8;
        let page = repair.scratch;
        if from != slice {
            self.send(from, Message::Fetch { row, page });
        } else if own.is_empty() {
            self.repair_fetched(port, row, Content::Zeros);
        } else {
            self.read_slot(port, Op::RepairOwn.number(row.into()), own, page);
        }
    }

    /// Own settled parity has been read.
    pub(crate) fn repair_own_read<P: Port>(&mut self, port: &mut P, row: u32, result: DiskResult) {
        let own = self.map.get(row);
        let repair = self.repair(row);
        let page = repair.scratch;
        let again = std::mem::replace(&mut repair.again, true);
        if result == DiskResult::Done && self.matches(port, row, own, page) {
            self.repair_fetched(port, row, Content::Page(page));
        } else if again {
            self.repair_fetched(port, row, Content::Lost);
        } else {
            self.read_slot(port, Op::RepairOwn.number(row.into()), own, page);
        }
    }

    /// One block more.
    pub(crate) fn repair_fetched<P: Port>(&mut self, port: &mut P, row: u32, content: Content) {
        let block_bytes = self.config.geometry.block_bytes;
        let repair = self.repair(row);
        repair.left &= repair.left - 1;
        match content {
            Content::Zeros => {}
            Content::Lost => repair.lost = true,
            Content::Page(page) => match std::mem::replace(&mut repair.sum_zero, false) {
                true => port.copy(repair.sum, page, 0, block_bytes),
                false => port.xor(repair.sum, page),
            },
        }
        self.repair_step(port, row);
    }

    /// The block's manager is done with it.
    pub(crate) fn repaired<P: Port>(&mut self, port: &mut P, now_ns: u64, row: u32, good: bool) {
        let Some(state) = self.parity.rows.get_mut(&row) else { return };
        let Some(repair) = state.repair.take() else { return };
        // If a generation had fetched that block in vain, this is it.
        let content = if good { Content::Page(repair.sum) } else { Content::Lost };
        self.fold_repaired(port, row, repair.target, content);
        self.parity.repair_pages.extend([repair.sum, repair.scratch]);
        self.start_repair(port, row);
        self.advance_if_open(port, now_ns, row);
        if let Some(next) = self.parity.repair_queue.pop_front() {
            if let Some(state) = self.parity.rows.get_mut(&next) {
                state.repair_queued = false;
            }
            self.start_repair(port, next);
        }
    }

    fn advance_if_open<P: Port>(&mut self, port: &mut P, now_ns: u64, row: u32) {
        self.advance(port, row);
        self.try_settle(port, now_ns, row);
        let state = self.parity.rows.get(&row);
        if state.is_some_and(|s| s.open.is_none() && s.repair.is_none()) {
            self.row_done(port, now_ns, row);
        }
    }

    /// At the block's manager: the row can be asked once for all who wait.
    pub(crate) fn ask_repair(&mut self, row: u32) {
        if let Entry::Vacant(vacant) = self.reads.repairs.entry(row) {
            vacant.insert(vec![]);
            let parity = self.config.geometry.parity(row);
            self.send(parity, Message::Repair { row });
        }
    }

    /// At the block's manager: what the others make of it.
    pub(crate) fn rebuilt<P: Port>(&mut self, port: &mut P, row: u32, from: u8, content: Content) {
        let entry = self.map.get(row);
        let good = match content {
            Content::Page(page) if !entry.is_empty() && self.matches(port, row, entry, page) => {
                Some(page)
            }
            _ => None,
        };
        match good {
            Some(page) => {
                self.stats.repaired += 1;
                port.notice(self.slice, Notice::Repaired { row });
                let g = &self.config.geometry;
                let extents = [Extent { page, bytes: g.block_bytes }];
                let offset = g.slot_offset(entry.slot);
                port.write(self.slice, Op::Rewrite.number(row.into()), offset, &extents, false);
            }
            None => {
                // Discarded meanwhile is not lost.
                if !entry.is_empty() {
                    self.stats.lost += 1;
                    port.notice(self.slice, Notice::Lost { row });
                }
                self.send(from, Message::Repaired { row, good: false });
            }
        }
        self.base_rebuilt(port, row, good);
        self.serve_repaired(port, row, good);
    }

    /// The rebuilt block is back in its place. Should that have failed, it will be found and
    /// rebuilt again.
    pub(crate) fn rewritten(&mut self, row: u32) {
        let parity = self.config.geometry.parity(row);
        self.send(parity, Message::Repaired { row, good: true });
    }
}
