//! The open requests of the process of one client session.
//!
//! `edge::instances` adds the requests that it sends to the process, and removes those that are
//! answered or cancelled. A `subscriptions/listen` is none of them, since nobody waits for its
//! response.

use std::{collections::HashSet, sync::MutexGuard};

use super::request_ids::LISTEN;
use crate::{
    jsonrpc::{Message, decimal},
    limits::{EDGE_OPEN, ID_BYTES},
    runtime::lock::Lock,
};

/// The ids of the requests that one session's process has not answered.
#[derive(Debug, Default)]
pub struct OpenRequests(Lock<HashSet<String>>);

impl OpenRequests {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock()
    }

    /// Adds a request that is sent to the process.
    pub fn add(&self, request: &Message<'_>) {
        if let Some(id) = request.id().filter(|_| request.method() != LISTEN) {
            self.add_id(id);
        }
    }

    fn add_id(&self, id: &str) {
        let mut open = self.lock();
        // Our gateway bounds both. With one that does not, the drain at shutdown does not wait for
        // the call.
        if open.len() < EDGE_OPEN && id.len() <= ID_BYTES {
            open.insert(id.to_owned());
        }
    }

    /// Removes a request that was answered or cancelled. Servers may write a numeric id in another
    /// form (a string, or `2.0`). Returns the id as it was sent, or `None` if no such request is
    /// open.
    pub fn remove(&self, id: &str) -> Option<String> {
        let mut open = self.lock();
        let number = decimal(id).map(|number| number.to_string());
        let text = number.as_ref().map(|number| format!("\"{number}\""));
        [Some(id.to_owned()), number, text].into_iter().flatten().find(|id| open.remove(id))
    }

    /// Removes and returns the only open request. Returns `None` if there are none or several.
    pub fn remove_only(&self) -> Option<String> {
        let mut open = self.lock();
        let only = open.iter().next().filter(|_| open.len() == 1).cloned()?;
        open.remove(&only);
        Some(only)
    }

    /// Returns the number of open requests.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_in_every_form_of_their_id() {
        let open = OpenRequests::default();
        for (sent, answered) in [("1", "1"), ("1", "\"1\""), ("1", "1.0"), ("\"1\"", "1"), ("\"a\"", "\"a\"")]
        {
            open.add_id(sent);
            assert_eq!(open.remove(answered).as_deref(), Some(sent), "{answered}");
            assert_eq!((open.remove(answered), open.len()), (None, 0), "{answered}");
        }
    }

    #[test]
    fn the_only_open_request_is_known_without_its_id() {
        let open = OpenRequests::default();
        assert_eq!(open.remove_only(), None);
        open.add_id("1");
        open.add_id("2");
        assert_eq!((open.remove_only(), open.len()), (None, 2));
        open.remove("1");
        assert_eq!(open.remove_only().as_deref(), Some("2"));
    }

    #[test]
    fn open_requests_are_bounded() {
        let open = OpenRequests::default();
        open.add_id(&"9".repeat(ID_BYTES + 1));
        (0..=EDGE_OPEN).for_each(|id| open.add_id(&id.to_string()));
        assert_eq!((open.remove_only(), open.len()), (None, EDGE_OPEN));
    }

    #[test]
    fn a_listen_is_not_awaited() {
        let open = OpenRequests::default();
        for (method, len) in [(LISTEN, 0), ("tools/call", 1)] {
            let request = crate::jsonrpc::request("1", method, "{}");
            open.add(&Message::read(&request).unwrap());
            assert_eq!(open.len(), len, "{method}");
        }
    }
}
