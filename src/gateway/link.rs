//! Registers an edge's server over a new link, or resumes it over another link.
//!
//! The first frame decides which. A server whose link is lost by accident is kept for the resume
//! window: its calls wait, and the connection that resumes it takes over its queue from the task of
//! the lost connection. The server itself is in the hub, and the rules of resumption are in
//! `tunnel::resume`.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use async_channel::{Receiver, Sender};
use futures_lite::future;

use super::{accept::ConnectionPermit, shares::Share, state::Gateway};
use crate::{
    auth::Principal,
    catalog::UpstreamKey,
    hub::{
        entry::{self, Enter, LinkTraits},
        peers::{Transport, Wakers},
        registration::NewUpstream,
    },
    limits::{self, LinkLimits},
    net::{
        self,
        outbound::Outbound,
        outbox, timeout,
        ws_link::{self, WebSocket},
    },
    queue::{Room, SendError},
    runtime::{lock::Lock, shutdown::ShutdownTrigger, task_tracker::TaskGuard},
    secret::Secret,
    session,
    tunnel::{
        CLOSE_LATER,
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

/// Reads and handles the first frame of a new link. Returns `None` if the link has ended.
pub async fn enter(
    (gateway, resume_handles): (Arc<Gateway>, Arc<ResumeHandles>),
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
    let candidate = Candidate { gateway: &gateway, resume_handles: &resume_handles, principal, from };
    let receiving = async {
        let frame = ws_link::recv_frame(&mut socket, limits.register_bytes, &limits).await?;
        let registration = candidate.read(&frame);
        if registration.as_ref().is_ok_and(|registration| candidate.would_take_over(registration)) {
            // The frame may have been delayed: an edge that does not answer the probe has left this
            // link, and may be registered over the link that this one would replace.
            ws_link::probe(&mut socket, &limits).await?;
        }
        Ok::<_, LinkEnd>(registration)
    };
    let registration = match future::or(receiving, stopping).await {
        Ok(registration) => registration,
        Err(ended) => {
            count_end(&gateway, &ended);
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
    count_end(gateway, &ended);
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

/// Counts the links that the gateway ended.
fn count_end(gateway: &Gateway, ended: &LinkEnd) {
    if let LinkEnd::ByUs(why) = ended {
        gateway.stats.links_ended.add();
        if why.reason == ws_link::NO_MEMORY {
            gateway.stats.memory_refusals.add();
        }
    }
}

fn gateway_stops() -> CloseReason {
    CloseReason::new(1001, "the gateway is stopping")
}

/// The handles of the servers that can be resumed. No other lock is taken while this one is held.
#[derive(Debug, Default)]
pub struct ResumeHandles(Lock<HashMap<UpstreamKey, ResumeHandle>>);

/// Lets a new link claim a server that can be resumed.
#[derive(Clone, Debug)]
struct ResumeHandle(Sender<Sender<Box<ServerRegistration>>>);

/// Keeps the handle of a server in [`ResumeHandles`]. Dropping it removes the handle.
struct Resumable {
    handles: Arc<ResumeHandles>,
    key: UpstreamKey,
}

impl Resumable {
    fn new(handles: &Arc<ResumeHandles>, key: UpstreamKey, handle: ResumeHandle) -> Self {
        handles.0.lock().insert(key, handle);
        Self { handles: handles.clone(), key }
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        let removed = self.handles.0.lock().remove(&self.key);
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
            self.0.send(give).await.ok()?;
            take.recv().await.ok()
        };
        timeout::within(limits::CLAIM, asking).await.ok()?
    }
}

/// Gives the frames of a link to the hub. Dropping it removes the server.
struct ServerGuard {
    gateway: Arc<Gateway>,
    name: Arc<str>,
    traits: LinkTraits,
    /// Why the server is removed, once that is known.
    close_reason: Option<String>,
}

impl LinkHandler for ServerGuard {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        entry::frame(&*self.gateway, now, self.traits, frame)
    }

    /// Nothing is due here: the hub has one timer for all servers.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: Instant) -> Result<(), CloseReason> {
        Ok(())
    }
}

impl ServerGuard {
    /// Removes the server. `why` is logged and sent to waiting callers.
    fn remove(mut self, why: &str) {
        self.close_reason = Some(why.to_owned());
    }
}

impl Drop for ServerGuard {
    fn drop(&mut self) {
        let why = self.close_reason.take().unwrap_or_else(|| "internal error in the gateway".into());
        let (gateway, name, server) = (&self.gateway, &self.name, self.traits.server);
        gateway.enter(|hub, fx| hub.remove_server(Instant::now(), server, &why, fx));
        let line = format_args!("server '{name}' removed: {why}");
        gateway.log_link_event(log::Level::Info, "gone", name, line);
    }
}

/// A registered server with its outbound state: what outlives a connection.
struct ServerRegistration {
    server: ServerGuard,
    outbound: Outbound,
    /// The queue of `outbound`.
    queue: outbox::Sender<CloseReason>,
    /// Set if it may be resumed over another connection.
    resumable: Option<Resumable>,
    /// Whether it has no connection at present.
    away: bool,
    claims: Receiver<Sender<Box<ServerRegistration>>>,
    limits: LinkLimits,
}

/// The event that ends a wait of a server's task, with or without a connection.
enum Wakeup {
    /// The connection ended.
    Ended(LinkEnd),
    /// Another link resumes the server.
    Claimed(Sender<Box<ServerRegistration>>),
    /// The link's queue was ended: the server was replaced, or its token revoked.
    Taken(CloseReason),
    /// The gateway is stopping.
    Stopped,
    /// The resume window is over.
    Over,
}

impl ServerRegistration {
    /// Carries frames until the connection ends or another link claims the server.
    async fn run(mut self: Box<Self>, socket: WebSocket, permits: Permits) {
        let Self { server, outbound, queue, claims, limits, .. } = &mut *self;
        let stopped = server.gateway.stopped.clone();
        let pacer = server.gateway.ends.clone();
        let driving =
            async { Wakeup::Ended(ws_link::drive(socket, outbound, server, Some(&pacer), limits).await) };
        let stopping = async {
            stopped.wait().await;
            queue.end(gateway_stops());
            future::pending().await
        };
        match future::or(driving, future::or(claimed(claims), stopping)).await {
            Wakeup::Claimed(claim) => {
                let _on = release_permits(permits);
                self.hand_over(claim).await;
            }
            Wakeup::Ended(ended) => self.on_link_end(ended, permits).await,
            Wakeup::Taken(_) | Wakeup::Stopped | Wakeup::Over => {}
        }
    }

    /// Handles the end of the connection: waits for a resume if one is possible, else removes the
    /// server.
    async fn on_link_end(self: Box<Self>, ended: LinkEnd, permits: Permits) {
        // Release the permits first: otherwise no edge could resume at a full gateway.
        let _on = release_permits(permits);
        count_end(&self.server.gateway, &ended);
        if !ended.is_accident() || self.limits.resume_window.is_zero() {
            return self.server.remove(&ended.to_string());
        }
        if self.resumable.is_none() {
            return self.server.remove(&format!("{ended}; its edge does not support resuming"));
        }
        self.wait_for_resume(ended).await;
    }

    /// Waits without a connection until the server is claimed or the resume window is over.
    async fn wait_for_resume(mut self: Box<Self>, ended: LinkEnd) {
        let window = self.limits.resume_window;
        let over = Instant::now() + window + self.limits.resume_grace;
        let name = self.server.name.clone();
        let seconds = window.as_secs();
        let line = format!("server '{name}' is reconnecting: {ended}; its calls wait up to {seconds} s");
        self.server.gateway.log_link_event(log::Level::Warn, "reconnecting", &name, line);
        self.set_away(true);
        // No edge can reconnect once draining has begun.
        let stopped = self.server.gateway.draining.clone();
        let Self { outbound, claims, .. } = &mut *self;
        let waiting = async {
            timeout::until(Some(over)).await;
            Wakeup::Over
        };
        let taken = async { Wakeup::Taken(outbound.ended().await) };
        let stopping = async {
            stopped.wait().await;
            Wakeup::Stopped
        };
        let next = future::or(future::or(claimed(claims), taken), future::or(stopping, waiting)).await;
        let why = match next {
            Wakeup::Claimed(claim) => return Box::pin(self.hand_over(claim)).await,
            Wakeup::Over => {
                let seconds = window.as_secs();
                format!("{ended}; not resumed within {seconds} s (--resume-window)")
            }
            Wakeup::Taken(close_reason) => close_reason.reason,
            Wakeup::Stopped | Wakeup::Ended(_) => "the gateway is stopping".into(),
        };
        // Servers lost at the same time also expire at the same time, so take turns.
        self.server.gateway.ends.turn().await;
        self.server.remove(&why);
    }

    fn set_away(&mut self, away: bool) {
        self.away = away;
        let server = self.server.traits.server;
        self.server.gateway.enter(|hub, _| hub.set_away(server, away));
    }

    /// Hands the server over to the link that claims it. If that link is lost too, waits for
    /// another.
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
        // The server has no handle, so no claim can arrive.
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
    resume_handles: &'a Arc<ResumeHandles>,
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
        self.gateway.enter(|hub, _| hub.would_take_over(registration, self.principal))
    }

    /// Resumes the server, if the resume window is still open and the claim matches.
    async fn resume(&self, registration: &Registration, claim: &Claim) -> Option<Admission> {
        let claimed = self.gateway.enter(|hub, _| hub.claim(registration, claim, self.principal))?;
        let handle = self.resume_handles.0.lock().get(&claimed.key).cloned()?;
        let mut server = handle.claim().await?;
        if server.outbound.is_past(claim.received) && !server.away {
            return Some(Admission::Late(server));
        }
        if server.outbound.resume(claim.received).is_err() {
            server.server.remove("it reconnected but could not resume");
            return None;
        }
        let grant = ResumeGrant {
            token: claimed.token,
            window: server.limits.resume_window,
            received: server.outbound.received(),
        };
        let sessions = claimed.is_isolating && registration.sessions.is_some();
        let line = format_args!("server '{}' resumed from {}", claimed.name, self.from);
        self.gateway.log_link_event(log::Level::Info, "back", &claimed.name, line);
        self.gateway.stats.resumed.add();
        server.set_away(false);
        let id = registration.id.as_deref()?;
        let answer = Status::received(
            id,
            true,
            server.limits.message_bytes,
            sessions,
            registration.era.is_some(),
            Some(&grant),
        );
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
        let account = self.gateway.account(self.principal);
        let (queue, receiver) =
            outbox::with_account(limits.link.queue_messages, limits.link.queue_bytes, Some(account.clone()));
        let resumes = registration.resumes && !limits.link.resume_window.is_zero();
        let token = if resumes { Some(Secret::new(session::id(random()?))) } else { None };
        let (isolated, reads_status_frames) =
            (registration.sessions.is_some(), registration.reads_status_frames);
        let new = NewUpstream {
            id: id.clone(),
            name: name.clone(),
            principal: self.principal,
            account: account.clone(),
            transport: Arc::new(queue.clone()),
            accepts: registration.message_bytes,
            max_instances: registration.sessions,
            reads_status_frames,
            resume_token: token.clone(),
            era: registration.era,
        };
        let key = self.gateway.enter(|hub, fx| hub.register(Instant::now(), new, fx))?;
        let line =
            format_args!("server '{name}' (id {}) registered from {}", util::escape::show(&id), self.from);
        self.gateway.log_link_event(log::Level::Info, "registers", &name, line);
        let (claimant, claims) = async_channel::bounded(1);
        let handle = token.is_some().then_some(ResumeHandle(claimant));
        let resumable = handle.map(|handle| Resumable::new(self.resume_handles, key, handle));
        let mut outbound = Outbound::new(receiver);
        outbound.charge_to(&account);
        let grant = token.map(|token| {
            outbound.count();
            ResumeGrant { token, window: limits.link.resume_window, received: None }
        });
        let (max, grant) = (limits.link.message_bytes, grant.as_ref());
        let answer =
            Status::received(&id, reads_status_frames, max, isolated, registration.era.is_some(), grant);
        let server = ServerGuard {
            gateway: self.gateway.clone(),
            name: name.into(),
            traits: LinkTraits { server: key, is_isolating: isolated, reads_status_frames },
            close_reason: None,
        };
        let limits = limits.link.clone();
        let registered =
            ServerRegistration { server, outbound, queue, resumable, away: false, claims, limits };
        Ok((Box::new(registered), answer))
    }
}

/// The permits of a link: its guard in the count of all links, its part of its principal's share,
/// and the permit of its connection.
pub type Permits = (TaskGuard, Share, ConnectionPermit);

/// Releases all permits. The connection's task keeps running until the returned trigger is dropped.
fn release_permits((guard, share, permit): Permits) -> Option<ShutdownTrigger> {
    drop((guard, share));
    permit.release()
}

/// The queue of a link; its other end is written to the WebSocket.
impl Transport for outbox::Sender<CloseReason> {
    fn send(&self, frame: String, room: Room, wakers: &mut Wakers) -> Result<(), SendError> {
        wakers.add(self.add(frame, room)?);
        Ok(())
    }

    fn close(&self, reason: CloseReason) {
        self.end(reason);
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }
}

fn random() -> Result<[u8; 16], CloseReason> {
    net::random::bytes().map_err(|_| CloseReason::new(1011, "no random bytes available"))
}
