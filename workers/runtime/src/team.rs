//! All workers of a process, from their start to their orderly end.

use crate::frontend::Frontend;
use crate::port::WorkerPort;
use crate::shared::{Phase, RING_REQUESTS_MAX, Shared};
use crate::worker::{Arrival, Worker};
use engine::node::{Config, Node, SliceStart};
use engine::port::Piece;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::ring::{Ring, RingError};

/// Exit status of the process after a panic in a worker: a bug of ours. Nothing is submitted
/// after it; the next start recovers.
pub const STATUS_WORKER_PANIC: i32 = 70;
/// News that wait for the team's leader at most.
const NEWS_MAX: usize = 1024;
/// How long a start may take without anything staged: making rings.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How long taking staged data back in may take.
const REPLAY_TIME_MAX: Duration = Duration::from_secs(300);

/// Why a team did not start or end as it should.
#[derive(Debug)]
pub enum TeamError {
    /// A worker's ring could not be made.
    Ring(RingError),
    /// A system call failed.
    Io(io::Error),
    /// Data that an earlier process had acknowledged could not be taken back in.
    Replay,
    /// A worker did not arrive in time.
    Timeout(&'static str),
}

impl std::fmt::Display for TeamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TeamError::Ring(error) => write!(f, "a worker cannot start: {error}"),
            TeamError::Io(error) => write!(f, "a worker cannot start: {error}"),
            TeamError::Replay => f.write_str(
                "staged data could not be written to the array: a slice failed meanwhile",
            ),
            TeamError::Timeout(what) => write!(f, "the workers did not finish {what} in time"),
        }
    }
}

impl std::error::Error for TeamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TeamError::Ring(error) => Some(error),
            TeamError::Io(error) => Some(error),
            TeamError::Replay | TeamError::Timeout(_) => None,
        }
    }
}

enum News {
    /// A worker could not start.
    Failed(TeamError),
    Arrived(Arrival),
}

/// What the team starts from.
pub struct Setup {
    /// What the engine is told.
    pub config: Config,
    /// The slices as recovery left them, by index.
    pub starts: Vec<SliceStart>,
    /// Staged pieces of an earlier process, in the order of their sequence numbers.
    pub replay: Vec<Piece>,
    /// The CPU of each worker.
    pub cpus: Vec<usize>,
}

/// The running workers.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    news: Receiver<News>,
}

impl Team {
    /// Starts the workers, each with the frontend that `make` makes for its number, and takes
    /// staged pieces back in. Clients are served after [`Team::serve`].
    pub fn start<F: Frontend>(
        shared: Arc<Shared>,
        setup: Setup,
        make: impl Fn(u16) -> F + Send + Sync + 'static,
    ) -> Result<Team, TeamError> {
        let workers = shared.lanes.len();
        assert_eq!(setup.cpus.len(), workers, "a CPU for each worker");
        let (sender, news) = sync_channel(NEWS_MAX);
        let make = Arc::new(make);
        let mut team = Team { shared: Arc::clone(&shared), threads: Vec::new(), news };
        let mut starts: Vec<Vec<SliceStart>> = (0..workers).map(|_| Vec::new()).collect();
        for start in setup.starts {
            starts[usize::from(shared.owners[usize::from(start.slice)])].push(start);
        }
        let mut replay: Vec<Vec<Piece>> = vec![Vec::new(); workers];
        let replays = !setup.replay.is_empty();
        for piece in setup.replay {
            replay[usize::from(shared.owners[usize::from(piece.slice)])].push(piece);
        }
        let mut first_page = shared.layout.engine_first();
        for (at, (starts, replay)) in starts.into_iter().zip(replay).enumerate() {
            let duty = Duty {
                worker: at as u16,
                cpu: setup.cpus[at],
                config: setup.config,
                first_page,
                replay,
            };
            first_page += shared.layout.engine_pages_each * starts.len() as u32;
            let (shared, make, sender) = (Arc::clone(&shared), Arc::clone(&make), sender.clone());
            let work = move || work(shared, duty, starts, |worker| make(worker), &sender);
            let thread = std::thread::Builder::new().name(format!("worker-{at}")).spawn(work);
            team.threads.push(thread.map_err(TeamError::Io)?);
        }
        let limit = if replays { REPLAY_TIME_MAX } else { START_TIME_MAX };
        team.gather(limit, "taking staged data back in", Phase::Starting)?;
        Ok(team)
    }

    /// Serves clients from now on.
    pub fn serve(&self) {
        self.shared.set_phase(Phase::Serving);
    }

    /// Finishes what clients asked for, settles everything and ends the workers. True when the
    /// slices are clean; false when the array had stopped, which leaves them to recovery.
    pub fn stop(mut self, drain_max: Duration, settle_max: Duration) -> Result<bool, TeamError> {
        self.shared.set_phase(Phase::Draining);
        let drained = self.gather(drain_max, "clients' requests", Phase::Draining);
        self.shared.set_phase(Phase::Settling);
        let clean = self.gather(settle_max, "settling", Phase::Settling)?;
        self.shared.set_phase(Phase::Ended);
        for thread in self.threads.drain(..) {
            // A panic has ended the process.
            let _ = thread.join();
        }
        drained.map(|_| clean)
    }

    /// Waits until every worker has arrived at the end of `phase`; whether all that settled are
    /// clean. A late arrival at an earlier end does not count.
    fn gather(
        &mut self,
        limit: Duration,
        what: &'static str,
        phase: Phase,
    ) -> Result<bool, TeamError> {
        let deadline = Instant::now() + limit;
        let mut all_clean = true;
        let mut missing = self.shared.lanes.len();
        while missing > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let reached = match self.news.recv_timeout(left) {
                Ok(News::Failed(error)) => return Err(error),
                Ok(News::Arrived(Arrival::ReplayFailed)) => return Err(TeamError::Replay),
                Ok(News::Arrived(Arrival::Replayed)) => Phase::Starting,
                Ok(News::Arrived(Arrival::Drained)) => Phase::Draining,
                Ok(News::Arrived(Arrival::Settled { clean })) => {
                    all_clean &= clean;
                    Phase::Settling
                }
                Err(_) => return Err(TeamError::Timeout(what)),
            };
            missing -= usize::from(reached == phase);
        }
        Ok(all_clean)
    }
}

struct Duty {
    worker: u16,
    cpu: usize,
    config: Config,
    first_page: u32,
    replay: Vec<Piece>,
}

/// What a worker's thread does.
fn work<F: Frontend>(
    shared: Arc<Shared>,
    duty: Duty,
    starts: Vec<SliceStart>,
    make: impl FnOnce(u16) -> F,
    news: &SyncSender<News>,
) {
    let number = duty.worker;
    // The sending ends block on nobody: there is room for all the news of a life.
    let tell = |what| drop(news.try_send(what));
    let life = || -> Result<(), TeamError> {
        if !sys::cpu::pin_current(duty.cpu) {
            tracing::warn!(worker = number, cpu = duty.cpu, "cannot be pinned");
        }
        sys::process::set_io_flusher();
        let mut ring = Ring::new(RING_REQUESTS_MAX).map_err(TeamError::Ring)?;
        if !ring.register(&shared.arena) {
            tracing::info!(
                worker = number,
                "the arena is not registered: too little lockable memory"
            );
        }
        let node = Node::new(duty.config, starts, duty.first_page);
        let port = WorkerPort::new(ring, Arc::clone(&shared), number, 1);
        let mut worker = Worker::new(port, node, make(number), duty.replay);
        worker.run(|arrival| tell(News::Arrived(arrival))).map_err(TeamError::Io)
    };
    match catch_unwind(AssertUnwindSafe(life)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) if shared.phase() == Phase::Starting => tell(News::Failed(error)),
        Ok(Err(error)) => {
            tracing::error!(worker = number, %error, "a worker cannot go on; the process ends");
            std::process::exit(STATUS_WORKER_PANIC);
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)");
            tracing::error!(worker = number, text, "a worker has panicked; the process ends");
            std::process::exit(STATUS_WORKER_PANIC);
        }
    }
}
