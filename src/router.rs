//! Routing and origin checks: maps paths to routes, and checks `Host` and `Origin`.
//!
//! Does no I/O. The check against DNS rebinding covers every route, including the WebSocket
//! upgrade. A page that a browser loaded from elsewhere can reach a loopback port under a host name
//! of its own, but it cannot hide that name.

use std::net::Ipv4Addr;

use crate::{
    http::{head::Request, types::Method},
    limits,
    util::authority::{self, Authority, Host},
};

/// The route of a request. `Some` names the server whose endpoint it is; `None` is the endpoint of
/// all servers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// Opens an event stream (2024-11-05 transport): `/sse`, `/servers/NAME/sse`.
    EventStream(Option<&'a str>),
    /// The health check: `/health`.
    Health,
    /// The Streamable HTTP transport: `/mcp`, `/servers/NAME/mcp`.
    Mcp(Option<&'a str>),
    /// A message of an event-stream client (2024-11-05 transport): `/messages`.
    Messages,
    /// A CORS preflight of a browser.
    Preflight,
    /// The registration of a server, over WebSocket: `/mcp/register`.
    Register,
    /// The status of the gateway: `/status`.
    Status,
}

impl Route<'_> {
    /// Whether the route carries MCP messages.
    fn is_mcp(&self) -> bool {
        match self {
            Self::EventStream(_) | Self::Mcp(_) | Self::Messages | Self::Register => true,
            Self::Health | Self::Preflight | Self::Status => false,
        }
    }
}

/// The reason why a request has no route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unrouted {
    /// The path is known, but not with this method. Holds the allowed methods.
    Method(&'static str),
    /// The path is unknown.
    Path,
}

/// The reason why a request is not allowed from its origin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forbidden {
    /// The `Host` is not one of ours.
    Host,
    /// The `Origin` is not allowed.
    Origin,
    /// A browser sends the request for a page of another site (`Sec-Fetch-Site`), and without an
    /// `Origin`.
    Site,
    /// The request to register a server has an `Origin`, so a web page sent it. Edges send none.
    Registration,
}

impl Forbidden {
    /// Returns the reason as text, with the flag that changes it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Host => "this Host is not allowed without a token; see --public-host",
            Self::Origin => "this Origin is not allowed; see --allow-origin",
            Self::Site => "cross-site browser request; see --allow-origin",
            Self::Registration => "web pages cannot register servers: Origin is not allowed here",
        }
    }
}

/// Path at which servers register.
pub const REGISTER_PATH: &str = "/mcp/register";

/// Path prefix before a server's name and `/mcp`, `/sse` or `/messages`.
pub const SERVERS_PATH: &str = "/servers/";

/// Validates a path prefix under which a proxy serves the gateway. Returns it without a trailing
/// slash.
///
/// Returns `None` if the prefix, with one of our paths appended, might not be a plain path of the
/// same host. Letters, digits and `-._~` are allowed (RFC 3986, section 2.3); percent escapes,
/// `//`, dot segments and everything else are not. The limit is [`limits::PREFIX`] bytes.
pub fn prefix(text: &str) -> Option<&str> {
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
    let whole = trimmed.strip_prefix('/')?.split('/').all(segment);
    (whole && trimmed.len() <= limits::PREFIX).then_some(trimmed)
}

/// The part of the configuration that the router needs.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Path of the event stream.
    pub sse_path: String,
    /// Path of the Streamable HTTP transport.
    pub mcp_path: String,
    /// Path of the message endpoint, without a trailing slash.
    pub messages_path: String,
    /// Path of the health check.
    pub health_path: String,
    /// Path of the status.
    pub status_path: String,
    /// Whether a token or a client certificate is required. Then any `Host` is accepted, since a
    /// page that uses DNS rebinding has neither.
    pub guarded: bool,
    /// Host names under which the gateway may be addressed when it is not guarded.
    pub public_hosts: Vec<String>,
    /// Origins that are allowed besides loopback and our own; `*` allows all.
    pub allow_origins: Vec<String>,
    /// Whether to answer CORS preflights.
    pub cors: bool,
}

impl Policy {
    /// Checks whether `Host` and `Origin` allow a request for `route`. `None`: the request has no
    /// route, or is for the local health check of an edge.
    ///
    /// Browsers omit `Origin` when a page loads an image or follows a link, but `Sec-Fetch-Site`
    /// then says that the page is of another site.
    ///
    /// # Errors
    /// [`Forbidden`], with the reason.
    pub fn admit(&self, request: &Request, route: Option<&Route>) -> Result<(), Forbidden> {
        let host = request.host().unwrap_or_default();
        if !self.guarded && !self.is_our_host(host) {
            return Err(Forbidden::Host);
        }
        let mut origins = request.fields("origin");
        match (origins.next(), origins.next()) {
            (None, _) if route.is_some_and(Route::is_mcp) && is_from_another_site(request) => {
                Err(Forbidden::Site)
            }
            (None, _) => Ok(()),
            _ if route == Some(&Route::Register) => Err(Forbidden::Registration),
            (Some(origin), None) if self.is_allowed_origin(origin, host) => Ok(()),
            _ => Err(Forbidden::Origin),
        }
    }

    /// Returns the route of a request.
    ///
    /// # Errors
    /// [`Unrouted`], with the reason.
    pub fn route<'a>(&self, request: &'a Request) -> Result<Route<'a>, Unrouted> {
        let (path, method) = (request.path(), request.method());
        let trimmed = path.strip_suffix('/').filter(|rest| !rest.is_empty());
        let route = self.find(path).or_else(|| self.find(trimmed?)).ok_or(Unrouted::Path)?;
        let allowed = match route {
            Route::Mcp(_) => "GET, POST, DELETE",
            Route::Messages => "POST",
            Route::Health => "GET, HEAD",
            _ => "GET",
        };
        if self.cors && method == Method::Options && request.field("access-control-request-method").is_some()
        {
            return Ok(Route::Preflight);
        }
        if allowed.split(", ").any(|name| name == method.as_ref()) {
            Ok(route)
        } else {
            Err(Unrouted::Method(allowed))
        }
    }

    fn find<'a>(&self, path: &'a str) -> Option<Route<'a>> {
        match path {
            REGISTER_PATH => Some(Route::Register),
            _ if path == self.sse_path => Some(Route::EventStream(None)),
            _ if path == self.mcp_path => Some(Route::Mcp(None)),
            _ if path == self.messages_path => Some(Route::Messages),
            _ if path == self.health_path => Some(Route::Health),
            _ if path == self.status_path => Some(Route::Status),
            _ => {
                let (name, endpoint) = path.strip_prefix(SERVERS_PATH)?.split_once('/')?;
                match endpoint {
                    "mcp" => Some(Route::Mcp(Some(name))),
                    "sse" => Some(Route::EventStream(Some(name))),
                    "messages" => Some(Route::Messages),
                    _ => None,
                }
            }
        }
    }

    fn is_our_host(&self, host: &str) -> bool {
        let Some(Authority { written: name, host: named, .. }) = authority::parse(host) else { return false };
        is_loopback(named)
            || is_address(named)
            || self
                .public_hosts
                .iter()
                .any(|ours| ours.eq_ignore_ascii_case(name) || ours.eq_ignore_ascii_case(host))
    }

    fn is_allowed_origin(&self, origin: &str, host: &str) -> bool {
        if self.allow_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        web && (authority::parse(authority).is_some_and(|authority| is_loopback(authority.host))
            || authority.eq_ignore_ascii_case(host))
    }
}

/// Whether a browser reports that a page of another site sent the request (`Sec-Fetch-Site`; Fetch
/// Metadata, section 2.4). A page of the same site with another origin counts as well.
fn is_from_another_site(request: &Request) -> bool {
    request.fields("sec-fetch-site").any(|site| !matches!(site, "none" | "same-origin"))
}

fn is_loopback(host: Host<'_>) -> bool {
    match host {
        Host::Name(name) => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
        Host::V6(address) => address.is_loopback(),
    }
}

/// Whether a host is an IP address, which cannot be rebound. The unspecified address does not
/// count: it is meant for binding, and no client has a reason to name it as a `Host`.
fn is_address(host: Host<'_>) -> bool {
    match host {
        Host::Name(name) => name.parse::<Ipv4Addr>().is_ok_and(|address| !address.is_unspecified()),
        Host::V6(address) => !address.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::head, limits::HttpLimits};

    #[test]
    fn prefixes() {
        for (text, expected) in [
            ("/gate", Some("/gate")),
            ("/gate/way-1/", Some("/gate/way-1")),
            ("", None),
            ("/", None),
            ("//evil.example", None),
            ("/a//", None),
            ("/..", None),
            ("/a/./b", None),
            ("gate", None),
            ("/a%2e", None),
            ("/a?b", None),
            ("/a\r\nb", None),
            ("/\u{e9}", None),
            ("https://a.example/b", None),
        ] {
            assert_eq!(prefix(text), expected, "{text:?}");
        }
        assert_eq!(prefix(&format!("/{}", "a".repeat(limits::PREFIX))), None);
    }

    fn policy(guarded: bool) -> Policy {
        Policy {
            sse_path: "/sse".into(),
            mcp_path: "/mcp".into(),
            messages_path: "/messages".into(),
            health_path: "/health".into(),
            status_path: "/status".into(),
            guarded,
            public_hosts: vec!["gw.example".into()],
            allow_origins: vec!["https://app.example".into()],
            cors: false,
        }
    }

    fn request(method: &str, path: &str, fields: &str) -> Request {
        parsed(method, path, fields).unwrap()
    }

    /// Returns `None` if the request is malformed and refused before any check of this file.
    fn parsed(method: &str, path: &str, fields: &str) -> Option<Request> {
        let text = format!("{method} {path} HTTP/1.1\r\n{fields}\r\n");
        head::parse(text.as_bytes(), &HttpLimits::default()).ok()
    }

    #[test]
    fn hosts() {
        let good = ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "127.9.9.9", "[::1]:8765", "10.0.0.7:80"];
        let good = good.iter().chain(&["[2001:db8::1]", "gw.example", "GW.example:8765"]);
        for host in good {
            let request = request("GET", "/sse", &format!("Host: {host}\r\n"));
            assert_eq!(policy(false).admit(&request, None), Ok(()), "{host}");
        }
        let bad =
            ["evil.com", "localhost.evil.com", "0.0.0.0", "[::]:80", "", "localhost:x", "[::1].evil.com"];
        let bad =
            bad.iter().chain(&["127.0.0.1.evil.com", "x.gw.example", "localhost:80:90", "[::1]x", "127.1"]);
        for host in bad {
            let Some(request) = parsed("GET", "/sse", &format!("Host: {host}\r\n")) else { continue };
            assert_eq!(policy(false).admit(&request, None), Err(Forbidden::Host), "{host}");
            assert_eq!(policy(true).admit(&request, None), Ok(()), "{host}");
        }
    }

    #[test]
    fn origins() {
        let check = |origin: &str| {
            let fields = format!("Host: gw.example:8765\r\n{origin}");
            let request = request("GET", "/mcp", &fields);
            policy(true).admit(&request, Some(&Route::Mcp(None)))
        };
        for origin in [
            "",
            "Origin: http://localhost:3000\r\n",
            "Origin: http://127.0.0.1\r\n",
            "Origin: https://[::1]:5\r\n",
            "Origin: https://gw.example:8765\r\n",
            "Origin: https://app.example\r\n",
        ] {
            assert_eq!(check(origin), Ok(()), "{origin}");
        }
        for origin in [
            "Origin: null\r\n",
            "Origin: \r\n",
            "Origin: https://evil.com\r\n",
            "Origin: https://app.example:444\r\n",
            "Origin: http://app.example\r\n",
            "Origin: https://gw.example\r\n",
            "Origin: http://[::1].evil.example\r\n",
            "Origin: http://localhost.evil.com\r\n",
            "Origin: file://localhost\r\n",
            "Origin: http://localhost:3000\r\nOrigin: http://localhost:3000\r\n",
        ] {
            assert_eq!(check(origin), Err(Forbidden::Origin), "{origin}");
        }
    }

    #[test]
    fn registration_with_an_origin_is_refused() {
        let check = |fields: &str| {
            let request = request("GET", "/mcp/register", &format!("Host: gw.example\r\n{fields}"));
            let all = Policy { allow_origins: vec!["*".into()], ..policy(true) };
            all.admit(&request, Some(&Route::Register))
        };
        assert_eq!(check(""), Ok(()));
        for fields in ["Origin: https://gw.example\r\n", "Origin: http://localhost\r\n", "Origin: \r\n"] {
            assert_eq!(check(fields), Err(Forbidden::Registration), "{fields}");
        }
    }

    #[test]
    fn sites() {
        let check = |fields: &str, route: Route| {
            let request = request("GET", "/sse", &format!("Host: gw.example\r\n{fields}"));
            policy(true).admit(&request, Some(&route))
        };
        let all = [Route::EventStream(None), Route::Mcp(Some("a")), Route::Messages, Route::Register];
        for site in ["cross-site", "same-site", "", "new-word", "none, cross-site"] {
            let line = format!("Sec-Fetch-Site: {site}\r\n");
            for route in all {
                assert_eq!(check(&line, route), Err(Forbidden::Site), "{site} {route:?}");
            }
            assert_eq!(check(&line, Route::Health), Ok(()), "{site}");
            let known = format!("{line}Origin: https://app.example\r\n");
            assert_eq!(check(&known, Route::Mcp(None)), Ok(()), "{site}");
        }
        for site in ["none", "same-origin"] {
            assert_eq!(check(&format!("Sec-Fetch-Site: {site}\r\n"), Route::EventStream(None)), Ok(()));
        }
    }

    #[test]
    fn routes() {
        let route = |method, path| {
            format!("{:?}", policy(false).route(&request(method, path, "Host: localhost\r\n")))
        };
        for (method, path, expected) in [
            ("GET", "/sse", "Ok(EventStream(None))"),
            ("POST", "/messages?session_id=x", "Ok(Messages)"),
            ("POST", "/messages/?session_id=x", "Ok(Messages)"),
            ("POST", "/mcp", "Ok(Mcp(None))"),
            ("DELETE", "/mcp", "Ok(Mcp(None))"),
            ("GET", "/servers/a.b/mcp", "Ok(Mcp(Some(\"a.b\")))"),
            ("GET", "/servers/a/sse", "Ok(EventStream(Some(\"a\")))"),
            ("POST", "/servers/a/messages?session_id=x", "Ok(Messages)"),
            ("GET", "/mcp/register", "Ok(Register)"),
            ("GET", "/mcp/register/", "Ok(Register)"),
            ("GET", "/sse/", "Ok(EventStream(None))"),
            ("POST", "/mcp/", "Ok(Mcp(None))"),
            ("POST", "/servers/a/mcp/", "Ok(Mcp(Some(\"a\")))"),
            ("POST", "/servers/a/messages/?session_id=x", "Ok(Messages)"),
            ("HEAD", "/health", "Ok(Health)"),
            ("GET", "/status", "Ok(Status)"),
            ("POST", "/status", "Err(Method(\"GET\"))"),
            ("POST", "/sse", "Err(Method(\"GET\"))"),
            ("PUT", "/mcp", "Err(Method(\"GET, POST, DELETE\"))"),
            ("OPTIONS", "/sse", "Err(Method(\"GET\"))"),
            ("GET", "/messages", "Err(Method(\"POST\"))"),
        ] {
            assert_eq!(route(method, path), expected, "{method} {path}");
        }
        for path in [
            "/",
            "/sse//",
            "/SSE",
            "/messages//",
            "//",
            "/x",
            "/servers/a",
            "/servers/a/b/mcp",
            "/servers/a/mcp//",
        ] {
            assert_eq!(route("GET", path), "Err(Path)", "{path}");
        }
    }

    #[test]
    fn preflights() {
        let fields = "Host: localhost\r\nAccess-Control-Request-Method: POST\r\n";
        let preflight = request("OPTIONS", "/messages", fields);
        assert_eq!(policy(false).route(&preflight), Err(Unrouted::Method("POST")));
        assert_eq!(Policy { cors: true, ..policy(false) }.route(&preflight), Ok(Route::Preflight));
    }
}
