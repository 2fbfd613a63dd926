//! A minimal bridge from HTTP to a stdio server without a tunnel: the second baseline. It has one
//! thread and one epoll instance, replaces the id of each request by the number of its connection,
//! and writes all lines of one loop turn to the child at once.
//!
//! It trusts its clients: one request at a time on a connection, with `Content-Length`, and every
//! request gets a response.

use std::{
    collections::HashMap,
    env,
    io::{self, IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    process::{ChildStdout, Command, Stdio},
};

use mcpport::ndjson::Lines;

use crate::{Outcome, poll::Poll, wire};

const CHILD: u64 = u64::MAX;
const DOOR: u64 = u64::MAX - 1;
/// Maximum line length of the child.
const LONGEST: usize = 4 << 20;

/// A client's connection.
struct Visitor {
    socket: TcpStream,
    input: Vec<u8>,
    /// Id of the pending request.
    id: Vec<u8>,
}

struct Bridge {
    visitors: HashMap<u64, Visitor>,
    /// Lines to write to the child.
    down: Vec<u8>,
    lines: Lines,
}

/// Serves on a port until killed.
pub fn run(port: u16) -> Outcome<()> {
    let mut child =
        Command::new(env::current_exe()?).arg("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut stdin, mut stdout) =
        (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let mut poll = Poll::new()?;
    poll.add(&stdout, CHILD)?;
    poll.add(&listener, DOOR)?;
    let mut bridge = Bridge { visitors: HashMap::new(), down: Vec::new(), lines: Lines::new(LONGEST) };
    let (mut next, mut scratch) = (0, vec![0; 64 << 10]);
    loop {
        for number in poll.wait(None)? {
            match number {
                CHILD => bridge.up(&mut stdout)?,
                DOOR => {
                    let (socket, _) = listener.accept()?;
                    socket.set_nodelay(true)?;
                    poll.add(&socket, next)?;
                    bridge.visitors.insert(next, Visitor { socket, input: Vec::new(), id: Vec::new() });
                    next += 1;
                }
                visitor => bridge.heard(visitor, &mut scratch)?,
            }
        }
        if !bridge.down.is_empty() {
            stdin.write_all(&bridge.down)?;
            bridge.down.clear();
        }
    }
}

impl Bridge {
    /// Handles data from a client, or its disconnect.
    fn heard(&mut self, number: u64, scratch: &mut [u8]) -> Outcome<()> {
        let Some(visitor) = self.visitors.get_mut(&number) else { return Ok(()) };
        let count = visitor.socket.read(scratch).unwrap_or(0);
        if count == 0 {
            self.visitors.remove(&number);
            return Ok(());
        }
        visitor.input.extend_from_slice(&scratch[..count]);
        let Some(body) = body(&visitor.input)? else { return Ok(()) };
        let text = &visitor.input[body.clone()];
        let id = wire::id_span(text).ok_or("a request without an id")?;
        visitor.id = text[id.clone()].to_vec();
        self.down.extend_from_slice(&text[..id.start]);
        write!(self.down, "{number}")?;
        self.down.extend_from_slice(&text[id.end..]);
        self.down.push(b'\n');
        visitor.input.drain(..body.end);
        Ok(())
    }

    /// Forwards the child's responses.
    fn up(&mut self, stdout: &mut ChildStdout) -> Outcome<()> {
        let count = stdout.read(self.lines.space())?;
        if count == 0 {
            return Err("the child has ended".into());
        }
        self.lines.filled(count);
        while let Some(line) = self.lines.next_line()? {
            let id = wire::id_span(line).ok_or("an answer without an id")?;
            let number = std::str::from_utf8(&line[id.clone()])?.parse()?;
            let Some(visitor) = self.visitors.get_mut(&number) else { continue };
            let length = line.len() - id.len() + visitor.id.len();
            let mut head = Vec::with_capacity(256);
            write!(
                head,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )?;
            head.extend_from_slice(&line[..id.start]);
            head.extend_from_slice(&visitor.id);
            let rest = &line[id.end..];
            // Ignore errors: the next read detects a disconnect.
            let _ = write_both(&mut visitor.socket, &mut head, rest);
        }
        Ok(())
    }
}

/// Writes a small response in one piece, and a large one without copying it.
fn write_both(socket: &mut TcpStream, head: &mut Vec<u8>, rest: &[u8]) -> io::Result<()> {
    if rest.len() < 4096 {
        head.extend_from_slice(rest);
        return socket.write_all(head);
    }
    let count = socket.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)])?;
    socket.write_all(head.get(count..).unwrap_or_default())?;
    socket.write_all(rest.get(count.saturating_sub(head.len())..).unwrap_or_default())
}

/// Returns the range of the body if the request is complete.
fn body(input: &[u8]) -> Outcome<Option<Range<usize>>> {
    let Some(end) = wire::find(input, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end])?;
    let length = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let body = end + 4..end + 4 + length.ok_or("a request without a length")??;
    Ok((input.len() >= body.end).then_some(body))
}
