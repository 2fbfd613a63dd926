//! HTTP as bytes, and on top of it a client of the 2024-11-05 transport. Blocking, and every read
//! has a time limit.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use serde_json::value::RawValue;

use crate::harness::{TIMEOUT, eventually};

/// Both directions of a connection.
pub trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// A connection, with bytes that were read in advance.
pub struct Wire {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Returns the value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Wire {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::new(tcp(address))
    }

    /// From an address in 127.0.0.0/8, all of which belongs to this machine.
    #[track_caller]
    pub fn connect_from(source: [u8; 4], address: SocketAddr) -> Self {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddr::from((source, 0))).unwrap();
        connect(&socket, &address).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self::new(stream)
    }

    pub fn new(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self.stream.flush().unwrap();
    }

    /// The same, for a peer that may not read.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush())
    }

    /// Returns the next bytes; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut bytes) {
                // A read with a timeout fails when a suspended process continues, so read again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// Returns everything up to and including `end`, or `None` if the connection ends before.
    fn until(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(place) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(Some(self.buffer.drain(..place + end.len()).collect()));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// Returns this many bytes.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Returns the head of a response.
    pub fn head(&mut self) -> io::Result<Answer> {
        let head = self.until(b"\r\n\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, head, body: String::new() })
    }

    /// Returns a response with its body.
    pub fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.head()?;
        let mut body = Vec::new();
        if answer.field("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else if let Some(length) = answer.field("content-length") {
            body = self.exactly(length.parse().unwrap())?;
        }
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Ok(answer)
    }

    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// Returns a chunk of a body, or `None` for the last one.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.until(b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let size = str::from_utf8(&line).ok().and_then(|line| usize::from_str_radix(line.trim(), 16).ok());
        let size = size.ok_or(io::ErrorKind::InvalidData)?;
        let mut chunk = self.exactly(size + 2)?;
        chunk.truncate(size);
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    /// Whether the other side closes without sending more.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.fill(), Ok(0) | Err(_)) && self.buffer.is_empty()
    }
}

/// A TCP connection whose reads and writes have a time limit.
#[track_caller]
pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request with `Host` and these lines, and returns its response.
#[track_caller]
pub fn request(address: SocketAddr, method: &str, target: &str, lines: &[&str], body: &str) -> Answer {
    ask(&mut Wire::connect(address), method, target, &[&[&*host(address)], lines].concat(), body)
}

/// A plain `GET`.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Answer {
    request(address, "GET", target, &[], "")
}

/// Sends a request with exactly these lines besides those of the body, and returns its response.
#[track_caller]
pub fn ask(wire: &mut Wire, method: &str, target: &str, lines: &[&str], body: &str) -> Answer {
    wire.send(text(method, target, lines, body));
    wire.answer()
}

/// Formats a request.
pub fn text(method: &str, target: &str, lines: &[&str], body: &str) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    for line in lines {
        text.push_str(line);
        text.push_str("\r\n");
    }
    if method == "POST" {
        text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    text + "\r\n" + body
}

pub fn host(address: SocketAddr) -> String {
    format!("Host: {address}")
}

/// The lines of an upgrade to WebSocket, without `Host`.
pub const UPGRADE: &[&str] = &[
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Returns a member of a JSON object, raw.
pub fn member(object: &str, name: &str) -> Option<String> {
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(object).ok()?;
    members.get(name).map(|value| value.get().to_owned())
}

/// A client of the 2024-11-05 transport.
pub struct Client {
    lines: Vec<String>,
    wire: Wire,
    dial: Box<dyn Fn() -> Wire>,
    events: Vec<u8>,
    /// Messages that arrived while another one was awaited.
    inbox: VecDeque<String>,
    pub endpoint: String,
    last_id: u64,
}

impl Client {
    /// Opens an event stream.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str, lines: &[&str]) -> Self {
        Self::open_by(address, path, lines, move || Wire::connect(address))
    }

    /// The same over connections that `dial` opens.
    #[track_caller]
    pub fn open_by(
        address: SocketAddr,
        path: &str,
        lines: &[&str],
        dial: impl Fn() -> Wire + 'static,
    ) -> Self {
        let lines: Vec<String> =
            [host(address)].into_iter().chain(lines.iter().map(ToString::to_string)).collect();
        let mut wire = dial();
        wire.send(text("GET", path, &lines.iter().map(String::as_str).collect::<Vec<_>>(), ""));
        let head = wire.head().unwrap();
        assert_eq!(head.status, 200, "{}", head.head);
        assert_eq!(head.field("content-type"), Some("text/event-stream"));
        let (events, inbox) = (Vec::new(), VecDeque::new());
        let dial = Box::new(dial);
        let mut client = Self { lines, wire, dial, events, inbox, endpoint: String::new(), last_id: 0 };
        let (kind, endpoint) = client.read_event();
        assert_eq!(kind, "endpoint");
        client.endpoint = endpoint;
        client
    }

    /// Opens an event stream and does the handshake.
    #[track_caller]
    pub fn ready(address: SocketAddr, lines: &[&str]) -> Self {
        let mut client = Self::open(address, "/sse", lines);
        client.initialize();
        client
    }

    #[track_caller]
    pub fn initialize(&mut self) {
        let params =
            r#"{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"t","version":"1"}}"#;
        let answer = self.ask("initialize", params);
        assert!(answer.contains(r#""protocolVersion":"2024-11-05""#), "{answer}");
        self.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    }

    /// Posts a raw message, and asserts that it is accepted.
    #[track_caller]
    pub fn post(&self, message: &str) {
        let answer = self.try_post(message);
        assert_eq!(answer.status, 202, "{answer:?}");
    }

    /// Posts a raw message.
    #[track_caller]
    pub fn try_post(&self, message: &str) -> Answer {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        ask(&mut (self.dial)(), "POST", &self.endpoint, &lines, message)
    }

    /// Sends a request without waiting. Returns its raw id.
    #[track_caller]
    pub fn begin(&mut self, method: &str, params: &str) -> String {
        self.last_id += 1;
        let id = self.last_id.to_string();
        self.post(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#));
        id
    }

    /// Starts a call without waiting. Returns its raw id.
    #[track_caller]
    pub fn begin_call(&mut self, tool: &str, arguments: &str) -> String {
        self.begin("tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#))
    }

    /// Sends a request, and returns the whole response.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: &str) -> String {
        let id = self.begin(method, params);
        self.answer(&id)
    }

    /// Calls a tool, and returns the whole response.
    #[track_caller]
    pub fn call(&mut self, tool: &str, arguments: &str) -> String {
        let id = self.begin_call(tool, arguments);
        self.answer(&id)
    }

    /// Calls a tool, and returns the first text of its result.
    #[track_caller]
    pub fn call_text(&mut self, tool: &str, arguments: &str) -> String {
        let answer = self.call(tool, arguments);
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
        value["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Returns the response to a request, by its raw id.
    #[track_caller]
    pub fn answer(&mut self, id: &str) -> String {
        self.find(|message| member(message, "id").as_deref() == Some(id))
    }

    /// Returns the next notification of this method.
    #[track_caller]
    pub fn notification(&mut self, method: &str) -> String {
        let method = format!("\"{method}\"");
        self.find(|message| member(message, "method").as_deref() == Some(&method))
    }

    #[track_caller]
    pub fn find(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        if let Some(place) = self.inbox.iter().position(|message| wanted(message)) {
            return self.inbox.remove(place).unwrap();
        }
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let message = self.message();
            if wanted(&message) {
                return message;
            }
            self.inbox.push_back(message);
            assert!(Instant::now() < deadline, "it does not come; instead: {:?}", self.inbox);
        }
    }

    /// Returns the messages that no caller waited for.
    pub fn rest(&mut self) -> Vec<String> {
        self.inbox.drain(..).collect()
    }

    /// Returns the names of all tools, in the order of the list, from all pages.
    #[track_caller]
    pub fn tools(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        let mut params = "{}".to_owned();
        loop {
            let answer = self.ask("tools/list", &params);
            let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let tools = value["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
            names.extend(tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()));
            let Some(cursor) = value["result"].get("nextCursor") else { return names };
            params = format!("{{\"cursor\":{cursor}}}");
        }
    }

    /// Waits until the list of tools is as wanted, listing again after each `list_changed`.
    #[track_caller]
    pub fn tools_until(&mut self, wanted: impl Fn(&[String]) -> bool) {
        while !wanted(&self.tools()) {
            self.notification("notifications/tools/list_changed");
        }
    }

    /// Returns the next message.
    #[track_caller]
    pub fn message(&mut self) -> String {
        let (kind, data) = self.read_event();
        assert_eq!(kind, "message");
        data
    }

    #[track_caller]
    fn read_event(&mut self) -> (String, String) {
        self.try_event().unwrap().expect("the event stream has not ended")
    }

    /// Returns the next event's name and data, or `None` at the regular end of the stream.
    pub fn try_event(&mut self) -> io::Result<Option<(String, String)>> {
        // Comments keep the connection alive, and would keep a test waiting.
        let deadline = Instant::now() + 2 * TIMEOUT;
        loop {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            while let Some(end) = self.events.windows(4).position(|window| window == b"\r\n\r\n") {
                let event: Vec<u8> = self.events.drain(..end + 4).collect();
                let event = String::from_utf8(event).map_err(io::Error::other)?;
                let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                if let Some(data) = line("data: ") {
                    return Ok(Some((line("event: ").unwrap_or_default().to_owned(), data.to_owned())));
                }
            }
            let Some(chunk) = self.wire.chunk()? else { return Ok(None) };
            self.events.extend(chunk);
        }
    }

    /// Waits for the end of the stream.
    #[track_caller]
    pub fn ended(&mut self) {
        eventually("the stream ends", || !matches!(self.try_event(), Ok(Some(_))));
    }
}
