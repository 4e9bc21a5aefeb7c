//! The server side of NBD as pure state machines: bytes in, requests and bytes out.
//!
//! Nothing but `server` knows a socket, a thread or a clock. A server owns the socket and the
//! memory of payloads and drives one [`Connection`] per client: it asks where the next bytes must
//! go ([`Connection::receive_space`]), reports what came, takes what happened
//! ([`Connection::next_event`]), answers ([`Connection::reply`]) and sends what
//! [`Connection::outgoing`] lists. One receive and one send may be in flight at any time.
//!
//! The wire format is that of the public protocol document, `doc/proto.md` of
//! <https://github.com/NetworkBlockDevice/nbd>; constants keep its names without the prefix `NBD_`.
//!
//! Reading order: `proto` (what stands on the wire), `handshake` (options), `admit` (which requests
//! are taken), `slots` (life of a request), `outgoing` (queue of replies), `conn` (all of it
//! together), `fuzz` (how it is attacked), `server` (sockets, rings and pages around it).

mod admit;
mod conn;
pub mod fuzz;
mod handshake;
mod outgoing;
pub mod proto;
mod reply;
pub mod server;
mod slots;

pub use admit::{Request, RequestKind};
pub use conn::{CloseReason, Connection, Event, Limits, ReceiveSpace};
pub use handshake::{Exports, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX};
pub use outgoing::Segment;
pub use reply::{EXTENTS_MAX, Extent, Outcome};
pub use slots::Slot;

#[cfg(test)]
mod tests;
