//! Requests of MCP 2026-07-28, which have no session, on the URLs of the Streamable HTTP transport:
//! one POST for each, answered by JSON or by an event stream. A response cannot be resumed: a
//! client that closes the connection cancels its request.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use super::{
    listen::Listen,
    post::{Form, Gathered, gather, leave_answers, names_events},
};
use crate::{
    gateway::{
        event_stream,
        exchange::{Exchange, busy},
        responder::PostResponder,
        state::Gateway,
    },
    http::{head::Request, response::Response, types::StatusCode},
    hub::{
        entry::{self, Enter},
        error::{CallError, NO_MEMORY, modern_error},
        peers::Responder,
        session::Scope,
        stateless::Sender,
        waiting::PendingCall,
    },
    jsonrpc::{HEADER_MISMATCH, Malformed, Message},
    limits,
    mcp::stateless::{
        Envelope, Params, PostRoute, Rejection,
        headers::{self, Header, RoutingHeaders, VersionHeader},
        route, status,
    },
    net::outbox::Receiver,
};

/// Returns whether a GET or DELETE is one of the stateless protocol, by its version field.
pub fn is_stateless(request: &Request) -> bool {
    VersionHeader::read(request.fields(headers::VERSION)).is_modern()
}

/// Returns the response to a GET or DELETE of the stateless protocol: 405.
pub fn only_post() -> Response {
    Response::new(StatusCode::MethodNotAllowed).field("Allow", "POST").text("method not allowed\n")
}

/// What a POST turned out to be.
pub enum Begun {
    /// A message for a session, which `streamable` handles.
    Legacy,
    /// A notification, which has no effect.
    Dropped,
    /// A request that is refused, with the response.
    Refused(Response),
    /// A request without a session, which was given to the hub.
    Call(StatelessCall),
    /// It is a listen of such a client.
    Listen(Listen),
}

/// Starts the request in a POST, if it is one of the stateless protocol. `read` is its parsed body.
pub fn begin(exchange: &Exchange<'_>, scope: &Scope, read: Result<&Message<'_>, Malformed>) -> Begun {
    let request = exchange.request;
    let version = VersionHeader::read(request.fields(headers::VERSION));
    let id = read.ok().and_then(Message::id).unwrap_or("null");
    let message = match (route::route(read, version), read) {
        (PostRoute::Modern, Ok(message)) => message,
        (PostRoute::Modern | PostRoute::Legacy, _) => return Begun::Legacy,
        (PostRoute::Drop, _) => return Begun::Dropped,
        (PostRoute::Refuse(why), _) => return Begun::Refused(rejected(id, &why)),
    };
    match check(exchange, message, version) {
        Ok((params, _)) if message.method() == "subscriptions/listen" => {
            match Listen::begin(exchange, scope, (message, &params)) {
                Ok(listen) => Begun::Listen(listen),
                Err(why) => {
                    let status = status_code(status::status(Some(why.code)));
                    Begun::Refused(Response::new(status).json(why.response(id)))
                }
            }
        }
        Ok(parsed) => Begun::Call(StatelessCall::begin(exchange, scope, (message, parsed.0, parsed.1))),
        Err(response) => Begun::Refused(response),
    }
}

/// Makes all checks that need no server: params, header fields, envelope, drain and memory.
///
/// # Errors
/// The response that refuses the request: 400, 404 or 503.
fn check<'m>(
    exchange: &Exchange<'_>,
    message: &'m Message<'m>,
    version: VersionHeader<'_>,
) -> Result<(Params, Envelope<'m>), Response> {
    let id = message.id().unwrap_or("null");
    let params = Params::read(message).map_err(|why| rejected(id, &Rejection::Malformed(why)))?;
    let headers = RoutingHeaders {
        version,
        method: Header::read(exchange.request.fields(headers::METHOD)),
        name: Header::read(exchange.request.fields(headers::NAME)),
    };
    let envelope = route::check(message, &params, &headers).map_err(|why| rejected(id, &why))?;
    let gateway = exchange.gateway;
    if gateway.draining.is_triggered() {
        let error = modern_error(&CallError::Draining).response(id);
        return Err(Response::new(StatusCode::ServiceUnavailable).field("Retry-After", "1").json(error));
    }
    if !gateway.account(exchange.principal).has(limits::BUDGET_SMALL) {
        gateway.stats.memory_refusals.add();
        return Err(busy(&format!("{NO_MEMORY}\n")));
    }
    Ok((params, envelope))
}

fn rejected(id: &str, why: &Rejection) -> Response {
    Response::new(status_code(why.status())).json(why.rpc().response(id))
}

fn status_code(status: u16) -> StatusCode {
    match status {
        200 => StatusCode::Ok,
        404 => StatusCode::NotFound,
        _ => StatusCode::BadRequest,
    }
}

/// A request that waits for its response.
pub struct StatelessCall {
    queue: Receiver<()>,
    responder: Arc<PostResponder>,
    /// Dropped when the client has gone or the response is written.
    _guard: CancelGuard,
}

/// Cancels a call when dropped, if it is not answered by then.
struct CancelGuard {
    gateway: Arc<Gateway>,
    call: Option<PendingCall>,
    /// The stream on which it is answered.
    stream: usize,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            let call = (call, self.stream);
            self.gateway.enter(|hub, fx| hub.cancel_stateless(Instant::now(), call, fx));
        }
    }
}

impl StatelessCall {
    /// Gives a request to the hub.
    fn begin(exchange: &Exchange<'_>, scope: &Scope, parsed: (&Message<'_>, Params, Envelope<'_>)) -> Self {
        let (gateway, principal) = (exchange.gateway, exchange.principal);
        let account = gateway.account(principal);
        let (sender, queue) = gateway.client_queue(&account);
        let max = gateway.config.limits.session.batch_bytes;
        let responder = Arc::new(PostResponder::new(sender, 1, max, &gateway.running));
        let answered: Arc<dyn Responder> = responder.clone();
        let now = Instant::now();
        let sender = Sender { now, principal, account: &account, scope, responder: &answered };
        let request = exchange.request;
        let field = |name: &str| Header::read(request.fields(name));
        let call = entry::stateless(&**gateway, sender, parsed, &field, &gateway.config.limits.stateless);
        let guard = CancelGuard { gateway: gateway.clone(), call, stream: responder.stream_key() };
        Self { queue, responder, _guard: guard }
    }

    /// Sends the response: as JSON if it is the first message, as an event stream otherwise.
    /// Returns the response if it is JSON, and `None` if it was streamed or the client has gone.
    ///
    /// # Errors
    /// The connection broke, or the client does not read.
    pub async fn answer(mut self, exchange: &mut Exchange<'_>, form: Form) -> io::Result<Option<Response>> {
        let mut messages = VecDeque::new();
        // A client that did not list text/event-stream may not handle it.
        let silent = (form == Form::Either && names_events(exchange.request))
            .then(|| Instant::now() + exchange.gateway.config.limits.session.stream_after);
        let plain = form != Form::Events
            && loop {
                let gathered =
                    gather(exchange.web, &mut self.queue, &self.responder, &mut messages, silent).await?;
                match gathered {
                    Gathered::Complete => break true,
                    Gathered::Begun if form == Form::Json => leave_answers(&mut messages, false),
                    Gathered::Begun => break false,
                    Gathered::Gone => return Ok(None),
                }
            };
        if form == Form::Json {
            leave_answers(&mut messages, false);
        }
        if plain && messages.len() == 1 {
            let body = messages.pop_front().unwrap_or_default();
            exchange.keep_charged(self.queue);
            let status = match self.responder.error() {
                // Of the gateway: that of a server is relayed as an internal error.
                Some(HEADER_MISMATCH) => StatusCode::BadRequest,
                error => status_code(status::status(error)),
            };
            return Ok(Some(Response::new(status).json(body)));
        }
        exchange.start_stream(event_stream::head());
        let mut first = Vec::new();
        event_stream::append(messages, None, &mut first);
        let Exchange { gateway, web, .. } = exchange;
        Box::pin(event_stream::write(gateway, web, &mut self.queue, first, None)).await?;
        Ok(None)
    }
}
