//! The writes that one block may still show, and which of them what was read settles.
//!
//! Time is the oracle's clock: it ticks with every call, and a write's version is the tick at
//! which it was sent, so `u.end < w.version` says that `u` had taken effect before `w` was sent.
//! A sector may show a write unless a later one that it precedes is known to have replaced it.
//! Known means acknowledged (before the read was issued), or durable where power was cut.
//!
//! ```text
//!   Sent ──ack──▶ Acknowledged ──flush──▶ Durable
//!     │                 │  ▲                 ▲
//!     └──crash, error──▶│  │ observed        │ observed
//!                  InDoubt (daemon crash)    │
//!                       │                    │
//!                       └──power cut──▶ InDoubt (power cut) ◀── Acknowledged, power cut
//! ```

use super::{Crash, MismatchKind};
use crate::content::Sector;

/// What is known about the outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// In flight: it may take effect at any time.
    Sent,
    /// Survives a crash of the daemon.
    Acknowledged,
    /// Survives a power cut.
    Durable,
    /// It took effect before the crash, or never will.
    InDoubt { power_cut: bool },
}

/// What a write leaves in its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data,
    Zeros,
    /// Whatever the target held before the oracle knew it.
    Unknown,
}

/// One write as far as it touches one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) version: u64,
    /// The last moment at which it can have taken effect.
    pub(crate) end: u64,
    /// The sectors of the block that it covers.
    pub(crate) mask: u128,
    /// Those of them where no observation has ruled it out.
    pub(crate) possible: u128,
    /// When the last such observation was made; reads issued before it may still show the write.
    pub(crate) ruled_out_at: u64,
    pub(crate) content: Content,
    pub(crate) outcome: Outcome,
}

impl Write {
    /// The sectors where a read issued at `issued` may find it, as far as observations tell.
    fn possible_for(&self, issued: u64) -> u128 {
        if issued < self.ruled_out_at { self.mask } else { self.possible }
    }

    fn acknowledged(&self) -> bool {
        matches!(self.outcome, Outcome::Acknowledged | Outcome::Durable)
    }

    fn holds(&self, sector: Sector, stream: u64) -> bool {
        match (self.content, sector) {
            (Content::Data, Sector::Version(version)) => version == self.version,
            (Content::Zeros, Sector::Zeros) => true,
            (Content::Unknown, Sector::Zeros | Sector::Foreign) => true,
            (
                Content::Unknown,
                Sector::Misplaced { stream: other, .. } | Sector::Damaged { stream: other, .. },
            ) => other != stream,
            _ => false,
        }
    }
}

/// The writes of one block: `live` may be seen by readers now, `past` only after a power cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) live: Vec<Write>,
    pub(crate) past: Vec<Write>,
}

/// How a block is being looked at.
pub(crate) struct View<'a> {
    pub(crate) stream: u64,
    /// When the read was issued.
    pub(crate) issued: u64,
    /// The clock, which is above every version that was sent.
    pub(crate) now: u64,
    /// When the victim's host last lost its power.
    pub(crate) last_power_cut: u64,
    /// Whether even a read that races with a write sees a block whole.
    pub(crate) atomic_reads: bool,
    /// The index in the block of the first sector that was read.
    pub(crate) first: usize,
    pub(crate) sectors: &'a [Sector],
}

impl History {
    /// Ends the write `version`; true if it is one of this block's.
    pub(crate) fn end(&mut self, version: u64, clock: u64, outcome: Outcome) -> bool {
        match self.live.iter_mut().find(|write| write.version == version) {
            Some(write) if write.outcome == Outcome::Sent => {
                write.end = clock;
                write.outcome = outcome;
                true
            }
            _ => false,
        }
    }

    /// A flush that was issued at `issued` has been acknowledged.
    pub(crate) fn flush(&mut self, issued: u64) {
        for write in self.live.iter_mut().chain(&mut self.past) {
            if write.outcome == Outcome::Acknowledged && write.end < issued {
                write.outcome = Outcome::Durable;
            }
        }
    }

    /// Forgets what can no longer be seen, neither by a read issued since `oldest_read` nor after
    /// a power cut.
    pub(crate) fn prune(&mut self, oldest_read: u64) {
        let mut index = 0;
        while index < self.live.len() {
            let write = self.live[index];
            if write.possible_for(oldest_read) & !self.replaced(&write, oldest_read) == 0 {
                self.past.push(self.live.remove(index));
            } else {
                index += 1;
            }
        }
        self.prune_past();
    }

    fn prune_past(&mut self) {
        if self.past.is_empty() {
            return;
        }
        let past = std::mem::take(&mut self.past);
        let durable: Vec<(u64, u128)> = past
            .iter()
            .chain(&self.live)
            .filter(|write| write.outcome == Outcome::Durable)
            .map(|write| (write.version, write.mask))
            .collect();
        let kept = |write: &Write| {
            let covered = durable.iter().filter(|(version, _)| *version > write.end);
            write.mask & !covered.fold(0, |mask, (_, more)| mask | more) != 0
        };
        self.past = past.into_iter().filter(kept).collect();
    }

    /// The sectors of `write` that a read issued at `issued` cannot find it in any more.
    fn replaced(&self, write: &Write, issued: u64) -> u128 {
        self.live
            .iter()
            .filter(|w| w.acknowledged() && w.version > write.end && w.end < issued)
            .fold(0, |mask, w| mask | w.mask)
    }

    /// The victim stopped: what was under way is in doubt, and what a power cut takes too.
    pub(crate) fn crash(&mut self, crash: Crash, clock: u64) {
        if crash == Crash::PowerCut {
            let live = std::mem::take(&mut self.live);
            self.past.extend(live);
            self.prune_past();
            self.live = std::mem::take(&mut self.past);
            self.live.sort_by_key(|write| write.version);
        }
        for write in &mut self.live {
            let lost = match crash {
                Crash::Daemon => write.outcome == Outcome::Sent,
                Crash::PowerCut => write.outcome != Outcome::Durable,
            };
            if lost {
                write.end = write.end.min(clock);
                write.outcome = Outcome::InDoubt { power_cut: crash == Crash::PowerCut };
            }
            if crash == Crash::PowerCut {
                write.possible = write.mask;
            }
        }
    }

    /// Judges what was read, and lets it settle what it can. On an error nothing is settled.
    pub(crate) fn check(&mut self, view: &View) -> Result<(), (usize, MismatchKind)> {
        if self.plainly_current(view) {
            return Ok(());
        }
        let mut choices = Vec::with_capacity(view.sectors.len());
        for (index, sector) in view.sectors.iter().enumerate() {
            let place = view.first + index;
            let found = self.choices(view, place, *sector);
            if found.is_empty() {
                return Err((place, explain(view, *sector)));
            }
            choices.push(found);
        }
        self.check_whole(view, &choices)?;
        for (index, found) in choices.iter().enumerate() {
            self.settle(view, view.first + index, found);
        }
        Ok(())
    }

    /// The common case: one possible write, and every sector shows it.
    fn plainly_current(&self, view: &View) -> bool {
        let [only] = &self.live[..] else { return false };
        let places = places(view.first, view.sectors.len());
        only.acknowledged()
            && only.possible & places == places
            && view.sectors.iter().all(|sector| only.holds(*sector, view.stream))
    }

    fn choices(&self, view: &View, place: usize, sector: Sector) -> Vec<usize> {
        let bit = 1u128 << place;
        let fits = |write: &Write| {
            write.possible_for(view.issued) & bit != 0
                && write.holds(sector, view.stream)
                && self.replaced(write, view.issued) & bit == 0
        };
        (0..self.live.len()).filter(|&index| fits(&self.live[index])).collect()
    }

    /// A block changes whole or not at all: no sector may show a write that another write, seen
    /// elsewhere in the block, must have replaced.
    fn check_whole(
        &self,
        view: &View,
        choices: &[Vec<usize>],
    ) -> Result<(), (usize, MismatchKind)> {
        if choices.windows(2).all(|pair| pair[0] == pair[1] && pair[0].len() == 1) {
            return Ok(());
        }
        for (s, shown) in choices.iter().enumerate() {
            for (t, elsewhere) in choices.iter().enumerate() {
                let (s, t) = (view.first + s, view.first + t);
                let torn = |&a: &usize| elsewhere.iter().all(|&b| self.torn(view, (a, s), (b, t)));
                if s != t && shown.iter().all(torn) {
                    return Err((s, MismatchKind::Torn));
                }
            }
        }
        Ok(())
    }

    /// Whether write `a` in sector `s` and write `b` in sector `t` exclude each other.
    fn torn(&self, view: &View, (a, s): (usize, usize), (b, t): (usize, usize)) -> bool {
        if a == b {
            return false;
        }
        let (a, b) = (&self.live[a], &self.live[b]);
        let racing = a.end >= view.issued || b.end >= view.issued;
        let covers_s = b.mask & (1 << s) != 0;
        let covers_t = a.mask & (1 << t) != 0;
        covers_s && (covers_t || a.end < b.version) && (view.atomic_reads || !racing)
    }

    fn settle(&mut self, view: &View, place: usize, found: &[usize]) {
        if found.iter().any(|&index| self.live[index].outcome == Outcome::Sent) {
            return;
        }
        let bit = 1u128 << place;
        let latest = found.iter().map(|&index| self.live[index].end).max().unwrap_or(0);
        // What was written since the power cut hides what came back, but does not rule it out.
        let came_back = found.iter().all(|&index| self.live[index].version < view.last_power_cut);
        for (index, write) in self.live.iter_mut().enumerate() {
            if found.contains(&index) || write.end >= view.issued {
                continue;
            }
            write.possible &= !bit;
            write.ruled_out_at = view.now;
            match write.outcome {
                Outcome::InDoubt { power_cut: true } if came_back => write.mask &= !bit,
                // Had it taken effect it would have been seen: not even a power cut brings it.
                Outcome::InDoubt { power_cut: false } if write.version > latest => {
                    write.mask &= !bit;
                }
                _ => {}
            }
        }
        if let [only] = found {
            let write = &mut self.live[*only];
            write.outcome = match write.outcome {
                Outcome::InDoubt { power_cut: true } => Outcome::Durable,
                Outcome::InDoubt { power_cut: false } => Outcome::Acknowledged,
                other => other,
            };
        }
    }
}

fn explain(view: &View, sector: Sector) -> MismatchKind {
    match sector {
        Sector::Zeros => MismatchKind::LostToZeros,
        Sector::Version(version) if version > view.now => MismatchKind::NeverSent,
        Sector::Version(_) => MismatchKind::Stale,
        Sector::Misplaced { stream, .. } if stream == view.stream => MismatchKind::Misplaced,
        Sector::Misplaced { .. } | Sector::Foreign => MismatchKind::Foreign,
        Sector::Damaged { .. } => MismatchKind::Damaged,
    }
}

/// The bits of `count` sectors from `first`.
pub(crate) fn places(first: usize, count: usize) -> u128 {
    debug_assert!(count >= 1 && first + count <= 128);
    (u128::MAX >> (128 - count)) << first
}
