//! Operations on slices: pending until the ring takes them, then in flight until they are whole.
//!
//! The kernel may transfer less than it was asked to, or be interrupted; the rest is then asked for
//! again, so that the engine hears of each operation once: done or failed.

use engine::port::{DiskResult, SliceIndex};
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use sys::arena::Iovec;
use sys::ring::{Ring, SEGMENTS_MAX};

/// Disk operations in flight at most, per worker; further ones are pending.
pub const IN_FLIGHT_MAX: usize = 2048;
/// Operations for which there is room from the start.
const OPERATIONS_PREPARED: usize = 4096;
/// Repetitions of an operation that makes no progress.
const REPEATS_MAX: u32 = 1000;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads.
    Read,
    /// Writes.
    Write {
        /// On stable storage when it completes.
        through: bool,
    },
    /// Makes what has completed stable.
    Flush,
}

#[derive(Debug)]
struct Operation {
    slice: SliceIndex,
    op: u64,
    action: Action,
    offset: u64,
    segments: Vec<Iovec>,
    /// The segment that is to be transferred next.
    at: usize,
    repeats: u32,
}

/// A disk operation that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of which slice.
    pub slice: SliceIndex,
    /// The engine's number for it.
    pub op: u64,
    /// What it did.
    pub action: Action,
    /// How it ended.
    pub result: DiskResult,
}

/// What became of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The operation has ended.
    Ended(Ended),
    /// Something is left of the operation of this slice, and was queued again.
    Continued(SliceIndex),
}

/// All disk operations of one worker.
#[derive(Debug)]
pub struct Disks {
    descriptors: Vec<RawFd>,
    operations: Slab<Operation>,
    pending: VecDeque<u32>,
    in_flight: usize,
    spare: Vec<Vec<Iovec>>,
    tag: u64,
}

impl Disks {
    /// For slices of these descriptors; completions carry `tag` in their upper half.
    pub fn new(descriptors: Vec<RawFd>, tag: u64) -> Disks {
        assert_eq!(tag as u32, 0, "the lower half names the operation");
        Disks {
            descriptors,
            operations: Slab::with_capacity(OPERATIONS_PREPARED),
            pending: VecDeque::with_capacity(OPERATIONS_PREPARED),
            in_flight: 0,
            spare: Vec::with_capacity(OPERATIONS_PREPARED),
            tag,
        }
    }

    /// Starts an operation, now or as soon as there is room. True when it has to wait.
    pub fn start(
        &mut self,
        ring: &mut Ring,
        slice: SliceIndex,
        op: u64,
        action: Action,
        offset: u64,
        memory: impl Iterator<Item = Iovec>,
    ) -> bool {
        let mut segments = self.spare.pop().unwrap_or_default();
        for segment in memory {
            match segments.last_mut().and_then(|last: &mut Iovec| last.join(segment)) {
                Some(joined) => *segments.last_mut().expect("it was just seen") = joined,
                None => segments.push(segment),
            }
        }
        let operation = Operation { slice, op, action, offset, segments, at: 0, repeats: 0 };
        let key = self.operations.insert(operation) as u32;
        self.pending.push_back(key);
        self.submit_pending(ring);
        !self.pending.is_empty()
    }

    /// Moves pending operations to the ring, as far as there is room.
    pub fn submit_pending(&mut self, ring: &mut Ring) {
        while let Some(key) = self.pending.front().copied() {
            if self.in_flight >= IN_FLIGHT_MAX || !self.push(ring, key) {
                return;
            }
            self.pending.pop_front();
            self.in_flight += 1;
        }
    }

    fn push(&self, ring: &mut Ring, key: u32) -> bool {
        let operation = &self.operations[key as usize];
        let fd = self.descriptors[usize::from(operation.slice)];
        let user_data = self.tag | u64::from(key);
        let rest = &operation.segments[operation.at..];
        let segments = &rest[..rest.len().min(SEGMENTS_MAX)];
        match operation.action {
            Action::Read => ring.read(fd, operation.offset, segments, user_data),
            Action::Write { through } => {
                ring.write(fd, operation.offset, segments, through, user_data)
            }
            Action::Flush => ring.fsync_data(fd, user_data),
        }
    }

    /// Takes note of a completion; `key` is the lower half of its user data.
    pub fn completed(&mut self, key: u32, result: i32) -> Progress {
        self.in_flight -= 1;
        let operation = &mut self.operations[key as usize];
        let outcome = operation.advance(result);
        let Some(result) = outcome else {
            self.pending.push_front(key);
            return Progress::Continued(operation.slice);
        };
        let mut operation = self.operations.remove(key as usize);
        operation.segments.clear();
        self.spare.push(operation.segments);
        let Operation { slice, op, action, .. } = operation;
        Progress::Ended(Ended { slice, op, action, result })
    }

    /// Operations that wait for room.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing is pending or in flight.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }
}

impl Operation {
    /// What the operation's end is, or none when something is left to do.
    fn advance(&mut self, result: i32) -> Option<DiskResult> {
        if result == -EINTR || result == -EAGAIN {
            self.repeats += 1;
            return (self.repeats > REPEATS_MAX).then_some(DiskResult::Failed);
        }
        let Ok(mut bytes) = usize::try_from(result) else { return Some(DiskResult::Failed) };
        if self.action == Action::Flush {
            return Some(DiskResult::Done);
        }
        if bytes == 0 {
            // The slice ends here: it is shorter than its superblock says.
            return Some(DiskResult::Failed);
        }
        self.repeats = 0;
        self.offset += bytes as u64;
        while let Some(segment) = self.segments.get_mut(self.at) {
            let taken = bytes.min(segment.len());
            *segment = segment.skip(taken);
            bytes -= taken;
            if !segment.is_empty() {
                return None;
            }
            self.at += 1;
            if bytes == 0 {
                break;
            }
        }
        (self.at == self.segments.len()).then_some(DiskResult::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::arena::Arena;

    fn operation(arena: &Arena, pages: &[u32]) -> Operation {
        let segments = pages.iter().map(|page| arena.iovec(*page, 0, 4096)).collect();
        Operation {
            slice: 0,
            op: 1,
            action: Action::Read,
            offset: 8192,
            segments,
            at: 0,
            repeats: 0,
        }
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let arena = Arena::private(4096, 8).expect("memory");
        let mut operation = operation(&arena, &[1, 3, 5]);
        assert_eq!(operation.advance(4096 + 512), None);
        assert_eq!((operation.at, operation.offset), (1, 8192 + 4608));
        assert_eq!(operation.segments[1], arena.iovec(3, 512, 3584));
        assert_eq!(operation.advance(-EINTR), None);
        assert_eq!(operation.advance(3584), None);
        assert_eq!(operation.advance(4096), Some(DiskResult::Done));
    }

    #[test]
    fn errors_and_an_early_end_are_failures() {
        let arena = Arena::private(4096, 8).expect("memory");
        assert_eq!(operation(&arena, &[1]).advance(-5), Some(DiskResult::Failed));
        assert_eq!(operation(&arena, &[1]).advance(0), Some(DiskResult::Failed));
        let mut stubborn = operation(&arena, &[1]);
        let ends = (0..=REPEATS_MAX).filter_map(|_| stubborn.advance(-EAGAIN)).count();
        assert_eq!(ends, 1, "it is given up in the end");
    }
}
