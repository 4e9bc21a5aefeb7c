//! Clients that have not chosen an export yet, in the order in which their time runs out.
//!
//! All have the same time, so that a queue is in order by itself. Nothing is to be waited for when
//! it is empty.

use super::HANDSHAKE_NS;
use std::collections::VecDeque;

/// Entries of clients that have gone or chosen, beyond as many as there are clients.
const STALE_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Entry {
    client: u32,
    accepted_ns: u64,
}

/// See the module. The functions `waits` tell whether a client, which was accepted at that time,
/// is still there and has not chosen.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    queue: VecDeque<Entry>,
}

impl Newcomers {
    /// `client`, one of `clients`, was accepted at `accepted_ns`, which never decreases.
    pub(super) fn add(
        &mut self,
        client: u32,
        accepted_ns: u64,
        clients: usize,
        waits: impl Fn(u32, u64) -> bool,
    ) {
        if self.queue.len() >= 2 * clients + STALE_MAX {
            self.queue.retain(|entry| waits(entry.client, entry.accepted_ns));
        }
        self.queue.push_back(Entry { client, accepted_ns });
    }

    /// Takes out the next one whose time has run out. Forgets those at the front that do not wait.
    pub(super) fn next_late(
        &mut self,
        now_ns: u64,
        waits: impl Fn(u32, u64) -> bool,
    ) -> Option<u32> {
        while let Some(entry) = self.queue.front() {
            let Entry { client, accepted_ns } = *entry;
            let waits = waits(client, accepted_ns);
            if waits && accepted_ns + HANDSHAKE_NS > now_ns {
                return None;
            }
            self.queue.pop_front();
            if waits {
                return Some(client);
            }
        }
        None
    }

    /// When the first one's time runs out, nanoseconds.
    pub(super) fn wakeup_ns(&self) -> Option<u64> {
        self.queue.front().map(|entry| entry.accepted_ns + HANDSHAKE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_choose_is_late_and_nobody_else() {
        let mut newcomers = Newcomers::default();
        for client in 0..3 {
            newcomers.add(client, u64::from(client), 3, |_, _| true);
        }
        assert_eq!(newcomers.wakeup_ns(), Some(HANDSHAKE_NS));
        // The first chose.
        let waits = |client, _| client != 0;
        assert_eq!(newcomers.next_late(HANDSHAKE_NS, waits), None);
        assert_eq!(newcomers.wakeup_ns(), Some(HANDSHAKE_NS + 1));
        assert_eq!(newcomers.next_late(HANDSHAKE_NS + 1, waits), Some(1));
        assert_eq!(newcomers.next_late(HANDSHAKE_NS + 1, waits), None);
        assert_eq!(newcomers.next_late(u64::MAX, |_, _| false), None);
        assert_eq!(newcomers.wakeup_ns(), None, "nothing is left to wait for");
    }

    #[test]
    fn a_crowd_that_comes_and_goes_behind_a_slow_one_needs_no_memory() {
        let mut newcomers = Newcomers::default();
        for client in 0..100_000 {
            newcomers.add(client, 0, 2, |client, _| client == 0);
        }
        assert!(newcomers.queue.len() <= 4 + STALE_MAX);
        assert_eq!(newcomers.queue[0].client, 0);
    }
}
