//! How commands end: the exit codes that scripts rely on, and errors that say what to do.

use std::fmt;
use std::process::ExitCode;

/// How a command ended, as its exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// Done, or clean.
    Ok = 0,
    /// It failed, or problems were found. Health: attention or degraded.
    Failed = 1,
    /// The command line makes no sense (clap ends with the same). Health: critical.
    Usage = 2,
    /// What was named does not exist. Health: cannot tell.
    NotFound = 3,
    /// Refused, to keep data safe.
    Refused = 4,
    /// Not permitted.
    Permission = 5,
    /// It took too long.
    Timeout = 6,
    /// Cannot tell.
    CannotTell = 7,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}

/// Why a command did not do its work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The exit status.
    pub code: Code,
    /// What went wrong, and where.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), advice: None }
    }

    /// The same, saying what to do.
    pub fn advise(self, advice: impl Into<String>) -> Failure {
        Failure { advice: Some(advice.into()), ..self }
    }

    /// Standard output does not take what is to be said.
    pub fn output(error: std::io::Error) -> Failure {
        Failure::new(Code::Failed, format!("standard output: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}
