//! Sessions with a process of their own: opened when a session first needs one, ended with the session.
//!
//! Nobody else is behind such a process, so what it asks and says of its own goes to that session, and the other way
//! round. At the endpoint of one server the client's own `initialize` opens it; at the aggregate the gateway says the
//! client's capabilities to each server that the session touches.
//!
//! Locks, in this order: a client's processes (`instances`), then a server's channels or the subscriptions. No other lock is
//! taken while one of a client's or a server's tables is held, but for a client's calls and the mux in it.

use std::{sync::Arc, time::Instant};

use super::{
    Gateway,
    dispatch::declined,
    responder::{NO_MEMORY, Responder},
    session::{Scope, Session},
    upstream::{Caller, Declined, Upstream, uri_params},
};
use crate::{
    hub::mux::Routed,
    jsonrpc::{
        self, Kind, Malformed, Message, edit,
        tolerant::{self, MessagePart, Unusable},
    },
    limits,
    mcp::discovery::error_text,
    net::outbox::SendError,
    session, util,
};

impl Gateway {
    /// The process that serves a client: the server's only one, or the session's own, opened if need be.
    ///
    /// # Errors
    /// `Declined`: the session has ended, or there are as many as there may be, or the link takes no more.
    pub fn instance_for(
        &self,
        client: &Arc<Session>,
        upstream: &Arc<Upstream>,
    ) -> Result<Arc<Upstream>, Declined> {
        let Some(isolation) = upstream.instance_pool() else { return Ok(upstream.clone()) };
        let mut own = client.instances();
        if own.ended {
            return Err(Declined::Client(session::CallRefused::Ended));
        }
        if let Some(process) = own.by_server.get(upstream.name()) {
            return Ok(process.clone());
        }
        let whole = *client.scope() == Scope::All;
        let wishes = whole.then(|| self.subscriptions().of_session(upstream.name(), client.id()));
        let limits = &self.config.limits.session;
        // Its client's calls, and what the gateway asks for its client.
        let most = limits.in_flight + limits.subscriptions;
        let several = self.authn.tokens().have_several_clients();
        let process = upstream.spawn_instance(isolation, client, most, several, wishes)?;
        own.by_server.insert(upstream.name().to_owned(), process.clone());
        drop(own);
        log::debug!("client {} gets a process of server '{}' of its own", client.name(), upstream.name());
        if whole {
            let hello = client.info().initialize_params();
            process.greet(Instant::now(), &hello, self.config.timeout_run_tool);
        }
        Ok(process)
    }

    /// A message from a session's own process.
    pub fn on_instance_message(&self, now: Instant, process: &Arc<Upstream>, text: &str) {
        let Some(client) = process.instance().and_then(|private| private.client.upgrade()) else { return };
        let take = |text: &str| {
            if let Ok(message) = Message::read(text) {
                self.sound_message(now, &client, process, &message);
            }
        };
        match Message::read(text) {
            // Written on one line from here on, as events have it.
            Ok(message) if message.has_line_breaks() && !message.has_twin() => take(&message.splice(&[])),
            Ok(message) if !message.has_twin() => self.sound_message(now, &client, process, &message),
            odd => {
                if odd.is_ok() {
                    process.log_twin(now);
                }
                for part in tolerant::parts(text.as_bytes()) {
                    match part {
                        MessagePart::Message(text) => take(&text),
                        MessagePart::Unusable(answer) => {
                            self.on_unusable_instance_answer(now, process, &answer)
                        }
                        MessagePart::Noise => {
                            self.stats.unmatched.add();
                            process.log_noise(now, text);
                        }
                    }
                }
            }
        }
    }

    /// The process sent an answer that cannot be used: the request that it was for fails.
    fn on_unusable_instance_answer(&self, now: Instant, process: &Arc<Upstream>, answer: &Unusable) {
        process.log_unusable(now, answer);
        if let Some(Caller::Initialize) = process.fail_unusable(answer, &self.stats) {
            let why = format!("its answer to initialize cannot be used: {}", answer.why);
            self.end_instance(process, &why, true);
        }
    }

    fn sound_message(
        &self,
        now: Instant,
        client: &Arc<Session>,
        process: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        match (message.kind(), message.method()) {
            (Kind::Response, _) => self.on_instance_answer(now, client, process, message),
            (Kind::Request, "ping") => {
                // An edge that asks and does not read gets no more answers.
                let _ = process.send_now(jsonrpc::result(message.id().unwrap_or_default(), "{}"));
            }
            (Kind::Request, _) => self.forward_server_request(now, client, process, message),
            (Kind::Notification, "notifications/cancelled") => {
                let Ok(Some(span)) = message.param(&["requestId"]) else { return };
                let own = &message.text()[span.clone()];
                let number = client.server_requests().cancel(|server| Arc::ptr_eq(server, process), own);
                if let Some(number) = number {
                    self.send_server_request(client, process, edit::cancellation(message, span, number));
                }
            }
            (Kind::Notification, "notifications/progress") => {
                self.on_instance_progress(now, client, process, message)
            }
            (Kind::Notification, "notifications/resources/updated") if *client.scope() == Scope::All => {
                self.broadcast_update(process, message, Some(client));
            }
            (Kind::Notification, method) => {
                let related = method == "notifications/message";
                self.to_client(client, process, message.splice(&[]), related);
            }
        }
    }

    fn on_instance_answer(
        &self,
        now: Instant,
        client: &Arc<Session>,
        process: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        let step = process.mux().sort(message);
        match step {
            Ok(Routed::Answer(pending)) if matches!(pending.caller, Caller::Initialize) => {
                match message.result() {
                    Some(result) if process.greeted(result).is_err() => {
                        self.stats.memory_refusals.add();
                        self.end_instance(process, NO_MEMORY, true);
                    }
                    Some(_) => {
                        process.ready(self.initial_subscriptions(now, client, process), &self.stats);
                    }
                    None => {
                        let why = format!("initialize failed: {}", error_text(message));
                        self.end_instance(process, &why, true);
                    }
                }
            }
            Ok(Routed::Answer(pending)) => self.conclude(process, pending, message),
            _ => {
                self.stats.unmatched.add();
                process.log_stray(now, message);
            }
        }
    }

    /// What the client of a new process has asked for before: its log level, and changes of resources.
    fn initial_subscriptions(&self, now: Instant, client: &Session, process: &Upstream) -> Vec<String> {
        let patience = self.config.timeout_rpc;
        let level = client.info().level.filter(|_| process.has("logging"));
        let level = level.and_then(|level| process.level_request(now, level, patience));
        let wishes = process.instance().map(|private| private.subscriptions.as_slice()).unwrap_or_default();
        let wishes = wishes
            .iter()
            .filter_map(|uri| process.request(now, "resources/subscribe", &uri_params(uri), patience));
        level.into_iter().chain(wishes).collect()
    }

    /// To the call whose token it is. A task's token outlives its call.
    fn on_instance_progress(
        &self,
        now: Instant,
        client: &Session,
        process: &Upstream,
        message: &Message<'_>,
    ) {
        let Ok(Some(span)) = message.param(&["progressToken"]) else { return };
        let token = &message.text()[span.clone()];
        let found = {
            let mut mux = process.mux();
            let found = mux.of_token(token).and_then(|(id, pending)| match &pending.caller {
                Caller::Session(_, _, reply, _) => Some((id, reply.clone(), pending.token()?.to_owned())),
                _ => None,
            });
            found.map(|(id, reply, own)| {
                mux.progressed(now, id);
                (reply, own)
            })
        };
        match found {
            Some((reply, own)) => reply.send(edit::progress(message, span, &own), &self.stats),
            None if *client.scope() != Scope::All => client.send(message.splice(&[]), &self.stats),
            None => self.stats.unmatched.add(),
        }
    }

    /// A question of the process, under an id of ours: each process counts its own.
    fn forward_server_request(
        &self,
        now: Instant,
        client: &Session,
        process: &Arc<Upstream>,
        message: &Message<'_>,
    ) {
        let id = message.id().unwrap_or_default();
        let refuse = |code: i64, why: &str| {
            // A server that asks so much may miss an answer.
            let _ = process.send_now(jsonrpc::error(id, code, why));
        };
        if id.len() > limits::ID_BYTES {
            return refuse(jsonrpc::INVALID_REQUEST, "the request id is too long");
        }
        let asked = client.server_requests().begin(now, process.clone(), id);
        let Ok(number) = asked else {
            return refuse(jsonrpc::BUSY, "the client has too many requests to answer");
        };
        let number = number.to_string();
        if !self.send_server_request(client, process, message.with_id(&number)) {
            client.server_requests().end(&number);
            refuse(jsonrpc::BUSY, "the client does not read what it is asked");
        }
    }

    /// A client's answer to what a process asked it.
    pub fn answered(&self, client: &Session, message: &Message<'_>) {
        let ended = message.id().and_then(|id| client.server_requests().end(id));
        let Some((process, own)) = ended else { return self.stats.unmatched.add() };
        let answer = message.with_id(&own);
        let failed = |why: &str| jsonrpc::error(&own, jsonrpc::INTERNAL_ERROR, why);
        let answer = match process.excess(&answer) {
            _ if message.has_lone_surrogate() => failed("the client's answer has half of a surrogate pair"),
            Some(why) => failed(&declined(why, process.name()).1),
            None => answer,
        };
        self.give_answer(&process, answer);
    }

    /// A client's message is refused. If it is an answer to what a process asked, that fails at once: no other answer comes.
    pub fn answer_refused(&self, client: &Session, body: &[u8], why: Malformed) {
        let ended = tolerant::answer_id(body).and_then(|id| client.server_requests().end(&id));
        if let Some((process, own)) = ended {
            let why = format!("the client's answer cannot be used: {}", why.reason());
            self.give_answer(&process, jsonrpc::error(&own, jsonrpc::INTERNAL_ERROR, &why));
        }
    }

    fn give_answer(&self, process: &Arc<Upstream>, answer: String) {
        if matches!(process.send_now(answer), Err(SendError::Full | SendError::Memory)) {
            // The server would wait for it for ever.
            self.end_instance(process, "the link does not keep up", true);
        }
    }

    /// What belongs to a call goes where its answer goes, all else to the stream for that.
    fn to_client(&self, client: &Session, process: &Upstream, text: String, related: bool) {
        match Self::newest_responder(process).filter(|_| related) {
            Some(reply) => reply.send(text, &self.stats),
            None => client.send(text, &self.stats),
        }
    }

    /// A question to the client, or that it was taken back: such are kept until the client listens. False: too much waits
    /// for the client already. That a question was taken back may be lost: its answer is nobody's then.
    fn send_server_request(&self, client: &Session, process: &Upstream, text: String) -> bool {
        match Self::newest_responder(process) {
            Some(reply) => reply.request(text),
            None => client.keep(text, &self.stats),
        }
    }

    /// The way back of the newest call that is read, as nothing says which call a message of the process belongs to. Before the answer
    /// to `initialize` a client takes nothing.
    fn newest_responder(process: &Upstream) -> Option<Responder> {
        process.mux().newest(|pending| match &pending.caller {
            Caller::Session(_, _, reply, _) if !reply.is_closed() && &*pending.method != "initialize" => {
                Some(reply.clone())
            }
            _ => None,
        })
    }

    /// Asks a session's own process for log messages from the session's level.
    pub fn send_level_to_instance(&self, client: &Session, process: &Upstream) {
        let Some(level) = client.info().level else { return };
        if process.has("logging") {
            process.tell_level(Instant::now(), level, self.config.timeout_rpc);
        }
    }

    /// The edge says that a process is gone, or could not be started.
    pub fn instance_gone(&self, shared: &Upstream, number: u32, reason: &str) {
        let process = shared.instance_pool().and_then(|isolation| isolation.get(number));
        if let Some(process) = process {
            let reason = format!("its process for this session ended: {}", util::escape::show(reason));
            self.end_instance(&process, &reason, false);
        }
    }

    /// Ends a session's own process: its calls fail, and the session is told. `tell`: the edge has to be told as well.
    pub fn end_instance(&self, process: &Arc<Upstream>, reason: &str, tell: bool) {
        let Some(private) = process.instance() else { return };
        let shared = private.shared.upgrade();
        let isolation = shared.as_ref().and_then(|shared| shared.instance_pool());
        if isolation.is_some_and(|isolation| isolation.remove(private.number)) && tell {
            process.close_channel(reason);
        }
        process.fail_all(reason, &self.stats);
        let Some(client) = private.client.upgrade() else { return };
        client.server_requests().forget(|server| Arc::ptr_eq(server, process));
        let removed = {
            let mut own = client.instances();
            // The session may have a new one by now.
            let is_its = own.by_server.get(process.name()).is_some_and(|its| Arc::ptr_eq(its, process));
            is_its && own.by_server.remove(process.name()).is_some()
        };
        if removed && *client.scope() != Scope::All {
            // The session was the process's; what it knew is lost.
            self.close(&client, reason);
        }
    }

    /// Ends all processes of a session that has ended.
    pub fn end_instances(&self, client: &Session) {
        let processes = {
            let mut own = client.instances();
            own.ended = true;
            std::mem::take(&mut own.by_server)
        };
        for process in processes.values() {
            self.end_instance(process, "the session ended", true);
        }
    }

    /// The link of a server is gone, and all processes behind it.
    pub fn end_all_instances(&self, shared: &Upstream, reason: &str) {
        let processes = shared.instance_pool().map(|isolation| isolation.end()).unwrap_or_default();
        for process in processes {
            self.end_instance(&process, reason, false);
        }
    }

    /// Fails what took too long in the processes of single sessions, and takes back what they asked too long ago: no call
    /// lasts longer than that.
    pub fn expire_instances(&self, shared: &Upstream, now: Instant) {
        let processes = shared.instance_pool().map(|isolation| isolation.all()).unwrap_or_default();
        for process in processes {
            if !process.expire(now, &self.stats).is_empty() {
                self.end_instance(&process, "it was not initialized in time", true);
                continue;
            }
            let Some(client) = process.instance().and_then(|private| private.client.upgrade()) else {
                continue;
            };
            let patience = self.config.timeout_run_tool;
            let overdue =
                client.server_requests().overdue(now, patience, |server| Arc::ptr_eq(server, &process));
            for (number, own) in overdue {
                let why = "the client did not answer in time";
                let _ = process.send_now(jsonrpc::error(&own, jsonrpc::TIMED_OUT, why));
                self.send_server_request(&client, &process, edit::cancelled(number, "no answer in time"));
            }
        }
    }
}
