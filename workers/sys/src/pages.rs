//! The process's free pages, shared by all workers without a lock.
//!
//! A count of free pages is reserved from first and the page numbers are taken afterwards, so a
//! request gets all the pages it asked for or none, and two requests can never starve each other
//! holding halves.

use crossbeam_queue::ArrayQueue;
use std::sync::atomic::{AtomicU32, Ordering};

/// Free pages of an arena.
#[derive(Debug)]
pub struct PagePool {
    queue: ArrayQueue<u32>,
    /// Pages in the queue that nobody has reserved; never more than the queue holds.
    free: AtomicU32,
}

impl PagePool {
    /// A pool of the `count` pages from `first` on (at least one).
    pub fn new(first: u32, count: u32) -> PagePool {
        let queue = ArrayQueue::new(count as usize);
        for page in first..first + count {
            queue.push(page).expect("room for every page");
        }
        PagePool { queue, free: AtomicU32::new(count) }
    }

    /// Appends `count` pages to `into` and makes them the caller's; false, and nothing taken, when
    /// fewer are free.
    #[must_use]
    pub fn take(&self, count: u32, into: &mut Vec<u32>) -> bool {
        let reserved = self
            .free
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |free| free.checked_sub(count));
        if reserved.is_err() {
            return false;
        }
        for _ in 0..count {
            into.push(self.queue.pop().expect("a reserved page is in the queue"));
        }
        true
    }

    /// Gives pages back.
    pub fn give(&self, pages: &[u32]) {
        for page in pages {
            self.queue.push(*page).expect("more pages given than taken");
        }
        self.free.fetch_add(pages.len() as u32, Ordering::Release);
    }

    /// Number of pages that are free now.
    pub fn free(&self) -> u32 {
        self.free.load(Ordering::Relaxed)
    }

    /// Number of pages when all are free.
    pub fn capacity(&self) -> u32 {
        self.queue.capacity() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn takes_all_or_nothing() {
        let pool = PagePool::new(10, 4);
        let mut pages = vec![99];
        assert!(!pool.take(5, &mut pages));
        assert_eq!(pages, [99]);
        assert!(pool.take(3, &mut pages));
        assert!(!pool.take(2, &mut pages));
        assert_eq!((pages.as_slice(), pool.free()), ([99, 10, 11, 12].as_slice(), 1));
        pool.give(&pages[1..]);
        assert_eq!(pool.free(), pool.capacity());
    }

    #[test]
    fn a_page_is_never_with_two_owners() {
        let pool = PagePool::new(0, 16);
        let owned: Vec<AtomicBool> = (0..16).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|scope| {
            for seed in 1..4 {
                let (pool, owned) = (&pool, &owned);
                scope.spawn(move || {
                    let mut pages = Vec::new();
                    for round in 0..20_000 {
                        if !pool.take(1 + (round * seed) % 9, &mut pages) {
                            std::thread::yield_now();
                            continue;
                        }
                        for page in &pages {
                            assert!(!owned[*page as usize].swap(true, Ordering::SeqCst));
                        }
                        for page in &pages {
                            owned[*page as usize].store(false, Ordering::SeqCst);
                        }
                        pool.give(&pages);
                        pages.clear();
                    }
                });
            }
        });
        let mut pages = Vec::new();
        assert!(pool.take(16, &mut pages));
        pages.sort_unstable();
        assert_eq!(pages, (0..16).collect::<Vec<_>>());
    }
}
