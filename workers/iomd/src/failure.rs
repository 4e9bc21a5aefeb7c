//! Why the daemon ends before its time: what to tell the operator, and the exit status.

use std::fmt;

/// Exit status of an operation that failed.
pub const STATUS_FAILED: u8 = 1;
/// Exit status of a wrong command line or configuration.
pub const STATUS_USAGE: u8 = 2;

/// A failure, in words that say what to do.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of the process.
    pub status: u8,
    text: String,
}

impl Failure {
    /// The operation failed.
    pub fn failed(text: impl fmt::Display) -> Failure {
        Failure { status: STATUS_FAILED, text: text.to_string() }
    }

    /// What was asked for makes no sense.
    pub fn usage(text: impl fmt::Display) -> Failure {
        Failure { status: STATUS_USAGE, text: text.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
