//! Client sessions, each bound to the principal that opened it, and the state of each session.
//!
//! Plain tables without I/O. `H` is the program's handle of a client, `U` its handle of a server.

mod calls;
mod changes;
mod leases;
mod listens;
mod parked;
mod replay;
mod request_state;
mod rounds;
mod server_requests;
mod shares;
mod subscriptions;
mod task_owners;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::{
    calls::{CallId, CallRefused, Calls},
    changes::Changes,
    leases::{LeaseKey, Leases, Taken, Ticket},
    listens::{ClientListen, ListenKey, ListenRefused, Listens},
    parked::{
        AbandonedCall, FinishedCall, InputRound, LeasedCall, LeasedResponse, OpenRequest, ParkedCalls,
        Question, QuestionRefused, Retried,
    },
    replay::{Replay, event_id, read_event_id},
    request_state::{CallDigest, Claims, InstanceRun, Retry, StateError, StateKind},
    rounds::{
        CompletedRound, EndedRound, RoundError, RoundInput, RoundKey, RoundQuestion, RoundRetry, RoundStep,
        Rounds,
    },
    server_requests::{PendingServerRequests, TooMany},
    shares::{Shares, share_of},
    subscriptions::{Subscriber, Subscriptions},
    task_owners::{Run, TaskOwner, TaskOwners},
};

use crate::{
    auth::Principal,
    limits::{self, SessionLimits},
    mcp::log_level::Level,
};

/// The reason why no session is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// The limit on all sessions is reached.
    All,
    /// The limit on the sessions of one principal is reached.
    Token,
}

#[derive(Debug)]
struct SessionEntry<H> {
    principal: Principal,
    handle: H,
    /// The server whose endpoint the session uses; `None`: it sees all servers.
    server: Option<Arc<str>>,
    /// The minimum level of the log messages that the session wants; `None`: it did not set one.
    level: Option<Level>,
    /// Time of the last use.
    used: Instant,
    /// Its position among the sessions of its principal.
    turn: EvictionOrder,
}

/// A position in the order in which sessions are examined for eviction. Its time is never later
/// than the last use of the session, unless the session was found busy.
type EvictionOrder = (Instant, u64);

/// The sessions that use one endpoint: all of them, and those with a log level by that level.
#[derive(Debug, Default)]
struct Group {
    members: BTreeSet<Arc<str>>,
    levels: BTreeMap<Level, BTreeSet<Arc<str>>>,
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions<H> {
    open: HashMap<Arc<str>, SessionEntry<H>>,
    by_principal: HashMap<Principal, BTreeMap<EvictionOrder, Arc<str>>>,
    by_server: HashMap<Option<Arc<str>>, Group>,
    /// Counts sessions that were opened or moved in the order, which makes an [`EvictionOrder`]
    /// unique.
    turns: u64,
    max: usize,
    /// Maximum number of sessions of one principal, if several principals share the table.
    max_per_principal: Option<usize>,
    per_principal: usize,
    idle: Duration,
    evictable_after: Duration,
}

impl<H: Clone> Sessions<H> {
    /// Creates an empty table.
    pub fn new(limits: &SessionLimits) -> Self {
        let SessionLimits { sessions: max, per_principal, idle, evictable_after, .. } = *limits;
        let (open, by_principal, by_server) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self {
            open,
            by_principal,
            by_server,
            turns: 0,
            max,
            max_per_principal: None,
            per_principal,
            idle,
            evictable_after,
        }
    }

    /// Sets whether several principals share the table. If so, none of them may use all of it.
    pub fn share(&mut self, several: bool) {
        self.max_per_principal = several.then_some(self.per_principal);
    }

    /// Opens a session that sees all servers. `id` must be unguessable.
    ///
    /// # Errors
    /// [`Full`], with the limit that is reached.
    pub fn open(&mut self, now: Instant, id: String, principal: Principal, handle: H) -> Result<(), Full> {
        self.open_at(now, id, principal, None, handle)
    }

    /// Opens a session at the endpoint of a server; `None`: a session that sees all servers.
    ///
    /// # Errors
    /// [`Full`], with the limit that is reached.
    pub fn open_at(
        &mut self,
        now: Instant,
        id: String,
        principal: Principal,
        server: Option<&str>,
        handle: H,
    ) -> Result<(), Full> {
        if self.open.len() >= self.max {
            return Err(Full::All);
        }
        let count = self.by_principal.get(&principal).map_or(0, BTreeMap::len);
        if self.max_per_principal.is_some_and(|max| count >= max) {
            return Err(Full::Token);
        }
        let id: Arc<str> = id.into();
        self.close(&id);
        self.turns += 1;
        let (turn, server) = ((now, self.turns), server.map(Arc::from));
        self.by_principal.entry(principal).or_default().insert(turn, id.clone());
        self.by_server.entry(server.clone()).or_default().members.insert(id.clone());
        self.open.insert(id, SessionEntry { principal, handle, server, level: None, used: now, turn });
        Ok(())
    }

    /// Closes one session of a principal to make room for another, and returns its handle: the
    /// longest unused one that was not used for [`SessionLimits::evictable_after`] and is not
    /// `busy`. Many clients go away without ending their sessions. At most
    /// [`limits::EVICTION_SCAN`] sessions are examined; those found in use or busy are examined
    /// last the next time.
    pub fn make_room(&mut self, now: Instant, principal: Principal, busy: impl Fn(&H) -> bool) -> Option<H> {
        let candidates = self.by_principal.get(&principal)?.iter().take(limits::EVICTION_SCAN);
        let candidates: Vec<(EvictionOrder, Arc<str>)> =
            candidates.map(|(turn, id)| (*turn, id.clone())).collect();
        let mut unused: Option<(Instant, Arc<str>)> = None;
        for (turn, id) in candidates {
            let Some(entry) = self.open.get(&id) else { continue };
            let used = entry.used;
            if now.saturating_duration_since(used) < self.evictable_after {
                self.move_back(principal, turn, used.max(turn.0));
            } else if busy(&entry.handle) {
                self.move_back(principal, turn, now);
            } else if unused.as_ref().is_none_or(|(longest, _)| used < *longest) {
                unused = Some((used, id));
            }
        }
        self.close(&unused?.1)
    }

    fn move_back(&mut self, principal: Principal, turn: EvictionOrder, time: Instant) {
        if time == turn.0 {
            return;
        }
        let Some(order) = self.by_principal.get_mut(&principal) else { return };
        let Some(id) = order.remove(&turn) else { return };
        self.turns += 1;
        let turn = (time, self.turns);
        if let Some(entry) = self.open.get_mut(&id) {
            entry.turn = turn;
        }
        order.insert(turn, id);
    }

    /// Returns a session to the principal that opened it, and counts as a use. For any other
    /// principal it does not exist.
    pub fn find(&mut self, now: Instant, id: &str, principal: Principal) -> Option<H> {
        let entry = self.open.get_mut(id).filter(|entry| entry.principal == principal)?;
        entry.used = now;
        Some(entry.handle.clone())
    }

    /// Returns a session. Does not count as a use.
    pub fn peek(&self, id: &str) -> Option<&H> {
        self.open.get(id).map(|entry| &entry.handle)
    }

    /// Returns the principal that opened a session. Does not count as a use.
    pub fn owner(&self, id: &str) -> Option<Principal> {
        self.open.get(id).map(|entry| entry.principal)
    }

    /// Closes the sessions of principals that may no longer have any. Returns their handles.
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) -> Vec<H> {
        let out = self.by_principal.iter().filter(|(principal, _)| !may_stay(**principal));
        let mut out: Vec<Arc<str>> = out.flat_map(|(_, sessions)| sessions.values().cloned()).collect();
        // In the order of their ids, not in that of a hash table.
        out.sort_unstable();
        out.iter().filter_map(|id| self.close(id)).collect()
    }

    /// Closes a session. Returns its handle.
    pub fn close(&mut self, id: &str) -> Option<H> {
        self.set_level(id, None);
        let SessionEntry { principal, handle, server, turn, .. } = self.open.remove(id)?;
        if let Some(order) = self.by_principal.get_mut(&principal) {
            order.remove(&turn);
            if order.is_empty() {
                self.by_principal.remove(&principal);
            }
        }
        if let Some(group) = self.by_server.get_mut(&server) {
            group.members.remove(id);
            if group.members.is_empty() {
                self.by_server.remove(&server);
            }
        }
        Some(handle)
    }

    /// Closes the sessions that were not used for [`SessionLimits::idle`] and are not `busy`.
    /// Returns their handles.
    pub fn expire(&mut self, now: Instant, busy: impl Fn(&H) -> bool) -> Vec<H> {
        let idle = self.idle;
        let over = |entry: &SessionEntry<H>| now.duration_since(entry.used) >= idle && !busy(&entry.handle);
        let out = self.open.iter().filter(|(_, entry)| over(entry)).map(|(id, _)| id.clone());
        let mut out: Vec<Arc<str>> = out.collect();
        out.sort_unstable();
        out.iter().filter_map(|id| self.close(id)).collect()
    }

    /// Sets the minimum level of the log messages that a session wants; `None`: it wants none.
    pub fn set_level(&mut self, id: &str, level: Option<Level>) {
        let Some((id, _)) = self.open.get_key_value(id) else { return };
        let id = id.clone();
        let Some(entry) = self.open.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.level, level);
        let Some(group) = self.by_server.get_mut(&entry.server) else { return };
        if let Some(before) = before
            && let Some(members) = group.levels.get_mut(&before)
        {
            members.remove(&id);
            if members.is_empty() {
                group.levels.remove(&before);
            }
        }
        if let Some(level) = level {
            group.levels.entry(level).or_default().insert(id);
        }
    }

    /// Returns the lowest level that any session that sees a server wants.
    pub fn lowest_level(&self, server: &str) -> Option<Level> {
        self.groups(server).filter_map(|group| group.levels.keys().next().copied()).min()
    }

    /// Returns the sessions that see a server and want log messages of this level.
    pub fn with_level(&self, server: &str, level: Level) -> impl Iterator<Item = &H> {
        let wanted = self.groups(server).flat_map(move |group| group.levels.range(..=level));
        wanted.flat_map(|(_, members)| members).filter_map(|id| self.peek(id))
    }

    /// Returns the sessions at the endpoint of a server; `None`: those that see all servers.
    pub fn at(&self, server: Option<&str>) -> impl Iterator<Item = &H> {
        let group = self.by_server.get(&server.map(Arc::from));
        group.into_iter().flat_map(|group| &group.members).filter_map(|id| self.peek(id))
    }

    /// Returns the groups that see a server: that of all servers, and that of its own endpoint.
    fn groups(&self, server: &str) -> impl Iterator<Item = &Group> {
        [None, Some(Arc::from(server))].into_iter().filter_map(|key| self.by_server.get(&key))
    }

    /// Returns all handles, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &H> {
        self.open.values().map(|entry| &entry.handle)
    }

    /// Returns the number of open sessions.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Formats a session id: 128 random bits as 22 characters that are safe in a URL.
pub fn id(random: [u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from_be_bytes(random);
    (0..22).map(|place| char::from(ALPHABET[(bits >> (6 * place)) as usize & 63])).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_session_is_found_by_its_owner_only() {
        let now = Instant::now();
        let mut sessions = Sessions::new(&SessionLimits { sessions: 1, ..SessionLimits::default() });
        let (us, them) = (Principal::token(0), Principal::token(1));
        sessions.open(now, "a".into(), us, 1).unwrap();
        assert_eq!(sessions.open(now, "b".into(), us, 2), Err(Full::All));
        assert_eq!(sessions.find(now, "a", us), Some(1));
        assert_eq!((sessions.find(now, "a", them), sessions.find(now, "b", us)), (None, None));
        assert_eq!((sessions.close("a"), sessions.close("a"), sessions.is_empty()), (Some(1), None, true));
    }

    #[test]
    fn the_longest_unused_session_is_evicted() {
        let (now, us, them) = (Instant::now(), Principal::token(0), Principal::token(1));
        let limits = SessionLimits::default();
        let mut sessions = Sessions::new(&limits);
        for (id, principal, handle, age) in
            [("a", us, 1, 0), ("b", us, 2, 1), ("c", them, 3, 0), ("d", us, 4, 2)]
        {
            sessions.open(now + Duration::from_secs(age), id.into(), principal, handle).unwrap();
        }
        assert_eq!(sessions.make_room(now, us, |_| false), None);
        let later = now + limits.evictable_after + Duration::from_secs(1);
        assert_eq!(sessions.make_room(later, us, |handle| *handle == 1), Some(2), "the other is busy");
        assert_eq!(sessions.make_room(later, us, |_| false), Some(1));
        assert_eq!(sessions.make_room(later, us, |_| false), None, "too young, or not ours");
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn eviction_examines_few_sessions() {
        let (start, us) = (Instant::now(), Principal::token(0));
        let limits = SessionLimits { sessions: 10_000, ..SessionLimits::default() };
        let mut sessions = Sessions::new(&limits);
        for number in 0..10_000 {
            sessions.open(start, number.to_string(), us, number).unwrap();
        }
        let looks = std::cell::Cell::new(0);
        let busy = |handle: &i32| {
            looks.set(looks.get() + 1);
            *handle < 9_999
        };
        let later = start + limits.evictable_after;
        let found = (0..).find_map(|round| sessions.make_room(later, us, busy).map(|handle| (round, handle)));
        assert_eq!(found, Some((9_999 / limits::EVICTION_SCAN, 9_999)), "the unused one is found, in turns");
        assert!(looks.get() <= 10_000 + limits::EVICTION_SCAN, "and each was looked at about once");
        // A session that was used after it was opened is not the longest unused.
        let mut sessions = Sessions::new(&limits);
        for handle in [0, 1] {
            sessions.open(start, handle.to_string(), us, handle).unwrap();
        }
        sessions.find(later, "0", us);
        assert_eq!(sessions.make_room(later + limits.evictable_after, us, |_| false), Some(1));
    }

    #[test]
    fn sessions_are_found_by_server_and_by_level() {
        let (now, us) = (Instant::now(), Principal::token(0));
        let mut sessions = Sessions::new(&SessionLimits::default());
        let level = |name: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"level":"{name}"}}}}"#);
            Level::of(&crate::jsonrpc::Message::read(&text).unwrap()).unwrap()
        };
        for (id, server) in [("all", None), ("s", Some("s")), ("t", Some("t")), ("s2", Some("s"))] {
            sessions.open_at(now, id.into(), us, server, id).unwrap();
        }
        let sorted = |handles: Vec<&&'static str>| {
            let mut handles: Vec<&str> = handles.into_iter().copied().collect();
            handles.sort_unstable();
            handles.join(" ")
        };
        assert_eq!(sorted(sessions.at(Some("s")).collect()), "s s2");
        assert_eq!((sorted(sessions.at(None).collect()), sessions.at(Some("u")).count()), ("all".into(), 0));
        assert_eq!(sessions.lowest_level("s"), None);
        for (id, name) in
            [("s", "error"), ("t", "debug"), ("all", "info"), ("all", "warning"), ("gone", "debug")]
        {
            sessions.set_level(id, Some(level(name)));
        }
        let lowest = |sessions: &Sessions<_>, server: &str| sessions.lowest_level(server).map(Level::name);
        assert_eq!((lowest(&sessions, "s"), lowest(&sessions, "t")), (Some("warning"), Some("debug")));
        assert_eq!(lowest(&sessions, "u"), Some("warning"));
        assert_eq!(sorted(sessions.with_level("s", level("warning")).collect()), "all");
        assert_eq!(sorted(sessions.with_level("s", level("error")).collect()), "all s");
        assert_eq!(sessions.with_level("s", level("info")).count(), 0);
        for id in ["all", "s", "t", "s2"] {
            sessions.close(id);
        }
        assert!(sessions.by_server.is_empty() && sessions.by_principal.is_empty());
    }

    #[test]
    fn no_principal_takes_the_sessions_of_another() {
        let limits = SessionLimits::default();
        let now = Instant::now();
        for (several, limit) in [(false, limits.sessions), (true, limits.per_principal)] {
            let mut sessions = Sessions::new(&limits);
            sessions.share(several);
            let greedy = Principal::token(0);
            let opened = (0..1000).filter(|n| sessions.open(now, n.to_string(), greedy, ()).is_ok()).count();
            assert_eq!(opened, limit);
            let modest = sessions.open(now, "m".into(), Principal::token(1), ());
            assert_eq!(modest.is_ok(), several);
            sessions.close("0");
            assert_eq!(sessions.open(now, "again".into(), greedy, ()), Ok(()));
        }
    }

    #[test]
    fn sessions_of_revoked_principals_are_closed() {
        let now = Instant::now();
        let mut sessions = Sessions::new(&SessionLimits::default());
        let (stays, goes) = (Principal::token(0), Principal::token(1));
        for (id, principal, handle) in [("a", stays, 1), ("b", goes, 2), ("c", goes, 3)] {
            sessions.open(now, id.into(), principal, handle).unwrap();
        }
        assert_eq!((sessions.owner("b"), sessions.owner("x")), (Some(goes), None));
        let mut gone = sessions.expel(|principal| principal == stays);
        gone.sort_unstable();
        assert_eq!((gone, sessions.len(), sessions.owner("b")), (vec![2, 3], 1, None));
    }

    #[test]
    fn idle_sessions_expire_unless_they_are_busy() {
        let limits = SessionLimits::default();
        let (now, us) = (Instant::now(), Principal::ANONYMOUS);
        let mut sessions = Sessions::new(&limits);
        for (id, handle) in [("idle", 1), ("used", 2), ("busy", 3)] {
            sessions.open(now, id.into(), us, handle).unwrap();
        }
        let later = now + limits.idle;
        assert!(sessions.expire(later - Duration::from_secs(1), |_| false).is_empty());
        sessions.find(later, "used", us);
        assert_eq!(sessions.expire(later, |handle| *handle == 3), [1]);
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn ids_are_short_plain_and_different() {
        let mut seen = HashSet::new();
        for number in 0..10_000u128 {
            let id = id((number << 64 | number).to_be_bytes());
            assert_eq!(id.len(), 22);
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            assert!(seen.insert(id));
        }
    }
}
