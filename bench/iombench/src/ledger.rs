//! The oracle at work: shared by all streams, its log written out before what it announces.
//!
//! `write(2)` is enough, without fsync: the state outlives this process and the server; it need
//! not outlive the host.

use crate::failure::{Failure, Kind};
use crate::nbd::wire::Command;
use crate::peer::Op;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use workload::{Crash, FlushTicket, Oracle, ReadTicket, SECTOR_BYTES};

/// The oracle's block: what an array keeps whole, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Mismatches that are told in full.
const TOLD_MAX: usize = 10;

/// What the oracle wants to know again when a request ends.
pub enum Ticket {
    /// The version that is being written.
    Write(u64),
    /// A read.
    Read(ReadTicket),
    /// A flush.
    Flush(FlushTicket),
}

struct Inner {
    oracle: Oracle,
    file: File,
    unwritten: Vec<u8>,
    mismatches: u64,
    told: Vec<String>,
}

/// See the module's documentation.
pub struct Ledger {
    path: PathBuf,
    inner: Mutex<Inner>,
    stream: u64,
    base_offset: u64,
    size: u64,
    /// Whether a flush covers what other connections wrote.
    flush_is_global: bool,
}

impl Ledger {
    /// The ledger for a range of the target in bytes, continued if `path` exists.
    pub fn open(path: &Path, offset: u64, size: u64) -> Result<Ledger, Failure> {
        let blocks = size / BLOCK_BYTES;
        if !offset.is_multiple_of(BLOCK_BYTES) || blocks == 0 {
            let context = "--verify needs an offset and a size in multiples of 4096 bytes";
            return Err(Failure::new(Kind::Usage, context));
        }
        let (mut oracle, base_offset) = match read(path)? {
            Some(found) => found,
            None => {
                let oracle = Oracle::new(blocks, BLOCK_BYTES as u32, fresh_stream());
                (oracle.with_unknown_content(), offset)
            }
        };
        let covered = base_offset..base_offset + oracle.blocks() * BLOCK_BYTES;
        if offset < covered.start || offset + blocks * BLOCK_BYTES > covered.end {
            let context = format!(
                "{}: the state covers bytes {covered:?} of the target, not {offset}..{}",
                path.display(),
                offset + size
            );
            return Err(Failure::new(Kind::State, context));
        }
        oracle.crash(Crash::Daemon);
        Ledger::start(path, oracle, base_offset)
    }

    /// A ledger that exists, to be verified after `crash`.
    pub fn open_existing(path: &Path, crash: Crash) -> Result<Ledger, Failure> {
        let Some((mut oracle, base_offset)) = read(path)? else {
            let context = format!("{}: there is no such state", path.display());
            return Err(Failure::new(Kind::State, context));
        };
        oracle.crash(crash);
        Ledger::start(path, oracle, base_offset)
    }

    fn start(path: &Path, mut oracle: Oracle, base_offset: u64) -> Result<Ledger, Failure> {
        let (stream, size) = (oracle.stream(), oracle.blocks() * BLOCK_BYTES);
        let file = replace(path, &oracle.save(base_offset))?;
        let inner = Inner { oracle, file, unwritten: Vec::new(), mismatches: 0, told: Vec::new() };
        let inner = Mutex::new(inner);
        let path = path.to_owned();
        Ok(Ledger { path, inner, stream, base_offset, size, flush_is_global: true })
    }

    /// For a server whose flush covers only what its own connection wrote.
    pub fn with_local_flush(mut self) -> Ledger {
        self.flush_is_global = false;
        self
    }

    /// The bytes of the target that it covers.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.base_offset..self.base_offset + self.size
    }

    /// The mark of the content.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// The first sector of `op`, as the oracle counts.
    pub fn sector(&self, op: &Op) -> u64 {
        (op.offset - self.base_offset) / SECTOR_BYTES as u64
    }

    /// Before `ops` are sent: the tickets, in the same order.
    pub fn begin(&self, ops: impl Iterator<Item = Op>) -> Result<Vec<Ticket>, Failure> {
        let mut inner = self.lock();
        let tickets = ops.map(|op| {
            let sectors = (op.length / SECTOR_BYTES) as u32;
            match op.command {
                Command::Read => Ticket::Read(inner.oracle.begin_read(self.sector(&op), sectors)),
                Command::Flush => Ticket::Flush(inner.oracle.begin_flush()),
                _ => Ticket::Write(inner.oracle.begin_write(self.sector(&op), sectors)),
            }
        });
        let tickets = tickets.collect();
        self.write_out(&mut inner)?;
        Ok(tickets)
    }

    /// Requests have ended; what was read is judged.
    pub fn finish<'a>(&self, ended: impl Iterator<Item = (Ticket, Op, Result<(), i32>, &'a [u8])>) {
        let mut inner = self.lock();
        for (ticket, op, result, bytes) in ended {
            match (ticket, result) {
                (Ticket::Write(version), Ok(())) => {
                    let durable = op.command == Command::Write { fua: true };
                    inner.oracle.acknowledge(version, durable);
                }
                (Ticket::Write(version), Err(_)) => inner.oracle.fail(version),
                (Ticket::Flush(ticket), Ok(())) if self.flush_is_global => {
                    inner.oracle.flushed(ticket);
                }
                (Ticket::Flush(_), _) => {}
                (Ticket::Read(ticket), Err(_)) => inner.oracle.cancel_read(ticket),
                (Ticket::Read(ticket), Ok(())) => {
                    let checked = inner.oracle.check_read(ticket, &bytes[..op.length]);
                    if let Err(mismatch) = checked {
                        let at = self.base_offset + mismatch.sector * SECTOR_BYTES as u64;
                        inner.mismatches += 1;
                        if inner.told.len() < TOLD_MAX {
                            inner.told.push(format!("at byte {at}: {mismatch}"));
                        }
                    }
                }
            }
        }
    }

    /// Writes out what the log still holds.
    pub fn close(&self) -> Result<(), Failure> {
        self.write_out(&mut self.lock())
    }

    /// Replaces the file by the state as it is now, after all of it was verified.
    pub fn settle(&self) -> Result<(), Failure> {
        let mut inner = self.lock();
        let bytes = inner.oracle.save(self.base_offset);
        inner.file = replace(&self.path, &bytes)?;
        Ok(())
    }

    /// The wrong reads so far, and the first of them in words.
    pub fn mismatches(&self) -> (u64, Vec<String>) {
        let inner = self.lock();
        (inner.mismatches, inner.told.clone())
    }

    /// How many blocks the oracle knows something of, and of how many several contents are right.
    pub fn known_blocks(&self) -> (u64, u64) {
        let oracle = &self.lock().oracle;
        let known = (0..oracle.blocks()).filter(|&block| oracle.knows(block)).count();
        (known as u64, oracle.unsettled_blocks() as u64)
    }

    fn write_out(&self, inner: &mut Inner) -> Result<(), Failure> {
        let Inner { oracle, file, unwritten, .. } = inner;
        oracle.take_log(unwritten);
        file.write_all(unwritten).map_err(|e| failed(&self.path, "write", e))?;
        unwritten.clear();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no stream panicked while it held the ledger")
    }
}

/// A mark that no earlier state has: what they wrote must not be taken for ours.
fn fresh_stream() -> u64 {
    let mut rng = workload::Rng::stream(sys::process::wall_clock_ns(), std::process::id().into());
    rng.next_u64()
}

fn read(path: &Path) -> Result<Option<(Oracle, u64)>, Failure> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, "read", error)),
    };
    let loaded = workload::load(&bytes)
        .map_err(|e| Failure::from_source(Kind::State, path.display().to_string(), e))?;
    if u64::from(loaded.header.block_size) != BLOCK_BYTES {
        let context = format!("{}: the state has another block size", path.display());
        return Err(Failure::new(Kind::State, context));
    }
    Ok(Some((loaded.oracle, loaded.header.base_offset)))
}

/// Puts `bytes` at `path` as a whole, and leaves the file open for more.
fn replace(path: &Path, bytes: &[u8]) -> Result<File, Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new);
    let written = file.as_mut().map_err(|e| std::io::Error::from(e.kind())).and_then(|file| {
        file.write_all(bytes)?;
        std::fs::rename(&new, path)
    });
    written.map_err(|e| failed(path, "write", e))?;
    file.map_err(|e| failed(path, "write", e))
}

fn failed(path: &Path, doing: &str, error: std::io::Error) -> Failure {
    Failure::from_source(Kind::State, format!("{}: {doing}", path.display()), error)
}
