//! Client sessions: what a session sees.

/// The servers that a client sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// All servers, under exposed names.
    All,
    /// One server, under its own names.
    Server(String),
}
