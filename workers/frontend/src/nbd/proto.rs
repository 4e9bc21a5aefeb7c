//! What stands on the wire: constants, fixed headers, and a reader of variable fields.
//!
//! Source: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>. All numbers are
//! big-endian. Both directions are here, since load generators and fuzzers speak as clients.

use bitflags::bitflags;

/// First eight bytes of a server's greeting, `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Magic of newstyle negotiation and of every option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Magic of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request in the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol (export names, queries, messages), bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// Size of the server's greeting, bytes.
pub const GREETING_BYTES: usize = 18;
/// Size of the reply to `OPT_EXPORT_NAME` without its reserved zeroes, bytes.
pub const EXPORT_REPLY_BYTES: usize = 10;
/// Zeroes after the reply to `OPT_EXPORT_NAME` unless the client declined them, bytes.
pub const EXPORT_REPLY_ZEROES: usize = 124;

bitflags! {
    /// What the server says of itself in its greeting.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options may be answered and refused one by one.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client may decline the zeroes after `OPT_EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// What the client answers to the greeting.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The client wants no zeroes after `OPT_EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// The other bits mean something.
        const HAS_FLAGS = 1 << 0;
        /// `CMD_FLUSH` is known.
        const SEND_FLUSH = 1 << 2;
        /// Commands may carry `FUA`.
        const SEND_FUA = 1 << 3;
        /// `CMD_TRIM` is known.
        const SEND_TRIM = 1 << 5;
        /// `CMD_WRITE_ZEROES` and its flag `NO_HOLE` are known.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Reads may carry `DF`; only with structured replies.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers what others were told is written.
        const CAN_MULTI_CONN = 1 << 8;
        /// `CMD_CACHE` is known.
        const SEND_CACHE = 1 << 10;
        /// `CMD_WRITE_ZEROES` may carry `FAST_ZERO`.
        const SEND_FAST_ZERO = 1 << 11;
    }

    /// Flags of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Answer only when what was written is on stable storage.
        const FUA = 1 << 0;
        /// Zeroes must keep their space reserved.
        const NO_HOLE = 1 << 1;
        /// Answer a read with one content chunk.
        const DF = 1 << 2;
        /// One extent is enough.
        const REQ_ONE = 1 << 3;
        /// Fail with `ENOTSUP` rather than write zeroes slowly.
        const FAST_ZERO = 1 << 4;
    }

    /// State of an extent in the context `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExtentFlags: u32 {
        /// No space is held for it.
        const HOLE = 1 << 0;
        /// It reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// `OPT_EXPORT_NAME`: choose an export and start transmission; cannot be refused politely.
pub const OPT_EXPORT_NAME: u32 = 1;
/// `OPT_ABORT`: end the negotiation.
pub const OPT_ABORT: u32 = 2;
/// `OPT_LIST`: name the exports.
pub const OPT_LIST: u32 = 3;
/// `OPT_STARTTLS`: go on under TLS.
pub const OPT_STARTTLS: u32 = 5;
/// `OPT_INFO`: describe an export.
pub const OPT_INFO: u32 = 6;
/// `OPT_GO`: describe an export and start transmission.
pub const OPT_GO: u32 = 7;
/// `OPT_STRUCTURED_REPLY`: use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// `OPT_LIST_META_CONTEXT`: name metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// `OPT_SET_META_CONTEXT`: choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// `REP_ACK`: the option is done.
pub const REP_ACK: u32 = 1;
/// `REP_SERVER`: an export's name.
pub const REP_SERVER: u32 = 2;
/// `REP_INFO`: one piece of information of an export.
pub const REP_INFO: u32 = 3;
/// `REP_META_CONTEXT`: a metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// `REP_ERR_UNSUP`: an option the server does not know.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// `REP_ERR_INVALID`: an option whose data make no sense.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// `REP_ERR_UNKNOWN`: no such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// `REP_ERR_TOO_BIG`: an option with more data than the server takes.
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// `INFO_EXPORT`: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// `INFO_NAME`: the export's canonical name.
pub const INFO_NAME: u16 = 1;
/// `INFO_DESCRIPTION`: a text for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// `INFO_BLOCK_SIZE`: minimum and preferred block, maximum payload.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Name of the one metadata context that is served.
pub const CONTEXT_ALLOCATION: &[u8] = b"base:allocation";
/// Namespace of that context.
pub const CONTEXT_BASE: &[u8] = b"base:";
/// Number under which `base:allocation` is answered.
pub const CONTEXT_ALLOCATION_ID: u32 = 1;

/// `CMD_READ`.
pub const CMD_READ: u16 = 0;
/// `CMD_WRITE`.
pub const CMD_WRITE: u16 = 1;
/// `CMD_DISC`: orderly end; has no reply.
pub const CMD_DISC: u16 = 2;
/// `CMD_FLUSH`.
pub const CMD_FLUSH: u16 = 3;
/// `CMD_TRIM`.
pub const CMD_TRIM: u16 = 4;
/// `CMD_CACHE`: read ahead.
pub const CMD_CACHE: u16 = 5;
/// `CMD_WRITE_ZEROES`.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// `CMD_BLOCK_STATUS`.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Flag of a chunk: the last one of its reply.
pub const CHUNK_DONE: u16 = 1;
/// Chunk without content.
pub const CHUNK_NONE: u16 = 0;
/// Chunk of an offset and data.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk of a context's number and extents.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk of an error, the length of a message, and the message.
pub const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// Why a request failed, as the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdError {
    /// `EPERM`: not permitted.
    Permission = 1,
    /// `EIO`: the data cannot be read or written.
    InputOutput = 5,
    /// `ENOMEM`: no memory for it.
    NoMemory = 12,
    /// `EINVAL`: the request makes no sense.
    Invalid = 22,
    /// `ENOSPC`: no space, or a write past the end.
    NoSpace = 28,
    /// `EOVERFLOW`: an unfragmented read that is too long.
    Overflow = 75,
    /// `ENOTSUP`: zeroes cannot be written fast.
    NotSupported = 95,
    /// `ESHUTDOWN`: the server stops.
    Shutdown = 108,
}

impl NbdError {
    /// Number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// A text for people, at most 64 bytes.
    pub fn message(self) -> &'static str {
        match self {
            NbdError::Permission => "not permitted",
            NbdError::InputOutput => "the data cannot be read or written",
            NbdError::NoMemory => "no memory for this request",
            NbdError::Invalid => "invalid request",
            NbdError::NoSpace => "no space left",
            NbdError::Overflow => "too long to be read in one piece",
            NbdError::NotSupported => "this range cannot be zeroed fast",
            NbdError::Shutdown => "the server is shutting down",
        }
    }
}

/// Reader of fields of variable length; every step fails rather than reads past the end.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    /// A 16-bit number.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string after its 32-bit length, at most [`STRING_BYTES_MAX`] bytes.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > STRING_BYTES_MAX { None } else { self.bytes(length) }
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes fields one after the other into `bytes`, whose length is theirs exactly.
fn join(bytes: &mut [u8], fields: &[&[u8]]) {
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    assert_eq!(at, bytes.len());
}

/// Header of an option: `length` bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option, `OPT_*`.
    pub option: u32,
    /// Data after the header, bytes.
    pub length: u32,
}

impl OptionHeader {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// Reads a header; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHeader { option: fields.u32()?, length: fields.u32()? })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 3] =
            [&OPTION_MAGIC.to_be_bytes(), &self.option.to_be_bytes(), &self.length.to_be_bytes()];
        join(&mut bytes, &fields);
        bytes
    }
}

/// Header of a reply to an option: `length` bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// Kind of reply, `REP_*`.
    pub kind: u32,
    /// Data after the header, bytes.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Size on the wire.
    pub const BYTES: usize = 20;

    /// Reads a header; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return None;
        }
        Some(OptionReplyHeader {
            option: fields.u32()?,
            kind: fields.u32()?,
            length: fields.u32()?,
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 4] = [
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &self.option.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        join(&mut bytes, &fields);
        bytes
    }
}

/// Header of a request; a write's payload of `length` bytes follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Flags as sent, known or not.
    pub flags: u16,
    /// Command, `CMD_*`.
    pub command: u16,
    /// The client's name for the request, returned with its reply.
    pub cookie: u64,
    /// First byte concerned.
    pub offset: u64,
    /// Bytes concerned.
    pub length: u32,
}

impl RequestHeader {
    /// Size on the wire.
    pub const BYTES: usize = 28;

    /// Reads a header; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(RequestHeader {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 6] = [
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        join(&mut bytes, &fields);
        bytes
    }
}

/// A simple reply; after a read without error its data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// Zero, or the code of an [`NbdError`].
    pub error: u32,
    /// The request's cookie.
    pub cookie: u64,
}

impl SimpleReply {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// Reads a reply; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != SIMPLE_REPLY_MAGIC {
            return None;
        }
        Some(SimpleReply { error: fields.u32()?, cookie: fields.u64()? })
    }

    /// Writes the reply.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 3] = [
            &SIMPLE_REPLY_MAGIC.to_be_bytes(),
            &self.error.to_be_bytes(),
            &self.cookie.to_be_bytes(),
        ];
        join(&mut bytes, &fields);
        bytes
    }
}

/// Header of a chunk of a structured reply; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`CHUNK_DONE`] or nothing.
    pub flags: u16,
    /// Kind of chunk, `CHUNK_*`.
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// What follows, bytes.
    pub length: u32,
}

impl ChunkHeader {
    /// Size on the wire.
    pub const BYTES: usize = 20;

    /// Reads a header; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != STRUCTURED_REPLY_MAGIC {
            return None;
        }
        Some(ChunkHeader {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields: [&[u8]; 5] = [
            &STRUCTURED_REPLY_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.length.to_be_bytes(),
        ];
        join(&mut bytes, &fields);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_their_golden_bytes_and_come_back() {
        let request = RequestHeader {
            flags: 1,
            command: CMD_WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0000,
            length: 0x1000,
        };
        let bytes = request.encode();
        let golden = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0,
            0, 0x10, 0,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(RequestHeader::decode(&bytes), Some(request));

        let simple = SimpleReply { error: 22, cookie: 7 };
        assert_eq!(simple.encode(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(SimpleReply::decode(&simple.encode()), Some(simple));

        let chunk = ChunkHeader { flags: 1, kind: CHUNK_ERROR, cookie: 9, length: 6 };
        let golden = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 6];
        assert_eq!(chunk.encode(), golden);
        assert_eq!(ChunkHeader::decode(&golden), Some(chunk));

        let option = OptionHeader { option: OPT_GO, length: 6 };
        let golden = *b"IHAVEOPT\0\0\0\x07\0\0\0\x06";
        assert_eq!(option.encode(), golden);
        assert_eq!(OptionHeader::decode(&golden), Some(option));

        let reply = OptionReplyHeader { option: OPT_GO, kind: REP_ERR_UNKNOWN, length: 0 };
        let golden = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0x80, 0, 0, 6, 0, 0, 0, 0];
        assert_eq!(reply.encode(), golden);
        assert_eq!(OptionReplyHeader::decode(&golden), Some(reply));
    }

    #[test]
    fn a_wrong_magic_is_no_header() {
        for byte in 0..4 {
            let mut simple = SimpleReply { error: 0, cookie: 1 }.encode();
            simple[byte] ^= 1;
            assert_eq!(SimpleReply::decode(&simple), None);
            let mut chunk = ChunkHeader { flags: 0, kind: 0, cookie: 1, length: 0 }.encode();
            chunk[byte] ^= 1;
            assert_eq!(ChunkHeader::decode(&chunk), None);
        }
        for byte in 0..8 {
            let mut option = OptionHeader { option: 1, length: 0 }.encode();
            option[byte] ^= 0x80;
            assert_eq!(OptionHeader::decode(&option), None);
            let mut reply = OptionReplyHeader { option: 1, kind: 1, length: 0 }.encode();
            reply[byte] ^= 0x80;
            assert_eq!(OptionReplyHeader::decode(&reply), None);
        }
    }

    #[test]
    fn fields_never_read_past_the_end() {
        let mut fields = Fields::new(&[0, 0, 0, 3, b'a', b'b']);
        assert_eq!(fields.string(), None);
        let mut fields = Fields::new(&[0, 0, 0, 2, b'a', b'b', 9]);
        assert_eq!(fields.string(), Some(&b"ab"[..]));
        assert_eq!(fields.u16(), None);
        assert!(!fields.is_empty());
        let mut long = vec![0, 0, 0x10, 1];
        long.resize(4 + 0x1001, b'x');
        assert_eq!(Fields::new(&long).string(), None);
    }

    #[test]
    fn messages_fit_their_field() {
        use NbdError::*;
        for error in
            [Permission, InputOutput, NoMemory, Invalid, NoSpace, Overflow, NotSupported, Shutdown]
        {
            assert!(error.message().len() <= 64 && error.code() != 0);
        }
    }
}
