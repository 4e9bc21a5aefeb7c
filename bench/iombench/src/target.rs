//! Names of targets: NBD URIs and lists of files.
//!
//! URIs as in the NBD project's `doc/uri.md`: `nbd://host[:port]/export` and
//! `nbd+unix:///export?socket=PATH`, percent-encoded.

use crate::failure::{Failure, Kind};
use std::path::PathBuf;
use sys::socket::Address;

/// The port that IANA assigned to NBD.
const NBD_PORT: u16 = 10809;

/// What load is put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An export of an NBD server.
    Nbd {
        /// Where the server listens.
        address: Address,
        /// The export's name; empty is the default one.
        export: String,
    },
    /// Files or block devices, striped.
    Files(Vec<PathBuf>),
}

/// Parses TARGET.
pub fn parse(text: &str) -> Result<Target, Failure> {
    let wrong = |why: &str| Failure::new(Kind::Usage, format!("target `{text}`: {why}"));
    if let Some(list) = text.strip_prefix("file:") {
        let paths: Vec<PathBuf> = list.split(',').map(PathBuf::from).collect();
        if paths.iter().any(|path| path.as_os_str().is_empty()) {
            return Err(wrong("a path is empty"));
        }
        return Ok(Target::Files(paths));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("neither file:PATH[,PATH...] nor an NBD URI"));
    };
    match scheme {
        "nbd" => tcp(rest).map_err(wrong),
        "nbd+unix" => unix(rest).map_err(wrong),
        "nbds" | "nbds+unix" => Err(wrong("TLS is not supported")),
        _ => Err(wrong("the scheme is not nbd, nbd+unix or file")),
    }
}

fn tcp(rest: &str) -> Result<Target, &'static str> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if export.contains('?') || authority.contains('?') {
        return Err("nbd:// takes no query");
    }
    let bracketed = authority.starts_with('[');
    let host_end = if bracketed { authority.find(']').map_or(0, |end| end + 1) } else { 0 };
    if bracketed && host_end == 0 {
        return Err("the IPv6 address has no closing bracket");
    }
    let (host, port) = match authority[host_end..].rfind(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(host_end + colon);
            (host, port[1..].parse::<u16>().map_err(|_| "the port is not a number")?)
        }
        None => (authority, NBD_PORT),
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    Ok(Target::Nbd { address: Address::Tcp(format!("{host}:{port}")), export: decode(export)? })
}

fn unix(rest: &str) -> Result<Target, &'static str> {
    let (path, query) = rest.split_once('?').ok_or("?socket=PATH is missing")?;
    let export = match path.strip_prefix('/') {
        Some(export) => export,
        None if path.is_empty() => "",
        None => return Err("a unix URI has no host: three slashes before the export"),
    };
    let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
    let socket = decode(socket.ok_or("?socket=PATH is missing")?)?;
    if socket.is_empty() {
        return Err("the socket's path is empty");
    }
    Ok(Target::Nbd { address: Address::Unix(PathBuf::from(socket)), export: decode(export)? })
}

fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |at: usize| rest.get(at).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err("% is not followed by two hexadecimal digits");
        };
        bytes.push((high * 16 + low) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "a name is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str, export: &str) -> Target {
        Target::Nbd { address: Address::Tcp(address.into()), export: export.into() }
    }

    fn unix(path: &str, export: &str) -> Target {
        Target::Nbd { address: Address::Unix(path.into()), export: export.into() }
    }

    #[test]
    fn targets_are_understood() {
        for (text, target) in [
            ("nbd://localhost", tcp("localhost:10809", "")),
            ("nbd://localhost/", tcp("localhost:10809", "")),
            ("nbd://10.0.0.1:99/a%20b", tcp("10.0.0.1:99", "a b")),
            ("nbd://[::1]:99/x/y", tcp("[::1]:99", "x/y")),
            ("nbd://[::1]", tcp("[::1]:10809", "")),
            ("nbd+unix:///disk?socket=/run/a.sock", unix("/run/a.sock", "disk")),
            ("nbd+unix://?socket=/run/a.sock", unix("/run/a.sock", "")),
            ("nbd+unix:///?socket=%2Frun%2Fa", unix("/run/a", "")),
            ("file:/a,/b", Target::Files(vec!["/a".into(), "/b".into()])),
        ] {
            assert_eq!(parse(text).unwrap(), target, "{text}");
        }
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        for text in [
            "",
            "/dev/sda",
            "file:",
            "file:/a,,/b",
            "nbd://",
            "nbd://h:port/",
            "nbd://[::1/x",
            "nbd+unix:///x",
            "nbd+unix://host/x?socket=/a",
            "nbd+unix:///x?socket=",
            "nbds://h/x",
            "http://h/x",
            "nbd://h/%zz",
            "nbd://h/%f",
        ] {
            assert_eq!(parse(text).unwrap_err().kind, Kind::Usage, "{text}");
        }
    }
}
