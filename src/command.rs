//! Placeholder: a later commit parses command lines.

/// A command to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CommandLine {
    /// Run directly: program and arguments.
    Direct(Vec<String>),
    /// Run by `sh -c`.
    Shell(String),
}
