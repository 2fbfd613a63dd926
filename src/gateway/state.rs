//! The state shared by all connections of a gateway.
//!
//! Its decisions are made in the hub, behind one lock. The other locks guard what connections need
//! before they enter the hub:
//!
//! | lock | guards |
//! |---|---|
//! | `hub` | servers, sessions, calls, subscriptions: see [`crate::hub`] |
//! | `authn` | the token table; the wrong tokens by address |
//! | `connections`, `link_shares` | the connections, and the links by principal |
//! | `accounts` | the memory accounts by principal |
//! | `throttle` | the log lines about connections |
//!
//! Order: while the hub is locked, only the locks of queues and streams may be taken, and under
//! these only that of evictable memory (`net::idle`). While any other lock of the table is held, no
//! further one is taken. Debug builds check that no thread enters the hub recursively.

use std::{collections::HashMap, fmt::Display, sync::Arc, time::Instant};

use async_channel::{Receiver, Sender};
use smol::Timer;

use super::{authn::Authenticator, responder::StreamResponder, shares::SharedShares};
use crate::{
    admission::ConnectionLimiter,
    auth::{Principal, Tokens},
    budget::{Account, Budget},
    config::GatewayConfig,
    hub::{
        effect::Effects,
        entry::Enter,
        key::Sealing,
        state::{Hub, HubConfig},
    },
    limits::{self, LOG_LINK_EVENTS, LOG_WARNINGS, LogLimit, MemoryLimits},
    log_throttle::LogThrottle,
    metrics::Stats,
    net::{idle, machine, outbox},
    router::Policy,
    runtime::{
        executor,
        lock::Lock,
        pacer::Pacer,
        shutdown::{Shutdown, ShutdownTrigger},
        task_tracker::TaskTracker,
    },
    secret::seal::{KEY_BYTES, SealKey},
};

/// The state shared by all connections of a gateway.
#[derive(Debug)]
pub struct Gateway {
    pub config: GatewayConfig,
    pub policy: Policy,
    pub authn: Authenticator,
    hub: Lock<Hub>,
    /// Wakes the task that notifies clients of changed lists.
    pub lists_changed: Wakeup,
    /// Wakes the task that waits for the hub's next deadline.
    pub deadline_changed: Wakeup,
    /// Counts the open links.
    pub links: TaskTracker,
    /// Links by principal.
    pub link_shares: SharedShares,
    /// Enforces the limits on connections.
    pub connections: Lock<ConnectionLimiter<ShutdownTrigger>>,
    /// Tasks that write a rejection to connections over the limit.
    pub rejecting: TaskTracker,
    /// Paces the cleanup of lost links, of which there may be thousands at once.
    pub ends: Arc<Pacer>,
    pub stats: Arc<Stats>,
    /// Throttles log lines that peers can cause at will.
    throttle: Lock<LogThrottle>,
    /// Budget for the bytes buffered for peers, with one account per principal.
    pub budget: Budget,
    accounts: Lock<HashMap<Principal, Account>>,
    pub started: Instant,
    /// Whether a listener is bound to a non-loopback address.
    pub exposed: bool,
    /// Counts the requests that were dispatched and are not yet answered.
    pub running: TaskTracker,
    /// Triggered by the stop signal: no new work is accepted.
    pub draining: Shutdown,
    /// Triggered when the running calls are answered: connections, streams and links end.
    pub stopped: Shutdown,
}

/// Wakes one task. Several wake-ups before it runs count as one.
#[derive(Debug)]
pub struct Wakeup(Sender<()>, Receiver<()>);

impl Default for Wakeup {
    fn default() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self(sender, receiver)
    }
}

impl Wakeup {
    /// Wakes the task.
    pub fn wake(&self) {
        // Full: a wake-up is pending already. It is never closed, since this holds the receiver.
        let _ = self.0.try_send(());
    }

    /// Waits for a wake-up.
    pub async fn wait(&self) {
        let _ = self.1.recv().await;
    }
}

impl Enter for Gateway {
    fn enter<'m, R>(&self, work: impl FnOnce(&mut Hub, &mut Effects<'m>) -> R) -> R {
        let mut effects = Effects::default();
        let result = {
            let _once = inside::Mark::new();
            work(&mut self.hub.lock(), &mut effects)
        };
        let (lists_changed, deadline_changed) = (effects.lists_changed, effects.deadline_changed);
        effects.apply(&self.stats);
        if lists_changed {
            self.lists_changed.wake();
        }
        if deadline_changed {
            self.deadline_changed.wake();
        }
        result
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Detects a thread that enters the hub recursively, which would deadlock. In debug builds only.
mod inside {
    use std::cell::Cell;

    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }

    pub struct Mark;

    impl Mark {
        pub fn new() -> Self {
            if cfg!(debug_assertions) {
                assert!(!INSIDE.replace(true), "this thread is in the hub already");
            }
            Self
        }
    }

    impl Drop for Mark {
        fn drop(&mut self) {
            if cfg!(debug_assertions) {
                INSIDE.set(false);
            }
        }
    }
}

impl Gateway {
    pub fn new(
        config: GatewayConfig,
        tokens: Tokens,
        seal_key: [u8; KEY_BYTES],
        [draining, stopped]: [Shutdown; 2],
        exposed: bool,
    ) -> Self {
        let guarded = !tokens.is_empty() || config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let policy = Policy {
            sse_path: config.sse_path.clone(),
            mcp_path: config.mcp_path.clone(),
            messages_path: config.messages_path.clone(),
            health_path: config.health_path.clone(),
            status_path: config.status_path.clone(),
            guarded,
            public_hosts: config.public_hosts.clone(),
            allow_origins: config.allow_origins.clone(),
            cors: config.cors,
        };
        let budget = idle::budget(memory(&config.limits.memory));
        budget.share(tokens.have_several());
        let authn = Authenticator::new(tokens, &config.limits.guess);
        let (timeout_rpc, timeout_run_tool) = (config.timeout_rpc, config.timeout_run_tool);
        let sealing = Sealing { key: Arc::new(SealKey::new(seal_key)), started: Instant::now() };
        let limits = config.limits.clone();
        let hub_config = HubConfig { limits, timeout_rpc, timeout_run_tool, sealing };
        let stats = Arc::<Stats>::default();
        Self {
            policy,
            hub: Lock::new(Hub::new(hub_config, authn.tokens(), stats.clone())),
            authn,
            lists_changed: Wakeup::default(),
            deadline_changed: Wakeup::default(),
            links: TaskTracker::new(),
            link_shares: SharedShares::default(),
            connections: Lock::new(ConnectionLimiter::new(&config.limits.http)),
            rejecting: TaskTracker::new(),
            ends: Arc::default(),
            stats,
            throttle: Lock::default(),
            budget,
            accounts: Lock::default(),
            started: Instant::now(),
            exposed,
            running: TaskTracker::new(),
            draining,
            stopped,
            config,
        }
    }

    /// Returns whether the gateway asks for neither a token nor a client certificate, and listens
    /// beyond loopback.
    pub fn is_open(&self) -> bool {
        self.exposed && !self.policy.guarded
    }

    /// Returns the account of a principal, creating it on first use.
    pub fn account(&self, principal: Principal) -> Account {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&principal) {
            return account.clone();
        }
        if accounts.len().is_power_of_two() {
            // Drop unused accounts now and then: tokens change on reload.
            accounts.retain(|_, account| !account.is_unused());
        }
        accounts.entry(principal).or_insert_with(|| self.budget.account()).clone()
    }

    /// Creates an outbound queue for a client, charged to `account`.
    pub fn client_queue(&self, account: &Account) -> (outbox::Sender<()>, outbox::Receiver<()>) {
        let limits = &self.config.limits.session;
        outbox::with_account(limits.queue_messages, limits.queue_bytes, Some(account.clone()))
    }

    /// Creates the queue of a session for messages that belong to no request, charged to `account`.
    pub fn session_outbox(&self, account: &Account) -> (StreamResponder, outbox::Receiver<()>) {
        let (sender, receiver) = self.client_queue(account);
        let burst = self.config.limits.session.queue_burst;
        (StreamResponder::new(sender, burst, &self.running), receiver)
    }

    /// Runs one step of a task that the gateway cannot do without. If it panics, waits for
    /// [`limits::PANIC_PAUSE`], and the task continues: the tables are intact, and ending the
    /// program would end all calls because of one peer.
    pub async fn step(&self, task: &str, step: impl Future<Output = ()>) {
        if executor::catch_panic(step).await.is_some() {
            return;
        }
        self.stats.panics.add();
        log::error!("{task} panicked; continuing (please report this)");
        Timer::after(limits::PANIC_PAUSE).await;
    }

    /// Logs a warning that peers can cause at will: at most one per kind and source in each
    /// [`LOG_EVERY`](crate::limits::LOG_EVERY).
    pub fn warn_throttled(&self, kind: &'static str, source: impl ToString, line: impl Display) {
        self.log_throttled(log::Level::Warn, kind, &source.to_string(), LOG_WARNINGS, line);
    }

    /// Logs a state change of a link, throttled by the name of its server.
    pub fn log_link_event(&self, level: log::Level, kind: &'static str, server: &str, line: impl Display) {
        self.log_throttled(level, kind, server, LOG_LINK_EVENTS, line);
    }

    /// Logs a line that a peer can cause at will, throttled by `kind` and `source` (a name or an
    /// address) within `limit`.
    pub fn log_throttled(
        &self,
        level: log::Level,
        kind: &'static str,
        source: &str,
        limit: LogLimit,
        line: impl Display,
    ) {
        let due = self.throttle.lock().due(Instant::now(), kind, source, limit);
        if let Some(left_out) = due {
            log::log!(level, "{line}{left_out}");
        }
    }
}

/// Returns the memory budget in bytes: if limited by the machine, at most half of the memory that
/// the process may use.
fn memory(limits: &MemoryLimits) -> usize {
    let half = machine::memory().filter(|_| limits.by_machine).map(|bytes| bytes / 2);
    let half = half.and_then(|half| usize::try_from(half).ok()).unwrap_or(usize::MAX);
    let bytes = limits.bytes.min(half.max(*limits::MEMORY.start()));
    if bytes < limits.bytes {
        let rounded = bytes >> 20;
        log::info!(
            "memory budget: {rounded} MiB, half of the memory available to this process (see --max-memory)"
        );
    }
    bytes
}
