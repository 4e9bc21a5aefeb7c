//! What clients talk to: NBD.
