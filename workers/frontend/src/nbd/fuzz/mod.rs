//! Attacks a [`super::Connection`] with random, mutated and truncated sessions.
//!
//! Everything follows from a seed. `script` writes what a client sends, `driver` plays a
//! server that receives, grants, answers and sends at random moments and checks what it is told,
//! and `check` reads the output as the client would.
//!
//! Checked in every session: no panic; each request lies within the export and its slot was free;
//! payload arrives in order and whole; each request is released exactly once, never before it was
//! answered and sent or the connection closed; queued bytes do not move; memory does not grow;
//! nothing is left in the end. In sessions that were not mutated also: the client gets exactly one
//! well-formed answer to everything it asked, and the data it asked for.

pub(super) mod check;
pub(super) mod driver;
pub(super) mod script;

use super::{CloseReason, Connection, Exports, Limits};
use driver::{Driver, Manner};
use script::Script;

/// What a run did, so that a caller can tell that it did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Sessions played.
    pub sessions: u64,
    /// Requests that reached the server.
    pub requests: u64,
    /// Answers that the client of an unspoilt session read.
    pub answers: u64,
    /// Sessions that ended because the client broke a rule.
    pub protocol_errors: u64,
    /// Sessions that the client or the server ended in order.
    pub orderly: u64,
    /// Sessions cut off by the death of the socket.
    pub cut_off: u64,
}

/// Size of the export in these sessions, bytes; deliberately odd.
pub(super) const SIZE_BYTES: u64 = (1 << 20) + 13;
/// Longest read and write in these sessions, bytes.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 128 << 10;

/// Plays `iterations` sessions that follow from `seed`; panics where an invariant does not hold.
pub fn run(seed: u64, iterations: u32) -> Report {
    let mut random = Random::new(seed);
    let mut report = Report::default();
    for _ in 0..iterations {
        session(&mut random, &mut report);
    }
    report
}

fn session(random: &mut Random, report: &mut Report) {
    let limits = Limits {
        requests_max: [1, 2, 7, 128][random.below(4)],
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        stream_bytes: [16 << 10, 32 << 10][random.below(2)],
    };
    let script = Script::random(random);
    let spoilt = random.one_in(2);
    let mut input = script.bytes.clone();
    if spoilt {
        mutate(random, &mut input);
    }
    let manner = Manner {
        eager: random.one_in(8),
        deaf: spoilt && random.one_in(8),
        cut_off: spoilt && random.one_in(4),
        shut_down: spoilt && random.one_in(8),
    };
    let connection = Connection::new(exports(), limits);
    let mut driver = Driver::new(connection, input, manner, Random::new(random.next()));
    driver.play();
    report.sessions += 1;
    report.requests += driver.requests;
    match driver.close {
        None => report.cut_off += 1,
        Some(reason) if reason.is_orderly() => report.orderly += 1,
        Some(_) => report.protocol_errors += 1,
    }
    if !spoilt {
        let expected =
            if script.disconnects { CloseReason::Disconnected } else { CloseReason::EndOfStream };
        assert_eq!(driver.close, Some(expected));
        for (request, payload) in &driver.submitted {
            let content = (request.offset..).map(content);
            assert!(payload.iter().copied().eq(content.take(payload.len())));
        }
        report.answers += check::output(&script, &driver.output);
    }
}

/// The export of these sessions.
pub(super) fn exports() -> Exports {
    Exports::new("array", "five slices", SIZE_BYTES, 4096)
}

/// The byte of the export at `offset`, as these sessions read it.
pub(super) fn content(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)).wrapping_mul(0x9d) as u8
}

/// Spoils a session: flipped and replaced bytes, cuts, doubled and dropped pieces.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(6) {
        if bytes.is_empty() {
            return;
        }
        // Most rules stand in the first bytes.
        let reach = if random.one_in(2) { bytes.len().min(256) } else { bytes.len() };
        let at = random.below(reach);
        let end = (at + 1 + random.below(64)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at..end].fill_with(|| random.next() as u8),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and every seed is good.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_survived_and_reach_everything() {
        for seed in 0..4 {
            let report = run(seed, 400);
            assert_eq!(report.sessions, 400);
            assert!(report.requests > 1000, "{report:?}");
            assert!(report.answers > 1000, "{report:?}");
            assert!(report.protocol_errors > 20, "{report:?}");
            assert!(report.orderly > 100, "{report:?}");
            assert!(report.cut_off > 10, "{report:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        assert_eq!(run(7, 50), run(7, 50));
    }
}
