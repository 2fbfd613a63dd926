//! `subscriptions/listen` of MCP 2026-07-28: a POST that is answered by an event stream, which stays
//! open until the client or the gateway ends it. There is no resumption: a client listens again.

use std::{any::Any, io, sync::Arc, time::Instant};

use super::post::{Form, refuse};
use crate::{
    gateway::{event_stream, exchange::Exchange, state::Gateway},
    http::{response::Response, types::StatusCode},
    hub::{
        entry::{self, Enter},
        listener::Listener,
        peers::SessionStream,
        session::Scope,
    },
    jsonrpc::{self, Message, RpcError},
    mcp::stateless::Params,
    metrics::Stats,
    net::outbox::{Receiver, SendError, Sender},
    session::ListenKey,
};

/// A listen that is open in the hub.
pub struct Listen {
    queue: Receiver<()>,
    id: String,
    /// Dropped when the client has gone or the stream has ended.
    _guard: CloseGuard,
}

/// Ends a listen when dropped.
struct CloseGuard {
    gateway: Arc<Gateway>,
    key: ListenKey,
}

impl Drop for CloseGuard {
    fn drop(&mut self) {
        self.gateway.enter(|hub, fx| hub.close_listen(Instant::now(), self.key, fx));
    }
}

impl Listen {
    /// Opens a listen.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn begin(
        exchange: &Exchange<'_>,
        scope: &Scope,
        parsed: (&Message<'_>, &Params),
    ) -> Result<Self, RpcError> {
        let gateway = exchange.gateway;
        let account = gateway.account(exchange.principal);
        let (sender, queue) = gateway.client_queue(&account);
        let stream = Arc::new(ListenStream { queue: sender });
        let listener = Listener { principal: exchange.principal, account, scope: scope.clone(), stream };
        let limits = &gateway.config.limits.stateless;
        let key = entry::listen(&**gateway, Instant::now(), listener, parsed, limits)?;
        let guard = CloseGuard { gateway: gateway.clone(), key };
        Ok(Self { queue, id: parsed.0.id().unwrap_or("null").to_owned(), _guard: guard })
    }

    /// Writes the event stream, to its end.
    ///
    /// # Errors
    /// The connection broke, or the client does not read.
    pub async fn answer(mut self, exchange: &mut Exchange<'_>, form: Form) -> io::Result<Option<Response>> {
        if form == Form::Json {
            let why = "subscriptions/listen is answered by an event stream; accept text/event-stream";
            return Ok(Some(refuse(StatusCode::NotAcceptable, &self.id, jsonrpc::INVALID_REQUEST, why)));
        }
        exchange.start_stream(event_stream::head());
        let Exchange { gateway, web, .. } = exchange;
        Box::pin(event_stream::write(gateway, web, &mut self.queue, Vec::new(), None)).await?;
        Ok(None)
    }
}

/// The stream of a listen. It ends when the client does not keep up, since a client that misses a
/// change would not know.
#[derive(Debug)]
struct ListenStream {
    queue: Sender<()>,
}

impl SessionStream for ListenStream {
    fn open_streams(&self) -> usize {
        usize::from(!self.queue.is_closed())
    }

    fn send(&self, message: String, stats: &Stats) {
        if let Err(SendError::Full | SendError::Memory) = self.queue.send(message) {
            stats.slow_clients.add();
            log::warn!("a client does not keep up with its listen; ending that");
            self.queue.end(());
        }
    }

    fn notice(&self, notice: &str, stats: &Stats) {
        if !self.queue.has(notice) {
            self.send(notice.to_owned(), stats);
        }
    }

    /// Servers of this protocol send no requests.
    fn request(&self, _: String, _: &Stats) -> bool {
        false
    }

    fn end(&self) {
        self.queue.end(());
    }

    fn close(&self) {
        self.queue.end(());
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
