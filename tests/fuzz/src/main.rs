//! Fuzzers of everything that is parsed.

fn main() {}
