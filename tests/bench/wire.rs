//! One connection of the load generator: HTTP over TCP or TLS, read incrementally, with responses
//! parsed in place.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use futures_rustls::{
    pki_types::ServerName,
    rustls::{ClientConfig, ClientConnection},
};

use crate::Outcome;

/// Timeout of every operation.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum bytes per read.
const READ: usize = 256 << 10;
/// Number of bytes at either end of a message that are searched for its id.
const ENDS: usize = 200;

/// Returns the first position of a pattern.
pub fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

/// Returns the position of a message's id: most programs write it near the front, others near the
/// end.
pub fn id_span(message: &[u8]) -> Option<Range<usize>> {
    const KEY: &[u8] = b"\"id\":";
    let front = &message[..message.len().min(ENDS)];
    let place = find(front, KEY).or_else(|| {
        let skipped = message.len().saturating_sub(ENDS);
        find(&message[skipped..], KEY).map(|place| skipped + place)
    })?;
    let rest = &message[place + KEY.len()..];
    let start = place + KEY.len() + rest.iter().take_while(|byte| **byte == b' ').count();
    let length = message[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (length > 0).then_some(start..start + length)
}

/// Returns the id of a message.
pub fn id_of(message: &[u8]) -> Option<u64> {
    std::str::from_utf8(&message[id_span(message)?]).ok()?.parse().ok()
}

/// The parts of a response head that are used here.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub status: u16,
    pub session: Option<String>,
    /// The connection closes after this response.
    pub close: bool,
    /// The body is an event stream.
    pub events: bool,
    length: Option<usize>,
    chunked: bool,
}

/// A connection.
pub struct Wire {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    input: Vec<u8>,
    start: usize,
    /// Head of the response being received.
    head: Option<Head>,
    /// Decoded body of a chunked response; kept until the next response begins.
    decoded: Vec<u8>,
    ended: bool,
    scratch: Vec<u8>,
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire {
    /// Connects. Later reads continue the TLS handshake.
    pub fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Outcome<Self> {
        let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let mut wire = Self {
            socket,
            tls: None,
            input: Vec::new(),
            start: 0,
            head: None,
            decoded: Vec::new(),
            ended: false,
            scratch: vec![0; READ],
        };
        if let Some(config) = tls {
            let name = ServerName::try_from("localhost")?;
            wire.tls = Some(Box::new(ClientConnection::new(config.clone(), name)?));
            wire.push()?;
        }
        Ok(wire)
    }

    /// Whether the TLS handshake, if any, is complete.
    pub fn is_ready(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Sends all bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        match &mut self.tls {
            None => self.socket.write_all(bytes)?,
            Some(tls) => {
                tls.writer().write_all(bytes)?;
                self.push()?;
            }
        }
        Ok(())
    }

    /// Writes the pending output of the TLS session.
    fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads once; blocks if there is no input. Returns false at the end of the connection.
    pub fn fill(&mut self) -> Outcome<bool> {
        if self.start > 0 && self.start == self.input.len() {
            self.input.clear();
            self.start = 0;
        }
        let Some(tls) = &mut self.tls else {
            let count = match self.socket.read(&mut self.scratch) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                other => other?,
            };
            self.input.extend_from_slice(&self.scratch[..count]);
            self.ended = count == 0;
            return Ok(count > 0);
        };
        let count = tls.read_tls(&mut self.socket)?;
        let state = tls.process_new_packets()?;
        let plain = state.plaintext_bytes_to_read();
        let old = self.input.len();
        self.input.resize(old + plain, 0);
        tls.reader().read_exact(&mut self.input[old..])?;
        self.push()?;
        self.ended = count == 0;
        Ok(count > 0)
    }

    /// Returns the head of the next response, if it is complete.
    pub fn head(&mut self) -> Outcome<Option<&Head>> {
        if self.head.is_none() {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut answer = httparse::Response::new(&mut fields);
            let httparse::Status::Complete(length) = answer.parse(&self.input[self.start..])? else {
                return Ok(None);
            };
            let mut head = Head { status: answer.code.unwrap_or(0), ..Head::default() };
            for field in answer.headers.iter() {
                let value = std::str::from_utf8(field.value)?.trim();
                match field.name.to_ascii_lowercase().as_str() {
                    "content-length" => head.length = Some(value.parse()?),
                    "transfer-encoding" => head.chunked = true,
                    "connection" => head.close = value.eq_ignore_ascii_case("close"),
                    "content-type" => head.events = value.starts_with("text/event-stream"),
                    "mcp-session-id" => head.session = Some(value.to_owned()),
                    _ => {}
                }
            }
            if matches!(head.status, 204 | 304) {
                head.length = Some(0);
            }
            self.start += length;
            self.decoded.clear();
            self.head = Some(head);
        }
        Ok(self.head.as_ref())
    }

    /// Returns the next response, if it is complete: its head, and its body, which is valid until
    /// the next read.
    pub fn answer(&mut self) -> Outcome<Option<(Head, &[u8])>> {
        let Some(head) = self.head()?.cloned() else { return Ok(None) };
        if head.chunked {
            if !self.chunks()? {
                return Ok(None);
            }
            self.head = None;
            return Ok(Some((head, &self.decoded)));
        }
        let length = match head.length {
            Some(length) => length,
            None if self.ended => self.input.len() - self.start,
            None => return Ok(None),
        };
        let body = self.start..self.start + length;
        if self.input.len() < body.end {
            return Ok(None);
        }
        self.start = body.end;
        self.head = None;
        Ok(Some((head, &self.input[body])))
    }

    /// Decodes the received chunks of a body. Returns true when it is complete.
    fn chunks(&mut self) -> Outcome<bool> {
        loop {
            let rest = &self.input[self.start..];
            let Some(end) = find(&rest[..rest.len().min(64)], b"\r\n") else { return Ok(false) };
            let digits = std::str::from_utf8(&rest[..end])?.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(digits.trim(), 16)?;
            if rest.len() < end + 2 + size + 2 {
                return Ok(false);
            }
            self.decoded.extend_from_slice(&rest[end + 2..end + 2 + size]);
            self.start += end + 2 + size + 2;
            if size == 0 {
                return Ok(true);
            }
        }
    }

    /// Returns the received part of an endless body: an event stream.
    pub fn streamed(&mut self) -> Outcome<Vec<u8>> {
        let chunked = self.head()?.is_some_and(|head| head.chunked);
        if chunked {
            if self.chunks()? {
                return Err("an event stream has ended".into());
            }
            let taken = std::mem::take(&mut self.decoded);
            self.input.drain(..self.start);
            self.start = 0;
            return Ok(taken);
        }
        let taken = self.input.split_off(self.start);
        self.input.clear();
        self.start = 0;
        Ok(taken)
    }

    /// Reads until a response is complete.
    pub fn wait_answer(&mut self) -> Outcome<(Head, Vec<u8>)> {
        loop {
            if let Some((head, body)) = self.answer()? {
                return Ok((head, body.to_vec()));
            }
            if !self.fill()? && self.answer()?.is_none() {
                return Err("the connection ended before its answer".into());
            }
        }
    }
}

/// Parses an event stream.
#[derive(Default)]
pub struct Events {
    buffer: Vec<u8>,
    searched: usize,
}

/// One event: its name (empty if it has none) and its data.
pub struct Event {
    pub name: String,
    pub data: Vec<u8>,
}

impl Events {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete event that has data.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let end = self.blank_line()?;
            let raw: Vec<u8> = self.buffer.drain(..end).collect();
            self.searched = 0;
            let mut event = Event { name: String::new(), data: Vec::new() };
            for line in raw.split(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if let Some(data) = line.strip_prefix(b"data:") {
                    event.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
                } else if let Some(name) = line.strip_prefix(b"event:") {
                    event.name = String::from_utf8_lossy(name).trim().to_owned();
                }
            }
            if !event.data.is_empty() {
                return Some(event);
            }
        }
    }

    /// Returns the position after the first blank line.
    fn blank_line(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(3);
        let rest = &self.buffer[from..];
        let mut place = 0;
        while let Some(step) = newline(&rest[place..]) {
            place += step + 1;
            match &rest[place..] {
                [b'\n', ..] => return Some(from + place + 1),
                [b'\r', b'\n', ..] => return Some(from + place + 2),
                _ => {}
            }
        }
        self.searched = self.buffer.len();
        None
    }
}

/// Returns the position of the first LF; searches in blocks for speed.
fn newline(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 256;
    let (number, block) = bytes.chunks(BLOCK).enumerate().find(|(_, block)| block.contains(&b'\n'))?;
    Some(number * BLOCK + block.iter().position(|byte| *byte == b'\n')?)
}
