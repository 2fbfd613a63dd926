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
    hub::{entry, key::SessionKey, request::ResourceMethod, session::Scope},
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
        task: bool,
    },
    /// A method about a resource.
    Resource(ResourceMethod, Resource),
    /// The log level with this number.
    Level(usize),
    /// The task of this name.
    Task(String),
}

/// A resource: the place of its server, and its number there.
pub type ResourceId = (usize, usize);

/// A resource under one of its URIs.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Resource {
    pub id: ResourceId,
    pub uri: String,
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
    /// The number of its POST, or one that it would have.
    number: u64,
    /// The subscriptions that it ends.
    over: BTreeMap<Resource, Subscription>,
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

/// A subscription.
#[derive(Debug)]
enum Subscription {
    /// The request of this number waits for its response.
    Asked(u64),
    /// Granted, or the response was lost.
    Held,
}

/// What is to be done after a client has read something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    Nothing,
    /// The session is initialized.
    Initialized,
    /// It could not be initialized.
    Refused,
    /// The call with this nonce has begun a task.
    Begun(String),
    /// The task of the call with this nonce was shown.
    Shown(String),
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
    /// The process of its session may send progress late. That of a shared server is dropped then.
    pub isolates: bool,
    /// The tools that it has seen in a list, by exposed name.
    pub tools: BTreeSet<String>,
    /// The list may have changed.
    pub stale: bool,
    subscriptions: BTreeMap<Resource, Subscription>,
    /// The log level that it has set.
    level: Option<usize>,
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
            isolates: false,
            tools: BTreeSet::new(),
            stale: true,
            subscriptions: BTreeMap::new(),
            level: None,
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
        (self.session, self.initialized, self.stale, self.level) = (None, false, true, None);
        self.tools.clear();
        self.subscriptions.clear();
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
        let (method, params) = params(&ask, &nonce, &token);
        let text = jsonrpc::request(&id, method, &params);
        let over = self.record(&ask, number);
        let responder = session.responder(number);
        let stream = if self.legacy { session.number } else { number };
        let waiting = Waiting {
            ask,
            number,
            over,
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

    /// Adds a message to the log of all events, with its end left out if it is long.
    fn note(&mut self, text: &str) {
        let _ = writeln!(self.history, "{} {}", &text[..text.len().min(150)], text.len());
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
        self.note(text);
        let waiting = self.open.remove(&(stream, message.id().unwrap_or_default().to_owned()));
        let waiting = waiting.unwrap_or_else(|| panic!("client {}: stray {text}", self.place));
        if let Some(error) = message.error() {
            check_error(error, &waiting, &self.scope, alive);
            let next = if matches!(waiting.ask, Ask::Initialize) { Next::Refused } else { Next::Nothing };
            self.refused(waiting, error);
            return next;
        }
        self.result(message.result().unwrap_or_default(), waiting, alive)
    }

    fn result(&mut self, result: &str, waiting: Waiting, alive: bool) -> Next {
        let own = format!("\"nonce\":{}}}", waiting.nonce);
        match &waiting.ask {
            Ask::Initialize => {
                assert!(result.contains("\"protocolVersion\""), "{result}");
                return Next::Initialized;
            }
            Ask::Tools => self.listed(result),
            Ask::Call { length, task, .. } => {
                assert!(*length != Length::TooLong, "no edge accepts it");
                assert!(result.ends_with(&own), "somebody else's answer: {result}");
                assert!(*task || result == format!("{{{own}"), "{result}");
                if *task && alive {
                    return Next::Begun(waiting.nonce);
                }
            }
            Ask::Resource(method, resource) => {
                // The gateway answers some requests to unsubscribe itself.
                let by_gateway = *method == ResourceMethod::Unsubscribe && result == "{}";
                assert!(by_gateway || result == format!("{{{own}"), "somebody else's answer: {result}");
                if let Some(subscription) = self.asked(resource, waiting.number) {
                    *subscription = Subscription::Held;
                }
            }
            Ask::Level(level) if alive => self.level = Some(*level),
            Ask::Level(_) => {}
            Ask::Task(id) => {
                let nonce = find(result, 0..result.len(), &["nonce"]).unwrap().expect("the child's answer");
                assert!(result.starts_with(&format!("{{\"taskId\":\"{id}\"")), "{result}");
                return Next::Shown(result[nonce].to_owned());
            }
        }
        Next::Nothing
    }

    /// Records a request about a resource. What follows is in the tables at once. Returns the
    /// subscriptions that are over.
    fn record(&mut self, ask: &Ask, number: u64) -> BTreeMap<Resource, Subscription> {
        match ask {
            Ask::Resource(ResourceMethod::Subscribe, resource) => {
                self.subscriptions.entry(resource.clone()).or_insert(Subscription::Asked(number));
            }
            Ask::Resource(ResourceMethod::Unsubscribe, resource) => {
                let all = std::mem::take(&mut self.subscriptions).into_iter();
                let (over, rest) = all.partition(|(other, _)| other.id == resource.id);
                self.subscriptions = rest;
                return over;
            }
            _ => {}
        }
        BTreeMap::new()
    }

    /// Records that a request about a resource has failed. If its server is gone or slow, or if the
    /// client has cancelled it, the subscription stays.
    fn refused(&mut self, mut waiting: Waiting, error: &str) {
        if ["no such resource", "is not connected"].iter().any(|text| error.contains(text)) {
            self.subscriptions.append(&mut waiting.over);
        }
        let Ask::Resource(ResourceMethod::Subscribe, resource) = &waiting.ask else { return };
        let stays = ["disconnected: ", "did not respond within", "\"cancelled\""];
        let stays = stays.iter().any(|text| error.contains(text));
        match self.asked(resource, waiting.number) {
            Some(subscription) if stays => *subscription = Subscription::Held,
            Some(_) => drop(self.subscriptions.remove(resource)),
            None => {}
        }
    }

    /// Returns the subscription that the request with this number asked for, until it is answered.
    fn asked(&mut self, resource: &Resource, number: u64) -> Option<&mut Subscription> {
        let is_it = |subscription: &&mut Subscription| matches!(subscription, Subscription::Asked(asked) if *asked == number);
        self.subscriptions.get_mut(resource).filter(is_it)
    }

    /// Returns whether it has seen the tools of a server in the list of all.
    pub fn has_seen(&self, server: usize) -> bool {
        let name = child::name(server);
        self.tools.iter().any(|tool| tool.strip_prefix(&name).is_some_and(|rest| rest.starts_with('_')))
    }

    /// Returns whether a request to subscribe to a resource waits for its response.
    pub fn is_subscribing(&self, resource: &Resource) -> bool {
        matches!(self.subscriptions.get(resource), Some(Subscription::Asked(_)))
    }

    /// Returns the resources that it is subscribed to.
    pub fn resources(&self) -> impl Iterator<Item = ResourceId> {
        self.subscriptions.keys().map(|resource| resource.id)
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
        self.note(text);
        match (message.kind(), message.method()) {
            (Kind::Notification, "notifications/progress") => {
                let part = |name| message.param(&[name]).unwrap().map(|span| &text[span]).unwrap();
                let token = part("progressToken");
                let mut open = self.open.iter_mut();
                let waiting = open.find(|((on, _), waiting)| *on == stream && waiting.token == token);
                let Some((_, waiting)) = waiting else {
                    let is_own = part("message").starts_with(&(self.place + 1).to_string());
                    assert!(self.isolates && is_own, "client {}: stray {text}", self.place);
                    return;
                };
                assert_eq!(part("message"), waiting.nonce, "somebody else's progress: {text}");
                waiting.due = waiting.due.max(now + waiting.timeout);
            }
            (Kind::Notification, method) if method.ends_with("/list_changed") => self.stale = true,
            (Kind::Notification, "notifications/message") => {
                let level = child::LEVELS.iter().position(|level| text.contains(&format!("\"{level}\"")));
                assert!(self.level.is_some_and(|wanted| level >= Some(wanted)), "not asked for: {text}");
            }
            (Kind::Notification, "notifications/resources/updated") => {
                let is_it = |resource: &Resource| {
                    let rest = text.split(&format!("\"{}", resource.uri)).nth(1);
                    rest.is_some_and(|rest| rest.starts_with(['"', '/']))
                };
                assert!(self.subscriptions.keys().any(is_it), "client {}: unwanted {text}", self.place);
            }
            // From the process of its session. It has no answer, and is cancelled.
            (Kind::Request, "sampling/createMessage") if self.isolates => {}
            (Kind::Notification, "notifications/cancelled") if self.isolates => {}
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
        Some(child::EARLY) => {
            let named = matches!(waiting.ask, Ask::Resource(..)) || *scope != Scope::All;
            assert!(named, "sent before initialize");
        }
        Some(7) => assert_eq!(part("data"), Some(waiting.nonce.as_str()), "somebody else's error"),
        Some(
            jsonrpc::BUSY
            | jsonrpc::DOWN
            | jsonrpc::TIMED_OUT
            | jsonrpc::INTERNAL_ERROR
            | jsonrpc::INVALID_PARAMS
            | jsonrpc::NO_RESOURCE
            | jsonrpc::METHOD_NOT_FOUND,
        ) => {}
        _ => panic!("an error of nobody: {error}"),
    }
}

/// Returns the method and the params of a request.
fn params(ask: &Ask, nonce: &str, token: &str) -> (&'static str, String) {
    match ask {
        Ask::Initialize => (
            "initialize",
            r#"{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"c"}}"#.to_owned(),
        ),
        Ask::Tools => ("tools/list", "{}".into()),
        Ask::Resource(method, resource) => {
            let method = match method {
                ResourceMethod::Read => "resources/read",
                ResourceMethod::Subscribe => "resources/subscribe",
                ResourceMethod::Unsubscribe => "resources/unsubscribe",
            };
            (method, format!("{{\"uri\":\"{}\",\"nonce\":{nonce}}}", resource.uri))
        }
        Ask::Level(level) => {
            let level = child::LEVELS[*level];
            ("logging/setLevel", format!("{{\"level\":\"{level}\",\"nonce\":{nonce}}}"))
        }
        Ask::Task(id) => ("tasks/get", format!("{{\"taskId\":\"{id}\"}}")),
        Ask::Call { tool, length, progress, task } => {
            let meta =
                if *progress { format!("\"_meta\":{{\"progressToken\":{token}}},") } else { String::new() };
            let more = match length {
                Length::Short => String::new(),
                Length::Long => format!(",\"x\":\"{}\"", &padding()[..LONG]),
                Length::TooLong => format!(",\"x\":\"{}\"", padding()),
            };
            let task = if *task { ",\"task\":{}" } else { "" };
            let arguments = format!("{{\"nonce\":{nonce}{more}}}");
            ("tools/call", format!("{{{meta}\"arguments\":{arguments},\"name\":\"{tool}\"{task}}}"))
        }
    }
}
