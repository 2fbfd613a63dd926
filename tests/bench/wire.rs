//! One connection of the load generator: HTTP over TCP or TLS, read piece by piece, answers in place.

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

/// Nothing that is measured takes so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of one read.
const READ: usize = 256 << 10;
/// Where an id is looked for, from both ends of a message.
const ENDS: usize = 200;

/// The first place of a pattern.
pub fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

/// Where the id of a message is: most programs write it near the front, the rest near the end.
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

/// The id of a message.
pub fn id_of(message: &[u8]) -> Option<u64> {
    std::str::from_utf8(&message[id_span(message)?]).ok()?.parse().ok()
}

/// The head of an answer, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub status: u16,
    pub session: Option<String>,
    /// The connection ends with this answer.
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
    /// The head of the answer that is coming in.
    head: Option<Head>,
    /// Its body, where that comes in chunks; stands until the next answer begins.
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
    /// Connects. A TLS handshake is begun and goes on with the reads.
    pub fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Outcome<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
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

    /// Whether requests can be sent: there is no handshake under way.
    pub fn is_ready(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Sends all of it.
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

    /// Writes what the TLS session has to say.
    fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads once; waits if there is nothing. False: the connection has ended.
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

    /// The head of the next answer, when it is there.
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

    /// The next whole answer, when it is there: its head, and its body until the next read.
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

    /// Decodes what is there of a body in chunks. True: it is whole.
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

    /// What has come of a body that does not end: an event stream.
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

    /// Reads until an answer is whole.
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

/// The messages of an event stream.
#[derive(Default)]
pub struct Events {
    buffer: Vec<u8>,
    searched: usize,
}

/// One event: its name, if it has one, and its data.
pub struct Event {
    pub name: String,
    pub data: Vec<u8>,
}

impl Events {
    /// More bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event that has data.
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

    /// Behind the end of the first event.
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

/// The first LF; whole blocks without one are passed over fast.
fn newline(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 256;
    let (number, block) = bytes.chunks(BLOCK).enumerate().find(|(_, block)| block.contains(&b'\n'))?;
    Some(number * BLOCK + block.iter().position(|byte| *byte == b'\n')?)
}
