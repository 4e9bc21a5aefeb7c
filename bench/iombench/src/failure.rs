//! What can go wrong, as a stable kind, a context and a source.

use std::error::Error;
use std::fmt;

/// The kinds; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line asks for something impossible.
    Usage,
    /// The target cannot be opened or connected.
    Target,
    /// Writing was refused, because the target holds something of value.
    Refused,
    /// The server does not speak NBD as it should, or does not have what is asked for.
    Protocol,
    /// The connection ended while requests were unanswered.
    Disconnected,
    /// A request was answered with an error.
    Request,
    /// The state file cannot be used.
    State,
    /// The target does not hold what it must.
    Verification,
    /// Something of this machine failed: a ring, memory, an output file.
    System,
}

impl Kind {
    /// 2 for wrong usage, else 1.
    pub fn exit_code(self) -> u8 {
        if self == Kind::Usage { 2 } else { 1 }
    }
}

/// One failure.
#[derive(Debug)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure without an underlying error.
    pub fn new(kind: Kind, context: impl Into<String>) -> Failure {
        Failure { kind, context: context.into(), source: None }
    }

    /// A failure that another error caused.
    pub fn from_source(
        kind: Kind,
        context: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Failure {
        Failure { kind, context: context.into(), source: Some(Box::new(source)) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
