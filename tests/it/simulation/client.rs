//! A simulated client. It uses the ids 0, 1, 2… like every other client, and checks every answer.

use std::{collections::BTreeMap, fmt::Write, time::Instant};

use mcpport::{
    auth::Principal,
    jsonrpc::{self, Kind, Message, find},
    session::Calls,
};

use super::padding;

/// A call without an answer so far.
pub struct Waiting {
    /// A value that only appears in the call's own answer and progress.
    nonce: String,
    /// Raw progress token; empty if the call requests no progress.
    token: String,
    /// Whether the call is larger than an edge accepts.
    large: bool,
    /// The deadline for the answer.
    pub due: Option<Instant>,
}

pub struct Client {
    pub session: String,
    pub principal: Principal,
    pub calls: Calls<usize>,
    /// Open calls by raw id.
    pub open: BTreeMap<String, Waiting>,
    pub left: bool,
    /// Number of calls still to make.
    pub plans: usize,
    /// Log of all events, for comparing two runs.
    pub history: String,
    place: usize,
    next: u64,
}

impl Client {
    pub fn new(
        place: usize,
        principal: Principal,
        session: String,
        calls: Calls<usize>,
        plans: usize,
    ) -> Self {
        Self {
            session,
            principal,
            calls,
            open: BTreeMap::new(),
            left: false,
            plans,
            history: String::new(),
            place,
            next: 0,
        }
    }

    /// Starts a new session after a restart of the gateway; open calls end with their connection.
    pub fn begin_again(&mut self, session: String, calls: Calls<usize>) {
        (self.session, self.calls) = (session, calls);
        self.open.clear();
        self.history.push_str("the gateway is new\n");
    }

    pub fn is_done(&self) -> bool {
        self.left || (self.plans == 0 && self.open.is_empty())
    }

    /// Returns the next request.
    pub fn ask(&mut self, tool: &str, progress: bool, large: bool) -> String {
        let number = self.next;
        self.next += 1;
        // Different JSON spellings of the same number; the answer must use the spelling of the
        // request.
        let id = match self.place % 4 {
            0 => number.to_string(),
            1 => format!("\"{number}\""),
            2 => format!("{number}.0"),
            _ => format!("\"\\u002d{number}\""),
        };
        let token = match progress {
            false => String::new(),
            true if self.place.is_multiple_of(2) => number.to_string(),
            true => format!("\"{number}\""),
        };
        let meta = if progress { format!("\"_meta\":{{\"progressToken\":{token}}},") } else { String::new() };
        let nonce = format!("{}{number:03}", self.place + 1);
        let more = if large { format!(",\"x\":\"{}\"", padding()) } else { String::new() };
        let params = format!("{{{meta}\"arguments\":{{\"nonce\":{nonce}{more}}},\"name\":\"{tool}\"}}");
        let text = jsonrpc::request(&id, "tools/call", &params);
        self.open.insert(id, Waiting { nonce, token, large, due: None });
        text
    }

    /// Handles a message on the event stream.
    pub fn read(&mut self, text: &str) {
        assert!(!self.left, "client {} is gone and gets {text}", self.place);
        let message = Message::read(text).expect("clients get messages");
        let _ = writeln!(self.history, "{text}");
        match (message.kind(), message.method()) {
            (Kind::Response, _) => {
                let waiting = self.open.remove(message.id().unwrap_or_default());
                let waiting = waiting.unwrap_or_else(|| panic!("client {}: stray {text}", self.place));
                answer(&message, &waiting);
            }
            (Kind::Notification, "notifications/progress") => {
                let part = |name| message.param(&[name]).unwrap().map(|span| &text[span]).unwrap();
                let waiting = self.open.values().find(|waiting| waiting.token == part("progressToken"));
                let waiting = waiting.unwrap_or_else(|| panic!("client {}: stray {text}", self.place));
                assert_eq!(part("message"), waiting.nonce, "somebody else's progress: {text}");
            }
            (Kind::Notification, "notifications/tools/list_changed") => {}
            _ => panic!("client {}: unexpected {text}", self.place),
        }
    }
}

/// Checks an answer: the result exactly as the child wrote it, or an error of the gateway.
fn answer(message: &Message<'_>, waiting: &Waiting) {
    if let Some(result) = message.result() {
        assert!(!waiting.large, "no edge accepts it");
        assert_eq!(result, format!("{{\"nonce\":{}}}", waiting.nonce), "somebody else's answer");
        return;
    }
    let error = message.error().unwrap();
    let part = |name| find(error, 0..error.len(), &[name]).unwrap().map(|span| &error[span]);
    match part("code").and_then(|code| code.parse().ok()) {
        Some(jsonrpc::INVALID_REQUEST) => assert!(waiting.large, "it was not too large"),
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
