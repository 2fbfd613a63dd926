//! The gateway: an HTTP server for MCP clients, and the server end of the links from all edges.
//!
//! - [`connection`]: one HTTP connection: reads requests, authenticates and routes them.
//! - `exchange`: one such request, as the endpoints see it: reads its body and answers it.
//! - `accept`: connection permits, and the 503 or 429 sent when none is left.
//! - `endpoint`: `legacy_sse` (the 2024-11-05 transport), `streamable` (the later ones), `status`.
//! - `event_stream` and `streams`: event streams, and how a client resumes one.
//! - `authn`: authentication, and reloading of tokens and certificates at run time.
//! - `shares`: limits each principal's links, calls and processes.
//! - `link`: registers a server over a link, and resumes it. `driver`: handles the frames of a
//!   registered server. `upstream`: a registered server, as the rest of the gateway sees it.
//! - `session`: a client session, as the rest of the gateway sees it. `responder`: where the
//!   responses to its requests go. `session_stream`: where everything else goes.
//! - `changes`: notifies clients of changed lists.
//! - `instances`: server processes that belong to one session.
//! - `dispatch`: handles a client's message. `forward`: messages to and from one server. `tasks`:
//!   which principal owns which task.
//!
//! Decisions are made in the pure modules of lower layers; this layer connects them to sockets.
//!
//! A stop (SIGTERM, SIGINT, or SIGHUP with a terminal) accepts no new connections and refuses new
//! calls; the health check answers 503. Running calls have [`limits::DRAIN_CALLS`]; then
//! connections, streams and links are closed, within [`limits::DRAIN`]. A second signal exits at
//! once. Exit codes: [`FatalError::exit_code`].

mod accept;
mod authn;
mod changes;
mod connection;
mod dispatch;
mod driver;
mod endpoint;
mod event_stream;
mod exchange;
mod forward;
mod instances;
mod link;
mod responder;
mod session;
mod session_stream;
mod shares;
mod streams;
mod tasks;
mod upstream;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;
use smol::Timer;

use self::{
    accept::ConnectionPermit, authn::Authenticator, link::ResumeHandles, responder::StreamResponder,
    session::Session, shares::Shares, upstream::Upstream,
};
use crate::{
    admission::ConnectionLimiter,
    auth::{Principal, Tokens},
    budget::{Account, Budget},
    catalog::Catalog,
    config::GatewayConfig,
    error::FatalError,
    hub::key::InstanceKey,
    limits::{self, MemoryLimits},
    log_throttle::LogThrottle,
    mcp,
    metrics::Stats,
    net::{
        idle,
        listener::{self, Listener},
        machine, outbox,
        stream::Stream,
        timeout,
        tls::Acceptor,
    },
    router::Policy,
    runtime::{
        executor,
        pacer::Pacer,
        shutdown::{Shutdown, ShutdownTrigger},
        task_tracker::TaskTracker,
    },
    session::{Changes, Sessions, Subscriptions, TaskOwners},
};

/// The state shared by all connections of a gateway.
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    policy: Policy,
    authn: Authenticator,
    catalog: Mutex<Catalog<Arc<Upstream>>>,
    sessions: Mutex<Sessions<Arc<Session>>>,
    subscriptions: Mutex<Subscriptions>,
    tasks: Mutex<TaskOwners>,
    /// Changed lists that clients have yet to be notified of, and a wakeup for the task that does
    /// it.
    changes: Mutex<Changes>,
    changed: (Sender<()>, Receiver<()>),
    /// Serializes subscription changes: held from a change in `subscriptions` until the request to
    /// the server is queued, so that the server's last request matches the last change. Never call
    /// `Gateway::close` while holding it: that locks it as well.
    subscription_order: Mutex<()>,
    links: TaskTracker,
    /// Links by principal.
    link_shares: Shares,
    /// Registered servers by principal, including those whose link is lost.
    server_shares: Shares,
    connections: Mutex<ConnectionLimiter<ShutdownTrigger>>,
    /// Tasks that write a rejection to connections over the limit.
    rejecting: TaskTracker,
    resume_handles: ResumeHandles,
    /// Paces the cleanup of lost links, of which there may be thousands at once.
    ends: Arc<Pacer>,
    stats: Stats,
    /// Throttles log lines that peers can cause at will.
    log_throttle: Mutex<LogThrottle>,
    /// Budget for the bytes buffered for peers, with one account per principal.
    budget: Budget,
    accounts: Mutex<HashMap<Principal, Account>>,
    started: Instant,
    /// Whether a listener is bound to a non-loopback address.
    exposed: bool,
    /// Counts the requests that were dispatched and are not yet answered.
    running: TaskTracker,
    /// Triggered by the stop signal: no new work is accepted.
    draining: Shutdown,
    /// Triggered when the running calls are answered: connections, streams and links end.
    stopped: Shutdown,
}

impl Gateway {
    fn new(config: GatewayConfig, tokens: Tokens, [draining, stopped]: [Shutdown; 2], exposed: bool) -> Self {
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
        let built_in = [("list_servers", mcp::LIST_SERVERS)];
        let mut sessions = Sessions::new(&config.limits.session);
        sessions.share(tokens.have_several_clients());
        let budget = idle::budget(memory(&config.limits.memory));
        budget.share(tokens.have_several());
        Self {
            policy,
            authn: Authenticator::new(tokens, &config.limits.guess),
            catalog: Mutex::new(Catalog::new(&built_in, &config.limits.catalog)),
            sessions: Mutex::new(sessions),
            subscriptions: Mutex::default(),
            tasks: Mutex::default(),
            changes: Mutex::default(),
            changed: async_channel::bounded(1),
            subscription_order: Mutex::default(),
            links: TaskTracker::new(),
            link_shares: Shares::default(),
            server_shares: Shares::default(),
            connections: Mutex::new(ConnectionLimiter::new(&config.limits.http)),
            rejecting: TaskTracker::new(),
            resume_handles: ResumeHandles::default(),
            ends: Arc::default(),
            stats: Stats::default(),
            log_throttle: Mutex::default(),
            budget,
            accounts: Mutex::default(),
            started: Instant::now(),
            exposed,
            running: TaskTracker::new(),
            draining,
            stopped,
            config,
        }
    }

    // These ignore lock poisoning: each change of a table is complete in itself, so a panic leaves
    // the table as it was between two changes.

    fn catalog(&self) -> MutexGuard<'_, Catalog<Arc<Upstream>>> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, TaskOwners> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, ConnectionLimiter<ShutdownTrigger>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscription_order(&self) -> MutexGuard<'_, ()> {
        self.subscription_order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the maximum number of links, and of registered servers, per principal.
    fn links_each(&self) -> usize {
        shares::limit(self.config.limits.link.links, self.authn.tokens().have_several_registrars())
    }

    /// Returns the account of a principal, creating it on first use.
    fn account(&self, principal: Principal) -> Account {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn client_queue(&self, account: &Account) -> (outbox::Sender<()>, outbox::Receiver<()>) {
        let limits = &self.config.limits.session;
        outbox::with_account(limits.queue_messages, limits.queue_bytes, Some(account.clone()))
    }

    /// Creates the queue of a session for what belongs to no request, charged to `account`.
    fn session_outbox(&self, account: &Account) -> (StreamResponder, outbox::Receiver<()>) {
        let (sender, receiver) = self.client_queue(account);
        let burst = self.config.limits.session.queue_burst;
        (StreamResponder::new(sender, burst, &self.running), receiver)
    }

    /// Returns a server or an isolated instance, unless it is gone. Locks the catalog and then the
    /// server's channels, one at a time.
    fn upstream(&self, key: InstanceKey) -> Option<Arc<Upstream>> {
        let shared = self.catalog().get(key.upstream)?;
        match key.channel {
            None => Some(shared),
            Some(channel) => shared.instance_pool()?.get(channel),
        }
    }

    /// Ends a session: cancels its calls, and ends its streams and isolated instances.
    fn close(&self, now: Instant, client: &Session, reason: &str) {
        client.stream().end();
        let open = client.calls().end_all();
        // Remove the session after ending its calls: a task that opens it checks them after
        // inserting it.
        self.sessions().close(client.id());
        log::debug!("client {} closed: reason=\"{reason}\" cancelled_calls={}", client.name(), open.len());
        for (upstream, id) in open.into_iter().filter_map(|(key, id)| Some((self.upstream(key)?, id))) {
            upstream.cancel(now, id, Err(reason), &self.stats);
        }
        // Close the streams after the calls, so that those being read still carry the calls'
        // errors.
        client.stream().close();
        self.unsubscribe_all(now, client);
        self.end_instances(now, client);
    }

    /// Waits up to [`limits::DRAIN_CALLS`] until the running calls are answered, then fails the
    /// rest, so that each client gets an error before its stream ends.
    async fn finish_calls(&self) {
        if timeout::within(limits::DRAIN_CALLS, self.running.wait_idle()).await.is_ok() {
            return;
        }
        let servers: Vec<Arc<Upstream>> = self.catalog().all().map(|(_, server)| server.clone()).collect();
        for server in servers {
            let instances = server.instance_pool().map(|pool| pool.all()).unwrap_or_default();
            for instance in instances.iter().chain([&server]) {
                instance.fail_all("the gateway is stopping", &self.stats);
            }
        }
    }

    /// Ends idle sessions, forever.
    async fn sweep(self: Arc<Self>) {
        loop {
            let step = async {
                Timer::after(limits::SWEEP.min(self.config.limits.session.idle)).await;
                let now = Instant::now();
                let idle = self.sessions().expire(now, |client| client.is_busy());
                for client in idle {
                    self.close(now, &client, "idle timeout");
                }
            };
            self.step("ending idle sessions", step).await;
        }
    }

    /// Runs one step of a task that the gateway cannot do without. If it panics, waits for
    /// [`limits::PANIC_PAUSE`], and the task continues: the tables are intact, and ending the
    /// program would cut everyone's calls for what one peer may have caused.
    async fn step(&self, task: &str, step: impl Future<Output = ()>) {
        if executor::catch_panic(step).await.is_some() {
            return;
        }
        self.stats.panics.add();
        log::error!("{task} panicked; continuing (please report this)");
        Timer::after(limits::PANIC_PAUSE).await;
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

/// A gateway that has bound its ports and does not serve yet.
pub struct Bound {
    gateway: Arc<Gateway>,
    listeners: Vec<Listener>,
    acceptor: Option<Acceptor>,
    /// Triggers for `draining` and `stopped`.
    triggers: [ShutdownTrigger; 2],
    reloads: (Sender<()>, Receiver<()>),
}

/// Handle that makes a gateway reload its files.
#[derive(Clone, Debug)]
pub struct Reloader(Sender<()>);

impl Reloader {
    /// Requests a reload. A request made during a reload leads to one more.
    pub fn request(&self) {
        // Full: a reload is already pending. Closed: the gateway has stopped.
        let _ = self.0.try_send(());
    }
}

impl Bound {
    /// Reads the tokens and certificates, and binds the port.
    ///
    /// # Errors
    /// Returns one line that names the flag or the address.
    pub fn new(config: GatewayConfig) -> Result<Self, FatalError> {
        let acceptor = config.tls.as_ref().map(Acceptor::new).transpose()?;
        let tokens = authn::read(&config)?;
        let listeners = listener::bind(config.host.as_deref(), config.port, config.ipv6)?;
        let ((drain, draining), (stop, stopped)) =
            (crate::runtime::shutdown::shutdown(), crate::runtime::shutdown::shutdown());
        let exposed = listeners.iter().any(|listener| !listener.local().ip().is_loopback());
        let gateway = Arc::new(Gateway::new(config, tokens, [draining, stopped], exposed));
        let triggers = [drain, stop];
        Ok(Self { gateway, listeners, acceptor, triggers, reloads: async_channel::bounded(1) })
    }

    /// Returns a handle that makes the gateway reload its tokens and certificates.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.reloads.0.clone())
    }

    /// Returns the addresses that the gateway listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(Listener::local).collect()
    }

    /// Serves until `stop` is ready, then shuts down in two phases. Drain, up to
    /// [`limits::DRAIN_CALLS`]: no new connections, sessions or calls; running calls continue, and
    /// each response closes its connection. Stop, up to [`limits::DRAIN`]: streams and links end.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { gateway, listeners, acceptor, triggers: [drain, finish], reloads } = self;
        let needed = gateway.config.limits.http.connections + limits::DESCRIPTORS_EXTRA;
        let allowed = listener::allow_descriptors(needed);
        if allowed < needed as u64 {
            log::warn!(
                "the file descriptor limit is {allowed}, but the connection limits need {needed}; see ulimit -n"
            );
        }
        self::log_addresses(&gateway, &listeners, acceptor.is_some());
        let accept_context = Arc::new(AcceptContext { gateway, acceptor, tracker: TaskTracker::new() });
        let accepting: Vec<_> = listeners
            .into_iter()
            .map(|listener| executor::spawn(accept(listener, accept_context.clone())))
            .collect();
        let sweeping = executor::spawn(accept_context.gateway.clone().sweep());
        let notifying = executor::spawn(accept_context.gateway.clone().notify_changes());
        let reloading = executor::spawn(reload(accept_context.clone(), reloads.1));
        stop.await;
        drop(drain);
        drop((accepting, sweeping, notifying, reloading));
        let (calls, connections) = (accept_context.gateway.running.len(), accept_context.tracker.len());
        log::info!("stopping: refusing new calls; waiting for {calls} calls and {connections} connections");
        accept_context.gateway.finish_calls().await;
        drop(finish);
        if timeout::within(limits::DRAIN, accept_context.tracker.wait_idle()).await.is_err() {
            log::warn!("some connections did not close within {} s", limits::DRAIN.as_secs());
        }
        log::info!("{}", accept_context.gateway.summary());
    }
}

/// Reloads the files each time a reload is requested.
async fn reload(accept_context: Arc<AcceptContext>, asked: Receiver<()>) {
    while asked.recv().await.is_ok() {
        log::info!("reloading tokens and certificates");
        let step = accept_context.gateway.clone().reload(accept_context.acceptor.clone());
        accept_context.gateway.step("reloading tokens and certificates", step).await;
    }
}

/// Logs the listen addresses, and warns if anyone can connect or tokens travel in the clear.
fn log_addresses(gateway: &Gateway, listeners: &[Listener], tls: bool) {
    let (web, socket) = if tls { ("https", "wss") } else { ("http", "ws") };
    for listener in listeners {
        let address = listener.local();
        let policy = &gateway.policy;
        log::info!(
            "listening on {web}://{address}{} (for older clients: {})",
            policy.mcp_path,
            policy.sse_path
        );
        log::info!("registrations on {socket}://{address}{}", crate::router::REGISTER_PATH);
        if !gateway.policy.guarded && !address.ip().is_loopback() {
            log::warn!(
                "ANYONE WHO CAN REACH {address} CAN CALL EVERY TOOL AND REGISTER SERVERS: no token is set; use --auth-token or --auth-token-file"
            );
        }
    }
    if !gateway.authn.tokens().is_empty() && !tls && listeners.iter().any(|l| !l.local().ip().is_loopback()) {
        log::warn!("tokens are sent unencrypted: use --ssl-enabled, or a TLS proxy in front");
    }
}

/// State shared by the accept loops.
struct AcceptContext {
    gateway: Arc<Gateway>,
    acceptor: Option<Acceptor>,
    tracker: TaskTracker,
}

/// Accepts connections forever. TLS handshakes and everything slow run in the connection's own
/// task.
async fn accept(mut listener: Listener, accept_context: Arc<AcceptContext>) {
    loop {
        accept_context
            .gateway
            .step("accepting connections", accept_one(&mut listener, &accept_context))
            .await;
        // Let the accepted connection's task run before accepting the next, however many are
        // pending, so that a connection it evicted is gone by then.
        future::yield_now().await;
    }
}

async fn accept_one(listener: &mut Listener, accept_context: &Arc<AcceptContext>) {
    let stream = listener.accept().await;
    accept_context.gateway.stats.connections.add();
    let (permit, evicted) = match ConnectionPermit::acquire(&accept_context.gateway, stream.peer().ip()) {
        Ok(begun) => begun,
        Err(why) => return accept::reject(&accept_context.gateway, stream, why),
    };
    let guard = accept_context.tracker.track();
    let (gateway, accept_context) = (accept_context.gateway.clone(), accept_context.clone());
    let task = async move {
        let _held = guard;
        future::or(serve_connection(&accept_context, stream, permit), evicted.wait()).await;
    };
    executor::spawn_guarded(task, move || {
        gateway.stats.panics.add();
        log::error!("a connection task panicked; other connections are not affected");
    });
}

async fn serve_connection(accept_context: &AcceptContext, stream: Stream, permit: ConnectionPermit) {
    let peer = stream.peer();
    let limit = accept_context.gateway.config.limits.http.tls_handshake;
    let stream = match &accept_context.acceptor {
        None => stream,
        Some(acceptor) => match timeout::within(limit, Box::pin(acceptor.accept(stream))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                accept_context.gateway.stats.handshakes_failed.add();
                let line = format_args!("TLS handshake with {peer} failed: {error}");
                return accept_context.gateway.warn_throttled("handshake", peer.ip(), line);
            }
            Err(_) => {
                accept_context.gateway.stats.handshakes_failed.add();
                let seconds = limit.as_secs();
                let line = format_args!("TLS handshake with {peer} took longer than {seconds} s");
                return accept_context.gateway.warn_throttled("slow_handshake", peer.ip(), line);
            }
        },
    };
    let connection = connection::Connection::new(accept_context.gateway.clone(), stream, permit);
    // Each step is boxed, so that an idle link reserves memory for the last one only.
    if let Some(link) = Box::pin(connection.serve()).await
        && let Some((link, permits)) = Box::pin(link.register()).await
    {
        Box::pin(link.run(permits)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cli::{self, Command, Environment};

    fn bound() -> Bound {
        let typed = ["gateway", "--port", "0", "--host", "127.0.0.1"].map(str::to_owned);
        match cli::parse(&typed, &Environment::default()) {
            Ok(Command::Gateway(config, _)) => Bound::new(*config).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Accepting, sweeping and reloading run as such steps.
    #[test]
    fn a_panic_in_a_step_is_counted_and_the_next_step_runs() {
        let gateway = bound().gateway;
        let done = AtomicUsize::new(0);
        smol::block_on(async {
            for number in 0..3 {
                let step = async {
                    future::yield_now().await;
                    assert_ne!(number, 1, "this panic is part of the test");
                    done.fetch_add(1, Ordering::Relaxed);
                };
                gateway.step("testing", step).await;
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 2);
        assert_eq!(gateway.stats.panics.get(), 1);
    }
}
