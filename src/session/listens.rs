//! The open listens of clients (`subscriptions/listen` of MCP 2026-07-28). Each is an event stream
//! that stays open, and belongs to a principal, since its client has no session.
//!
//! [`Subscriptions`](super::Subscriptions) knows which of them listen to a resource. This table has
//! those that listen to lists and tasks, and bounds all of them. `R` is the program's handle of a
//! stream.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use crate::{
    auth::Principal,
    budget::Charge,
    limits::{self, StatelessLimits},
    mcp::{listen_filter::Filter, listing::ListKind},
};

/// The key of a listen. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListenKey(u64);

/// An open listen.
#[derive(Debug)]
pub struct ClientListen<R> {
    /// The principal of the request.
    pub principal: Principal,
    /// The request's id as raw JSON: the subscription id of its notifications.
    pub id: Box<str>,
    /// The server whose endpoint was called. `None`: the endpoint that shows all servers.
    pub server: Option<Box<str>>,
    /// What is reported, which is what the acknowledgement says, or, before that, what is wanted.
    /// URIs and task ids are those that the client knows.
    pub honoured: Filter,
    /// Whether it was acknowledged. Nothing is reported before.
    pub is_acknowledged: bool,
    /// When it was opened.
    pub since: Instant,
    /// The stream.
    pub stream: R,
    /// The memory that the listen takes. [`Listens::open`] sets the bytes.
    pub charge: Charge,
}

/// Why a listen is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListenRefused {
    /// The principal has its maximum ([`StatelessLimits::listens`]).
    Principal,
    /// All principals have their maximum ([`StatelessLimits::listens_all`]).
    All,
    /// The memory budget is used up.
    NoMemory,
}

/// All open listens.
#[derive(Debug)]
pub struct Listens<R> {
    last: u64,
    open: BTreeMap<ListenKey, ClientListen<R>>,
    by_server: BTreeMap<Option<Box<str>>, BTreeSet<ListenKey>>,
    by_principal: HashMap<Principal, usize>,
    max: usize,
    max_per_principal: usize,
}

impl<R> Listens<R> {
    /// Creates an empty table.
    pub fn new(limits: &StatelessLimits) -> Self {
        Self {
            last: 0,
            open: BTreeMap::new(),
            by_server: BTreeMap::new(),
            by_principal: HashMap::new(),
            max: limits.listens_all,
            max_per_principal: limits.listens,
        }
    }

    /// Adds a listen, and charges its memory.
    ///
    /// # Errors
    /// [`ListenRefused`], with the reason.
    pub fn open(&mut self, mut listen: ClientListen<R>) -> Result<ListenKey, ListenRefused> {
        if self.open.len() >= self.max {
            return Err(ListenRefused::All);
        }
        if self.by_principal.get(&listen.principal).is_some_and(|count| *count >= self.max_per_principal) {
            return Err(ListenRefused::Principal);
        }
        let bytes = memory(&listen);
        if !listen.charge.resize(bytes) {
            return Err(ListenRefused::NoMemory);
        }
        self.last += 1;
        let key = ListenKey(self.last);
        *self.by_principal.entry(listen.principal).or_default() += 1;
        self.by_server.entry(listen.server.clone()).or_default().insert(key);
        self.open.insert(key, listen);
        Ok(key)
    }

    /// Removes a listen: its client has closed the stream, or the gateway ends it.
    pub fn close(&mut self, key: ListenKey) -> Option<ClientListen<R>> {
        let listen = self.open.remove(&key)?;
        if let Some(count) = self.by_principal.get_mut(&listen.principal) {
            *count -= 1;
            if *count == 0 {
                self.by_principal.remove(&listen.principal);
            }
        }
        if let Some(keys) = self.by_server.get_mut(&listen.server) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_server.remove(&listen.server);
            }
        }
        Some(listen)
    }

    /// Returns a listen.
    pub fn get(&self, key: ListenKey) -> Option<&ClientListen<R>> {
        self.open.get(&key)
    }

    /// Records what a listen is acknowledged to report, which is no more than was wanted. Returns the
    /// listen.
    pub fn acknowledge(&mut self, key: ListenKey, honoured: Filter) -> Option<&ClientListen<R>> {
        let listen = self.open.get_mut(&key)?;
        (listen.honoured, listen.is_acknowledged) = (honoured, true);
        let bytes = memory(listen);
        // It shrinks.
        listen.charge.resize_anyway(bytes);
        Some(listen)
    }

    /// Returns the listens at an endpoint that report the changes of a list, in the order in which
    /// they were opened. `server`: see [`ClientListen::server`].
    pub fn of_kind(
        &self,
        server: Option<&str>,
        kind: ListKind,
    ) -> impl Iterator<Item = (ListenKey, &ClientListen<R>)> {
        self.at(server).filter(move |(_, listen)| listen.honoured.kinds.contains(kind))
    }

    /// Returns the listens of a principal at an endpoint that report the changes of a task, by the
    /// id that the client knows.
    pub fn of_task(
        &self,
        server: Option<&str>,
        principal: Principal,
        task: &str,
    ) -> impl Iterator<Item = (ListenKey, &ClientListen<R>)> {
        let is_it = move |listen: &ClientListen<R>| {
            listen.principal == principal && listen.honoured.tasks.contains(task)
        };
        self.at(server).filter(move |(_, listen)| is_it(listen))
    }

    /// Returns all listens, in the order in which they were opened.
    pub fn all(&self) -> impl Iterator<Item = (ListenKey, &ClientListen<R>)> {
        self.open.iter().map(|(key, listen)| (*key, listen))
    }

    fn at(&self, server: Option<&str>) -> impl Iterator<Item = (ListenKey, &ClientListen<R>)> {
        let keys = self.by_server.get(&server.map(Box::from));
        let all = keys.into_iter().flatten().filter_map(|key| Some((*key, self.open.get(key)?)));
        all.filter(|(_, listen)| listen.is_acknowledged)
    }

    /// Removes the listens of principals that may not keep them.
    pub fn expel(
        &mut self,
        may_stay: impl Fn(&ClientListen<R>) -> bool,
    ) -> Vec<(ListenKey, ClientListen<R>)> {
        let gone = self.open.iter().filter(|(_, listen)| !may_stay(listen)).map(|(key, _)| *key);
        gone.collect::<Vec<_>>().into_iter().filter_map(|key| Some((key, self.close(key)?))).collect()
    }

    /// Removes all listens, in the order in which they were opened.
    pub fn close_all(&mut self) -> Vec<(ListenKey, ClientListen<R>)> {
        self.by_server.clear();
        self.by_principal.clear();
        std::mem::take(&mut self.open).into_iter().collect()
    }

    /// Returns the number of listens.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no listen is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Returns the bytes that a listen takes.
fn memory<R>(listen: &ClientListen<R>) -> usize {
    let Filter { uris, tasks, .. } = &listen.honoured;
    let server = listen.server.as_deref().map_or(0, str::len);
    let entries = 1 + uris.len() + tasks.len();
    listen.id.len() + 2 * server + listen.honoured.bytes() + entries * limits::SUBSCRIPTION_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budget::Budget, mcp::listen_filter::Kinds};

    const ONE: fn() -> Principal = || Principal::token(1);
    const TWO: fn() -> Principal = || Principal::token(2);

    struct World {
        budget: Budget,
        listens: Listens<&'static str>,
    }

    impl World {
        fn new(max: usize, max_per_principal: usize, bytes: usize) -> Self {
            let limits = StatelessLimits {
                listens: max_per_principal,
                listens_all: max,
                ..StatelessLimits::default()
            };
            Self { budget: Budget::new(bytes), listens: Listens::new(&limits) }
        }

        fn open(
            &mut self,
            principal: Principal,
            server: Option<&str>,
            kinds: &[ListKind],
            tasks: &[&str],
            stream: &'static str,
        ) -> Result<ListenKey, ListenRefused> {
            let tasks = tasks.iter().map(ToString::to_string).collect();
            let kinds: Kinds = kinds.iter().copied().collect();
            self.listens.open(ClientListen {
                principal,
                id: "\"1\"".into(),
                server: server.map(Box::from),
                honoured: Filter { kinds, uris: ["a".into()].into(), tasks },
                is_acknowledged: true,
                since: Instant::now(),
                stream,
                charge: self.budget.account().charge(),
            })
        }

        fn of_kind(&self, server: Option<&str>, kind: ListKind) -> Vec<&'static str> {
            self.listens.of_kind(server, kind).map(|(_, listen)| listen.stream).collect()
        }
    }

    #[test]
    fn listens_are_found_by_endpoint_and_list() {
        let mut world = World::new(9, 9, usize::MAX);
        let both = [ListKind::Tool, ListKind::Resource];
        let one = world.open(ONE(), Some("s"), &both, &[], "1").unwrap();
        world.open(TWO(), Some("s"), &[ListKind::Tool], &[], "2").unwrap();
        world.open(ONE(), Some("t"), &both, &[], "3").unwrap();
        world.open(ONE(), None, &both, &[], "4").unwrap();
        for (server, kind, expected) in [
            (Some("s"), ListKind::Tool, vec!["1", "2"]),
            (Some("s"), ListKind::Template, vec!["1"]),
            (Some("s"), ListKind::Prompt, vec![]),
            (Some("t"), ListKind::Tool, vec!["3"]),
            (Some("u"), ListKind::Tool, vec![]),
            (None, ListKind::Resource, vec!["4"]),
        ] {
            assert_eq!(world.of_kind(server, kind), expected, "{server:?} {kind:?}");
        }
        assert_eq!(world.listens.get(one).map(|listen| &*listen.id), Some("\"1\""));
        assert_eq!(world.listens.close(one).map(|listen| listen.stream), Some("1"));
        assert!(world.listens.close(one).is_none() && world.listens.get(one).is_none());
        assert_eq!(world.of_kind(Some("s"), ListKind::Tool), ["2"]);
        assert_ne!(world.open(ONE(), None, &both, &[], "5"), Ok(one), "a key is never used again");
    }

    #[test]
    fn tasks_are_reported_to_their_principal_only() {
        let mut world = World::new(9, 9, usize::MAX);
        world.open(ONE(), Some("s"), &[], &["x", "y"], "1").unwrap();
        world.open(TWO(), Some("s"), &[], &["x"], "2").unwrap();
        for (server, principal, task, expected) in [
            (Some("s"), ONE(), "x", vec!["1"]),
            (Some("s"), TWO(), "x", vec!["2"]),
            (Some("s"), TWO(), "y", vec![]),
            (None, ONE(), "x", vec![]),
        ] {
            let found = world.listens.of_task(server, principal, task);
            assert_eq!(found.map(|(_, listen)| listen.stream).collect::<Vec<_>>(), expected, "{task}");
        }
    }

    #[test]
    fn listens_are_bounded_by_principal_in_all_and_by_memory() {
        let mut world = World::new(3, 2, usize::MAX);
        let first = world.open(ONE(), None, &[], &[], "1").unwrap();
        world.open(ONE(), None, &[], &[], "2").unwrap();
        assert_eq!(world.open(ONE(), None, &[], &[], "3"), Err(ListenRefused::Principal));
        world.open(TWO(), None, &[], &[], "4").unwrap();
        assert_eq!(world.open(TWO(), None, &[], &[], "5"), Err(ListenRefused::All));
        world.listens.close(first);
        assert!(world.open(ONE(), None, &[], &[], "6").is_ok());

        let mut world = World::new(3, 2, 4 * limits::SUBSCRIPTION_BYTES);
        let key = world.open(ONE(), None, &[], &[], "1").unwrap();
        assert!(world.budget.used() > 2 * limits::SUBSCRIPTION_BYTES);
        assert_eq!(world.open(ONE(), None, &[], &[], "2"), Err(ListenRefused::NoMemory));
        assert_eq!(world.listens.len(), 1);
        drop(world.listens.close(key));
        assert_eq!(world.budget.used(), 0);
        assert!(world.open(ONE(), None, &[], &[], "3").is_ok());
    }

    #[test]
    fn listens_end_with_their_token_and_with_the_gateway() {
        let mut world = World::new(9, 9, usize::MAX);
        for (principal, server, stream) in
            [(ONE(), None, "1"), (TWO(), Some("s"), "2"), (ONE(), Some("s"), "3"), (TWO(), None, "4")]
        {
            world.open(principal, server, &[ListKind::Tool], &[], stream).unwrap();
        }
        let gone = world.listens.expel(|listen| listen.principal == TWO());
        assert_eq!(gone.iter().map(|(_, listen)| listen.stream).collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(world.of_kind(Some("s"), ListKind::Tool), ["2"]);
        drop(gone);
        let rest = world.listens.close_all();
        assert_eq!(rest.iter().map(|(_, listen)| listen.stream).collect::<Vec<_>>(), ["2", "4"]);
        drop(rest);
        assert_eq!((world.listens.is_empty(), world.budget.used()), (true, 0));
        assert!(world.listens.by_server.is_empty() && world.listens.by_principal.is_empty());
    }
}
