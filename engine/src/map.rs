//! A slice's block map in memory: for each row where its block is and what it must read as.
//!
//! Holds settled entries only (J13). Access is by row; the map is kept, dirtied and written by
//! page, so that a bounded cache of pages could take its place. Eight bytes a row: 2 GiB for a TiB
//! of 4 KiB blocks.

use crate::format::Entry;
use crate::format::map_page::MapPage;
use crate::geometry::PAGE_ROWS;

/// A page that is on disk as it is in memory.
const CLEAN: u64 = u64::MAX;

/// The block map of one slice.
#[derive(Debug)]
pub struct BlockMap {
    entries: Vec<Entry>,
    /// By page: the version last written.
    versions: Vec<u64>,
    /// By page: the first journal group whose change is not in the written page.
    dirty_since: Vec<u64>,
}

impl BlockMap {
    /// The map of a slice of `rows` rows none of which was written.
    #[must_use]
    pub fn new(rows: u32) -> Self {
        let pages = rows.div_ceil(PAGE_ROWS) as usize;
        Self {
            entries: vec![Entry::EMPTY; rows as usize],
            versions: vec![0; pages],
            dirty_since: vec![CLEAN; pages],
        }
    }

    /// Takes over a page read from disk. Rows beyond the array's are ignored.
    pub fn load(&mut self, page: &MapPage) {
        let first = (page.page * PAGE_ROWS) as usize;
        let count = (self.entries.len() - first).min(PAGE_ROWS as usize);
        self.entries[first..first + count].copy_from_slice(&page.entries[..count]);
        self.versions[page.page as usize] = page.version;
    }

    /// The settled entry of a row.
    #[must_use]
    pub fn get(&self, row: u32) -> Entry {
        self.entries[row as usize]
    }

    /// Changes an entry, because of a record in journal group `group`.
    pub fn set(&mut self, row: u32, entry: Entry, group: u64) {
        self.entries[row as usize] = entry;
        let dirty = &mut self.dirty_since[(row / PAGE_ROWS) as usize];
        *dirty = (*dirty).min(group);
    }

    /// Pages that lack a change recorded in a group before `group`.
    pub fn dirty_before(&self, group: u64) -> impl Iterator<Item = u32> + '_ {
        let dirty = self.dirty_since.iter().enumerate();
        dirty.filter(move |(_, since)| **since < group).map(|(page, _)| page as u32)
    }

    /// The page as it is to be written now. It counts as written from here on.
    pub fn write_out(&mut self, page: u32) -> MapPage {
        self.dirty_since[page as usize] = CLEAN;
        self.image(page)
    }

    /// The page as it is now, with a new version.
    pub fn image(&mut self, page: u32) -> MapPage {
        let mut image = MapPage::empty(page);
        let first = (page * PAGE_ROWS) as usize;
        let count = (self.entries.len() - first).min(PAGE_ROWS as usize);
        image.entries[..count].copy_from_slice(&self.entries[first..first + count]);
        self.versions[page as usize] += 1;
        image.version = self.versions[page as usize];
        image
    }

    /// All entries, by row.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_dirty_until_written_and_come_back() {
        let mut map = BlockMap::new(1100);
        let entry = Entry { slot: 3, sum: 4 };
        map.set(1099, entry, 7);
        map.set(0, entry, 9);
        assert_eq!(map.dirty_before(8).collect::<Vec<_>>(), [2]);
        assert_eq!(map.dirty_before(10).collect::<Vec<_>>(), [0, 2]);
        let page = map.write_out(2);
        assert_eq!(map.dirty_before(10).collect::<Vec<_>>(), [0]);
        let mut other = BlockMap::new(1100);
        other.load(&page);
        assert_eq!((other.get(1099), other.get(0)), (entry, Entry::EMPTY));
        assert!(map.write_out(2).version > page.version);
    }
}
