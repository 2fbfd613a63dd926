//! What servers ask of one client: each question under an id of ours, since every server counts its own.

use std::collections::HashMap;

use crate::limits;

/// The client has too many questions to answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany;

/// The questions to one client. `U` is the program's handle of a server.
#[derive(Debug)]
pub struct Asks<U> {
    last: u64,
    open: HashMap<u64, (U, Box<str>)>,
}

impl<U> Default for Asks<U> {
    fn default() -> Self {
        Self { last: 0, open: HashMap::new() }
    }
}

impl<U> Asks<U> {
    /// A server asks something under an id of its own, raw. Gives the id under which the client is asked.
    ///
    /// # Errors
    /// [`TooMany`] at the limit.
    pub fn begin(&mut self, server: U, id: &str) -> Result<u64, TooMany> {
        if self.open.len() >= limits::ASKS {
            return Err(TooMany);
        }
        self.last += 1;
        self.open.insert(self.last, (server, id.into()));
        Ok(self.last)
    }

    /// The client answers: which server asked, and under which id. `id` is what the client wrote.
    pub fn end(&mut self, id: &str) -> Option<(U, Box<str>)> {
        let number = id.parse().ok().filter(|_| id.bytes().all(|byte| byte.is_ascii_digit()))?;
        self.open.remove(&number)
    }

    /// A server takes its question back. Gives the id under which the client was asked.
    pub fn cancel(&mut self, is_server: impl Fn(&U) -> bool, id: &str) -> Option<u64> {
        let found = self.open.iter().find(|(_, (server, own))| **own == *id && is_server(server));
        let number = found.map(|(number, _)| *number)?;
        self.open.remove(&number);
        Some(number)
    }

    /// A server is gone with its questions.
    pub fn forget(&mut self, is_server: impl Fn(&U) -> bool) {
        self.open.retain(|_, (server, _)| !is_server(server));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_with_one_id_are_told_apart() {
        let mut asks = Asks::default();
        assert_eq!((asks.begin("a", "0"), asks.begin("b", "0")), (Ok(1), Ok(2)));
        for wrong in ["\"1\"", "3", "01x", "+1", ""] {
            assert_eq!(asks.end(wrong), None, "{wrong}");
        }
        assert_eq!(asks.end("2"), Some(("b", "0".into())));
        assert_eq!(asks.end("2"), None);
        assert_eq!(asks.cancel(|server| *server == "b", "0"), None);
        assert_eq!(asks.cancel(|server| *server == "a", "0"), Some(1));
    }

    #[test]
    fn questions_are_bounded_and_go_with_their_server() {
        let mut asks = Asks::default();
        for id in 0..limits::ASKS {
            asks.begin(id % 2, "x").unwrap();
        }
        assert_eq!(asks.begin(0, "x"), Err(TooMany));
        asks.forget(|server| *server == 0);
        assert!(asks.begin(0, "x").is_ok());
    }
}
