//! Anchors and journal of a stopped slice, as they stand on the disk.

use engine::disk::{Disk, DiskError};
use engine::format::anchor::Anchor;
use engine::format::journal::{self, Group};
use engine::format::superblock::Superblock;
use engine::format::{FormatError, Membership};
use engine::geometry::SECTOR_BYTES;
use std::collections::BTreeMap;

/// Both copies of a slice's anchor; the text says what is wrong with one.
pub type Anchors = [Result<Anchor, String>; 2];

/// Reads both copies of the anchor.
pub fn anchors(disk: &mut dyn Disk, superblock: &Superblock) -> Anchors {
    [0, 1].map(|copy| {
        let mut bytes = vec![0; SECTOR_BYTES as usize];
        let offset = superblock.geometry.anchor_offset(copy);
        disk.read(offset, &mut bytes).map_err(|error| error.to_string())?;
        let decoded = Anchor::decode(&bytes, superblock.array_tag(), superblock.index);
        decoded.map_err(|error| error.to_string())
    })
}

/// The newer copy.
pub fn newest(anchors: &Anchors) -> Option<Anchor> {
    anchors.iter().flatten().max_by_key(|anchor| anchor.version).copied()
}

/// What the journal behind the anchor holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    /// Whole groups in sequence.
    pub groups: u64,
    /// Their length in units of 4 KiB.
    pub units: u64,
    /// Their records.
    pub records: u64,
    /// Number of the group that would come next.
    pub head: u64,
    /// Groups before this one were known to be durable.
    pub flushed: u64,
    /// Groups by the epoch under which they were written.
    pub epochs: BTreeMap<u64, u64>,
    /// Memberships that groups state.
    pub claims: Vec<Membership>,
    /// What stands where the next group would.
    pub end: &'static str,
}

/// Follows the groups from the anchor's tail to where they end.
pub fn walk(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    anchor: &Anchor,
) -> Result<Walk, DiskError> {
    let mut walk = Walk {
        groups: 0,
        units: 0,
        records: 0,
        head: anchor.tail,
        flushed: 0,
        epochs: BTreeMap::new(),
        claims: vec![],
        end: "nothing",
    };
    let room = u64::from(superblock.geometry.journal_units);
    // A group of an earlier epoch that stands in the right place is a leftover (J20).
    let mut epoch = anchor.held.epoch;
    while walk.units < room {
        let position = anchor.tail_position + walk.units;
        let group = match group_at(disk, superblock, position, room - walk.units)? {
            Ok(group) => group,
            Err(FormatError::Foreign) => break,
            Err(_) => {
                walk.end = "a group that is not whole, as a write cut short leaves";
                break;
            }
        };
        if group.sequence != walk.head || group.position != position || group.epoch < epoch {
            walk.end = "an older group";
            break;
        }
        epoch = group.epoch;
        walk.groups += 1;
        walk.head += 1;
        walk.units += u64::from(group.units);
        walk.records += group.records.len() as u64;
        walk.flushed = walk.flushed.max(group.flushed);
        *walk.epochs.entry(epoch).or_default() += 1;
        walk.claims.extend(group.claim.map(|claim| claim.held));
    }
    Ok(walk)
}

fn group_at(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    position: u64,
    room: u64,
) -> Result<Result<Group, FormatError>, DiskError> {
    let (g, array, slice) = (&superblock.geometry, superblock.array_tag(), superblock.index);
    let sector = SECTOR_BYTES as usize;
    let mut bytes = vec![0; sector];
    disk.read(g.journal_offset(position), &mut bytes)?;
    let units = match journal::units(&bytes, array, slice) {
        Ok(units) if u64::from(units) <= room => units,
        Ok(_) => return Ok(Err(FormatError::Field)),
        Err(error) => return Ok(Err(error)),
    };
    bytes.resize(units as usize * sector, 0);
    for (unit, bytes) in bytes.chunks_mut(sector).enumerate().skip(1) {
        disk.read(g.journal_offset(position + unit as u64), bytes)?;
    }
    Ok(journal::decode(&bytes, array, slice, g.rows, g.slots))
}
