//! The verifying oracle: it knows of every block what a correct store may return.
//!
//! It lives outside the victim. Every write gets a version that its content carries (see
//! [`crate::content`]); the oracle keeps, for each block, which writes may still be seen. What was
//! acknowledged must survive a crash of the daemon, what was durable (FUA, or acknowledged before
//! a FLUSH was sent) a power cut; what was in flight may have happened or not, but once it has been
//! observed after the crash that outcome stands. Overlapping writes in flight may end in any order.
//! A discard is a write of zeros.
//!
//! Blocks with a single durable version take eight bytes; only the others have a history.

mod history;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use history::{Content, History, Outcome, Write};
use history::{View, places};

use crate::content::{SECTOR_BYTES, Sector, decode_sector, fill};
use crate::state::Log;

/// The largest block that the oracle handles, in bytes.
pub const BLOCK_BYTES_MAX: u32 = 128 * SECTOR_BYTES as u32;

/// How the victim stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The daemon died, the host stayed up: everything acknowledged must survive.
    Daemon,
    /// The host died with its memory: everything durable must survive.
    PowerCut,
}

/// What is wrong with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MismatchKind {
    /// A version older than one that must have survived, or seen not to have happened.
    Stale,
    /// Zeros where data must have survived.
    LostToZeros,
    /// A version of ours that this oracle never sent, though the address is right.
    NeverSent,
    /// Our sector of another address.
    Misplaced,
    /// A sector whose header is ours and whose fill is not.
    Damaged,
    /// Content that this oracle did not write.
    Foreign,
    /// Parts of two writes in one block.
    Torn,
}

impl MismatchKind {
    /// A stable name for reports.
    pub fn name(self) -> &'static str {
        match self {
            MismatchKind::Stale => "stale",
            MismatchKind::LostToZeros => "lost_to_zeros",
            MismatchKind::NeverSent => "never_sent",
            MismatchKind::Misplaced => "misplaced",
            MismatchKind::Damaged => "damaged",
            MismatchKind::Foreign => "foreign",
            MismatchKind::Torn => "torn",
        }
    }
}

/// A block that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The block's number.
    pub block: u64,
    /// The first wrong sector, counted from the beginning of the range.
    pub sector: u64,
    /// What is wrong.
    pub kind: MismatchKind,
    /// What the sector holds.
    pub found: Sector,
    /// The versions it may hold (0: as it was in the beginning).
    pub expected: Vec<u64>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mismatch { block, sector, kind, found, expected } = self;
        let kind = kind.name();
        write!(f, "block {block}, sector {sector}: {kind}: found {found:?}, expected ")?;
        write!(f, "one of the versions {expected:?}")
    }
}

impl std::error::Error for Mismatch {}

/// A read under way; give it back to [`Oracle::check_read`] or [`Oracle::cancel_read`].
#[must_use]
#[derive(Debug)]
pub struct ReadTicket {
    issued: u64,
    first_sector: u64,
    sectors: u32,
}

/// A flush under way; give it to [`Oracle::flushed`] once it was acknowledged, else drop it.
#[derive(Debug)]
pub struct FlushTicket {
    issued: u64,
}

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) first_sector: u64,
    pub(crate) sectors: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Oracle {
    pub(crate) stream: u64,
    pub(crate) block_size: u32,
    pub(crate) clock: u64,
    pub(crate) settled: Vec<Settled>,
    pub(crate) active: BTreeMap<u64, History>,
    in_flight: BTreeMap<u64, Request>,
    reads: BTreeSet<u64>,
    last_power_cut: u64,
    atomic_reads: bool,
    pub(crate) log: Option<Log>,
}

/// The only write that a block can show: a version and two bits of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled(pub(crate) u64);

const ZEROS_BIT: u64 = 1 << 63;
const UNKNOWN_BIT: u64 = 1 << 62;

impl Settled {
    pub(crate) fn version(self) -> u64 {
        self.0 & !(ZEROS_BIT | UNKNOWN_BIT)
    }

    fn content(self) -> Content {
        match (self.0 & ZEROS_BIT, self.0 & UNKNOWN_BIT) {
            (0, 0) => Content::Data,
            (0, _) => Content::Unknown,
            _ => Content::Zeros,
        }
    }

    fn history(self, full: u128) -> History {
        let version = self.version();
        let (content, outcome) = (self.content(), Outcome::Durable);
        let only = Write {
            version,
            end: version,
            mask: full,
            possible: full,
            ruled_out_at: 0,
            content,
            outcome,
        };
        History { live: vec![only], past: Vec::new() }
    }

    fn of(history: &History, full: u128) -> Option<Settled> {
        let [only] = &history.live[..] else { return None };
        let plain = history.past.is_empty()
            && (only.mask, only.possible) == (full, full)
            && only.outcome == Outcome::Durable;
        let bits = match only.content {
            Content::Data => 0,
            Content::Zeros => ZEROS_BIT,
            Content::Unknown => UNKNOWN_BIT,
        };
        plain.then_some(Settled(only.version | bits))
    }
}

impl Oracle {
    /// The oracle of `blocks` blocks of `block_size` bytes (a multiple of 512, at most 64 KiB) that
    /// hold zeros. `stream` marks the content as this oracle's; use a new one for every new state.
    pub fn new(blocks: u64, block_size: u32, stream: u64) -> Oracle {
        assert!(
            block_size > 0
                && block_size.is_multiple_of(SECTOR_BYTES as u32)
                && block_size <= BLOCK_BYTES_MAX,
            "block size {block_size} is not between 512 and 64 KiB"
        );
        Oracle {
            stream,
            block_size,
            clock: 0,
            settled: vec![Settled(ZEROS_BIT); blocks as usize],
            active: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            reads: BTreeSet::new(),
            last_power_cut: 0,
            atomic_reads: false,
            log: None,
        }
    }

    /// For a target that was used before: anything but our own content is right until a block is
    /// first written.
    pub fn with_unknown_content(mut self) -> Oracle {
        assert_eq!(self.clock, 0, "the initial content is chosen before the first request");
        self.settled.fill(Settled(UNKNOWN_BIT));
        self
    }

    /// For a victim that promises that even a read that races with a write sees blocks whole.
    pub fn with_atomic_reads(mut self) -> Oracle {
        self.atomic_reads = true;
        self
    }

    /// The number of blocks.
    pub fn blocks(&self) -> u64 {
        self.settled.len() as u64
    }

    /// The size of a block in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The mark that the content carries.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Whether anything is known of `block`, so that it is worth reading.
    pub fn knows(&self, block: u64) -> bool {
        self.active.contains_key(&block)
            || self.settled[block as usize].content() != Content::Unknown
    }

    /// The number of blocks with more than one possible content, or one that is not durable.
    pub fn unsettled_blocks(&self) -> usize {
        self.active.len()
    }

    /// Before a write of `sectors` sectors is sent: its version, which [`Oracle::fill`] puts into
    /// the content. With a log, write that out before the request goes.
    pub fn begin_write(&mut self, first_sector: u64, sectors: u32) -> u64 {
        self.begin(first_sector, sectors, Content::Data)
    }

    /// Before a discard or a write of zeros is sent.
    pub fn begin_discard(&mut self, first_sector: u64, sectors: u32) -> u64 {
        self.begin(first_sector, sectors, Content::Zeros)
    }

    fn begin(&mut self, first_sector: u64, sectors: u32, content: Content) -> u64 {
        let version = self.tick();
        self.begin_at(version, first_sector, sectors, content);
        if let Some(log) = &mut self.log {
            log.begin(version, first_sector, sectors, content);
        }
        version
    }

    pub(crate) fn begin_at(
        &mut self,
        version: u64,
        first_sector: u64,
        sectors: u32,
        content: Content,
    ) {
        self.clock = version;
        let request = Request { first_sector, sectors };
        assert!(self.contains(request), "{request:?} lies outside the oracle");
        let (settled, full) = (&self.settled, self.full());
        for part in self.parts(request) {
            let mask = places(part.first, part.count);
            let write = Write {
                version,
                end: u64::MAX,
                mask,
                possible: mask,
                ruled_out_at: 0,
                content,
                outcome: Outcome::Sent,
            };
            let history = self.active.entry(part.block);
            let history = history.or_insert_with(|| settled[part.block as usize].history(full));
            history.live.push(write);
        }
        self.in_flight.insert(version, request);
    }

    /// Fills `bytes` with the content of write `version` from `first_sector`.
    pub fn fill(&self, version: u64, first_sector: u64, bytes: &mut [u8]) {
        fill(self.stream, first_sector, version, bytes);
    }

    /// The write was acknowledged; `durable` if it was sent with FUA.
    pub fn acknowledge(&mut self, version: u64, durable: bool) {
        let clock = self.tick();
        let outcome = if durable { Outcome::Durable } else { Outcome::Acknowledged };
        assert!(self.end_at(version, clock, outcome), "version {version} is not in flight");
        if let Some(log) = &mut self.log {
            log.end(version, clock, outcome);
        }
    }

    /// The write was answered with an error: it may have taken effect, or not, but will not later.
    pub fn fail(&mut self, version: u64) {
        let clock = self.tick();
        let outcome = Outcome::InDoubt { power_cut: false };
        assert!(self.end_at(version, clock, outcome), "version {version} is not in flight");
        if let Some(log) = &mut self.log {
            log.end(version, clock, outcome);
        }
    }

    /// False if no such write is in flight.
    pub(crate) fn end_at(&mut self, version: u64, clock: u64, outcome: Outcome) -> bool {
        let Some(request) = self.in_flight.remove(&version) else { return false };
        self.clock = clock;
        for part in self.parts(request) {
            let history = self.active.get_mut(&part.block);
            let known = history.is_some_and(|history| history.end(version, clock, outcome));
            assert!(known, "version {version} is in flight and unknown to block {}", part.block);
            self.compact(part.block);
        }
        true
    }

    /// Before a FLUSH is sent.
    pub fn begin_flush(&mut self) -> FlushTicket {
        FlushTicket { issued: self.tick() }
    }

    /// The FLUSH was acknowledged: all that was acknowledged before it was sent is durable.
    pub fn flushed(&mut self, ticket: FlushTicket) {
        let clock = self.tick();
        self.flushed_at(ticket.issued, clock);
        if let Some(log) = &mut self.log {
            log.flushed(ticket.issued, clock);
        }
    }

    pub(crate) fn flushed_at(&mut self, issued: u64, clock: u64) {
        self.clock = clock;
        let blocks: Vec<u64> = self.active.keys().copied().collect();
        for block in blocks {
            self.history(block).flush(issued);
            self.compact(block);
        }
    }

    /// Before a read is sent.
    pub fn begin_read(&mut self, first_sector: u64, sectors: u32) -> ReadTicket {
        let request = Request { first_sector, sectors };
        assert!(self.contains(request), "{request:?} lies outside the oracle");
        let issued = self.tick();
        self.reads.insert(issued);
        ReadTicket { issued, first_sector, sectors }
    }

    /// The read failed, or its answer will never come.
    pub fn cancel_read(&mut self, ticket: ReadTicket) {
        self.reads.remove(&ticket.issued);
    }

    /// Judges what a read returned, and settles what it shows. The first wrong block is the error;
    /// `bytes` is as long as the read.
    pub fn check_read(&mut self, ticket: ReadTicket, bytes: &[u8]) -> Result<(), Mismatch> {
        let ReadTicket { issued, first_sector, sectors } = ticket;
        assert_eq!(bytes.len(), sectors as usize * SECTOR_BYTES, "the read has another length");
        let (chunks, _) = bytes.as_chunks::<SECTOR_BYTES>();
        let mut decoded = Vec::with_capacity(chunks.len());
        for (index, chunk) in chunks.iter().enumerate() {
            decoded.push(decode_sector(self.stream, first_sector + index as u64, chunk));
        }
        let mut result = Ok(());
        let mut begin = 0;
        for part in self.parts(Request { first_sector, sectors }) {
            let found = &decoded[begin..begin + part.count];
            begin += part.count;
            result = result.and(self.check_part(issued, &part, found));
        }
        self.reads.remove(&issued);
        result
    }

    fn check_part(&mut self, issued: u64, part: &Part, sectors: &[Sector]) -> Result<(), Mismatch> {
        let (stream, atomic_reads, full) = (self.stream, self.atomic_reads, self.full());
        let (now, last_power_cut) = (self.clock, self.last_power_cut);
        let first = part.first;
        let view = View { stream, issued, now, last_power_cut, atomic_reads, first, sectors };
        let checked = match self.active.get_mut(&part.block) {
            Some(history) => history.check(&view),
            None => self.settled[part.block as usize].history(full).check(&view),
        };
        match checked {
            Ok(()) => {
                self.compact(part.block);
                Ok(())
            }
            Err((place, kind)) => {
                let history = self.history(part.block);
                let possible = history.live.iter().filter(|w| w.possible & (1 << place) != 0);
                let expected = possible.map(|write| write.version).collect();
                self.compact(part.block);
                let sector = part.block * self.sectors_per_block() + place as u64;
                let found = sectors[place - part.first];
                Err(Mismatch { block: part.block, sector, kind, found, expected })
            }
        }
    }

    /// The victim stopped: requests under way are in doubt, reads will not be answered.
    pub fn crash(&mut self, crash: Crash) {
        let clock = self.tick();
        self.crash_at(crash, clock);
        if let Some(log) = &mut self.log {
            log.crash(crash, clock);
        }
    }

    pub(crate) fn crash_at(&mut self, crash: Crash, clock: u64) {
        self.clock = clock;
        if crash == Crash::PowerCut {
            self.last_power_cut = clock;
        }
        self.reads.clear();
        self.in_flight.clear();
        let blocks: Vec<u64> = self.active.keys().copied().collect();
        for block in blocks {
            self.history(block).crash(crash, clock);
            self.compact(block);
        }
    }

    /// Judges the whole of one block, read while nothing else was under way on it, and settles it.
    pub fn verify_block(&mut self, block: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let sectors = self.sectors_per_block();
        let ticket = self.begin_read(block * sectors, sectors as u32);
        self.check_read(ticket, bytes)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_size) / SECTOR_BYTES as u64
    }

    /// The bits of all sectors of a block.
    pub(crate) fn full(&self) -> u128 {
        places(0, self.sectors_per_block() as usize)
    }

    pub(crate) fn contains(&self, request: Request) -> bool {
        let end = request.first_sector.checked_add(u64::from(request.sectors));
        request.sectors > 0
            && end.is_some_and(|end| end <= self.blocks() * self.sectors_per_block())
    }

    fn history(&mut self, block: u64) -> &mut History {
        let (settled, full) = (self.settled[block as usize], self.full());
        self.active.entry(block).or_insert_with(|| settled.history(full))
    }

    /// Forgets what nobody can see any more.
    pub(crate) fn compact(&mut self, block: u64) {
        let full = self.full();
        let oldest_read = self.reads.first().copied().unwrap_or(u64::MAX);
        let Some(history) = self.active.get_mut(&block) else { return };
        history.prune(oldest_read);
        if let Some(settled) = Settled::of(history, full) {
            self.settled[block as usize] = settled;
            self.active.remove(&block);
        }
    }

    fn parts(&self, request: Request) -> impl Iterator<Item = Part> + use<> {
        let per_block = self.sectors_per_block();
        let end = request.first_sector + u64::from(request.sectors);
        let mut next = request.first_sector;
        std::iter::from_fn(move || {
            if next == end {
                return None;
            }
            let (block, first) = (next / per_block, next % per_block);
            let count = (per_block - first).min(end - next);
            next += count;
            Some(Part { block, first: first as usize, count: count as usize })
        })
    }
}

/// The sectors of a request that lie in one block.
struct Part {
    block: u64,
    first: usize,
    count: usize,
}
