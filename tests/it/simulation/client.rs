//! A simulated client. It uses the ids 0, 1, 2… like every other client, and checks everything that
//! it receives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mcpport::{
    auth::Principal,
    hub::{entry, key::SessionKey, session::Scope},
    jsonrpc::{self, Kind, Message, find},
};

use super::{
    child, padding,
    peers::{Address, Delivered, Delivery, SimResponder},
};

/// A session of a client.
pub struct Session {
    pub key: SessionKey,
    pub id: String,
    /// No other session of the world has this number.
    pub number: u64,
    pub scope: Scope,
    pub address: Address,
    /// Where all responses go, in the 2024-11-05 transport.
    pub stream: Option<Arc<SimResponder>>,
}

impl Session {
    /// Returns what the hub needs to know of the sender of a message.
    pub fn client(&self) -> entry::Client<'_> {
        entry::Client { key: self.key, id: &self.id, scope: &self.scope }
    }

    /// Returns where the response to a request goes, whose POST would have this number.
    pub fn responder(&self, number: u64) -> Arc<SimResponder> {
        let post = || Arc::new(SimResponder::new(Address { stream: number, ..self.address.clone() }, false));
        self.stream.clone().unwrap_or_else(post)
    }
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum Ask {
    Initialize,
    /// The names of all tools.
    Tools,
    /// A call of this tool, with a text of some length.
    Call {
        tool: String,
        length: Length,
        progress: bool,
    },
}

/// The length of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Length {
    Short,
    /// Too long to be prepared while the hub is locked.
    Long,
    /// Longer than an edge accepts.
    TooLong,
}

/// A request without a response so far.
pub struct Waiting {
    ask: Ask,
    /// A value that only appears in the call's own answer and progress.
    nonce: String,
    /// Raw progress token; empty if the call requests no progress.
    token: String,
    /// The number of its session.
    session: u64,
    /// Where its response goes.
    responder: Arc<SimResponder>,
    /// The deadline for the answer, and by how much progress extends it.
    pub due: Instant,
    timeout: Duration,
    cancelled: bool,
}

/// What is to be done after a client has read something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    Nothing,
    /// The session is initialized.
    Initialized,
    /// It could not be initialized.
    Refused,
}

pub struct Client {
    pub place: usize,
    pub principal: Principal,
    /// The servers that its sessions see.
    pub scope: Scope,
    /// It uses the 2024-11-05 transport.
    pub legacy: bool,
    /// It reads what belongs to no request.
    pub listens: bool,
    /// Its present session.
    pub session: Option<Rc<Session>>,
    pub initialized: bool,
    /// Open requests by stream and raw id.
    pub open: BTreeMap<(u64, String), Waiting>,
    /// It will not open another session, and has ended the present one.
    pub leaves: bool,
    left: bool,
    /// Number of calls still to make.
    pub plans: usize,
    /// The tools that it has seen in a list, by exposed name.
    pub tools: BTreeSet<String>,
    /// The list may have changed.
    pub stale: bool,
    /// Log of all events, for comparing two runs.
    pub history: String,
    next: u64,
}

impl Client {
    pub fn new(place: usize, principal: Principal, scope: Scope, (legacy, listens): (bool, bool)) -> Self {
        Self {
            place,
            principal,
            scope,
            legacy,
            listens: legacy || listens,
            session: None,
            initialized: false,
            open: BTreeMap::new(),
            leaves: false,
            left: false,
            plans: 0,
            tools: BTreeSet::new(),
            stale: true,
            history: String::new(),
            next: 0,
        }
    }

    /// Begins again after a restart of the gateway; open requests end with their connections.
    pub fn begin_again(&mut self) {
        self.forget_session();
        self.open.clear();
        self.left |= self.leaves;
        self.history.push_str("the gateway is new\n");
    }

    /// Will open no other session.
    pub fn leave(&mut self) {
        self.leaves = true;
        self.left |= self.session.is_none();
    }

    fn forget_session(&mut self) {
        (self.session, self.initialized, self.stale) = (None, false, true);
        self.tools.clear();
    }

    pub fn is_done(&self) -> bool {
        self.left || (self.plans == 0 && self.open.is_empty() && !self.leaves)
    }

    /// Returns the next request, and where its response goes. `number`: that of its POST.
    pub fn ask(
        &mut self,
        now: Instant,
        ask: Ask,
        number: u64,
        timeout: Duration,
    ) -> (String, Arc<SimResponder>) {
        let session = self.session.clone().expect("a session asks");
        let count = self.next;
        self.next += 1;
        // Different JSON spellings of the same number; the answer must use the spelling of the
        // request.
        let id = match self.place % 4 {
            0 => count.to_string(),
            1 => format!("\"{count}\""),
            2 => format!("{count}.0"),
            _ => format!("\"\\u002d{count}\""),
        };
        let token = match &ask {
            Ask::Call { progress: true, .. } if self.place.is_multiple_of(2) => count.to_string(),
            Ask::Call { progress: true, .. } => format!("\"{count}\""),
            _ => String::new(),
        };
        let nonce = format!("{}{count:03}", self.place + 1);
        let (method, params) = match &ask {
            Ask::Initialize => (
                "initialize",
                r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"c"}}"#.to_owned(),
            ),
            Ask::Tools => ("tools/list", "{}".into()),
            Ask::Call { tool, length, progress } => {
                let meta = if *progress {
                    format!("\"_meta\":{{\"progressToken\":{token}}},")
                } else {
                    String::new()
                };
                let more = match length {
                    Length::Short => String::new(),
                    Length::Long => format!(",\"x\":\"{}\"", &padding()[..LONG]),
                    Length::TooLong => format!(",\"x\":\"{}\"", padding()),
                };
                let params =
                    format!("{{{meta}\"arguments\":{{\"nonce\":{nonce}{more}}},\"name\":\"{tool}\"}}");
                ("tools/call", params)
            }
        };
        let text = jsonrpc::request(&id, method, &params);
        let responder = session.responder(number);
        let stream = if self.legacy { session.number } else { number };
        let waiting = Waiting {
            ask,
            nonce,
            token,
            session: session.number,
            responder: responder.clone(),
            due: now + timeout,
            timeout,
            cancelled: false,
        };
        assert!(self.open.insert((stream, id), waiting).is_none());
        (text, responder)
    }

    /// Returns the cancellation of an open request, if there is one. The choice is by `random`.
    pub fn cancel(&mut self, random: u32) -> Option<String> {
        let session = self.session.as_ref()?.number;
        let may_cancel = |waiting: &Waiting| {
            waiting.session == session && !waiting.cancelled && !matches!(waiting.ask, Ask::Initialize)
        };
        let count = self.open.values().filter(|waiting| may_cancel(waiting)).count();
        let mut open = self.open.iter_mut().filter(|(_, waiting)| may_cancel(waiting));
        let ((_, id), waiting) = open.nth(random as usize % count.max(1))?;
        waiting.cancelled = true;
        let params = format!("{{\"requestId\":{id},\"reason\":\"changed my mind\"}}");
        Some(jsonrpc::notification("notifications/cancelled", Some(&params)))
    }

    /// Hangs up on the POST of an open request.
    pub fn hang_up(&self, random: u32) {
        if !self.legacy
            && let Some(waiting) = self.open.values().nth(random as usize % self.open.len().max(1))
        {
            waiting.responder.hang_up();
        }
    }

    /// Handles what it receives. `alive`: the session still exists.
    pub fn read(&mut self, now: Instant, delivery: Delivery, alive: bool) -> Next {
        let present = self.session.as_ref().is_some_and(|session| session.number == delivery.session);
        let alive = alive && present;
        match delivery.what {
            Delivered::Closed => {
                if present {
                    self.forget_session();
                    self.left = self.leaves;
                    self.history.push_str("the session ended\n");
                }
                Next::Nothing
            }
            Delivered::Cancelled(id) => {
                let waiting = self.open.remove(&(delivery.stream, id.clone()));
                let waiting = waiting.unwrap_or_else(|| panic!("client {}: stray end of {id}", self.place));
                assert!(waiting.cancelled || !alive, "nobody cancelled {id}");
                Next::Nothing
            }
            Delivered::Response(text) => self.response(&text, delivery.stream, alive),
            Delivered::Message(text) => {
                // With several threads, a message may arrive just when its session ends.
                if present {
                    self.message(now, &text, delivery.stream);
                }
                Next::Nothing
            }
        }
    }

    fn response(&mut self, text: &str, stream: u64, alive: bool) -> Next {
        let message = Message::read(text).expect("clients get messages");
        assert_eq!(message.kind(), Kind::Response, "{text}");
        let _ = writeln!(self.history, "{text}");
        let waiting = self.open.remove(&(stream, message.id().unwrap_or_default().to_owned()));
        let waiting = waiting.unwrap_or_else(|| panic!("client {}: stray {text}", self.place));
        if let Some(error) = message.error() {
            check_error(error, &waiting, &self.scope, alive);
            return if matches!(waiting.ask, Ask::Initialize) { Next::Refused } else { Next::Nothing };
        }
        let result = message.result().unwrap_or_default();
        match &waiting.ask {
            Ask::Initialize => {
                assert!(result.contains("\"protocolVersion\""), "{text}");
                return Next::Initialized;
            }
            Ask::Tools => self.listed(result),
            Ask::Call { length, .. } => {
                assert!(*length != Length::TooLong, "no edge accepts it");
                assert_eq!(result, format!("{{\"nonce\":{}}}", waiting.nonce), "somebody else's answer");
            }
        }
        Next::Nothing
    }

    fn listed(&mut self, result: &str) {
        let list: serde_json::Value = serde_json::from_str(result).unwrap();
        let tools = list["tools"].as_array().unwrap().iter();
        self.tools = tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
        if self.scope == Scope::All {
            assert!(self.tools.contains("list_servers"), "{result}");
        }
    }

    fn message(&mut self, now: Instant, text: &str, stream: u64) {
        assert!(!self.left, "client {} is gone and gets {text}", self.place);
        let message = Message::read(text).expect("clients get messages");
        let _ = writeln!(self.history, "{text}");
        match (message.kind(), message.method()) {
            (Kind::Notification, "notifications/progress") => {
                let part = |name| message.param(&[name]).unwrap().map(|span| &text[span]).unwrap();
                let token = part("progressToken");
                let mut open = self.open.iter_mut();
                let waiting = open.find(|((on, _), waiting)| *on == stream && waiting.token == token);
                let (_, waiting) = waiting.unwrap_or_else(|| panic!("client {}: stray {text}", self.place));
                assert_eq!(part("message"), waiting.nonce, "somebody else's progress: {text}");
                waiting.due = waiting.due.max(now + waiting.timeout);
            }
            (Kind::Notification, method) if method.ends_with("/list_changed") => self.stale = true,
            (Kind::Notification, "notifications/message") => {}
            _ => panic!("client {}: unexpected {text}", self.place),
        }
    }

    /// Checks what holds whenever the client has read everything.
    pub fn check(&self, now: Instant, in_flight: usize) {
        let place = self.place;
        let number = self.session.as_ref().map(|session| session.number);
        let ended = self.open.values().any(|waiting| Some(waiting.session) != number);
        assert!(!ended, "a request of client {place} has outlived its session");
        assert!(self.open.len() <= in_flight, "client {place} has {} calls in flight", self.open.len());
        assert!(self.open.values().all(|waiting| now < waiting.due), "an answer is late");
    }
}

/// The length of a text that is spliced without the lock of the hub.
const LONG: usize = 4096;

/// Checks the error for a request: one of its child, or of the gateway.
fn check_error(error: &str, waiting: &Waiting, scope: &Scope, alive: bool) {
    let part = |name| find(error, 0..error.len(), &[name]).unwrap().map(|span| &error[span]);
    let length = match &waiting.ask {
        Ask::Call { length, .. } => *length,
        _ => Length::Short,
    };
    match part("code").and_then(|code| code.parse().ok()) {
        Some(jsonrpc::INVALID_REQUEST) if error.contains("the session has ended") => assert!(!alive),
        Some(jsonrpc::INVALID_REQUEST) => assert!(length == Length::TooLong, "it was not too large"),
        Some(jsonrpc::CANCELLED) => assert!(waiting.cancelled || !alive, "nobody cancelled it"),
        Some(child::EARLY) => assert!(*scope != Scope::All, "sent before initialize"),
        Some(7) => assert_eq!(part("data"), Some(waiting.nonce.as_str()), "somebody else's error"),
        Some(
            jsonrpc::BUSY
            | jsonrpc::DOWN
            | jsonrpc::TIMED_OUT
            | jsonrpc::INTERNAL_ERROR
            | jsonrpc::INVALID_PARAMS,
        ) => {}
        _ => panic!("an error of nobody: {error}"),
    }
}
