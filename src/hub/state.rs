//! The hub: all tables of the gateway, with one owner.
//!
//! Its methods are in the files beside this one. Each takes the time, changes the tables, queues
//! frames to servers, and puts everything else into [`Effects`]. None waits, and none calls into
//! the program that owns the hub.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    effect::Effects,
    instance::{Instance, RoundCall},
    key::{InstanceKey, Sealing, SessionKey, SubscriberKey},
    link::Link,
    listener::OpeningListen,
    peers::SessionStream,
    session::{Session, SessionView},
    upstream::Upstream,
    waiting::WaitingCall,
};
use crate::{
    auth::{Principal, Tokens},
    catalog::{Catalog, UpstreamKey},
    limits::{LOG_LINK_EVENTS, Limits, LogLimit},
    log_throttle::LogThrottle,
    mcp::{self, stateless::input::InputKind},
    metrics::Stats,
    session::{
        Changes, Leases, ListenKey, Listens, ParkedCalls, Rounds, Sessions, Shares, Subscriptions,
        TaskOwners, share_of,
    },
};

/// The settings of the hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// All limits.
    pub limits: Limits,
    /// Timeout of a request.
    pub timeout_rpc: Duration,
    /// Timeout of a tool call.
    pub timeout_run_tool: Duration,
    /// The key that seals each `requestState` of stateless clients.
    pub sealing: Sealing,
}

/// The number of entries in the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// Registered servers.
    pub servers: usize,
    /// Sessions that clients can find.
    pub sessions: usize,
    /// Resources with a subscriber.
    pub subscriptions: usize,
    /// Open listens of stateless clients.
    pub listens: usize,
    /// Tasks with a known owner.
    pub tasks: usize,
}

/// All tables of the gateway.
#[derive(Debug)]
pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) stats: Arc<Stats>,
    pub(super) tokens: Arc<Tokens>,
    /// Names and items of the registered servers.
    pub(super) catalog: Catalog<UpstreamKey>,
    /// The registered servers. Every server of the catalog is here.
    pub(super) upstreams: BTreeMap<UpstreamKey, Box<Upstream>>,
    /// Registered servers by principal, including those whose link is lost.
    pub(super) server_shares: Shares,
    /// The sessions that clients can find, with their ids.
    pub(super) sessions: Sessions<SessionKey>,
    /// All sessions, also those whose `initialize` is not answered yet.
    pub(super) clients: BTreeMap<SessionKey, Box<Session>>,
    pub(super) last_session: u64,
    /// The latest time at which a session was initialized, or a listen opened.
    pub(super) last_reader: Option<Instant>,
    /// The instances that serve calls without a session.
    pub(super) leases: Leases<InstanceKey, Box<WaitingCall>>,
    /// The calls that hold an instance, and those that wait there for their clients.
    pub(super) parked: ParkedCalls<InstanceKey, InputKind>,
    pub(super) subscriptions: Subscriptions<SubscriberKey>,
    /// What stateless clients listen to.
    pub(super) listens: Listens<Arc<dyn SessionStream>>,
    /// Listens that are not acknowledged yet.
    pub(super) opening: BTreeMap<ListenKey, OpeningListen>,
    pub(super) tasks: TaskOwners,
    /// Calls whose modern server asks the client of a session.
    pub(super) rounds: Rounds<RoundCall>,
    /// Changed lists that clients have yet to be notified of.
    pub(super) changes: Changes,
    /// When to look at which server next; see [`Upstream::timer`].
    pub(super) timers: BTreeSet<(Instant, UpstreamKey)>,
    /// Throttles log lines that peers can cause at will.
    pub(super) throttle: LogThrottle,
    /// Whether new requests are refused, since the gateway is stopping.
    pub(super) draining: bool,
}

impl Hub {
    /// Creates a hub without servers and sessions.
    pub fn new(config: HubConfig, tokens: Arc<Tokens>, stats: Arc<Stats>) -> Self {
        let built_in = [("list_servers", mcp::LIST_SERVERS)];
        let mut sessions = Sessions::new(&config.limits.session);
        sessions.share(tokens.have_several_clients());
        let leases = Leases::new(&config.limits.stateless, config.limits.session.idle);
        let parked = ParkedCalls::new(&config.limits.stateless);
        Self {
            catalog: Catalog::new(&built_in, &config.limits.catalog),
            rounds: Rounds::new(&config.limits.stateless),
            listens: Listens::new(&config.limits.stateless),
            opening: BTreeMap::new(),
            config,
            stats,
            tokens,
            upstreams: BTreeMap::new(),
            server_shares: Shares::default(),
            sessions,
            clients: BTreeMap::new(),
            last_session: 0,
            last_reader: None,
            leases,
            parked,
            subscriptions: Subscriptions::default(),
            tasks: TaskOwners::default(),
            changes: Changes::default(),
            timers: BTreeSet::new(),
            throttle: LogThrottle::default(),
            draining: false,
        }
    }

    /// Returns the sizes of the tables.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            servers: self.catalog.len(),
            sessions: self.sessions.len(),
            subscriptions: self.subscriptions.len(),
            listens: self.listens.len(),
            tasks: self.tasks.len(),
        }
    }

    /// Returns the streams of all sessions that clients can find.
    pub fn session_streams(&self) -> Vec<Arc<dyn SessionStream>> {
        let sessions = self.sessions.all().filter_map(|key| self.clients.get(key));
        sessions.map(|session| session.stream.clone()).collect()
    }

    /// Refuses new requests from now on, since the gateway is stopping, and ends all listens.
    pub fn drain(&mut self, now: Instant, fx: &mut Effects<'_>) {
        self.draining = true;
        self.end_listens(now, fx);
    }

    /// Returns whether a server of this name is registered.
    pub fn is_connected(&self, server: &str) -> bool {
        self.catalog.server(server).is_some()
    }

    /// Returns the maximum number of links, and of registered servers, per principal.
    pub fn links_each(&self) -> usize {
        share_of(self.config.limits.link.links, self.tokens.have_several_registrars())
    }

    /// Returns the principal that opened a session. Does not count as a use.
    pub fn owner(&self, id: &str) -> Option<Principal> {
        self.sessions.owner(id)
    }

    /// Returns a session to the principal that opened it, and counts as a use.
    pub fn session(&mut self, now: Instant, id: &str, principal: Principal) -> Option<SessionView> {
        let key = self.sessions.find(now, id, principal)?;
        self.view(key)
    }

    /// Returns a session.
    pub fn view(&self, key: SessionKey) -> Option<SessionView> {
        let session = self.clients.get(&key)?;
        Some(SessionView { key, version: session.info.version.clone(), stream: session.stream.clone() })
    }

    /// Returns a process of a server, and the link that its processes share.
    pub(super) fn process(&mut self, key: InstanceKey) -> Option<(&mut Instance, &mut Link)> {
        self.upstreams.get_mut(&key.upstream)?.process(key.channel)
    }

    /// Logs a state change of a link, throttled by the name of its server.
    pub(super) fn log_link_event(
        &mut self,
        now: Instant,
        level: log::Level,
        (kind, server): (&'static str, &str),
        fx: &mut Effects<'_>,
        line: impl FnOnce() -> String,
    ) {
        self.log_throttled(now, level, (kind, server, LOG_LINK_EVENTS), fx, line);
    }

    /// Logs a line that a peer can cause at will, throttled by its kind and its source within a
    /// limit.
    pub(super) fn log_throttled(
        &mut self,
        now: Instant,
        level: log::Level,
        (kind, source, limit): (&'static str, &str, LogLimit),
        fx: &mut Effects<'_>,
        line: impl FnOnce() -> String,
    ) {
        if let Some(left_out) = self.throttle.due(now, kind, source, limit) {
            fx.log(level, || format!("{}{left_out}", line()));
        }
    }
}
