//! The state machine between gateway and child: which messages pass in each direction, and with
//! which ids.
//!
//! The child outlives a link. The edge therefore answers a repeated `initialize` with the child's
//! stored result, and shifts the request ids of each later link by an offset. A late response to a
//! request of an earlier link can then never pass for the response to a new one.
//!
//! A link outlives a child, too. When the child ends, the edge answers its open requests and those
//! that arrive while it is down with errors. The next child gets the stored `initialize`; messages
//! that arrive before its result are held, and the gateway is made to list again. Only `initialize`
//! never fails: it waits for the next child.
//!
//! Pure; `edge::link` drives it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{
    collections::{BTreeSet, VecDeque},
    mem,
    time::Instant,
};

use crate::{
    jsonrpc::{self, Kind, Message, Span, decimal, edit, find, is_same, unquote},
    limits::{EDGE_HELD, EDGE_HELD_BYTES, EDGE_OPEN, ID_BYTES},
    tunnel::handshake::Status,
};

/// The outcome of a frame from the gateway.
#[derive(Debug, Eq, PartialEq)]
pub enum ToChild {
    /// A line for the child, without the line end.
    Child(String),
    /// A frame back to the gateway.
    Gateway(String),
    /// A status frame for the edge program itself.
    Status(Status),
    /// The frame is held until the child is initialized.
    Held,
    /// The frame is dropped, for this reason.
    Drop(&'static str),
}

/// The outcome of a line from the child.
#[derive(Debug, Eq, PartialEq)]
pub enum ToGateway {
    /// A frame for the gateway.
    Gateway(String),
    /// A restarted child is initialized.
    Ready {
        /// Lines for the child, without their line ends.
        lines: Vec<String>,
        /// Frames for the gateway.
        frames: Vec<String>,
    },
    /// A restarted child refused `initialize` and has to be stopped.
    Refused,
    /// A response for the gateway, although the edge knows no request with its id.
    Unmatched(String),
    /// Dropped: a response to a request of an earlier link, or a line of a child that has ended.
    Stale,
    /// Dropped: the line is not a message.
    Noise,
}

/// The state of the child's `initialize`.
#[derive(Clone, Debug, Default)]
enum InitializeState {
    /// Not sent.
    #[default]
    None,
    /// Sent and not answered.
    Asked,
    /// Answered with this result.
    Known(String),
}

/// The gateway's `initialize` request, stored for each restart of the child.
#[derive(Clone, Debug)]
struct InitializeRequest {
    /// The request as sent to the child.
    line: String,
    /// The raw id as sent to the child.
    id: String,
}

/// Which messages the child accepts.
#[derive(Clone, Debug, Default)]
enum ChildPhase {
    /// All.
    #[default]
    Up,
    /// It was restarted and has not answered `initialize`: messages are held.
    Initializing(HeldFrames),
    /// None: it has ended for the reason `why` and is restarted at `due`, if ever.
    Down { why: String, due: Option<Instant> },
}

/// Held frames in order of arrival.
#[derive(Clone, Debug, Default)]
struct HeldFrames {
    frames: VecDeque<String>,
    bytes: usize,
}

/// The state of the proxy.
#[derive(Clone, Debug, Default)]
pub struct ProxyState {
    /// Added to the gateway's ids on their way to the child.
    offset: u64,
    /// Greater than every id sent to the child.
    next: u64,
    /// Requests that the child has not answered, by the id sent to the child.
    open: BTreeSet<u64>,
    /// The same for ids that are not shifted, raw.
    others: BTreeSet<String>,
    phase: ChildPhase,
    initialize_request: Option<InitializeRequest>,
    initialize_state: InitializeState,
    /// The id under which the current link waits for the response to `initialize`.
    pending_initialize_id: Option<String>,
    /// The gateway has sent `notifications/initialized`.
    initialized: bool,
    /// The current gateway reads status frames.
    reads_status_frames: bool,
    /// The current gateway uses strings that contain a number as progress tokens.
    text_tokens: bool,
    /// This child has sent a request.
    has_asked: bool,
    /// New requests are refused.
    stopping: bool,
}

impl ProxyState {
    /// Handles the loss of the link. Returns `notifications/cancelled` lines for the child's open
    /// requests.
    pub fn disconnected(&mut self) -> Vec<String> {
        (self.pending_initialize_id, self.reads_status_frames, self.text_tokens) = (None, false, false);
        self.others.clear();
        if let ChildPhase::Initializing(held) = &mut self.phase {
            *held = HeldFrames::default();
        }
        let open = mem::take(&mut self.open);
        if self.next >= SMALL {
            // The ids would soon exceed 2^53 and lose precision. Starting again at 0 only risks
            // that a late response is taken for a new one.
            self.next = 0;
            if matches!((&self.initialize_state, &self.phase), (InitializeState::Asked, ChildPhase::Up)) {
                (self.initialize_state, self.initialize_request, self.initialized) =
                    (InitializeState::None, None, false);
            }
        }
        self.offset = self.next;
        open.into_iter().map(|id| edit::cancelled(id, "the link to the gateway was lost")).collect()
    }

    /// Handles the exit of the child. `why` is one sentence that names the server and says how it
    /// ended; `due` is the time of the restart, if any. Returns error responses for the gateway,
    /// one for each open or held request except `initialize`.
    pub fn child_gone(&mut self, why: &str, due: Option<Instant>) -> Vec<String> {
        self.has_asked = false;
        let moved =
            mem::take(&mut self.open).into_iter().map(|id| (id.saturating_sub(self.offset)).to_string());
        let mut ids: Vec<String> = moved.chain(mem::take(&mut self.others)).collect();
        if let ChildPhase::Initializing(held) =
            mem::replace(&mut self.phase, ChildPhase::Down { why: why.into(), due })
        {
            let held = held.frames.iter().filter_map(|frame| Message::read(frame).ok());
            ids.extend(held.filter_map(|message| message.id().map(str::to_owned)));
        }
        ids.iter().map(|id| jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, why)).collect()
    }

    /// Handles the start of a new child. Returns the `initialize` line to send to it first, if
    /// there is one.
    pub fn child_back(&mut self) -> Option<String> {
        let Some(request) = &self.initialize_request else {
            self.phase = ChildPhase::Up;
            return None;
        };
        (self.phase, self.initialize_state) =
            (ChildPhase::Initializing(HeldFrames::default()), InitializeState::Asked);
        Some(request.line.clone())
    }

    /// Records that the gateway of the current link reads status frames.
    pub fn gateway_reads_status_frames(&mut self) {
        self.reads_status_frames = true;
    }

    /// Refuses new requests from now on, because the program is stopping.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Returns the number of requests that the child has not answered, plus the frames held until
    /// it is initialized.
    pub fn running(&self) -> usize {
        let held = match &self.phase {
            ChildPhase::Initializing(held) => held.frames.len(),
            ChildPhase::Up | ChildPhase::Down { .. } => 0,
        };
        self.open.len() + self.others.len() + held
    }

    /// Whether the child accepts requests.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, ChildPhase::Up)
    }

    /// Whether the child was restarted and has not answered `initialize` yet.
    pub fn is_initializing(&self) -> bool {
        matches!(self.phase, ChildPhase::Initializing(_))
    }

    /// Handles a frame from the gateway.
    pub fn on_gateway_frame(&mut self, now: Instant, frame: &str) -> ToChild {
        let Ok(message) = Message::read(frame) else {
            return Status::read(frame)
                .map_or(ToChild::Drop("a frame that is not a message"), ToChild::Status);
        };
        if let (true, Kind::Request, Some(id)) = (self.stopping, message.kind(), message.id()) {
            return ToChild::Gateway(jsonrpc::error(id, jsonrpc::DOWN, STOPPING));
        }
        match (message.kind(), message.method(), &self.phase) {
            (Kind::Request, "initialize", _) => self.initialize(&message),
            (Kind::Notification, "notifications/initialized", phase) => {
                let is_up = matches!(phase, ChildPhase::Up);
                // Remember it only together with an `initialize`. Otherwise the one that follows
                // the next `initialize` would be dropped.
                let is_stored = self.initialize_request.is_some();
                match is_stored && mem::replace(&mut self.initialized, true) {
                    true => ToChild::Drop("initialized: the child is already initialized"),
                    false if is_up => ToChild::Child(message.splice(&[])),
                    false if !is_stored => ToChild::Drop("initialized: the child is down"),
                    // The child gets the notification as soon as it is initialized.
                    false => ToChild::Drop("initialized: deferred until the child is initialized"),
                }
            }
            (.., ChildPhase::Up) => self.pass(&message),
            (.., ChildPhase::Initializing(_)) => self.hold(&message),
            (.., ChildPhase::Down { why, due }) => reject(&message, why, *due, now),
        }
    }

    /// Handles a line from the child.
    pub fn on_child_line(&mut self, line: &str) -> ToGateway {
        if matches!(self.phase, ChildPhase::Down { .. }) {
            return ToGateway::Stale;
        }
        let Ok(message) = Message::read(line) else { return ToGateway::Noise };
        match message.kind() {
            Kind::Response => self.answer(&message),
            Kind::Notification if message.method() == "notifications/progress" => {
                let Ok(span) = message.param(&["progressToken"]) else { return ToGateway::Noise };
                let raw = span.clone().map(|span| &line[span]);
                match raw.and_then(|raw| self.known_token(raw)).zip(span) {
                    Some((token, _)) if token < self.offset => ToGateway::Stale,
                    Some((token, span)) => {
                        ToGateway::Gateway(message.splice(&[(span, &(token - self.offset).to_string())]))
                    }
                    None => ToGateway::Gateway(message.splice(&[])),
                }
            }
            kind => {
                self.has_asked |= kind == Kind::Request;
                ToGateway::Gateway(message.splice(&[]))
            }
        }
    }

    /// Fails a request whose response from the child cannot be used, with the error message
    /// `message`. Without an id, the response can only belong to the one open request, if there is
    /// exactly one.
    pub fn unusable(&mut self, id: Option<&str>, message: &str) -> ToGateway {
        if matches!(self.phase, ChildPhase::Down { .. }) {
            return ToGateway::Stale;
        }
        let initialize = self
            .initialize_request
            .as_ref()
            .filter(|_| matches!(self.initialize_state, InitializeState::Asked));
        let id = match id {
            Some(id) => Some(id.to_owned()),
            None if self.open.len() + self.others.len() + usize::from(initialize.is_some()) == 1 => {
                let number = self.open.first().map(u64::to_string);
                number
                    .or_else(|| self.others.first().cloned())
                    .or_else(|| initialize.map(|request| request.id.clone()))
            }
            None => None,
        };
        match id.filter(|id| self.is_open(id)) {
            Some(id) => self.on_child_line(&jsonrpc::error(&id, jsonrpc::INTERNAL_ERROR, message)),
            None => ToGateway::Noise,
        }
    }

    /// Whether the request with this id, as sent to the child, is still open.
    fn is_open(&self, id: &str) -> bool {
        let number = decimal(id);
        let text = number.map(|number| format!("\"{number}\""));
        let is_initialize =
            matches!(self.initialize_state, InitializeState::Asked) && self.is_initialize_id(id);
        is_initialize
            || number.is_some_and(|number| self.open.contains(&number))
            || self.others.contains(id)
            || text.is_some_and(|text| self.others.contains(&text))
    }

    /// Handles a message for a child that is up, other than `initialize` and
    /// `notifications/initialized`.
    fn pass(&mut self, message: &Message<'_>) -> ToChild {
        match (message.kind(), message.method()) {
            (Kind::Request, _) => self.ask(message),
            (Kind::Notification, "notifications/cancelled") => self.cancel(message),
            _ => ToChild::Child(message.splice(&[])),
        }
    }

    /// Handles a message for a child that is not initialized yet.
    fn hold(&mut self, message: &Message<'_>) -> ToChild {
        if message.kind() == Kind::Response {
            // Pass a response only if this child has sent a request. Otherwise it answers a request
            // of the previous child.
            return if self.has_asked {
                ToChild::Child(message.splice(&[]))
            } else {
                ToChild::Drop("a response without a pending request")
            };
        }
        let ChildPhase::Initializing(held) = &mut self.phase else {
            return ToChild::Drop("a message: the child is not initializing");
        };
        let bytes = held.bytes + message.text().len();
        if held.frames.len() < EDGE_HELD && bytes <= EDGE_HELD_BYTES {
            held.frames.push_back(message.text().to_owned());
            held.bytes = bytes;
            return ToChild::Held;
        }
        match message.id() {
            Some(id) => {
                let why = "the server is starting, and too many calls are waiting for it";
                ToChild::Gateway(jsonrpc::error(id, jsonrpc::BUSY, why))
            }
            None => ToChild::Drop("a notification: the queue is full"),
        }
    }

    fn cancel(&mut self, message: &Message<'_>) -> ToChild {
        let Ok(span) = message.param(&["requestId"]) else {
            return ToChild::Drop("a cancellation with an ambiguous request id");
        };
        if let Some(raw) = span.clone().map(|span| &message.text()[span]) {
            let theirs = self.to_child(raw);
            let known = theirs.map_or_else(|| raw.to_owned(), |id| id.to_string());
            if matches!(self.initialize_state, InitializeState::Asked) && self.is_initialize_id(&known) {
                return ToChild::Drop("a cancellation of initialize");
            }
            match theirs {
                Some(id) => self.open.remove(&id),
                None => self.others.remove(raw),
            };
        }
        ToChild::Child(self.remap_ids(message, span.into_iter(), Self::to_child))
    }

    fn initialize(&mut self, message: &Message<'_>) -> ToChild {
        let id = message.id().unwrap_or_default().to_owned();
        match (&self.phase, &self.initialize_state) {
            (ChildPhase::Up, InitializeState::Known(result)) => {
                return ToChild::Gateway(jsonrpc::result(&id, result));
            }
            (ChildPhase::Up, InitializeState::None) => {}
            (ChildPhase::Down { .. }, _) if self.initialize_request.is_none() => {}
            _ => {
                self.pending_initialize_id = Some(id);
                return ToChild::Drop("a second initialize: an earlier one is pending");
            }
        }
        let line = match self.request(message) {
            Ok(line) => line,
            Err(refused) => return refused,
        };
        let theirs = self.to_child(&id).map_or_else(|| id.clone(), |id| id.to_string());
        self.initialize_request = Some(InitializeRequest { line: line.clone(), id: theirs });
        self.pending_initialize_id = Some(id);
        if !self.is_up() {
            return ToChild::Drop("initialize: deferred until the child is up");
        }
        self.initialize_state = InitializeState::Asked;
        ToChild::Child(line)
    }

    fn ask(&mut self, message: &Message<'_>) -> ToChild {
        let line = match self.request(message) {
            Ok(line) => line,
            Err(refused) => return refused,
        };
        let raw = message.id().unwrap_or_default();
        match self.to_child(raw) {
            Some(id) => remember(&mut self.open, id),
            None if raw.len() <= ID_BYTES => remember(&mut self.others, raw.to_owned()),
            None => {}
        }
        ToChild::Child(line)
    }

    /// Returns the request as the child gets it, or the outcome if it is not forwarded.
    fn request(&mut self, message: &Message<'_>) -> Result<String, ToChild> {
        let Ok(token) = message.param(&["_meta", "progressToken"]) else {
            return Err(ToChild::Drop("a request with an ambiguous progress token"));
        };
        let mut spans: Vec<Span> = message.id_span().into_iter().chain(token.clone()).collect();
        spans.sort_by_key(|span| span.start);
        if spans.iter().any(|span| number(&message.text()[span.clone()], EXACT).is_some_and(|id| id >= SMALL))
        {
            // On the way back, the id could not be told from a shifted one.
            let why = "request ids and progress tokens from 2^52 to 2^53 are not supported";
            let id = message.id().unwrap_or_default();
            return Err(ToChild::Gateway(jsonrpc::error(id, jsonrpc::INVALID_REQUEST, why)));
        }
        let token = token.map(|span| &message.text()[span]);
        self.text_tokens |=
            token.is_some_and(|token| number(token, EXACT).is_none() && decimal(token).is_some());
        if let Some(id) = message.id().and_then(|id| self.to_child(id)) {
            self.next = self.next.max(id + 1);
        }
        Ok(self.remap_ids(message, spans.into_iter(), Self::to_child))
    }

    fn answer(&mut self, message: &Message<'_>) -> ToGateway {
        let Some(raw) = message.id() else { return ToGateway::Gateway(message.splice(&[])) };
        if matches!(self.initialize_state, InitializeState::Asked) && self.is_initialize_id(raw) {
            return self.on_initialize_result(message);
        }
        if self.others.remove(raw) {
            return ToGateway::Gateway(message.splice(&[]));
        }
        let Some(id) = decimal(raw).filter(|id| *id < EXACT) else {
            return ToGateway::Unmatched(message.splice(&[]));
        };
        let known = self.open.remove(&id);
        let text = format!("\"{id}\"");
        if !known && self.others.remove(&text) {
            return ToGateway::Gateway(message.with_id(&text));
        }
        if id < self.offset {
            return ToGateway::Stale;
        }
        let answer = message.with_id(&(id - self.offset).to_string());
        // The gateway may have cancelled the request, and drops the response itself then.
        if known || id < self.next { ToGateway::Gateway(answer) } else { ToGateway::Unmatched(answer) }
    }

    /// Returns the number of a progress token that the gateway sent as a number, in whatever form
    /// the child returned it.
    fn known_token(&self, raw: &str) -> Option<u64> {
        let exact = number(raw, EXACT);
        exact.or_else(|| decimal(raw).filter(|token| *token < EXACT && !self.text_tokens))
    }

    /// Whether this is the id of `initialize`, as sent to the child.
    fn is_initialize_id(&self, raw: &str) -> bool {
        self.initialize_request
            .as_ref()
            .is_some_and(|request| is_same(&request.id, raw) || is_same_text(&request.id, raw))
    }

    /// Handles the child's response to `initialize`.
    fn on_initialize_result(&mut self, message: &Message<'_>) -> ToGateway {
        let anew = self.is_initializing();
        if anew && message.result().is_none() && self.pending_initialize_id.is_none() {
            return ToGateway::Refused;
        }
        match message.result() {
            Some(result) => self.initialize_state = InitializeState::Known(result.to_owned()),
            // The child needs the notification after the next successful `initialize`, even if an
            // earlier child got it.
            None => {
                (self.initialize_state, self.initialize_request, self.initialized) =
                    (InitializeState::None, None, false)
            }
        }
        let answer = self.pending_initialize_id.take().map(|id| message.with_id(&id));
        match mem::take(&mut self.phase) {
            ChildPhase::Initializing(held) => self.ready(answer, held),
            _ => answer.map_or(ToGateway::Stale, ToGateway::Gateway),
        }
    }

    /// Releases the held messages to a restarted child that is now initialized.
    fn ready(&mut self, answer: Option<String>, held: HeldFrames) -> ToGateway {
        let mut lines = Vec::new();
        if self.initialized {
            // The gateway sends this once, so the edge repeats it for each new child, before the
            // held messages.
            lines.push(jsonrpc::notification("notifications/initialized", None));
        }
        // A gateway that gets the response to `initialize` lists after it anyway.
        let mut frames = answer.map_or_else(|| self.announcement(), |answer| vec![answer]);
        for frame in &held.frames {
            match Message::read(frame).map(|message| self.pass(&message)) {
                Ok(ToChild::Child(line)) => lines.push(line),
                Ok(ToChild::Gateway(frame)) => frames.push(frame),
                _ => {}
            }
        }
        ToGateway::Ready { lines, frames }
    }

    /// Returns the frames that make the gateway list again. For our gateway the status frame comes
    /// first, so that it treats the notifications after it as part of the restart.
    fn announcement(&self) -> Vec<String> {
        let InitializeState::Known(result) = &self.initialize_state else { return Vec::new() };
        let declared =
            |what: &str| matches!(find(result, 0..result.len(), &["capabilities", what]), Ok(Some(_)));
        // Some servers have tools without declaring the capability.
        let kinds =
            ["tools", "prompts", "resources"].into_iter().filter(|kind| *kind == "tools" || declared(kind));
        let changed =
            kinds.map(|kind| jsonrpc::notification(&format!("notifications/{kind}/list_changed"), None));
        self.reads_status_frames.then(Status::restarted).into_iter().chain(changed).collect()
    }

    /// Returns the message with its numeric ids shifted; other ids stay unchanged.
    fn remap_ids(
        &self,
        message: &Message<'_>,
        spans: impl Iterator<Item = Span>,
        moved: fn(&Self, &str) -> Option<u64>,
    ) -> String {
        let new: Vec<(Span, String)> = spans
            .filter_map(|span| Some((span.clone(), moved(self, &message.text()[span])?.to_string())))
            .collect();
        let edits: Vec<(Span, &str)> = new.iter().map(|(span, text)| (span.clone(), text.as_str())).collect();
        message.splice(if self.offset == 0 { &[] } else { &edits })
    }

    fn to_child(&self, raw: &str) -> Option<u64> {
        number(raw, SMALL).map(|id| id + self.offset)
    }
}

/// Adds an open request. At the limit [`EDGE_OPEN`], forgets the smallest id first: among numbers
/// that is the oldest request, which is the least likely to be awaited.
fn remember<T: Ord>(open: &mut BTreeSet<T>, id: T) {
    if open.len() >= EDGE_OPEN {
        open.pop_first();
    }
    open.insert(id);
}

/// Returns the outcome of a message that arrives while the child is down: an error for requests.
fn reject(message: &Message<'_>, why: &str, due: Option<Instant>, now: Instant) -> ToChild {
    let (Kind::Request, Some(id)) = (message.kind(), message.id()) else {
        return ToChild::Drop("a message for a child that is down");
    };
    let text = match due.map(|due| due.saturating_duration_since(now)) {
        Some(rest) if !rest.is_zero() => format!("{why}; restarting in {:.1} s", rest.as_secs_f64()),
        Some(_) => format!("{why}; restarting now"),
        None => why.to_owned(),
    };
    ToChild::Gateway(jsonrpc::error(id, jsonrpc::DOWN, &text))
}

/// The error message for a request that arrives while the edge program is stopping.
pub const STOPPING: &str = "the edge is stopping";
/// Integers below this are exact in every JSON reader (2^53, the precision of a double).
const EXACT: u64 = 1 << 53;
/// Gateway ids below this are shifted. The offset is below it too, so that the sum stays exact.
const SMALL: u64 = 1 << 52;

/// Whether two raw JSON strings are equal after unescaping.
fn is_same_text(one: &str, other: &str) -> bool {
    one.starts_with('"') && other.starts_with('"') && unquote(one) == unquote(other)
}

/// Parses a number below `bound` that consists of digits only.
fn number(raw: &str, bound: u64) -> Option<u64> {
    let plain = raw.bytes().all(|byte| byte.is_ascii_digit());
    raw.parse().ok().filter(|number| plain && *number < bound)
}

#[cfg(test)]
mod table_tests;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    impl ProxyState {
        /// Handles a frame from the gateway when the time does not matter.
        fn gets(&mut self, frame: &str) -> ToChild {
            self.on_gateway_frame(Instant::now(), frame)
        }
    }

    #[test]
    fn stopping_refuses_new_requests_only() {
        let mut proxy = ProxyState::default();
        let call = |id: u64| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call"}}"#);
        assert_eq!(proxy.gets(&call(1)), ToChild::Child(call(1)));
        assert_eq!(proxy.running(), 1);
        proxy.stop();
        let refusal = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-31002,"message":"the edge is stopping"}}"#;
        assert_eq!(proxy.gets(&call(2)), ToChild::Gateway(refusal.into()));
        for frame in [
            r#"{"jsonrpc":"2.0","id":9,"result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message"}"#,
        ] {
            assert_eq!(proxy.gets(frame), ToChild::Child(frame.into()));
        }
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        assert_eq!(proxy.on_child_line(answer), ToGateway::Gateway(answer.into()));
        assert_eq!(proxy.running(), 0);
    }

    fn call(id: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"_meta":{{"progressToken":{id}}}}}}}"#
        )
    }

    fn answer(id: u64) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"n":{id}}}}}"#)
    }

    fn progress(token: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
        )
    }

    #[test]
    fn the_first_link_forwards_messages_unchanged() {
        let mut proxy = ProxyState::default();
        assert_eq!(proxy.gets(&call(1)), ToChild::Child(call(1)));
        assert_eq!(proxy.on_child_line(&progress(1)), ToGateway::Gateway(progress(1)));
        assert_eq!(proxy.on_child_line(&answer(1)), ToGateway::Gateway(answer(1)));
        let ping = r#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#;
        assert_eq!(proxy.on_child_line(ping), ToGateway::Gateway(ping.into()));
        assert_eq!(proxy.on_child_line("Listening on port 3"), ToGateway::Noise);
        assert!(matches!(proxy.gets(r#"{"status":"registered","id":"x"}"#), ToChild::Status(_)));
    }

    #[test]
    fn answers_and_progress_with_ids_in_another_form_are_known() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(1));
        proxy.disconnected();
        for form in ["\"2\"", "2.0", "2e0", "20e-1", "\"2.0\""] {
            assert_eq!(proxy.gets(&call(0)), ToChild::Child(call(2)), "{form}");
            let in_form = |text: String| {
                text.replace(":2,", &format!(":{form},")).replace(":2}", &format!(":{form}}}"))
            };
            assert_eq!(proxy.on_child_line(&in_form(progress(2))), ToGateway::Gateway(progress(0)), "{form}");
            let result = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert_eq!(proxy.on_child_line(&result(form)), ToGateway::Gateway(result("0")), "{form}");
            assert_eq!(proxy.running(), 0, "{form}");
            assert_eq!(proxy.on_child_line(&result(form)), ToGateway::Gateway(result("0")), "again: {form}");
            assert_eq!(proxy.on_child_line(&result("\"1\"")), ToGateway::Stale, "of the link before");
        }
        let named = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
        let result = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        proxy.gets(&named("\"7\""));
        assert_eq!(
            proxy.on_child_line(&result("7")),
            ToGateway::Gateway(result("\"7\"")),
            "the other way round"
        );
        assert_eq!(proxy.on_child_line(&result("\"9\"")), ToGateway::Unmatched(result("7")), "never asked");
        assert_eq!(proxy.on_child_line(&result("\"x\"")), ToGateway::Unmatched(result("\"x\"")));
    }

    #[test]
    fn an_answer_that_cannot_be_used_fails_its_request() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(1));
        proxy.disconnected();
        let failed = |id: &str| ToGateway::Gateway(jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, "no"));
        let named = r#"{"jsonrpc":"2.0","id":"x","method":"m"}"#;
        for id in [Some("2"), Some("\"2\""), None] {
            proxy.gets(&call(0));
            assert_eq!(proxy.unusable(id, "no"), failed("0"), "{id:?}");
            assert_eq!((proxy.unusable(Some("2"), "no"), proxy.running()), (ToGateway::Noise, 0));
        }
        proxy.gets(named);
        assert_eq!(proxy.unusable(None, "no"), failed("\"x\""));
        assert_eq!(proxy.unusable(None, "no"), ToGateway::Noise, "nothing is open");
        proxy.gets(named);
        proxy.gets(&call(0));
        assert_eq!(proxy.unusable(None, "no"), ToGateway::Noise, "it may be for either");
        let mut proxy = ProxyState::default();
        proxy.gets(r#"{"jsonrpc":"2.0","id":7,"method":"initialize","params":{}}"#);
        assert_eq!(proxy.unusable(None, "no"), failed("7"));
    }

    #[test]
    fn initialize_may_be_answered_under_its_id_in_another_form() {
        for form in ["\"1\"", "1.0", "1e0"] {
            let mut proxy = ProxyState::default();
            proxy.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
            let answer = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert_eq!(proxy.on_child_line(&answer(form)), ToGateway::Gateway(answer("1")), "{form}");
        }
    }

    #[test]
    fn text_tokens_of_a_gateway_stay_as_they_are() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(5));
        proxy.disconnected();
        let asks = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":"3"}}}"#;
        proxy.gets(asks);
        let told = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"3"}}"#;
        assert_eq!(proxy.on_child_line(told), ToGateway::Gateway(told.into()));
    }

    #[test]
    fn late_answers_do_not_reach_a_new_link() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(1));
        proxy.gets(&call(2));
        proxy.on_child_line(&answer(1));
        let lines = proxy.disconnected();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("\"requestId\":2"), "{lines:?}");
        assert_eq!(proxy.gets(&call(1)), ToChild::Child(call(4)));
        assert_eq!(proxy.on_child_line(&answer(2)), ToGateway::Stale);
        assert_eq!(proxy.on_child_line(&progress(2)), ToGateway::Stale);
        assert_eq!(proxy.on_child_line(&progress(4)), ToGateway::Gateway(progress(1)));
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(proxy.gets(cancel), ToChild::Child(cancel.replace(":1}", ":4}")));
        assert_eq!(
            proxy.on_child_line(&answer(4)),
            ToGateway::Gateway(answer(1).replace("\"n\":1", "\"n\":4"))
        );
        assert!(proxy.disconnected().is_empty());
    }

    #[test]
    fn an_id_of_0_is_valid() {
        let mut proxy = ProxyState::default();
        for _ in 0..3 {
            let ToChild::Child(line) = proxy.gets(&call(0)) else { panic!("no line") };
            let theirs = Message::read(&line).unwrap().id().unwrap().parse().unwrap();
            assert!(
                matches!(proxy.on_child_line(&answer(theirs)), ToGateway::Gateway(frame) if frame.contains("\"id\":0,"))
            );
            proxy.disconnected();
        }
    }

    #[test]
    fn a_child_is_initialized_once() {
        let mut proxy = ProxyState::default();
        let initialize = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(proxy.gets(&initialize(1)), ToChild::Child(initialize(1)));
        assert_eq!(proxy.on_child_line(&answer(1)), ToGateway::Gateway(answer(1)));
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()));
        assert!(proxy.disconnected().is_empty());
        let known = r#"{"jsonrpc":"2.0","id":9,"result":{"n":1}}"#;
        assert_eq!(proxy.gets(&initialize(9)), ToChild::Gateway(known.into()));
        assert!(matches!(proxy.gets(done), ToChild::Drop(_)));
    }

    #[test]
    fn an_initialize_that_outlives_its_link_answers_the_next() {
        let mut proxy = ProxyState::default();
        let initialize = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        proxy.gets(&initialize(1));
        assert!(proxy.disconnected().is_empty(), "initialize is never cancelled");
        assert!(matches!(proxy.gets(&initialize(5)), ToChild::Drop(_)));
        assert_eq!(
            proxy.on_child_line(&answer(1)),
            ToGateway::Gateway(answer(5).replace("\"n\":5", "\"n\":1"))
        );
    }

    #[test]
    fn large_ids_survive_reconnects() {
        let mut proxy = ProxyState::default();
        for _ in 0..5000 {
            let id = SMALL - 1;
            let ToChild::Child(line) = proxy.gets(&call(id)) else { panic!("no line") };
            let theirs = Message::read(&line).unwrap().id().unwrap().parse().unwrap();
            assert!(theirs < EXACT);
            let ToGateway::Gateway(frame) = proxy.on_child_line(&answer(theirs)) else { panic!("no answer") };
            assert_eq!(Message::read(&frame).unwrap().id(), Some(id.to_string().as_str()));
            proxy.disconnected();
        }
    }

    #[test]
    fn frames_that_must_not_reach_the_child() {
        let mut proxy = ProxyState::default();
        proxy.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert!(matches!(proxy.gets(cancel), ToChild::Drop(_)), "initialize is never cancelled");
        let ambiguous = cancel.replace(":1}", ":2,\"requestId\":3}");
        assert!(matches!(proxy.gets(&ambiguous), ToChild::Drop(_)));
        assert!(matches!(proxy.gets(&call(SMALL)), ToChild::Gateway(error) if error.contains("2^52")));
        assert!(matches!(proxy.gets(&call(EXACT)), ToChild::Child(line) if line == call(EXACT)));
    }

    #[test]
    fn a_refused_initialize_is_asked_again() {
        let mut proxy = ProxyState::default();
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
        proxy.gets(initialize);
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#;
        assert_eq!(proxy.on_child_line(error), ToGateway::Gateway(error.into()));
        proxy.disconnected();
        assert!(matches!(proxy.gets(initialize), ToChild::Child(_)));
    }

    #[test]
    fn a_restarted_child_that_first_refused_gets_initialized() {
        let mut proxy = running(false);
        proxy.child_gone("it crashed", None);
        assert_eq!(proxy.child_back(), Some(initialize_request(1)));
        assert!(matches!(proxy.gets(&initialize_request(2)), ToChild::Drop(_)));
        let error = |id| jsonrpc::error(id, 1, "not yet");
        assert_eq!(
            proxy.on_child_line(&error("1")),
            ToGateway::Ready { lines: vec![], frames: vec![error("2")] }
        );
        assert_eq!(proxy.gets(&initialize_request(3)), ToChild::Child(initialize_request(3)));
        assert_eq!(
            proxy.on_child_line(&initialize_response(3, "{}")),
            ToGateway::Gateway(initialize_response(3, "{}"))
        );
        assert_eq!(proxy.gets(DONE), ToChild::Child(DONE.into()));
    }

    const DONE: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

    fn initialize_request(id: u64) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{"x":1}}}}"#)
    }

    fn initialize_response(id: u64, capabilities: &str) -> String {
        jsonrpc::result(&id.to_string(), &format!("{{\"capabilities\":{capabilities}}}"))
    }

    fn changed(kind: &str) -> String {
        jsonrpc::notification(&format!("notifications/{kind}/list_changed"), None)
    }

    /// Returns a proxy whose child is initialized. `reads_status_frames` selects our gateway or the
    /// original one.
    fn running(reads_status_frames: bool) -> ProxyState {
        let mut proxy = ProxyState::default();
        if reads_status_frames {
            proxy.gateway_reads_status_frames();
        }
        assert_eq!(proxy.gets(&initialize_request(1)), ToChild::Child(initialize_request(1)));
        assert_eq!(
            proxy.on_child_line(&initialize_response(1, "{}")),
            ToGateway::Gateway(initialize_response(1, "{}"))
        );
        assert_eq!(proxy.gets(DONE), ToChild::Child(DONE.into()));
        proxy
    }

    #[test]
    fn open_calls_of_an_exited_child_get_errors() {
        let mut proxy = running(true);
        proxy.gets(&call(2));
        proxy.disconnected();
        let text = r#"{"jsonrpc":"2.0","id":"a","method":"m"}"#;
        for (frame, line) in [(call(2), call(2 + 3)), (call(3), call(3 + 3)), (text.into(), text.into())] {
            assert_eq!(proxy.gets(&frame), ToChild::Child(line));
        }
        proxy.on_child_line(&answer(5));
        let error = |id| jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, "server 's' exited with status 3");
        assert_eq!(proxy.child_gone("server 's' exited with status 3", None), [error("3"), error("\"a\"")]);
        assert_eq!(proxy.on_child_line(&answer(6)), ToGateway::Stale, "it is dead");
        assert!(proxy.child_gone("x", None).is_empty(), "once is enough");
        assert!(proxy.disconnected().is_empty());
    }

    #[test]
    fn calls_to_a_stopped_child_fail_at_once() {
        let (mut proxy, now) = (running(true), Instant::now());
        proxy.child_gone("server 's' exited with status 3", Some(now + Duration::from_millis(1500)));
        assert!(!proxy.is_up());
        for (after, words) in [(0, "restarting in 1.5 s"), (1400, "in 0.1 s"), (1500, "restarting now")] {
            let down = proxy.on_gateway_frame(now + Duration::from_millis(after), &call(7));
            let ToChild::Gateway(error) = down else { panic!("{down:?}") };
            let error = Message::read(&error).unwrap();
            assert_eq!(error.id(), Some("7"));
            let told = error.error().unwrap();
            assert!(
                told.contains("-31002")
                    && told.contains("exited with status 3; restarting")
                    && told.contains(words)
            );
        }
        for frame in [changed("roots"), answer(1), progress(1)] {
            assert!(matches!(proxy.gets(&frame), ToChild::Drop(_)), "{frame}");
        }
        proxy.child_gone("server 's' cannot be started", None);
        assert!(
            matches!(proxy.gets(&call(8)), ToChild::Gateway(error) if error.contains("cannot be started\""))
        );
    }

    #[test]
    fn a_restarted_child_is_initialized_and_announced() {
        for (reads_status_frames, capabilities, told) in [
            (true, r#"{"prompts":{}}"#, vec![Status::restarted(), changed("tools"), changed("prompts")]),
            (false, r#"{"tools":{},"resources":{}}"#, vec![changed("tools"), changed("resources")]),
        ] {
            let mut proxy = running(reads_status_frames);
            proxy.child_gone("x", None);
            assert_eq!(proxy.child_back(), Some(initialize_request(1)), "as the gateway sent it");
            assert!(proxy.is_initializing() && !proxy.is_up());
            // Gateway messages are held in order; messages of the child pass.
            for frame in [call(2), changed("roots"), call(3)] {
                assert_eq!(proxy.gets(&frame), ToChild::Held);
            }
            assert_eq!(proxy.on_child_line(&changed("tools")), ToGateway::Gateway(changed("tools")));
            assert!(matches!(proxy.gets(&answer(9)), ToChild::Drop(_)), "an answer to the dead one");
            let lines = vec![DONE.into(), call(2), changed("roots"), call(3)];
            assert_eq!(
                proxy.on_child_line(&initialize_response(1, capabilities)),
                ToGateway::Ready { lines, frames: told }
            );
            assert!(proxy.is_up());
            assert_eq!(proxy.on_child_line(&answer(2)), ToGateway::Gateway(answer(2)));
            assert_eq!(
                proxy.gets(&initialize_request(9)),
                ToChild::Gateway(initialize_response(9, capabilities)),
                "the new result is kept"
            );
            assert_eq!(proxy.child_gone("x", None).len(), 1);
        }
    }

    #[test]
    fn requests_of_an_initializing_child_are_answered() {
        let mut proxy = running(true);
        proxy.child_gone("x", None);
        proxy.child_back();
        let ping = r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#;
        assert_eq!(proxy.on_child_line(ping), ToGateway::Gateway(ping.into()));
        assert_eq!(proxy.gets(&answer(9)), ToChild::Child(answer(9)));
    }

    #[test]
    fn held_frames_are_bounded_and_fail_with_the_child() {
        let mut proxy = running(true);
        proxy.child_gone("x", None);
        proxy.child_back();
        for id in 0..EDGE_HELD as u64 {
            assert_eq!(proxy.gets(&call(id)), ToChild::Held);
        }
        assert!(matches!(proxy.gets(&call(999)), ToChild::Gateway(busy) if busy.contains("-32000")));
        assert!(matches!(proxy.gets(&changed("roots")), ToChild::Drop(_)));
        assert_eq!(proxy.child_gone("it died again", None).len(), EDGE_HELD);
        proxy.child_back();
        let large = call(1).replace("tools/call", &"x".repeat(EDGE_HELD_BYTES / 2));
        assert_eq!(proxy.gets(&large), ToChild::Held);
        assert!(matches!(proxy.gets(&large), ToChild::Gateway(_)));
        proxy.disconnected();
        assert_eq!(proxy.child_gone("x", None), [""; 0], "nobody waits any more");
    }

    #[test]
    fn the_first_initialize_waits_for_the_next_child() {
        let mut proxy = ProxyState::default();
        proxy.gets(&initialize_request(1));
        assert!(proxy.child_gone("x", None).is_empty(), "it is not failed");
        assert!(proxy.child_gone("x", None).is_empty());
        for _ in 0..3 {
            assert_eq!(proxy.child_back(), Some(initialize_request(1)));
            assert!(proxy.child_gone("x", None).is_empty());
        }
        assert_eq!(proxy.child_back(), Some(initialize_request(1)));
        let frames = vec![initialize_response(1, "{}")];
        assert_eq!(
            proxy.on_child_line(&initialize_response(1, "{}")),
            ToGateway::Ready { lines: vec![], frames }
        );
        assert_eq!(proxy.gets(DONE), ToChild::Child(DONE.into()), "by the gateway, as ever");
    }

    #[test]
    fn an_initialize_while_the_child_is_down_waits_for_it() {
        // The very first `initialize`.
        let mut proxy = ProxyState::default();
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(&initialize_request(4)), ToChild::Drop(_)));
        assert_eq!(proxy.child_back(), Some(initialize_request(4)));
        let frames = vec![initialize_response(4, "{}")];
        assert_eq!(
            proxy.on_child_line(&initialize_response(4, "{}")),
            ToGateway::Ready { lines: vec![], frames }
        );
        // An `initialize` of a later link: it gets the result of the new child.
        let mut proxy = running(true);
        proxy.child_gone("x", None);
        proxy.disconnected();
        assert!(matches!(proxy.gets(&initialize_request(5)), ToChild::Drop(_)));
        assert_eq!(proxy.child_back(), Some(initialize_request(1)));
        let (lines, frames) = (vec![DONE.into()], vec![initialize_response(5, "{\"a\":1}")]);
        assert_eq!(
            proxy.on_child_line(&initialize_response(1, "{\"a\":1}")),
            ToGateway::Ready { lines, frames }
        );
        assert!(matches!(proxy.gets(DONE), ToChild::Drop(_)), "it was told already");
        // While the new child initializes, and with `initialized` arriving too early.
        proxy.child_gone("x", None);
        proxy.child_back();
        proxy.disconnected();
        proxy.gets(&initialize_request(6));
        assert!(
            matches!(proxy.on_child_line(&initialize_response(1, "{}")), ToGateway::Ready { frames, .. } if frames.len() == 1)
        );
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(DONE), ToChild::Drop(_)));
        proxy.child_back();
        assert!(
            matches!(proxy.on_child_line(&initialize_response(1, "{}")), ToGateway::Ready { lines, .. } if lines == [DONE.to_owned()])
        );
    }

    #[test]
    fn a_child_that_refuses_reinitialize_is_restarted() {
        let refusal = jsonrpc::error("1", -32603, "no");
        let mut proxy = running(true);
        proxy.child_gone("x", None);
        proxy.child_back();
        proxy.gets(&call(2));
        assert_eq!(proxy.on_child_line(&refusal), ToGateway::Refused);
        assert_eq!(proxy.child_gone("x", None).len(), 1, "what waited is failed");
        assert_eq!(proxy.child_back(), Some(initialize_request(1)), "the next one may");
        // If the gateway waits for `initialize`, it gets the error instead.
        proxy.disconnected();
        proxy.gets(&initialize_request(7));
        let ToGateway::Ready { frames, .. } = proxy.on_child_line(&refusal) else { panic!("not ready") };
        assert_eq!(frames, [jsonrpc::error("7", -32603, "no")]);
        assert!(matches!(proxy.gets(&initialize_request(8)), ToChild::Child(_)), "and asks the child itself");
    }

    #[test]
    fn only_the_newest_open_requests_are_remembered() {
        let mut proxy = running(true);
        for id in 0..EDGE_OPEN as u64 + 10 {
            proxy.gets(&call(id + 2));
            proxy.gets(&format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"m"}}"#));
        }
        let long = "x".repeat(ID_BYTES);
        assert!(matches!(
            proxy.gets(&format!(r#"{{"jsonrpc":"2.0","id":"{long}","method":"m"}}"#)),
            ToChild::Child(_)
        ));
        let failed = proxy.child_gone("x", None);
        assert_eq!(failed.len(), 2 * EDGE_OPEN);
        assert!(failed[0].contains("\"id\":12,") && !failed.concat().contains(&long));
    }

    #[test]
    fn an_initialize_that_cannot_be_forwarded_is_not_stored() {
        let ambiguous = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"progressToken":1,"progressToken":2}}}"#;
        for is_down in [false, true] {
            let mut proxy = ProxyState::default();
            if is_down {
                proxy.child_gone("x", None);
            }
            assert!(matches!(proxy.gets(ambiguous), ToChild::Drop(_)));
            let large = proxy.gets(&initialize_request(SMALL));
            assert!(matches!(large, ToChild::Gateway(error) if error.contains("2^52")));
            proxy.child_gone("x", None);
            assert_eq!(proxy.child_back(), None);
            assert!(proxy.is_up());
            assert_eq!(proxy.gets(&initialize_request(2)), ToChild::Child(initialize_request(2)));
        }
    }

    #[test]
    fn an_early_initialized_reaches_the_child_once() {
        let mut proxy = ProxyState::default();
        proxy.gets(&initialize_request(1));
        assert_eq!(proxy.gets(DONE), ToChild::Child(DONE.into()));
        assert!(matches!(proxy.gets(DONE), ToChild::Drop(_)));
        proxy.on_child_line(&initialize_response(1, "{}"));
        assert!(matches!(proxy.gets(DONE), ToChild::Drop(_)));
        // The next child gets it, too.
        proxy.child_gone("x", None);
        proxy.child_back();
        assert!(
            matches!(proxy.on_child_line(&initialize_response(1, "{}")), ToGateway::Ready { lines, .. } if lines == [DONE.to_owned()])
        );
    }

    #[test]
    fn an_initialize_response_between_two_links_is_kept() {
        let mut proxy = ProxyState::default();
        proxy.gets(&initialize_request(1));
        proxy.disconnected();
        assert_eq!(proxy.on_child_line(&initialize_response(1, "{}")), ToGateway::Stale);
        assert_eq!(proxy.gets(&initialize_request(5)), ToChild::Gateway(initialize_response(5, "{}")));
    }

    #[test]
    fn an_initialize_refused_between_two_links_is_asked_again() {
        let mut proxy = ProxyState::default();
        proxy.gets(&initialize_request(1));
        proxy.disconnected();
        assert_eq!(proxy.on_child_line(&jsonrpc::error("1", 1, "no")), ToGateway::Stale);
        assert_eq!(proxy.gets(&initialize_request(5)), ToChild::Child(initialize_request(7)));
    }

    #[test]
    fn ids_that_begin_again_forget_an_open_initialize() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(SMALL - 1));
        proxy.on_child_line(&answer(SMALL - 1));
        proxy.gets(&initialize_request(0));
        assert!(proxy.disconnected().is_empty());
        assert_eq!(proxy.gets(&initialize_request(3)), ToChild::Child(initialize_request(3)));
        // A restarted child has the stored one.
        proxy.gets(&call(SMALL - 1));
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), Some(initialize_request(3)));
        proxy.disconnected();
        assert!(proxy.is_initializing());
        assert!(matches!(proxy.on_child_line(&initialize_response(3, "{}")), ToGateway::Ready { .. }));
    }

    #[test]
    fn a_child_that_was_never_initialized_is_up_at_once() {
        let mut proxy = ProxyState::default();
        proxy.child_gone("x", None);
        assert!(!proxy.is_up());
        assert_eq!(proxy.child_back(), None);
        assert!(proxy.is_up() && !proxy.is_initializing());
        assert_eq!(proxy.gets(&call(1)), ToChild::Child(call(1)));
    }
    #[test]
    fn an_initialized_without_initialize_does_not_replace_the_real_one() {
        let refusal = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#;
        let request = r#"{"jsonrpc":"2.0","id":2,"method":"initialize","params":{}}"#;
        let response = r#"{"jsonrpc":"2.0","id":2,"result":{"capabilities":{}}}"#;
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        // After a refused `initialize`.
        let mut proxy = ProxyState::default();
        proxy.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
        assert_eq!(proxy.on_child_line(refusal), ToGateway::Gateway(refusal.into()));
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()));
        assert_eq!(proxy.gets(request), ToChild::Child(request.into()));
        assert_eq!(proxy.on_child_line(response), ToGateway::Gateway(response.into()));
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()), "after a refusal");
        // While the child is down.
        let mut proxy = ProxyState::default();
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(done), ToChild::Drop(_)));
        proxy.child_back();
        assert_eq!(proxy.gets(request), ToChild::Child(request.into()));
        proxy.on_child_line(response);
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()), "after a restart");
        // With an `initialize` that is forgotten because the ids begin again.
        let mut proxy = ProxyState::default();
        proxy.gets(&call(SMALL - 1));
        proxy.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()));
        proxy.disconnected();
        assert_eq!(proxy.gets(request), ToChild::Child(request.into()));
        proxy.on_child_line(response);
        assert_eq!(proxy.gets(done), ToChild::Child(done.into()), "after ids that begin again");
    }

    #[test]
    fn an_unusable_line_of_an_ended_child_is_stale() {
        let mut proxy = running(true);
        proxy.gets(&call(2));
        proxy.child_gone("x", None);
        for id in [None, Some("2"), Some("1")] {
            assert_eq!(proxy.unusable(id, "no"), ToGateway::Stale, "{id:?}");
        }
    }
}
