//! The WebSocket upgrade (RFC 6455 4.2): checks the request and builds the response.
//!
//! Authorization happens earlier and elsewhere; this file only checks the form of the request.

use async_tungstenite::tungstenite::handshake::derive_accept_key;

use super::body::{Framing, framing};
use super::head::{Request, Version};
use super::response::Response;
use super::types::{Method, StatusCode};

/// A valid upgrade request, for [`super::conn::Conn::upgrade`].
#[derive(Clone, Debug)]
pub struct Upgrade {
    accept: String,
}

impl Upgrade {
    /// Checks an upgrade request.
    ///
    /// # Errors
    /// The response to send instead: 405 for another method; 426 for HTTP/1.0, for a request
    /// without a WebSocket upgrade, or for another WebSocket version; 400 for a bad key or for a
    /// body.
    pub fn check(request: &Request) -> Result<Self, Response> {
        if request.method() != Method::Get {
            return Err(Response::new(StatusCode::MethodNotAllowed).field("Allow", "GET"));
        }
        let asks = request.lists("upgrade", "websocket") && request.lists("connection", "upgrade");
        if !asks || request.version() != Version::Http11 {
            return Err(required("this endpoint accepts WebSocket only\n"));
        }
        if single(request, "sec-websocket-version") != Some("13") {
            return Err(required("only WebSocket version 13 is supported\n"));
        }
        if framing(request) != Ok(Framing::Length(0)) {
            return Err(
                Response::new(StatusCode::BadRequest).text("an upgrade request must not have a body\n")
            );
        }
        match single(request, "sec-websocket-key") {
            Some(key) if is_key(key) => Ok(Self { accept: derive_accept_key(key.as_bytes()) }),
            _ => Err(Response::new(StatusCode::BadRequest).text("invalid Sec-WebSocket-Key\n")),
        }
    }

    /// Builds the 101 response. It accepts no subprotocol and no extension.
    pub(super) fn response(&self) -> Response {
        Response::new(StatusCode::SwitchingProtocols)
            .field("Upgrade", "websocket")
            .field("Sec-WebSocket-Accept", &self.accept)
    }
}

/// Builds a 426 response that names the supported protocol and version (RFC 6455 4.2.2 and RFC 9110
/// 15.5.22).
fn required(why: &str) -> Response {
    Response::new(StatusCode::UpgradeRequired)
        .field("Upgrade", "websocket")
        .field("Sec-WebSocket-Version", "13")
        .text(why)
}

/// Returns the value of a field that must occur exactly once.
fn single<'a>(request: &'a Request, name: &'a str) -> Option<&'a str> {
    let mut values = request.fields(name);
    values.next().filter(|_| values.next().is_none())
}

/// Whether `key` is the base64 form of 16 bytes: 22 characters, the last of which carries two bits,
/// and padding.
fn is_key(key: &str) -> bool {
    let Some((body, "==")) = key.split_at_checked(22) else { return false };
    body.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        && body.ends_with(['A', 'Q', 'g', 'w'])
}
