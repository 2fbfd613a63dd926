//! An error that ends the program: one clear line for the user, and the exit code.
//!
//! Errors that code acts on are small enums in their own rooms; this type is for reporting only.

use std::fmt;

/// Why the program stops.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FatalError {
    /// It was asked for wrongly (flag, value, file): exit code 2.
    Usage(String),
    /// It was asked for rightly and could not be done: exit code 1.
    Run(String),
}

impl FatalError {
    /// A usage fault.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// A run-time fault.
    pub fn run(text: impl Into<String>) -> Self {
        Self::Run(text.into())
    }

    /// The process's exit code for it.
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
