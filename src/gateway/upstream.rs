//! A registered server, as the rest of the gateway sees it: calls go in, answers find their client.
//!
//! The table of who waits for what is `tunnel::mux`; the link is behind a queue. `registration` owns the other end.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{client::Client, reply::Reply};
use crate::{
    jsonrpc::{self, Message, Span},
    mcp::{self, bridge},
    net::{
        link::Farewell,
        queue::{Refused, Sender},
    },
    session,
    stats::Stats,
    tunnel::{
        mux::{self, Mux, Pending},
        rewrite,
    },
};

/// Who waits for an answer.
#[derive(Debug)]
pub enum Caller {
    /// The gateway's own conversation with the server.
    Conversation,
    /// Nobody: it was asked so that something happens.
    Nobody,
    /// A client, with its own id for the request, raw.
    Client(Arc<Client>, Box<str>, Reply),
}

/// A call as it goes to the server: what the client sent, and what has to be changed in it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The client's request.
    pub message: &'a Message<'a>,
    /// Where the client's name for something stands, and the server's own name for it.
    pub rename: Option<(Span, &'a str)>,
    /// Where the client's progress token stands.
    pub token: Option<Span>,
    /// How long the answer may take.
    pub patience: Duration,
    /// Where the answer goes.
    pub reply: Reply,
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
    /// The server's answer to `initialize`, raw.
    greeting: OnceLock<String>,
}

impl Upstream {
    /// A server behind a link.
    pub fn new(name: String, most: usize, link: Sender<Farewell>) -> Arc<Self> {
        Arc::new(Self { name, mux: Mutex::new(Mux::new(most)), link, greeting: OnceLock::new() })
    }

    /// The name it registered with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue towards the edge.
    pub fn link(&self) -> &Sender<Farewell> {
        &self.link
    }

    /// The server's answer to `initialize`, raw; `None` before it came.
    pub fn greeting(&self) -> Option<&str> {
        self.greeting.get().map(String::as_str)
    }

    /// Remembers the server's answer to `initialize`.
    pub fn greeted(&self, result: &str) {
        self.greeting.get_or_init(|| result.to_owned());
    }

    /// Whether the server declares a capability.
    pub fn has(&self, capability: &str) -> bool {
        let declared = |result: &str| jsonrpc::find(result, 0..result.len(), &["capabilities", capability]);
        self.greeting().is_some_and(|result| matches!(declared(result), Ok(Some(_))))
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
            let caller = Caller::Client(client.clone(), id.into(), call.reply.clone());
            let opened = self.mux().open(now, caller, call.message.method(), token, call.patience);
            let upstream_id = opened.map_err(|refused| match refused {
                mux::Refused::Busy => Declined::Server,
                mux::Refused::Gone => Declined::Gone,
            })?;
            calls.begin(id, self.clone(), upstream_id);
            upstream_id
        };
        let text = rewrite::request(call.message, upstream_id, call.rename.clone(), call.token.clone());
        let Err(refused) = self.link.send(text) else { return Ok(()) };
        if self.mux().close(upstream_id).is_none() {
            // The link went meanwhile, and whoever saw that has failed the call already.
            return Ok(());
        }
        client.calls().end(id);
        Err(if refused == Refused::Full { Declined::Link } else { Declined::Gone })
    }

    /// Asks the server for something without waiting for the answer.
    pub fn tell(&self, now: Instant, method: &str, params: &str, patience: Duration) {
        let Ok(id) = self.mux().open(now, Caller::Nobody, method, None, patience) else { return };
        // A link that is full or gone forgets the request by itself.
        let _ = self.link.send(jsonrpc::request(&id.to_string(), method, params));
    }

    /// Tells the server to stop working on a request. `notification` is the client's own, with the place of its
    /// request id; without one, the reason.
    pub fn cancel(&self, upstream_id: u64, notification: Result<(&Message<'_>, Span), &str>, stats: &Stats) {
        let Some(pending) = self.mux().close(upstream_id) else { return };
        let text = match notification {
            Ok((message, span)) => rewrite::cancellation(message, span, upstream_id),
            Err(reason) => rewrite::cancelled(upstream_id, reason),
        };
        // A link that is full or gone forgets the request by itself.
        let _ = self.link.send(text);
        if let Caller::Client(_, id, reply) = pending.caller {
            reply.cancelled(&id, stats);
        }
    }

    /// The link is gone: everybody who waits is told.
    pub fn fail_all(&self, reason: &str, stats: &Stats) {
        let pending = self.mux().drain();
        for pending in pending {
            let text = format!("server '{}' went away: {reason}", self.name);
            fail(pending, jsonrpc::INTERNAL_ERROR, &text, stats);
        }
    }

    /// Fails the requests whose time is up, and tells the server to stop. Those of the conversation are handed back.
    pub fn expire(&self, now: Instant, stats: &Stats) -> Vec<Pending<Caller>> {
        let mut expired = Vec::new();
        self.mux().tick(now, &mut expired);
        let mut own = Vec::new();
        for (id, pending) in expired {
            let seconds = pending.patience.as_secs_f64();
            log::info!("server '{}' did not answer {} in {seconds} s", self.name, pending.method);
            if &*pending.method != "initialize" {
                let _ = self.link.send(rewrite::cancelled(id, "no answer in time"));
            }
            if matches!(pending.caller, Caller::Conversation) {
                own.push(pending);
            } else {
                let text = format!("server '{}' did not answer within {seconds} s", self.name);
                fail(pending, jsonrpc::TIMED_OUT, &text, stats);
            }
        }
        own
    }
}

/// Gives an answer to who waits for it, under the client's own id.
pub fn deliver(pending: Pending<Caller>, message: &Message<'_>, stats: &Stats) {
    if let Caller::Client(client, id, reply) = pending.caller {
        let asked = client.calls().end(&id).map(|(upstream, _)| upstream);
        reply.finish(fit(&client, asked.as_deref(), &pending.method, message, &id), stats);
    }
}

/// An answer under the client's id, without types of content that the client's version does not know.
fn fit(client: &Client, asked: Option<&Upstream>, method: &str, message: &Message<'_>, id: &str) -> String {
    let version = client.facts().version.clone();
    let server =
        asked.filter(|_| bridge::concerns(&version)).and_then(Upstream::greeting).and_then(mcp::version_of);
    let mut edits = match server {
        Some(server) => bridge::edits(method, &version, &server, message),
        None => Vec::new(),
    };
    let Some(span) = message.id_span().filter(|_| !edits.is_empty()) else { return message.with_id(id) };
    edits.push((span, id.to_owned()));
    edits.sort_unstable_by_key(|(span, _)| span.start);
    let edits: Vec<(Span, &str)> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
    message.splice(&edits)
}

/// Fails a request with an error of ours.
fn fail(pending: Pending<Caller>, code: i64, text: &str, stats: &Stats) {
    if let Caller::Client(client, id, reply) = pending.caller {
        client.calls().end(&id);
        reply.finish(jsonrpc::error(&id, code, text), stats);
    }
}
