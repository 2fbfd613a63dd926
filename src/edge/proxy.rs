//! The state machine between gateway and child: which messages pass in each direction, and with
//! which ids.
//!
//! The child outlives a link. The edge therefore answers a repeated `initialize` with the child's
//! stored result, and shifts the request ids of each later link (`edge::request_ids`).
//!
//! A link outlives a child, too. When the child ends, the edge answers its open requests and those
//! that arrive while it is down with errors. The next child gets the stored `initialize`; messages
//! that arrive before its result are held, and the gateway is made to list again. Only the first
//! message to a child never fails: `initialize`, and `server/discover` if there was no `initialize`,
//! wait for the next child. A child that was never initialized, because it speaks MCP 2026-07-28, is
//! up at once, and the gateway is told of the restart if it finds out the era.
//!
//! Pure; `edge::state` drives it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{collections::VecDeque, mem, time::Instant};

use super::request_ids::{Answered, Rejected, RequestIds};
use crate::{
    jsonrpc::{self, Kind, Message, RpcError, edit, find, is_same, unquote},
    limits::{EDGE_HELD, EDGE_HELD_BYTES},
    tunnel::handshake::Status,
};

/// The error message for a request that arrives while the edge program is stopping.
pub const STOPPING: &str = "the edge is stopping";

/// The data of the errors for requests that a server did not answer before it exited.
const EXITED: &str = "{\"exited\":true}";

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

/// What follows the start of a child.
#[derive(Debug, Eq, PartialEq)]
pub enum ChildStart {
    /// The child gets these lines first: the deferred `server/discover`, the stored `initialize`.
    Lines(Vec<String>),
    /// The gateway gets this frame first: it reports the restart, since the gateway has to ask the
    /// child for its era again.
    Report(String),
    /// Messages pass.
    Up,
}

/// Why the input queue of the child did not take a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotTaken {
    /// It is full.
    Full,
    /// It is closed, because the child has exited.
    Closed,
}

impl NotTaken {
    /// Returns the reason for logs and errors.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "the server does not read its input",
            Self::Closed => "the server has exited",
        }
    }
}

/// The state of the child, with the data that exists only in that state.
#[derive(Clone, Debug, Default)]
enum ChildState {
    /// It runs, and no gateway has initialized it. Messages pass.
    #[default]
    Uninitialized,
    /// It runs and has got the gateway's `initialize`. Other messages pass.
    Initializing(PendingInitialize),
    /// It runs and has answered `initialize` with `result`. Messages pass; a repeated `initialize`
    /// is answered with `result`.
    Initialized { request: InitializeRequest, result: String },
    /// It was restarted and has got the stored `initialize`. Messages are held. `has_asked`: it has
    /// sent a request.
    Reinitializing { pending: PendingInitialize, held: HeldFrames, has_asked: bool },
    /// It has ended for the reason `why` and is restarted at `due`, if ever. Requests are refused.
    /// The next child gets `probe`, a `server/discover` of the current link, and `pending`.
    Down { why: String, due: Option<Instant>, probe: Option<String>, pending: Option<PendingInitialize> },
}

/// The gateway's `initialize` request, stored for each restart of the child.
#[derive(Clone, Debug, Default)]
struct InitializeRequest {
    /// The request as sent to the child.
    line: String,
    /// The raw id as sent to the child.
    id: String,
    /// The gateway has sent `notifications/initialized` after it. It does so once, so the edge
    /// repeats it to each new child.
    told: bool,
}

/// An `initialize` that the present or the next child has to answer.
#[derive(Clone, Debug, Default)]
struct PendingInitialize {
    request: InitializeRequest,
    /// The id under which the current link waits for the response.
    waiting: Option<String>,
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
    child: ChildState,
    ids: RequestIds,
    /// The current gateway reads status frames.
    reads_status_frames: bool,
    /// The current gateway finds out the era of the child, and so needs to know of each restart.
    finds_era: bool,
    /// A gateway has sent a request since the last start of a child.
    has_requested: bool,
    /// What the present or the last child got.
    got: Got,
    /// New requests are refused.
    stopping: bool,
}

/// What a child got from the gateway.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Got {
    #[default]
    Nothing,
    /// Nothing but `server/discover`, the question for its era.
    Probe,
    More,
}

impl InitializeRequest {
    /// Whether this is its id, in whatever form the child returns it.
    fn has_id(&self, raw: &str) -> bool {
        is_same(&self.id, raw) || is_same_text(&self.id, raw)
    }

    /// Returns the state of a child that was up and has answered with `result`, or refused.
    fn answered(self, result: Option<&str>) -> ChildState {
        match result {
            Some(result) => ChildState::Initialized { request: self, result: result.to_owned() },
            None => ChildState::Uninitialized,
        }
    }
}

impl ChildState {
    /// Returns the `initialize` that the child has got and not answered.
    fn asked(&self) -> Option<&InitializeRequest> {
        match self {
            Self::Initializing(pending) | Self::Reinitializing { pending, .. } => Some(&pending.request),
            Self::Uninitialized | Self::Initialized { .. } | Self::Down { .. } => None,
        }
    }

    /// Returns the `initialize` that the present or the next child has to answer.
    fn pending(&mut self) -> Option<&mut PendingInitialize> {
        match self {
            Self::Initializing(pending) | Self::Reinitializing { pending, .. } => Some(pending),
            Self::Down { pending, .. } => pending.as_mut(),
            Self::Uninitialized | Self::Initialized { .. } => None,
        }
    }

    /// Returns the `server/discover` and the `initialize` for the next child.
    fn into_stored(self) -> (Option<String>, Option<PendingInitialize>) {
        match self {
            Self::Initializing(pending) | Self::Reinitializing { pending, .. } => (None, Some(pending)),
            Self::Initialized { request, .. } => (None, Some(PendingInitialize { request, waiting: None })),
            Self::Down { probe, pending, .. } => (probe, pending),
            Self::Uninitialized => (None, None),
        }
    }
}

impl HeldFrames {
    /// Appends a frame. Returns false at the limits [`EDGE_HELD`] and [`EDGE_HELD_BYTES`].
    fn push(&mut self, frame: &str) -> bool {
        let bytes = self.bytes + frame.len();
        let fits = self.frames.len() < EDGE_HELD && bytes <= EDGE_HELD_BYTES;
        if fits {
            self.frames.push_back(frame.to_owned());
            self.bytes = bytes;
        }
        fits
    }

    /// Returns the raw ids of the requests.
    fn request_ids(&self) -> impl Iterator<Item = String> {
        let messages = self.frames.iter().filter_map(|frame| Message::read(frame).ok());
        messages.filter_map(|message| message.id().map(str::to_owned))
    }
}

impl ProxyState {
    /// Handles the loss of the link. Returns `notifications/cancelled` lines for the child's open
    /// requests.
    pub fn disconnected(&mut self) -> Vec<String> {
        (self.reads_status_frames, self.finds_era) = (false, false);
        if let Some(pending) = self.child.pending() {
            pending.waiting = None;
        }
        let (open, ids_begin_again) = self.ids.next_link();
        match &mut self.child {
            // A new request may get the id of this one, so its response could not be told apart.
            ChildState::Initializing(_) if ids_begin_again => self.child = ChildState::Uninitialized,
            ChildState::Reinitializing { held, .. } => *held = HeldFrames::default(),
            ChildState::Down { probe, .. } => *probe = None,
            _ => {}
        }
        open.into_iter().map(|id| edit::cancelled(id, "the link to the gateway was lost")).collect()
    }

    /// Handles the exit of the child. `why` is one sentence that names the server and says how it
    /// ended; `due` is the time of the restart, if any. Returns error responses for the gateway,
    /// one for each open or held request except `initialize`. Their data says that the server has
    /// exited, so that the gateway can tell them from an answer of the server.
    pub fn child_gone(&mut self, why: &str, due: Option<Instant>) -> Vec<String> {
        let mut ids = self.ids.fail_all();
        if let ChildState::Reinitializing { held, .. } = &self.child {
            ids.extend(held.request_ids());
        }
        let (probe, pending) = mem::take(&mut self.child).into_stored();
        self.child = ChildState::Down { why: why.into(), due, probe, pending };
        let (message, data) = (why.to_owned(), Some(EXITED.to_owned()));
        let error = RpcError { code: jsonrpc::INTERNAL_ERROR, message, data };
        ids.iter().map(|id| error.response(id)).collect()
    }

    /// Whether the present or the last child got `server/discover` and nothing else. Some servers
    /// exit at any first message but `initialize`.
    pub fn got_only_probe(&self) -> bool {
        self.got == Got::Probe
    }

    /// Handles the start of a new child.
    pub fn child_back(&mut self) -> ChildStart {
        let has_requested = mem::take(&mut self.has_requested);
        let (probe, pending) = mem::take(&mut self.child).into_stored();
        let probe = probe.as_deref().and_then(|frame| Message::read(frame).ok());
        let probe = probe.and_then(|message| self.ids.forward(&message).ok());
        self.got = match (&probe, &pending) {
            (_, Some(_)) => Got::More,
            (Some(_), None) => Got::Probe,
            (None, None) => Got::Nothing,
        };
        let initialize = pending.as_ref().map(|pending| pending.request.line.clone());
        if let Some(pending) = pending {
            let held = HeldFrames::default();
            self.child = ChildState::Reinitializing { pending, held, has_asked: false };
        }
        match Vec::from_iter(probe.into_iter().chain(initialize)) {
            lines if !lines.is_empty() => ChildStart::Lines(lines),
            _ if has_requested && self.finds_era => ChildStart::Report(Status::restarted()),
            _ => ChildStart::Up,
        }
    }

    /// Records that the gateway of the current link reads status frames.
    pub fn gateway_reads_status_frames(&mut self) {
        self.reads_status_frames = true;
    }

    /// Records that the gateway of the current link finds out the era of the child.
    pub fn gateway_finds_era(&mut self) {
        self.finds_era = true;
    }

    /// Refuses new requests from now on, because the program is stopping.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Returns the number of requests that the child has not answered, plus the frames held until
    /// it is initialized. A `subscriptions/listen` does not count: nobody waits for its response.
    pub fn running(&self) -> usize {
        match &self.child {
            ChildState::Reinitializing { held, .. } => self.ids.count() + held.frames.len(),
            _ => self.ids.count(),
        }
    }

    /// Whether the child accepts requests.
    pub fn is_up(&self) -> bool {
        match &self.child {
            ChildState::Uninitialized | ChildState::Initializing(_) | ChildState::Initialized { .. } => true,
            ChildState::Reinitializing { .. } | ChildState::Down { .. } => false,
        }
    }

    /// Whether the child was restarted and has not answered `initialize` yet.
    pub fn is_initializing(&self) -> bool {
        matches!(self.child, ChildState::Reinitializing { .. })
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
        self.has_requested |= message.kind() == Kind::Request;
        let outcome = self.on_message(now, &message);
        if let ToChild::Child(_) = outcome {
            let is_first = self.got != Got::More;
            self.got = if is_first && is_probe(&message) { Got::Probe } else { Got::More };
        }
        outcome
    }

    /// Handles a message of the gateway.
    fn on_message(&mut self, now: Instant, message: &Message<'_>) -> ToChild {
        match (message.kind(), message.method()) {
            (Kind::Request, "initialize") => return self.on_initialize(message),
            (Kind::Notification, "notifications/initialized") => return self.on_initialized(message),
            _ => {}
        }
        match &mut self.child {
            ChildState::Uninitialized | ChildState::Initialized { .. } => pass(&mut self.ids, message, None),
            ChildState::Initializing(pending) => pass(&mut self.ids, message, Some(&pending.request)),
            ChildState::Reinitializing { held, has_asked, .. } => hold(held, *has_asked, message),
            ChildState::Down { probe: probe @ None, pending: None, .. } if is_probe(message) => {
                *probe = Some(message.text().to_owned());
                ToChild::Drop("server/discover: deferred until the child is up")
            }
            ChildState::Down { why, due, .. } => reject(message, why, *due, now),
        }
    }

    /// Handles the gateway's `initialize`.
    fn on_initialize(&mut self, message: &Message<'_>) -> ToChild {
        let id = message.id().unwrap_or_default();
        match &mut self.child {
            ChildState::Initialized { result, .. } => ToChild::Gateway(jsonrpc::result(id, result)),
            ChildState::Initializing(pending)
            | ChildState::Reinitializing { pending, .. }
            | ChildState::Down { pending: Some(pending), .. } => {
                pending.waiting = Some(id.to_owned());
                ToChild::Drop("a second initialize: an earlier one is pending")
            }
            ChildState::Uninitialized | ChildState::Down { pending: None, .. } => {
                self.store_initialize(message, id)
            }
        }
    }

    /// Stores an `initialize`, for a child that is up or down and has none. The current link waits
    /// for the response under `id`.
    fn store_initialize(&mut self, message: &Message<'_>, id: &str) -> ToChild {
        let line = match self.ids.shift(message) {
            Ok(line) => line,
            Err(why) => return refuse(message, &why),
        };
        let request = InitializeRequest { line: line.clone(), id: self.ids.child_id(id), told: false };
        let first = PendingInitialize { request, waiting: Some(id.to_owned()) };
        if let ChildState::Down { pending, .. } = &mut self.child {
            *pending = Some(first);
            return ToChild::Drop("initialize: deferred until the child is up");
        }
        self.child = ChildState::Initializing(first);
        ToChild::Child(line)
    }

    /// Handles the gateway's `notifications/initialized`.
    fn on_initialized(&mut self, message: &Message<'_>) -> ToChild {
        const ALREADY: ToChild = ToChild::Drop("initialized: the child is already initialized");
        match &mut self.child {
            // Nothing is remembered: the next `initialize` is followed by its own.
            ChildState::Uninitialized => ToChild::Child(message.splice(&[])),
            ChildState::Down { pending: None, .. } => ToChild::Drop("initialized: the child is down"),
            ChildState::Initializing(PendingInitialize { request, .. })
            | ChildState::Initialized { request, .. } => match mem::replace(&mut request.told, true) {
                true => ALREADY,
                false => ToChild::Child(message.splice(&[])),
            },
            ChildState::Reinitializing { pending, .. } | ChildState::Down { pending: Some(pending), .. } => {
                match mem::replace(&mut pending.request.told, true) {
                    true => ALREADY,
                    // The child gets the notification as soon as it is initialized.
                    false => ToChild::Drop("initialized: deferred until the child is initialized"),
                }
            }
        }
    }

    /// Takes back a line, just returned as [`ToChild::Child`], that the child's queue did not take.
    /// Returns an error if it is a request. An `initialize` for a child that has exited is kept for
    /// the next child instead.
    pub fn not_taken(&mut self, line: &str, why: NotTaken) -> ToChild {
        let request = Message::read(line).ok().filter(|message| message.kind() == Kind::Request);
        let Some(raw) = request.as_ref().and_then(Message::id) else {
            return ToChild::Drop("a message that the child did not take");
        };
        let is_initialize =
            matches!(&self.child, ChildState::Initializing(pending) if pending.request.id == raw);
        let code = match why {
            // [`ProxyState::child_gone`] follows.
            NotTaken::Closed if is_initialize => {
                return ToChild::Drop("initialize for a child that has exited");
            }
            NotTaken::Closed => jsonrpc::DOWN,
            NotTaken::Full => jsonrpc::BUSY,
        };
        if is_initialize {
            self.child = ChildState::Uninitialized;
        }
        ToChild::Gateway(jsonrpc::error(&self.ids.take_back(raw), code, why.reason()))
    }

    /// Handles a line from the child.
    pub fn on_child_line(&mut self, line: &str) -> ToGateway {
        if matches!(self.child, ChildState::Down { .. }) {
            return ToGateway::Stale;
        }
        let Ok(message) = Message::read(line) else { return ToGateway::Noise };
        match message.kind() {
            Kind::Response => self.on_response(&message),
            Kind::Notification => match self.ids.notification(&message) {
                Ok(Some(frame)) => ToGateway::Gateway(frame),
                Ok(None) => ToGateway::Stale,
                Err(_) => ToGateway::Noise,
            },
            Kind::Request => {
                if let ChildState::Reinitializing { has_asked, .. } = &mut self.child {
                    *has_asked = true;
                }
                ToGateway::Gateway(message.splice(&[]))
            }
        }
    }

    /// Fails a request whose response from the child cannot be used, with the error message
    /// `message`. Without an id, the response can only belong to the one open request, if there is
    /// exactly one.
    pub fn unusable(&mut self, id: Option<&str>, message: &str) -> ToGateway {
        if matches!(self.child, ChildState::Down { .. }) {
            return ToGateway::Stale;
        }
        let asked = self.child.asked();
        let id = match id {
            Some(id) => Some(id.to_owned()),
            None if self.ids.count() + usize::from(asked.is_some()) == 1 => {
                self.ids.first_open().or_else(|| asked.map(|request| request.id.clone()))
            }
            None => None,
        };
        let is_open = |id: &String| asked.is_some_and(|request| request.has_id(id)) || self.ids.is_open(id);
        match id.filter(is_open) {
            Some(id) => self.on_child_line(&jsonrpc::error(&id, jsonrpc::INTERNAL_ERROR, message)),
            None => ToGateway::Noise,
        }
    }

    /// Handles a response of the child.
    fn on_response(&mut self, message: &Message<'_>) -> ToGateway {
        let is_initialize =
            self.child.asked().zip(message.id()).is_some_and(|(request, id)| request.has_id(id));
        match &mut self.child {
            ChildState::Initializing(pending) if is_initialize => {
                let PendingInitialize { request, waiting } = mem::take(pending);
                self.child = request.answered(message.result());
                waiting.map_or(ToGateway::Stale, |id| ToGateway::Gateway(message.with_id(&id)))
            }
            ChildState::Reinitializing { pending, held, .. } if is_initialize => {
                if pending.waiting.is_none() && message.result().is_none() {
                    return ToGateway::Refused;
                }
                let (PendingInitialize { request, waiting }, held) = (mem::take(pending), mem::take(held));
                self.child = request.answered(message.result());
                self.ready(waiting.map(|id| message.with_id(&id)), &held)
            }
            _ => match self.ids.answer(message) {
                Answered::Matched(frame) => ToGateway::Gateway(frame),
                Answered::Unmatched(frame) => ToGateway::Unmatched(frame),
                Answered::Stale => ToGateway::Stale,
            },
        }
    }

    /// Releases the held messages to a restarted child that has answered `initialize`. `answer` is
    /// the response for the gateway, if it waits for one.
    ///
    /// The child may have refused. It gets the held messages all the same: the gateway gets the
    /// error and sends `initialize` again.
    fn ready(&mut self, answer: Option<String>, held: &HeldFrames) -> ToGateway {
        let (mut lines, mut frames) = (Vec::new(), Vec::from_iter(answer));
        if let ChildState::Initialized { request, result } = &self.child {
            if request.told {
                // The gateway sends this once. It comes before the held messages.
                lines.push(jsonrpc::notification("notifications/initialized", None));
            }
            // A gateway that gets the response to `initialize` lists after it anyway.
            if frames.is_empty() {
                frames = announcement(result, self.reads_status_frames);
            }
        }
        for frame in &held.frames {
            match Message::read(frame).map(|message| pass(&mut self.ids, &message, None)) {
                Ok(ToChild::Child(line)) => lines.push(line),
                Ok(ToChild::Gateway(frame)) => frames.push(frame),
                _ => {}
            }
        }
        ToGateway::Ready { lines, frames }
    }
}

/// Whether a message is the question for the era of the child.
fn is_probe(message: &Message<'_>) -> bool {
    message.kind() == Kind::Request && message.method() == "server/discover"
}

/// Handles a message for a child that is up, other than `initialize` and
/// `notifications/initialized`. `asked` is the `initialize` that it has not answered.
fn pass(ids: &mut RequestIds, message: &Message<'_>, asked: Option<&InitializeRequest>) -> ToChild {
    match (message.kind(), message.method()) {
        (Kind::Request, _) => match ids.forward(message) {
            Ok(line) => ToChild::Child(line),
            Err(why) => refuse(message, &why),
        },
        (Kind::Notification, "notifications/cancelled") => cancel(ids, message, asked),
        _ => ToChild::Child(message.splice(&[])),
    }
}

/// Handles a cancellation. `initialize` cannot be cancelled: later links need its result.
fn cancel(ids: &mut RequestIds, message: &Message<'_>, asked: Option<&InitializeRequest>) -> ToChild {
    let Ok(id) = message.param(&["requestId"]) else {
        return ToChild::Drop("a cancellation with an ambiguous request id");
    };
    let raw = id.clone().map(|id| &message.text()[id]);
    if asked.zip(raw).is_some_and(|(request, raw)| request.has_id(&ids.child_id(raw))) {
        return ToChild::Drop("a cancellation of initialize");
    }
    ToChild::Child(ids.cancel(message, id))
}

/// Handles a message for a restarted child that is not initialized yet. `has_asked`: the child has
/// sent a request.
fn hold(held: &mut HeldFrames, has_asked: bool, message: &Message<'_>) -> ToChild {
    match (message.kind(), message.id()) {
        (Kind::Response, _) if has_asked => ToChild::Child(message.splice(&[])),
        // It answers a request of the previous child.
        (Kind::Response, _) => ToChild::Drop("a response without a pending request"),
        _ if held.push(message.text()) => ToChild::Held,
        (_, Some(id)) => {
            let why = "the server is starting, and too many calls are waiting for it";
            ToChild::Gateway(jsonrpc::error(id, jsonrpc::BUSY, why))
        }
        (_, None) => ToChild::Drop("a notification: the queue is full"),
    }
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

/// Returns the outcome of a request that cannot be forwarded.
fn refuse(message: &Message<'_>, why: &Rejected) -> ToChild {
    match why {
        Rejected::AmbiguousToken => ToChild::Drop("a request with an ambiguous progress token"),
        Rejected::LargeNumber => {
            let why = "request ids and progress tokens from 2^52 to 2^53 are not supported";
            let id = message.id().unwrap_or_default();
            ToChild::Gateway(jsonrpc::error(id, jsonrpc::INVALID_REQUEST, why))
        }
    }
}

/// Returns the frames that make the gateway list again what a child has that answered `initialize`
/// with `result`. If the gateway reads status frames, one of those comes first, so that it treats
/// the notifications after it as part of the restart.
fn announcement(result: &str, reads_status_frames: bool) -> Vec<String> {
    let declared = |what: &str| matches!(find(result, 0..result.len(), &["capabilities", what]), Ok(Some(_)));
    // Some servers have tools without declaring the capability.
    let kinds =
        ["tools", "prompts", "resources"].into_iter().filter(|kind| *kind == "tools" || declared(kind));
    let changed =
        kinds.map(|kind| jsonrpc::notification(&format!("notifications/{kind}/list_changed"), None));
    reads_status_frames.then(Status::restarted).into_iter().chain(changed).collect()
}

/// Whether two raw JSON strings are equal after unescaping.
fn is_same_text(one: &str, other: &str) -> bool {
    one.starts_with('"') && other.starts_with('"') && unquote(one) == unquote(other)
}

#[cfg(test)]
mod table_tests;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        edge::request_ids::{EXACT, SMALL},
        limits::{EDGE_OPEN, ID_BYTES},
    };

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
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]));
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
        let error = |id| {
            let message = "server 's' exited with status 3";
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":"{message}","data":{{"exited":true}}}}}}"#
            )
        };
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
            assert_eq!(
                proxy.child_back(),
                ChildStart::Lines(vec![initialize_request(1)]),
                "as the gateway sent it"
            );
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
            assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]));
            assert!(proxy.child_gone("x", None).is_empty());
        }
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]));
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
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(4)]));
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
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]));
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
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]), "the next one may");
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
            assert_eq!(proxy.child_back(), ChildStart::Up);
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
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(3)]));
        proxy.disconnected();
        assert!(proxy.is_initializing());
        assert!(matches!(proxy.on_child_line(&initialize_response(3, "{}")), ToGateway::Ready { .. }));
    }

    #[test]
    fn a_child_that_was_never_initialized_is_up_at_once() {
        let mut proxy = ProxyState::default();
        proxy.child_gone("x", None);
        assert!(!proxy.is_up());
        assert_eq!(proxy.child_back(), ChildStart::Up);
        assert!(proxy.is_up() && !proxy.is_initializing());
        assert_eq!(proxy.gets(&call(1)), ToChild::Child(call(1)));
    }

    fn discover(id: u64) -> String {
        jsonrpc::request(&id.to_string(), "server/discover", "{}")
    }

    fn listen(id: &str) -> String {
        jsonrpc::request(id, "subscriptions/listen", "{}")
    }

    fn tagged(id: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{{"a":1,"_meta":{{"io.modelcontextprotocol/subscriptionId":{id},"b":2}}}}}}"#
        )
    }

    #[test]
    fn a_restart_without_initialize_is_reported_to_a_gateway_that_finds_out_the_era() {
        let report = || ChildStart::Report(Status::restarted());
        let mut proxy = ProxyState::default();
        assert_eq!(proxy.child_back(), ChildStart::Up, "the first start");
        proxy.gets(&discover(1));
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), ChildStart::Up, "no gateway asked for it");
        proxy.gateway_finds_era();
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), ChildStart::Up, "no request since the last start");
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(&call(2)), ToChild::Gateway(error) if error.contains("-31002")));
        assert_eq!(proxy.child_back(), report(), "the gateway asks again");
        proxy.gets(&discover(3));
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), report());
        // With a stored `initialize`, the report follows its answer.
        proxy.gets(&initialize_request(4));
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(4)]));
        // The next gateway may be another one.
        let mut proxy = ProxyState::default();
        proxy.gateway_finds_era();
        proxy.gets(&call(1));
        proxy.disconnected();
        proxy.child_gone("x", None);
        assert_eq!(proxy.child_back(), ChildStart::Up);
    }

    #[test]
    fn a_child_that_got_only_the_probe_is_known() {
        let mut proxy = ProxyState::default();
        assert!(!proxy.got_only_probe());
        proxy.gets(&discover(1));
        assert!(proxy.got_only_probe());
        proxy.child_gone("x", None);
        assert!(proxy.got_only_probe() && matches!(proxy.gets(&call(2)), ToChild::Gateway(_)));
        proxy.child_back();
        assert!(!proxy.got_only_probe());
        for frame in [call(3), DONE.into(), initialize_request(4), answer(5)] {
            let mut proxy = proxy.clone();
            proxy.gets(&frame);
            assert!(!proxy.got_only_probe(), "{frame}");
            proxy.gets(&discover(6));
            assert!(!proxy.got_only_probe(), "{frame} before it");
        }
        // The edge itself sends the stored `initialize`.
        let mut proxy = running(true);
        proxy.child_gone("x", None);
        proxy.child_back();
        assert!(!proxy.got_only_probe());
    }

    #[test]
    fn a_discover_while_the_child_is_down_waits_for_it() {
        let mut proxy = ProxyState::default();
        proxy.gateway_finds_era();
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(&discover(1)), ToChild::Drop(_)));
        assert_eq!(proxy.running(), 0);
        assert!(matches!(proxy.gets(&discover(2)), ToChild::Gateway(error) if error.contains("-31002")));
        assert!(proxy.child_gone("it cannot be started", None).is_empty());
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![discover(1)]));
        assert!(proxy.got_only_probe() && proxy.is_up());
        assert_eq!(proxy.on_child_line(&answer(1)), ToGateway::Gateway(answer(1)));
        // With an `initialize` that follows because no answer comes.
        proxy.child_gone("x", None);
        proxy.gets(&discover(3));
        proxy.gets(&initialize_request(4));
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![discover(3), initialize_request(4)]));
        assert!(!proxy.got_only_probe() && proxy.is_initializing());
        assert_eq!(proxy.on_child_line(&answer(3)), ToGateway::Gateway(answer(3)));
        let lines = ToGateway::Ready { lines: vec![], frames: vec![initialize_response(4, "{}")] };
        assert_eq!(proxy.on_child_line(&initialize_response(4, "{}")), lines);
        // A child that is initialized again has its era, so the question is not deferred.
        proxy.child_gone("x", None);
        assert!(matches!(proxy.gets(&discover(5)), ToChild::Gateway(error) if error.contains("-31002")));
        // It ends with its link.
        let mut proxy = ProxyState::default();
        proxy.child_gone("x", None);
        proxy.gets(&discover(1));
        proxy.disconnected();
        assert_eq!(proxy.child_back(), ChildStart::Up);
    }

    #[test]
    fn a_listen_is_not_a_running_request() {
        let mut proxy = ProxyState::default();
        proxy.gets(&listen("1"));
        proxy.gets(&listen("\"x\""));
        assert_eq!(proxy.running(), 0);
        assert_eq!(proxy.unusable(None, "no"), ToGateway::Noise, "it is none of those that wait");
        proxy.gets(&call(2));
        let failed = jsonrpc::error("2", -32603, "no");
        assert_eq!(proxy.unusable(None, "no"), ToGateway::Gateway(failed), "the one that waits");
        let ended = jsonrpc::result("1", "{}");
        assert_eq!(proxy.on_child_line(&ended), ToGateway::Gateway(ended.clone()));
        assert_eq!(proxy.child_gone("x", None).len(), 1, "the other one ends with the child");
    }

    #[test]
    fn subscription_ids_are_shifted_back() {
        let mut proxy = ProxyState::default();
        proxy.gets(&listen("1"));
        assert_eq!(proxy.on_child_line(&tagged("1")), ToGateway::Gateway(tagged("1")));
        assert_eq!(proxy.disconnected(), [edit::cancelled(1, "the link to the gateway was lost")]);
        assert_eq!(proxy.gets(&listen("1")), ToChild::Child(listen("3")));
        assert_eq!(proxy.gets(&listen("\"2\"")), ToChild::Child(listen("\"2\"")));
        for form in ["3", "3.0", "\"3\"", "30e-1"] {
            assert_eq!(proxy.on_child_line(&tagged(form)), ToGateway::Gateway(tagged("1")), "{form}");
        }
        for form in ["1", "1.0"] {
            assert_eq!(proxy.on_child_line(&tagged(form)), ToGateway::Stale, "{form}: of the last link");
        }
        for other in ["\"2\"", "\"a\"", "null", "{}"] {
            assert_eq!(proxy.on_child_line(&tagged(other)), ToGateway::Gateway(tagged(other)), "{other}");
        }
    }

    #[test]
    fn a_child_ends_a_listen_by_its_id() {
        let ends = |id: &str| {
            let params = format!("{{\"requestId\":{id},\"reason\":\"r\"}}");
            jsonrpc::notification("notifications/cancelled", Some(&params))
        };
        let mut proxy = ProxyState::default();
        proxy.gets(&listen("1"));
        proxy.disconnected();
        proxy.gets(&listen("1"));
        proxy.gets(&call(2));
        assert_eq!(proxy.on_child_line(&ends("3")), ToGateway::Gateway(ends("1")));
        for own in ["3", "4", "9", "\"q\""] {
            let unchanged = ToGateway::Gateway(ends(own));
            assert_eq!(proxy.on_child_line(&ends(own)), unchanged, "{own}: a request of the child");
        }
        assert_eq!((proxy.running(), proxy.child_gone("x", None).len()), (1, 1));
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

    #[test]
    fn a_request_that_the_child_does_not_take_is_answered() {
        let mut proxy = running(true);
        proxy.gets(&call(2));
        proxy.disconnected();
        let text = r#"{"jsonrpc":"2.0","id":"a","method":"m"}"#;
        for (why, code) in [(NotTaken::Full, jsonrpc::BUSY), (NotTaken::Closed, jsonrpc::DOWN)] {
            for (frame, id) in [(call(7).as_str(), "7"), (text, "\"a\"")] {
                let ToChild::Child(line) = proxy.gets(frame) else { panic!("no line") };
                let error = jsonrpc::error(id, code, why.reason());
                assert_eq!(proxy.not_taken(&line, why), ToChild::Gateway(error));
                assert_eq!(proxy.running(), 0);
            }
            assert!(matches!(proxy.not_taken(&changed("roots"), why), ToChild::Drop(_)));
            assert!(matches!(proxy.not_taken(&answer(1), why), ToChild::Drop(_)));
        }
    }

    #[test]
    fn an_initialize_that_a_full_child_does_not_take_is_asked_again() {
        let mut proxy = ProxyState::default();
        proxy.gets(&call(1));
        proxy.disconnected();
        assert_eq!(proxy.gets(&initialize_request(1)), ToChild::Child(initialize_request(3)));
        let error = jsonrpc::error("1", jsonrpc::BUSY, NotTaken::Full.reason());
        assert_eq!(proxy.not_taken(&initialize_request(3), NotTaken::Full), ToChild::Gateway(error));
        assert!(matches!(proxy.gets(&initialize_request(2)), ToChild::Child(_)));
    }

    #[test]
    fn an_initialize_for_an_exited_child_waits_for_the_next() {
        let mut proxy = ProxyState::default();
        proxy.gets(&initialize_request(1));
        assert!(matches!(proxy.not_taken(&initialize_request(1), NotTaken::Closed), ToChild::Drop(_)));
        assert!(proxy.child_gone("x", None).is_empty());
        assert_eq!(proxy.child_back(), ChildStart::Lines(vec![initialize_request(1)]));
        let frames = vec![initialize_response(1, "{}")];
        assert_eq!(
            proxy.on_child_line(&initialize_response(1, "{}")),
            ToGateway::Ready { lines: vec![], frames }
        );
    }
}
