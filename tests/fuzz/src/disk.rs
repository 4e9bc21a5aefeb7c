//! Disks in memory with a volatile cache, and with sectors that do not read.

use engine::disk::{Disk, DiskError};
use engine::geometry::SECTOR_BYTES;
use std::collections::BTreeSet;
use workload::Rng;

/// A disk. What was written is seen at once, and survives a power cut after the next flush.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk {
    pub(crate) bytes: Vec<u8>,
    /// Numbers of sectors that do not read until they are written.
    pub(crate) unreadable: BTreeSet<u64>,
    /// What unflushed writes have replaced, in order: offset and old bytes.
    replaced: Vec<(usize, Vec<u8>)>,
}

impl MemoryDisk {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self { bytes: vec![0; size_bytes as usize], ..Self::default() }
    }

    fn range(&self, offset: u64, length: usize) -> Result<std::ops::Range<usize>, DiskError> {
        assert!(offset.is_multiple_of(SECTOR_BYTES), "aligned");
        assert!((length as u64).is_multiple_of(SECTOR_BYTES), "whole sectors");
        let end = offset.checked_add(length as u64).ok_or(DiskError)?;
        let inside = end <= self.bytes.len() as u64;
        if inside { Ok(offset as usize..end as usize) } else { Err(DiskError) }
    }

    /// The power goes: each unflushed write is lost or not, by itself.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        for (at, old) in std::mem::take(&mut self.replaced).into_iter().rev() {
            if rng.percent(50) {
                self.bytes[at..at + old.len()].copy_from_slice(&old);
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        let range = self.range(offset, bytes.len())?;
        let sectors = offset / SECTOR_BYTES..range.end as u64 / SECTOR_BYTES;
        if self.unreadable.range(sectors).next().is_some() {
            return Err(DiskError);
        }
        bytes.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let range = self.range(offset, bytes.len())?;
        let sectors = offset / SECTOR_BYTES..range.end as u64 / SECTOR_BYTES;
        self.unreadable.retain(|sector| !sectors.contains(sector));
        self.replaced.push((range.start, self.bytes[range.clone()].to_vec()));
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.replaced.clear();
        Ok(())
    }
}

/// As the engine takes them.
pub(crate) fn borrowed(disks: &mut [MemoryDisk]) -> Vec<&mut dyn Disk> {
    disks.iter_mut().map(|disk| disk as &mut dyn Disk).collect()
}
