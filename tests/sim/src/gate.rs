//! A disk as making, recovering and checking see it: one step after another, with a fuse that
//! may cut them off.

use crate::disk::SimDisk;
use engine::disk::{Disk, DiskError};
use std::cell::RefCell;
use std::rc::Rc;

/// Where a recovery is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// In the disk operation of this number.
    Step(u64),
    /// In the flush of this number.
    Flush(u64),
}

/// Counts the steps of a recovery; once it has burnt nothing works any more.
#[derive(Debug, Default)]
pub struct Fuse {
    /// When it burns, if ever.
    pub cut: Option<Cut>,
    /// It has burnt.
    pub burnt: bool,
    /// Steps taken.
    pub steps: u64,
    /// Flushes among them.
    pub flushes: u64,
}

impl Fuse {
    /// A fuse that disks share.
    #[must_use]
    pub fn shared(cut: Option<Cut>) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { cut, ..Self::default() }))
    }

    /// `Ok(false)` is the very step in which it burns.
    fn step(&mut self, flush: bool) -> Result<bool, DiskError> {
        self.steps += 1;
        self.flushes += u64::from(flush);
        if self.burnt {
            return Err(DiskError);
        }
        self.burnt = self.cut.is_some_and(|cut| match cut {
            Cut::Step(step) => self.steps >= step,
            Cut::Flush(number) => self.flushes >= number,
        });
        Ok(!self.burnt)
    }
}

/// A disk as making, recovering and checking see it, with a fuse.
pub struct Gate<'a> {
    /// The disk.
    pub disk: &'a mut SimDisk,
    /// Shared by all disks of the array.
    pub fuse: Rc<RefCell<Fuse>>,
    /// Whether writing is an error: checkers only look.
    pub read_only: bool,
    /// Writes seen.
    pub writes: u64,
}

impl Disk for Gate<'_> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        let fine = self.fuse.borrow_mut().step(false)?;
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "unaligned read");
        if !fine {
            return Err(DiskError);
        }
        self.disk.read_now(offset, bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let fine = self.fuse.borrow_mut().step(false)?;
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "unaligned write");
        self.writes += 1;
        if self.read_only || !self.disk.contains(offset, bytes.len()) {
            return Err(DiskError);
        }
        self.disk.write_now(offset, bytes, fine);
        if fine { Ok(()) } else { Err(DiskError) }
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if !self.fuse.borrow_mut().step(true)? {
            return Err(DiskError);
        }
        self.disk.flush_now();
        Ok(())
    }
}

/// Lends disks to the engine's synchronous side, in the given order.
pub fn with_disks<T>(
    disks: &mut [SimDisk],
    fuse: &Rc<RefCell<Fuse>>,
    read_only: bool,
    order: Option<&[usize]>,
    act: impl FnOnce(&mut [&mut dyn Disk]) -> T,
) -> T {
    let gate = |disk| Gate { disk, fuse: fuse.clone(), read_only, writes: 0 };
    let mut gates: Vec<(usize, Gate<'_>)> = disks.iter_mut().map(gate).enumerate().collect();
    if let Some(order) = order {
        gates.sort_by_key(|(i, _)| order.iter().position(|o| o == i));
    }
    let mut lent: Vec<&mut dyn Disk> = gates.iter_mut().map(|(_, g)| g as &mut dyn Disk).collect();
    act(&mut lent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::Rng;

    #[test]
    fn after_its_fuse_has_burnt_nothing_works() {
        let mut d = SimDisk::new(1 << 16, true, Rng::new(1));
        let fuse = Fuse::shared(Some(Cut::Step(2)));
        let mut gate = Gate { disk: &mut d, fuse: fuse.clone(), read_only: false, writes: 0 };
        assert_eq!(gate.write(0, &[1; 4096]), Ok(()));
        assert_eq!(gate.write(0, &[2; 4096]), Err(DiskError));
        assert_eq!(gate.read(0, &mut [0; 4096]), Err(DiskError));
        assert_eq!(gate.flush(), Err(DiskError));
        assert!(fuse.borrow().burnt);
    }
}
