//! `/status`: what the gateway has, what it did, and whether its door is open; for people and for monitoring.
//!
//! Nothing in it is secret: no token, no URL, no session id.

use super::Gateway;
use crate::{
    http::{respond::Response, vocab::StatusCode},
    jsonrpc::quote,
};

impl Gateway {
    /// The answer to a request for the status: a JSON object.
    pub(super) fn status(&self) -> Response {
        let uptime = self.started.elapsed().as_secs();
        let (servers, counters, tables) = (self.server_list(), self.counters(), self.tables());
        let body = format!(
            "{{\"version\":\"{}\",\"uptime_seconds\":{uptime},\"open\":{},\"servers\":[{servers}],\"counters\":{{{counters}}},\"tables\":{{{tables}}}}}",
            env!("CARGO_PKG_VERSION"),
            self.is_open(),
        );
        Response::new(StatusCode::Ok).field("Cache-Control", "no-store").json(body)
    }

    /// Whether everybody who reaches it may come in, and it can be reached from elsewhere.
    pub(super) fn is_open(&self) -> bool {
        self.exposed && !self.policy.guarded
    }

    /// The main counters in one line, for the end of the log.
    pub(super) fn summary(&self) -> String {
        let counts = self.stats.all();
        let counts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let counts = if counts.is_empty() { "nobody came".to_owned() } else { counts.join(", ") };
        format!("served for {} s: {counts}", self.started.elapsed().as_secs())
    }

    fn server_list(&self) -> String {
        let catalog = self.catalog();
        let servers = catalog.overview().map(|(id, name, upstream, tools, away)| {
            format!(
                "{{\"name\":{},\"id\":{},\"state\":\"{}\",\"tools\":{tools},\"calls\":{}}}",
                quote(name),
                quote(id),
                state(away),
                upstream.under_way()
            )
        });
        servers.collect::<Vec<_>>().join(",")
    }

    fn counters(&self) -> String {
        let counts = self.stats.all();
        let counts = counts.iter().map(|(name, count)| format!("\"{name}\":{count}"));
        counts.collect::<Vec<_>>().join(",")
    }

    /// The sizes of all tables. At rest each is 0, but for the connection that asks, and its address.
    fn tables(&self) -> String {
        let (connections, addresses) = {
            let visits = self.visits();
            (visits.len(), visits.addresses())
        };
        let (servers, calls) = {
            let catalog = self.catalog();
            catalog
                .all()
                .fold((0, 0), |(servers, calls), (_, server)| (servers + 1, calls + server.under_way()))
        };
        let (sessions, streams) = {
            let sessions = self.sessions();
            (sessions.len(), sessions.all().map(|client| client.open_streams()).sum::<usize>())
        };
        let sizes = [
            ("connections", connections),
            ("links", self.links.len()),
            ("servers", servers),
            ("sessions", sessions),
            ("calls", calls),
            ("streams", streams),
            ("subscriptions", self.subscriptions().len()),
            ("tasks", self.tasks().len()),
            ("addresses", addresses),
            ("bytes", self.budget.used()),
        ];
        sizes.map(|(name, size)| format!("\"{name}\":{size}")).join(",")
    }
}

/// Whether a server can be reached now, or is waited for.
fn state(away: bool) -> &'static str {
    if away { "reconnecting" } else { "connected" }
}
