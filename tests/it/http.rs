//! The HTTP machines against the vectors: each is fed whole, byte by byte and cut at every place, and the same
//! has to happen each time. Then what vectors cannot say: time, memory, streams.

use std::path::Path;
use std::time::Instant;

use mcpport::http::conn::{Conn, Step};
use mcpport::http::respond::Response;
use mcpport::http::upgrade::Upgrade;
use mcpport::http::vocab::StatusCode;
use mcpport::limits::HttpLimits;

#[path = "../vectors/http/reader.rs"]
mod reader;

use reader::Vector;

#[test]
fn vectors() {
    let vectors = reader::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/http")));
    assert!(vectors.len() > 200, "only {} vectors found", vectors.len());
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
    // Every place in short ones; in long ones every so many, and those near the ends.
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

/// One connection with a simple caller, and what happened on it.
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
                            let mut glued = conn.upgrade(&upgrade, &mut self.out);
                            left.reverse();
                            glued.extend(left.concat());
                            return self.done(&format!("upgraded {:?}", String::from_utf8_lossy(&glued)));
                        }
                        Err(response) => {
                            self.event(format!("answer {}", response.status()));
                            self.respond(&mut conn, &response);
                        }
                    }
                }
                Step::Request(request) => {
                    let host = request.host().unwrap_or("-");
                    self.event(format!("request {} {} {host}", request.method(), short(request.target())));
                    if self.vector.caller == "refuses" {
                        self.respond(&mut conn, &Response::new(StatusCode::Unauthorized).text("no\n"));
                    } else {
                        self.out.clear();
                        conn.take_body(self.now, &mut self.out);
                        if self.out.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n") {
                            self.event("continue".into());
                        }
                    }
                }
                Step::Body => {
                    if !conn.body().is_empty() {
                        self.event(format!("body {}", show(conn.body())));
                    }
                    self.respond(&mut conn, &Response::new(StatusCode::Ok).text("done\n"));
                }
            }
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

/// Puts the next piece, or as much of it as there is space for, into the connection.
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
