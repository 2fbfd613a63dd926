//! How sessions, isolated instances and servers begin and end.
//!
//! The end of one may end another: a session ends its instances, an instance at its server's own
//! endpoint ends its session, and a server ends its instances. So they are in one file.

use std::{collections::BTreeSet, time::Instant};

use super::{
    effect::Effects,
    error::Declined,
    instance::{Instance, Isolated, Owner, declined_by_link, disconnected},
    key::{Asker, InstanceKey, SessionKey, SubscriberKey},
    session::{NewSession, Session},
    state::Hub,
    upstream::Upstream,
};
use crate::{
    auth::Principal,
    catalog::UpstreamKey,
    limits,
    queue::Room,
    session::{CallRefused, Full, share_of},
    tunnel::frame,
    util,
};

impl Hub {
    /// Creates a session that no client can find yet.
    pub fn begin_session(&mut self, new: NewSession) -> SessionKey {
        self.last_session += 1;
        let key = SessionKey(self.last_session);
        let session = Session::new(key, new, &self.config.limits.session);
        self.clients.insert(key, Box::new(session));
        key
    }

    /// Lets clients find a session. At the session limit, first closes an idle session of the same
    /// principal. A session that has ended meanwhile stays closed, without an error.
    ///
    /// # Errors
    /// [`Full`] at a session limit, or if the token was revoked meanwhile.
    pub fn open_session(&mut self, now: Instant, key: SessionKey, fx: &mut Effects<'_>) -> Result<(), Full> {
        let Some(session) = self.clients.get(&key) else { return Ok(()) };
        let (id, principal, scope) = (session.id.clone(), session.principal, session.scope.clone());
        if !self.tokens.may_call(principal) {
            return Err(Full::All);
        }
        let opened = self.sessions.open_at(now, id.clone(), principal, scope.server(), key);
        if opened.is_ok() {
            return opened;
        }
        let clients = &self.clients;
        let is_busy = |key: &SessionKey| clients.get(key).is_some_and(|session| session.is_busy());
        let Some(unused) = self.sessions.make_room(now, principal, is_busy) else { return opened };
        self.close_session(now, unused, "evicted by a newer session", fx);
        self.sessions.open_at(now, id, principal, scope.server(), key)
    }

    /// Ends the sessions that were idle for too long.
    pub fn close_idle_sessions(&mut self, now: Instant, fx: &mut Effects<'_>) {
        let clients = &self.clients;
        let idle = self.sessions.expire(now, |key| clients.get(key).is_some_and(|session| session.is_busy()));
        for session in idle {
            self.close_session(now, session, "idle timeout", fx);
        }
    }

    /// Ends a session: cancels its calls, and ends its streams and isolated instances.
    pub fn close_session(&mut self, now: Instant, key: SessionKey, reason: &str, fx: &mut Effects<'_>) {
        let Some(session) = self.clients.get_mut(&key).filter(|session| !session.calls.have_ended()) else {
            return;
        };
        fx.end(session.stream.clone());
        let open = session.calls.end_all();
        let (name, calls) = (session.name().to_string(), open.len());
        self.sessions.close(&session.id);
        fx.log(log::Level::Debug, || {
            format!("client {name} closed: reason=\"{reason}\" cancelled_calls={calls}")
        });
        for call in open {
            self.cancel(now, call, Err(reason), fx);
        }
        // Close the streams after the calls, so that those being read still carry the calls'
        // errors.
        if let Some(session) = self.clients.get(&key) {
            fx.close(session.stream.clone());
        }
        self.unsubscribe_all(now, key, fx);
        let instances = self.clients.get_mut(&key).map(|session| std::mem::take(&mut session.instances));
        for instance in instances.unwrap_or_default().into_values() {
            self.end_instance(now, instance, "the session ended", true, fx);
        }
        if let Some(session) = self.clients.remove(&key) {
            fx.drop_later(session);
        }
    }

    /// Returns the process that serves a session: the shared one of the server, or the session's
    /// own instance, which is started if need be.
    ///
    /// # Errors
    /// [`Declined`]: the session has ended, an instance limit is reached, or the link takes no more
    /// frames.
    pub(super) fn instance_for(
        &mut self,
        now: Instant,
        session: SessionKey,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<InstanceKey, Declined> {
        let upstream = self.upstreams.get(&server).ok_or(Declined::Gone)?;
        let Some(pool) = &upstream.pool else { return Ok(InstanceKey::shared(server)) };
        let ended = Declined::Session(CallRefused::Ended);
        let client = self.clients.get(&session).filter(|client| !client.calls.have_ended()).ok_or(ended)?;
        if let Some(key) = client.instances.get(upstream.link.name()) {
            // Its instance may be ending, and so may the earlier registration of the server.
            let channel = key.channel.filter(|_| key.upstream == server);
            let open = channel.is_some_and(|channel| pool.open.contains_key(&channel));
            return if open { Ok(*key) } else { Err(Declined::Gone) };
        }
        let started = self.start_instance(now, session, server, fx);
        let Err(Declined::Instances | Declined::InstancesShare) = started else { return started };
        // A process that serves no call of the same principal is needed less.
        let (name, principal) =
            (self.name_of(server), self.clients.get(&session).map(|client| client.principal));
        let idle = principal.and_then(|principal| self.leases.oldest_idle(&name, principal));
        match idle.filter(|idle| idle.upstream == server) {
            Some(idle) => {
                self.end_instance(now, idle, "another process was needed", true, fx);
                self.start_instance(now, session, server, fx)
            }
            None => started,
        }
    }

    /// Opens a channel for an instance of a session. At the aggregate, the gateway initializes it
    /// with the client's capabilities; at the server's own endpoint, the client does.
    fn start_instance(
        &mut self,
        now: Instant,
        session: SessionKey,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<InstanceKey, Declined> {
        let several = self.tokens.have_several_clients();
        let limits = &self.config.limits.session;
        // The client's calls, and the subscriptions that the gateway restores for the client.
        let max_calls = limits.in_flight + limits.subscriptions;
        let ended = Declined::Session(CallRefused::Ended);
        let client = self.clients.get_mut(&session).ok_or(ended)?;
        let upstream = self.upstreams.get_mut(&server).ok_or(Declined::Gone)?;
        let number = upstream.open_channel(client.principal, several, fx)?;
        let (name, pool) = (upstream.link.name().clone(), upstream.pool.as_mut().ok_or(Declined::Gone)?);
        let subscriptions =
            client.sees_all().then(|| self.subscriptions.of_client(&name, SubscriberKey::Session(session)));
        let is_for_gateway = subscriptions.is_some();
        let owner = (Owner::Session(session), client.principal);
        let isolated = Isolated::new(owner, &pool.account, &client.account, subscriptions);
        let key = InstanceKey { upstream: server, channel: Some(number) };
        let mut instance = Instance::new(key, max_calls, Some(isolated));
        client.instances.insert(name.clone(), key);
        let client_name = client.name().to_string();
        fx.log(log::Level::Debug, || {
            format!("starting a process for client {client_name} at server '{name}'")
        });
        if is_for_gateway {
            let (params, timeout) = (client.info.initialize_params(), self.config.timeout_run_tool);
            instance.send_initialize(&upstream.link, now, (&params, timeout), fx);
        }
        pool.open.insert(number, instance);
        self.set_timer(server, fx);
        Ok(key)
    }

    /// Handles the edge's report that an instance ended or could not be started.
    pub fn instance_gone(
        &mut self,
        now: Instant,
        (server, channel): (UpstreamKey, u32),
        reason: &str,
        fx: &mut Effects<'_>,
    ) {
        let reason = format!("its process for this client exited: {}", util::escape::show(reason));
        self.end_instance(now, InstanceKey { upstream: server, channel: Some(channel) }, &reason, false, fx);
    }

    /// Ends an instance: fails its calls, and closes the session if that is at the server's own
    /// endpoint. `tell`: also closes the channel at the edge.
    pub(super) fn end_instance(
        &mut self,
        now: Instant,
        key: InstanceKey,
        reason: &str,
        tell: bool,
        fx: &mut Effects<'_>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(&key.upstream) else { return };
        let removed = key.channel.zip(upstream.pool.as_mut());
        let removed = removed.and_then(|(channel, pool)| Some((channel, pool.open.remove(&channel)?, pool)));
        let Some((channel, mut instance, pool)) = removed else { return };
        let owner = instance.isolated().map(|isolated| (isolated.owner, isolated.principal));
        let Some((owner, principal)) = owner else { return };
        pool.shares.give(principal);
        if tell {
            // Ignores the queue's limits: there is one such frame per channel, and without it the
            // process would run as long as the link.
            let _ = upstream.link.queue_frame(frame::close(channel, reason), Room::Unbounded, fx);
        }
        let name = upstream.link.name().clone();
        for pending in instance.drain() {
            self.fail(pending, &disconnected(&name, reason), fx);
        }
        self.end_rounds(|process| process == key, reason, fx);
        fx.drop_later(instance);
        let session = match owner {
            Owner::Session(session) => session,
            Owner::Principal | Owner::Lease(_) => {
                self.parked.gone(key);
                self.leases.gone(key);
                return self.start_waiting(now, key.upstream, fx);
            }
        };
        let Some(client) = self.clients.get_mut(&session) else { return };
        client.server_requests.forget(|asker| *asker == Asker::Instance(key));
        // The session may have a new instance by now.
        let is_its = client.instances.get(&name).is_some_and(|its| *its == key);
        if is_its {
            client.instances.remove(&name);
            if !client.sees_all() {
                // The instance held the session's state, which is lost.
                self.close_session(now, session, reason, fx);
            }
        }
        self.start_waiting(now, key.upstream, fx);
    }

    /// Removes a server: fails its calls at once, and ends its instances. Does nothing if it is
    /// gone already.
    pub fn remove_server(&mut self, now: Instant, server: UpstreamKey, why: &str, fx: &mut Effects<'_>) {
        if let Some((_, kinds)) = self.catalog.remove(server) {
            self.lists_changed(now, &kinds, fx);
        }
        let Some(upstream) = self.upstreams.get_mut(&server) else { return };
        let name = upstream.link.name().clone();
        for pending in upstream.shared.drain() {
            self.fail(pending, &disconnected(&name, why), fx);
        }
        self.end_rounds(|process| process.upstream == server, why, fx);
        let waiting = self.leases.refuse(&name);
        self.fail_waiting(waiting, &disconnected(&name, why), fx);
        let instances = self.upstreams.get(&server).map(|upstream| upstream.instances()).unwrap_or_default();
        for instance in instances {
            self.end_instance(now, instance, why, false, fx);
        }
        let Some(mut upstream) = self.upstreams.remove(&server) else { return };
        for waiter in upstream.listen.take_waiting() {
            self.settle_waiter(server, (waiter, &BTreeSet::new()), fx);
        }
        self.tasks.end(upstream.run);
        self.server_shares.give(upstream.principal);
        if let Some(timer) = upstream.timer {
            self.timers.remove(&(timer, server));
        }
        fx.drop_later(upstream);
    }

    /// Fails the pending calls of at most [`limits::YIELD_EVERY`] servers, since the gateway is
    /// stopping. Returns false if no server had any.
    pub fn fail_calls(&mut self, reason: &str, fx: &mut Effects<'_>) -> bool {
        self.end_rounds(|_| true, reason, fx);
        let busy = self.upstreams.iter().filter(|(_, upstream)| upstream.pending() > 0);
        let mut busy: Vec<UpstreamKey> = busy.map(|(key, _)| *key).take(limits::YIELD_EVERY).collect();
        busy.sort_unstable();
        for key in &busy {
            let Some(upstream) = self.upstreams.get_mut(key) else { continue };
            let name = upstream.link.name().clone();
            let mut pending = upstream.shared.drain();
            for instance in upstream.pool.iter_mut().flat_map(|pool| pool.open.values_mut()) {
                pending.extend(instance.drain());
            }
            for pending in pending {
                self.fail(pending, &disconnected(&name, reason), fx);
            }
        }
        !busy.is_empty()
    }
}

impl Upstream {
    /// Opens a channel for another isolated instance, of a client of this principal. Returns its
    /// number.
    ///
    /// # Errors
    /// [`Declined`]: an instance limit is reached, or the link takes no more frames.
    pub(super) fn open_channel(
        &mut self,
        principal: Principal,
        several: bool,
        fx: &mut Effects<'_>,
    ) -> Result<u32, Declined> {
        let pool = self.pool.as_mut().ok_or(Declined::Gone)?;
        if pool.open.len() >= pool.max as usize {
            return Err(Declined::Instances);
        }
        let number = pool.last.checked_add(1).ok_or(Declined::Gone)?;
        if !pool.shares.take(principal, share_of(pool.max as usize, several)) {
            return Err(Declined::InstancesShare);
        }
        if let Err(refused) = self.link.queue_frame(frame::open(number), Room::Normal, fx) {
            pool.shares.give(principal);
            return Err(declined_by_link(refused));
        }
        pool.last = number;
        Ok(number)
    }
}
