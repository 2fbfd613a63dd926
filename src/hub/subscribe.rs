//! Resource subscriptions and log levels: what sessions want, and what their servers were asked
//! for.
//!
//! A table is changed and the request to the server is queued in one entry into the hub, so the
//! server's last request matches the last change.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{
    call::{Asked, Outcome, session_ended},
    effect::Effects,
    error::CallError,
    instance::{Caller, uri_params},
    key::{InstanceKey, SessionKey, SubscriberKey},
    listener::{ListenWaiter, SessionSubscribe},
    request::{Named, ResourceMethod},
    session::Session,
    state::Hub,
    upstream::Upstream,
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::{self, unquote},
    limits::{self, LOG_GROUPS},
    mcp::listing::ListKind,
    session::{Subscriber, Subscriptions},
};

/// Charges a session for its current subscriptions and for `more` bytes. Returns false if there is
/// no memory for more.
fn charge(subscriptions: &Subscriptions<SubscriberKey>, session: &mut Session, more: usize) -> bool {
    session.subscriptions_charge.resize(subscriptions.bytes(SubscriberKey::Session(session.key)) + more)
}

impl Hub {
    /// Handles `resources/read`, `resources/subscribe` and `resources/unsubscribe`. Subscriptions
    /// are counted over all sessions.
    pub(super) fn resource(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        (method, named): (ResourceMethod, Named),
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        let mut number = None;
        if method != ResourceMethod::Read && self.is_modern(server) && !self.is_isolating(server) {
            return self.resource_at_modern(asked, server, (method, named), fx);
        }
        match method {
            ResourceMethod::Subscribe => number = Some(self.subscribe(asked, server, &named, fx)?),
            ResourceMethod::Unsubscribe if !self.unsubscribe(asked.session, server, &named.1) => {
                return Ok(Outcome::Now("{}".into()));
            }
            ResourceMethod::Unsubscribe | ResourceMethod::Read => {}
        }
        let passed = self.forward(asked, server, Some(named), number, fx);
        if let (Err(_), Some(number)) = (&passed, number) {
            // The server was not asked, so nothing else would remove the subscription.
            self.settle_subscription(asked.session, server, number, false);
        }
        passed
    }

    /// Handles `resources/subscribe` and `resources/unsubscribe` at a modern server, which has a
    /// listen of the gateway instead.
    fn resource_at_modern(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        (method, named): (ResourceMethod, Named),
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        if method == ResourceMethod::Unsubscribe {
            self.unsubscribe(asked.session, server, &named.1);
            self.want_listens(asked.now, server, fx);
            return Ok(Outcome::Now("{}".into()));
        }
        let number = self.subscribe(asked, server, &named, fx)?;
        let waiter = SessionSubscribe {
            session: asked.session,
            number,
            id: asked.request.message.id().unwrap_or_default().into(),
            responder: asked.responder.clone(),
            uri: named.1.clone(),
        };
        self.want_listens(asked.now, server, fx);
        let waiter = (ListenWaiter::Session(waiter), BTreeSet::from([named.1]));
        self.wait_for_listen(asked.now, server, waiter, fx);
        Ok(Outcome::Later)
    }

    /// Adds a session's subscription to a resource, before its server is asked. Returns the number
    /// in the session that is reserved for the call.
    fn subscribe(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        (span, server_uri): &Named,
        fx: &mut Effects<'_>,
    ) -> Result<u64, CallError> {
        // The URI is limited in length because it is kept as long as the session.
        let longest = self.config.limits.catalog.uri;
        if server_uri.chars().count() > longest {
            return Err(CallError::SubscriptionTooLong { max: longest });
        }
        let name = self.name_of(server);
        // Starts the instance before the subscription is added: a new instance is sent the earlier
        // subscriptions first, and then this one.
        self.instance_for(asked.now, asked.session, server, fx)
            .map_err(|why| CallError::declined(why, &name))?;
        let session = self.clients.get_mut(&asked.session).ok_or_else(session_ended)?;
        let number = session.calls.reserve();
        if self.subscriptions.count(SubscriberKey::Session(session.key))
            >= self.config.limits.session.subscriptions
        {
            return Err(CallError::TooManySubscriptions);
        }
        let uri = unquote(&asked.request.message.text()[span.clone()]).unwrap_or_default().into_owned();
        let subscriber = Subscriber { by: SubscriberKey::Session(session.key), uri, asked: Some(number) };
        if !charge(&self.subscriptions, session, subscriber.bytes(server_uri)) {
            self.stats.memory_refusals.add();
            return Err(CallError::NoMemory);
        }
        self.subscriptions.add(&name, server_uri, subscriber);
        charge(&self.subscriptions, session, 0);
        Ok(number)
    }

    /// Removes a session's subscription to a resource. Returns whether to forward the request: a
    /// shared server keeps its subscription while other sessions are subscribed.
    fn unsubscribe(&mut self, session: SessionKey, server: UpstreamKey, uri: &str) -> bool {
        let (name, isolating) = (self.name_of(server), self.is_isolating(server));
        let Some(session) = self.clients.get_mut(&session) else { return false };
        let last = self.subscriptions.remove(&name, uri, SubscriberKey::Session(session.key));
        charge(&self.subscriptions, session, 0);
        if isolating { session.instances.contains_key(&name) } else { last }
    }

    /// Settles a session's `resources/subscribe`, identified by its number in the session, once it
    /// was answered or could not be forwarded.
    pub(super) fn settle_subscription(
        &mut self,
        session: SessionKey,
        server: UpstreamKey,
        number: u64,
        granted: bool,
    ) {
        let name = self.name_of(server);
        let Some(session) = self.clients.get_mut(&session) else { return };
        self.subscriptions.settle(&name, SubscriberKey::Session(session.key), number, granted);
        charge(&self.subscriptions, session, 0);
    }

    /// Returns the name of a registered server; empty if it is gone.
    pub(super) fn name_of(&self, server: UpstreamKey) -> Arc<str> {
        let upstream = self.upstreams.get(&server);
        upstream.map_or_else(|| Arc::from(""), |upstream| upstream.link.name().clone())
    }

    /// Removes all subscriptions of a session that ended, and unsubscribes from resources that
    /// nobody is subscribed to any more.
    pub(super) fn unsubscribe_all(&mut self, now: Instant, session: SessionKey, fx: &mut Effects<'_>) {
        let unwanted = self.subscriptions.leave(SubscriberKey::Session(session));
        if let Some(session) = self.clients.get_mut(&session) {
            charge(&self.subscriptions, session, 0);
        }
        self.unsubscribe_from(now, unwanted, fx);
    }

    /// Unsubscribes from resources, as the name of the server and its own URI.
    pub(super) fn unsubscribe_from(
        &mut self,
        now: Instant,
        unwanted: Vec<(String, String)>,
        fx: &mut Effects<'_>,
    ) {
        let timeout = self.config.timeout_rpc;
        let mut modern = BTreeSet::new();
        for (server, uri) in unwanted {
            let Some(server) = self.catalog.server(&server) else { continue };
            if self.is_modern(server) {
                modern.insert(server);
                continue;
            }
            let takes = |upstream: &&mut Box<Upstream>| upstream.pool.is_none() && !upstream.is_undecided();
            let upstream = self.upstreams.get_mut(&server).filter(takes);
            let Some((instance, link)) = upstream.and_then(|upstream| upstream.process(None)) else {
                continue;
            };
            let request = instance.request(now, "resources/unsubscribe", &uri_params(&uri), timeout);
            // A request that could not be sent is removed from the table at its timeout.
            let _ = request.map(|request| link.send(now, None, request, fx));
            self.set_timer(server, fx);
        }
        for server in modern {
            self.want_listens(now, server, fx);
        }
    }

    /// Restores the log level of a server that is back, and subscribes to its resources again.
    /// Where sessions have their own instances, starts those of the subscribed sessions instead.
    pub(super) fn restore(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        if self.is_isolating(server) {
            return self.restore_instances(now, server, fx);
        }
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        upstream.shared.forget_level();
        // Sessions at the server's own endpoint may have listed it before, when it offered
        // something else.
        let kinds = [ListKind::Tool, ListKind::Prompt, ListKind::Resource];
        let offered: Vec<ListKind> =
            kinds.into_iter().filter(|kind| upstream.shared.has(kind.capability())).collect();
        if !upstream.shared.is_modern() {
            upstream.pending_subscriptions = self.subscriptions.of_server(upstream.link.name()).into();
        }
        self.send_level(now, server, fx);
        for kind in offered {
            self.notify_server_sessions(server, jsonrpc::notification(kind.changed(), None), fx);
        }
        self.resubscribe(now, server, fx);
    }

    fn restore_instances(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        // The instances that had these subscriptions are gone with the old link.
        let name = self.name_of(server);
        for subscriber in self.subscriptions.clients_of(&name) {
            let SubscriberKey::Session(key) = subscriber else { continue };
            let Some(session) = self.clients.get(&key).filter(|session| session.is_initialized()) else {
                continue;
            };
            let id = session.id.clone();
            if let Err(why) = self.instance_for(now, key, server, fx) {
                let client = super::session::name_of(&id).to_string();
                let line =
                    || format!("client {client} gets no notifications of changes: {}", why.message(&name));
                self.log_throttled(now, log::Level::Warn, ("no_changes", &name, LOG_GROUPS), fx, line);
            }
        }
    }

    /// Subscribes to the pending resources of a server in order, with at most
    /// [`limits::SUBSCRIBES_IN_FLIGHT`] such requests in flight: there may be more resources than
    /// the limits for calls and frames allow.
    pub(super) fn resubscribe(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        if upstream.pending_subscriptions.is_empty() {
            return;
        }
        let timeout = self.config.timeout_rpc;
        let mut pending = std::mem::take(&mut upstream.pending_subscriptions);
        let Some((instance, link)) = upstream.process(None) else { return };
        let mut in_flight = instance.mux().count(|pending| {
            matches!(pending.caller, Caller::Ignored) && &*pending.method == "resources/subscribe"
        });
        while in_flight < limits::SUBSCRIBES_IN_FLIGHT
            && let Some(uri) = pending.pop_front()
        {
            if !self.subscriptions.is_wanted(link.name(), &uri) {
                continue;
            }
            if !instance.subscribe(link, now, (Caller::Ignored, &uri, timeout), fx) {
                pending.push_front(uri);
                break;
            }
            in_flight += 1;
        }
        upstream.pending_subscriptions = pending;
        self.set_timer(server, fx);
    }

    /// Requests log messages of a shared server from the lowest level that any session wants.
    pub(super) fn send_level(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let Some(upstream) = self.upstreams.get_mut(&server).filter(|upstream| upstream.pool.is_none())
        else {
            return;
        };
        let lowest = self.sessions.lowest_level(upstream.link.name());
        // A modern server gets the level with each request.
        let takes_level = !upstream.shared.is_modern() && upstream.shared.has("logging");
        let Some(level) = lowest.filter(|_| takes_level) else { return };
        if let Some(request) = upstream.shared.level_request(now, level, self.config.timeout_rpc) {
            // A request that could not be sent is removed from the table at its timeout.
            let _ = upstream.link.send(now, None, request, fx);
        }
        self.set_timer(server, fx);
    }

    /// Sends the session's log level to its instance.
    pub(super) fn send_level_to_instance(
        &mut self,
        now: Instant,
        instance: InstanceKey,
        fx: &mut Effects<'_>,
    ) {
        let timeout = self.config.timeout_rpc;
        let session = self.session_of(instance).and_then(|session| self.clients.get(&session));
        let Some(level) = session.and_then(|session| session.info.level) else { return };
        let Some((instance, link)) = self.process(instance) else { return };
        if instance.has("logging")
            && let Some(request) = instance.level_request(now, level, timeout)
        {
            // A request that could not be sent is removed from the table at its timeout.
            let _ = link.send(now, instance.key().channel, request, fx);
        }
    }

    /// Returns the requests that restore a client's log level and resource subscriptions at a new
    /// instance.
    pub(super) fn first_requests(&mut self, now: Instant, instance: InstanceKey) -> Vec<String> {
        let timeout = self.config.timeout_rpc;
        let session = self.session_of(instance).and_then(|session| self.clients.get(&session));
        let level = session.and_then(|session| session.info.level);
        let Some((instance, _)) = self.process(instance) else { return Vec::new() };
        let level = level.filter(|_| instance.has("logging"));
        let level = level.and_then(|level| instance.level_request(now, level, timeout));
        let uris = instance.isolated().map(|isolated| isolated.subscriptions.clone()).unwrap_or_default();
        let requests = uris
            .iter()
            .filter_map(|uri| instance.request(now, "resources/subscribe", &uri_params(uri), timeout));
        level.into_iter().chain(requests).collect()
    }
}
