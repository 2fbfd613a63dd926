//! Parses the values of single flags. Each error names its flag and never contains a secret.

use std::{fmt::Display, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use log::LevelFilter;

use crate::{
    config::{EraPin, GatewayUrl, Restart},
    error::FatalError,
    http::body,
    limits::{SERVER_ID, THREADS},
    router::{self, REGISTER_PATH},
    secret::Secret,
    util::{
        self,
        authority::{self, Authority, Host},
    },
};

/// Parses every value of a flag that may be repeated.
pub fn each<T>(typed: &[String], read: impl Fn(&str) -> Result<T, FatalError>) -> Result<Vec<T>, FatalError> {
    typed.iter().map(|typed| read(typed)).collect()
}

/// Parses an integer within bounds.
///
/// # Errors
/// A usage error that names the flag and the bounds.
pub fn number<N>(flag: &str, typed: &str, allowed: RangeInclusive<N>) -> Result<N, FatalError>
where
    N: FromStr + PartialOrd + Display,
{
    typed.parse().ok().filter(|number| allowed.contains(number)).ok_or_else(|| {
        let (typed, least, max) = (util::escape::show(typed), allowed.start(), allowed.end());
        FatalError::usage(format!("{flag} {typed}: expected a number from {least} to {max}"))
    })
}

/// Parses a log level.
pub fn level(typed: &str) -> Result<LevelFilter, FatalError> {
    match typed.to_ascii_uppercase().as_str() {
        "DEBUG" => Ok(LevelFilter::Debug),
        "INFO" => Ok(LevelFilter::Info),
        "WARNING" | "WARN" => Ok(LevelFilter::Warn),
        "ERROR" | "CRITICAL" => Ok(LevelFilter::Error),
        _ => Err(FatalError::usage(format!(
            "--log-level {}: expected DEBUG, INFO, WARNING, ERROR or CRITICAL",
            util::escape::show(typed)
        ))),
    }
}

/// Parses a duration greater than zero.
pub fn duration(flag: &str, typed: &str) -> Result<Duration, FatalError> {
    util::parse::duration(typed).filter(|time| !time.is_zero()).ok_or_else(|| {
        FatalError::usage(format!(
            "{flag} {}: expected a duration such as 10, 10s, 500ms or 2m",
            util::escape::show(typed)
        ))
    })
}

/// Parses a duration; zero is allowed.
pub fn window(flag: &str, typed: &str) -> Result<Duration, FatalError> {
    util::parse::duration(typed).ok_or_else(|| {
        FatalError::usage(format!(
            "{flag} {}: expected a duration such as 30, 30s or 2m, or 0",
            util::escape::show(typed)
        ))
    })
}

/// Parses a URL path of the gateway or of the local health check.
pub fn path(flag: &str, typed: &str) -> Result<String, FatalError> {
    let plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\');
    if typed.starts_with('/') && typed.bytes().all(plain) {
        return Ok(typed.to_owned());
    }
    Err(FatalError::usage(format!("{flag} {}: expected a path such as /sse", util::escape::show(typed))))
}

/// Parses the path for messages. Drops a trailing slash, because the gateway serves both forms.
pub fn messages_path(typed: &str) -> Result<String, FatalError> {
    let path = path("--messages-path", typed)?;
    Ok(path.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(&path).to_owned())
}

/// Parses the number of threads.
pub fn threads(typed: &str) -> Result<usize, FatalError> {
    number("--threads", typed, 1..=THREADS)
}

/// Parses whether idle threads may busy-poll: `on` or `off`.
pub fn busy_poll(typed: &str) -> Result<bool, FatalError> {
    match typed {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(FatalError::usage(format!("--busy-poll {}: expected on or off", util::escape::show(typed)))),
    }
}

/// Parses a server name of at most `longest` characters.
pub fn server_name(typed: &str, longest: usize) -> Result<String, FatalError> {
    if util::name::is_name(typed, longest) {
        return Ok(typed.to_owned());
    }
    Err(FatalError::usage(format!(
        "--server-name {}: only A-Z a-z 0-9 _ . - are allowed, at most {longest} characters",
        util::escape::show(typed)
    )))
}

/// Parses a server id.
pub fn server_id(typed: &str) -> Result<String, FatalError> {
    if (1..=SERVER_ID).contains(&typed.len()) && !typed.chars().any(char::is_control) {
        return Ok(typed.to_owned());
    }
    Err(FatalError::usage(format!("--server-id: expected plain text of at most {SERVER_ID} characters")))
}

/// Parses the address of a proxy.
pub fn proxy(typed: &str) -> Result<IpAddr, FatalError> {
    let address = typed.parse().map(|address: IpAddr| address.to_canonical());
    let why =
        || format!("--trusted-proxy {}: expected an address such as 127.0.0.1", util::escape::show(typed));
    address.map_err(|_| FatalError::usage(why()))
}

/// Parses an origin in the form that browsers send: scheme and authority without a path. Any other
/// form would never match.
pub fn origin(typed: &str) -> Result<String, FatalError> {
    let plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@' | b',' | b'"');
    let whole = typed.split_once("://").is_some_and(|(scheme, authority)| {
        let named = |part: &str| !part.is_empty() && part.bytes().all(plain);
        named(scheme) && named(authority)
    });
    if whole || matches!(typed, "*" | "null") {
        return Ok(typed.to_owned());
    }
    Err(FatalError::usage(format!(
        "--allow-origin {}: expected an origin such as https://app.example, without a path",
        util::escape::show(typed)
    )))
}

/// Parses a host name as in the `Host` header, with an optional port.
pub fn public_host(typed: &str) -> Result<String, FatalError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if !typed.is_empty() && typed.bytes().all(plain) {
        return Ok(typed.to_owned());
    }
    Err(FatalError::usage(format!(
        "--public-host {}: expected a name such as gw.example, without scheme or path",
        util::escape::show(typed)
    )))
}

/// Splits a URL into its host and its path prefix without a trailing slash. Errors do not repeat
/// the URL, because it may contain secrets.
pub fn public_url(typed: &str) -> Result<(String, String), FatalError> {
    let parts = || {
        let (scheme, rest) = typed.split_once("://")?;
        let web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, _) = host_and_port(authority).filter(|_| web)?;
        let prefix = if matches!(path, "" | "/") { "" } else { router::prefix(path)? };
        Some((host, prefix.to_owned()))
    };
    let why = "--public-url: expected a URL such as https://gw.example/base, its path of letters, digits and - . _ ~";
    parts().ok_or_else(|| FatalError::usage(why))
}

/// Parses the era of a server's processes.
pub fn era(typed: &str) -> Result<EraPin, FatalError> {
    EraPin::read(typed).ok_or_else(|| {
        let typed = util::escape::show(typed);
        FatalError::usage(format!("--era {typed}: expected auto, legacy or modern"))
    })
}

/// Parses a restart policy.
pub fn restart(typed: &str) -> Result<Restart, FatalError> {
    match typed {
        "never" => Ok(Restart::Never),
        "on-failure" => Ok(Restart::OnFailure),
        "always" => Ok(Restart::Always),
        other => Err(FatalError::usage(format!(
            "--restart {}: expected never, on-failure or always",
            util::escape::show(other)
        ))),
    }
}

/// Parses the gateway's URL. Errors do not repeat the URL, because it may contain secrets.
///
/// Hand-written, because a full URL parser adds 50 KiB of code, and as much to the memory of an
/// idle edge.
pub fn gateway_url(typed: &str) -> Result<GatewayUrl, FatalError> {
    let bad = |why: &str| {
        FatalError::usage(format!("--gateway-url: {why}, such as ws://localhost:8765{REGISTER_PATH}"))
    };
    if !typed.is_ascii() {
        return Err(bad("expected a URL in ASCII, with internationalized names in xn-- form"));
    }
    let Some((scheme, rest)) = typed.trim().split_once("://") else { return Err(bad("expected a URL")) };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "ws" | "http" => false,
        "wss" | "https" => true,
        _ => return Err(bad("expected a ws:// or wss:// URL")),
    };
    // The fragment is not sent to the server.
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(FatalError::usage(
            "--gateway-url: a user name or password in the URL is not supported; use --header \"Authorization: Bearer TOKEN\"",
        ));
    }
    let Some((host, port)) = host_and_port(authority) else {
        return Err(bad("expected a URL with a host and, optionally, a port of 1 to 65535"));
    };
    if !target.bytes().all(is_url_byte) {
        return Err(bad("expected a URL, with other characters percent-encoded (%XX)"));
    }
    let port = port.unwrap_or(if tls { 443 } else { 80 });
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let path = if matches!(path, "" | "/") { REGISTER_PATH } else { path };
    Ok(GatewayUrl { tls, host, port, target: format!("{path}{query}") })
}

/// Returns the host without brackets, and the port if there is one. `None` if the authority does
/// not have the form of RFC 3986 3.2.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let Authority { host, port, .. } = authority::parse(authority)?;
    let host = match host {
        Host::Name(name) => name.to_ascii_lowercase(),
        Host::V6(address) => address.to_string(),
    };
    let port = match port {
        None | Some("") => None,
        Some(digits) => Some(digits.parse().ok().filter(|port| *port != 0)?),
    };
    Some((host, port))
}

/// Whether a byte may appear in a path or a query (RFC 3986 3.3 and 3.4).
fn is_url_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

/// Parses a header field for the request to the gateway. The value is a secret.
pub fn header(flag: &str, typed: &str) -> Result<(String, Secret), FatalError> {
    let bad = || FatalError::usage(format!("{flag}: expected \"Key: Value\""));
    let (key, value) = typed.split_once(':').ok_or_else(bad)?;
    let (key, value) = (key.trim(), value.trim());
    let reserved = ["host", "connection", "upgrade", "content-length", "transfer-encoding"];
    let own = key.to_ascii_lowercase();
    if key.is_empty() || value.is_empty() {
        return Err(bad());
    }
    if reserved.contains(&own.as_str()) || own.starts_with("sec-websocket") {
        return Err(FatalError::usage(format!(
            "{flag} {}: this field is set by mcpport",
            util::escape::show(key)
        )));
    }
    // A line without a field name may begin with the token, so the message does not repeat the
    // name.
    if !key.bytes().all(body::is_token) {
        return Err(FatalError::usage(format!(
            "{flag}: the field name contains a character that HTTP does not allow"
        )));
    }
    if !value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        let key = util::escape::show(key);
        return Err(FatalError::usage(format!(
            "{flag} {key}: the value contains a character that HTTP does not allow"
        )));
    }
    Ok((key.to_owned(), Secret::new(value)))
}
