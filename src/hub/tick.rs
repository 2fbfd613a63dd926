//! Timers: when the hub checks a server next, and what has expired by then.

use std::time::Instant;

use super::{
    effect::Effects,
    error::{CallError, ServerRequestError},
    instance::Caller,
    key::{Asker, InstanceKey},
    mux::Pending,
    state::Hub,
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::edit,
    limits::{self, CHANNEL_TICK},
    mcp::discovery::Question,
    tunnel::{CLOSE_LATER, close::CloseReason},
};

impl Hub {
    /// Makes sure that the hub checks a server when its next deadline is due. A check that is too
    /// early does no harm, so the timer is only ever moved to an earlier time.
    pub(super) fn set_timer(&mut self, server: UpstreamKey, fx: &mut Effects<'_>) {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let Some(due) = upstream.due() else { return };
        if upstream.timer.is_some_and(|timer| timer <= due) {
            return;
        }
        if let Some(before) = upstream.timer.replace(due) {
            self.timers.remove(&(before, server));
        }
        self.timers.insert((due, server));
        fx.deadline_changed |= self.timers.first() == Some(&(due, server));
    }

    /// Returns when to call [`Hub::tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(due, _)| *due);
        timer.into_iter().chain(self.rounds.deadline()).chain(self.parked.deadline()).min()
    }

    /// Handles what has expired, of at most [`limits::YIELD_EVERY`] servers.
    pub fn tick(&mut self, now: Instant, fx: &mut Effects<'_>) {
        self.tick_rounds(now, fx);
        // Before the timeouts of the calls that are given up by it.
        self.tick_parked(now, fx);
        self.expire_waiting(now, fx);
        for _ in 0..limits::YIELD_EVERY {
            let Some((due, server)) = self.timers.first().copied().filter(|(due, _)| *due <= now) else {
                return;
            };
            self.timers.remove(&(due, server));
            if let Some(upstream) = self.upstreams.get_mut(&server) {
                upstream.timer = None;
            }
            if let Err(reason) = self.expire(now, server, fx)
                && let Some(upstream) = self.upstreams.get(&server)
            {
                upstream.link.close(reason);
            }
            self.set_timer(server, fx);
        }
    }

    fn expire(&mut self, now: Instant, server: UpstreamKey, fx: &mut Effects<'_>) -> Result<(), CloseReason> {
        let Some(upstream) = self.upstreams.get_mut(&server) else { return Ok(()) };
        if now >= upstream.last_check + CHANNEL_TICK {
            upstream.last_check = now;
            for instance in upstream.instances() {
                self.expire_instance(now, instance, fx);
            }
            self.end_idle_processes(now, server, fx);
        }
        for pending in self.expire_calls(now, InstanceKey::shared(server), fx) {
            let Some(upstream) = self.upstreams.get(&server) else { return Ok(()) };
            let mut why = format!("{} timed out after {} s", pending.method, pending.timeout.as_secs_f64());
            if !upstream.listing.listed {
                // The message is read at the edge, so it names the flag of the gateway. A first
                // start may well take longer (`npx` on a small box).
                let is_start = matches!(pending.caller, Caller::Discovery(Question::Era(_)));
                let flag = if is_start { "--timeout-run-tool" } else { "--timeout-rpc" };
                why += &format!(" (see {flag} at the gateway)");
            }
            // The server may just need longer to start, so its edge may try again.
            self.on_discovery_failure(now, server, &why, fx)
                .map_err(|reason| CloseReason::new(CLOSE_LATER, reason.reason))?;
        }
        self.on_silence(now, server, fx)?;
        self.resubscribe(now, server, fx);
        self.tick_listen(now, server, fx);
        self.relist(now, server, fx)
    }

    /// Fails the requests of a process that timed out, and cancels them at the server. Those of
    /// discovery and initialization are returned instead of failed.
    fn expire_calls(&mut self, now: Instant, key: InstanceKey, fx: &mut Effects<'_>) -> Vec<Pending<Caller>> {
        let mut of_gateway = Vec::new();
        let Some((instance, _)) = self.process(key) else { return of_gateway };
        for (id, pending) in instance.tick(now) {
            let Some((instance, link)) = self.process(key) else { break };
            link.log_expired(now, &pending.method, pending.timeout.as_secs_f64(), fx);
            if !matches!(&*pending.method, "initialize" | "server/discover") {
                let _ = instance.send(link, now, edit::cancelled(id, "the request timed out"), fx);
            }
            if matches!(pending.caller, Caller::Discovery(_) | Caller::Initialize) {
                of_gateway.push(pending);
            } else {
                self.has_left(now, key, &pending.caller, fx);
                let Some((_, link)) = self.process(key) else { break };
                let why = CallError::TimedOut { server: link.name().to_string(), after: pending.timeout };
                self.fail(pending, &why, fx);
            }
        }
        of_gateway
    }

    /// Ends an instance that did not initialize in time, and fails its calls that timed out.
    /// Cancels its requests to the client that were not answered within the timeout of a tool call.
    fn expire_instance(&mut self, now: Instant, key: InstanceKey, fx: &mut Effects<'_>) {
        if !self.expire_calls(now, key, fx).is_empty() {
            return self.end_instance(now, key, "initialize timed out", true, fx);
        }
        let timeout = self.config.timeout_run_tool;
        let session = self.session_of(key);
        let Some(session) = session.and_then(|session| self.clients.get_mut(&session)) else { return };
        for (number, request_id) in
            session.server_requests.overdue(now, timeout, |asker| *asker == Asker::Instance(key))
        {
            let error = ServerRequestError::TimedOut.rpc().response(&request_id);
            if let Some((_, link)) = self.process(key) {
                let _ = link.send(now, key.channel, error, fx);
            }
            self.send_to_client(key, edit::cancelled(number, "the request timed out"));
        }
    }
}
