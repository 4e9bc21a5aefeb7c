//! Slices as the offline commands use them: opened, locked, read and written by the engine.

use crate::failure::{Code, Failure};
use engine::disk::{Disk, DiskError};
use engine::geometry::SECTOR_BYTES;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::file::{SliceError, SliceErrorKind, SliceFile};

/// How long a lock is waited for: a daemon that was just killed holds it until its last write ends.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A slice behind the engine's [`Disk`]; remembers what went wrong last.
#[derive(Debug)]
pub struct SliceDisk {
    file: SliceFile,
    error: Option<SliceError>,
}

impl SliceDisk {
    /// The slice.
    pub fn file(&self) -> &SliceFile {
        &self.file
    }

    /// The last failure, in full.
    pub fn take_error(&mut self) -> Option<SliceError> {
        self.error.take()
    }

    fn keep(&mut self, done: Result<(), SliceError>) -> Result<(), DiskError> {
        done.map_err(|error| {
            self.error = Some(error);
            DiskError
        })
    }
}

impl Disk for SliceDisk {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        let done = self.file.read_at(offset, bytes);
        self.keep(done)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let done = self.file.write_at(offset, bytes);
        self.keep(done)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let done = self.file.flush();
        self.keep(done)
    }
}

/// Opens a slice: with the exclusive lock to write, with a shared one to read.
pub fn open(path: &Path, read_only: bool) -> Result<SliceDisk, Failure> {
    let file = SliceFile::open(path, read_only, LOCK_PATIENCE).map_err(failure)?;
    if u64::from(file.block_size()) > SECTOR_BYTES {
        let message = format!(
            "{}: its smallest I/O is {} bytes; slices need 4096 or less",
            path.display(),
            file.block_size()
        );
        return Err(Failure::new(Code::Failed, message));
    }
    Ok(SliceDisk { file, error: None })
}

/// Opens slices to read, and refuses one that is named twice.
pub fn open_all_to_read(paths: &[PathBuf]) -> Result<Vec<SliceDisk>, Failure> {
    let mut disks = vec![];
    let mut seen = HashMap::new();
    for path in paths {
        let disk = open(path, true)?;
        if let Some(other) = seen.insert(disk.file.identity(), path) {
            return Err(twice(other, path));
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// The same storage was named by two paths.
pub fn twice(first: &Path, second: &Path) -> Failure {
    let message = format!("{} and {} are the same slice", first.display(), second.display());
    Failure::new(Code::Usage, message).advise("name each slice once")
}

/// What a slice's error means for the command.
pub fn failure(error: SliceError) -> Failure {
    let (code, advice) = match error.kind {
        SliceErrorKind::NotFound => (Code::NotFound, "check the path"),
        SliceErrorKind::Exists => (Code::Refused, "it appeared meanwhile: look at it, then retry"),
        SliceErrorKind::WrongType => (Code::Failed, "a slice is a regular file or a block device"),
        SliceErrorKind::Busy => {
            (Code::Refused, "unmount it, or take it out of what uses it, and try again")
        }
        SliceErrorKind::Locked => {
            (Code::Refused, "a daemon serves it: ask `iomctl status`, or stop the daemon first")
        }
        SliceErrorKind::NoDirectIo => {
            (Code::Failed, "use a filesystem with direct I/O, such as ext4, xfs or btrfs")
        }
        SliceErrorKind::NoSpace => (Code::Failed, "free some room, or choose a smaller size"),
        SliceErrorKind::EndOfSlice => (Code::Failed, "it is shorter than what it should hold"),
        SliceErrorKind::Permission => (Code::Permission, "run this as root or as its owner"),
        SliceErrorKind::Io => (Code::Failed, "look at the kernel's log for the device's error"),
    };
    Failure::new(code, error.to_string()).advise(advice)
}
