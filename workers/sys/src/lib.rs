//! Rings, arena, lanes, pinning, locks: the only crate with unsafe code.
