//! Registers an edge's server over a new link, or resumes it over another link.
//!
//! The first frame decides which. A server whose link is lost by accident is kept for the resume
//! window: its calls wait, and the connection that resumes it takes over its state from the task of
//! the lost one. `driver` handles its frames; the rules of resumption are in `tunnel::resume`.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;

use super::{
    Gateway,
    accept::ConnectionPermit,
    driver::{CatalogGuard, UpstreamDriver},
    shares::Share,
    upstream::Upstream,
};
use crate::{
    auth::Principal,
    catalog::{NameTaken, UpstreamKey},
    hub::peers::{Room, Transport},
    limits::{self, LinkLimits},
    mcp::listing::ListKind,
    net::{
        self,
        outbound::Outbound,
        outbox, timeout,
        ws_link::{self, WebSocket},
    },
    queue::SendError,
    runtime::{shutdown::ShutdownTrigger, task_tracker::TaskGuard},
    secret::Secret,
    session,
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

/// Reads and handles the first frame of a new link. Returns `None` if the link has ended.
pub async fn enter(
    gateway: Arc<Gateway>,
    mut socket: WebSocket,
    principal: Principal,
    from: SocketAddr,
) -> Option<RegisteredLink> {
    let limits = gateway.config.limits.link.clone();
    gateway.stats.links.add();
    let stopped = gateway.stopped.clone();
    let stopping = async {
        stopped.wait().await;
        Err(LinkEnd::ByUs(gateway_stops()))
    };
    let candidate = Candidate { gateway: &gateway, principal, from };
    let receiving = async {
        let frame = ws_link::recv_frame(&mut socket, limits.register_bytes, &limits).await?;
        let registration = candidate.read(&frame);
        if registration.as_ref().is_ok_and(|registration| candidate.would_take_over(registration)) {
            // The frame may have been delayed: an edge that does not answer the probe has left this
            // link, and may be registered over the very link that this one would replace.
            ws_link::probe(&mut socket, &limits).await?;
        }
        Ok::<_, LinkEnd>(registration)
    };
    let registration = match future::or(receiving, stopping).await {
        Ok(registration) => registration,
        Err(ended) => {
            gateway.count_end(&ended);
            let line = format!("link from {from} ended without a registration: {ended}");
            gateway.warn_throttled("no_registration", from.ip(), line);
            ws_link::end(socket, VecDeque::new(), &ended, &limits).await;
            return None;
        }
    };
    let admitted = match registration {
        Ok(registration) => candidate.admit(registration).await,
        Err(why) => Err(why),
    };
    let (server, answer) = match admitted {
        Ok(Admission::Registered(server, answer)) => (server, answer),
        Ok(Admission::Late(server)) => {
            let ended = LinkEnd::Lost(
                "superseded by a delayed registration of a link that its edge had already left".into(),
            );
            return Some(RegisteredLink { server, link: Err(ended) });
        }
        Err(why) => {
            refuse(&gateway, socket, from, why).await;
            return None;
        }
    };
    let link = ws_link::send_frame(&mut socket, answer, &limits).await.map(|()| socket);
    Some(RegisteredLink { server, link })
}

/// Logs a refused registration, and closes the link with the reason.
async fn refuse(gateway: &Gateway, socket: WebSocket, from: SocketAddr, why: CloseReason) {
    let reason = util::escape::show(&why.reason).to_string();
    let line = format!("rejected a registration from {from}: {reason}");
    // Throttle by address and reason: one site may have many servers, each refused for its own
    // reason.
    gateway.warn_throttled("registration", format!("{} {reason}", from.ip()), line);
    // An edge treats an error frame as final, so send none for a refusal that may be temporary.
    let last = why.code != CLOSE_LATER;
    let words = last.then(|| Status::error(&why.reason)).into_iter().collect();
    let ended = LinkEnd::ByUs(why);
    gateway.count_end(&ended);
    ws_link::end(socket, words, &ended, &gateway.config.limits.link).await;
}

/// A registered or resumed server, with its socket or the reason why its link has ended.
pub struct RegisteredLink {
    server: Box<ServerRegistration>,
    link: Result<WebSocket, LinkEnd>,
}

impl RegisteredLink {
    /// Carries frames until the link ends or another one takes over. Releases `permits`, the link's
    /// permits, when the link ends, though the server may stay for the resume window.
    pub async fn run(self, permits: Permits) {
        match self.link {
            Ok(socket) => self.server.run(socket, permits).await,
            Err(ended) => self.server.on_link_end(ended, permits).await,
        }
    }
}

impl Gateway {
    /// Counts the links that the gateway ended.
    fn count_end(&self, ended: &LinkEnd) {
        if let LinkEnd::ByUs(why) = ended {
            self.stats.links_ended.add();
            if why.reason == ws_link::NO_MEMORY {
                self.stats.memory_refusals.add();
            }
        }
    }
}

fn gateway_stops() -> CloseReason {
    CloseReason::new(1001, "the gateway is stopping")
}

/// The servers that can be resumed, by their keys in the catalog. No other lock is taken while this
/// one is held.
#[derive(Debug, Default)]
pub struct ResumeHandles(Mutex<HashMap<UpstreamKey, ResumeHandle>>);

impl ResumeHandles {
    fn table(&self) -> MutexGuard<'_, HashMap<UpstreamKey, ResumeHandle>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not corrupt it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a new link claim a server that can be resumed.
#[derive(Clone, Debug)]
struct ResumeHandle {
    token: Secret,
    claims: Sender<Sender<Box<ServerRegistration>>>,
}

/// Keeps the handle of a server in [`ResumeHandles`]. Dropping it removes the handle.
struct Resumable {
    gateway: Arc<Gateway>,
    key: UpstreamKey,
}

impl Resumable {
    fn new(gateway: &Arc<Gateway>, key: UpstreamKey, handle: ResumeHandle) -> Self {
        gateway.resume_handles.table().insert(key, handle);
        Self { gateway: gateway.clone(), key }
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        let removed = self.gateway.resume_handles.table().remove(&self.key);
        drop(removed);
    }
}

impl ResumeHandle {
    /// Claims the server from the task that holds it. Returns `None` if it is gone, or if that task
    /// does not respond within [`limits::CLAIM`].
    async fn claim(&self) -> Option<Box<ServerRegistration>> {
        let (give, take) = async_channel::bounded(1);
        let asking = async {
            // Another claim may be pending: the last claimant ends up with the server.
            self.claims.send(give).await.ok()?;
            take.recv().await.ok()
        };
        timeout::within(limits::CLAIM, asking).await.ok()?
    }
}

/// A registered server with its outbound state: what outlives a connection.
struct ServerRegistration {
    driver: UpstreamDriver,
    outbound: Outbound,
    /// Set if it may be resumed over another connection.
    resumable: Option<Resumable>,
    /// Whether it has no connection at present.
    away: bool,
    claims: Receiver<Sender<Box<ServerRegistration>>>,
    limits: LinkLimits,
}

/// Ends one wait of a server's task, with or without a connection.
enum Wakeup {
    Ended(LinkEnd),
    Claimed(Sender<Box<ServerRegistration>>),
    /// The link's queue was ended: the server was replaced, or its token revoked.
    Taken(CloseReason),
    Stopped,
    Tick,
}

impl ServerRegistration {
    /// Carries frames until the connection ends or another link claims the server.
    async fn run(mut self: Box<Self>, socket: WebSocket, permits: Permits) {
        let Self { driver, outbound, claims, limits, .. } = &mut *self;
        let stopped = driver.gateway().stopped.clone();
        let link = driver.upstream().link().clone();
        let pacer = driver.gateway().ends.clone();
        let driving =
            async { Wakeup::Ended(ws_link::drive(socket, outbound, driver, Some(&pacer), limits).await) };
        let stopping = async {
            stopped.wait().await;
            link.close(gateway_stops());
            future::pending().await
        };
        match future::or(driving, future::or(claimed(claims), stopping)).await {
            Wakeup::Claimed(claim) => {
                let _on = release_permits(permits);
                self.hand_over(claim).await;
            }
            Wakeup::Ended(ended) => self.on_link_end(ended, permits).await,
            Wakeup::Taken(_) | Wakeup::Stopped | Wakeup::Tick => {}
        }
    }

    /// Handles the end of the connection: waits for a resume if one is possible, else unregisters
    /// the server.
    async fn on_link_end(self: Box<Self>, ended: LinkEnd, permits: Permits) {
        // Release the permits first: otherwise no edge could resume at a full gateway.
        let _on = release_permits(permits);
        self.driver.gateway().count_end(&ended);
        if !ended.is_accident() || self.limits.resume_window.is_zero() {
            return self.driver.unregister(&ended.to_string());
        }
        if self.resumable.is_none() {
            return self.driver.unregister(&format!("{ended}; its edge does not support resuming"));
        }
        self.wait_for_resume(ended).await;
    }

    /// Waits without a connection until the server is claimed or the resume window is over.
    async fn wait_for_resume(mut self: Box<Self>, ended: LinkEnd) {
        let window = self.limits.resume_window;
        let over = Instant::now() + window + self.limits.resume_grace;
        let name = self.driver.upstream().name();
        let seconds = window.as_secs();
        let line = format!("server '{name}' is reconnecting: {ended}; its calls wait up to {seconds} s");
        self.driver.gateway().log_link_event(log::Level::Warn, "reconnecting", name, line);
        self.set_away(true);
        // No edge can reconnect once draining has begun.
        let stopped = self.driver.gateway().draining.clone();
        loop {
            let Self { driver, outbound, claims, .. } = &mut *self;
            let due = driver.deadline().map_or(over, |due| due.min(over));
            let ticking = async {
                timeout::until(Some(due)).await;
                Wakeup::Tick
            };
            let taken = async { Wakeup::Taken(outbound.ended().await) };
            let stopping = async {
                stopped.wait().await;
                Wakeup::Stopped
            };
            let next = future::or(future::or(claimed(claims), taken), future::or(stopping, ticking)).await;
            let now = Instant::now();
            let why = match next {
                Wakeup::Claimed(claim) => return Box::pin(self.hand_over(claim)).await,
                Wakeup::Tick if now >= over => {
                    let seconds = window.as_secs();
                    format!("{ended}; not resumed within {seconds} s (--resume-window)")
                }
                Wakeup::Tick => match self.driver.tick(now) {
                    Ok(()) => continue,
                    Err(close_reason) => close_reason.reason,
                },
                Wakeup::Taken(close_reason) => close_reason.reason,
                Wakeup::Stopped | Wakeup::Ended(_) => "the gateway is stopping".into(),
            };
            // Servers lost at the same time also expire at the same time, so take turns.
            self.driver.gateway().ends.turn().await;
            return self.driver.unregister(&why);
        }
    }

    fn set_away(&mut self, away: bool) {
        self.away = away;
        self.driver.set_away(away);
    }

    /// Hands the server over to the link that claims it. If that link is gone too, waits for the
    /// next.
    async fn hand_over(self: Box<Self>, claim: Sender<Box<ServerRegistration>>) {
        if let Err(unwanted) = claim.try_send(self) {
            let ended = LinkEnd::Lost("a resuming link was lost".into());
            unwanted.into_inner().wait_for_resume(ended).await;
        }
    }
}

async fn claimed(claims: &Receiver<Sender<Box<ServerRegistration>>>) -> Wakeup {
    match claims.recv().await {
        Ok(claim) => Wakeup::Claimed(claim),
        // It has no handle, so no claim can arrive.
        Err(_) => future::pending().await,
    }
}

/// The outcome of a first frame.
enum Admission {
    /// Registered or resumed, with the response.
    Registered(Box<ServerRegistration>, String),
    /// The frame comes from an earlier link and was delayed: the server was resumed over a later
    /// one.
    Late(Box<ServerRegistration>),
}

/// An edge that is authenticated and not yet admitted.
struct Candidate<'a> {
    gateway: &'a Arc<Gateway>,
    principal: Principal,
    from: SocketAddr,
}

impl Candidate<'_> {
    /// Parses the first frame.
    fn read(&self, frame: &str) -> Result<Registration, CloseReason> {
        let longest = self.gateway.config.limits.catalog.server_name;
        Registration::read(frame, longest).map_err(|why| CloseReason::new(1008, why.reason()))
    }

    /// Resumes or registers the server of a first frame.
    async fn admit(&self, registration: Registration) -> Result<Admission, CloseReason> {
        if let Some(claim) = &registration.claim
            && let Some(resumed) = self.resume(&registration, claim).await
        {
            return Ok(resumed);
        }
        let (server, answer) = self.register(registration)?;
        Ok(Admission::Registered(server, answer))
    }

    /// Returns whether the registration is for a server whose link appears to be alive.
    fn would_take_over(&self, registration: &Registration) -> bool {
        let id = registration.id.as_deref();
        id.is_some_and(|id| self.gateway.catalog().is_linked(id, self.principal, is_linked))
    }

    /// Resumes the server, if the resume window is still open and the claim matches.
    async fn resume(&self, registration: &Registration, claim: &Claim) -> Option<Admission> {
        let id = registration.id.as_deref()?;
        let (key, holder) = self.gateway.catalog().holder(id, self.principal)?;
        let resume_handle = self.gateway.resume_handles.table().get(&key).cloned()?;
        let same_name = registration.name.as_deref() == Some(holder.name());
        if !same_name
            || !self.may_claim(holder.name())
            || !resume_handle.token.matches(claim.token.expose().as_bytes())
        {
            return None;
        }
        let mut server = resume_handle.claim().await?;
        if server.outbound.is_past(claim.received) && !server.away {
            return Some(Admission::Late(server));
        }
        if server.outbound.resume(claim.received).is_err() {
            server.driver.unregister("it reconnected but could not resume");
            return None;
        }
        let grant = ResumeGrant {
            token: resume_handle.token,
            window: server.limits.resume_window,
            received: server.outbound.received(),
        };
        let sessions = holder.instance_pool().is_some() && registration.sessions.is_some();
        let line = format_args!("server '{}' resumed from {}", holder.name(), self.from);
        self.gateway.log_link_event(log::Level::Info, "back", holder.name(), line);
        self.gateway.stats.resumed.add();
        server.set_away(false);
        let answer = Status::received(id, true, server.limits.message_bytes, sessions, Some(&grant));
        Some(Admission::Registered(server, answer))
    }

    /// Registers the server as a new one.
    fn register(&self, registration: Registration) -> Result<(Box<ServerRegistration>, String), CloseReason> {
        let limits = &self.gateway.config.limits;
        let id = match registration.id {
            Some(id) => id,
            None => util::uuid::uuid(random()?),
        };
        let name = registration.name.unwrap_or_else(|| format!("server-{id}"));
        if !util::name::is_name(&name, limits.catalog.server_name) {
            return Err(CloseReason::new(1008, "invalid server name (--server-name)"));
        }
        let (sender, receiver) = outbox::with_account(
            limits.link.queue_messages,
            limits.link.queue_bytes,
            Some(self.gateway.account(self.principal)),
        );
        let (claimant, claims) = async_channel::bounded(1);
        let resumes = registration.resumes && !limits.link.resume_window.is_zero();
        let token = if resumes { Some(Secret::new(session::id(random()?))) } else { None };
        let sessions = registration.sessions;
        let accepts = registration.message_bytes;
        let key = self.gateway.catalog().reserve();
        let upstream = Upstream::new(key, name.clone(), &limits.link, Arc::new(sender), accepts, sessions);
        let catalog_guard = self.enter(&id, &name, &upstream)?;
        let resumable = token.clone().map(|token| {
            Resumable::new(self.gateway, catalog_guard.key, ResumeHandle { token, claims: claimant })
        });
        let line =
            format_args!("server '{name}' (id {}) registered from {}", util::escape::show(&id), self.from);
        self.gateway.log_link_event(log::Level::Info, "registers", &name, line);
        let mut outbound = Outbound::new(receiver);
        let account = self.gateway.account(self.principal);
        outbound.charge_to(&account);
        let grant = token.map(|token| {
            outbound.count();
            ResumeGrant { token, window: limits.link.resume_window, received: None }
        });
        let (reads_status_frames, isolated) = (registration.reads_status_frames, sessions.is_some());
        let answer =
            Status::received(&id, reads_status_frames, limits.link.message_bytes, isolated, grant.as_ref());
        let driver =
            UpstreamDriver::start(self.gateway, catalog_guard, id, reads_status_frames, upstream, &account)?;
        Ok((
            Box::new(ServerRegistration {
                driver,
                outbound,
                resumable,
                away: false,
                claims,
                limits: limits.link.clone(),
            }),
            answer,
        ))
    }

    /// Reserves the name in the catalog, if the token allows the name and no other server has it.
    fn claim(
        &self,
        now: Instant,
        id: &str,
        name: &str,
        upstream: &Arc<Upstream>,
    ) -> Result<(CatalogGuard, Option<Arc<Upstream>>), CloseReason> {
        // Check the right while the catalog is locked: a reload revokes it first and then scans the
        // catalog.
        let mut catalog = self.gateway.catalog();
        if !self.may_claim(name) {
            let why = format!("the token does not allow the name '{name}' (register[NAME,…] at the gateway)");
            return Err(CloseReason::new(CLOSE_REFUSED, why));
        }
        // Servers whose links are lost have no connection, but still count.
        let is_new = catalog.holder(id, self.principal).is_none();
        if is_new && catalog.len() >= self.gateway.config.limits.link.links {
            return Err(CloseReason::new(CLOSE_LATER, "too many registered servers (--max-links)"));
        }
        // A server that takes over has a share already, and releases it in a moment.
        let max = if is_new { self.gateway.links_each() } else { usize::MAX };
        let share = self.gateway.server_shares.take(self.principal, max).ok_or_else(|| {
            let why = "this principal has reached its share of the registered servers (half of --max-links)";
            CloseReason::new(CLOSE_LATER, why)
        })?;
        if catalog.take_over(now, id, self.principal, is_linked).is_err() {
            let why =
                "too many takeovers by this server id in the last minute; is it used twice (--server-id)?";
            return Err(CloseReason::new(CLOSE_TOO_OFTEN, why));
        }
        let key = upstream.key().upstream;
        let registered = catalog.register_as(key, id, name, self.principal, upstream.clone());
        let replaced = registered.map_err(|taken| refusal(name, &taken))?;
        Ok((CatalogGuard { key, _share: share }, replaced))
    }

    fn may_claim(&self, name: &str) -> bool {
        self.gateway.authn.tokens().may_claim(self.principal, name)
    }

    /// Adds the server to the catalog, and closes the one that had its id.
    fn enter(&self, id: &str, name: &str, upstream: &Arc<Upstream>) -> Result<CatalogGuard, CloseReason> {
        let gateway = self.gateway;
        let now = Instant::now();
        let (catalog_guard, replaced) = self.claim(now, id, name, upstream)?;
        if let Some(old) = replaced {
            let line = format_args!("server '{}' registered again; closing its old link", old.name());
            gateway.log_link_event(log::Level::Info, "registered_anew", old.name(), line);
            let why = "it registered again over another link";
            old.fail_all(why, &gateway.stats);
            gateway.end_all_instances(now, &old, why);
            old.link()
                .close(CloseReason::new(CLOSE_REPLACED, "the same server id registered over another link"));
            gateway.lists_changed(&ListKind::ALL);
        }
        Ok(catalog_guard)
    }
}

/// Returns the close reason for a server-name conflict.
fn refusal(name: &str, taken: &NameTaken) -> CloseReason {
    let why = match taken.holder.as_deref().map(util::escape::show) {
        // Short enough for a Close frame.
        Some(holder) if taken.away => {
            format!(
                "this name is reserved for a lost server (--server-id {holder}) until its resume window ends"
            )
        }
        Some(holder) => format!(
            "the name '{name}' belongs to another server, with id {holder}; choose another (--server-name)"
        ),
        None => format!("the name '{name}' belongs to another principal; choose another (--server-name)"),
    };
    CloseReason::new(if taken.away { CLOSE_LATER } else { CLOSE_REFUSED }, why)
}

/// The permits of a link: its guard in the count of all links, its principal's share, and the
/// permit of its connection.
pub type Permits = (TaskGuard, Share, ConnectionPermit);

/// Releases all permits. The connection's task goes on until the returned trigger is dropped.
fn release_permits((guard, share, permit): Permits) -> Option<ShutdownTrigger> {
    drop((guard, share));
    permit.release()
}

/// The queue of a link; its other end is written to the WebSocket.
impl Transport for outbox::Sender<CloseReason> {
    fn send(&self, frame: String, room: Room) -> Result<(), SendError> {
        match room {
            Room::Normal => self.send(frame),
            Room::Reserved => self.send_reserved(frame),
            Room::Unbounded => self.send_unbounded(frame),
        }
    }

    fn close(&self, reason: CloseReason) {
        self.end(reason);
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }
}

fn is_linked(server: &Arc<Upstream>) -> bool {
    !server.link().is_closed()
}

fn random() -> Result<[u8; 16], CloseReason> {
    net::random::bytes().map_err(|_| CloseReason::new(1011, "no random bytes available"))
}
