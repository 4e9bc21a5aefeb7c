//! Life of a request: a fixed table of slots, each in one state of one small machine.
//!
//! ```text
//!         header                 grant            last byte
//!  Free --------> AwaitGrant ---------> Receiving ---------> Submitted <-------- Free
//!   |                 | refused by the server                    | reply  not a write
//!   | refused         v                    payload skipped       v             sent
//!   +------------> Skipping -------------------------------> Replied ----------> Free
//! ```
//!
//! A dead connection frees every slot but those submitted, which the server still answers.

use super::admit::Request;

/// Number of a request's slot on its connection, from zero to `requests_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The number, to index a table of the server's.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a slot's request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    /// No request.
    Free,
    /// A write whose payload has no room yet.
    AwaitGrant,
    /// A write whose payload is arriving.
    Receiving,
    /// Refused; the payload, if it is a write, is being thrown away.
    Skipping,
    /// With the server.
    Submitted,
    /// Its reply is queued, or partly sent.
    Replied,
}

impl SlotState {
    /// Whether a slot may go from this state to `next`.
    fn may_become(self, next: SlotState) -> bool {
        use SlotState::*;
        match self {
            Free => matches!(next, AwaitGrant | Submitted | Skipping),
            AwaitGrant => matches!(next, Receiving | Skipping | Free),
            Receiving => matches!(next, Submitted | Free),
            Skipping | Submitted => matches!(next, Replied | Free),
            Replied => matches!(next, Free),
        }
    }
}

/// What a slot remembers of its request.
#[derive(Clone, Copy, Debug)]
struct Entry {
    state: SlotState,
    cookie: u64,
    /// `None` if the server was never told of the request.
    request: Option<Request>,
}

/// All slots of a connection; allocated once.
#[derive(Debug)]
pub(super) struct Slots {
    entries: Box<[Entry]>,
    free: Vec<Slot>,
}

impl Slots {
    pub(super) fn new(requests_max: u16) -> Self {
        let entry = Entry { state: SlotState::Free, cookie: 0, request: None };
        Slots {
            entries: vec![entry; usize::from(requests_max)].into_boxed_slice(),
            free: (0..requests_max).rev().map(Slot).collect(),
        }
    }

    /// Takes a free slot for a request; there must be one.
    pub(super) fn take(&mut self, state: SlotState, cookie: u64, request: Option<Request>) -> Slot {
        let slot = self.free.pop().expect("a free slot was seen");
        let entry = &mut self.entries[slot.index()];
        entry.cookie = cookie;
        entry.request = request;
        self.transition(slot, state);
        slot
    }

    /// Moves a slot on; returns whether the server knew of it, which matters when it is freed.
    pub(super) fn transition(&mut self, slot: Slot, next: SlotState) -> bool {
        let entry = &mut self.entries[slot.index()];
        let from = entry.state;
        assert!(from.may_become(next), "slot {} cannot go from {from:?} to {next:?}", slot.0);
        entry.state = next;
        if next == SlotState::Free {
            self.free.push(slot);
        }
        entry.request.is_some()
    }

    pub(super) fn state(&self, slot: Slot) -> SlotState {
        self.entries[slot.index()].state
    }

    pub(super) fn cookie(&self, slot: Slot) -> u64 {
        self.entries[slot.index()].cookie
    }

    pub(super) fn request(&self, slot: Slot) -> Option<&Request> {
        self.entries[slot.index()].request.as_ref()
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn all_free(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Every slot, whatever its state.
    pub(super) fn all(&self) -> impl Iterator<Item = Slot> + use<> {
        (0..self.entries.len() as u16).map(Slot)
    }

    /// Memory held, bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>() + self.free.capacity() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::SlotState::*;
    use super::*;

    #[test]
    fn every_pair_of_states_is_legal_or_refused_as_drawn() {
        let all = [Free, AwaitGrant, Receiving, Skipping, Submitted, Replied];
        let legal = [
            (Free, AwaitGrant),
            (Free, Submitted),
            (Free, Skipping),
            (AwaitGrant, Receiving),
            (AwaitGrant, Skipping),
            (AwaitGrant, Free),
            (Receiving, Submitted),
            (Receiving, Free),
            (Skipping, Replied),
            (Skipping, Free),
            (Submitted, Replied),
            (Submitted, Free),
            (Replied, Free),
        ];
        for from in all {
            for to in all {
                assert_eq!(from.may_become(to), legal.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_slot_is_taken_once_and_comes_back() {
        let mut slots = Slots::new(2);
        let first = slots.take(Submitted, 1, None);
        let second = slots.take(AwaitGrant, 2, None);
        assert_ne!(first, second);
        assert!(!slots.has_free());
        assert_eq!(slots.cookie(second), 2);
        slots.transition(first, Replied);
        slots.transition(first, Free);
        assert!(slots.has_free() && !slots.all_free());
        slots.transition(second, Free);
        assert!(slots.all_free());
    }

    #[test]
    #[should_panic(expected = "cannot go from Free to Free")]
    fn freeing_twice_is_our_bug() {
        let mut slots = Slots::new(1);
        let slot = slots.take(Submitted, 1, None);
        slots.transition(slot, Free);
        slots.transition(slot, Free);
    }
}
