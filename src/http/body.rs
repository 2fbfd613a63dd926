//! Request bodies: framing (RFC 9112 6.3) and chunked decoding (RFC 9112 7.1).
//!
//! [`framing`] decides from the head alone, and rejects anything that two parsers could read
//! differently. A body of known length needs no decoder. [`Chunked`] decodes in place, so that the
//! body is contiguous in the read buffer.

use super::Refusal;
use super::head::{Request, Version};
use super::types::StatusCode;
use crate::{limits::HttpLimits, util};

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// Chunked transfer coding.
    Chunked,
    /// A body of this many bytes; 0 also when the head has no framing field.
    Length(u64),
}

/// Decides how the body is framed.
///
/// # Errors
/// 400 for both framing fields at once, for repeated or malformed lengths (including leading
/// zeros), for repeated transfer codings, and for any transfer coding on HTTP/1.0; 501 for a coding
/// other than `chunked`.
pub fn framing(request: &Request) -> Result<Framing, Refusal> {
    let mut lengths = request.fields("content-length");
    let mut codings = request.fields("transfer-encoding");
    let (length, coding) = (lengths.next(), codings.next());
    if length.is_some() && coding.is_some() {
        return Err(Refusal::bad("both Content-Length and Transfer-Encoding"));
    }
    if lengths.next().is_some() || codings.next().is_some() {
        return Err(Refusal::bad("more than one Content-Length or Transfer-Encoding"));
    }
    match (length, coding) {
        (_, Some(_)) if request.version() == Version::Http10 => {
            Err(Refusal::bad("Transfer-Encoding on HTTP/1.0"))
        }
        (_, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (_, Some("")) => Err(Refusal::bad("empty Transfer-Encoding")),
        (_, Some(_)) => Err(Refusal::new(StatusCode::NotImplemented, "Transfer-Encoding other than chunked")),
        (Some(length), None) => Ok(Framing::Length(parse_length(length)?)),
        (None, None) => Ok(Framing::Length(0)),
    }
}

/// Parses a decimal length in its only accepted spelling.
fn parse_length(text: &str) -> Result<u64, Refusal> {
    // A number of 20 digits may still fit in 64 bits, but no body is that long; 19 digits always
    // fit.
    let length = util::parse::digits(text).filter(|_| text.len() <= DIGITS);
    length.ok_or_else(|| Refusal::bad("malformed Content-Length"))
}

/// Decoder of one chunked body.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Size of the current chunk while it is parsed, then the bytes of it still to come.
    size: u64,
    /// Data bytes in all chunks announced so far.
    total: u64,
    /// Bytes of chunk extensions so far.
    extensions: usize,
    /// Bytes of trailers so far.
    trailers: usize,
    max: u64,
    most_extensions: usize,
    most_trailers: usize,
}

/// The result of [`Chunked::decode`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decoded {
    /// Bytes of the window that were consumed: all of them unless `done`.
    pub taken: usize,
    /// Decoded bytes, moved to the front of the window.
    pub data: usize,
    /// The body is complete.
    pub done: bool,
}

/// The state of the decoder: the element that the next byte belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// A chunk size with this many digits so far.
    Size(usize),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The start of a trailer line, or of the blank line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

impl Chunked {
    /// Creates a decoder for one body.
    pub fn new(limits: &HttpLimits) -> Self {
        Self {
            state: State::Size(0),
            size: 0,
            total: 0,
            extensions: 0,
            trailers: 0,
            max: limits.body_bytes as u64,
            most_extensions: limits.chunk_extension_bytes,
            most_trailers: limits.trailer_bytes,
        }
    }

    /// Decodes new bytes in place. Consumes all of them until the body is complete.
    ///
    /// # Errors
    /// 400 for malformed input; 413 as soon as the announced chunks exceed the body limit.
    pub fn decode(&mut self, window: &mut [u8]) -> Result<Decoded, Refusal> {
        let (mut taken, mut data) = (0, 0);
        while self.state != State::Done {
            let Some(&byte) = window.get(taken) else { break };
            if self.state == State::Data {
                let have = window.len() - taken;
                let count = usize::try_from(self.size).map_or(have, |size| size.min(have));
                window.copy_within(taken..taken + count, data);
                taken += count;
                data += count;
                self.size -= count as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(byte)?;
            taken += 1;
        }
        Ok(Decoded { taken, data, done: self.state == State::Done })
    }

    /// Processes one byte that is not data.
    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match (self.state, byte) {
            (State::Size(digits), _) => self.size_byte(digits, byte),
            (State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.extensions += 1;
                if self.extensions > self.most_extensions {
                    return Err(Refusal::bad("chunk extensions too long"));
                }
                Ok(State::Extension)
            }
            (State::Extension, _) => Err(Refusal::bad("invalid byte in a chunk extension")),
            (State::SizeLf, b'\n') => self.size_end(),
            (State::SizeLf, _) => Err(Refusal::bad("bare CR in a chunk size line")),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => {
                self.size = 0;
                Ok(State::Size(0))
            }
            (State::DataCr | State::DataLf | State::Data, _) => {
                Err(Refusal::bad("chunk data not followed by CRLF"))
            }
            (State::LastLf, b'\n') => Ok(State::Done),
            (State::LastLf | State::Done, _) => Err(Refusal::bad("bare CR after the last chunk")),
            (state, _) => self.trailer_byte(state, byte),
        }
    }

    fn size_byte(&mut self, digits: usize, byte: u8) -> Result<State, Refusal> {
        match byte {
            b'\r' if digits > 0 => Ok(State::SizeLf),
            b';' if digits > 0 => {
                self.state = State::Extension;
                self.step(byte)
            }
            _ => match char::from(byte).to_digit(16) {
                Some(digit) if digits < HEX_DIGITS => {
                    self.size = self.size << 4 | u64::from(digit);
                    Ok(State::Size(digits + 1))
                }
                _ => Err(Refusal::bad("malformed chunk size")),
            },
        }
    }

    fn size_end(&mut self) -> Result<State, Refusal> {
        if self.size == 0 {
            return Ok(State::Trailer);
        }
        self.total = self.total.saturating_add(self.size);
        if self.total > self.max {
            return Err(too_large());
        }
        Ok(State::Data)
    }

    /// Checks the syntax of trailers. They are discarded.
    fn trailer_byte(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        if state == State::Trailer && byte == b'\r' {
            return Ok(State::LastLf);
        }
        self.trailers += 1;
        if self.trailers > self.most_trailers {
            return Err(Refusal::bad("trailers too long"));
        }
        match (state, byte) {
            (State::Trailer | State::TrailerName, _) if is_token(byte) => Ok(State::TrailerName),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::Trailer),
            _ => Err(Refusal::bad("malformed trailer")),
        }
    }
}

/// Builds the refusal of a body above the limit.
pub(super) fn too_large() -> Refusal {
    Refusal::new(StatusCode::PayloadTooLarge, "the request body is too large (--max-message-bytes)")
}

/// Builds the refusal of a body for which the memory budget has no room at present.
pub(super) fn no_memory() -> Refusal {
    Refusal::new(StatusCode::PayloadTooLarge, "the memory budget (--max-memory) is used up")
}

/// Whether a byte may occur in a token, such as a field name (RFC 9110 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The largest number of decimal digits that always fits in 64 bits.
const DIGITS: usize = 19;

/// A number of hexadecimal digits of a chunk size that always fits in 64 bits.
const HEX_DIGITS: usize = 16;
