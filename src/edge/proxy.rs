//! The edge's end of a link: what goes to the child, what comes back, and what must not.
//!
//! The child lives longer than a link. So the edge answers a repeated `initialize` from what the child
//! said the first time, and moves the ids of each later link up by an offset: a late answer to a
//! question of an earlier link can then never pass for an answer to a new one.
//!
//! A link lives longer than a child, too. When the child ends, the edge answers in its place what it left
//! unanswered and what comes while it is down. The next one gets the `initialize` that was kept, with what comes
//! meanwhile waiting behind it, and the gateway is told to list again. Only an `initialize` is never failed: it
//! waits for the next child.
//!
//! Pure; `edge::link` drives it.

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

/// What becomes of a frame from the gateway.
#[derive(Debug, Eq, PartialEq)]
pub enum ToChild {
    /// A line for the child, without its line end.
    Child(String),
    /// A frame back to the gateway.
    Gateway(String),
    /// The gateway speaks to us.
    Status(Status),
    /// It waits until the child is initialized.
    Held,
    /// Nothing.
    Drop(&'static str),
}

/// What becomes of a line from the child.
#[derive(Debug, Eq, PartialEq)]
pub enum ToGateway {
    /// A frame for the gateway.
    Gateway(String),
    /// The child was started anew and is initialized: these lines are for it, these frames for the gateway.
    Ready {
        /// Lines for the child, without their line ends.
        lines: Vec<String>,
        /// Frames for the gateway.
        frames: Vec<String>,
    },
    /// The child was started anew and will not be initialized: it is of no use.
    Refused,
    /// An answer for the gateway, though nothing was asked under its id as far as the edge knows.
    Stray(String),
    /// Nothing: the answer is to a question of an earlier link, or the child has ended.
    Stale,
    /// Nothing: the line is no message.
    Noise,
}

/// What the child said to `initialize`.
#[derive(Debug, Default)]
enum InitializeState {
    /// It was not asked.
    #[default]
    None,
    /// It was asked and has not answered.
    Asked,
    /// Its result.
    Known(String),
}

/// The gateway's `initialize`, kept for each start of the child.
#[derive(Debug)]
struct InitializeRequest {
    /// As the child gets it.
    line: String,
    /// Its id as the child knows it, raw.
    id: String,
}

/// What can be asked of the child at present.
#[derive(Debug, Default)]
enum ChildPhase {
    /// Everything.
    #[default]
    Up,
    /// It was started anew and has not answered `initialize`: this waits for it.
    Initializing(HeldFrames),
    /// Nothing: it has ended, for this reason, and is started again at that time.
    Down { why: String, due: Option<Instant> },
}

/// Frames that wait, in their order.
#[derive(Debug, Default)]
struct HeldFrames {
    frames: VecDeque<String>,
    bytes: usize,
}

/// The state of the edge's end.
#[derive(Debug, Default)]
pub struct ProxyState {
    /// Added to the gateway's ids on their way to the child.
    offset: u64,
    /// Above all ids that the child knows.
    next: u64,
    /// Requests that the child has not answered, by the id it knows.
    open: BTreeSet<u64>,
    /// The same for ids that are not moved, raw.
    others: BTreeSet<String>,
    phase: ChildPhase,
    initialize_request: Option<InitializeRequest>,
    initialize_state: InitializeState,
    /// The id with which the present link waits for the answer to `initialize`.
    pending_initialize_id: Option<String>,
    /// The gateway has said that the child is initialized.
    initialized: bool,
    /// The present gateway reads status frames.
    ours: bool,
    /// The present gateway uses strings as progress tokens that contain a number.
    text_tokens: bool,
    /// This child has asked something.
    has_asked: bool,
    /// New requests are refused.
    stopping: bool,
}

impl ProxyState {
    /// The link is gone. Gives the lines that tell the child to stop what nobody waits for.
    pub fn disconnected(&mut self) -> Vec<String> {
        (self.pending_initialize_id, self.ours, self.text_tokens) = (None, false, false);
        self.others.clear();
        if let ChildPhase::Initializing(held) = &mut self.phase {
            *held = HeldFrames::default();
        }
        let open = mem::take(&mut self.open);
        if self.next >= SMALL {
            // Soon the ids would not be exact. Beginning again only risks that a late answer passes for another.
            self.next = 0;
            if matches!((&self.initialize_state, &self.phase), (InitializeState::Asked, ChildPhase::Up)) {
                (self.initialize_state, self.initialize_request) = (InitializeState::None, None);
            }
        }
        self.offset = self.next;
        open.into_iter().map(|id| edit::cancelled(id, "the link to the gateway was lost")).collect()
    }

    /// The child has ended, `why` says of whom and how in one sentence; `due` is when it is started again, if it is.
    /// Gives the answers that it left out, for the gateway.
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

    /// The child was started anew. Gives what it is told first, if anything.
    pub fn child_back(&mut self) -> Option<String> {
        let Some(hello) = &self.initialize_request else {
            self.phase = ChildPhase::Up;
            return None;
        };
        (self.phase, self.initialize_state) =
            (ChildPhase::Initializing(HeldFrames::default()), InitializeState::Asked);
        Some(hello.line.clone())
    }

    /// The gateway of the present link reads status frames.
    pub fn gateway_is_ours(&mut self) {
        self.ours = true;
    }

    /// Refuses new requests from now on: the edge program is stopping.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Number of requests that the child has not answered, including those held until it is initialized.
    pub fn running(&self) -> usize {
        let held = match &self.phase {
            ChildPhase::Initializing(held) => held.frames.len(),
            ChildPhase::Up | ChildPhase::Down { .. } => 0,
        };
        self.open.len() + self.others.len() + held
    }

    /// Whether the child takes requests.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, ChildPhase::Up)
    }

    /// Whether the child was started anew and has not answered `initialize` so far.
    pub fn is_initializing(&self) -> bool {
        matches!(self.phase, ChildPhase::Initializing(_))
    }

    /// A frame came from the gateway.
    pub fn on_gateway_frame(&mut self, now: Instant, frame: &str) -> ToChild {
        let Ok(message) = Message::read(frame) else {
            return Status::read(frame).map_or(ToChild::Drop("a frame that is no message"), ToChild::Status);
        };
        if let (true, Kind::Request, Some(id)) = (self.stopping, message.kind(), message.id()) {
            return ToChild::Gateway(jsonrpc::error(id, jsonrpc::DOWN, STOPPING));
        }
        match (message.kind(), message.method(), &self.phase) {
            (Kind::Request, "initialize", _) => self.initialize(&message),
            (Kind::Notification, "notifications/initialized", phase) => {
                let is_up = matches!(phase, ChildPhase::Up);
                match mem::replace(&mut self.initialized, true) {
                    true => ToChild::Drop("the child is initialized already"),
                    false if is_up => ToChild::Child(message.splice(&[])),
                    // It is told as soon as it can be.
                    false => ToChild::Drop("the child is not initialized yet"),
                }
            }
            (.., ChildPhase::Up) => self.pass(&message),
            (.., ChildPhase::Initializing(_)) => self.hold(&message),
            (.., ChildPhase::Down { why, due }) => reject(&message, why, *due, now),
        }
    }

    /// A line came from the child.
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

    /// The child wrote an answer that cannot be used: the request that it was for fails, with these words. Where the answer
    /// does not say for which, it can only be for the one that is open.
    pub fn unusable(&mut self, id: Option<&str>, words: &str) -> ToGateway {
        let greeting = self
            .initialize_request
            .as_ref()
            .filter(|_| matches!(self.initialize_state, InitializeState::Asked));
        let id = match id {
            Some(id) => Some(id.to_owned()),
            None if self.open.len() + self.others.len() + usize::from(greeting.is_some()) == 1 => {
                let number = self.open.first().map(u64::to_string);
                number
                    .or_else(|| self.others.first().cloned())
                    .or_else(|| greeting.map(|hello| hello.id.clone()))
            }
            None => None,
        };
        match id.filter(|id| self.is_open(id)) {
            Some(id) => self.on_child_line(&jsonrpc::error(&id, jsonrpc::INTERNAL_ERROR, words)),
            None => ToGateway::Noise,
        }
    }

    /// Whether the child still has to answer the request with this id, as it knows it.
    fn is_open(&self, id: &str) -> bool {
        let number = decimal(id);
        let text = number.map(|number| format!("\"{number}\""));
        let is_hello = matches!(self.initialize_state, InitializeState::Asked) && self.is_initialize_id(id);
        is_hello
            || number.is_some_and(|number| self.open.contains(&number))
            || self.others.contains(id)
            || text.is_some_and(|text| self.others.contains(&text))
    }

    /// A message for a child that is up, but for what begins a conversation.
    fn pass(&mut self, message: &Message<'_>) -> ToChild {
        match (message.kind(), message.method()) {
            (Kind::Request, _) => self.ask(message),
            (Kind::Notification, "notifications/cancelled") => self.cancel(message),
            _ => ToChild::Child(message.splice(&[])),
        }
    }

    /// A message for a child that is not initialized yet.
    fn hold(&mut self, message: &Message<'_>) -> ToChild {
        if message.kind() == Kind::Response {
            // It may be what the child waits for; to the one before it nothing is owed any more.
            return if self.has_asked {
                ToChild::Child(message.splice(&[]))
            } else {
                ToChild::Drop("a late answer")
            };
        }
        let ChildPhase::Initializing(held) = &mut self.phase else {
            return ToChild::Drop("nothing to wait for");
        };
        let bytes = held.bytes + message.text().len();
        if held.frames.len() < EDGE_HELD && bytes <= EDGE_HELD_BYTES {
            held.frames.push_back(message.text().to_owned());
            held.bytes = bytes;
            return ToChild::Held;
        }
        match message.id() {
            Some(id) => {
                let why = "the server is being started, and as many calls wait for it as may";
                ToChild::Gateway(jsonrpc::error(id, jsonrpc::BUSY, why))
            }
            None => ToChild::Drop("a notification for which there is no room"),
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
                return ToChild::Drop("initialize is never cancelled");
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
                return ToChild::Drop("the child has not answered an earlier initialize");
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
            return ToChild::Drop("initialize waits for the child");
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

    /// A request as the child gets it, or why it does not.
    fn request(&mut self, message: &Message<'_>) -> Result<String, ToChild> {
        let Ok(token) = message.param(&["_meta", "progressToken"]) else {
            return Err(ToChild::Drop("a request with an ambiguous progress token"));
        };
        let mut spans: Vec<Span> = message.id_span().into_iter().chain(token.clone()).collect();
        spans.sort_by_key(|span| span.start);
        if spans.iter().any(|span| number(&message.text()[span.clone()], EXACT).is_some_and(|id| id >= SMALL))
        {
            // On its way back it could not be told from one that was moved.
            let why = "request ids and progress tokens from 2^52 to 2^53 are not carried";
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
            return ToGateway::Stray(message.splice(&[]));
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
        // The gateway may have cancelled what it asked, and knows that itself.
        if known || id < self.next { ToGateway::Gateway(answer) } else { ToGateway::Stray(answer) }
    }

    /// The number of a progress token of ours, whatever form the child gave it.
    fn known_token(&self, raw: &str) -> Option<u64> {
        let exact = number(raw, EXACT);
        exact.or_else(|| decimal(raw).filter(|token| *token < EXACT && !self.text_tokens))
    }

    /// Whether this is the id of `initialize`, as the child knows it.
    fn is_initialize_id(&self, raw: &str) -> bool {
        self.initialize_request
            .as_ref()
            .is_some_and(|hello| is_same(&hello.id, raw) || is_same_text(&hello.id, raw))
    }

    /// The child has answered `initialize`.
    fn on_initialize_result(&mut self, message: &Message<'_>) -> ToGateway {
        let anew = self.is_initializing();
        if anew && message.result().is_none() && self.pending_initialize_id.is_none() {
            return ToGateway::Refused;
        }
        match message.result() {
            Some(result) => self.initialize_state = InitializeState::Known(result.to_owned()),
            // It is told that it is initialized when it is, whatever the one before was told.
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

    /// The new child is initialized.
    fn ready(&mut self, answer: Option<String>, held: HeldFrames) -> ToGateway {
        let mut lines = Vec::new();
        if self.initialized {
            // Said once by the gateway, for all that follow: what waits is not for a child that has not heard it.
            lines.push(jsonrpc::notification("notifications/initialized", None));
        }
        // A gateway that waits for the answer lists after it anyway.
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

    /// What makes the gateway list again. For one of ours the status comes first: what follows is then part of it.
    fn announcement(&self) -> Vec<String> {
        let InitializeState::Known(result) = &self.initialize_state else { return Vec::new() };
        let declared =
            |what: &str| matches!(find(result, 0..result.len(), &["capabilities", what]), Ok(Some(_)));
        // A server may leave the capability out and have tools all the same.
        let kinds =
            ["tools", "prompts", "resources"].into_iter().filter(|kind| *kind == "tools" || declared(kind));
        let changed =
            kinds.map(|kind| jsonrpc::notification(&format!("notifications/{kind}/list_changed"), None));
        self.ours.then(Status::restarted).into_iter().chain(changed).collect()
    }

    /// The message with its numeric ids moved; other ids stay as they are.
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

/// One more open request. Of too many one is forgotten, by number the oldest: it is what nobody waits for any more.
fn remember<T: Ord>(open: &mut BTreeSet<T>, id: T) {
    if open.len() >= EDGE_OPEN {
        open.pop_first();
    }
    open.insert(id);
}

/// The answer to what comes while the child is down.
fn reject(message: &Message<'_>, why: &str, due: Option<Instant>, now: Instant) -> ToChild {
    let (Kind::Request, Some(id)) = (message.kind(), message.id()) else {
        return ToChild::Drop("a message for a child that is down");
    };
    let text = match due.map(|due| due.saturating_duration_since(now)) {
        Some(rest) if !rest.is_zero() => format!("{why}; it is started again in {:.1} s", rest.as_secs_f64()),
        Some(_) => format!("{why}; it is being started again"),
        None => why.to_owned(),
    };
    ToChild::Gateway(jsonrpc::error(id, jsonrpc::DOWN, &text))
}

/// The error message for a request that arrives while the edge program is stopping.
pub const STOPPING: &str = "the edge is stopping";
/// Below this every JSON reader holds a number exactly.
const EXACT: u64 = 1 << 53;
/// Below this an id of the gateway is moved: an offset is below it too, so that their sum is exact.
const SMALL: u64 = 1 << 52;

/// Whether two strings are the same text, however they are escaped.
fn is_same_text(one: &str, other: &str) -> bool {
    one.starts_with('"') && other.starts_with('"') && unquote(one) == unquote(other)
}

/// A plain number below a bound.
fn number(raw: &str, bound: u64) -> Option<u64> {
    let plain = raw.bytes().all(|byte| byte.is_ascii_digit());
    raw.parse().ok().filter(|number| plain && *number < bound)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    impl ProxyState {
        /// A frame from the gateway, when the time does not matter.
        fn gets(&mut self, frame: &str) -> ToChild {
            self.on_gateway_frame(Instant::now(), frame)
        }
    }

    #[test]
    fn stopping_refuses_requests_and_lets_the_rest_pass() {
        let mut edge = ProxyState::default();
        let call = |id: u64| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call"}}"#);
        assert_eq!(edge.gets(&call(1)), ToChild::Child(call(1)));
        assert_eq!(edge.running(), 1);
        edge.stop();
        let refusal = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-31002,"message":"the edge is stopping"}}"#;
        assert_eq!(edge.gets(&call(2)), ToChild::Gateway(refusal.into()));
        for frame in [
            r#"{"jsonrpc":"2.0","id":9,"result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message"}"#,
        ] {
            assert_eq!(edge.gets(frame), ToChild::Child(frame.into()));
        }
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        assert_eq!(edge.on_child_line(answer), ToGateway::Gateway(answer.into()));
        assert_eq!(edge.running(), 0);
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
    fn the_first_link_passes_everything_as_it_is() {
        let mut edge = ProxyState::default();
        assert_eq!(edge.gets(&call(1)), ToChild::Child(call(1)));
        assert_eq!(edge.on_child_line(&progress(1)), ToGateway::Gateway(progress(1)));
        assert_eq!(edge.on_child_line(&answer(1)), ToGateway::Gateway(answer(1)));
        let ping = r#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#;
        assert_eq!(edge.on_child_line(ping), ToGateway::Gateway(ping.into()));
        assert_eq!(edge.on_child_line("Listening on port 3"), ToGateway::Noise);
        assert!(matches!(edge.gets(r#"{"status":"registered","id":"x"}"#), ToChild::Status(_)));
    }

    #[test]
    fn answers_and_progress_with_ids_in_another_form_are_known() {
        let mut edge = ProxyState::default();
        edge.gets(&call(1));
        edge.disconnected();
        for form in ["\"2\"", "2.0", "2e0", "20e-1", "\"2.0\""] {
            assert_eq!(edge.gets(&call(0)), ToChild::Child(call(2)), "{form}");
            let in_form = |text: String| {
                text.replace(":2,", &format!(":{form},")).replace(":2}", &format!(":{form}}}"))
            };
            assert_eq!(edge.on_child_line(&in_form(progress(2))), ToGateway::Gateway(progress(0)), "{form}");
            let result = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert_eq!(edge.on_child_line(&result(form)), ToGateway::Gateway(result("0")), "{form}");
            assert_eq!(edge.running(), 0, "{form}");
            assert_eq!(edge.on_child_line(&result(form)), ToGateway::Gateway(result("0")), "again: {form}");
            assert_eq!(edge.on_child_line(&result("\"1\"")), ToGateway::Stale, "of the link before");
        }
        let named = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
        let result = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        edge.gets(&named("\"7\""));
        assert_eq!(
            edge.on_child_line(&result("7")),
            ToGateway::Gateway(result("\"7\"")),
            "the other way round"
        );
        assert_eq!(edge.on_child_line(&result("\"9\"")), ToGateway::Stray(result("7")), "never asked");
        assert_eq!(edge.on_child_line(&result("\"x\"")), ToGateway::Stray(result("\"x\"")));
    }

    #[test]
    fn an_answer_that_cannot_be_used_fails_its_request() {
        let mut edge = ProxyState::default();
        edge.gets(&call(1));
        edge.disconnected();
        let failed = |id: &str| ToGateway::Gateway(jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, "no"));
        let named = r#"{"jsonrpc":"2.0","id":"x","method":"m"}"#;
        for id in [Some("2"), Some("\"2\""), None] {
            edge.gets(&call(0));
            assert_eq!(edge.unusable(id, "no"), failed("0"), "{id:?}");
            assert_eq!((edge.unusable(Some("2"), "no"), edge.running()), (ToGateway::Noise, 0));
        }
        edge.gets(named);
        assert_eq!(edge.unusable(None, "no"), failed("\"x\""));
        assert_eq!(edge.unusable(None, "no"), ToGateway::Noise, "nothing is open");
        edge.gets(named);
        edge.gets(&call(0));
        assert_eq!(edge.unusable(None, "no"), ToGateway::Noise, "it may be for either");
        let mut edge = ProxyState::default();
        edge.gets(r#"{"jsonrpc":"2.0","id":7,"method":"initialize","params":{}}"#);
        assert_eq!(edge.unusable(None, "no"), failed("7"));
    }

    #[test]
    fn initialize_may_be_answered_under_its_id_in_another_form() {
        for form in ["\"1\"", "1.0", "1e0"] {
            let mut edge = ProxyState::default();
            edge.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
            let answer = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert_eq!(edge.on_child_line(&answer(form)), ToGateway::Gateway(answer("1")), "{form}");
        }
    }

    #[test]
    fn text_tokens_of_a_gateway_stay_as_they_are() {
        let mut edge = ProxyState::default();
        edge.gets(&call(5));
        edge.disconnected();
        let asks = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"progressToken":"3"}}}"#;
        edge.gets(asks);
        let told = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"3"}}"#;
        assert_eq!(edge.on_child_line(told), ToGateway::Gateway(told.into()));
    }

    #[test]
    fn late_answers_do_not_reach_a_new_link() {
        let mut edge = ProxyState::default();
        edge.gets(&call(1));
        edge.gets(&call(2));
        edge.on_child_line(&answer(1));
        let lines = edge.disconnected();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("\"requestId\":2"), "{lines:?}");
        assert_eq!(edge.gets(&call(1)), ToChild::Child(call(4)));
        assert_eq!(edge.on_child_line(&answer(2)), ToGateway::Stale);
        assert_eq!(edge.on_child_line(&progress(2)), ToGateway::Stale);
        assert_eq!(edge.on_child_line(&progress(4)), ToGateway::Gateway(progress(1)));
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(edge.gets(cancel), ToChild::Child(cancel.replace(":1}", ":4}")));
        assert_eq!(
            edge.on_child_line(&answer(4)),
            ToGateway::Gateway(answer(1).replace("\"n\":1", "\"n\":4"))
        );
        assert!(edge.disconnected().is_empty());
    }

    #[test]
    fn an_id_of_0_is_one_like_any_other() {
        let mut edge = ProxyState::default();
        for _ in 0..3 {
            assert!(matches!(edge.gets(&call(0)), ToChild::Child(_)));
            let theirs = *edge.open.first().unwrap();
            assert!(
                matches!(edge.on_child_line(&answer(theirs)), ToGateway::Gateway(frame) if frame.contains("\"id\":0,"))
            );
            edge.disconnected();
        }
    }

    #[test]
    fn a_child_is_initialized_once() {
        let mut edge = ProxyState::default();
        let hello = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(edge.gets(&hello(1)), ToChild::Child(hello(1)));
        assert_eq!(edge.on_child_line(&answer(1)), ToGateway::Gateway(answer(1)));
        assert_eq!(edge.gets(done), ToChild::Child(done.into()));
        assert!(edge.disconnected().is_empty());
        let known = r#"{"jsonrpc":"2.0","id":9,"result":{"n":1}}"#;
        assert_eq!(edge.gets(&hello(9)), ToChild::Gateway(known.into()));
        assert!(matches!(edge.gets(done), ToChild::Drop(_)));
    }

    #[test]
    fn an_initialize_that_outlives_its_link_answers_the_next() {
        let mut edge = ProxyState::default();
        let hello = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        edge.gets(&hello(1));
        assert!(edge.disconnected().is_empty(), "initialize is never cancelled");
        assert!(matches!(edge.gets(&hello(5)), ToChild::Drop(_)));
        assert_eq!(
            edge.on_child_line(&answer(1)),
            ToGateway::Gateway(answer(5).replace("\"n\":5", "\"n\":1"))
        );
    }

    #[test]
    fn large_ids_survive_reconnects() {
        let mut edge = ProxyState::default();
        for _ in 0..5000 {
            let id = SMALL - 1;
            let ToChild::Child(line) = edge.gets(&call(id)) else { panic!("no line") };
            let theirs = Message::read(&line).unwrap().id().unwrap().parse().unwrap();
            assert!(theirs < EXACT);
            let ToGateway::Gateway(frame) = edge.on_child_line(&answer(theirs)) else { panic!("no answer") };
            assert_eq!(Message::read(&frame).unwrap().id(), Some(id.to_string().as_str()));
            edge.disconnected();
        }
    }

    #[test]
    fn frames_that_must_not_reach_the_child() {
        let mut edge = ProxyState::default();
        edge.gets(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert!(matches!(edge.gets(cancel), ToChild::Drop(_)), "initialize is never cancelled");
        let ambiguous = cancel.replace(":1}", ":2,\"requestId\":3}");
        assert!(matches!(edge.gets(&ambiguous), ToChild::Drop(_)));
        assert!(matches!(edge.gets(&call(SMALL)), ToChild::Gateway(error) if error.contains("2^52")));
        assert!(matches!(edge.gets(&call(EXACT)), ToChild::Child(line) if line == call(EXACT)));
    }

    #[test]
    fn a_refused_initialize_is_asked_again() {
        let mut edge = ProxyState::default();
        let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
        edge.gets(hello);
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#;
        assert_eq!(edge.on_child_line(error), ToGateway::Gateway(error.into()));
        edge.disconnected();
        assert!(matches!(edge.gets(hello), ToChild::Child(_)));
    }

    #[test]
    fn a_restarted_child_that_first_refused_gets_initialized() {
        let mut edge = running(false);
        edge.child_gone("it crashed", None);
        assert_eq!(edge.child_back(), Some(hello(1)));
        assert!(matches!(edge.gets(&hello(2)), ToChild::Drop(_)));
        let error = |id| jsonrpc::error(id, 1, "not yet");
        assert_eq!(
            edge.on_child_line(&error("1")),
            ToGateway::Ready { lines: vec![], frames: vec![error("2")] }
        );
        assert_eq!(edge.gets(&hello(3)), ToChild::Child(hello(3)));
        assert_eq!(edge.on_child_line(&greeting(3, "{}")), ToGateway::Gateway(greeting(3, "{}")));
        assert_eq!(edge.gets(DONE), ToChild::Child(DONE.into()));
    }

    const DONE: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

    fn hello(id: u64) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{"x":1}}}}"#)
    }

    fn greeting(id: u64, capabilities: &str) -> String {
        jsonrpc::result(&id.to_string(), &format!("{{\"capabilities\":{capabilities}}}"))
    }

    fn changed(kind: &str) -> String {
        jsonrpc::notification(&format!("notifications/{kind}/list_changed"), None)
    }

    /// An edge whose child is initialized, behind a link of the original or of ours.
    fn running(ours: bool) -> ProxyState {
        let mut edge = ProxyState::default();
        if ours {
            edge.gateway_is_ours();
        }
        assert_eq!(edge.gets(&hello(1)), ToChild::Child(hello(1)));
        assert_eq!(edge.on_child_line(&greeting(1, "{}")), ToGateway::Gateway(greeting(1, "{}")));
        assert_eq!(edge.gets(DONE), ToChild::Child(DONE.into()));
        edge
    }

    #[test]
    fn open_calls_of_an_exited_child_get_errors() {
        let mut edge = running(true);
        edge.gets(&call(2));
        edge.disconnected();
        let text = r#"{"jsonrpc":"2.0","id":"a","method":"m"}"#;
        for (frame, line) in [(call(2), call(2 + 3)), (call(3), call(3 + 3)), (text.into(), text.into())] {
            assert_eq!(edge.gets(&frame), ToChild::Child(line));
        }
        edge.on_child_line(&answer(5));
        let error = |id| jsonrpc::error(id, jsonrpc::INTERNAL_ERROR, "server 's' exited with status 3");
        assert_eq!(edge.child_gone("server 's' exited with status 3", None), [error("3"), error("\"a\"")]);
        assert_eq!(edge.on_child_line(&answer(6)), ToGateway::Stale, "it is dead");
        assert!(edge.child_gone("x", None).is_empty(), "once is enough");
        assert!(edge.disconnected().is_empty());
    }

    #[test]
    fn calls_to_a_stopped_child_fail_at_once() {
        let (mut edge, now) = (running(true), Instant::now());
        edge.child_gone("server 's' exited with status 3", Some(now + Duration::from_millis(1500)));
        assert!(!edge.is_up());
        for (after, words) in
            [(0, "started again in 1.5 s"), (1400, "in 0.1 s"), (1500, "is being started again")]
        {
            let down = edge.on_gateway_frame(now + Duration::from_millis(after), &call(7));
            let ToChild::Gateway(error) = down else { panic!("{down:?}") };
            let error = Message::read(&error).unwrap();
            assert_eq!(error.id(), Some("7"));
            let told = error.error().unwrap();
            assert!(
                told.contains("-31002")
                    && told.contains("exited with status 3; it is")
                    && told.contains(words)
            );
        }
        for frame in [changed("roots"), answer(1), progress(1)] {
            assert!(matches!(edge.gets(&frame), ToChild::Drop(_)), "{frame}");
        }
        edge.child_gone("server 's' cannot be started", None);
        assert!(
            matches!(edge.gets(&call(8)), ToChild::Gateway(error) if error.contains("cannot be started\""))
        );
    }

    #[test]
    fn a_restarted_child_is_initialized_and_announced() {
        for (ours, capabilities, told) in [
            (true, r#"{"prompts":{}}"#, vec![Status::restarted(), changed("tools"), changed("prompts")]),
            (false, r#"{"tools":{},"resources":{}}"#, vec![changed("tools"), changed("resources")]),
        ] {
            let mut edge = running(ours);
            edge.child_gone("x", None);
            assert_eq!(edge.child_back(), Some(hello(1)), "as the gateway sent it");
            assert!(edge.is_initializing() && !edge.is_up());
            // What comes meanwhile waits, in its order; what the child says meanwhile passes.
            for frame in [call(2), changed("roots"), call(3)] {
                assert_eq!(edge.gets(&frame), ToChild::Held);
            }
            assert_eq!(edge.on_child_line(&changed("tools")), ToGateway::Gateway(changed("tools")));
            assert!(matches!(edge.gets(&answer(9)), ToChild::Drop(_)), "an answer to the dead one");
            let lines = vec![DONE.into(), call(2), changed("roots"), call(3)];
            assert_eq!(
                edge.on_child_line(&greeting(1, capabilities)),
                ToGateway::Ready { lines, frames: told }
            );
            assert!(edge.is_up());
            assert_eq!(edge.on_child_line(&answer(2)), ToGateway::Gateway(answer(2)));
            assert_eq!(
                edge.gets(&hello(9)),
                ToChild::Gateway(greeting(9, capabilities)),
                "the new result is kept"
            );
            assert_eq!(edge.child_gone("x", None).len(), 1);
        }
    }

    #[test]
    fn a_child_that_asks_before_it_answers_is_answered() {
        let mut edge = running(true);
        edge.child_gone("x", None);
        edge.child_back();
        let ping = r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#;
        assert_eq!(edge.on_child_line(ping), ToGateway::Gateway(ping.into()));
        assert_eq!(edge.gets(&answer(9)), ToChild::Child(answer(9)));
    }

    #[test]
    fn held_frames_are_bounded_and_fail_with_the_child() {
        let mut edge = running(true);
        edge.child_gone("x", None);
        edge.child_back();
        for id in 0..EDGE_HELD as u64 {
            assert_eq!(edge.gets(&call(id)), ToChild::Held);
        }
        assert!(matches!(edge.gets(&call(999)), ToChild::Gateway(busy) if busy.contains("-32000")));
        assert!(matches!(edge.gets(&changed("roots")), ToChild::Drop(_)));
        assert_eq!(edge.child_gone("it died again", None).len(), EDGE_HELD);
        edge.child_back();
        let large = call(1).replace("tools/call", &"x".repeat(EDGE_HELD_BYTES / 2));
        assert_eq!(edge.gets(&large), ToChild::Held);
        assert!(matches!(edge.gets(&large), ToChild::Gateway(_)));
        edge.disconnected();
        assert_eq!(edge.child_gone("x", None), [""; 0], "nobody waits any more");
    }

    #[test]
    fn the_first_initialize_waits_for_the_next_child() {
        let mut edge = ProxyState::default();
        edge.gets(&hello(1));
        assert!(edge.child_gone("x", None).is_empty(), "it is not failed");
        assert!(edge.child_gone("x", None).is_empty());
        for _ in 0..3 {
            assert_eq!(edge.child_back(), Some(hello(1)));
            assert!(edge.child_gone("x", None).is_empty());
        }
        assert_eq!(edge.child_back(), Some(hello(1)));
        let frames = vec![greeting(1, "{}")];
        assert_eq!(edge.on_child_line(&greeting(1, "{}")), ToGateway::Ready { lines: vec![], frames });
        assert_eq!(edge.gets(DONE), ToChild::Child(DONE.into()), "by the gateway, as ever");
    }

    #[test]
    fn an_initialize_while_the_child_is_down_waits_for_it() {
        // The first one of all.
        let mut edge = ProxyState::default();
        edge.child_gone("x", None);
        assert!(matches!(edge.gets(&hello(4)), ToChild::Drop(_)));
        assert_eq!(edge.child_back(), Some(hello(4)));
        let frames = vec![greeting(4, "{}")];
        assert_eq!(edge.on_child_line(&greeting(4, "{}")), ToGateway::Ready { lines: vec![], frames });
        // One of a later link: it gets what the new child says, and begins as with any other.
        let mut edge = running(true);
        edge.child_gone("x", None);
        edge.disconnected();
        assert!(matches!(edge.gets(&hello(5)), ToChild::Drop(_)));
        assert_eq!(edge.child_back(), Some(hello(1)));
        let (lines, frames) = (vec![DONE.into()], vec![greeting(5, "{\"a\":1}")]);
        assert_eq!(edge.on_child_line(&greeting(1, "{\"a\":1}")), ToGateway::Ready { lines, frames });
        assert!(matches!(edge.gets(DONE), ToChild::Drop(_)), "it was told already");
        // While it is being greeted, and with the word of the gateway coming too early.
        edge.child_gone("x", None);
        edge.child_back();
        edge.disconnected();
        edge.gets(&hello(6));
        assert!(
            matches!(edge.on_child_line(&greeting(1, "{}")), ToGateway::Ready { frames, .. } if frames.len() == 1)
        );
        edge.child_gone("x", None);
        assert!(matches!(edge.gets(DONE), ToChild::Drop(_)));
        edge.child_back();
        assert!(
            matches!(edge.on_child_line(&greeting(1, "{}")), ToGateway::Ready { lines, .. } if lines == [DONE.to_owned()])
        );
    }

    #[test]
    fn a_child_that_will_not_be_initialized_again_is_of_no_use() {
        let refusal = jsonrpc::error("1", -32603, "no");
        let mut edge = running(true);
        edge.child_gone("x", None);
        edge.child_back();
        edge.gets(&call(2));
        assert_eq!(edge.on_child_line(&refusal), ToGateway::Refused);
        assert_eq!(edge.child_gone("x", None).len(), 1, "what waited is failed");
        assert_eq!(edge.child_back(), Some(hello(1)), "the next one may");
        // A gateway that waits for it hears of it instead.
        edge.disconnected();
        edge.gets(&hello(7));
        let ToGateway::Ready { frames, .. } = edge.on_child_line(&refusal) else { panic!("not ready") };
        assert_eq!(frames, [jsonrpc::error("7", -32603, "no")]);
        assert!(matches!(edge.gets(&hello(8)), ToChild::Child(_)), "and asks the child itself");
    }

    #[test]
    fn only_the_newest_open_requests_are_remembered() {
        let mut edge = running(true);
        for id in 0..EDGE_OPEN as u64 + 10 {
            edge.gets(&call(id + 2));
            edge.gets(&format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"m"}}"#));
        }
        let long = "x".repeat(ID_BYTES);
        assert!(matches!(
            edge.gets(&format!(r#"{{"jsonrpc":"2.0","id":"{long}","method":"m"}}"#)),
            ToChild::Child(_)
        ));
        let failed = edge.child_gone("x", None);
        assert_eq!(failed.len(), 2 * EDGE_OPEN);
        assert!(failed[0].contains("\"id\":12,") && !failed.concat().contains(&long));
    }
}
