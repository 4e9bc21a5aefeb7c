//! An NBD client: the protocol's bytes, the negotiation, and transmission over a ring.

pub mod connection;
pub mod negotiate;
pub mod wire;
