//! Decides of one request header, and nothing else, whether the request is taken.
//!
//! Errors are those that `doc/proto.md` recommends: `ENOSPC` for what would write past the end,
//! `EINVAL` for other ranges and flags, `EOVERFLOW` only for a read that may not be fragmented.

use super::conn::CloseReason;
use super::proto::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, CommandFlags, NbdError, RequestHeader,
};

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Return bytes.
    Read,
    /// Store the payload.
    Write,
    /// Make durable all that was answered.
    Flush,
    /// The bytes are no longer needed.
    Trim,
    /// Store zeroes.
    WriteZeroes,
    /// Read ahead.
    Cache,
    /// Tell what is allocated.
    BlockStatus,
}

/// A request that the server must answer: its range lies within the export and is not empty
/// (that of a flush means nothing and is zero), its flags suit its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: RequestKind,
    /// First byte, any alignment.
    pub offset: u64,
    /// Bytes, any alignment; at most the payload limit for reads and writes.
    pub length: u32,
    /// Flags; [`CommandFlags::FUA`] may stand on any request.
    pub flags: CommandFlags,
}

/// What the handshake settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) size_bytes: u64,
    pub(super) payload_bytes_max: u32,
    pub(super) structured: bool,
    pub(super) allocation_context: bool,
}

/// Why a request is answered without the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: NbdError,
    pub(super) message: &'static str,
}

/// What becomes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept(Request),
    Refuse(Refusal),
    Disconnect,
    Close(CloseReason),
}

/// Judges a header.
pub(super) fn judge(header: &RequestHeader, session: &Session) -> Verdict {
    if header.command == CMD_WRITE && header.length > session.payload_bytes_max {
        return Verdict::Close(CloseReason::PayloadTooLong);
    }
    if header.command == CMD_DISC {
        return Verdict::Disconnect;
    }
    match check(header, session) {
        Ok(request) => Verdict::Accept(request),
        Err((error, message)) => Verdict::Refuse(Refusal { error, message }),
    }
}

fn check(header: &RequestHeader, session: &Session) -> Result<Request, (NbdError, &'static str)> {
    let (kind, own_flags) = match header.command {
        CMD_READ if session.structured => (RequestKind::Read, CommandFlags::DF),
        CMD_READ => (RequestKind::Read, CommandFlags::empty()),
        CMD_WRITE => (RequestKind::Write, CommandFlags::empty()),
        CMD_FLUSH => (RequestKind::Flush, CommandFlags::empty()),
        CMD_TRIM => (RequestKind::Trim, CommandFlags::empty()),
        CMD_CACHE => (RequestKind::Cache, CommandFlags::empty()),
        CMD_WRITE_ZEROES => {
            (RequestKind::WriteZeroes, CommandFlags::NO_HOLE.union(CommandFlags::FAST_ZERO))
        }
        CMD_BLOCK_STATUS if session.allocation_context => {
            (RequestKind::BlockStatus, CommandFlags::REQ_ONE)
        }
        CMD_BLOCK_STATUS => return Err((NbdError::Invalid, "no metadata context was chosen")),
        _ => return Err((NbdError::Invalid, "unknown command")),
    };
    let allowed = own_flags.union(CommandFlags::FUA);
    let flags = match CommandFlags::from_bits(header.flags) {
        Some(flags) if allowed.contains(flags) => flags,
        _ => return Err((NbdError::Invalid, "a flag does not belong to this command")),
    };
    if kind == RequestKind::Flush {
        // Range fields are reserved here; clients that fill them are let pass.
        return Ok(Request { kind, offset: 0, length: 0, flags });
    }
    check_range(kind, flags, header, session)?;
    Ok(Request { kind, offset: header.offset, length: header.length, flags })
}

fn check_range(
    kind: RequestKind,
    flags: CommandFlags,
    header: &RequestHeader,
    session: &Session,
) -> Result<(), (NbdError, &'static str)> {
    if header.length == 0 {
        return Err((NbdError::Invalid, "the length is zero"));
    }
    if kind == RequestKind::Read && header.length > session.payload_bytes_max {
        let whole = flags.contains(CommandFlags::DF);
        let error = if whole { NbdError::Overflow } else { NbdError::Invalid };
        return Err((error, "the length is above the maximum payload"));
    }
    let end = header.offset.checked_add(u64::from(header.length));
    if end.is_none_or(|end| end > session.size_bytes) {
        let writes = matches!(kind, RequestKind::Write | RequestKind::WriteZeroes);
        let error = if writes { NbdError::NoSpace } else { NbdError::Invalid };
        return Err((error, "the range ends past the end of the export"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 33;
    const MAX: u32 = 1 << 25;

    fn session() -> Session {
        Session {
            size_bytes: SIZE,
            payload_bytes_max: MAX,
            structured: true,
            allocation_context: true,
        }
    }

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 1, offset, length }
    }

    fn error_of(header: RequestHeader, session: &Session) -> Option<NbdError> {
        match judge(&header, session) {
            Verdict::Accept(_) => None,
            Verdict::Refuse(refusal) => {
                assert!(refusal.message.len() <= 64);
                Some(refusal.error)
            }
            other => panic!("{other:?}"),
        }
    }

    const RANGED: [u16; 6] =
        [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS];

    #[test]
    fn ranges_end_within_the_export() {
        for command in RANGED {
            let writes = command == CMD_WRITE || command == CMD_WRITE_ZEROES;
            let past = Some(if writes { NbdError::NoSpace } else { NbdError::Invalid });
            let s = session();
            assert_eq!(error_of(header(command, 0, 0, 1), &s), None);
            assert_eq!(error_of(header(command, 0, SIZE - 7, 7), &s), None);
            assert_eq!(error_of(header(command, 0, SIZE - 7, 8), &s), past);
            assert_eq!(error_of(header(command, 0, SIZE, 1), &s), past);
            assert_eq!(error_of(header(command, 0, u64::MAX, 1), &s), past);
            assert_eq!(error_of(header(command, 0, u64::MAX - 3, MAX), &s), past);
            assert_eq!(error_of(header(command, 0, 5, 0), &s), Some(NbdError::Invalid));
        }
    }

    #[test]
    fn flags_belong_to_commands() {
        let own = |command| match command {
            CMD_READ => 4,
            CMD_WRITE_ZEROES => 2 | 16,
            CMD_BLOCK_STATUS => 8,
            _ => 0,
        };
        for command in RANGED.into_iter().chain([CMD_FLUSH]) {
            for bit in 0..16 {
                let allowed = (own(command) | 1) & (1 << bit) != 0;
                let expected = if allowed { None } else { Some(NbdError::Invalid) };
                let found = error_of(header(command, 1 << bit, 0, 1), &session());
                assert_eq!(found, expected, "command {command} bit {bit}");
            }
        }
        let simple = Session { structured: false, allocation_context: false, ..session() };
        assert_eq!(error_of(header(CMD_READ, 4, 0, 1), &simple), Some(NbdError::Invalid));
        assert_eq!(error_of(header(CMD_BLOCK_STATUS, 0, 0, 1), &simple), Some(NbdError::Invalid));
    }

    #[test]
    fn lengths_have_limits_only_where_payload_travels() {
        let s = session();
        assert_eq!(error_of(header(CMD_READ, 0, 0, MAX), &s), None);
        assert_eq!(error_of(header(CMD_READ, 0, 0, MAX + 1), &s), Some(NbdError::Invalid));
        assert_eq!(error_of(header(CMD_READ, 4, 0, MAX + 1), &s), Some(NbdError::Overflow));
        assert_eq!(error_of(header(CMD_WRITE, 0, 0, MAX), &s), None);
        let long = judge(&header(CMD_WRITE, 0, 0, MAX + 1), &s);
        assert_eq!(long, Verdict::Close(CloseReason::PayloadTooLong));
        for command in [CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, CMD_CACHE] {
            assert_eq!(error_of(header(command, 0, 0, u32::MAX), &s), None);
        }
    }

    #[test]
    fn unknown_commands_are_refused_and_flush_ignores_its_range() {
        for command in [8, 9, 0x7fff, 0xffff] {
            let found = error_of(header(command, 0, 0, 1), &session());
            assert_eq!(found, Some(NbdError::Invalid));
        }
        let Verdict::Accept(flush) = judge(&header(CMD_FLUSH, 1, 99, 99), &session()) else {
            panic!("flush refused");
        };
        assert_eq!((flush.offset, flush.length, flush.flags), (0, 0, CommandFlags::FUA));
        assert_eq!(judge(&header(CMD_DISC, 77, 1, 1), &session()), Verdict::Disconnect);
    }
}
