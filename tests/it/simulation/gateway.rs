//! The simulated gateway: the real hub, behind links and sessions without sockets. What is done here
//! with the links is what `gateway::link` does.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;
use mcpport::{
    auth::{Principal, Tokens, rule::Rule},
    budget::Budget,
    config::EraPin,
    hub::{
        entry::{self, Enter, LinkTraits},
        key::Sealing,
        registration::NewUpstream,
        session::Scope,
        state::{HubConfig, Sizes},
    },
    secret::{
        Digest, Secret,
        seal::{KEY_BYTES, SealKey},
    },
    tunnel::{
        CLOSE_LATER,
        close::CloseReason,
        handshake::{Registration, ResumeGrant, Status},
        outbound::TextFrame,
    },
};

use super::{
    Frame, Net, Random, Way, child,
    client::Client,
    entry::{Entry, Shared},
    line::{Line, Queue},
};

/// A registered server, over one or more connections.
struct Link {
    traits: LinkTraits,
    queue: Queue,
    /// `None` while it handles a frame, and once the server is gone.
    line: Option<Line>,
    /// The current connection.
    wire: Option<usize>,
    /// When the gateway stops waiting for a resume.
    over: Option<Instant>,
    /// The token for resuming; `None` if the edge cannot resume.
    token: Option<Secret>,
    gone: bool,
}

impl Link {
    fn line(&self) -> &Line {
        self.line.as_ref().expect("no frame is being handled")
    }

    fn line_mut(&mut self) -> &mut Line {
        self.line.as_mut().expect("no frame is being handled")
    }
}

/// A first frame that waits until its edge has answered a ping.
struct Probed {
    wire: usize,
    registration: Registration,
}

pub struct Gateway {
    shared: Shared,
    links: Vec<Link>,
    probed: Vec<Probed>,
    /// Principals of the clients, and of the edges.
    clients: [Principal; 2],
    edges: [Principal; 2],
    /// Number of starts.
    starts: u8,
    /// When the gateway is up again after a restart.
    pub there: Instant,
}

/// The number of the account of all edges; those before it are of the clients.
const EDGES: usize = 2;

impl Gateway {
    /// `gentle`: no call may be lost. `isolates`: an edge gives each session its own process.
    pub fn new(net: &mut Net, clients: usize, servers: usize, (gentle, isolates): (bool, bool)) -> Self {
        let given = ["client@one:a", "client@two:b", "register[s*]@edges:c", "register[s*]@others:d"];
        let tokens = Tokens::new(given.iter().map(|given| Rule::read(given).unwrap()).collect()).unwrap();
        let principal = |token: &str| tokens.find(&Digest::of(token.as_bytes())).unwrap().principal;
        let (owners, edges) = ([principal("a"), principal("b")], [principal("c"), principal("d")]);
        let config = HubConfig {
            limits: net.limits.clone(),
            // A server whose first listing times out is removed, with the calls that it has.
            timeout_rpc: Duration::from_secs(if gentle { 60 } else { 6 }),
            timeout_run_tool: net.random.millis(4000, 12_000),
            sealing: Sealing { key: Arc::new(SealKey::new([0; KEY_BYTES])), started: net.now },
        };
        let clients = (0..clients).map(|place| {
            // Several at one server that has tasks.
            let server = if net.random.chance(60) { 1 % servers } else { net.random.below(servers) };
            let scope = match net.random.chance(35) {
                true => Scope::Server(child::name(server)),
                false => Scope::All,
            };
            let transport = (net.random.chance(50), net.random.chance(50));
            let mut client = Client::new(place, owners[place % 2], scope, transport);
            client.plans = 3 + net.random.below(8);
            client.isolates = isolates;
            client
        });
        let clients = (clients.collect(), servers, gentle, isolates);
        let budget = Budget::new(net.limits.memory.bytes);
        budget.share(true);
        let random = Random(net.random.number().into());
        let shared = Shared::new((Arc::new(tokens), budget), random, config, clients);
        let (links, probed) = (Vec::new(), Vec::new());
        Self { shared, links, probed, clients: owners, edges, starts: 1, there: net.now }
    }

    /// Kills the gateway and restarts it after a delay. It loses all state; all connections end
    /// without a close frame.
    pub fn restart(&mut self, net: &mut Net) {
        self.starts += 1;
        self.links.clear();
        self.probed.clear();
        self.shared.restart();
        self.there = net.now + net.random.millis(0, 5000);
        for wire in 0..net.wires.len() {
            net.wires[wire].talk = None;
            net.hang_up(wire);
        }
    }

    /// Returns the time of the next timer, apart from those of the connections.
    pub fn deadline(&self, net: &Net) -> Option<Instant> {
        let alive = self.links.iter().filter(|link| !link.gone);
        let due = |link: &Link| {
            let owed = link.wire.and_then(|_| link.line().outbound.deadline(&net.limits.link));
            link.over.into_iter().chain(owed).min()
        };
        let hub = self.shared.hub.borrow();
        alive.filter_map(due).chain(hub.deadline()).chain(hub.list_notices_due()).min()
    }

    // ---- clients

    /// Whether every client has all its responses.
    pub fn is_done(&self) -> bool {
        self.shared.clients.borrow().iter().all(Client::is_done)
    }

    /// Returns what each client has seen.
    pub fn histories(&self) -> Vec<String> {
        self.shared.clients.borrow().iter().map(|client| client.history.clone()).collect()
    }

    /// Makes a client do one random action. Returns the delay until its next action, or `None` if
    /// it is done.
    pub fn act(&mut self, net: &mut Net, place: usize) -> Option<Duration> {
        if self.shared.clients.borrow()[place].is_done() {
            return None;
        }
        let stranger = self.clients[1 - place % 2];
        self.shared.check_owner(net.now, place, stranger);
        match net.random.below(100) {
            0..3 => self.intrude(net),
            _ => self.shared.act(&self.shared.entry(net.now), place),
        }
        self.settle(net);
        let pause = if net.random.chance(50) { 3000 } else { 120 };
        Some(net.random.millis(1, pause))
    }

    /// Tries to register with a name or an id that is in use.
    fn intrude(&mut self, net: &mut Net) {
        let place = net.random.below(4);
        let name = child::name(place);
        if !self.shared.hub.borrow().is_connected(&name) {
            return;
        }
        for (id, principal) in [("other".to_owned(), self.edges[0]), (format!("id-{place}"), self.edges[1])] {
            let registration = Registration::read(
                &Registration::frame(&id, &name, 1 << 20, None, EraPin::Auto, None),
                net.limits.catalog.server_name,
            );
            let refused = self.register(net, &self.shared.quiet(net.now), (registration.unwrap(), principal));
            let why = refused.err().expect("the name is taken").reason;
            assert!(
                why.contains("belongs to another") || why.contains("reserved for a lost server"),
                "{why}"
            );
        }
    }

    // ---- links

    /// Handles a text frame from an edge.
    pub fn frame(&mut self, net: &mut Net, wire: usize, text: &str) {
        let Some(link) = net.wires[wire].talk else { return self.first_frame(net, wire, text) };
        if text.contains("\"restarted\"") {
            // Tasks are bound to one run of their server.
            self.shared.tasks.take();
        }
        let Link { line, traits, .. } = &mut self.links[link];
        let (mut line, traits) = (line.take().expect("one frame at a time"), *traits);
        let (now, limits) = (net.now, net.limits.link.clone());
        let entry = self.shared.entry(now);
        let handled = line.on_text(now, text, &limits, |text| entry::frame(&entry, now, traits, text));
        self.links[link].line = Some(line);
        match handled {
            Ok(TextFrame::Acknowledgement) => net.timers(wire, Way::Up).on_acknowledged(),
            Ok(TextFrame::Message) => {}
            Err(why) => self.gone(net, link, &why.reason),
        }
        self.settle(net);
    }

    /// Handles the first frame of a connection. If a link of its server appears to be alive, the
    /// edge has to answer a ping first: the frame may be late.
    fn first_frame(&mut self, net: &mut Net, wire: usize, text: &str) {
        let mut registration = Registration::read(text, net.limits.catalog.server_name).unwrap();
        if net.original {
            (registration.reads_status_frames, registration.resumes) = (false, false);
            (registration.claim, registration.sessions) = (None, None);
        }
        if self.shared.hub.borrow().would_take_over(&registration, self.edges[0]) {
            net.send(wire, Way::Down, Frame::Ping);
            self.probed.push(Probed { wire, registration });
            return;
        }
        self.admit(net, wire, registration);
    }

    /// The edge has answered a ping.
    pub fn pong(&mut self, net: &mut Net, wire: usize) {
        if let Some(place) = self.probed.iter().position(|probed| probed.wire == wire) {
            let Probed { registration, .. } = self.probed.swap_remove(place);
            self.admit(net, wire, registration);
        }
    }

    /// Resumes a server or registers a new one.
    fn admit(&mut self, net: &mut Net, wire: usize, registration: Registration) {
        if !self.resume(net, wire, &registration) {
            match self.register(net, &self.shared.entry(net.now), (registration, self.edges[0])) {
                Ok((link, answer)) => {
                    self.shared.tasks.take();
                    net.wires[wire].talk = Some(self.links.len());
                    self.links.push(Link { wire: Some(wire), ..link });
                    net.send(wire, Way::Down, Frame::Text(answer));
                }
                Err(why) => {
                    assert_eq!(why.code, CLOSE_LATER, "{}", why.reason);
                    net.say(|| format!("connection {wire} is refused: {}", why.reason));
                    net.close_with_frame(wire);
                }
            }
        }
        self.settle(net);
    }

    fn register(
        &self,
        net: &mut Net,
        entry: &Entry<'_>,
        (registration, principal): (Registration, Principal),
    ) -> Result<(Link, String), CloseReason> {
        let limits = &net.limits.link;
        let (id, name) = (registration.id.unwrap(), registration.name.unwrap());
        let resumes = registration.resumes && !limits.resume_window.is_zero();
        let token = resumes.then(|| Secret::new(format!("{} of start {}", net.random.number(), self.starts)));
        let account = self.shared.account(EDGES);
        let line = Line::new(resumes, limits, &account);
        let (is_isolating, reads_status_frames) =
            (registration.sessions.is_some(), registration.reads_status_frames);
        let new = NewUpstream {
            id: id.clone(),
            name: name.clone(),
            principal,
            account,
            transport: Arc::new(line.queue.clone()),
            accepts: registration.message_bytes,
            max_instances: registration.sessions,
            reads_status_frames,
            resume_token: token.clone(),
            era: None,
        };
        let key = entry.enter(|hub, fx| hub.register(net.now, new, fx))?;
        self.shared.queues.borrow_mut().insert(key, line.queue.clone());
        let grant = token.clone().map(|token| grant(net, token, None));
        let answer = Status::received(
            &id,
            reads_status_frames,
            limits.message_bytes,
            is_isolating,
            false,
            grant.as_ref(),
        );
        let traits = LinkTraits { server: key, is_isolating, reads_status_frames };
        let (queue, line) = (line.queue.clone(), Some(line));
        Ok((Link { traits, queue, line, wire: None, over: None, token, gone: false }, answer))
    }

    /// Resumes a server if the claim matches. Its old connection, if any, ends without a close
    /// frame.
    fn resume(&mut self, net: &mut Net, wire: usize, registration: &Registration) -> bool {
        let Some(claim) = &registration.claim else { return false };
        let claimed = self.shared.hub.borrow().claim(registration, claim, self.edges[0]);
        let Some(claimed) = claimed else { return false };
        let Some(link) = self.links.iter().position(|link| link.traits.server == claimed.key && !link.gone)
        else {
            return false;
        };
        let talk = &mut self.links[link];
        if talk.queue.is_ended() && talk.wire.is_none() {
            return false;
        }
        let old = talk.wire.take();
        if let Some(old) = old {
            net.wires[old].talk = None;
            net.hang_up(old);
        }
        if talk.line().outbound.is_past(claim.received) && old.is_some() {
            net.say(|| format!("a claim to talk {link} comes late"));
            net.hang_up(wire);
            self.set_away(net, link);
            return true;
        }
        if talk.line_mut().outbound.resume(claim.received).is_err() {
            net.say(|| format!("talk {link} cannot go on"));
            self.gone(net, link, "it reconnected but could not resume");
            return false;
        }
        let grant = grant(net, claimed.token, talk.line().outbound.received());
        self.shared.entry(net.now).enter(|hub, _| hub.set_away(claimed.key, false));
        (self.links[link].wire, self.links[link].over) = (Some(wire), None);
        net.wires[wire].talk = Some(link);
        let sessions = claimed.is_isolating && registration.sessions.is_some();
        let (id, max) = (registration.id.as_deref().unwrap(), net.limits.link.message_bytes);
        net.send(
            wire,
            Way::Down,
            Frame::Text(Status::received(id, true, max, sessions, false, Some(&grant))),
        );
        true
    }

    /// Waits for another connection of a server.
    fn set_away(&mut self, net: &Net, link: usize) {
        let limits = &net.limits.link;
        let link = &mut self.links[link];
        link.over = Some(net.now + limits.resume_window + limits.resume_grace);
        let server = link.traits.server;
        self.shared.entry(net.now).enter(|hub, _| hub.set_away(server, true));
    }

    /// A connection has ended at the gateway. `accident`: without a close frame, so the server may
    /// resume.
    pub fn wire_down(&mut self, net: &mut Net, wire: usize, accident: bool, why: &str) {
        net.say(|| format!("connection {wire} is down at the gateway: {why}"));
        self.probed.retain(|probed| probed.wire != wire);
        let Some(link) = net.wires[wire].talk.take() else { return };
        self.links[link].wire = None;
        if !accident || self.links[link].token.is_none() {
            self.gone(net, link, why);
        } else {
            self.set_away(net, link);
        }
        self.settle(net);
    }

    /// Removes a server, which fails its pending calls at once. Closes its connection if there is
    /// one.
    fn gone(&mut self, net: &mut Net, link: usize, why: &str) {
        let talk = &mut self.links[link];
        if std::mem::replace(&mut talk.gone, true) {
            return;
        }
        net.say(|| format!("talk {link} is gone: {why}"));
        if let Some(wire) = talk.wire.take() {
            net.wires[wire].talk = None;
            net.close_with_frame(wire);
        }
        let server = talk.traits.server;
        let line = talk.line.take();
        self.shared.queues.borrow_mut().remove(&server);
        self.shared.entry(net.now).enter(|hub, fx| hub.remove_server(net.now, server, why, fx));
        drop(line);
    }

    /// Ends the links that the hub has closed, sends the frames that it has queued, and lets the
    /// clients read.
    fn settle(&mut self, net: &mut Net) {
        self.shared.deliver(net.now);
        for link in 0..self.links.len() {
            let talk = &mut self.links[link];
            let ended = match (&mut talk.line, talk.wire) {
                (None, _) => None,
                (Some(line), Some(wire)) => line.pump(net, wire, Way::Down),
                (Some(line), None) => future::block_on(future::poll_once(line.outbound.ended())),
            };
            if let Some(why) = ended {
                self.gone(net, link, &why.reason);
                self.shared.deliver(net.now);
            }
        }
    }

    /// Runs the due timers. What they cause may be due at once, too.
    pub fn tick(&mut self, net: &mut Net) {
        for _ in 0..8 {
            self.tick_once(net);
            if self.deadline(net).is_none_or(|due| due > net.now) {
                return;
            }
        }
        panic!("a deadline is past: {:?} after {:?}", self.deadline(net), net.now);
    }

    fn tick_once(&mut self, net: &mut Net) {
        let now = net.now;
        let entry = self.shared.entry(now);
        if self.shared.hub.borrow().deadline().is_some_and(|due| due <= now) {
            entry.enter(|hub, fx| hub.tick(now, fx));
        }
        if self.shared.hub.borrow().list_notices_due().is_some_and(|due| due <= now) {
            let notices = entry.enter(|hub, _| hub.take_list_notices(now));
            for (streams, notice) in notices {
                streams.iter().for_each(|stream| stream.notice(&notice, &self.shared.stats));
            }
        }
        for link in 0..self.links.len() {
            let talk = &mut self.links[link];
            if talk.over.is_some_and(|over| over <= now) && !talk.gone {
                self.gone(net, link, "it did not come back");
            } else if talk.wire.is_some() {
                talk.line_mut().outbound.tick(now, &net.limits.link);
            }
        }
        self.settle(net);
    }

    /// Ends the run: removes all servers and clients.
    pub fn end(&mut self, net: &mut Net) {
        (0..self.links.len()).for_each(|link| self.gone(net, link, "the end"));
        let clients = self.shared.clients.borrow().len();
        (0..clients).for_each(|client| self.shared.leave(&self.shared.entry(net.now), client));
        self.settle(net);
    }

    // ---- invariants

    /// Returns the line of a server.
    pub fn line(&self, link: usize) -> &Line {
        self.links[link].line()
    }

    /// Returns the line of the server with this token.
    pub fn counted(&self, token: &str) -> Option<&Line> {
        let is_it = |link: &&Link| link.token.as_ref().is_some_and(|own| own.expose() == token);
        self.links.iter().filter(|link| !link.gone).find(is_it).map(Link::line)
    }

    pub fn check(&self, net: &Net) {
        let alive = || self.links.iter().filter(|link| !link.gone);
        for link in alive() {
            assert!(link.wire.is_some() != link.over.is_some(), "server {:?} is nowhere", link.traits.server);
            link.line().check(&net.limits.link);
        }
        self.shared.check_hub();
        // A link that the hub has ended may still have frames to send.
        let open = alive().filter(|link| !link.queue.is_ended()).count();
        assert!(
            (open..=alive().count()).contains(&self.shared.hub.borrow().sizes().servers),
            "the links of servers"
        );
        let (clients, inbox) = (self.shared.clients.borrow(), self.shared.inbox.borrow());
        let wanted: BTreeSet<_> = clients.iter().flat_map(Client::resources).collect();
        assert_eq!(self.shared.hub.borrow().sizes().subscriptions, wanted.len(), "{wanted:?}");
        clients.iter().for_each(|client| client.check(net.now, net.limits.session.in_flight));
        let open: usize = clients.iter().map(|client| client.open.len()).sum();
        assert_eq!((inbox.open(), inbox.unanswered()), (open, 0), "a request is lost");
        assert_eq!(self.shared.stats.panics.get(), 0);
    }

    /// Checks that nothing is left.
    pub fn check_empty(&self, net: &Net) {
        let nothing = Sizes { servers: 0, sessions: 0, subscriptions: 0, listens: 0, tasks: 0 };
        assert_eq!(self.shared.hub.borrow().sizes(), nothing);
        assert_eq!(self.shared.hub.borrow().deadline(), None);
        assert_eq!(self.shared.budget.used(), 0, "bytes are still charged");
        self.shared.check_lists(net.now);
    }
}

fn grant(net: &Net, token: Secret, received: Option<u64>) -> ResumeGrant {
    ResumeGrant { token, window: net.limits.link.resume_window, received }
}
