//! One HTTP request that was authenticated, admitted and routed, and what it takes to answer it.
//!
//! `connection` creates an [`Exchange`] for each request. The endpoints read the body and write the
//! response through it, and know nothing of the connection.

use std::{io, ops::ControlFlow, sync::Arc, time::Instant};

use super::state::Gateway;
use crate::{
    auth::Principal,
    http::{conn::Step, head::Request, response::Response, types::StatusCode},
    hub::{entry::Enter, key::SessionKey, session::Scope},
    net::{http_conn::HttpConnection, outbox::Receiver},
    router::Policy,
    session,
};

/// A request, its principal, and the connection that carries it.
pub struct Exchange<'a> {
    /// The gateway that serves it.
    pub gateway: &'a Arc<Gateway>,
    /// Its connection.
    pub web: &'a mut HttpConnection,
    /// Its head.
    pub request: &'a Request,
    /// Its authenticated principal.
    pub principal: Principal,
    cors: Cors<'a>,
    buffers: &'a mut Buffers,
}

/// What a connection holds in memory for its current request.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The queue of the response that is being written. Its bytes stay charged to the queue until
    /// they are sent.
    response: Option<Receiver<()>>,
    /// The principal whose account is charged for request bodies.
    body: Option<Principal>,
}

impl Buffers {
    /// Frees the response, which has been sent.
    pub fn drop_response(&mut self) {
        self.response = None;
    }
}

/// The CORS fields of the response to one request.
#[derive(Clone, Copy, Debug)]
pub struct Cors<'a> {
    /// The origin of the page that may read the response. `None` if CORS is disabled, or if the
    /// request has no origin or was not admitted.
    origin: Option<&'a str>,
}

impl<'a> Cors<'a> {
    /// Returns the CORS fields for a request. A page whose request was not `admitted` must not be
    /// able to read the reason either.
    pub fn new(policy: &Policy, request: &'a Request, admitted: bool) -> Self {
        Self { origin: request.field("origin").filter(|_| policy.cors && admitted) }
    }

    /// Adds the fields that let a page of the request's origin read the response.
    pub fn add(self, response: Response) -> Response {
        match self.origin {
            Some(origin) => response
                .field("Access-Control-Allow-Origin", origin)
                .field("Access-Control-Expose-Headers", "Mcp-Session-Id, WWW-Authenticate")
                .field("Vary", "Origin"),
            None => response,
        }
    }
}

impl<'a> Exchange<'a> {
    /// Creates the exchange of a request that passed all checks. `buffers` outlive it: they belong
    /// to the connection.
    pub fn new(
        gateway: &'a Arc<Gateway>,
        web: &'a mut HttpConnection,
        buffers: &'a mut Buffers,
        (request, principal): (&'a Request, Principal),
        cors: Cors<'a>,
    ) -> Self {
        Self { gateway, web, request, principal, cors, buffers }
    }

    /// Reads the body of the request into `web`. Breaks with the response that refuses the body, or
    /// with `None` when the connection has ended.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn read_json(&mut self) -> io::Result<ControlFlow<Option<Response>>> {
        if !is_json(self.request) {
            let refusal = Response::new(StatusCode::UnsupportedMediaType)
                .text("unsupported media type; send application/json\n");
            return Ok(ControlFlow::Break(Some(refusal)));
        }
        if self.buffers.body.is_none_or(|charged| charged != self.principal) {
            self.web.charge_body(&self.gateway.account(self.principal));
            self.buffers.body = Some(self.principal);
        }
        self.web.conn.take_body(Instant::now(), &mut self.web.out);
        Ok(match self.web.advance().await? {
            Step::Body => ControlFlow::Continue(()),
            Step::Refuse(response) => {
                self.gateway.stats.refused.add();
                ControlFlow::Break(Some(response))
            }
            _ => ControlFlow::Break(None),
        })
    }

    /// Queues the response to the request.
    pub fn answer(&mut self, response: Response) {
        let response = self.cors.add(response);
        self.web.answer(&response);
    }

    /// Begins a response that is written piece by piece, such as an event stream.
    pub fn start_stream(&mut self, head: Response) {
        let head = self.cors.add(head);
        self.web.start_stream(&head);
    }

    /// Keeps the queue that the response came from until the response is sent, so that its bytes
    /// stay charged.
    pub fn keep_charged(&mut self, queue: Receiver<()>) {
        self.buffers.response = Some(queue);
    }

    /// Returns 404 if the session's server is not connected. Only new sessions need it: an open one
    /// outlives a disconnect, and goes on when the server is back.
    ///
    /// # Errors
    /// The response that refuses the session.
    pub fn need_connected(&self, scope: &Scope) -> Result<(), Response> {
        match scope {
            Scope::Server(name) if !self.gateway.enter(|hub, _| hub.is_connected(name)) => {
                Err(Response::new(StatusCode::NotFound).text("no such server is connected\n"))
            }
            _ => Ok(()),
        }
    }

    /// Lets clients find a session.
    ///
    /// # Errors
    /// The response that refuses it: 503 or 429, at a session limit.
    pub fn open_session(&self, session: SessionKey) -> Result<(), Response> {
        let now = Instant::now();
        self.gateway.enter(|hub, fx| hub.open_session(now, session, fx)).map_err(no_session)
    }
}

/// Returns whether the request's content type is JSON. A missing `Content-Type` is accepted, as the
/// original program does.
fn is_json(request: &Request) -> bool {
    let Some(field) = request.field("content-type") else { return true };
    let kind = field.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Returns a 503 with `Retry-After: 1`. `text` names the limit; `gateway` lists the limits.
pub fn busy(text: &str) -> Response {
    Response::new(StatusCode::ServiceUnavailable).field("Retry-After", "1").text(text)
}

/// Returns the response for a session beyond the limits.
fn no_session(full: session::Full) -> Response {
    match full {
        session::Full::All => busy("too many sessions (--max-client-sessions)\n"),
        session::Full::Token => Response::new(StatusCode::TooManyRequests)
            .field("Retry-After", "1")
            .text("too many sessions of this token (--max-sessions-per-token)\n"),
    }
}
