//! Who uses which pages at this moment: many readers or one writer, checked and never waited for.

use std::sync::atomic::{AtomicU16, Ordering};

const WRITER: u16 = u16::MAX;

/// A claim on consecutive pages until it is dropped. A page's counter is 0 when it is free, the
/// number of its readers, or [`WRITER`].
pub struct Claim<'a> {
    pages: &'a [AtomicU16],
    held: usize,
    write: bool,
}

impl<'a> Claim<'a> {
    /// Claims pages, `first` being the first one's number, for reading. Panics when one is written.
    pub fn read(pages: &'a [AtomicU16], first: u32) -> Claim<'a> {
        let mut claim = Claim { pages, held: 0, write: false };
        for (index, page) in pages.iter().enumerate() {
            let before = page.fetch_update(Ordering::Acquire, Ordering::Relaxed, |count| {
                (count < WRITER - 1).then_some(count + 1)
            });
            assert!(before.is_ok(), "page {} read while written", first as usize + index);
            claim.held += 1;
        }
        claim
    }

    /// Claims pages, `first` being the first one's number, for writing. Panics when one is in use.
    pub fn write(pages: &'a [AtomicU16], first: u32) -> Claim<'a> {
        let mut claim = Claim { pages, held: 0, write: true };
        for (index, page) in pages.iter().enumerate() {
            let before = page.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed);
            assert!(before.is_ok(), "page {} written while in use", first as usize + index);
            claim.held += 1;
        }
        claim
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for page in &self.pages[..self.held] {
            if self.write {
                page.store(0, Ordering::Release);
            } else {
                page.fetch_sub(1, Ordering::Release);
            }
        }
    }
}
