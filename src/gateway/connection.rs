//! One HTTP connection: drives `http::conn` over a stream, checks every request, and routes it.

use std::{io, sync::Arc, time::Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use super::{Gateway, registration, stream};
use crate::{
    auth::{Denied, Principal},
    http::{
        conn::{Conn, Step},
        head::Request,
        respond::Response,
        upgrade::Upgrade,
        vocab::{Method, StatusCode},
    },
    net::{deadline, link, stream::Stream},
    router::{Forbidden, Route, Unrouted},
};

/// One connection.
pub struct Connection {
    pub(super) gateway: Arc<Gateway>,
    pub(super) stream: Stream,
    pub(super) conn: Conn,
    /// Bytes to be written.
    pub(super) out: Vec<u8>,
}

/// What becomes of the connection after a request.
enum Then {
    Next,
    Upgrade(Upgrade, Principal),
}

impl Connection {
    /// A connection that was accepted, after its TLS handshake.
    pub fn new(gateway: Arc<Gateway>, stream: Stream) -> Self {
        let conn = Conn::new(Instant::now(), &gateway.config.limits.http);
        Self { gateway, stream, conn, out: Vec::new() }
    }

    /// Serves its requests until it ends.
    pub async fn serve(mut self) {
        let peer = self.stream.peer();
        loop {
            match self.turn().await {
                Ok(Some(Then::Next)) => {}
                Ok(Some(Then::Upgrade(upgrade, principal))) => {
                    return Box::pin(self.upgrade(upgrade, principal)).await;
                }
                Ok(None) => break,
                Err(error) => return log::debug!("connection with {peer} broke: {error}"),
            }
        }
        let limit = self.gateway.config.limits.http.drain_time;
        if let Err(error) = self.stream.finish(limit).await {
            log::debug!("connection with {peer} did not close well: {error}");
        }
    }

    /// One request and its answer. `None`: the connection has come to its end.
    async fn turn(&mut self) -> io::Result<Option<Then>> {
        match self.advance().await? {
            Step::Request(request) => self.request(request).await.map(Some),
            Step::Refuse(response) => {
                self.answer(response);
                Ok(Some(Then::Next))
            }
            Step::Body | Step::Close | Step::Drain | Step::Read => Ok(None),
        }
    }

    /// Writes and reads until the machine has a request, a body, a refusal or the end.
    pub(super) async fn advance(&mut self) -> io::Result<Step> {
        let mut shut = false;
        loop {
            if self.gateway.stopped.is_thrown() {
                self.conn.last();
            }
            let step = self.conn.next(Instant::now());
            match step {
                Step::Read => {
                    self.flush().await?;
                    match self.read().await? {
                        Step::Read => {}
                        other => return Ok(other),
                    }
                }
                Step::Drain => {
                    self.flush().await?;
                    if !std::mem::replace(&mut shut, true) {
                        self.stream.finish(self.gateway.config.limits.http.drain_time).await?;
                    }
                    if let Step::Close = self.read().await? {
                        return Ok(Step::Close);
                    }
                }
                Step::Close => {
                    self.flush().await?;
                    return Ok(Step::Close);
                }
                other => return Ok(other),
            }
        }
    }

    /// Reads once; [`Step::Read`] means that there is something to look at, anything else that time is up.
    async fn read(&mut self) -> io::Result<Step> {
        let limit = self.conn.deadline();
        let stopping = self.gateway.stopped.is_thrown();
        let Self { stream, conn, gateway, .. } = self;
        let read = async { stream.read(conn.space()).await.map(Some) };
        let late = async {
            let stopped =
                async { if stopping { std::future::pending().await } else { gateway.stopped.wait().await } };
            future::or(deadline::until(limit), stopped).await;
            Ok(None)
        };
        match future::or(read, late).await? {
            Some(count) => {
                self.conn.filled(count);
                Ok(Step::Read)
            }
            None => Ok(self.conn.expired(Instant::now())),
        }
    }

    /// Writes what is to be written. A peer that takes nothing for too long is given up.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let limit = self.gateway.config.limits.http.write_stall;
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            let count = deadline::within(limit, self.stream.write(rest)).await??;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(count..).unwrap_or_default();
        }
        if !self.out.is_empty() {
            deadline::within(limit, self.stream.flush()).await??;
        }
        self.out.clear();
        // A burst must not be paid for until the connection ends.
        self.out.shrink_to(self.gateway.config.limits.http.read_bytes);
        Ok(())
    }

    pub(super) fn answer(&mut self, response: Response) {
        self.conn.respond(Instant::now(), &response, &mut self.out);
    }

    async fn request(&mut self, request: Request) -> io::Result<Then> {
        let origin = request.field("origin").map(str::to_owned);
        match self.check(&request) {
            Ok((route, principal)) => self.go(route, principal, &request, origin.as_deref()).await,
            Err(response) => {
                let response = self.with_cors(response, origin.as_deref());
                self.answer(response);
                Ok(Then::Next)
            }
        }
    }

    /// Who asks, from where, for what; in this order, before anything else of the request is acted on.
    fn check(&self, request: &Request) -> Result<(Route, Principal), Response> {
        let policy = &self.gateway.policy;
        let route = policy.route(request);
        // A browser's preflight never carries a token; it is answered, and tells nothing.
        let principal = if route == Ok(Route::Preflight) {
            Principal::ANONYMOUS
        } else {
            let checked = self.gateway.tokens.check(request.fields("authorization"));
            checked.map_err(|why| self.denied(why))?
        };
        policy.admit(request).map_err(forbidden)?;
        let route = route.map_err(|why| match why {
            Unrouted::Path => Response::new(StatusCode::NotFound).text("not found\n"),
            Unrouted::Method(allowed) => Response::new(StatusCode::MethodNotAllowed)
                .field("Allow", allowed)
                .text("method not allowed\n"),
        })?;
        Ok((route, principal))
    }

    /// RFC 6750, section 3: no error code when no token was sent.
    fn denied(&self, why: Denied) -> Response {
        self.gateway.stats.denied.add();
        log::debug!("a request from {} is denied: {why:?}", self.stream.peer());
        let unauthorized = Response::new(StatusCode::Unauthorized);
        match why {
            Denied::Missing => {
                unauthorized.field("WWW-Authenticate", "Bearer").text("a bearer token is needed\n")
            }
            Denied::Several => {
                Response::new(StatusCode::BadRequest).text("more than one Authorization field\n")
            }
            Denied::Wrong => unauthorized
                .field("WWW-Authenticate", "Bearer error=\"invalid_token\"")
                .text("the token is not valid here\n"),
        }
    }

    async fn go(
        &mut self,
        route: Route,
        principal: Principal,
        request: &Request,
        origin: Option<&str>,
    ) -> io::Result<Then> {
        let response = match route {
            Route::Health => Response::new(StatusCode::Ok).field("Cache-Control", "no-store").text("ok"),
            Route::Preflight => preflight(),
            Route::Messages => match stream::messages(self, principal, request).await? {
                Some(response) => response,
                None => return Ok(Then::Next),
            },
            Route::EventStream => match stream::admit(self, principal) {
                Ok((client, queue)) => {
                    let head = self.with_cors(stream::head(), origin);
                    Box::pin(stream::serve(self, head, client, queue)).await?;
                    return Ok(Then::Next);
                }
                Err(response) => response,
            },
            Route::Register => match self.admit_link(request) {
                Ok(upgrade) => return Ok(Then::Upgrade(upgrade, principal)),
                Err(response) => response,
            },
        };
        let response = self.with_cors(response, origin);
        self.answer(response);
        Ok(Then::Next)
    }

    fn admit_link(&self, request: &Request) -> Result<Upgrade, Response> {
        let upgrade = Upgrade::check(request)?;
        if self.gateway.links.len() >= self.gateway.config.limits.link.links {
            log::warn!("a registration from {} is refused: too many links", self.stream.peer());
            return Err(busy("too many servers are registered\n"));
        }
        Ok(upgrade)
    }

    async fn upgrade(mut self, upgrade: Upgrade, principal: Principal) {
        let badge = self.gateway.links.badge();
        let peer = self.stream.peer();
        let conn =
            std::mem::replace(&mut self.conn, Conn::new(Instant::now(), &self.gateway.config.limits.http));
        let glued = conn.upgrade(&upgrade, &mut self.out);
        if let Err(error) = self.flush().await {
            return log::debug!("connection with {peer} broke: {error}");
        }
        let Self { gateway, stream, .. } = self;
        let socket = link::accepted(stream, glued, &gateway.config.limits.link).await;
        registration::serve(gateway, socket, principal, peer).await;
        drop(badge);
    }

    /// Lets a page of an allowed origin read the answer, if that was asked for.
    fn with_cors(&self, response: Response, origin: Option<&str>) -> Response {
        match origin {
            Some(origin) if self.gateway.policy.cors => response
                .field("Access-Control-Allow-Origin", origin)
                .field("Access-Control-Expose-Headers", "Mcp-Session-Id, WWW-Authenticate")
                .field("Vary", "Origin"),
            _ => response,
        }
    }
}

fn forbidden(why: Forbidden) -> Response {
    let mut text = why.reason().to_owned();
    text.push('\n');
    Response::new(StatusCode::Forbidden).text(&text)
}

/// 503 with a hint when to come back.
pub(super) fn busy(text: &str) -> Response {
    Response::new(StatusCode::ServiceUnavailable).field("Retry-After", "1").text(text)
}

fn preflight() -> Response {
    let methods = [Method::Get, Method::Post, Method::Delete].map(|method| method.to_string()).join(", ");
    Response::new(StatusCode::NoContent)
        .field("Access-Control-Allow-Methods", &methods)
        .field(
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, Accept, Mcp-Session-Id, MCP-Protocol-Version, Last-Event-ID",
        )
        .field("Access-Control-Max-Age", "600")
}
