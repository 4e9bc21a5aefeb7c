//! Directories for tests: fresh, and gone afterwards.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed, with what it holds, when the test ends.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A directory on a disk-backed filesystem (or whatever holds temporary files).
    pub fn new() -> Scratch {
        Scratch::below(&std::env::temp_dir())
    }

    /// A directory on a tmpfs.
    pub fn on_tmpfs() -> Scratch {
        Scratch::below(Path::new("/dev/shm"))
    }

    fn below(parent: &Path) -> Scratch {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("iomd-sys-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory for the test");
        Scratch(path)
    }

    /// A path inside the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
