//! Making an array: empty maps, anchors, and last of all the superblocks that declare it.

use crate::disk::{Disk, DiskError};
use crate::format::Membership;
use crate::format::anchor::Anchor;
use crate::format::map_page::MapPage;
use crate::format::superblock::Superblock;
use crate::geometry::{SECTOR_BYTES, backup_offset};

/// Map pages written at once.
const BATCH: u32 = 256;

/// Lays out `disks` as the slices of one array; `superblocks[i]` is for `disks[i]`. Until the last
/// flush a power cut leaves no array, but what was there before is gone.
pub fn make(disks: &mut [&mut dyn Disk], superblocks: &[Superblock]) -> Result<(), DiskError> {
    assert_eq!(disks.len(), superblocks.len(), "one superblock for each slice");
    for disk in disks.iter_mut() {
        let zeros = [0; SECTOR_BYTES as usize];
        disk.write(0, &zeros)?;
        disk.write(backup_offset(disk.size_bytes()), &zeros)?;
        disk.flush()?;
    }
    for (disk, superblock) in disks.iter_mut().zip(superblocks) {
        make_slice(*disk, superblock)?;
        disk.flush()?;
    }
    for (disk, superblock) in disks.iter_mut().zip(superblocks) {
        let bytes = superblock.encode();
        disk.write(backup_offset(disk.size_bytes()), &bytes)?;
        disk.write(0, &bytes)?;
        disk.flush()?;
    }
    Ok(())
}

fn make_slice(disk: &mut dyn Disk, superblock: &Superblock) -> Result<(), DiskError> {
    let (g, array, slice) = (superblock.geometry, superblock.array_tag(), superblock.index);
    let mut batch = vec![];
    for copy in 0..2 {
        for first in (0..g.map_pages()).step_by(BATCH as usize) {
            batch.clear();
            for page in first..(first + BATCH).min(g.map_pages()) {
                batch.extend(MapPage::empty(page).encode(array, slice));
            }
            disk.write(g.map_offset(first, copy), &batch)?;
        }
    }
    // A journal of an earlier array with this identity cannot exist, but zeros make a slice easier
    // to read by eye.
    disk.write(g.journal_offset(0), &[0; SECTOR_BYTES as usize])?;
    let held = Membership { epoch: 1, members: g.all(), region: 0 };
    let anchor = Anchor { version: 1, tail: 1, tail_position: 0, settled: 1, held, clean: true };
    let bytes = anchor.encode(array, slice);
    disk.write(g.anchor_offset(0), &bytes)?;
    disk.write(g.anchor_offset(1), &bytes)
}
