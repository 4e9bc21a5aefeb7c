//! Why an arena could not be made.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why an arena could not be made.
#[derive(Debug)]
pub enum ArenaError {
    /// The file is not on a tmpfs, so its memory could not be registered with a ring.
    NotTmpfs {
        /// The staging file.
        path: PathBuf,
    },
    /// Another process holds the file's lock.
    Locked {
        /// The staging file.
        path: PathBuf,
    },
    /// The file exists with a size that does not fit the geometry asked for.
    Size {
        /// The staging file.
        path: PathBuf,
        /// Size that the geometry needs, in bytes.
        expected_bytes: u64,
        /// Size found, in bytes.
        found_bytes: u64,
    },
    /// The tmpfs has no room for the region.
    NoSpace {
        /// The staging file.
        path: PathBuf,
        /// Size that the geometry needs, in bytes.
        needed_bytes: u64,
    },
    /// A system call failed.
    Io {
        /// What was tried.
        doing: &'static str,
        /// The staging file; none for a private arena.
        path: Option<PathBuf>,
        /// The system's answer.
        source: io::Error,
    },
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArenaError::NotTmpfs { path } => {
                write!(f, "staging region {}: not on a tmpfs", path.display())
            }
            ArenaError::Locked { path } => {
                write!(f, "staging region {}: in use by another process", path.display())
            }
            ArenaError::Size { path, expected_bytes, found_bytes } => write!(
                f,
                "staging region {}: has {found_bytes} bytes, not {expected_bytes}",
                path.display()
            ),
            ArenaError::NoSpace { path, needed_bytes } => write!(
                f,
                "staging region {}: the tmpfs has no room for {needed_bytes} bytes",
                path.display()
            ),
            ArenaError::Io { doing, path: Some(path), source } => {
                write!(f, "staging region {}: {doing}: {source}", path.display())
            }
            ArenaError::Io { doing, path: None, source } => write!(f, "arena: {doing}: {source}"),
        }
    }
}

impl std::error::Error for ArenaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ArenaError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
