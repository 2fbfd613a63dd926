//! An HTTP/1.1 server as a state machine without I/O: bytes in, events and bytes out (RFC 9110, RFC
//! 9112).
//!
//! - [`types`]: methods and status codes.
//! - [`head`]: finds the end of a request head and parses it.
//! - [`body`]: decides how a body is framed and decodes chunks.
//! - [`date`]: the `Date` field of responses.
//! - [`response`]: responses, and the only writer of header bytes.
//! - [`upgrade`]: checks a WebSocket upgrade and builds its response.
//! - [`conn`]: the state machine of one connection, built from the others and fed by a driver.
//!
//! Where HTTP parsers disagree about an input, this one rejects it: there are no legacy clients to
//! serve, and every such disagreement can be used for request smuggling.

pub mod body;
pub mod conn;
pub mod date;
pub mod head;
pub mod response;
pub mod types;
pub mod upgrade;

use self::types::StatusCode;

/// A protocol error of a request. The connection is closed after it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// A short sentence for the peer and the log; contains nothing that the peer sent.
    pub reason: &'static str,
}

impl Refusal {
    /// Creates a refusal with the given status.
    pub(crate) const fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// Creates a refusal of malformed input, with status 400.
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self { status: StatusCode::BadRequest, reason }
    }
}
