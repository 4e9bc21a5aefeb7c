//! Queue of what must be sent: headers in a ring of fixed size, payloads by name only.
//!
//! Bytes that were queued never move until they are sent, so a send may be in flight while
//! further replies are queued. Adjacent headers become one segment, hence one piece of a send.

use std::collections::VecDeque;

use super::slots::Slot;

/// One piece of what must be sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the connection's own buffer, see [`super::Connection::reply_bytes`].
    Bytes {
        /// First byte in the buffer.
        at: usize,
        /// Bytes.
        length: usize,
    },
    /// Bytes of the data that the server read for a request.
    Payload {
        /// The request.
        slot: Slot,
        /// First byte within the data.
        at: usize,
        /// Bytes.
        length: usize,
    },
}

impl Segment {
    /// Bytes in this piece.
    pub fn length(&self) -> usize {
        match self {
            Segment::Bytes { length, .. } | Segment::Payload { length, .. } => *length,
        }
    }

    /// The piece without its first `bytes` bytes.
    fn after(self, bytes: usize) -> Segment {
        match self {
            Segment::Bytes { at, length } => {
                Segment::Bytes { at: at + bytes, length: length - bytes }
            }
            Segment::Payload { slot, at, length } => {
                Segment::Payload { slot, at: at + bytes, length: length - bytes }
            }
        }
    }
}

/// The queue; allocated once.
#[derive(Debug)]
pub(super) struct Outgoing {
    ring: Box<[u8]>,
    /// Where the next header byte goes.
    write_at: usize,
    /// Header bytes queued and not sent.
    ring_used: usize,
    segments: VecDeque<Segment>,
    queued_total: u64,
    sent_total: u64,
    /// Replies not wholly sent, and the total at which each one is.
    ends: VecDeque<(Slot, u64)>,
}

impl Outgoing {
    /// Room for `bytes` header bytes and the replies of `requests_max` requests.
    pub(super) fn new(bytes: usize, requests_max: u16) -> Self {
        let requests_max = usize::from(requests_max);
        Outgoing {
            ring: vec![0; bytes].into_boxed_slice(),
            write_at: 0,
            ring_used: 0,
            // Per request a header and a payload; one header may go around the end of the ring.
            segments: VecDeque::with_capacity(2 * requests_max + 4),
            queued_total: 0,
            sent_total: 0,
            ends: VecDeque::with_capacity(requests_max),
        }
    }

    /// Queues header bytes; there must be room.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        assert!(self.ring_used + bytes.len() <= self.ring.len(), "replies are bounded by slots");
        let (first, second) = bytes.split_at(bytes.len().min(self.ring.len() - self.write_at));
        for part in [first, second] {
            if part.is_empty() {
                continue;
            }
            let at = self.write_at;
            self.ring[at..at + part.len()].copy_from_slice(part);
            self.write_at = (at + part.len()) % self.ring.len();
            self.ring_used += part.len();
            self.queued_total += part.len() as u64;
            match self.segments.back_mut() {
                Some(Segment::Bytes { at: start, length }) if *start + *length == at => {
                    *length += part.len();
                }
                _ => self.segments.push_back(Segment::Bytes { at, length: part.len() }),
            }
        }
    }

    /// Queues the data of a read.
    pub(super) fn push_payload(&mut self, slot: Slot, length: usize) {
        self.segments.push_back(Segment::Payload { slot, at: 0, length });
        self.queued_total += length as u64;
    }

    /// Says that what was queued so far completes the reply of `slot`.
    pub(super) fn end_reply(&mut self, slot: Slot) {
        self.ends.push_back((slot, self.queued_total));
    }

    /// What must be sent, in order.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        self.segments.iter().copied()
    }

    /// Bytes of a segment.
    pub(super) fn bytes(&self, at: usize, length: usize) -> &[u8] {
        &self.ring[at..at + length]
    }

    /// Takes note that the first `bytes` bytes of the queue were sent.
    pub(super) fn sent(&mut self, mut bytes: usize) {
        self.sent_total += bytes as u64;
        while bytes > 0 {
            let head = self.segments.pop_front().expect("no more is sent than was queued");
            let taken = bytes.min(head.length());
            if matches!(head, Segment::Bytes { .. }) {
                self.ring_used -= taken;
            }
            if taken < head.length() {
                self.segments.push_front(head.after(taken));
            }
            bytes -= taken;
        }
    }

    /// A slot whose reply was wholly sent.
    pub(super) fn pop_sent(&mut self) -> Option<Slot> {
        let (slot, end) = *self.ends.front()?;
        if end > self.sent_total {
            return None;
        }
        self.ends.pop_front();
        Some(slot)
    }

    /// Forgets everything that was not sent.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.ends.clear();
        self.ring_used = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Header bytes queued and not sent.
    pub(super) fn header_bytes(&self) -> usize {
        self.ring_used
    }

    /// Memory held, bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.ring.len()
            + self.segments.capacity() * size_of::<Segment>()
            + self.ends.capacity() * size_of::<(Slot, u64)>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::{SlotState, Slots};
    use super::*;

    fn two_slots() -> (Slot, Slot) {
        let mut slots = Slots::new(2);
        (slots.take(SlotState::Submitted, 1, None), slots.take(SlotState::Submitted, 2, None))
    }

    #[test]
    fn replies_end_where_their_last_byte_is_sent() {
        let (first, second) = two_slots();
        let mut queue = Outgoing::new(64, 2);
        queue.push_bytes(&[1; 16]);
        queue.push_payload(first, 100);
        queue.end_reply(first);
        queue.push_bytes(&[2; 16]);
        queue.end_reply(second);
        queue.sent(115);
        assert_eq!(queue.pop_sent(), None);
        let head = queue.segments().next();
        assert_eq!(head, Some(Segment::Payload { slot: first, at: 99, length: 1 }));
        queue.sent(17);
        assert_eq!((queue.pop_sent(), queue.pop_sent()), (Some(first), Some(second)));
        assert!(queue.is_empty() && queue.header_bytes() == 0);
    }

    #[test]
    fn headers_join_and_go_around_the_ring() {
        let mut queue = Outgoing::new(40, 2);
        queue.push_bytes(&[1; 16]);
        queue.push_bytes(&[2; 16]);
        let all: Vec<_> = queue.segments().collect();
        assert_eq!(all, [Segment::Bytes { at: 0, length: 32 }]);
        queue.sent(20);
        queue.push_bytes(&[3; 16]);
        let all: Vec<_> = queue.segments().collect();
        let parts = [Segment::Bytes { at: 20, length: 20 }, Segment::Bytes { at: 0, length: 8 }];
        assert_eq!(all, parts);
        let mut bytes = Vec::new();
        for segment in all {
            let Segment::Bytes { at, length } = segment else { unreachable!() };
            bytes.extend_from_slice(queue.bytes(at, length));
        }
        assert_eq!(bytes[..12], [2; 12]);
        assert_eq!(bytes[12..], [3; 16]);
    }

    #[test]
    #[should_panic(expected = "bounded by slots")]
    fn the_ring_never_overwrites() {
        let mut queue = Outgoing::new(16, 1);
        queue.push_bytes(&[0; 17]);
    }
}
