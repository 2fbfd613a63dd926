//! The load generator: a number of clients, each with a number of calls in flight, against one
//! endpoint of one program. Every response is checked.
//!
//! It uses one thread and one epoll instance, so that it takes little processor time from the
//! measured programs. Each call in flight has its own connection, as in HTTP/1.1. Connections that
//! the server closes (after a number of requests) are reopened between two calls. The latency of a
//! call is the time from its first byte sent to the last byte of its response.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_rustls::rustls::ClientConfig;

use crate::{
    Outcome,
    echo::filler,
    poll::Poll,
    process::{Cpu, Spent, Watched},
    wire::{self, Events, Head, Wire},
};

/// A call or a drain without progress for this time has failed.
const STALL: Duration = Duration::from_secs(20);
/// The text of a response begins within this many bytes.
const FRONT: usize = 1000;
/// Connection numbers of event streams start here.
const STREAMS: u64 = 1 << 32;
const VERSION: &str = "2025-06-18";

/// The protocol of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// A POST with a message, answered with a message; no session.
    Raw,
    /// Streamable HTTP.
    Mcp,
    /// HTTP+SSE, protocol version 2024-11-05.
    Sse,
}

/// The endpoint under load.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    pub transport: Transport,
    pub path: String,
    /// Prefix of the tool names.
    pub prefix: String,
}

/// The amount of load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    pub clients: usize,
    pub in_flight: usize,
    /// Size of each result in bytes, without a small overhead; 0 calls `echo`.
    pub bytes: usize,
}

/// The duration of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm: Duration,
    pub time: Duration,
}

/// The results of a window.
pub struct Sample {
    pub calls: u64,
    /// Including calls before and after the window.
    pub all: u64,
    pub seconds: f64,
    /// Sorted, in nanoseconds.
    pub latencies: Vec<u64>,
    /// Processor time of each watched program.
    pub spent: Vec<Spent>,
}

/// Puts load on a target and measures it.
pub fn run(target: &Target, shape: Shape, window: Window, watched: &[Watched]) -> Outcome<Sample> {
    let mut load = Load::open(target, shape)?;
    load.start()?;
    load.go_on(window.warm)?;
    load.latencies.clear();
    let (before, begun) = (cpus(watched)?, Instant::now());
    load.go_on(window.time)?;
    let (seconds, after) = (begun.elapsed().as_secs_f64(), cpus(watched)?);
    let (mut latencies, all) = (std::mem::take(&mut load.latencies), load.calls);
    load.close()?;
    latencies.sort_unstable();
    let spent = after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
    Ok(Sample { calls: latencies.len() as u64, all, seconds, latencies, spent })
}

fn cpus(watched: &[Watched]) -> Outcome<Vec<Cpu>> {
    watched.iter().map(Watched::cpu).collect()
}

/// One client session.
pub struct Client {
    /// Head of its POSTs, up to the value of `Content-Length`.
    pub head: String,
    /// Event stream, if the responses arrive on one.
    stream: Option<(Wire, Events)>,
    pub session: Option<String>,
}

/// A slot for one call in flight.
struct Slot {
    client: usize,
    wire: Wire,
    /// Number of the call; 0 if none is in flight.
    call: u64,
    begun: Instant,
    /// The call waits for the TLS handshake.
    unsent: bool,
    /// The HTTP response is pending; the connection may close after it.
    posting: bool,
    /// The result is pending.
    waiting: bool,
    stale: bool,
}

struct Load<'a> {
    target: &'a Target,
    shape: Shape,
    filler: String,
    clients: Vec<Client>,
    slots: Vec<Slot>,
    poll: Poll,
    calls: u64,
    latencies: Vec<u64>,
    stopping: bool,
    message: String,
}

impl<'a> Load<'a> {
    fn open(target: &'a Target, shape: Shape) -> Outcome<Self> {
        let mut load = Self {
            target,
            shape,
            filler: filler(shape.bytes),
            clients: Vec::new(),
            slots: Vec::new(),
            poll: Poll::new()?,
            calls: 0,
            latencies: Vec::new(),
            stopping: false,
            message: String::new(),
        };
        for number in 0..shape.clients {
            let client = Client::open(target)?;
            if let Some((wire, _)) = &client.stream {
                load.poll.add(wire, STREAMS + number as u64)?;
            }
            load.clients.push(client);
            for _ in 0..shape.in_flight {
                let wire = Wire::open(target.address, target.tls.as_ref())?;
                load.poll.add(&wire, load.slots.len() as u64)?;
                load.slots.push(Slot {
                    client: number,
                    wire,
                    call: 0,
                    begun: Instant::now(),
                    unsent: false,
                    posting: false,
                    waiting: false,
                    stale: false,
                });
            }
        }
        Ok(load)
    }

    fn start(&mut self) -> Outcome<()> {
        (0..self.slots.len()).try_for_each(|place| self.call(place))
    }

    /// Makes calls and reads responses for this time.
    fn go_on(&mut self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        let (mut moved, mut seen) = (Instant::now(), self.latencies.len());
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.turn(end - now)?;
            if self.latencies.len() != seen {
                (moved, seen) = (Instant::now(), self.latencies.len());
            }
            if moved.elapsed() > STALL {
                return Err("no answer for a long time".into());
            }
        }
    }

    /// Handles all connections that are ready.
    fn turn(&mut self, timeout: Duration) -> Outcome<()> {
        for number in self.poll.wait(Some(timeout))? {
            if number >= STREAMS {
                self.stream((number - STREAMS) as usize)?;
            } else {
                self.posted(number as usize)?;
            }
        }
        Ok(())
    }

    /// Starts a call.
    fn call(&mut self, place: usize) -> Outcome<()> {
        if self.stopping {
            return Ok(());
        }
        let slot = &mut self.slots[place];
        if std::mem::take(&mut slot.stale) {
            slot.wire = Wire::open(self.target.address, self.target.tls.as_ref())?;
            self.poll.add(&slot.wire, place as u64)?;
        }
        self.calls += 1;
        let slots = self.slots.len() as u64;
        let slot = &mut self.slots[place];
        // Unique among all clients, since some programs confuse equal ids of different clients;
        // also identifies the slot.
        slot.call = self.calls * slots + place as u64 + 1;
        (slot.posting, slot.waiting) = (true, true);
        slot.unsent = !slot.wire.is_ready();
        if !slot.unsent { self.send(place) } else { Ok(()) }
    }

    fn send(&mut self, place: usize) -> Outcome<()> {
        use std::fmt::Write;
        let slot = &mut self.slots[place];
        let (id, prefix, head) = (slot.call, &self.target.prefix, &self.clients[slot.client].head);
        let (tool, bytes) = if self.shape.bytes > 0 { ("big", self.shape.bytes) } else { ("echo", 0) };
        let text = &mut self.message;
        text.clear();
        let mut body = String::with_capacity(200);
        write!(
            body,
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"{prefix}{tool}\",\"arguments\":{{\"text\":\"<{id}>\""
        )?;
        if bytes > 0 {
            write!(body, ",\"bytes\":{bytes}")?;
        }
        body.push_str("}}}");
        write!(text, "{head}{}\r\n\r\n{body}", body.len())?;
        slot.begun = Instant::now();
        slot.wire.send(text.as_bytes())
    }

    /// Handles input on a connection for POSTs.
    fn posted(&mut self, place: usize) -> Outcome<()> {
        let slot = &mut self.slots[place];
        let open = slot.wire.fill()?;
        if slot.unsent && slot.wire.is_ready() {
            slot.unsent = false;
            return self.send(place);
        }
        let id = slot.call;
        let answer = slot.wire.answer()?;
        match (answer, open) {
            (Some((head, body)), _) => {
                if head.status >= 300 {
                    let said = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                    return Err(format!("status {}: {said}", head.status).into());
                }
                if self.target.transport != Transport::Sse {
                    check_answer(&head, body, id, &self.filler)?;
                    slot.waiting = false;
                    self.latencies.push(nanoseconds(slot.begun));
                }
                slot.posting = false;
                slot.stale = head.close || !open;
                if !slot.waiting { self.call(place) } else { Ok(()) }
            }
            (None, false) if slot.posting => Err("a connection ended before its answer".into()),
            (None, false) => {
                // The server closed it between two calls, or before the stream delivered the
                // response.
                slot.wire = Wire::open(self.target.address, self.target.tls.as_ref())?;
                Ok(self.poll.add(&slot.wire, place as u64)?)
            }
            (None, true) => Ok(()),
        }
    }

    /// Handles input on an event stream.
    fn stream(&mut self, number: usize) -> Outcome<()> {
        let Some((wire, events)) = &mut self.clients[number].stream else { return Ok(()) };
        if !wire.fill()? {
            return Err("an event stream has ended".into());
        }
        events.push(&wire.streamed()?);
        let mut done = Vec::new();
        while let Some(event) = events.next_event() {
            let Some(id) = wire::id_of(&event.data) else { continue };
            let place = ((id - 1) % self.slots.len() as u64) as usize;
            let slot = &mut self.slots[place];
            if slot.call != id || !slot.waiting || slot.client != number {
                // Some programs send every response to every client.
                continue;
            }
            check(&event.data, id, &self.filler)?;
            self.latencies.push(nanoseconds(slot.begun));
            slot.waiting = false;
            if !slot.posting {
                done.push(place);
            }
        }
        done.into_iter().try_for_each(|place| self.call(place))
    }

    /// Waits for the calls in flight, and closes the sessions.
    fn close(mut self) -> Outcome<()> {
        self.stopping = true;
        let end = Instant::now() + STALL;
        while self.slots.iter().any(|slot| slot.posting || slot.waiting) {
            if Instant::now() > end {
                return Err("calls that are never answered".into());
            }
            self.turn(Duration::from_millis(100))?;
        }
        for client in &self.clients {
            client.close(self.target)?;
        }
        Ok(())
    }
}

fn nanoseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Checks the response to a POST: a message, or a stream with one.
fn check_answer(head: &Head, body: &[u8], id: u64, filler: &str) -> Outcome<()> {
    if !head.events {
        return check(body, id, filler);
    }
    let mut events = Events::default();
    events.push(body);
    while let Some(event) = events.next_event() {
        if wire::id_of(&event.data) == Some(id) {
            return check(&event.data, id, filler);
        }
    }
    Err("an event stream without the answer".into())
}

/// Checks a result: the id, the text, and the filler.
fn check(message: &[u8], id: u64, filler: &str) -> Outcome<()> {
    let wrong = || {
        let shown = String::from_utf8_lossy(&message[..message.len().min(300)]).into_owned();
        format!("a wrong answer to call {id}: {shown}")
    };
    if wire::id_of(message) != Some(id) {
        return Err(wrong().into());
    }
    let text = format!("\"<{id}>");
    let place = wire::find(&message[..message.len().min(FRONT)], text.as_bytes()).ok_or_else(wrong)?;
    let rest = &message[place + text.len()..];
    let whole = rest.starts_with(filler.as_bytes()) && rest[filler.len()..].starts_with(b"\"");
    if whole { Ok(()) } else { Err(wrong().into()) }
}

impl Client {
    /// Opens a session, if the protocol has sessions.
    pub fn open(target: &Target) -> Outcome<Self> {
        let mut client = Self { head: String::new(), stream: None, session: None };
        match target.transport {
            Transport::Raw => client.head = head(target, &target.path, ""),
            Transport::Mcp => client.open_mcp(target)?,
            Transport::Sse => client.open_sse(target)?,
        }
        Ok(client)
    }

    fn open_mcp(&mut self, target: &Target) -> Outcome<()> {
        let mut wire = Wire::open_ready(target)?;
        let (answer, body) = wire.post(&head(target, &target.path, ""), &initialize())?;
        if answer.status != 200 {
            return Err(format!("initialize: {} {}", answer.status, String::from_utf8_lossy(&body)).into());
        }
        let mut fields = format!("MCP-Protocol-Version: {VERSION}\r\n");
        if let Some(session) = &answer.session {
            fields.push_str(&format!("Mcp-Session-Id: {session}\r\n"));
        }
        self.head = head(target, &target.path, &fields);
        self.session = answer.session;
        if answer.close {
            wire = Wire::open_ready(target)?;
        }
        let (answer, _) = wire.post(&self.head, INITIALIZED)?;
        if answer.status >= 300 { Err(format!("initialized: {}", answer.status).into()) } else { Ok(()) }
    }

    fn open_sse(&mut self, target: &Target) -> Outcome<()> {
        let mut wire = Wire::open_ready(target)?;
        let (host, path) = (host(target), &target.path);
        wire.send(format!("GET {path} HTTP/1.1\r\n{host}Accept: text/event-stream\r\n\r\n").as_bytes())?;
        let mut events = Events::default();
        let endpoint = wait_event(&mut wire, &mut events)?;
        let endpoint = String::from_utf8(endpoint)?;
        // Some programs send an absolute URL.
        let path = match endpoint.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |place| &rest[place..]),
            None => &endpoint,
        };
        self.head = head(target, path, "");
        for message in [&*initialize(), INITIALIZED] {
            let (answer, _) = Wire::open_ready(target)?.post(&self.head, message)?;
            if answer.status >= 300 {
                return Err(format!("a message was answered {}", answer.status).into());
            }
            if message != INITIALIZED {
                wait_event(&mut wire, &mut events)?;
            }
        }
        self.stream = Some((wire, events));
        Ok(())
    }

    /// Deletes the session; an event stream ends with its connection.
    fn close(&self, target: &Target) -> Outcome<()> {
        let Some(session) = &self.session else { return Ok(()) };
        let mut wire = Wire::open_ready(target)?;
        let (host, path) = (host(target), &target.path);
        wire.send(format!("DELETE {path} HTTP/1.1\r\n{host}Mcp-Session-Id: {session}\r\n\r\n").as_bytes())?;
        // Some programs do not support DELETE, so any status is accepted.
        wire.wait_answer().map(|_| ())
    }
}

impl Wire {
    /// Connects and completes the TLS handshake.
    pub fn open_ready(target: &Target) -> Outcome<Self> {
        let mut wire = Self::open(target.address, target.tls.as_ref())?;
        while !wire.is_ready() {
            if !wire.fill()? {
                return Err("the connection ended in the handshake".into());
            }
        }
        Ok(wire)
    }

    /// Sends a message and waits for the response.
    pub fn post(&mut self, head: &str, body: &str) -> Outcome<(Head, Vec<u8>)> {
        self.send(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
        self.wait_answer()
    }
}

fn wait_event(wire: &mut Wire, events: &mut Events) -> Outcome<Vec<u8>> {
    loop {
        if let Some(event) = events.next_event() {
            return Ok(event.data);
        }
        if !wire.fill()? {
            return Err("an event stream has ended".into());
        }
        match wire.head()? {
            Some(head) if head.status != 200 => return Err(format!("status {}", head.status).into()),
            Some(_) => events.push(&wire.streamed()?),
            None => {}
        }
    }
}

/// Returns the `Host` header line.
pub fn host(target: &Target) -> String {
    format!("Host: localhost:{}\r\n", target.address.port())
}

/// Returns the head of a POST, up to the value of `Content-Length`.
pub fn head(target: &Target, path: &str, fields: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\n{}Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n{fields}Content-Length: ",
        host(target)
    )
}

const INITIALIZED: &str = "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}";

fn initialize() -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{{\"protocolVersion\":\"{VERSION}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"bench\",\"version\":\"1\"}}}}}}"
    )
}
