//! Shared by the endpoints that answer a POST: the format of the response, and the wait for it.

use std::{collections::VecDeque, future::poll_fn, io, pin::Pin, task::Poll, time::Instant};

use futures_lite::AsyncRead;

use crate::{
    gateway::responder::PostResponder,
    http::{conn::Step, head::Request, response::Response, types::StatusCode},
    jsonrpc::{self, Kind, Message},
    net::{
        http_conn::HttpConnection,
        outbox::{Received, Receiver},
    },
};

/// Builds an error response with a JSON-RPC error as its body.
pub fn refuse(status: StatusCode, id: &str, code: i64, why: &str) -> Response {
    Response::new(status).json(jsonrpc::error(id, code, why))
}

/// Builds a 400 with a JSON-RPC error without an id.
pub fn bad_request(why: &str) -> Response {
    refuse(StatusCode::BadRequest, "null", jsonrpc::INVALID_REQUEST, why)
}

/// Returns whether the request has exactly the `Accept` field that nearly all clients send with a
/// POST. Its ranges then need not be parsed.
pub fn accepts_as_usual(request: &Request) -> bool {
    let mut values = request.fields("accept");
    values.next() == Some("application/json, text/event-stream") && values.next().is_none()
}

/// Returns whether the client accepts a media type; the most specific range decides. Without an
/// `Accept` field it accepts anything (RFC 9110, section 12.5.1).
pub fn accepts(request: &Request, kind: &str, family: &str) -> bool {
    let mut specific_first = [kind, family, "*/*"].into_iter();
    let decided = specific_first
        .find_map(|wanted| ranges(request).find(|(range, _)| range.eq_ignore_ascii_case(wanted)));
    decided.map_or(request.field("accept").is_none(), |(_, taken)| taken)
}

/// Returns whether the client lists `text/event-stream` explicitly as acceptable.
pub fn names_events(request: &Request) -> bool {
    accepts_as_usual(request)
        || ranges(request).any(|(range, taken)| taken && range.eq_ignore_ascii_case("text/event-stream"))
}

/// Returns the media ranges in `Accept`, each with whether it is acceptable, which a weight of 0
/// denies.
pub fn ranges(request: &Request) -> impl Iterator<Item = (&str, bool)> {
    let ranges = request.fields("accept").flat_map(|field| field.split(','));
    ranges.map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| {
                weight.starts_with('0') && weight.bytes().all(|byte| b"0.".contains(&byte))
            })
        };
        (kind, !parts.any(refused))
    })
}

/// The format of the response to a POST.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// The client accepts both formats, and the messages decide.
    Either,
    /// An event stream, even for a single response.
    Events,
    /// JSON. Messages before the result are dropped.
    Json,
}

impl Form {
    /// Returns the format that the client accepts, or `None` if it accepts neither.
    pub fn of(request: &Request) -> Option<Self> {
        if accepts_as_usual(request) {
            return Some(Self::Either);
        }
        let json = accepts(request, "application/json", "application/*");
        match (json, accepts(request, "text/event-stream", "text/*")) {
            (true, true) => Some(Self::Either),
            (true, false) => Some(Self::Json),
            (false, true) => Some(Self::Events),
            (false, false) => None,
        }
    }
}

/// Drops all messages that are not responses. The response to a single request is the last message.
pub fn leave_answers(messages: &mut VecDeque<String>, batch: bool) {
    if batch {
        messages.retain(|text| is_response(text));
    } else {
        messages.drain(..messages.len().saturating_sub(1));
    }
}

/// Returns whether a message is a response. False if it is not valid.
pub fn is_response(text: &str) -> bool {
    Message::read(text).is_ok_and(|message| message.kind() == Kind::Response)
}

/// Why [`gather`] stopped waiting.
pub enum Gathered {
    /// All responses have arrived.
    Complete,
    /// Another message came first, or nothing came for too long.
    Begun,
    /// The client closed the connection.
    Gone,
}

/// Waits until the format of the response is decided, at most until `silent`. Moves the messages
/// from the queue to `messages`.
///
/// # Errors
/// The connection broke.
pub async fn gather(
    web: &mut HttpConnection,
    queue: &mut Receiver<()>,
    responder: &PostResponder,
    messages: &mut VecDeque<String>,
    silent: Option<Instant>,
) -> io::Result<Gathered> {
    poll_fn(|context| {
        let complete = loop {
            match queue.poll_take_more(context, messages) {
                Poll::Ready(Received::Some) => {}
                Poll::Ready(Received::Ended(())) => break true,
                Poll::Pending => break false,
            }
        };
        // Checked after the queue: other messages are marked before they are queued.
        if responder.had_other() {
            return Poll::Ready(Ok(Gathered::Begun));
        }
        if complete {
            return Poll::Ready(Ok(Gathered::Complete));
        }
        while let Poll::Ready(read) = Pin::new(&mut web.stream).poll_read(context, web.conn.space()) {
            web.conn.filled(read?);
            if matches!(web.conn.next(Instant::now()), Step::Close) || web.conn.is_ended() {
                return Poll::Ready(Ok(Gathered::Gone));
            }
        }
        match silent.map(|moment| web.poll_until(moment, context)) {
            Some(Poll::Ready(())) => Poll::Ready(Ok(Gathered::Begun)),
            _ => Poll::Pending,
        }
    })
    .await
}
