//! The simulated gateway: the real tables, with function calls in place of queues and locks.

use std::time::{Duration, Instant};

use mcpport::{
    auth::Principal,
    catalog::{Catalog, Target, UpstreamKey},
    hub::mux::{Mux, Pending, Routed},
    jsonrpc::{self, Message, edit, unquote},
    mcp::{
        self,
        discovery::{Discovery, DiscoveryRequest, DiscoveryStep},
        exposed_name::exposed,
        listing::ListKind,
    },
    secret::Secret,
    session::{self, CallId, Calls, Sessions},
    tunnel::{
        handshake::{Claim, Registration, ResumeGrant, Status},
        outbound::TextFrame,
    },
};

use super::{
    Frame, Net, Way, child,
    client::Client,
    line::{Line, Queue},
};

/// The caller that waits for an answer.
#[derive(Debug)]
enum Caller {
    Gateway,
    Client(usize, CallId),
}

/// A registered server, over one or more connections.
struct Talk {
    mux: Mux<Caller>,
    /// Maximum frame size in bytes that the edge accepts.
    accepts: usize,
    server: Server,
    queue: Queue,
    /// `None` only while it handles a frame.
    line: Option<Line>,
    /// The current connection.
    wire: Option<usize>,
    /// When the gateway stops waiting for a resume.
    over: Option<Instant>,
    /// The token for resuming; `None` if the edge cannot resume.
    token: Option<String>,
    gone: bool,
}

impl Talk {
    fn line(&self) -> &Line {
        self.line.as_ref().expect("no frame is being handled")
    }

    fn line_mut(&mut self) -> &mut Line {
        self.line.as_mut().expect("no frame is being handled")
    }
}

struct Server {
    key: UpstreamKey,
    conversation: Discovery,
    /// The id of the gateway's own pending request.
    asked: Option<u64>,
    listed: bool,
}

pub struct Gateway {
    catalog: Catalog<usize>,
    sessions: Sessions<usize>,
    talks: Vec<Talk>,
    pub clients: Vec<Client>,
    servers: usize,
    /// Number of starts.
    starts: u8,
    /// When the gateway is up again after a restart.
    pub there: Instant,
}

/// Timeout for the gateway's own requests.
const TIMEOUT: Duration = Duration::from_secs(6);

impl Gateway {
    pub fn new(net: &mut Net, clients: usize, servers: usize) -> Self {
        let mut sessions = Sessions::new(&net.limits.session);
        let clients = (0..clients).map(|place| {
            let (id, principal) = (session::id([place as u8; 16]), Principal::token(place % 2));
            sessions.open(net.now, id.clone(), principal, place).unwrap();
            Client::new(place, principal, id, Calls::new(&net.limits.session), 3 + net.random.below(8))
        });
        let clients = clients.collect();
        let catalog = Self::catalog(net);
        Self { catalog, sessions, talks: Vec::new(), clients, servers, starts: 1, there: net.now }
    }

    fn catalog(net: &Net) -> Catalog<usize> {
        Catalog::new(&[("list_servers", mcp::LIST_SERVERS)], &net.limits.catalog)
    }

    /// Kills the gateway and restarts it after a delay. It loses all state; all connections end
    /// without a close frame.
    pub fn restart(&mut self, net: &mut Net) {
        self.starts += 1;
        self.talks.clear();
        self.catalog = Self::catalog(net);
        self.sessions = Sessions::new(&net.limits.session);
        for (place, client) in self.clients.iter_mut().enumerate().filter(|(_, client)| !client.left) {
            let id = session::id([place as u8 + 16 * self.starts; 16]);
            self.sessions.open(net.now, id.clone(), client.principal, place).unwrap();
            client.begin_again(id, Calls::new(&net.limits.session));
        }
        self.there = net.now + net.random.millis(0, 5000);
        for wire in 0..net.wires.len() {
            net.wires[wire].talk = None;
            net.hang_up(wire);
        }
    }

    /// Returns the time of the next timer, apart from those of the connections.
    pub fn deadline(&self, net: &Net) -> Option<Instant> {
        let alive = self.talks.iter().filter(|talk| !talk.gone);
        let due = |talk: &Talk| {
            let owed = talk.wire.and_then(|_| talk.line().outbound.deadline(&net.limits.link));
            talk.mux.deadline().into_iter().chain(talk.over).chain(owed).min()
        };
        alive.filter_map(due).min()
    }

    // ---- clients

    /// Makes a client do one random action. Returns the delay until its next action, or `None` if
    /// it is done.
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
        // The server may not exist, or not be registered yet.
        let missing = usize::from(net.random.chance(10));
        let server = child::name(net.random.below(self.servers + missing));
        let tool = child::TOOLS[net.random.below(child::TOOLS.len())];
        let tool = exposed(&server, tool, net.limits.catalog.exposed_name);
        if self.catalog.find(ListKind::Tool, &tool).is_none() && net.random.chance(95) {
            return;
        }
        let client = &mut self.clients[place];
        client.plans -= 1;
        let text = client.ask(&tool, net.random.chance(80), net.random.chance(4));
        let message = Message::read(&text).unwrap();
        let id = message.id().unwrap();
        if let Err((code, why)) = self.call(net, place, &message) {
            self.clients[place].read(&jsonrpc::error(id, code, why));
        }
    }

    /// Makes one call, like `gateway::dispatch` and `gateway::upstream`.
    fn call(
        &mut self,
        net: &mut Net,
        place: usize,
        message: &Message<'_>,
    ) -> Result<(), (i64, &'static str)> {
        let (text, id) = (message.text(), message.id().unwrap());
        let span = message.param(&["name"]).unwrap().unwrap();
        let name = unquote(&text[span.clone()]).unwrap();
        let Some(Target::Server { handle: link, key: tool }) = self.catalog.find(ListKind::Tool, &name)
        else {
            return Err((jsonrpc::INVALID_PARAMS, "unknown tool"));
        };
        assert!(!self.talks[link].gone, "the catalog leads to a server that is gone");
        let client = &mut self.clients[place];
        let calls = &mut client.calls;
        let call = calls
            .may_begin(id, 0)
            .map_err(|why| (jsonrpc::BUSY, if why == session::CallRefused::Busy { "busy" } else { "?" }))?;
        let token = edit::token(message).unwrap();
        let raw = token.clone().map(|span| &text[span]);
        let caller = Caller::Client(place, call.clone());
        let mux = &mut self.talks[link].mux;
        let timeout = net.random.millis(2000, 9000);
        let opened = mux.open(net.now, caller, message.method(), raw, timeout);
        let upstream_id = opened.map_err(|_| (jsonrpc::BUSY, "busy"))?;
        calls.begin(&call, link, upstream_id);
        client.open.get_mut(id).expect("just asked").due = Some(net.now + timeout);
        let text = edit::request(message, upstream_id, Some((span, &tool)), token);
        let refused = match text.len() > self.talks[link].accepts {
            true => (jsonrpc::INVALID_REQUEST, "the edge accepts less"),
            false if self.send(net, link, text) => return Ok(()),
            false => (jsonrpc::BUSY, "the link does not keep up"),
        };
        let (mux, client) = (&mut self.talks[link].mux, &mut self.clients[place]);
        assert!(mux.close(upstream_id).is_some() && client.calls.end(&call).is_some());
        Err(refused)
    }

    fn cancel_one(&mut self, net: &mut Net, place: usize) {
        let client = &mut self.clients[place];
        let Some(id) = client.open.keys().nth(net.random.below(client.open.len())).cloned() else { return };
        let params = format!("{{\"requestId\":{id},\"reason\":\"changed my mind\"}}");
        let text = jsonrpc::notification("notifications/cancelled", Some(&params));
        let message = Message::read(&text).unwrap();
        let span = message.param(&["requestId"]).unwrap().unwrap();
        let (link, upstream_id) =
            client.calls.cancel(&text[span.clone()]).expect("an open call is in the table");
        assert!(self.talks[link].mux.close(upstream_id).is_some());
        client.open.remove(&id);
        self.send(net, link, edit::cancellation(&message, span, upstream_id));
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
        assert_eq!(client.calls.may_begin("late", 0).err(), Some(session::CallRefused::Ended));
        for (link, id) in open {
            assert!(self.talks[link].mux.close(id).is_some());
            self.send(net, link, edit::cancelled(id, "the client is gone"));
        }
    }

    /// Tries to register with a name or an id that is in use.
    fn intrude(&mut self, net: &mut Net) {
        let place = net.random.below(4);
        let (id, name) = (format!("id-{place}"), child::name(place));
        if self
            .catalog
            .servers(Principal::ANONYMOUS)
            .iter()
            .any(|server| server.contains(&format!("\"{id}\"")))
        {
            assert!(self.catalog.register("other", &name, Principal::ANONYMOUS, usize::MAX).is_err());
            assert!(self.catalog.register(&id, &name, Principal::token(9), usize::MAX).is_err());
        }
    }

    // ---- links

    /// Queues a client's frame for a server, and sends it if that is possible now. Returns false if
    /// the queue is full.
    fn send(&mut self, net: &mut Net, link: usize, frame: String) -> bool {
        let fits = self.talks[link].queue.send(frame);
        self.pump(net, link);
        fits
    }

    /// Like [`Gateway::send`], for a frame of the gateway itself.
    fn send_reserved(&mut self, net: &mut Net, link: usize, frame: String) -> bool {
        let fits = self.talks[link].queue.send_reserved(frame);
        self.pump(net, link);
        fits
    }

    fn pump(&mut self, net: &mut Net, link: usize) {
        if let Talk { wire: Some(wire), line: Some(line), .. } = &mut self.talks[link] {
            line.pump(net, *wire, Way::Down);
        }
    }

    /// Handles a text frame from an edge.
    pub fn frame(&mut self, net: &mut Net, wire: usize, text: &str) {
        let Some(link) = net.wires[wire].talk else { return self.admit(net, wire, text) };
        let mut line = self.talks[link].line.take().expect("one frame at a time");
        let (now, limits) = (net.now, net.limits.link.clone());
        let kind = line.on_text(now, text, &limits, |text| self.message(net, link, text));
        self.talks[link].line = Some(line);
        if kind == TextFrame::Acknowledgement {
            net.timers(wire, Way::Up).on_acknowledged();
        }
        self.pump(net, link);
    }

    fn message(&mut self, net: &mut Net, link: usize, text: &str) {
        let Ok(message) = Message::read(text) else {
            if Status::read(text).is_some_and(|status| status.status == "restarted") {
                self.restarted(net, link);
            }
            return;
        };
        match self.talks[link].mux.sort(&message) {
            Ok(Routed::Answer(pending)) => match pending.caller {
                Caller::Gateway => self.answered(net, link, &message),
                Caller::Client(place, id) => {
                    assert!(self.clients[place].calls.end(&id).is_some());
                    self.clients[place].read(&message.with_id(&id));
                }
            },
            Ok(Routed::Progress(id, span)) => {
                let pending = self.talks[link].mux.get(id).expect("just found");
                if let (Caller::Client(place, _), Some(token)) = (&pending.caller, pending.token()) {
                    let text = edit::progress(&message, span, token);
                    self.clients[*place].read(&text);
                }
            }
            Ok(Routed::Request) => {
                let answer = jsonrpc::result(message.id().unwrap_or_default(), "{}");
                self.send_reserved(net, link, answer);
            }
            Ok(Routed::Notification) if message.method() == "notifications/tools/list_changed" => {
                self.talks[link].server.conversation.changed(ListKind::Tool);
                self.relist(net, link);
            }
            Ok(Routed::Notification | Routed::Unmatched) | Err(_) => {}
        }
    }

    /// Handles the first frame of a connection: resumes a server or registers a new one.
    fn admit(&mut self, net: &mut Net, wire: usize, text: &str) {
        let registration = Registration::read(text, net.limits.catalog.server_name).unwrap();
        let (id, name) = (registration.id.unwrap(), registration.name.unwrap());
        if let Some(claim) = &registration.claim
            && self.resume(net, wire, &id, claim)
        {
            return;
        }
        let resumes = registration.resumes && !net.limits.link.resume_window.is_zero();
        let link = self.talks.len();
        let (key, replaced) = self.catalog.register(&id, &name, Principal::ANONYMOUS, link).unwrap();
        if let Some(old) = replaced {
            self.gone(net, old, "replaced");
        }
        let token = resumes.then(|| format!("{link} of start {}", self.starts));
        let grant = token.as_deref().map(|token| grant(net, token, None));
        let max = net.limits.link.message_bytes;
        let accepts = registration.message_bytes.expect("our edge tells it");
        net.send(wire, Way::Down, Frame::Text(Status::received(&id, true, max, false, grant.as_ref())));
        let (conversation, ask) = Discovery::start(net.limits.catalog.clone());
        let line = Line::new(resumes, &net.limits.link);
        self.talks.push(Talk {
            mux: Mux::new(net.limits.link.in_flight),
            accepts,
            server: Server { key, conversation, asked: None, listed: false },
            queue: line.queue.clone(),
            line: Some(line),
            wire: Some(wire),
            over: None,
            token,
            gone: false,
        });
        net.wires[wire].talk = Some(link);
        self.own(net, link, ask);
    }

    /// Resumes a server if the token matches. Its old connection, if any, ends without a close
    /// frame.
    fn resume(&mut self, net: &mut Net, wire: usize, id: &str, claim: &Claim) -> bool {
        let Some((_, link)) = self.catalog.holder(id, Principal::ANONYMOUS) else { return false };
        let talk = &mut self.talks[link];
        if talk.token.as_deref() != Some(claim.token.expose()) {
            return false;
        }
        let old = talk.wire.take();
        if let Some(old) = old {
            net.wires[old].talk = None;
            net.hang_up(old);
        }
        if talk.line().outbound.is_past(claim.received) && old.is_some() {
            net.say(|| format!("a claim to talk {link} comes late"));
            let limits = &net.limits.link;
            talk.over = Some(net.now + limits.resume_window + limits.resume_grace);
            self.catalog.set_away(talk.server.key, true);
            net.hang_up(wire);
            return true;
        }
        if talk.line_mut().outbound.resume(claim.received).is_err() {
            net.say(|| format!("talk {link} cannot go on"));
            self.gone(net, link, "it came back and could not go on");
            return false;
        }
        (talk.wire, talk.over) = (Some(wire), None);
        self.catalog.set_away(talk.server.key, false);
        net.wires[wire].talk = Some(link);
        let grant = grant(net, claim.token.expose(), talk.line().outbound.received());
        let max = net.limits.link.message_bytes;
        net.send(wire, Way::Down, Frame::Text(Status::received(id, true, max, false, Some(&grant))));
        self.pump(net, link);
        true
    }

    /// Starts discovery again after a restart of the edge's child.
    fn restarted(&mut self, net: &mut Net, link: usize) {
        let talk = &mut self.talks[link];
        talk.server.asked.take().and_then(|id| talk.mux.close(id));
        let ask = talk.server.conversation.again();
        self.own(net, link, ask);
    }

    /// Requests changed listings once no other request is pending.
    fn relist(&mut self, net: &mut Net, link: usize) {
        if let Some(ask) = self.talks[link].server.conversation.relist().filter(|_| !self.talks[link].gone) {
            self.own(net, link, ask);
        }
    }

    /// Sends one of the gateway's own requests.
    fn own(&mut self, net: &mut Net, link: usize, ask: DiscoveryRequest) {
        let talk = &mut self.talks[link];
        let Ok(id) = talk.mux.open_own(net.now, Caller::Gateway, ask.method, TIMEOUT) else {
            talk.server.conversation.unanswered();
            return;
        };
        talk.server.asked = Some(id);
        for frame in ask.first.into_iter().chain([jsonrpc::request(&id.to_string(), ask.method, &ask.params)])
        {
            if !self.send_reserved(net, link, frame) {
                return self.gone(net, link, "the link does not keep up");
            }
        }
    }

    fn answered(&mut self, net: &mut Net, link: usize, message: &Message<'_>) {
        let server = &mut self.talks[link].server;
        match server.conversation.answered(message) {
            DiscoveryStep::Request(ask) => self.own(net, link, ask),
            DiscoveryStep::ListComplete(kind, tools, next) => {
                assert_eq!((kind, tools.len()), (ListKind::Tool, child::TOOLS.len()));
                server.listed = true;
                if self.catalog.set(server.key, kind, tools).is_some() {
                    self.tools_changed();
                }
                if let Some(ask) = next {
                    self.own(net, link, ask);
                }
            }
            DiscoveryStep::ListFailed(why, next) => {
                // No reason: the server is down.
                assert!(
                    why.as_ref().is_none_or(|why| why.contains("crashed") || why.contains("down")),
                    "an honest server fails: {why:?}"
                );
                if let Some(ask) = next {
                    self.own(net, link, ask);
                }
            }
            // The server crashed before it answered.
            DiscoveryStep::Failed(_) if server.listed => server.conversation.unanswered(),
            DiscoveryStep::Failed(why) => {
                assert!(why.contains("crashed") || why.contains("down"), "an honest server fails: {why}");
                self.gone(net, link, "it was never listed");
            }
        }
        self.relist(net, link);
    }

    fn tools_changed(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.left) {
            client.read(&jsonrpc::notification("notifications/tools/list_changed", None));
        }
    }

    /// A connection has ended at the gateway. `accident`: without a close frame, so the server may
    /// resume.
    pub fn wire_down(&mut self, net: &mut Net, wire: usize, accident: bool, why: &str) {
        net.say(|| format!("connection {wire} is down at the gateway: {why}"));
        let Some(link) = net.wires[wire].talk.take() else { return };
        let talk = &mut self.talks[link];
        talk.wire = None;
        if !accident || talk.token.is_none() {
            return self.gone(net, link, why);
        }
        talk.over = Some(net.now + net.limits.link.resume_window + net.limits.link.resume_grace);
        self.catalog.set_away(talk.server.key, true);
    }

    /// Removes a server and fails its pending calls at once. Closes its connection if there is one.
    pub fn gone(&mut self, net: &mut Net, link: usize, why: &str) {
        let talk = &mut self.talks[link];
        if std::mem::replace(&mut talk.gone, true) {
            return;
        }
        net.say(|| format!("talk {link} is gone: {why}"));
        if let Some(wire) = talk.wire.take() {
            net.wires[wire].talk = None;
            net.close_with_frame(wire);
        }
        let removed = self.catalog.remove(talk.server.key);
        let mut waiting = talk.mux.drain();
        // Sort, because the order of the table is random and a seed must always give the same run.
        waiting.sort_by_key(|pending| match &pending.caller {
            Caller::Gateway => None,
            Caller::Client(place, id) => Some((*place, id.to_string())),
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

    /// Runs the due timers: request timeouts, resume windows, acknowledgements.
    pub fn tick(&mut self, net: &mut Net) {
        for link in 0..self.talks.len() {
            let talk = &mut self.talks[link];
            if talk.over.is_some_and(|over| over <= net.now) && !talk.gone {
                self.gone(net, link, "it did not come back");
            }
            self.expire(net, link);
            let talk = &mut self.talks[link];
            if talk.wire.is_some() {
                talk.line_mut().outbound.tick(net.now, &net.limits.link);
            }
            self.pump(net, link);
        }
        assert!(self.deadline(net).is_none_or(|due| due > net.now), "a deadline is past");
    }

    /// Fails calls that have timed out.
    fn expire(&mut self, net: &mut Net, link: usize) {
        let mut expired = Vec::new();
        self.talks[link].mux.tick(net.now, &mut expired);
        expired.sort_unstable_by_key(|(id, _)| *id);
        for (id, pending) in expired {
            self.send(net, link, edit::cancelled(id, "no answer in time"));
            let Caller::Gateway = pending.caller else {
                self.fail(pending, jsonrpc::TIMED_OUT);
                continue;
            };
            let server = &mut self.talks[link].server;
            if server.listed {
                server.conversation.unanswered();
            } else {
                self.gone(net, link, "it was never listed");
            }
        }
    }

    /// Ends the run: removes all servers and clients.
    pub fn end(&mut self, net: &mut Net) {
        (0..self.talks.len()).for_each(|link| self.gone(net, link, "the end"));
        (0..self.clients.len()).for_each(|client| self.leave(net, client));
    }

    // ---- invariants

    /// Returns the line of a server.
    pub fn line(&self, link: usize) -> &Line {
        self.talks[link].line()
    }

    /// Returns the line of the server with this token.
    pub fn counted(&self, token: &str) -> Option<&Line> {
        let alive = self.talks.iter().filter(|talk| !talk.gone);
        alive.filter(|talk| talk.token.as_deref() == Some(token)).map(Talk::line).next()
    }

    pub fn check(&self, net: &Net) {
        let mut pending = 0;
        for (link, talk) in self.talks.iter().enumerate() {
            // One more for the gateway's own request.
            assert!(talk.mux.len() <= net.limits.link.in_flight + 1);
            assert!(!talk.gone || talk.mux.is_empty(), "server {link} is gone and somebody waits");
            assert!(talk.gone || talk.wire.is_some() != talk.over.is_some(), "server {link} is nowhere");
            talk.line().check(&net.limits.link);
            pending += talk.mux.len();
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
        assert!(pending <= calls + self.talks.len(), "a link waits for what no client asked");
        assert_eq!(self.catalog.len(), self.talks.iter().filter(|talk| !talk.gone).count());
    }

    /// Checks that nothing is left.
    pub fn check_empty(&self) {
        assert!(self.talks.iter().all(|talk| talk.mux.is_empty() && talk.mux.deadline().is_none()));
        assert!(self.clients.iter().all(|client| client.calls.is_empty() && client.open.is_empty()));
        assert!(self.catalog.is_empty() && self.sessions.is_empty());
        let own = format!("{{\"tools\":[{}]}}", mcp::LIST_SERVERS);
        assert_eq!(self.catalog.list(ListKind::Tool, None).as_deref(), Some(own.as_str()));
    }
}

fn grant(net: &Net, token: &str, received: Option<u64>) -> ResumeGrant {
    ResumeGrant { token: Secret::new(token), window: net.limits.link.resume_window, received }
}
