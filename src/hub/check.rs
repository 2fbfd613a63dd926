//! Checks that the tables agree with each other, for the simulation. Slow: the program itself never
//! runs it.

use std::collections::HashSet;

use super::{
    instance::{Caller, ClientCall, Instance, Isolated, Origin, Owner},
    key::{Asker, InstanceKey, SubscriberKey},
    mux::Pending,
    session::Session,
    state::Hub,
    upstream::{Pool, Upstream},
};
use crate::{limits, session::Shares};

/// Returns an error unless `holds`.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Hub {
    /// Checks that the tables agree with each other.
    ///
    /// # Errors
    /// The first contradiction.
    #[doc(hidden)]
    pub fn check(&self) -> Result<(), String> {
        for session in self.clients.values() {
            self.check_session(session)?;
        }
        let (mut calls, mut servers) = (0, Shares::default());
        for upstream in self.upstreams.values() {
            calls += self.check_upstream(upstream)?;
            let _ = servers.take(upstream.principal, usize::MAX);
        }
        let of_sessions: usize = self.clients.values().map(|session| session.calls.len()).sum();
        let waiting = self.rounds.waiting().count();
        ensure(calls + waiting == of_sessions, || {
            format!("{calls} calls at servers, {waiting} between rounds, {of_sessions} of sessions")
        })?;
        ensure(servers == self.server_shares, || "the shares of servers".into())?;
        let leased = self.upstreams.values().flat_map(|upstream| upstream.pool.iter());
        let leased = leased.flat_map(|pool| pool.open.values()).filter_map(Instance::isolated);
        let leased = leased.filter(|isolated| !matches!(isolated.owner, Owner::Session(_))).count();
        ensure(leased == self.leases.len(), || "an instance that is gone is leased".into())?;
        self.check_indexes()
    }

    /// Checks the tables that refer to servers and sessions.
    fn check_indexes(&self) -> Result<(), String> {
        ensure(self.catalog.len() == self.upstreams.len(), || "the catalog has other servers".into())?;
        for (name, key) in self.catalog.all() {
            let known = self.upstreams.get(key).is_some_and(|upstream| **upstream.link.name() == *name);
            ensure(known, || format!("server '{name}' is only in the catalog"))?;
        }
        let found = self.sessions.all().filter(|key| self.clients.contains_key(key)).count();
        ensure(found == self.sessions.len(), || "a session that has ended can be found".into())?;
        let sessions = self.clients.keys().copied().map(SubscriberKey::Session);
        let subscribers = sessions.chain(self.listens.all().map(|(key, _)| SubscriberKey::Listen(key)));
        let subscribed = subscribers.filter(|by| self.subscriptions.count(*by) > 0).count();
        ensure(subscribed == self.subscriptions.clients(), || {
            "a session or listen that has ended is subscribed".into()
        })?;
        self.check_listens()?;
        let timers = self.upstreams.values().filter(|upstream| upstream.timer.is_some()).count();
        ensure(timers == self.timers.len(), || "a timer belongs to no server".into())
    }

    fn check_listens(&self) -> Result<(), String> {
        let opening = self.listens.all().filter(|(_, listen)| !listen.is_acknowledged).count();
        ensure(opening == self.opening.len(), || "a listen that has ended is opening".into())?;
        for (key, listen) in self.listens.all() {
            let is_opening = self.opening.contains_key(&key);
            ensure(is_opening != listen.is_acknowledged, || format!("{key:?} is never acknowledged"))?;
            let subscribed = self.subscriptions.count(SubscriberKey::Listen(key));
            ensure(is_opening || subscribed == listen.honoured.uris.len(), || {
                format!("{key:?} has {subscribed} subscriptions")
            })?;
        }
        Ok(())
    }

    fn check_session(&self, session: &Session) -> Result<(), String> {
        let name = session.name();
        ensure(!session.calls.have_ended(), || format!("session {name} has ended"))?;
        ensure(session.calls.len() <= self.config.limits.session.in_flight, || {
            format!("session {name} has {} calls", session.calls.len())
        })?;
        for (number, process, id) in session.calls.all() {
            let pending = self.instance(*process).and_then(|instance| instance.mux().get(id));
            let is_its = pending.is_some_and(|pending| match &pending.caller {
                Caller::Client(ClientCall { origin: Origin::Session(key, id), .. }) => {
                    *key == session.key && id.number() == number
                }
                _ => false,
            });
            let mut waiting = self.rounds.waiting();
            let waits = waiting.any(|call| (call.process, call.upstream_id) == (*process, id));
            ensure(is_its || waits, || {
                format!("call {number} of session {name} is not pending at {process:?}")
            })?;
        }
        for (server, key) in &session.instances {
            let instance = self.instance(*key).and_then(Instance::isolated);
            let is_its = instance.is_some_and(|isolated| isolated.owner == Owner::Session(session.key));
            ensure(is_its, || format!("session {name} has lost its instance of '{server}'"))?;
        }
        let instances: HashSet<&InstanceKey> = session.instances.values().collect();
        let requests = session.server_requests.servers();
        let is_there = |asker: &Asker| match asker {
            Asker::Instance(instance) => instances.contains(instance),
            Asker::Round(key, _) => {
                self.rounds.get(*key).is_some_and(|call| call.session == session.key)
                    && !self.rounds.is_retrying(*key)
            }
        };
        ensure(requests.clone().all(is_there), || format!("session {name} is asked by nobody"))?;
        ensure(requests.count() <= limits::SERVER_REQUESTS, || format!("session {name} is asked too much"))?;
        let (bytes, charged) = (
            self.subscriptions.bytes(SubscriberKey::Session(session.key)),
            session.subscriptions_charge.bytes(),
        );
        ensure(bytes == charged, || format!("session {name} is charged {charged} bytes for {bytes}"))
    }

    fn instance(&self, key: InstanceKey) -> Option<&Instance> {
        let upstream = self.upstreams.get(&key.upstream)?;
        match key.channel {
            None => Some(&upstream.shared),
            Some(channel) => upstream.pool.as_ref()?.open.get(&channel),
        }
    }

    /// Checks a server. Returns the number of calls of clients that are pending there.
    fn check_upstream(&self, upstream: &Upstream) -> Result<usize, String> {
        let name = upstream.link.name();
        ensure(self.catalog.get(upstream.key).is_some(), || format!("server '{name}' is not listed"))?;
        if let Some(timer) = upstream.timer {
            let known = self.timers.contains(&(timer, upstream.key));
            ensure(known, || format!("the timer of server '{name}' is lost"))?;
        }
        let is_in_time = |due| upstream.timer.is_some_and(|timer| timer <= due);
        ensure(upstream.due().is_none_or(is_in_time), || format!("the timer of server '{name}' is late"))?;
        let mut calls = self.check_instance(&upstream.shared)?;
        if let Some(pool) = &upstream.pool {
            calls += self.check_pool(pool, name)?;
        }
        Ok(calls)
    }

    fn check_pool(&self, pool: &Pool, name: &str) -> Result<usize, String> {
        let (mut calls, mut shares, mut held) = (0, Shares::default(), 0);
        ensure(pool.open.len() <= pool.max as usize, || format!("too many instances of '{name}'"))?;
        for (channel, instance) in &pool.open {
            let key = instance.key();
            ensure(key.channel == Some(*channel) && *channel <= pool.last, || format!("{key:?} is lost"))?;
            let isolated = instance.isolated().ok_or_else(|| format!("{key:?} is shared"))?;
            let is_known = match isolated.owner {
                Owner::Session(session) => {
                    let session = self.clients.get(&session);
                    session.is_some_and(|session| session.instances.get(name) == Some(&key))
                }
                Owner::Principal | Owner::Lease(_) => self.is_leased(instance, isolated),
            };
            ensure(is_known, || format!("the owner of {key:?} does not know it"))?;
            let _ = shares.take(isolated.principal, usize::MAX);
            held += isolated.held_bytes()?;
            calls += self.check_instance(instance)?;
        }
        ensure(shares == pool.shares, || format!("the shares of instances of '{name}'"))?;
        ensure(held == pool.account.used(), || format!("messages held for instances of '{name}'"))?;
        Ok(calls)
    }

    /// Returns whether a process of a principal is leased, to as many calls as are pending there.
    fn is_leased(&self, instance: &Instance, isolated: &Isolated) -> bool {
        let (key, mux) = (instance.key(), instance.mux());
        let is_call =
            |pending: &Pending<Caller>| pending.is_suspended() || matches!(pending.caller, Caller::Client(_));
        let is_its = self.leases.key(key).is_some_and(|lease| lease.principal == isolated.principal);
        let is_open = match isolated.owner {
            Owner::Lease(_) => match self.parked.call(key) {
                Some((id, parked)) => mux.get(id).is_some_and(|call| call.is_suspended() == parked),
                None => mux.count(is_call) == 0,
            },
            Owner::Principal | Owner::Session(_) => self.parked.call(key).is_none(),
        };
        is_its && is_open && self.leases.calls(key) == mux.count(is_call)
    }

    /// Checks a process. Returns the number of calls of sessions that are pending there.
    fn check_instance(&self, instance: &Instance) -> Result<usize, String> {
        let (key, mut calls, mut stateless) = (instance.key(), 0, 0);
        for (id, pending) in instance.mux().all() {
            let Caller::Client(call) = &pending.caller else { continue };
            let Origin::Session(session, call_id) = &call.origin else {
                stateless += 1;
                continue;
            };
            calls += 1;
            let session = self.clients.get(session);
            let is_its = session
                .is_some_and(|session| session.calls.all().any(|open| open == (call_id.number(), &key, id)));
            ensure(is_its, || format!("request {id} at {key:?} is no call of its session"))?;
        }
        ensure(instance.has_right_shares(calls + stateless), || format!("the shares of calls at {key:?}"))?;
        Ok(calls)
    }
}
