//! Developer chores behind one command.

fn main() {}
