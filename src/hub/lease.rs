//! The processes of isolated servers for clients without a session: each belongs to a principal.

use std::{sync::Arc, time::Instant};

use super::{
    call::{Rewrite, Ticket},
    effect::Effects,
    error::{CallError, Declined, modern_error},
    instance::{
        Caller, ClientCall, Instance, Isolated, NewCall, Origin, Owner, StatelessCall, declined_by_link,
    },
    key::InstanceKey,
    peers::Responder,
    state::Hub,
    waiting::WaitingCall,
};
use crate::{
    auth::Principal,
    budget::Account,
    catalog::UpstreamKey,
    jsonrpc::Message,
    mcp::{
        Era,
        discovery::initialize_params,
        listing::ListKind,
        log_level::Level,
        stateless::{Allowed, Params, input::may_ask, listen},
    },
    session::{LeaseKey, LeasedCall, Taken, share_of},
};

/// A stateless call that is being added to a process.
pub(super) struct NewStateless<'a> {
    /// The call.
    pub call: StatelessCall,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// The account that pays for what is held for it.
    pub account: &'a Account,
    /// The method.
    pub method: &'a str,
    /// The client's progress token, raw JSON.
    pub token: Option<&'a str>,
}

/// The processes that a stateless call may have.
pub(super) struct Wanted<'a> {
    /// The server.
    pub server: UpstreamKey,
    /// Which of its processes.
    pub key: &'a LeaseKey,
    /// What the client may be asked, if one call at a time holds the process.
    pub allowed: Allowed,
    /// The account of the principal.
    pub account: &'a Account,
}

impl Hub {
    /// Returns the process of an isolated server for a stateless call, which holds it from then on:
    /// see [`Hub::has_left`]. Starts one if need be. `None`: the call has to wait for one.
    ///
    /// # Errors
    /// [`Declined`]: an instance limit is reached, or the link takes no more frames.
    pub(super) fn take_process(
        &mut self,
        now: Instant,
        wanted: &Wanted<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<Option<InstanceKey>, Declined> {
        match self.leases.take(now, wanted.key, true) {
            Taken::Process(instance) => return Ok(Some(instance)),
            Taken::Start => {}
            Taken::Wait => return Ok(None),
        }
        let mut started = self.start_process(now, wanted, fx);
        if let Err(Declined::Instances | Declined::InstancesShare) = started
            && let Some(idle) = self.leases.oldest_idle(&wanted.key.server, wanted.key.principal)
            && idle.upstream == wanted.server
        {
            // It serves other capabilities of the same principal.
            self.end_instance(now, idle, "another process was needed", true, fx);
            started = self.start_process(now, wanted, fx);
        }
        match started {
            Ok(instance) => Ok(Some(instance)),
            Err(Declined::Instances | Declined::InstancesShare) if wanted.key.exclusive.is_some() => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Opens a channel for a process of a principal, for a call that holds it. One of a modern server
    /// gets requests at once, another one once it is initialized.
    fn start_process(
        &mut self,
        now: Instant,
        wanted: &Wanted<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<InstanceKey, Declined> {
        let (several, timeout) = (self.tokens.have_several_clients(), self.config.timeout_run_tool);
        let principal = wanted.key.principal;
        let upstream = self.upstreams.get_mut(&wanted.server).ok_or(Declined::Gone)?;
        let number = upstream.open_channel(principal, several, fx)?;
        let (pool, known) = (upstream.pool.as_mut().ok_or(Declined::Gone)?, upstream.shared.initialized());
        let modern = known.filter(|known| known.era == Era::Modern);
        let held = modern.is_none().then(Vec::new);
        let owner = match wanted.key.exclusive {
            Some(_) => Owner::Lease(wanted.allowed),
            None => Owner::Principal,
        };
        let isolated = Isolated::new((owner, principal), &pool.account, wanted.account, held);
        let key = InstanceKey { upstream: wanted.server, channel: Some(number) };
        let mut instance = Instance::new(key, self.config.limits.link.in_flight, Some(isolated));
        match modern {
            Some(modern) => {
                instance.initialize_as(modern);
                if !modern.changing.is_empty() {
                    instance.listen(&upstream.link, now, modern.changing, fx);
                }
            }
            None => {
                let capabilities = match owner {
                    Owner::Lease(allowed) => allowed.capabilities(),
                    Owner::Principal | Owner::Session(_) => "{}".into(),
                };
                let params = initialize_params(&capabilities);
                instance.send_initialize(&upstream.link, now, (&params, timeout), fx);
            }
        }
        let name = upstream.link.name();
        fx.log(log::Level::Debug, || format!("starting a process for a principal at server '{name}'"));
        pool.open.insert(number, instance);
        self.leases.started(now, wanted.key.clone(), key);
        self.set_timer(wanted.server, fx);
        Ok(key)
    }

    /// Adds a call to the pending ones of a process, and returns its id there.
    ///
    /// # Errors
    /// [`Declined`]: too many requests are pending, or the process is gone. A process that was taken
    /// for the call is still held by it.
    pub(super) fn begin_stateless(
        &mut self,
        now: Instant,
        to: InstanceKey,
        new: NewStateless<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<u64, Declined> {
        let several = self.tokens.have_several_clients();
        let timeout = match new.method {
            "tools/call" => self.config.timeout_run_tool,
            _ => self.config.timeout_rpc,
        };
        let (instance, _) = self.process(to).ok_or(Declined::Gone)?;
        let (principal, level, digest) = (new.call.principal, new.call.level, new.call.digest);
        let share = instance.take_share(principal, several)?;
        let origin = Origin::Stateless(Box::new(new.call));
        let caller = Caller::Client(ClientCall { origin, responder: new.responder, share, repeat: None });
        let call = NewCall { caller, method: new.method, token: new.token, timeout };
        let upstream_id = instance.open(now, call)?;
        if instance.isolated().is_some_and(|isolated| matches!(isolated.owner, Owner::Lease(_))) {
            let may_ask = may_ask(new.method);
            let account = new.account.clone();
            let call = LeasedCall { upstream_id, principal, digest, may_ask, account };
            self.parked.begin(now, to, call);
            // There may be questions for it already.
            fx.deadline_changed = true;
            if let Some(level) = level {
                self.log_for(now, (to, upstream_id, level), fx);
            }
        }
        Ok(upstream_id)
    }

    /// Requests the log messages that the call which holds a process wants.
    pub(super) fn log_for(
        &mut self,
        now: Instant,
        (to, upstream_id, level): (InstanceKey, u64, Level),
        fx: &mut Effects<'_>,
    ) {
        let timeout = self.config.timeout_rpc;
        let Some(upstream) = self.upstreams.get_mut(&to.upstream) else { return };
        let has_levels = upstream.shared.has("logging");
        let Some((instance, link)) = upstream.process(to.channel).filter(|_| has_levels) else { return };
        instance.take_level_slot(upstream_id);
        if let Some(request) = instance.level_request(now, level, timeout) {
            // A request that could not be sent is removed from the table at its timeout.
            let _ = instance.send(link, now, request, fx);
        }
    }

    /// Records that a request has left a process: it is answered, or failed, or was cancelled. Does
    /// nothing for one that holds no process.
    pub(super) fn has_left(
        &mut self,
        now: Instant,
        from: InstanceKey,
        caller: &Caller,
        fx: &mut Effects<'_>,
    ) {
        if let Caller::Client(ClientCall { origin: Origin::Stateless(_), .. }) = caller
            && from.channel.is_some()
        {
            if let Some(abandoned) = self.parked.close(from) {
                self.give_up_requests(now, from, abandoned.requests, fx);
            }
            self.give_process(now, from, fx);
        }
    }

    /// Gives a process back that a call has held, and begins the call that waited for it.
    pub(super) fn give_process(&mut self, now: Instant, instance: InstanceKey, fx: &mut Effects<'_>) {
        let mut next = self.leases.give(now, instance);
        while let Some(waiting) = next {
            let (responder, id) = (waiting.responder.clone(), waiting.call.id.clone());
            let Err(why) = self.begin_waiting(now, instance, *waiting, fx) else { return };
            let error = modern_error(&why);
            fx.fail(responder, error.code, error.response(&id));
            if let Some(abandoned) = self.parked.close(instance) {
                self.give_up_requests(now, instance, abandoned.requests, fx);
            }
            next = self.leases.give(now, instance);
        }
    }

    /// Sends a call to the process that it has waited for.
    fn begin_waiting(
        &mut self,
        now: Instant,
        to: InstanceKey,
        waiting: WaitingCall,
        fx: &mut Effects<'_>,
    ) -> Result<(), CallError> {
        let name = self.name_of(to.upstream);
        let declined = |why| CallError::declined(why, &name);
        let message = Message::read(&waiting.text)?;
        let params = Params::read(&message)?;
        let WaitingCall { call, responder, ref account, rename, .. } = waiting;
        let token = params.keys.token.clone().map(|span| &message.text()[span]);
        let new = NewStateless { call, responder, account, method: message.method(), token };
        let upstream_id = self.begin_stateless(now, to, new, fx).map_err(declined)?;
        let ticket = Ticket { to, upstream_id, session: None, rename, rewrite: Rewrite::Unwrap, keep: None };
        let text = ticket.stateless_text(&message, &params);
        let Some((instance, link)) = self.process(to) else { return Ok(()) };
        let sent = match link.excess(to.channel, &text) {
            Some(declined) => Err(declined),
            None => instance.send_call(link, Some(upstream_id), text, fx).map_err(declined_by_link),
        };
        sent.map_err(|why| {
            instance.close(upstream_id);
            declined(why)
        })
    }

    /// Starts processes for the calls that wait for one, as far as the limits allow.
    pub(super) fn start_waiting(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        let several = self.tokens.have_several_clients();
        loop {
            let Some(upstream) = self.upstreams.get(&server) else { return };
            let Some(pool) = upstream.pool.as_ref().filter(|pool| pool.open.len() < pool.max as usize) else {
                return;
            };
            let share = share_of(pool.max as usize, several);
            let may_start = |principal: Principal| pool.shares.held(principal) < share;
            let Some((key, waiting)) = self.leases.next_to_start(upstream.link.name(), may_start) else {
                return;
            };
            let allowed = waiting.call.allowed;
            let wanted = Wanted { server, key: &key, allowed, account: &waiting.account };
            let started = self.start_process(now, &wanted, fx);
            let name = self.name_of(server);
            let (responder, id) = (waiting.responder.clone(), waiting.call.id.clone());
            let (process, begun) = match started {
                Ok(process) => (Some(process), self.begin_waiting(now, process, *waiting, fx)),
                Err(why) => (None, Err(CallError::declined(why, &name))),
            };
            let Err(why) = begun else { continue };
            let error = modern_error(&why);
            fx.fail(responder, error.code, error.response(&id));
            if let Some(process) = process {
                self.parked.close(process);
                self.give_process(now, process, fx);
            }
        }
    }

    /// Fails calls that wait for a process.
    pub(super) fn fail_waiting(
        &mut self,
        waiting: impl IntoIterator<Item = Box<WaitingCall>>,
        why: &CallError,
        fx: &mut Effects<'_>,
    ) {
        for waiting in waiting {
            let error = modern_error(why);
            let response = error.response(&waiting.call.id);
            fx.fail(waiting.responder, error.code, response);
        }
    }

    /// Fails the calls that have waited too long for a process.
    pub(super) fn expire_waiting(&mut self, now: Instant, fx: &mut Effects<'_>) {
        for waiting in self.leases.overdue(now) {
            let why = CallError::declined(Declined::Leases, &self.name_of(waiting.server));
            self.fail_waiting([waiting], &why, fx);
        }
    }

    /// Reports the change of a list by the process of a principal to what that listens to.
    pub(super) fn report_own_list(
        &self,
        from: InstanceKey,
        kind: ListKind,
        id: Option<u64>,
        fx: &mut Effects<'_>,
    ) {
        let upstream = self.upstreams.get(&from.upstream);
        let Some((upstream, instance)) =
            upstream.and_then(|upstream| Some((upstream, upstream.instance(from.channel)?)))
        else {
            return;
        };
        let is_listen = |id| instance.mux().get(id).is_some_and(|own| matches!(own.caller, Caller::Listen));
        if instance.is_modern() && !id.is_some_and(is_listen) {
            return self.stats.unmatched.add();
        }
        let principal = instance.isolated().map(|isolated| isolated.principal);
        for (_, own) in self.listens.of_kind(Some(upstream.link.name()), kind) {
            if Some(own.principal) == principal {
                fx.notice(vec![own.stream.clone()], listen::changed(kind, &own.id));
            }
        }
    }

    /// Ends the processes of a server that no call has used for long.
    pub(super) fn end_idle_processes(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) {
        for instance in self.leases.idle(now).into_iter().filter(|instance| instance.upstream == server) {
            self.end_instance(now, instance, "idle timeout", true, fx);
        }
    }
}
