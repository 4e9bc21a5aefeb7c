//! Fixed newstyle negotiation: from the greeting to the choice of an export.
//!
//! One export stands under two names: its own and the empty default. An option is looked at only
//! when all its data are there; one with more data than [`OPTION_BYTES_MAX`] is skipped and
//! refused, and one with more than [`OPTION_SKIP_BYTES_MAX`], or more than [`OPTIONS_MAX`] options,
//! cost the client its connection.

use super::admit::Session;
use super::conn::CloseReason;
use super::outgoing::Outgoing;
use super::proto::{
    CONTEXT_ALLOCATION, CONTEXT_ALLOCATION_ID, CONTEXT_BASE, ClientFlags, EXPORT_REPLY_ZEROES,
    Fields, GREETING_MAGIC, HandshakeFlags, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT,
    INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OptionHeader,
    OptionReplyHeader, REP_ACK, REP_ERR_INVALID, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP,
    REP_INFO, REP_META_CONTEXT, REP_SERVER, TransmissionFlags,
};

/// Most options that one client may send.
pub const OPTIONS_MAX: u32 = 256;
/// Longest data of an option that is looked at, bytes: two strings and then some.
pub const OPTION_BYTES_MAX: usize = 12 << 10;
/// Longest data of an option that is read and thrown away, bytes.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Longest name and longest description of an export, bytes.
const EXPORT_STRING_BYTES_MAX: usize = 255;
/// More than all replies to any one option, bytes.
pub(super) const OPTION_REPLIES_BYTES_MAX: usize = 1024;

/// What is served: one array.
#[derive(Clone, Debug)]
pub struct Exports {
    name: String,
    description: String,
    size_bytes: u64,
    block_size_bytes: u32,
}

impl Exports {
    /// Serves `size_bytes` bytes under `name` and under the empty name.
    ///
    /// `name` has 1 to 255 bytes, `description` is cut to 255 bytes, `block_size_bytes` is a
    /// power of two and is what clients are told to prefer; they may use any range.
    pub fn new(name: &str, description: &str, size_bytes: u64, block_size_bytes: u32) -> Self {
        assert!(!name.is_empty() && name.len() <= EXPORT_STRING_BYTES_MAX);
        assert!(block_size_bytes.is_power_of_two());
        let mut end = description.len().min(EXPORT_STRING_BYTES_MAX);
        while !description.is_char_boundary(end) {
            end -= 1;
        }
        Exports {
            name: name.to_owned(),
            description: description[..end].to_owned(),
            size_bytes,
            block_size_bytes,
        }
    }

    fn resolve(&self, name: &[u8]) -> Option<ExportName> {
        match name {
            b"" => Some(ExportName::Default),
            name if name == self.name.as_bytes() => Some(ExportName::Own),
            _ => None,
        }
    }
}

/// Under which name a client meant the export; contexts chosen under one do not hold for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExportName {
    Default,
    Own,
}

/// What one look at the input did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: more bytes are needed.
    NeedMore,
    /// Took so many bytes.
    Consumed(usize),
    /// Took so many bytes; transmission begins after them.
    Enter(usize, Session),
    /// The client wants to end; send what is queued, then close.
    Finish(CloseReason),
    /// The client broke a rule that cannot be answered.
    Fail(CloseReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    /// Throws away the data of an option that is too long.
    Skip {
        option: u32,
        left: usize,
    },
}

/// The negotiation of one client.
#[derive(Debug)]
pub(super) struct Handshake {
    phase: Phase,
    client: ClientFlags,
    structured: bool,
    allocation_for: Option<ExportName>,
    options: u32,
    payload_bytes_max: u32,
}

impl Handshake {
    /// Starts with the greeting.
    pub(super) fn new(payload_bytes_max: u32, out: &mut Outgoing) -> Self {
        out.push_bytes(&GREETING_MAGIC.to_be_bytes());
        out.push_bytes(&OPTION_MAGIC.to_be_bytes());
        out.push_bytes(&HandshakeFlags::all().bits().to_be_bytes());
        Handshake {
            phase: Phase::ClientFlags,
            client: ClientFlags::empty(),
            structured: false,
            allocation_for: None,
            options: 0,
            payload_bytes_max,
        }
    }

    /// Whether the client may leave here without having broken off in the middle of something.
    pub(super) fn is_between_options(&self) -> bool {
        !matches!(self.phase, Phase::Skip { .. })
    }

    /// Looks at the input; queues at most [`OPTION_REPLIES_BYTES_MAX`] bytes.
    pub(super) fn step(&mut self, input: &[u8], exports: &Exports, out: &mut Outgoing) -> Step {
        match self.phase {
            Phase::ClientFlags => self.client_flags(input),
            Phase::Options => self.option(input, exports, out),
            Phase::Skip { option, left } => {
                let taken = left.min(input.len());
                if taken < left {
                    self.phase = Phase::Skip { option, left: left - taken };
                    return if taken == 0 { Step::NeedMore } else { Step::Consumed(taken) };
                }
                self.phase = Phase::Options;
                error(out, option, REP_ERR_TOO_BIG, "too much data for an option");
                Step::Consumed(taken)
            }
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Step {
        let Some(bits) = Fields::new(input).u32() else {
            return Step::NeedMore;
        };
        let Some(flags) = ClientFlags::from_bits(bits) else {
            return Step::Fail(CloseReason::UnknownClientFlags);
        };
        self.client = flags;
        self.phase = Phase::Options;
        Step::Consumed(4)
    }

    fn option(&mut self, input: &[u8], exports: &Exports, out: &mut Outgoing) -> Step {
        let Some((head, rest)) = input.split_first_chunk::<{ OptionHeader::BYTES }>() else {
            return Step::NeedMore;
        };
        let Some(OptionHeader { option, length }) = OptionHeader::decode(head) else {
            return Step::Fail(CloseReason::BadMagic);
        };
        if self.options == OPTIONS_MAX {
            return Step::Fail(CloseReason::TooManyOptions);
        }
        if length > OPTION_SKIP_BYTES_MAX {
            return Step::Fail(CloseReason::OptionTooLong);
        }
        // Without fixed newstyle a client could not read a refusal.
        if option != OPT_EXPORT_NAME && !self.client.contains(ClientFlags::FIXED_NEWSTYLE) {
            return Step::Fail(CloseReason::NotFixedNewstyle);
        }
        let length = length as usize;
        if length > OPTION_BYTES_MAX {
            if option == OPT_EXPORT_NAME {
                return Step::Fail(CloseReason::UnknownExport);
            }
            self.options += 1;
            self.phase = Phase::Skip { option, left: length };
            return Step::Consumed(OptionHeader::BYTES);
        }
        let Some(data) = rest.get(..length) else {
            return Step::NeedMore;
        };
        self.options += 1;
        self.answer(option, data, OptionHeader::BYTES + length, exports, out)
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        taken: usize,
        exports: &Exports,
        out: &mut Outgoing,
    ) -> Step {
        match option {
            OPT_EXPORT_NAME => {
                let Some(name) = exports.resolve(data) else {
                    return Step::Fail(CloseReason::UnknownExport);
                };
                out.push_bytes(&exports.size_bytes.to_be_bytes());
                out.push_bytes(&self.transmission_flags().bits().to_be_bytes());
                if !self.client.contains(ClientFlags::NO_ZEROES) {
                    out.push_bytes(&[0; EXPORT_REPLY_ZEROES]);
                }
                return Step::Enter(taken, self.session(name, exports));
            }
            OPT_ABORT => {
                reply(out, option, REP_ACK, &[]);
                return Step::Finish(CloseReason::Aborted);
            }
            OPT_INFO | OPT_GO => {
                let name = self.describe(option, data, exports, out);
                if let (OPT_GO, Some(name)) = (option, name) {
                    return Step::Enter(taken, self.session(name, exports));
                }
            }
            OPT_LIST | OPT_STRUCTURED_REPLY if !data.is_empty() => {
                error(out, option, REP_ERR_INVALID, "this option takes no data");
            }
            OPT_LIST => {
                let name = exports.name.as_bytes();
                reply(out, option, REP_SERVER, &[&(name.len() as u32).to_be_bytes(), name]);
                reply(out, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                reply(out, option, REP_ACK, &[]);
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                self.contexts(option, data, exports, out);
            }
            OPT_STARTTLS => error(out, option, REP_ERR_UNSUP, "TLS is not served"),
            _ => error(out, option, REP_ERR_UNSUP, "unknown option"),
        }
        Step::Consumed(taken)
    }

    /// Answers INFO and GO; returns the export's name if all is well.
    fn describe(
        &self,
        option: u32,
        data: &[u8],
        exports: &Exports,
        out: &mut Outgoing,
    ) -> Option<ExportName> {
        let Some((name, wanted)) = parse_info(data) else {
            error(out, option, REP_ERR_INVALID, "the option's data make no sense");
            return None;
        };
        let Some(name) = exports.resolve(name) else {
            error(out, option, REP_ERR_UNKNOWN, "no such export");
            return None;
        };
        let info = |out: &mut Outgoing, kind: u16, first: &[u8], second: &[u8]| {
            reply(out, option, REP_INFO, &[&kind.to_be_bytes(), first, second]);
        };
        let size = exports.size_bytes.to_be_bytes();
        info(out, INFO_EXPORT, &size, &self.transmission_flags().bits().to_be_bytes());
        if wanted.name {
            info(out, INFO_NAME, exports.name.as_bytes(), &[]);
        }
        if wanted.description {
            info(out, INFO_DESCRIPTION, exports.description.as_bytes(), &[]);
        }
        // Told unasked too: a client that ignores it may still use any range.
        let mut sizes = [0; 12];
        sizes[..4].copy_from_slice(&1u32.to_be_bytes());
        sizes[4..8].copy_from_slice(&exports.block_size_bytes.to_be_bytes());
        sizes[8..].copy_from_slice(&self.payload_bytes_max.to_be_bytes());
        info(out, INFO_BLOCK_SIZE, &sizes, &[]);
        reply(out, option, REP_ACK, &[]);
        Some(name)
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT.
    fn contexts(&mut self, option: u32, data: &[u8], exports: &Exports, out: &mut Outgoing) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // A choice replaces the one before, even if it fails.
            self.allocation_for = None;
        }
        if !self.structured {
            error(out, option, REP_ERR_INVALID, "structured replies come first");
            return;
        }
        let Some((name, matched)) = parse_contexts(data, set) else {
            error(out, option, REP_ERR_INVALID, "the option's data make no sense");
            return;
        };
        let Some(name) = exports.resolve(name) else {
            error(out, option, REP_ERR_UNKNOWN, "no such export");
            return;
        };
        if matched {
            let id = if set { CONTEXT_ALLOCATION_ID } else { 0 };
            reply(out, option, REP_META_CONTEXT, &[&id.to_be_bytes(), CONTEXT_ALLOCATION]);
        }
        if set && matched {
            self.allocation_for = Some(name);
        }
        reply(out, option, REP_ACK, &[]);
    }

    fn transmission_flags(&self) -> TransmissionFlags {
        let mut flags = TransmissionFlags::all();
        flags.set(TransmissionFlags::SEND_DF, self.structured);
        flags
    }

    fn session(&self, name: ExportName, exports: &Exports) -> Session {
        Session {
            size_bytes: exports.size_bytes,
            payload_bytes_max: self.payload_bytes_max,
            structured: self.structured,
            allocation_context: self.allocation_for == Some(name),
        }
    }
}

/// Texts that a client asked for with INFO or GO.
struct Wanted {
    name: bool,
    description: bool,
}

fn parse_info(data: &[u8]) -> Option<(&[u8], Wanted)> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let mut wanted = Wanted { name: false, description: false };
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            INFO_NAME => wanted.name = true,
            INFO_DESCRIPTION => wanted.description = true,
            _ => {}
        }
    }
    fields.is_empty().then_some((name, wanted))
}

/// Returns the export's name and whether `base:allocation` is meant.
fn parse_contexts(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let queries = fields.u32()?;
    let mut matched = queries == 0 && !set;
    for _ in 0..queries {
        let query = fields.string()?;
        matched |= query == CONTEXT_ALLOCATION || (!set && query == CONTEXT_BASE);
    }
    fields.is_empty().then_some((name, matched))
}

fn reply(out: &mut Outgoing, option: u32, kind: u32, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len() as u32).sum();
    out.push_bytes(&OptionReplyHeader { option, kind, length }.encode());
    for part in parts {
        out.push_bytes(part);
    }
}

fn error(out: &mut Outgoing, option: u32, kind: u32, message: &str) {
    reply(out, option, kind, &[message.as_bytes()]);
}
