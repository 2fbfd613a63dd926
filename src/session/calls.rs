//! The calls that one session has in flight.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Deref,
    sync::Arc,
};

use crate::limits::SessionLimits;

/// The reason why a call is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallRefused {
    /// Too many calls are in flight.
    Busy,
    /// The session has ended.
    Ended,
    /// A call with this id is in flight on the same stream.
    Repeated,
}

/// The id of a call: as the client wrote it, and with a number that no other call of the session
/// has.
#[derive(Clone, Debug)]
pub struct CallId {
    raw: Arc<str>,
    number: u64,
    stream: usize,
}

impl CallId {
    /// Returns the number, which no other call of the session has.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Deref for CallId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.raw
    }
}

/// The calls that one session has in flight, by the client's ids as written. Several callers may
/// share a session, each with its own ids from 1 on, so an id must differ only from those of the
/// calls that are answered on the same stream.
#[derive(Debug)]
pub struct Calls<U> {
    open: BTreeMap<Arc<str>, OpenCall<U>>,
    /// Calls whose id another call in `open` has already.
    repeated: Vec<(Arc<str>, OpenCall<U>)>,
    last: u64,
    max: usize,
    ended: bool,
}

#[derive(Debug)]
struct OpenCall<U> {
    number: u64,
    stream: usize,
    upstream: U,
    upstream_id: u64,
}

impl<U> Calls<U> {
    /// Creates an empty table.
    pub fn new(limits: &SessionLimits) -> Self {
        let (open, repeated) = (BTreeMap::new(), Vec::new());
        Self { open, repeated, last: 0, max: limits.in_flight, ended: false }
    }

    /// Returns the number of a call that is about to begin. No other call of the session gets it.
    pub fn reserve(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Returns the id of a call that may begin. `stream` identifies the stream on which it is
    /// answered, and is the same for all calls that are answered there.
    ///
    /// # Errors
    /// [`CallRefused`], with the reason.
    pub fn may_begin(&mut self, id: &str, stream: usize) -> Result<CallId, CallRefused> {
        let number = self.reserve();
        self.may_begin_as(number, id, stream)
    }

    /// Returns the id of a call that may begin and whose number was reserved by [`Calls::reserve`].
    ///
    /// # Errors
    /// [`CallRefused`], with the reason.
    pub fn may_begin_as(&mut self, number: u64, id: &str, stream: usize) -> Result<CallId, CallRefused> {
        match () {
            () if self.ended => Err(CallRefused::Ended),
            () if self.len() >= self.max => Err(CallRefused::Busy),
            () if self.with_id(id).any(|open| open.stream == stream) => Err(CallRefused::Repeated),
            () => Ok(CallId { raw: id.into(), number, stream }),
        }
    }

    fn with_id(&self, id: &str) -> impl Iterator<Item = &OpenCall<U>> {
        let repeated = self.repeated.iter().filter(move |(raw, _)| **raw == *id);
        self.open.get(id).into_iter().chain(repeated.map(|(_, open)| open))
    }

    /// Records that a call began at `upstream`, under the id `upstream_id` of the mux.
    pub fn begin(&mut self, call: &CallId, upstream: U, upstream_id: u64) {
        let open = OpenCall { number: call.number, stream: call.stream, upstream, upstream_id };
        match self.open.entry(call.raw.clone()) {
            Entry::Vacant(slot) => {
                slot.insert(open);
            }
            Entry::Occupied(_) => self.repeated.push((call.raw.clone(), open)),
        }
    }

    /// Whether a call is in flight.
    pub fn is_open(&self, call: &CallId) -> bool {
        self.with_id(&call.raw).any(|open| open.number == call.number)
    }

    /// Records that a call is sent again: at `upstream`, under the id `upstream_id` of the mux. Does
    /// nothing if it is not in flight.
    pub fn rebind(&mut self, call: &CallId, upstream: U, upstream_id: u64) {
        let repeated = self.repeated.iter_mut().filter(|(raw, _)| *raw == call.raw).map(|(_, open)| open);
        let mut all = self.open.get_mut(&call.raw).into_iter().chain(repeated);
        if let Some(open) = all.find(|open| open.number == call.number) {
            (open.upstream, open.upstream_id) = (upstream, upstream_id);
        }
    }

    /// Removes a call that ended. Returns its server and mux id, or `None` if it is not in flight.
    pub fn end(&mut self, call: &CallId) -> Option<(U, u64)> {
        self.remove(&call.raw, call.number)
    }

    /// Removes a call that the client cancels. Returns its server and mux id, or `None` if no call
    /// has this id.
    ///
    /// If several calls have it, the one that began last is cancelled. One notification cancels one
    /// call only, since the others may belong to another caller. A client that repeats an id has
    /// usually given up the earlier call, and a client that means all of them can send one
    /// notification for each.
    pub fn cancel(&mut self, id: &str) -> Option<(U, u64)> {
        let last = self.with_id(id).map(|open| open.number).max()?;
        self.remove(id, last)
    }

    fn remove(&mut self, id: &str, number: u64) -> Option<(U, u64)> {
        let open = if self.open.get(id).is_some_and(|open| open.number == number) {
            self.open.remove(id)?
        } else {
            let position = self.repeated.iter().position(|(_, open)| open.number == number)?;
            self.repeated.swap_remove(position).1
        };
        Some((open.upstream, open.upstream_id))
    }

    /// Ends the session: no further call may begin. Returns the calls in flight, in the order in which
    /// they began, for the caller to cancel.
    pub fn end_all(&mut self) -> Vec<(U, u64)> {
        self.ended = true;
        let open = std::mem::take(&mut self.open).into_values();
        let mut all: Vec<_> = open.chain(self.repeated.drain(..).map(|(_, open)| open)).collect();
        all.sort_unstable_by_key(|open| open.number);
        all.into_iter().map(|open| (open.upstream, open.upstream_id)).collect()
    }

    /// Returns the number of each call in flight, its server and its mux id, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = (u64, &U, u64)> {
        let open = self.open.values().chain(self.repeated.iter().map(|(_, open)| open));
        open.map(|open| (open.number, &open.upstream, open.upstream_id))
    }

    /// Whether the session has ended.
    pub fn have_ended(&self) -> bool {
        self.ended
    }

    /// Returns the number of calls in flight.
    pub fn len(&self) -> usize {
        self.open.len() + self.repeated.len()
    }

    /// Whether no call is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_bounded_and_not_repeated_on_one_stream() {
        let mut calls = Calls::new(&SessionLimits { in_flight: 2, ..SessionLimits::default() });
        let [_, second] = [("1", 10), ("\"1\"", 11)].map(|(id, upstream_id)| {
            let call = calls.may_begin(id, 0).unwrap();
            calls.begin(&call, "s", upstream_id);
            call
        });
        assert_eq!(calls.may_begin("3", 0).err(), Some(CallRefused::Busy));
        assert_eq!((calls.end(&second), calls.end(&second)), (Some(("s", 11)), None));
        assert_eq!(calls.may_begin("1", 0).err(), Some(CallRefused::Repeated));
        assert!(!calls.have_ended());
        assert_eq!(calls.end_all(), [("s", 10)]);
        assert!(calls.have_ended());
        assert_eq!(calls.may_begin("4", 0).err(), Some(CallRefused::Ended));
    }

    #[test]
    fn equal_ids_on_several_streams_are_distinguished() {
        let mut calls = Calls::new(&SessionLimits { in_flight: 4, ..SessionLimits::default() });
        let all = [1, 2, 3, 4].map(|stream| {
            let call = calls.may_begin("1", stream).unwrap();
            calls.begin(&call, "s", stream as u64 * 10);
            call
        });
        assert_eq!(calls.may_begin("1", 5).err(), Some(CallRefused::Busy), "each of them counts");
        assert_eq!((calls.end(&all[0]), calls.end(&all[0]), calls.len()), (Some(("s", 10)), None, 3));
        for stream in [2, 3, 4] {
            assert_eq!(calls.may_begin("1", stream).err(), Some(CallRefused::Repeated));
        }
        assert_eq!(calls.cancel("1"), Some(("s", 40)), "the last");
        let again = calls.may_begin("1", 1).unwrap();
        calls.begin(&again, "s", 50);
        assert_eq!(
            (calls.cancel("2"), calls.cancel("1"), calls.end(&all[2])),
            (None, Some(("s", 50)), Some(("s", 30)))
        );
        assert_eq!((calls.end_all(), calls.cancel("1"), calls.is_empty()), (vec![("s", 20)], None, true));
    }

    #[test]
    fn a_call_that_is_sent_again_is_found_at_its_new_place() {
        let mut calls = Calls::new(&SessionLimits { in_flight: 4, ..SessionLimits::default() });
        let all = [1, 2].map(|stream| {
            let call = calls.may_begin("1", stream).unwrap();
            calls.begin(&call, "s", stream as u64);
            call
        });
        calls.rebind(&all[1], "t", 7);
        assert!(all.iter().all(|call| calls.is_open(call)));
        assert_eq!((calls.end(&all[1]), calls.is_open(&all[1])), (Some(("t", 7)), false));
        calls.rebind(&all[1], "t", 8);
        calls.rebind(&all[0], "t", 9);
        assert_eq!(calls.end_all(), [("t", 9)]);
    }

    #[test]
    fn call_numbers_are_unique() {
        let mut calls = Calls::<()>::new(&SessionLimits { in_flight: 4, ..SessionLimits::default() });
        let reserved = calls.reserve();
        let one = calls.may_begin("1", 1).unwrap();
        let two = calls.may_begin_as(reserved, "1", 2).unwrap();
        assert_ne!(one.number(), two.number());
        assert_eq!(two.number(), reserved);
    }
}
