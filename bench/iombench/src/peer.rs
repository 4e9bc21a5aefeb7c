//! One stream of requests to a target, whatever it is: an NBD connection or a set of files.

use crate::failure::Failure;
use crate::files::FileSet;
use crate::nbd::connection::Connection;
use crate::nbd::wire::Command;
use std::io;
use sys::arena::Buffer;
use sys::ring::Ring;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What to do; `Command::Disconnect` is not an op.
    pub command: Command,
    /// Where, in bytes from the beginning of the target.
    pub offset: u64,
    /// How much, in bytes; 0 for a flush.
    pub length: usize,
}

/// One request that ended: its slot, and the error number it was answered with.
pub type Done = (usize, Result<(), i32>);

/// The target's side of one stream.
pub enum Peer {
    /// A connection to an NBD server.
    Nbd(Box<Connection>),
    /// Files, directly.
    Files(FileSet),
}

impl Peer {
    /// How many requests of a ring the peer needs at most with `depth` slots.
    pub fn ring_requests(&self, depth: usize) -> usize {
        match self {
            Peer::Nbd(_) => 2,
            Peer::Files(files) => depth * files.count(),
        }
    }

    /// Takes a request for later; `slot` is free, and `buffer` its own until it is done.
    pub fn queue(&mut self, slot: usize, op: Op, buffer: &Buffer) {
        match self {
            Peer::Nbd(connection) => connection.queue(slot, op, buffer),
            Peer::Files(files) => files.queue(slot, op, buffer),
        }
    }

    /// Puts onto the ring what was queued. The upper half of the requests' user data is `index`.
    pub fn push(&mut self, ring: &mut Ring, index: u32) {
        match self {
            Peer::Nbd(connection) => connection.push(ring, index),
            Peer::Files(files) => files.push(ring, index),
        }
    }

    /// A request of the ring has completed; `token` is the lower half of its user data. An error is
    /// the end of the peer.
    pub fn complete(
        &mut self,
        token: u32,
        result: io::Result<usize>,
        buffers: &mut [Buffer],
        done: &mut Vec<Done>,
    ) -> Result<(), Failure> {
        match self {
            Peer::Nbd(connection) => connection.complete(token, result, buffers, done),
            Peer::Files(files) => {
                files.complete(token, result, done);
                Ok(())
            }
        }
    }
}

/// The user data of a request on a ring that several peers share.
pub fn user_data(index: u32, token: u32) -> u64 {
    u64::from(index) << 32 | u64::from(token)
}
