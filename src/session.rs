//! Client sessions, bound to who opened them, and the calls that each has under way.
//!
//! Pure tables; `H` is the program's handle of a client, `U` its handle of a server.

mod asks;
mod calls;
mod replay;
mod subscriptions;
mod tasks;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

pub use self::{
    asks::{Asks, TooMany},
    calls::{CallId, Calls, Refused},
    replay::{Replay, event_id, read_event_id},
    subscriptions::{Subscriber, Subscriptions},
    tasks::{Owner, Run, Tasks},
};

use crate::{auth::Principal, limits::SessionLimits};

/// Why no session is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// There are as many as there may be.
    All,
    /// One token has as many as it may have.
    Token,
}

#[derive(Debug)]
struct Entry<H> {
    principal: Principal,
    handle: H,
    /// When it was last asked for.
    used: Instant,
}

/// All open sessions.
#[derive(Debug)]
pub struct Sessions<H> {
    open: HashMap<String, Entry<H>>,
    most: usize,
    /// So many of one principal, when several share the table.
    most_each: Option<usize>,
    per_principal: usize,
    idle: Duration,
    spare: Duration,
}

impl<H: Clone> Sessions<H> {
    /// An empty table.
    pub fn new(limits: &SessionLimits) -> Self {
        let SessionLimits { sessions: most, per_principal, idle, spare, .. } = *limits;
        Self { open: HashMap::new(), most, most_each: None, per_principal, idle, spare }
    }

    /// Whether several principals share the table: then none of them gets all of it.
    pub fn share(&mut self, several: bool) {
        self.most_each = several.then_some(self.per_principal);
    }

    /// Opens a session under an id that nobody can guess.
    ///
    /// # Errors
    /// [`Full`], with the limit that is reached.
    pub fn open(&mut self, now: Instant, id: String, principal: Principal, handle: H) -> Result<(), Full> {
        if self.open.len() >= self.most {
            return Err(Full::All);
        }
        let own = || self.open.values().filter(|entry| entry.principal == principal).count();
        if self.most_each.is_some_and(|most| own() >= most) {
            return Err(Full::Token);
        }
        self.open.insert(id, Entry { principal, handle, used: now });
        Ok(())
    }

    /// Makes room for one more session of a principal where there is none: ends the one of the same principal that was not
    /// asked for in the longest time, if that is long enough and it is not `busy`. Clients that go without a word are many.
    pub fn make_room(&mut self, now: Instant, principal: Principal, busy: impl Fn(&H) -> bool) -> Option<H> {
        let spare = |entry: &Entry<H>| {
            entry.principal == principal
                && now.saturating_duration_since(entry.used) >= self.spare
                && !busy(&entry.handle)
        };
        let unused = self.open.iter().filter(|(_, entry)| spare(entry)).min_by_key(|(_, entry)| entry.used);
        let id = unused.map(|(id, _)| id.clone())?;
        self.close(&id)
    }

    /// A session, for the one who opened it. To anybody else it does not exist.
    pub fn find(&mut self, now: Instant, id: &str, principal: Principal) -> Option<H> {
        let entry = self.open.get_mut(id).filter(|entry| entry.principal == principal)?;
        entry.used = now;
        Some(entry.handle.clone())
    }

    /// Who opened a session. That does not count as a use of it.
    pub fn owner(&self, id: &str) -> Option<Principal> {
        self.open.get(id).map(|entry| entry.principal)
    }

    /// Ends the sessions of those who may have none any more.
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) -> Vec<H> {
        let out = self.open.extract_if(|_, entry| !may_stay(entry.principal));
        out.map(|(_, entry)| entry.handle).collect()
    }

    /// Ends a session.
    pub fn close(&mut self, id: &str) -> Option<H> {
        self.open.remove(id).map(|entry| entry.handle)
    }

    /// Ends the sessions that were not asked for in a long time and are not `busy`.
    pub fn expire(&mut self, now: Instant, busy: impl Fn(&H) -> bool) -> Vec<H> {
        let idle = self.idle;
        let over = |entry: &Entry<H>| now.duration_since(entry.used) >= idle && !busy(&entry.handle);
        self.open.extract_if(|_, entry| over(entry)).map(|(_, entry)| entry.handle).collect()
    }

    /// All handles.
    pub fn all(&self) -> impl Iterator<Item = &H> {
        self.open.values().map(|entry| &entry.handle)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// A session id: 128 random bits as 22 characters that may stand in a URL.
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
    fn a_session_exists_for_its_owner_only() {
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
    fn the_longest_unused_makes_room() {
        let (now, us, them) = (Instant::now(), Principal::token(0), Principal::token(1));
        let limits = SessionLimits::default();
        let mut sessions = Sessions::new(&limits);
        for (id, principal, handle, age) in
            [("a", us, 1, 0), ("b", us, 2, 1), ("c", them, 3, 0), ("d", us, 4, 2)]
        {
            sessions.open(now + Duration::from_secs(age), id.into(), principal, handle).unwrap();
        }
        assert_eq!(sessions.make_room(now, us, |_| false), None);
        let later = now + limits.spare + Duration::from_secs(1);
        assert_eq!(sessions.make_room(later, us, |handle| *handle == 1), Some(2), "the other is busy");
        assert_eq!(sessions.make_room(later, us, |_| false), Some(1));
        assert_eq!(sessions.make_room(later, us, |_| false), None, "too young, or not ours");
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn no_principal_takes_the_sessions_of_another() {
        let limits = SessionLimits::default();
        let now = Instant::now();
        for (several, own) in [(false, limits.sessions), (true, limits.per_principal)] {
            let mut sessions = Sessions::new(&limits);
            sessions.share(several);
            let greedy = Principal::token(0);
            let opened = (0..1000).filter(|n| sessions.open(now, n.to_string(), greedy, ()).is_ok()).count();
            assert_eq!(opened, own);
            let modest = sessions.open(now, "m".into(), Principal::token(1), ());
            assert_eq!(modest.is_ok(), several);
            sessions.close("0");
            assert_eq!(sessions.open(now, "again".into(), greedy, ()), Ok(()));
        }
    }

    #[test]
    fn sessions_end_with_the_right_to_them() {
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
