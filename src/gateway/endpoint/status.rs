//! `/status`: version, servers, counters, table sizes, and whether anyone can use the gateway. For
//! operators and monitoring.
//!
//! Nothing in it is secret: no token, no URL, no session id.

use std::sync::Arc;

use futures_lite::future;

use crate::{
    auth::Principal,
    catalog::{Catalog, UpstreamKey},
    gateway::{Gateway, dispatch::Outcome, session::Session, upstream::Upstream},
    http::{response::Response, types::StatusCode},
    hub::peers::Responder,
    jsonrpc::{self, Message, quote},
    limits,
    runtime::executor,
};

impl Gateway {
    /// Returns the status as a JSON object. Server ids are included only for the servers of
    /// `viewer`.
    pub(in crate::gateway) async fn status(&self, viewer: Principal) -> Response {
        let uptime = self.started.elapsed().as_secs();
        let (servers, calls) = self.server_list(viewer).await;
        let (counters, tables) = (self.counters(), self.tables(calls).await);
        let body = format!(
            "{{\"version\":\"{}\",\"uptime_seconds\":{uptime},\"open\":{},\"servers\":[{servers}],\"counters\":{{{counters}}},\"tables\":{{{tables}}}}}",
            env!("CARGO_PKG_VERSION"),
            self.is_open(),
        );
        Response::new(StatusCode::Ok).field("Cache-Control", "no-store").json(body)
    }

    /// Returns whether the gateway asks for neither a token nor a client certificate, and listens
    /// beyond loopback.
    pub(in crate::gateway) fn is_open(&self) -> bool {
        self.exposed && !self.policy.guarded
    }

    /// Returns the counters that are not 0 in one line, logged at shutdown.
    pub(in crate::gateway) fn summary(&self) -> String {
        let counts = self.stats.all();
        let counts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let counts = if counts.is_empty() { "no requests".to_owned() } else { counts.join(", ") };
        format!("served for {} s: {counts}", self.started.elapsed().as_secs())
    }

    /// Returns all servers as JSON, and the number of pending calls. The id of a server is shown
    /// only to its owner.
    async fn server_list(&self, viewer: Principal) -> (String, usize) {
        let (mut list, mut calls, mut last) = (String::new(), 0, None);
        loop {
            let before = last;
            for (key, server) in self.catalog().overview(viewer, last).take(limits::YIELD_EVERY) {
                let (id, name, upstream, tools, away) = server;
                let id = id.map(|id| format!("\"id\":{},", quote(id))).unwrap_or_default();
                let (name, state, under_way) = (quote(name), state(away), upstream.pending());
                let comma = if list.is_empty() { "" } else { "," };
                list += &format!(
                    "{comma}{{\"name\":{name},{id}\"state\":\"{state}\",\"tools\":{tools},\"calls\":{under_way}}}"
                );
                calls += under_way;
                last = Some(key);
            }
            if last == before {
                return (list, calls);
            }
            future::yield_now().await;
        }
    }

    /// Answers a call of the gateway's own tool. With more than [`limits::YIELD_EVERY`] servers the
    /// list is built in steps, and the answer follows later.
    pub(in crate::gateway) fn list_servers(
        self: &Arc<Self>,
        client: &Session,
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Outcome {
        let viewer = client.principal();
        if self.catalog().len() <= limits::YIELD_EVERY {
            let mut list = ServerList::new(viewer);
            list.add(&self.catalog(), usize::MAX);
            return Outcome::Now(list.result());
        }
        let (gateway, responder) = (self.clone(), responder.clone());
        let id = message.id().unwrap_or_default().to_owned();
        let (watching, failed, its_id) = (self.clone(), responder.clone(), id.clone());
        let listing = async move {
            let mut list = ServerList::new(viewer);
            while list.add(&gateway.catalog(), limits::YIELD_EVERY) {
                future::yield_now().await;
            }
            responder.finish(jsonrpc::result(&id, &list.result()), &gateway.stats);
        };
        executor::spawn_guarded(listing, move || {
            watching.stats.panics.add();
            let text = "internal error in the gateway";
            failed.finish(jsonrpc::error(&its_id, jsonrpc::INTERNAL_ERROR, text), &watching.stats);
        });
        Outcome::Later
    }

    fn counters(&self) -> String {
        let counts = self.stats.all();
        let counts = counts.iter().map(|(name, count)| format!("\"{name}\":{count}"));
        counts.collect::<Vec<_>>().join(",")
    }

    /// Returns the sizes of all tables. When the gateway is idle each is 0, except for the
    /// connection that asks and its address.
    async fn tables(&self, calls: usize) -> String {
        let (connections, addresses) = {
            let limiter = self.connections();
            (limiter.len(), limiter.addresses())
        };
        let servers = self.catalog().len();
        let clients: Vec<Arc<Session>> = self.sessions().all().cloned().collect();
        let (sessions, mut streams) = (clients.len(), 0);
        for chunk in clients.chunks(limits::YIELD_EVERY) {
            streams += chunk.iter().map(|client| client.stream().open_streams()).sum::<usize>();
            future::yield_now().await;
        }
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

/// The partial result of the gateway's own tool: one text item per server, as the original program
/// returns it, and all servers as structured content.
#[derive(Debug)]
struct ServerList {
    viewer: Principal,
    texts: String,
    servers: String,
    last: Option<UpstreamKey>,
}

impl ServerList {
    fn new(viewer: Principal) -> Self {
        Self { viewer, texts: String::new(), servers: String::new(), last: None }
    }

    /// Adds the next servers, at most `max`. Returns false if there were none left.
    fn add(&mut self, catalog: &Catalog<Arc<Upstream>>, max: usize) -> bool {
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

    fn result(&self) -> String {
        let Self { texts, servers, .. } = self;
        format!(
            "{{\"content\":[{texts}],\"structuredContent\":{{\"servers\":[{servers}]}},\"isError\":false}}"
        )
    }
}

/// Returns the name of a server's state. An `away` server may still resume its link.
fn state(away: bool) -> &'static str {
    if away { "reconnecting" } else { "connected" }
}
