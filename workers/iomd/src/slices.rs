//! The array's slices: opened, locked, and as disks of the engine.

use crate::failure::Failure;
use engine::disk::{Disk, DiskError};
use engine::recovery::RecoveryError;
use std::path::PathBuf;
use std::time::Duration;
use sys::file::{SliceErrorKind, SliceFile};

/// How long to wait for the last writes of a killed daemon, and for one that is about to end.
const LOCK_TIME_MAX: Duration = Duration::from_secs(10);

/// Opens and locks all slices; the same one twice is refused.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<SliceFile>, Failure> {
    let mut slices: Vec<SliceFile> = Vec::new();
    for path in paths {
        // Looked for before locking: the second lock of one slice would be waited for.
        let twice = paths.iter().filter(|other| *other == path).count() > 1;
        if twice {
            return Err(Failure::usage(format!("slice {} is named twice", path.display())));
        }
        let slice = SliceFile::open(path, false, LOCK_TIME_MAX).map_err(|error| {
            let advice = match error.kind {
                SliceErrorKind::Locked if is_open(&slices, path) => {
                    "it is the same as another slice of the command line"
                }
                SliceErrorKind::Locked => "is another iomd serving it? Stop that one first",
                SliceErrorKind::NotFound => "all slices are needed; nothing was changed",
                SliceErrorKind::NoDirectIo => "put the slice on another filesystem",
                SliceErrorKind::Busy => "unmount it, or stop what uses it",
                _ => "nothing was changed",
            };
            Failure::failed(format!("slice {error}: {advice}"))
        })?;
        slices.push(slice);
    }
    Ok(slices)
}

fn is_open(slices: &[SliceFile], path: &std::path::Path) -> bool {
    let canonical = std::fs::canonicalize(path).ok();
    slices.iter().any(|slice| std::fs::canonicalize(slice.path()).ok() == canonical)
}

/// A slice as the engine's synchronous disk.
pub struct SyncDisk<'a>(pub &'a SliceFile);

impl SyncDisk<'_> {
    fn note<T>(result: Result<T, sys::file::SliceError>) -> Result<T, DiskError> {
        result.map_err(|error| {
            tracing::error!(%error, "a slice does not do what it should");
            DiskError
        })
    }
}

impl Disk for SyncDisk<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        Self::note(self.0.read_at(offset, bytes))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        Self::note(self.0.write_at(offset, bytes))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Self::note(self.0.flush())
    }
}

/// Why the array on these slices cannot be served, in terms of their paths.
pub fn explain(error: &RecoveryError, slices: &[SliceFile]) -> Failure {
    let path = |disk: usize| slices[disk].path().display().to_string();
    let text = match error {
        RecoveryError::NoSuperblock { disk, error } => format!(
            "slice {}: not a slice of an array ({error}); `iomctl array create` makes one",
            path(*disk)
        ),
        RecoveryError::ForeignDisk { disk } => {
            format!("slice {}: it belongs to another array than {}", path(*disk), path(0))
        }
        RecoveryError::Duplicate { slice, disks: [a, b] } => format!(
            "slices {} and {} are both number {slice} of the array; keep only one of them",
            path(*a),
            path(*b)
        ),
        RecoveryError::Missing { .. } => {
            format!("{error}; name each of them with --slice. Nothing was changed")
        }
        other => format!("the array cannot be served: {other}; `iomctl check` tells more"),
    };
    Failure::failed(text)
}
