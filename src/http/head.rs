//! The request head: finds its end ([`Scan`]) and parses it ([`parse`]).
//!
//! [`Scan`] examines each byte once, however small the reads are, and checks line ends and
//! characters in byte order, so the result does not depend on how the bytes were split into reads.
//! [`parse`] then parses the whole head with `httparse` and adds the checks that `httparse` lacks.
//! Body framing is in [`super::body`].

use std::borrow::Cow;
use std::fmt;
use std::mem::MaybeUninit;

use super::Refusal;
use super::types::{Method, StatusCode};
use crate::{
    limits::{HTTP_FIELDS, HttpLimits},
    util::authority,
};

/// Finds the end of a head. Pass all bytes of the connection from the first byte of the head, and
/// more of them with each call; it remembers how far it has searched.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Number of bytes examined.
    seen: usize,
    /// Offset at which the current line began.
    line: usize,
    /// Number of complete lines, not counting a leading blank one.
    lines: usize,
    /// Length of a leading blank line in bytes: 0 or 2.
    blank: usize,
    /// The last byte was a CR.
    cr: bool,
    /// The request line has a space, so if it is too long, the target is.
    space: bool,
}

/// The range of a complete head in the bytes given to [`Scan::search`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FoundHead {
    /// Offset of the first byte, after a leading blank line.
    pub start: usize,
    /// Offset after the blank line that ends the head.
    pub end: usize,
}

impl Scan {
    /// Examines the bytes that are new since the last call. `None` if the head is not complete.
    ///
    /// # Errors
    /// 400 for a bare LF, a bare CR, a control character or a second leading blank line; 431 for
    /// too many lines or bytes; 414 if the request line alone is too long (RFC 9112 2.2, 3).
    pub fn search(&mut self, bytes: &[u8], limits: &HttpLimits) -> Result<Option<FoundHead>, Refusal> {
        loop {
            let max = self.blank.saturating_add(limits.head_bytes);
            let window = bytes.get(self.seen..bytes.len().min(max)).unwrap_or_default();
            let plain = if self.cr { 0 } else { self.skip_plain(window) };
            let Some(&byte) = window.get(plain) else {
                return if self.seen < max { Ok(None) } else { Err(self.too_long()) };
            };
            self.seen += 1;
            match (self.cr, byte) {
                (false, b'\r') => self.cr = true,
                (true, b'\n') => {
                    if let Some(end) = self.end_line(limits)? {
                        return Ok(Some(FoundHead { start: self.blank, end }));
                    }
                }
                (true, _) => return Err(Refusal::bad("bare CR in the head")),
                (false, b'\n') => return Err(Refusal::bad("bare LF in the head")),
                (false, _) => return Err(Refusal::bad("control character in the head")),
            }
        }
    }

    /// Whether a byte of the request line has arrived. A leading blank line alone does not begin a
    /// request.
    pub fn has_begun(&self) -> bool {
        // A lone CR may be the start of that blank line.
        self.lines > 0 || self.seen - self.line > usize::from(self.cr)
    }

    /// Skips bytes that are allowed anywhere in a line and returns their number.
    fn skip_plain(&mut self, window: &[u8]) -> usize {
        let mut count = 0;
        while let Some(eight) = window.get(count..).and_then(<[u8]>::first_chunk) {
            if may_hold_control(*eight) {
                break;
            }
            count += 8;
        }
        let rest = window.get(count..).unwrap_or_default();
        count += rest.iter().position(|&byte| is_control(byte)).unwrap_or(rest.len());
        if self.lines == 0 && !self.space {
            self.space = window.get(..count).is_some_and(|passed| passed.contains(&b' '));
        }
        self.seen += count;
        count
    }

    /// Handles a line that ended just before `seen`. Returns the end of the head if the line was
    /// blank.
    fn end_line(&mut self, limits: &HttpLimits) -> Result<Option<usize>, Refusal> {
        let length = self.seen - self.line;
        self.cr = false;
        self.line = self.seen;
        if length == CRLF.len() {
            if self.lines > 0 {
                return Ok(Some(self.seen));
            }
            if self.blank > 0 {
                return Err(Refusal::bad("more than one blank line before the request"));
            }
            self.blank = self.seen;
            return Ok(None);
        }
        self.lines += 1;
        if self.lines > 1 + limits.fields.min(HTTP_FIELDS) {
            return Err(Refusal::new(StatusCode::RequestHeaderFieldsTooLarge, "too many header fields"));
        }
        Ok(None)
    }

    fn too_long(&self) -> Refusal {
        if self.lines == 0 && self.space {
            return Refusal::new(StatusCode::UriTooLong, "request target too long");
        }
        Refusal::new(StatusCode::RequestHeaderFieldsTooLarge, "request head too long")
    }
}

/// The supported HTTP versions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// The byte range of a piece of text in the head.
#[derive(Clone, Copy, Default)]
struct HeadSpan {
    start: u32,
    end: u32,
}

/// One header field.
#[derive(Clone, Copy)]
struct Field {
    name: HeadSpan,
    value: HeadSpan,
}

/// A request head: a copy of its text, and the ranges of its parts. `Debug` omits the fields, since
/// they carry credentials.
#[derive(Clone)]
pub struct Request {
    text: Box<str>,
    fields: Box<[Field]>,
    method: Method,
    version: Version,
    target: HeadSpan,
    path: HeadSpan,
    query: Option<HeadSpan>,
    host: Option<HeadSpan>,
}

impl Request {
    /// Returns the method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Returns the HTTP version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the request target as it was sent.
    pub fn target(&self) -> &str {
        self.slice(self.target)
    }

    /// Returns the path as it was sent, without the query. It is not percent-decoded and dot
    /// segments are kept, so a route matches only its exact spelling. `*` for `OPTIONS *`.
    pub fn path(&self) -> &str {
        match self.slice(self.path) {
            "" => "/",
            path => path,
        }
    }

    /// Returns the first value of a query parameter, percent-decoded, with `+` as a space. `None`
    /// also if the decoded value is not UTF-8.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let query = self.slice(self.query?);
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decode(key)?.as_ref() == name { decode(value) } else { None }
        })
    }

    /// Returns the host and optional port of an absolute target, otherwise of the `Host` field. The
    /// form was checked: a name, an IPv4 address or a bracketed IPv6 address. Always present on
    /// HTTP/1.1.
    pub fn host(&self) -> Option<&str> {
        self.host.map(|span| self.slice(span))
    }

    /// Returns the first field of that name, case-insensitively.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).next()
    }

    /// Returns all fields of that name, case-insensitively, in the order of the head.
    pub fn fields<'a>(&'a self, name: &str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.fields
            .iter()
            // The cheap length comparison rules out most names.
            .filter(move |field| (field.name.end - field.name.start) as usize == name.len())
            .filter(move |field| self.slice(field.name).eq_ignore_ascii_case(name))
            .map(|field| self.slice(field.value))
    }

    /// Whether a field that is a comma-separated list has this member, case-insensitively.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.fields(name)
            .flat_map(|value| value.split(','))
            .any(|item| trim(item).eq_ignore_ascii_case(member))
    }

    fn slice(&self, span: HeadSpan) -> &str {
        self.text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// Splits the target into host, path and query (RFC 9112 3.2).
    fn split_target(&mut self) -> Result<(), Refusal> {
        let target = self.slice(self.target);
        if !target.is_ascii() || target.contains('#') {
            return Err(Refusal::bad("invalid character in the request target"));
        }
        let length = target.len();
        let (host, path) = match target.as_bytes() {
            [b'/', ..] => (None, 0),
            b"*" if self.method == Method::Options => (None, 0),
            _ => {
                let host = absolute_host(target).ok_or(Refusal::bad("invalid request target"))?;
                (Some(host), host.1)
            }
        };
        let query = target.get(path..).and_then(|rest| rest.find('?')).map(|position| path + position);
        let within = |from: usize, to: usize| HeadSpan {
            start: self.target.start + from as u32,
            end: self.target.start + to as u32,
        };
        let (path, query) = (within(path, query.unwrap_or(length)), query.map(|at| within(at + 1, length)));
        let host = host.map(|(from, to)| within(from, to));
        self.path = path;
        self.query = query;
        self.host = host;
        Ok(())
    }

    /// Checks `Host`: exactly one on HTTP/1.1, at most one on HTTP/1.0, of valid form (RFC 9112
    /// 3.2).
    fn check_host(&mut self) -> Result<(), Refusal> {
        let mut hosts =
            self.fields.iter().filter(|field| self.slice(field.name).eq_ignore_ascii_case("host"));
        let host = hosts.next().map(|field| field.value);
        if hosts.next().is_some() {
            return Err(Refusal::bad("more than one Host"));
        }
        if host.is_none() && self.version == Version::Http11 {
            return Err(Refusal::bad("missing Host"));
        }
        if host.is_some_and(|span| !is_authority(self.slice(span))) {
            return Err(Refusal::bad("invalid Host"));
        }
        // RFC 9112 3.2.2: the authority of an absolute target takes precedence.
        match self.host {
            Some(span) if !is_authority(self.slice(span)) => Err(Refusal::bad("invalid request target")),
            Some(_) => Ok(()),
            None => {
                self.host = host;
                Ok(())
            }
        }
    }

    /// Rejects fields that other parsers may take for a security-relevant field although we do not,
    /// or the reverse.
    fn check_disguises(&self) -> Result<(), Refusal> {
        for field in &self.fields {
            let name = self.slice(field.name);
            if name.contains('_') && TWINS.iter().any(|twin| is_twin(name, twin)) {
                return Err(Refusal::bad("field name with an underscore that resembles another field"));
            }
            // Parsers disagree about a tab around this value, and no client needs one.
            let line = || self.text.get(field.name.end as usize..)?.split('\r').next();
            if name.eq_ignore_ascii_case("transfer-encoding")
                && line().is_some_and(|line| line.contains('\t'))
            {
                return Err(Refusal::bad("tab in Transfer-Encoding"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.method, self.path(), self.version)
    }
}

/// Parses a whole head as found by [`Scan`]: from its first byte to the end of its blank line.
///
/// # Errors
/// 400 for a malformed head (RFC 9112 2.2, 3, 5), including a name that is not a token, a folded
/// line, a space before a colon, a head that is not UTF-8, and a bad or missing `Host`; 414 for a
/// target that is too long; 431 for too many fields; 501 for CONNECT or an unknown method; 505 for
/// another version.
pub fn parse(head: &[u8], limits: &HttpLimits) -> Result<Request, Refusal> {
    let text = std::str::from_utf8(head).map_err(|_| Refusal::bad("the head is not UTF-8"))?;
    let mut room = [const { MaybeUninit::uninit() }; HTTP_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut room) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::bad("malformed head")),
        Err(error) => return Err(refuse(error, text)),
    }
    if parsed.headers.len() > limits.fields {
        return Err(refuse(httparse::Error::TooManyHeaders, text));
    }
    let method = method(parsed.method.unwrap_or_default())?;
    let target = parsed.path.unwrap_or_default();
    if target.len() > limits.target_bytes {
        return Err(Refusal::new(StatusCode::UriTooLong, "request target too long"));
    }
    let fields = parsed.headers.iter();
    let fields =
        fields.map(|field| Field { name: span(head, field.name.as_bytes()), value: span(head, field.value) });
    let mut request = Request {
        fields: fields.collect(),
        method,
        version: if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 },
        target: span(head, target.as_bytes()),
        path: HeadSpan::default(),
        query: None,
        host: None,
        text: text.into(),
    };
    request.split_target()?;
    request.check_host()?;
    request.check_disguises()?;
    Ok(request)
}

/// Maps a parser error to a refusal. Distinguishes a well-formed but unsupported version from a
/// malformed request line.
fn refuse(error: httparse::Error, text: &str) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => {
            Refusal::new(StatusCode::RequestHeaderFieldsTooLarge, "too many header fields")
        }
        httparse::Error::Version => {
            let line = text.split("\r\n").next().unwrap_or_default();
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            match words[..] {
                [_, _, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']] => Refusal::new(
                    StatusCode::HttpVersionNotSupported,
                    "only HTTP/1.0 and HTTP/1.1 are supported",
                ),
                _ => Refusal::bad("malformed request line"),
            }
        }
        httparse::Error::HeaderName => Refusal::bad("malformed field name"),
        httparse::Error::HeaderValue => Refusal::bad("malformed field value"),
        _ => Refusal::bad("malformed request line"),
    }
}

/// Parses a method. Methods are case-sensitive (RFC 9110 9.1). CONNECT is not supported.
fn method(name: &str) -> Result<Method, Refusal> {
    // The common methods avoid the copy that the lookup makes.
    let method = match name {
        "GET" => Some(Method::Get),
        "POST" => Some(Method::Post),
        "DELETE" => Some(Method::Delete),
        "OPTIONS" => Some(Method::Options),
        "CONNECT" => None,
        _ => name.parse().ok().filter(|method: &Method| method.as_ref() == name),
    };
    method.ok_or(Refusal::new(StatusCode::NotImplemented, "unknown method"))
}

/// Returns the range of a slice within the head that it is part of.
fn span(head: &[u8], piece: &[u8]) -> HeadSpan {
    let start = (piece.as_ptr() as usize).saturating_sub(head.as_ptr() as usize);
    HeadSpan { start: start as u32, end: (start + piece.len()) as u32 }
}

/// Returns the range of the authority in an absolute `http` or `https` target.
fn absolute_host(target: &str) -> Option<(usize, usize)> {
    let (scheme, rest) = target.split_once("://")?;
    if !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")) {
        return None;
    }
    let start = target.len() - rest.len();
    let length = rest.find(['/', '?']).unwrap_or(rest.len());
    Some((start, start + length))
}

/// Whether the text is `host` or `host:port`, without user information and with valid characters
/// only.
fn is_authority(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok();
    authority::parse(text).is_some_and(|authority| authority.port.is_none_or(port))
}

/// Whether a name equals `plain` once `_` and `-` are removed and case is ignored.
fn is_twin(name: &str, plain: &[u8]) -> bool {
    let letters = name.bytes().filter(|byte| !matches!(byte, b'_' | b'-'));
    letters.map(|byte| byte.to_ascii_lowercase()).eq(plain.iter().copied())
}

/// Percent-decodes a text. An invalid escape stays as it is. `None` if the result is not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'+', _) => out.push(b' '),
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                rest = tail;
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// The value of a hexadecimal digit; 0 for anything else.
fn hex(digit: u8) -> u8 {
    char::from(digit).to_digit(16).unwrap_or_default() as u8
}

/// Removes optional whitespace, which is space and tab only (RFC 9110 5.6.3).
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Whether a byte is not allowed inside a line. A tab is allowed.
fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Returns false only if none of the eight bytes is a control character. May return true for a tab.
fn may_hold_control(eight: [u8; 8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let word = u64::from_ne_bytes(eight);
    let below = word.wrapping_sub(ONES.wrapping_mul(u64::from(b' '))) & !word;
    let deleted = word ^ ONES.wrapping_mul(0x7f);
    ((below | (deleted.wrapping_sub(ONES) & !deleted)) & HIGHS) != 0
}

/// The only accepted line end.
const CRLF: &[u8] = b"\r\n";

/// Fields whose lookalikes with underscores are rejected; listed without hyphens.
const TWINS: [&[u8]; 3] = [b"contentlength", b"transferencoding", b"host"];
