//! The real hub, entered without a lock. Now and then another event happens just before an entry:
//! what another thread might do at that moment.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use mcpport::{
    auth::{Principal, Tokens},
    budget::{Account, Budget},
    catalog::UpstreamKey,
    hub::{
        effect::Effects,
        entry::{self, Enter},
        peers::{Responder, Transport},
        request::ResourceMethod,
        session::{NewSession, Scope},
        state::{Hub, HubConfig},
    },
    jsonrpc::{self, Message},
    mcp::{self, exposed_name::exposed},
    metrics::Stats,
    session,
    tunnel::close::CloseReason,
};

use super::{
    Random, child,
    client::{Ask, Client, Length, Next, Resource, Session},
    line::Queue,
    peers::{Address, Delivered, Inbox, SimResponder, SimStream},
};

/// The hub, with all that enters it.
pub struct Shared {
    pub hub: RefCell<Hub>,
    pub stats: Arc<Stats>,
    pub tokens: Arc<Tokens>,
    pub budget: Budget,
    accounts: RefCell<BTreeMap<usize, Account>>,
    pub inbox: RefCell<Arc<Inbox>>,
    pub clients: RefCell<Vec<Client>>,
    /// The queues of the registered servers.
    pub queues: RefCell<BTreeMap<UpstreamKey, Queue>>,
    random: RefCell<Random>,
    /// Number of servers that clients know.
    servers: usize,
    /// Whether no server is removed while it has calls.
    gentle: bool,
    /// Whether an edge gives each session its own process.
    isolates: bool,
    config: HubConfig,
    /// Calls that have begun a task, as long as the hub must know its owner.
    pub tasks: RefCell<BTreeSet<String>>,
    /// Whether the hub was entered since its tables were last checked.
    entered: Cell<bool>,
    /// The last number of a session or a POST.
    number: Cell<u64>,
}

/// An entry into the hub at a time. `seams`: other events may happen before it.
pub struct Entry<'g> {
    shared: &'g Shared,
    pub now: Instant,
    seams: bool,
}

impl Enter for Entry<'_> {
    fn enter<'m, R>(&self, work: impl FnOnce(&mut Hub, &mut Effects<'m>) -> R) -> R {
        if self.seams {
            self.shared.seam(self.now);
        }
        let mut effects = Effects::default();
        let result = {
            let mut hub = self.shared.hub.borrow_mut();
            let before = (hub.deadline(), hub.list_notices_due());
            let result = work(&mut hub, &mut effects);
            let after = (hub.deadline(), hub.list_notices_due());
            let is_earlier = |after: Option<Instant>, before: Option<Instant>| {
                after.is_some_and(|after| before.is_none_or(|before| after < before))
            };
            assert!(
                !is_earlier(after.0, before.0) || effects.deadline_changed,
                "nobody hears of the earlier deadline"
            );
            assert!(
                !is_earlier(after.1, before.1) || effects.lists_changed,
                "nobody hears of the changed lists"
            );
            result
        };
        effects.apply(&self.shared.stats);
        self.shared.entered.set(true);
        result
    }

    fn stats(&self) -> &Stats {
        &self.shared.stats
    }
}

impl Shared {
    pub fn new(
        (tokens, budget): (Arc<Tokens>, Budget),
        random: Random,
        config: HubConfig,
        (clients, servers, gentle, isolates): (Vec<Client>, usize, bool, bool),
    ) -> Self {
        let stats = Arc::<Stats>::default();
        Self {
            hub: RefCell::new(Hub::new(config.clone(), tokens.clone(), stats.clone())),
            stats,
            tokens,
            budget,
            accounts: RefCell::default(),
            inbox: RefCell::default(),
            clients: RefCell::new(clients),
            queues: RefCell::default(),
            random: RefCell::new(random),
            servers,
            gentle,
            isolates,
            config,
            tasks: RefCell::default(),
            entered: Cell::new(false),
            number: Cell::new(0),
        }
    }

    /// Replaces the hub with a new one, and lets the clients begin again.
    pub fn restart(&self) {
        self.hub.replace(Hub::new(self.config.clone(), self.tokens.clone(), self.stats.clone()));
        self.clients.borrow_mut().iter_mut().for_each(Client::begin_again);
        self.inbox.take();
        self.tasks.take();
        self.queues.borrow_mut().clear();
    }

    pub fn entry(&self, now: Instant) -> Entry<'_> {
        Entry { shared: self, now, seams: true }
    }

    /// Returns an entry before which nothing else happens.
    pub fn quiet(&self, now: Instant) -> Entry<'_> {
        Entry { shared: self, now, seams: false }
    }

    fn number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    /// Returns the account with this number, creating it on first use.
    pub fn account(&self, number: usize) -> Account {
        self.accounts.borrow_mut().entry(number).or_insert_with(|| self.budget.account()).clone()
    }

    fn chance(&self, percent: usize) -> bool {
        self.random.borrow_mut().chance(percent)
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// Lets another thread do something, now and then.
    fn seam(&self, now: Instant) {
        if !self.chance(4) {
            return;
        }
        let entry = self.quiet(now);
        let client = self.below(self.clients.borrow().len());
        match self.below(12) {
            0 => entry.enter(|hub, fx| hub.tick(now, fx)),
            1 if !self.gentle => {
                let queues = self.queues.borrow();
                let cut =
                    queues.iter().nth(self.below(queues.len())).map(|(key, queue)| (*key, queue.clone()));
                drop(queues);
                if let Some((key, queue)) = cut.filter(|_| self.chance(5)) {
                    queue.close(CloseReason::new(1001, "cut at a seam"));
                    entry.enter(|hub, fx| hub.remove_server(now, key, "cut at a seam", fx));
                }
            }
            2..6 => self.act(&entry, client),
            _ => self.cancel(&entry, client),
        }
    }

    // ---- clients

    /// Makes a client do one random action.
    pub fn act(&self, entry: &Entry<'_>, place: usize) {
        let (has_session, initialized, busy, stale, done) = {
            let clients = self.clients.borrow();
            let client = &clients[place];
            let done = client.is_done() || client.leaves;
            (client.session.is_some(), client.initialized, !client.open.is_empty(), client.stale, done)
        };
        match self.below(100) {
            _ if done => {}
            // Its server is not there; it may never be. The client gives up, call by call.
            15.. if !has_session && !self.is_reachable(place) => {}
            5.. if !has_session && !self.is_reachable(place) => {
                let client = &mut self.clients.borrow_mut()[place];
                client.plans = client.plans.saturating_sub(1);
            }
            _ if !has_session => self.begin(entry, place),
            0..2 => self.leave(entry, place),
            2..4 => self.close(entry, place),
            4..17 => self.cancel(entry, place),
            17..20 => {
                let random = self.random.borrow_mut().number();
                self.clients.borrow()[place].hang_up(random);
            }
            _ if !initialized && !busy => self.ask(entry, place, Ask::Initialize),
            _ if !initialized => {}
            20..30 | 90.. if stale => self.ask(entry, place, Ask::Tools),
            // No seams: what the client expects of these is in the tables at once.
            30..45 => self.more(&self.quiet(entry.now), place),
            _ => self.call(entry, place),
        }
    }

    /// Returns whether the server of a client's endpoint is registered.
    fn is_reachable(&self, place: usize) -> bool {
        let clients = self.clients.borrow();
        clients[place].scope.server().is_none_or(|server| self.hub.borrow().is_connected(server))
    }

    /// Begins a session.
    fn begin(&self, entry: &Entry<'_>, place: usize) {
        let number = self.number();
        let inbox = self.inbox.borrow().clone();
        let address = Address { inbox, client: place, session: number, stream: number };
        let mut random = [0; 16];
        random.iter_mut().for_each(|byte| *byte = self.random.borrow_mut().number() as u8);
        let id = session::id(random);
        let (principal, scope, listens, legacy) = {
            let client = &self.clients.borrow()[place];
            (client.principal, client.scope.clone(), client.listens, client.legacy)
        };
        let stream = Arc::new(SimStream::new(address.clone(), listens));
        let account = self.account(place % 2);
        let new = NewSession { id: id.clone(), principal, account, scope: scope.clone(), stream };
        // No seam here, where the client could begin another session.
        let quiet = self.quiet(entry.now);
        let key = quiet.enter(|hub, _| hub.begin_session(new));
        if legacy {
            quiet.enter(|hub, fx| hub.open_session(entry.now, key, fx)).expect("there is room");
        }
        let stream = legacy.then(|| Arc::new(SimResponder::new(address.clone(), true)));
        let session = Session { key, id, number, scope, address, stream };
        self.clients.borrow_mut()[place].session = Some(Rc::new(session));
        self.ask(entry, place, Ask::Initialize);
    }

    /// Sends a request.
    pub fn ask(&self, entry: &Entry<'_>, place: usize, ask: Ask) {
        let number = self.number();
        let timeout = match &ask {
            Ask::Initialize | Ask::Call { .. } => self.config.timeout_run_tool,
            Ask::Tools | Ask::Resource(..) | Ask::Level(_) | Ask::Task(_) => self.config.timeout_rpc,
        };
        // A call waits until the process of its session is initialized.
        let timeout = if self.isolates { timeout + self.config.timeout_run_tool } else { timeout };
        let Some((session, text, responder)) = ({
            let client = &mut self.clients.borrow_mut()[place];
            client.session.clone().map(|session| {
                let (text, responder) = client.ask(entry.now, ask, number, timeout);
                (session, text, responder)
            })
        }) else {
            return;
        };
        let responder: Arc<dyn Responder> = responder;
        let message = Message::read(&text).unwrap();
        let wanted = entry::message(entry, entry.now, session.client(), &message, &responder);
        assert!(wanted.is_none(), "there are few servers");
    }

    /// Calls a tool. The server may not exist, or not be registered yet.
    fn call(&self, entry: &Entry<'_>, place: usize) {
        let missing = usize::from(self.chance(10));
        let server = child::name(self.below(self.servers + missing));
        let tool = child::TOOLS[self.below(child::TOOLS.len())];
        let ask = {
            let client = &mut self.clients.borrow_mut()[place];
            let tool = match client.scope {
                Scope::All => exposed(&server, tool, self.config.limits.catalog.exposed_name),
                Scope::Server(_) => tool.to_owned(),
            };
            if client.plans == 0 {
                return;
            }
            if client.scope == Scope::All && !client.tools.contains(&tool) && self.chance(95) {
                return client.stale |= self.chance(20);
            }
            client.plans -= 1;
            let length = match self.below(25) {
                0 => Length::TooLong,
                1 => Length::Long,
                _ => Length::Short,
            };
            let may_begin =
                |place| child::has_more(place) && client.scope.server() == Some(&child::name(place));
            let task = (0..self.servers).any(may_begin) && self.chance(60);
            Ask::Call { tool, length, progress: self.chance(80), task }
        };
        self.ask(entry, place, ask);
    }

    /// Does something with a resource, the log level or a task.
    fn more(&self, entry: &Entry<'_>, place: usize) {
        let scope = self.clients.borrow()[place].scope.clone();
        let server = match &scope {
            Scope::All => self.below(self.servers),
            Scope::Server(name) => (0..self.servers).find(|place| child::name(*place) == *name).unwrap_or(0),
        };
        let kinds = if scope == Scope::All { 8 } else { 16 };
        let ask = match self.below(kinds) {
            0 | 1 => Ask::Level(self.below(child::LEVELS.len())),
            8.. => Ask::Task(format!("t{}", self.below(3))),
            method => {
                let number = self.below(child::RESOURCES);
                let mut uri = child::uri(server, number);
                // A URI that is not listed, or that names a server which is not connected, may go to
                // the only server that ever had resources.
                if !self.hub.borrow().is_connected(&child::name(server)) {
                    return;
                }
                // The process of a session would answer for resources that it has not.
                if self.isolates && !child::has_more(server) {
                    return;
                }
                // A server that is not listed yet may be removed at any time.
                if self.gentle && scope == Scope::All && !self.clients.borrow()[place].has_seen(server) {
                    return;
                }
                let is_only = child::has_more(server) && self.servers <= 2;
                if scope == Scope::All && !(is_only && self.chance(50)) {
                    uri.insert_str(0, &format!("{}+", child::name(server)));
                }
                let resource = Resource { id: (server, number), uri };
                let method = match method {
                    2 => ResourceMethod::Read,
                    3 => ResourceMethod::Unsubscribe,
                    _ if self.clients.borrow()[place].is_subscribing(&resource) => return,
                    _ => ResourceMethod::Subscribe,
                };
                Ask::Resource(method, resource)
            }
        };
        self.ask(entry, place, ask);
    }

    /// Cancels an open request.
    fn cancel(&self, entry: &Entry<'_>, place: usize) {
        let random = self.random.borrow_mut().number();
        let (session, text) = {
            let client = &mut self.clients.borrow_mut()[place];
            (client.session.clone(), client.cancel(random))
        };
        if let (Some(session), Some(text)) = (session, text) {
            self.notify(entry, place, &session, &text);
        }
    }

    /// Sends a notification, or a response to a server's request.
    fn notify(&self, entry: &Entry<'_>, place: usize, session: &Session, text: &str) {
        let message = Message::read(text).unwrap();
        let address = Address { client: place, ..session.address.clone() };
        let nowhere: Arc<dyn Responder> = Arc::new(SimResponder::new(address, false));
        entry::message(entry, entry.now, session.client(), &message, &nowhere);
    }

    /// Ends the session of a client for good.
    pub fn leave(&self, entry: &Entry<'_>, place: usize) {
        self.clients.borrow_mut()[place].leave();
        self.close(entry, place);
    }

    /// Ends the session of a client.
    fn close(&self, entry: &Entry<'_>, place: usize) {
        let session = self.clients.borrow()[place].session.clone();
        if let Some(session) = session {
            entry.enter(|hub, fx| hub.close_session(entry.now, session.key, "the client left", fx));
        }
    }

    /// Lets the clients read what they were sent.
    pub fn deliver(&self, now: Instant) {
        let entry = self.quiet(now);
        let inbox = self.inbox.borrow().clone();
        while let Some(delivery) = inbox.take() {
            let place = delivery.client;
            let session = self.clients.borrow()[place].session.clone();
            let is_alive = |session: &Rc<Session>| self.hub.borrow().view(session.key).is_some();
            let alive = session.as_ref().is_some_and(is_alive);
            let next = self.clients.borrow_mut()[place].read(now, delivery, alive);
            let Some(session) = session else { continue };
            match next {
                Next::Nothing => {}
                Next::Refused => self.close(&entry, place),
                Next::Begun(nonce) => drop(self.tasks.borrow_mut().insert(nonce)),
                Next::Shown(nonce) => {
                    let owner = nonce.parse::<usize>().unwrap() / 1000 - 1;
                    let known = self.tasks.borrow().contains(&nonce);
                    assert!(!known || owner % 2 == place % 2, "client {place} gets the task of call {nonce}");
                }
                Next::Initialized => {
                    if session.stream.is_none() {
                        let opened = entry.enter(|hub, fx| hub.open_session(now, session.key, fx));
                        opened.expect("there is room");
                    }
                    self.clients.borrow_mut()[place].initialized = alive;
                    let text = jsonrpc::notification("notifications/initialized", None);
                    self.notify(&entry, place, &session, &text);
                }
            }
        }
    }

    /// Checks the tables of the hub, unless nothing has changed since.
    pub fn check_hub(&self) {
        if self.entered.take() {
            self.hub.borrow().check().unwrap_or_else(|why| panic!("{why}"));
        }
    }

    /// Checks that sessions are found by their owners only.
    pub fn check_owner(&self, now: Instant, place: usize, stranger: Principal) {
        let clients = self.clients.borrow();
        let client = &clients[place];
        let Some(session) = client.session.as_ref().filter(|_| client.initialized || client.legacy) else {
            return;
        };
        let mut hub = self.hub.borrow_mut();
        let found = hub.session(now, &session.id, client.principal).map(|view| view.key);
        assert_eq!(found, Some(session.key));
        assert!(hub.session(now, &session.id, stranger).is_none(), "a session is its owner's");
        assert_eq!(hub.owner(&session.id), Some(client.principal));
    }

    /// Checks that only the gateway's own tool is listed.
    pub fn check_lists(&self, now: Instant) {
        let entry = self.quiet(now);
        let inbox = self.inbox.borrow().clone();
        let address = Address { inbox: inbox.clone(), client: 0, session: 0, stream: 0 };
        let (id, principal) = ("last".to_owned(), Principal::ANONYMOUS);
        let stream = Arc::new(SimStream::new(address.clone(), false));
        let new =
            NewSession { id: id.clone(), principal, account: self.account(0), scope: Scope::All, stream };
        let key = entry.enter(|hub, _| hub.begin_session(new));
        let responder: Arc<dyn Responder> = Arc::new(SimResponder::new(address, false));
        let text = jsonrpc::request("1", "tools/list", "{}");
        let client = entry::Client { key, id: &id, scope: &Scope::All };
        entry::message(&entry, now, client, &Message::read(&text).unwrap(), &responder);
        let own = jsonrpc::result("1", &format!("{{\"tools\":[{}]}}", mcp::LIST_SERVERS));
        match inbox.take().map(|delivery| delivery.what) {
            Some(Delivered::Response(text)) => assert_eq!(text, own),
            other => panic!("{other:?}"),
        }
        entry.enter(|hub, fx| hub.close_session(now, key, "the end", fx));
    }
}
