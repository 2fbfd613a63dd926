//! Requests that are refused before they reach a server, and the HTTP status of each answer.
//!
//! A refusal is decided by [`super::route`], [`super::envelope`] and [`super::headers`]. The gateway
//! writes it with the id of the request.

use super::meta;
use crate::{
    jsonrpc::{
        HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, MISSING_CAPABILITY, Malformed,
        RpcError, UNSUPPORTED_VERSION, quote,
    },
    mcp::version::{MODERN, V2026_07_28},
    util::escape::show,
};

/// Why a request of the stateless protocol is refused before it reaches a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// A required key of `_meta` is missing.
    MetaMissing(&'static str),
    /// `_meta` is no object.
    Meta,
    /// A key of `_meta` has a value of the wrong type.
    MetaType(&'static str),
    /// The log level is not one of MCP.
    Level,
    /// A header is missing, occurs twice, cannot be decoded, or differs from the body: for this
    /// reason.
    HeaderMismatch(String),
    /// The protocol version is not supported.
    Version(String),
    /// The body is a response, which no client of this protocol sends.
    Response,
    /// The method is one of a notification.
    NotificationWithId,
    /// The method does not exist in this protocol.
    UnknownMethod(String),
    /// The body is not a message.
    Malformed(Malformed),
}

impl Rejection {
    /// Returns the error for the response.
    pub fn rpc(&self) -> RpcError {
        match self {
            Self::MetaMissing(key) => RpcError::new(
                INVALID_PARAMS,
                format!("missing {key} in params._meta, which MCP {V2026_07_28} requires"),
            ),
            Self::Meta => RpcError::new(INVALID_PARAMS, "params._meta is not an object"),
            Self::MetaType(key) => {
                RpcError::new(INVALID_PARAMS, format!("{key} in params._meta has the wrong type"))
            }
            Self::Level => RpcError::new(INVALID_PARAMS, format!("unknown log level in {}", meta::LEVEL)),
            Self::HeaderMismatch(why) => RpcError::new(HEADER_MISMATCH, why.as_str()),
            Self::Version(version) => RpcError {
                data: Some(format!(
                    "{{\"supported\":{},\"requested\":{}}}",
                    supported_versions(),
                    quote(version)
                )),
                ..RpcError::new(
                    UNSUPPORTED_VERSION,
                    format!("unsupported protocol version: {}", show(version)),
                )
            },
            Self::Response => {
                RpcError::new(INVALID_REQUEST, format!("MCP {V2026_07_28} has no responses of clients"))
            }
            Self::NotificationWithId => RpcError::new(INVALID_REQUEST, "a notification must not have an id"),
            Self::UnknownMethod(method) => {
                RpcError::new(METHOD_NOT_FOUND, format!("method not found: {}", show(method)))
            }
            Self::Malformed(why) => (*why).into(),
        }
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownMethod(_) => 404,
            _ => 400,
        }
    }
}

/// Returns the supported versions of the stateless protocol, as JSON. The versions that start with
/// `initialize` are not among them, since `server/discover` does not offer them either.
pub fn supported_versions() -> String {
    format!("[{}]", MODERN.map(quote).join(","))
}

/// Returns the error for a request that needs capabilities (a JSON object) that its client did not
/// declare.
pub fn missing_capability(capabilities: &str) -> RpcError {
    RpcError {
        data: Some(format!("{{\"requiredCapabilities\":{capabilities}}}")),
        ..RpcError::new(MISSING_CAPABILITY, "the request needs a capability that the client did not declare")
    }
}

/// Returns the HTTP status of a response that is not sent as an event, given the code of its error.
/// `None`: a result. Errors of a handler have status 200, because some clients end their session at
/// any other; MCP requires the two exceptions.
pub fn status(error: Option<i64>) -> u16 {
    match error {
        Some(METHOD_NOT_FOUND) => 404,
        Some(MISSING_CAPABILITY) => 400,
        _ => 200,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_its_code_and_status() {
        use Rejection::*;
        let text = |text: &str| text.to_owned();
        for (rejection, status, code, message, data) in [
            (
                MetaMissing(meta::VERSION),
                400,
                -32602,
                "missing io.modelcontextprotocol/protocolVersion in params._meta, which MCP 2026-07-28 requires",
                None,
            ),
            (
                MetaType(meta::CAPABILITIES),
                400,
                -32602,
                "io.modelcontextprotocol/clientCapabilities in params._meta has the wrong type",
                None,
            ),
            (Meta, 400, -32602, "params._meta is not an object", None),
            (Level, 400, -32602, "unknown log level in io.modelcontextprotocol/logLevel", None),
            (HeaderMismatch(text("why")), 400, -32020, "why", None),
            (
                Version(text("v\n\"")),
                400,
                -32022,
                "unsupported protocol version: v\\n\"",
                Some(r#"{"supported":["2026-07-28"],"requested":"v\n\""}"#),
            ),
            (Response, 400, -32600, "MCP 2026-07-28 has no responses of clients", None),
            (NotificationWithId, 400, -32600, "a notification must not have an id", None),
            (UnknownMethod(text("a\t")), 404, -32601, "method not found: a\\t", None),
            (Malformed(crate::jsonrpc::Malformed::Syntax), 400, -32700, "not valid JSON", None),
            (
                Malformed(crate::jsonrpc::Malformed::Batch),
                400,
                -32600,
                "batches are not supported; send one message",
                None,
            ),
        ] {
            let expected = RpcError { code, message: text(message), data: data.map(text) };
            assert_eq!((rejection.rpc(), rejection.status()), (expected, status));
        }
    }

    #[test]
    fn only_two_errors_of_a_handler_have_a_status_of_their_own() {
        for (error, expected) in [
            (None, 200),
            (Some(-32601), 404),
            (Some(-32021), 400),
            (Some(-32020), 200),
            (Some(-32022), 200),
            (Some(-32602), 200),
            (Some(-32603), 200),
            (Some(-31000), 200),
            (Some(-31002), 200),
            (Some(1), 200),
        ] {
            assert_eq!(status(error), expected, "{error:?}");
        }
        let error = missing_capability(r#"{"elicitation":{"url":{}}}"#);
        assert_eq!(
            (error.code, error.data.as_deref()),
            (-32021, Some(r#"{"requiredCapabilities":{"elicitation":{"url":{}}}}"#))
        );
        assert_eq!(status(Some(error.code)), 400);
    }
}
