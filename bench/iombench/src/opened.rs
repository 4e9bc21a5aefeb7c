//! A target that was opened: its size, what guards it, and peers on it.

use crate::failure::{Failure, Kind};
use crate::files::{FileSet, OpenFiles};
use crate::guard::{self, Found};
use crate::nbd::connection::Connection;
use crate::nbd::negotiate::{Export, negotiate};
use crate::nbd::wire::{self, Command};
use crate::peer::{Op, Peer};
use crate::target::Target;
use std::sync::Arc;
use sys::arena::Buffer;
use sys::ring::Ring;
use sys::socket::{Address, Stream};

/// See the module's documentation.
pub enum Opened {
    /// An export, and what the server says about it.
    Nbd {
        /// Where the server listens.
        address: Address,
        /// The export's name.
        export: String,
        /// What it is.
        found: Export,
    },
    /// Files.
    Files(Arc<OpenFiles>),
}

impl Opened {
    /// Opens the target, to write if `write`. Files are locked if `exclusive`.
    pub fn open(target: &Target, write: bool, exclusive: bool) -> Result<Opened, Failure> {
        match target {
            Target::Files(paths) => {
                Ok(Opened::Files(Arc::new(OpenFiles::open(paths, write, exclusive)?)))
            }
            Target::Nbd { address, export } => {
                let (address, export) = (address.clone(), export.clone());
                let (_stream, found) = connect(&address, &export)?;
                if write && found.has(wire::FLAG_READ_ONLY) {
                    let context = format!("{address}: export `{export}` is read-only");
                    return Err(Failure::new(Kind::Target, context));
                }
                Ok(Opened::Nbd { address, export, found })
            }
        }
    }

    /// The size of the target in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Opened::Nbd { found, .. } => found.size,
            Opened::Files(files) => files.size(),
        }
    }

    /// Whether a flush covers what other connections wrote.
    pub fn flush_is_global(&self) -> bool {
        match self {
            Opened::Nbd { found, .. } => found.has(wire::FLAG_CAN_MULTI_CONN),
            Opened::Files(_) => true,
        }
    }

    /// Fails if the server lacks what requests of this kind need.
    pub fn check(&self, request_max: u32, fua: bool, flush: bool) -> Result<(), Failure> {
        let Opened::Nbd { found, .. } = self else { return Ok(()) };
        let lacks = |what: String| Err(Failure::new(Kind::Protocol, what));
        if request_max > found.payload_max {
            let max = found.payload_max;
            return lacks(format!("the server takes at most {max} bytes in one request"));
        }
        if fua && !found.has(wire::FLAG_SEND_FUA) {
            return lacks("the server does not offer FUA".into());
        }
        if flush && !found.has(wire::FLAG_SEND_FLUSH) {
            return lacks("the server does not offer FLUSH".into());
        }
        Ok(())
    }

    /// A peer for `depth` requests at a time of at most `request_max` bytes.
    pub fn peer(
        &self,
        depth: usize,
        request_max: usize,
        keep_payload: bool,
    ) -> Result<Peer, Failure> {
        match self {
            Opened::Files(files) => Ok(Peer::Files(FileSet::new(files.clone(), depth))),
            Opened::Nbd { address, export, .. } => {
                let (stream, _) = connect(address, export)?;
                let connection = Connection::new(stream, depth, request_max, keep_payload)?;
                Ok(Peer::Nbd(Box::new(connection)))
            }
        }
    }

    /// Refuses to go on if the target carries something that writing would destroy.
    pub fn guard(&self, force: bool) -> Result<(), Failure> {
        match self {
            Opened::Nbd { .. } => judge(inspect(self)?, "the target", force),
            Opened::Files(files) => (0..files.count()).try_for_each(|index| {
                let single = Opened::Files(Arc::new(files.single(index)?));
                judge(inspect(&single)?, &format!("file {}", index + 1), force)
            }),
        }
    }
}

fn connect(address: &Address, export: &str) -> Result<(Stream, Export), Failure> {
    let connected = Stream::connect(address);
    let mut stream = connected
        .map_err(|e| Failure::from_source(Kind::Target, "the server cannot be reached", e))?;
    let found = negotiate(&mut stream, export)?;
    Ok((stream, found))
}

fn judge(found: Option<Found>, what: &str, force: bool) -> Result<(), Failure> {
    match found {
        Some(Found::Slice) => {
            let context = format!("{what} is a slice of an array: it is never written directly");
            Err(Failure::new(Kind::Refused, context))
        }
        Some(Found::Known(name)) if !force => {
            let context = format!("{what} carries {name}; --force overwrites it");
            Err(Failure::new(Kind::Refused, context))
        }
        _ => Ok(()),
    }
}

fn inspect(opened: &Opened) -> Result<Option<Found>, Failure> {
    let size = opened.size() / 512 * 512;
    let head = read(opened, 0, size.min(guard::HEAD_BYTES as u64))?;
    let tail = size.min(guard::TAIL_BYTES as u64);
    let tail = read(opened, size - tail, tail)?;
    Ok(guard::inspect(&head, &tail, size))
}

/// Reads `length` bytes at `offset`, by itself.
fn read(opened: &Opened, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
    let length = length as usize;
    if length == 0 {
        return Ok(Vec::new());
    }
    let system = |e: std::io::Error| Failure::from_source(Kind::System, "the ring", e);
    let mut peer = opened.peer(1, length, true)?;
    let buffer =
        Buffer::new(length).map_err(|e| Failure::from_source(Kind::System, "a buffer", e))?;
    let mut buffers = [buffer];
    let mut ring = Ring::new(peer.ring_requests(1) as u32)
        .map_err(|e| Failure::from_source(Kind::System, "a ring", e))?;
    peer.queue(0, Op { command: Command::Read, offset, length }, &buffers[0]);
    let (mut done, mut completions) = (Vec::new(), Vec::new());
    while done.is_empty() {
        peer.push(&mut ring, 0);
        ring.wait(None).map_err(system)?;
        ring.completions(&mut completions);
        for completion in completions.drain(..) {
            let token = completion.user_data as u32;
            peer.complete(token, completion.bytes(), &mut buffers, &mut done)?;
        }
    }
    match done[0].1 {
        Ok(()) => Ok(buffers[0].bytes()[..length].to_vec()),
        Err(errno) => {
            let error = std::io::Error::from_raw_os_error(errno);
            let context = format!("reading {length} bytes at {offset}");
            Err(Failure::from_source(Kind::Request, context, error))
        }
    }
}
