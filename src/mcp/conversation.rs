//! The gateway's own conversation with one server: `initialize`, `notifications/initialized`, and the listing of
//! what it offers, page by page, now and whenever the server says that something changed.
//!
//! Pure: it says what to ask next and is told the answers, one at a time. `gateway::registration` carries them.

use std::collections::VecDeque;

use crate::{
    jsonrpc::{self, Message, elements, find, quote, unquote},
    limits::CatalogLimits,
    mcp::{
        LATEST,
        offer::{Item, Kind},
    },
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
    /// A list is complete, and this is to be asked next. Without it, all is listed.
    Offer(Kind, Vec<Item>, Option<Ask>),
    /// The server cannot be used, for this reason.
    Failed(String),
}

/// Where the conversation stands.
#[derive(Debug)]
enum Phase {
    Initializing,
    Listing(Listing),
    Settled,
}

/// A list that is coming in.
#[derive(Debug)]
struct Listing {
    kind: Kind,
    items: Vec<Item>,
    bytes: usize,
    pages: usize,
}

/// The conversation with one server.
#[derive(Debug)]
pub struct Conversation {
    phase: Phase,
    /// Lists that are to be asked for next.
    due: VecDeque<Kind>,
    /// Lists that changed since they were asked for.
    changes: VecDeque<Kind>,
    /// Kinds whose capability the server declared.
    declared: Vec<Kind>,
    /// The result of `initialize`, raw.
    greeting: String,
    /// What is odd about the server, for the log.
    remarks: Vec<String>,
    limits: CatalogLimits,
}

impl Conversation {
    /// A new conversation, and what to ask first.
    pub fn start(limits: CatalogLimits) -> (Self, Ask) {
        let conversation = Self {
            phase: Phase::Initializing,
            due: VecDeque::new(),
            changes: VecDeque::new(),
            declared: Vec::new(),
            greeting: String::new(),
            remarks: Vec::new(),
            limits,
        };
        (conversation, hello())
    }

    /// The server was started anew: the conversation begins again, and what it knows holds until the server has
    /// answered. Gives what to ask; no answer to what was asked before may come after this.
    pub fn again(&mut self) -> Ask {
        self.phase = Phase::Initializing;
        self.due.clear();
        self.changes.clear();
        hello()
    }

    /// The server answered what was asked last.
    pub fn answered(&mut self, message: &Message<'_>) -> Next {
        match std::mem::replace(&mut self.phase, Phase::Settled) {
            Phase::Initializing => self.initialized(message),
            Phase::Listing(listing) => self.listed(listing, message),
            Phase::Settled => Next::Failed("the server answered what was not asked".into()),
        }
    }

    /// The server says that a list changed: it is to be asked for anew, once [`Conversation::relist`] is called.
    pub fn changed(&mut self, kind: Kind) {
        // What is still to be asked for in any case is not asked for twice.
        if !self.changes.contains(&kind) && !self.due.contains(&kind) {
            self.changes.push_back(kind);
        }
    }

    /// Whether a list has changed and nothing else is being asked for.
    pub fn wants_relist(&self) -> bool {
        !self.changes.is_empty() && matches!(self.phase, Phase::Settled)
    }

    /// Asks for the lists that changed. `None`: there is none, or something else is being asked for.
    pub fn relist(&mut self) -> Option<Ask> {
        if !self.wants_relist() {
            return None;
        }
        self.due.append(&mut self.changes);
        self.next_list()
    }

    /// The question went unanswered. What was listed before stays.
    pub fn unanswered(&mut self) {
        self.phase = Phase::Settled;
        self.due.clear();
    }

    /// Bytes of the list that is coming in, with what its items take beside their texts.
    pub fn listing_bytes(&self) -> usize {
        match &self.phase {
            Phase::Listing(listing) => listing.items.iter().map(Item::memory).sum(),
            Phase::Initializing | Phase::Settled => 0,
        }
    }

    /// The result of `initialize`, raw; empty before it came.
    pub fn greeting(&self) -> &str {
        &self.greeting
    }

    /// What was odd since the last call, fit for a log.
    pub fn take_remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    fn initialized(&mut self, message: &Message<'_>) -> Next {
        let Some(result) = message.result() else {
            return Next::Failed(format!("initialize failed: {}", error_text(message)));
        };
        let version = super::version_of(result);
        // Only membership in the list counts; an unknown version is a server we cannot speak with.
        if let Some(why) = match version.as_deref() {
            None => Some("initialize was answered without a protocolVersion".to_owned()),
            Some(version) if super::VERSIONS.contains(&version) => None,
            Some(other) => Some(format!(
                "the server speaks protocol version {}, which is not supported",
                text::show(other)
            )),
        } {
            return Next::Failed(why);
        }
        let declares = |kind: &Kind| {
            matches!(find(result, 0..result.len(), &["capabilities", kind.capability()]), Ok(Some(_)))
        };
        self.declared = Kind::ALL.into_iter().filter(declares).collect();
        self.greeting = result.to_owned();
        // A server may leave the capability out and have tools all the same; asking costs one round.
        self.due = Kind::ALL.into_iter().filter(|kind| *kind == Kind::Tool || declares(kind)).collect();
        self.changes.clear();
        let first = Some(jsonrpc::notification("notifications/initialized", None));
        match self.next_list() {
            Some(ask) => Next::Ask(Ask { first, ..ask }),
            None => Next::Failed("there is nothing to ask the server for".into()),
        }
    }

    fn next_list(&mut self) -> Option<Ask> {
        let kind = self.due.pop_front()?;
        self.phase = Phase::Listing(Listing { kind, items: Vec::new(), bytes: 0, pages: 0 });
        Some(Ask { first: None, method: kind.method(), params: "{}".into() })
    }

    fn listed(&mut self, mut listing: Listing, message: &Message<'_>) -> Next {
        let kind = listing.kind;
        let list = message.result().and_then(|result| {
            Some((result, find(result, 0..result.len(), &[kind.member()]).ok().flatten()?))
        });
        let Some((result, list)) = list else { return self.no_list(&listing, message) };
        for span in elements(result, list) {
            self.take(&mut listing, &result[span]);
            // Refused ones count as well: a line of the log each, and bytes that nothing else bounds.
            let CatalogLimits { items, bytes, .. } = self.limits;
            if listing.items.len() + self.remarks.len() > items || listing.bytes > bytes {
                let noun = kind.noun();
                return Next::Failed(format!(
                    "the server lists more than {items} {noun}s or {bytes} bytes of them"
                ));
            }
        }
        listing.pages += 1;
        let cursor = find(result, 0..result.len(), &["nextCursor"]).ok().flatten();
        match cursor.and_then(|span| unquote(&result[span])) {
            Some(_) if listing.pages >= self.limits.pages => Next::Failed(format!(
                "the server's list of {}s has more than {} pages",
                kind.noun(),
                self.limits.pages
            )),
            Some(cursor) => {
                self.phase = Phase::Listing(listing);
                let params = format!("{{\"cursor\":{}}}", quote(&cursor));
                Next::Ask(Ask { first: None, method: kind.method(), params })
            }
            None => Next::Offer(kind, listing.items, self.next_list()),
        }
    }

    fn take(&mut self, listing: &mut Listing, raw: &str) {
        let kind = listing.kind;
        match Item::read(kind, raw, &self.limits) {
            Some(item) => listing.take(item),
            None => self.remarks.push(format!(
                "left out a {} without a usable {}: {}",
                kind.noun(),
                kind.key(),
                text::show(raw)
            )),
        }
    }

    /// A list did not come. Without its tools a server that has some is of no use; anything else can be missed.
    fn no_list(&mut self, listing: &Listing, message: &Message<'_>) -> Next {
        let kind = listing.kind;
        let declared = self.declared.contains(&kind);
        let why = match message.error() {
            Some(_) => format!("{} failed: {}", kind.method(), error_text(message)),
            None => format!("{} was answered without {}", kind.method(), kind.member()),
        };
        if kind == Kind::Tool && (declared || listing.pages > 0) {
            return Next::Failed(why);
        }
        // Templates go with resources, and most servers that have the one have not the other.
        if declared && kind != Kind::Template {
            self.remarks.push(why);
        }
        Next::Offer(kind, Vec::new(), self.next_list())
    }
}

/// The first question.
fn hello() -> Ask {
    let params = format!(
        "{{\"protocolVersion\":\"{LATEST}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    );
    Ask { first: None, method: "initialize", params }
}

impl Listing {
    fn take(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.items.push(item);
    }
}

/// The message of an error, fit for a log.
pub fn error_text(message: &Message<'_>) -> String {
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

    fn started(capabilities: &str) -> Conversation {
        let (mut conversation, ask) = Conversation::start(CatalogLimits::default());
        assert_eq!(ask.method, "initialize");
        let hello = format!(
            "{{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{capabilities},\"serverInfo\":{{}}}}"
        );
        let Next::Ask(ask) = feed(&mut conversation, &answer(&hello)) else { panic!("no question") };
        assert!(ask.first.is_some_and(|first| first.contains("notifications/initialized")));
        assert_eq!((ask.method, ask.params.as_str()), ("tools/list", "{}"));
        assert_eq!(conversation.greeting(), hello);
        conversation
    }

    fn keys(next: Next) -> Vec<String> {
        match next {
            Next::Offer(_, items, None) => items.into_iter().map(|item| item.key).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_are_followed() {
        let mut conversation = started("{\"tools\":{}}");
        let next = feed(&mut conversation, &answer(r#"{"tools":[{"name":"a"}],"nextCursor":"x\"y"}"#));
        let Next::Ask(ask) = next else { panic!("{next:?}") };
        assert_eq!(ask.params, r#"{"cursor":"x\"y"}"#);
        assert_eq!(keys(feed(&mut conversation, &answer(r#"{"tools":[{"name":"b"}]}"#))), ["a", "b"]);
    }

    #[test]
    fn everything_declared_is_listed() {
        let mut conversation = started("{\"resources\":{},\"prompts\":{},\"logging\":{}}");
        let mut asked = Vec::new();
        let mut next = feed(&mut conversation, &jsonrpc::error("1", -32601, "no tools"));
        while let Next::Offer(_, _, Some(ask)) = next {
            asked.push(ask.method);
            next = feed(&mut conversation, &jsonrpc::error("1", -32601, "none"));
        }
        assert_eq!(asked, ["prompts/list", "resources/list", "resources/templates/list"]);
        assert_eq!(conversation.take_remarks().len(), 2);
    }

    #[test]
    fn a_change_during_a_listing_is_not_lost() {
        let mut conversation = started("{\"tools\":{}}");
        conversation.changed(Kind::Tool);
        conversation.changed(Kind::Tool);
        assert!(!conversation.wants_relist() && conversation.relist().is_none(), "one question at a time");
        let next = feed(&mut conversation, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, Next::Offer(_, _, None)), "{next:?}");
        assert!(conversation.relist().is_some_and(|ask| ask.method == "tools/list"));
        assert!(conversation.relist().is_none(), "two changes are one");
        assert!(keys(feed(&mut conversation, &answer(r#"{"tools":[]}"#))).is_empty());
        conversation.changed(Kind::Prompt);
        assert!(conversation.relist().is_some_and(|ask| ask.method == "prompts/list"));
    }

    #[test]
    fn a_server_that_is_started_anew_is_asked_everything_again() {
        let mut conversation = started("{\"tools\":{}}");
        assert_eq!(conversation.again().method, "initialize");
        assert!(conversation.relist().is_none(), "one question at a time");
        let hello = r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"prompts":{}}}"#;
        let Next::Ask(ask) = feed(&mut conversation, &answer(hello)) else { panic!("no question") };
        assert!(ask.first.is_some() && ask.method == "tools/list");
        assert_eq!(conversation.greeting(), hello);
        let next = feed(&mut conversation, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, Next::Offer(_, _, Some(ask)) if ask.method == "prompts/list"));
        // What it was before still holds when it does not answer.
        conversation.again();
        conversation.unanswered();
        assert_eq!(conversation.greeting(), hello);
        conversation.changed(Kind::Tool);
        assert!(conversation.relist().is_some());
        let refused = feed(&mut conversation, &jsonrpc::error("1", -32603, "broken"));
        assert!(matches!(refused, Next::Failed(_)), "it has tools: {refused:?}");
    }

    #[test]
    fn bad_items_are_left_out_and_named() {
        let mut conversation = started("{\"tools\":{}}");
        let list = answer(r#"{"tools":[{"name":"ok"},{"name":"b\u0007d"},{"nome":"x"},7]}"#);
        assert_eq!(keys(feed(&mut conversation, &list)), ["ok"]);
        assert_eq!(conversation.take_remarks().len(), 3);
    }

    #[test]
    fn limits_are_kept() {
        let fresh = || started("{\"tools\":{}}");
        let list = |count: usize| {
            let tools: Vec<String> = (0..count).map(|n| format!("{{\"name\":\"t{n}\"}}")).collect();
            answer(&format!("{{\"tools\":[{}]}}", tools.join(",")))
        };
        assert_eq!(keys(feed(&mut fresh(), &list(512))).len(), 512);
        assert!(matches!(feed(&mut fresh(), &list(513)), Next::Failed(why) if why.contains("512")));
        let large = format!("{{\"tools\":[{{\"name\":\"a\",\"x\":\"{}\"}}]}}", "y".repeat(4 << 20));
        assert!(matches!(feed(&mut fresh(), &answer(&large)), Next::Failed(_)));
        let refused = answer(&format!("{{\"tools\":[{}0]}}", "0,".repeat(512)));
        assert!(matches!(feed(&mut fresh(), &refused), Next::Failed(why) if why.contains("512")));
        let mut endless = fresh();
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
        let refused = jsonrpc::error("1", -32603, "broken");
        assert!(matches!(feed(&mut started("{\"tools\":{}}"), &refused), Next::Failed(_)));
    }

    #[test]
    fn a_server_without_tools_has_none() {
        assert!(keys(feed(&mut started("{}"), &jsonrpc::error("2", -32601, "unknown"))).is_empty());
    }
}
