//! A blocking client of the Streamable HTTP transport, on top of `wire`.

use std::{io, net::SocketAddr, time::Instant};

use serde_json::{Value, json};

use crate::{
    harness::TIMEOUT,
    wire::{Answer, Wire, host, text},
};

/// The `Accept` header of every client.
pub const BOTH: &str = "Accept: application/json, text/event-stream";

/// Parses JSON.
#[track_caller]
pub fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// A JSON-RPC request.
pub fn request(id: impl Into<Value>, method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params}).to_string()
}

/// A call of a tool.
pub fn call(id: impl Into<Value>, tool: &str, arguments: Value) -> String {
    request(id, "tools/call", json!({"name": tool, "arguments": arguments}))
}

/// The same with a progress token.
pub fn call_with(id: i64, tool: &str, arguments: Value, token: impl Into<Value>) -> String {
    let params = json!({"name": tool, "arguments": arguments, "_meta": {"progressToken": token.into()}});
    request(id, "tools/call", params)
}

/// The `initialize` request of a client of this version.
pub fn initialize_request(version: &str) -> String {
    let client = json!({"name": "t", "version": "1"});
    request(0, "initialize", json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client}))
}

/// One event of a stream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub retry: Option<String>,
    pub data: Option<String>,
}

impl Event {
    /// Returns its message.
    #[track_caller]
    pub fn message(&self) -> Value {
        value(self.data.as_deref().unwrap_or_default())
    }
}

/// An event stream.
pub struct Events {
    pub head: Answer,
    wire: Wire,
    rest: Vec<u8>,
}

impl Events {
    /// Returns the next event, or `None` at the regular end of the stream.
    pub fn try_next(&mut self) -> io::Result<Option<Event>> {
        // Comments keep the connection alive, and would keep a test waiting.
        let deadline = Instant::now() + 2 * TIMEOUT;
        loop {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some(end) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                let event: Vec<u8> = self.rest.drain(..end + 4).collect();
                let event = String::from_utf8(event).map_err(io::Error::other)?;
                let line =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                if event.starts_with(':') {
                    continue;
                }
                return Ok(Some(Event { id: line("id: "), retry: line("retry: "), data: line("data: ") }));
            }
            let Some(chunk) = self.wire.chunk()? else { return Ok(None) };
            self.rest.extend(chunk);
        }
    }

    /// Returns the next event.
    #[track_caller]
    pub fn next(&mut self) -> Event {
        self.try_next().unwrap().expect("the stream has not ended")
    }

    /// Returns the next event's message.
    #[track_caller]
    pub fn message(&mut self) -> Value {
        self.next().message()
    }

    /// Returns all messages up to the end.
    #[track_caller]
    pub fn all(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(event) = self.try_next().unwrap() {
            all.extend(event.data.filter(|data| !data.is_empty()).map(|data| value(&data)));
        }
        all
    }

    /// Asserts that the stream ends without another event.
    #[track_caller]
    pub fn ended(&mut self) {
        assert_eq!(self.try_next().unwrap(), None);
    }
}

/// A session.
pub struct Session {
    pub address: SocketAddr,
    pub path: String,
    pub id: String,
    pub version: String,
    pub lines: Vec<String>,
    /// The result of `initialize`.
    pub initialize_result: Value,
}

impl Session {
    /// Opens a session as a client of the newest version.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str) -> Self {
        Self::open_as(address, path, "2025-11-25", &[])
    }

    /// Opens a session as a client of some version, with its own header lines.
    #[track_caller]
    pub fn open_as(address: SocketAddr, path: &str, version: &str, lines: &[&str]) -> Self {
        Self::try_open_as(address, path, version, lines)
            .unwrap_or_else(|answer| panic!("no session: {answer:?}"))
    }

    /// Same as `open_as`, but returns the answer to `initialize` if it is an error.
    pub fn try_open_as(
        address: SocketAddr,
        path: &str,
        version: &str,
        lines: &[&str],
    ) -> Result<Self, Answer> {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let (path, version) = (path.to_owned(), version.to_owned());
        let mut session = Self {
            address,
            path,
            id: String::new(),
            version: String::new(),
            lines,
            initialize_result: Value::Null,
        };
        let answer = session.post(&initialize_request(&version));
        assert_eq!(answer.status, 200, "{answer:?}");
        let Some(id) = answer.field("mcp-session-id").map(str::to_owned) else { return Err(answer) };
        session.id = id;
        session.initialize_result = value(&answer.body)["result"].clone();
        session.version = session.initialize_result["protocolVersion"].as_str().unwrap().to_owned();
        let told = session.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert_eq!((told.status, told.body.as_str()), (202, ""));
        Ok(session)
    }

    /// The header lines of every request.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![host(self.address)];
        if !self.id.is_empty() {
            lines.push(format!("Mcp-Session-Id: {}", self.id));
        }
        if matches!(self.version.as_str(), "2025-06-18" | "2025-11-25") {
            lines.push(format!("MCP-Protocol-Version: {}", self.version));
        }
        lines.extend(self.lines.iter().cloned());
        lines
    }

    /// Sends a request over a new connection, without reading the response.
    #[track_caller]
    pub fn send(&self, method: &str, more: &[&str], body: &str) -> Wire {
        let mut wire = Wire::connect(self.address);
        let lines = self.lines();
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain(more.iter().copied()).collect();
        wire.send(text(method, &self.path, &lines, body));
        wire
    }

    /// Posts, and reads the whole response.
    #[track_caller]
    pub fn post(&self, body: &str) -> Answer {
        self.send("POST", &[BOTH], body).answer()
    }

    /// Posts a request, and returns its response, which must be plain JSON.
    #[track_caller]
    pub fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.post(&request(1, method, params));
        assert_eq!(
            (answer.status, answer.field("content-type")),
            (200, Some("application/json")),
            "{answer:?}"
        );
        value(&answer.body)
    }

    /// Calls a tool, and returns the first text of its result.
    #[track_caller]
    pub fn call_text(&self, tool: &str, arguments: Value) -> String {
        let answer = self.ask("tools/call", json!({"name": tool, "arguments": arguments}));
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Posts a request whose response is an event stream.
    #[track_caller]
    pub fn stream(&self, body: &str) -> Events {
        events(self.send("POST", &[BOTH], body))
    }

    /// Opens the stream of messages that belong to no request, or resumes the one that `last`
    /// names.
    #[track_caller]
    pub fn listen(&self, last: Option<&str>) -> Events {
        events(self.try_listen(last))
    }

    /// The same, whatever the response is.
    #[track_caller]
    pub fn try_listen(&self, last: Option<&str>) -> Wire {
        let last = last.map(|last| format!("Last-Event-ID: {last}"));
        let more: Vec<&str> = ["Accept: text/event-stream"].into_iter().chain(last.as_deref()).collect();
        self.send("GET", &more, "")
    }
}

/// Reads the head of an event stream.
#[track_caller]
pub fn events(mut wire: Wire) -> Events {
    let head = wire.head().unwrap();
    assert_eq!((head.status, head.field("content-type")), (200, Some("text/event-stream")), "{}", head.head);
    Events { head, wire, rest: Vec::new() }
}
