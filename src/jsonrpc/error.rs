//! Error codes, the error object of a response (JSON-RPC 2.0, section 5.1), and the defects of a
//! message.
//!
//! `hub::error` and the programs choose the error; the parent module writes the response.

/// The text is not JSON (JSON-RPC 2.0, section 5.1).
pub const PARSE_ERROR: i64 = -32700;
/// The JSON is not a valid message.
pub const INVALID_REQUEST: i64 = -32600;
/// The method is not supported.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// The params do not fit the method.
pub const INVALID_PARAMS: i64 = -32602;
/// The upstream server failed or disconnected.
pub const INTERNAL_ERROR: i64 = -32603;
/// A limit of the gateway is reached; the client may retry later.
pub const BUSY: i64 = -32000;
/// The resource does not exist (MCP, up to 2025-11-25).
pub const NO_RESOURCE: i64 = -32002;
/// A header of the request differs from its body (MCP 2026-07-28).
pub const HEADER_MISMATCH: i64 = -32020;
/// The request needs a capability that its client did not declare (MCP 2026-07-28).
pub const MISSING_CAPABILITY: i64 = -32021;
/// The protocol version of the request is not supported (MCP 2026-07-28).
pub const UNSUPPORTED_VERSION: i64 = -32022;
/// Same as [`BUSY`], for clients of MCP 2026-07-28, which forbids new meanings for codes in the range
/// that JSON-RPC reserves. This code is our own.
pub const MODERN_BUSY: i64 = -31000;
/// The server is down and has not seen the request; the message gives the time of the next start.
/// This code is our own. It lies outside the range that JSON-RPC reserves (section 5.1), because
/// clients associate a specific meaning with each code in that range.
pub const DOWN: i64 = -31002;
/// The request was cancelled. MCP SDKs use this code.
pub const CANCELLED: i64 = -32800;
/// No response arrived within the time limit. MCP SDKs use this code.
pub const TIMED_OUT: i64 = -32001;

/// The reason why a text is not a single valid message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// Not JSON.
    Syntax,
    /// Nested deeper than [`crate::limits::JSON_DEPTH`].
    Depth,
    /// An array, that is, a batch.
    Batch,
    /// A JSON value other than an object or an array.
    NotObject,
    /// A member that the gateway reads occurs twice.
    Duplicate,
    /// The members do not form a request, a notification or a response.
    Envelope,
    /// A string in the envelope has a lone surrogate, which UTF-8 cannot encode.
    Surrogate,
    /// JSON readers may disagree about a member that the gateway reads, because of the case of its
    /// name or because of the character U+0000.
    Twin,
}

impl Malformed {
    /// Returns the error code for the response.
    pub fn code(self) -> i64 {
        match self {
            Self::Syntax => PARSE_ERROR,
            _ => INVALID_REQUEST,
        }
    }

    /// Returns the reason as text for the error message.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Batch => "batches are not supported; send one message",
            Self::Depth => "the JSON is nested too deeply",
            Self::Duplicate => "duplicate member in the message",
            Self::Envelope => "not a JSON-RPC 2.0 request, notification or response",
            Self::NotObject => "a message must be a JSON object",
            Self::Surrogate => "a string in the message contains an unpaired surrogate",
            Self::Syntax => "not valid JSON",
            Self::Twin => {
                "a member name differs only in case from one of JSON-RPC or MCP, or a string contains U+0000"
            }
        }
    }
}

/// The error object of a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RpcError {
    /// The code.
    pub code: i64,
    /// The message, for a person.
    pub message: String,
    /// The additional data, raw JSON.
    pub data: Option<String>,
}

impl RpcError {
    /// Creates an error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

impl From<Malformed> for RpcError {
    fn from(why: Malformed) -> Self {
        Self::new(why.code(), why.reason())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::{Message, error};

    #[test]
    fn an_error_is_written_as_a_response() {
        let plain = RpcError::new(BUSY, "too\nmany");
        assert_eq!(plain.response("\"a\""), error("\"a\"", BUSY, "too\nmany"));
        let detailed = RpcError { data: Some("{\"n\":1}".into()), ..plain };
        let text = detailed.response("7");
        let message = Message::read(&text).unwrap();
        assert_eq!(message.id(), Some("7"));
        assert_eq!(message.error(), Some(r#"{"code":-32000,"message":"too\nmany","data":{"n":1}}"#));
    }

    #[test]
    fn a_malformed_message_gives_its_own_code_and_reason() {
        assert_eq!(RpcError::from(Malformed::Syntax), RpcError::new(PARSE_ERROR, "not valid JSON"));
        let batch = RpcError::from(Malformed::Batch);
        assert_eq!((batch.code, batch.message.as_str()), (INVALID_REQUEST, Malformed::Batch.reason()));
    }
}
