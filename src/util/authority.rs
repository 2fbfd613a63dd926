//! The authority of a URL and the `Host` header field: `host` or `host:port` (RFC 3986, section
//! 3.2), without user information. What a port may be is the caller's decision.

use std::net::Ipv6Addr;

use super::name::is_name_byte;

/// A parsed authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Authority<'a> {
    /// The host as written, with the brackets of an IPv6 address.
    pub written: &'a str,
    /// The host.
    pub host: Host<'a>,
    /// The digits behind the colon, in any number. Empty: a colon alone, which means the default
    /// port (RFC 3986, section 3.2.3).
    pub port: Option<&'a str>,
}

/// The host of an authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host<'a> {
    /// A name or an IPv4 address.
    Name(&'a str),
    /// An IPv6 address, in brackets.
    V6(Ipv6Addr),
}

/// Parses an authority. `None` for any other text, and for a name with other characters than
/// letters, digits, `-`, `.` and `_`.
pub fn parse(text: &str) -> Option<Authority<'_>> {
    let end = match text.starts_with('[') {
        true => text.find(']')? + 1,
        false => text.find(':').unwrap_or(text.len()),
    };
    let (written, rest) = text.split_at(end);
    let host = match written.strip_prefix('[') {
        Some(rest) => Host::V6(rest.strip_suffix(']')?.parse().ok()?),
        None if !written.is_empty() && written.bytes().all(is_name_byte) => Host::Name(written),
        None => return None,
    };
    let port = match rest.strip_prefix(':') {
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
        None if rest.is_empty() => None,
        _ => return None,
    };
    Some(Authority { written, host, port })
}

/// Returns a host without the brackets of an IPv6 address.
pub fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Formats a host, which is without brackets, and a port.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        let v6 = |text: &str| Host::V6(text.parse().unwrap());
        for (text, written, host, port) in [
            ("gw.example", "gw.example", Host::Name("gw.example"), None),
            ("a_b-c:8765", "a_b-c", Host::Name("a_b-c"), Some("8765")),
            ("127.0.0.1:", "127.0.0.1", Host::Name("127.0.0.1"), Some("")),
            ("gw:000099999", "gw", Host::Name("gw"), Some("000099999")),
            ("[::1]", "[::1]", v6("::1"), None),
            ("[2001:DB8::1]:80", "[2001:DB8::1]", v6("2001:db8::1"), Some("80")),
        ] {
            assert_eq!(parse(text), Some(Authority { written, host, port }), "{text}");
        }
        for text in [
            "",
            ":80",
            "a:b",
            "a:+1",
            "a:-1",
            "a:1:2",
            "::1",
            "a b",
            "a/b",
            "user@a",
            "\u{e9}",
            "[]",
            "[::1",
            "[::1]x",
            "[::1]80",
            "[gw]",
            "[127.0.0.1]",
            "[::1]:x",
            "x[::1]",
            "]",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_and_ports_are_joined() {
        for (host, port, joined) in
            [("gw", 1, "gw:1"), ("127.0.0.1", 80, "127.0.0.1:80"), ("::1", 80, "[::1]:80")]
        {
            assert_eq!(join(host, port), joined);
            assert_eq!(parse(joined).map(|authority| unbracketed(authority.written)), Some(host));
        }
    }
}
