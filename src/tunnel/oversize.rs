//! Messages larger than the other end of the link accepts. Such a message fails its own request;
//! the link and all other requests go on.
//!
//! Each end announces the size of the largest frame that it accepts in the first two frames of a
//! link; see [`crate::tunnel`].

use crate::{
    jsonrpc::{self, Kind, Message},
    limits::ID_BYTES,
};

/// How to handle a message that is too large.
#[derive(Debug, Eq, PartialEq)]
pub enum Oversize {
    /// It is a response: send this error response in its place.
    Response(String),
    /// It is a request: return this error response to its sender.
    Refusal(String),
    /// It is neither: drop it.
    Dropped,
}

impl Oversize {
    /// Decides how to handle `message`. `why` is the text of the error.
    pub fn of(message: &Message<'_>, why: &str) -> Self {
        let error = |id| jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, why);
        match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) => Self::Refusal(error(id)),
            // Our ends send no request with a longer id, and the error response would be too large
            // as well.
            (Kind::Response, Some(id)) if id.len() <= ID_BYTES => Self::Response(error(id)),
            _ => Self::Dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_oversized_message_fails_its_waiter() {
        let of = |text: &str| Oversize::of(&Message::read(text).unwrap(), "too large");
        let error = |id: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":"too large"}}}}"#)
        };
        assert_eq!(of(r#"{"jsonrpc":"2.0","id":"a","result":{}}"#), Oversize::Response(error("\"a\"")));
        assert_eq!(of(r#"{"jsonrpc":"2.0","id":7,"error":{}}"#), Oversize::Response(error("7")));
        assert_eq!(of(r#"{"jsonrpc":"2.0","id":7,"method":"m"}"#), Oversize::Refusal(error("7")));
        assert_eq!(of(r#"{"jsonrpc":"2.0","method":"m"}"#), Oversize::Dropped);
        assert_eq!(of(r#"{"jsonrpc":"2.0","error":{}}"#), Oversize::Dropped);
        let long = format!("\"{}\"", "x".repeat(ID_BYTES));
        assert_eq!(of(&format!(r#"{{"jsonrpc":"2.0","id":{long},"result":{{}}}}"#)), Oversize::Dropped);
        let asked = format!(r#"{{"jsonrpc":"2.0","id":{long},"method":"m"}}"#);
        assert_eq!(of(&asked), Oversize::Refusal(error(&long)));
    }
}
