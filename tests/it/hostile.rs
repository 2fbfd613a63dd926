//! Malicious peers: handmade bytes against a gateway in this process with small limits, or against
//! the real program.

mod budget;
mod clients;
mod connections;
mod drain;
mod figures;
mod links;
mod pace;
mod raw;
mod shares;

use std::time::{Duration, Instant};

pub use figures::memory;

use serde_json::{Value, json};

use crate::{
    session::{Session, value},
    wire::get,
};

/// Returns the `/status` document.
#[track_caller]
pub fn status(address: std::net::SocketAddr) -> Value {
    let answer = get(address, "/status");
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")), "{answer:?}");
    value(&answer.body)
}

/// Returns a counter of `/status`.
#[track_caller]
fn counter(address: std::net::SocketAddr, name: &str) -> u64 {
    status(address)["counters"][name].as_u64().unwrap()
}

/// Calls `echo` of server `s` this often, one call after the other, each over a new connection.
/// Returns the duration of each.
#[track_caller]
fn calls(session: &Session, tool: &str, count: usize) -> Vec<Duration> {
    let one = || {
        let begun = Instant::now();
        assert_eq!(session.call_text(tool, json!({"text": "good"})), "good");
        begun.elapsed()
    };
    (0..count).map(|_| one()).collect()
}

/// Returns the 99th percentile.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// Full size if the figures are to be published, small otherwise.
fn full_size() -> bool {
    std::env::var("MCPPORT_FIGURES").is_ok_and(|set| set == "1")
}
