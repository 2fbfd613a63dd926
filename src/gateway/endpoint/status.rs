//! `/status`: version, servers, counters, table sizes, and whether anyone can use the gateway. For
//! operators and monitoring.
//!
//! Nothing in it is secret: no token, no URL, no session id.

use futures_lite::future;

use crate::{
    auth::Principal,
    gateway::state::Gateway,
    http::{response::Response, types::StatusCode},
    hub::{entry::Enter, server_list::ServerRow, state::Sizes},
    jsonrpc::quote,
    limits,
    metrics::Stats,
};

/// Returns the status as a JSON object. Server ids are included only for the servers of `viewer`.
pub async fn status(gateway: &Gateway, viewer: Principal) -> Response {
    let uptime = gateway.started.elapsed().as_secs();
    let (servers, calls) = server_list(gateway, viewer).await;
    let (counters, tables) = (counters(&gateway.stats), tables(gateway, calls).await);
    let body = format!(
        "{{\"version\":\"{}\",\"uptime_seconds\":{uptime},\"open\":{},\"servers\":[{servers}],\"counters\":{{{counters}}},\"tables\":{{{tables}}}}}",
        env!("CARGO_PKG_VERSION"),
        gateway.is_open(),
    );
    Response::new(StatusCode::Ok).field("Cache-Control", "no-store").json(body)
}

/// Returns the counters that are not 0 in one line, logged at shutdown.
pub fn summary(gateway: &Gateway) -> String {
    let counts = gateway.stats.all();
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let counts = if counts.is_empty() { "no requests".to_owned() } else { counts.join(", ") };
    format!("served for {} s: {counts}", gateway.started.elapsed().as_secs())
}

/// Returns all servers as JSON, and the number of pending calls. The id of a server is shown only to
/// its owner.
async fn server_list(gateway: &Gateway, viewer: Principal) -> (String, usize) {
    let (mut list, mut calls, mut last) = (String::new(), 0, None);
    loop {
        let rows = gateway.enter(|hub, _| hub.servers(viewer, last));
        let Some(newest) = rows.last() else { return (list, calls) };
        last = Some(newest.key);
        for ServerRow { id, name, tools, away, calls: pending, .. } in &rows {
            let id = id.as_ref().map(|id| format!("\"id\":{},", quote(id))).unwrap_or_default();
            let (name, state) = (quote(name), state(*away));
            let comma = if list.is_empty() { "" } else { "," };
            list += &format!(
                "{comma}{{\"name\":{name},{id}\"state\":\"{state}\",\"tools\":{tools},\"calls\":{pending}}}"
            );
            calls += pending;
        }
        future::yield_now().await;
    }
}

fn counters(stats: &Stats) -> String {
    let counts = stats.all();
    let counts = counts.iter().map(|(name, count)| format!("\"{name}\":{count}"));
    counts.collect::<Vec<_>>().join(",")
}

/// Returns the sizes of all tables. When the gateway is idle each is 0, except for the connection
/// that asks and its address.
async fn tables(gateway: &Gateway, calls: usize) -> String {
    let (connections, addresses) = {
        let limiter = gateway.connections.lock();
        (limiter.len(), limiter.addresses())
    };
    let (sizes, clients) = gateway.enter(|hub, _| (hub.sizes(), hub.session_streams()));
    let Sizes { servers, sessions, subscriptions, listens, tasks } = sizes;
    let mut streams = 0;
    for chunk in clients.chunks(limits::YIELD_EVERY) {
        streams += chunk.iter().map(|client| client.open_streams()).sum::<usize>();
        future::yield_now().await;
    }
    let sizes = [
        ("connections", connections),
        ("links", gateway.links.len()),
        ("servers", servers),
        ("sessions", sessions),
        ("calls", calls),
        ("streams", streams),
        ("subscriptions", subscriptions),
        ("listens", listens),
        ("tasks", tasks),
        ("addresses", addresses),
        ("bytes", gateway.budget.used()),
    ];
    sizes.map(|(name, size)| format!("\"{name}\":{size}")).join(",")
}

/// Returns the name of a server's state. An `away` server may still resume its link.
fn state(away: bool) -> &'static str {
    if away { "reconnecting" } else { "connected" }
}
