//! Responses, and the only writer of header bytes.
//!
//! A [`Response`] stores its fields as the bytes to send. They are sanitized when they are added,
//! so a field can never contain CR, LF or NUL. Callers cannot set the framing fields; they are
//! written here, according to what [`super::conn`] decides about the connection.

use super::Refusal;
use super::date::Date;
use super::types::StatusCode;

/// A response: status, fields and a complete body, or the head of an event stream.
#[derive(Clone, Debug)]
pub struct Response {
    status: StatusCode,
    /// Lines of the form `name: value`, each with its CRLF.
    fields: Vec<u8>,
    body: Vec<u8>,
}

impl Response {
    /// Creates a response without fields and body.
    pub fn new(status: StatusCode) -> Self {
        Self { status, fields: Vec::new(), body: Vec::new() }
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Adds a field. Control characters in the value become spaces (RFC 9110 5.5). A field is
    /// dropped if its name is not a token, or if this module writes it (`Content-Length`,
    /// `Transfer-Encoding`, `Connection`, `Date`).
    pub fn field(mut self, name: &str, value: &str) -> Self {
        let token = !name.is_empty() && name.bytes().all(super::body::is_token);
        if !token || OWN.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return self;
        }
        let start = self.fields.len();
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        self.fields.extend(value.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
        debug_assert!(self.fields.iter().skip(start).all(|byte| !byte.is_ascii_control()));
        self.fields.extend_from_slice(b"\r\n");
        self
    }

    /// Returns the first field of that name, case-insensitively, as it will be sent.
    pub fn get(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(&self.fields).ok()?.split("\r\n").find_map(|line| {
            let (own, value) = line.split_once(": ")?;
            own.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Sets a JSON body.
    pub fn json(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.with_body("application/json", bytes.into())
    }

    /// Sets a plain-text body.
    pub fn text(self, text: &str) -> Self {
        self.with_body("text/plain; charset=utf-8", text.into())
    }

    /// Sets a body of any type. Call at most one of the body methods, and only once: a second call
    /// adds a second `Content-Type`.
    pub fn with_body(self, content_type: &str, bytes: Vec<u8>) -> Self {
        let mut response = self.field("Content-Type", content_type);
        response.body = bytes;
        response
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let mut reason = String::from(refusal.reason);
        reason.push('\n');
        Self::new(refusal.status).text(&reason)
    }
}

/// Writes a complete response. `close` adds `Connection: close`. `head_only` (the request was a
/// HEAD) omits the body but keeps its length (RFC 9110 9.3.2). Without a date there is no `Date`
/// field, as for a server without a clock (RFC 9110 6.6.1).
pub fn whole(response: &Response, date: Option<Date>, close: bool, head_only: bool, out: &mut Vec<u8>) {
    out.reserve(OWN_FIELDS + response.fields.len() + response.body.len());
    head(response, date, close, out);
    if !has_body(response.status) {
        out.extend_from_slice(b"\r\n");
        return;
    }
    out.extend_from_slice(b"Content-Length: ");
    number(response.body.len(), 10, out);
    out.extend_from_slice(b"\r\n\r\n");
    if !head_only {
        out.extend_from_slice(&response.body);
    }
}

/// Writes the head of a response whose body follows in pieces: in chunks, or up to the end of the
/// connection for a peer that does not support chunks.
pub fn stream_head(response: &Response, date: Option<Date>, close: bool, chunked: bool, out: &mut Vec<u8>) {
    head(response, date, close || !chunked, out);
    if chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes one chunk. Writes nothing for empty `bytes`, since an empty chunk ends the body.
pub fn chunk(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    number(bytes.len(), 16, out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body.
pub fn last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Writes the interim response that asks for the body (RFC 9110 10.1.1).
pub fn write_continue(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Writes the status line, the caller's fields, `Date` and `Connection`.
fn head(response: &Response, date: Option<Date>, close: bool, out: &mut Vec<u8>) {
    let status = response.status;
    out.extend_from_slice(b"HTTP/1.1 ");
    number(usize::from(u16::from(status)), 10, out);
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&response.fields);
    if let Some(date) = date {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(date.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // RFC 9110 7.8: a sender of `Upgrade` must also name it in `Connection`.
    let upgrade = matches!(status, StatusCode::SwitchingProtocols | StatusCode::UpgradeRequired);
    let options: &[u8] = match (upgrade, close) {
        (true, true) => b"Connection: upgrade, close\r\n",
        (true, false) => b"Connection: upgrade\r\n",
        (false, true) => b"Connection: close\r\n",
        (false, false) => b"",
    };
    out.extend_from_slice(options);
}

/// Whether a response with this status has a body (RFC 9110 6.4.1).
fn has_body(status: StatusCode) -> bool {
    !(status.is_informational() || matches!(status, StatusCode::NoContent | StatusCode::NotModified))
}

/// Writes a number in a base of up to 16.
fn number(mut value: usize, base: usize, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        out.push(DIGITS.get(value % base).copied().unwrap_or_default());
        value /= base;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// Upper bound for the bytes of the status line and the fields that this file writes.
const OWN_FIELDS: usize = 200;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Fields that only this file writes.
const OWN: [&str; 4] = ["content-length", "transfer-encoding", "connection", "date"];

#[cfg(test)]
mod tests {
    use super::{Date, Response, chunk, last_chunk, stream_head, whole};
    use crate::http::types::StatusCode;

    #[track_caller]
    fn check(response: Response, close: bool, head_only: bool, expected: &str) {
        let mut out = Vec::new();
        whole(&response, None, close, head_only, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn whole_answers() {
        let ok = Response::new(StatusCode::Ok).field("X", "y").json("{}");
        let head = "HTTP/1.1 200 OK\r\nX: y\r\nContent-Type: application/json\r\n";
        check(ok.clone(), false, false, &format!("{head}Content-Length: 2\r\n\r\n{{}}"));
        check(ok.clone(), true, false, &format!("{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}"));
        check(ok, false, true, &format!("{head}Content-Length: 2\r\n\r\n"));
        check(Response::new(StatusCode::NoContent), false, false, "HTTP/1.1 204 No Content\r\n\r\n");
        check(
            Response::new(StatusCode::Accepted),
            false,
            false,
            "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
        );
    }

    #[test]
    fn every_response_head_has_a_date() {
        let date = Some(Date::at(784_111_777));
        let ok = Response::new(StatusCode::Ok).field("Date", "yesterday").field("X", "y");
        let mut out = Vec::new();
        whole(&ok, date, false, false, &mut out);
        let expected =
            "HTTP/1.1 200 OK\r\nX: y\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out), Ok(expected));
        let mut out = Vec::new();
        whole(&Response::new(StatusCode::SwitchingProtocols), date, false, false, &mut out);
        let expected = "HTTP/1.1 101 Switching Protocols\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out), Ok(expected));
    }

    #[test]
    fn streams() {
        let head = Response::new(StatusCode::Ok).field("Content-Type", "text/event-stream");
        let mut out = Vec::new();
        stream_head(&head, None, false, true, &mut out);
        chunk(b"", &mut out);
        chunk(&[b'x'; 26], &mut out);
        last_chunk(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("chunked\r\n\r\n1a\r\nxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n"), "{text}");
        let mut out = Vec::new();
        stream_head(&head, Some(Date::at(784_111_777)), false, false, &mut out);
        assert!(out.ends_with(b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: close\r\n\r\n"));
    }

    /// A field stays a single field, whatever its name and value contain.
    #[test]
    fn field_values_cannot_add_fields() {
        let mut seed = 1_u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        let nasty = ['\r', '\n', '\0', ' ', ':', 'a', '\u{85}', 'é', '\t', '\u{7f}'];
        for _ in 0..20_000 {
            let mut text =
                || -> String { (0..byte() % 12).map(|_| nasty[usize::from(byte()) % nasty.len()]).collect() };
            let (name, value) = (text(), text());
            let mut out = Vec::new();
            whole(
                &Response::new(StatusCode::Ok).field(&name, &value).field("Last", "x"),
                None,
                false,
                false,
                &mut out,
            );
            let text = String::from_utf8(out).unwrap();
            assert!(!text.contains('\0'));
            let lines: Vec<&str> = text.split("\r\n").collect();
            let own = if lines.len() == 6 { 1 } else { 0 };
            assert_eq!(lines.len(), 5 + own, "{name:?}: {value:?}");
            assert!(lines.iter().all(|line| !line.contains(['\r', '\n'])), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn callers_cannot_set_framing_fields() {
        let response = Response::new(StatusCode::Ok)
            .field("content-length", "7")
            .field("Transfer-Encoding", "x")
            .field("CONNECTION", "close")
            .field("Date", "x")
            .field("bad name", "x")
            .field("", "x");
        check(response, false, false, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn fields_can_be_read_back() {
        let response = Response::new(StatusCode::Ok).field("Mcp-Session-Id", "a: b");
        assert_eq!(response.get("mcp-session-id"), Some("a: b"));
        assert_eq!(response.get("x"), None);
    }
}
