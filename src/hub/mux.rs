//! Multiplexes the requests of many callers to one server process: gives each an id of its own, and
//! matches responses and progress to their callers.
//!
//! Clients choose ids and progress tokens freely, and all of them count from 0 or 1, so nothing is
//! keyed by what a client chose. The mux assigns ids from 1 (never 0: some servers ignore a
//! cancellation of id 0) and never reuses one. The same number replaces the client's progress
//! token.
//!
//! Pure: the caller is any type `C`, and time is an argument. `hub::instance` uses it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{jsonrpc::is_same, limits::CALL_LONGEST};

/// A request that waits for its response.
#[derive(Debug)]
pub struct Pending<C> {
    /// The caller to respond to.
    pub caller: C,
    /// The requested method.
    pub method: Box<str>,
    /// Timeout for the response, restarted by progress.
    pub timeout: Duration,
    deadline: Instant,
    /// Progress does not extend the deadline beyond this.
    latest: Instant,
    /// The caller's own progress token, raw JSON.
    token: Option<Box<str>>,
    /// See [`Mux::suspend`].
    suspended: bool,
}

impl<C> Pending<C> {
    /// Returns the caller's own progress token, raw JSON.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether the request is suspended; see [`Mux::suspend`].
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }
}

/// Why a request is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MuxRefused {
    /// The process has its maximum number of pending calls.
    Busy,
    /// The link is gone.
    Gone,
}

/// The table of pending requests of one server process.
#[derive(Debug)]
pub struct Mux<C> {
    last: u64,
    pending: BTreeMap<u64, Pending<C>>,
    /// Requests that last until they are cancelled, by [`Mux::open_lasting`].
    lasting: BTreeMap<u64, Pending<C>>,
    max: usize,
    /// No pending request times out before this. May be too early; `tick` corrects it.
    due: Option<Instant>,
    gone: bool,
}

impl<C> Mux<C> {
    /// Creates an empty table for at most `max` calls at a time.
    pub fn new(max: usize) -> Self {
        let (pending, lasting) = (BTreeMap::new(), BTreeMap::new());
        Self { last: 0, pending, lasting, max, due: None, gone: false }
    }

    /// Adds a request, and returns its new id.
    ///
    /// # Errors
    /// [`MuxRefused`]: the table is full, or was drained.
    pub fn open(
        &mut self,
        now: Instant,
        caller: C,
        method: &str,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<u64, MuxRefused> {
        if self.pending.len() >= self.max && !self.gone {
            return Err(MuxRefused::Busy);
        }
        let (deadline, latest) = (now + timeout, now + timeout.max(CALL_LONGEST));
        let (method, token, suspended) = (method.into(), token.map(Into::into), false);
        self.insert(Pending { caller, method, timeout, deadline, latest, token, suspended })
    }

    /// Adds a request of the gateway's own. These are few at a time, and the limit on callers'
    /// requests does not apply to them.
    ///
    /// # Errors
    /// [`MuxRefused::Gone`]: the table was drained.
    pub fn open_own(
        &mut self,
        now: Instant,
        caller: C,
        method: &str,
        timeout: Duration,
    ) -> Result<u64, MuxRefused> {
        let deadline = now + timeout;
        let (method, latest, token, suspended) = (method.into(), deadline, None, false);
        self.insert(Pending { caller, method, timeout, deadline, latest, token, suspended })
    }

    /// Adds a request of the gateway's own that lasts until it is cancelled, such as
    /// `subscriptions/listen`. It has no timeout. Only [`Mux::get`], [`Mux::get_mut`],
    /// [`Mux::close`], [`Mux::close_lasting`] and [`Mux::drain`] find it: nothing waits for it to end, and a response without an id is never matched with it.
    ///
    /// # Errors
    /// [`MuxRefused::Gone`]: the table was drained.
    pub fn open_lasting(&mut self, now: Instant, caller: C, method: &str) -> Result<u64, MuxRefused> {
        if self.gone {
            return Err(MuxRefused::Gone);
        }
        self.last += 1;
        let (timeout, method) = (Duration::ZERO, method.into());
        let request =
            Pending { caller, method, timeout, deadline: now, latest: now, token: None, suspended: false };
        self.lasting.insert(self.last, request);
        Ok(self.last)
    }

    fn insert(&mut self, pending: Pending<C>) -> Result<u64, MuxRefused> {
        if self.gone {
            return Err(MuxRefused::Gone);
        }
        self.last += 1;
        self.is_due(pending.deadline);
        self.pending.insert(self.last, pending);
        Ok(self.last)
    }

    fn is_due(&mut self, deadline: Instant) {
        self.due = Some(self.due.map_or(deadline, |due| due.min(deadline)));
    }

    /// Returns a pending request.
    pub fn get(&self, id: u64) -> Option<&Pending<C>> {
        self.pending.get(&id).or_else(|| self.lasting.get(&id))
    }

    /// Returns a pending request.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Pending<C>> {
        self.pending.get_mut(&id).or_else(|| self.lasting.get_mut(&id))
    }

    /// Suspends a request whose server waits for input from the client: the client answers in
    /// another request, which takes over this one by [`Mux::rejoin`]. Until then its progress has
    /// no caller and does not extend its deadline, `until`. Returns false if it is not pending.
    pub fn suspend(&mut self, id: u64, until: Instant) -> bool {
        let Some(pending) = self.pending.get_mut(&id) else { return false };
        (pending.suspended, pending.token) = (true, None);
        (pending.deadline, pending.latest) = (until, until);
        self.is_due(until);
        true
    }

    /// Gives a suspended request to another caller, with that caller's progress token (raw JSON),
    /// and restarts its timeout. Returns the previous caller.
    ///
    /// # Errors
    /// The caller itself: the request is not suspended.
    pub fn rejoin(&mut self, id: u64, now: Instant, caller: C, token: Option<&str>) -> Result<C, C> {
        let Some(pending) = self.pending.get_mut(&id).filter(|pending| pending.suspended) else {
            return Err(caller);
        };
        (pending.suspended, pending.token) = (false, token.map(Into::into));
        pending.deadline = now + pending.timeout;
        pending.latest = now + pending.timeout.max(CALL_LONGEST);
        let (previous, deadline) = (std::mem::replace(&mut pending.caller, caller), pending.deadline);
        self.is_due(deadline);
        Ok(previous)
    }

    /// Returns all pending requests with their ids.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Pending<C>)> {
        self.pending.iter().map(|(id, pending)| (*id, pending))
    }

    /// Returns the result of `wanted` for the newest pending request for which it is not `None`.
    pub fn newest<T>(&self, wanted: impl Fn(&Pending<C>) -> Option<T>) -> Option<T> {
        self.pending.values().rev().find_map(wanted)
    }

    /// Returns the id of a pending request of such a caller.
    pub fn find(&self, wanted: impl Fn(&C) -> bool) -> Option<u64> {
        self.pending.iter().find(|(_, pending)| wanted(&pending.caller)).map(|(id, _)| *id)
    }

    /// Returns the number of pending requests for which `wanted` is true.
    pub fn count(&self, wanted: impl Fn(&Pending<C>) -> bool) -> usize {
        self.pending.values().filter(|pending| wanted(pending)).count()
    }

    /// Returns the newest pending request with this progress token of the caller (raw JSON), and
    /// its id. An exact match is preferred; otherwise the same number in another notation matches,
    /// since servers may rewrite numbers.
    pub fn of_token(&self, token: &str) -> Option<(u64, &Pending<C>)> {
        let find = |is_it: &dyn Fn(&str) -> bool| {
            self.pending.iter().rev().find(|(_, pending)| pending.token().is_some_and(is_it))
        };
        let found = find(&|other| other == token).or_else(|| find(&|other| is_same(other, token)));
        found.map(|(id, pending)| (*id, pending))
    }

    /// Restarts a request's timeout after progress, up to [`CALL_LONGEST`] after it began, or its
    /// timeout if that is longer.
    /// Call it for each progress notification of the request, with or without a token of its caller.
    pub fn progressed(&mut self, now: Instant, id: u64) {
        let Some(pending) = self.pending.get_mut(&id).filter(|pending| !pending.suspended) else { return };
        // `due` need not change: it may be too early.
        pending.deadline = pending.deadline.max(now + pending.timeout).min(pending.latest);
        if pending.deadline == pending.latest {
            // The error at that deadline reports the total time.
            pending.timeout = pending.timeout.max(CALL_LONGEST);
        }
    }

    /// Returns the id of the only pending request, or `None` if there is none or more than one.
    pub fn only(&self) -> Option<u64> {
        self.pending.keys().next().copied().filter(|_| self.pending.len() == 1)
    }

    /// Removes a request: it is answered or cancelled, or its caller is gone. A later response
    /// matches no request.
    pub fn close(&mut self, id: u64) -> Option<Pending<C>> {
        self.pending.remove(&id).or_else(|| self.lasting.remove(&id))
    }

    /// Removes all requests that last until they are cancelled.
    pub fn close_lasting(&mut self) {
        self.lasting.clear();
    }

    /// Removes all requests that timed out, in the order in which they began.
    pub fn tick(&mut self, now: Instant, expired: &mut Vec<(u64, Pending<C>)>) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        let over = self.pending.iter().filter(|(_, pending)| pending.deadline <= now);
        let over: Vec<u64> = over.map(|(id, _)| *id).collect();
        expired.extend(over.into_iter().filter_map(|id| self.pending.remove_entry(&id)));
        self.due = self.pending.values().map(|pending| pending.deadline).min();
    }

    /// Returns when to call [`Mux::tick`] next: no later than the first deadline, possibly earlier.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Removes all requests, since the link is gone, in the order in which they began. Accepts no
    /// more, as nothing would end them.
    pub fn drain(&mut self) -> Vec<Pending<C>> {
        self.gone = true;
        self.due = None;
        let pending = std::mem::take(&mut self.pending).into_values();
        pending.chain(std::mem::take(&mut self.lasting).into_values()).collect()
    }

    /// Returns the number of pending requests, without those that last until they are cancelled.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether no request is pending, apart from those that last until they are cancelled.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::{Kind, Message, decimal};

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn sort(mux: &mut Mux<&'static str>, text: &str) -> String {
        let message = Message::read(text).unwrap();
        match message.kind() {
            Kind::Response => {
                let closed = message.id().and_then(decimal).and_then(|id| mux.close(id));
                closed.map_or("stray".into(), |pending| format!("answer to {}", pending.caller))
            }
            _ => {
                let token = message.param(&["progressToken"]).unwrap().map(|span| &text[span]).unwrap();
                let id =
                    decimal(token).filter(|id| mux.get(*id).is_some_and(|known| known.token().is_some()));
                id.map_or("stray".into(), |id| format!("progress of {id} at {token}"))
            }
        }
    }

    #[test]
    fn answers_find_their_caller_once() {
        let mut mux = Mux::new(8);
        let now = Instant::now();
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Ok(1));
        assert_eq!(mux.open(now, "b", "m", Some("0"), TIMEOUT), Ok(2));
        let answer = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        for wrong in ["0", "3", "\"x\"", "2.5", "-2", "\"02\"", "18446744073709551617"] {
            assert_eq!(sort(&mut mux, &answer(wrong)), "stray", "{wrong}");
        }
        assert_eq!(sort(&mut mux, &answer("2")), "answer to b");
        assert_eq!(sort(&mut mux, &answer("2")), "stray");
        assert_eq!(
            sort(&mut mux, r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#),
            "answer to a"
        );
        assert!(mux.is_empty());
    }

    #[test]
    fn answers_and_progress_with_ids_in_another_form_find_their_caller() {
        let mut mux = Mux::new(8);
        for form in ["\"1\"", "1.0", "1e0", "10e-1", "\"1.0\""] {
            let id = mux.open(Instant::now(), "a", "m", Some("7"), TIMEOUT).unwrap();
            let form = form.replacen('1', &id.to_string(), 1);
            let form = if form.contains("e-") { format!("{id}0e-1") } else { form };
            let progress = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{form}}}}}"#
            );
            assert_eq!(sort(&mut mux, &progress), format!("progress of {id} at {form}"));
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{form},"result":{{}}}}"#);
            assert_eq!(sort(&mut mux, &answer), "answer to a", "{form}");
            assert_eq!(sort(&mut mux, &answer), "stray", "{form}");
        }
        mux.open(Instant::now(), "number", "m", Some("7"), TIMEOUT).unwrap();
        mux.open(Instant::now(), "text", "m", Some("\"7\""), TIMEOUT).unwrap();
        let of = |token: &str| mux.of_token(token).map(|(_, pending)| pending.caller);
        assert_eq!((of("7"), of("\"7\""), of("8")), (Some("number"), Some("text"), None));
        assert!(of("7.0").is_some());
    }

    #[test]
    fn progress_goes_to_its_requester() {
        let mut mux = Mux::new(8);
        let now = Instant::now();
        let with = mux.open(now, "a", "m", Some("\"t\""), TIMEOUT).unwrap();
        let without = mux.open(now, "b", "m", None, TIMEOUT).unwrap();
        let progress = |id: u64| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{id}}}}}"#
            )
        };
        assert_eq!(sort(&mut mux, &progress(with)), "progress of 1 at 1");
        assert_eq!(sort(&mut mux, &progress(without)), "stray");
        assert_eq!(mux.get(with).unwrap().token(), Some("\"t\""));
        assert_eq!(mux.newest(|pending| Some(pending.caller)), Some("b"));
        assert_eq!(mux.newest(|pending| pending.token().map(|_| pending.caller)), Some("a"));
        mux.close(with);
        assert_eq!(sort(&mut mux, &progress(with)), "stray");
    }

    #[test]
    fn a_full_table_refuses_and_ids_are_never_reused() {
        let mut mux = Mux::new(2);
        let now = Instant::now();
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Ok(1));
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Ok(2));
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Err(MuxRefused::Busy));
        assert_eq!(mux.open_own(now, "us", "m", TIMEOUT), Ok(3));
        mux.close(2);
        mux.close(3);
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Ok(4));
        assert_eq!(mux.drain().len(), 2);
        assert_eq!(mux.open_own(now, "us", "m", TIMEOUT), Err(MuxRefused::Gone));
        assert_eq!(mux.open(now, "a", "m", None, TIMEOUT), Err(MuxRefused::Gone));
        assert_eq!((mux.is_empty(), mux.deadline()), (true, None));
    }

    #[test]
    fn progress_extends_the_timeout_up_to_a_maximum() {
        let mut mux = Mux::new(8);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let id = mux.open(start, "works", "m", Some("1"), TIMEOUT).unwrap();
        mux.open(start, "hangs", "m", Some("2"), TIMEOUT).unwrap();
        let mut expired = Vec::new();
        mux.progressed(at(9), id);
        mux.progressed(at(9), 1000);
        mux.tick(at(18), &mut expired);
        assert_eq!(expired.drain(..).map(|(_, pending)| pending.caller).collect::<Vec<_>>(), ["hangs"]);
        assert_eq!(mux.deadline(), Some(at(19)));
        let longest = CALL_LONGEST.as_secs();
        for second in (10..longest).step_by(5) {
            mux.progressed(at(second), id);
            mux.tick(at(second + 4), &mut expired);
        }
        assert!(expired.is_empty());
        mux.progressed(at(longest - 1), id);
        assert_eq!(mux.deadline().map(|due| due <= at(longest)), Some(true));
        mux.tick(at(longest), &mut expired);
        assert_eq!(expired[0].1.timeout, CALL_LONGEST, "the error names the whole time");
    }

    #[test]
    fn a_timeout_longer_than_the_maximum_stays() {
        let mut mux = Mux::new(8);
        let (start, timeout) = (Instant::now(), CALL_LONGEST * 2);
        let id = mux.open(start, "a", "m", Some("1"), timeout).unwrap();
        mux.progressed(start + CALL_LONGEST, id);
        let mut expired = Vec::new();
        mux.tick(start + timeout - Duration::from_secs(1), &mut expired);
        assert!(expired.is_empty());
        mux.tick(start + timeout, &mut expired);
        assert_eq!(expired[0].1.timeout, timeout);
    }

    #[test]
    fn a_lasting_request_delays_and_answers_nothing_else() {
        let mut mux = Mux::new(1);
        let now = Instant::now();
        let lasting = mux.open_lasting(now, "listen", "subscriptions/listen").unwrap();
        assert_eq!((lasting, mux.len(), mux.is_empty(), mux.deadline()), (1, 0, true, None));
        assert_eq!((mux.only(), mux.newest(|_| Some(1)), mux.count(|_| true)), (None, None, 0));
        let call = mux.open(now, "a", "m", Some("0"), TIMEOUT).unwrap();
        assert_eq!((mux.len(), mux.only(), mux.newest(|_| Some(1))), (1, Some(call), Some(1)));
        assert_eq!(mux.of_token("0").map(|(id, _)| id), Some(call));
        let mut expired = Vec::new();
        mux.tick(now + CALL_LONGEST * 9, &mut expired);
        assert_eq!(expired.iter().map(|(_, pending)| pending.caller).collect::<Vec<_>>(), ["a"]);
        mux.progressed(now, lasting);
        let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}"#;
        assert_eq!(sort(&mut mux, progress), "stray");
        assert_eq!(mux.get(lasting).map(|pending| &*pending.method), Some("subscriptions/listen"));
        mux.get_mut(lasting).unwrap().caller = "listen again";
        assert!(!mux.suspend(lasting, now) && mux.rejoin(lasting, now, "b", None).is_err());
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        assert_eq!(
            (sort(&mut mux, answer), sort(&mut mux, answer)),
            ("answer to listen again".into(), "stray".into())
        );
        let next = mux.open_lasting(now, "listen", "m").unwrap();
        assert_eq!((next, mux.close(next).is_some(), mux.close(next).is_some()), (3, true, false));
        mux.open_lasting(now, "listen", "m").unwrap();
        mux.open(now, "a", "m", None, TIMEOUT).unwrap();
        assert_eq!(mux.drain().len(), 2);
        assert_eq!(mux.open_lasting(now, "listen", "m"), Err(MuxRefused::Gone));
    }

    #[test]
    fn a_suspended_request_waits_for_its_caller() {
        let mut mux = Mux::new(8);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let id = mux.open(start, "first", "m", Some("\"t\""), TIMEOUT).unwrap();
        assert_eq!(mux.rejoin(id, at(1), "early", None), Err("early"));
        assert!(mux.suspend(id, at(300)) && !mux.suspend(9, at(300)));
        assert!(mux.get(id).is_some_and(Pending::is_suspended));
        assert_eq!((mux.len(), mux.only()), (1, Some(id)));
        let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}"#;
        assert_eq!(sort(&mut mux, progress), "stray");
        mux.progressed(at(299), id);
        let mut expired = Vec::new();
        mux.tick(at(299), &mut expired);
        assert!(expired.is_empty());
        // The caller returns with another token, and the timeout restarts.
        assert_eq!(mux.rejoin(id, at(299), "second", Some("7")), Ok("first"));
        assert_eq!(mux.rejoin(id, at(299), "third", None), Err("third"));
        assert_eq!(sort(&mut mux, progress), "progress of 1 at 1");
        assert_eq!(mux.get(id).unwrap().token(), Some("7"));
        mux.progressed(at(305), id);
        mux.tick(at(314), &mut expired);
        assert_eq!((expired.len(), mux.deadline()), (0, Some(at(315))));
        assert!(mux.suspend(id, at(400)));
        assert_eq!(mux.rejoin(id, at(350), "third", None), Ok("second"));
        assert_eq!(sort(&mut mux, progress), "stray");
        assert_eq!(sort(&mut mux, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), "answer to third");
        assert_eq!(mux.rejoin(id, at(350), "late", None), Err("late"));
        // Nobody returned.
        let id = mux.open(at(400), "a", "m", None, TIMEOUT).unwrap();
        mux.suspend(id, at(700));
        mux.tick(at(699), &mut expired);
        assert!(expired.is_empty());
        mux.tick(at(700), &mut expired);
        assert_eq!((expired.len(), expired[0].1.caller, expired[0].1.timeout), (1, "a", TIMEOUT));
    }

    #[test]
    fn requests_expire_at_their_own_time() {
        let mut mux = Mux::new(8);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        mux.open(start, "slow", "m", None, Duration::from_secs(120)).unwrap();
        mux.open(at(1), "fast", "m", None, TIMEOUT).unwrap();
        let mut expired = Vec::new();
        assert_eq!(mux.deadline(), Some(at(11)));
        mux.tick(at(10), &mut expired);
        assert!(expired.is_empty());
        mux.tick(at(11), &mut expired);
        assert_eq!(expired.iter().map(|(id, p)| (*id, p.caller)).collect::<Vec<_>>(), [(2, "fast")]);
        assert_eq!(mux.deadline(), Some(at(120)));
        mux.close(1);
        mux.tick(at(120), &mut expired);
        assert_eq!((expired.len(), mux.deadline()), (1, None));
    }
}
