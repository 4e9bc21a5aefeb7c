//! Memory that may be given to the kernel: it belongs to the process for good, whoever names it.

use crate::mapping::Mapping;
use std::io;

/// A range of memory that belongs to the process and may be given to the kernel. Only an arena and
/// [`Buffer`] make them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iovec {
    address: usize,
    length: usize,
}

impl Iovec {
    /// `length` bytes from `address` on, which must belong to the process for good.
    pub(crate) fn new(address: usize, length: usize) -> Iovec {
        Iovec { address, length }
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What is left after the first `count` bytes. Panics when there are fewer.
    pub fn skip(self, count: usize) -> Iovec {
        assert!(count <= self.length, "skip {count} of {} bytes", self.length);
        Iovec { address: self.address + count, length: self.length - count }
    }

    /// The first `count` bytes. Panics when there are fewer.
    pub fn prefix(self, count: usize) -> Iovec {
        assert!(count <= self.length, "prefix {count} of {} bytes", self.length);
        Iovec { address: self.address, length: count }
    }

    /// Both as one, where `next` begins at this one's end.
    pub fn join(self, next: Iovec) -> Option<Iovec> {
        let adjacent = self.address + self.length == next.address;
        adjacent.then_some(Iovec { address: self.address, length: self.length + next.length })
    }
}

/// Memory of its own for requests, aligned to 4096 bytes. Like an arena it is never given back to
/// the system: make buffers at start, not along the way. The owner leaves it alone while a request
/// uses it.
#[derive(Debug)]
pub struct Buffer {
    mapping: Mapping,
}

impl Buffer {
    /// A zeroed buffer of `length` bytes (at least 1).
    pub fn new(length: usize) -> io::Result<Buffer> {
        Ok(Buffer { mapping: Mapping::private(length)? })
    }

    /// The memory from `offset` on, `length` bytes.
    pub fn iovec(&self, offset: usize, length: usize) -> Iovec {
        let whole = Iovec { address: self.mapping.base() as usize, length: self.mapping.length() };
        whole.skip(offset).prefix(length)
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range is the whole mapping; `bytes_mut` needs the buffer exclusively;
        // requests are the owner's to mind.
        unsafe { std::slice::from_raw_parts(self.mapping.base(), self.mapping.length()) }
    }

    /// The contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base(), self.mapping.length()) }
    }
}
