//! A client of either transport at either endpoint, which records everything it receives, and the
//! stream that it came on.

use std::{
    collections::VecDeque,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Instant,
};

use crate::{
    harness::{Gateway, TIMEOUT},
    wire::{Answer, Wire, ask, host, member, tcp, text},
};

/// The transport and endpoint of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// Streamable HTTP; otherwise the 2024-11-05 transport.
    pub streamable: bool,
    /// The endpoint of server `s`; otherwise the aggregate.
    pub single: bool,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::of(false, false), Self::of(false, true), Self::of(true, false), Self::of(true, true)];

    /// Those at the endpoint of one server.
    pub const SINGLE: [Self; 2] = [Self::of(false, true), Self::of(true, true)];

    /// Those at the aggregate.
    pub const WHOLE: [Self; 2] = [Self::of(false, false), Self::of(true, false)];

    const fn of(streamable: bool, single: bool) -> Self {
        Self { streamable, single }
    }

    fn path(self) -> &'static str {
        match (self.streamable, self.single) {
            (false, false) => "/sse",
            (false, true) => "/servers/s/sse",
            (true, false) => "/mcp",
            (true, true) => "/servers/s/mcp",
        }
    }

    /// The name of a tool of server `s` here.
    pub fn tool(self, name: &str) -> String {
        if self.single { name.to_owned() } else { format!("s_{name}") }
    }
}

/// The stream that a message came on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The event stream of the session (2024-11-05), or the one of GET.
    Stream,
    /// The response to the POST of the request with this raw id.
    Post(String),
}

/// A received event.
#[derive(Debug)]
enum Event {
    Message(Source, String),
    /// The stream has ended, or never started.
    End(Source),
}

/// See the module's documentation.
pub struct Peer {
    pub place: Place,
    address: SocketAddr,
    /// The session's id (Streamable HTTP), or the URL to post to (2024-11-05).
    session: String,
    events: Receiver<Event>,
    sender: Sender<Event>,
    inbox: VecDeque<Event>,
    streams: Vec<TcpStream>,
    last_id: u64,
}

/// The `initialize` params of a client, unless a test sets others.
pub const CAPABILITIES: &str =
    r#"{"sampling":{},"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true}}"#;

impl Peer {
    /// A client that has only opened its event stream, if there is one.
    #[track_caller]
    pub fn open(gateway: &Gateway, place: Place) -> Self {
        Self::open_at(gateway.address, place)
    }

    #[track_caller]
    fn open_at(address: SocketAddr, place: Place) -> Self {
        let (sender, events) = mpsc::channel();
        let (session, inbox, streams) = (String::new(), VecDeque::new(), Vec::new());
        let mut peer = Self { place, address, session, events, sender, inbox, streams, last_id: 0 };
        if !place.streamable {
            peer.session = peer.stream();
        }
        peer
    }

    /// A client after the whole handshake.
    #[track_caller]
    pub fn ready(gateway: &Gateway, place: Place) -> Self {
        Self::ready_at(gateway.address, place)
    }

    /// The same for a gateway that is not a [`Gateway`].
    #[track_caller]
    pub fn ready_at(address: SocketAddr, place: Place) -> Self {
        let mut peer = Self::open_at(address, place);
        let answer = peer.initialize("2025-06-18", CAPABILITIES, r#"{"name":"peer","version":"1"}"#);
        assert!(member(&answer, "result").is_some(), "{answer}");
        peer.initialized();
        peer
    }

    /// Opens an event stream by GET. Returns the endpoint that the 2024-11-05 transport sends
    /// first.
    #[track_caller]
    fn stream(&mut self) -> String {
        let socket = tcp(self.address);
        self.streams.push(socket.try_clone().unwrap());
        let mut wire = Wire::new(socket);
        let lines = self.lines();
        wire.send(text("GET", self.place.path(), &lines.iter().map(String::as_str).collect::<Vec<_>>(), ""));
        let head = wire.head().unwrap();
        assert_eq!(head.status, 200, "{}", head.head);
        let mut reader = Reader { wire, bytes: Vec::new() };
        let mut endpoint = String::new();
        if !self.place.streamable {
            endpoint = reader.event().expect("an endpoint event").1;
        }
        let sender = self.sender.clone();
        thread::spawn(move || reader.all(&Source::Stream, &sender));
        endpoint
    }

    /// Opens the stream for messages that belong to no request.
    #[track_caller]
    pub fn listen(&mut self) {
        if self.place.streamable {
            self.stream();
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![host(self.address)];
        if self.place.streamable {
            lines.push("Accept: application/json, text/event-stream".into());
            if !self.session.is_empty() {
                lines.push(format!("Mcp-Session-Id: {}", self.session));
            }
        }
        lines
    }

    fn request(&self, method: &str, body: &str) -> Answer {
        let target = if self.place.streamable { self.place.path() } else { &self.session };
        let lines = self.lines();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        ask(&mut Wire::connect(self.address), method, target, &lines, body)
    }

    /// Sends `initialize`, and returns the whole response.
    #[track_caller]
    pub fn initialize(&mut self, version: &str, capabilities: &str, info: &str) -> String {
        let params =
            format!(r#"{{"protocolVersion":"{version}","capabilities":{capabilities},"clientInfo":{info}}}"#);
        if !self.place.streamable {
            return self.ask("initialize", &params);
        }
        let body = format!(r#"{{"jsonrpc":"2.0","id":"first","method":"initialize","params":{params}}}"#);
        let answer = self.request("POST", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        self.session = answer.field("mcp-session-id").unwrap_or_default().to_owned();
        answer.body
    }

    #[track_caller]
    pub fn initialized(&self) {
        self.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    }

    /// Posts a message that needs no response, and asserts that it is accepted.
    #[track_caller]
    pub fn post(&self, message: &str) {
        assert_eq!(self.status(message), 202, "{message}");
    }

    /// Posts something, and returns the status.
    #[track_caller]
    pub fn status(&self, message: &str) -> u16 {
        self.request("POST", message).status
    }

    /// Answers a request of the server.
    #[track_caller]
    pub fn respond(&self, id: &str, result: &str) {
        self.post(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#));
    }

    /// Sends a request without waiting. Returns its raw id.
    #[track_caller]
    pub fn begin(&mut self, method: &str, params: &str) -> String {
        self.last_id += 1;
        let id = self.last_id.to_string();
        let message = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
        if !self.place.streamable {
            self.post(&message);
            return id;
        }
        let socket = tcp(self.address);
        self.streams.push(socket.try_clone().unwrap());
        let mut wire = Wire::new(socket);
        let lines = self.lines();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        wire.send(text("POST", self.place.path(), &lines, &message));
        let (sender, source) = (self.sender.clone(), Source::Post(id.clone()));
        thread::spawn(move || Reader { wire, bytes: Vec::new() }.answer(&source, &sender));
        id
    }

    /// Starts a call of a tool of server `s`.
    #[track_caller]
    pub fn begin_call(&mut self, tool: &str, arguments: &str) -> String {
        let tool = self.place.tool(tool);
        self.begin("tools/call", &format!(r#"{{"name":"{tool}","arguments":{arguments}}}"#))
    }

    /// Sends a request, and returns the whole response.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: &str) -> String {
        let id = self.begin(method, params);
        self.answer(&id)
    }

    /// Calls a tool of server `s`, and returns the whole response.
    #[track_caller]
    pub fn call(&mut self, tool: &str, arguments: &str) -> String {
        let id = self.begin_call(tool, arguments);
        self.answer(&id)
    }

    /// Calls a tool of server `s`, and returns the first text of its result.
    #[track_caller]
    pub fn call_text(&mut self, tool: &str, arguments: &str) -> String {
        text_of(&self.call(tool, arguments))
    }

    /// Returns the process that serves this client.
    #[track_caller]
    pub fn pid(&mut self) -> u32 {
        self.call_text("pid", "{}").parse().unwrap()
    }

    /// Returns the response to a request, by its raw id.
    #[track_caller]
    pub fn answer(&mut self, id: &str) -> String {
        self.find(|_, message| {
            member(message, "id").as_deref() == Some(id) && member(message, "method").is_none()
        })
        .1
    }

    /// Returns the next request or notification of this method from the server, and its stream.
    #[track_caller]
    pub fn asked(&mut self, method: &str) -> (Source, String) {
        let method = format!("\"{method}\"");
        self.find(|_, message| member(message, "method").as_deref() == Some(&method))
    }

    #[track_caller]
    pub fn find(&mut self, wanted: impl Fn(&Source, &str) -> bool) -> (Source, String) {
        let found = self.wait(|event| matches!(event, Event::Message(source, text) if wanted(source, text)));
        match found {
            Event::Message(source, text) => (source, text),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the stream of a session ends.
    #[track_caller]
    pub fn ended(&mut self) {
        self.wait(|event| matches!(event, Event::End(Source::Stream)));
    }

    #[track_caller]
    fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(place) = self.inbox.iter().position(&wanted) {
            return self.inbox.remove(place).unwrap();
        }
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) if wanted(&event) => return event,
                Ok(event) => self.inbox.push_back(event),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("it does not come; instead: {:?}", self.inbox)
                }
            }
        }
    }

    /// Returns the messages received so far that no caller waited for.
    pub fn rest(&mut self) -> Vec<String> {
        self.inbox.extend(self.events.try_iter());
        let messages = self.inbox.drain(..).filter_map(|event| match event {
            Event::Message(_, text) => Some(text),
            _ => None,
        });
        messages.collect()
    }

    /// Ends the session as a client does: DELETE, or the end of the event stream.
    #[track_caller]
    pub fn end(&mut self) {
        if self.place.streamable {
            assert_eq!(self.request("DELETE", "").status, 204);
        } else {
            self.hang_up();
        }
    }

    /// The same, if the session may never have begun.
    #[track_caller]
    pub fn end_if_begun(&mut self) {
        if !self.session.is_empty() {
            self.end();
        }
    }

    /// DELETE for a session that may have ended.
    #[track_caller]
    pub fn try_end(&mut self) {
        let status = self.request("DELETE", "").status;
        assert!(matches!(status, 204 | 404), "{status}");
    }

    /// Closes all connections.
    pub fn hang_up(&mut self) {
        for stream in self.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Where a client of the 2024-11-05 transport posts.
    pub fn endpoint(&self) -> &str {
        &self.session
    }

    /// Whether the gateway reports the session as ended.
    #[track_caller]
    pub fn is_over(&self) -> bool {
        self.status(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#) == 404
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// The first text of a result.
#[track_caller]
pub fn text_of(answer: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(answer).unwrap();
    value["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Reads one response to its end.
struct Reader {
    wire: Wire,
    bytes: Vec<u8>,
}

impl Reader {
    fn answer(mut self, source: &Source, sender: &Sender<Event>) {
        let Ok(head) = self.wire.head() else {
            let _ = sender.send(Event::End(source.clone()));
            return;
        };
        if head.status == 200 && head.field("content-type") == Some("text/event-stream") {
            return self.all(source, sender);
        }
        let length = head.field("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
        let body = self.wire.exactly(length).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        if head.status == 200 {
            let _ = sender.send(Event::Message(source.clone(), body));
        }
        let _ = sender.send(Event::End(source.clone()));
    }

    fn all(mut self, source: &Source, sender: &Sender<Event>) {
        while let Some((_, data)) = self.event() {
            if sender.send(Event::Message(source.clone(), data)).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::End(source.clone()));
    }

    /// Returns the next event's name and data, or `None` at the end.
    fn event(&mut self) -> Option<(String, String)> {
        loop {
            while let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let event: Vec<u8> = self.bytes.drain(..end + 4).collect();
                let event = String::from_utf8(event).ok()?;
                let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                if let Some(data) = line("data: ").filter(|data| !data.is_empty()) {
                    return Some((line("event: ").unwrap_or_default().to_owned(), data.to_owned()));
                }
            }
            self.bytes.extend(self.wire.chunk().ok()??);
        }
    }
}
