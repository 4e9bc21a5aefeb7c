//! The bytes of the NBD protocol that a client of simple replies needs; pure.
//!
//! After the NBD project's `doc/proto.md`; all numbers are big-endian.

/// Sent first by a newstyle server.
pub const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Sent second by a newstyle server, and before every option by the client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flag: options may be haggled about.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zeros after the answer to EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Option: choose an export and begin; without an error reply.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: choose an export, learn about it, and begin.
pub const OPT_GO: u32 = 7;
/// Reply: done.
pub const REP_ACK: u32 = 1;
/// Reply: a piece of information about the export.
pub const REP_INFO: u32 = 3;
/// Replies from here on are errors.
pub const REP_ERROR: u32 = 1 << 31;
/// Error reply: the option is not known.
pub const REP_ERR_UNSUPPORTED: u32 = REP_ERROR + 1;
/// Error reply: there is no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR + 6;
/// Information: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: minimum, preferred, maximum block size.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: writing is not permitted.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH is there.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: FUA is there.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: FLUSH covers all connections.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// The size of a request's header in bytes.
pub const REQUEST_BYTES: usize = 28;
/// The size of a simple reply's header in bytes.
pub const REPLY_BYTES: usize = 16;
/// What a server takes in one request unless it says more, in bytes.
pub const PAYLOAD_MAX_DEFAULT: u32 = 32 << 20;

/// The commands used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write, durable before it is acknowledged if `fua`.
    Write {
        /// Forced unit access.
        fua: bool,
    },
    /// Make everything acknowledged durable.
    Flush,
    /// Good-bye.
    Disconnect,
}

/// The header of a request.
pub fn request(command: Command, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
    let (flags, number): (u16, u16) = match command {
        Command::Read => (0, 0),
        Command::Write { fua } => (u16::from(fua), 1),
        Command::Disconnect => (0, 2),
        Command::Flush => (0, 3),
    };
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A simple reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Zero, or an error number of the protocol (the same as Linux has).
    pub error: u32,
    /// The request's cookie.
    pub cookie: u64,
}

/// The reply that `bytes` are, unless they are none.
pub fn reply(bytes: &[u8; REPLY_BYTES]) -> Option<Reply> {
    let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let error = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let mut cookie = [0; 8];
    cookie.copy_from_slice(&bytes[8..]);
    let cookie = u64::from_be_bytes(cookie);
    (magic == SIMPLE_REPLY_MAGIC).then_some(Reply { error, cookie })
}

/// An option with its data.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of GO for `export`, asking for the block sizes.
pub fn go_data(export: &str) -> Vec<u8> {
    let mut bytes = (export.len() as u32).to_be_bytes().to_vec();
    bytes.extend(export.as_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(INFO_BLOCK_SIZE.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_of_the_protocol() {
        let write = request(Command::Write { fua: true }, 0x0102, 0x1000, 512);
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(write, expected);
        assert_eq!(request(Command::Flush, 0, 0, 0)[7], 3);
        assert_eq!(request(Command::Disconnect, 0, 0, 0)[7], 2);
    }

    #[test]
    fn replies_are_read_and_others_refused() {
        let mut bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(reply(&bytes), Some(Reply { error: 5, cookie: 9 }));
        bytes[0] = 0x66;
        assert_eq!(reply(&bytes), None);
    }

    #[test]
    fn options_carry_their_length() {
        let go = option(OPT_GO, &go_data("ab"));
        assert_eq!(&go[..8], b"IHAVEOPT");
        assert_eq!(go[8..16], [0, 0, 0, 7, 0, 0, 0, 10]);
        assert_eq!(go[16..], [0, 0, 0, 2, b'a', b'b', 0, 1, 0, 3]);
    }
}
