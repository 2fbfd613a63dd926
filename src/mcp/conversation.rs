//! The gateway's own conversation with one server: `initialize`, `notifications/initialized`, and the listing
//! of its tools, page by page, now and whenever the server says that they changed.
//!
//! Pure: it says what to ask next and is told the answers, one at a time. `gateway::upstream` carries them.

use crate::{
    jsonrpc::{self, Message, elements, find, quote, unquote},
    limits::CatalogLimits,
    mcp::{LATEST, names::Tool},
    text,
};

/// A request to send to the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// Sent before the request.
    pub first: Option<String>,
    /// The method.
    pub method: &'static str,
    /// Its params, raw.
    pub params: String,
}

/// What follows from an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Ask this.
    Ask(Ask),
    /// The list is complete, and `Some` is to be asked because it changed meanwhile.
    Tools(Vec<Tool>, Option<Ask>),
    /// The server cannot be used, for this reason.
    Failed(String),
}

/// Where the conversation stands.
#[derive(Debug)]
enum Phase {
    Initializing,
    Listing { tools: Vec<Tool>, bytes: usize, pages: usize, changed: bool },
    Settled,
}

/// The conversation with one server.
#[derive(Debug)]
pub struct Conversation {
    phase: Phase,
    has_tools: bool,
    /// Names that were refused, for the log.
    refused: Vec<String>,
    limits: CatalogLimits,
}

impl Conversation {
    /// A new conversation, and what to ask first.
    pub fn start(limits: CatalogLimits) -> (Self, Ask) {
        let params = format!(
            "{{\"protocolVersion\":\"{LATEST}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}}}",
            env!("CARGO_PKG_VERSION")
        );
        let conversation = Self { phase: Phase::Initializing, has_tools: false, refused: Vec::new(), limits };
        (conversation, Ask { first: None, method: "initialize", params })
    }

    /// The server answered what was asked last.
    pub fn answered(&mut self, message: &Message<'_>) -> Next {
        match &self.phase {
            Phase::Initializing => self.initialized(message),
            Phase::Listing { .. } => self.listed(message),
            Phase::Settled => Next::Failed("the server answered what was not asked".into()),
        }
    }

    /// The server says that its tools changed. Gives what to ask, unless a listing is under way.
    pub fn tools_changed(&mut self) -> Option<Ask> {
        match &mut self.phase {
            Phase::Initializing => None,
            Phase::Listing { changed, .. } => {
                *changed = true;
                None
            }
            Phase::Settled => Some(self.list()),
        }
    }

    /// The question went unanswered. What was listed before stays; a server that was never listed cannot be used.
    pub fn unanswered(&mut self) {
        self.phase = Phase::Settled;
    }

    /// Tool names that were refused since the last call, shown fit for a log.
    pub fn take_refused(&mut self) -> Vec<String> {
        std::mem::take(&mut self.refused)
    }

    fn initialized(&mut self, message: &Message<'_>) -> Next {
        let Some(result) = message.result() else {
            return Next::Failed(format!("initialize failed: {}", error_text(message)));
        };
        let version = find(result, 0..result.len(), &["protocolVersion"]).ok().flatten();
        let Some(version) = version.and_then(|span| unquote(&result[span])) else {
            return Next::Failed("initialize was answered without a protocolVersion".into());
        };
        // Only membership in the list counts; an unknown version is a server we cannot speak with.
        if !super::VERSIONS.contains(&version.as_ref()) {
            let shown = text::show(&version);
            return Next::Failed(format!(
                "the server speaks protocol version {shown}, which is not supported"
            ));
        }
        self.has_tools = matches!(find(result, 0..result.len(), &["capabilities", "tools"]), Ok(Some(_)));
        let first = Some(jsonrpc::notification("notifications/initialized", None));
        // A server may leave the capability out and have tools all the same; asking costs one round.
        Next::Ask(Ask { first, ..self.list() })
    }

    fn list(&mut self) -> Ask {
        self.phase = Phase::Listing { tools: Vec::new(), bytes: 0, pages: 0, changed: false };
        Ask { first: None, method: "tools/list", params: "{}".into() }
    }

    fn listed(&mut self, message: &Message<'_>) -> Next {
        let Phase::Listing { mut tools, mut bytes, mut pages, changed } =
            std::mem::replace(&mut self.phase, Phase::Settled)
        else {
            return Next::Failed("the server answered what was not asked".into());
        };
        let Some(result) = message.result() else {
            // A server without tools does not know the method.
            let empty = !self.has_tools && pages == 0;
            return if empty {
                Next::Tools(Vec::new(), None)
            } else {
                Next::Failed(format!("tools/list failed: {}", error_text(message)))
            };
        };
        let Ok(Some(list)) = find(result, 0..result.len(), &["tools"]) else {
            return Next::Failed("tools/list was answered without tools".into());
        };
        for span in elements(result, list) {
            let raw = &result[span];
            match Tool::read(raw, self.limits.tool_name) {
                Some(tool) => {
                    bytes += tool.bytes();
                    tools.push(tool);
                }
                None => self.refused.push(text::show(raw).to_string()),
            }
            if tools.len() > self.limits.tools || bytes > self.limits.bytes {
                let CatalogLimits { tools, bytes, .. } = self.limits;
                return Next::Failed(format!(
                    "the server lists more than {tools} tools or {bytes} bytes of them"
                ));
            }
        }
        pages += 1;
        let cursor = find(result, 0..result.len(), &["nextCursor"]).ok().flatten();
        match cursor.and_then(|span| unquote(&result[span])) {
            Some(_) if pages >= self.limits.pages => {
                Next::Failed(format!("the server's tool list has more than {} pages", self.limits.pages))
            }
            Some(cursor) => {
                self.phase = Phase::Listing { tools, bytes, pages, changed };
                let params = format!("{{\"cursor\":{}}}", quote(&cursor));
                Next::Ask(Ask { first: None, method: "tools/list", params })
            }
            None => {
                let again = changed.then(|| self.list());
                Next::Tools(tools, again)
            }
        }
    }
}

/// The message of an error, fit for a log.
fn error_text(message: &Message<'_>) -> String {
    let error = message.error().unwrap_or("{}");
    let found = find(error, 0..error.len(), &["message"]).ok().flatten();
    let words = found.and_then(|span| unquote(&error[span])).unwrap_or_default();
    text::show(&words).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(result: &str) -> String {
        jsonrpc::result("1", result)
    }

    fn feed(conversation: &mut Conversation, text: &str) -> Next {
        conversation.answered(&Message::read(text).unwrap())
    }

    fn started() -> Conversation {
        let (mut conversation, ask) = Conversation::start(CatalogLimits::default());
        assert_eq!(ask.method, "initialize");
        let hello = answer(r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{}}"#);
        let Next::Ask(ask) = feed(&mut conversation, &hello) else { panic!("no question") };
        assert!(ask.first.is_some_and(|first| first.contains("notifications/initialized")));
        assert_eq!((ask.method, ask.params.as_str()), ("tools/list", "{}"));
        conversation
    }

    fn names(next: Next) -> Vec<String> {
        match next {
            Next::Tools(tools, None) => tools.into_iter().map(|tool| tool.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_are_followed() {
        let mut conversation = started();
        let next = feed(&mut conversation, &answer(r#"{"tools":[{"name":"a"}],"nextCursor":"x\"y"}"#));
        let Next::Ask(ask) = next else { panic!("{next:?}") };
        assert_eq!(ask.params, r#"{"cursor":"x\"y"}"#);
        assert_eq!(names(feed(&mut conversation, &answer(r#"{"tools":[{"name":"b"}]}"#))), ["a", "b"]);
    }

    #[test]
    fn a_change_during_a_listing_is_not_lost() {
        let mut conversation = started();
        assert_eq!(conversation.tools_changed(), None);
        let next = feed(&mut conversation, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, Next::Tools(_, Some(_))), "{next:?}");
        assert!(names(feed(&mut conversation, &answer(r#"{"tools":[]}"#))).is_empty());
        assert!(conversation.tools_changed().is_some());
    }

    #[test]
    fn bad_tools_are_left_out_and_named() {
        let mut conversation = started();
        let list = answer(r#"{"tools":[{"name":"ok"},{"name":"b\u0007d"},{"nome":"x"},7]}"#);
        assert_eq!(names(feed(&mut conversation, &list)), ["ok"]);
        assert_eq!(conversation.take_refused().len(), 3);
    }

    #[test]
    fn limits_are_kept() {
        let list = |count: usize| {
            let tools: Vec<String> = (0..count).map(|n| format!("{{\"name\":\"t{n}\"}}")).collect();
            answer(&format!("{{\"tools\":[{}]}}", tools.join(",")))
        };
        assert_eq!(names(feed(&mut started(), &list(512))).len(), 512);
        assert!(matches!(feed(&mut started(), &list(513)), Next::Failed(why) if why.contains("512")));
        let large = format!("{{\"tools\":[{{\"name\":\"a\",\"x\":\"{}\"}}]}}", "y".repeat(4 << 20));
        assert!(matches!(feed(&mut started(), &answer(&large)), Next::Failed(_)));
        let mut endless = started();
        let page = answer(r#"{"tools":[],"nextCursor":""}"#);
        let asked = (0..100).take_while(|_| matches!(feed(&mut endless, &page), Next::Ask(_))).count();
        assert_eq!(asked, 63);
    }

    #[test]
    fn failures_say_why() {
        for (reply, why) in [
            (jsonrpc::error("1", -32602, "no\nway"), "initialize failed: no\\nway"),
            (answer("{}"), "without a protocolVersion"),
            (answer(r#"{"protocolVersion":"0.1.0"}"#), "version 0.1.0"),
        ] {
            let (mut conversation, _) = Conversation::start(CatalogLimits::default());
            let next = feed(&mut conversation, &reply);
            assert!(matches!(&next, Next::Failed(text) if text.contains(why)), "{next:?}");
        }
    }

    #[test]
    fn a_server_without_tools_has_none() {
        let (mut conversation, _) = Conversation::start(CatalogLimits::default());
        feed(&mut conversation, &answer(r#"{"protocolVersion":"2024-11-05","capabilities":{}}"#));
        assert!(names(feed(&mut conversation, &jsonrpc::error("2", -32601, "unknown"))).is_empty());
    }
}
