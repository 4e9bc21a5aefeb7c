//! The simulated world: disks that fail, processes that die, and the checkers.

fn main() {}
