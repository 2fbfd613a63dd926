//! Registration of servers, and their resumption over another link.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    effect::Effects,
    instance::{Instance, disconnected},
    key::InstanceKey,
    link::Link,
    peers::Transport,
    state::Hub,
    upstream::{Listing, Pool, Upstream},
};
use crate::{
    auth::{Principal, Tokens},
    budget::Account,
    catalog::{NameTaken, UpstreamKey},
    config::EraPin,
    mcp::{discovery::Discovery, era::EraProbe, listing::ListKind, upstream_listen::UpstreamListen},
    secret::Secret,
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::CloseReason,
        handshake::{Claim, Registration},
    },
    util::escape::show,
};

/// A server that is about to be registered.
#[derive(Debug)]
pub struct NewUpstream {
    /// The id of the server, unique for its principal.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The principal that registers it.
    pub principal: Principal,
    /// The account that pays for its lists.
    pub account: Account,
    /// What carries frames to its edge.
    pub transport: Arc<dyn Transport>,
    /// The largest frame that its edge accepts, if it declared one.
    pub accepts: Option<usize>,
    /// The maximum number of isolated instances, if it supports them.
    pub max_instances: Option<u32>,
    /// The edge is mcpport's own and accepts status frames.
    pub reads_status_frames: bool,
    /// The token with which another link can claim it, if it can be resumed.
    pub resume_token: Option<Secret>,
    /// The era of its processes, if the edge reports their restarts.
    pub era: Option<EraPin>,
}

/// A server that another link may claim.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its key.
    pub key: UpstreamKey,
    /// Its name.
    pub name: Arc<str>,
    /// Whether it has isolated instances.
    pub is_isolating: bool,
    /// The token with which it was claimed.
    pub token: Secret,
}

impl Hub {
    /// Returns whether the registration is for a server whose link appears to be alive.
    pub fn would_take_over(&self, registration: &Registration, principal: Principal) -> bool {
        let id = registration.id.as_deref();
        id.is_some_and(|id| self.catalog.is_linked(id, principal, |key| self.is_linked(*key)))
    }

    fn is_linked(&self, server: UpstreamKey) -> bool {
        self.upstreams.get(&server).is_some_and(|upstream| !upstream.link.is_closed())
    }

    /// Returns the server that a registration claims, if the claim matches.
    pub fn claim(&self, registration: &Registration, claim: &Claim, principal: Principal) -> Option<Claimed> {
        let (key, _) = self.catalog.holder(registration.id.as_deref()?, principal)?;
        let upstream = self.upstreams.get(&key)?;
        let (name, token) = (upstream.link.name(), upstream.resume_token.as_ref()?);
        let matches = registration.name.as_deref() == Some(name)
            && self.tokens.may_claim(principal, name)
            && token.matches(claim.token.expose().as_bytes());
        matches.then(|| Claimed {
            key,
            name: name.clone(),
            is_isolating: upstream.pool.is_some(),
            token: token.clone(),
        })
    }

    /// Records whether a server's link is lost and may come back.
    pub fn set_away(&mut self, server: UpstreamKey, away: bool) {
        self.catalog.set_away(server, away);
    }

    /// Registers a server, replaces the one of the same principal that had its id, and begins to
    /// discover what it offers.
    ///
    /// # Errors
    /// A [`CloseReason`] that refuses it.
    pub fn register(
        &mut self,
        now: Instant,
        new: NewUpstream,
        fx: &mut Effects<'_>,
    ) -> Result<UpstreamKey, CloseReason> {
        let key = self.enter(now, &new, fx)?;
        let limits = &self.config.limits;
        let (discovery, request) = Discovery::start(limits.catalog.clone(), probe(new.era));
        let may_be_modern = matches!(new.era, Some(EraPin::Auto | EraPin::Modern));
        let upstream = Upstream {
            key,
            id: new.id,
            principal: new.principal,
            reads_status_frames: new.reads_status_frames,
            resume_token: new.resume_token,
            link: Link::new(&new.name, new.transport, new.accepts),
            shared: Instance::new(InstanceKey::shared(key), limits.link.in_flight, None),
            pool: new.max_instances.map(|max| Pool::new(max, &limits.link)),
            run: self.tasks.start(),
            listing: Listing::new(now, discovery, may_be_modern, &new.account),
            listen: UpstreamListen::new(&limits.stateless),
            pending_subscriptions: VecDeque::new(),
            last_check: now,
            timer: None,
        };
        self.upstreams.insert(key, Box::new(upstream));
        if let Err(why) = self.discover(now, key, request, fx) {
            self.remove_server(now, key, &why.reason, fx);
            return Err(why);
        }
        Ok(key)
    }

    /// Adds a server to the catalog, if the token allows the name and no other server has it.
    fn enter(
        &mut self,
        now: Instant,
        new: &NewUpstream,
        fx: &mut Effects<'_>,
    ) -> Result<UpstreamKey, CloseReason> {
        let NewUpstream { id, name, principal, .. } = new;
        if !self.tokens.may_claim(*principal, name) {
            let why = format!("the token does not allow the name '{name}' (register[NAME,…] at the gateway)");
            return Err(CloseReason::new(CLOSE_REFUSED, why));
        }
        // Servers whose links are lost have no connection, but still count.
        let is_new = self.catalog.holder(id, *principal).is_none();
        if is_new && self.catalog.len() >= self.config.limits.link.links {
            return Err(CloseReason::new(CLOSE_LATER, "too many registered servers (--max-links)"));
        }
        // A server that takes over has a share already, and releases it in a moment.
        let max = if is_new { self.links_each() } else { usize::MAX };
        if self.server_shares.held(*principal) >= max {
            let why = "this principal has reached its share of the registered servers (half of --max-links)";
            return Err(CloseReason::new(CLOSE_LATER, why));
        }
        let upstreams = &self.upstreams;
        let alive = |key: &UpstreamKey| upstreams.get(key).is_some_and(|upstream| !upstream.link.is_closed());
        if self.catalog.take_over(now, id, *principal, alive).is_err() {
            let why =
                "too many takeovers by this server id in the last minute; is it used twice (--server-id)?";
            return Err(CloseReason::new(CLOSE_TOO_OFTEN, why));
        }
        let key = self.catalog.reserve();
        let replaced = self.catalog.register_as(key, id, name, *principal, key);
        let replaced = replaced.map_err(|taken| refusal(name, &taken))?;
        // Never refused: checked above.
        let _ = self.server_shares.take(*principal, usize::MAX);
        if let Some(old) = replaced {
            self.replace(now, old, fx);
        }
        Ok(key)
    }

    /// Ends a server whose id was registered again.
    fn replace(&mut self, now: Instant, old: UpstreamKey, fx: &mut Effects<'_>) {
        let name = self.name_of(old);
        let line = || format!("server '{name}' registered again; closing its old link");
        self.log_link_event(now, log::Level::Info, ("registered_anew", &name), fx, line);
        if let Some(upstream) = self.upstreams.get(&old) {
            let why = "the same server id registered over another link";
            upstream.link.close(CloseReason::new(CLOSE_REPLACED, why));
        }
        self.remove_server(now, old, "it registered again over another link", fx);
        self.lists_changed(now, &ListKind::ALL, fx);
    }

    /// Replaces the token table, and closes what its principal may no longer have. Returns the
    /// number of sessions and links that are closed by it.
    pub fn set_tokens(&mut self, now: Instant, tokens: Arc<Tokens>, fx: &mut Effects<'_>) -> (usize, usize) {
        self.tokens = tokens.clone();
        self.sessions.share(tokens.have_several_clients());
        let sessions = self.sessions.expel(|principal| tokens.may_call(principal));
        self.tasks.expel(|principal| tokens.may_call(principal));
        for call in self.parked.expel(|principal| tokens.may_call(principal)) {
            self.abandon(now, call, fx);
        }
        let (processes, waiting) = self.leases.expel(|principal| tokens.may_call(principal));
        for waiting in waiting {
            let server = self.name_of(waiting.server);
            self.fail_waiting([waiting], &disconnected(&server, "token revoked"), fx);
        }
        for process in processes {
            self.end_instance(now, process, "token revoked", true, fx);
        }
        for session in &sessions {
            self.close_session(now, *session, "token revoked", fx);
        }
        self.expel_listens(now, fx);
        let servers = self.catalog.unauthorized(|principal, name| tokens.may_claim(principal, name));
        for upstream in servers.iter().filter_map(|server| self.upstreams.get(server)) {
            upstream.link.close(CloseReason::new(1008, "the token of this registration was revoked"));
        }
        (sessions.len(), servers.len())
    }
}

/// Returns how to find the era of a server. One whose edge does not know of eras gets `initialize`
/// first: such an edge could not report the restart of a modern server.
fn probe(era: Option<EraPin>) -> EraProbe {
    EraProbe::new(era.unwrap_or_default(), era.is_some())
}

/// Returns the close reason for a server-name conflict.
fn refusal(name: &str, taken: &NameTaken) -> CloseReason {
    let why = match taken.holder.as_deref().map(show) {
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
