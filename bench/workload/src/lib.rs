//! Deterministic load patterns and the verifying oracle, shared by benchmarks and simulator.
//!
//! Nothing here does I/O, reads a clock or asks the system for randomness: the same seed gives the
//! same sequence, and the oracle's state is bytes that the caller keeps outside the victim.
#![forbid(unsafe_code)]

pub mod content;
pub mod oracle;
pub mod pattern;
pub mod rng;
pub mod state;

pub use content::{SECTOR_BYTES, Sector, decode_sector, fill};
pub use oracle::{Crash, FlushTicket, Mismatch, MismatchKind, Oracle, ReadTicket};
pub use pattern::{Access, Mix, Order, Pattern, PatternError};
pub use rng::Rng;
pub use state::{Loaded, StateError, StateHeader, load};
