//! What a client sends in one session, and what it must remember to read the answers.

use super::super::proto::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, CONTEXT_ALLOCATION, ClientFlags, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OptionHeader,
    RequestHeader,
};
use super::{PAYLOAD_BYTES_MAX, Random, SIZE_BYTES, content};

/// A session in the making.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Script {
    /// All that the client sends.
    pub(in super::super) bytes: Vec<u8>,
    /// Options in order; the last one starts transmission.
    pub(in super::super) options: Vec<u32>,
    /// Requests in order, without the disconnect; the cookie is the index.
    pub(in super::super) requests: Vec<RequestHeader>,
    /// Whether structured replies were asked for.
    pub(in super::super) structured: bool,
    /// Whether the zeroes after EXPORT_NAME were declined.
    pub(in super::super) no_zeroes: bool,
    /// Whether the session ends with a disconnect.
    pub(in super::super) disconnects: bool,
}

impl Script {
    /// Begins with the answer to the greeting.
    pub(in super::super) fn new(flags: ClientFlags) -> Self {
        let mut script = Script::default();
        script.bytes.extend_from_slice(&flags.bits().to_be_bytes());
        script.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        script
    }

    /// Sends an option.
    pub(in super::super) fn option(&mut self, option: u32, data: &[u8]) {
        let length = data.len() as u32;
        self.bytes.extend_from_slice(&OptionHeader { option, length }.encode());
        self.bytes.extend_from_slice(data);
        self.options.push(option);
        self.structured |= option == OPT_STRUCTURED_REPLY && data.is_empty();
    }

    /// Sends a request; a write carries the export's content.
    pub(in super::super) fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32) {
        let cookie = self.requests.len() as u64;
        let header = RequestHeader { flags, command, cookie, offset, length };
        self.bytes.extend_from_slice(&header.encode());
        if command == CMD_WRITE {
            let payload = (0..u64::from(length)).map(|at| content(offset.wrapping_add(at)));
            self.bytes.extend(payload);
        }
        self.requests.push(header);
    }

    /// Sends a disconnect.
    pub(in super::super) fn disconnect(&mut self) {
        let header =
            RequestHeader { flags: 0, command: CMD_DISC, cookie: u64::MAX, offset: 0, length: 0 };
        self.bytes.extend_from_slice(&header.encode());
        self.disconnects = true;
    }

    /// A session that breaks no rule which would end it, but asks for much that must be refused.
    pub(in super::super) fn random(random: &mut Random) -> Self {
        let mut flags = ClientFlags::FIXED_NEWSTYLE;
        flags.set(ClientFlags::NO_ZEROES, random.one_in(2));
        let mut script = Script::new(flags);
        if random.one_in(2) {
            script.option(OPT_STRUCTURED_REPLY, &[]);
        }
        for _ in 0..random.below(6) {
            script.random_option(random);
        }
        let name = [&b"array"[..], b""][random.below(2)];
        if random.one_in(2) {
            script.option(OPT_SET_META_CONTEXT, &context_data(name, &[CONTEXT_ALLOCATION]));
        }
        if random.one_in(3) {
            script.option(OPT_EXPORT_NAME, name);
        } else {
            script.option(OPT_GO, &info_data(name, &[0, 1, 2, 3]));
        }
        for _ in 0..random.below(40) {
            script.random_request(random);
        }
        if random.one_in(2) {
            script.disconnect();
        }
        script
    }

    fn random_option(&mut self, random: &mut Random) {
        let name = [&b"array"[..], b"", b"nothing"][random.below(3)];
        let queries = [b"base:", CONTEXT_ALLOCATION, b"x-none:"];
        let queries = &queries[..random.below(4)];
        match random.below(8) {
            0 => self.option(OPT_LIST, &[]),
            1 => self.option(OPT_LIST, b"data"),
            2 => self.option(OPT_INFO, &info_data(name, &[1, 2, 77])),
            3 => self.option(OPT_LIST_META_CONTEXT, &context_data(name, queries)),
            4 => self.option(OPT_SET_META_CONTEXT, &context_data(name, queries)),
            5 => self.option(OPT_STARTTLS, &[]),
            6 => self.option(OPT_GO, &info_data(b"nothing", &[])),
            _ => {
                let length = [0, 5, 4096, 13 << 10, 100 << 10][random.below(5)];
                self.option(12 + random.next() as u32 % 1000, &vec![0; length]);
            }
        }
    }

    fn random_request(&mut self, random: &mut Random) {
        let commands = [
            CMD_READ,
            CMD_WRITE,
            CMD_WRITE,
            CMD_FLUSH,
            CMD_TRIM,
            CMD_CACHE,
            CMD_WRITE_ZEROES,
            CMD_BLOCK_STATUS,
            99,
        ];
        let command = commands[random.below(commands.len())];
        let flags = if random.one_in(4) { 1 << random.below(7) } else { 0 };
        let bound = [64, 6000, 40 << 10, PAYLOAD_BYTES_MAX as usize][random.below(4)];
        let mut length = random.below(bound + 1) as u32;
        if command != CMD_WRITE && random.one_in(16) {
            length = random.next() as u32;
        }
        let offset = match random.below(16) {
            0 => random.next(),
            1 => SIZE_BYTES.saturating_sub(u64::from(length)),
            2 => SIZE_BYTES.saturating_sub(u64::from(length) / 2),
            _ => random.next() % (SIZE_BYTES - u64::from(PAYLOAD_BYTES_MAX)),
        };
        self.request(command, flags, offset, length);
    }
}

/// Data of INFO and GO.
pub(in super::super) fn info_data(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(in super::super) fn context_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query);
    }
    data
}
