//! Drives a registered server: interprets its frames and runs the gateway's own requests to it.
//!
//! Uses `mcp::discovery` (the gateway as the server's client) and `hub::mux` (the calls of all
//! clients). `link` connects it to a link.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    Gateway,
    shares::Share,
    upstream::{Caller, Upstream},
};
use crate::{
    budget::{Account, Charge},
    catalog::UpstreamKey,
    hub::{
        error::{NO_MEMORY, ServerRequestError},
        incoming::{self, Incoming, Part, UnexpectedChannel},
        mux::Routed,
        peers::Room,
    },
    jsonrpc::{self, Message, Span, edit, tolerant::Unusable},
    limits::{CHANNEL_TICK, INSTRUCTIONS, LOG_GROUPS},
    mcp::{
        self,
        discovery::{Discovery, DiscoveryRequest, DiscoveryStep},
        listing::{ListItem, ListKind},
    },
    tunnel::{CLOSE_LATER, close::CloseReason, handler::LinkHandler, handshake::Status},
};

/// A server's registration in the catalog.
pub struct CatalogGuard {
    /// The server's key in the catalog.
    pub key: UpstreamKey,
    /// The permit among the servers of its principal.
    pub _share: Share,
}

/// Drives a server in the catalog. Dropping it removes the server.
pub struct UpstreamDriver {
    gateway: Arc<Gateway>,
    catalog_guard: CatalogGuard,
    id: String,
    /// The edge is mcpport's own and accepts status frames.
    reads_status_frames: bool,
    upstream: Arc<Upstream>,
    discovery: Discovery,
    /// The id of the pending discovery request.
    pending_request: Option<u64>,
    /// Everything that it offers has been listed at least once.
    listed: bool,
    /// The server was restarted and is being listed again.
    renewed: bool,
    /// The number of its tools.
    tools: usize,
    /// When the instances were last checked for timeouts.
    last_check: Instant,
    /// Memory charged for its initialize result, for the list being received, and for its lists in
    /// the catalog.
    initialize_result_charge: Charge,
    listing_charge: Charge,
    list_charges: BTreeMap<ListKind, Charge>,
    /// Memory charged for its instructions in the catalog.
    instructions_charge: Charge,
    /// Earliest time to request lists that changed.
    relist: Instant,
    /// Earliest time to retry a list that failed.
    retry: Instant,
    /// Resources with subscribers for which the server has not been sent `resources/subscribe` yet.
    pending_subscriptions: VecDeque<String>,
    /// Why the server is removed, once that is known.
    close_reason: Option<String>,
}

impl LinkHandler for UpstreamDriver {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let gateway = self.gateway.clone();
        self.on_frame(&gateway, now, frame)
    }

    /// The earliest time at which something is due. Instances and pending subscriptions are checked
    /// every [`CHANNEL_TICK`], if there are any.
    fn deadline(&self) -> Option<Instant> {
        let has_instances = self.upstream.instance_pool().is_some_and(|pool| !pool.is_empty());
        let check =
            (has_instances || !self.pending_subscriptions.is_empty()).then(|| self.last_check + CHANNEL_TICK);
        let relist = self.discovery.wants_relist().then_some(self.relist);
        let retry = self.discovery.wants_retry().then_some(self.retry.max(self.relist));
        self.upstream.mux().deadline().into_iter().chain(check).chain(relist).chain(retry).min()
    }

    fn tick(&mut self, now: Instant) -> Result<(), CloseReason> {
        let gateway = self.gateway.clone();
        self.expire(&gateway, now)
    }
}

/// Removes the server from the catalog and fails its pending calls at once.
impl Drop for UpstreamDriver {
    fn drop(&mut self) {
        let why = self.close_reason.take().unwrap_or_else(|| "internal error in the gateway".into());
        let removed = self.gateway.catalog().remove(self.catalog_guard.key);
        self.upstream.fail_all(&why, &self.gateway.stats);
        let now = Instant::now();
        self.gateway.end_all_instances(now, &self.upstream, &why);
        self.gateway.tasks().end(self.upstream.run());
        let name = self.upstream.name();
        self.gateway.log_link_event(
            log::Level::Info,
            "gone",
            name,
            format_args!("server '{name}' removed: {why}"),
        );
        if let Some((_, kinds)) = removed {
            self.gateway.lists_changed(&kinds);
        }
    }
}

impl UpstreamDriver {
    /// Starts driving a server that was just added to the catalog, and sends it `initialize`.
    ///
    /// # Errors
    /// A [`CloseReason`], if its queue does not take the request.
    pub fn start(
        gateway: &Arc<Gateway>,
        catalog_guard: CatalogGuard,
        id: String,
        reads_status_frames: bool,
        upstream: Arc<Upstream>,
        account: &Account,
    ) -> Result<Self, CloseReason> {
        let (discovery, request) = Discovery::start(gateway.config.limits.catalog.clone());
        let now = Instant::now();
        upstream.set_run(gateway.tasks().start());
        let mut server = Self {
            gateway: gateway.clone(),
            catalog_guard,
            id,
            reads_status_frames,
            upstream,
            discovery,
            pending_request: None,
            listed: false,
            renewed: false,
            tools: 0,
            last_check: now,
            relist: now,
            retry: now,
            initialize_result_charge: account.charge(),
            listing_charge: account.charge(),
            list_charges: BTreeMap::new(),
            instructions_charge: account.charge(),
            pending_subscriptions: VecDeque::new(),
            close_reason: None,
        };
        server.send_request(gateway, now, request)?;
        Ok(server)
    }

    /// Returns the handle through which the rest of the gateway uses the server.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Returns the gateway that the server is registered at.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Marks the server as reconnecting (its link is lost and may be resumed) or as connected
    /// again.
    pub fn set_away(&self, away: bool) {
        self.gateway.catalog().set_away(self.catalog_guard.key, away);
    }

    /// Unregisters the server. `why` is logged and sent to waiting callers.
    pub fn unregister(mut self, why: &str) {
        self.close_reason = Some(why.to_owned());
    }

    fn on_frame(&mut self, gateway: &Gateway, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let pool = self.upstream.instance_pool();
        let text = match Incoming::read(frame, pool.is_some(), self.reads_status_frames) {
            Ok(Incoming::Shared(text)) => text,
            Ok(Incoming::Instance(channel, text)) => {
                // The session of this instance may have ended already.
                if let Some(instance) = pool.and_then(|pool| pool.get(channel)) {
                    gateway.on_instance_message(now, &instance, text);
                }
                return Ok(());
            }
            Ok(Incoming::Closed(channel, reason)) => {
                gateway.instance_gone(now, &self.upstream, channel, reason);
                return Ok(());
            }
            Err(UnexpectedChannel) => {
                return Err(CloseReason::new(1008, "channel frame without negotiated sessions"));
            }
        };
        incoming::parts(text, self.reads_status_frames, |part| self.on_part(gateway, now, part))
    }

    fn on_part(&mut self, gateway: &Gateway, now: Instant, part: Part<'_>) -> Result<(), CloseReason> {
        match part {
            Part::Message(message) => self.on_valid_message(gateway, now, message)?,
            Part::Unusable(answer) => self.on_unusable_answer(gateway, now, answer)?,
            Part::Noise(malformed) => self.upstream.on_noise(now, malformed, &gateway.stats),
            Part::Twin => self.upstream.log_twin(now),
            Part::Restarted => self.on_restart(gateway, now)?,
        }
        Ok(())
    }

    /// Handles a response that cannot be used: fails the request that it belongs to.
    fn on_unusable_answer(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        answer: &Unusable,
    ) -> Result<(), CloseReason> {
        self.upstream.log_unusable(now, answer);
        match self.upstream.fail_unusable(answer, &gateway.stats) {
            Some(Caller::Discovery) => {
                let why = format!("invalid response from the server: {}", answer.why);
                self.on_discovery_failure(gateway, now, &why)?;
                self.relist(gateway, now)
            }
            _ => Ok(()),
        }
    }

    fn on_valid_message(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        message: &Message<'_>,
    ) -> Result<(), CloseReason> {
        let step = self.upstream.mux().sort(message);
        match step {
            Ok(Routed::Answer(pending)) if matches!(pending.caller, Caller::Discovery) => {
                let next = self.discovery.answered(message);
                self.apply(gateway, now, next)?;
                self.relist(gateway, now)
            }
            Ok(Routed::Answer(pending)) => {
                gateway.conclude(now, &self.upstream, pending, message);
                gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
                Ok(())
            }
            Ok(Routed::Progress(id, span)) => {
                self.on_progress(gateway, now, id, message, span);
                Ok(())
            }
            Ok(Routed::Request) if self.reads_status_frames && message.method() == "register" => {
                Err(CloseReason::new(1008, "a second registration on one link"))
            }
            Ok(Routed::Request) => {
                self.answer_request(message);
                Ok(())
            }
            Ok(Routed::Notification) => {
                gateway.broadcast(&self.upstream, message);
                self.on_list_changed(gateway, now, message.method())
            }
            Ok(Routed::Unmatched) | Err(_) => {
                gateway.stats.unmatched.add();
                self.upstream.log_unmatched(now, message);
                Ok(())
            }
        }
    }

    /// Handles a restart of the server. It may be another version now, so discovery begins again.
    fn on_restart(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        let name = self.upstream.name();
        let line = format_args!("server '{name}' was restarted at its edge");
        gateway.log_throttled(log::Level::Info, "restart", name, LOG_GROUPS, line);
        {
            let mut tasks = gateway.tasks();
            let run = tasks.start();
            tasks.end(self.upstream.set_run(run));
        }
        // A late response to the previous request would be taken for the response to the new one.
        self.pending_request.take().and_then(|id| self.upstream.mux().close(id));
        let request = self.discovery.again();
        self.renewed = true;
        self.send_request(gateway, now, request)
    }

    /// Handles a `list_changed` notification: requests all lists that it covers again.
    fn on_list_changed(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        notification: &str,
    ) -> Result<(), CloseReason> {
        for kind in ListKind::ALL.into_iter().filter(|kind| kind.changed() == notification) {
            self.discovery.changed(kind);
        }
        self.relist(gateway, now)
    }

    /// Requests the lists that changed, at most once per `list_pause`: a server that constantly
    /// reports changes must not cause constant listing.
    fn relist(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        if now < self.relist {
            return Ok(());
        }
        if self.discovery.wants_retry() && now >= self.retry {
            self.discovery.retry();
        }
        let Some(request) = self.discovery.relist() else { return Ok(()) };
        self.relist = now + gateway.config.limits.catalog.list_pause;
        self.send_request(gateway, now, request)
    }

    fn on_progress(&self, gateway: &Gateway, now: Instant, id: u64, message: &Message<'_>, span: Span) {
        let waiting = {
            let mut mux = self.upstream.mux();
            mux.progressed(now, id);
            let Some(pending) = mux.get(id) else { return };
            match (&pending.caller, pending.token()) {
                (Caller::Session(_, _, responder, _), Some(token)) => (responder.clone(), token.to_owned()),
                _ => return,
            }
        };
        let (responder, token) = waiting;
        responder.send(edit::progress(message, span, &token), &gateway.stats);
    }

    /// Answers a request of a shared server, which cannot be attributed to a client: `ping` gets a
    /// result, everything else an error.
    fn answer_request(&self, message: &Message<'_>) {
        let id = message.id().unwrap_or_default();
        let answer = match message.method() {
            "ping" => jsonrpc::result(id, "{}"),
            other => ServerRequestError::UnknownMethod(other.to_owned()).rpc().response(id),
        };
        let _ = self.upstream.link().send(answer, Room::Reserved);
    }

    /// Sends a discovery request.
    fn send_request(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        request: DiscoveryRequest,
    ) -> Result<(), CloseReason> {
        let config = &gateway.config;
        // `initialize` gets the longer timeout: a server may have to be downloaded and started
        // first.
        let timeout =
            if request.method == "initialize" { config.timeout_run_tool } else { config.timeout_rpc };
        let opened = self.upstream.mux().open_own(now, Caller::Discovery, request.method, timeout);
        let Ok(id) = opened else {
            self.discovery.unanswered();
            self.retry = now + self.discovery.retry_pause();
            return Ok(());
        };
        self.pending_request = Some(id);
        let text = jsonrpc::request(&id.to_string(), request.method, &request.params);
        let frames: VecDeque<String> = request.first.into_iter().chain([text]).collect();
        for frame in frames {
            self.upstream
                .link()
                .send(frame, Room::Reserved)
                .map_err(|_| CloseReason::new(1013, "the link is congested"))?;
        }
        Ok(())
    }

    /// Performs the discovery step that follows from a response.
    fn apply(&mut self, gateway: &Gateway, now: Instant, next: DiscoveryStep) -> Result<(), CloseReason> {
        self.log_remarks(gateway);
        match next {
            DiscoveryStep::Request(_) if !self.charge_answers() => self.no_memory(gateway, now),
            DiscoveryStep::Request(request) => self.send_request(gateway, now, request),
            DiscoveryStep::ListComplete(kind, items, next) => {
                if self.charge_list(kind, &items) {
                    self.store_list(gateway, kind, items);
                } else if self.listed {
                    gateway.stats.memory_refusals.add();
                    self.discovery.postpone(kind);
                    self.on_list_failure(gateway, now, Some(NO_MEMORY));
                } else {
                    return self.no_memory(gateway, now);
                }
                self.proceed(gateway, now, next)
            }
            DiscoveryStep::ListFailed(why, next) => {
                // The part that was received is discarded.
                let _ = self.listing_charge.resize(0);
                self.on_list_failure(gateway, now, why.as_deref());
                self.proceed(gateway, now, next)
            }
            DiscoveryStep::Failed(why) => self.on_discovery_failure(gateway, now, &why),
        }
    }

    /// Requests the next list, or completes the listing when there is none.
    fn proceed(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        next: Option<DiscoveryRequest>,
    ) -> Result<(), CloseReason> {
        match next {
            Some(request) => self.send_request(gateway, now, request),
            None => {
                self.complete(gateway, now);
                Ok(())
            }
        }
    }

    /// Logs that a list could not be fetched or stored, and schedules the next attempt.
    fn on_list_failure(&mut self, gateway: &Gateway, now: Instant, why: Option<&str>) {
        if let Some(why) = why {
            let name = self.upstream.name();
            let line = format_args!("server '{name}': {why}; keeping its previous lists");
            gateway.log_throttled(log::Level::Warn, "list", name, LOG_GROUPS, line);
        }
        self.retry = now + self.discovery.retry_pause();
    }

    fn log_remarks(&mut self, gateway: &Gateway) {
        let name = self.upstream.name();
        for remark in self.discovery.take_remarks() {
            let line = format_args!("server '{name}': {remark}");
            gateway.log_throttled(log::Level::Warn, "remark", name, LOG_GROUPS, line);
        }
    }

    /// Charges for the initialize result and the part of the list received so far. The initialize
    /// result is stored twice: for clients, and until the lists are complete. Returns false if
    /// there is no memory for them.
    fn charge_answers(&mut self) -> bool {
        self.initialize_result_charge.resize(2 * self.discovery.initialize_result().len())
            && self.listing_charge.resize(self.discovery.listing_bytes())
    }

    /// Charges for a complete list that replaces the previous one. Returns false if there is no
    /// memory for it.
    fn charge_list(&mut self, kind: ListKind, items: &[ListItem]) -> bool {
        // Shrinking a charge always succeeds.
        let _ = self.listing_charge.resize(0);
        let account = self.listing_charge.account();
        let charge = self.list_charges.entry(kind).or_insert_with(|| account.charge());
        charge.resize(items.iter().map(ListItem::memory).sum())
    }

    /// Handles a lack of memory. A server that was listed before keeps its old lists. Another one
    /// is closed, and may try again later.
    fn no_memory(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        gateway.stats.memory_refusals.add();
        let _ = self.listing_charge.resize(0);
        if self.listed {
            return self.on_discovery_failure(gateway, now, NO_MEMORY);
        }
        Err(CloseReason::new(CLOSE_LATER, NO_MEMORY))
    }

    /// Stores the server's instructions in the catalog, or none if there is no memory for them.
    fn set_instructions(&mut self, gateway: &Gateway) {
        let mut instructions = mcp::instructions_of(self.discovery.initialize_result()).unwrap_or_default();
        if !self.instructions_charge.resize(instructions.len().min(INSTRUCTIONS)) {
            gateway.stats.memory_refusals.add();
            self.instructions_charge.resize_anyway(0);
            instructions.clear();
        }
        gateway.catalog().set_instructions(self.catalog_guard.key, &instructions);
    }

    fn store_list(&mut self, gateway: &Gateway, kind: ListKind, items: Vec<ListItem>) {
        // Never an error here: the memory is charged to this server already.
        if self.upstream.set_initialize_result(self.discovery.initialize_result()) == Ok(true) {
            self.set_instructions(gateway);
        }
        let (name, count) = (self.upstream.name(), items.len());
        if kind == ListKind::Tool {
            self.tools = count;
        }
        if self.upstream.has("resources") {
            gateway.catalog().set_has_resources(self.catalog_guard.key);
        }
        let changed = gateway.catalog().set(self.catalog_guard.key, kind, items);
        for remark in changed.iter().flatten() {
            let line = format_args!("server '{name}': {remark}");
            gateway.log_throttled(log::Level::Warn, "remark", name, LOG_GROUPS, line);
        }
        if changed.is_some() {
            gateway.lists_changed(&[kind]);
            // Logged last: a client that connects after this line appeared must not get a
            // notification of this change.
            let plural = if count == 1 { "" } else { "s" };
            let line = format_args!("server '{name}' offers {count} {}{plural}", kind.noun());
            gateway.log_link_event(log::Level::Info, "offers", name, line);
        }
    }

    /// Completes the listing: everything that the server offers is in the catalog.
    fn complete(&mut self, gateway: &Gateway, now: Instant) {
        let first = !std::mem::replace(&mut self.listed, true);
        let renewed = std::mem::take(&mut self.renewed);
        // Instances keep running, and keep their subscriptions, when the instance used for listing
        // restarts.
        if first || (renewed && self.upstream.instance_pool().is_none()) {
            self.pending_subscriptions = gateway.pending_subscriptions(now, &self.upstream).into();
            gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
        }
        if first && self.reads_status_frames {
            let _ = self.upstream.link().send(Status::registered(&self.id, self.tools), Room::Reserved);
        }
    }

    /// Handles a discovery failure. A server that was listed before keeps its old lists; a server
    /// that was not cannot be used and is closed.
    fn on_discovery_failure(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        why: &str,
    ) -> Result<(), CloseReason> {
        if self.listed {
            let _ = self.listing_charge.resize(0);
            self.discovery.unanswered();
            self.on_list_failure(gateway, now, Some(why));
            return Ok(());
        }
        if self.reads_status_frames {
            let _ = self.upstream.link().send(Status::error(why), Room::Reserved);
        }
        Err(CloseReason::new(1008, why))
    }

    fn expire(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        if now >= self.last_check + CHANNEL_TICK {
            self.last_check = now;
            gateway.expire_instances(&self.upstream, now);
        }
        for pending in self.upstream.expire(now, &gateway.stats) {
            let seconds = pending.timeout.as_secs_f64();
            let mut why = format!("{} timed out after {seconds} s", pending.method);
            if !self.listed {
                // The message is read at the edge, so it names the flag of the gateway. A first
                // start may well take longer (`npx` on a small box).
                let flag =
                    if &*pending.method == "initialize" { "--timeout-run-tool" } else { "--timeout-rpc" };
                why += &format!(" (see {flag} at the gateway)");
            }
            // The server may just need longer to start, so its edge may try again.
            self.on_discovery_failure(gateway, now, &why)
                .map_err(|close_reason| CloseReason::new(CLOSE_LATER, close_reason.reason))?;
        }
        gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
        self.relist(gateway, now)
    }
}
