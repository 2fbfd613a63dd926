//! Pending requests of servers to one client. Each gets an id from the gateway, since every server
//! counts its own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{jsonrpc::is_same, limits, util};

/// Error: too many requests wait for the client ([`limits::SERVER_REQUESTS`]).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany;

/// The pending requests to one client. `U` is the program's handle of a server.
#[derive(Debug)]
pub struct PendingServerRequests<U> {
    last: u64,
    open: BTreeMap<u64, PendingServerRequest<U>>,
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
        Self { last: 0, open: BTreeMap::new() }
    }
}

impl<U> PendingServerRequests<U> {
    /// Adds a request of a server; `id` is the server's own, as raw JSON. Returns the id under
    /// which the request is sent to the client.
    ///
    /// # Errors
    /// [`TooMany`] at the limit.
    pub fn begin(&mut self, now: Instant, server: U, id: &str) -> Result<u64, TooMany> {
        if self.open.len() >= limits::SERVER_REQUESTS {
            return Err(TooMany);
        }
        self.last += 1;
        self.open.insert(self.last, PendingServerRequest { server, id: id.into(), since: now });
        Ok(self.last)
    }

    /// Removes the request that a response of the client answers; `id` is as the client wrote it.
    /// Returns the server and its own id, or `None` if there is no such request.
    pub fn end(&mut self, id: &str) -> Option<(U, Box<str>)> {
        let number = util::parse::digits(id)?;
        self.open.remove(&number).map(|request| (request.server, request.id))
    }

    /// Removes a request that its server cancels. Returns the id under which it was sent to the
    /// client.
    pub fn cancel(&mut self, is_server: impl Fn(&U) -> bool, id: &str) -> Option<u64> {
        let find = |is_it: &dyn Fn(&str) -> bool| {
            self.open.iter().find(|(_, request)| is_it(&request.id) && is_server(&request.server))
        };
        // The server may write the number in another form than before.
        let found = find(&|other| other == id).or_else(|| find(&|other| is_same(other, id)));
        let number = found.map(|(number, _)| *number)?;
        self.open.remove(&number);
        Some(number)
    }

    /// Returns the server of each request.
    pub fn servers(&self) -> impl Iterator<Item = &U> + Clone {
        self.open.values().map(|request| &request.server)
    }

    /// Removes all requests of a server that is gone.
    pub fn forget(&mut self, is_server: impl Fn(&U) -> bool) {
        self.open.retain(|_, request| !is_server(&request.server));
    }

    /// Removes the requests of a server that have waited for `timeout` or longer. Returns for each
    /// the id under which it was sent to the client, and the server's own.
    pub fn overdue(
        &mut self,
        now: Instant,
        timeout: Duration,
        is_server: impl Fn(&U) -> bool,
    ) -> Vec<(u64, Box<str>)> {
        let over = |request: &PendingServerRequest<U>| {
            now.duration_since(request.since) >= timeout && is_server(&request.server)
        };
        let overdue = self.open.iter().filter(|(_, request)| over(request)).map(|(number, _)| *number);
        let overdue: Vec<u64> = overdue.collect();
        let removed = overdue.into_iter().filter_map(|number| self.open.remove_entry(&number));
        removed.map(|(number, request)| (number, request.id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_with_one_id_are_distinguished() {
        let (mut requests, now) = (PendingServerRequests::default(), Instant::now());
        assert_eq!((requests.begin(now, "a", "0"), requests.begin(now, "b", "0")), (Ok(1), Ok(2)));
        for wrong in ["\"1\"", "3", "01x", "+1", ""] {
            assert_eq!(requests.end(wrong), None, "{wrong}");
        }
        assert_eq!(requests.end("2"), Some(("b", "0".into())));
        assert_eq!(requests.end("2"), None);
        assert_eq!(requests.cancel(|server| *server == "b", "0"), None);
        assert_eq!(
            requests.cancel(|server| *server == "a", "\"0\""),
            Some(1),
            "the same number in another form"
        );
    }

    #[test]
    fn server_requests_are_bounded_and_end_with_their_server() {
        let (mut requests, now) = (PendingServerRequests::default(), Instant::now());
        for id in 0..limits::SERVER_REQUESTS {
            requests.begin(now, id % 2, "x").unwrap();
        }
        assert_eq!(requests.begin(now, 0, "x"), Err(TooMany));
        requests.forget(|server| *server == 0);
        assert!(requests.begin(now, 0, "x").is_ok());
    }

    #[test]
    fn server_requests_time_out() {
        let (mut requests, start, timeout) =
            (PendingServerRequests::default(), Instant::now(), Duration::from_secs(9));
        requests.begin(start, "a", "0").unwrap();
        requests.begin(start, "b", "0").unwrap();
        requests.begin(start + timeout, "a", "\"1\"").unwrap();
        assert_eq!(requests.overdue(start, timeout, |_| true), []);
        assert_eq!(requests.overdue(start + timeout, timeout, |server| *server == "a"), [(1, "0".into())]);
        assert_eq!((requests.end("1"), requests.end("3")), (None, Some(("a", "\"1\"".into()))));
    }
}
