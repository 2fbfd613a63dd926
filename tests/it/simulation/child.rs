//! A simulated stdio server: slow, noisy, sometimes silent, with repeated and unsolicited messages.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use mcpport::jsonrpc::{self, Kind, Message, unquote};

use super::{Random, padding};

/// The tools of every server.
pub const TOOLS: [&str; 2] = ["echo", "slow"];

/// The number of resources of a server that has any.
pub const RESOURCES: usize = 3;

/// Whether the server of a place has resources, log messages and tasks.
pub fn has_more(place: usize) -> bool {
    place % 2 == 1
}

/// Returns the server's own URI of a resource.
pub fn uri(place: usize, number: usize) -> String {
    format!("r:{place}/{number}")
}

/// The error code for a request before `notifications/initialized`.
pub const EARLY: i64 = 8;

/// Part of every response to `initialize`, and of nothing else.
pub const INITIALIZED: &str = "\"protocolVersion\"";

/// Returns the server name that an edge registers.
pub fn name(place: usize) -> String {
    format!("s{place}")
}

pub struct Child {
    place: usize,
    /// It may write messages that are larger than our gateway accepts.
    is_large: bool,
    /// It is of one session, which gives ids and tokens.
    is_isolated: bool,
    /// Nonces of all calls to this child and its predecessors. No call may arrive twice, whatever
    /// crashes or reconnects.
    calls: HashSet<String>,
    /// Ids of all requests to this child; they must be unique.
    seen: HashSet<String>,
    initialized: bool,
    /// Whether it got `notifications/initialized`.
    told: bool,
    ended: bool,
    /// Ids of the requests, other than `initialize`, that it has neither answered nor been told to
    /// drop.
    pub open: BTreeSet<String>,
    /// Ids of answered requests; later messages about them are late.
    answered: Vec<String>,
    /// Ids of cancelled requests.
    cancelled: HashSet<String>,
    /// The nonce of the call that has begun each task; the task's number is its place here.
    tasks: Vec<String>,
}

/// Lines to write, with their delays.
type Lines = Vec<(Duration, String)>;

impl Child {
    pub fn new(place: usize, is_large: bool) -> Self {
        Self {
            place,
            is_large,
            is_isolated: false,
            calls: HashSet::new(),
            seen: HashSet::new(),
            initialized: false,
            told: false,
            ended: false,
            open: BTreeSet::new(),
            answered: Vec::new(),
            cancelled: HashSet::new(),
            tasks: Vec::new(),
        }
    }

    /// Creates the child of one session.
    pub fn isolated(place: usize, is_large: bool) -> Self {
        Self { is_isolated: true, ..Self::new(place, is_large) }
    }

    /// Replaces the child with a new one on the same edge.
    pub fn begin_again(&mut self) {
        *self = Self { calls: std::mem::take(&mut self.calls), ..Self::new(self.place, self.is_large) };
    }

    /// Ends the child. Returns false if it had already ended.
    pub fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Handles a line that reaches the edge.
    pub fn wrote(&mut self, line: &str) {
        let message = Message::read(line).ok().filter(|message| message.kind() == Kind::Response);
        if let Some(id) = message.as_ref().and_then(Message::id) {
            self.open.remove(id);
        }
    }

    /// Handles a line on stdin.
    pub fn read(&mut self, line: &str, random: &mut Random) -> Lines {
        assert!(!line.contains(['\n', '\r']), "{line}");
        assert!(!self.ended, "a dead child gets {line}");
        let message = Message::read(line).expect("the edge hands on messages only");
        self.told |= message.method() == "notifications/initialized";
        if message.method() == "notifications/cancelled" {
            let id = message.param(&["requestId"]).unwrap().expect("a cancellation names its request");
            self.open.remove(&line[id.clone()]);
            self.cancelled.insert(line[id].to_owned());
        }
        if message.kind() != Kind::Request {
            return Vec::new();
        }
        let id = message.id().unwrap_or_default().to_owned();
        assert!(self.seen.insert(id.clone()), "the child of box {} gets id {id} twice", self.place);
        assert!(!self.cancelled.contains(&id), "box {}: {line} was cancelled before", self.place);
        if message.method() != "initialize" {
            self.open.insert(id.clone());
        }
        let mut lines = match message.method() {
            // At the server's own endpoint, a client's request may come this early. The gateway's own
            // discovery would fail with this error, and no other client may get it.
            method if !self.told && method != "initialize" => {
                vec![(Duration::ZERO, jsonrpc::error(&id, EARLY, "before initialize"))]
            }
            "initialize" => self.initialize(&id, random),
            "tools/list" => vec![(random.millis(0, 300), jsonrpc::result(&id, &listing()))],
            "tools/call" => self.call(&id, &message, random),
            "resources/list" => vec![(random.millis(0, 300), jsonrpc::result(&id, &self.resources()))],
            "resources/templates/list" => vec![(Duration::ZERO, jsonrpc::result(&id, NO_TEMPLATES))],
            "resources/subscribe" | "resources/unsubscribe" | "resources/read" | "logging/setLevel" => {
                let mut lines = vec![(random.millis(0, 900), echo(&id, &message, random.chance(25)))];
                if message.method() == "resources/subscribe" && !self.is_isolated {
                    // Even if it has refused.
                    lines.extend((0..2).map(|_| (random.millis(0, 5000), self.updated(random))));
                }
                lines
            }
            "tasks/get" => vec![(random.millis(0, 900), self.task(&id, &message))],
            other => panic!("the child is asked {other}"),
        };
        self.babble(&mut lines, random);
        lines
    }

    fn initialize(&mut self, id: &str, random: &mut Random) -> Lines {
        assert!(!std::mem::replace(&mut self.initialized, true), "a child is initialized twice");
        let more = if has_more(self.place) { MORE } else { "" };
        let result = format!(
            "{{{INITIALIZED}:\"2025-06-18\",\"capabilities\":{{\"tools\":{{}}{more}}},\"serverInfo\":{{}}}}"
        );
        vec![(random.millis(0, 2000), jsonrpc::result(id, &result))]
    }

    fn resources(&self) -> String {
        let item = |number| format!("{{\"uri\":\"{}\",\"name\":\"n\"}}", uri(self.place, number));
        let items: Vec<String> = (0..RESOURCES).map(item).collect();
        format!("{{\"resources\":[{}]}}", items.join(","))
    }

    /// Returns the notification that a resource was updated.
    fn updated(&self, random: &mut Random) -> String {
        let below = if random.chance(30) { "/x" } else { "" };
        let params = format!("{{\"uri\":\"{}{below}\"}}", uri(self.place, random.below(RESOURCES)));
        jsonrpc::notification("notifications/resources/updated", Some(&params))
    }

    fn task(&self, id: &str, message: &Message<'_>) -> String {
        let span = message.param(&["taskId"]).unwrap().expect("a task is named");
        let name = unquote(&message.text()[span]).unwrap().into_owned();
        let number = name.strip_prefix('t').and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| self.tasks.get(number)) {
            Some(nonce) => jsonrpc::result(id, &format!("{{\"taskId\":\"{name}\",\"nonce\":{nonce}}}")),
            None => jsonrpc::error(id, jsonrpc::INVALID_PARAMS, "task not found: the server has none"),
        }
    }

    fn call(&mut self, id: &str, message: &Message<'_>, random: &mut Random) -> Lines {
        let part = |path: &[&str]| message.param(path).unwrap().map(|span| &message.text()[span]);
        let token = part(&["_meta", "progressToken"]);
        let is_ours = token.is_none_or(|token| token == id);
        assert!(is_ours || self.is_isolated, "our id stands in for the client's token");
        let tool = part(&["name"]).and_then(unquote).unwrap().into_owned();
        assert!(TOOLS.contains(&tool.as_str()), "the server's own name is asked for");
        let nonce = part(&["arguments", "nonce"]).unwrap();
        assert!(self.calls.insert(nonce.to_owned()), "box {} gets call {nonce} twice", self.place);
        let longest = if tool == "slow" { 9000 } else { 1500 };
        let end = random.millis(0, longest);
        let mut lines = Vec::new();
        for _ in 0..random.below(3) {
            let at = end.mul_f64(random.below(120) as f64 / 100.0);
            if let Some(token) = token.or(Some(id).filter(|_| !self.is_isolated)) {
                lines.push((at, progress(token, nonce)));
            }
        }
        if random.chance(90) {
            let answer = if random.chance(5) && self.is_large {
                jsonrpc::result(id, &format!("{{\"nonce\":{nonce},\"x\":\"{}\"}}", padding()))
            } else if part(&["task"]).is_some() {
                self.tasks.push(nonce.to_owned());
                let task = format!("{{\"taskId\":\"t{}\"}}", self.tasks.len() - 1);
                jsonrpc::result(id, &format!("{{\"task\":{task},\"nonce\":{nonce}}}"))
            } else {
                echo(id, message, random.chance(10))
            };
            self.answered.push(id.to_owned());
            if random.chance(20) {
                lines.push((end + random.millis(1, 4000), answer.clone()));
            }
            lines.push((end, answer));
        }
        lines
    }

    /// Adds unsolicited output that belongs to no request.
    fn babble(&mut self, lines: &mut Lines, random: &mut Random) {
        let more = has_more(self.place);
        let unasked = match random.below(28) {
            12..16 if more => self.updated(random),
            16..23 if more => {
                let level = LEVELS[random.below(LEVELS.len())];
                let params = format!("{{\"level\":\"{level}\",\"data\":1}}");
                jsonrpc::notification("notifications/message", Some(&params))
            }
            0 => "Listening on port 3".to_owned(),
            1 => jsonrpc::result("1000000", "{\"nonce\":-1}"),
            2 => jsonrpc::result("0", "{\"nonce\":-1}"),
            3 => jsonrpc::result("\"one\"", "{\"nonce\":-1}"),
            4 => jsonrpc::request("1", "ping", "{}"),
            5 => jsonrpc::request("2", "sampling/createMessage", "{}"),
            6 => jsonrpc::notification("notifications/tools/list_changed", None),
            // Its session would get it.
            7 if !self.is_isolated => progress("1000000", "-1"),
            8 if !self.is_isolated => jsonrpc::notification("notifications/message", Some("{}")),
            9 => "{\"status\":\"error\",\"message\":\"not the gateway\"}".to_owned(),
            10 if self.is_large => jsonrpc::request("3", "ping", &format!("[\"{}\"]", padding())),
            11 if self.is_large => {
                jsonrpc::notification("notifications/message", Some(&format!("[\"{}\"]", padding())))
            }
            _ => return,
        };
        lines.push((random.millis(0, 2000), unasked));
    }
}

/// The log levels in use, from the lowest on.
pub const LEVELS: [&str; 3] = ["debug", "info", "error"];

/// More capabilities, of a server that has more than tools.
const MORE: &str = ",\"resources\":{\"subscribe\":true},\"logging\":{},\"tasks\":{}";

const NO_TEMPLATES: &str = "{\"resourceTemplates\":[]}";

/// Returns the response to a request, with its nonce if it has one: a result, or if `refuses`, an
/// error.
fn echo(id: &str, message: &Message<'_>, refuses: bool) -> String {
    let find = |path: &[&str]| message.param(path).unwrap().map(|span| &message.text()[span]);
    let nonce = find(&["nonce"]).or_else(|| find(&["arguments", "nonce"])).unwrap_or("-1");
    if refuses {
        return format!(
            "{{\"error\":{{\"code\":7,\"message\":\"no\",\"data\":{nonce}}},\"jsonrpc\":\"2.0\",\"id\":{id}}}"
        );
    }
    jsonrpc::result(id, &format!("{{\"nonce\":{nonce}}}"))
}

fn progress(token: &str, nonce: &str) -> String {
    let params = format!("{{\"progressToken\":{token},\"progress\":1,\"message\":{nonce}}}");
    jsonrpc::notification("notifications/progress", Some(&params))
}

fn listing() -> String {
    let tools = TOOLS.map(|tool| format!("{{\"name\":\"{tool}\"}}")).join(",");
    format!("{{\"tools\":[{tools}]}}")
}
