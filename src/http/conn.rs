//! The state machine of one server connection: idle, head, body, response or stream, and again
//! until it closes.
//!
//! A driver reads into [`Conn::space`], reports the bytes to [`Conn::filled`] and calls
//! [`Conn::next`] for the next step. It sends the bytes that the responding methods append to
//! `out`, and calls [`Conn::expired`] when [`Conn::deadline`] has passed.
//!
//! A request is returned before its body is read, so that it can be rejected first. The caller then
//! either takes the body ([`Conn::take_body`]) or responds at once ([`Conn::respond`]). The state
//! machine decides what follows: the next request, skipping an unread body, or closing.

use std::time::{Duration, Instant};

use super::Refusal;
use super::body::{self, Chunked, Framing, framing};
use super::date::Date;
use super::head::{self, FoundHead, Request, Scan, Version};
use super::response::{self, Response};
use super::types::{Method, StatusCode};
use super::upgrade::Upgrade;
use crate::limits::HttpLimits;

/// The next action for the driver.
#[derive(Debug)]
pub enum Step {
    /// The body is complete: read [`Conn::body`], then respond.
    Body,
    /// Close the connection. If a response is pending, the peer has disconnected or sends too much.
    /// It may have closed only its sending side, so a response may still be sent.
    Close,
    /// As `Read`, but nothing more will be written: shut down the write side first (once), so that
    /// the peer sees the end. The input is discarded. Closing at once could reset the connection
    /// and destroy the response in transit.
    Drain,
    /// Read more. While a response is pending, reading is optional; it detects that the peer
    /// disconnected.
    Read,
    /// Send this response with [`Conn::respond`]; fields may be added. The connection closes after
    /// it.
    Refuse(Response),
    /// A request: take its body or respond to it.
    Request(Request),
}

/// The state machine of one connection.
#[derive(Debug)]
pub struct Conn {
    limits: HttpLimits,
    buffer: Vec<u8>,
    /// Offset of the first byte in the buffer that is still needed.
    start: usize,
    /// Offset after the last byte read.
    end: usize,
    state: State,
    /// When the current wait began: for a request, a head, a body, or the end of draining.
    since: Instant,
    /// Bytes received of the current body in its encoded form.
    received: usize,
    /// Number of requests returned so far.
    requests: u32,
    /// The peer has closed its side.
    ended: bool,
    /// No request is accepted after the current one.
    last: bool,
    answer: Answering,
    /// The date for the heads of responses.
    date: Option<Date>,
}

/// Properties of the current request that affect its response.
#[derive(Clone, Copy, Debug, Default)]
struct Answering {
    /// The connection closes after the response.
    close: bool,
    /// The peer waits for a 100 before it sends the body.
    expects: bool,
    /// The request was a HEAD.
    head_only: bool,
    /// The peer does not support chunks (HTTP/1.0).
    old: bool,
}

/// The state of the connection. Offsets are relative to `Conn::start`.
#[derive(Debug)]
enum State {
    /// Waiting for a request, or reading its head once it has begun.
    Head {
        scan: Scan,
        begun: bool,
    },
    /// A request was returned; its body was not taken.
    Asked(Framing),
    /// A body of this length is being received.
    Length(usize),
    /// A chunked body is being received; its first `data` bytes are decoded.
    Chunked {
        decoder: Chunked,
        data: usize,
    },
    /// The body is complete and the response is pending. The next request begins at `rest`.
    Whole {
        data: usize,
        rest: usize,
    },
    /// A refusal must be returned.
    Refusing(Refusal),
    /// The refusal was returned.
    Refused,
    /// An event stream is being sent. With `close`, the input is discarded, up to `left` bytes.
    Stream {
        chunked: bool,
        close: bool,
        left: usize,
    },
    /// The unread body of a request that has been responded to is being skipped.
    Skip {
        left: usize,
    },
    /// The last response was written; the input is discarded for a while.
    Linger {
        left: usize,
    },
    Closed,
}

/// The unread part of a request that is being responded to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rest {
    /// This many bytes, few enough to skip.
    Coming(usize),
    /// None: the next request begins at this offset.
    Here(usize),
    /// Too much to skip, or an unknown amount.
    TooMuch,
}

impl Conn {
    /// Creates the state machine of a connection accepted at `now`.
    pub fn new(now: Instant, limits: &HttpLimits) -> Self {
        Self {
            limits: limits.clone(),
            buffer: Vec::new(),
            start: 0,
            end: 0,
            state: State::waiting(),
            since: now,
            received: 0,
            requests: 0,
            ended: false,
            last: false,
            answer: Answering::default(),
            date: None,
        }
    }

    /// Returns the buffer size in bytes that the next read of a large body requires. The caller
    /// must reserve that much memory before it reads. 0 if the buffer stays as small as that of any
    /// other connection.
    pub fn body_need(&self) -> usize {
        if !matches!(self.state, State::Length(_) | State::Chunked { .. }) {
            return 0;
        }
        let (least, growth) = self.growth();
        let held = self.end - self.start;
        let grows = self.buffer.len() - held < least;
        let length = if grows { held + growth.max(least) } else { self.buffer.len() };
        if length > self.limits.read_burst { length } else { 0 }
    }

    /// Rejects the request because there is no memory for its body. [`Conn::next`] returns the
    /// refusal.
    pub fn refuse_body(&mut self) {
        self.state = State::Refusing(body::no_memory());
        (self.buffer, self.start, self.end) = (Vec::new(), 0, 0);
    }

    /// Returns the free space that a read needs, and how much to grow the buffer if there is less.
    fn growth(&self) -> (usize, usize) {
        let held = self.end - self.start;
        let usual = self.limits.read_bytes;
        let (least, growth) = match self.state {
            State::Length(length) => {
                let missing = length.saturating_sub(held);
                (missing.min(usual / 2), missing.min(held.max(self.limits.read_burst)))
            }
            State::Chunked { .. } => (usual / 2, held.clamp(usual, self.limits.body_bytes.max(usual))),
            State::Asked(_) | State::Whole { .. } | State::Stream { .. } => (1, self.limits.watch_bytes),
            _ => (usual / 2, usual),
        };
        (least.max(1), growth)
    }

    /// Returns the buffer for the next read; never empty. Larger while a large body is being
    /// received.
    pub fn space(&mut self) -> &mut [u8] {
        let held = self.end - self.start;
        let (least, growth) = self.growth();
        if self.buffer.len() - self.end < least && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.start = 0;
            self.end = held;
        }
        if self.buffer.len() - self.end < least {
            let length = self.end + growth.max(least);
            self.buffer.reserve_exact(length - self.buffer.len());
            self.buffer.resize(length, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Reports that `count` bytes were read to the front of [`Conn::space`]; 0 is the end of the
    /// stream.
    pub fn filled(&mut self, count: usize) {
        if count == 0 {
            self.ended = true;
        }
        self.end = self.buffer.len().min(self.end + count);
        self.received = self.received.saturating_add(count);
    }

    /// Returns the next step. Call it after [`Conn::filled`] and after each response, until it asks
    /// for something that has not been done yet.
    pub fn next(&mut self, now: Instant) -> Step {
        match &mut self.state {
            State::Head { .. } => self.next_head(now).unwrap_or_else(|refusal| self.refuse(refusal)),
            State::Length(length) => {
                let length = *length;
                if self.end - self.start >= length {
                    self.state = State::Whole { data: length, rest: length };
                    return Step::Body;
                }
                self.more_body()
            }
            State::Chunked { .. } => self.next_chunks(),
            State::Refusing(refusal) => {
                let refusal = *refusal;
                self.refuse(refusal)
            }
            State::Asked(_) | State::Whole { .. } | State::Stream { .. } => self.watch(),
            State::Skip { left } => {
                let count = (*left).min(self.end - self.start);
                *left -= count;
                self.start += count;
                if *left > 0 {
                    return self.read_on(Step::Read);
                }
                self.wait();
                self.next(now)
            }
            State::Linger { left } => {
                let count = self.end - self.start;
                *left = left.saturating_sub(count);
                self.start = self.end;
                self.release();
                if matches!(self.state, State::Linger { left: 0 }) {
                    self.close()
                } else {
                    self.read_on(Step::Drain)
                }
            }
            State::Closed | State::Refused => self.close(),
        }
    }

    /// Accepts the body of the returned request. [`Conn::next`] then returns [`Step::Body`] when it
    /// is complete, or a refusal if it is too large. Writes a 100 if the peer waits for one, so
    /// call this only once the rest of the request has been checked.
    pub fn take_body(&mut self, now: Instant, out: &mut Vec<u8>) {
        let State::Asked(framing) = self.state else { return };
        let length = match framing {
            Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            Framing::Chunked => 0,
        };
        if length > self.limits.body_bytes {
            self.state = State::Refusing(body::too_large());
            return;
        }
        if std::mem::take(&mut self.answer.expects) {
            response::write_continue(out);
        }
        self.since = now;
        self.received = self.end - self.start;
        self.state = match framing {
            Framing::Length(_) => State::Length(length),
            Framing::Chunked => State::Chunked { decoder: Chunked::new(&self.limits), data: 0 },
        };
    }

    /// Returns the body, from [`Step::Body`] until the response is written.
    pub fn body(&self) -> &[u8] {
        match self.state {
            State::Whole { data, .. } => self.buffer.get(self.start..self.start + data).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Frees the memory of a large body that is no longer needed, since the response may take long.
    pub fn drop_body(&mut self) {
        let State::Whole { rest, .. } = self.state else { return };
        if self.buffer.len() <= self.limits.read_bytes {
            return;
        }
        self.start = self.end.min(self.start + rest);
        self.state = State::Whole { data: 0, rest: 0 };
        let next = self.buffer.get(self.start..self.end).unwrap_or_default();
        // Bytes after the body are kept: they are the start of the next request, and few.
        self.buffer = next.to_vec();
        (self.start, self.end) = (0, self.buffer.len());
    }

    /// Sets the date of responses from now on. Until then they have none.
    pub fn set_date(&mut self, date: Date) {
        self.date = Some(date);
    }

    /// Writes the response to the current request. Writes nothing if no response is pending.
    pub fn respond(&mut self, now: Instant, response: &Response, out: &mut Vec<u8>) {
        let Some(rest) = self.rest() else { return };
        let close = self.is_last() || rest == Rest::TooMuch;
        response::whole(response, self.date, close, self.answer.head_only, out);
        self.finish(now, close, rest);
    }

    /// Writes the head of a response that is sent in pieces. Writes nothing if no response is
    /// pending.
    pub fn start_stream(&mut self, response: &Response, out: &mut Vec<u8>) {
        let Some(rest) = self.rest() else { return };
        let chunked = !self.answer.old;
        // An unread body is discarded during the stream. Its end is not tracked, so no request can
        // follow.
        let read = matches!(self.state, State::Whole { .. } | State::Asked(Framing::Length(0)));
        let close = self.is_last() || !read || !chunked;
        response::stream_head(response, self.date, close, chunked, out);
        self.start = match rest {
            Rest::Here(offset) => self.end.min(self.start + offset),
            _ => self.end,
        };
        if self.start == self.end {
            // Little is read from now on, perhaps for hours.
            (self.buffer, self.start, self.end) = (Vec::new(), 0, 0);
        }
        self.state = State::Stream { chunked, close, left: self.limits.drain_bytes };
    }

    /// Writes a part of the stream's body.
    pub fn stream(&self, bytes: &[u8], out: &mut Vec<u8>) {
        match self.state {
            State::Stream { .. } if self.answer.head_only => {}
            State::Stream { chunked: true, .. } => response::chunk(bytes, out),
            State::Stream { .. } => out.extend_from_slice(bytes),
            _ => {}
        }
    }

    /// Ends the stream.
    pub fn end_stream(&mut self, now: Instant, out: &mut Vec<u8>) {
        let State::Stream { chunked, close, .. } = self.state else { return };
        if chunked && !self.answer.head_only {
            response::last_chunk(out);
        }
        self.finish(now, close || self.last, Rest::Here(0));
    }

    /// Writes the 101 response and returns the bytes that followed the request: the first of the
    /// WebSocket.
    pub fn upgrade(mut self, upgrade: &Upgrade, out: &mut Vec<u8>) -> Vec<u8> {
        response::whole(&upgrade.response(), self.date, false, false, out);
        self.buffer.truncate(self.end);
        self.buffer.drain(..self.start);
        self.buffer
    }

    /// Makes the current response, or else the next one, the last. An idle connection closes at the
    /// next step.
    pub fn last(&mut self) {
        self.last = true;
    }

    /// Whether the peer has closed its sending side.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Returns the time at which to call [`Conn::expired`] unless something happens before. `None`
    /// while a response is pending.
    pub fn deadline(&self) -> Option<Instant> {
        let limits = &self.limits;
        let wait = match self.state {
            State::Head { begun: false, .. } => limits.keep_alive,
            State::Head { begun: true, .. } => limits.head_time,
            State::Length(_) | State::Chunked { .. } => limits.body_time.min(self.paid_time()),
            State::Skip { .. } | State::Linger { .. } => limits.drain_time,
            _ => return None,
        };
        self.since.checked_add(wait)
    }

    /// Handles a passed deadline. Returns [`Step::Read`] if it has not passed yet.
    pub fn expired(&mut self, now: Instant) -> Step {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Step::Read;
        }
        match self.state {
            State::Head { begun: true, .. } => self.refuse(too_slow("timed out reading the request head")),
            State::Length(_) | State::Chunked { .. } => {
                self.refuse(too_slow("timed out reading the request body"))
            }
            _ => self.close(),
        }
    }

    fn next_head(&mut self, now: Instant) -> Result<Step, Refusal> {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let State::Head { scan, begun } = &mut self.state else { return Ok(Step::Read) };
        let found = scan.search(bytes, &self.limits)?;
        if let Some(FoundHead { start, end }) = found {
            let request = head::parse(bytes.get(start..end).unwrap_or_default(), &self.limits)?;
            self.start += end;
            return self.admit(request);
        }
        if scan.has_begun() {
            if self.ended {
                return Err(Refusal::bad("the connection ended inside a request head"));
            }
            if !std::mem::replace(begun, true) {
                self.since = now;
            }
            return Ok(Step::Read);
        }
        Ok(if self.last { self.close() } else { self.read_on(Step::Read) })
    }

    /// Applies a parsed head to the connection and returns the request.
    fn admit(&mut self, request: Request) -> Result<Step, Refusal> {
        let framing = framing(&request)?;
        let old = request.version() == Version::Http10;
        let mut expects = false;
        // RFC 9110 10.1.1: `Expect` is ignored on HTTP/1.0.
        for value in request.fields("expect").filter(|_| !old) {
            if !value.eq_ignore_ascii_case("100-continue") {
                return Err(Refusal::new(StatusCode::ExpectationFailed, "unknown expectation"));
            }
            expects = framing != Framing::Length(0);
        }
        self.requests = self.requests.saturating_add(1);
        self.answer = Answering {
            close: old || request.lists("connection", "close"),
            expects,
            head_only: request.method() == Method::Head,
            old,
        };
        self.state = State::Asked(framing);
        Ok(Step::Request(request))
    }

    fn next_chunks(&mut self) -> Step {
        let State::Chunked { decoder, data } = &mut self.state else { return Step::Read };
        let from = self.start + *data;
        let window = self.buffer.get_mut(from..self.end).unwrap_or_default();
        match decoder.decode(window) {
            Ok(decoded) if decoded.done => {
                let (data, rest) = (*data + decoded.data, *data + decoded.taken);
                self.state = State::Whole { data, rest };
                Step::Body
            }
            Ok(decoded) => {
                *data += decoded.data;
                self.end = self.start + *data;
                self.more_body()
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn more_body(&mut self) -> Step {
        if self.ended {
            return self.refuse(Refusal::bad("the connection ended inside a request body"));
        }
        Step::Read
    }

    /// Handles input while a response is pending; it only shows whether the peer is still
    /// connected. It is kept for the next request, or discarded if there will be none; in both
    /// cases up to a limit.
    fn watch(&mut self) -> Step {
        let held = self.end - self.start;
        let room = match &mut self.state {
            State::Stream { close: true, left, .. } => {
                let room = left.checked_sub(held);
                *left = room.unwrap_or_default();
                self.start = self.end;
                room
            }
            State::Whole { rest, .. } => self.limits.drain_bytes.checked_sub(held - *rest),
            _ => self.limits.drain_bytes.checked_sub(held),
        };
        if room.is_none() || self.ended { Step::Close } else { Step::Read }
    }

    fn read_on(&mut self, step: Step) -> Step {
        if self.ended { self.close() } else { step }
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.state = State::Refused;
        Step::Refuse(refusal.into())
    }

    fn close(&mut self) -> Step {
        self.state = State::Closed;
        self.buffer = Vec::new();
        (self.start, self.end) = (0, 0);
        Step::Close
    }

    /// Returns the unread part of the current request; `None` if no response is pending. Does not
    /// depend on how much of a body has arrived, so that the response is the same however the
    /// request was split into reads.
    fn rest(&self) -> Option<Rest> {
        let length = match self.state {
            State::Whole { rest, .. } => return Some(Rest::Here(rest)),
            State::Asked(Framing::Length(length)) => usize::try_from(length).unwrap_or(usize::MAX),
            State::Length(length) => length,
            State::Asked(Framing::Chunked) | State::Chunked { .. } | State::Refusing(_) | State::Refused => {
                return Some(Rest::TooMuch);
            }
            _ => return None,
        };
        let missing = length.saturating_sub(self.end - self.start);
        Some(match missing {
            _ if length > self.limits.drain_bytes || self.answer.expects => Rest::TooMuch,
            0 => Rest::Here(length),
            missing => Rest::Coming(missing),
        })
    }

    fn is_last(&self) -> bool {
        self.last || self.answer.close || self.requests >= self.limits.requests
    }

    /// Moves on to the next state after a response.
    fn finish(&mut self, now: Instant, close: bool, rest: Rest) {
        self.since = now;
        self.start = match rest {
            Rest::Here(offset) => self.end.min(self.start + offset),
            _ => self.end,
        };
        if !close {
            match rest {
                Rest::Coming(left) => self.state = State::Skip { left },
                _ => self.wait(),
            }
            return;
        }
        // A peer that asked for the close sends nothing more, so no unread input can cause a reset
        // that destroys the response.
        let clean = self.answer.close && self.start == self.end && rest != Rest::TooMuch;
        if clean || self.ended {
            self.close();
            return;
        }
        self.start = self.end;
        self.release();
        self.state = State::Linger { left: self.limits.drain_bytes };
    }

    /// Starts to wait for the next request.
    fn wait(&mut self) {
        self.answer = Answering::default();
        self.state = State::waiting();
        self.release();
    }

    /// Frees a large buffer once it is empty.
    fn release(&mut self) {
        if self.start < self.end {
            return;
        }
        (self.start, self.end) = (0, 0);
        if self.buffer.len() > self.limits.read_bytes {
            self.buffer = Vec::new();
        }
    }

    /// Returns the time that the received bytes allow for the body at the minimum rate
    /// `body_floor`.
    fn paid_time(&self) -> Duration {
        let floor = self.limits.body_floor;
        if floor == 0 {
            return Duration::MAX;
        }
        let paid = Duration::from_secs((self.received / floor) as u64);
        self.limits.body_grace.saturating_add(paid)
    }
}

impl State {
    fn waiting() -> Self {
        Self::Head { scan: Scan::default(), begun: false }
    }
}

fn too_slow(reason: &'static str) -> Refusal {
    Refusal::new(StatusCode::RequestTimeout, reason)
}
