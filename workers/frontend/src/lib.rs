//! What clients talk to: NBD.
#![forbid(unsafe_code)]

pub mod nbd;
