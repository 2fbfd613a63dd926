//! One registered server's link, from its first frame to its end.
//!
//! Drives `mcp::conversation` (the gateway as the server's client) and `tunnel::mux` (everybody else's calls).

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    Gateway,
    upstream::{Caller, Upstream, deliver},
};
use crate::{
    auth::Principal,
    catalog::Key,
    jsonrpc::{self, Message, Span},
    limits::CHANNEL_TICK,
    mcp::{
        conversation::{Ask, Conversation, Next},
        offer::{Item, Kind},
    },
    net::{
        link::{self, Ended, Farewell, Peer, Socket},
        queue::{self, Sender},
        random,
    },
    text,
    tunnel::{
        CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        channel::{self, Frame},
        handshake::{Registration, Status},
        mux::Step,
        rewrite,
    },
};

/// Serves a link that came up, until it ends.
pub async fn serve(gateway: Arc<Gateway>, socket: Socket, principal: Principal, from: std::net::SocketAddr) {
    let limits = gateway.config.limits.link.clone();
    let (sender, mut receiver) = queue::bounded(limits.queue_messages, limits.queue_bytes);
    let mut edge =
        Edge { gateway: gateway.clone(), principal, from, born: Instant::now(), sender, stage: Stage::New };
    let stopped = gateway.stopped.clone();
    let sender = edge.sender.clone();
    let farewell = async {
        stopped.wait().await;
        sender.end(Farewell::new(1001, "the gateway stops"));
        std::future::pending().await
    };
    let ended = link::drive(socket, &mut receiver, &mut edge, &limits);
    let ended = futures_lite::future::or(ended, farewell).await;
    edge.gone(&ended);
}

/// The gateway's end of one link.
struct Edge {
    gateway: Arc<Gateway>,
    principal: Principal,
    from: std::net::SocketAddr,
    born: Instant,
    sender: Sender<Farewell>,
    stage: Stage,
}

enum Stage {
    /// Nothing was said yet.
    New,
    /// Registered.
    Server(Box<Server>),
}

struct Server {
    key: Key,
    id: String,
    /// It is told by status frames what becomes of it.
    ours: bool,
    upstream: Arc<Upstream>,
    conversation: Conversation,
    /// All that it offers was listed once.
    listed: bool,
    /// How many tools it has.
    tools: usize,
    /// When the processes of single sessions were last looked at.
    looked: Instant,
}

impl Peer for Edge {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), Farewell> {
        match &mut self.stage {
            Stage::New => self.register(now, frame),
            Stage::Server(server) => server.frame(&self.gateway, now, frame),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::New => Some(self.born + self.gateway.config.limits.link.register_time),
            Stage::Server(server) => server.deadline(),
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), Farewell> {
        match &mut self.stage {
            Stage::New => Err(Farewell::new(1008, "no registration in time")),
            Stage::Server(server) => server.expire(&self.gateway, now),
        }
    }
}

impl Edge {
    fn register(&mut self, now: Instant, frame: &str) -> Result<(), Farewell> {
        let limits = &self.gateway.config.limits;
        if frame.len() > limits.link.register_bytes {
            return Err(Farewell::new(1009, "the registration is too large"));
        }
        let registration = Registration::read(frame, limits.catalog.server_name)
            .map_err(|why| self.refuse(why.reason().to_owned(), 1008))?;
        let id = match registration.id {
            Some(id) => id,
            None => text::uuid(random::bytes().map_err(|_| Farewell::new(1011, "no randomness"))?),
        };
        let name = registration.name.unwrap_or_else(|| format!("server-{id}"));
        if !text::is_name(&name, limits.catalog.server_name) {
            return Err(self.refuse("the server needs a name (--server-name)".into(), 1008));
        }
        let upstream =
            Upstream::new(name.clone(), limits.link.in_flight, self.sender.clone(), registration.sessions);
        let (conversation, ask) = Conversation::start(limits.catalog.clone());
        let claimed = self.claim(now, &id, &name, &upstream);
        let (key, replaced) = claimed.map_err(|(why, code)| self.refuse(why, code))?;
        if let Some(old) = replaced {
            log::info!("server '{}' is registered anew; the old link is closed", old.name());
            let why = "it registered anew over another link";
            old.fail_all(why, &self.gateway.stats);
            self.gateway.end_all_processes(&old, why);
            old.link().end(Farewell::new(CLOSE_REPLACED, "the same server id registered over another link"));
            self.gateway.lists_changed(&Kind::ALL);
        }
        log::info!("server '{name}' (id {}) registers from {}", text::show(&id), self.from);
        self.say(Status::received(&id, registration.ours, registration.sessions.is_some()));
        let mut server = Server {
            key,
            id,
            ours: registration.ours,
            upstream,
            conversation,
            listed: false,
            tools: 0,
            looked: now,
        };
        let asked = server.ask(&self.gateway, now, ask);
        self.stage = Stage::Server(Box::new(server));
        asked
    }

    /// Takes the name, if the token and whoever has the name allow that. Otherwise: what to say, and the close code.
    fn claim(
        &self,
        now: Instant,
        id: &str,
        name: &str,
        upstream: &Arc<Upstream>,
    ) -> Result<(Key, Option<Arc<Upstream>>), (String, u16)> {
        // The right is looked at while the catalog is held: whoever takes it away looks at the catalog afterwards.
        let mut catalog = self.gateway.catalog();
        if !self.gateway.keys.tokens().may_claim(self.principal, name) {
            let why = format!(
                "the token may not register the name '{name}'; see register[NAME,…]:TOKEN of the gateway's --auth-token"
            );
            return Err((why, CLOSE_REFUSED));
        }
        if catalog.take_over(now, id, self.principal, |old| !old.link().is_closed()).is_err() {
            let why = "this server id took over its own link too often in the last minute; does another program use it (--server-id)?";
            return Err((why.to_owned(), CLOSE_TOO_OFTEN));
        }
        let registered = catalog.register(id, name, self.principal, upstream.clone());
        registered.map_err(|taken| {
            let whose = match taken.holder {
                Some(holder) => {
                    format!("the name '{name}' belongs to another server, with id {}", text::show(&holder))
                }
                None => format!("the name '{name}' or this server id belongs to somebody else"),
            };
            (whose, CLOSE_REFUSED)
        })
    }

    /// Tells the edge why it is not taken.
    fn refuse(&self, reason: String, code: u16) -> Farewell {
        log::warn!("a registration from {} is refused: {reason}", self.from);
        self.say(Status::error(&reason));
        Farewell::new(code, reason)
    }

    fn say(&self, frame: String) {
        // A queue that is full or ended belongs to a link that is about to end.
        let _ = self.sender.send(frame);
    }

    /// The link is gone, and so is the server: from the list at once, and its waiting calls fail at once.
    fn gone(self, ended: &Ended) {
        let Stage::Server(server) = self.stage else {
            log::info!("link from {} ended without a registration: {ended}", self.from);
            return;
        };
        let removed = self.gateway.catalog().remove(server.key);
        server.upstream.fail_all(&ended.to_string(), &self.gateway.stats);
        self.gateway.end_all_processes(&server.upstream, &ended.to_string());
        log::info!("server '{}' is gone: {ended}", server.upstream.name());
        if let Some((_, kinds)) = removed {
            self.gateway.lists_changed(&kinds);
        }
    }
}

impl Server {
    fn frame(&mut self, gateway: &Gateway, now: Instant, frame: &str) -> Result<(), Farewell> {
        let frame = match (channel::read(frame), self.upstream.isolation()) {
            (Frame::Plain(frame), _) => frame,
            (Frame::Message(number, text), Some(isolation)) => {
                // A session that has ended may still be spoken to.
                if let Some(process) = isolation.process(number) {
                    gateway.private_message(now, &process, text);
                }
                return Ok(());
            }
            (Frame::Close(number, reason), Some(_)) => {
                gateway.process_gone(&self.upstream, number, reason);
                return Ok(());
            }
            _ if self.ours => return Err(Farewell::new(1008, "a channel that was not agreed on")),
            // The original hands on whatever its server prints.
            _ => frame,
        };
        let Ok(message) = Message::read(frame) else {
            gateway.stats.strays.add();
            log::debug!("server '{}' sent a frame that is no message", self.upstream.name());
            return Ok(());
        };
        let step = self.upstream.mux().sort(&message);
        match step {
            Ok(Step::Answer(pending)) if matches!(pending.caller, Caller::Conversation) => {
                let next = self.conversation.answered(&message);
                self.go_on(gateway, now, next)
            }
            Ok(Step::Answer(pending)) => {
                deliver(pending, &message, &gateway.stats);
                Ok(())
            }
            Ok(Step::Progress(id, span)) => {
                self.progress(gateway, id, &message, span);
                Ok(())
            }
            Ok(Step::Request) => {
                self.answer(&message);
                Ok(())
            }
            Ok(Step::Notification) => {
                gateway.spread(&self.upstream, &message);
                self.changed(gateway, now, message.method())
            }
            Ok(Step::Stray) | Err(_) => {
                gateway.stats.strays.add();
                Ok(())
            }
        }
    }

    /// A list of the server changed: all lists that the notification speaks of are asked for anew.
    fn changed(&mut self, gateway: &Gateway, now: Instant, notification: &str) -> Result<(), Farewell> {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.changed() == notification) {
            if let Some(ask) = self.conversation.changed(kind) {
                self.ask(gateway, now, ask)?;
            }
        }
        Ok(())
    }

    fn progress(&self, gateway: &Gateway, id: u64, message: &Message<'_>, span: Span) {
        let waiting = {
            let mux = self.upstream.mux();
            let Some(pending) = mux.get(id) else { return };
            match (&pending.caller, pending.token()) {
                (Caller::Client(_, _, reply), Some(token)) => (reply.clone(), token.to_owned()),
                _ => return,
            }
        };
        let (reply, token) = waiting;
        reply.send(rewrite::progress(message, span, &token), &gateway.stats);
    }

    /// A shared server's request cannot be tied to a client: `ping` is answered, nothing else is offered.
    fn answer(&self, message: &Message<'_>) {
        let id = message.id().unwrap_or_default();
        let answer = match message.method() {
            "ping" => jsonrpc::result(id, "{}"),
            other => {
                let text = format!("method not found: {}", text::show(other));
                jsonrpc::error(id, jsonrpc::METHOD_NOT_FOUND, &text)
            }
        };
        let _ = self.upstream.link().send(answer);
    }

    /// Sends a question of the gateway's own.
    fn ask(&mut self, gateway: &Gateway, now: Instant, ask: Ask) -> Result<(), Farewell> {
        let config = &gateway.config;
        // A server may have to be downloaded and started first.
        let patience = if ask.method == "initialize" { config.timeout_run_tool } else { config.timeout_rpc };
        let opened = self.upstream.mux().open_own(now, Caller::Conversation, ask.method, patience);
        let Ok(id) = opened else {
            self.conversation.unanswered();
            return Ok(());
        };
        let request = jsonrpc::request(&id.to_string(), ask.method, &ask.params);
        let frames: VecDeque<String> = ask.first.into_iter().chain([request]).collect();
        for frame in frames {
            self.upstream.link().send(frame).map_err(|_| Farewell::new(1013, "the link does not keep up"))?;
        }
        Ok(())
    }

    /// What follows from an answer to a question of the gateway's own.
    fn go_on(&mut self, gateway: &Gateway, now: Instant, next: Next) -> Result<(), Farewell> {
        match next {
            Next::Ask(ask) => self.ask(gateway, now, ask),
            Next::Offer(kind, items, next) => {
                self.list(gateway, kind, items);
                match next {
                    Some(ask) => self.ask(gateway, now, ask),
                    None => {
                        self.complete(gateway);
                        Ok(())
                    }
                }
            }
            Next::Failed(why) => self.failed(&why),
        }
    }

    fn list(&mut self, gateway: &Gateway, kind: Kind, items: Vec<Item>) {
        let (name, count) = (self.upstream.name(), items.len());
        self.upstream.greeted(self.conversation.greeting());
        if kind == Kind::Tool {
            self.tools = count;
        }
        if self.upstream.has("resources") {
            gateway.catalog().set_has_resources(self.key);
        }
        let changed = gateway.catalog().set(self.key, kind, items);
        for remark in self.conversation.take_remarks().iter().chain(changed.iter().flatten()) {
            log::warn!("server '{name}': {remark}");
        }
        if changed.is_some() {
            log::info!("server '{name}' offers {count} {}s", kind.noun());
            gateway.lists_changed(&[kind]);
        }
    }

    /// All that the server offers is listed.
    fn complete(&mut self, gateway: &Gateway) {
        if std::mem::replace(&mut self.listed, true) {
            return;
        }
        gateway.resume_wishes(&self.upstream);
        if self.ours {
            let _ = self.upstream.link().send(Status::registered(&self.id, self.tools));
        }
    }

    /// A server that was listed keeps what it had; one that was not cannot be used.
    fn failed(&mut self, why: &str) -> Result<(), Farewell> {
        if self.listed {
            log::warn!("server '{}': {why}; its lists stay as they were", self.upstream.name());
            self.conversation.unanswered();
            return Ok(());
        }
        if self.ours {
            let _ = self.upstream.link().send(Status::error(why));
        }
        Err(Farewell::new(1008, why))
    }

    /// The processes of single sessions are looked at now and then, if there are any.
    fn deadline(&self) -> Option<Instant> {
        let own = self.upstream.isolation().filter(|isolation| !isolation.is_empty());
        let look = own.map(|_| self.looked + CHANNEL_TICK);
        self.upstream.mux().deadline().into_iter().chain(look).min()
    }

    fn expire(&mut self, gateway: &Gateway, now: Instant) -> Result<(), Farewell> {
        if now >= self.looked + CHANNEL_TICK {
            self.looked = now;
            gateway.expire_processes(&self.upstream, now);
        }
        for pending in self.upstream.expire(now, &gateway.stats) {
            let why = format!("{} was not answered in {} s", pending.method, pending.patience.as_secs_f64());
            self.failed(&why)?;
        }
        Ok(())
    }
}
