//! Counters of the running program. They never decrease.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that never decreases.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of the gateway. The status reports each under the name of its field, or the one
/// given in its documentation.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections rejected because a limit was reached; reported as `turned_away`.
    pub rejected: Counter,
    /// Unauthenticated connections evicted to make room for others; reported as `pushed_out`.
    pub evicted: Counter,
    /// Panics in connections, which ended, and in tasks, which went on.
    pub panics: Counter,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Requests refused for their form, size or pace.
    pub refused: Counter,
    /// Requests denied because of their token.
    pub denied: Counter,
    /// Links established.
    pub links: Counter,
    /// Links closed by the gateway.
    pub links_ended: Counter,
    /// Requests answered with 429 because of too many wrong tokens from their address.
    pub throttled: Counter,
    /// Calls forwarded to servers.
    pub calls: Counter,
    /// Calls refused because a limit was reached.
    pub busy: Counter,
    /// Responses and progress notifications that match no pending request; reported as `strays`.
    pub unmatched: Counter,
    /// Links resumed after a connection was lost.
    pub resumed: Counter,
    /// Messages that did not fit a client's queue. The client's stream ends, or for a POST only the
    /// message is lost.
    pub slow_clients: Counter,
    /// Messages, bodies and lists refused because the memory budget was used up.
    pub memory_refusals: Counter,
}

impl Stats {
    /// Returns all counts with the names under which they are reported.
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
