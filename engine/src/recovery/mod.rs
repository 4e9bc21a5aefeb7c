//! From slices alone to an array that can serve (P7): identify, scan, decide, rebuild, claim,
//! checkpoint.
//!
//! Nothing is written before everything has been read and decided. A crash at any point leaves an
//! array from which recovery decides the same again. PROTOCOL rules J15 and J19 to J23 are in force
//! here; which rule is where stands with the code.

pub mod decision;
mod scan;
mod settle;
mod write;

use crate::canary::Canary;
use crate::disk::{Disk, DiskError};
use crate::format::journal::Outcome;
use crate::format::superblock::Superblock;
use crate::format::{Entry, FormatError, Membership};
use crate::geometry::{SECTOR_BYTES, backup_offset};
use crate::iom::SliceStart;
use crate::map::BlockMap;
use decision::Letter;
use scan::Scan;
use std::collections::BTreeMap;

/// How to recover.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Identity of the staging region at hand; 0 for none.
    pub region: u128,
    /// A fresh random identity, for a region to be made if the one at hand is not this array's.
    pub new_region: u128,
    /// Only find out: write nothing.
    pub read_only: bool,
    /// A rule to break; only the simulator sets one.
    pub canary: Option<Canary>,
}

impl Options {
    fn broken(&self, canary: Canary) -> bool {
        self.canary == Some(canary)
    }
}

/// Why an array cannot be put into service.
#[allow(missing_docs, reason = "the fields are explained with the variants")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoveryError {
    /// Neither superblock of this disk (its place in the argument) is valid.
    NoSuperblock { disk: usize, error: FormatError },
    /// A disk belongs to another array than the first one.
    ForeignDisk { disk: usize },
    /// Two disks are the same slice.
    Duplicate { slice: u8, disks: [usize; 2] },
    /// Slices that no disk is.
    Missing { slices: Vec<u8>, of: u8 },
    /// A disk is shorter than the array needs.
    Truncated { slice: u8, bytes: u64, needed: u64 },
    /// Both anchors of a slice are damaged.
    NoAnchor { slice: u8 },
    /// Both copies of a map page are damaged.
    NoMapPage { slice: u8, page: u32 },
    /// A map or the journal names a slot twice.
    SharedSlot { slice: u8, slot: u32 },
    /// A journal lacks a group that is known to have been written.
    JournalDamaged { slice: u8, group: u64 },
    /// The journal has no room for a membership.
    JournalFull { slice: u8 },
    /// The slices do not agree on which of them were in sync (J15).
    Disagreement,
    /// A slice that was not in sync when the array last served (until slices may be out, all must
    /// be).
    OutOfSync { members: u16 },
    /// A slice does not answer.
    Disk { slice: u8 },
}

impl std::fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuperblock { disk, error } => {
                write!(f, "disk {disk} is not a slice of an array: {error}")
            }
            Self::ForeignDisk { disk } => write!(f, "disk {disk} belongs to another array"),
            Self::Duplicate { slice, disks: [a, b] } => {
                write!(f, "disks {a} and {b} are both slice {slice}; keep only one of them")
            }
            Self::Missing { slices, of } => {
                write!(f, "slices {slices:?} of {of} are missing; all are needed to start")
            }
            Self::Truncated { slice, bytes, needed } => {
                write!(f, "slice {slice} has {bytes} bytes where the array needs {needed}")
            }
            Self::NoAnchor { slice } => write!(f, "both anchors of slice {slice} are damaged"),
            Self::NoMapPage { slice, page } => {
                write!(f, "both copies of map page {page} of slice {slice} are damaged")
            }
            Self::SharedSlot { slice, slot } => {
                write!(f, "two rows of slice {slice} claim slot {slot}")
            }
            Self::JournalDamaged { slice, group } => {
                write!(f, "the journal of slice {slice} has lost group {group}")
            }
            Self::JournalFull { slice } => {
                write!(f, "the journal of slice {slice} has no room for a membership")
            }
            Self::Disagreement => {
                f.write_str("the slices do not agree on which of them were in sync")
            }
            Self::OutOfSync { members } => {
                write!(f, "only slices with mask {members:#b} were in sync when it last served")
            }
            Self::Disk { slice } => write!(f, "slice {slice}: {DiskError}"),
        }
    }
}

impl std::error::Error for RecoveryError {}

/// What recovery found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The array had been stopped in good order.
    pub clean: bool,
    /// Rows in doubt, by the letter of the decision table.
    pub letters: BTreeMap<Letter, u64>,
    /// Journal groups read.
    pub groups: u64,
    /// Valid groups found behind a hole of their journal, and passed over (J20).
    pub behind_holes: u64,
    /// Blocks rebuilt before serving.
    pub rebuilt: u64,
    /// Memberships that were never in force.
    pub void: u64,
    /// Anchors, map pages or superblocks of which one copy was damaged.
    pub damaged_copies: u64,
}

/// An array ready to serve.
#[derive(Debug)]
pub struct Recovered {
    /// Slice 0's superblock.
    pub superblock: Superblock,
    /// The membership now in force.
    pub held: Membership,
    /// The region at hand is this array's: replay it before serving (J10).
    pub replay: bool,
    /// The slices, by index.
    pub slices: Vec<SliceStart>,
    /// `order[i]`: which of the disks is slice `i`.
    pub order: Vec<usize>,
    /// What happened.
    pub report: Report,
    /// Blocks that recovery rebuilt, or, read-only, would: (slice, row, contents).
    pub rebuilt: Vec<(u8, u32, Vec<u8>)>,
}

/// The state between steps.
struct Work<'a, 'b> {
    disks: Vec<&'a mut &'b mut dyn Disk>,
    superblocks: Vec<Superblock>,
    options: Options,
    scans: Vec<Scan>,
    maps: Vec<BlockMap>,
    outcomes: Vec<Outcome>,
    /// Records for the claim groups, by slice: blocks that were rebuilt.
    forward: Vec<Vec<crate::format::journal::Record>>,
    rebuilt: Vec<(u8, u32, Vec<u8>)>,
    /// Damaged copies to be written anew: (slice, offset, contents).
    heal: Vec<(usize, u64, Vec<u8>)>,
    /// The membership under which the array last served (J15).
    in_force: Membership,
    /// Some row had to be settled: the journals are needed until a claim says how.
    in_doubt: bool,
    report: Report,
}

impl Work<'_, '_> {
    /// The block that `entry` names, if it is what the entry says.
    fn block(&mut self, slice: usize, row: u32, entry: Entry) -> Option<Vec<u8>> {
        let g = self.superblocks[0].geometry;
        let mut bytes = vec![0; g.block_bytes as usize];
        if entry.is_empty() {
            return Some(bytes);
        }
        self.disks[slice].read(g.slot_offset(entry.slot), &mut bytes).ok()?;
        let sum = crate::kernel::checksum(&bytes, self.seed(slice, row));
        (sum == entry.sum).then_some(bytes)
    }

    fn seed(&self, slice: usize, row: u32) -> u64 {
        if self.options.broken(Canary::UnseededChecksum) {
            return 0;
        }
        crate::kernel::seed(self.superblocks[0].array_tag(), slice as u8, row)
    }
}

/// Puts the array on `disks` (given in any order) into a state from which it can serve.
pub fn recover(disks: &mut [&mut dyn Disk], options: &Options) -> Result<Recovered, RecoveryError> {
    let mut report = Report::default();
    let (superblocks, order, heal) = identify(disks)?;
    report.damaged_copies = heal.len() as u64;
    let n = superblocks.len();
    let mut by_slice: Vec<Option<&mut &mut dyn Disk>> = (0..n).map(|_| None).collect();
    for (at, disk) in disks.iter_mut().enumerate() {
        let slice = order.iter().position(|o| *o == at).expect("every disk is a slice");
        by_slice[slice] = Some(disk);
    }
    let mut work = Work {
        disks: by_slice.into_iter().map(|d| d.expect("all are present")).collect(),
        superblocks,
        options: *options,
        scans: vec![],
        maps: vec![],
        outcomes: vec![],
        forward: vec![vec![]; n],
        rebuilt: vec![],
        heal,
        in_force: Membership::default(),
        in_doubt: false,
        report,
    };
    // After a daemon's death the facts are in volatile caches. They are made durable before
    // anything is decided (J19).
    if !options.read_only && !options.broken(Canary::NoFirstFlush) {
        work.flush_all()?;
    }
    work.scan_all()?;
    work.settle_all()?;
    let (next, replay) = work.next_membership();
    work.prepare()?;
    let slices = work.claim(next)?;
    let superblock = work.superblocks[0].clone();
    let (report, rebuilt) = (work.report, work.rebuilt);
    Ok(Recovered { superblock, held: next, replay, slices, order, report, rebuilt })
}

/// Reads the superblocks of a disk: the first valid one, and where a damaged copy of it stands.
pub fn superblock(disk: &mut dyn Disk) -> Result<(Superblock, Option<u64>), FormatError> {
    let mut bytes = vec![0; SECTOR_BYTES as usize];
    let size_bytes = disk.size_bytes();
    let mut read = |offset| {
        disk.read(offset, &mut bytes).map_err(|_| FormatError::Foreign)?;
        Superblock::decode(&bytes)
    };
    let backup = backup_offset(size_bytes);
    let (first, second) = (read(0), read(backup));
    match (first, second) {
        (Ok(first), second) => {
            let damaged = (second.as_ref() != Ok(&first)).then_some(backup);
            Ok((first, damaged))
        }
        // Also where the first speaks of another version: a change of format would have changed
        // both.
        (Err(_), Ok(second)) => Ok((second, Some(0))),
        (Err(error), Err(_)) => Err(error),
    }
}

/// The slices' superblocks, by slice; which disk each is; and superblock copies to be written anew.
type Identified = (Vec<Superblock>, Vec<usize>, Vec<(usize, u64, Vec<u8>)>);

/// Which disk is which slice; refuses what is not one whole array.
fn identify(disks: &mut [&mut dyn Disk]) -> Result<Identified, RecoveryError> {
    let mut heal = vec![];
    let mut found: BTreeMap<u8, (usize, Superblock)> = BTreeMap::new();
    let mut first: Option<Superblock> = None;
    for (at, disk) in disks.iter_mut().enumerate() {
        let (superblock, damaged) =
            superblock(*disk).map_err(|error| RecoveryError::NoSuperblock { disk: at, error })?;
        let like = first.get_or_insert_with(|| superblock.clone());
        if like.array != superblock.array || like.geometry != superblock.geometry {
            return Err(RecoveryError::ForeignDisk { disk: at });
        }
        let (slice, needed) = (superblock.index, superblock.geometry.slice_bytes());
        if disk.size_bytes() < needed {
            let bytes = disk.size_bytes();
            return Err(RecoveryError::Truncated { slice, bytes, needed });
        }
        if let Some(offset) = damaged {
            heal.push((usize::from(slice), offset, superblock.encode()));
        }
        if let Some((other, _)) = found.insert(slice, (at, superblock)) {
            return Err(RecoveryError::Duplicate { slice, disks: [other, at] });
        }
    }
    let of = first.map_or(0, |s| s.geometry.slices);
    let missing: Vec<u8> = (0..of).filter(|i| !found.contains_key(i)).collect();
    if of == 0 || !missing.is_empty() {
        return Err(RecoveryError::Missing { slices: missing, of });
    }
    let (order, superblocks): (Vec<_>, Vec<_>) = found.into_values().unzip();
    Ok((superblocks, order, heal))
}
