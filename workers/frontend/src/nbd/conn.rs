//! One client's connection: negotiation, requests, payloads and replies as one machine.
//!
//! # How a server drives it
//! 1. Take [`Connection::next_event`] until there is none. A write is told at its header and its
//!    payload is not taken before [`Connection::grant`], which is the back-pressure.
//! 2. If no receive is in flight, receive into [`Connection::receive_space`], then report
//!    [`Connection::received_stream`] or [`Connection::received_payload`], or
//!    [`Connection::end_of_stream`] when the client sends no more.
//! 3. If no send is in flight, send what [`Connection::outgoing`] lists, then report
//!    [`Connection::sent`].
//! 4. After [`Event::Close`], or when the socket fails: cancel what is in flight on the socket,
//!    wait until it has ended, close the socket, call [`Connection::closed`]. Requests that were
//!    submitted are still answered; [`Connection::is_finished`] tells when nothing is left.
//!
//! Every [`Event::Request`] is followed by exactly one [`Event::Released`] of its slot; until then
//! the slot's room belongs to the request. A write is submitted at its
//! [`Event::PayloadComplete`]; everything else at its request.
//!
//! # Memory
//! All of it is allocated in [`Connection::new`]: the stream buffer (32 KiB by default), 152 bytes
//! of reply headers per request plus 2 KiB, the slots and two queues; about 70 KiB with the
//! defaults, see [`Connection::memory_bytes`]. A client that never reads its replies occupies its
//! slots and is heard no further. Payload room is the server's and is bounded by its grants.

use std::collections::VecDeque;
use std::ops::Range;

use super::admit::{Refusal, Request, RequestKind, Session, Verdict, judge};
use super::handshake::{Exports, Handshake, OPTION_BYTES_MAX, OPTION_REPLIES_BYTES_MAX, Step};
use super::outgoing::{Outgoing, Segment};
use super::proto::{CMD_WRITE, NbdError, OptionHeader, RequestHeader};
use super::reply::{
    Encoded, Outcome, REPLY_BYTES_MAX, encode_data, encode_done, encode_error, encode_extents,
};
use super::slots::{Slot, SlotState, Slots};

/// Least rest of a payload that is received straight into its place, bytes; less is received
/// together with the requests that follow it.
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once, at least one.
    pub requests_max: u16,
    /// Longest read and longest write, bytes; told to the client.
    pub payload_bytes_max: u32,
    /// Size of the stream buffer, bytes; an option with its header must fit.
    pub stream_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { requests_max: 128, payload_bytes_max: 32 << 20, stream_bytes: 32 << 10 }
    }
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// `CMD_DISC`, and all was answered.
    Disconnected,
    /// `OPT_ABORT`, and it was answered.
    Aborted,
    /// The client stopped sending between two messages, and all was answered.
    EndOfStream,
    /// [`Connection::shut_down`], and all was answered.
    ShutDown,
    /// The client stopped sending within a message.
    Truncated,
    /// A message does not begin as it must.
    BadMagic,
    /// The client answered the greeting with flags that have no meaning.
    UnknownClientFlags,
    /// An option that needs fixed newstyle, from a client that does not speak it.
    NotFixedNewstyle,
    /// An export that does not exist, asked for in the way that has no refusal.
    UnknownExport,
    /// More than [`super::OPTIONS_MAX`] options.
    TooManyOptions,
    /// An option with more than [`super::OPTION_SKIP_BYTES_MAX`] bytes of data.
    OptionTooLong,
    /// A write above the maximum payload.
    PayloadTooLong,
}

impl CloseReason {
    /// Whether the client broke no rule.
    pub fn is_orderly(self) -> bool {
        use CloseReason::*;
        matches!(self, Disconnected | Aborted | EndOfStream | ShutDown)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request; a write still needs [`Connection::grant`] and its payload, or a refusal by
    /// [`Connection::reply`] with an error instead of the grant.
    Request {
        /// Its slot.
        slot: Slot,
        /// What is asked.
        request: Request,
    },
    /// Bytes of a write's payload, to be copied before the next call of
    /// [`Connection::receive_space`].
    Payload {
        /// Its slot.
        slot: Slot,
        /// Where they go within the payload.
        at: usize,
        /// Where they stand, for [`Connection::stream_bytes`].
        bytes: Range<usize>,
    },
    /// All of a write's payload is in its place: submit it.
    PayloadComplete {
        /// Its slot.
        slot: Slot,
    },
    /// The request is over, its reply sent or dropped; its room may be reused.
    Released {
        /// Its slot.
        slot: Slot,
    },
    /// End the connection; told at most once.
    Close(
        /// Why.
        CloseReason,
    ),
}

/// Where the next bytes from the client go. It stays valid and unmoved until the next call of
/// [`Connection::receive_space`].
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiveSpace<'a> {
    /// Into the stream buffer; any number, then [`Connection::received_stream`].
    Stream(&'a mut [u8]),
    /// Into the room of a write; any number up to `length`, then
    /// [`Connection::received_payload`].
    Payload {
        /// Its slot.
        slot: Slot,
        /// First byte within the payload.
        at: usize,
        /// Bytes that are missing.
        length: usize,
    },
    /// Nowhere: ask again after events were taken, a grant, a reply or a send.
    Nothing,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    /// Expects a request.
    Idle(Session),
    /// A write waits for room.
    AwaitGrant(Session, Slot),
    /// A payload is taken in.
    Payload {
        session: Session,
        slot: Slot,
        length: usize,
        taken: usize,
    },
    /// A request is refused; the payload, if it is a write, is thrown away first.
    Skip {
        session: Session,
        slot: Slot,
        left: usize,
        refusal: Refusal,
    },
    /// Closes when all is answered and sent.
    Draining(CloseReason),
    /// Closes now.
    Broken(CloseReason),
    /// The server was told to close.
    Ended,
}

/// What a look at the input came to.
enum Advance {
    Event(Event),
    Again,
    Wait,
}

/// The machine; see the module for how to drive it.
#[derive(Debug)]
pub struct Connection {
    exports: Exports,
    phase: Phase,
    stream: Box<[u8]>,
    /// What is in the stream buffer and was not taken.
    pending: Range<usize>,
    slots: Slots,
    out: Outgoing,
    released: VecDeque<Slot>,
    structured: bool,
    /// Nothing more is sent: the client broke a rule or is gone.
    dropped: bool,
    input_ended: bool,
    shutting_down: bool,
}

impl Connection {
    /// A connection whose greeting waits to be sent. Allocates all it will ever need.
    pub fn new(exports: Exports, limits: Limits) -> Self {
        assert!(limits.requests_max > 0);
        assert!(limits.stream_bytes >= OPTION_BYTES_MAX + OptionHeader::BYTES);
        let requests_max = usize::from(limits.requests_max);
        let reply_bytes = requests_max * REPLY_BYTES_MAX + 2 * OPTION_REPLIES_BYTES_MAX;
        let mut out = Outgoing::new(reply_bytes, limits.requests_max);
        let handshake = Handshake::new(limits.payload_bytes_max, &mut out);
        Connection {
            exports,
            phase: Phase::Handshake(handshake),
            stream: vec![0; limits.stream_bytes].into_boxed_slice(),
            pending: 0..0,
            slots: Slots::new(limits.requests_max),
            out,
            released: VecDeque::with_capacity(requests_max),
            structured: false,
            dropped: false,
            input_ended: false,
            shutting_down: false,
        }
    }

    /// Memory held, bytes; constant over the connection's life.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.stream.len()
            + self.slots.memory_bytes()
            + self.out.memory_bytes()
            + self.released.capacity() * size_of::<Slot>()
    }

    /// Where the next bytes must go. Call it only when no receive is in flight.
    pub fn receive_space(&mut self) -> ReceiveSpace<'_> {
        if self.input_ended {
            return ReceiveSpace::Nothing;
        }
        match self.phase {
            // Left in the socket, so that a large payload goes straight to its place.
            Phase::AwaitGrant(..) => return ReceiveSpace::Nothing,
            Phase::Draining(_) | Phase::Broken(_) | Phase::Ended => return ReceiveSpace::Nothing,
            Phase::Payload { slot, length, taken, .. }
                if self.pending.is_empty() && length - taken >= DIRECT_BYTES_MIN =>
            {
                return ReceiveSpace::Payload { slot, at: taken, length: length - taken };
            }
            _ => {}
        }
        let used = self.pending.len();
        let tail = self.stream.len() - self.pending.end;
        if used == 0 || tail < self.stream.len() / 2 {
            self.stream.copy_within(self.pending.clone(), 0);
            self.pending = 0..used;
        }
        if self.pending.end == self.stream.len() {
            return ReceiveSpace::Nothing;
        }
        ReceiveSpace::Stream(&mut self.stream[self.pending.end..])
    }

    /// The space that [`ReceiveSpace::Stream`] named last, once more: for a server that receives
    /// into memory of its own and copies when the bytes have come.
    pub fn stream_space(&mut self) -> &mut [u8] {
        &mut self.stream[self.pending.end..]
    }

    /// Says that `bytes` bytes came into the stream buffer.
    pub fn received_stream(&mut self, bytes: usize) {
        assert!(bytes <= self.stream.len() - self.pending.end);
        self.pending.end += bytes;
    }

    /// Says that `bytes` bytes came into the room that [`ReceiveSpace::Payload`] named.
    pub fn received_payload(&mut self, bytes: usize) {
        let Phase::Payload { length, ref mut taken, .. } = self.phase else {
            panic!("no payload is being received");
        };
        assert!(bytes <= length - *taken);
        *taken += bytes;
    }

    /// Says that the client sends no more. What came before is still served, in full.
    pub fn end_of_stream(&mut self) {
        self.input_ended = true;
    }

    /// The server stops: requests already taken are served, later ones refused with `ESHUTDOWN`,
    /// and the connection closes as soon as nothing is left to answer.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Bytes that [`Event::Payload`] named.
    pub fn stream_bytes(&self, range: Range<usize>) -> &[u8] {
        &self.stream[range]
    }

    /// What happened next, until `None`: then ask again after any other call.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(slot) = self.released.pop_front() {
                return Some(Event::Released { slot });
            }
            match self.advance() {
                Advance::Event(event) => return Some(event),
                Advance::Again => {}
                Advance::Wait => return None,
            }
        }
    }

    /// Gives room for the whole payload of the write in `slot`.
    pub fn grant(&mut self, slot: Slot) {
        let Phase::AwaitGrant(session, waiting) = self.phase else {
            panic!("no write waits for room");
        };
        assert_eq!(slot, waiting);
        self.slots.transition(slot, SlotState::Receiving);
        let length = self.request(slot).length as usize;
        self.phase = Phase::Payload { session, slot, length, taken: 0 };
    }

    /// Answers the request in `slot`: one that was submitted, or with an error a write that still
    /// waits for its grant.
    pub fn reply(&mut self, slot: Slot, outcome: Outcome<'_>) {
        if self.slots.state(slot) == SlotState::AwaitGrant {
            let Outcome::Error(error) = outcome else {
                panic!("a write without payload can only fail");
            };
            self.refuse_waiting(slot, error);
            return;
        }
        assert_eq!(self.slots.state(slot), SlotState::Submitted);
        if self.dropped {
            self.release(slot);
            return;
        }
        let request = *self.request(slot);
        let cookie = self.slots.cookie(slot);
        let encoded = match outcome {
            Outcome::Done => {
                let wants_content = [RequestKind::Read, RequestKind::BlockStatus];
                assert!(!wants_content.contains(&request.kind));
                encode_done(cookie)
            }
            Outcome::Data => encode_data(cookie, &request, self.structured),
            Outcome::Extents(extents) => encode_extents(cookie, &request, extents),
            Outcome::Error(error) => encode_error(cookie, error, error.message(), self.structured),
        };
        let data = matches!(outcome, Outcome::Data).then_some(request.length as usize);
        self.queue_reply(slot, &encoded, data);
    }

    /// Up to `segments_max` pieces to send next, in order; call it only when no send is in flight.
    pub fn outgoing(&self, segments_max: usize) -> impl Iterator<Item = Segment> {
        self.out.segments().take(if self.dropped { 0 } else { segments_max })
    }

    /// Bytes of a [`Segment::Bytes`]; they do not move before they are reported as sent.
    pub fn reply_bytes(&self, at: usize, length: usize) -> &[u8] {
        self.out.bytes(at, length)
    }

    /// Says that the first `bytes` bytes of what [`Connection::outgoing`] listed were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.out.sent(bytes);
        while let Some(slot) = self.out.pop_sent() {
            self.release(slot);
        }
    }

    /// Says that the socket is closed and that nothing is in flight on it. Every request that is
    /// not submitted is released; those that are must still be answered, to no one.
    pub fn closed(&mut self) {
        self.dropped = true;
        self.input_ended = true;
        self.phase = Phase::Ended;
        self.out.clear();
        for slot in self.slots.all() {
            if !matches!(self.slots.state(slot), SlotState::Free | SlotState::Submitted) {
                self.release(slot);
            }
        }
    }

    /// Whether client and server have not yet agreed on an export.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Whether the connection is closed, and all its requests were answered and released.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Ended) && self.slots.all_free() && self.released.is_empty()
    }

    fn request(&self, slot: Slot) -> &Request {
        self.slots.request(slot).expect("the server answers what it was told of")
    }

    fn release(&mut self, slot: Slot) {
        if self.slots.transition(slot, SlotState::Free) {
            self.released.push_back(slot);
        }
    }

    fn queue_reply(&mut self, slot: Slot, encoded: &Encoded, data: Option<usize>) {
        self.slots.transition(slot, SlotState::Replied);
        self.out.push_bytes(encoded.bytes());
        if let Some(length) = data {
            self.out.push_payload(slot, length);
        }
        self.out.end_reply(slot);
    }

    fn refuse_waiting(&mut self, slot: Slot, error: NbdError) {
        let Phase::AwaitGrant(session, waiting) = self.phase else {
            unreachable!("a slot waits for a grant only in that phase");
        };
        assert_eq!(slot, waiting);
        self.slots.transition(slot, SlotState::Skipping);
        let left = self.request(slot).length as usize;
        let refusal = Refusal { error, message: error.message() };
        self.phase = Phase::Skip { session, slot, left, refusal };
    }

    fn fail(&mut self, reason: CloseReason) -> Advance {
        self.dropped = true;
        self.phase = Phase::Broken(reason);
        Advance::Again
    }

    /// Takes up to `bytes_max` bytes out of the stream buffer.
    fn consume(&mut self, bytes_max: usize) -> Range<usize> {
        let start = self.pending.start;
        let end = start + bytes_max.min(self.pending.len());
        self.pending.start = end;
        start..end
    }

    /// More bytes are needed: perhaps there will be none.
    fn starved(&mut self, between_messages: bool) -> Advance {
        if !self.input_ended {
            return Advance::Wait;
        }
        if between_messages && self.pending.is_empty() {
            self.phase = Phase::Draining(CloseReason::EndOfStream);
            return Advance::Again;
        }
        self.fail(CloseReason::Truncated)
    }

    fn advance(&mut self) -> Advance {
        match self.phase {
            Phase::Handshake(_) => self.advance_handshake(),
            Phase::Idle(session) => self.advance_request(session),
            Phase::AwaitGrant(..) | Phase::Ended => Advance::Wait,
            Phase::Payload { .. } => self.advance_payload(),
            Phase::Skip { .. } => self.advance_skip(),
            Phase::Draining(reason) => {
                if !self.slots.all_free() || !self.out.is_empty() {
                    return Advance::Wait;
                }
                self.phase = Phase::Ended;
                Advance::Event(Event::Close(reason))
            }
            Phase::Broken(reason) => {
                self.phase = Phase::Ended;
                Advance::Event(Event::Close(reason))
            }
        }
    }

    fn advance_handshake(&mut self) -> Advance {
        if self.shutting_down {
            self.phase = Phase::Draining(CloseReason::ShutDown);
            return Advance::Again;
        }
        // A client that does not read its replies gets no further ones.
        if self.out.header_bytes() > OPTION_REPLIES_BYTES_MAX {
            return Advance::Wait;
        }
        let Phase::Handshake(handshake) = &mut self.phase else {
            unreachable!("the phase was matched");
        };
        let input = &self.stream[self.pending.clone()];
        match handshake.step(input, &self.exports, &mut self.out) {
            Step::NeedMore => {
                let between = handshake.is_between_options();
                return self.starved(between);
            }
            Step::Consumed(bytes) => {
                self.consume(bytes);
            }
            Step::Enter(bytes, session) => {
                self.consume(bytes);
                self.structured = session.structured;
                self.phase = Phase::Idle(session);
            }
            Step::Finish(reason) => self.phase = Phase::Draining(reason),
            Step::Fail(reason) => return self.fail(reason),
        }
        Advance::Again
    }

    fn advance_request(&mut self, session: Session) -> Advance {
        if self.shutting_down && self.slots.all_free() && self.out.is_empty() {
            self.phase = Phase::Draining(CloseReason::ShutDown);
            return Advance::Again;
        }
        let input = &self.stream[self.pending.clone()];
        let Some(head) = input.first_chunk::<{ RequestHeader::BYTES }>() else {
            return self.starved(true);
        };
        if !self.slots.has_free() {
            return Advance::Wait;
        }
        let Some(header) = RequestHeader::decode(head) else {
            return self.fail(CloseReason::BadMagic);
        };
        let verdict = match judge(&header, &session) {
            Verdict::Accept(_) if self.shutting_down => {
                let error = NbdError::Shutdown;
                Verdict::Refuse(Refusal { error, message: error.message() })
            }
            verdict => verdict,
        };
        self.consume(RequestHeader::BYTES);
        match verdict {
            Verdict::Accept(request) => {
                let write = request.kind == RequestKind::Write;
                let state = if write { SlotState::AwaitGrant } else { SlotState::Submitted };
                let slot = self.slots.take(state, header.cookie, Some(request));
                if write {
                    self.phase = Phase::AwaitGrant(session, slot);
                }
                return Advance::Event(Event::Request { slot, request });
            }
            Verdict::Refuse(refusal) => {
                let slot = self.slots.take(SlotState::Skipping, header.cookie, None);
                let write = header.command == CMD_WRITE;
                let left = if write { header.length as usize } else { 0 };
                self.phase = Phase::Skip { session, slot, left, refusal };
            }
            Verdict::Disconnect => self.phase = Phase::Draining(CloseReason::Disconnected),
            Verdict::Close(reason) => return self.fail(reason),
        }
        Advance::Again
    }

    fn advance_payload(&mut self) -> Advance {
        let Phase::Payload { session, slot, length, taken } = self.phase else {
            unreachable!("the phase was matched");
        };
        if taken == length {
            self.phase = Phase::Idle(session);
            self.slots.transition(slot, SlotState::Submitted);
            return Advance::Event(Event::PayloadComplete { slot });
        }
        let bytes = self.consume(length - taken);
        if bytes.is_empty() {
            return self.starved(false);
        }
        self.phase = Phase::Payload { session, slot, length, taken: taken + bytes.len() };
        Advance::Event(Event::Payload { slot, at: taken, bytes })
    }

    fn advance_skip(&mut self) -> Advance {
        let Phase::Skip { session, slot, left, refusal } = self.phase else {
            unreachable!("the phase was matched");
        };
        if left == 0 {
            self.phase = Phase::Idle(session);
            let cookie = self.slots.cookie(slot);
            let Refusal { error, message } = refusal;
            let encoded = encode_error(cookie, error, message, self.structured);
            self.queue_reply(slot, &encoded, None);
            return Advance::Again;
        }
        let skipped = self.consume(left).len();
        if skipped == 0 {
            return self.starved(false);
        }
        self.phase = Phase::Skip { session, slot, left: left - skipped, refusal };
        Advance::Again
    }
}
