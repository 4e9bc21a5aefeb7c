//! A slice, one step after another: what making, recovering and checking an array need of it.
//!
//! Offsets and lengths are multiples of 4,096. Serving clients goes through [`crate::port::Port`]
//! instead.

/// The device did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskError;

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the device reported an error")
    }
}

impl std::error::Error for DiskError {}

/// Synchronous access to a slice.
pub trait Disk {
    /// Its length in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `bytes` from `offset`.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError>;
    /// Writes `bytes` at `offset`; stable after the next [`Disk::flush`].
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Makes everything written so far stable.
    fn flush(&mut self) -> Result<(), DiskError>;
}
