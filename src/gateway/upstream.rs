//! A registered server, as the rest of the gateway sees it: calls go in, answers find their client.
//!
//! The table of who waits for what is `tunnel::mux`; the link is behind a queue. `registration` owns the other end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::client::Client;
use crate::{
    jsonrpc::{self, Malformed, Message, Span, quote},
    net::{
        link::Farewell,
        queue::{Refused, Sender},
    },
    session,
    stats::Stats,
    tunnel::mux::{Busy, Mux, Pending},
};

/// Who waits for an answer.
#[derive(Debug)]
pub enum Caller {
    /// The gateway itself.
    Gateway,
    /// A client, with its own id for the request, raw.
    Client(Arc<Client>, Box<str>),
}

/// A call as it goes to the server: what the client sent, and what has to be changed in it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The client's request.
    pub message: &'a Message<'a>,
    /// The server's own name for what is called, and where the client's name stands.
    pub name: Option<(Span, &'a str)>,
    /// Where the client's progress token stands.
    pub token: Option<Span>,
    /// How long the answer may take.
    pub patience: Duration,
}

/// Why a call is not passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Declined {
    /// The client may not begin it.
    Client(session::Refused),
    /// The server has too many calls under way.
    Server,
    /// The link does not keep up.
    Link,
    /// The link is gone.
    Gone,
}

/// One registered server.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    mux: Mutex<Mux<Caller>>,
    link: Sender<Farewell>,
}

impl Upstream {
    /// A server behind a link.
    pub fn new(name: String, most: usize, link: Sender<Farewell>) -> Arc<Self> {
        Arc::new(Self { name, mux: Mutex::new(Mux::new(most)), link })
    }

    /// The name it registered with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue towards the edge.
    pub fn link(&self) -> &Sender<Farewell> {
        &self.link
    }

    /// The table of pending requests.
    pub fn mux(&self) -> MutexGuard<'_, Mux<Caller>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a client's call on under an id of the mux.
    ///
    /// # Errors
    /// [`Declined`]; nothing was sent then.
    pub fn call(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Client>,
        call: &Call<'_>,
    ) -> Result<(), Declined> {
        let text = call.message.text();
        let id = call.message.id().unwrap_or_default();
        let token = call.token.clone().map(|span| &text[span]);
        let upstream_id = {
            // Held until the call is in both tables, so that its answer cannot come in between.
            let mut calls = client.calls();
            calls.may_begin(id).map_err(Declined::Client)?;
            let caller = Caller::Client(client.clone(), id.into());
            let opened = self.mux().open(now, caller, call.message.method(), token, call.patience);
            let upstream_id = opened.map_err(|Busy| Declined::Server)?;
            calls.begin(id, self.clone(), upstream_id);
            upstream_id
        };
        let sent = self.link.send(call.rewritten(upstream_id));
        sent.map_err(|refused| {
            self.mux().close(upstream_id);
            client.calls().end(id);
            if refused == Refused::Full { Declined::Link } else { Declined::Gone }
        })
    }

    /// Tells the server to stop working on a request. `notification` is the client's own, with the place of its
    /// request id; without one, the reason.
    pub fn cancel(&self, upstream_id: u64, notification: Result<(&Message<'_>, Span), &str>) {
        if self.mux().close(upstream_id).is_none() {
            return;
        }
        let id = upstream_id.to_string();
        let text = match notification {
            Ok((message, span)) => message.splice(&[(span, &id)]),
            Err(reason) => cancelled(&id, reason),
        };
        // A link that is full or gone forgets the request by itself.
        let _ = self.link.send(text);
    }

    /// The link is gone: everybody who waits is told.
    pub fn fail_all(&self, reason: &str, stats: &Stats) {
        let pending = self.mux().drain();
        for pending in pending {
            let text = format!("server '{}' went away: {reason}", self.name);
            fail(pending, jsonrpc::INTERNAL_ERROR, &text, stats);
        }
    }

    /// Fails the requests whose time is up, and tells the server to stop. The gateway's own are handed back.
    pub fn expire(&self, now: Instant, stats: &Stats) -> Vec<Pending<Caller>> {
        let mut expired = Vec::new();
        self.mux().tick(now, &mut expired);
        let mut own = Vec::new();
        for (id, pending) in expired {
            let seconds = pending.patience.as_secs_f64();
            log::info!("server '{}' did not answer {} in {seconds} s", self.name, pending.method);
            let _ = self.link.send(cancelled(&id.to_string(), "no answer in time"));
            if matches!(pending.caller, Caller::Gateway) {
                own.push(pending);
            } else {
                let text = format!("server '{}' did not answer within {seconds} s", self.name);
                fail(pending, jsonrpc::TIMED_OUT, &text, stats);
            }
        }
        own
    }
}

impl Call<'_> {
    /// The request as the server gets it: our id, its own name, our progress token; all else as the client wrote it.
    fn rewritten(&self, upstream_id: u64) -> String {
        let number = upstream_id.to_string();
        let name = self.name.as_ref().map(|(span, name)| (span.clone(), quote(name)));
        let id = self.message.id_span().map(|span| (span, number.as_str()));
        let token = self.token.clone().map(|span| (span, number.as_str()));
        let name = name.as_ref().map(|(span, name)| (span.clone(), name.as_str()));
        let mut edits: Vec<(Span, &str)> = [id, token, name].into_iter().flatten().collect();
        edits.sort_unstable_by_key(|(span, _)| span.start);
        self.message.splice(&edits)
    }

    /// Where the progress token of a request stands.
    ///
    /// # Errors
    /// [`Malformed::Duplicate`] when that is ambiguous.
    pub fn token_of(message: &Message<'_>) -> Result<Option<Span>, Malformed> {
        message.param(&["_meta", "progressToken"])
    }
}

/// Gives an answer to who waits for it, under the client's own id.
pub fn deliver(pending: Pending<Caller>, message: &Message<'_>, stats: &Stats) {
    if let Caller::Client(client, id) = pending.caller {
        client.calls().end(&id);
        client.send(message.with_id(&id), stats);
    }
}

/// Fails a request with an error of ours.
fn fail(pending: Pending<Caller>, code: i64, text: &str, stats: &Stats) {
    if let Caller::Client(client, id) = pending.caller {
        client.calls().end(&id);
        client.send(jsonrpc::error(&id, code, text), stats);
    }
}

fn cancelled(id: &str, reason: &str) -> String {
    let params = format!("{{\"requestId\":{id},\"reason\":{}}}", quote(reason));
    jsonrpc::notification("notifications/cancelled", Some(&params))
}
