//! Encodes the reply of one request into bytes; a read's data are not among them.

use super::admit::{Request, RequestKind};
use super::proto::{
    CHUNK_BLOCK_STATUS, CHUNK_DONE, CHUNK_ERROR, CHUNK_OFFSET_DATA, CONTEXT_ALLOCATION_ID,
    ChunkHeader, CommandFlags, ExtentFlags, NbdError, SimpleReply,
};

/// Most extents in one answer to a block status; the protocol lets a server tell more with less.
pub const EXTENTS_MAX: usize = 16;
/// Longest message of an error chunk, bytes.
const MESSAGE_BYTES_MAX: usize = 64;
/// Longest reply without a read's data, bytes: a block status of [`EXTENTS_MAX`] extents.
pub(super) const REPLY_BYTES_MAX: usize = ChunkHeader::BYTES + 4 + 8 * EXTENTS_MAX;

const _: () = assert!(ChunkHeader::BYTES + 6 + MESSAGE_BYTES_MAX <= REPLY_BYTES_MAX);

/// A run of bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least one.
    pub length: u32,
    /// What they are.
    pub flags: ExtentFlags,
}

/// How the server answers a request.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// Done; for everything but reads and block status.
    Done,
    /// A read is done: all its bytes are ready and will be named by payload segments.
    Data,
    /// Extents from the request's offset on, at least one, together at most its length. Only the
    /// first [`EXTENTS_MAX`] are told, and only one if the client wanted one.
    Extents(&'a [Extent]),
    /// It failed; nothing may be assumed of its range.
    Error(NbdError),
}

/// One encoded reply.
pub(super) struct Encoded {
    bytes: [u8; REPLY_BYTES_MAX],
    used: usize,
}

impl Encoded {
    fn new() -> Self {
        Encoded { bytes: [0; REPLY_BYTES_MAX], used: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

/// Success without content: always a simple reply, which is the shortest.
pub(super) fn encode_done(cookie: u64) -> Encoded {
    let mut encoded = Encoded::new();
    encoded.push(&SimpleReply { error: 0, cookie }.encode());
    encoded
}

/// What stands before a read's data.
pub(super) fn encode_data(cookie: u64, request: &Request, structured: bool) -> Encoded {
    assert_eq!(request.kind, RequestKind::Read);
    if !structured {
        return encode_done(cookie);
    }
    let mut encoded = Encoded::new();
    let header = ChunkHeader {
        flags: CHUNK_DONE,
        kind: CHUNK_OFFSET_DATA,
        cookie,
        length: request.length + 8,
    };
    encoded.push(&header.encode());
    encoded.push(&request.offset.to_be_bytes());
    encoded
}

/// A whole answer to a block status.
pub(super) fn encode_extents(cookie: u64, request: &Request, extents: &[Extent]) -> Encoded {
    assert_eq!(request.kind, RequestKind::BlockStatus);
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let told = extents.len().min(if one { 1 } else { EXTENTS_MAX });
    assert!(told > 0, "a block status has an extent");
    let mut encoded = Encoded::new();
    let header = ChunkHeader {
        flags: CHUNK_DONE,
        kind: CHUNK_BLOCK_STATUS,
        cookie,
        length: 4 + 8 * told as u32,
    };
    encoded.push(&header.encode());
    encoded.push(&CONTEXT_ALLOCATION_ID.to_be_bytes());
    let mut left = request.length;
    for extent in &extents[..told] {
        assert!(extent.length > 0 && extent.length <= left, "extents lie in their request");
        left -= extent.length;
        encoded.push(&extent.length.to_be_bytes());
        encoded.push(&extent.flags.bits().to_be_bytes());
    }
    encoded
}

/// A failure; the message reaches the client only in a structured reply.
pub(super) fn encode_error(
    cookie: u64,
    error: NbdError,
    message: &str,
    structured: bool,
) -> Encoded {
    let mut encoded = Encoded::new();
    if !structured {
        encoded.push(&SimpleReply { error: error.code(), cookie }.encode());
        return encoded;
    }
    let message = &message.as_bytes()[..message.len().min(MESSAGE_BYTES_MAX)];
    let header = ChunkHeader {
        flags: CHUNK_DONE,
        kind: CHUNK_ERROR,
        cookie,
        length: 6 + message.len() as u32,
    };
    encoded.push(&header.encode());
    encoded.push(&error.code().to_be_bytes());
    encoded.push(&(message.len() as u16).to_be_bytes());
    encoded.push(message);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(length: u32, flags: CommandFlags) -> Request {
        Request { kind: RequestKind::BlockStatus, offset: 0, length, flags }
    }

    #[test]
    fn extents_are_cut_to_what_may_be_told() {
        let extents = [Extent { length: 4, flags: ExtentFlags::ZERO }; 20];
        let many = encode_extents(1, &status(80, CommandFlags::empty()), &extents);
        assert_eq!(many.bytes().len(), REPLY_BYTES_MAX);
        let one = encode_extents(1, &status(80, CommandFlags::REQ_ONE), &extents);
        assert_eq!(one.bytes()[20..], [0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 2]);
    }

    #[test]
    #[should_panic(expected = "lie in their request")]
    fn an_extent_past_the_request_is_our_bug() {
        let extents = [Extent { length: 81, flags: ExtentFlags::empty() }];
        encode_extents(1, &status(80, CommandFlags::empty()), &extents);
    }

    #[test]
    fn a_long_message_is_cut() {
        let long = "x".repeat(100);
        let encoded = encode_error(1, NbdError::Invalid, &long, true);
        assert_eq!(encoded.bytes().len(), 20 + 6 + MESSAGE_BYTES_MAX);
        assert_eq!(encoded.bytes()[24..26], (MESSAGE_BYTES_MAX as u16).to_be_bytes());
    }
}
