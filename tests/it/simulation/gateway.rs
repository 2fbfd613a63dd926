//! The gateway of the simulation: the real tables, with function calls where the program has queues and locks.

use std::time::{Duration, Instant};

use mcpport::{
    auth::Principal,
    catalog::{Catalog, Key, Target},
    jsonrpc::{self, Message, unquote},
    mcp::{
        self,
        conversation::{Ask, Conversation, Next},
        names::exposed,
        offer::Kind,
    },
    session::{self, Calls, Sessions},
    tunnel::{
        handshake::{Registration, Status},
        mux::{Mux, Pending, Step},
        rewrite,
    },
};

use super::{Frame, Net, child, client::Client};

/// Who waits for an answer.
#[derive(Debug)]
enum Caller {
    Gateway,
    Client(usize, String),
}

/// The gateway's end of a link.
struct Upstream {
    mux: Mux<Caller>,
    server: Option<Server>,
}

struct Server {
    key: Key,
    conversation: Conversation,
    /// The id of the open question of the gateway's own.
    asked: Option<u64>,
    listed: bool,
}

pub struct Gateway {
    catalog: Catalog<usize>,
    sessions: Sessions<usize>,
    upstreams: Vec<Upstream>,
    pub clients: Vec<Client>,
    servers: usize,
}

/// For the gateway's own questions.
const PATIENCE: Duration = Duration::from_secs(6);

impl Gateway {
    pub fn new(net: &mut Net, clients: usize, servers: usize) -> Self {
        let mut sessions = Sessions::new(&net.limits.session);
        let clients = (0..clients).map(|place| {
            let (id, principal) = (session::id([place as u8; 16]), Principal::token(place % 2));
            sessions.open(net.now, id.clone(), principal, place).unwrap();
            Client::new(place, principal, id, Calls::new(&net.limits.session), 3 + net.random.below(8))
        });
        let clients = clients.collect();
        let own = [("list_servers", mcp::LIST_SERVERS)];
        let catalog = Catalog::new(&own, net.limits.catalog.clone());
        Self { catalog, sessions, upstreams: Vec::new(), clients, servers }
    }

    pub fn link_up(&mut self, net: &Net) {
        self.upstreams.push(Upstream { mux: Mux::new(net.limits.link.in_flight), server: None });
    }

    pub fn deadline(&self, link: usize) -> Option<Instant> {
        self.upstreams[link].mux.deadline()
    }

    // ---- what clients do

    /// A client does something. `Some`: and will do so again after this time.
    pub fn act(&mut self, net: &mut Net, place: usize) -> Option<Duration> {
        let client = &self.clients[place];
        if client.is_done() {
            return None;
        }
        let stranger = Principal::token(1 - place % 2);
        assert_eq!(self.sessions.find(net.now, &client.session, client.principal), Some(place));
        assert_eq!(self.sessions.find(net.now, &client.session, stranger), None, "a session is its owner's");
        match net.random.below(100) {
            0..2 => self.leave(net, place),
            2..15 => self.cancel_one(net, place),
            15..18 => self.intrude(net),
            _ if self.clients[place].plans > 0 => self.ask(net, place),
            _ => {}
        }
        let pause = if net.random.chance(50) { 3000 } else { 120 };
        Some(net.random.millis(1, pause))
    }

    fn ask(&mut self, net: &mut Net, place: usize) {
        // One of them may not be there, or not yet.
        let missing = usize::from(net.random.chance(10));
        let server = child::name(net.random.below(self.servers + missing));
        let tool = child::TOOLS[net.random.below(child::TOOLS.len())];
        let tool = exposed(&server, tool, net.limits.catalog.exposed_name);
        if self.catalog.find(Kind::Tool, &tool).is_none() && net.random.chance(95) {
            return;
        }
        let client = &mut self.clients[place];
        client.plans -= 1;
        let text = client.ask(&tool, net.random.chance(80));
        let message = Message::read(&text).unwrap();
        let id = message.id().unwrap();
        if let Err((code, why)) = self.call(net, place, &message) {
            self.clients[place].read(&jsonrpc::error(id, code, why));
        }
    }

    /// `gateway::dispatch` and `gateway::upstream` for one call.
    fn call(
        &mut self,
        net: &mut Net,
        place: usize,
        message: &Message<'_>,
    ) -> Result<(), (i64, &'static str)> {
        let (text, id) = (message.text(), message.id().unwrap());
        let span = message.param(&["name"]).unwrap().unwrap();
        let name = unquote(&text[span.clone()]).unwrap();
        let Some(Target::Server { handle: link, key: tool }) = self.catalog.find(Kind::Tool, &name) else {
            return Err((jsonrpc::INVALID_PARAMS, "unknown tool"));
        };
        assert!(net.wires[link].gateway.up, "the catalog leads to a link that is gone");
        let client = &mut self.clients[place];
        let calls = &mut client.calls;
        calls
            .may_begin(id)
            .map_err(|why| (jsonrpc::BUSY, if why == session::Refused::Busy { "busy" } else { "?" }))?;
        let token = rewrite::token(message).unwrap();
        let raw = token.clone().map(|span| &text[span]);
        let caller = Caller::Client(place, id.to_owned());
        let mux = &mut self.upstreams[link].mux;
        let patience = net.random.millis(2000, 9000);
        let opened = mux.open(net.now, caller, message.method(), raw, patience);
        let upstream_id = opened.map_err(|_| (jsonrpc::BUSY, "busy"))?;
        calls.begin(id, link, upstream_id);
        client.open.get_mut(id).expect("just asked").due = Some(net.now + patience);
        if net.random.chance(3) {
            // The queue of the link is full.
            assert!(mux.close(upstream_id).is_some() && calls.end(id).is_some());
            return Err((jsonrpc::BUSY, "the link does not keep up"));
        }
        net.down(link, Frame::Text(rewrite::request(message, upstream_id, Some((span, &tool)), token)));
        Ok(())
    }

    fn cancel_one(&mut self, net: &mut Net, place: usize) {
        let client = &mut self.clients[place];
        let Some(id) = client.open.keys().nth(net.random.below(client.open.len())).cloned() else { return };
        let params = format!("{{\"requestId\":{id},\"reason\":\"changed my mind\"}}");
        let text = jsonrpc::notification("notifications/cancelled", Some(&params));
        let message = Message::read(&text).unwrap();
        let span = message.param(&["requestId"]).unwrap().unwrap();
        let (link, upstream_id) =
            client.calls.end(&text[span.clone()]).expect("an open call is in the table");
        assert!(self.upstreams[link].mux.close(upstream_id).is_some());
        net.down(link, Frame::Text(rewrite::cancellation(&message, span, upstream_id)));
        client.open.remove(&id);
    }

    pub fn leave(&mut self, net: &mut Net, place: usize) {
        let client = &mut self.clients[place];
        if std::mem::replace(&mut client.left, true) {
            return;
        }
        assert_eq!(self.sessions.close(&client.session), Some(place));
        client.open.clear();
        let mut open = client.calls.end_all();
        open.sort_unstable();
        assert_eq!(client.calls.may_begin("late"), Err(session::Refused::Ended));
        for (link, id) in open {
            assert!(self.upstreams[link].mux.close(id).is_some());
            net.down(link, Frame::Text(rewrite::cancelled(id, "the client is gone")));
        }
    }

    /// Somebody else wants a name or an id that is taken.
    fn intrude(&mut self, net: &mut Net) {
        let place = net.random.below(4);
        let (id, name) = (format!("id-{place}"), child::name(place));
        if self.catalog.servers().iter().any(|server| server.contains(&format!("\"{id}\""))) {
            assert!(self.catalog.register("other", &name, Principal::ANONYMOUS, usize::MAX).is_err());
            assert!(self.catalog.register(&id, &name, Principal::token(9), usize::MAX).is_err());
        }
    }

    // ---- what links do

    /// A text frame from an edge.
    pub fn frame(&mut self, net: &mut Net, link: usize, text: &str) {
        if self.upstreams[link].server.is_none() {
            return self.register(net, link, text);
        }
        let Ok(message) = Message::read(text) else {
            if Status::read(text).is_some_and(|status| status.status == "restarted") {
                self.restarted(net, link);
            }
            return;
        };
        match self.upstreams[link].mux.sort(&message) {
            Ok(Step::Answer(pending)) => match pending.caller {
                Caller::Gateway => self.answered(net, link, &message),
                Caller::Client(place, id) => {
                    assert!(self.clients[place].calls.end(&id).is_some());
                    self.clients[place].read(&message.with_id(&id));
                }
            },
            Ok(Step::Progress(id, span)) => {
                let pending = self.upstreams[link].mux.get(id).expect("just found");
                if let (Caller::Client(place, _), Some(token)) = (&pending.caller, pending.token()) {
                    let text = rewrite::progress(&message, span, token);
                    self.clients[*place].read(&text);
                }
            }
            Ok(Step::Request) => {
                net.down(link, Frame::Text(jsonrpc::result(message.id().unwrap_or_default(), "{}")));
            }
            Ok(Step::Notification) if message.method() == "notifications/tools/list_changed" => {
                let server = self.upstreams[link].server.as_mut().unwrap();
                server.conversation.changed(Kind::Tool);
                if let Some(ask) = server.conversation.relist() {
                    self.own(net, link, ask);
                }
            }
            Ok(Step::Notification | Step::Stray) | Err(_) => {}
        }
    }

    fn register(&mut self, net: &mut Net, link: usize, text: &str) {
        let registration = Registration::read(text, net.limits.catalog.server_name).unwrap();
        let (id, name) = (registration.id.unwrap(), registration.name.unwrap());
        let (key, replaced) = self.catalog.register(&id, &name, Principal::ANONYMOUS, link).unwrap();
        if let Some(old) = replaced {
            self.link_down(net, old, "replaced");
        }
        net.down(link, Frame::Text(Status::received(&id, true, false, None)));
        let (conversation, ask) = Conversation::start(net.limits.catalog.clone());
        self.upstreams[link].server = Some(Server { key, conversation, asked: None, listed: false });
        self.own(net, link, ask);
    }

    /// The child of an edge was started anew.
    fn restarted(&mut self, net: &mut Net, link: usize) {
        let upstream = &mut self.upstreams[link];
        let server = upstream.server.as_mut().unwrap();
        server.asked.take().and_then(|id| upstream.mux.close(id));
        let ask = server.conversation.again();
        self.own(net, link, ask);
    }

    /// A question of the gateway's own.
    fn own(&mut self, net: &mut Net, link: usize, ask: Ask) {
        let upstream = &mut self.upstreams[link];
        let Ok(id) = upstream.mux.open(net.now, Caller::Gateway, ask.method, None, PATIENCE) else {
            upstream.server.as_mut().unwrap().conversation.unanswered();
            return;
        };
        upstream.server.as_mut().unwrap().asked = Some(id);
        for frame in ask.first.into_iter().chain([jsonrpc::request(&id.to_string(), ask.method, &ask.params)])
        {
            net.down(link, Frame::Text(frame));
        }
    }

    fn answered(&mut self, net: &mut Net, link: usize, message: &Message<'_>) {
        let server = self.upstreams[link].server.as_mut().unwrap();
        match server.conversation.answered(message) {
            Next::Ask(ask) => self.own(net, link, ask),
            Next::Offer(kind, tools, next) => {
                assert_eq!((kind, tools.len()), (Kind::Tool, child::TOOLS.len()));
                server.listed = true;
                if self.catalog.set(server.key, kind, tools).is_some() {
                    self.tools_changed();
                }
                if let Some(ask) = next {
                    self.own(net, link, ask);
                }
            }
            // It crashed on the way.
            Next::Failed(_) if server.listed => server.conversation.unanswered(),
            Next::Failed(why) => {
                assert!(why.contains("crashed") || why.contains("down"), "an honest server fails: {why}");
                self.link_down(net, link, "it was never listed");
            }
        }
        let server = self.upstreams[link].server.as_mut().unwrap();
        if let Some(ask) = server.conversation.relist() {
            self.own(net, link, ask);
        }
    }

    fn tools_changed(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.left) {
            client.read(&jsonrpc::notification("notifications/tools/list_changed", None));
        }
    }

    /// The gateway sees the end of a link.
    pub fn link_down(&mut self, net: &mut Net, link: usize, why: &str) {
        if !std::mem::replace(&mut net.wires[link].gateway.up, false) {
            return;
        }
        net.say(|| format!("link {link} is down: {why}"));
        net.down(link, Frame::Close);
        let upstream = &mut self.upstreams[link];
        let removed = upstream.server.as_ref().and_then(|server| self.catalog.remove(server.key));
        let mut waiting = upstream.mux.drain();
        // The table has no order, and a seed must always give the same world.
        waiting.sort_by_key(|pending| match &pending.caller {
            Caller::Gateway => None,
            Caller::Client(place, id) => Some((*place, id.clone())),
        });
        for pending in waiting {
            self.fail(pending, jsonrpc::INTERNAL_ERROR);
        }
        if removed.is_some() {
            self.tools_changed();
        }
    }

    fn fail(&mut self, pending: Pending<Caller>, code: i64) {
        if let Caller::Client(place, id) = pending.caller {
            assert!(self.clients[place].calls.end(&id).is_some());
            self.clients[place].read(&jsonrpc::error(&id, code, "failed"));
        }
    }

    /// Fails what is overdue on a link.
    pub fn expire(&mut self, net: &mut Net, link: usize) {
        let mut expired = Vec::new();
        self.upstreams[link].mux.tick(net.now, &mut expired);
        expired.sort_unstable_by_key(|(id, _)| *id);
        for (id, pending) in expired {
            net.down(link, Frame::Text(rewrite::cancelled(id, "no answer in time")));
            let Caller::Gateway = pending.caller else {
                self.fail(pending, jsonrpc::TIMED_OUT);
                continue;
            };
            let server = self.upstreams[link].server.as_mut().unwrap();
            if server.listed {
                server.conversation.unanswered();
            } else {
                self.link_down(net, link, "it was never listed");
            }
        }
    }

    // ---- what must always hold

    pub fn check(&self, net: &Net) {
        let mut pending = 0;
        for (link, upstream) in self.upstreams.iter().enumerate() {
            assert!(upstream.mux.len() <= net.limits.link.in_flight);
            assert!(
                net.wires[link].gateway.up || upstream.mux.is_empty(),
                "link {link} is gone and somebody waits"
            );
            pending += upstream.mux.len();
        }
        let mut calls = 0;
        for client in &self.clients {
            assert_eq!(
                client.calls.len(),
                client.open.len(),
                "the tables of a client differ from what it waits for"
            );
            assert!(client.calls.len() <= net.limits.session.in_flight);
            calls += client.calls.len();
            let overdue = client.open.values().any(|waiting| waiting.due.is_none_or(|due| due <= net.now));
            assert!(!overdue, "an answer is late");
        }
        assert!(calls <= pending, "a client waits for what no link knows");
        assert!(pending <= calls + self.upstreams.len(), "a link waits for what no client asked");
        let registered =
            self.upstreams.iter().zip(&net.wires).filter(|(up, wire)| up.server.is_some() && wire.gateway.up);
        assert_eq!(self.catalog.len(), registered.count());
    }

    /// Nothing is left.
    pub fn check_empty(&self) {
        assert!(
            self.upstreams
                .iter()
                .all(|upstream| upstream.mux.is_empty() && upstream.mux.deadline().is_none())
        );
        assert!(self.clients.iter().all(|client| client.calls.is_empty() && client.open.is_empty()));
        assert!(self.catalog.is_empty() && self.sessions.is_empty());
        let own = format!("{{\"tools\":[{}]}}", mcp::LIST_SERVERS);
        assert_eq!(self.catalog.list(Kind::Tool, None).as_deref(), Some(own.as_str()));
    }
}
