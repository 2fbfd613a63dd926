//! A registered server: its link, its processes, and what the gateway has learned of it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::{instance::Instance, key::InstanceKey, link::Link, listener::ListenWaiter};
use crate::{
    auth::Principal,
    budget::{Account, Budget, Charge},
    catalog::UpstreamKey,
    limits::{CHANNEL_TICK, LinkLimits},
    mcp::{
        discovery::{Discovery, Question},
        listing::ListKind,
        upstream_listen::UpstreamListen,
    },
    secret::Secret,
    session::{Run, Shares},
};

/// A registered server.
#[derive(Debug)]
pub struct Upstream {
    /// Its key in the catalog.
    pub key: UpstreamKey,
    /// The id that its edge gave.
    pub id: String,
    /// The principal that registered it.
    pub principal: Principal,
    /// The edge is mcpport's own and accepts status frames.
    pub reads_status_frames: bool,
    /// The token with which another link can claim it.
    pub resume_token: Option<Secret>,
    /// What all its processes share.
    pub link: Link,
    /// The process that all sessions share. If the server has isolated instances, it is used for
    /// listing only.
    pub shared: Instance,
    /// Its isolated instances, if it can have some.
    pub pool: Option<Pool>,
    /// The current run of its program. Tasks are bound to a run.
    pub run: Run,
    /// The state of its discovery.
    pub listing: Listing,
    /// The gateway's own listen at its shared process, if that is modern.
    pub listen: UpstreamListen<ListenWaiter>,
    /// Resources with subscribers for which the server has not been sent `resources/subscribe` yet.
    pub pending_subscriptions: VecDeque<String>,
    /// When the instances were last checked for timeouts.
    pub last_check: Instant,
    /// The time at which the hub looks at it next.
    pub timer: Option<Instant>,
}

/// The isolated instances behind one link.
#[derive(Debug)]
pub struct Pool {
    /// Maximum number of instances.
    pub max: u32,
    /// Number of the channel opened last.
    pub last: u32,
    /// Instances by channel number.
    pub open: BTreeMap<u32, Instance>,
    /// Instances by principal.
    pub shares: Shares,
    /// Pays for messages that wait for instances to be initialized, all instances together.
    pub account: Account,
}

impl Pool {
    /// Creates an empty pool for at most `max` instances.
    pub fn new(max: u32, limits: &LinkLimits) -> Self {
        let account = Budget::new(limits.queue_bytes).account();
        Self { max, last: 0, open: BTreeMap::new(), shares: Shares::default(), account }
    }
}

/// The state of the discovery of a server.
#[derive(Debug)]
pub struct Listing {
    /// `None` while a response is parsed, without the lock of the hub.
    pub discovery: Option<Discovery>,
    /// The ids of the pending discovery requests.
    pub pending_requests: Vec<(u64, Question)>,
    /// Whether the server may turn out to be modern.
    pub may_be_modern: bool,
    /// When a server that has not answered `server/discover` gets `initialize` too.
    pub silence: Option<Instant>,
    /// Everything that the server offers has been listed at least once.
    pub listed: bool,
    /// The server was restarted and is being listed again.
    pub renewed: bool,
    /// The number of its tools.
    pub tools: usize,
    /// Earliest time to request lists that changed.
    pub relist: Instant,
    /// Earliest time to retry a list that failed.
    pub retry: Instant,
    /// Memory charged for its initialize result.
    pub initialize_result_charge: Charge,
    /// Memory charged for the list being received.
    pub listing_charge: Charge,
    /// Memory charged for its lists in the catalog.
    pub list_charges: BTreeMap<ListKind, Charge>,
    /// Memory charged for its instructions in the catalog.
    pub instructions_charge: Charge,
}

impl Listing {
    /// Begins the discovery of a server whose lists `account` pays for. `may_be_modern`: whether the
    /// server may turn out to be modern.
    pub fn new(now: Instant, discovery: Discovery, may_be_modern: bool, account: &Account) -> Self {
        Self {
            discovery: Some(discovery),
            pending_requests: Vec::new(),
            may_be_modern,
            silence: None,
            listed: false,
            renewed: false,
            tools: 0,
            relist: now,
            retry: now,
            initialize_result_charge: account.charge(),
            listing_charge: account.charge(),
            list_charges: BTreeMap::new(),
            instructions_charge: account.charge(),
        }
    }

    /// Returns the earliest time at which a list is to be requested.
    fn due(&self) -> Option<Instant> {
        let discovery = self.discovery.as_ref()?;
        let relist = discovery.wants_relist().then_some(self.relist);
        let retry = discovery.wants_retry().then_some(self.retry.max(self.relist));
        let silence = self.silence.filter(|_| discovery.listens_for_silence());
        relist.into_iter().chain(retry).chain(silence).min()
    }
}

impl Upstream {
    /// Returns one of its processes, and the link that they share.
    pub fn process(&mut self, channel: Option<u32>) -> Option<(&mut Instance, &mut Link)> {
        let instance = match channel {
            None => &mut self.shared,
            Some(channel) => self.pool.as_mut()?.open.get_mut(&channel)?,
        };
        Some((instance, &mut self.link))
    }

    /// Returns whether the era of its shared process is not known yet. Some servers take it from
    /// their first message, so no client may send that.
    pub fn is_undecided(&self) -> bool {
        self.pool.is_none() && self.listing.may_be_modern && self.shared.initialized().is_none()
    }

    /// Returns one of its processes.
    pub fn instance(&self, channel: Option<u32>) -> Option<&Instance> {
        match channel {
            None => Some(&self.shared),
            Some(channel) => self.pool.as_ref()?.open.get(&channel),
        }
    }

    /// Returns the keys of its isolated instances.
    pub fn instances(&self) -> Vec<InstanceKey> {
        let open = self.pool.iter().flat_map(|pool| pool.open.values());
        open.map(Instance::key).collect()
    }

    /// Returns the number of pending requests, including those of its isolated instances.
    pub fn pending(&self) -> usize {
        let instances = self.pool.iter().flat_map(|pool| pool.open.values());
        self.shared.mux().len() + instances.map(|instance| instance.mux().len()).sum::<usize>()
    }

    /// Returns the earliest time at which something is due. Instances and pending subscriptions are
    /// checked every [`CHANNEL_TICK`], if there are any.
    pub fn due(&self) -> Option<Instant> {
        let has_instances = self.pool.as_ref().is_some_and(|pool| !pool.open.is_empty());
        let check =
            (has_instances || !self.pending_subscriptions.is_empty()).then(|| self.last_check + CHANNEL_TICK);
        let deadlines = [self.shared.mux().deadline(), check, self.listing.due(), self.listen.deadline()];
        deadlines.into_iter().flatten().min()
    }
}
