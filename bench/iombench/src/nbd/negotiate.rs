//! The handshake: fixed newstyle, GO, and EXPORT_NAME for servers without GO.

use super::wire;
use crate::failure::{Failure, Kind};
use std::io::{Read, Write};

/// What a server says about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// The longest request that it takes, in bytes.
    pub payload_max: u32,
}

impl Export {
    /// Whether the server says `flag`.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A reply to an option is not longer than this, in bytes: names and messages, never data.
const OPTION_REPLY_MAX: u32 = 64 << 10;
/// An export is described in fewer pieces than this.
const INFOS_MAX: usize = 64;

/// Leads a fresh connection to the transmission phase of `export`.
pub fn negotiate(stream: &mut (impl Read + Write), export: &str) -> Result<Export, Failure> {
    let (magic, options) = (u64_from(stream)?, u64_from(stream)?);
    if magic != wire::SERVER_MAGIC || options != wire::OPTION_MAGIC {
        return Err(strange("the server does not speak newstyle NBD"));
    }
    let server = u16::from_be_bytes(take(stream)?);
    if server & wire::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(strange("the server does not speak fixed newstyle NBD"));
    }
    let flags = server & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    give(stream, &u32::from(flags).to_be_bytes())?;
    give(stream, &wire::option(wire::OPT_GO, &wire::go_data(export)))?;
    match answer_to_go(stream, export)? {
        Some(found) => Ok(found),
        None => by_name(stream, export, flags & wire::FLAG_NO_ZEROES == 0),
    }
}

/// The export, or none if the server does not know GO.
fn answer_to_go(stream: &mut impl Read, export: &str) -> Result<Option<Export>, Failure> {
    let mut found = None;
    let mut payload_max = wire::PAYLOAD_MAX_DEFAULT;
    for _ in 0..INFOS_MAX {
        let (kind, data) = option_reply(stream, wire::OPT_GO)?;
        match kind {
            wire::REP_INFO => match (info(&data), &data[2.min(data.len())..]) {
                (Some(wire::INFO_EXPORT), [size @ .., f0, f1]) if size.len() == 8 => {
                    let size = u64::from_be_bytes(size.try_into().expect("eight bytes"));
                    found = Some((size, u16::from_be_bytes([*f0, *f1])));
                }
                (Some(wire::INFO_BLOCK_SIZE), [_, _, _, _, _, _, _, _, max @ ..])
                    if max.len() == 4 =>
                {
                    payload_max = u32::from_be_bytes(max.try_into().expect("four bytes"));
                }
                (Some(wire::INFO_EXPORT | wire::INFO_BLOCK_SIZE) | None, _) => {
                    return Err(strange("the server's information has a wrong length"));
                }
                _ => {}
            },
            wire::REP_ACK => {
                let Some((size, flags)) = found else {
                    return Err(strange("the server did not tell the export's size"));
                };
                return Ok(Some(Export { size, flags, payload_max }));
            }
            wire::REP_ERR_UNSUPPORTED => return Ok(None),
            wire::REP_ERR_UNKNOWN => {
                let context = format!("the server has no export `{export}`");
                return Err(Failure::new(Kind::Protocol, context));
            }
            error => {
                let said = String::from_utf8_lossy(&data);
                let context = format!("the server refuses export `{export}` ({error:#x}): {said}");
                return Err(Failure::new(Kind::Protocol, context));
            }
        }
    }
    Err(strange("the server does not come to an end"))
}

fn info(data: &[u8]) -> Option<u16> {
    data.first_chunk().map(|kind| u16::from_be_bytes(*kind))
}

fn by_name(
    stream: &mut (impl Read + Write),
    export: &str,
    zeroes: bool,
) -> Result<Export, Failure> {
    give(stream, &wire::option(wire::OPT_EXPORT_NAME, export.as_bytes()))?;
    let size = u64_from(stream)?;
    let flags = u16::from_be_bytes(take(stream)?);
    if zeroes {
        take::<124>(stream)?;
    }
    Ok(Export { size, flags, payload_max: wire::PAYLOAD_MAX_DEFAULT })
}

fn option_reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), Failure> {
    let magic = u64_from(stream)?;
    let to = u32::from_be_bytes(take(stream)?);
    let kind = u32::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    if magic != wire::OPTION_REPLY_MAGIC || to != option || length > OPTION_REPLY_MAX {
        return Err(strange("the server's reply to an option makes no sense"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data).map_err(lost)?;
    Ok((kind, data))
}

fn u64_from(stream: &mut impl Read) -> Result<u64, Failure> {
    Ok(u64::from_be_bytes(take(stream)?))
}

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(lost)?;
    Ok(bytes)
}

fn give(stream: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).map_err(lost)
}

fn strange(why: &'static str) -> Failure {
    Failure::new(Kind::Protocol, why)
}

fn lost(error: std::io::Error) -> Failure {
    Failure::from_source(Kind::Disconnected, "the connection ended during negotiation", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A server whose answers are known beforehand.
    struct Script {
        answers: Cursor<Vec<u8>>,
        heard: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.answers.read(into)
        }
    }

    impl Write for Script {
        fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
            self.heard.write(from)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn hello(flags: u16) -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = wire::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        for word in [wire::OPT_GO, kind, data.len() as u32] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(data);
        bytes
    }

    fn run(answers: Vec<u8>) -> (Result<Export, Failure>, Vec<u8>) {
        let mut script = Script { answers: Cursor::new(answers), heard: Vec::new() };
        (negotiate(&mut script, "disk"), script.heard)
    }

    #[test]
    fn go_tells_size_flags_and_limits() {
        let size = [0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x01, 0x0d];
        let sizes = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];
        let name = [0, 1, b'd'];
        let answers = [
            hello(3),
            reply(wire::REP_INFO, &size),
            reply(wire::REP_INFO, &name),
            reply(wire::REP_INFO, &sizes),
            reply(wire::REP_ACK, &[]),
        ];
        let (export, heard) = run(answers.concat());
        assert_eq!(export.unwrap(), Export { size: 4096, flags: 0x10d, payload_max: 32 << 20 });
        assert_eq!(heard[..4], [0, 0, 0, 3]);
        assert!(heard.ends_with(b"\x00\x00\x00\x04disk\x00\x01\x00\x03"));
    }

    #[test]
    fn a_server_without_go_is_asked_by_name() {
        for (flags, zeroes) in [(1, 124), (3, 0)] {
            let mut answers = hello(flags);
            answers.extend(reply(wire::REP_ERR_UNSUPPORTED, b""));
            answers.extend([0, 0, 0, 0, 0, 0, 0x20, 0, 0, 1]);
            answers.extend(vec![0; zeroes]);
            let (export, heard) = run(answers);
            assert_eq!(export.unwrap().size, 8192);
            assert!(heard.ends_with(b"IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04disk"));
        }
    }

    #[test]
    fn broken_servers_are_refused() {
        let kind = |answers| run(answers).0.unwrap_err().kind;
        assert_eq!(kind(b"HTTP/1.1 400 Bad Request".to_vec()), Kind::Protocol);
        assert_eq!(kind(hello(0)), Kind::Protocol);
        assert_eq!(kind(hello(3)), Kind::Disconnected);
        let unknown = reply(wire::REP_ERR_UNKNOWN, b"no");
        assert_eq!(kind([hello(3), unknown].concat()), Kind::Protocol);
        let sizeless = reply(wire::REP_ACK, b"");
        assert_eq!(kind([hello(3), sizeless].concat()), Kind::Protocol);
        let short = reply(wire::REP_INFO, &[0, 0, 1]);
        assert_eq!(kind([hello(3), short].concat()), Kind::Protocol);
        let mut huge = reply(wire::REP_INFO, b"");
        huge[16] = 0xff;
        assert_eq!(kind([hello(3), huge].concat()), Kind::Protocol);
        let endless = reply(wire::REP_INFO, &[0, 9]).repeat(100);
        assert_eq!(kind([hello(3), endless].concat()), Kind::Protocol);
    }
}
