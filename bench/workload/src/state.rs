//! The oracle's state as bytes: a snapshot, then a log of what happened since.
//!
//! ```text
//!   header (64 bytes)   magic, format, block size, blocks, stream, base offset, clock,
//!                       snapshot records, check
//!   snapshot            runs of settled blocks covering every block, then four records for each
//!                       write of the other blocks
//!   log                 one record for each begin, end, flush, crash
//! ```
//!
//! Records are 24 bytes, little-endian: kind, flags, check (2), count (4), two words. The check
//! covers the record and its number, so damage, loss and misplaced records are noticed. Whoever
//! writes the log out before the requests it announces are sent may be killed at any moment: the
//! log then ends early, possibly inside a record, and what is missing was not yet sent, or its
//! acknowledgement is forgotten, which only makes the oracle more lenient.

use crate::oracle::{BLOCK_BYTES_MAX, Content, Crash, Oracle, Outcome, Request, Settled, Write};
use crate::rng::mix;

const MAGIC: [u8; 16] = *b"iombench-oracle\0";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 24;
/// 2^36 blocks of 512 bytes are 32 TiB; more is a damaged header, not a target.
const BLOCKS_MAX: u64 = 1 << 36;

const RUN: u8 = 1;
const WRITE: u8 = 2;
const WRITE_END: u8 = 3;
const WRITE_MASK: u8 = 4;
const WRITE_POSSIBLE: u8 = 5;
const BEGIN: u8 = 6;
const END: u8 = 7;
const FLUSHED: u8 = 8;
const CRASH: u8 = 9;

/// What a state file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHeader {
    /// The oracle's block size in bytes.
    pub block_size: u32,
    /// The number of blocks covered.
    pub blocks: u64,
    /// The mark of the content.
    pub stream: u64,
    /// Where in the target the first block lies, in bytes.
    pub base_offset: u64,
}

/// A state that was read back.
#[derive(Debug)]
pub struct Loaded {
    /// The oracle as it was when the last whole record was written.
    pub oracle: Oracle,
    /// What the file says about itself.
    pub header: StateHeader,
    /// Bytes of an unfinished record at the end, as a killed writer leaves them.
    pub unfinished_bytes: usize,
}

/// Why bytes are no oracle's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// Shorter than a header.
    TooShort,
    /// Another kind of file.
    NotAState,
    /// A format that this program does not know.
    UnknownFormat(u32),
    /// The header's check does not fit, or its values are impossible.
    DamagedHeader,
    /// The file ends inside the snapshot.
    Truncated,
    /// The record with this number is damaged or out of place.
    DamagedRecord(u64),
    /// The record with this number contradicts those before it.
    Inconsistent(u64),
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateError::TooShort => f.write_str("the state file is shorter than its header"),
            StateError::NotAState => f.write_str("this is not a state file of iombench"),
            StateError::UnknownFormat(format) => write!(f, "state format {format} is unknown"),
            StateError::DamagedHeader => f.write_str("the header of the state file is damaged"),
            StateError::Truncated => f.write_str("the state file was cut off"),
            StateError::DamagedRecord(n) => write!(f, "record {n} of the state file is damaged"),
            StateError::Inconsistent(n) => {
                write!(f, "record {n} of the state file contradicts those before it")
            }
        }
    }
}

impl std::error::Error for StateError {}

/// Records that have not been written out yet.
#[derive(Debug)]
pub(crate) struct Log {
    bytes: Vec<u8>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    kind: u8,
    flags: u8,
    count: u32,
    words: [u64; 2],
}

impl Record {
    fn new(kind: u8, flags: u8, count: u32, first: u64, second: u64) -> Record {
        Record { kind, flags, count, words: [first, second] }
    }

    fn check(&self, number: u64) -> u16 {
        let head = u64::from(self.kind) | u64::from(self.flags) << 8 | u64::from(self.count) << 32;
        let hash = mix(mix(mix(mix(number) ^ head) ^ self.words[0]) ^ self.words[1]);
        (hash >> 48) as u16
    }

    fn encode(&self, number: u64, out: &mut Vec<u8>) {
        out.extend([self.kind, self.flags]);
        out.extend(self.check(number).to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.words[0].to_le_bytes());
        out.extend(self.words[1].to_le_bytes());
    }

    fn decode(bytes: &[u8; RECORD_BYTES], number: u64) -> Result<Record, StateError> {
        let count = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let record = Record::new(bytes[0], bytes[1], count, word(bytes, 8), word(bytes, 16));
        let check = u16::from_le_bytes([bytes[2], bytes[3]]);
        match check == record.check(number) {
            true => Ok(record),
            false => Err(StateError::DamagedRecord(number)),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn content_flag(content: Content) -> u8 {
    match content {
        Content::Data => 0,
        Content::Zeros => 1,
        Content::Unknown => 2,
    }
}

fn outcome_flag(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Sent => 0,
        Outcome::Acknowledged => 1,
        Outcome::Durable => 2,
        Outcome::InDoubt { power_cut: false } => 3,
        Outcome::InDoubt { power_cut: true } => 4,
    }
}

fn content_of(flag: u8) -> Option<Content> {
    [Content::Data, Content::Zeros, Content::Unknown].get(usize::from(flag)).copied()
}

fn outcome_of(flag: u8) -> Option<Outcome> {
    let outcomes = [
        Outcome::Sent,
        Outcome::Acknowledged,
        Outcome::Durable,
        Outcome::InDoubt { power_cut: false },
        Outcome::InDoubt { power_cut: true },
    ];
    outcomes.get(usize::from(flag)).copied()
}

const PAST_FLAG: u8 = 0x80;

impl Log {
    fn push(&mut self, record: Record) {
        record.encode(self.next, &mut self.bytes);
        self.next += 1;
    }

    pub(crate) fn begin(&mut self, version: u64, first: u64, sectors: u32, content: Content) {
        self.push(Record::new(BEGIN, content_flag(content), sectors, version, first));
    }

    pub(crate) fn end(&mut self, version: u64, clock: u64, outcome: Outcome) {
        self.push(Record::new(END, outcome_flag(outcome), 0, version, clock));
    }

    pub(crate) fn flushed(&mut self, issued: u64, clock: u64) {
        self.push(Record::new(FLUSHED, 0, 0, issued, clock));
    }

    pub(crate) fn crash(&mut self, crash: Crash, clock: u64) {
        let flag = u8::from(crash == Crash::PowerCut);
        self.push(Record::new(CRASH, flag, 0, clock, 0));
    }
}

impl Oracle {
    /// The whole state as bytes, while nothing is in flight (after [`Oracle::crash`], or at rest);
    /// from here on what happens is logged, see [`Oracle::take_log`]. `base_offset` is where in
    /// the target the first block lies, in bytes.
    pub fn save(&mut self, base_offset: u64) -> Vec<u8> {
        let mut log = Log { bytes: vec![0; HEADER_BYTES], next: 0 };
        for run in self.settled.chunk_by(|a, b| a == b) {
            for part in run.chunks(u32::MAX as usize) {
                log.push(Record::new(RUN, 0, part.len() as u32, part[0].0, 0));
            }
        }
        for (block, history) in &self.active {
            let live = history.live.iter().map(|write| (write, 0));
            for (write, past) in live.chain(history.past.iter().map(|w| (w, PAST_FLAG))) {
                assert_ne!(write.outcome, Outcome::Sent, "saved with requests in flight");
                log_write(&mut log, *block, write, past);
            }
        }
        let header = self.encode_header(base_offset, log.next);
        log.bytes[..HEADER_BYTES].copy_from_slice(&header);
        let bytes = std::mem::take(&mut log.bytes);
        self.log = Some(log);
        bytes
    }

    /// The log records since the last call, to be appended to the saved state.
    pub fn take_log(&mut self, out: &mut Vec<u8>) {
        if let Some(log) = &mut self.log {
            out.append(&mut log.bytes);
        }
    }

    fn encode_header(&self, base_offset: u64, snapshot_records: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..16].copy_from_slice(&MAGIC);
        header[16..20].copy_from_slice(&FORMAT.to_le_bytes());
        header[20..24].copy_from_slice(&self.block_size.to_le_bytes());
        let words = [self.blocks(), self.stream, base_offset, snapshot_records];
        for (index, word) in words.into_iter().enumerate() {
            header[24 + 8 * index..32 + 8 * index].copy_from_slice(&word.to_le_bytes());
        }
        let check = header_check(&header);
        header[56..].copy_from_slice(&check.to_le_bytes());
        header
    }
}

fn log_write(log: &mut Log, block: u64, write: &Write, past: u8) {
    let flags = content_flag(write.content) | outcome_flag(write.outcome) << 2 | past;
    let halves = |mask: u128| (mask as u64, (mask >> 64) as u64);
    let (mask, possible) = (halves(write.mask), halves(write.possible));
    log.push(Record::new(WRITE, flags, 0, block, write.version));
    log.push(Record::new(WRITE_END, 0, 0, write.end, 0));
    log.push(Record::new(WRITE_MASK, 0, 0, mask.0, mask.1));
    log.push(Record::new(WRITE_POSSIBLE, 0, 0, possible.0, possible.1));
}

fn header_check(header: &[u8; HEADER_BYTES]) -> u64 {
    (0..7).fold(0, |hash, index| mix(hash ^ word(header, 8 * index)).wrapping_add(1))
}

/// Reads a state back. The requests that were in flight at its end still are: say
/// [`Oracle::crash`] if they no longer can be.
pub fn load(bytes: &[u8]) -> Result<Loaded, StateError> {
    let Some((head, records)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(StateError::TooShort);
    };
    let (header, snapshot_records) = decode_header(head)?;
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    if (records.len() as u64) < snapshot_records {
        return Err(StateError::Truncated);
    }
    let (snapshot, log) = records.split_at(snapshot_records as usize);
    let mut oracle = load_snapshot(&header, snapshot)?;
    for (index, record) in log.iter().enumerate() {
        let number = snapshot_records + index as u64;
        let record = Record::decode(record, number)?;
        replay(&mut oracle, &record).ok_or(StateError::Inconsistent(number))?;
    }
    Ok(Loaded { oracle, header, unfinished_bytes: rest.len() })
}

fn decode_header(head: &[u8; HEADER_BYTES]) -> Result<(StateHeader, u64), StateError> {
    if head[..16] != MAGIC {
        return Err(StateError::NotAState);
    }
    let format = word(head, 16) as u32;
    if format != FORMAT {
        return Err(StateError::UnknownFormat(format));
    }
    let block_size = (word(head, 16) >> 32) as u32;
    let header = StateHeader {
        block_size,
        blocks: word(head, 24),
        stream: word(head, 32),
        base_offset: word(head, 40),
    };
    let possible = (512..=BLOCK_BYTES_MAX).contains(&block_size)
        && block_size.is_multiple_of(512)
        && (1..=BLOCKS_MAX).contains(&header.blocks);
    match possible && word(head, 56) == header_check(head) {
        true => Ok((header, word(head, 48))),
        false => Err(StateError::DamagedHeader),
    }
}

fn load_snapshot(
    header: &StateHeader,
    records: &[[u8; RECORD_BYTES]],
) -> Result<Oracle, StateError> {
    let mut oracle = Oracle::new(0, header.block_size, header.stream);
    let mut index = 0;
    while index < records.len() {
        let number = index as u64;
        let inconsistent = StateError::Inconsistent(number);
        let record = Record::decode(&records[index], number)?;
        let known = oracle.settled.len() as u64;
        match record.kind {
            RUN if u64::from(record.count) <= header.blocks - known => {
                let settled = Settled(record.words[0]);
                oracle.clock = oracle.clock.max(settled.version());
                oracle.settled.resize(known as usize + record.count as usize, settled);
                index += 1;
            }
            WRITE if known == header.blocks && records.len() - index >= 4 => {
                let mut parts = [record; 4];
                for (part, bytes) in records[index..index + 4].iter().enumerate() {
                    parts[part] = Record::decode(bytes, number + part as u64)?;
                }
                load_write(&mut oracle, &parts).ok_or(inconsistent)?;
                index += 4;
            }
            _ => return Err(inconsistent),
        }
    }
    match oracle.blocks() == header.blocks {
        true => Ok(oracle),
        false => Err(StateError::Truncated),
    }
}

fn load_write(oracle: &mut Oracle, parts: &[Record; 4]) -> Option<()> {
    let kinds = parts.map(|part| part.kind);
    if kinds != [WRITE, WRITE_END, WRITE_MASK, WRITE_POSSIBLE] {
        return None;
    }
    let [head, end, mask, possible] = parts;
    let bits = |record: &Record| u128::from(record.words[0]) | u128::from(record.words[1]) << 64;
    let write = Write {
        version: head.words[1],
        end: end.words[0],
        mask: bits(mask),
        possible: bits(possible),
        ruled_out_at: 0,
        content: content_of(head.flags & 3)?,
        outcome: outcome_of(head.flags >> 2 & 7).filter(|outcome| *outcome != Outcome::Sent)?,
    };
    let block = head.words[0];
    let sane = block < oracle.blocks()
        && write.version <= write.end
        && write.end < 1 << 62
        && (write.mask | write.possible) & !oracle.full() == 0;
    if !sane {
        return None;
    }
    oracle.clock = oracle.clock.max(write.end);
    let history = oracle.active.entry(block).or_default();
    match head.flags & PAST_FLAG {
        0 => history.live.push(write),
        _ => history.past.push(write),
    }
    Some(())
}

fn replay(oracle: &mut Oracle, record: &Record) -> Option<()> {
    let [first, second] = record.words;
    let later = |clock: u64| (clock > oracle.clock && clock < 1 << 62).then_some(clock);
    match record.kind {
        BEGIN => {
            let request = Request { first_sector: second, sectors: record.count };
            let content = content_of(record.flags)?;
            let fits = oracle.contains(request) && content != Content::Unknown;
            let version = later(first).filter(|_| fits)?;
            oracle.begin_at(version, second, record.count, content);
        }
        END => {
            let outcome = outcome_of(record.flags).filter(|outcome| *outcome != Outcome::Sent)?;
            let clock = later(second)?;
            oracle.end_at(first, clock, outcome).then_some(())?;
        }
        FLUSHED => {
            let clock = later(second).filter(|clock| first < *clock)?;
            oracle.flushed_at(first, clock);
        }
        CRASH => {
            let crash = if record.flags == 0 { Crash::Daemon } else { Crash::PowerCut };
            oracle.crash_at(crash, later(first)?);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 4096;

    /// Block 0 acknowledged, 1 durable, 2 in flight, 3 discarded, 4 partly written, 5 never.
    fn busy(oracle: &mut Oracle) {
        let acknowledged = oracle.begin_write(0, 8);
        oracle.acknowledge(acknowledged, false);
        let durable = oracle.begin_write(8, 8);
        oracle.acknowledge(durable, true);
        oracle.begin_write(16, 8);
        let discard = oracle.begin_discard(24, 8);
        oracle.acknowledge(discard, false);
        let flush = oracle.begin_flush();
        oracle.flushed(flush);
        let partial = oracle.begin_write(33, 2);
        oracle.acknowledge(partial, false);
    }

    fn file() -> Vec<u8> {
        let mut oracle = Oracle::new(6, BLOCK, 77);
        let mut bytes = oracle.save(1 << 20);
        busy(&mut oracle);
        oracle.take_log(&mut bytes);
        bytes
    }

    fn same(a: &Oracle, b: &Oracle) {
        assert_eq!(a.settled, b.settled);
        let of = |oracle: &Oracle| format!("{:?}", oracle.active);
        assert_eq!(of(a), of(b));
        assert_eq!((a.clock, a.stream, a.block_size), (b.clock, b.stream, b.block_size));
    }

    #[test]
    fn the_log_leads_to_the_same_state() {
        let mut oracle = Oracle::new(6, BLOCK, 77);
        busy(&mut oracle);
        let loaded = load(&file()).unwrap();
        same(&oracle, &loaded.oracle);
        assert_eq!(loaded.header.base_offset, 1 << 20);
        assert_eq!(loaded.unfinished_bytes, 0);
    }

    #[test]
    fn a_snapshot_leads_to_the_same_state() {
        for crash in [Crash::Daemon, Crash::PowerCut] {
            let mut oracle = Oracle::new(6, BLOCK, 77).with_unknown_content();
            busy(&mut oracle);
            oracle.crash(crash);
            let mut loaded = load(&oracle.save(0)).unwrap();
            loaded.oracle.clock = oracle.clock;
            same(&oracle, &loaded.oracle);
        }
    }

    #[test]
    fn a_killed_writer_loses_only_the_end() {
        let bytes = file();
        let whole = load(&bytes).unwrap();
        let cut = load(&bytes[..bytes.len() - 10]).unwrap();
        assert_eq!(cut.unfinished_bytes, RECORD_BYTES - 10);
        // The last record was the acknowledgement of the partial write: now it is in flight.
        let in_flight = |oracle: &Oracle| {
            oracle.active[&4].live.iter().filter(|w| w.outcome == Outcome::Sent).count()
        };
        assert_eq!((in_flight(&whole.oracle), in_flight(&cut.oracle)), (0, 1));
    }

    #[test]
    fn a_cut_snapshot_is_refused() {
        let mut oracle = Oracle::new(6, BLOCK, 77);
        busy(&mut oracle);
        oracle.crash(Crash::Daemon);
        let bytes = oracle.save(0);
        assert_eq!(load(&bytes[..40]).unwrap_err(), StateError::TooShort);
        for length in HEADER_BYTES..bytes.len() {
            assert_eq!(load(&bytes[..length]).unwrap_err(), StateError::Truncated, "{length}");
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let bytes = file();
        let mut unnoticed = 0;
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x41;
            unnoticed += u32::from(load(&damaged).is_ok());
        }
        assert_eq!(unnoticed, 0);
    }

    #[test]
    fn other_files_and_formats_are_named() {
        let mut bytes = file();
        bytes[16] = 9;
        assert_eq!(load(&bytes).unwrap_err(), StateError::UnknownFormat(9));
        bytes[0] = b'X';
        assert_eq!(load(&bytes).unwrap_err(), StateError::NotAState);
        assert_eq!(load(b"").unwrap_err(), StateError::TooShort);
    }

    #[test]
    fn swapped_and_repeated_records_are_noticed() {
        let bytes = file();
        let records = (bytes.len() - HEADER_BYTES) / RECORD_BYTES;
        let at = |n: usize| HEADER_BYTES + n * RECORD_BYTES;
        for n in 1..records - 1 {
            let mut swapped = bytes.clone();
            let (head, tail) = swapped.split_at_mut(at(n + 1));
            head[at(n)..].swap_with_slice(&mut tail[..RECORD_BYTES]);
            assert!(load(&swapped).is_err(), "{n}");
        }
    }

    #[test]
    fn a_record_that_contradicts_is_named() {
        let mut oracle = Oracle::new(6, BLOCK, 77);
        let mut bytes = oracle.save(0);
        // An end of a write that never began, with a right check.
        Record::new(END, 1, 0, 5, 6).encode(1, &mut bytes);
        assert_eq!(load(&bytes).unwrap_err(), StateError::Inconsistent(1));
        // A write beyond the last block.
        bytes.truncate(HEADER_BYTES + RECORD_BYTES);
        Record::new(BEGIN, 0, 2, 5, 47).encode(1, &mut bytes);
        assert_eq!(load(&bytes).unwrap_err(), StateError::Inconsistent(1));
    }
}
