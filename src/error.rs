//! The error that ends the program: one clear line for the user, and the exit code.
//!
//! Errors that code acts on are small enums in their own modules; this type is for reporting only.

use std::fmt;

/// Why the program stops.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FatalError {
    /// Invalid usage (flag, value, file): exit code 2.
    Usage(String),
    /// A failure at run time: exit code 1.
    Run(String),
}

impl FatalError {
    /// Creates a usage error.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// Creates a run-time error.
    pub fn run(text: impl Into<String>) -> Self {
        Self::Run(text.into())
    }

    /// Returns the exit code of the process; 0 is a stop on request.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for FatalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Run(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for FatalError {}
