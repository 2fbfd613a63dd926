//! One HTTP connection: checks and routes each request.

use std::{borrow::Cow, io, ops::ControlFlow, sync::Arc, time::Instant};

use super::{
    Gateway,
    accept::ConnectionPermit,
    authn::{AuthError, AuthRequest},
    endpoint::{legacy_sse, streamable},
    event_stream, link,
    session::{Scope, Session},
    shares::Share,
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
    net::{http_conn::HttpConnection, outbox::Receiver, stream::Stream, ws_link},
    router::{self, Forbidden, Route, Unrouted},
    session,
    tunnel::REFUSAL,
};

/// A client's HTTP connection and the permit that it holds.
pub struct Connection {
    pub(super) gateway: Arc<Gateway>,
    pub(super) web: HttpConnection,
    permit: ConnectionPermit,
    /// The principal authenticated last over this connection.
    authenticated: Option<Principal>,
    /// The queue of the response that is being written. Its bytes stay charged to the queue until
    /// they are sent.
    pub(super) answering: Option<Receiver<()>>,
    /// The principal whose account is charged for request bodies.
    charged: Option<Principal>,
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
    /// Serves the link until it ends. The HTTP state and the state of the registration are dropped
    /// as soon as they are no longer needed, so that an idle link holds neither.
    pub async fn serve(self) {
        let Self { connection, upgrade, principal, share } = self;
        let guard = connection.gateway.links.track();
        let peer = connection.web.stream.peer();
        let Connection { gateway, web, permit, .. } = connection;
        let registering = async {
            let (stream, leftover) = match web.upgrade(&upgrade).await {
                Ok(upgraded) => upgraded,
                Err(error) => {
                    log::debug!("connection with {peer} failed: {error}");
                    return None;
                }
            };
            let account = gateway.account(principal);
            let socket = ws_link::accepted(stream, leftover, &account, &gateway.config.limits.link).await;
            link::enter(gateway, socket, principal, peer).await
        };
        if let Some(link) = Box::pin(registering).await {
            link.run((guard, share, permit)).await;
        }
    }
}

impl Connection {
    /// Creates the state of an accepted connection, after its TLS handshake.
    pub fn new(gateway: Arc<Gateway>, stream: Stream, permit: ConnectionPermit) -> Self {
        let (draining, stopped) = (gateway.draining.clone(), gateway.stopped.clone());
        let web = HttpConnection::new(stream, &gateway.config.limits.http, draining, stopped);
        Self { gateway, web, permit, authenticated: None, answering: None, charged: None }
    }

    /// Serves requests until the connection ends or is upgraded to a link.
    pub async fn serve(mut self) -> Option<NewLink> {
        let peer = self.web.stream.peer();
        loop {
            match self.turn().await {
                Ok(Some(AfterRequest::Next)) => {}
                Ok(Some(AfterRequest::Upgrade(upgrade, principal, share))) => {
                    return Some(NewLink { connection: self, upgrade, principal, share });
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
        self.answering = None;
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

    async fn request(&mut self, request: Request) -> io::Result<AfterRequest> {
        let route = self.gateway.policy.route(&request);
        let admitted = self.gateway.policy.admit(&request, route.as_ref().ok());
        // A page whose request is rejected must not be able to read the reason either.
        let origin = request.field("origin").filter(|_| admitted.is_ok()).map(str::to_owned);
        match self.check(&request, route, admitted) {
            Ok((route, principal)) => {
                if self.is_authenticated(route) {
                    self.permit.authenticated();
                }
                // POSTs are still read while draining, and `dispatch` decides for each message: a
                // running call may need an answer from its client, or be cancelled.
                let begins = matches!(route, Route::Health | Route::EventStream(_) | Route::Register);
                if begins && self.gateway.draining.is_triggered() {
                    let response = self.with_cors(busy("the gateway is stopping\n"), origin.as_deref());
                    self.web.answer(&response);
                    return Ok(AfterRequest::Next);
                }
                self.go(route, principal, &request, origin.as_deref()).await
            }
            Err(response) => {
                let response = self.with_cors(marked(response, &request), origin.as_deref());
                self.web.answer(&response);
                Ok(AfterRequest::Next)
            }
        }
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
            id.or_else(|| request.query("session_id")).and_then(|id| gateway.sessions().owner(&id))
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

    async fn go(
        &mut self,
        route: Route<'_>,
        principal: Principal,
        request: &Request,
        origin: Option<&str>,
    ) -> io::Result<AfterRequest> {
        let scope = |name: Option<&str>| name.map_or(Scope::All, |name| Scope::Server(name.to_owned()));
        let response = match route {
            Route::Health => {
                Some(Response::new(StatusCode::Ok).field("Cache-Control", "no-store").text("ok"))
            }
            Route::Preflight => Some(preflight(request)),
            Route::Status => Some(self.gateway.status(principal).await),
            Route::Messages => legacy_sse::messages(self, principal, request).await?,
            Route::Mcp(name) => streamable::serve(self, principal, scope(name), request).await?,
            Route::EventStream(name) => match legacy_sse::admit(self, principal, scope(name)) {
                Ok((client, queue)) => {
                    let head = self.with_cors(event_stream::head(), origin);
                    let prefix = self.prefix(request);
                    Box::pin(legacy_sse::serve(self, head, prefix, (client, queue))).await?;
                    None
                }
                Err(response) => Some(response),
            },
            Route::Register => match self.admit_link(principal, request) {
                Ok((upgrade, share)) => return Ok(AfterRequest::Upgrade(upgrade, principal, share)),
                Err(response) => Some(marked(response, request)),
            },
        };
        if let Some(response) = response {
            let response = self.with_cors(response, origin);
            self.web.answer(&response);
        }
        Ok(AfterRequest::Next)
    }

    /// Returns the path prefix under which the client reaches the gateway: that of
    /// `X-Forwarded-Prefix` if a trusted proxy sent exactly one valid value, else the configured
    /// one.
    fn prefix(&self, request: &Request) -> String {
        let (config, peer) = (&self.gateway.config, self.web.stream.peer().ip().to_canonical());
        let mut named =
            request.fields("x-forwarded-prefix").filter(|_| config.trusted_proxies.contains(&peer));
        let prefix = match (named.next(), named.next()) {
            (Some(one), None) => router::prefix(one),
            _ => None,
        };
        prefix.unwrap_or(&config.public_prefix).to_owned()
    }

    fn admit_link(&self, principal: Principal, request: &Request) -> Result<(Upgrade, Share), Response> {
        let upgrade = Upgrade::check(request)?;
        if self.gateway.links.len() >= self.gateway.config.limits.link.links {
            let peer = self.web.stream.peer();
            let line = format_args!("rejected a registration from {peer}: too many links");
            self.gateway.warn_throttled("links", peer.ip(), line);
            return Err(busy("too many registered servers (--max-links)\n"));
        }
        let share = self.gateway.link_shares.take(principal, self.gateway.links_each());
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

    /// Returns 404 if the session's server is not connected. Only new sessions need it: an open one
    /// outlives a disconnect, and goes on when the server is back.
    pub(super) fn need_connected(&self, scope: &Scope) -> Result<(), Response> {
        match scope {
            Scope::Server(name) if self.gateway.catalog().server(name).is_none() => {
                Err(Response::new(StatusCode::NotFound).text("no such server is connected\n"))
            }
            _ => Ok(()),
        }
    }

    /// Opens a session, or returns the response that refuses it.
    pub(super) fn open_session(&self, client: &Arc<Session>, principal: Principal) -> Result<(), Response> {
        self.gateway.open_session(Instant::now(), client, principal).map_err(no_session)
    }

    /// Reads the body of a request into `web`. Breaks with the response that refuses the body, or
    /// with `None` when the connection has ended.
    pub(super) async fn read_json(
        &mut self,
        principal: Principal,
        request: &Request,
    ) -> io::Result<ControlFlow<Option<Response>>> {
        if !is_json(request) {
            let refusal = Response::new(StatusCode::UnsupportedMediaType)
                .text("unsupported media type; send application/json\n");
            return Ok(ControlFlow::Break(Some(refusal)));
        }
        if self.charged.as_ref().is_none_or(|charged| *charged != principal) {
            self.web.charge_body(&self.gateway.account(principal));
            self.charged = Some(principal);
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

    /// Adds the CORS fields, if enabled, that let a page of an allowed origin read the response.
    pub(super) fn with_cors(&self, response: Response, origin: Option<&str>) -> Response {
        match origin {
            Some(origin) if self.gateway.policy.cors => response
                .field("Access-Control-Allow-Origin", origin)
                .field("Access-Control-Expose-Headers", "Mcp-Session-Id, WWW-Authenticate")
                .field("Vary", "Origin"),
            _ => response,
        }
    }
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

/// Returns whether the request's content type is JSON. A missing `Content-Type` is accepted, as the
/// original program does.
fn is_json(request: &Request) -> bool {
    let Some(field) = request.field("content-type") else { return true };
    let kind = field.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Returns a 503 with `Retry-After: 1`.
pub(super) fn busy(text: &str) -> Response {
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
