//! Pending requests of servers to one client. Each gets an id from the gateway, since every server
//! counts its own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{jsonrpc::is_same, limits};

/// Error: too many requests wait for the client ([`limits::ASKS`]).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany;

/// The pending requests to one client. `U` is the program's handle of a server.
#[derive(Debug)]
pub struct PendingServerRequests<U> {
    last: u64,
    open: HashMap<u64, PendingServerRequest<U>>,
}

#[derive(Debug)]
struct PendingServerRequest<U> {
    server: U,
    /// The server's own id, as raw JSON.
    id: Box<str>,
    since: Instant,
}

impl<U> Default for PendingServerRequests<U> {
    fn default() -> Self {
        Self { last: 0, open: HashMap::new() }
    }
}

impl<U> PendingServerRequests<U> {
    /// Adds a request of a server; `id` is the server's own, as raw JSON. Returns the id under
    /// which the request is sent to the client.
    ///
    /// # Errors
    /// [`TooMany`] at the limit.
    pub fn begin(&mut self, now: Instant, server: U, id: &str) -> Result<u64, TooMany> {
        if self.open.len() >= limits::ASKS {
            return Err(TooMany);
        }
        self.last += 1;
        self.open.insert(self.last, PendingServerRequest { server, id: id.into(), since: now });
        Ok(self.last)
    }

    /// Removes the request that a response of the client answers; `id` is as the client wrote it.
    /// Returns the server and its own id, or `None` if there is no such request.
    pub fn end(&mut self, id: &str) -> Option<(U, Box<str>)> {
        let number = id.parse().ok().filter(|_| id.bytes().all(|byte| byte.is_ascii_digit()))?;
        self.open.remove(&number).map(|ask| (ask.server, ask.id))
    }

    /// Removes a request that its server cancels. Returns the id under which it was sent to the
    /// client.
    pub fn cancel(&mut self, is_server: impl Fn(&U) -> bool, id: &str) -> Option<u64> {
        let find = |is_it: &dyn Fn(&str) -> bool| {
            self.open.iter().find(|(_, ask)| is_it(&ask.id) && is_server(&ask.server))
        };
        // The server may write the number in another form than before.
        let found = find(&|own| own == id).or_else(|| find(&|own| is_same(own, id)));
        let number = found.map(|(number, _)| *number)?;
        self.open.remove(&number);
        Some(number)
    }

    /// Removes all requests of a server that is gone.
    pub fn forget(&mut self, is_server: impl Fn(&U) -> bool) {
        self.open.retain(|_, ask| !is_server(&ask.server));
    }

    /// Removes the requests of a server that have waited for `patience` or longer. Returns for each
    /// the id under which it was sent to the client, and the server's own.
    pub fn overdue(
        &mut self,
        now: Instant,
        patience: Duration,
        is_server: impl Fn(&U) -> bool,
    ) -> Vec<(u64, Box<str>)> {
        let over = |ask: &PendingServerRequest<U>| {
            now.duration_since(ask.since) >= patience && is_server(&ask.server)
        };
        self.open.extract_if(|_, ask| over(ask)).map(|(number, ask)| (number, ask.id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_with_one_id_are_distinguished() {
        let (mut asks, now) = (PendingServerRequests::default(), Instant::now());
        assert_eq!((asks.begin(now, "a", "0"), asks.begin(now, "b", "0")), (Ok(1), Ok(2)));
        for wrong in ["\"1\"", "3", "01x", "+1", ""] {
            assert_eq!(asks.end(wrong), None, "{wrong}");
        }
        assert_eq!(asks.end("2"), Some(("b", "0".into())));
        assert_eq!(asks.end("2"), None);
        assert_eq!(asks.cancel(|server| *server == "b", "0"), None);
        assert_eq!(asks.cancel(|server| *server == "a", "\"0\""), Some(1), "the same number in another form");
    }

    #[test]
    fn questions_are_bounded_and_go_with_their_server() {
        let (mut asks, now) = (PendingServerRequests::default(), Instant::now());
        for id in 0..limits::ASKS {
            asks.begin(now, id % 2, "x").unwrap();
        }
        assert_eq!(asks.begin(now, 0, "x"), Err(TooMany));
        asks.forget(|server| *server == 0);
        assert!(asks.begin(now, 0, "x").is_ok());
    }

    #[test]
    fn questions_do_not_wait_for_ever() {
        let (mut asks, start, patience) =
            (PendingServerRequests::default(), Instant::now(), Duration::from_secs(9));
        asks.begin(start, "a", "0").unwrap();
        asks.begin(start, "b", "0").unwrap();
        asks.begin(start + patience, "a", "\"1\"").unwrap();
        assert_eq!(asks.overdue(start, patience, |_| true), []);
        assert_eq!(asks.overdue(start + patience, patience, |server| *server == "a"), [(1, "0".into())]);
        assert_eq!((asks.end("1"), asks.end("3")), (None, Some(("a", "\"1\"".into()))));
    }
}
