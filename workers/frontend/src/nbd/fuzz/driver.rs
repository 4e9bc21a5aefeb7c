//! Plays the server of one session, eagerly or at random moments, and checks what it is told.

use super::super::proto::{CommandFlags, ExtentFlags, NbdError};
use super::super::{
    CloseReason, Connection, Event, Extent, Outcome, ReceiveSpace, Request, RequestKind, Segment,
    Slot,
};
use super::{PAYLOAD_BYTES_MAX, Random, SIZE_BYTES, content};

/// Most slots of any session.
const SLOTS_MAX: usize = 128;

/// How the server and the socket behave.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Manner {
    /// Everything is done at once, and nothing fails.
    pub(in super::super) eager: bool,
    /// The client never reads.
    pub(in super::super) deaf: bool,
    /// The socket dies in the middle.
    pub(in super::super) cut_off: bool,
    /// The server stops in the middle.
    pub(in super::super) shut_down: bool,
}

/// Where a request stands, seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitGrant,
    Receiving,
    Submitted,
    Answered,
}

/// What the server holds for a slot.
#[derive(Clone, Debug)]
struct Room {
    request: Request,
    stage: Stage,
    payload: Vec<u8>,
}

/// A receive in flight.
#[derive(Clone, Copy, Debug)]
enum Receive {
    /// With the address of the space, which must not move.
    Stream {
        length: usize,
        address: usize,
    },
    Payload {
        slot: Slot,
        at: usize,
        length: usize,
    },
}

/// A server, its socket, and its client's bytes.
pub(in super::super) struct Driver {
    connection: Connection,
    manner: Manner,
    random: Random,
    input: Vec<u8>,
    input_at: usize,
    input_ended: bool,
    /// Longest piece in which input comes; zero for all there is.
    pub(in super::super) piece_bytes: usize,
    rooms: Vec<Option<Room>>,
    slots: Vec<Slot>,
    receive: Option<Receive>,
    send: Vec<(Segment, Vec<u8>)>,
    memory_bytes: usize,
    is_closed: bool,
    /// What the client has read.
    pub(in super::super) output: Vec<u8>,
    /// Requests in the order of their submission, with payload.
    pub(in super::super) submitted: Vec<(Request, Vec<u8>)>,
    /// Requests told.
    pub(in super::super) requests: u64,
    /// Why the connection asked to be closed.
    pub(in super::super) close: Option<CloseReason>,
}

impl Driver {
    pub(in super::super) fn new(
        connection: Connection,
        input: Vec<u8>,
        manner: Manner,
        random: Random,
    ) -> Self {
        let memory_bytes = connection.memory_bytes();
        Driver {
            connection,
            manner,
            random,
            input,
            input_at: 0,
            input_ended: false,
            piece_bytes: 0,
            rooms: vec![None; SLOTS_MAX],
            slots: Vec::new(),
            receive: None,
            send: Vec::new(),
            memory_bytes,
            is_closed: false,
            output: Vec::new(),
            submitted: Vec::new(),
            requests: 0,
            close: None,
        }
    }

    /// Plays the session to its end and checks that nothing is left.
    pub(in super::super) fn play(&mut self) {
        if !self.manner.eager {
            self.play_at_random();
        }
        while self.close.is_none() && !self.is_closed && self.eager_round() {}
        if self.close.is_none() && !self.is_closed {
            assert!(self.manner.deaf, "only a deaf client stands still");
        }
        self.hang_up();
        let slots: Vec<Slot> = self.slots.clone();
        for slot in slots {
            if self.stage(slot) == Some(Stage::Submitted) {
                self.answer(slot);
            }
        }
        self.take_events();
        assert!(self.slots.is_empty(), "a slot leaked");
        assert!(self.connection.is_finished());
        assert_eq!(self.connection.memory_bytes(), self.memory_bytes, "memory grew");
    }

    fn play_at_random(&mut self) {
        let mut idle = 0;
        while idle < 64 && self.close.is_none() {
            let moved = match self.random.below(8) {
                0 => self.start_receive(),
                1 | 2 => self.finish_receive(),
                3 => self.start_send(),
                4 => self.finish_send(),
                5 => self.serve_one(),
                _ => self.take_events(),
            };
            idle = if moved { 0 } else { idle + 1 };
            if self.manner.cut_off && self.random.one_in(200) {
                self.hang_up();
                return;
            }
            if self.manner.shut_down && self.random.one_in(100) {
                self.connection.shut_down();
            }
        }
    }

    /// Does everything that can be done; returns whether there was anything.
    fn eager_round(&mut self) -> bool {
        let mut moved = self.take_events();
        while self.serve_one() {
            moved = true;
        }
        moved |= self.start_send() | self.finish_send();
        moved |= self.take_events();
        // Another receive would be wrong before the events of this one are taken.
        moved | self.start_receive() | self.finish_receive()
    }

    fn stage(&self, slot: Slot) -> Option<Stage> {
        self.rooms[slot.index()].as_ref().map(|room| room.stage)
    }

    fn room(&mut self, slot: Slot) -> &mut Room {
        self.rooms[slot.index()].as_mut().expect("the slot is in use")
    }

    fn take_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.connection.next_event() {
            any = true;
            match event {
                Event::Request { slot, request } => self.take_request(slot, request),
                Event::Payload { slot, at, bytes } => {
                    assert!(!bytes.is_empty());
                    let bytes = self.connection.stream_bytes(bytes).to_vec();
                    let room = self.room(slot);
                    assert_eq!((room.stage, room.payload.len()), (Stage::Receiving, at));
                    room.payload.extend_from_slice(&bytes);
                }
                Event::PayloadComplete { slot } => {
                    let room = self.room(slot);
                    assert_eq!(room.payload.len(), room.request.length as usize);
                    self.submit(slot);
                }
                Event::Released { slot } => self.take_released(slot),
                Event::Close(reason) => {
                    assert_eq!(self.close, None, "closed twice");
                    self.close = Some(reason);
                }
            }
            while self.manner.eager && self.serve_one() {}
        }
        any
    }

    fn take_request(&mut self, slot: Slot, request: Request) {
        assert!(!self.is_closed && self.close.is_none());
        assert!(self.rooms[slot.index()].is_none(), "the slot is in use");
        let end = request.offset.checked_add(u64::from(request.length));
        assert!(end.is_some_and(|end| end <= SIZE_BYTES));
        let carries = matches!(request.kind, RequestKind::Read | RequestKind::Write);
        assert!(!carries || request.length <= PAYLOAD_BYTES_MAX);
        assert_eq!(request.length == 0, request.kind == RequestKind::Flush);
        let own = match request.kind {
            RequestKind::Read => CommandFlags::DF,
            RequestKind::WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            RequestKind::BlockStatus => CommandFlags::REQ_ONE,
            _ => CommandFlags::empty(),
        };
        assert!((own | CommandFlags::FUA).contains(request.flags));
        self.rooms[slot.index()] =
            Some(Room { request, stage: Stage::AwaitGrant, payload: Vec::new() });
        self.slots.push(slot);
        self.requests += 1;
        if request.kind != RequestKind::Write {
            self.submit(slot);
        }
    }

    fn submit(&mut self, slot: Slot) {
        let room = self.room(slot);
        room.stage = Stage::Submitted;
        let entry = (room.request, room.payload.clone());
        self.submitted.push(entry);
    }

    fn take_released(&mut self, slot: Slot) {
        let room = self.rooms[slot.index()].take().expect("released once");
        assert!(room.stage == Stage::Answered || self.is_closed, "released too early");
        assert_ne!(room.stage, Stage::Submitted, "the server still works on it");
        self.slots.retain(|held| *held != slot);
        let sends = |segment: &Segment| match segment {
            Segment::Payload { slot: sent, .. } => *sent == slot,
            Segment::Bytes { .. } => false,
        };
        assert!(!self.send.iter().any(|(segment, _)| sends(segment)), "its data are being sent");
        let received = matches!(self.receive, Some(Receive::Payload { slot: s, .. }) if s == slot);
        assert!(!received, "its payload is being received");
    }

    /// Grants or answers one request; returns whether there was one.
    fn serve_one(&mut self) -> bool {
        let ready: Vec<Slot> =
            self.slots.iter().copied().filter(|slot| self.is_ready(*slot)).collect();
        if ready.is_empty() || self.is_closed {
            return false;
        }
        let which = if self.manner.eager { 0 } else { self.random.below(ready.len()) };
        let slot = ready[which];
        if self.stage(slot) == Some(Stage::Submitted) {
            self.answer(slot);
        } else if !self.manner.eager && self.random.one_in(8) {
            self.connection.reply(slot, Outcome::Error(NbdError::NoMemory));
            self.room(slot).stage = Stage::Answered;
        } else {
            self.connection.grant(slot);
            self.room(slot).stage = Stage::Receiving;
        }
        true
    }

    fn is_ready(&self, slot: Slot) -> bool {
        matches!(self.stage(slot), Some(Stage::AwaitGrant | Stage::Submitted))
    }

    fn answer(&mut self, slot: Slot) {
        let request = self.room(slot).request;
        self.room(slot).stage = Stage::Answered;
        if !self.manner.eager && self.random.one_in(8) {
            self.connection.reply(slot, Outcome::Error(NbdError::InputOutput));
            return;
        }
        match request.kind {
            RequestKind::Read => self.connection.reply(slot, Outcome::Data),
            RequestKind::BlockStatus => {
                let half = request.length.div_ceil(2);
                let extents = [
                    Extent { length: half, flags: ExtentFlags::empty() },
                    Extent { length: request.length - half, flags: ExtentFlags::all() },
                ];
                let told = if request.length > 1 { 2 } else { 1 };
                self.connection.reply(slot, Outcome::Extents(&extents[..told]));
            }
            _ => self.connection.reply(slot, Outcome::Done),
        }
    }

    fn start_receive(&mut self) -> bool {
        if self.receive.is_some() || self.is_closed || self.input_ended {
            return false;
        }
        self.receive = match self.connection.receive_space() {
            ReceiveSpace::Nothing => None,
            ReceiveSpace::Stream(space) => {
                let address = space.as_ptr().addr();
                Some(Receive::Stream { length: space.len(), address })
            }
            ReceiveSpace::Payload { slot, at, length } => {
                Some(Receive::Payload { slot, at, length })
            }
        };
        self.receive.is_some()
    }

    fn finish_receive(&mut self) -> bool {
        let Some(receive) = self.receive.take() else {
            return false;
        };
        let (Receive::Stream { length, .. } | Receive::Payload { length, .. }) = receive;
        let mut bytes = length.min(self.input.len() - self.input_at);
        if bytes == 0 {
            self.connection.end_of_stream();
            self.input_ended = true;
            return true;
        }
        if self.piece_bytes > 0 {
            bytes = bytes.min(self.piece_bytes);
        }
        if !self.manner.eager {
            let bound = if self.random.one_in(4) { bytes.min(40) } else { bytes };
            bytes = 1 + self.random.below(bound);
        }
        let piece = self.input[self.input_at..self.input_at + bytes].to_vec();
        self.input_at += bytes;
        match receive {
            Receive::Stream { length, address } => {
                let space = self.connection.stream_space();
                let now = (space.as_ptr().addr(), space.len());
                assert_eq!(now, (address, length), "the space moved under a receive");
                space[..bytes].copy_from_slice(&piece);
                self.connection.received_stream(bytes);
            }
            Receive::Payload { slot, at, .. } => {
                let room = self.room(slot);
                assert_eq!((room.stage, room.payload.len()), (Stage::Receiving, at));
                room.payload.extend_from_slice(&piece);
                self.connection.received_payload(bytes);
            }
        }
        true
    }

    fn segment_bytes(&self, segment: Segment) -> Vec<u8> {
        match segment {
            Segment::Bytes { at, length } => self.connection.reply_bytes(at, length).to_vec(),
            Segment::Payload { slot, at, length } => {
                let room = self.rooms[slot.index()].as_ref().expect("its room is held");
                assert_eq!(room.stage, Stage::Answered);
                assert!(at + length == room.request.length as usize);
                let start = room.request.offset + at as u64;
                (start..start + length as u64).map(content).collect()
            }
        }
    }

    fn start_send(&mut self) -> bool {
        if !self.send.is_empty() || self.is_closed {
            return false;
        }
        let most = if self.manner.eager { usize::MAX } else { 1 + self.random.below(9) };
        let segments: Vec<Segment> = self.connection.outgoing(most).collect();
        self.send = segments.into_iter().map(|piece| (piece, self.segment_bytes(piece))).collect();
        !self.send.is_empty()
    }

    fn finish_send(&mut self) -> bool {
        if self.send.is_empty() || self.manner.deaf {
            return false;
        }
        let mut bytes = Vec::new();
        for (segment, before) in std::mem::take(&mut self.send) {
            assert_eq!(before, self.segment_bytes(segment), "bytes moved under a send");
            bytes.extend_from_slice(&before);
        }
        let sent = if self.manner.eager { bytes.len() } else { 1 + self.random.below(bytes.len()) };
        self.output.extend_from_slice(&bytes[..sent]);
        self.connection.sent(sent);
        true
    }

    /// Ends what is in flight and closes the socket.
    fn hang_up(&mut self) {
        self.receive = None;
        self.send.clear();
        self.is_closed = true;
        self.connection.closed();
        self.take_events();
    }
}
