//! Messages of servers: to which call, session or state each belongs.

use std::{sync::Arc, time::Instant};

use super::{
    conclusion::{Conclusion, RoundContext, StatelessContext, Tasks},
    effect::{Effects, Text},
    error::{CallError, NO_MEMORY, ServerRequestError, modern_error},
    incoming::Notice,
    instance::{Caller, ClientCall, Initialized, Origin, Owner},
    key::{Asker, InstanceKey, SessionKey},
    listen,
    mux::Pending,
    peers::Responder,
    state::Hub,
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::{self, Kind, Malformed, Message, Span, decimal, edit, tolerant::Unusable},
    limits,
    mcp::{
        Era, compat,
        discovery::{Discovery, Question},
        listing::ListKind,
        log_level::Level,
        stateless::Allowed,
    },
    queue::{Room, SendError},
    tunnel::close::CloseReason,
};

/// What the caller does with a message once the hub is unlocked.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would be an allocation for each call")]
pub enum Next<'m> {
    /// Nothing.
    Done,
    /// Deliver the response.
    Conclude(Conclusion<'m>),
    /// Give it to the discovery, and the outcome to [`Hub::discovered`].
    Discover(Box<Discovery>, Question),
    /// Parse the result, and give it to [`Hub::instance_initialized`].
    Initialize,
    /// Make a question of the request, for a client that may be asked this, and give it to
    /// [`Hub::asked`].
    Ask(Allowed),
}

impl Hub {
    /// Handles a message of a process.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    pub fn on_message<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        (message, notice): (&'m Message<'m>, &Notice),
        fx: &mut Effects<'m>,
    ) -> Result<Next<'m>, CloseReason> {
        let next = match (message.kind(), from.channel) {
            (Kind::Response, _) => self.on_response(now, from, message, fx),
            (_, None) => {
                self.on_shared_message(now, from, (message, notice), fx)?;
                Next::Done
            }
            (_, Some(_)) => match self.owner_of(from) {
                Some(Owner::Lease(allowed)) if is_question(message) => Next::Ask(allowed),
                Some(Owner::Principal | Owner::Lease(_)) => {
                    self.on_leased_message(now, from, (message, notice), fx);
                    Next::Done
                }
                Some(Owner::Session(session)) => {
                    self.on_instance_message(now, from, session, (message, notice), fx);
                    Next::Done
                }
                None => Next::Done,
            },
        };
        self.set_timer(from.upstream, fx);
        Ok(next)
    }

    /// Returns whom an isolated instance serves.
    fn owner_of(&self, instance: InstanceKey) -> Option<Owner> {
        let pool = self.upstreams.get(&instance.upstream)?.pool.as_ref()?;
        pool.open.get(&instance.channel?)?.isolated().map(|isolated| isolated.owner)
    }

    /// Returns the session that an isolated instance serves, if it serves one.
    pub(super) fn session_of(&self, instance: InstanceKey) -> Option<SessionKey> {
        match self.owner_of(instance)? {
            Owner::Session(session) => Some(session),
            Owner::Principal | Owner::Lease(_) => None,
        }
    }

    fn on_response<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        message: &'m Message<'m>,
        fx: &mut Effects<'m>,
    ) -> Next<'m> {
        let Some((instance, link)) = self.process(from) else { return Next::Done };
        let id = message.id().and_then(decimal);
        let Some((id, pending)) = id.and_then(|id| Some((id, instance.close(id)?))) else {
            link.log_unmatched(now, message, fx);
            self.stats.unmatched.add();
            return Next::Done;
        };
        if pending.is_suspended() {
            self.keep_response(now, from, message.text(), fx);
            return Next::Done;
        }
        self.has_left(now, from, &pending.caller, fx);
        let round = self.round_context(id, &pending);
        match pending.caller {
            Caller::Discovery(question) => {
                let listing = self.upstreams.get_mut(&from.upstream).map(|upstream| &mut upstream.listing);
                let discovery = listing.and_then(|listing| listing.answered(question));
                discovery.map_or(Next::Done, |discovery| Next::Discover(Box::new(discovery), question))
            }
            Caller::Initialize => Next::Initialize,
            Caller::Subscribe(subscription) => {
                self.settle_subscribed(&subscription, message.error().is_none(), fx);
                self.resubscribe(now, from.upstream, fx);
                Next::Done
            }
            // An isolated process is not listened to again.
            Caller::Listen if from.channel.is_some() => Next::Done,
            Caller::Listen => {
                self.on_listen_response(now, from.upstream, (id, listen::outcome(message)), fx);
                Next::Done
            }
            Caller::Ignored => {
                self.on_own_response(now, from, &pending.method, fx);
                Next::Done
            }
            Caller::Client(call) => {
                let conclusion = self.conclude(now, from, (call, pending.method, round), message);
                self.resubscribe(now, from.upstream, fx);
                Next::Conclude(conclusion)
            }
        }
    }

    /// Handles the response to a request that was sent for its effect.
    fn on_own_response(&mut self, now: Instant, from: InstanceKey, method: &str, fx: &mut Effects<'_>) {
        if method == "logging/setLevel" {
            // Another level may be wanted by now.
            match from.channel {
                None => self.send_level(now, from.upstream, fx),
                Some(_) => self.send_level_to_instance(now, from, fx),
            }
        }
        self.resubscribe(now, from.upstream, fx);
    }

    /// Takes the response to a client's call out of the tables.
    pub fn conclude<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        (call, method, round): (ClientCall, Box<str>, Option<Box<RoundContext>>),
        message: &'m Message<'m>,
    ) -> Conclusion<'m> {
        if let (Origin::Session(session, id), "resources/subscribe") = (&call.origin, &*method) {
            // A refused subscription is not counted.
            self.settle_subscription(*session, from.upstream, id.number(), message.error().is_none());
        }
        let upstream = self.upstreams.get(&from.upstream);
        let initialized = upstream.and_then(|upstream| upstream.instance(from.channel)?.initialized());
        let (mut versions, mut sees_all, mut stateless) = (None, false, None);
        // The process of a kept response may have ended since.
        let initialized = initialized.or_else(|| match &call.origin {
            Origin::Stateless(_) => upstream?.shared.initialized(),
            Origin::Session(..) => None,
        });
        match &call.origin {
            Origin::Stateless(call) => {
                sees_all = call.sees_all;
                let known = upstream.zip(initialized);
                stateless = known.map(|(upstream, initialized)| {
                    let limits = self.config.limits.stateless.clone();
                    let sealing = self.config.sealing.clone();
                    let expires = now.saturating_duration_since(sealing.started) + limits.state_time;
                    let (stamp, run) = (initialized.stamp.clone(), upstream.instance_run(from.channel));
                    Box::new(StatelessContext { stamp, sealing, run, expires, limits })
                });
            }
            Origin::Session(session, id) => {
                if let Some(session) = self.clients.get_mut(session) {
                    if round.is_none() {
                        session.calls.end(id);
                    }
                    sees_all = session.sees_all();
                    versions = initialized
                        .filter(|_| compat::concerns(&session.info.version))
                        .map(|initialized| (session.info.version.clone(), initialized.version.clone()));
                }
            }
        }
        let has_tasks =
            from.channel.is_none() && upstream.is_some_and(|upstream| upstream.shared.has_tasks());
        let server = upstream.map_or_else(|| Arc::from(""), |upstream| upstream.link.name().clone());
        let era = initialized.map_or(Era::Legacy, |initialized| initialized.era);
        Conclusion {
            message,
            call,
            method,
            from,
            server,
            era,
            stateless,
            round,
            versions,
            sees_all,
            has_tasks,
        }
    }

    /// Looks up what the response to a client's call mentions. Returns the changes to make in it.
    ///
    /// # Errors
    /// The client gets this error instead.
    pub fn resolve(
        &mut self,
        now: Instant,
        conclusion: &Conclusion<'_>,
        found: Mentions,
    ) -> Result<Vec<(Span, String)>, CallError> {
        let Mentions { tasks, links, initialized } = found;
        let (session, from) = (conclusion.call.session(), conclusion.from);
        if let Some(initialized) = initialized {
            let version = initialized.version.clone();
            let stored = self.process(from).map(|(instance, _)| instance.set_initialized(initialized));
            if let Some(Err(_)) = stored {
                self.stats.memory_refusals.add();
                return Err(CallError::NoMemory);
            }
            if let Some(session) = session.and_then(|session| self.clients.get_mut(&session)) {
                session.initialized(now, &version);
                self.last_reader = self.last_reader.max(Some(now));
            }
        }
        let mut edits = match session {
            Some(session) => self.settle_tasks(session, from.upstream, tasks, conclusion.message)?,
            None => Vec::new(),
        };
        let name = self.name_of(from.upstream);
        let linked = links.into_iter().map(|(span, uri)| (span, self.catalog.link(&name, &uri)));
        edits.extend(linked.filter_map(|(span, uri)| Some((span, jsonrpc::quote(&uri?)))));
        Ok(edits)
    }

    /// Fails a request with an error from the gateway.
    pub(super) fn fail(&mut self, pending: Pending<Caller>, why: &CallError, fx: &mut Effects<'_>) {
        let call = match pending.caller {
            Caller::Client(call) => call,
            Caller::Subscribe(subscription) => return self.settle_subscribed(&subscription, false, fx),
            _ => return,
        };
        self.forget_round(&call);
        let error = match &call.origin {
            Origin::Stateless(_) => modern_error(why),
            Origin::Session(session, id) => {
                if let Some(session) = self.clients.get_mut(session) {
                    session.calls.end(id);
                }
                why.rpc()
            }
        };
        let response = error.response(call.id());
        fx.fail(call.responder, error.code, response);
    }

    /// Handles a response that cannot be used: fails the request that it belongs to.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    pub fn on_unusable(
        &mut self,
        now: Instant,
        from: InstanceKey,
        answer: &Unusable,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some((instance, link)) = self.process(from) else { return Ok(()) };
        link.log_unusable(now, answer, fx);
        let server = link.name().clone();
        let Some(pending) = instance.close_unusable(answer) else { return Ok(()) };
        if pending.is_suspended() {
            let why = CallError::InvalidResponse { server: server.to_string(), why: answer.why };
            self.keep_response(now, from, &modern_error(&why).response("null"), fx);
            return Ok(());
        }
        self.has_left(now, from, &pending.caller, fx);
        match pending.caller {
            Caller::Discovery(question) => {
                self.on_unusable_discovery(now, from.upstream, (question, answer), fx)?
            }
            Caller::Initialize => {
                let why = format!("invalid response to initialize: {}", answer.why);
                self.end_instance(now, from, &why, true, fx);
            }
            Caller::Listen => {
                if from.channel.is_none()
                    && let Some(id) = answer.id.as_deref().and_then(decimal)
                {
                    self.on_listen_response(now, from.upstream, (id, Err(None)), fx);
                }
            }
            Caller::Ignored | Caller::Subscribe(_) | Caller::Client(_) => {
                let why = CallError::InvalidResponse { server: server.to_string(), why: answer.why };
                self.fail(pending, &why, fx);
            }
        }
        self.set_timer(from.upstream, fx);
        Ok(())
    }

    /// Counts and logs text of a process that is not a message, with the defect if the whole text
    /// has one.
    pub fn on_noise(
        &mut self,
        now: Instant,
        from: InstanceKey,
        malformed: Option<Malformed>,
        fx: &mut Effects<'_>,
    ) {
        let stats = self.stats.clone();
        if let Some((_, link)) = self.process(from) {
            link.on_noise(now, malformed, &stats, fx);
        }
    }

    /// Logs a message with a member whose name differs only in case from a JSON-RPC member.
    pub fn on_twin(&mut self, now: Instant, from: InstanceKey, fx: &mut Effects<'_>) {
        if let Some((_, link)) = self.process(from) {
            link.log_twin(now, fx);
        }
    }

    /// Handles a request or notification of the process that all sessions share.
    fn on_shared_message<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        (message, notice): (&'m Message<'m>, &Notice),
        fx: &mut Effects<'m>,
    ) -> Result<(), CloseReason> {
        match (message.kind(), notice) {
            (Kind::Request, _) => self.answer_server(from, message, fx),
            (_, Notice::Progress(span)) => {
                self.on_progress(now, from, message, span.clone(), fx);
                Ok(())
            }
            (_, Notice::Log(level)) if self.is_modern(from.upstream) => {
                self.on_call_log(from, (message, *level), fx);
                Ok(())
            }
            _ if self.is_modern(from.upstream)
                && self.on_listen_notice(now, from.upstream, (message, notice), fx) =>
            {
                Ok(())
            }
            _ => {
                self.broadcast(from.upstream, message, notice, fx);
                self.on_list_changed(now, from.upstream, message.method(), fx)
            }
        }
    }

    /// Returns whether the shared process of a server is modern.
    pub(super) fn is_modern(&self, server: UpstreamKey) -> bool {
        self.upstreams.get(&server).is_some_and(|upstream| upstream.shared.is_modern())
    }

    /// Forwards a log message to the one call for which its process may send some.
    fn on_call_log<'m>(
        &mut self,
        from: InstanceKey,
        (message, level): (&'m Message<'m>, Option<Level>),
        fx: &mut Effects<'m>,
    ) {
        let upstream = self.upstreams.get(&from.upstream);
        let call = upstream.and_then(|upstream| upstream.instance(from.channel)?.logged_call());
        let Some(call) = call else { return self.stats.unmatched.add() };
        let wanted = match &call.origin {
            Origin::Stateless(call) => call.level,
            Origin::Session(session, _) => self.clients.get(session).and_then(|session| session.info.level),
        };
        if level.zip(wanted).is_some_and(|(level, wanted)| level >= wanted) {
            fx.send(call.responder.clone(), Text::Of(message, Vec::new()));
        }
    }

    /// Answers a request of a shared server, which cannot be attributed to a client: `ping` gets a
    /// result, everything else an error.
    fn answer_server(
        &mut self,
        from: InstanceKey,
        message: &Message<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get(&from.upstream) else { return Ok(()) };
        let id = message.id().unwrap_or_default();
        let answer = match message.method() {
            "register" if upstream.reads_status_frames => {
                return Err(CloseReason::new(1008, "a second registration on one link"));
            }
            "ping" => jsonrpc::result(id, "{}"),
            other => ServerRequestError::UnknownMethod(other.to_owned()).rpc().response(id),
        };
        let _ = upstream.link.queue(None, answer, Room::Reserved, fx);
        Ok(())
    }

    /// Forwards progress of a shared process to the call that it belongs to; the token is the
    /// gateway's id of the call.
    fn on_progress<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        message: &'m Message<'m>,
        span: Option<Span>,
        fx: &mut Effects<'m>,
    ) {
        let Some((instance, link)) = self.process(from) else { return };
        let id = span.clone().and_then(|span| decimal(&message.text()[span]));
        let pending = id.and_then(|id| Some((id, instance.mux().get(id)?)));
        if pending.is_some_and(|(_, pending)| pending.is_suspended()) {
            // Its client is away.
            return;
        }
        let known =
            pending.and_then(|(id, pending)| Some((id, client_call(pending), pending.token()?.to_owned())));
        let Some((id, responder, token)) = known else {
            link.log_unmatched(now, message, fx);
            return self.stats.unmatched.add();
        };
        instance.progressed(now, id);
        if let (Some(responder), Some(span)) = (responder, span) {
            fx.send(responder, Text::Of(message, vec![(span, token)]));
        }
    }

    /// Handles a request or notification of a session's instance.
    fn on_instance_message<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        session: SessionKey,
        (message, notice): (&'m Message<'m>, &Notice),
        fx: &mut Effects<'m>,
    ) {
        match (message.kind(), notice) {
            (Kind::Request, _) if message.method() == "ping" => {
                let answer = jsonrpc::result(message.id().unwrap_or_default(), "{}");
                self.answer_instance(now, from, answer, fx);
            }
            (Kind::Request, _) => self.forward_server_request(now, from, session, message, fx),
            (_, Notice::Cancelled(None) | Notice::Progress(None)) => {}
            (_, Notice::Cancelled(Some(span))) => {
                let Some(session) = self.clients.get_mut(&session) else { return };
                let request_id = &message.text()[span.clone()];
                let number =
                    session.server_requests.cancel(|asker| *asker == Asker::Instance(from), request_id);
                if let Some(number) = number {
                    let cancellation = edit::cancellation(message, span.clone(), number);
                    self.send_to_client(from, cancellation);
                }
            }
            (_, Notice::Progress(Some(span))) => {
                self.on_instance_progress(now, from, session, (message, span.clone()), fx);
            }
            (_, Notice::Updated(updated, _)) if self.sees_all(session) => {
                self.broadcast_update(from.upstream, message, updated.as_ref(), Some(session), fx);
            }
            (_, Notice::Log(_)) => {
                // To the stream of the newest call, if there is one.
                let text = Text::Of(message, Vec::new());
                match self.newest_responder(from) {
                    Some(responder) => fx.send(responder, text),
                    None => self.deliver_to(session, text, fx),
                }
            }
            _ => self.deliver_to(session, Text::Of(message, Vec::new()), fx),
        }
    }

    /// Handles a request or notification of a principal's process. What names neither a call nor a
    /// list has no client, and is dropped.
    fn on_leased_message<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        (message, notice): (&'m Message<'m>, &Notice),
        fx: &mut Effects<'m>,
    ) {
        let id = message.id().unwrap_or_default();
        match (message.kind(), notice) {
            (Kind::Request, _) => {
                let answer = match message.method() {
                    "ping" => jsonrpc::result(id, "{}"),
                    other => ServerRequestError::UnknownMethod(other.to_owned()).rpc().response(id),
                };
                self.answer_instance(now, from, answer, fx);
            }
            (_, Notice::Progress(span)) => self.on_progress(now, from, message, span.clone(), fx),
            (_, Notice::Log(level)) => self.on_call_log(from, (message, *level), fx),
            (_, Notice::ListChanged(id)) => {
                if let Some(kind) = ListKind::of_notification(message.method()) {
                    self.report_own_list(from, kind, *id, fx);
                }
            }
            (_, Notice::Cancelled(Some(span))) => self.parked.withdraw(from, &message.text()[span.clone()]),
            _ => {}
        }
    }

    fn sees_all(&self, session: SessionKey) -> bool {
        self.clients.get(&session).is_some_and(|session| session.sees_all())
    }

    fn deliver_to<'m>(&self, session: SessionKey, text: Text<'m>, fx: &mut Effects<'m>) {
        if let Some(session) = self.clients.get(&session) {
            fx.deliver(vec![session.stream.clone()], text);
        }
    }

    /// Sends an instance a response, whether it is initialized or not. Best effort: dropped if the
    /// link's queue is full.
    pub(super) fn answer_instance(
        &mut self,
        now: Instant,
        to: InstanceKey,
        answer: String,
        fx: &mut Effects<'_>,
    ) {
        if let Some((_, link)) = self.process(to) {
            let _ = link.send(now, to.channel, answer, fx);
        }
    }

    /// Handles the parsed response of an instance to the gateway's `initialize`. `Err` holds the
    /// message of its error response.
    pub fn instance_initialized(
        &mut self,
        now: Instant,
        from: InstanceKey,
        initialized: Result<Initialized, String>,
        fx: &mut Effects<'_>,
    ) {
        let initialized = match initialized {
            Ok(initialized) => initialized,
            Err(why) => return self.end_instance(now, from, &format!("initialize failed: {why}"), true, fx),
        };
        let Some((instance, _)) = self.process(from) else { return };
        if instance.set_initialized(initialized).is_err() {
            self.stats.memory_refusals.add();
            return self.end_instance(now, from, NO_MEMORY, true, fx);
        }
        let first = self.first_requests(now, from);
        let Some((instance, link)) = self.process(from) else { return };
        let (lost, server) = (instance.on_initialized(link, now, first, fx), link.name().clone());
        for pending in lost {
            self.has_left(now, from, &pending.caller, fx);
            self.fail(pending, &CallError::declined(super::error::Declined::Link, &server), fx);
        }
        self.set_timer(from.upstream, fx);
    }

    /// Forwards a progress notification to the call with this token. A task's token outlives its
    /// call, so at a server's own endpoint an unknown token goes to the session's stream.
    fn on_instance_progress<'m>(
        &mut self,
        now: Instant,
        from: InstanceKey,
        session: SessionKey,
        (message, span): (&'m Message<'m>, Span),
        fx: &mut Effects<'m>,
    ) {
        let Some((instance, _)) = self.process(from) else { return };
        let found = instance.mux().of_token(&message.text()[span.clone()]);
        let found =
            found.and_then(|(id, pending)| Some((id, client_call(pending)?, pending.token()?.to_owned())));
        match found {
            Some((id, responder, client_token)) => {
                instance.progressed(now, id);
                fx.send(responder, Text::Of(message, vec![(span, client_token)]));
            }
            None if !self.sees_all(session) => self.deliver_to(session, Text::Of(message, Vec::new()), fx),
            None => self.stats.unmatched.add(),
        }
    }

    /// Forwards an instance's request to its client, under an id of the gateway: each instance
    /// numbers its own requests.
    fn forward_server_request(
        &mut self,
        now: Instant,
        from: InstanceKey,
        session: SessionKey,
        message: &Message<'_>,
        fx: &mut Effects<'_>,
    ) {
        let id = message.id().unwrap_or_default();
        if let Err(why) = self.pass_server_request(now, from, session, message) {
            // Best effort: a server that floods its link with requests may miss a response.
            self.answer_instance(now, from, why.rpc().response(id), fx);
        }
    }

    fn pass_server_request(
        &mut self,
        now: Instant,
        from: InstanceKey,
        session: SessionKey,
        message: &Message<'_>,
    ) -> Result<(), ServerRequestError> {
        let id = message.id().unwrap_or_default();
        if id.len() > limits::ID_BYTES {
            return Err(ServerRequestError::IdTooLong);
        }
        let Some(session) = self.clients.get_mut(&session) else { return Ok(()) };
        let begun = session.server_requests.begin(now, Asker::Instance(from), id);
        let number = begun.map_err(|_| ServerRequestError::TooMany)?;
        let number = number.to_string();
        if !self.send_to_client(from, message.with_id(&number)) {
            if let Some(session) = self.session_of(from).and_then(|session| self.clients.get_mut(&session)) {
                session.server_requests.end(&number);
            }
            return Err(ServerRequestError::NotRead);
        }
        Ok(())
    }

    /// Sends the client of an instance a request, or the cancellation of one. On the session's
    /// stream it waits until the client reads. Returns false if too much is queued for the client
    /// already. A cancellation may be lost: the client's response is then dropped as unmatched.
    pub(super) fn send_to_client(&self, instance: InstanceKey, text: String) -> bool {
        if let Some(responder) = self.newest_responder(instance) {
            return responder.request(text);
        }
        let session = self.session_of(instance).and_then(|session| self.clients.get(&session));
        session.is_some_and(|session| session.stream.request(text, &self.stats))
    }

    /// Returns the responder of the newest call whose client still reads, because a message does
    /// not say which call it belongs to. `initialize` is skipped: before its response a client
    /// accepts no other messages.
    fn newest_responder(&self, instance: InstanceKey) -> Option<Arc<dyn Responder>> {
        let pool = self.upstreams.get(&instance.upstream)?.pool.as_ref()?;
        pool.open.get(&instance.channel?)?.mux().newest(|pending| match &pending.caller {
            Caller::Client(call) if !call.responder.is_closed() && &*pending.method != "initialize" => {
                Some(call.responder.clone())
            }
            _ => None,
        })
    }

    /// Takes the request that a client's response answers; `id` is as the client wrote it. Returns who
    /// has asked, and an instance's own id.
    pub fn take_server_request(&mut self, session: SessionKey, id: &str) -> Option<(Asker, Box<str>)> {
        self.clients.get_mut(&session)?.server_requests.end(id)
    }

    /// Sends an instance the response to its request `own_id`.
    pub fn answer_server_request(
        &mut self,
        now: Instant,
        (to, own_id): (InstanceKey, &str),
        answer: Result<String, ServerRequestError>,
        fx: &mut Effects<'_>,
    ) {
        let Some((_, link)) = self.process(to) else { return };
        let answer = answer.and_then(|answer| match link.excess(to.channel, &answer) {
            Some(why) => Err(ServerRequestError::Declined { why, server: link.name().to_string() }),
            None => Ok(answer),
        });
        let answer = answer.unwrap_or_else(|why| why.rpc().response(own_id));
        if matches!(link.send(now, to.channel, answer, fx), Err(SendError::Full | SendError::Memory)) {
            // The server would wait for the response forever.
            self.end_instance(now, to, "the link is congested", true, fx);
        }
    }
}

/// What the response to a client's call mentions and the hub must look up.
#[derive(Debug)]
pub struct Mentions {
    /// Tasks.
    pub tasks: Tasks,
    /// URIs that may lead a client of the aggregate to another server.
    pub links: Vec<crate::mcp::resource_links::ResourceLink>,
    /// A result of `initialize`.
    pub initialized: Option<Initialized>,
}

/// Whether the message is a request that a client may be asked.
fn is_question(message: &Message<'_>) -> bool {
    message.kind() == Kind::Request && message.method() != "ping"
}

/// Returns where the response to a client's call goes.
fn client_call(pending: &Pending<Caller>) -> Option<Arc<dyn Responder>> {
    match &pending.caller {
        Caller::Client(call) => Some(call.responder.clone()),
        _ => None,
    }
}
