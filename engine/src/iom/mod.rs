//! An I/O manager: the routine that owns one slice, its journal and its block map.

pub mod message;
