//! The HTTP/1.1 server as pure machines: bytes in, events and bytes out (RFC 9110, RFC 9112).
//!
//! - [`types`]: methods, status codes, addresses.
//! - [`head`]: finds the end of a request head and parses it.
//! - [`body`]: decides how a body is framed and decodes chunks.
//! - [`date`]: the time as answers tell it.
//! - [`response`]: the only writer of header bytes.
//! - [`upgrade`]: checks a WebSocket upgrade and answers it.
//! - [`conn`]: the life of one connection, built from the others; what a driver feeds.
//!
//! Where parsers of the world disagree, this one refuses: no legacy client has to be served, and every
//! disagreement is a way to smuggle a request past somebody.

pub mod body;
pub mod conn;
pub mod date;
pub mod head;
pub mod response;
pub mod types;
pub mod upgrade;

use self::types::StatusCode;

/// Why a request is refused by the protocol itself. The connection ends with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// What the peer is told.
    pub status: StatusCode,
    /// One short sentence for the peer and for the log; holds nothing that the peer sent.
    pub reason: &'static str,
}

impl Refusal {
    /// A refusal with a status of its own.
    pub(crate) const fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// A refusal of malformed input: 400.
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self { status: StatusCode::BadRequest, reason }
    }
}
