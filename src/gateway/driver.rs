//! A registered server's end of its link: what its frames mean, and what the gateway asks it.
//!
//! Drives `mcp::discovery` (the gateway as the server's client) and `hub::mux` (everybody else's calls).
//! `link` gives it a link.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    Gateway,
    responder::NO_MEMORY,
    shares::Share,
    upstream::{Caller, Upstream},
};
use crate::{
    catalog::UpstreamKey,
    hub::mux::Routed,
    jsonrpc::{
        self, Message, Span, edit,
        tolerant::{self, MessagePart, Unusable},
    },
    limits::{CHANNEL_TICK, INSTRUCTIONS, LOG_GROUPS},
    mcp::{
        self,
        discovery::{Discovery, DiscoveryRequest, DiscoveryStep},
        listing::{ListItem, ListKind},
    },
    net::{
        budget::{Account, Charge},
        ws_link::{CloseReason, LinkHandler},
    },
    runtime::pacer::Pacer,
    tunnel::{
        CLOSE_LATER,
        frame::{self, Frame},
        handshake::Status,
    },
    util,
};

/// Where a server is registered.
pub struct CatalogGuard {
    /// In the catalog.
    pub key: UpstreamKey,
    /// Its place among the servers of its principal.
    pub _share: Share,
}

/// A server in the catalog, for as long as this lives.
pub struct UpstreamDriver {
    gateway: Arc<Gateway>,
    place: CatalogGuard,
    id: String,
    /// It is told by status frames what becomes of it.
    ours: bool,
    upstream: Arc<Upstream>,
    discovery: Discovery,
    /// The id of the conversation's open question.
    asked: Option<u64>,
    /// All that it offers was listed once.
    listed: bool,
    /// It was started anew, and is being listed again.
    renewed: bool,
    /// How many tools it has.
    tools: usize,
    /// When the processes of single sessions were last looked at.
    looked: Instant,
    /// What its answer to `initialize` takes, the list that is coming in, and those in the catalog.
    greeting: Charge,
    listing: Charge,
    lists: BTreeMap<ListKind, Charge>,
    /// What its instructions take there.
    instructions: Charge,
    /// No list that changed is asked for before this.
    relist: Instant,
    /// No list that failed is asked for again before this.
    retry: Instant,
    /// Resources that clients want to hear of, and that it is still to be asked for.
    pending_subscriptions: VecDeque<String>,
    /// Why it goes, once that is known.
    close_reason: Option<String>,
}

impl LinkHandler for UpstreamDriver {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let gateway = self.gateway.clone();
        self.message(&gateway, now, frame)
    }

    /// The processes of single sessions are looked at now and then, if there are any; and so are wishes that found no room.
    fn deadline(&self) -> Option<Instant> {
        let own = self.upstream.instance_pool().is_some_and(|isolation| !isolation.is_empty());
        let look = (own || !self.pending_subscriptions.is_empty()).then(|| self.looked + CHANNEL_TICK);
        let relist = self.discovery.wants_relist().then_some(self.relist);
        let retry = self.discovery.wants_retry().then_some(self.retry.max(self.relist));
        self.upstream.mux().deadline().into_iter().chain(look).chain(relist).chain(retry).min()
    }

    fn tick(&mut self, now: Instant) -> Result<(), CloseReason> {
        let gateway = self.gateway.clone();
        self.expire(&gateway, now)
    }

    fn ends(&self) -> Option<Arc<Pacer>> {
        Some(self.gateway.ends.clone())
    }
}

/// It is gone: from the list at once, and its waiting calls fail at once.
impl Drop for UpstreamDriver {
    fn drop(&mut self) {
        let why = self.close_reason.take().unwrap_or_else(|| "a fault of the gateway".into());
        let removed = self.gateway.catalog().remove(self.place.key);
        self.upstream.fail_all(&why, &self.gateway.stats);
        self.gateway.end_all_instances(&self.upstream, &why);
        self.gateway.tasks().end(self.upstream.run());
        let name = self.upstream.name();
        self.gateway.log_life(log::Level::Info, "gone", name, format_args!("server '{name}' is gone: {why}"));
        if let Some((_, kinds)) = removed {
            self.gateway.lists_changed(&kinds);
        }
    }
}

impl UpstreamDriver {
    /// A server that is in the catalog since now. It is asked at once what it is.
    ///
    /// # Errors
    /// A [`CloseReason`]: there is nothing to say to it.
    pub fn start(
        gateway: &Arc<Gateway>,
        place: CatalogGuard,
        id: String,
        ours: bool,
        upstream: Arc<Upstream>,
        account: &Account,
    ) -> Result<Self, CloseReason> {
        let (conversation, ask) = Discovery::start(gateway.config.limits.catalog.clone());
        let now = Instant::now();
        upstream.set_run(gateway.tasks().start());
        let mut server = Self {
            gateway: gateway.clone(),
            place,
            id,
            ours,
            upstream,
            discovery: conversation,
            asked: None,
            listed: false,
            renewed: false,
            tools: 0,
            looked: now,
            relist: now,
            retry: now,
            greeting: account.charge(),
            listing: account.charge(),
            lists: BTreeMap::new(),
            instructions: account.charge(),
            pending_subscriptions: VecDeque::new(),
            close_reason: None,
        };
        server.ask(gateway, now, ask)?;
        Ok(server)
    }

    /// The server, as the others see it.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Where it is registered.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Its link is lost and may come back, or is back.
    pub fn set_away(&self, away: bool) {
        self.gateway.catalog().set_away(self.place.key, away);
    }

    /// It goes, for this reason.
    pub fn gone(mut self, why: &str) {
        self.close_reason = Some(why.to_owned());
    }

    fn message(&mut self, gateway: &Gateway, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let frame = match (frame::read(frame), self.upstream.instance_pool()) {
            (Frame::Plain(frame), _) => frame,
            (Frame::Message(number, text), Some(isolation)) => {
                // A session that has ended may still be spoken to.
                if let Some(process) = isolation.get(number) {
                    gateway.on_instance_message(now, &process, text);
                }
                return Ok(());
            }
            (Frame::Close(number, reason), Some(_)) => {
                gateway.instance_gone(&self.upstream, number, reason);
                return Ok(());
            }
            _ if self.ours => return Err(CloseReason::new(1008, "a channel that was not agreed on")),
            // The original hands on whatever its server prints.
            _ => frame,
        };
        match Message::read(frame) {
            Ok(message) if message.has_twin() => {
                self.upstream.log_twin(now);
                self.odd_frame(gateway, now, frame)
            }
            // Written on one line from here on: events have one, and so has what is kept.
            Ok(message) if message.has_line_breaks() => match Message::read(&message.splice(&[])) {
                Ok(message) => self.sound_message(gateway, now, &message),
                Err(_) => Ok(()),
            },
            Ok(message) => self.sound_message(gateway, now, &message),
            Err(_) if self.ours && Status::read(frame).is_some_and(|status| status.status == "restarted") => {
                self.restarted(gateway, now)
            }
            Err(_) => self.odd_frame(gateway, now, frame),
        }
    }

    /// A frame that is no sound message: other programs pass on whatever their server prints.
    fn odd_frame(&mut self, gateway: &Gateway, now: Instant, frame: &str) -> Result<(), CloseReason> {
        for part in tolerant::parts(frame.as_bytes()) {
            match part {
                MessagePart::Message(text) => {
                    if let Ok(message) = Message::read(&text) {
                        self.sound_message(gateway, now, &message)?;
                    }
                }
                MessagePart::Unusable(answer) => self.unusable(gateway, now, &answer)?,
                MessagePart::Noise => {
                    gateway.stats.unmatched.add();
                    self.upstream.log_noise(now, frame);
                }
            }
        }
        Ok(())
    }

    /// An answer that cannot be used: the request that it was for fails.
    fn unusable(&mut self, gateway: &Gateway, now: Instant, answer: &Unusable) -> Result<(), CloseReason> {
        self.upstream.log_unusable(now, answer);
        match self.upstream.fail_unusable(answer, &gateway.stats) {
            Some(Caller::Discovery) => {
                let why = format!("an answer of the server cannot be used: {}", answer.why);
                self.failed(gateway, now, &why)?;
                self.relist(gateway, now)
            }
            _ => Ok(()),
        }
    }

    fn sound_message(
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
                gateway.conclude(&self.upstream, pending, message);
                gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
                Ok(())
            }
            Ok(Routed::Progress(id, span)) => {
                self.progress(gateway, now, id, message, span);
                Ok(())
            }
            Ok(Routed::Request) if self.ours && message.method() == "register" => {
                Err(CloseReason::new(1008, "a second registration on one link"))
            }
            Ok(Routed::Request) => {
                self.answer(message);
                Ok(())
            }
            Ok(Routed::Notification) => {
                gateway.broadcast(&self.upstream, message);
                self.changed(gateway, now, message.method())
            }
            Ok(Routed::Stray) | Err(_) => {
                gateway.stats.unmatched.add();
                self.upstream.log_stray(now, message);
                Ok(())
            }
        }
    }

    /// The server was started anew: it may be another version of itself, so the conversation begins again.
    fn restarted(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        let name = self.upstream.name();
        let line = format_args!("server '{name}' was started anew at its edge");
        gateway.log_throttled(log::Level::Info, "restart", name, LOG_GROUPS, line);
        {
            let mut tasks = gateway.tasks();
            let run = tasks.start();
            tasks.end(self.upstream.set_run(run));
        }
        // What was asked before would be taken for an answer to what is asked now.
        self.asked.take().and_then(|id| self.upstream.mux().close(id));
        let ask = self.discovery.again();
        self.renewed = true;
        self.ask(gateway, now, ask)
    }

    /// A list of the server changed: all lists that the notification speaks of are asked for anew.
    fn changed(&mut self, gateway: &Gateway, now: Instant, notification: &str) -> Result<(), CloseReason> {
        for kind in ListKind::ALL.into_iter().filter(|kind| kind.changed() == notification) {
            self.discovery.changed(kind);
        }
        self.relist(gateway, now)
    }

    /// Asks for the lists that changed; at once, unless that was done a moment ago. A server that always has a change to
    /// tell is listed at a pace that harms nobody.
    fn relist(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        if now < self.relist {
            return Ok(());
        }
        if self.discovery.wants_retry() && now >= self.retry {
            self.discovery.retry();
        }
        let Some(ask) = self.discovery.relist() else { return Ok(()) };
        self.relist = now + gateway.config.limits.catalog.list_pause;
        self.ask(gateway, now, ask)
    }

    fn progress(&self, gateway: &Gateway, now: Instant, id: u64, message: &Message<'_>, span: Span) {
        let waiting = {
            let mut mux = self.upstream.mux();
            mux.progressed(now, id);
            let Some(pending) = mux.get(id) else { return };
            match (&pending.caller, pending.token()) {
                (Caller::Session(_, _, reply, _), Some(token)) => (reply.clone(), token.to_owned()),
                _ => return,
            }
        };
        let (reply, token) = waiting;
        reply.send(edit::progress(message, span, &token), &gateway.stats);
    }

    /// A shared server's request cannot be tied to a client: `ping` is answered, nothing else is offered.
    fn answer(&self, message: &Message<'_>) {
        let id = message.id().unwrap_or_default();
        let answer = match message.method() {
            "ping" => jsonrpc::result(id, "{}"),
            other => {
                let text = format!("method not found: {}", util::escape::show(other));
                jsonrpc::error(id, jsonrpc::METHOD_NOT_FOUND, &text)
            }
        };
        let _ = self.upstream.link().send_reserved(answer);
    }

    /// Sends a question of the gateway's own.
    fn ask(&mut self, gateway: &Gateway, now: Instant, ask: DiscoveryRequest) -> Result<(), CloseReason> {
        let config = &gateway.config;
        // A server may have to be downloaded and started first.
        let patience = if ask.method == "initialize" { config.timeout_run_tool } else { config.timeout_rpc };
        let opened = self.upstream.mux().open_own(now, Caller::Discovery, ask.method, patience);
        let Ok(id) = opened else {
            self.discovery.unanswered();
            self.retry = now + self.discovery.retry_pause();
            return Ok(());
        };
        self.asked = Some(id);
        let request = jsonrpc::request(&id.to_string(), ask.method, &ask.params);
        let frames: VecDeque<String> = ask.first.into_iter().chain([request]).collect();
        for frame in frames {
            self.upstream
                .link()
                .send_reserved(frame)
                .map_err(|_| CloseReason::new(1013, "the link does not keep up"))?;
        }
        Ok(())
    }

    /// What follows from an answer to a question of the gateway's own.
    fn apply(&mut self, gateway: &Gateway, now: Instant, next: DiscoveryStep) -> Result<(), CloseReason> {
        self.log_remarks(gateway);
        match next {
            DiscoveryStep::Ask(_) if !self.pay_answers() => self.no_memory(gateway, now),
            DiscoveryStep::Ask(ask) => self.ask(gateway, now, ask),
            DiscoveryStep::Offer(kind, items, next) => {
                if self.pay(kind, &items) {
                    self.list(gateway, kind, items);
                } else if self.listed {
                    gateway.stats.memory_refusals.add();
                    self.discovery.postpone(kind);
                    self.kept(gateway, now, NO_MEMORY);
                } else {
                    return self.no_memory(gateway, now);
                }
                self.proceed(gateway, now, next)
            }
            DiscoveryStep::Kept(why, next) => {
                // What came of it so far is not kept.
                let _ = self.listing.resize(0);
                self.kept(gateway, now, &why);
                self.proceed(gateway, now, next)
            }
            DiscoveryStep::Failed(why) => self.failed(gateway, now, &why),
        }
    }

    /// A list is dealt with: asks for the next one.
    fn proceed(
        &mut self,
        gateway: &Gateway,
        now: Instant,
        next: Option<DiscoveryRequest>,
    ) -> Result<(), CloseReason> {
        match next {
            Some(ask) => self.ask(gateway, now, ask),
            None => {
                self.complete(gateway, now);
                Ok(())
            }
        }
    }

    /// Logs that a list did not come, and sets the time of the next attempt.
    fn kept(&mut self, gateway: &Gateway, now: Instant, why: &str) {
        let name = self.upstream.name();
        let line = format_args!("server '{name}': {why}; its lists stay as they were");
        gateway.log_throttled(log::Level::Warn, "list", name, LOG_GROUPS, line);
        self.retry = now + self.discovery.retry_pause();
    }

    fn log_remarks(&mut self, gateway: &Gateway) {
        let name = self.upstream.name();
        for remark in self.discovery.take_remarks() {
            let line = format_args!("server '{name}': {remark}");
            gateway.log_throttled(log::Level::Warn, "remark", name, LOG_GROUPS, line);
        }
    }

    /// Whether there is memory for what it has answered so far. Its answer to `initialize` is kept twice: for clients, and until
    /// the lists are complete.
    fn pay_answers(&mut self) -> bool {
        self.greeting.resize(2 * self.discovery.initialize_result().len())
            && self.listing.resize(self.discovery.listing_bytes())
    }

    /// Whether there is memory for a list in the place of the one before.
    fn pay(&mut self, kind: ListKind, items: &[ListItem]) -> bool {
        // Less is always granted.
        let _ = self.listing.resize(0);
        let account = self.listing.account();
        let charge = self.lists.entry(kind).or_insert_with(|| account.charge());
        charge.resize(items.iter().map(ListItem::memory).sum())
    }

    /// There is none. A server that was listed keeps what it had; another may try again later.
    fn no_memory(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        gateway.stats.memory_refusals.add();
        let _ = self.listing.resize(0);
        if self.listed {
            return self.failed(gateway, now, NO_MEMORY);
        }
        Err(CloseReason::new(CLOSE_LATER, NO_MEMORY))
    }

    /// Takes the server's instructions into the catalog; without memory for them, none.
    fn instruct(&mut self, gateway: &Gateway) {
        let mut instructions = mcp::instructions_of(self.discovery.initialize_result()).unwrap_or_default();
        if !self.instructions.resize(instructions.len().min(INSTRUCTIONS)) {
            gateway.stats.memory_refusals.add();
            self.instructions.resize_anyway(0);
            instructions.clear();
        }
        gateway.catalog().set_instructions(self.place.key, &instructions);
    }

    fn list(&mut self, gateway: &Gateway, kind: ListKind, items: Vec<ListItem>) {
        // This server has paid for it.
        if self.upstream.greeted(self.discovery.initialize_result()) == Ok(true) {
            self.instruct(gateway);
        }
        let (name, count) = (self.upstream.name(), items.len());
        if kind == ListKind::Tool {
            self.tools = count;
        }
        if self.upstream.has("resources") {
            gateway.catalog().set_has_resources(self.place.key);
        }
        let changed = gateway.catalog().set(self.place.key, kind, items);
        for remark in changed.iter().flatten() {
            let line = format_args!("server '{name}': {remark}");
            gateway.log_throttled(log::Level::Warn, "remark", name, LOG_GROUPS, line);
        }
        if changed.is_some() {
            gateway.lists_changed(&[kind]);
            // Said last: whoever reads this line and connects then is not told of a change that it never missed.
            let plural = if count == 1 { "" } else { "s" };
            let line = format_args!("server '{name}' offers {count} {}{plural}", kind.noun());
            gateway.log_life(log::Level::Info, "offers", name, line);
        }
    }

    /// All that the server offers is listed.
    fn complete(&mut self, gateway: &Gateway, now: Instant) {
        let first = !std::mem::replace(&mut self.listed, true);
        let renewed = std::mem::take(&mut self.renewed);
        // Processes of single sessions live on when the one that is listed is started anew.
        if first || (renewed && self.upstream.instance_pool().is_none()) {
            self.pending_subscriptions = gateway.pending_subscriptions(&self.upstream).into();
            gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
        }
        if first && self.ours {
            let _ = self.upstream.link().send_reserved(Status::registered(&self.id, self.tools));
        }
    }

    /// A server that was listed keeps what it had; one that was not cannot be used.
    fn failed(&mut self, gateway: &Gateway, now: Instant, why: &str) -> Result<(), CloseReason> {
        if self.listed {
            let _ = self.listing.resize(0);
            self.discovery.unanswered();
            self.kept(gateway, now, why);
            return Ok(());
        }
        if self.ours {
            let _ = self.upstream.link().send_reserved(Status::error(why));
        }
        Err(CloseReason::new(1008, why))
    }

    fn expire(&mut self, gateway: &Gateway, now: Instant) -> Result<(), CloseReason> {
        if now >= self.looked + CHANNEL_TICK {
            self.looked = now;
            gateway.expire_instances(&self.upstream, now);
        }
        for pending in self.upstream.expire(now, &gateway.stats) {
            let seconds = pending.timeout.as_secs_f64();
            let mut why = format!("{} was not answered in {seconds} s", pending.method);
            if !self.listed {
                // Whoever reads it sits at the edge, and a first start may well take longer (`npx` on a small box).
                let flag =
                    if &*pending.method == "initialize" { "--timeout-run-tool" } else { "--timeout-rpc" };
                why += &format!(" (see {flag} at the gateway)");
            }
            // It may only need longer to start, so its edge may come again.
            self.failed(gateway, now, &why)
                .map_err(|farewell| CloseReason::new(CLOSE_LATER, farewell.reason))?;
        }
        gateway.resubscribe(now, &self.upstream, &mut self.pending_subscriptions);
        self.relist(gateway, now)
    }
}
