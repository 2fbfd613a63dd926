//! The calls that one session has under way.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Deref,
    sync::Arc,
};

use crate::limits::SessionLimits;

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallRefused {
    /// Too many calls are under way.
    Busy,
    /// The session has ended.
    Ended,
    /// A call with this id is under way.
    Repeated,
}

/// The id of one call: what the client wrote, and a number that no other call of the session has.
#[derive(Clone, Debug)]
pub struct CallId {
    raw: Arc<str>,
    number: u64,
    stream: usize,
}

impl CallId {
    /// The number that no other call of the session has.
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

/// The calls of one session, by the client's own ids, as written. Several callers may share a session, each with ids of its
/// own from 1 on, so an id only has to differ from those of the calls that are answered on the same stream.
#[derive(Debug)]
pub struct Calls<U> {
    open: HashMap<Arc<str>, OpenCall<U>>,
    /// Calls whose id was under way already.
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
    /// No calls yet.
    pub fn new(limits: &SessionLimits) -> Self {
        let (open, repeated) = (HashMap::new(), Vec::new());
        Self { open, repeated, last: 0, max: limits.in_flight, ended: false }
    }

    /// The number of a call that is to begin. No other call of the session gets it.
    pub fn reserve(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Gives a call its id, if it may begin. `stream`: where it is answered; the same for all calls that are answered there.
    ///
    /// # Errors
    /// [`CallRefused`], with the reason.
    pub fn may_begin(&mut self, id: &str, stream: usize) -> Result<CallId, CallRefused> {
        let number = self.reserve();
        self.may_begin_as(number, id, stream)
    }

    /// The same for a call whose number was reserved.
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

    /// A call began: at this server, under this id of the mux.
    pub fn begin(&mut self, call: &CallId, upstream: U, upstream_id: u64) {
        let open = OpenCall { number: call.number, stream: call.stream, upstream, upstream_id };
        match self.open.entry(call.raw.clone()) {
            Entry::Vacant(place) => {
                place.insert(open);
            }
            Entry::Occupied(_) => self.repeated.push((call.raw.clone(), open)),
        }
    }

    /// A call ended. `None` when it is not under way.
    pub fn end(&mut self, call: &CallId) -> Option<(U, u64)> {
        self.remove(&call.raw, call.number)
    }

    /// A call is to be cancelled. `None` when there is none with this id.
    ///
    /// Of several it is the one that began last: one notification ends one call and no more, since the others may be those of
    /// another caller; a client that repeats an id has usually given up the earlier call; and a client that means them all
    /// can say so once for each.
    pub fn cancel(&mut self, id: &str) -> Option<(U, u64)> {
        let last = self.with_id(id).map(|open| open.number).max()?;
        self.remove(id, last)
    }

    fn remove(&mut self, id: &str, number: u64) -> Option<(U, u64)> {
        let open = if self.open.get(id).is_some_and(|open| open.number == number) {
            self.open.remove(id)?
        } else {
            let place = self.repeated.iter().position(|(_, open)| open.number == number)?;
            self.repeated.swap_remove(place).1
        };
        Some((open.upstream, open.upstream_id))
    }

    /// The session ends: no further call begins, and those under way are handed out to be cancelled.
    pub fn end_all(&mut self) -> Vec<(U, u64)> {
        self.ended = true;
        let all = self.open.drain().chain(self.repeated.drain(..));
        all.map(|(_, open)| (open.upstream, open.upstream_id)).collect()
    }

    /// Whether the session has ended.
    pub fn have_ended(&self) -> bool {
        self.ended
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.open.len() + self.repeated.len()
    }

    /// Whether none is under way.
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
    fn numbers_are_never_given_twice() {
        let mut calls = Calls::<()>::new(&SessionLimits { in_flight: 4, ..SessionLimits::default() });
        let reserved = calls.reserve();
        let one = calls.may_begin("1", 1).unwrap();
        let two = calls.may_begin_as(reserved, "1", 2).unwrap();
        assert_ne!(one.number(), two.number());
        assert_eq!(two.number(), reserved);
    }
}
