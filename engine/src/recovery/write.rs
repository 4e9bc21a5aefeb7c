//! What recovery writes: rebuilt blocks, then one claim on every slice, then a checkpoint that
//! empties the journals.

use super::{RecoveryError, Work};
use crate::canary::Canary;
use crate::format::Membership;
use crate::format::anchor::Anchor;
use crate::format::journal::{Claim, GroupHead, encode};
use crate::geometry::SECTOR_BYTES;
use crate::iom::SliceStart;
use crate::slots::Slots;

impl Work<'_, '_> {
    pub(super) fn flush_all(&mut self) -> Result<(), RecoveryError> {
        for (slice, disk) in self.disks.iter_mut().enumerate() {
            disk.flush().map_err(|_| RecoveryError::Disk { slice: slice as u8 })?;
        }
        Ok(())
    }

    fn write(&mut self, slice: usize, offset: u64, bytes: &[u8]) -> Result<(), RecoveryError> {
        let written = self.disks[slice].write(offset, bytes);
        written.map_err(|_| RecoveryError::Disk { slice: slice as u8 })
    }

    /// The membership to be written, and whether the region at hand is the array's (J11).
    pub(super) fn next_membership(&self) -> (Membership, bool) {
        let held = self.in_force;
        let epochs = self.scans.iter().flat_map(|s| s.memberships()).map(|m| m.epoch);
        let epoch = epochs.max().unwrap_or(0) + 1;
        let at_hand = self.options.region;
        let ours = at_hand != 0
            && (at_hand == held.region || self.options.broken(Canary::RegionUnchecked));
        let region = if ours { at_hand } else { self.options.new_region };
        (Membership { epoch, members: held.members, region }, ours)
    }

    /// What must be written before a claim: damaged copies, and, if nothing is in doubt, the maps.
    /// The journals are empty then, so that recoveries cut off again and again right after their
    /// claim need no more room than one.
    pub(super) fn prepare(&mut self) -> Result<(), RecoveryError> {
        let held = self.in_force;
        self.refuse_shared_slots()?;
        if self.options.read_only {
            return Ok(());
        }
        self.write_healed()?;
        if self.in_doubt {
            return Ok(());
        }
        for slice in 0..self.disks.len() {
            if self.scans[slice].groups.is_empty() {
                continue;
            }
            let place = self.claim_place(slice);
            self.write_maps(slice, place, held)?;
            let scan = &mut self.scans[slice];
            scan.groups.clear();
            (scan.head, scan.head_position) = place;
            (scan.anchor.tail, scan.anchor.tail_position) = place;
            (scan.anchor.settled, scan.anchor.held) = (place.0, held);
            scan.anchor.version += 1;
        }
        Ok(())
    }

    /// Rebuilt blocks are flushed before the membership that rests on them is written (J22); that,
    /// before anything is served (J23). Then the journals are emptied: all that they say is in the
    /// maps.
    pub(super) fn claim(&mut self, held: Membership) -> Result<Vec<SliceStart>, RecoveryError> {
        let slices = self.disks.len();
        let mut heads = vec![];
        for slice in 0..slices {
            let place = self.claim_place(slice);
            self.refuse_full(slice, place)?;
            heads.push(place);
        }
        if !self.options.read_only {
            self.write_rebuilt()?;
            for (slice, place) in heads.iter_mut().enumerate() {
                *place = self.write_claim(slice, *place, held)?;
            }
            self.flush_all()?;
            for (slice, place) in heads.iter().enumerate() {
                self.write_maps(slice, *place, held)?;
            }
        }
        let maps = std::mem::take(&mut self.maps);
        let starts = maps.into_iter().enumerate().map(|(slice, map)| SliceStart {
            slice: slice as u8,
            map,
            sequence: heads[slice].0,
            position: heads[slice].1,
            anchor_version: self.scans[slice].anchor.version + 1,
        });
        Ok(starts.collect())
    }

    fn refuse_shared_slots(&self) -> Result<(), RecoveryError> {
        for (slice, map) in self.maps.iter().enumerate() {
            let mut slots = Slots::new(self.superblocks[0].geometry.slots);
            for entry in map.entries().iter().filter(|e| !e.is_empty()) {
                if !slots.occupy(entry.slot) {
                    let slice = slice as u8;
                    return Err(RecoveryError::SharedSlot { slice, slot: entry.slot });
                }
            }
        }
        Ok(())
    }

    fn write_healed(&mut self) -> Result<(), RecoveryError> {
        let heal = std::mem::take(&mut self.heal);
        for (slice, offset, bytes) in &heal {
            self.write(*slice, *offset, bytes)?;
        }
        if heal.is_empty() { Ok(()) } else { self.flush_all() }
    }

    fn write_rebuilt(&mut self) -> Result<(), RecoveryError> {
        let g = self.superblocks[0].geometry;
        let rebuilt = std::mem::take(&mut self.rebuilt);
        for (slice, row, bytes) in &rebuilt {
            let slice = usize::from(*slice);
            let entry = self.maps[slice].get(*row);
            self.write(slice, g.slot_offset(entry.slot), bytes)?;
        }
        if !rebuilt.is_empty() {
            self.flush_all()?;
        }
        self.rebuilt = rebuilt;
        Ok(())
    }

    /// Number and place of the slice's claim. A void membership at the journal's end is
    /// overwritten, so that recoveries that are cut off again and again need no more room.
    fn claim_place(&self, slice: usize) -> (u64, u64) {
        let scan = &self.scans[slice];
        let held = self.in_force;
        let void = scan.groups.iter().rev().take_while(|g| {
            g.claim.as_ref().is_some_and(|c| c.held != held && c.held.epoch >= held.epoch)
        });
        let first = void.last();
        first.map_or((scan.head, scan.head_position), |g| (g.sequence, g.position))
    }

    fn refuse_full(&self, slice: usize, place: (u64, u64)) -> Result<(), RecoveryError> {
        let scan = &self.scans[slice];
        let g = self.superblocks[0].geometry;
        let units =
            crate::format::journal::units_max(self.forward[slice].len(), Some(self.outcomes.len()));
        let used = place.1 - scan.anchor.tail_position + u64::from(units);
        if used > u64::from(g.journal_units) {
            return Err(RecoveryError::JournalFull { slice: slice as u8 });
        }
        Ok(())
    }

    /// Writes the claim; returns number and place of the group after it.
    fn write_claim(
        &mut self,
        slice: usize,
        (sequence, position): (u64, u64),
        held: Membership,
    ) -> Result<(u64, u64), RecoveryError> {
        let g = self.superblocks[0].geometry;
        let array = self.superblocks[0].array_tag();
        let silent = self.options.broken(Canary::OutcomeUnwritten);
        let outcomes = if silent { vec![] } else { self.outcomes.clone() };
        let claim = Claim { held, outcomes };
        let flushed = self.scans[slice].flushed.min(sequence);
        let head = GroupHead { sequence, position, epoch: held.epoch, flushed };
        let mut bytes = vec![];
        encode(&mut bytes, array, slice as u8, head, Some(&claim), &self.forward[slice]);
        let units = bytes.len() as u64 / SECTOR_BYTES;
        let room = units.min(u64::from(g.journal_units) - position % u64::from(g.journal_units));
        let (first, rest) = bytes.split_at((room * SECTOR_BYTES) as usize);
        self.write(slice, g.journal_offset(position), first)?;
        if !rest.is_empty() {
            self.write(slice, g.journal_offset(position + room), rest)?;
        }
        Ok((sequence + 1, position + units))
    }

    /// The checkpoint: both copies of changed pages, then the anchors behind which the journal is
    /// empty.
    fn write_maps(
        &mut self,
        slice: usize,
        (tail, tail_position): (u64, u64),
        held: Membership,
    ) -> Result<(), RecoveryError> {
        let g = self.superblocks[0].geometry;
        let (array, index) = (self.superblocks[0].array_tag(), slice as u8);
        let dirty: Vec<u32> = self.maps[slice].dirty_before(u64::MAX).collect();
        let version = self.scans[slice].anchor.version + 1;
        let anchor = Anchor { version, tail, tail_position, settled: tail, held, clean: false };
        let anchor = anchor.encode(array, index);
        let failed = |_| RecoveryError::Disk { slice: index };
        for copy in 0..2 {
            for page in &dirty {
                let bytes = self.maps[slice].image(*page).encode(array, index);
                self.write(slice, g.map_offset(*page, copy), &bytes)?;
            }
            if !dirty.is_empty() {
                self.disks[slice].flush().map_err(failed)?;
            }
        }
        for page in dirty {
            self.maps[slice].write_out(page);
        }
        for copy in 0..2 {
            self.write(slice, g.anchor_offset(copy), &anchor)?;
            self.disks[slice].flush().map_err(failed)?;
        }
        Ok(())
    }
}
