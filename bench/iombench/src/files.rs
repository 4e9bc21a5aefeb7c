//! Files and block devices as a target: raw direct I/O, requests spread over them.
//!
//! The files are striped in pieces of 64 KiB: a sequential run uses all of them, and uniformly
//! random requests fall uniformly on them. The parts of a request that lie in one file follow one
//! another there, so they are one gathered request.

use crate::failure::{Failure, Kind};
use crate::nbd::wire::Command;
use crate::peer::{Done, Op, user_data};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::arena::{Buffer, Iovec};
use sys::ring::Ring;

/// Striping unit in bytes.
const STRIPE_BYTES: u64 = 64 << 10;
/// How long a lock is waited for: a killed writer's last requests still land.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const EIO: i32 = 5;

/// Open files, shared by all streams.
pub struct OpenFiles {
    files: Vec<File>,
    /// The size of each in bytes.
    pub sizes: Vec<u64>,
}

impl OpenFiles {
    /// Opens all for direct I/O. To write, a block device must not be in use. With `exclusive` each
    /// is locked, which also waits for the last requests of a killed writer.
    pub fn open(paths: &[PathBuf], write: bool, exclusive: bool) -> Result<OpenFiles, Failure> {
        let mut files = Vec::new();
        let mut sizes = Vec::new();
        for path in paths {
            let failed = |doing: &str, error: io::Error| {
                let context = format!("{}: {doing}", path.display());
                Failure::from_source(Kind::Target, context, error)
            };
            let metadata = std::fs::metadata(path).map_err(|e| failed("open", e))?;
            let mut flags = nix::fcntl::OFlag::O_DIRECT;
            if metadata.file_type().is_block_device() && write {
                flags |= nix::fcntl::OFlag::O_EXCL;
            }
            let mut options = OpenOptions::new();
            options.read(true).write(write).custom_flags(flags.bits());
            let mut file = options.open(path).map_err(|e| failed("open", e))?;
            if exclusive {
                lock(&file).map_err(|e| failed("lock (is it in use?)", e))?;
            }
            sizes.push(file.seek(SeekFrom::End(0)).map_err(|e| failed("size", e))?);
            files.push(file);
        }
        Ok(OpenFiles { files, sizes })
    }

    /// The usable size of all together in bytes: whole stripes of the smallest.
    pub fn size(&self) -> u64 {
        let smallest = self.sizes.iter().copied().min().unwrap_or(0);
        match self.files.len() as u64 {
            1 => smallest / 512 * 512,
            count => smallest / STRIPE_BYTES * STRIPE_BYTES * count,
        }
    }

    /// One of the files by itself.
    pub fn single(&self, index: usize) -> Result<OpenFiles, Failure> {
        let file = self.files[index].try_clone();
        let file = file.map_err(|e| Failure::from_source(Kind::System, "a descriptor", e))?;
        Ok(OpenFiles { files: vec![file], sizes: vec![self.sizes[index]] })
    }

    /// The number of files.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Which file, and where in it, holds `offset`; and how far that piece goes, in bytes.
    fn place(&self, offset: u64) -> (usize, u64, u64) {
        let count = self.files.len() as u64;
        if count == 1 {
            return (0, offset, u64::MAX);
        }
        let (stripe, inside) = (offset / STRIPE_BYTES, offset % STRIPE_BYTES);
        let file = (stripe % count) as usize;
        (file, stripe / count * STRIPE_BYTES + inside, STRIPE_BYTES - inside)
    }
}

fn lock(file: &File) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begin.elapsed() > LOCK_PATIENCE => {
                return Err(io::Error::from(io::ErrorKind::ResourceBusy));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The part of a request that one file serves.
struct Part {
    slot: usize,
    file: usize,
    offset: u64,
    segments: Vec<Iovec>,
}

/// One stream of requests to the files.
pub struct FileSet {
    files: Arc<OpenFiles>,
    pending: Vec<(Part, Command)>,
    /// For each slot: parts in flight, bytes still to come, the first error.
    slots: Vec<(usize, usize, Result<(), i32>)>,
}

impl FileSet {
    /// A stream of `depth` requests at a time.
    pub fn new(files: Arc<OpenFiles>, depth: usize) -> FileSet {
        FileSet { files, pending: Vec::new(), slots: vec![(0, 0, Ok(())); depth] }
    }

    /// The number of files.
    pub fn count(&self) -> usize {
        self.files.files.len()
    }

    /// See [`crate::peer::Peer::queue`].
    pub fn queue(&mut self, slot: usize, op: Op, buffer: &Buffer) {
        let parts = match op.command {
            Command::Flush => self.flush_parts(slot),
            _ => self.parts(slot, op, buffer),
        };
        self.slots[slot] = (parts.len(), op.length, Ok(()));
        self.pending.extend(parts.into_iter().map(|part| (part, op.command)));
    }

    fn flush_parts(&self, slot: usize) -> Vec<Part> {
        let part = |file| Part { slot, file, offset: 0, segments: Vec::new() };
        (0..self.count()).map(part).collect()
    }

    fn parts(&self, slot: usize, op: Op, buffer: &Buffer) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut done = 0;
        while done < op.length {
            let (file, offset, piece) = self.files.place(op.offset + done as u64);
            let length = (op.length - done).min(usize::try_from(piece).unwrap_or(usize::MAX));
            let segment = buffer.iovec(done, length);
            match parts.iter_mut().find(|part| part.file == file) {
                Some(part) => part.segments.push(segment),
                None => parts.push(Part { slot, file, offset, segments: vec![segment] }),
            }
            done += length;
        }
        parts
    }

    /// See [`crate::peer::Peer::push`].
    pub fn push(&mut self, ring: &mut Ring, index: u32) {
        for (part, command) in self.pending.drain(..) {
            let fd = self.files.files[part.file].as_raw_fd();
            let tag = user_data(index, part.slot as u32);
            let queued = match command {
                Command::Read => ring.read(fd, part.offset, &part.segments, tag),
                Command::Write { fua } => ring.write(fd, part.offset, &part.segments, fua, tag),
                Command::Flush => ring.fsync_data(fd, tag),
                Command::Disconnect => unreachable!("files have no connection"),
            };
            assert!(queued, "the ring is too small");
        }
    }

    /// See [`crate::peer::Peer::complete`].
    pub fn complete(&mut self, token: u32, result: io::Result<usize>, done: &mut Vec<Done>) {
        let (parts, bytes, outcome) = &mut self.slots[token as usize];
        *parts -= 1;
        match result {
            Ok(count) => *bytes = bytes.saturating_sub(count),
            Err(error) => *outcome = outcome.and(Err(error.raw_os_error().unwrap_or(EIO))),
        }
        if *parts == 0 {
            // A short request met the end of the file.
            let whole = if *bytes == 0 { Ok(()) } else { Err(EIO) };
            done.push((token as usize, outcome.and(whole)));
        }
    }
}
