//! What goes to one server, and what comes from it unasked.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    Gateway,
    dispatch::{Answer, Problem, declined, string_param},
    responder::{NO_MEMORY, Responder},
    session::{Scope, Session},
    tasks::NOT_FOUND,
    upstream::{Call, Caller, Upstream, deliver, fail, uri_params},
};
use crate::{
    hub::mux::Pending,
    jsonrpc::{self, Message, Span, edit, quote, unquote},
    limits::{self, LOG_GROUPS},
    mcp::{listing::ListKind, log_level::Level, resource_links},
    session::{Subscriber, Subscriptions},
};

/// Charges a session for its subscriptions as they are, and for so many bytes more. False: there is no memory for more.
fn pay_subscriptions(subscriptions: &Subscriptions, client: &Session, more: usize) -> bool {
    client.paid().subscriptions.resize(subscriptions.bytes(client.id()) + more)
}

/// Where the client's name for something stands, and the server's own name for it.
type Named = (Span, String);

impl Gateway {
    /// A request at the endpoint of one server: as it is, except where sessions share the server.
    pub fn ask_server(
        &self,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        message: &Message<'_>,
        reply: &Responder,
    ) -> Result<Answer, Problem> {
        match message.method() {
            "resources/subscribe" | "resources/unsubscribe" => match string_param(message, &["uri"])? {
                Some(named) => self.resource(client, upstream, message, named, reply),
                None => self.forward(client, upstream, message, None, reply),
            },
            "tasks/get" | "tasks/result" | "tasks/cancel" if upstream.instance_pool().is_none() => {
                self.may_ask_for_task(client, upstream, message)?;
                self.forward(client, upstream, message, None, reply)
            }
            _ => self.forward(client, upstream, message, None, reply),
        }
    }

    /// Passes a request on.
    pub fn forward(
        &self,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        message: &Message<'_>,
        named: Option<Named>,
        reply: &Responder,
    ) -> Result<Answer, Problem> {
        self.forward_as(client, upstream, message, named, reply, None)
    }

    /// Passes a request on, under a number in the session that was reserved for it.
    fn forward_as(
        &self,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        message: &Message<'_>,
        named: Option<Named>,
        reply: &Responder,
        number: Option<u64>,
    ) -> Result<Answer, Problem> {
        let token = edit::token(message).map_err(|why| (why.code(), why.reason().to_owned()))?;
        if token.as_ref().is_some_and(|span| span.len() > limits::ID_BYTES) {
            return Err((jsonrpc::INVALID_PARAMS, "the progress token is too long".into()));
        }
        let patience = match message.method() {
            "tools/call" | "tasks/result" | "initialize" => self.config.timeout_run_tool,
            _ => self.config.timeout_rpc,
        };
        let process = self.instance_for(client, upstream);
        let upstream = process.map_err(|why| declined(why, upstream.name()))?;
        let rename = named.as_ref().map(|(span, own)| (span.clone(), own.as_str()));
        let (reply, several) = (reply.clone(), self.authn.tokens().have_several_clients());
        let call = Call { message, rename, token, timeout: patience, responder: reply, several, number };
        self.stats.calls.add();
        let passed = upstream.call(Instant::now(), client, &call);
        passed.map(|()| Answer::Later).map_err(|why| declined(why, upstream.name()))
    }

    /// Reading a resource, and the wish to hear of its changes, which is counted over all sessions.
    pub fn resource(
        &self,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
        message: &Message<'_>,
        named: Named,
        reply: &Responder,
    ) -> Result<Answer, Problem> {
        let (span, own) = &named;
        let _ordered = (message.method() != "resources/read").then(|| self.subscription_order());
        let mut asked = None;
        match message.method() {
            "resources/subscribe" => {
                // It is kept as long as the session.
                let longest = self.config.limits.catalog.uri;
                if own.chars().count() > longest {
                    let why = format!("the URI is too long to subscribe to: more than {longest} characters");
                    return Err((jsonrpc::INVALID_PARAMS, why));
                }
                // A process that begins is told what its client wanted before, and then this.
                self.instance_for(client, upstream).map_err(|why| declined(why, upstream.name()))?;
                let number = client.calls().reserve();
                let mut subscriptions = self.subscriptions();
                if subscriptions.count(client.id()) >= self.config.limits.session.subscriptions {
                    return Err((jsonrpc::BUSY, "the session has too many subscriptions".into()));
                }
                let uri = unquote(&message.text()[span.clone()]).unwrap_or_default().into_owned();
                asked = Some(number);
                let subscriber = Subscriber { session: client.id().to_owned(), uri, asked };
                if !pay_subscriptions(&subscriptions, client, subscriber.bytes(own)) {
                    self.stats.memory_refusals.add();
                    return Err((jsonrpc::BUSY, NO_MEMORY.into()));
                }
                subscriptions.add(upstream.name(), own, subscriber);
                pay_subscriptions(&subscriptions, client, 0);
            }
            "resources/unsubscribe" => {
                let last = self.unsubscribe(client, upstream, own);
                let told = match upstream.instance_pool() {
                    // Others want to hear of it still.
                    None => last,
                    Some(_) => client.instances().by_server.contains_key(upstream.name()),
                };
                if !told {
                    return Ok(Answer::Now("{}".into()));
                }
            }
            _ => {}
        }
        let passed = self.forward_as(client, upstream, message, Some(named), reply, asked);
        if let (Err(_), Some(number)) = (&passed, asked) {
            // Nobody was asked; and a session that has ended takes nothing back any more.
            self.settle_subscription(client, upstream, number, false);
        }
        passed
    }

    /// A session no longer wants to hear of a resource. True when nobody does any more.
    fn unsubscribe(&self, client: &Session, upstream: &Upstream, own: &str) -> bool {
        let mut subscriptions = self.subscriptions();
        let last = subscriptions.remove(upstream.name(), own, client.id());
        pay_subscriptions(&subscriptions, client, 0);
        last
    }

    /// A session's request to hear of a resource, by its number in the session, was answered or not passed on.
    fn settle_subscription(&self, client: &Session, upstream: &Upstream, number: u64, granted: bool) {
        let mut subscriptions = self.subscriptions();
        subscriptions.settle(upstream.name(), client.id(), number, granted);
        pay_subscriptions(&subscriptions, client, 0);
    }

    /// A server has answered: whoever waits for that is told.
    pub fn conclude(&self, upstream: &Upstream, pending: Pending<Caller>, answer: &Message<'_>) {
        if let Caller::Session(client, ..) = &pending.caller
            && self.is_of_foreign_task(client, upstream, &pending.method, answer)
        {
            return fail(pending, jsonrpc::INVALID_PARAMS, NOT_FOUND, &self.stats);
        }
        let mut edits = self.settle(upstream, &pending, answer);
        edits.extend(self.links(upstream, &pending, answer));
        deliver(pending, answer, edits, &self.stats);
    }

    /// URIs in an answer that would lead a client of all servers to another server than the one that sent them.
    fn links(
        &self,
        upstream: &Upstream,
        pending: &Pending<Caller>,
        answer: &Message<'_>,
    ) -> Vec<(Span, String)> {
        let method = &*pending.method;
        let at_all = |client: &Session| *client.scope() == Scope::All;
        match (&pending.caller, answer.result_span()) {
            (Caller::Session(client, ..), Some(result))
                if at_all(client)
                    && matches!(method, "tools/call" | "prompts/get" | "resources/read")
                    && (method == "resources/read" || resource_links::may_link(answer)) =>
            {
                let found = resource_links::in_result(method, answer.text(), result);
                if found.is_empty() {
                    return Vec::new();
                }
                let catalog = self.catalog();
                let linked = found.into_iter().map(|(span, uri)| (span, catalog.link(upstream.name(), &uri)));
                linked.filter_map(|(span, uri)| Some((span, quote(&uri?)))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What follows from an answer beside that, and what must be changed in it. What the server does not tell of is not
    /// counted as a wish; and another log level may be wanted by now than the one that it was asked for.
    fn settle(
        &self,
        upstream: &Upstream,
        pending: &Pending<Caller>,
        answer: &Message<'_>,
    ) -> Vec<(Span, String)> {
        match (&pending.caller, &*pending.method) {
            (Caller::Session(client, ..), "tools/call") => self.note_task(client, upstream, answer),
            (Caller::Session(client, ..), "tasks/list") if upstream.instance().is_none() => {
                return self.only_own_tasks(client, upstream, answer);
            }
            (Caller::Session(client, id, ..), "resources/subscribe") => {
                self.settle_subscription(client, upstream, id.number(), answer.error().is_none());
            }
            (Caller::Ignored, "logging/setLevel") => match upstream.instance() {
                None => self.send_level(upstream),
                Some(private) => {
                    private
                        .client
                        .upgrade()
                        .iter()
                        .for_each(|client| self.send_level_to_instance(client, upstream));
                }
            },
            _ => {}
        }
        Vec::new()
    }

    /// A session is gone: servers need not tell what nobody wants to hear.
    pub fn unsubscribe_all(&self, client: &Session) {
        let _ordered = self.subscription_order();
        let unwanted = {
            let mut subscriptions = self.subscriptions();
            let unwanted = subscriptions.leave(client.id());
            pay_subscriptions(&subscriptions, client, 0);
            unwanted
        };
        for (server, own) in unwanted {
            let upstream = self.catalog().server(&server);
            if let Some(upstream) = upstream.filter(|upstream| upstream.instance_pool().is_none()) {
                let params = uri_params(&own);
                upstream.tell(Instant::now(), "resources/unsubscribe", &params, self.config.timeout_rpc);
            }
        }
    }

    /// A server is back: it is asked anew for the log level of its sessions. Gives the resources that it is to be asked for
    /// as well.
    pub fn pending_subscriptions(&self, upstream: &Arc<Upstream>) -> Vec<String> {
        let _ordered = self.subscription_order();
        if upstream.instance_pool().is_some() {
            // The processes that knew it are gone with the old link.
            let subscribed = self.subscriptions().sessions_of(upstream.name());
            for session in subscribed {
                let client = self.sessions().peek(&session).cloned();
                if let Some(client) = client.filter(|client| client.is_initialized())
                    && let Err(why) = self.instance_for(&client, upstream)
                {
                    let (name, why) = (client.name(), declined(why, upstream.name()).1);
                    let line = format_args!("client {name} hears no changes: {why}");
                    self.log_throttled(log::Level::Warn, "no_changes", upstream.name(), LOG_GROUPS, line);
                }
            }
            return Vec::new();
        }
        upstream.forget_level();
        self.send_level(upstream);
        // Sessions at its own endpoint have seen it before, when it may have offered something else.
        for kind in [ListKind::Tool, ListKind::Prompt, ListKind::Resource] {
            if upstream.has(kind.capability()) {
                self.notify_aggregate(upstream, &jsonrpc::notification(kind.changed(), None));
            }
        }
        self.subscriptions().of_server(upstream.name())
    }

    /// Asks a server for the first of these resources, as long as only a few such requests are under way: there may be more
    /// of them than calls and frames have room.
    pub fn resubscribe(&self, now: Instant, upstream: &Upstream, wishes: &mut VecDeque<String>) {
        if wishes.is_empty() {
            return;
        }
        // Nobody takes a wish back between the look and the request.
        let _ordered = self.subscription_order();
        let is_wish = |pending: &Pending<Caller>| {
            matches!(pending.caller, Caller::Ignored) && &*pending.method == "resources/subscribe"
        };
        loop {
            let under_way = upstream.mux().count(is_wish);
            if under_way >= limits::WISHES {
                return;
            }
            let Some(own) = wishes.pop_front() else { return };
            let wanted = self.subscriptions().is_wanted(upstream.name(), &own);
            if wanted && !upstream.subscribe(now, &own, self.config.timeout_rpc) {
                wishes.push_front(own);
                return;
            }
        }
    }

    /// Tells the sessions at a server's own endpoint that a list changed.
    fn notify_aggregate(&self, upstream: &Upstream, notification: &str) {
        for client in self.own_audience(upstream.name()) {
            client.notice(notification, &self.stats);
        }
    }

    /// The state of a task: to those whose it is.
    fn broadcast_task(&self, upstream: &Upstream, message: &Message<'_>) {
        let Ok(id) = string_param(message, &["taskId"]) else { return };
        let id = id.map(|(_, id)| id);
        for client in self.own_audience(upstream.name()) {
            if self.may_see_task(client.principal(), upstream, id.as_deref()) {
                client.send(message.splice(&[]), &self.stats);
            }
        }
    }

    /// The initialized sessions at a server's own endpoint.
    fn own_audience(&self, server: &str) -> Vec<Arc<Session>> {
        self.sessions().at(Some(server)).filter(|client| client.is_initialized()).cloned().collect()
    }

    /// Asks a server for log messages from the lowest level that anybody wants.
    pub fn send_level(&self, upstream: &Upstream) {
        let lowest = self.sessions().lowest_level(upstream.name());
        if let Some(level) = lowest.filter(|_| upstream.has("logging")) {
            upstream.tell_level(Instant::now(), level, self.config.timeout_rpc);
        }
    }

    /// A shared server's notification that belongs to no call: to the sessions that it is for.
    pub fn broadcast(&self, upstream: &Upstream, message: &Message<'_>) {
        if upstream.instance_pool().is_some() {
            // Sessions hear of their own processes; this one only says what the server offers.
            return;
        }
        match message.method() {
            "notifications/message" => {
                let Some(level) = Level::of(message) else { return };
                let clients: Vec<Arc<Session>> =
                    self.sessions().with_level(upstream.name(), level).cloned().collect();
                for client in clients.iter().filter(|client| client.is_initialized()) {
                    client.send(message.splice(&[]), &self.stats);
                }
            }
            "notifications/resources/updated" => self.broadcast_update(upstream, message, None),
            "notifications/tasks/status" => self.broadcast_task(upstream, message),
            method if method.ends_with("/list_changed") => {
                self.notify_aggregate(upstream, &message.splice(&[]))
            }
            _ => {
                for client in self.own_audience(upstream.name()) {
                    client.send(message.splice(&[]), &self.stats);
                }
            }
        }
    }

    /// To subscribers only (or to this one), each under the URI that it knows.
    pub fn broadcast_update(&self, upstream: &Upstream, message: &Message<'_>, only: Option<&Session>) {
        let Ok(Some((span, updated))) = string_param(message, &["uri"]) else { return };
        let subscribers = self.subscriptions().of_update(upstream.name(), &updated);
        for subscriber in subscribers {
            if only.is_some_and(|only| only.id() != subscriber.session) {
                continue;
            }
            let client = self.sessions().peek(&subscriber.session).cloned();
            let Some(client) = client.filter(|client| client.is_initialized()) else { continue };
            // A resource that is exposed under another URI, or one below it.
            let uri = match subscriber.uri.split_once('+') {
                Some((name, _)) if name == upstream.name() && !updated.starts_with(&subscriber.uri) => {
                    quote(&format!("{name}+{updated}"))
                }
                _ => quote(&updated),
            };
            client.send(message.splice(&[(span.clone(), &uri)]), &self.stats);
        }
    }
}
