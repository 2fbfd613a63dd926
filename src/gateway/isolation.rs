//! Sessions with a process of their own: opened when a session first needs one, ended with the session.
//!
//! Nobody else is behind such a process, so what it asks and says of its own goes to that session, and the other way
//! round. At the endpoint of one server the client's own `initialize` opens it; at the aggregate the gateway says the
//! client's capabilities to each server that the session touches.

use std::{sync::Arc, time::Instant};

use super::{
    Gateway,
    client::{Client, Scope},
    dispatch::Problem,
    reply::Reply,
    upstream::{Caller, Upstream, deliver},
};
use crate::{
    jsonrpc::{self, Kind, Message, quote},
    session::TooMany,
    text,
    tunnel::{channel, mux::Step, rewrite},
};

impl Gateway {
    /// The process that serves a client: the server's only one, or the session's own, opened if need be.
    pub fn process(&self, client: &Arc<Client>, upstream: &Arc<Upstream>) -> Result<Arc<Upstream>, Problem> {
        if upstream.isolation().is_none() {
            return Ok(upstream.clone());
        }
        let mut own = client.own();
        if let Some(process) = own.get(upstream.name()) {
            return Ok(process.clone());
        }
        let wait = *client.scope() == Scope::All;
        let forked = upstream.fork(client, self.config.limits.session.in_flight, wait);
        let process = forked.ok_or_else(|| {
            let why =
                format!("server '{}' runs as many sessions as it may (--max-sessions)", upstream.name());
            (jsonrpc::BUSY, why)
        })?;
        own.insert(upstream.name().to_owned(), process.clone());
        drop(own);
        log::debug!("client {} gets a process of server '{}' of its own", client.name(), upstream.name());
        if wait {
            let facts = client.facts();
            let params = format!(
                "{{\"protocolVersion\":{},\"capabilities\":{},\"clientInfo\":{}}}",
                quote(&facts.version),
                facts.capabilities,
                facts.info
            );
            drop(facts);
            let patience = self.config.timeout_run_tool;
            process.ask(Instant::now(), Caller::Greeting, "initialize", &params, patience);
        }
        Ok(process)
    }

    /// A message from a session's own process.
    pub fn private_message(&self, process: &Arc<Upstream>, text: &str) {
        let Some(client) = process.private().and_then(|private| private.client.upgrade()) else { return };
        let Ok(message) = Message::read(text) else { return self.stats.strays.add() };
        match (message.kind(), message.method()) {
            (Kind::Response, _) => self.private_answer(&client, process, &message),
            (Kind::Request, "ping") => {
                // A link that is full or gone ends, and the process with it.
                let _ = process.send(jsonrpc::result(message.id().unwrap_or_default(), "{}"));
            }
            (Kind::Request, _) => self.ask_client(&client, process, &message),
            (Kind::Notification, "notifications/cancelled") => {
                let Ok(Some(span)) = message.param(&["requestId"]) else { return };
                let own = &message.text()[span.clone()];
                let number = client.asks().cancel(|server| Arc::ptr_eq(server, process), own);
                if let Some(number) = number {
                    self.to_client(&client, process, rewrite::cancellation(&message, span, number), true);
                }
            }
            (Kind::Notification, "notifications/progress") => {
                self.private_progress(&client, process, &message)
            }
            (Kind::Notification, "notifications/resources/updated") if *client.scope() == Scope::All => {
                self.spread_update(process, &message, Some(&client));
            }
            (Kind::Notification, method) => {
                let related = method == "notifications/message";
                self.to_client(&client, process, message.splice(&[]), related);
            }
        }
    }

    fn private_answer(&self, client: &Arc<Client>, process: &Arc<Upstream>, message: &Message<'_>) {
        let step = process.mux().sort(message);
        match step {
            Ok(Step::Answer(pending)) if matches!(pending.caller, Caller::Greeting) => match message.result()
            {
                Some(result) => {
                    process.greeted(result);
                    process.send_now(&jsonrpc::notification("notifications/initialized", None));
                    process.ready();
                    if client.facts().level.is_some() {
                        self.tell_own_level(client, process);
                    }
                }
                None => self.end_process(process, "it refused to be initialized", true),
            },
            Ok(Step::Answer(pending)) => deliver(pending, message, &self.stats),
            _ => self.stats.strays.add(),
        }
    }

    /// To the call whose token it is. A task's token outlives its call.
    fn private_progress(&self, client: &Client, process: &Upstream, message: &Message<'_>) {
        let Ok(Some(span)) = message.param(&["progressToken"]) else { return };
        let token = &message.text()[span];
        let reply = process.mux().of_token(token).and_then(|pending| match &pending.caller {
            Caller::Client(_, _, reply) => Some(reply.clone()),
            _ => None,
        });
        match reply {
            Some(reply) => reply.send(message.splice(&[]), &self.stats),
            None if *client.scope() != Scope::All => client.send(message.splice(&[]), &self.stats),
            None => self.stats.strays.add(),
        }
    }

    /// A question of the process, under an id of ours: each process counts its own.
    fn ask_client(&self, client: &Client, process: &Arc<Upstream>, message: &Message<'_>) {
        let id = message.id().unwrap_or_default();
        let asked = client.asks().begin(process.clone(), id);
        match asked {
            Ok(number) => {
                let question = message.with_id(&number.to_string());
                match Self::newest_reply(process) {
                    Some(reply) => reply.send(question, &self.stats),
                    None => client.keep(question, &self.stats),
                }
            }
            Err(TooMany) => {
                let error = jsonrpc::error(id, jsonrpc::BUSY, "the client has too many requests to answer");
                let _ = process.send(error);
            }
        }
    }

    /// A client's answer to what a process asked it.
    pub fn answered(&self, client: &Client, message: &Message<'_>) {
        let ended = message.id().and_then(|id| client.asks().end(id));
        match ended {
            Some((process, own)) => {
                let _ = process.send(message.with_id(&own));
            }
            None => self.stats.strays.add(),
        }
    }

    /// What belongs to a call goes where its answer goes, all else to the stream for that.
    fn to_client(&self, client: &Client, process: &Upstream, text: String, related: bool) {
        match Self::newest_reply(process).filter(|_| related) {
            Some(reply) => reply.send(text, &self.stats),
            None => client.send(text, &self.stats),
        }
    }

    /// The way back of the newest call, as nothing says which call a message of the process belongs to.
    fn newest_reply(process: &Upstream) -> Option<Reply> {
        process.mux().newest().and_then(|pending| match &pending.caller {
            Caller::Client(_, _, reply) if !reply.is_closed() => Some(reply.clone()),
            _ => None,
        })
    }

    /// Asks a session's own process for log messages from the session's level.
    pub fn tell_own_level(&self, client: &Client, process: &Upstream) {
        let Some(level) = client.facts().level else { return };
        if process.has("logging") {
            let params = format!("{{\"level\":\"{}\"}}", level.name());
            process.tell(Instant::now(), "logging/setLevel", &params, self.config.timeout_rpc);
        }
    }

    /// The edge says that a process is gone, or could not be started.
    pub fn process_gone(&self, shared: &Upstream, number: u32, reason: &str) {
        let process = shared.isolation().and_then(|isolation| isolation.open().get(&number).cloned());
        if let Some(process) = process {
            let reason = format!("its process for this session ended: {}", text::show(reason));
            self.end_process(&process, &reason, false);
        }
    }

    /// Ends a session's own process: its calls fail, and the session is told. `tell`: the edge has to be told as well.
    pub fn end_process(&self, process: &Arc<Upstream>, reason: &str, tell: bool) {
        let Some(private) = process.private() else { return };
        if let Some(shared) = private.shared.upgrade()
            && let Some(isolation) = shared.isolation()
            && isolation.open().remove(&private.number).is_some()
            && tell
        {
            // A link that is full or gone ends, and the process with it.
            let _ = process.link().send(channel::close(private.number, reason));
        }
        process.fail_all(reason, &self.stats);
        let Some(client) = private.client.upgrade() else { return };
        client.asks().forget(|server| Arc::ptr_eq(server, process));
        let removed = client.own().remove(process.name());
        if removed.is_some() && *client.scope() != Scope::All {
            // The session was the process's; what it knew is lost.
            self.close(&client, reason);
        }
    }

    /// Ends all processes of a session that has ended.
    pub fn end_processes(&self, client: &Client) {
        let own: Vec<Arc<Upstream>> = client.own().drain().map(|(_, process)| process).collect();
        for process in own {
            self.end_process(&process, "the session ended", true);
        }
    }

    /// The link of a server is gone, and all processes behind it.
    pub fn end_all_processes(&self, shared: &Upstream, reason: &str) {
        let Some(isolation) = shared.isolation() else { return };
        let open: Vec<Arc<Upstream>> = isolation.open().values().cloned().collect();
        for process in open {
            self.end_process(&process, reason, false);
        }
    }

    /// Fails what took too long in the processes of single sessions.
    pub fn expire_processes(&self, shared: &Upstream, now: Instant) {
        let Some(isolation) = shared.isolation() else { return };
        let open: Vec<Arc<Upstream>> = isolation.open().values().cloned().collect();
        for process in open {
            if !process.expire(now, &self.stats).is_empty() {
                self.end_process(&process, "it was not initialized in time", true);
            }
        }
    }
}
