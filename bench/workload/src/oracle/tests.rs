//! Scenarios: what the oracle must accept, and what it must never accept.

use super::*;

const SECTORS: u32 = 8;
const BYTES: usize = 4096;

/// An oracle with a model of one disk, so that scenarios read as sentences.
struct World {
    oracle: Oracle,
    disk: Vec<u8>,
}

impl World {
    fn new(blocks: u64) -> World {
        let oracle = Oracle::new(blocks, BYTES as u32, 42);
        World { oracle, disk: vec![0; blocks as usize * BYTES] }
    }

    fn send(&mut self, block: u64) -> u64 {
        self.oracle.begin_write(block * u64::from(SECTORS), SECTORS)
    }

    fn write(&mut self, block: u64) -> u64 {
        let version = self.send(block);
        self.oracle.acknowledge(version, false);
        self.land(block, version);
        version
    }

    /// Puts `version` onto the disk, into the sectors of `block`.
    fn land(&mut self, block: u64, version: u64) {
        self.land_part(block, version, 0..8);
    }

    fn land_part(&mut self, block: u64, version: u64, sectors: std::ops::Range<usize>) {
        let at = block as usize * BYTES;
        let first = block * u64::from(SECTORS) + sectors.start as u64;
        let place = at + sectors.start * 512..at + sectors.end * 512;
        self.oracle.fill(version, first, &mut self.disk[place]);
    }

    fn flush(&mut self) {
        let ticket = self.oracle.begin_flush();
        self.oracle.flushed(ticket);
    }

    fn bytes(&self, block: u64) -> Vec<u8> {
        self.disk[block as usize * BYTES..][..BYTES].to_vec()
    }

    fn verify(&mut self, block: u64) -> Result<(), MismatchKind> {
        let bytes = self.bytes(block);
        self.oracle.verify_block(block, &bytes).map_err(|mismatch| mismatch.kind)
    }

    /// What verification would say if the block held `version`, settling nothing.
    fn would_accept(&mut self, block: u64, version: u64) -> bool {
        let saved = (self.oracle.active.clone(), self.oracle.settled.clone());
        let kept = self.bytes(block);
        self.land(block, version);
        let result = self.verify(block);
        self.disk[block as usize * BYTES..][..BYTES].copy_from_slice(&kept);
        (self.oracle.active, self.oracle.settled) = saved;
        result.is_ok()
    }
}

#[test]
fn an_acknowledged_write_must_be_seen() {
    let mut world = World::new(2);
    assert_eq!(world.verify(0), Ok(()));
    let old = world.write(0);
    let new = world.write(0);
    assert_eq!(world.verify(0), Ok(()));
    assert!(!world.would_accept(0, old));
    assert!(world.would_accept(0, new));
    world.disk.fill(0);
    assert_eq!(world.verify(0), Err(MismatchKind::LostToZeros));
    assert_eq!(world.verify(1), Ok(()));
}

#[test]
fn a_write_in_flight_may_be_seen_or_not() {
    let mut world = World::new(1);
    let old = world.write(0);
    let new = world.send(0);
    for _ in 0..2 {
        assert!(world.would_accept(0, old));
        assert!(world.would_accept(0, new));
    }
    world.oracle.crash(Crash::Daemon);
    assert!(world.would_accept(0, old));
    assert!(world.would_accept(0, new));
}

#[test]
fn an_observed_outcome_stands() {
    for happened in [false, true] {
        let mut world = World::new(1);
        let old = world.write(0);
        let new = world.send(0);
        world.oracle.crash(Crash::Daemon);
        if happened {
            world.land(0, new);
        }
        assert_eq!(world.verify(0), Ok(()));
        assert_eq!(world.would_accept(0, old), !happened);
        assert_eq!(world.would_accept(0, new), happened);
        // Another crash does not open the question again, not even a power cut for what never
        // happened.
        world.oracle.crash(Crash::Daemon);
        assert_eq!(world.would_accept(0, old), !happened);
        world.oracle.crash(Crash::PowerCut);
        assert_eq!(world.would_accept(0, new), happened);
    }
}

#[test]
fn several_in_doubt_are_settled_by_one_look() {
    let mut world = World::new(1);
    let versions = [world.send(0), world.send(0), world.send(0)];
    world.oracle.crash(Crash::Daemon);
    assert!(versions.iter().all(|&version| world.would_accept(0, version)));
    world.land(0, versions[1]);
    assert_eq!(world.verify(0), Ok(()));
    let accepted = versions.map(|version| world.would_accept(0, version));
    assert_eq!(accepted, [false, true, false]);
    let newer = world.send(0);
    assert!(world.would_accept(0, newer));
    assert!(!world.would_accept(0, versions[2]));
}

#[test]
fn overlapping_writes_may_end_in_any_order_but_precede_later_ones() {
    let mut world = World::new(1);
    let (a, b) = (world.send(0), world.send(0));
    world.oracle.acknowledge(b, false);
    world.oracle.acknowledge(a, false);
    assert!(world.would_accept(0, a) && world.would_accept(0, b));
    // A read after both have ended decides which was the last.
    world.land(0, a);
    assert_eq!(world.verify(0), Ok(()));
    assert!(world.would_accept(0, a) && !world.would_accept(0, b));
    let c = world.write(0);
    assert!(world.would_accept(0, c) && !world.would_accept(0, a));
}

#[test]
fn a_read_that_races_accepts_what_was_current_at_any_time() {
    let mut world = World::new(1);
    let old = world.write(0);
    let old_bytes = world.bytes(0);
    let ticket = world.oracle.begin_read(0, SECTORS);
    let between = world.write(0);
    let between_bytes = world.bytes(0);
    let second = world.oracle.begin_read(0, SECTORS);
    let third = world.oracle.begin_read(0, SECTORS);
    world.write(0);
    world.oracle.check_read(ticket, &old_bytes).unwrap();
    world.oracle.check_read(second, &between_bytes).unwrap();
    let late = world.oracle.check_read(third, &old_bytes).unwrap_err();
    assert_eq!((late.kind, late.sector), (MismatchKind::Stale, 0));
    assert!(!world.would_accept(0, old) && !world.would_accept(0, between));
}

#[test]
fn a_torn_block_is_never_right_after_a_crash() {
    let mut world = World::new(1);
    world.write(0);
    let new = world.send(0);
    world.oracle.crash(Crash::Daemon);
    world.land_part(0, new, 0..3);
    assert_eq!(world.verify(0), Err(MismatchKind::Torn));
    world.land(0, new);
    assert_eq!(world.verify(0), Ok(()));
}

#[test]
fn a_racing_read_may_be_torn_unless_blocks_are_promised_whole() {
    for atomic in [false, true] {
        let mut world = World::new(1);
        world.oracle.atomic_reads = atomic;
        world.write(0);
        let ticket = world.oracle.begin_read(0, SECTORS);
        let new = world.send(0);
        world.land_part(0, new, 0..3);
        let bytes = world.bytes(0);
        assert_eq!(world.oracle.check_read(ticket, &bytes).is_ok(), !atomic);
    }
}

#[test]
fn two_whole_writes_never_mix() {
    let mut world = World::new(1);
    let (a, b) = (world.send(0), world.send(0));
    world.oracle.crash(Crash::Daemon);
    world.land(0, a);
    world.land_part(0, b, 4..8);
    assert_eq!(world.verify(0), Err(MismatchKind::Torn));
}

#[test]
fn a_small_write_changes_its_sectors_alone() {
    let mut world = World::new(1);
    let whole = world.write(0);
    let small = world.oracle.begin_write(2, 3);
    world.oracle.crash(Crash::Daemon);
    world.land_part(0, small, 2..5);
    assert_eq!(world.verify(0), Ok(()));
    assert!(!world.would_accept(0, whole), "the small write was seen");
    // Half of the small write is torn even though it is smaller than a block.
    let another = world.oracle.begin_write(2, 3);
    world.oracle.crash(Crash::Daemon);
    world.land_part(0, another, 2..4);
    assert_eq!(world.verify(0), Err(MismatchKind::Torn));
    // Seen elsewhere than where it was written it is wrong.
    world.land_part(0, another, 2..6);
    assert_eq!(world.verify(0), Err(MismatchKind::Stale));
}

#[test]
fn a_lost_small_write_is_noticed() {
    let mut world = World::new(1);
    world.write(0);
    let small = world.oracle.begin_write(7, 1);
    world.oracle.acknowledge(small, false);
    assert_eq!(world.verify(0), Err(MismatchKind::Stale));
}

#[test]
fn a_power_cut_may_take_what_was_not_flushed() {
    let mut world = World::new(1);
    let durable = world.write(0);
    world.flush();
    let second = world.write(0);
    let third = world.write(0);
    assert!(!world.would_accept(0, durable));
    world.oracle.crash(Crash::PowerCut);
    for version in [durable, second, third] {
        assert!(world.would_accept(0, version));
    }
    world.land(0, second);
    assert_eq!(world.verify(0), Ok(()));
    // What came back from stable storage stays.
    world.oracle.crash(Crash::PowerCut);
    let accepted = [durable, second, third].map(|version| world.would_accept(0, version));
    assert_eq!(accepted, [false, true, false]);
}

#[test]
fn a_flush_covers_only_what_was_acknowledged_before_it_was_sent() {
    let mut world = World::new(2);
    let before = world.send(0);
    let ticket = world.oracle.begin_flush();
    world.oracle.acknowledge(before, false);
    world.oracle.flushed(ticket);
    world.oracle.crash(Crash::PowerCut);
    assert_eq!(world.verify(0), Ok(()), "zeros are still right");
}

#[test]
fn forced_unit_access_is_durable_at_once() {
    let mut world = World::new(1);
    let version = world.send(0);
    world.oracle.acknowledge(version, true);
    world.oracle.crash(Crash::PowerCut);
    assert_eq!(world.verify(0), Err(MismatchKind::LostToZeros));
    assert!(world.would_accept(0, version));
    assert_eq!(world.oracle.unsettled_blocks(), 0);
}

#[test]
fn discards_are_writes_of_zeros() {
    let mut world = World::new(1);
    let old = world.write(0);
    let discard = world.oracle.begin_discard(0, SECTORS);
    assert!(world.would_accept(0, old));
    world.oracle.acknowledge(discard, false);
    assert!(!world.would_accept(0, old));
    world.disk.fill(0);
    assert_eq!(world.verify(0), Ok(()));
    let again = world.write(0);
    assert!(world.would_accept(0, again));
    world.disk.fill(0);
    assert_eq!(world.verify(0), Err(MismatchKind::LostToZeros));
}

#[test]
fn a_failed_write_may_have_happened_but_is_settled_by_a_read() {
    let mut world = World::new(1);
    let old = world.write(0);
    let failed = world.send(0);
    world.oracle.fail(failed);
    assert!(world.would_accept(0, old) && world.would_accept(0, failed));
    assert_eq!(world.verify(0), Ok(()));
    assert!(world.would_accept(0, old) && !world.would_accept(0, failed));
    world.land(0, failed);
    assert_eq!(world.verify(0), Err(MismatchKind::Stale));
}

#[test]
fn misplaced_foreign_and_damaged_content_is_named() {
    let mut world = World::new(2);
    world.write(0);
    world.write(1);
    world.disk.copy_within(BYTES.., 0);
    assert_eq!(world.verify(0), Err(MismatchKind::Misplaced));
    world.disk[BYTES + 100] ^= 1;
    assert_eq!(world.verify(1), Err(MismatchKind::Damaged));
    world.disk[BYTES] ^= 1;
    assert_eq!(world.verify(1), Err(MismatchKind::Foreign));
    world.land(1, 1 << 40);
    assert_eq!(world.verify(1), Err(MismatchKind::NeverSent));
}

#[test]
fn unknown_content_is_anything_but_ours_until_written() {
    let mut world = World::new(1);
    world.oracle = Oracle::new(1, BYTES as u32, 42).with_unknown_content();
    assert!(!world.oracle.knows(0));
    world.disk.fill(7);
    assert_eq!(world.verify(0), Ok(()));
    crate::content::fill(43, 9, 1, &mut world.disk);
    assert_eq!(world.verify(0), Ok(()));
    assert!(!world.would_accept(0, 1));
    world.disk.fill(7);
    world.send(0);
    world.oracle.crash(Crash::Daemon);
    assert!(world.oracle.knows(0));
    assert_eq!(world.verify(0), Ok(()));
    world.write(0);
    world.disk.fill(7);
    assert_eq!(world.verify(0), Err(MismatchKind::Foreign));
}

#[test]
fn a_request_over_several_blocks_is_judged_block_by_block() {
    let mut world = World::new(3);
    let wide = world.oracle.begin_write(4, 16);
    world.oracle.crash(Crash::Daemon);
    world.land_part(0, wide, 4..8);
    world.land_part(2, wide, 0..4);
    let ticket = world.oracle.begin_read(0, 24);
    let bytes = world.disk.clone();
    world.oracle.check_read(ticket, &bytes).unwrap();
    assert!(!world.would_accept(1, wide), "its middle was seen not to have happened");
}

#[test]
fn a_settled_oracle_is_small() {
    let mut world = World::new(4);
    for block in 0..4 {
        world.write(block);
        world.write(block);
    }
    assert_eq!(world.oracle.unsettled_blocks(), 4);
    world.flush();
    assert_eq!(world.oracle.unsettled_blocks(), 0);
}

/// A correct disk under random overlapping requests, crashes and power cuts is never accused; one
/// that drops acknowledged writes is.
#[test]
fn random_histories_of_a_correct_disk_are_accepted_and_a_lost_write_is_not() {
    let mut noticed = 0;
    for seed in 0..2000 {
        assert_eq!(random_history(seed, false), Ok(()), "seed {seed}");
        noticed += u32::from(random_history(seed, true).is_err());
    }
    assert!(noticed > 1600, "only {noticed} of 2000 disks that lose a write were noticed");
}

/// A disk with a cache, and requests under way on it.
struct Busy {
    world: World,
    cache: Vec<u8>,
    /// Version, first sector, sectors, and whether it has reached the cache.
    writes: Vec<(u64, u64, u32, bool)>,
    /// The ticket, the block, and what the disk answered, once it has.
    reads: Vec<(ReadTicket, u64, Option<Vec<u8>>)>,
    rng: crate::rng::Rng,
    lose: bool,
}

const BUSY_BLOCKS: u64 = 4;

fn random_history(seed: u64, lose: bool) -> Result<(), MismatchKind> {
    let world = World::new(BUSY_BLOCKS);
    let cache = world.disk.clone();
    let (writes, reads, rng) = (Vec::new(), Vec::new(), crate::rng::Rng::new(seed));
    let mut busy = Busy { world, cache, writes, reads, rng, lose: false };
    for step in 0..400 {
        busy.lose = lose && step > 100;
        match busy.rng.below(30) {
            0..8 => busy.send_write(),
            8..12 => busy.serve_write(),
            12..18 => busy.acknowledge(),
            18 => {
                busy.world.flush();
                busy.world.disk.copy_from_slice(&busy.cache);
            }
            19 => busy.crash(),
            20..23 => {
                let block = busy.rng.below(BUSY_BLOCKS);
                let sectors = u64::from(SECTORS);
                let ticket = busy.world.oracle.begin_read(block * sectors, SECTORS);
                busy.reads.push((ticket, block, None));
            }
            23..26 => busy.serve_read(),
            _ => busy.end_read()?,
        }
    }
    Ok(())
}

impl Busy {
    fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.below(count as u64) as usize)
    }

    fn send_write(&mut self) {
        let first = self.rng.below(BUSY_BLOCKS * 8);
        let sectors = 1 + self.rng.below((BUSY_BLOCKS * 8 - first).min(12)) as u32;
        let version = self.world.oracle.begin_write(first, sectors);
        self.writes.push((version, first, sectors, false));
    }

    fn serve_write(&mut self) {
        let Some(index) = self.pick(self.writes.len()) else { return };
        let (version, first, sectors, served) = self.writes[index];
        if served {
            return;
        }
        self.writes[index].3 = true;
        if !(self.lose && self.rng.percent(30)) {
            let place = first as usize * 512..(first as usize + sectors as usize) * 512;
            self.world.oracle.fill(version, first, &mut self.cache[place]);
        }
    }

    fn acknowledge(&mut self) {
        let served = |write: &(u64, u64, u32, bool)| write.3;
        let Some(index) = self.writes.iter().position(served) else { return };
        let (version, ..) = self.writes.swap_remove(index);
        self.world.oracle.acknowledge(version, false);
    }

    fn serve_read(&mut self) {
        let Some(index) = self.pick(self.reads.len()) else { return };
        let (_, block, answer) = &mut self.reads[index];
        let bytes = &self.cache[*block as usize * BYTES..][..BYTES];
        answer.get_or_insert_with(|| bytes.to_vec());
    }

    fn end_read(&mut self) -> Result<(), MismatchKind> {
        let Some(index) = self.pick(self.reads.len()) else { return Ok(()) };
        let (ticket, block, answer) = self.reads.swap_remove(index);
        let now = &self.cache[block as usize * BYTES..][..BYTES];
        let bytes = answer.unwrap_or_else(|| now.to_vec());
        self.world.oracle.check_read(ticket, &bytes).map_err(|mismatch| mismatch.kind)
    }

    fn crash(&mut self) {
        let power_cut = self.rng.percent(50);
        self.world.oracle.crash(if power_cut { Crash::PowerCut } else { Crash::Daemon });
        self.reads.clear();
        for block in 0..BUSY_BLOCKS as usize {
            let place = block * BYTES..(block + 1) * BYTES;
            if power_cut && self.rng.percent(50) {
                self.cache[place.clone()].copy_from_slice(&self.world.disk[place]);
            }
        }
        for (version, first, sectors, served) in std::mem::take(&mut self.writes) {
            if !served {
                self.land_some(version, Request { first_sector: first, sectors });
            }
        }
        self.world.disk.copy_from_slice(&self.cache);
    }

    /// A write in flight at a crash reaches some of its blocks, each of them whole.
    fn land_some(&mut self, version: u64, request: Request) {
        for part in self.world.oracle.parts(request) {
            if self.rng.percent(50) {
                let sector = part.block * u64::from(SECTORS) + part.first as u64;
                let place = sector as usize * 512..(sector as usize + part.count) * 512;
                self.world.oracle.fill(version, sector, &mut self.cache[place]);
            }
        }
    }
}

#[test]
fn an_observation_binds_only_reads_issued_after_it() {
    let mut world = World::new(1);
    let (a, b) = (world.send(0), world.send(0));
    world.oracle.acknowledge(a, false);
    world.oracle.acknowledge(b, false);
    world.land(0, a);
    let a_bytes = world.bytes(0);
    let early = world.oracle.begin_read(0, SECTORS);
    world.land(0, b);
    let reader = world.oracle.begin_read(0, SECTORS);
    let b_bytes = world.bytes(0);
    world.oracle.check_read(reader, &b_bytes).unwrap();
    let late = world.oracle.begin_read(0, SECTORS);
    world.oracle.check_read(early, &a_bytes).unwrap();
    assert!(world.oracle.check_read(late, &a_bytes).is_err());
}
