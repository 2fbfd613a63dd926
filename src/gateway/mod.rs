//! The gateway: an HTTP server for MCP clients, and the other end of the links of all edge boxes.
//!
//! - [`connection`]: one HTTP connection: reads, checks who asks and from where, routes. `accept`: its place among all.
//! - `status`: what the gateway has and did.
//! - `legacy_sse`: the 2024-11-05 transport. `streamable`: the later ones. `event_stream` and `streams`: event streams, and how a
//!   client comes back to one.
//! - `authn`: who may do what, and how that is read anew while it runs.
//! - `shares`: what one principal may take of links, calls and processes.
//! - `link`: how an edge gets its server in, and back in. `server`: what that server's frames mean. `upstream`: that
//!   server, as the others see it.
//! - `client`: a client, as the others see it; `responder`: where its answers go.
//! - `changes`: how clients are told that lists changed.
//! - `instances`: sessions with a process of their own.
//! - `dispatch`: what a client's message means. `forward`: what goes to one server and comes from it. `tasks`: whose they are.
//!
//! Decisions are in the pure modules of lower layers; here they meet the sockets.

mod accept;
mod authn;
mod changes;
mod connection;
mod dispatch;
mod driver;
mod endpoint;
mod event_stream;
mod forward;
mod instances;
mod link;
mod responder;
mod session;
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
    accept::ConnectionPermit, authn::Authenticator, session::Session, shares::Shares, upstream::Upstream,
};
use crate::{
    admission::ConnectionLimiter,
    auth::{Principal, Tokens},
    catalog::Catalog,
    config::GatewayConfig,
    error::FatalError,
    limits::{self, MemoryLimits},
    log_throttle::LogThrottle,
    mcp,
    metrics::Stats,
    net::{
        budget::{Account, Budget},
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

/// What all connections of one gateway share.
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    policy: Policy,
    authn: Authenticator,
    catalog: Mutex<Catalog<Arc<Upstream>>>,
    sessions: Mutex<Sessions<Arc<Session>>>,
    subscriptions: Mutex<Subscriptions>,
    tasks: Mutex<TaskOwners>,
    /// Changes of lists that clients are to be told of, and what wakes the task that does it.
    changes: Mutex<Changes>,
    changed: (Sender<()>, Receiver<()>),
    /// Held from a change of what sessions want to hear until the server is told, so that the last word to the server
    /// is the last change. No session is closed under it.
    subscription_order: Mutex<()>,
    links: TaskTracker,
    /// Links by principal.
    link_shares: Shares,
    /// Registered servers by principal, with those whose links are lost.
    server_shares: Shares,
    connections: Mutex<ConnectionLimiter<ShutdownTrigger>>,
    /// Those who are told that there is no place for them.
    rejecting: TaskTracker,
    /// Ends of links: thousands may be lost at once.
    ends: Arc<Pacer>,
    stats: Stats,
    /// For log lines that peers can cause at will.
    log_throttle: Mutex<LogThrottle>,
    /// Bytes that are kept for peers, and who has how many.
    budget: Budget,
    accounts: Mutex<HashMap<Principal, Account>>,
    started: Instant,
    /// It listens beyond loopback.
    exposed: bool,
    /// One badge for each request that is dispatched and not answered.
    running: TaskTracker,
    /// Thrown at the signal: no new work.
    draining: Shutdown,
    /// Thrown when the running calls are answered: connections, streams and links end.
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
        let own = [("list_servers", mcp::LIST_SERVERS)];
        let mut sessions = Sessions::new(&config.limits.session);
        sessions.share(tokens.have_several_clients());
        let budget = Budget::new(memory(&config.limits.memory));
        budget.share(tokens.have_several());
        Self {
            policy,
            authn: Authenticator::new(tokens, &config.limits.guess),
            catalog: Mutex::new(Catalog::new(&own, &config.limits.catalog)),
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

    // A panic while one of these is held leaves the table as it was between two of its changes.

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

    /// How many links, and how many registered servers, one principal may have.
    fn links_each(&self) -> usize {
        shares::limit(self.config.limits.link.links, self.authn.tokens().have_several_registrars())
    }

    /// The account of a principal.
    fn account(&self, principal: Principal) -> Account {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&principal) {
            return account.clone();
        }
        if accounts.len().is_power_of_two() {
            // Tokens come and go.
            accounts.retain(|_, account| !account.is_unused());
        }
        accounts.entry(principal).or_insert_with(|| self.budget.account()).clone()
    }

    /// A queue towards a client.
    fn client_queue(&self, account: &Account) -> (outbox::Sender<()>, outbox::Receiver<()>) {
        let limits = &self.config.limits.session;
        outbox::with_account(limits.queue_messages, limits.queue_bytes, Some(account.clone()))
    }

    /// Ends a session: its calls are cancelled, its streams end.
    fn close(&self, client: &Session, reason: &str) {
        client.end();
        let open = client.calls().end_all();
        // After its calls: who opens a session looks at them last.
        self.sessions().close(client.id());
        log::debug!("client {} is gone ({reason}), {} calls are cancelled", client.name(), open.len());
        for (upstream, id) in open {
            upstream.cancel(id, Err(reason), &self.stats);
        }
        // After the calls, so that streams that are read end with what became of them.
        client.streams().close();
        self.unsubscribe_all(client);
        self.end_instances(client);
    }

    /// Waits until the running calls are answered, up to [`limits::DRAIN_CALLS`]; the rest is failed, so that each client
    /// gets an error before its stream ends.
    async fn finish_calls(&self) {
        if timeout::within(limits::DRAIN_CALLS, self.running.wait_idle()).await.is_ok() {
            return;
        }
        let servers: Vec<Arc<Upstream>> = self.catalog().all().map(|(_, server)| server.clone()).collect();
        for server in servers {
            let own = server.instance_pool().map(|isolation| isolation.all()).unwrap_or_default();
            for process in own.iter().chain([&server]) {
                process.fail_all("the gateway stops", &self.stats);
            }
        }
    }

    /// Ends the sessions that nobody uses, for ever.
    async fn sweep(self: Arc<Self>) {
        loop {
            let step = async {
                Timer::after(limits::SWEEP.min(self.config.limits.session.idle)).await;
                let idle = self.sessions().expire(Instant::now(), |client| client.is_busy());
                for client in idle {
                    self.close(&client, "it was not used for a long time");
                }
            };
            self.step("ending idle sessions", step).await;
        }
    }

    /// Runs one step of a task that the gateway cannot do without. When it panics, the task goes on after a pause: the tables
    /// are sound, and ending the program would cut everybody's calls for what may be one peer's doing.
    async fn step(&self, task: &str, step: impl Future<Output = ()>) {
        if executor::catch_panic(step).await.is_some() {
            return;
        }
        self.stats.panics.add();
        log::error!("{task} panicked; it goes on (please report this)");
        Timer::after(limits::PANIC_PAUSE).await;
    }
}

/// Bytes of the budget.
fn memory(limits: &MemoryLimits) -> usize {
    let half = machine::memory().filter(|_| limits.by_machine).map(|bytes| bytes / 2);
    let half = half.and_then(|half| usize::try_from(half).ok()).unwrap_or(usize::MAX);
    let bytes = limits.bytes.min(half.max(*limits::MEMORY.start()));
    if bytes < limits.bytes {
        let rounded = bytes >> 20;
        log::info!("memory budget: {rounded} MiB, half of what this process may use (see --max-memory)");
    }
    bytes
}

/// A gateway that listens and does not serve yet.
pub struct Bound {
    gateway: Arc<Gateway>,
    listeners: Vec<Listener>,
    acceptor: Option<Acceptor>,
    /// Begins the drain, then the stop.
    switches: [ShutdownTrigger; 2],
    reloads: (Sender<()>, Receiver<()>),
}

/// Asks a gateway to read its files again.
#[derive(Clone, Debug)]
pub struct Reloader(Sender<()>);

impl Reloader {
    /// Asks. What is asked while the files are being read leads to one more reading.
    pub fn ask(&self) {
        // Full: it was asked already. Closed: the gateway has stopped.
        let _ = self.0.try_send(());
    }
}

impl Bound {
    /// Reads the tokens and the certificates, and takes the port.
    ///
    /// # Errors
    /// One line that names the flag or the address.
    pub fn new(config: GatewayConfig) -> Result<Self, FatalError> {
        let acceptor = config.tls.as_ref().map(Acceptor::new).transpose()?;
        let tokens = authn::read(&config)?;
        let listeners = listener::bind(config.host.as_deref(), config.port, config.ipv6)?;
        let ((drain, draining), (stop, stopped)) =
            (crate::runtime::shutdown::shutdown(), crate::runtime::shutdown::shutdown());
        let exposed = listeners.iter().any(|listener| !listener.local().ip().is_loopback());
        let gateway = Arc::new(Gateway::new(config, tokens, [draining, stopped], exposed));
        let switches = [drain, stop];
        Ok(Self { gateway, listeners, acceptor, switches, reloads: async_channel::bounded(1) })
    }

    /// By which it can be asked to read its tokens and certificates again.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.reloads.0.clone())
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(Listener::local).collect()
    }

    /// Serves until `stop` is ready, then ends in two phases. Drain, up to [`limits::DRAIN_CALLS`]: no new connections, sessions
    /// or calls, each answer closes its connection, running calls go on. Stop, up to [`limits::DRAIN`]: streams and links end.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { gateway, listeners, acceptor, switches: [drain, finish], reloads } = self;
        let needed = gateway.config.limits.http.connections + limits::DESCRIPTORS_EXTRA;
        let allowed = listener::allow_descriptors(needed);
        if allowed < needed as u64 {
            log::warn!("the system allows {allowed} descriptors, and all connections need {needed}");
        }
        self::greet(&gateway, &listeners, acceptor.is_some());
        let door = Arc::new(AcceptContext { gateway, acceptor, crew: TaskTracker::new() });
        let accepting: Vec<_> =
            listeners.into_iter().map(|listener| executor::spawn(accept(listener, door.clone()))).collect();
        let sweeping = executor::spawn(door.gateway.clone().sweep());
        let telling = executor::spawn(door.gateway.clone().tell_changes());
        let reloading = executor::spawn(reload(door.clone(), reloads.1));
        stop.await;
        drop(drain);
        drop((accepting, sweeping, telling, reloading));
        let (calls, connections) = (door.gateway.running.len(), door.crew.len());
        log::info!("stopping: no new calls; waiting for {calls} calls and {connections} connections to end");
        door.gateway.finish_calls().await;
        drop(finish);
        if timeout::within(limits::DRAIN, door.crew.wait_idle()).await.is_err() {
            log::warn!("some connections did not end within {} s", limits::DRAIN.as_secs());
        }
        log::info!("{}", door.gateway.summary());
    }
}

/// Reads the files again whenever that is asked for.
async fn reload(door: Arc<AcceptContext>, asked: Receiver<()>) {
    while asked.recv().await.is_ok() {
        log::info!("reading tokens and certificates again");
        let step = door.gateway.clone().reload(door.acceptor.clone());
        door.gateway.step("reading tokens and certificates again", step).await;
    }
}

/// Says where it listens, and warns when everybody may come in.
fn greet(gateway: &Gateway, listeners: &[Listener], tls: bool) {
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
                "ANYBODY WHO REACHES {address} CAN CALL EVERY TOOL AND REGISTER SERVERS: no token is set; use --auth-token or --auth-token-file"
            );
        }
    }
    if !gateway.authn.tokens().is_empty() && !tls && listeners.iter().any(|l| !l.local().ip().is_loopback()) {
        log::warn!("tokens travel in the clear: use --ssl-enabled, or a TLS proxy in front");
    }
}

/// What the accept loops need.
struct AcceptContext {
    gateway: Arc<Gateway>,
    acceptor: Option<Acceptor>,
    crew: TaskTracker,
}

/// Takes connections for ever. Handshakes and everything slow happen in the connection's own task.
async fn accept(mut listener: Listener, door: Arc<AcceptContext>) {
    loop {
        door.gateway.step("accepting connections", accept_one(&mut listener, &door)).await;
        // Those that were accepted get their turn before the next, however many wait: what they push out is gone then.
        future::yield_now().await;
    }
}

async fn accept_one(listener: &mut Listener, door: &Arc<AcceptContext>) {
    let stream = listener.accept().await;
    door.gateway.stats.connections.add();
    let (visit, pushed_out) = match ConnectionPermit::acquire(&door.gateway, stream.peer().ip()) {
        Ok(begun) => begun,
        Err(why) => return accept::reject(&door.gateway, stream, why),
    };
    let badge = door.crew.track();
    let (gateway, door) = (door.gateway.clone(), door.clone());
    let task = async move {
        let _held = badge;
        future::or(welcome(&door, stream, visit), pushed_out.wait()).await;
    };
    executor::spawn_guarded(task, move || {
        gateway.stats.panics.add();
        log::error!("a connection ended in a panic; the others go on");
    });
}

async fn welcome(door: &AcceptContext, stream: Stream, visit: ConnectionPermit) {
    let peer = stream.peer();
    let limit = door.gateway.config.limits.http.tls_handshake;
    let stream = match &door.acceptor {
        None => stream,
        Some(acceptor) => match timeout::within(limit, Box::pin(acceptor.accept(stream))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                door.gateway.stats.handshakes_failed.add();
                let line = format_args!("TLS handshake with {peer} failed: {error}");
                return door.gateway.warn_throttled("handshake", peer.ip(), line);
            }
            Err(_) => {
                door.gateway.stats.handshakes_failed.add();
                let seconds = limit.as_secs();
                let line = format_args!("TLS handshake with {peer} took longer than {seconds} s");
                return door.gateway.warn_throttled("slow_handshake", peer.ip(), line);
            }
        },
    };
    let connection = connection::Connection::new(door.gateway.clone(), stream, visit);
    if let Some(link) = Box::pin(connection.serve()).await {
        Box::pin(link.serve()).await;
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

    /// Accepting, sweeping and reloading are such tasks.
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
