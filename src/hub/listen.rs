//! `subscriptions/listen` of MCP 2026-07-28: what stateless clients listen to, and the gateway's own
//! listen at each modern server.
//!
//! A client's listen lasts as long as its stream. It survives the loss of its server: once that is
//! back, the lists are reported as changed. The rules of the gateway's own listen are in
//! `mcp::upstream_listen`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use super::{
    call::not_connected,
    effect::{Effects, Text},
    error::CallError,
    incoming::Notice,
    instance::Caller,
    key::{InstanceKey, SubscriberKey},
    listener::{ListenResource, ListenSubscription, ListenWaiter, Listener, OpeningListen, SessionSubscribe},
    request::refused,
    session::Scope,
    state::Hub,
    stateless::Refused,
};
use crate::{
    catalog::{Target, UpstreamKey},
    jsonrpc::{self, INVALID_PARAMS, Message, RpcError, decimal, edit, find},
    mcp::{
        Era,
        listen_filter::{Filter, Kinds},
        listing::ListKind,
        stateless::listen,
        upstream_listen::ListenStep,
    },
    queue::Room,
    session::{ClientListen, ListenKey, Subscriber},
};

impl Hub {
    /// Opens a listen, and acknowledges it on its stream.
    ///
    /// # Errors
    /// Why it is refused; nothing was sent then.
    pub fn open_listen(
        &mut self,
        now: Instant,
        listener: Listener,
        (message, wanted): (&Message<'_>, &Filter),
        fx: &mut Effects<'_>,
    ) -> Result<ListenKey, Refused> {
        if self.draining {
            return Err(CallError::Draining.into());
        }
        if let Some(why) = refused(message) {
            return Err(why.into());
        }
        // Lists of all servers change as servers come and go.
        let kinds = match &listener.scope {
            Scope::All => wanted.kinds,
            Scope::Server(name) => wanted.kinds.intersection(self.changing_lists(name)?),
        };
        let resources: Vec<ListenResource> =
            wanted.uris.iter().filter_map(|uri| self.listen_resource(&listener.scope, uri)).collect();
        let uris = resources.iter().map(|resource| resource.known.clone()).collect();
        let listen = ClientListen {
            principal: listener.principal,
            id: message.id().unwrap_or_default().into(),
            server: listener.scope.server().map(Box::from),
            honoured: Filter { kinds, uris, ..Filter::default() },
            is_acknowledged: false,
            since: now,
            stream: listener.stream,
            charge: listener.account.charge(),
        };
        let key = self.listens.open(listen).map_err(Refused::Listen)?;
        self.last_reader = self.last_reader.max(Some(now));
        self.opening.insert(key, OpeningListen { waiting: resources.clone(), accepted: BTreeSet::new() });
        self.subscribe_listen(now, key, resources, fx);
        self.acknowledge(key, fx);
        Ok(key)
    }

    /// Finds a resource that a client wants to listen to. `None`: no server reports its updates.
    fn listen_resource(&self, scope: &Scope, uri: &str) -> Option<ListenResource> {
        if uri.chars().count() > self.config.limits.catalog.uri {
            return None;
        }
        let (server, own) = match scope {
            Scope::Server(name) => (self.catalog.server(name)?, uri.to_owned()),
            Scope::All => match self.catalog.find_resource(uri)? {
                Target::Server { handle, key } => (handle, key),
                Target::Own | Target::Several(_) => return None,
            },
        };
        let upstream = self.upstreams.get(&server).filter(|upstream| upstream.pool.is_none())?;
        let initialized = upstream.shared.initialized()?;
        let reports = initialized.era == Era::Modern || initialized.takes_subscriptions;
        reports.then(|| ListenResource { server, own, known: uri.to_owned() })
    }

    /// Adds the resources of a new listen to those that their servers report.
    fn subscribe_listen(
        &mut self,
        now: Instant,
        key: ListenKey,
        resources: Vec<ListenResource>,
        fx: &mut Effects<'_>,
    ) {
        let timeout = self.config.limits.stateless.listen_ack;
        let mut modern: BTreeMap<UpstreamKey, BTreeSet<String>> = BTreeMap::new();
        for ListenResource { server, own, known } in resources {
            let subscriber = Subscriber { by: SubscriberKey::Listen(key), uri: known, asked: None };
            self.subscriptions.add(&self.name_of(server), &own, subscriber);
            if self.is_modern(server) {
                modern.entry(server).or_default().insert(own);
                continue;
            }
            let Some((instance, link)) = self.process(InstanceKey::shared(server)) else { continue };
            let subscription = ListenSubscription { listen: key, server, uri: own.clone() };
            let caller = Caller::Subscribe(Box::new(subscription));
            if !instance.subscribe(link, now, (caller, &own, timeout), fx) {
                self.settle_subscribed(&ListenSubscription { listen: key, server, uri: own }, false, fx);
            }
            self.set_timer(server, fx);
        }
        for (server, uris) in modern {
            self.want_listens(now, server, fx);
            self.wait_for_listen(now, server, (ListenWaiter::Listen(key), uris), fx);
        }
    }

    /// Handles the response of a legacy server to the `resources/subscribe` of a listen.
    pub(super) fn settle_subscribed(
        &mut self,
        subscription: &ListenSubscription,
        granted: bool,
        fx: &mut Effects<'_>,
    ) {
        let ListenSubscription { listen, server, uri } = subscription;
        self.settle_listen(*listen, *server, |own| (own == uri).then_some(granted));
        self.acknowledge(*listen, fx);
    }

    /// Records which resources of a server are accepted for a listen that waits for that. `decide`:
    /// whether one is accepted, if that is known. Returns whether one is refused.
    fn settle_listen(
        &mut self,
        key: ListenKey,
        server: UpstreamKey,
        decide: impl Fn(&str) -> Option<bool>,
    ) -> bool {
        let (name, mut refused) = (self.name_of(server), false);
        let Some(opening) = self.opening.get_mut(&key) else { return false };
        let (subscriptions, accepted) = (&mut self.subscriptions, &mut opening.accepted);
        opening.waiting.retain(|resource| {
            let decided = decide(&resource.own).filter(|_| resource.server == server);
            match decided {
                Some(true) => {
                    accepted.insert(resource.known.clone());
                }
                Some(false) => {
                    refused = true;
                    subscriptions.remove(&name, &resource.own, SubscriberKey::Listen(key));
                }
                None => {}
            }
            decided.is_none()
        });
        refused
    }

    /// Acknowledges a listen that waits for nothing any more.
    fn acknowledge(&mut self, key: ListenKey, fx: &mut Effects<'_>) {
        if self.opening.get(&key).is_none_or(|opening| !opening.waiting.is_empty()) {
            return;
        }
        let Some(opening) = self.opening.remove(&key) else { return };
        let kinds = self.listens.get(key).map(|listen| listen.honoured.kinds).unwrap_or_default();
        let honoured = Filter { kinds, uris: opening.accepted, ..Filter::default() };
        if let Some(listen) = self.listens.acknowledge(key, honoured) {
            let acknowledgement = listen::acknowledged(&listen.id, &listen.honoured);
            fx.deliver(vec![listen.stream.clone()], Text::Own(acknowledgement));
        }
    }

    /// Lets the gateway's listen at a modern server cover all that clients are subscribed to.
    pub(super) fn want_listens(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let uris = self.subscriptions.of_server(&self.name_of(server)).into_iter().collect();
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let steps = upstream.listen.want(now, uris, BTreeSet::new());
        self.listen_steps(now, server, steps, fx);
    }

    /// Lets something wait until a modern server has accepted or refused resources.
    pub(super) fn wait_for_listen(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (waiter, uris): (ListenWaiter, BTreeSet<String>),
        fx: &mut Effects<'_>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let steps = upstream.listen.wait(now, waiter, uris);
        self.listen_steps(now, server, steps, fx);
    }

    /// Goes on with what waited for a modern server; `accepted`: the resources that it reports.
    /// Returns whether it refused one.
    pub(super) fn settle_waiter(
        &mut self,
        server: UpstreamKey,
        (waiter, accepted): (ListenWaiter, &BTreeSet<String>),
        fx: &mut Effects<'_>,
    ) -> bool {
        match waiter {
            ListenWaiter::Listen(key) => {
                let refused = self.settle_listen(key, server, |own| Some(accepted.contains(own)));
                self.acknowledge(key, fx);
                refused
            }
            ListenWaiter::Session(SessionSubscribe { session, number, id, responder, uri }) => {
                let granted = accepted.contains(&uri);
                self.settle_subscription(session, server, number, granted);
                if granted {
                    fx.finish(responder, jsonrpc::result(&id, "{}"));
                    return false;
                }
                let why =
                    format!("server '{}' does not report updates of this resource", self.name_of(server));
                let error = RpcError::new(INVALID_PARAMS, why);
                fx.fail(responder, error.code, error.response(&id));
                true
            }
        }
    }

    /// Returns the lists whose changes a connected server reports.
    fn changing_lists(&self, name: &str) -> Result<Kinds, CallError> {
        let server = self.catalog.server(name).and_then(|server| self.upstreams.get(&server));
        let initialized = server.and_then(|server| server.shared.initialized());
        initialized.map(|initialized| initialized.changing).ok_or_else(|| not_connected(name))
    }

    /// Ends a listen whose client has gone. Does nothing if it has ended.
    pub fn close_listen(&mut self, now: Instant, key: ListenKey, fx: &mut Effects<'_>) {
        if let Some(listen) = self.listens.close(key) {
            fx.drop_later(listen);
            self.forget_listen(now, key, fx);
        }
    }

    fn forget_listen(&mut self, now: Instant, key: ListenKey, fx: &mut Effects<'_>) {
        self.opening.remove(&key);
        let unwanted = self.subscriptions.leave(SubscriberKey::Listen(key));
        self.unsubscribe_from(now, unwanted, fx);
    }

    /// Ends the listens of principals that may not listen any more.
    pub(super) fn expel_listens(&mut self, now: Instant, fx: &mut Effects<'_>) {
        let tokens = self.tokens.clone();
        for (key, listen) in self.listens.expel(|listen| tokens.may_call(listen.principal)) {
            fx.end(listen.stream.clone());
            fx.drop_later(listen);
            self.forget_listen(now, key, fx);
        }
    }

    /// Ends all listens, since the gateway is stopping.
    pub(super) fn end_listens(&mut self, now: Instant, fx: &mut Effects<'_>) {
        for (key, listen) in self.listens.close_all() {
            fx.deliver(vec![listen.stream.clone()], Text::Own(listen::ended(&listen.id)));
            fx.end(listen.stream.clone());
            fx.drop_later(listen);
            self.forget_listen(now, key, fx);
        }
    }

    /// Reports the change of a list to the listens at an endpoint. `server`: its name, or `None` for
    /// that of all servers.
    pub(super) fn report_list(&self, server: Option<&str>, kind: ListKind, fx: &mut Effects<'_>) {
        for (_, listen) in self.listens.of_kind(server, kind) {
            fx.notice(vec![listen.stream.clone()], listen::changed(kind, &listen.id));
        }
    }

    /// Begins to listen to a server that was listed for the first time, or again after a restart.
    /// Its clients may have missed changes.
    pub(super) fn begin_listen(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let name = self.name_of(server);
        for kind in Kinds::ALL.iter() {
            self.report_list(Some(&name), kind, fx);
        }
        if !self.is_modern(server) {
            return;
        }
        self.want_listens(now, server, fx);
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        if let Some(initialized) = upstream.shared.initialized() {
            let steps = upstream.listen.begin(now, initialized.changing);
            self.listen_steps(now, server, steps, fx);
        }
    }

    /// Ends the listen at a server that was restarted, which knows nothing of it.
    pub(super) fn end_listen(&mut self, server: UpstreamKey) {
        if let Some(upstream) = self.upstreams.get_mut(&server) {
            upstream.listen.gone();
            upstream.shared.close_lasting();
        }
    }

    /// Does what is due of the listen at a server.
    pub(super) fn tick_listen(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        if let Some(upstream) = self.upstreams.get_mut(&server) {
            let steps = upstream.listen.tick(now);
            self.listen_steps(now, server, steps, fx);
        }
    }

    /// Handles what concerns the listen at a modern server. Returns false for notifications that are
    /// for clients.
    pub(super) fn on_listen_notice(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (message, notice): (&Message<'_>, &Notice),
        fx: &mut Effects<'_>,
    ) -> bool {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return true };
        let steps = match notice {
            Notice::Acknowledged(Some((id, honoured))) => upstream.listen.acknowledged(now, *id, honoured),
            Notice::Acknowledged(None) => Vec::new(),
            Notice::Cancelled(Some(span)) => match decimal(&message.text()[span.clone()]) {
                Some(id) => {
                    upstream.shared.close_listen(id);
                    upstream.listen.ended(now, id)
                }
                None => Vec::new(),
            },
            Notice::ListChanged(id) | Notice::Updated(_, id) => {
                let is_ours = id.is_some_and(|id| upstream.listen.delivers(id));
                if !is_ours {
                    self.stats.unmatched.add();
                }
                return !is_ours;
            }
            _ => return false,
        };
        self.listen_steps(now, server, steps, fx);
        true
    }

    /// Handles the response of a modern server to the gateway's listen, which ends it. `code`: that
    /// of an error.
    pub(super) fn on_listen_response(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (id, code): (u64, Result<(), Option<i64>>),
        fx: &mut Effects<'_>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let steps = match code {
            Ok(()) => upstream.listen.ended(now, id),
            Err(code) => upstream.listen.failed(now, id, code),
        };
        self.listen_steps(now, server, steps, fx);
    }

    fn listen_steps(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        steps: Vec<ListenStep<ListenWaiter>>,
        fx: &mut Effects<'_>,
    ) {
        let (mut steps, mut refused) = (VecDeque::from(steps), false);
        while let Some(step) = steps.pop_front() {
            match step {
                ListenStep::Send(filter) => steps.extend(self.send_listen(now, server, &filter, fx)),
                ListenStep::Cancel(id) => self.cancel_listen(now, server, id, fx),
                ListenStep::Settled(waiter, accepted) => {
                    refused |= self.settle_waiter(server, (waiter, &accepted), fx);
                }
                ListenStep::Changed(kinds) => self.missed_changes(server, kinds, fx),
            }
        }
        if refused {
            // Nobody is subscribed to those any more.
            self.want_listens(now, server, fx);
        }
        self.set_timer(server, fx);
    }

    fn send_listen(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        filter: &Filter,
        fx: &mut Effects<'_>,
    ) -> Vec<ListenStep<ListenWaiter>> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Vec::new() };
        let opened = upstream.shared.open_listen(now);
        let sent = opened.filter(|id| {
            let text =
                jsonrpc::request(&id.to_string(), "subscriptions/listen", &listen::request_params(filter));
            let fits = upstream.link.excess(None, &text).is_none();
            fits && upstream.link.queue(None, text, Room::Normal, fx).is_ok()
        });
        if let (Some(id), None) = (opened, sent) {
            upstream.shared.close_listen(id);
        }
        upstream.listen.sent(now, sent)
    }

    fn cancel_listen(&mut self, now: Instant, server: UpstreamKey, id: u64, fx: &mut Effects<'_>) {
        let Some((instance, link)) = self.process(InstanceKey::shared(server)) else { return };
        if instance.close_listen(id) {
            let text = edit::cancelled(id, "another listen takes its place");
            // Best effort: what it reports is dropped.
            let _ = instance.send(link, now, text, fx);
        }
    }

    /// Lists again, and reports as changed, lists whose changes the gateway may have missed.
    fn missed_changes(&mut self, server: UpstreamKey, kinds: Kinds, fx: &mut Effects<'_>) {
        let name = self.name_of(server);
        for kind in kinds.iter() {
            self.notify_server_sessions(server, jsonrpc::notification(kind.changed(), None), fx);
            self.report_list(Some(&name), kind, fx);
        }
        let discovery =
            self.upstreams.get_mut(&server).and_then(|upstream| upstream.listing.discovery.as_mut());
        if let Some(discovery) = discovery {
            ListKind::ALL
                .into_iter()
                .filter(|kind| kinds.contains(*kind))
                .for_each(|kind| discovery.changed(kind));
        }
    }
}

/// Returns whether a response to a listen is an error, and its code.
pub(super) fn outcome(message: &Message<'_>) -> Result<(), Option<i64>> {
    let Some(error) = message.error_span() else { return Ok(()) };
    let code = find(message.text(), error, &["code"]).ok().flatten();
    Err(code.and_then(|span| message.text()[span].parse().ok()))
}

#[cfg(test)]
mod tests {
    use std::{
        any::Any,
        cell::RefCell,
        mem,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::{
        auth::{Principal, Tokens},
        budget::Budget,
        config::EraPin,
        hub::{
            entry::{self, Enter, LinkTraits},
            key::Sealing,
            peers::{SessionStream, Transport, Wakers},
            registration::NewUpstream,
            state::HubConfig,
        },
        jsonrpc::{Kind, unquote},
        limits::Limits,
        mcp::stateless::Params,
        metrics::Stats,
        queue::SendError,
        secret::seal::SealKey,
        tunnel::close::CloseReason,
    };

    type Log = Arc<Mutex<Vec<String>>>;

    fn short(message: &Message<'_>) -> String {
        let text = |path: &[&str]| {
            let span = message.param(path).unwrap()?;
            unquote(&message.text()[span]).map(|text| format!(" {text}"))
        };
        let method = message.method().trim_start_matches("notifications/").trim_end_matches("/list_changed");
        let covers = listen::honoured(message).map(|filter| {
            let kinds = filter.kinds.iter().map(|kind| &kind.noun()[..1]);
            let words = kinds.chain(filter.uris.iter().map(String::as_str));
            words.map(|word| format!(" {word}")).collect::<String>()
        });
        let uri = text(&["uri"]).or(covers).unwrap_or_default();
        format!("{}{uri}", method.trim_start_matches("subscriptions/").trim_start_matches("resources/"))
    }

    /// A link that keeps what it is sent.
    #[derive(Debug)]
    struct Line(Log);

    impl Transport for Line {
        fn send(&self, frame: String, _: Room, _: &mut Wakers) -> Result<(), SendError> {
            self.0.lock().unwrap().push(frame);
            Ok(())
        }

        fn close(&self, _: CloseReason) {}

        fn is_closed(&self) -> bool {
            false
        }
    }

    /// A client's stream, with its number.
    #[derive(Debug)]
    struct Stream(u32, Log);

    impl SessionStream for Stream {
        fn open_streams(&self) -> usize {
            1
        }

        fn send(&self, message: String, _: &Stats) {
            let message = Message::read(&message).unwrap();
            let of = listen::subscription(&message).map(|span| message.text()[span].to_owned());
            let own = message.id().is_some() || of == Some(self.0.to_string());
            assert!(own, "{}", message.text());
            let line = if message.kind() == Kind::Response { "ended".into() } else { short(&message) };
            self.1.lock().unwrap().push(format!("{}: {line}", self.0));
        }

        fn notice(&self, notice: &str, stats: &Stats) {
            self.send(notice.to_owned(), stats);
        }

        fn request(&self, _: String, _: &Stats) -> bool {
            false
        }

        fn end(&self) {
            self.1.lock().unwrap().push(format!("{}: closed", self.0));
        }

        fn close(&self) {}

        fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
            self
        }
    }

    /// A hub with one server, `s`.
    struct World {
        hub: RefCell<Hub>,
        stats: Stats,
        now: Instant,
        server: UpstreamKey,
        /// Frames for the server.
        frames: Log,
        /// What was sent besides discovery, in order.
        log: Log,
        /// Ids of listens at the server.
        listens: Vec<String>,
        /// Whether the server acknowledges and answers.
        answers: bool,
        open: BTreeMap<u32, ListenKey>,
        budget: Budget,
    }

    impl Enter for World {
        fn enter<'m, R>(&self, work: impl FnOnce(&mut Hub, &mut Effects<'m>) -> R) -> R {
            let mut effects = Effects::default();
            let result = work(&mut self.hub.borrow_mut(), &mut effects);
            effects.apply(&self.stats);
            result
        }

        fn stats(&self) -> &Stats {
            &self.stats
        }
    }

    impl World {
        fn new(era: EraPin) -> Self {
            let (frames, log) = (Log::default(), Log::default());
            let sealing = Sealing { key: Arc::new(SealKey::new([0; 32])), started: Instant::now() };
            let timeout = Duration::from_secs(100);
            let config = HubConfig {
                limits: Limits::default(),
                timeout_rpc: timeout,
                timeout_run_tool: timeout,
                sealing,
            };
            let mut hub = Hub::new(config, Arc::new(Tokens::default()), Arc::default());
            let (budget, now) = (Budget::new(1 << 20), Instant::now());
            let new = NewUpstream {
                id: "i".into(),
                name: "s".into(),
                principal: Principal::ANONYMOUS,
                account: budget.account(),
                transport: Arc::new(Line(frames.clone())),
                accepts: None,
                max_instances: None,
                reads_status_frames: true,
                resume_token: None,
                era: Some(era),
            };
            let server = hub.register(now, new, &mut Effects::default()).unwrap();
            let (hub, stats, open) = (RefCell::new(hub), Stats::default(), BTreeMap::new());
            let listens = Vec::new();
            let mut world =
                Self { hub, stats, now, server, frames, log, listens, answers: true, open, budget };
            world.serve();
            world
        }

        fn frame(&self, text: &str) {
            let link = LinkTraits { server: self.server, is_isolating: false, reads_status_frames: true };
            entry::frame(self, self.now, link, text).unwrap();
            self.hub.borrow().check().unwrap();
        }

        /// Does what the server does.
        fn serve(&mut self) {
            loop {
                let frames = mem::take(&mut *self.frames.lock().unwrap());
                if frames.is_empty() {
                    return;
                }
                for frame in frames {
                    if let Ok(message) = Message::read(&frame) {
                        self.answer(&message);
                    }
                }
            }
        }

        fn answer(&mut self, message: &Message<'_>) {
            let (method, id) = (message.method(), message.id().unwrap_or_default());
            let capabilities = r#""capabilities":{"tools":{"listChanged":true},"prompts":{},"resources":{"listChanged":true,"subscribe":true}}"#;
            let result = match method {
                "initialize" => format!(r#"{{"protocolVersion":"2025-11-25",{capabilities}}}"#),
                "server/discover" => {
                    format!(
                        r#"{{"resultType":"complete","supportedVersions":["2026-07-28"],{capabilities}}}"#
                    )
                }
                "tools/list" => r#"{"tools":[{"name":"t"}]}"#.into(),
                "prompts/list" => r#"{"prompts":[]}"#.into(),
                "resources/list" => r#"{"resources":[]}"#.into(),
                "resources/templates/list" => r#"{"resourceTemplates":[]}"#.into(),
                "notifications/initialized" => return,
                _ => {
                    self.log.lock().unwrap().push(short(message));
                    self.answer_logged(message);
                    return;
                }
            };
            self.frame(&jsonrpc::result(id, &result));
        }

        fn answer_logged(&mut self, message: &Message<'_>) {
            let (id, is_listen) =
                (message.id().unwrap_or_default(), message.method() == "subscriptions/listen");
            if is_listen {
                self.listens.push(id.to_owned());
            }
            match message.method() {
                _ if !self.answers => {}
                "subscriptions/listen" => {
                    let mut filter = listen::honoured(message).unwrap();
                    filter.uris.retain(|uri| !uri.contains("none"));
                    self.frame(&listen::acknowledged(id, &filter));
                }
                "resources/subscribe" if message.text().contains("none") => {
                    self.frame(&jsonrpc::error(id, -32002, "no such resource"));
                }
                "resources/subscribe" | "resources/unsubscribe" => self.frame(&jsonrpc::result(id, "{}")),
                _ => {}
            }
        }

        fn open(&mut self, id: u32, words: &[&str]) {
            let list = |word: &str, name: &str| words.contains(&word).then(|| format!("\"{name}\":true"));
            let lists = [
                list("t", "toolsListChanged"),
                list("p", "promptsListChanged"),
                list("r", "resourcesListChanged"),
            ];
            let uris: Vec<String> =
                words.iter().filter(|word| word.len() > 1).map(|uri| format!("\"{uri}\"")).collect();
            let uris = [format!("\"resourceSubscriptions\":[{}]", uris.join(","))];
            let filter: Vec<String> = lists.into_iter().flatten().chain(uris).collect();
            let params = format!("{{\"notifications\":{{{}}}}}", filter.join(","));
            let text = jsonrpc::request(&id.to_string(), "subscriptions/listen", &params);
            let message = Message::read(&text).unwrap();
            let scope = if words.contains(&"s+x:a") { Scope::All } else { Scope::Server("s".into()) };
            let listener = Listener {
                principal: Principal::ANONYMOUS,
                account: self.budget.account(),
                scope,
                stream: Arc::new(Stream(id, self.log.clone())),
            };
            let params = Params::read(&message).unwrap();
            let limits = Limits::default().stateless;
            let key = entry::listen(self, self.now, listener, (&message, &params), &limits).unwrap();
            self.open.insert(id, key);
        }

        fn run(&mut self, command: &str) -> String {
            let words: Vec<&str> = command.split(' ').collect();
            match words[0] {
                "open" => self.open(words[1].parse().unwrap(), &words[2..]),
                "close" => {
                    let key = self.open.remove(&words[1].parse().unwrap()).unwrap();
                    self.enter(|hub, fx| hub.close_listen(self.now, key, fx));
                }
                "wait" => {
                    self.now += Duration::from_millis(words[1].parse().unwrap());
                    self.enter(|hub, fx| hub.tick(self.now, fx));
                }
                "mute" => self.answers = false,
                "answer" => self.answers = true,
                "restart" => self.frame(r#"{"status":"restarted","id":"i","message":"m"}"#),
                "gone" => self.enter(|hub, fx| hub.remove_server(self.now, self.server, "why", fx)),
                "drain" => self.enter(|hub, fx| hub.drain(self.now, fx)),
                // A notification under the latest listen of the gateway, or the one of this number.
                method => {
                    let number = words.get(2).map(|number| number.parse::<usize>().unwrap());
                    let number = number.unwrap_or(self.listens.len().saturating_sub(1));
                    let id = self.listens.get(number).map_or("12345", String::as_str);
                    let uri = words.get(1).map(|uri| format!("\"uri\":\"{uri}\",")).unwrap_or_default();
                    let params =
                        format!("{{{uri}\"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{id}}}}}");
                    self.frame(&jsonrpc::notification(&format!("notifications/{method}"), Some(&params)));
                }
            }
            self.serve();
            self.hub.borrow().check().unwrap();
            mem::take(&mut *self.log.lock().unwrap()).join(", ")
        }
    }

    fn play(era: EraPin, rows: &[(&str, &str)]) {
        let mut world = World::new(era);
        mem::take(&mut *world.log.lock().unwrap());
        for (number, (command, expected)) in rows.iter().enumerate() {
            assert_eq!(world.run(command), *expected, "row {number}: {command}");
        }
        for id in world.open.keys().copied().collect::<Vec<_>>() {
            world.run(&format!("close {id}"));
        }
        drop(world.hub);
        assert_eq!(world.budget.used(), 0);
    }

    #[test]
    fn all_listens_share_one_at_a_modern_server() {
        play(
            EraPin::Modern,
            &[
                ("open 1 t p", "1: acknowledged t"),
                ("open 2 t x:a x:none", "listen t r x:a x:none, 2: acknowledged t x:a, cancelled"),
                ("open 3 s+x:a", "3: acknowledged s+x:a"),
                ("tools/list_changed", "1: tools, 2: tools"),
                ("resources/updated x:a/b", "2: updated x:a/b, 3: updated s+x:a/b"),
                ("resources/updated x:c", ""),
                // Under a listen that has ended, or that is nobody's.
                ("resources/updated x:a 0", ""),
                ("resources/updated x:a 99", ""),
                ("mute", ""),
                ("open 4 r x:c", "listen t r x:a x:c"),
                ("resources/updated x:c", ""),
                ("wait 2000", "4: acknowledged r"),
                ("answer", ""),
                ("close 2", ""),
                ("resources/updated x:a 1", "3: updated s+x:a"),
                ("drain", "1: ended, 1: closed, 3: ended, 3: closed, 4: ended, 4: closed"),
            ],
        );
    }

    #[test]
    fn resources_of_a_legacy_server_are_subscribed_to_once() {
        play(
            EraPin::Legacy,
            &[
                ("open 1 t p", "1: acknowledged t"),
                ("open 2 x:a x:none", "subscribe x:a, subscribe x:none, 2: acknowledged x:a"),
                ("open 3 s+x:a", "subscribe x:a, 3: acknowledged s+x:a"),
                ("tools/list_changed", "1: tools"),
                ("resources/updated x:a", "2: updated x:a, 3: updated s+x:a"),
                ("close 2", ""),
                ("close 3", "unsubscribe x:a"),
                ("mute", ""),
                ("open 4 x:c", "subscribe x:c"),
                ("resources/updated x:c", ""),
                ("wait 2000", "4: acknowledged, cancelled"),
                ("open 5 x:d", "subscribe x:d"),
                ("gone", "5: acknowledged"),
            ],
        );
    }

    #[test]
    fn listens_outlive_a_process_and_its_server() {
        for (era, again) in [(EraPin::Modern, "listen t r x:a"), (EraPin::Legacy, "subscribe x:a")] {
            let opened = match era {
                EraPin::Modern => "listen t r x:a, 1: acknowledged t x:a, cancelled",
                _ => "subscribe x:a, 1: acknowledged t x:a",
            };
            let restarted = match era {
                EraPin::Modern => format!("1: tools, {again}, 1: tools"),
                _ => format!("1: tools, {again}"),
            };
            play(
                era,
                &[
                    ("open 1 t x:a", opened),
                    ("restart", &restarted),
                    ("resources/updated x:a", "1: updated x:a"),
                    ("gone", ""),
                ],
            );
        }
    }
}
