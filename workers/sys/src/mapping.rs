//! One memory mapping that is never undone.
//!
//! A request in flight, or a registration with a ring, may touch the memory at any time until the
//! process ends, so there is no unmapping: what is mapped here stays.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A readable and writable mapping, aligned to the system's page (4096 bytes or more), alive until
/// the process ends.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory that no thread owns; whoever makes references into it
// (`Arena`, `Buffer`) keeps Rust's aliasing rules across threads.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself only hands out addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory of `length` bytes.
    pub fn private(length: usize) -> io::Result<Mapping> {
        Mapping::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// The first `length` bytes of `file`, shared with every other mapping of it. The file must be
    /// that long and must not shrink: touching a page beyond its end raises SIGBUS.
    pub fn shared(file: &File, length: usize) -> io::Result<Mapping> {
        Mapping::map(length, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(length: usize, flags: i32, fd: i32) -> io::Result<Mapping> {
        assert!(length > 0, "an empty mapping");
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_NORESERVE,
                fd,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).expect("mmap gave address 0");
        Ok(Mapping { base, length })
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Makes every page present, so that no later access waits for the kernel to find one. False
    /// when it could not (an older kernel, no memory).
    pub fn populate(&self) -> bool {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Asks for huge pages. False when the kernel has none for this mapping.
    pub fn prefer_huge_pages(&self) -> bool {
        self.advise(libc::MADV_HUGEPAGE)
    }

    /// Keeps the memory out of core dumps, which would otherwise hold clients' data.
    pub fn exclude_from_core_dumps(&self) -> bool {
        self.advise(libc::MADV_DONTDUMP)
    }

    /// Locks the memory, so that it is never paged out. False when the limit on locked memory
    /// forbids it.
    pub fn lock(&self) -> bool {
        // SAFETY: the range is this mapping; locking changes no contents.
        unsafe { libc::mlock(self.base.as_ptr().cast(), self.length) == 0 }
    }

    fn advise(&self, advice: i32) -> bool {
        // SAFETY: the range is this mapping, and none of the advices used here changes its
        // contents.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.length, advice) == 0 }
    }
}
