//! What servers ask of one client: each question under an id of ours, since every server counts its own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{jsonrpc::is_same, limits};

/// The client has too many questions to answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany;

/// The questions to one client. `U` is the program's handle of a server.
#[derive(Debug)]
pub struct PendingServerRequests<U> {
    last: u64,
    open: HashMap<u64, PendingServerRequest<U>>,
}

#[derive(Debug)]
struct PendingServerRequest<U> {
    server: U,
    /// The server's own id, raw.
    id: Box<str>,
    since: Instant,
}

impl<U> Default for PendingServerRequests<U> {
    fn default() -> Self {
        Self { last: 0, open: HashMap::new() }
    }
}

impl<U> PendingServerRequests<U> {
    /// A server asks something under an id of its own, raw. Gives the id under which the client is asked.
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

    /// The client answers: which server asked, and under which id. `id` is what the client wrote.
    pub fn end(&mut self, id: &str) -> Option<(U, Box<str>)> {
        let number = id.parse().ok().filter(|_| id.bytes().all(|byte| byte.is_ascii_digit()))?;
        self.open.remove(&number).map(|ask| (ask.server, ask.id))
    }

    /// A server takes its question back. Gives the id under which the client was asked.
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

    /// A server is gone with its questions.
    pub fn forget(&mut self, is_server: impl Fn(&U) -> bool) {
        self.open.retain(|_, ask| !is_server(&ask.server));
    }

    /// Takes out the questions of a server that have waited so long. Gives the ids under which the client was asked, and
    /// the server's own.
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
