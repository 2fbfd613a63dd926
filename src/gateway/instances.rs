//! Isolated sessions: each has its own instance of the server, which starts when the session first
//! needs it and ends with the session.
//!
//! An instance serves only one session, so its requests and notifications go to that session, and
//! the session's notifications go to it. At the endpoint of one server the client's own
//! `initialize` starts the instance. At the aggregate the gateway initializes an instance of each
//! server that the session uses, with the client's capabilities.
//!
//! Lock order: first a session's instances (`instances`), then a server's channels or the
//! subscriptions. No other lock is taken while one of a session's or a server's tables is held,
//! except for a session's calls and, under that, the mux.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{convert::Infallible, sync::Arc, time::Instant};

use super::{
    Gateway,
    session::Session,
    upstream::{Caller, Upstream, uri_params},
};
use crate::{
    hub::{
        error::{Declined, NO_MEMORY, ServerRequestError},
        incoming::{self, Part},
        mux::Routed,
        peers::Responder,
        session::Scope,
    },
    jsonrpc::{
        self, Kind, Malformed, Message, edit,
        tolerant::{self, Unusable},
    },
    limits,
    mcp::discovery::error_text,
    queue::SendError,
    session, util,
};

impl Gateway {
    /// Returns the process that serves a session: the shared server, or the session's own instance,
    /// which is started if need be.
    ///
    /// # Errors
    /// [`Declined`]: the session has ended, an instance limit is reached, or the link takes no more
    /// frames.
    pub fn instance_for(
        &self,
        now: Instant,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
    ) -> Result<Arc<Upstream>, Declined> {
        let Some(pool) = upstream.instance_pool() else { return Ok(upstream.clone()) };
        let mut instances = client.instances();
        if instances.ended {
            return Err(Declined::Session(session::CallRefused::Ended));
        }
        if let Some(key) = instances.by_server.get(upstream.name()) {
            // Its instance may be ending, and so may the earlier registration of the server.
            let channel = key.channel.filter(|_| key.upstream == upstream.key().upstream);
            return channel.and_then(|channel| pool.get(channel)).ok_or(Declined::Gone);
        }
        let whole = *client.scope() == Scope::All;
        let subscriptions = whole.then(|| self.subscriptions().of_session(upstream.name(), client.id()));
        let limits = &self.config.limits.session;
        // The client's calls, and the subscriptions that the gateway restores for the client.
        let max = limits.in_flight + limits.subscriptions;
        let several = self.authn.tokens().have_several_clients();
        let instance = upstream.spawn_instance(pool, client, max, several, subscriptions)?;
        instances.by_server.insert(upstream.name().to_owned(), instance.key());
        drop(instances);
        log::debug!("starting a process for client {} at server '{}'", client.name(), upstream.name());
        if whole {
            let initialize_params = client.info().initialize_params();
            instance.send_initialize(now, &initialize_params, self.config.timeout_run_tool);
        }
        Ok(instance)
    }

    /// Returns the isolated instances of a session that are still there.
    pub fn instances_of(&self, client: &Session) -> Vec<Arc<Upstream>> {
        let keys = client.instances().all();
        keys.into_iter().filter_map(|key| self.upstream(key)).collect()
    }

    /// Handles a message from a session's instance.
    pub fn on_instance_message(&self, now: Instant, instance: &Arc<Upstream>, text: &str) {
        let Some(client) = instance.instance().and_then(|isolated| isolated.client.upgrade()) else { return };
        let each = |part: Part<'_>| -> Result<(), Infallible> {
            match part {
                Part::Message(message) => self.on_valid_instance_message(now, &client, instance, message),
                Part::Unusable(answer) => self.on_unusable_instance_answer(now, instance, answer),
                Part::Noise(malformed) => instance.on_noise(now, malformed, &self.stats),
                Part::Twin => instance.log_twin(now),
                // Only the shared process sends status frames.
                Part::Restarted => {}
            }
            Ok(())
        };
        let Ok(()) = incoming::parts(text, false, each);
    }

    /// Handles a response that cannot be used: fails the request that it belongs to.
    fn on_unusable_instance_answer(&self, now: Instant, instance: &Arc<Upstream>, answer: &Unusable) {
        instance.log_unusable(now, answer);
        if let Some(Caller::Initialize) = instance.fail_unusable(answer, &self.stats) {
            let why = format!("invalid response to initialize: {}", answer.why);
            self.end_instance(now, instance, &why, true);
        }
    }

    fn on_valid_instance_message(
        &self,
        now: Instant,
        client: &Arc<Session>,
        instance: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        match (message.kind(), message.method()) {
            (Kind::Response, _) => self.on_instance_answer(now, client, instance, message),
            (Kind::Request, "ping") => {
                // Best effort: dropped if the link's queue is full.
                let _ = instance.send_now(now, jsonrpc::result(message.id().unwrap_or_default(), "{}"));
            }
            (Kind::Request, _) => self.forward_server_request(now, client, instance, message),
            (Kind::Notification, "notifications/cancelled") => {
                let Ok(Some(span)) = message.param(&["requestId"]) else { return };
                let request_id = &message.text()[span.clone()];
                let number = client.server_requests().cancel(|server| *server == instance.key(), request_id);
                if let Some(number) = number {
                    self.send_server_request(client, instance, edit::cancellation(message, span, number));
                }
            }
            (Kind::Notification, "notifications/progress") => {
                self.on_instance_progress(now, client, instance, message)
            }
            (Kind::Notification, "notifications/resources/updated") if *client.scope() == Scope::All => {
                self.broadcast_update(instance, message, Some(client));
            }
            (Kind::Notification, method) => {
                let related = method == "notifications/message";
                self.to_client(client, instance, message.splice(&[]), related);
            }
        }
    }

    fn on_instance_answer(
        &self,
        now: Instant,
        client: &Arc<Session>,
        instance: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        let step = instance.mux().sort(message);
        match step {
            Ok(Routed::Answer(pending)) if matches!(pending.caller, Caller::Initialize) => {
                match message.result() {
                    Some(result) if instance.set_initialize_result(result).is_err() => {
                        self.stats.memory_refusals.add();
                        self.end_instance(now, instance, NO_MEMORY, true);
                    }
                    Some(_) => {
                        instance.on_initialized(
                            now,
                            self.initial_subscriptions(now, client, instance),
                            &self.stats,
                        );
                    }
                    None => {
                        let why = format!("initialize failed: {}", error_text(message));
                        self.end_instance(now, instance, &why, true);
                    }
                }
            }
            Ok(Routed::Answer(pending)) => self.conclude(now, instance, pending, message),
            _ => {
                self.stats.unmatched.add();
                instance.log_unmatched(now, message);
            }
        }
    }

    /// Returns the requests that restore a client's log level and resource subscriptions at a new
    /// instance.
    fn initial_subscriptions(&self, now: Instant, client: &Session, instance: &Upstream) -> Vec<String> {
        let timeout = self.config.timeout_rpc;
        let level = client.info().level.filter(|_| instance.has("logging"));
        let level = level.and_then(|level| instance.level_request(now, level, timeout));
        let subscriptions =
            instance.instance().map(|isolated| isolated.subscriptions.as_slice()).unwrap_or_default();
        let subscriptions = subscriptions
            .iter()
            .filter_map(|uri| instance.request(now, "resources/subscribe", &uri_params(uri), timeout));
        level.into_iter().chain(subscriptions).collect()
    }

    /// Forwards a progress notification to the call with this token. A task's token outlives its
    /// call, so at a server's own endpoint an unknown token goes to the session's stream.
    fn on_instance_progress(
        &self,
        now: Instant,
        client: &Session,
        instance: &Upstream,
        message: &Message<'_>,
    ) {
        let Ok(Some(span)) = message.param(&["progressToken"]) else { return };
        let token = &message.text()[span.clone()];
        let found = {
            let mut mux = instance.mux();
            let found = mux.of_token(token).and_then(|(id, pending)| match &pending.caller {
                Caller::Session(_, _, responder, _) => {
                    Some((id, responder.clone(), pending.token()?.to_owned()))
                }
                _ => None,
            });
            found.map(|(id, responder, client_token)| {
                mux.progressed(now, id);
                (responder, client_token)
            })
        };
        match found {
            Some((responder, client_token)) => {
                responder.send(edit::progress(message, span, &client_token), &self.stats)
            }
            None if *client.scope() != Scope::All => client.stream().send(message.splice(&[]), &self.stats),
            None => self.stats.unmatched.add(),
        }
    }

    /// Forwards an instance's request to its client, under an id of the gateway: each instance
    /// numbers its own requests.
    fn forward_server_request(
        &self,
        now: Instant,
        client: &Session,
        instance: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        let id = message.id().unwrap_or_default();
        let refuse = |why: ServerRequestError| {
            // Best effort: a server that floods its link with requests may miss a response.
            let _ = instance.send_now(now, why.rpc().response(id));
        };
        if id.len() > limits::ID_BYTES {
            return refuse(ServerRequestError::IdTooLong);
        }
        let request_number = client.server_requests().begin(now, instance.key(), id);
        let Ok(number) = request_number else {
            return refuse(ServerRequestError::TooMany);
        };
        let number = number.to_string();
        if !self.send_server_request(client, instance, message.with_id(&number)) {
            client.server_requests().end(&number);
            refuse(ServerRequestError::NotRead);
        }
    }

    /// Forwards a client's response to the instance that sent the request.
    pub fn on_client_response(&self, now: Instant, client: &Session, message: &Message<'_>) {
        let ended = message.id().and_then(|id| client.server_requests().end(id));
        let ended = ended.and_then(|(key, own)| Some((self.upstream(key)?, own)));
        let Some((instance, own)) = ended else { return self.stats.unmatched.add() };
        let answer = message.with_id(&own);
        let failed = |why: ServerRequestError| why.rpc().response(&own);
        let answer = match instance.excess(&answer) {
            _ if message.has_lone_surrogate() => failed(ServerRequestError::LoneSurrogate),
            Some(why) => failed(ServerRequestError::Declined { why, server: instance.name().to_owned() }),
            None => answer,
        };
        self.send_answer(now, &instance, answer);
    }

    /// Handles a client's message that was refused. If it is the response to an instance's request,
    /// that request fails at once, because no other response will follow.
    pub fn on_refused_client_response(&self, now: Instant, client: &Session, body: &[u8], why: Malformed) {
        let ended = tolerant::answer_id(body).and_then(|id| client.server_requests().end(&id));
        if let Some((instance, own)) = ended.and_then(|(key, own)| Some((self.upstream(key)?, own))) {
            let error = ServerRequestError::InvalidResponse(why).rpc();
            self.send_answer(now, &instance, error.response(&own));
        }
    }

    fn send_answer(&self, now: Instant, instance: &Arc<Upstream>, answer: String) {
        if matches!(instance.send_now(now, answer), Err(SendError::Full | SendError::Memory)) {
            // The server would wait for the response forever.
            self.end_instance(now, instance, "the link is congested", true);
        }
    }

    /// Sends a message to the client: a `related` one to the stream of the newest call, if there is
    /// one, any other to the session's stream.
    fn to_client(&self, client: &Session, instance: &Upstream, text: String, related: bool) {
        match Self::newest_responder(instance).filter(|_| related) {
            Some(responder) => responder.send(text, &self.stats),
            None => client.stream().send(text, &self.stats),
        }
    }

    /// Sends the client a request, or the cancellation of one. On the session's stream it is kept
    /// until the client reads. Returns false if too much is queued for the client already. A
    /// cancellation may be lost: the client's response is then dropped as unmatched.
    fn send_server_request(&self, client: &Session, instance: &Upstream, text: String) -> bool {
        match Self::newest_responder(instance) {
            Some(responder) => responder.request(text),
            None => client.stream().request(text, &self.stats),
        }
    }

    /// Returns the responder of the newest call whose client still reads, because a message does
    /// not say which call it belongs to. `initialize` is skipped: before its response a client
    /// accepts no other messages.
    fn newest_responder(instance: &Upstream) -> Option<Arc<dyn Responder>> {
        instance.mux().newest(|pending| match &pending.caller {
            Caller::Session(_, _, responder, _)
                if !responder.is_closed() && &*pending.method != "initialize" =>
            {
                Some(responder.clone())
            }
            _ => None,
        })
    }

    /// Sends the session's log level to its instance.
    pub fn send_level_to_instance(&self, now: Instant, client: &Session, instance: &Upstream) {
        let Some(level) = client.info().level else { return };
        if instance.has("logging") {
            instance.send_level(now, level, self.config.timeout_rpc);
        }
    }

    /// Handles the edge's report that an instance ended or could not be started.
    pub fn instance_gone(&self, now: Instant, shared: &Upstream, number: u32, reason: &str) {
        let instance = shared.instance_pool().and_then(|pool| pool.get(number));
        if let Some(instance) = instance {
            let reason = format!("its process for this session exited: {}", util::escape::show(reason));
            self.end_instance(now, &instance, &reason, false);
        }
    }

    /// Ends an instance: fails its calls, and closes the session if that is at the server's own
    /// endpoint. `tell`: also tell the edge.
    pub fn end_instance(&self, now: Instant, instance: &Arc<Upstream>, reason: &str, tell: bool) {
        let Some(isolated) = instance.instance() else { return };
        let shared = isolated.shared.upgrade();
        let pool = shared.as_ref().and_then(|shared| shared.instance_pool());
        if pool.is_some_and(|pool| pool.remove(isolated.number)) && tell {
            instance.close_channel(reason);
        }
        instance.fail_all(reason, &self.stats);
        let Some(client) = isolated.client.upgrade() else { return };
        client.server_requests().forget(|server| *server == instance.key());
        let removed = {
            let mut instances = client.instances();
            // The session may have a new instance by now.
            let is_its = instances.by_server.get(instance.name()).is_some_and(|its| *its == instance.key());
            is_its && instances.by_server.remove(instance.name()).is_some()
        };
        if removed && *client.scope() != Scope::All {
            // The instance held the session's state, which is lost.
            self.close(now, &client, reason);
        }
    }

    /// Ends all instances of a session that has ended.
    pub fn end_instances(&self, now: Instant, client: &Session) {
        let instances = {
            let mut table = client.instances();
            table.ended = true;
            std::mem::take(&mut table.by_server)
        };
        for instance in instances.into_values().filter_map(|key| self.upstream(key)) {
            self.end_instance(now, &instance, "the session ended", true);
        }
    }

    /// Ends all instances behind a link that is gone.
    pub fn end_all_instances(&self, now: Instant, shared: &Upstream, reason: &str) {
        let instances = shared.instance_pool().map(|pool| pool.end()).unwrap_or_default();
        for instance in instances {
            self.end_instance(now, &instance, reason, false);
        }
    }

    /// Fails calls to instances that timed out, and ends instances that did not initialize in time.
    /// Cancels instances' requests to clients that were not answered within the timeout of a tool
    /// call: no call lasts longer.
    pub fn expire_instances(&self, shared: &Upstream, now: Instant) {
        let instances = shared.instance_pool().map(|pool| pool.all()).unwrap_or_default();
        for instance in instances {
            if !instance.expire(now, &self.stats).is_empty() {
                self.end_instance(now, &instance, "initialize timed out", true);
                continue;
            }
            let Some(client) = instance.instance().and_then(|isolated| isolated.client.upgrade()) else {
                continue;
            };
            let timeout = self.config.timeout_run_tool;
            let overdue = client.server_requests().overdue(now, timeout, |server| *server == instance.key());
            for (number, request_id) in overdue {
                let error = ServerRequestError::TimedOut.rpc();
                let _ = instance.send_now(now, error.response(&request_id));
                self.send_server_request(
                    &client,
                    &instance,
                    edit::cancelled(number, "the request timed out"),
                );
            }
        }
    }
}
