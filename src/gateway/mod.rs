//! The gateway: an HTTP server for MCP clients, and the server end of the links from all edges.
//!
//! - `state`: what all connections share, with the lock of the hub.
//! - `connection`: one HTTP connection: reads requests, authenticates and routes them.
//! - `exchange`: one such request, as the endpoints see it: reads its body and answers it.
//! - `accept`: connection permits, and the 503 or 429 sent when none is left.
//! - `endpoint`: `legacy_sse` (the 2024-11-05 transport), `streamable` (the later ones with
//!   sessions), `stateless` (2026-07-28), `status`.
//! - `dispatch`: gives a client's message to the hub.
//! - `session`: a client session, as its transport sees it. `responder`: where the responses to its
//!   requests go. `event_stream` and `streams`: event streams, and how a client resumes one.
//! - `link`: registers a server over a link, resumes it, and gives its frames to the hub.
//! - `authn`: authentication. `reload`: new tokens and certificates at run time. `shares`: limits
//!   each principal's links.
//! - `background`: tasks beside the connections: timeouts, idle sessions, changed lists, the drain.
//!
//! Decisions are made in `hub` and the other pure modules below; this layer connects them to
//! sockets.
//!
//! A 503 names its limit in the body:
//!
//! | limit | sent by |
//! |---|---|
//! | connections (`--max-connections`); 429 for those of one address | `accept` |
//! | links, in total and per principal (`--max-links`) | `connection` |
//! | sessions (`--max-client-sessions`); 429 for those of one token | `exchange` |
//! | memory (`--max-memory`); 413 for a request body | `endpoint` |
//! | none: the gateway is stopping | `connection`, `endpoint::stateless` |
//!
//! Limits on calls are JSON-RPC errors: see [`hub::error`](crate::hub::error).
//!
//! A stop (SIGTERM, SIGINT, or SIGHUP with a terminal) accepts no new connections and refuses new
//! calls; the health check answers 503. Running calls have [`limits::DRAIN_CALLS`]; then
//! connections, streams and links are closed, within [`limits::DRAIN`]. A second signal exits at
//! once. Exit codes: [`FatalError::exit_code`].

mod accept;
mod authn;
mod background;
mod connection;
mod dispatch;
mod endpoint;
mod event_stream;
mod exchange;
mod link;
mod reload;
mod responder;
mod session;
mod shares;
mod state;
mod streams;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use futures_lite::future;

use self::{
    accept::ConnectionPermit,
    endpoint::status,
    link::ResumeHandles,
    state::{Gateway, Wakeup},
};
use crate::{
    config::GatewayConfig,
    error::FatalError,
    hub::entry::Enter,
    limits,
    net::{
        listener::{self, Listener},
        random,
        stream::Stream,
        timeout,
        tls::Acceptor,
    },
    runtime::{
        executor,
        shutdown::{self, ShutdownTrigger},
        task_tracker::TaskTracker,
    },
};

/// A gateway that has bound its ports and does not serve yet.
pub struct Bound {
    gateway: Arc<Gateway>,
    listeners: Vec<Listener>,
    acceptor: Option<Acceptor>,
    /// Triggers for `draining` and `stopped`.
    triggers: [ShutdownTrigger; 2],
    reloads: Arc<Wakeup>,
}

/// Handle that makes a gateway reload its files.
#[derive(Clone, Debug)]
pub struct Reloader(Arc<Wakeup>);

impl Reloader {
    /// Requests a reload. A request made during a reload leads to one more.
    pub fn request(&self) {
        self.0.wake();
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
        let ((drain, draining), (stop, stopped)) = (shutdown::shutdown(), shutdown::shutdown());
        let exposed = listeners.iter().any(|listener| !listener.local().ip().is_loopback());
        let no_random = |error| FatalError::run(format!("no random bytes available: {error}"));
        let seal_key = random::bytes().map_err(no_random)?;
        let gateway = Arc::new(Gateway::new(config, tokens, seal_key, [draining, stopped], exposed));
        let triggers = [drain, stop];
        Ok(Self { gateway, listeners, acceptor, triggers, reloads: Arc::default() })
    }

    /// Returns a handle that makes the gateway reload its tokens and certificates.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.reloads.clone())
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
        let (resume_handles, tracker) = (Arc::default(), TaskTracker::new());
        let accept_context = Arc::new(AcceptContext { gateway, resume_handles, acceptor, tracker });
        let accepting: Vec<_> = listeners
            .into_iter()
            .map(|listener| executor::spawn(accept(listener, accept_context.clone())))
            .collect();
        let gateway = &accept_context.gateway;
        let expiring = executor::spawn(background::expire(gateway.clone()));
        let sweeping = executor::spawn(background::close_idle_sessions(gateway.clone()));
        let notifying = executor::spawn(background::notify_list_changes(gateway.clone()));
        let reloading = executor::spawn(reload_on_request(accept_context.clone(), reloads));
        stop.await;
        drop(drain);
        gateway.enter(|hub, fx| hub.drain(Instant::now(), fx));
        drop((accepting, sweeping, notifying, reloading));
        let (calls, connections) = (gateway.running.len(), accept_context.tracker.len());
        log::info!("stopping: refusing new calls; waiting for {calls} calls and {connections} connections");
        background::finish_calls(gateway).await;
        drop(finish);
        if timeout::within(limits::DRAIN, accept_context.tracker.wait_idle()).await.is_err() {
            log::warn!("some connections did not close within {} s", limits::DRAIN.as_secs());
        }
        drop(expiring);
        log::info!("{}", status::summary(gateway));
    }
}

/// Reloads the files each time a reload is requested.
async fn reload_on_request(accept_context: Arc<AcceptContext>, asked: Arc<Wakeup>) {
    loop {
        asked.wait().await;
        log::info!("reloading tokens and certificates");
        let step = reload::reload(accept_context.gateway.clone(), accept_context.acceptor.clone());
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
    resume_handles: Arc<ResumeHandles>,
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
    let AcceptContext { gateway, resume_handles, .. } = accept_context;
    let connection = connection::Connection::new(gateway.clone(), resume_handles.clone(), stream, permit);
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
