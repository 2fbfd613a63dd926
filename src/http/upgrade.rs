//! The WebSocket upgrade of a request (RFC 6455 4.2): its check and its answer.
//!
//! Who may upgrade is decided elsewhere and before: this file looks at the form only.

use async_tungstenite::tungstenite::handshake::derive_accept_key;

use super::body::{Framing, framing};
use super::head::{Request, Version};
use super::response::Response;
use super::types::{Method, StatusCode};

/// A request that may become a WebSocket; [`super::conn::Conn::upgrade`] takes it.
#[derive(Clone, Debug)]
pub struct Upgrade {
    accept: String,
}

impl Upgrade {
    /// Checks a request.
    ///
    /// # Errors
    /// The answer to give instead: 405 for another method, 426 for a request that asks for no WebSocket or for
    /// another version of it, 400 for a bad key or for a body.
    pub fn check(request: &Request) -> Result<Self, Response> {
        if request.method() != Method::Get {
            return Err(Response::new(StatusCode::MethodNotAllowed).field("Allow", "GET"));
        }
        let asks = request.lists("upgrade", "websocket") && request.lists("connection", "upgrade");
        if !asks || request.version() != Version::Http11 {
            return Err(required("this address speaks WebSocket only\n"));
        }
        if single(request, "sec-websocket-version") != Some("13") {
            return Err(required("only version 13 of WebSocket is spoken\n"));
        }
        if framing(request) != Ok(Framing::Length(0)) {
            return Err(Response::new(StatusCode::BadRequest).text("an upgrade request has no body\n"));
        }
        match single(request, "sec-websocket-key") {
            Some(key) if is_key(key) => Ok(Self { accept: derive_accept_key(key.as_bytes()) }),
            _ => Err(Response::new(StatusCode::BadRequest).text("bad Sec-WebSocket-Key\n")),
        }
    }

    /// The 101 answer. No subprotocol and no extension is agreed.
    pub(super) fn response(&self) -> Response {
        Response::new(StatusCode::SwitchingProtocols)
            .field("Upgrade", "websocket")
            .field("Sec-WebSocket-Accept", &self.accept)
    }
}

/// RFC 6455 4.2.2 and RFC 9110 15.5.22: what we would have spoken.
fn required(why: &str) -> Response {
    Response::new(StatusCode::UpgradeRequired)
        .field("Upgrade", "websocket")
        .field("Sec-WebSocket-Version", "13")
        .text(why)
}

/// The value of a field that may stand only once.
fn single<'a>(request: &'a Request, name: &'a str) -> Option<&'a str> {
    let mut values = request.fields(name);
    values.next().filter(|_| values.next().is_none())
}

/// Whether this is the base64 form of 16 bytes: 22 characters, of which the last carries two bits, and padding.
fn is_key(key: &str) -> bool {
    let Some((body, "==")) = key.split_at_checked(22) else { return false };
    body.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        && body.ends_with(['A', 'Q', 'g', 'w'])
}
