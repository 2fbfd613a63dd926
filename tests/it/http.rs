//! The HTTP parsers against the vectors: each vector is fed whole, byte by byte, and cut at every
//! place, always with the same result. Then the properties that vectors cannot express: time,
//! memory, streams.

use std::path::Path;
use std::time::{Duration, Instant};

use mcpport::http::conn::{Conn, Step};
use mcpport::http::head::Request;
use mcpport::http::response::Response;
use mcpport::http::types::StatusCode;
use mcpport::http::upgrade::Upgrade;
use mcpport::limits::HttpLimits;

#[path = "../vectors/http/reader.rs"]
mod reader;

use reader::Vector;

#[test]
fn vectors() {
    let vectors = reader::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/http")));
    assert!(vectors.len() > 400, "only {} vectors found", vectors.len());
    let mut failures = Vec::new();
    for vector in &vectors {
        if let Err(failure) = check(vector) {
            failures.push(failure);
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), vectors.len(), failures.join("\n"));
}

fn check(vector: &Vector) -> Result<(), String> {
    let bytes = &vector.bytes;
    same(vector, "whole", &[bytes])?;
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    same(vector, "byte by byte", &single)?;
    // Every place in short vectors; in long ones at intervals, and those near the ends.
    let stride = if bytes.len() > 2000 { 97 } else { 1 };
    for place in (1..bytes.len()).filter(|place| place % stride == 0 || place + 40 > bytes.len()) {
        let (head, tail) = bytes.split_at(place);
        same(vector, &format!("cut at {place}"), &[head, tail])?;
    }
    Ok(())
}

fn same(vector: &Vector, how: &str, pieces: &[&[u8]]) -> Result<(), String> {
    let events = Run::new(vector).feed(pieces);
    if events == vector.expected {
        return Ok(());
    }
    Err(format!("{} ({how})\n  expected {:?}\n  happened {:?}", vector.name, vector.expected, events))
}

/// One connection with a simple caller, and its events.
struct Run<'a> {
    vector: &'a Vector,
    now: Instant,
    out: Vec<u8>,
    events: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(vector: &'a Vector) -> Self {
        Self { vector, now: Instant::now(), out: Vec::new(), events: Vec::new() }
    }

    fn feed(mut self, pieces: &[&[u8]]) -> Vec<String> {
        let mut conn = Conn::new(self.now, &limits(&self.vector.limits));
        let mut left = pieces.iter().map(|piece| piece.to_vec()).collect::<Vec<_>>();
        left.reverse();
        let mut eof = self.vector.eof;
        loop {
            match conn.next(self.now) {
                Step::Read | Step::Drain if !left.is_empty() => give(&mut conn, &mut left),
                Step::Read | Step::Drain if eof => {
                    eof = false;
                    conn.filled(0);
                }
                Step::Read => return self.done("open"),
                Step::Close | Step::Drain => return self.done("closed"),
                Step::Refuse(response) => {
                    self.event(format!("refuse {}", response.status()));
                    self.respond(&mut conn, &response);
                }
                Step::Request(request) if self.vector.caller == "upgrades" => {
                    match Upgrade::check(&request) {
                        Ok(upgrade) => {
                            let mut leftover = conn.upgrade(&upgrade, &mut self.out);
                            left.reverse();
                            leftover.extend(left.concat());
                            return self.done(&format!("upgraded {:?}", String::from_utf8_lossy(&leftover)));
                        }
                        Err(response) => {
                            self.event(format!("answer {}", response.status()));
                            self.respond(&mut conn, &response);
                        }
                    }
                }
                Step::Request(request) => self.request(&mut conn, &request),
                Step::Body => {
                    if !conn.body().is_empty() {
                        self.event(format!("body {}", show(conn.body())));
                    }
                    self.respond(&mut conn, &Response::new(StatusCode::Ok).text("done\n"));
                }
            }
        }
    }

    fn request(&mut self, conn: &mut Conn, request: &Request) {
        let host = request.host().unwrap_or("-");
        self.event(format!("request {} {} {host}", request.method(), short(request.target())));
        if self.vector.caller == "refuses" {
            self.respond(conn, &Response::new(StatusCode::Unauthorized).text("no\n"));
            return;
        }
        self.out.clear();
        conn.take_body(self.now, &mut self.out);
        if self.out.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n") {
            self.event("continue".into());
        }
    }

    fn event(&mut self, event: String) {
        self.events.push(event);
    }

    fn respond(&mut self, conn: &mut Conn, response: &Response) {
        self.out.clear();
        conn.respond(self.now, response, &mut self.out);
        assert!(self.out.starts_with(b"HTTP/1.1 "), "{}: no answer", self.vector.name);
    }

    fn done(mut self, how: &str) -> Vec<String> {
        self.event(how.to_owned());
        self.events
    }
}

/// Feeds the next piece to the connection, or as much of it as there is space for.
fn give(conn: &mut Conn, left: &mut Vec<Vec<u8>>) {
    let Some(mut piece) = left.pop() else { return };
    let space = conn.space();
    assert!(!space.is_empty());
    let count = space.len().min(piece.len());
    space[..count].copy_from_slice(&piece[..count]);
    conn.filled(count);
    piece.drain(..count);
    if !piece.is_empty() {
        left.push(piece);
    }
}

/// Long bodies by their length.
fn show(body: &[u8]) -> String {
    if body.len() > 64 {
        format!("of {}", body.len())
    } else {
        format!("{:?}", String::from_utf8_lossy(body))
    }
}

/// Long targets by their length.
fn short(target: &str) -> String {
    if target.len() > 64 { format!("of {}", target.len()) } else { target.to_owned() }
}

fn limits(changes: &[(String, usize)]) -> HttpLimits {
    let mut limits = HttpLimits::default();
    for (name, number) in changes {
        match name.as_str() {
            "body_bytes" => limits.body_bytes = *number,
            "drain_bytes" => limits.drain_bytes = *number,
            "fields" => limits.fields = *number,
            "head_bytes" => limits.head_bytes = *number,
            "read_bytes" => limits.read_bytes = *number,
            "requests" => limits.requests = u32::try_from(*number).unwrap(),
            "target_bytes" => limits.target_bytes = *number,
            _ => panic!("unknown limit {name}"),
        }
    }
    limits
}

/// A connection with short timeouts, and the bytes that it sent.
struct Talk {
    conn: Conn,
    now: Instant,
    out: Vec<u8>,
}

impl Talk {
    fn new(change: impl FnOnce(&mut HttpLimits)) -> Self {
        let mut limits = HttpLimits::default();
        change(&mut limits);
        let now = Instant::now();
        Self { conn: Conn::new(now, &limits), now, out: Vec::new() }
    }

    /// Feeds bytes, and returns what the connection requests then.
    fn feed(&mut self, bytes: &[u8]) -> Step {
        let mut left = vec![bytes.to_vec()];
        while !left.is_empty() {
            give(&mut self.conn, &mut left);
            if !left.is_empty() {
                assert!(
                    matches!(self.conn.next(self.now), Step::Read),
                    "the connection requests no more bytes"
                );
            }
        }
        self.conn.next(self.now)
    }

    fn next(&mut self) -> Step {
        self.conn.next(self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn answer(&mut self, status: StatusCode) -> String {
        self.conn.respond(self.now, &Response::new(status), &mut self.out);
        self.sent()
    }

    fn sent(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }

    fn take_body(&mut self) {
        self.conn.take_body(self.now, &mut self.out);
    }

    /// Feeds one byte each second until the connection requests something else. Returns the seconds
    /// that this took.
    fn drip(&mut self, bytes: impl IntoIterator<Item = u8>) -> (u64, Step) {
        let start = self.now;
        for byte in bytes {
            self.pass(SECOND);
            let step = self.conn.expired(self.now);
            let step = if matches!(step, Step::Read) { self.feed(&[byte]) } else { step };
            if !matches!(step, Step::Read) {
                return ((self.now - start).as_secs(), step);
            }
        }
        panic!("still reading");
    }

    #[track_caller]
    fn deadline_in(&self, time: Duration) {
        assert_eq!(self.conn.deadline(), Some(self.now + time));
    }
}

const SECOND: Duration = Duration::from_secs(1);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";

/// Rule 3: the deadline of a head does not move, whatever the rate of its bytes.
#[test]
fn slow_head() {
    let mut talk = Talk::new(|_| {});
    let (seconds, step) = talk.drip(std::iter::once(b'G').chain(std::iter::repeat(b'x')));
    assert_eq!(seconds, 11, "1 s to the first byte, 10 s from there");
    let Step::Refuse(response) = step else { panic!("{step:?}") };
    assert_eq!(response.status(), StatusCode::RequestTimeout);
    talk.conn.respond(talk.now, &response, &mut talk.out);
    assert!(talk.sent().contains("Connection: close\r\n"));
    assert!(matches!(talk.next(), Step::Drain));
    talk.pass(2 * SECOND);
    assert!(matches!(talk.conn.expired(talk.now), Step::Close));
}

/// A blank line does not begin a head, and idle time ends without a response.
#[test]
fn idle() {
    let mut talk = Talk::new(|_| {});
    talk.deadline_in(30 * SECOND);
    talk.pass(29 * SECOND);
    assert!(matches!(talk.feed(b"\r\n"), Step::Read));
    assert!(matches!(talk.conn.expired(talk.now), Step::Read), "too early");
    talk.deadline_in(SECOND);
    talk.pass(SECOND);
    assert!(matches!(talk.conn.expired(talk.now), Step::Close));
    assert!(matches!(talk.next(), Step::Close));
}

/// The idle time starts again after each response.
#[test]
fn keep_alive() {
    let mut talk = Talk::new(|_| {});
    for _ in 0..3 {
        assert!(matches!(talk.feed(GET), Step::Request(_)));
        assert_eq!(talk.conn.deadline(), None, "the caller's time");
        talk.pass(60 * SECOND);
        assert_eq!(talk.answer(StatusCode::Accepted), "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
        assert!(matches!(talk.next(), Step::Read));
        talk.deadline_in(30 * SECOND);
        talk.pass(29 * SECOND);
    }
}

/// A call may run for long: its body is freed before, and the following bytes are the next request.
#[test]
fn a_large_body_is_let_go() {
    for behind in [GET, &[]] {
        let mut talk = Talk::new(|_| {});
        talk.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
        talk.take_body();
        assert!(matches!(talk.feed(&[b'x'; 100_000]), Step::Body));
        assert_eq!(talk.conn.body().len(), 100_000);
        let mut left = if behind.is_empty() { Vec::new() } else { vec![behind.to_vec()] };
        while !left.is_empty() {
            give(&mut talk.conn, &mut left);
        }
        talk.conn.drop_body();
        assert_eq!(talk.conn.body(), b"");
        assert!(talk.conn.space().len() <= HttpLimits::default().read_bytes);
        assert!(matches!(talk.next(), Step::Read), "whether the peer is still there");
        assert!(talk.answer(StatusCode::Accepted).starts_with("HTTP/1.1 202 "));
        assert_eq!(matches!(talk.next(), Step::Request(_)), !behind.is_empty());
    }
}

/// Rule 4: a body has a deadline, and before that a minimum rate.
#[test]
fn slow_body() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(
        talk.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"),
        Step::Request(_)
    ));
    talk.take_body();
    let (seconds, step) = talk.drip(std::iter::repeat(b'x'));
    assert_eq!(seconds, 5);
    assert!(matches!(step, Step::Refuse(response) if response.status() == StatusCode::RequestTimeout));

    let mut talk = Talk::new(|_| {});
    talk.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n");
    talk.take_body();
    let mut seconds = 0;
    while matches!(talk.conn.expired(talk.now), Step::Read) {
        assert!(matches!(talk.feed(&[b'x'; 2000]), Step::Read));
        talk.pass(SECOND);
        seconds += 1;
    }
    assert_eq!(seconds, 30, "fast enough, too long");
}

/// Rule 1: an endless head holds no more memory than a head.
#[test]
fn endless_head_pins_little() {
    let mut talk = Talk::new(|_| {});
    let mut read = 0;
    loop {
        let space = talk.conn.space();
        space.fill(b'A');
        let count = space.len();
        read += count;
        talk.conn.filled(count);
        match talk.next() {
            Step::Read => assert!(read <= 16 * 1024),
            Step::Refuse(_) => break,
            step => panic!("{step:?}"),
        }
    }
    assert!(read <= 20 * 1024, "{read} bytes were read");
    talk.answer(StatusCode::RequestHeaderFieldsTooLarge);
    let mut drained = 0;
    while matches!(talk.next(), Step::Drain) {
        let count = talk.conn.space().len();
        assert!(count <= 4096);
        drained += count;
        talk.conn.filled(count);
    }
    assert!(drained <= 68 * 1024, "{drained} bytes were drained");
}

/// A megabyte needs few reads, is contiguous, and its memory is freed.
#[test]
fn large_body() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(
        talk.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n"),
        Step::Request(_)
    ));
    talk.take_body();
    let (mut reads, mut left) = (0, 1_048_576);
    while left > 0 {
        assert!(matches!(talk.next(), Step::Read));
        let space = talk.conn.space();
        let count = space.len().min(left);
        space[..count].fill(b'x');
        talk.conn.filled(count);
        left -= count;
        reads += 1;
    }
    assert!(reads <= 8, "{reads} reads");
    assert!(matches!(talk.next(), Step::Body));
    assert_eq!(talk.conn.body().len(), 1_048_576);
    talk.answer(StatusCode::Ok);
    assert!(talk.conn.space().len() <= 4096);
}

/// A length that was only announced takes no memory.
#[test]
fn announced_body_pins_little() {
    let mut talk = Talk::new(|_| {});
    talk.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4194304\r\n\r\n");
    talk.take_body();
    assert!(matches!(talk.next(), Step::Read));
    assert!(talk.conn.space().len() <= 64 * 1024);
}

/// A head of 16 KiB in single bytes is scanned once, not 16 000 times.
#[test]
fn drip_is_not_quadratic() {
    let mut talk = Talk::new(|_| {});
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(16_000));
    let start = Instant::now();
    for _ in 0..20 {
        let (last, head) = head.as_bytes().split_last().unwrap();
        for byte in head {
            assert!(matches!(talk.feed(&[*byte]), Step::Read));
        }
        assert!(matches!(talk.feed(&[*last]), Step::Request(_)));
        talk.answer(StatusCode::Ok);
    }
    // About 0.1 s without optimisation; scanning again each time takes half a minute.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn event_stream() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(POST), Step::Request(_)));
    talk.take_body();
    assert!(matches!(talk.next(), Step::Body));
    let head = Response::new(StatusCode::Ok).field("Content-Type", "text/event-stream");
    talk.conn.start_stream(&head, &mut talk.out);
    assert!(talk.sent().ends_with("event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"));
    assert_eq!(talk.conn.deadline(), None);
    talk.conn.stream(b"data: 1\n\n", &mut talk.out);
    assert_eq!(talk.sent(), "9\r\ndata: 1\n\n\r\n");
    assert!(talk.conn.space().len() <= 4096);
    // A request that arrives early waits for its turn.
    assert!(matches!(talk.feed(GET), Step::Read));
    talk.conn.end_stream(talk.now, &mut talk.out);
    assert_eq!(talk.sent(), "0\r\n\r\n");
    assert!(matches!(talk.next(), Step::Request(_)));
}

#[test]
fn event_stream_on_1_0() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(b"GET /sse HTTP/1.0\r\n\r\n"), Step::Request(_)));
    talk.conn.start_stream(&Response::new(StatusCode::Ok), &mut talk.out);
    assert_eq!(talk.sent(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    talk.conn.stream(b"data: 1\n\n", &mut talk.out);
    talk.conn.end_stream(talk.now, &mut talk.out);
    assert_eq!(talk.sent(), "data: 1\n\n");
    assert!(matches!(talk.next(), Step::Close));
}

/// Input during a stream: its end means that the peer has left; a flood is treated the same.
#[test]
fn input_during_a_stream() {
    for (head, flood) in
        [(GET, true), (GET, false), (&b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[..], true)]
    {
        let mut talk = Talk::new(|limits| limits.drain_bytes = 1000);
        talk.feed(head);
        talk.conn.start_stream(&Response::new(StatusCode::Ok), &mut talk.out);
        if flood {
            assert!(matches!(talk.feed(&[b'x'; 1000]), Step::Read));
            assert!(matches!(talk.feed(b"x"), Step::Close));
        } else {
            talk.conn.filled(0);
            assert!(matches!(talk.next(), Step::Close));
        }
    }
}

/// A peer that has shut down its write side still gets the response to its request.
#[test]
fn half_closed() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(GET), Step::Request(_)));
    talk.conn.filled(0);
    assert!(talk.conn.is_ended());
    assert!(talk.answer(StatusCode::Ok).starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(matches!(talk.next(), Step::Close));
}

/// A graceful stop: an idle connection closes; a running response is the last one, and says so.
#[test]
fn draining() {
    let mut talk = Talk::new(|_| {});
    talk.conn.last();
    assert!(matches!(talk.next(), Step::Close));

    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(GET), Step::Request(_)));
    talk.conn.last();
    assert!(talk.answer(StatusCode::Ok).contains("Connection: close\r\n"));
    assert!(matches!(talk.next(), Step::Drain));
    talk.conn.filled(0);
    assert!(matches!(talk.next(), Step::Close));

    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(b"GET / HT"), Step::Read));
    talk.conn.last();
    assert!(matches!(talk.feed(b"TP/1.1\r\nHost: a\r\n\r\n"), Step::Request(_)));
    assert!(talk.answer(StatusCode::Ok).contains("Connection: close\r\n"));
}

/// An unread body is skipped only for a limited time.
#[test]
fn skipping_has_a_deadline() {
    let mut talk = Talk::new(|_| {});
    assert!(matches!(talk.feed(&POST[..POST.len() - 1]), Step::Request(_)));
    assert!(!talk.answer(StatusCode::Unauthorized).contains("Connection"));
    assert!(matches!(talk.next(), Step::Read));
    talk.deadline_in(2 * SECOND);
    talk.pass(2 * SECOND);
    assert!(matches!(talk.conn.expired(talk.now), Step::Close));
}

/// The response to HEAD has a length and no body; a caller that streams to it sends nothing.
#[test]
fn head_requests() {
    let mut talk = Talk::new(|_| {});
    talk.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    talk.conn.respond(talk.now, &Response::new(StatusCode::Ok).text("hello"), &mut talk.out);
    assert!(talk.sent().ends_with("Content-Length: 5\r\n\r\n"));
    talk.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    talk.conn.start_stream(&Response::new(StatusCode::Ok), &mut talk.out);
    talk.sent();
    talk.conn.stream(b"x", &mut talk.out);
    talk.conn.end_stream(talk.now, &mut talk.out);
    assert_eq!(talk.sent(), "");
    assert!(matches!(talk.next(), Step::Read));
}

/// Key and accept value are the example of RFC 6455, section 1.3.
#[test]
fn upgrade_answer() {
    let mut talk = Talk::new(|_| {});
    let step = talk.feed(
        b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\nfirst",
    );
    let Step::Request(request) = step else { panic!("{step:?}") };
    let leftover = talk.conn.upgrade(&Upgrade::check(&request).unwrap(), &mut talk.out);
    assert_eq!(leftover, b"first");
    assert_eq!(
        String::from_utf8(talk.out).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nConnection: upgrade\r\n\r\n"
    );
}

#[test]
fn upgrade_to_another_version() {
    let mut talk = Talk::new(|_| {});
    let step = talk.feed(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 8\r\n\r\n",
    );
    let Step::Request(request) = step else { panic!("{step:?}") };
    let response = Upgrade::check(&request).unwrap_err();
    assert_eq!(response.status(), StatusCode::UpgradeRequired);
    assert_eq!(response.get("sec-websocket-version"), Some("13"));
}

#[test]
fn requests_show_what_was_sent() {
    let mut talk = Talk::new(|_| {});
    let step = talk.feed(
        b"POST /messages/?session_id=a%2Fb+c&x&bad=%zz&raw=%ff&session_id=2 HTTP/1.1\r\nHost: gate:8765\r\n\
          Authorization: Bearer canary\r\nAccept: text/html, application/json\r\nACCEPT:  Text/Event-Stream \r\n\r\n",
    );
    let Step::Request(request) = step else { panic!("{step:?}") };
    assert_eq!(request.path(), "/messages/");
    assert_eq!(request.host(), Some("gate:8765"));
    assert_eq!(request.query("session_id").as_deref(), Some("a/b c"));
    assert_eq!(request.query("x").as_deref(), Some(""));
    assert_eq!(request.query("bad").as_deref(), Some("%zz"));
    assert_eq!(request.query("raw"), None);
    assert_eq!(request.query("y"), None);
    assert_eq!(request.field("authorization"), Some("Bearer canary"));
    assert_eq!(
        request.fields("accept").collect::<Vec<_>>(),
        ["text/html, application/json", "Text/Event-Stream"]
    );
    assert!(request.lists("Accept", "text/event-stream") && !request.lists("accept", "text"));
    assert!(!format!("{request:?}").contains("canary"), "a field was printed");
    assert!(!format!("{request:?}").contains("session_id"), "the query was printed");
}
