//! Discovery of servers: sends its requests, and stores what it finds. The rules are in
//! `mcp::discovery`.

use std::time::Instant;

use super::{
    effect::Effects,
    error::NO_MEMORY,
    instance::{Caller, Initialized},
    key::InstanceKey,
    state::Hub,
    upstream::{Listing, Upstream},
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::{self, tolerant::Unusable},
    limits::{INSTRUCTIONS, LOG_GROUPS},
    mcp::{
        self,
        discovery::{Discovery, DiscoveryRequest, DiscoveryStep, Question},
        listing::{ListItem, ListKind},
    },
    queue::Room,
    tunnel::{CLOSE_LATER, close::CloseReason, handshake::Status},
};

impl Hub {
    /// Sends a discovery request.
    pub(super) fn discover(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        request: DiscoveryRequest,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        // `initialize` gets the longer timeout: a server may have to be downloaded and started
        // first.
        let question = request.question;
        let is_start = question != Question::List;
        let timeout = if is_start { self.config.timeout_run_tool } else { self.config.timeout_rpc };
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        upstream.close_requests(|open| question == Question::List || open == question);
        let Some(id) = upstream.shared.open_own(now, Caller::Discovery(question), request.method, timeout)
        else {
            upstream.listing.on_unanswered(now);
            return Ok(());
        };
        upstream.listing.pending_requests.push((id, question));
        upstream.listing.silence = is_start.then(|| now + self.config.limits.stateless.probe_silence);
        let text = jsonrpc::request(&id.to_string(), request.method, &request.params);
        for frame in request.first.into_iter().chain([text]) {
            let sent = upstream.link.queue(None, frame, Room::Reserved, fx);
            sent.map_err(|_| CloseReason::new(1013, "the link is congested"))?;
        }
        self.set_timer(server, fx);
        Ok(())
    }

    /// Performs the step that follows from a response. `discovery` has taken the response without
    /// the lock of the hub.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    pub fn discovered(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (mut discovery, step): (Discovery, DiscoveryStep),
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let remarks = discovery.take_remarks();
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        upstream.listing.discovery = Some(discovery);
        self.log_remarks(now, server, remarks, fx);
        self.apply(now, server, step, fx)?;
        self.relist(now, server, fx)?;
        self.set_timer(server, fx);
        Ok(())
    }

    pub(super) fn apply(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        step: DiscoveryStep,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let listing = &mut upstream.listing;
        match step {
            DiscoveryStep::Request(_) if !listing.charge_answers() => self.no_memory(now, server, fx),
            DiscoveryStep::Request(request) => self.discover(now, server, request, fx),
            DiscoveryStep::Wait => Ok(()),
            DiscoveryStep::ListComplete(kind, items, next) => {
                if listing.charge_list(kind, &items) {
                    self.store_list(now, server, (kind, items), fx);
                } else if listing.listed {
                    self.stats.memory_refusals.add();
                    if let Some(discovery) = &mut listing.discovery {
                        discovery.postpone(kind);
                    }
                    self.on_list_failure(now, server, Some(NO_MEMORY), fx);
                } else {
                    return self.no_memory(now, server, fx);
                }
                self.proceed(now, server, next, fx)
            }
            DiscoveryStep::ListFailed(why, next) => {
                // The part that was received is discarded.
                listing.listing_charge.resize_anyway(0);
                self.on_list_failure(now, server, why.as_deref(), fx);
                self.proceed(now, server, next, fx)
            }
            DiscoveryStep::Failed(why) => self.on_discovery_failure(now, server, &why, fx),
        }
    }

    /// Requests the next list, or completes the listing when there is none.
    fn proceed(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        next: Option<DiscoveryRequest>,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        match next {
            Some(request) => self.discover(now, server, request, fx),
            None => {
                self.complete(now, server, fx);
                Ok(())
            }
        }
    }

    /// Handles an invalid response to a discovery request.
    pub(super) fn on_unusable_discovery(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (question, answer): (Question, &Unusable),
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let listing = self.upstreams.get_mut(&server).map(|upstream| &mut upstream.listing);
        let step = listing.and_then(|listing| listing.discovery.as_mut()?.unusable(question));
        match step {
            Some(step) => self.apply(now, server, step, fx)?,
            None => {
                let why = format!("invalid response from the server: {}", answer.why);
                self.on_discovery_failure(now, server, &why, fx)?;
            }
        }
        self.relist(now, server, fx)
    }

    /// Continues the probe of a server that did not answer `server/discover` within
    /// [`probe_silence`](crate::limits::StatelessLimits::probe_silence).
    pub(super) fn on_silence(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let listing = &mut upstream.listing;
        let silence = listing.silence.take_if(|silence| *silence <= now);
        let discovery = listing.discovery.as_mut().filter(|discovery| discovery.listens_for_silence());
        match silence.and(discovery).map(Discovery::silent) {
            Some(step) => self.apply(now, server, step, fx),
            None => Ok(()),
        }
    }

    /// Handles a restart of the server. It may be another version now, so discovery begins again.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    pub fn on_restart(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let name = self.name_of(server);
        let line = || format!("server '{name}' was restarted at its edge");
        self.log_throttled(now, log::Level::Info, ("restart", &name, LOG_GROUPS), fx, line);
        self.end_listen(server);
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let run = self.tasks.start();
        self.tasks.end(std::mem::replace(&mut upstream.run, run));
        self.end_rounds(|process| process == InstanceKey::shared(server), "it was restarted", fx);
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let Some(request) = upstream.listing.discovery.as_mut().and_then(Discovery::again) else {
            return Ok(());
        };
        // A late response to the previous request would be taken for the response to the new one.
        upstream.close_requests(|_| true);
        upstream.listing.renewed = true;
        self.discover(now, server, request, fx)
    }

    /// Handles a `list_changed` notification: requests all lists that it covers again.
    pub(super) fn on_list_changed(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        notification: &str,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let Some(discovery) = &mut upstream.listing.discovery else { return Ok(()) };
        for kind in ListKind::ALL.into_iter().filter(|kind| kind.changed() == notification) {
            discovery.changed(kind);
        }
        self.relist(now, server, fx)
    }

    /// Requests the lists that changed, at most once per `list_pause`: a server that constantly
    /// reports changes must not cause constant listing.
    pub(super) fn relist(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        let listing = &mut upstream.listing;
        let Some(discovery) = listing.discovery.as_mut().filter(|_| now >= listing.relist) else {
            return Ok(());
        };
        if discovery.wants_retry() && now >= listing.retry {
            discovery.retry();
        }
        let Some(request) = discovery.relist() else { return Ok(()) };
        listing.relist = now + self.config.limits.catalog.list_pause;
        self.discover(now, server, request, fx)
    }

    /// Logs that a list could not be fetched or stored, and schedules the next attempt.
    fn on_list_failure(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        why: Option<&str>,
        fx: &mut Effects<'_>,
    ) {
        if let Some(why) = why {
            let name = self.name_of(server);
            let line = || format!("server '{name}': {why}; keeping its previous lists");
            self.log_throttled(now, log::Level::Warn, ("list", &name, LOG_GROUPS), fx, line);
        }
        if let Some(upstream) = self.upstreams.get_mut(&server) {
            upstream.listing.schedule_retry(now);
        }
    }

    fn log_remarks(&mut self, now: Instant, server: UpstreamKey, remarks: Vec<String>, fx: &mut Effects<'_>) {
        let name = self.name_of(server);
        for remark in remarks {
            let line = || format!("server '{name}': {remark}");
            self.log_throttled(now, log::Level::Warn, ("remark", &name, LOG_GROUPS), fx, line);
        }
    }

    /// Handles a lack of memory. A server that was listed before keeps its old lists. The link of
    /// any other server is closed, and its edge may try again later.
    fn no_memory(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        self.stats.memory_refusals.add();
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        upstream.listing.listing_charge.resize_anyway(0);
        if upstream.listing.listed {
            return self.on_discovery_failure(now, server, NO_MEMORY, fx);
        }
        Err(CloseReason::new(CLOSE_LATER, NO_MEMORY))
    }

    fn store_list(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        (kind, items): (ListKind, Vec<ListItem>),
        fx: &mut Effects<'_>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        if upstream.take_initialize_result()
            && let Some(instructions) = upstream.charged_instructions()
        {
            self.catalog.set_instructions(server, &instructions);
        }
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let count = items.len();
        if kind == ListKind::Tool {
            upstream.listing.tools = count;
        }
        if upstream.shared.has("resources") {
            self.catalog.set_has_resources(server);
        }
        let Some(remarks) = self.catalog.set(server, kind, items) else { return };
        self.log_remarks(now, server, remarks, fx);
        self.lists_changed(now, &[kind], fx);
        let name = self.name_of(server);
        let plural = if count == 1 { "" } else { "s" };
        let line = || format!("server '{name}' offers {count} {}{plural}", kind.noun());
        self.log_link_event(now, log::Level::Info, ("offers", &name), fx, line);
    }

    /// Completes the listing: everything that the server offers is in the catalog.
    fn complete(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let first = !std::mem::replace(&mut upstream.listing.listed, true);
        let renewed = std::mem::take(&mut upstream.listing.renewed);
        // Instances keep running, and keep their subscriptions, when the instance used for listing
        // restarts.
        if first || (renewed && upstream.pool.is_none()) {
            self.restore(now, server, fx);
        }
        if first || renewed {
            self.begin_listen(now, server, fx);
        }
        let Some(upstream) = self.upstreams.get(&server) else { return };
        if first && upstream.reads_status_frames {
            let registered = Status::registered(&upstream.id, upstream.listing.tools);
            let _ = upstream.link.queue(None, registered, Room::Reserved, fx);
        }
    }

    /// Handles a discovery failure. A server that was listed before keeps its old lists. Any other
    /// server cannot be used.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link of a server that was never listed.
    pub(super) fn on_discovery_failure(
        &mut self,
        now: Instant,
        server: UpstreamKey,
        why: &str,
        fx: &mut Effects<'_>,
    ) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        if upstream.listing.listed {
            upstream.listing.listing_charge.resize_anyway(0);
            if let Some(discovery) = &mut upstream.listing.discovery {
                discovery.unanswered();
            }
            self.on_list_failure(now, server, Some(why), fx);
            return Ok(());
        }
        if upstream.reads_status_frames {
            let _ = upstream.link.queue(None, Status::error(why), Room::Reserved, fx);
        }
        Err(CloseReason::new(1008, why))
    }
}

impl Upstream {
    /// Closes the pending discovery requests for which `is_closed` is true, so that a late response
    /// is not taken for the response to a new request.
    fn close_requests(&mut self, is_closed: impl Fn(Question) -> bool) {
        for (id, _) in self.listing.pending_requests.extract_if(.., |(_, question)| is_closed(*question)) {
            self.shared.close(id);
        }
    }

    /// Takes the `initialize` result from the discovery. Returns whether it differs from the
    /// previous one.
    fn take_initialize_result(&mut self) -> bool {
        let Some(discovery) = &self.listing.discovery else { return false };
        let known =
            self.shared.initialized().is_some_and(|known| *known.result == *discovery.initialize_result());
        // Storing never fails: the memory is charged to this server already.
        !known && self.shared.set_initialized(Initialized::read(discovery.initialize_result())) == Ok(true)
    }

    /// Returns the server's instructions, or an empty text if there is no memory for them. `None`
    /// while a discovery response is parsed without the lock of the hub.
    fn charged_instructions(&mut self) -> Option<String> {
        let listing = &mut self.listing;
        let instructions = mcp::instructions_of(listing.discovery.as_ref()?.initialize_result());
        let instructions = instructions.unwrap_or_default();
        if listing.instructions_charge.resize(instructions.len().min(INSTRUCTIONS)) {
            return Some(instructions);
        }
        listing.instructions_charge.resize_anyway(0);
        Some(String::new())
    }
}

impl Listing {
    /// Takes the discovery out, so that a response can be parsed without the lock of the hub.
    pub(super) fn answered(&mut self, question: Question) -> Option<Discovery> {
        self.pending_requests.retain(|(_, open)| *open != question);
        self.discovery.take()
    }

    /// Records that the pending request will not be answered, and schedules the next attempt.
    fn on_unanswered(&mut self, now: Instant) {
        if let Some(discovery) = &mut self.discovery {
            discovery.unanswered();
        }
        self.schedule_retry(now);
    }

    fn schedule_retry(&mut self, now: Instant) {
        if let Some(discovery) = &self.discovery {
            self.retry = now + discovery.retry_pause();
        }
    }

    /// Charges for the initialize result and the part of the list received so far. The initialize
    /// result is stored twice: for clients, and until the lists are complete. Returns false if
    /// there is no memory for them.
    fn charge_answers(&mut self) -> bool {
        let Some(discovery) = &self.discovery else { return true };
        self.initialize_result_charge.resize(2 * discovery.initialize_result().len())
            && self.listing_charge.resize(discovery.listing_bytes())
    }

    /// Charges for a complete list that replaces the previous one. Returns false if there is no
    /// memory for it.
    fn charge_list(&mut self, kind: ListKind, items: &[ListItem]) -> bool {
        self.listing_charge.resize_anyway(0);
        let account = self.listing_charge.account();
        let charge = self.list_charges.entry(kind).or_insert_with(|| account.charge());
        charge.resize(items.iter().map(ListItem::memory).sum())
    }
}
