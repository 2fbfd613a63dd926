//! One HTTP connection: checks and routes each request.

use std::{borrow::Cow, io, sync::Arc, time::Instant};

use super::{
    accept::ConnectionPermit,
    authn::{AuthError, AuthRequest},
    endpoint::{legacy_sse, status, streamable},
    exchange::{Buffers, Cors, Exchange, busy},
    link::{self, Permits, RegisteredLink, ResumeHandles},
    shares::Share,
    state::Gateway,
};
use crate::{
    auth::{Denied, Permissions, Principal, throttle::origin},
    http::{
        body::is_token,
        conn::Step,
        head::Request,
        response::Response,
        types::{Method, StatusCode},
        upgrade::Upgrade,
    },
    hub::{entry::Enter, session::Scope},
    net::{http_conn::HttpConnection, stream::Stream, ws_link},
    router::{self, Forbidden, Route, Unrouted},
    tunnel::REFUSAL,
};

/// A client's HTTP connection and the permit that it holds.
pub struct Connection {
    gateway: Arc<Gateway>,
    resume_handles: Arc<ResumeHandles>,
    web: HttpConnection,
    permit: ConnectionPermit,
    /// The principal authenticated last over this connection.
    authenticated: Option<Principal>,
    buffers: Buffers,
}

/// What the connection does after a request.
enum AfterRequest {
    Next,
    Upgrade(Upgrade, Principal, Share),
}

/// A connection that is being upgraded to a link.
pub struct NewLink {
    connection: Connection,
    upgrade: Upgrade,
    principal: Principal,
    share: Share,
}

impl NewLink {
    /// Upgrades the connection and registers or resumes its server. Returns `None` if the link has
    /// ended. Drops the HTTP state, so that an idle link does not hold it.
    pub async fn register(self: Box<Self>) -> Option<(RegisteredLink, Permits)> {
        let Self { connection, upgrade, principal, share } = *self;
        let guard = connection.gateway.links.track();
        let peer = connection.web.stream.peer();
        let Connection { gateway, resume_handles, web, permit, .. } = connection;
        let (stream, leftover) = match web.upgrade(&upgrade).await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                log::debug!("connection with {peer} failed: {error}");
                return None;
            }
        };
        let account = gateway.account(principal);
        let socket = ws_link::accepted(stream, leftover, &account, &gateway.config.limits.link).await;
        let link = link::enter((gateway, resume_handles), socket, principal, peer).await?;
        Some((link, (guard, share, permit)))
    }
}

impl Connection {
    /// Creates the state of an accepted connection, after its TLS handshake.
    pub fn new(
        gateway: Arc<Gateway>,
        resume_handles: Arc<ResumeHandles>,
        stream: Stream,
        permit: ConnectionPermit,
    ) -> Self {
        let (draining, stopped) = (gateway.draining.clone(), gateway.stopped.clone());
        let web = HttpConnection::new(stream, &gateway.config.limits.http, draining, stopped);
        Self { gateway, resume_handles, web, permit, authenticated: None, buffers: Buffers::default() }
    }

    /// Serves requests until the connection ends or is upgraded to a link.
    pub async fn serve(mut self) -> Option<Box<NewLink>> {
        let peer = self.web.stream.peer();
        loop {
            match self.turn().await {
                Ok(Some(AfterRequest::Next)) => {}
                Ok(Some(AfterRequest::Upgrade(upgrade, principal, share))) => {
                    return Some(Box::new(NewLink { connection: self, upgrade, principal, share }));
                }
                Ok(None) => break,
                Err(error) => {
                    log::debug!("connection with {peer} failed: {error}");
                    return None;
                }
            }
        }
        self.web.finish().await;
        None
    }

    /// Handles one request. Returns `None` at the end of the connection.
    async fn turn(&mut self) -> io::Result<Option<AfterRequest>> {
        let step = self.web.advance().await?;
        self.buffers.drop_response();
        match step {
            Step::Request(request) => self.request(request).await.map(Some),
            Step::Refuse(response) => {
                self.gateway.stats.refused.add();
                self.web.answer(&response);
                Ok(Some(AfterRequest::Next))
            }
            Step::Body | Step::Close | Step::Drain | Step::Read => Ok(None),
        }
    }

    /// Checks a request and answers it.
    async fn request(&mut self, request: Request) -> io::Result<AfterRequest> {
        let policy = &self.gateway.policy;
        let route = policy.route(&request);
        let admitted = policy.admit(&request, route.as_ref().ok());
        let cors = Cors::new(policy, &request, admitted.is_ok());
        let (route, principal) = match self.check(&request, route, admitted) {
            Ok(checked) => checked,
            Err(response) => {
                self.web.answer(&cors.add(marked(response, &request)));
                return Ok(AfterRequest::Next);
            }
        };
        if self.is_authenticated(route) {
            self.permit.authenticated();
        }
        // POSTs are still read while draining, and `dispatch` decides for each message: a running
        // call may need an answer from its client, or be cancelled.
        let begins = matches!(route, Route::Health | Route::EventStream(_) | Route::Register);
        if begins && self.gateway.draining.is_triggered() {
            self.web.answer(&cors.add(busy("the gateway is stopping\n")));
            return Ok(AfterRequest::Next);
        }
        self.serve_route(route, principal, &request, cors).await
    }

    /// Checks token, role, origin and route of a request. Nothing else of the request is acted on
    /// before.
    fn check<'a>(
        &mut self,
        request: &Request,
        route: Result<Route<'a>, Unrouted>,
        admitted: Result<(), Forbidden>,
    ) -> Result<(Route<'a>, Principal), Response> {
        let grant = match route {
            // A browser's preflight never carries a token, and a health check need not. Neither
            // reveals anything.
            Ok(Route::Preflight | Route::Health) => Permissions::OPEN,
            // 404, not 401, for unknown paths: clients probe for OAuth metadata, and could take a
            // 401 to mean that the metadata is at this path.
            Err(Unrouted::Path) => {
                admitted.map_err(forbidden)?;
                return Err(Response::new(StatusCode::NotFound).text("not found\n"));
            }
            _ => self.identify(request)?,
        };
        // Checked before the route: a token with one role must not learn which other paths exist.
        let may = match &route {
            Ok(Route::Register) => grant.register,
            _ => grant.client,
        };
        if !may {
            self.gateway.stats.denied.add();
            log::debug!(
                "denied a request from {}: the token does not have the required role",
                self.web.stream.peer()
            );
            return Err(
                Response::new(StatusCode::Forbidden).text("this token does not have the required role\n")
            );
        }
        admitted.map_err(forbidden)?;
        match route {
            Ok(route) => Ok((route, grant.principal)),
            Err(Unrouted::Method(allowed)) => Err(Response::new(StatusCode::MethodNotAllowed)
                .field("Allow", allowed)
                .text("method not allowed\n")),
            Err(Unrouted::Path) => Err(Response::new(StatusCode::NotFound).text("not found\n")),
        }
    }

    /// Returns whether a request for `route` that passed [`Self::check`] proves that its sender is
    /// authenticated.
    fn is_authenticated(&self, route: Route) -> bool {
        match route {
            Route::Preflight => false,
            Route::Health => self.gateway.authn.tokens().is_empty(),
            _ => true,
        }
    }

    /// Authenticates the request.
    fn identify(&mut self, request: &Request) -> Result<Permissions, Response> {
        let (gateway, peer) = (&self.gateway, self.web.stream.peer());
        let owner = || {
            let id = request.field("mcp-session-id").map(Cow::Borrowed);
            id.or_else(|| request.query("session_id")).and_then(|id| gateway.enter(|hub, _| hub.owner(&id)))
        };
        let fields = request.fields("authorization");
        let from = origin(peer.ip(), &gateway.config.trusted_proxies, request.fields("x-forwarded-for"));
        // A proxy sends the requests of many clients over one connection, so an earlier request
        // says nothing about the sender of this one.
        let proven = self.authenticated.filter(|_| !gateway.config.trusted_proxies.contains(&peer.ip()));
        let asking = AuthRequest { from, fields, authenticated: proven, owner: &owner };
        let checked = gateway.authn.check(Instant::now(), asking);
        match checked {
            Ok(grant) => {
                self.authenticated = Some(grant.principal);
                Ok(grant)
            }
            Err(AuthError::Denied(why)) => Err(self.denied(why)),
            Err(AuthError::Throttled(wait)) => {
                gateway.stats.throttled.add();
                log::debug!("rate-limited {peer}: too many invalid tokens");
                // Rounded up, so that a client that retries after this time is not early.
                let seconds = (wait.as_secs() + 1).to_string();
                let response = Response::new(StatusCode::TooManyRequests).field("Retry-After", &seconds);
                Err(response.text("too many invalid tokens\n"))
            }
        }
    }

    /// Builds the response to a request that is not authenticated. It has no error code when no
    /// token was sent (RFC 6750, section 3).
    fn denied(&self, why: Denied) -> Response {
        self.gateway.stats.denied.add();
        log::debug!("denied a request from {}: {why:?}", self.web.stream.peer());
        let unauthorized = Response::new(StatusCode::Unauthorized);
        match why {
            Denied::Missing => {
                unauthorized.field("WWW-Authenticate", "Bearer").text("a bearer token is required\n")
            }
            Denied::Several => {
                Response::new(StatusCode::BadRequest).text("more than one Authorization field\n")
            }
            Denied::Wrong => unauthorized
                .field("WWW-Authenticate", "Bearer error=\"invalid_token\"")
                .text("invalid token\n"),
        }
    }

    /// Answers a request that passed all checks.
    async fn serve_route(
        &mut self,
        route: Route<'_>,
        principal: Principal,
        request: &Request,
        cors: Cors<'_>,
    ) -> io::Result<AfterRequest> {
        if let Route::Register = route {
            match self.admit_link(principal, request) {
                Ok((upgrade, share)) => return Ok(AfterRequest::Upgrade(upgrade, principal, share)),
                Err(response) => self.web.answer(&cors.add(marked(response, request))),
            }
            return Ok(AfterRequest::Next);
        }
        let Self { gateway, web, buffers, .. } = self;
        let mut exchange = Exchange::new(gateway, web, buffers, (request, principal), cors);
        if let Some(response) = respond(&mut exchange, route).await? {
            exchange.answer(response);
        }
        Ok(AfterRequest::Next)
    }

    fn admit_link(&self, principal: Principal, request: &Request) -> Result<(Upgrade, Share), Response> {
        let upgrade = Upgrade::check(request)?;
        if self.gateway.links.len() >= self.gateway.config.limits.link.links {
            let peer = self.web.stream.peer();
            let line = format_args!("rejected a registration from {peer}: too many links");
            self.gateway.warn_throttled("links", peer.ip(), line);
            return Err(busy("too many registered servers (--max-links)\n"));
        }
        let share = self.gateway.link_shares.take(principal, self.gateway.enter(|hub, _| hub.links_each()));
        let share = share.ok_or_else(|| {
            let peer = self.web.stream.peer();
            let line = format_args!(
                "rejected a registration from {peer}: its principal has reached its share of the links"
            );
            self.gateway.warn_throttled("link_share", peer.ip(), line);
            busy("this principal has reached its share of the links (half of --max-links)\n")
        })?;
        Ok((upgrade, share))
    }
}

/// Returns the response of the endpoint that serves a route. `None`: the endpoint has answered
/// already, or the connection has ended.
async fn respond(exchange: &mut Exchange<'_>, route: Route<'_>) -> io::Result<Option<Response>> {
    let scope = |name: Option<&str>| name.map_or(Scope::All, |name| Scope::Server(name.to_owned()));
    Ok(match route {
        Route::Health => Some(Response::new(StatusCode::Ok).field("Cache-Control", "no-store").text("ok")),
        Route::Preflight => Some(preflight(exchange.request)),
        Route::Status => Some(status::status(exchange.gateway, exchange.principal).await),
        Route::Messages => legacy_sse::messages(exchange).await?,
        Route::Mcp(name) => streamable::serve(exchange, scope(name)).await?,
        Route::EventStream(name) => match legacy_sse::admit(exchange, scope(name)) {
            Ok(opened) => {
                let prefix = prefix(exchange);
                Box::pin(legacy_sse::serve(exchange, prefix, opened)).await?;
                None
            }
            Err(response) => Some(response),
        },
        // An upgrade leaves HTTP, so the connection serves it itself.
        Route::Register => None,
    })
}

/// Returns the path prefix under which the client reaches the gateway: that of `X-Forwarded-Prefix`
/// if a trusted proxy sent exactly one valid value, else the configured one.
fn prefix(exchange: &Exchange<'_>) -> String {
    let (config, peer) = (&exchange.gateway.config, exchange.web.stream.peer().ip().to_canonical());
    let mut named =
        exchange.request.fields("x-forwarded-prefix").filter(|_| config.trusted_proxies.contains(&peer));
    let prefix = match (named.next(), named.next()) {
        (Some(one), None) => router::prefix(one),
        _ => None,
    };
    prefix.unwrap_or(&config.public_prefix).to_owned()
}

/// Marks a refused upgrade as the gateway's own, so that an edge can tell it from the refusal of a
/// proxy in between.
fn marked(response: Response, request: &Request) -> Response {
    if !request.lists("upgrade", "websocket") {
        return response;
    }
    let word = match response.status() {
        StatusCode::Unauthorized => "unauthorized",
        StatusCode::Forbidden => "forbidden",
        StatusCode::NotFound => "not-found",
        StatusCode::TooManyRequests => "throttled",
        StatusCode::ServiceUnavailable => "busy",
        _ => "bad-request",
    };
    response.field(REFUSAL, word)
}

fn forbidden(why: Forbidden) -> Response {
    let mut text = why.reason().to_owned();
    text.push('\n');
    Response::new(StatusCode::Forbidden).text(&text)
}

/// Answers a CORS preflight: allows the methods, the fields in [`FIELDS`], and every other field
/// that is requested.
///
/// Requests from origins that are not allowed never get here: they are answered with 403.
fn preflight(request: &Request) -> Response {
    let methods = [Method::Get, Method::Post, Method::Delete].map(|method| method.to_string()).join(", ");
    let mut fields = FIELDS.join(", ");
    let asked = request.fields("access-control-request-headers").flat_map(|field| field.split(','));
    for name in asked.map(str::trim).filter(|name| is_own_field(name)) {
        fields.push_str(", ");
        fields.push_str(name);
    }
    Response::new(StatusCode::NoContent)
        .field("Access-Control-Allow-Methods", &methods)
        .field("Access-Control-Allow-Headers", &fields)
        .field("Access-Control-Max-Age", "600")
}

/// Returns whether `name` is a valid field name that [`FIELDS`] does not contain. `*` is rejected,
/// because it would allow all fields.
fn is_own_field(name: &str) -> bool {
    let token = !name.is_empty() && name != "*" && name.bytes().all(is_token);
    token && !FIELDS.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

/// Request fields that clients of MCP send, always allowed.
const FIELDS: [&str; 8] = [
    "Authorization",
    "Content-Type",
    "Accept",
    "Mcp-Session-Id",
    "MCP-Protocol-Version",
    "Last-Event-ID",
    "Mcp-Method",
    "Mcp-Name",
];
