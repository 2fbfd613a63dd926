//! The life of one server connection: idle, head, body, answer, stream, and again; or its end.
//!
//! A driver reads into [`Conn::space`], tells [`Conn::filled`] and asks [`Conn::next`] what to do. It writes what
//! the answering methods put into `out`, and calls [`Conn::expired`] when [`Conn::deadline`] has come.
//!
//! A request is handed out before its body is read, so that it can be refused first. The caller then either
//! takes the body ([`Conn::take_body`]) or answers at once ([`Conn::respond`]). The machine decides what
//! follows: the next request, an unread body to skip, or the end.

use std::time::{Duration, Instant};

use super::Refusal;
use super::body::{self, Chunked, Framing, framing};
use super::date::Date;
use super::head::{self, FoundHead, Request, Scan, Version};
use super::response::{self, Response};
use super::types::{Method, StatusCode};
use super::upgrade::Upgrade;
use crate::limits::HttpLimits;

/// What the driver has to do.
#[derive(Debug)]
pub enum Step {
    /// The body is whole: look at [`Conn::body`], then answer.
    Body,
    /// Close the connection. While an answer is owed: the peer is gone or floods us (it may have closed only its
    /// own side; an answer can still be given).
    Close,
    /// As `Read`, but nothing more will be written: shut the write side down first (once), so that the peer sees
    /// the end. What is read is thrown away; closing at once could destroy the answer on its way.
    Drain,
    /// Read more. While an answer is owed: optional, to notice when the peer goes away.
    Read,
    /// Answer with this, by [`Conn::respond`]; fields may be added. The connection ends after it.
    Refuse(Response),
    /// A request: take its body or answer it.
    Request(Request),
}

/// The machine of one connection.
#[derive(Debug)]
pub struct Conn {
    limits: HttpLimits,
    buffer: Vec<u8>,
    /// First byte of the buffer that still matters.
    start: usize,
    /// Behind the last byte that was read.
    end: usize,
    state: State,
    /// When the present wait began: for a request, a head, a body, the end of draining.
    since: Instant,
    /// Bytes of the present body's encoding so far.
    received: usize,
    /// Requests handed out.
    requests: u32,
    /// The peer has closed its side.
    ended: bool,
    /// No request is taken after the present one.
    last: bool,
    answer: Answering,
    /// What stands in the next head.
    date: Option<Date>,
}

/// What the answer to the present request has to heed.
#[derive(Clone, Copy, Debug, Default)]
struct Answering {
    /// The peer wants the connection closed after it.
    close: bool,
    /// The peer holds the body back until it gets a 100.
    expects: bool,
    /// The request was a HEAD.
    head_only: bool,
    /// The peer knows no chunks (HTTP/1.0).
    old: bool,
}

/// Where the connection is. Offsets count from `Conn::start`.
#[derive(Debug)]
enum State {
    /// Waits for a request, or reads its head when one has begun.
    Head {
        scan: Scan,
        begun: bool,
    },
    /// A request was handed out, its body not taken.
    Asked(Framing),
    /// A body of known length is coming in.
    Length(usize),
    /// A chunked body is coming in; `data` bytes of it are decoded.
    Chunked {
        decoder: Chunked,
        data: usize,
    },
    /// The body is whole, the answer is owed. The next request begins at `rest`.
    Whole {
        data: usize,
        rest: usize,
    },
    /// A refusal has to be handed out.
    Refusing(Refusal),
    /// It was handed out.
    Refused,
    /// An event stream goes out. With `close` its input is thrown away, up to `left` bytes.
    Stream {
        chunked: bool,
        close: bool,
        left: usize,
    },
    /// The unread body of an answered request is skipped.
    Skip {
        left: usize,
    },
    /// The last answer is out; input is thrown away for a while.
    Linger {
        left: usize,
    },
    Closed,
}

/// What is still unread of a request that is being answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rest {
    /// So much of what is coming can be skipped.
    Coming(usize),
    /// Nothing: the next request begins at this offset.
    Here(usize),
    /// Too much, or nobody knows.
    TooMuch,
}

impl Conn {
    /// The machine of a connection that was accepted at `now`.
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

    /// Bytes of the buffer that the next read needs for a large body, which must be free before it is read. 0: no more
    /// than any connection has.
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

    /// Bytes of the buffer behind a body that is whole.
    pub fn body_held(&self) -> usize {
        let large = matches!(self.state, State::Whole { .. }) && self.buffer.len() > self.limits.read_burst;
        if large { self.buffer.len() } else { 0 }
    }

    /// There is no memory for the body that is coming in: [`Conn::next`] refuses the request.
    pub fn refuse_body(&mut self) {
        self.state = State::Refusing(body::no_memory());
        (self.buffer, self.start, self.end) = (Vec::new(), 0, 0);
    }

    /// How much free room a read needs, and by how much the buffer grows where there is less.
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

    /// Where to read to; never empty. Larger while a large body is coming.
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

    /// So many bytes were read to the front of [`Conn::space`]; 0 is the end of the stream.
    pub fn filled(&mut self, count: usize) {
        if count == 0 {
            self.ended = true;
        }
        self.end = self.buffer.len().min(self.end + count);
        self.received = self.received.saturating_add(count);
    }

    /// What to do next. To be asked after [`Conn::filled`] and after each answer, until it wants something else
    /// than has been done.
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

    /// Accepts the body of the request that was handed out; [`Conn::next`] gives [`Step::Body`] when it is whole,
    /// or a refusal when it is too large. Asks the peer for the body when it waits for that, so call it only when
    /// all else about the request is in order.
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

    /// The body, from [`Step::Body`] to the answer.
    pub fn body(&self) -> &[u8] {
        match self.state {
            State::Whole { data, .. } => self.buffer.get(self.start..self.start + data).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Gives back the memory of a large body that nobody looks at again: its answer may take long.
    pub fn drop_body(&mut self) {
        let State::Whole { rest, .. } = self.state else { return };
        if self.buffer.len() <= self.limits.read_bytes {
            return;
        }
        self.start = self.end.min(self.start + rest);
        self.state = State::Whole { data: 0, rest: 0 };
        let next = self.buffer.get(self.start..self.end).unwrap_or_default();
        // What came behind it stays: it is a part of the next request, and small.
        self.buffer = next.to_vec();
        (self.start, self.end) = (0, self.buffer.len());
    }

    /// The date of the answers from now on. Without it they have none.
    pub fn set_date(&mut self, date: Date) {
        self.date = Some(date);
    }

    /// Writes the one answer to the present request. Nothing is written when none is owed.
    pub fn respond(&mut self, now: Instant, response: &Response, out: &mut Vec<u8>) {
        let Some(rest) = self.rest() else { return };
        let close = self.is_last() || rest == Rest::TooMuch;
        response::whole(response, self.date, close, self.answer.head_only, out);
        self.finish(now, close, rest);
    }

    /// Begins an answer that goes out piece by piece. Nothing is written when none is owed.
    pub fn start_stream(&mut self, response: &Response, out: &mut Vec<u8>) {
        let Some(rest) = self.rest() else { return };
        let chunked = !self.answer.old;
        // An unread body is thrown away during the stream; nobody would see where it ends.
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

    /// Writes a piece of the stream.
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

    /// Writes the 101 and gives back the bytes that came behind the request: the first of the WebSocket.
    pub fn upgrade(mut self, upgrade: &Upgrade, out: &mut Vec<u8>) -> Vec<u8> {
        response::whole(&upgrade.response(), self.date, false, false, out);
        self.buffer.truncate(self.end);
        self.buffer.drain(..self.start);
        self.buffer
    }

    /// The answer under way, or else the next one, is the last; an idle connection closes at the next step.
    pub fn last(&mut self) {
        self.last = true;
    }

    /// Whether the peer has closed its side.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// When [`Conn::expired`] has to be called, if nothing happens before. `None` while an answer is owed.
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

    /// The deadline has come. [`Step::Read`] when it has not.
    pub fn expired(&mut self, now: Instant) -> Step {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Step::Read;
        }
        match self.state {
            State::Head { begun: true, .. } => self.refuse(too_slow("the request head took too long")),
            State::Length(_) | State::Chunked { .. } => {
                self.refuse(too_slow("the request body took too long"))
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

    /// Looks at what a parsed head means for the connection.
    fn admit(&mut self, request: Request) -> Result<Step, Refusal> {
        let framing = framing(&request)?;
        let old = request.version() == Version::Http10;
        let mut expects = false;
        // RFC 9110 10.1.1: to be ignored on 1.0.
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

    /// While an answer is owed, input only tells whether the peer is still there. It is kept for the next
    /// request, or thrown away when there will be none; in both cases up to a bound.
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

    /// What is unread of the present request; `None` when no answer is owed. Does not depend on how much of it
    /// has come already, so that an answer is the same however the request was cut.
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

    /// The answer is written: on to what follows.
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
        // A peer that asked for the end sends nothing more: there is nothing that could destroy the answer.
        let clean = self.answer.close && self.start == self.end && rest != Rest::TooMuch;
        if clean || self.ended {
            self.close();
            return;
        }
        self.start = self.end;
        self.release();
        self.state = State::Linger { left: self.limits.drain_bytes };
    }

    /// Waits for the next request.
    fn wait(&mut self) {
        self.answer = Answering::default();
        self.state = State::waiting();
        self.release();
    }

    /// Gives memory back after a burst.
    fn release(&mut self) {
        if self.start < self.end {
            return;
        }
        (self.start, self.end) = (0, 0);
        if self.buffer.len() > self.limits.read_bytes {
            self.buffer = Vec::new();
        }
    }

    /// How long the bytes that came have paid for, by the floor of the rate.
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
