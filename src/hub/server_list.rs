//! Lists of the servers: the result of `list_servers`, the gateway's own tool, and the rows of the
//! status.

use super::state::Hub;
use crate::{
    auth::Principal,
    catalog::{Catalog, UpstreamKey},
    jsonrpc::quote,
    limits,
};

/// The partial result: one text item per server, as the original program returns it, and all
/// servers as structured content.
#[derive(Debug)]
pub struct ServerList {
    viewer: Principal,
    texts: String,
    servers: String,
    last: Option<UpstreamKey>,
}

impl ServerList {
    /// Begins a list for a principal, who sees the ids of its own servers.
    pub fn new(viewer: Principal) -> Self {
        Self { viewer, texts: String::new(), servers: String::new(), last: None }
    }

    /// Adds the next servers, at most `max`. Returns false if there were none left.
    pub(super) fn add(&mut self, catalog: &Catalog<UpstreamKey>, max: usize) -> bool {
        let before = self.last;
        for (key, server) in catalog.servers_behind(self.viewer, self.last).take(max) {
            let comma = if self.last.is_some() { "," } else { "" };
            self.texts += &format!("{comma}{{\"type\":\"text\",\"text\":{}}}", quote(&server));
            self.servers += comma;
            self.servers += &server;
            self.last = Some(key);
        }
        self.last != before
    }

    /// Returns the result of the call.
    pub fn result(&self) -> String {
        let Self { texts, servers, .. } = self;
        format!(
            "{{\"content\":[{texts}],\"structuredContent\":{{\"servers\":[{servers}]}},\"isError\":false}}"
        )
    }
}

/// A server in the status.
#[derive(Debug)]
pub struct ServerRow {
    /// Its key.
    pub key: UpstreamKey,
    /// Its id, if the viewer owns it.
    pub id: Option<String>,
    /// Its name.
    pub name: String,
    /// The number of its tools.
    pub tools: usize,
    /// Whether its link is lost and may come back.
    pub away: bool,
    /// The number of its pending requests.
    pub calls: usize,
}

impl Hub {
    /// Returns the servers registered after `after`, at most [`limits::YIELD_EVERY`].
    pub fn servers(&self, viewer: Principal, after: Option<UpstreamKey>) -> Vec<ServerRow> {
        let rows = self.catalog.overview(viewer, after).take(limits::YIELD_EVERY);
        let rows = rows.map(|(key, (id, name, _, tools, away))| ServerRow {
            key,
            id: id.map(str::to_owned),
            name: name.to_owned(),
            tools,
            away,
            calls: self.upstreams.get(&key).map_or(0, |upstream| upstream.pending()),
        });
        rows.collect()
    }
}
