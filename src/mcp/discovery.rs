//! The gateway's own conversation with one server: `initialize`, `notifications/initialized`, and the listing of
//! what it offers, page by page, now and whenever the server says that something changed.
//!
//! Pure: it says what to ask next and is told the answers, one at a time. `gateway::link` carries them.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::{
    jsonrpc::{self, Message, elements, find, quote, unquote},
    limits::{CatalogLimits, LOG_GROUPS},
    mcp::{
        LATEST,
        listing::{ListItem, ListKind},
    },
    util,
};

/// A request to send to the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiscoveryRequest {
    /// Sent before the request.
    pub first: Option<String>,
    /// The method.
    pub method: &'static str,
    /// Its params, raw.
    pub params: String,
}

/// What follows from an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DiscoveryStep {
    /// Ask this.
    Ask(DiscoveryRequest),
    /// A list is complete, and this is to be asked next. Without it, all is listed.
    Offer(ListKind, Vec<ListItem>, Option<DiscoveryRequest>),
    /// A list did not come, for this reason: the one before it stays and is asked for again later. This is to be asked
    /// next. Without it, nothing more is asked for now.
    Kept(String, Option<DiscoveryRequest>),
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
    kind: ListKind,
    items: Vec<ListItem>,
    bytes: usize,
    pages: usize,
    /// Items above a limit, left out.
    surplus: usize,
    /// Items that cannot be used, left out.
    unusable: usize,
    /// Hashes of the cursors that were followed. Two of one hash end the list early, for the server that made them.
    cursors: BTreeSet<u64>,
}

/// The conversation with one server.
#[derive(Debug)]
pub struct Discovery {
    phase: Phase,
    /// Lists that are to be asked for next.
    due: VecDeque<ListKind>,
    /// Lists that changed since they were asked for.
    changes: VecDeque<ListKind>,
    /// Lists that did not come, to be asked for again after a pause.
    retries: VecDeque<ListKind>,
    /// Lists that did not come since all came.
    failures: u32,
    /// Everything was asked for once.
    listed: bool,
    /// Kinds whose last list had items.
    known: Vec<ListKind>,
    /// Kinds whose capability the server declared.
    declared: Vec<ListKind>,
    /// The result of `initialize`, raw.
    initialize_result: String,
    /// What is odd about the server, for the log.
    remarks: Vec<String>,
    limits: CatalogLimits,
}

impl Discovery {
    /// A new conversation, and what to ask first.
    pub fn start(limits: CatalogLimits) -> (Self, DiscoveryRequest) {
        let conversation = Self {
            phase: Phase::Initializing,
            due: VecDeque::new(),
            changes: VecDeque::new(),
            retries: VecDeque::new(),
            failures: 0,
            listed: false,
            known: Vec::new(),
            declared: Vec::new(),
            initialize_result: String::new(),
            remarks: Vec::new(),
            limits,
        };
        (conversation, initialize_request())
    }

    /// The server was started anew: the conversation begins again, and what it knows holds until the server has
    /// answered. Gives what to ask; no answer to what was asked before may come after this.
    pub fn again(&mut self) -> DiscoveryRequest {
        self.phase = Phase::Initializing;
        self.due.clear();
        self.changes.clear();
        self.retries.clear();
        initialize_request()
    }

    /// The server answered what was asked last.
    pub fn answered(&mut self, message: &Message<'_>) -> DiscoveryStep {
        match std::mem::replace(&mut self.phase, Phase::Settled) {
            Phase::Initializing => self.initialized(message),
            Phase::Listing(listing) => self.listed(listing, message),
            Phase::Settled => DiscoveryStep::Failed("the server answered what was not asked".into()),
        }
    }

    /// The server says that a list changed: it is to be asked for anew, once [`Discovery::relist`] is called.
    pub fn changed(&mut self, kind: ListKind) {
        // What is still to be asked for in any case is not asked for twice.
        if !self.changes.contains(&kind) && !self.due.contains(&kind) {
            self.changes.push_back(kind);
        }
    }

    /// Whether a list has changed or is still due, and nothing else is being asked for.
    pub fn wants_relist(&self) -> bool {
        !(self.changes.is_empty() && self.due.is_empty()) && matches!(self.phase, Phase::Settled)
    }

    /// Asks for the lists that changed. `None`: there is none, or something else is being asked for.
    pub fn relist(&mut self) -> Option<DiscoveryRequest> {
        if !self.wants_relist() {
            return None;
        }
        self.due.append(&mut self.changes);
        self.next_list()
    }

    /// The question went unanswered. What was listed before stays, and a list is asked for again later.
    pub fn unanswered(&mut self) {
        if let Phase::Listing(listing) = std::mem::replace(&mut self.phase, Phase::Settled) {
            self.postpone(listing.kind);
        }
    }

    /// The list did not come or could not be kept: it is to be asked for again, once [`Discovery::retry`] is called.
    pub fn postpone(&mut self, kind: ListKind) {
        self.failures = self.failures.saturating_add(1);
        if !self.retries.contains(&kind) {
            self.retries.push_back(kind);
        }
    }

    /// Whether a list is to be asked for again and nothing else is being asked for.
    pub fn wants_retry(&self) -> bool {
        !self.retries.is_empty() && matches!(self.phase, Phase::Settled)
    }

    /// Time from the last failure of a list to the next attempt; it doubles each time, up to a cap.
    pub fn retry_pause(&self) -> Duration {
        let factor = 1u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limits.list_pause.saturating_mul(factor).min(self.limits.list_retry_cap)
    }

    /// The pause is over: lists that did not come are due again, for [`Discovery::relist`].
    pub fn retry(&mut self) {
        let again = std::mem::take(&mut self.retries);
        for kind in again {
            if !self.due.contains(&kind) && !self.changes.contains(&kind) {
                self.due.push_back(kind);
            }
        }
    }

    /// Bytes of the list that is coming in, with what its items take beside their texts.
    pub fn listing_bytes(&self) -> usize {
        match &self.phase {
            Phase::Listing(listing) => listing.items.iter().map(ListItem::memory).sum(),
            Phase::Initializing | Phase::Settled => 0,
        }
    }

    /// The result of `initialize`, raw; empty before it came.
    pub fn initialize_result(&self) -> &str {
        &self.initialize_result
    }

    /// What was odd since the last call, fit for a log.
    pub fn take_remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    fn initialized(&mut self, message: &Message<'_>) -> DiscoveryStep {
        let Some(result) = message.result() else {
            return DiscoveryStep::Failed(format!("initialize failed: {}", error_text(message)));
        };
        let version = super::version_of(result);
        // Only membership in the list counts; an unknown version is a server we cannot speak with.
        if let Some(why) = match version.as_deref() {
            None => Some("initialize was answered without a protocolVersion".to_owned()),
            Some(version) if super::VERSIONS.contains(&version) => None,
            Some(other) => Some(format!(
                "the server speaks protocol version {}, which is not supported",
                util::escape::show(other)
            )),
        } {
            return DiscoveryStep::Failed(why);
        }
        let declares = |kind: &ListKind| {
            matches!(find(result, 0..result.len(), &["capabilities", kind.capability()]), Ok(Some(_)))
        };
        self.declared = ListKind::ALL.into_iter().filter(declares).collect();
        self.initialize_result = result.to_owned();
        // A server may leave the capability out and have tools all the same; asking costs one round.
        self.due =
            ListKind::ALL.into_iter().filter(|kind| *kind == ListKind::Tool || declares(kind)).collect();
        self.changes.clear();
        self.retries.clear();
        self.failures = 0;
        let first = Some(jsonrpc::notification("notifications/initialized", None));
        match self.next_list() {
            Some(ask) => DiscoveryStep::Ask(DiscoveryRequest { first, ..ask }),
            None => DiscoveryStep::Failed("there is nothing to ask the server for".into()),
        }
    }

    fn next_list(&mut self) -> Option<DiscoveryRequest> {
        let Some(kind) = self.due.pop_front() else {
            self.listed = true;
            return None;
        };
        // It may have been waiting for another attempt when it changed.
        self.retries.retain(|other| *other != kind);
        self.phase = Phase::Listing(Listing::new(kind));
        Some(DiscoveryRequest { first: None, method: kind.method(), params: "{}".into() })
    }

    fn listed(&mut self, mut listing: Listing, message: &Message<'_>) -> DiscoveryStep {
        let kind = listing.kind;
        let list = message.result().and_then(|result| {
            Some((result, find(result, 0..result.len(), &[kind.member()]).ok().flatten()?))
        });
        let Some((result, list)) = list else { return self.no_list(&listing, message) };
        for span in elements(result, list) {
            self.take(&mut listing, &result[span]);
        }
        listing.pages += 1;
        let cursor = find(result, 0..result.len(), &["nextCursor"]).ok().flatten();
        match cursor.and_then(|span| unquote(&result[span])) {
            Some(cursor) if self.goes_on(&mut listing, &cursor) => {
                self.phase = Phase::Listing(listing);
                let params = format!("{{\"cursor\":{}}}", quote(&cursor));
                DiscoveryStep::Ask(DiscoveryRequest { first: None, method: kind.method(), params })
            }
            _ => self.finish(listing),
        }
    }

    /// Whether the page of this cursor is asked for. An empty or repeated one is how some servers end a list.
    fn goes_on(&mut self, listing: &mut Listing, cursor: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        cursor.hash(&mut hasher);
        if cursor.is_empty() || !listing.cursors.insert(hasher.finish()) {
            return false;
        }
        let CatalogLimits { items, pages, .. } = self.limits;
        let seen = listing.items.len() + listing.unusable + listing.surplus;
        // Items left out count as well: nothing else bounds how many are read.
        let full = seen >= items || listing.pages >= pages;
        if full {
            self.remarks.push(format!(
                "the list of {noun}s goes on after {pages} pages with {seen} {noun}s; the rest is left out (see --max-list-items at the gateway)",
                noun = listing.kind.noun(),
                pages = listing.pages,
            ));
        }
        !full
    }

    /// The list is complete, or ends here.
    fn finish(&mut self, listing: Listing) -> DiscoveryStep {
        let Listing { kind, items, surplus, unusable, .. } = listing;
        let noun = kind.noun();
        if unusable > LOG_GROUPS.source as usize {
            self.remarks.push(format!("left out {unusable} {noun}s without a usable {} in all", kind.key()));
        }
        if surplus > 0 {
            let CatalogLimits { items, bytes, .. } = self.limits;
            self.remarks.push(format!(
                "left out {surplus} {noun}s above the limit of {items} {noun}s (see --max-list-items at the gateway) or {bytes} bytes of them"
            ));
        }
        self.known.retain(|other| *other != kind);
        if !items.is_empty() {
            self.known.push(kind);
        }
        if self.retries.is_empty() {
            self.failures = 0;
        }
        DiscoveryStep::Offer(kind, items, self.next_list())
    }

    fn take(&mut self, listing: &mut Listing, raw: &str) {
        let kind = listing.kind;
        // Nothing is copied of what has no room in any case.
        if listing.items.len() >= self.limits.items || listing.bytes + raw.len() > self.limits.bytes {
            listing.surplus += 1;
            return;
        }
        match ListItem::read(kind, raw, &self.limits) {
            Some(item) => listing.take(item),
            None => {
                listing.unusable += 1;
                if listing.unusable <= LOG_GROUPS.source as usize {
                    self.remarks.push(format!(
                        "left out a {} without a usable {}: {}",
                        kind.noun(),
                        kind.key(),
                        util::escape::show(raw)
                    ));
                }
            }
        }
    }

    /// A list did not come. At first, a server without its tools is of no use; anything else can be missed, and what
    /// was listed once stays, unless the server says that it has no such list.
    fn no_list(&mut self, listing: &Listing, message: &Message<'_>) -> DiscoveryStep {
        let kind = listing.kind;
        let declared = self.declared.contains(&kind);
        let why = match message.error() {
            Some(_) => format!("{} failed: {}", kind.method(), error_text(message)),
            None => format!("{} was answered without {}", kind.method(), kind.member()),
        };
        if !self.listed && kind == ListKind::Tool && (declared || listing.pages > 0) {
            return DiscoveryStep::Failed(why);
        }
        // Templates go with resources, and most servers that have the one have not the other.
        let declared = declared && kind != ListKind::Template;
        if !is_unknown_method(message) && (declared || self.known.contains(&kind)) {
            self.postpone(kind);
            return DiscoveryStep::Kept(why, self.next_list());
        }
        if declared {
            self.remarks.push(why);
        }
        self.finish(Listing::new(kind))
    }
}

/// Whether the server answered that it does not know the method.
fn is_unknown_method(message: &Message<'_>) -> bool {
    let error = message.error().unwrap_or("{}");
    let code = find(error, 0..error.len(), &["code"]).ok().flatten();
    code.is_some_and(|span| error[span].parse() == Ok(jsonrpc::METHOD_NOT_FOUND))
}

/// The first question.
fn initialize_request() -> DiscoveryRequest {
    let params = format!(
        "{{\"protocolVersion\":\"{LATEST}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    );
    DiscoveryRequest { first: None, method: "initialize", params }
}

impl Listing {
    fn new(kind: ListKind) -> Self {
        Self {
            kind,
            items: Vec::new(),
            bytes: 0,
            pages: 0,
            surplus: 0,
            unusable: 0,
            cursors: BTreeSet::new(),
        }
    }

    fn take(&mut self, item: ListItem) {
        self.bytes += item.bytes();
        self.items.push(item);
    }
}

/// The message of an error, fit for a log.
pub fn error_text(message: &Message<'_>) -> String {
    let error = message.error().unwrap_or("{}");
    let found = find(error, 0..error.len(), &["message"]).ok().flatten();
    let words = found.and_then(|span| unquote(&error[span])).unwrap_or_default();
    util::escape::show(&words).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(result: &str) -> String {
        jsonrpc::result("1", result)
    }

    fn feed(conversation: &mut Discovery, text: &str) -> DiscoveryStep {
        conversation.answered(&Message::read(text).unwrap())
    }

    fn started(capabilities: &str) -> Discovery {
        let (mut conversation, ask) = Discovery::start(CatalogLimits::default());
        assert_eq!(ask.method, "initialize");
        let hello = format!(
            "{{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{capabilities},\"serverInfo\":{{}}}}"
        );
        let DiscoveryStep::Ask(ask) = feed(&mut conversation, &answer(&hello)) else { panic!("no question") };
        assert!(ask.first.is_some_and(|first| first.contains("notifications/initialized")));
        assert_eq!((ask.method, ask.params.as_str()), ("tools/list", "{}"));
        assert_eq!(conversation.initialize_result(), hello);
        conversation
    }

    fn keys(next: DiscoveryStep) -> Vec<String> {
        match next {
            DiscoveryStep::Offer(_, items, None) => items.into_iter().map(|item| item.key).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_are_followed() {
        let mut conversation = started("{\"tools\":{}}");
        let next = feed(&mut conversation, &answer(r#"{"tools":[{"name":"a"}],"nextCursor":"x\"y"}"#));
        let DiscoveryStep::Ask(ask) = next else { panic!("{next:?}") };
        assert_eq!(ask.params, r#"{"cursor":"x\"y"}"#);
        assert_eq!(keys(feed(&mut conversation, &answer(r#"{"tools":[{"name":"b"}]}"#))), ["a", "b"]);
    }

    #[test]
    fn everything_declared_is_listed() {
        let mut conversation = started("{\"resources\":{},\"prompts\":{},\"logging\":{}}");
        let mut asked = Vec::new();
        let mut next = feed(&mut conversation, &jsonrpc::error("1", -32601, "no tools"));
        while let DiscoveryStep::Offer(_, _, Some(ask)) = next {
            asked.push(ask.method);
            next = feed(&mut conversation, &jsonrpc::error("1", -32601, "none"));
        }
        assert_eq!(asked, ["prompts/list", "resources/list", "resources/templates/list"]);
        assert_eq!(conversation.take_remarks().len(), 2);
    }

    #[test]
    fn a_change_during_a_listing_is_not_lost() {
        let mut conversation = started("{\"tools\":{}}");
        conversation.changed(ListKind::Tool);
        conversation.changed(ListKind::Tool);
        assert!(!conversation.wants_relist() && conversation.relist().is_none(), "one question at a time");
        let next = feed(&mut conversation, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, DiscoveryStep::Offer(_, _, None)), "{next:?}");
        assert!(conversation.relist().is_some_and(|ask| ask.method == "tools/list"));
        assert!(conversation.relist().is_none(), "two changes are one");
        assert!(keys(feed(&mut conversation, &answer(r#"{"tools":[]}"#))).is_empty());
        conversation.changed(ListKind::Prompt);
        assert!(conversation.relist().is_some_and(|ask| ask.method == "prompts/list"));
    }

    #[test]
    fn a_restarted_server_is_discovered_again() {
        let mut conversation = started("{\"tools\":{}}");
        assert_eq!(conversation.again().method, "initialize");
        assert!(conversation.relist().is_none(), "one question at a time");
        let hello = r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"prompts":{}}}"#;
        let DiscoveryStep::Ask(ask) = feed(&mut conversation, &answer(hello)) else { panic!("no question") };
        assert!(ask.first.is_some() && ask.method == "tools/list");
        assert_eq!(conversation.initialize_result(), hello);
        let next = feed(&mut conversation, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, DiscoveryStep::Offer(_, _, Some(ask)) if ask.method == "prompts/list"));
        // What it was before still holds when it does not answer.
        conversation.again();
        conversation.unanswered();
        assert_eq!(conversation.initialize_result(), hello);
        conversation.changed(ListKind::Tool);
        assert!(conversation.relist().is_some());
        let refused = feed(&mut conversation, &jsonrpc::error("1", -32603, "broken"));
        assert!(matches!(refused, DiscoveryStep::Failed(_)), "it has tools: {refused:?}");
    }

    #[test]
    fn bad_items_are_left_out_and_named() {
        let mut conversation = started("{\"tools\":{}}");
        let list = answer(r#"{"tools":[{"name":"ok"},{"name":"b\u0007d"},{"nome":"x"},7]}"#);
        assert_eq!(keys(feed(&mut conversation, &list)), ["ok"]);
        assert_eq!(conversation.take_remarks().len(), 3);
    }

    fn tools(count: usize) -> String {
        let tools: Vec<String> = (0..count).map(|n| format!("{{\"name\":\"t{n}\"}}")).collect();
        answer(&format!("{{\"tools\":[{}]}}", tools.join(",")))
    }

    #[test]
    fn limits_are_kept() {
        let most = CatalogLimits::default().items;
        let fresh = || started("{\"tools\":{}}");
        let mut full = fresh();
        assert_eq!(keys(feed(&mut full, &tools(most))).len(), most);
        assert!(full.take_remarks().is_empty());
        full.changed(ListKind::Tool);
        full.relist().unwrap();
        assert_eq!(keys(feed(&mut full, &tools(most + 3))).len(), most);
        let remarks = full.take_remarks().join("\n");
        assert!(remarks.contains("left out 3 tools") && remarks.contains("--max-list-items"), "{remarks}");
        let large = format!(
            "{{\"tools\":[{{\"name\":\"a\",\"x\":\"{}\"}},{{\"name\":\"b\"}}]}}",
            "y".repeat(4 << 20)
        );
        let mut large_one = fresh();
        assert_eq!(keys(feed(&mut large_one, &answer(&large))), ["b"]);
        assert_eq!(large_one.take_remarks().len(), 1);
    }

    #[test]
    fn list_of_unusable_items_does_not_block_the_next_one() {
        let mut conversation = started("{\"tools\":{}}");
        let refused = answer(&format!("{{\"tools\":[{}{{\"name\":\"ok\"}}]}}", "0,".repeat(9000)));
        assert_eq!(keys(feed(&mut conversation, &refused)), ["ok"]);
        let remarks = conversation.take_remarks();
        assert_eq!(remarks.len(), LOG_GROUPS.source as usize + 1);
        assert!(remarks.last().unwrap().contains("9000"), "{remarks:?}");
        conversation.changed(ListKind::Tool);
        conversation.relist().unwrap();
        assert_eq!(keys(feed(&mut conversation, &tools(1))), ["t0"]);
    }

    #[test]
    fn empty_or_repeated_cursor_ends_the_list() {
        let page = |name: &str, cursor: &str| {
            answer(&format!("{{\"tools\":[{{\"name\":\"{name}\"}}],\"nextCursor\":{cursor}}}"))
        };
        let mut empty = started("{\"tools\":{}}");
        assert_eq!(keys(feed(&mut empty, &page("a", "\"\""))), ["a"]);
        let mut repeated = started("{\"tools\":{}}");
        for (name, cursor) in [("a", "\"x\""), ("b", "\"y\"")] {
            assert!(matches!(feed(&mut repeated, &page(name, cursor)), DiscoveryStep::Ask(_)));
        }
        assert_eq!(keys(feed(&mut repeated, &page("c", "\"x\""))), ["a", "b", "c"]);
        assert!(repeated.take_remarks().is_empty());
    }

    #[test]
    fn endless_list_ends_at_the_page_limit() {
        let mut conversation = started("{\"tools\":{}}");
        let pages = CatalogLimits::default().pages;
        for page in 1..pages {
            let next =
                feed(&mut conversation, &answer(&format!("{{\"tools\":[],\"nextCursor\":\"{page}\"}}")));
            assert!(matches!(next, DiscoveryStep::Ask(_)), "{page}: {next:?}");
        }
        assert!(keys(feed(&mut conversation, &answer(r#"{"tools":[],"nextCursor":"last"}"#))).is_empty());
        assert_eq!(conversation.take_remarks().len(), 1);
    }

    /// A server with tools and prompts, all listed; both changed, and its tools are being asked for.
    fn relisting() -> Discovery {
        let mut conversation = started("{\"tools\":{},\"prompts\":{}}");
        assert!(matches!(
            feed(&mut conversation, &tools(1)),
            DiscoveryStep::Offer(ListKind::Tool, _, Some(_))
        ));
        assert!(keys(feed(&mut conversation, &answer("{\"prompts\":[]}"))).is_empty());
        conversation.changed(ListKind::Tool);
        conversation.changed(ListKind::Prompt);
        assert!(conversation.relist().is_some_and(|ask| ask.method == "tools/list"));
        conversation
    }

    #[test]
    fn failed_list_keeps_the_others_due_and_is_retried() {
        let mut refused = relisting();
        let next = feed(&mut refused, &jsonrpc::error("1", -32603, "broken"));
        let DiscoveryStep::Kept(why, Some(ask)) = next else { panic!("{next:?}") };
        assert_eq!((why.as_str(), ask.method), ("tools/list failed: broken", "prompts/list"));
        assert!(!refused.wants_retry(), "one question at a time");
        assert!(keys(feed(&mut refused, &answer("{\"prompts\":[]}"))).is_empty());
        let mut unanswered = relisting();
        unanswered.unanswered();
        assert!(unanswered.relist().is_some_and(|ask| ask.method == "prompts/list"));
        assert!(keys(feed(&mut unanswered, &answer("{\"prompts\":[]}"))).is_empty());
        for mut conversation in [refused, unanswered] {
            assert!(conversation.wants_retry() && !conversation.wants_relist());
            let mut pauses = Vec::new();
            for _ in 0..20 {
                pauses.push(conversation.retry_pause().as_secs());
                conversation.retry();
                assert!(conversation.relist().is_some_and(|ask| ask.method == "tools/list"));
                let next = feed(&mut conversation, &answer("{}"));
                assert!(matches!(next, DiscoveryStep::Kept(_, None)), "{next:?}");
            }
            assert_eq!((pauses[..4].to_vec(), pauses[19]), (vec![1, 2, 4, 8], 300));
            conversation.retry();
            conversation.relist().unwrap();
            assert_eq!(keys(feed(&mut conversation, &tools(2))).len(), 2);
            assert!(!conversation.wants_retry() && !conversation.wants_relist());
            conversation.postpone(ListKind::Tool);
            assert_eq!(conversation.retry_pause().as_secs(), 1);
        }
    }

    #[test]
    fn unknown_method_empties_a_list() {
        let mut conversation = relisting();
        let next = feed(&mut conversation, &jsonrpc::error("1", -32601, "no tools any more"));
        assert!(
            matches!(&next, DiscoveryStep::Offer(ListKind::Tool, items, Some(_)) if items.is_empty()),
            "{next:?}"
        );
        assert!(!conversation.wants_retry());
    }

    #[test]
    fn failures_state_their_cause() {
        for (reply, why) in [
            (jsonrpc::error("1", -32602, "no\nway"), "initialize failed: no\\nway"),
            (answer("{}"), "without a protocolVersion"),
            (answer(r#"{"protocolVersion":"0.1.0"}"#), "version 0.1.0"),
        ] {
            let (mut conversation, _) = Discovery::start(CatalogLimits::default());
            let next = feed(&mut conversation, &reply);
            assert!(matches!(&next, DiscoveryStep::Failed(text) if text.contains(why)), "{next:?}");
        }
        let refused = jsonrpc::error("1", -32603, "broken");
        assert!(matches!(feed(&mut started("{\"tools\":{}}"), &refused), DiscoveryStep::Failed(_)));
    }

    #[test]
    fn a_server_without_tools_has_none() {
        assert!(keys(feed(&mut started("{}"), &jsonrpc::error("2", -32601, "unknown"))).is_empty());
    }
}
