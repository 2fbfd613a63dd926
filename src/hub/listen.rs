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
