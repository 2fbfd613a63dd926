//! Forwards client requests to one server, and that server's notifications to its clients.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    Gateway,
    dispatch::{Outcome, checked},
    session::Session,
    upstream::{Call, Caller, Upstream, deliver, fail, uri_params},
};
use crate::{
    hub::{
        conclusion::{self, Edit, Tasks},
        error::CallError,
        mux::Pending,
        peers::Responder,
        request::{Named, Request, ResourceMethod, What, string_param},
        session::Scope,
    },
    jsonrpc::{self, Message, quote, unquote},
    limits::{self, LOG_GROUPS},
    mcp::{listing::ListKind, log_level::Level},
    session::{Subscriber, Subscriptions},
};

/// Charges a session for its current subscriptions and for `more` bytes. Returns false if there is
/// no memory for more.
fn charge_subscriptions(subscriptions: &Subscriptions, client: &Session, more: usize) -> bool {
    client.charges().subscriptions.resize(subscriptions.bytes(client.id()) + more)
}

impl Gateway {
    /// Handles a request at the endpoint of one server. It is forwarded unchanged, except that
    /// subscriptions are counted and task requests are checked where sessions share the server.
    pub fn ask_server(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        request: &Request<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        match &request.what {
            What::Resource(method, uri) => {
                let named = checked(uri)?.clone();
                self.resource(now, client, upstream, request, (*method, named), responder)
            }
            What::Task(task) if upstream.instance_pool().is_none() => {
                if let Some(id) = checked(task)?
                    && !self.may_have_task(client.principal(), upstream, id)
                {
                    return Err(CallError::TaskNotFound);
                }
                self.forward(now, client, upstream, request, None, responder)
            }
            _ => self.forward(now, client, upstream, request, None, responder),
        }
    }

    /// Forwards a request to a server.
    pub fn forward(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        request: &Request<'_>,
        named: Option<Named>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        self.forward_as(now, client, upstream, request, named, (responder, None))
    }

    /// Forwards a request, as the session's call `number` if that was reserved for it.
    fn forward_as(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        request: &Request<'_>,
        named: Option<Named>,
        (responder, number): (&Arc<dyn Responder>, Option<u64>),
    ) -> Result<Outcome, CallError> {
        let message = request.message;
        let token = checked(&request.token)?.clone();
        let timeout = match message.method() {
            "tools/call" | "tasks/result" | "initialize" => self.config.timeout_run_tool,
            _ => self.config.timeout_rpc,
        };
        let instance = self.instance_for(now, client, upstream);
        let upstream = instance.map_err(|why| CallError::declined(why, upstream.name()))?;
        let rename = named.as_ref().map(|(span, uri)| (span.clone(), uri.as_str()));
        let (responder, several) = (responder.clone(), self.authn.tokens().have_several_clients());
        let call = Call { message, rename, token, timeout, responder, several, number };
        self.stats.calls.add();
        let passed = upstream.call(now, client, &call);
        passed.map(|()| Outcome::Later).map_err(|why| CallError::declined(why, upstream.name()))
    }

    /// Handles `resources/read`, `resources/subscribe` and `resources/unsubscribe`. Subscriptions
    /// are counted over all sessions.
    pub fn resource(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        request: &Request<'_>,
        (method, named): (ResourceMethod, Named),
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        let _ordered = (method != ResourceMethod::Read).then(|| self.subscription_order());
        let mut asked = None;
        match method {
            ResourceMethod::Subscribe => {
                asked = Some(self.subscribe(now, client, upstream, request, &named)?)
            }
            ResourceMethod::Unsubscribe => {
                let last = self.unsubscribe(client, upstream, &named.1);
                let told = match upstream.instance_pool() {
                    // The server keeps its subscription while other sessions are subscribed.
                    None => last,
                    Some(_) => client.instances().by_server.contains_key(upstream.name()),
                };
                if !told {
                    return Ok(Outcome::Now("{}".into()));
                }
            }
            ResourceMethod::Read => {}
        }
        let passed = self.forward_as(now, client, upstream, request, Some(named), (responder, asked));
        if let (Err(_), Some(number)) = (&passed, asked) {
            // The server was not asked, so the subscription is removed here. If the session has
            // ended meanwhile, nothing else would remove it.
            self.settle_subscription(client, upstream, number, false);
        }
        passed
    }

    /// Adds a session's subscription to a resource, before its server is asked. Returns the number
    /// in the session that is reserved for the call.
    fn subscribe(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        request: &Request<'_>,
        (span, server_uri): &Named,
    ) -> Result<u64, CallError> {
        // The URI is limited in length because it is kept as long as the session.
        let longest = self.config.limits.catalog.uri;
        if server_uri.chars().count() > longest {
            return Err(CallError::SubscriptionTooLong { max: longest });
        }
        // Starts the instance before the subscription is added: a new instance is sent the earlier
        // subscriptions first, and then this one.
        self.instance_for(now, client, upstream).map_err(|why| CallError::declined(why, upstream.name()))?;
        let number = client.calls().reserve();
        let mut subscriptions = self.subscriptions();
        if subscriptions.count(client.id()) >= self.config.limits.session.subscriptions {
            return Err(CallError::TooManySubscriptions);
        }
        let uri = unquote(&request.message.text()[span.clone()]).unwrap_or_default().into_owned();
        let subscriber = Subscriber { session: client.id().to_owned(), uri, asked: Some(number) };
        if !charge_subscriptions(&subscriptions, client, subscriber.bytes(server_uri)) {
            self.stats.memory_refusals.add();
            return Err(CallError::NoMemory);
        }
        subscriptions.add(upstream.name(), server_uri, subscriber);
        charge_subscriptions(&subscriptions, client, 0);
        Ok(number)
    }

    /// Removes a session's subscription to a resource. Returns true if no session is subscribed to
    /// it any more.
    fn unsubscribe(&self, client: &Session, upstream: &Upstream, uri: &str) -> bool {
        let mut subscriptions = self.subscriptions();
        let last = subscriptions.remove(upstream.name(), uri, client.id());
        charge_subscriptions(&subscriptions, client, 0);
        last
    }

    /// Settles a session's `resources/subscribe`, identified by its number in the session, once it
    /// was answered or could not be forwarded.
    fn settle_subscription(&self, client: &Session, upstream: &Upstream, number: u64, granted: bool) {
        let mut subscriptions = self.subscriptions();
        subscriptions.settle(upstream.name(), client.id(), number, granted);
        charge_subscriptions(&subscriptions, client, 0);
    }

    /// Delivers a server's response to the pending request that it answers.
    pub fn conclude(
        &self,
        now: Instant,
        upstream: &Upstream,
        pending: Pending<Caller>,
        answer: &Message<'_>,
    ) {
        let edits = match (&pending.caller, &*pending.method) {
            (Caller::Session(client, id, ..), method) => {
                let edits = self.settle_tasks(client, upstream, method, answer);
                if method == "resources/subscribe" {
                    // A refused subscription is not counted.
                    self.settle_subscription(client, upstream, id.number(), answer.error().is_none());
                }
                edits.map(|mut edits| {
                    edits.extend(self.links(client, upstream, method, answer));
                    edits
                })
            }
            (Caller::Ignored, "logging/setLevel") => {
                // Another level may be wanted by now.
                match upstream.instance() {
                    None => self.send_level(now, upstream),
                    Some(isolated) => {
                        let client = isolated.client.upgrade();
                        client.iter().for_each(|client| self.send_level_to_instance(now, client, upstream));
                    }
                }
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        };
        match edits {
            Ok(edits) => deliver(now, upstream, pending, answer, edits, &self.stats),
            Err(why) => fail(pending, &why, &self.stats),
        }
    }

    /// Records or checks the tasks that a response mentions. Returns the changes to make in it.
    ///
    /// # Errors
    /// The response is about a task of another principal: the request may have been sent before the
    /// gateway knew the owner of this id.
    fn settle_tasks(
        &self,
        client: &Session,
        upstream: &Upstream,
        method: &str,
        answer: &Message<'_>,
    ) -> Result<Vec<Edit>, CallError> {
        if upstream.instance().is_some() {
            return Ok(Vec::new());
        }
        let principal = client.principal();
        match Tasks::read(method, upstream.has_tasks(), answer) {
            Tasks::Unnamed => {}
            Tasks::Created(id) => self.tasks().begin(upstream.run(), &id, principal),
            Tasks::About(id) if self.may_have_task(principal, upstream, &id) => {}
            Tasks::About(_) => return Err(CallError::TaskNotFound),
            Tasks::Listed(list) => {
                return Ok(list.only(answer.text(), |id| self.may_see_task(principal, upstream, id)));
            }
        }
        Ok(Vec::new())
    }

    /// Returns replacements for the URIs in a response that would lead a client of the aggregate to
    /// another server than the one that sent them.
    fn links(&self, client: &Session, upstream: &Upstream, method: &str, answer: &Message<'_>) -> Vec<Edit> {
        if *client.scope() != Scope::All {
            return Vec::new();
        }
        let found = conclusion::links(method, answer);
        if found.is_empty() {
            return Vec::new();
        }
        let catalog = self.catalog();
        let linked = found.into_iter().map(|(span, uri)| (span, catalog.link(upstream.name(), &uri)));
        linked.filter_map(|(span, uri)| Some((span, quote(&uri?)))).collect()
    }

    /// Removes all subscriptions of a session that ended, and unsubscribes from resources that no
    /// session is subscribed to any more.
    pub fn unsubscribe_all(&self, now: Instant, client: &Session) {
        let _ordered = self.subscription_order();
        let unwanted = {
            let mut subscriptions = self.subscriptions();
            let unwanted = subscriptions.leave(client.id());
            charge_subscriptions(&subscriptions, client, 0);
            unwanted
        };
        for (server, uri) in unwanted {
            let upstream = self.catalog().server(&server);
            if let Some(upstream) = upstream.filter(|upstream| upstream.instance_pool().is_none()) {
                let params = uri_params(&uri);
                upstream.send_request(now, "resources/unsubscribe", &params, self.config.timeout_rpc);
            }
        }
    }

    /// Restores the log level of a server that is back. Returns the resources to subscribe to
    /// again. Where sessions have their own instances, starts those of the subscribed sessions
    /// instead.
    pub fn pending_subscriptions(&self, now: Instant, upstream: &Arc<Upstream>) -> Vec<String> {
        let _ordered = self.subscription_order();
        if upstream.instance_pool().is_some() {
            // The instances that had these subscriptions are gone with the old link.
            let subscribed = self.subscriptions().sessions_of(upstream.name());
            for session in subscribed {
                let client = self.sessions().peek(&session).cloned();
                if let Some(client) = client.filter(|client| client.is_initialized())
                    && let Err(why) = self.instance_for(now, &client, upstream)
                {
                    let (name, why) = (client.name(), why.message(upstream.name()));
                    let line = format_args!("client {name} gets no notifications of changes: {why}");
                    self.log_throttled(log::Level::Warn, "no_changes", upstream.name(), LOG_GROUPS, line);
                }
            }
            return Vec::new();
        }
        upstream.forget_level();
        self.send_level(now, upstream);
        // Sessions at the server's own endpoint may have listed it before, when it offered
        // something else.
        for kind in [ListKind::Tool, ListKind::Prompt, ListKind::Resource] {
            if upstream.has(kind.capability()) {
                self.notify_server_sessions(upstream, &jsonrpc::notification(kind.changed(), None));
            }
        }
        self.subscriptions().of_server(upstream.name())
    }

    /// Subscribes to the pending resources in order, with at most [`limits::SUBSCRIBES_IN_FLIGHT`]
    /// such requests in flight: there may be more resources than the limits for calls and frames
    /// allow.
    pub fn resubscribe(&self, now: Instant, upstream: &Upstream, subscriptions: &mut VecDeque<String>) {
        if subscriptions.is_empty() {
            return;
        }
        // Lock held so that no unsubscribe can slip between the check and the request.
        let _ordered = self.subscription_order();
        let is_subscribe = |pending: &Pending<Caller>| {
            matches!(pending.caller, Caller::Ignored) && &*pending.method == "resources/subscribe"
        };
        loop {
            let under_way = upstream.mux().count(is_subscribe);
            if under_way >= limits::SUBSCRIBES_IN_FLIGHT {
                return;
            }
            let Some(uri) = subscriptions.pop_front() else { return };
            let wanted = self.subscriptions().is_wanted(upstream.name(), &uri);
            if wanted && !upstream.subscribe(now, &uri, self.config.timeout_rpc) {
                subscriptions.push_front(uri);
                return;
            }
        }
    }

    /// Notifies the sessions at a server's own endpoint that a list changed.
    fn notify_server_sessions(&self, upstream: &Upstream, notification: &str) {
        for client in self.server_sessions(upstream.name()) {
            client.stream().notice(notification, &self.stats);
        }
    }

    /// Sends a task's status to the sessions whose principal may see the task.
    fn broadcast_task(&self, upstream: &Upstream, message: &Message<'_>) {
        let Ok(id) = string_param(message, &["taskId"]) else { return };
        let id = id.map(|(_, id)| id);
        for client in self.server_sessions(upstream.name()) {
            if self.may_see_task(client.principal(), upstream, id.as_deref()) {
                client.stream().send(message.splice(&[]), &self.stats);
            }
        }
    }

    /// Returns the initialized sessions at a server's own endpoint.
    fn server_sessions(&self, server: &str) -> Vec<Arc<Session>> {
        self.sessions().at(Some(server)).filter(|client| client.is_initialized()).cloned().collect()
    }

    /// Requests log messages from the lowest level that any session wants.
    pub fn send_level(&self, now: Instant, upstream: &Upstream) {
        let lowest = self.sessions().lowest_level(upstream.name());
        if let Some(level) = lowest.filter(|_| upstream.has("logging")) {
            upstream.send_level(now, level, self.config.timeout_rpc);
        }
    }

    /// Sends a shared server's notification that belongs to no call to the sessions that it
    /// concerns.
    pub fn broadcast(&self, upstream: &Upstream, message: &Message<'_>) {
        if upstream.instance_pool().is_some() {
            // Sessions get the notifications of their own instances. The instance on this link is
            // only used for listing.
            return;
        }
        match message.method() {
            "notifications/message" => {
                let Some(level) = Level::of(message) else { return };
                let clients: Vec<Arc<Session>> =
                    self.sessions().with_level(upstream.name(), level).cloned().collect();
                for client in clients.iter().filter(|client| client.is_initialized()) {
                    client.stream().send(message.splice(&[]), &self.stats);
                }
            }
            "notifications/resources/updated" => self.broadcast_update(upstream, message, None),
            "notifications/tasks/status" => self.broadcast_task(upstream, message),
            method if method.ends_with("/list_changed") => {
                self.notify_server_sessions(upstream, &message.splice(&[]))
            }
            _ => {
                for client in self.server_sessions(upstream.name()) {
                    client.stream().send(message.splice(&[]), &self.stats);
                }
            }
        }
    }

    /// Sends a resource update to its subscribers (or to `only`), each with the URI that the
    /// subscriber knows.
    pub fn broadcast_update(&self, upstream: &Upstream, message: &Message<'_>, only: Option<&Session>) {
        let Ok(Some((span, updated))) = string_param(message, &["uri"]) else { return };
        let subscribers = self.subscriptions().of_update(upstream.name(), &updated);
        for subscriber in subscribers {
            if only.is_some_and(|only| only.id() != subscriber.session) {
                continue;
            }
            let client = self.sessions().peek(&subscriber.session).cloned();
            let Some(client) = client.filter(|client| client.is_initialized()) else { continue };
            // The subscriber knows the resource, or its parent, under the exposed URI `name+uri`.
            let uri = match subscriber.uri.split_once('+') {
                Some((name, _)) if name == upstream.name() && !updated.starts_with(&subscriber.uri) => {
                    quote(&format!("{name}+{updated}"))
                }
                _ => quote(&updated),
            };
            client.stream().send(message.splice(&[(span.clone(), &uri)]), &self.stats);
        }
    }
}
