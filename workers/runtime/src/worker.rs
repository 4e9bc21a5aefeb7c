//! The loop of one worker.
//!
//! ```text
//! completions -> lane -> frontend -> engine -> replies -> frontend -> submit
//!      ^                                                                |
//!      +-------- at once after an event, spinning a while, or asleep <--+
//! ```
//!
//! A sleeping worker waits in the kernel for a completion: of a disk, of a socket, of the read of
//! its doorbell, or until the engine or the frontend must be polled. Nothing else wakes it.

use crate::frontend::{Context, Frontend};
use crate::pace::Pace;
use crate::port::{KIND_DISK, KIND_DOORBELL, KIND_FRONTEND, KIND_MASK, WorkerPort};
use crate::shared::{Envelope, Phase, Shared};
use engine::node::Node;
use engine::port::{Piece, Token};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use sys::process::now_ns;
use sys::ring::Completion;

/// Messages taken from the lane before something else gets its turn.
const LANE_BATCH_MAX: usize = 512;
/// Staged pieces handed to the engine in one round.
const REPLAY_BATCH_MAX: usize = 256;
/// Request number of replayed pieces.
const REPLAY_REQUEST: u32 = u32::MAX;
/// How long to sleep at most while a message waits for room in a lane.
const DEFERRED_WAIT_NS: u64 = 50_000;
/// How often a busy worker publishes its slices' numbers, in nanoseconds.
const REPORT_INTERVAL_NS: u64 = 200_000_000;

/// What a worker tells the team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has taken back in what was staged.
    Replayed,
    /// Staged data could not be taken back in: the array has stopped.
    ReplayFailed,
    /// Its clients are gone.
    Drained,
    /// Its slices are clean, or cannot become so because the array has stopped.
    Settled {
        /// They are clean.
        clean: bool,
    },
}

/// A worker, on its own thread.
pub(crate) struct Worker<F> {
    port: WorkerPort,
    node: Node,
    frontend: F,
    shared: Arc<Shared>,
    pace: Pace,
    completions: Vec<Completion>,
    bell_is_watched: bool,
    phase: Phase,
    arrived: Option<Phase>,
    replay: std::vec::IntoIter<Piece>,
    replay_failed: bool,
    reported_ns: u64,
}

impl<F: Frontend> Worker<F> {
    pub(crate) fn new(port: WorkerPort, node: Node, frontend: F, replay: Vec<Piece>) -> Worker<F> {
        Worker {
            shared: Arc::clone(&port.shared),
            port,
            node,
            frontend,
            pace: Pace::new(now_ns()),
            completions: Vec::with_capacity(4096),
            bell_is_watched: false,
            phase: Phase::Starting,
            arrived: None,
            replay: replay.into_iter(),
            replay_failed: false,
            reported_ns: 0,
        }
    }

    /// Works until the team has ended.
    pub(crate) fn run(&mut self, mut tell: impl FnMut(Arrival)) -> std::io::Result<()> {
        loop {
            let now = now_ns();
            let active = self.round(now) | self.follow_phase(now, &mut tell);
            if self.phase == Phase::Ended {
                return Ok(());
            }
            if active {
                self.pace.active(now);
            }
            self.port.ring.submit()?;
            if active || self.pace.should_spin(now) {
                self.report(now, false);
                std::hint::spin_loop();
            } else {
                self.sleep()?;
            }
        }
    }

    /// One round of everything; whether anything happened.
    fn round(&mut self, now: u64) -> bool {
        let mut fed = false;
        let mut active = self.take_completions(now, &mut fed);
        active |= self.take_messages(now, &mut fed);
        fed |= self.feed_replay(now);
        let (mut context, frontend) = self.context(now, &mut fed);
        frontend.poll(&mut context);
        let due = self.node.wakeup_ns().is_some_and(|at| at <= now);
        active |= fed | due | !self.port.replies.is_empty();
        while active || fed {
            self.node.poll(&mut self.port, now);
            fed = false;
            active = true;
            self.port.give_retired();
            self.deliver_replies(now, &mut fed);
            let (mut context, frontend) = self.context(now, &mut fed);
            frontend.poll(&mut context);
            if !fed {
                break;
            }
        }
        self.port.disks.submit_pending(&mut self.port.ring);
        self.port.send_deferred();
        active
    }

    fn context<'a>(&'a mut self, now_ns: u64, fed: &'a mut bool) -> (Context<'a>, &'a mut F) {
        let Worker { port, node, frontend, .. } = self;
        (Context { port, node, now_ns, fed }, frontend)
    }

    fn take_completions(&mut self, now: u64, fed: &mut bool) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        self.port.ring.completions(&mut completions);
        let any = !completions.is_empty();
        for mut completion in completions.drain(..) {
            let rest = completion.user_data & !KIND_MASK;
            match completion.user_data & KIND_MASK {
                KIND_DISK => {
                    if let Some(ended) = self.port.disk_completed(rest as u32, completion.result) {
                        let (slice, op) = (ended.slice, ended.op);
                        self.node.completed(&mut self.port, now, slice, op, ended.result);
                        *fed = true;
                    }
                }
                KIND_DOORBELL => self.bell_is_watched = false,
                KIND_FRONTEND => {
                    completion.user_data = rest;
                    let (mut context, frontend) = self.context(now, fed);
                    frontend.completed(&mut context, completion);
                }
                kind => unreachable!("a completion of kind {kind:#x}"),
            }
        }
        self.completions = completions;
        any
    }

    fn take_messages(&mut self, now: u64, fed: &mut bool) -> bool {
        for count in 0..LANE_BATCH_MAX {
            let lane = &self.shared.lanes[usize::from(self.port.worker)];
            let Some(envelope) = lane.receive() else { return count > 0 };
            self.open(envelope, now, fed);
        }
        true
    }

    fn open(&mut self, envelope: Envelope, now: u64, fed: &mut bool) {
        match envelope {
            Envelope::Piece(piece) => {
                self.node.piece(&mut self.port, now, &piece);
                *fed = true;
            }
            Envelope::Flush(slice, token) => {
                self.node.flush(&mut self.port, now, slice, token);
                *fed = true;
            }
            Envelope::Message { to, from, message } => {
                self.node.message(&mut self.port, now, to, from, message);
                *fed = true;
            }
            Envelope::Reply(reply) => self.port.replies.push_back(reply),
            Envelope::Flushed(token, result) => self.port.flushes.push_back((token, result)),
            Envelope::Connection(connection) => {
                let (mut context, frontend) = self.context(now, fed);
                frontend.connected(&mut context, connection);
            }
        }
    }

    /// Hands staged pieces of an earlier process to the engine, a batch at a time, in order.
    fn feed_replay(&mut self, now: u64) -> bool {
        let token = Token {
            worker: self.port.worker,
            incarnation: self.port.incarnation,
            request: REPLAY_REQUEST,
        };
        let mut any = false;
        for mut piece in self.replay.by_ref().take(REPLAY_BATCH_MAX) {
            piece.token = token;
            self.node.piece(&mut self.port, now, &piece);
            any = true;
        }
        any
    }

    fn deliver_replies(&mut self, now: u64, fed: &mut bool) {
        while let Some(reply) = self.port.replies.pop_front() {
            if self.is_stale(reply.token) {
                continue;
            }
            if reply.token.request == REPLAY_REQUEST {
                // One that was admitted has no reply.
                self.replay_failed = true;
                continue;
            }
            let (mut context, frontend) = self.context(now, fed);
            frontend.reply(&mut context, reply.token.request, &reply);
        }
        while let Some((token, result)) = self.port.flushes.pop_front() {
            if !self.is_stale(token) {
                let (mut context, frontend) = self.context(now, fed);
                frontend.flushed(&mut context, token.request, result);
            }
        }
    }

    fn is_stale(&self, token: Token) -> bool {
        let stale = token.incarnation != self.port.incarnation;
        if stale {
            self.port.counters().stale.add(1);
        }
        stale
    }

    /// Moves on with the team, and tells it where this worker has arrived.
    /// True when there is more to do at once.
    fn follow_phase(&mut self, now: u64, tell: &mut impl FnMut(Arrival)) -> bool {
        let phase = self.shared.phase();
        let changed = phase != self.phase;
        if changed {
            let mut fed = false;
            self.phase = phase;
            let (mut context, frontend) = self.context(now, &mut fed);
            match phase {
                Phase::Serving => frontend.start(&mut context),
                Phase::Draining => frontend.stop(&mut context),
                Phase::Settling => self.node.shut_down(&mut self.port, now),
                Phase::Starting | Phase::Ended => {}
            }
        }
        if self.arrived != Some(self.phase) {
            self.arrive(now, tell);
        }
        changed
    }

    fn arrive(&mut self, now: u64, tell: &mut impl FnMut(Arrival)) {
        let arrival = match self.phase {
            Phase::Starting if self.replay_failed => Arrival::ReplayFailed,
            Phase::Starting if self.replay.len() == 0 => Arrival::Replayed,
            Phase::Draining if self.frontend.is_finished() => Arrival::Drained,
            Phase::Settling if self.node.stopped() => Arrival::Settled { clean: false },
            Phase::Settling if self.node.is_clean() && self.port.disks.is_idle() => {
                Arrival::Settled { clean: true }
            }
            _ => return,
        };
        self.report(now, true);
        self.arrived = Some(self.phase);
        tell(arrival);
    }

    /// Publishes the numbers of this worker's slices; leaves them for later if somebody reads them.
    fn report(&mut self, now: u64, at_once: bool) {
        if !at_once && now < self.reported_ns + REPORT_INTERVAL_NS {
            return;
        }
        self.reported_ns = now;
        for (slice, stats, journal_units_used) in self.node.stats() {
            if let Ok(mut report) = self.shared.reports[usize::from(slice)].try_lock() {
                report.stats = stats;
                report.journal_units_used = journal_units_used;
            }
        }
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let at = usize::from(self.port.worker);
        let bell = &shared.doorbells[at];
        if !self.bell_is_watched {
            let fd = bell.as_raw_fd();
            self.bell_is_watched = self.port.ring.poll_read(fd, KIND_DOORBELL);
        }
        bell.prepare_sleep();
        let awake = !shared.lanes[at].is_empty()
            || shared.phase() != self.phase
            || self.frontend.is_ready(&shared);
        if !awake {
            let now = now_ns();
            self.report(now, true);
            let deferred = (!self.port.send_deferred()).then_some(now + DEFERRED_WAIT_NS);
            let times = [self.node.wakeup_ns(), self.frontend.wakeup_ns(), deferred];
            let until = times.into_iter().flatten().min();
            let limit = until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
            if limit != Some(Duration::ZERO) {
                self.port.counters().sleeps.add(1);
                self.port.ring.wait(limit)?;
                self.pace.slept(now_ns() - now);
            }
        }
        bell.awake();
        Ok(())
    }
}
