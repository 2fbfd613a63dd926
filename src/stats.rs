//! Counters of one running program. They only grow; a reader takes what it sees.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the gateway counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections taken.
    pub connections: Counter,
    /// Connections that ended in a panic.
    pub panics: Counter,
    /// Requests denied for their token.
    pub denied: Counter,
    /// Requests turned away unread because somebody at their address guesses tokens.
    pub throttled: Counter,
    /// Calls passed to servers.
    pub calls: Counter,
    /// Answers and progress that nobody waited for.
    pub strays: Counter,
    /// Links that came back and went on where they were.
    pub resumed: Counter,
    /// Clients cut off because they did not read.
    pub slow_clients: Counter,
}
