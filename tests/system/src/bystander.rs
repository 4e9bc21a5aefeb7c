//! A well-behaved client that works on while others misbehave.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::data::{BLOCK_SIZE, pattern};
use crate::wire::Raw;

/// Writes, reads back and compares blocks of the export's first MiB until it is told to finish.
pub struct Bystander {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Bystander {
    /// Bytes at the start of the export that belong to the bystander.
    pub const AREA: u64 = 1 << 20;

    /// Connects and starts to work.
    #[track_caller]
    pub fn start(socket: &Path) -> Bystander {
        let shared = Arc::new(Shared::default());
        let connection = Raw::connect(socket).go();
        let its_own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || work(connection, &its_own));
        Bystander { shared, thread: Some(thread) }
    }

    /// Waits until it has done some more rounds from now on: nobody starves it.
    #[track_caller]
    pub fn expect_progress(&self) {
        const TIME_MAX: Duration = Duration::from_secs(20);
        let goal = self.shared.rounds.load(Ordering::Acquire) + 10;
        let deadline = Instant::now() + TIME_MAX;
        while self.shared.rounds.load(Ordering::Acquire) < goal {
            assert!(Instant::now() < deadline, "the bystander starves");
            let thread = self.thread.as_ref().expect("it was not told to finish");
            assert!(!thread.is_finished(), "the bystander failed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it finish; panics if it met an error or wrong data.
    #[track_caller]
    pub fn finish(mut self) {
        self.expect_progress();
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("it is told to finish once");
        assert!(thread.join().is_ok(), "the bystander failed");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // After a failure elsewhere: the thread ends at its next round.
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn work(mut connection: Raw, shared: &Shared) {
    let blocks = Bystander::AREA / BLOCK_SIZE as u64;
    for round in 0.. {
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let offset = round % blocks * BLOCK_SIZE as u64;
        let bytes = pattern(round, BLOCK_SIZE);
        connection.write(offset, &bytes);
        let length = u32::try_from(BLOCK_SIZE).expect("blocks are small");
        assert!(connection.read(offset, length) == bytes, "wrong data at {offset}");
        shared.rounds.fetch_add(1, Ordering::Release);
    }
}
