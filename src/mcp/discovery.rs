//! Discovery of one server: its era (`super::era`), and the lists of its tools, prompts, resources and
//! resource templates, page by page. Lists are requested again when the server reports a change.
//!
//! This state machine does no I/O. It returns the next request and takes the responses, one at a
//! time; `hub` sends them.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::{
    jsonrpc::{self, Message, elements, find, quote, unquote},
    limits::{CatalogLimits, LOG_GROUPS},
    mcp::{
        Era, LATEST,
        era::{EraProbe, ProbeEvent, ProbeRequest, ProbeStep},
        error_code,
        listing::{ListItem, ListKind},
        stateless::discover::{self, DiscoverResult},
    },
    util::{self, backoff},
};

pub use super::error_text;

/// What a request of the discovery asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// The era of the server: one of the requests of the probe.
    Era(ProbeRequest),
    /// A page of a list.
    List,
}

/// A request to send to the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiscoveryRequest {
    /// What it asks for. Before it is sent, open requests that ask the same are closed; before a
    /// list is requested, all are.
    pub question: Question,
    /// A message to send before the request.
    pub first: Option<String>,
    /// The method.
    pub method: &'static str,
    /// The params as raw JSON.
    pub params: String,
}

/// The step that follows a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DiscoveryStep {
    /// Send this request.
    Request(DiscoveryRequest),
    /// Wait for the requests that are open.
    Wait,
    /// A list is complete. Send the request next; without one, all lists are complete.
    ListComplete(ListKind, Vec<ListItem>, Option<DiscoveryRequest>),
    /// A list request failed for this reason; the previous list stays and is requested again later.
    /// No reason: the server is down or stopping, which is logged where it happens. Send the request
    /// next; without one, there is nothing more to request for now.
    ListFailed(Option<String>, Option<DiscoveryRequest>),
    /// The server cannot be used, for this reason.
    Failed(String),
}

/// The phase of the discovery.
#[derive(Debug)]
enum Phase {
    Probing,
    Listing(Listing),
    Settled,
}

/// A list whose pages are being received.
#[derive(Debug)]
struct Listing {
    kind: ListKind,
    items: Vec<ListItem>,
    bytes: usize,
    pages: usize,
    /// Items left out because of a limit.
    surplus: usize,
    /// Items left out because they are unusable.
    unusable: usize,
    /// Hashes of the cursors that were followed. Two cursors with the same hash end the list early,
    /// which harms only the server that made them.
    cursors: BTreeSet<u64>,
}

/// The state of the discovery of one server.
#[derive(Debug)]
pub struct Discovery {
    phase: Phase,
    probe: EraProbe,
    /// The era of the process, once it is known.
    era: Option<Era>,
    /// What the server told of itself by `server/discover`, until the probe has decided.
    discovered: Option<String>,
    /// Lists to request next.
    due: VecDeque<ListKind>,
    /// Lists that changed since they were requested.
    changes: VecDeque<ListKind>,
    /// Lists whose request failed, to be requested again after a pause.
    retries: VecDeque<ListKind>,
    /// Number of list failures; reset when a list completes and none is left to retry.
    failures: u32,
    /// Every list was requested once.
    listed: bool,
    /// Kinds whose most recent list was not empty.
    known: Vec<ListKind>,
    /// Kinds whose capability the server declared.
    declared: Vec<ListKind>,
    /// The result of `initialize` as raw JSON, or what a modern server said in its place.
    initialize_result: String,
    /// Anomalies of the server, for the log.
    remarks: Vec<String>,
    limits: CatalogLimits,
}

impl Discovery {
    /// Starts a discovery and returns its first request. `probe`: how to find the era of the server.
    pub fn start(limits: CatalogLimits, probe: EraProbe) -> (Self, DiscoveryRequest) {
        let mut discovery = Self {
            phase: Phase::Probing,
            probe,
            era: None,
            discovered: None,
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
        let request = match discovery.probe.on(ProbeEvent::Start) {
            ProbeStep::Ask(request) => request,
            // A new probe asks.
            _ => ProbeRequest::Initialize,
        };
        (discovery, probe_request(request))
    }

    /// Starts over after a restart of the server and returns the first request. What is known stays
    /// valid until the server has responded. No response to an earlier request may be passed in
    /// after this. `None` while the era is being found: the edge gives the new process what the old
    /// one has not answered.
    pub fn again(&mut self) -> Option<DiscoveryRequest> {
        if matches!(self.phase, Phase::Probing) {
            return None;
        }
        let step = match self.probe.on(ProbeEvent::Restarted) {
            // The last probe has failed.
            ProbeStep::Wait => {
                self.probe = self.probe.anew();
                self.probe.on(ProbeEvent::Start)
            }
            step => step,
        };
        let ProbeStep::Ask(request) = step else { return None };
        self.phase = Phase::Probing;
        self.due.clear();
        self.changes.clear();
        self.retries.clear();
        self.discovered = None;
        Some(probe_request(request))
    }

    /// Returns the era of the process, once it is known.
    pub fn era(&self) -> Option<Era> {
        self.era
    }

    /// Whether to call [`Discovery::silent`] after `limits::StatelessLimits::probe_silence`.
    pub fn listens_for_silence(&self) -> bool {
        matches!(self.phase, Phase::Probing) && self.probe.listens_for_silence()
    }

    /// Records that the server has not answered `server/discover` for a while.
    pub fn silent(&mut self) -> DiscoveryStep {
        let step = self.probe.on(ProbeEvent::Silence);
        self.probed(step, None)
    }

    /// Takes the response to a request that asked `question`.
    pub fn answered(&mut self, question: Question, message: &Message<'_>) -> DiscoveryStep {
        match (std::mem::replace(&mut self.phase, Phase::Settled), question) {
            (Phase::Probing, Question::Era(request)) => {
                self.phase = Phase::Probing;
                let discovered = message.result().filter(|_| request == ProbeRequest::Discover);
                if let Some(discovered) = discovered.and_then(DiscoverResult::read) {
                    self.discovered = Some(discovered.as_initialize_result());
                }
                let step = self.probe.on(ProbeEvent::Answer(request, message));
                self.probed(step, message.result())
            }
            (Phase::Listing(listing), Question::List) => self.listed(listing, message),
            (Phase::Settled, _) => DiscoveryStep::Failed("unexpected response from the server".into()),
            (phase, _) => {
                self.phase = phase;
                DiscoveryStep::Wait
            }
        }
    }

    /// Records that a request of the probe got something that is no valid response. `None` if the
    /// question is not one of the probe: then the server has failed.
    pub fn unusable(&mut self, question: Question) -> Option<DiscoveryStep> {
        match (&self.phase, question) {
            (Phase::Probing, Question::Era(request)) => {
                let step = self.probe.on(ProbeEvent::Unusable(request));
                Some(self.probed(step, None))
            }
            _ => None,
        }
    }

    /// Follows a step of the probe. `result`: that of the last response.
    fn probed(&mut self, step: ProbeStep, result: Option<&str>) -> DiscoveryStep {
        match step {
            ProbeStep::Ask(request) => DiscoveryStep::Request(probe_request(request)),
            ProbeStep::Wait => DiscoveryStep::Wait,
            ProbeStep::Legacy => self.initialized(Era::Legacy, result.unwrap_or_default().to_owned()),
            ProbeStep::Modern => {
                let discovered = self.discovered.take().unwrap_or_default();
                self.initialized(Era::Modern, discovered)
            }
            ProbeStep::Failed(why) => {
                self.phase = Phase::Settled;
                DiscoveryStep::Failed(why)
            }
        }
    }

    /// Records that the server reported a changed list. [`Discovery::relist`] requests it.
    pub fn changed(&mut self, kind: ListKind) {
        // A list that is already due is not requested twice.
        if !self.changes.contains(&kind) && !self.due.contains(&kind) {
            self.changes.push_back(kind);
        }
    }

    /// Whether a list has changed or is still due, and no request is pending.
    pub fn wants_relist(&self) -> bool {
        !(self.changes.is_empty() && self.due.is_empty()) && matches!(self.phase, Phase::Settled)
    }

    /// Requests the lists that changed or are due. `None` if there is none, or if a request is
    /// pending.
    pub fn relist(&mut self) -> Option<DiscoveryRequest> {
        if !self.wants_relist() {
            return None;
        }
        self.due.append(&mut self.changes);
        self.next_list()
    }

    /// Records that the pending request got no response. The previous lists stay; a list that was
    /// being requested is retried later.
    pub fn unanswered(&mut self) {
        if let Phase::Listing(listing) = std::mem::replace(&mut self.phase, Phase::Settled) {
            self.postpone(listing.kind);
        }
    }

    /// Records that a list could not be obtained or stored. It is requested again once
    /// [`Discovery::retry`] is called.
    pub fn postpone(&mut self, kind: ListKind) {
        self.failures = self.failures.saturating_add(1);
        if !self.retries.contains(&kind) {
            self.retries.push_back(kind);
        }
    }

    /// Whether a list is to be retried and no request is pending.
    pub fn wants_retry(&self) -> bool {
        !self.retries.is_empty() && matches!(self.phase, Phase::Settled)
    }

    /// Returns the pause between the last list failure and the next attempt. It doubles with each
    /// failure, up to a cap.
    pub fn retry_pause(&self) -> Duration {
        let before = self.failures.saturating_sub(1);
        backoff::doubled(self.limits.list_pause, before, self.limits.list_retry_cap)
    }

    /// Makes the failed lists due again, for [`Discovery::relist`], once the pause is over.
    pub fn retry(&mut self) {
        let again = std::mem::take(&mut self.retries);
        for kind in again {
            if !self.due.contains(&kind) && !self.changes.contains(&kind) {
                self.due.push_back(kind);
            }
        }
    }

    /// Returns the memory in bytes of the items received so far of the current list, including
    /// overhead.
    pub fn listing_bytes(&self) -> usize {
        match &self.phase {
            Phase::Listing(listing) => listing.items.iter().map(ListItem::memory).sum(),
            Phase::Probing | Phase::Settled => 0,
        }
    }

    /// Returns the result of `initialize` as raw JSON; empty before it has arrived.
    pub fn initialize_result(&self) -> &str {
        &self.initialize_result
    }

    /// Removes and returns the anomalies since the last call, escaped for the log.
    pub fn take_remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    fn initialized(&mut self, era: Era, result: String) -> DiscoveryStep {
        let declares = |kind: &ListKind| {
            matches!(find(&result, 0..result.len(), &["capabilities", kind.capability()]), Ok(Some(_)))
        };
        self.declared = ListKind::ALL.into_iter().filter(declares).collect();
        // A server may omit the capability and still have tools; the request costs one round trip.
        self.due =
            ListKind::ALL.into_iter().filter(|kind| *kind == ListKind::Tool || declares(kind)).collect();
        self.changes.clear();
        self.retries.clear();
        self.failures = 0;
        self.initialize_result = result;
        self.era = Some(era);
        let first = match era {
            Era::Legacy => Some(jsonrpc::notification("notifications/initialized", None)),
            Era::Modern => None,
        };
        match self.next_list() {
            Some(ask) => DiscoveryStep::Request(DiscoveryRequest { first, ..ask }),
            None => DiscoveryStep::Failed("nothing to request from the server".into()),
        }
    }

    fn next_list(&mut self) -> Option<DiscoveryRequest> {
        let Some(kind) = self.due.pop_front() else {
            self.listed = true;
            return None;
        };
        // A list that changed may also be waiting for a retry.
        self.retries.retain(|other| *other != kind);
        self.phase = Phase::Listing(Listing::new(kind));
        Some(self.list_request(kind, None))
    }

    fn list_request(&self, kind: ListKind, cursor: Option<&str>) -> DiscoveryRequest {
        let params = match (self.era, cursor) {
            (Some(Era::Modern), cursor) => discover::request_params(cursor),
            (_, Some(cursor)) => format!("{{\"cursor\":{}}}", quote(cursor)),
            (_, None) => "{}".into(),
        };
        DiscoveryRequest { question: Question::List, first: None, method: kind.method(), params }
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
                DiscoveryStep::Request(self.list_request(kind, Some(&cursor)))
            }
            _ => self.finish(listing),
        }
    }

    /// Whether to request the page at this cursor. Some servers end a list with an empty or
    /// repeated cursor.
    fn goes_on(&mut self, listing: &mut Listing, cursor: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        cursor.hash(&mut hasher);
        if cursor.is_empty() || !listing.cursors.insert(hasher.finish()) {
            return false;
        }
        let CatalogLimits { items, pages, .. } = self.limits;
        let seen = listing.items.len() + listing.unusable + listing.surplus;
        // Omitted items count too; otherwise nothing would limit how many are read.
        let full = seen >= items || listing.pages >= pages;
        if full {
            self.remarks.push(format!(
                "the list of {noun}s has more than {pages} pages ({seen} {noun}s so far); omitted the rest (see --max-list-items at the gateway)",
                noun = listing.kind.noun(),
                pages = listing.pages,
            ));
        }
        !full
    }

    /// Ends the list, whether or not the server has more pages.
    fn finish(&mut self, listing: Listing) -> DiscoveryStep {
        let Listing { kind, items, surplus, unusable, .. } = listing;
        let noun = kind.noun();
        if unusable > LOG_GROUPS.source as usize {
            self.remarks.push(format!("omitted {unusable} {noun}s in total without a valid {}", kind.key()));
        }
        if surplus > 0 {
            let CatalogLimits { items, bytes, .. } = self.limits;
            self.remarks.push(format!(
                "omitted {surplus} {noun}s above the limit of {items} {noun}s (see --max-list-items at the gateway) or {bytes} bytes"
            ));
        }
        self.known.retain(|other| *other != kind);
        if !items.is_empty() {
            self.known.push(kind);
        }
        if self.retries.is_empty() {
            self.failures = 0;
        }
        DiscoveryStep::ListComplete(kind, items, self.next_list())
    }

    fn take(&mut self, listing: &mut Listing, raw: &str) {
        let kind = listing.kind;
        // Items that exceed a limit in any case are not parsed or copied.
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
                        "omitted a {} without a valid {}: {}",
                        kind.noun(),
                        kind.key(),
                        util::escape::show(raw)
                    ));
                }
            }
        }
    }

    /// Handles a list request that failed. During the first discovery, a server that does not list
    /// its tools is useless. Any other list can be done without, and a previous list stays unless
    /// the server says that it does not know the method.
    fn no_list(&mut self, listing: &Listing, message: &Message<'_>) -> DiscoveryStep {
        let kind = listing.kind;
        let declared = self.declared.contains(&kind);
        let why = match message.error() {
            Some(_) => format!("{} failed: {}", kind.method(), error_text(message)),
            None => format!("the result of {} has no {}", kind.method(), kind.member()),
        };
        if !self.listed && kind == ListKind::Tool && (declared || listing.pages > 0) {
            return DiscoveryStep::Failed(why);
        }
        // Templates belong to the `resources` capability, but most servers that declare it have no
        // templates.
        let declared = declared && kind != ListKind::Template;
        let code = error_code(message);
        if code != Some(jsonrpc::METHOD_NOT_FOUND) && (declared || self.known.contains(&kind)) {
            self.postpone(kind);
            let why = (code != Some(jsonrpc::DOWN)).then_some(why);
            return DiscoveryStep::ListFailed(why, self.next_list());
        }
        if declared {
            self.remarks.push(why);
        }
        self.finish(Listing::new(kind))
    }
}

/// Builds a request of the probe.
fn probe_request(request: ProbeRequest) -> DiscoveryRequest {
    let params = match request {
        ProbeRequest::Discover => discover::request_params(None),
        ProbeRequest::Initialize => initialize_params("{}"),
    };
    DiscoveryRequest { question: Question::Era(request), first: None, method: request.method(), params }
}

/// Returns the params of the gateway's own `initialize`, with these capabilities (raw JSON).
pub fn initialize_params(capabilities: &str) -> String {
    format!(
        "{{\"protocolVersion\":\"{LATEST}\",\"capabilities\":{capabilities},\"clientInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EraPin;

    fn answer(result: &str) -> String {
        jsonrpc::result("1", result)
    }

    fn feed(discovery: &mut Discovery, text: &str) -> DiscoveryStep {
        // Tests of the probe are in `era`.
        let question = match discovery.phase {
            Phase::Probing => Question::Era(ProbeRequest::Initialize),
            Phase::Listing(_) | Phase::Settled => Question::List,
        };
        discovery.answered(question, &Message::read(text).unwrap())
    }

    fn start() -> (Discovery, DiscoveryRequest) {
        Discovery::start(CatalogLimits::default(), EraProbe::new(EraPin::Auto, false))
    }

    fn started(capabilities: &str) -> Discovery {
        let (mut discovery, ask) = start();
        assert_eq!(ask.method, "initialize");
        let initialize_result = format!(
            "{{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{capabilities},\"serverInfo\":{{}}}}"
        );
        let DiscoveryStep::Request(ask) = feed(&mut discovery, &answer(&initialize_result)) else {
            panic!("no question")
        };
        assert!(ask.first.is_some_and(|first| first.contains("notifications/initialized")));
        assert_eq!((ask.method, ask.params.as_str()), ("tools/list", "{}"));
        assert_eq!(discovery.initialize_result(), initialize_result);
        discovery
    }

    fn keys(next: DiscoveryStep) -> Vec<String> {
        match next {
            DiscoveryStep::ListComplete(_, items, None) => items.into_iter().map(|item| item.key).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_are_followed() {
        let mut discovery = started("{\"tools\":{}}");
        let next = feed(&mut discovery, &answer(r#"{"tools":[{"name":"a"}],"nextCursor":"x\"y"}"#));
        let DiscoveryStep::Request(ask) = next else { panic!("{next:?}") };
        assert_eq!(ask.params, r#"{"cursor":"x\"y"}"#);
        assert_eq!(keys(feed(&mut discovery, &answer(r#"{"tools":[{"name":"b"}]}"#))), ["a", "b"]);
    }

    #[test]
    fn everything_declared_is_listed() {
        let mut discovery = started("{\"resources\":{},\"prompts\":{},\"logging\":{}}");
        let mut asked = Vec::new();
        let mut next = feed(&mut discovery, &jsonrpc::error("1", -32601, "no tools"));
        while let DiscoveryStep::ListComplete(_, _, Some(ask)) = next {
            asked.push(ask.method);
            next = feed(&mut discovery, &jsonrpc::error("1", -32601, "none"));
        }
        assert_eq!(asked, ["prompts/list", "resources/list", "resources/templates/list"]);
        assert_eq!(discovery.take_remarks().len(), 2);
    }

    #[test]
    fn a_change_during_a_listing_is_not_lost() {
        let mut discovery = started("{\"tools\":{}}");
        discovery.changed(ListKind::Tool);
        discovery.changed(ListKind::Tool);
        assert!(!discovery.wants_relist() && discovery.relist().is_none(), "one question at a time");
        let next = feed(&mut discovery, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, DiscoveryStep::ListComplete(_, _, None)), "{next:?}");
        assert!(discovery.relist().is_some_and(|ask| ask.method == "tools/list"));
        assert!(discovery.relist().is_none(), "two changes are one");
        assert!(keys(feed(&mut discovery, &answer(r#"{"tools":[]}"#))).is_empty());
        discovery.changed(ListKind::Prompt);
        assert!(discovery.relist().is_some_and(|ask| ask.method == "prompts/list"));
    }

    #[test]
    fn a_restarted_server_is_discovered_again() {
        let mut discovery = started("{\"tools\":{}}");
        assert_eq!(discovery.again().unwrap().method, "initialize");
        assert!(discovery.relist().is_none(), "one question at a time");
        let initialize_result =
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"prompts":{}}}"#;
        let DiscoveryStep::Request(ask) = feed(&mut discovery, &answer(initialize_result)) else {
            panic!("no question")
        };
        assert!(ask.first.is_some() && ask.method == "tools/list");
        assert_eq!(discovery.initialize_result(), initialize_result);
        let next = feed(&mut discovery, &answer(r#"{"tools":[]}"#));
        assert!(matches!(next, DiscoveryStep::ListComplete(_, _, Some(ask)) if ask.method == "prompts/list"));
        // The earlier result stays valid while the restarted server does not respond.
        assert!(discovery.again().is_some());
        discovery.unanswered();
        assert_eq!(discovery.initialize_result(), initialize_result);
        discovery.changed(ListKind::Tool);
        assert!(discovery.relist().is_some());
        let refused = feed(&mut discovery, &jsonrpc::error("1", -32603, "broken"));
        assert!(matches!(refused, DiscoveryStep::Failed(_)), "it has tools: {refused:?}");
    }

    #[test]
    fn bad_items_are_left_out_and_named() {
        let mut discovery = started("{\"tools\":{}}");
        let list = answer(r#"{"tools":[{"name":"ok"},{"name":"b\u0007d"},{"nome":"x"},7]}"#);
        assert_eq!(keys(feed(&mut discovery, &list)), ["ok"]);
        assert_eq!(discovery.take_remarks().len(), 3);
    }

    fn tools(count: usize) -> String {
        let tools: Vec<String> = (0..count).map(|n| format!("{{\"name\":\"t{n}\"}}")).collect();
        answer(&format!("{{\"tools\":[{}]}}", tools.join(",")))
    }

    #[test]
    fn limits_are_kept() {
        let max = CatalogLimits::default().items;
        let fresh = || started("{\"tools\":{}}");
        let mut full = fresh();
        assert_eq!(keys(feed(&mut full, &tools(max))).len(), max);
        assert!(full.take_remarks().is_empty());
        full.changed(ListKind::Tool);
        full.relist().unwrap();
        assert_eq!(keys(feed(&mut full, &tools(max + 3))).len(), max);
        let remarks = full.take_remarks().join("\n");
        assert!(remarks.contains("omitted 3 tools") && remarks.contains("--max-list-items"), "{remarks}");
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
        let mut discovery = started("{\"tools\":{}}");
        let refused = answer(&format!("{{\"tools\":[{}{{\"name\":\"ok\"}}]}}", "0,".repeat(9000)));
        assert_eq!(keys(feed(&mut discovery, &refused)), ["ok"]);
        let remarks = discovery.take_remarks();
        assert_eq!(remarks.len(), LOG_GROUPS.source as usize + 1);
        assert!(remarks.last().unwrap().contains("9000"), "{remarks:?}");
        discovery.changed(ListKind::Tool);
        discovery.relist().unwrap();
        assert_eq!(keys(feed(&mut discovery, &tools(1))), ["t0"]);
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
            assert!(matches!(feed(&mut repeated, &page(name, cursor)), DiscoveryStep::Request(_)));
        }
        assert_eq!(keys(feed(&mut repeated, &page("c", "\"x\""))), ["a", "b", "c"]);
        assert!(repeated.take_remarks().is_empty());
    }

    #[test]
    fn endless_list_ends_at_the_page_limit() {
        let mut discovery = started("{\"tools\":{}}");
        let pages = CatalogLimits::default().pages;
        for page in 1..pages {
            let next = feed(&mut discovery, &answer(&format!("{{\"tools\":[],\"nextCursor\":\"{page}\"}}")));
            assert!(matches!(next, DiscoveryStep::Request(_)), "{page}: {next:?}");
        }
        assert!(keys(feed(&mut discovery, &answer(r#"{"tools":[],"nextCursor":"last"}"#))).is_empty());
        assert_eq!(discovery.take_remarks().len(), 1);
    }

    /// Returns the discovery of a server whose tools and prompts were listed and then changed; its
    /// tools are being requested again.
    fn relisting() -> Discovery {
        let mut discovery = started("{\"tools\":{},\"prompts\":{}}");
        assert!(matches!(
            feed(&mut discovery, &tools(1)),
            DiscoveryStep::ListComplete(ListKind::Tool, _, Some(_))
        ));
        assert!(keys(feed(&mut discovery, &answer("{\"prompts\":[]}"))).is_empty());
        discovery.changed(ListKind::Tool);
        discovery.changed(ListKind::Prompt);
        assert!(discovery.relist().is_some_and(|ask| ask.method == "tools/list"));
        discovery
    }

    #[test]
    fn a_list_that_a_stopping_server_refuses_gives_no_reason() {
        let mut stopping = relisting();
        let next = feed(&mut stopping, &jsonrpc::error("1", jsonrpc::DOWN, "the edge is stopping"));
        assert!(matches!(next, DiscoveryStep::ListFailed(None, Some(_))), "{next:?}");
        assert!(keys(feed(&mut stopping, &answer("{\"prompts\":[]}"))).is_empty());
        assert!(stopping.wants_retry());
    }

    #[test]
    fn failed_list_keeps_the_others_due_and_is_retried() {
        let mut refused = relisting();
        let next = feed(&mut refused, &jsonrpc::error("1", -32603, "broken"));
        let DiscoveryStep::ListFailed(Some(why), Some(ask)) = next else { panic!("{next:?}") };
        assert_eq!((why.as_str(), ask.method), ("tools/list failed: broken", "prompts/list"));
        assert!(!refused.wants_retry(), "one question at a time");
        assert!(keys(feed(&mut refused, &answer("{\"prompts\":[]}"))).is_empty());
        let mut unanswered = relisting();
        unanswered.unanswered();
        assert!(unanswered.relist().is_some_and(|ask| ask.method == "prompts/list"));
        assert!(keys(feed(&mut unanswered, &answer("{\"prompts\":[]}"))).is_empty());
        for mut discovery in [refused, unanswered] {
            assert!(discovery.wants_retry() && !discovery.wants_relist());
            let mut pauses = Vec::new();
            for _ in 0..20 {
                pauses.push(discovery.retry_pause().as_secs());
                discovery.retry();
                assert!(discovery.relist().is_some_and(|ask| ask.method == "tools/list"));
                let next = feed(&mut discovery, &answer("{}"));
                assert!(matches!(next, DiscoveryStep::ListFailed(_, None)), "{next:?}");
            }
            assert_eq!((pauses[..4].to_vec(), pauses[19]), (vec![1, 2, 4, 8], 300));
            discovery.retry();
            discovery.relist().unwrap();
            assert_eq!(keys(feed(&mut discovery, &tools(2))).len(), 2);
            assert!(!discovery.wants_retry() && !discovery.wants_relist());
            discovery.postpone(ListKind::Tool);
            assert_eq!(discovery.retry_pause().as_secs(), 1);
        }
    }

    #[test]
    fn unknown_method_empties_a_list() {
        let mut discovery = relisting();
        let next = feed(&mut discovery, &jsonrpc::error("1", -32601, "no tools any more"));
        assert!(
            matches!(&next, DiscoveryStep::ListComplete(ListKind::Tool, items, Some(_)) if items.is_empty()),
            "{next:?}"
        );
        assert!(!discovery.wants_retry());
    }

    #[test]
    fn failures_state_their_cause() {
        for (reply, why) in [
            (jsonrpc::error("1", -32602, "no\nway"), "initialize failed: no\\nway"),
            (answer("{}"), "has no protocolVersion"),
            (answer(r#"{"protocolVersion":"0.1.0"}"#), "version 0.1.0"),
        ] {
            let (mut discovery, _) = start();
            let next = feed(&mut discovery, &reply);
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
