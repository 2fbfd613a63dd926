//! Which process of an isolated server a stateless call gets. Its client has no session, so the
//! processes belong to a principal.
//!
//! A legacy server's requests and log messages name no call. So a client that can be asked, or that
//! wants log messages, gets a process that one call at a time holds: a lease. All other calls of a
//! principal run side by side in one process.
//!
//! Plain tables: `I` is the program's handle of a process, `W` that of a call that waits for one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
    time::{Duration, Instant},
};

use crate::{auth::Principal, limits::StatelessLimits};

/// Which calls may have the same process.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LeaseKey {
    /// The name of the server.
    pub server: Box<str>,
    /// The principal of the calls.
    pub principal: Principal,
    /// The digest of the client capabilities with which the process was initialized, if one call at
    /// a time holds it. `None`: any number of calls run in it.
    pub exclusive: Option<u128>,
}

/// The process for a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken<I> {
    /// This one, which the call now holds.
    Process(I),
    /// A new one: start it, and call [`Leases::started`].
    Start,
    /// One that is in use now: call [`Leases::wait`].
    Wait,
}

/// The number of a call that waits. Never reused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// The processes of principals, and the calls that wait for one.
#[derive(Debug)]
pub struct Leases<I, W> {
    processes: BTreeMap<I, Process>,
    by_key: BTreeMap<LeaseKey, Group<I, W>>,
    /// Tickets given out so far.
    tickets: u64,
    per_key: usize,
    max_waiting: usize,
    wait: Duration,
    idle: Duration,
}

#[derive(Debug)]
struct Process {
    key: LeaseKey,
    calls: usize,
    /// When the last call began or ended.
    used: Instant,
}

/// The processes of one key, and the calls that wait for one of them.
#[derive(Debug)]
struct Group<I, W> {
    processes: BTreeSet<I>,
    waiting: VecDeque<Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: Ticket,
    call: W,
    due: Instant,
}

impl<I: Copy + Debug + Ord, W> Leases<I, W> {
    /// Creates an empty table. `idle`: the time after which an unused process ends.
    pub fn new(limits: &StatelessLimits, idle: Duration) -> Self {
        Self {
            processes: BTreeMap::new(),
            by_key: BTreeMap::new(),
            tickets: 0,
            per_key: limits.lease_per_key,
            max_waiting: limits.lease_waiting,
            wait: limits.lease_wait,
            idle,
        }
    }

    /// Takes a process for a call: the idle one that was used last, so that the server's own state
    /// mostly survives. `may_start`: whether the server may have another process at all.
    pub fn take(&mut self, now: Instant, key: &LeaseKey, may_start: bool) -> Taken<I> {
        let own = self.by_key.get(key).into_iter().flat_map(|group| &group.processes);
        let own = own.filter_map(|instance| Some((*instance, self.processes.get(instance)?)));
        let free = own.filter(|(_, process)| process.calls == 0 || key.exclusive.is_none());
        let found = free.max_by_key(|(_, process)| process.used).map(|(instance, _)| instance);
        match found {
            Some(instance) => {
                self.hold(now, instance);
                Taken::Process(instance)
            }
            None if may_start && self.has_room(key) => Taken::Start,
            None => Taken::Wait,
        }
    }

    fn hold(&mut self, now: Instant, instance: I) {
        if let Some(process) = self.processes.get_mut(&instance) {
            process.calls += 1;
            process.used = now;
        }
    }

    /// Whether another process of a key may start.
    fn has_room(&self, key: &LeaseKey) -> bool {
        let max = if key.exclusive.is_some() { self.per_key } else { 1 };
        self.by_key.get(key).is_none_or(|group| group.processes.len() < max)
    }

    /// Adds the process that was started for a call, which holds it. Others may have waited for it:
    /// see [`Leases::next`].
    pub fn started(&mut self, now: Instant, key: LeaseKey, instance: I) {
        self.group(&key).processes.insert(instance);
        self.processes.insert(instance, Process { key, calls: 1, used: now });
    }

    fn group(&mut self, key: &LeaseKey) -> &mut Group<I, W> {
        self.by_key
            .entry(key.clone())
            .or_insert_with(|| Group { processes: BTreeSet::new(), waiting: VecDeque::new() })
    }

    /// Lets a call wait for a process.
    ///
    /// # Errors
    /// The call: too many wait for the same processes ([`StatelessLimits::lease_waiting`]).
    pub fn wait(&mut self, now: Instant, key: &LeaseKey, call: W) -> Result<Ticket, W> {
        let (ticket, due, max) = (Ticket(self.tickets + 1), now + self.wait, self.max_waiting);
        if self.by_key.get(key).is_some_and(|group| group.waiting.len() >= max) {
            return Err(call);
        }
        self.group(key).waiting.push_back(Waiting { ticket, call, due });
        self.tickets += 1;
        Ok(ticket)
    }

    /// Removes a call that waits: its client has gone.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<W> {
        let (key, waiting) = self.by_key.iter_mut().find_map(|(key, group)| {
            let place = group.waiting.iter().position(|waiting| waiting.ticket == ticket)?;
            Some((key.clone(), group.waiting.remove(place)?))
        })?;
        self.tidy(&key);
        Some(waiting.call)
    }

    /// Records that a call in a process has ended. Returns the call that waited longest for the
    /// process, and now holds it.
    pub fn give(&mut self, now: Instant, instance: I) -> Option<W> {
        let process = self.processes.get_mut(&instance)?;
        process.calls = process.calls.saturating_sub(1);
        process.used = now;
        self.next(now, instance)
    }

    /// Returns the call that waited longest for a process that it may have, and now holds.
    pub fn next(&mut self, now: Instant, instance: I) -> Option<W> {
        let process = self.processes.get(&instance)?;
        if process.key.exclusive.is_some() && process.calls > 0 {
            return None;
        }
        let next = self.by_key.get_mut(&process.key)?.waiting.pop_front()?;
        self.hold(now, instance);
        Some(next.call)
    }

    /// Removes a process that has ended.
    pub fn gone(&mut self, instance: I) {
        let Some(process) = self.processes.remove(&instance) else { return };
        if let Some(group) = self.by_key.get_mut(&process.key) {
            group.processes.remove(&instance);
        }
        self.tidy(&process.key);
    }

    /// Removes the call that waited longest among those for which a process of a server may start.
    /// Call it when a process of the server has ended, start one, and call [`Leases::started`].
    /// `may_start`: whether a principal may have another process of the server.
    pub fn next_to_start(
        &mut self,
        server: &str,
        may_start: impl Fn(Principal) -> bool,
    ) -> Option<(LeaseKey, W)> {
        let may_start = |key: &LeaseKey| *key.server == *server && may_start(key.principal);
        let waiting = self.by_key.iter().filter(|(key, _)| may_start(key) && self.has_room(key));
        let first = waiting.filter_map(|(key, group)| Some((group.waiting.front()?.ticket, key)));
        let key = first.min().map(|(_, key)| key.clone())?;
        let next = self.by_key.get_mut(&key)?.waiting.pop_front()?;
        self.tidy(&key);
        Some((key, next.call))
    }

    /// Returns the idle process of a principal that was not used for longest. It can end in favour
    /// of one with another key, if the server may have no more.
    pub fn oldest_idle(&self, server: &str, principal: Principal) -> Option<I> {
        let idle = self.processes.iter().filter(|(_, process)| {
            process.calls == 0 && *process.key.server == *server && process.key.principal == principal
        });
        idle.min_by_key(|(_, process)| process.used).map(|(instance, _)| *instance)
    }

    /// Returns the processes that are unused for too long. They stay until [`Leases::gone`].
    pub fn idle(&self, now: Instant) -> Vec<I> {
        let over = |process: &Process| process.calls == 0 && process.used + self.idle <= now;
        self.processes.iter().filter(|(_, process)| over(process)).map(|(instance, _)| *instance).collect()
    }

    /// Removes the calls that waited too long.
    pub fn overdue(&mut self, now: Instant) -> Vec<W> {
        let mut overdue = Vec::new();
        for group in self.by_key.values_mut() {
            // Those that wait longest are first.
            let count = group.waiting.iter().take_while(|waiting| waiting.due <= now).count();
            overdue.extend(group.waiting.drain(..count).map(|waiting| waiting.call));
        }
        self.by_key.retain(|_, group| group.is_used());
        overdue
    }

    /// Removes all calls that wait for processes of a server: it has gone.
    pub fn refuse(&mut self, server: &str) -> Vec<W> {
        let mut refused = Vec::new();
        for (_, group) in self.by_key.iter_mut().filter(|(key, _)| *key.server == *server) {
            refused.extend(group.waiting.drain(..).map(|waiting| waiting.call));
        }
        self.by_key.retain(|_, group| group.is_used());
        refused
    }

    /// Returns when [`Leases::overdue`] or [`Leases::idle`] has something next.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.by_key.values().filter_map(|group| group.waiting.front()).map(|first| first.due);
        let idle = self.processes.values().filter(|process| process.calls == 0);
        waiting.chain(idle.map(|process| process.used + self.idle)).min()
    }

    /// Removes the waiting calls of the principals that may not stay, and returns them with the
    /// processes of these principals, which stay until [`Leases::gone`].
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) -> (Vec<I>, Vec<W>) {
        let (mut instances, mut calls) = (Vec::new(), Vec::new());
        for (_, group) in self.by_key.iter_mut().filter(|(key, _)| !may_stay(key.principal)) {
            instances.extend(&group.processes);
            calls.extend(group.waiting.drain(..).map(|waiting| waiting.call));
        }
        self.by_key.retain(|_, group| group.is_used());
        (instances, calls)
    }

    /// Returns the key of a process.
    pub fn key(&self, instance: I) -> Option<&LeaseKey> {
        self.processes.get(&instance).map(|process| &process.key)
    }

    /// Returns the number of calls that hold a process.
    pub fn calls(&self, instance: I) -> usize {
        self.processes.get(&instance).map_or(0, |process| process.calls)
    }

    /// Returns the number of processes.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Whether there is neither a process nor a waiting call.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn tidy(&mut self, key: &LeaseKey) {
        if self.by_key.get(key).is_some_and(|group| !group.is_used()) {
            self.by_key.remove(key);
        }
    }
}

impl<I, W> Group<I, W> {
    fn is_used(&self) -> bool {
        !self.processes.is_empty() || !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(1800);
    const ONE: fn() -> Principal = || Principal::token(1);
    const TWO: fn() -> Principal = || Principal::token(2);

    fn leases(per_key: usize) -> Leases<u32, &'static str> {
        let limits =
            StatelessLimits { lease_per_key: per_key, lease_waiting: 2, ..StatelessLimits::default() };
        Leases::new(&limits, IDLE)
    }

    fn key(server: &str, principal: Principal, exclusive: Option<u128>) -> LeaseKey {
        LeaseKey { server: server.into(), principal, exclusive }
    }

    fn held(principal: Principal) -> LeaseKey {
        key("s", principal, Some(7))
    }

    #[test]
    fn calls_without_questions_share_one_process_of_their_principal() {
        let (mut leases, now) = (leases(4), Instant::now());
        let plain = |principal| key("s", principal, None);
        assert_eq!(leases.take(now, &plain(ONE()), true), Taken::Start);
        leases.started(now, plain(ONE()), 1);
        for _ in 0..9 {
            assert_eq!(leases.take(now, &plain(ONE()), true), Taken::Process(1));
        }
        assert_eq!(leases.take(now, &plain(TWO()), true), Taken::Start);
        assert_eq!(leases.take(now, &key("t", ONE(), None), true), Taken::Start);
        assert_eq!(leases.take(now, &held(ONE()), true), Taken::Start, "one that can be asked has its own");
        for _ in 0..10 {
            assert_eq!(leases.give(now, 1), None);
        }
        assert_eq!(leases.idle(now + IDLE), [1]);
        // Those that waited, since the server could have no process, run in the first one.
        let none = key("u", ONE(), None);
        assert_eq!(leases.take(now, &none, false), Taken::Wait);
        leases.wait(now, &none, "a").unwrap();
        leases.wait(now, &none, "b").unwrap();
        assert_eq!(leases.take(now, &none, true), Taken::Start);
        leases.started(now, none, 2);
        assert_eq!(
            [leases.next(now, 2), leases.next(now, 2), leases.next(now, 2)],
            [Some("a"), Some("b"), None]
        );
    }

    #[test]
    fn one_call_at_a_time_holds_a_lease() {
        let (mut leases, start) = (leases(2), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let key = held(ONE());
        for instance in [1, 2] {
            assert_eq!(leases.take(start, &key, true), Taken::Start);
            leases.started(start, key.clone(), instance);
        }
        assert_eq!(leases.take(start, &key, true), Taken::Wait);
        assert_eq!(leases.take(start, &held(TWO()), true), Taken::Start, "another principal");
        assert_eq!(leases.take(start, &super::tests::key("s", ONE(), Some(8)), true), Taken::Start);
        // The first that waited gets the process that is given back first.
        leases.wait(start, &key, "a").unwrap();
        leases.wait(at(1), &key, "b").unwrap();
        assert_eq!(leases.wait(at(1), &key, "c"), Err("c"));
        assert_eq!((leases.give(at(2), 2), leases.give(at(3), 2)), (Some("a"), Some("b")));
        assert_eq!((leases.give(at(4), 2), leases.give(at(5), 1)), (None, None));
        // The idle process that was used last, then the other.
        assert_eq!(leases.take(at(6), &key, true), Taken::Process(1));
        assert_eq!(leases.take(at(6), &key, true), Taken::Process(2));
        assert_eq!(leases.take(at(6), &key, true), Taken::Wait);
        assert_eq!(leases.key(1), Some(&key));
    }

    #[test]
    fn a_call_waits_for_a_while() {
        let (mut leases, start) = (leases(1), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        leases.started(start, held(ONE()), 1);
        leases.wait(start, &held(ONE()), "a").unwrap();
        let ticket = leases.wait(at(1), &held(ONE()), "b").unwrap();
        // No process of its own, and the server may have no more.
        assert_eq!(leases.take(at(2), &held(TWO()), false), Taken::Wait);
        leases.wait(at(2), &held(TWO()), "c").unwrap();
        assert_eq!((leases.overdue(at(9)), leases.deadline()), (vec![], Some(at(10))));
        assert_eq!(leases.overdue(at(10)), ["a"]);
        assert_eq!((leases.cancel(ticket), leases.cancel(ticket)), (Some("b"), None));
        assert_eq!((leases.overdue(at(12)), leases.deadline()), (vec!["c"], None));
        assert_eq!(leases.give(at(13), 1), None);
        leases.gone(1);
        assert!(leases.is_empty());
    }

    #[test]
    fn a_process_that_ended_makes_room() {
        let (mut leases, now) = (leases(1), Instant::now());
        leases.started(now, held(ONE()), 1);
        leases.started(now, key("t", ONE(), None), 2);
        leases.wait(now, &held(ONE()), "a").unwrap();
        leases.wait(now, &held(TWO()), "b").unwrap();
        leases.wait(now, &held(ONE()), "c").unwrap();
        let all = |_: Principal| true;
        assert_eq!(leases.next_to_start("t", all), None);
        assert_eq!(leases.next_to_start("s", |who| who == ONE()), None, "the other may have no more");
        assert_eq!(leases.next_to_start("s", all), Some((held(TWO()), "b")), "the other has its process");
        leases.started(now, held(TWO()), 3);
        assert_eq!(leases.next_to_start("s", all), None);
        leases.gone(1);
        leases.gone(1);
        assert_eq!(leases.next_to_start("s", all), Some((held(ONE()), "a")));
        leases.started(now, held(ONE()), 4);
        assert_eq!((leases.give(now, 1), leases.give(now, 4), leases.len()), (None, Some("c"), 3));
    }

    #[test]
    fn unused_processes_end() {
        let (mut leases, start) = (leases(4), Instant::now());
        for instance in [1, 2, 3] {
            let at = start + Duration::from_secs(instance.into());
            leases.started(at, key("s", ONE(), Some(instance.into())), instance);
        }
        assert_eq!((leases.deadline(), leases.oldest_idle("s", ONE())), (None, None));
        let at = |seconds| start + Duration::from_secs(seconds);
        leases.give(at(20), 2);
        leases.give(at(30), 1);
        assert_eq!((leases.deadline(), leases.oldest_idle("s", ONE())), (Some(at(20) + IDLE), Some(2)));
        assert_eq!((leases.oldest_idle("s", TWO()), leases.oldest_idle("t", ONE())), (None, None));
        assert_eq!((leases.idle(at(19) + IDLE), leases.idle(at(20) + IDLE)), (vec![], vec![2]));
        assert_eq!(leases.idle(at(99999)), [1, 2], "one that a call holds stays");
    }

    #[test]
    fn processes_end_with_the_token_of_their_principal() {
        let (mut leases, now) = (leases(1), Instant::now());
        for (principal, instance) in [(ONE(), 1), (TWO(), 2)] {
            leases.started(now, held(principal), instance);
            leases.wait(now, &held(principal), if instance == 1 { "a" } else { "b" }).unwrap();
        }
        assert_eq!(leases.expel(|who| who == TWO()), (vec![1], vec!["a"]));
        leases.gone(1);
        assert_eq!(leases.key(1), None);
        assert_eq!(leases.give(now, 2), Some("b"));
    }
}
