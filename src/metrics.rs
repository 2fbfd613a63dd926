//! Counters of one running program, which only grow.

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
    /// Connections for which there was no place.
    pub rejected: Counter,
    /// Connections that asked for nothing and had to make room for others.
    pub evicted: Counter,
    /// Panics: of connections, which ended by them, and of tasks that went on.
    pub panics: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Requests refused for their form, size or pace.
    pub refused: Counter,
    /// Requests denied for their token.
    pub denied: Counter,
    /// Links that came up.
    pub links: Counter,
    /// Links that we ended because of what the edge did.
    pub links_ended: Counter,
    /// Requests turned away unread because somebody at their address guesses tokens.
    pub throttled: Counter,
    /// Calls passed to servers.
    pub calls: Counter,
    /// Calls refused because a limit was reached.
    pub busy: Counter,
    /// Answers and progress that nobody waited for.
    pub unmatched: Counter,
    /// Links that came back and went on where they were.
    pub resumed: Counter,
    /// Clients cut off because they did not read.
    pub slow_clients: Counter,
    /// Messages, bodies and lists for which the budget of bytes had no room.
    pub memory_refusals: Counter,
}

impl Stats {
    /// All counts with their names, as they are shown.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        [
            ("connections", &self.connections),
            ("turned_away", &self.rejected),
            ("pushed_out", &self.evicted),
            ("panics", &self.panics),
            ("handshakes_failed", &self.handshakes_failed),
            ("refused", &self.refused),
            ("denied", &self.denied),
            ("throttled", &self.throttled),
            ("links", &self.links),
            ("links_ended", &self.links_ended),
            ("calls", &self.calls),
            ("busy", &self.busy),
            ("strays", &self.unmatched),
            ("resumed", &self.resumed),
            ("slow_clients", &self.slow_clients),
            ("memory_refusals", &self.memory_refusals),
        ]
        .map(|(name, counter)| (name, counter.get()))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown() {
        let shown = format!("{:?}", Stats::default()).matches("Counter(").count();
        assert_eq!(Stats::default().all().len(), shown);
    }
}
